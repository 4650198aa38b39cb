//! An answer on its way to someone who may stop reading it. Nobody polls it then, and still it ends when it may not go on.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hudsucker::Error;
use tokio::runtime::Handle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Metered, Parting, Whole, timed_out};
use crate::alarm::Alarm;
use crate::lease::Lease;

/// Most answers are whole with their first piece, and over then, whoever still has to read it: only what goes on after it is looked after.
pub(super) struct Watched {
    /// Until the first piece.
    fresh: Option<Metered<Whole>>,
    /// After it, if it goes on.
    begun: Option<Arc<Begun>>,
    parting: Parting,
}

impl Watched {
    pub(super) fn new(body: Metered<Whole>) -> Watched {
        Watched { fresh: Some(body), begun: None, parting: Parting::default() }
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Watched { fresh, begun, parting } = &mut *self;
        parting.poll(context, |context| {
            if let Some(begun) = begun {
                return begun.poll_frame(context);
            }
            let Some(body) = fresh else { return Poll::Ready(None) };
            let polled = Pin::new(&mut *body).poll_frame(context);
            if polled.is_ready()
                && let Some(body) = fresh.take()
                && !body.is_end_stream()
                && matches!(polled, Poll::Ready(Some(Ok(_))))
            {
                *begun = Some(Begun::new(body));
            }
            polled
        })
    }

    fn is_end_stream(&self) -> bool {
        match (&self.begun, &self.fresh) {
            // What was cut has still to say so.
            (Some(begun), _) => begun.state().body.as_ref().is_some_and(Metered::is_end_stream),
            (None, Some(fresh)) => fresh.is_end_stream(),
            (None, None) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.begun, &self.fresh) {
            (Some(begun), _) => begun.state().body.as_ref().map(Metered::size_hint).unwrap_or_default(),
            (None, Some(fresh)) => fresh.size_hint(),
            (None, None) => SizeHint::with_exact(0),
        }
    }
}

pub(super) struct Begun {
    state: Mutex<State>,
    lease: Arc<Lease>,
    /// For how long it may not be read.
    idle: Duration,
    alarm: Alarm,
    /// What the alarm wakes.
    watchman: Waker,
}

struct State {
    /// None once it was cut.
    body: Option<Metered<Whole>>,
    /// When it was last asked for more.
    asked: Instant,
    /// Who waits for more.
    reader: Option<Waker>,
    /// Held while someone waits for the end of the lease.
    waits: Option<DropGuard>,
}

impl Begun {
    fn new(body: Metered<Whole>) -> Arc<Begun> {
        let begun = Arc::new_cyclic(|begun| Begun {
            lease: Arc::clone(&body.lease),
            idle: body.idle,
            state: Mutex::new(State { body: Some(body), asked: Instant::now(), reader: None, waits: None }),
            alarm: Alarm::new(),
            watchman: Waker::from(Arc::new(Watchman { begun: begun.clone(), runtime: Handle::current() })),
        });
        begun.look();
        begun
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_frame(&self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut state = self.state();
        let state = &mut *state;
        let Some(body) = &mut state.body else {
            return Poll::Ready(Some(Err(timed_out(
                "this is no longer allowed, or was not read for too long",
            ))));
        };
        let polled = Pin::new(body).poll_frame(context);
        state.asked = Instant::now();
        match (&polled, &mut state.reader) {
            (Poll::Pending, Some(reader)) => reader.clone_from(context.waker()),
            (Poll::Pending, none) => *none = Some(context.waker().clone()),
            (Poll::Ready(_), reader) => *reader = None,
        }
        polled
    }

    /// Whether it may go on; to be asked again when the alarm rings.
    fn look(self: &Arc<Begun>) {
        self.alarm.heed(&self.watchman);
        let mut state = self.state();
        if self.alarm.poll_until(state.asked + self.idle).is_ready() {
            drop(state);
            return self.cut();
        }
        if state.waits.is_none() && self.lease.is_in_question() {
            let gone = CancellationToken::new();
            let end = gone.clone().run_until_cancelled_owned(Arc::clone(&self.lease).ended_after_a_moment());
            state.waits = Some(gone.drop_guard());
            let begun = Arc::downgrade(self);
            tokio::spawn(async move {
                let ended = end.await.is_some();
                if let Some(begun) = begun.upgrade().filter(|_| ended) {
                    begun.cut();
                }
            });
        }
    }

    fn cut(&self) {
        let (body, reader) = {
            let mut state = self.state();
            (state.body.take(), state.reader.take())
        };
        drop(body);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

/// Has an answer looked at, by a task: who rings holds a lock that the end of the answer needs.
struct Watchman {
    begun: Weak<Begun>,
    runtime: Handle,
}

impl Wake for Watchman {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let begun = self.begun.clone();
        self.runtime.spawn(async move {
            if let Some(begun) = begun.upgrade() {
                begun.look();
            }
        });
    }
}
