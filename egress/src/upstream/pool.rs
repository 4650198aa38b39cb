//! The connections of one route that are kept open between requests.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;
use std::{io, mem};

use http::header::{HOST, HeaderValue};
use http::uri::{self, Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use http_body::Body as _;
use hudsucker::Body;
use hyper::client::conn::{TrySendError, http1};
use hyper::rt::Executor as _;
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::connector::{Connector, Protocols, UpstreamStream};
use super::dial::DialError;
use super::line::{Line, Outgoing};
use crate::alarm::nap;
use crate::body::Whole;
use crate::http2;
use crate::http2::client::{Left, Rest, Sender, Use};
use crate::interim::Tap;
use crate::lease::Lease;
use crate::tasks::Tasks;

/// An idle connection to upstream is kept this long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How often that is looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// What is left of a request when its answer is through may take so long to go out.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);
/// This many idle connections are kept per host.
const IDLE_PER_HOST: usize = 32;
/// What an HTTP/2 upstream may send before we have read it.
const STREAM_WINDOW: u32 = 512 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// This many answers fit in the window of one connection though nobody reads them, and one more does: the next request goes out on another. Upstream takes more:
/// 100 or so (RFC 9113, section 6.5.2).
const STREAMS: usize = (CONNECTION_WINDOW / STREAM_WINDOW) as usize - 1;
/// What a head from upstream may take.
pub(super) const HEAD_LIMIT: usize = 256 * 1024;
/// How many headers an answer may have; more than hyper's own 100, because real services send more.
pub(super) const HEADERS_LIMIT: usize = 512;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// There is no connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// It went wrong on a connection of HTTP/1.1.
    #[error(transparent)]
    Http1(hyper::Error),
    /// The same in HTTP/2.
    #[error(transparent)]
    Http2(h2::Error),
    /// The target of the request cannot be written.
    #[error("the target cannot be written")]
    Target(#[from] http::Error),
}

/// The connections of one route, to whichever of its hosts.
pub(super) struct Pool {
    connector: Connector,
    tasks: Tasks,
    kept: Arc<Mutex<Kept>>,
}

/// Two requests for the same go over the same connections.
#[derive(Clone)]
struct Key {
    scheme: Scheme,
    authority: Authority,
}

/// By their text, which is canonical: an [`Authority`] by itself is compared and hashed letter by letter, for the case of each.
impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        self.authority.as_str() == other.authority.as_str() && self.scheme == other.scheme
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.authority.as_str().hash(state);
    }
}

impl Key {
    /// Takes the target of `request` apart.
    fn of(request: Request<Body>) -> Result<(Key, PathAndQuery, Request<Outgoing>), RequestError> {
        let (mut head, body) = request.into_parts();
        let uri::Parts { scheme, authority, path_and_query, .. } = mem::take(&mut head.uri).into_parts();
        let (Some(scheme), Some(authority), Some(target)) = (scheme, authority, path_and_query) else {
            return Err(DialError::Name.into());
        };
        Ok((Key { scheme, authority }, target, Request::from_parts(head, Outgoing::new(body))))
    }

    /// How the host is named in a request.
    fn host(&self) -> Result<HeaderValue, http::Error> {
        Ok(HeaderValue::from_str(self.authority.as_str())?)
    }
}

#[derive(Default)]
struct Kept {
    places: HashMap<Key, Arc<Place>>,
    /// Whether a task looks for what is idle for too long.
    is_swept: bool,
}

/// What is open to one host and port.
struct Place {
    /// How the host is named in a request.
    host: HeaderValue,
    tasks: Tasks,
    open: Mutex<Open>,
    /// How many connections are being opened.
    dials: watch::Sender<usize>,
}

/// A connection that is being opened.
struct Dial<'p> {
    place: &'p Place,
    /// There may be no more: of that nobody has to hear who waits for others, unless it is the last.
    is_refused: bool,
}

impl Dial<'_> {
    fn of(place: &Place) -> Dial<'_> {
        place.dials.send_if_modified(|dials| {
            *dials += 1;
            false
        });
        Dial { place, is_refused: false }
    }
}

impl Drop for Dial<'_> {
    fn drop(&mut self) {
        self.place.dials.send_if_modified(|dials| {
            *dials -= 1;
            !self.is_refused || *dials == 0
        });
    }
}

#[derive(Default)]
struct Open {
    idle: Vec<(Line, Instant)>,
    http2: Vec<Shared>,
}

/// A connection that several requests share.
struct Shared {
    sender: Sender,
    /// When it was last seen in use.
    used: Instant,
}

/// A connection that a request goes out on.
enum Way {
    Http1(Line),
    Http2(Sender, Use),
}

/// A connection that an answer is still coming on; one of HTTP/1.1 is closed when this is dropped.
pub(crate) struct Lent {
    on: On,
    place: Arc<Place>,
}

enum On {
    Http1(Line),
    Http2 {
        /// What is left of the request.
        rest: Option<Rest>,
        _using: Use,
    },
}

impl Lent {
    /// Polls the answer's body, and what brings it, for as long as that helps.
    pub(crate) fn poll<T>(
        &mut self,
        context: &mut Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        match &mut self.on {
            On::Http1(line) => line.poll(context, poll),
            On::Http2 { .. } => poll(context),
        }
    }

    /// For the next request, once the answer is through as a whole. What of the request is not out yet goes on, for as long as `lease`
    /// allows it.
    pub(crate) fn give_back(self, lease: &Arc<Lease>) {
        let Lent { on, place } = self;
        let tasks = place.tasks.clone();
        let revoked = || Arc::clone(lease).ended_after_a_moment();
        match on {
            On::Http1(mut line) => {
                if line.rest() {
                    return place.keep(line);
                }
                line.detach(&tasks);
                let revoked = revoked();
                tasks.execute(async move {
                    let settled = timeout(SETTLE_TIMEOUT, line.settled());
                    let is_settled = tokio::select! {
                        _ = revoked => false,
                        settled = settled => settled.unwrap_or_default(),
                    };
                    if is_settled {
                        place.keep(line);
                    }
                });
            }
            On::Http2 { rest: None, .. } => {}
            On::Http2 { rest: Some(mut rest), .. } => {
                let revoked = revoked();
                tasks.execute(async move {
                    tokio::select! {
                        _ = revoked => {}
                        _ = timeout(SETTLE_TIMEOUT, rest.is_out()) => {}
                    }
                });
            }
        }
    }
}

impl Pool {
    pub(super) fn new(connector: Connector, tasks: Tasks) -> Pool {
        Pool { connector, tasks, kept: Arc::default() }
    }

    /// Sends `request`, whose target is absolute, and returns the head of the answer, with what brings its body. What upstream has not
    /// looked at, or only may have where that does no harm, is sent once more.
    pub(super) async fn request(
        &self,
        request: Request<Body>,
        tap: Option<Tap>,
    ) -> Result<(Response<Whole>, Option<Lent>), RequestError> {
        let (key, target, mut request) = Key::of(request)?;
        let place = self.place(&key)?;
        let mut is_first = true;
        loop {
            let (way, is_kept) = match place.take() {
                Some(way) => (way, true),
                // Boxed, because most requests find one.
                None => Box::pin(self.open(&key, &place)).await?,
            };
            let is_safe = request.method().is_safe();
            let copy = match &way {
                Way::Http1(_) if !is_kept || !is_safe || !request.body().is_end_stream() => None,
                Way::Http1(_) | Way::Http2(..) if is_first => copy_of(&mut request),
                Way::Http1(_) | Way::Http2(..) => None,
            };
            let failed = match way {
                Way::Http1(mut line) => {
                    *request.uri_mut() = Uri::from(target.clone());
                    request.headers_mut().insert(HOST, place.host.clone());
                    if let Some(tap) = &tap {
                        tap.listen(&mut request);
                    }
                    match line.send(request, &self.tasks).await {
                        Ok(response) => {
                            let lent = Lent { on: On::Http1(line), place };
                            return Ok((response.map(Whole::from), Some(lent)));
                        }
                        Err(failed) => Failed::from(*failed),
                    }
                }
                Way::Http2(mut sender, using) => {
                    request.headers_mut().remove(HOST);
                    *request.uri_mut() = absolute(&key, target.clone())?;
                    match sender.send(request, tap.as_ref()).await {
                        Ok((response, rest)) => {
                            return Ok((
                                response,
                                Some(Lent { on: On::Http2 { rest, _using: using }, place }),
                            ));
                        }
                        Err(failed) => {
                            let failed = Failed::from(failed);
                            // What ended this stream alone leaves the others theirs.
                            if failed.is_of_connection() {
                                place.forget(&sender);
                            }
                            failed
                        }
                    }
                }
            };
            // Nothing of what is given back was written: the connection had ended while it was idle.
            let copy = copy.filter(|_| failed.may_be_sent_again(is_kept && is_safe));
            (request, is_first) = match (failed.left, copy) {
                (Left::Whole(request), _) if is_kept => (*request, is_first),
                (Left::Whole(request), Some(_)) => (*request, false),
                (Left::Body(body), Some(copy)) => match body.begun_again() {
                    Some(body) => (copy.map(|()| body), false),
                    None => return Err(failed.error),
                },
                (Left::Whole(_) | Left::Body(_), None) => return Err(failed.error),
            };
        }
    }

    /// Sends `request`, which upgrades its connection.
    pub(super) async fn upgrade(
        &self,
        request: Request<Body>,
        tap: Option<Tap>,
    ) -> Result<Response<Whole>, RequestError> {
        let (key, target, mut request) = Key::of(request)?;
        let stream = self.connect(&key, Protocols::Http1).await?;
        let (mut sender, connection) =
            http1_builder().handshake(stream).await.map_err(RequestError::Http1)?;
        self.tasks.execute(ended(connection.with_upgrades()));
        *request.uri_mut() = Uri::from(target);
        request.headers_mut().insert(HOST, key.host()?);
        if let Some(tap) = tap {
            tap.listen(&mut request);
        }
        let response = sender.send_request(request).await.map_err(RequestError::Http1)?;
        Ok(response.map(Whole::from))
    }

    fn place(&self, key: &Key) -> Result<Arc<Place>, http::Error> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = kept.places.get(key) {
            return Ok(Arc::clone(place));
        }
        let place = Arc::new(Place {
            host: key.host()?,
            tasks: self.tasks.clone(),
            open: Mutex::default(),
            dials: watch::Sender::default(),
        });
        kept.places.insert(key.clone(), Arc::clone(&place));
        if !kept.is_swept {
            kept.is_swept = true;
            self.tasks.execute(sweep(Arc::downgrade(&self.kept)));
        }
        Ok(place)
    }

    /// A new connection. Where there may be no more, one that is idle makes room.
    async fn connect(&self, key: &Key, protocols: Protocols) -> Result<UpstreamStream, DialError> {
        match self.connector.connect(&key.scheme, &key.authority, protocols).await {
            Err(DialError::TooMany(_)) if self.make_room() => {
                self.connector.connect(&key.scheme, &key.authority, protocols).await
            }
            connected => connected,
        }
    }

    /// Closes what upstream has closed, or else what has been idle longest; whether there was any.
    fn make_room(&self) -> bool {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.places.values().filter(|place| place.drop_closed()).count() > 0 {
            return true;
        }
        let oldest = kept.places.values().filter_map(|place| Some((place.idle_since()?, place)));
        oldest.min_by_key(|(since, _)| *since).is_some_and(|(_, place)| place.drop_oldest())
    }

    /// A new connection, or one that another request made meanwhile, or one that is full where there may be no more; whether it is one of
    /// those.
    async fn open(&self, key: &Key, place: &Place) -> Result<(Way, bool), RequestError> {
        let mut dials = place.dials.subscribe();
        loop {
            let error = match self.dial(key, place).await {
                Err(RequestError::Dial(error @ (DialError::TooMany(_) | DialError::Full))) => error,
                opened => return opened,
            };
            // What others are opening may be for several; looked at first, because theirs is there before it is no longer counted.
            let is_alone = *dials.borrow_and_update() == 0;
            if let Some(way) = place.open().least_used() {
                return Ok((way, true));
            }
            if is_alone {
                return Err(error.into());
            }
            while dials.changed().await.is_ok() {
                if let Some(way) = place.take() {
                    return Ok((way, true));
                }
                if *dials.borrow_and_update() == 0 {
                    break;
                }
            }
        }
    }

    async fn dial(&self, key: &Key, place: &Place) -> Result<(Way, bool), RequestError> {
        let mut dial = Dial::of(place);
        let stream = self.connect(key, Protocols::Any).await;
        dial.is_refused = matches!(stream, Err(DialError::TooMany(_) | DialError::Full));
        let stream = stream?;
        if !stream.is_http2() {
            let is_stuck = stream.is_stuck();
            let (sender, connection) =
                http1_builder().handshake(stream).await.map_err(RequestError::Http1)?;
            return Ok((Way::Http1(Line::new(sender, connection, is_stuck)), false));
        }
        let windows = (STREAM_WINDOW, CONNECTION_WINDOW);
        let opened = http2::client::open(TokioIo::new(stream), windows, &self.tasks).await;
        let sender = opened.map_err(RequestError::Http2)?;
        let mut open = place.open();
        // Another request was faster: its connection is for several.
        if let Some(first) = open.with_room() {
            return Ok((first, true));
        }
        let way = Way::Http2(sender.clone(), sender.begin());
        open.http2.push(Shared { sender, used: Instant::now() });
        Ok((way, false))
    }
}

/// How HTTP/1.1 is spoken with upstream.
fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_LIMIT).max_headers(HEADERS_LIMIT);
    builder
}

/// Drives a connection to its end.
pub(super) async fn ended(connection: impl Future<Output = hyper::Result<()>>) {
    if let Err(error) = connection.await {
        debug!(%error, "a connection to upstream ended early");
    }
}

/// The head of `request`, whose body is kept from now on as long as it is short; nothing where it cannot be.
fn copy_of(request: &mut Request<Outgoing>) -> Option<Request<()>> {
    request.body_mut().keep().then(|| {
        let mut copy = Request::new(());
        *copy.method_mut() = request.method().clone();
        *copy.headers_mut() = request.headers().clone();
        copy
    })
}

/// Why a request has no answer on one connection.
struct Failed {
    error: RequestError,
    left: Left<Outgoing>,
}

impl From<TrySendError<Request<Outgoing>>> for Failed {
    fn from(mut failed: TrySendError<Request<Outgoing>>) -> Failed {
        let left = match failed.take_message() {
            Some(request) => Left::Whole(Box::new(request)),
            None => Left::Body(Outgoing::new(Body::empty())),
        };
        Failed { error: RequestError::Http1(failed.into_error()), left }
    }
}

impl From<http2::client::Failed<Outgoing>> for Failed {
    fn from(failed: http2::client::Failed<Outgoing>) -> Failed {
        Failed { error: RequestError::Http2(failed.error), left: failed.left }
    }
}

impl Failed {
    /// Whether upstream says that it did nothing for the request, of that alone or as it leaves (RFC 9113, sections 8.7 and 6.8: GOAWAY fails
    /// the streams that it leaves out, the end of the connection the others); or whether the connection ended before an answer began,
    /// where `either_way` it does no harm (RFC 9110, section 9.2.2).
    fn may_be_sent_again(&self, either_way: bool) -> bool {
        let is_refused = matches!(&self.error, RequestError::Http2(error)
            if error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM)));
        is_refused || either_way && self.is_of_connection()
    }

    /// Whether the connection ended, and not what went on in it alone.
    fn is_of_connection(&self) -> bool {
        match &self.error {
            RequestError::Http1(error) => {
                is_of_io(error) || error.is_incomplete_message() || error.is_closed() || error.is_canceled()
            }
            RequestError::Http2(error) => error.is_remote() && error.is_go_away() || error.is_io(),
            RequestError::Dial(_) | RequestError::Target(_) => false,
        }
    }
}

/// Whether it was reading or writing that went wrong.
fn is_of_io(error: &hyper::Error) -> bool {
    let mut next = error.source();
    while let Some(cause) = next {
        if cause.is::<io::Error>() {
            return true;
        }
        next = cause.source();
    }
    false
}

fn absolute(key: &Key, target: PathAndQuery) -> Result<Uri, http::Error> {
    let mut parts = uri::Parts::default();
    parts.scheme = Some(key.scheme.clone());
    parts.authority = Some(key.authority.clone());
    parts.path_and_query = Some(target);
    Ok(Uri::from_parts(parts)?)
}

impl Place {
    /// A connection that is open and free.
    fn take(&self) -> Option<Way> {
        let mut open = self.open();
        if let Some(way) = open.with_room() {
            return Some(way);
        }
        loop {
            let mut line = open.idle.pop()?.0;
            if line.is_free() {
                return Some(Way::Http1(line));
            }
        }
    }

    /// Has no more requests go out on the connection of `sender`.
    fn forget(&self, sender: &Sender) {
        self.open().http2.retain(|shared| !shared.sender.is_same(sender));
    }

    /// Keeps `line`, on which nothing runs, for the next request.
    fn keep(&self, line: Line) {
        let mut open = self.open();
        if open.idle.len() < IDLE_PER_HOST {
            open.idle.push((line, Instant::now()));
        }
    }

    /// Closes what upstream has closed; whether there was any.
    fn drop_closed(&self) -> bool {
        let mut open = self.open();
        let before = open.idle.len();
        open.idle.retain_mut(|(line, _)| line.is_open());
        open.idle.len() < before
    }

    /// Since when the one that is idle longest is.
    fn idle_since(&self) -> Option<Instant> {
        let open = self.open();
        let lines = open.idle.iter().map(|(_, since)| *since);
        lines.chain(open.http2.iter().filter(|shared| shared.is_idle()).map(|shared| shared.used)).min()
    }

    /// Closes the one that is idle longest; whether there was one.
    fn drop_oldest(&self) -> bool {
        let mut open = self.open();
        if let Some(oldest) = (0..open.idle.len()).min_by_key(|&at| open.idle[at].1) {
            open.idle.swap_remove(oldest);
            return true;
        }
        let idle = (0..open.http2.len()).filter(|&at| open.http2[at].is_idle());
        match idle.min_by_key(|&at| open.http2[at].used) {
            Some(oldest) => {
                open.http2.swap_remove(oldest);
                true
            }
            None => false,
        }
    }

    /// Closes what upstream has closed, and what was idle since before `then`.
    fn sweep(&self, then: Instant) {
        self.drop_closed();
        let mut open = self.open();
        open.idle.retain(|(_, since)| *since > then);
        open.http2.retain_mut(|shared| {
            if !shared.is_idle() {
                shared.used = Instant::now();
            }
            shared.used > then && shared.sender.is_open()
        });
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_empty(&self) -> bool {
        let open = self.open();
        open.idle.is_empty() && open.http2.is_empty()
    }
}

impl Open {
    /// A shared connection that has room for one more.
    fn with_room(&mut self) -> Option<Way> {
        self.http2.retain_mut(|shared| shared.sender.is_open());
        let shared = self.http2.iter_mut().find(|shared| shared.has_room(STREAMS))?;
        Some(shared.take())
    }

    /// Of the shared connections on which upstream takes one more request, the one with the fewest.
    fn least_used(&mut self) -> Option<Way> {
        self.http2.retain_mut(|shared| shared.sender.is_open());
        let with_room = self.http2.iter_mut().filter(|shared| shared.has_room(usize::MAX));
        Some(with_room.min_by_key(|shared| shared.sender.requests())?.take())
    }
}

impl Shared {
    /// For one more request.
    fn take(&mut self) -> Way {
        self.used = Instant::now();
        Way::Http2(self.sender.clone(), self.sender.begin())
    }

    fn is_idle(&self) -> bool {
        self.sender.requests() == 0
    }

    /// Whether upstream takes one more request there, and there are fewer than `most`.
    fn has_room(&self, most: usize) -> bool {
        self.sender.requests() < self.sender.most().min(most)
    }
}

/// Closes what is idle for too long, until nothing is left, or no one to use it.
async fn sweep(kept: Weak<Mutex<Kept>>) {
    loop {
        nap(SWEEP_INTERVAL).await;
        let Some(kept) = kept.upgrade() else { return };
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(then) = Instant::now().checked_sub(IDLE_TIMEOUT) else { continue };
        kept.places.retain(|_, place| {
            place.sweep(then);
            Arc::strong_count(place) > 1 || !place.is_empty()
        });
        if kept.places.is_empty() {
            kept.is_swept = false;
            return;
        }
    }
}
