//! The body of a request as the agent sends it. What nobody reads of it is read all the same.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use hudsucker::Error;
use hyper::rt::Executor as _;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::Whole;
use crate::headers;
use crate::interim::Interim;
use crate::tasks::Tasks;

/// What is read of a request's body that leads nowhere, and for how long.
const PASSED_OVER_LIMIT: usize = 64 * 1024 * 1024;
const PASSED_OVER_TIMEOUT: Duration = Duration::from_secs(2);

/// What an agent sends. Many clients read the answer only after they have sent everything, and curl takes the RST_STREAM that ends an upload
/// for an error, whatever was answered before: where the body is dropped, what is left of it is read, within bounds.
pub(crate) struct Upload {
    /// Until its end.
    body: Option<Whole>,
    /// Whether the client sends only when it is told to (`Expect`), which in HTTP/1.1 the first read does.
    waits_for_leave: bool,
    /// In HTTP/2: where that is said, until it is.
    leave: Option<Arc<Interim>>,
    tasks: Tasks,
}

impl Upload {
    /// `request`, with what is left of its body read by one of `tasks`, and `interim` for what is said before its answer.
    pub(crate) fn of(
        request: Request<Option<Whole>>,
        interim: &Arc<Interim>,
        tasks: &Tasks,
    ) -> Request<Upload> {
        let expects = headers::expects_leave(request.headers());
        request.map(|body| {
            let body = body.filter(|body| !body.is_end_stream());
            let is_stream = body.as_ref().is_some_and(Whole::is_stream);
            let leave = (expects && is_stream).then(|| Arc::clone(interim));
            Upload { body, waits_for_leave: expects && !is_stream, leave, tasks: tasks.clone() }
        })
    }

    /// To be awaited before a refusal. A stream of HTTP/2 is read beside its answer, which its client can read meanwhile.
    pub(crate) async fn pass_over(mut self) {
        let waits_for_leave = self.waits_for_leave;
        if let Some(body) = self.body.take_if(|body| !waits_for_leave && !body.is_stream()) {
            read_on(body).await;
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) else { return };
        // At the end of the program there is no runtime any more.
        if !self.waits_for_leave && Handle::try_current().is_ok() {
            self.tasks.execute(read_on(body));
        }
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.waits_for_leave = false;
        if let Some(interim) = self.leave.take() {
            interim.give_leave();
        }
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Whole::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Whole::size_hint)
    }
}

async fn read_on(mut body: Whole) {
    let reading = async {
        let mut left = PASSED_OVER_LIMIT;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(length) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    let _ = timeout(PASSED_OVER_TIMEOUT, reading).await;
}
