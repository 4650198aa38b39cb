//! How long a request waits: for its answer, and for the bottle to take what goes before that.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use crate::alarm::Alarm;
use crate::body::{Limits, Progress};
use crate::interim::Interim;
use crate::refusal::{Code, Refusal};

/// Why a request ends that waits for its answer: nothing of it has moved for too long, or it is no longer allowed. To be polled where
/// `alarm` is heeded.
pub(super) async fn given_up(progress: &Progress, limits: &Limits, alarm: &Alarm) -> Refusal {
    let mut ending = None;
    poll_fn(|context| {
        if alarm.poll_until(progress.stalls_at(limits.idle).into_std()).is_ready() {
            let hint = "the upstream host did not answer in time";
            return Poll::Ready(Refusal::new(Code::UpstreamTimeout, hint));
        }
        if ending.is_none() && limits.lease.is_in_question() {
            ending = Some(Box::pin(Arc::clone(&limits.lease).ended_after_a_moment()));
        }
        match &mut ending {
            Some(ending) => ending.as_mut().poll(context).map(Refusal::from),
            None => Poll::Pending,
        }
    })
    .await
}

/// Waits until the bottle has what goes before its answer, for as long as it may take to read of the answer itself.
pub(super) async fn let_through(interim: &Interim, limits: &Limits, alarm: &Alarm) -> Result<(), Refusal> {
    let until = Instant::now() + limits.idle;
    let through = poll_fn(|_| if interim.is_through() { Poll::Ready(()) } else { alarm.poll_until(until) });
    tokio::select! {
        biased;
        () = through => Ok(()),
        denial = Arc::clone(&limits.lease).ended_after_a_moment() => Err(denial.into()),
    }
}
