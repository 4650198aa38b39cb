//! One audit record per request, written by a thread of its own.
//!
//! A request takes a place in the writer's queue before it is judged and holds it until its record is written, so that no
//! record is lost for want of room; when there is no place, or the journal cannot be written, requests are refused. The records
//! of those that went out before are kept until it can be. What else is recorded is little, and needs no place: it must not wait
//! for requests that wait.

mod writer;

use std::borrow::Cow;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use audit::{Bound, Decision, Journal, Recovery, ReloadEvent, RequestEvent};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::{Semaphore, TryAcquireError, oneshot};
use tokio::time::{Instant, timeout};
use tracing::{error, warn};

use crate::body::Progress;
use crate::inspect::Inspection;
use crate::limits::Held;
use crate::observe::Observer;
use crate::refusal::{Refusal, Subject};
use crate::scrub::Ending;
use crate::tls::hex;
use writer::Writer;

/// How many requests may be open or waiting to be recorded.
const PLACES: usize = 4 * 1024;
/// How long a request waits for a place.
const PLACE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last records may take at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// So much of a host, a method or a path is recorded.
const TEXT_MAX: usize = 2 * 1024;

/// Where the journal is, under the state directory.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("audit/egress/journal.jsonl")
}

/// Why there is no journal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The journal could not be opened.
    #[error(transparent)]
    Open(#[from] audit::Error),
    /// The thread that writes could not be started.
    #[error("cannot start the thread that writes the journal")]
    Thread(#[source] std::io::Error),
}

/// The way to the writer.
#[derive(Debug, Clone)]
pub struct Recorder(Arc<Way>);

#[derive(Debug)]
struct Way {
    queue: UnboundedSender<Message>,
    /// How many more requests there is room for.
    places: Arc<Semaphore>,
    broken: Arc<AtomicBool>,
    observer: Arc<Observer>,
}

enum Message {
    Head(oneshot::Sender<(u64, String)>),
    /// It has a place, which is free again once it is written.
    Request(Box<RequestEvent>),
    Reload(ReloadEvent),
    /// Answered with how many records could not be written.
    Flush(oneshot::Sender<usize>),
}

impl Recorder {
    /// Opens the journal at `path` and starts its writer.
    pub fn open(path: &Path) -> Result<Recorder, Error> {
        let (journal, recovery) = Journal::open_within(path, Bound::default())?;
        if let Recovery::TornTail { dropped_bytes } = recovery {
            warn!(dropped_bytes, journal = %path.display(), "the journal had an unfinished last record");
        }
        let (queue, messages) = mpsc::unbounded_channel();
        let broken = Arc::new(AtomicBool::new(false));
        let places = Arc::new(Semaphore::new(PLACES));
        let writer = Writer::new(journal, Arc::clone(&broken), Arc::clone(&places));
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run(messages))
            .map_err(Error::Thread)?;
        Ok(Recorder(Arc::new(Way { queue, places, broken, observer: Observer::new() })))
    }

    /// A record for a request that begins now; what it was for, when there is no room for one.
    pub(crate) async fn begin(
        &self,
        generation: u64,
        digest: &Arc<str>,
        subject: Subject,
    ) -> Result<Box<Entry>, Subject> {
        let place = match self.0.places.try_acquire() {
            Ok(place) => Some(place),
            // They are free once it can be written, which nobody knows the time of.
            Err(TryAcquireError::NoPermits) if self.is_broken() => None,
            // Only who has to wait needs a timer, and the room for it.
            Err(TryAcquireError::NoPermits) => {
                let place = timeout(PLACE_TIMEOUT, self.0.places.acquire());
                Box::pin(place).await.ok().and_then(Result::ok)
            }
            Err(TryAcquireError::Closed) => None,
        };
        // Closed, when the writer is gone.
        let Some(place) = place.filter(|_| !self.0.queue.is_closed()) else { return Err(subject) };
        // The writer frees it.
        place.forget();
        let event = RequestEvent { generation, digest: Arc::clone(digest), ..RequestEvent::default() };
        let started = Instant::now();
        let (up, held, inspection, ending) = (None, None, None, None);
        let way = Some(Arc::clone(&self.0));
        Ok(Box::new(Entry { subject, event, up, held, inspection, ending, started, way }))
    }

    /// Whether the last record could not be written.
    pub(crate) fn is_broken(&self) -> bool {
        self.0.broken.load(Ordering::Relaxed)
    }

    /// What is kept besides the journal.
    pub(crate) fn observer(&self) -> &Observer {
        &self.0.observer
    }

    /// How many records the journal has, and the hash of the last one; nothing when it is too slow to say.
    pub(crate) async fn head(&self) -> Option<(u64, String)> {
        let (tell, told) = oneshot::channel();
        self.0.queue.send(Message::Head(tell)).ok()?;
        timeout(FLUSH_TIMEOUT, told).await.ok()?.ok()
    }

    /// Records a reload.
    pub(crate) fn reloaded(&self, event: ReloadEvent) {
        self.0.observer.reload(event.error.is_some());
        if self.0.queue.send(Message::Reload(event)).is_err() {
            error!("a reload is not recorded: the journal's writer is gone");
        }
    }

    /// Returns when everything handed in so far is written or cannot be, or after a while.
    pub async fn flush(&self) {
        let (done, written) = oneshot::channel();
        if self.0.queue.send(Message::Flush(done)).is_err() {
            return;
        }
        match timeout(FLUSH_TIMEOUT, written).await {
            Ok(Ok(0)) => {}
            Ok(Ok(missing)) => error!(missing, "the journal cannot be written: its last records are missing"),
            Ok(Err(_)) => error!("the journal's writer is gone; its last records may be missing"),
            Err(_) => warn!("the journal is slow; its last records may be missing"),
        }
    }
}

/// `text` as it is recorded: who asks does not say how much room that takes.
fn shortened(mut text: String) -> String {
    if text.len() > TEXT_MAX {
        let (length, digest) = (text.len(), hex(&Sha256::digest(&text)));
        text.truncate(text.floor_char_boundary(TEXT_MAX));
        text.push_str(&format!("… ({length} bytes, sha256:{digest})"));
    }
    text
}

/// The record of one request; handed in when it is dropped, or when what is searched of the request has ended too.
#[derive(Debug)]
pub(crate) struct Entry {
    /// What it is for, as far as it is understood so far.
    pub(crate) subject: Subject,
    pub(crate) event: RequestEvent,
    /// The request's body, which may still be on its way.
    pub(crate) up: Option<Arc<Progress>>,
    /// Its place among the requests that its route may answer at once, until it goes out: then its body keeps it too.
    pub(crate) held: Option<Held>,
    /// What may still be found in the request's body.
    pub(crate) inspection: Option<Inspection>,
    /// Why its answer was cut, if it is.
    pub(crate) ending: Option<Ending>,
    started: Instant,
    /// None once it was handed in.
    way: Option<Arc<Way>>,
}

impl Entry {
    /// Notes that upstream's answer begins now.
    pub(crate) fn answered(&mut self) {
        self.event.answered_millis = Some(self.millis());
    }

    /// The rest of it, which goes on.
    fn take(&mut self, way: Arc<Way>, inspection: Option<Inspection>) -> Box<Entry> {
        Box::new(Entry {
            subject: mem::take(&mut self.subject),
            event: mem::take(&mut self.event),
            up: self.up.take(),
            held: None,
            inspection,
            ending: None,
            started: self.started,
            way: Some(way),
        })
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Where upstream fails, what was allowed stays so.
    pub(crate) fn refused(&mut self, refusal: &Refusal) {
        let was_let_out = self.event.decision == Decision::Allow;
        if !(was_let_out && refusal.code.status().is_server_error()) {
            self.event.decision = Decision::Deny;
            self.event.sent = was_let_out && refusal.code.may_come_late();
        }
        self.event.code = Some(refusal.code.as_str().to_owned());
        self.event.block_id = Some(refusal.block_id.clone());
        self.event.status = Some(refusal.code.status().as_u16());
    }

    /// Notes that it was cut after its answer had begun.
    pub(crate) fn cut(&mut self, refusal: &Refusal) {
        let status = self.event.status;
        self.refused(refusal);
        self.event.status = status;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let Some(way) = self.way.take() else { return };
        // Who ends last writes it.
        if let Some(ending) = self.ending.take() {
            let inspection = self.inspection.take();
            return ending.settle(self.take(way, inspection));
        }
        if let Some(inspection) = self.inspection.take() {
            return inspection.settle(self.take(way, None));
        }
        let Subject { scheme, host, port, method, path, form: _ } = mem::take(&mut self.subject);
        self.event.scheme = Cow::Borrowed(scheme);
        (self.event.host, self.event.port, self.event.method, self.event.path) =
            (shortened(host), port, shortened(method), shortened(path));
        self.event.millis = self.millis();
        self.event.bytes_up = self.up.as_ref().map_or(0, |up| up.bytes());
        way.observer.request(&self.event);
        // Without a writer the next request is refused.
        let _ = way.queue.send(Message::Request(Box::new(mem::take(&mut self.event))));
    }
}
