//! The body of a message that comes on a stream.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::header::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hudsucker::Error;

use super::broken;
use crate::headers;

/// A body that ends without an error only where its sender has ended it: a stream that is reset before that is cut, whatever the reason. How
/// long it may be as its head says, h2 looks after.
pub(crate) struct Received {
    stream: RecvStream,
    /// How much is still to come, where that was said.
    left: Option<u64>,
    /// Trailers come next, or nothing.
    is_data_through: bool,
}

impl Received {
    /// What follows a head with these `headers`.
    pub(super) fn new(stream: RecvStream, headers: &HeaderMap) -> Received {
        let left = if stream.is_end_stream() { Some(0) } else { headers::length(headers) };
        Received { stream, left, is_data_through: false }
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if !this.is_data_through {
            match ready!(this.stream.poll_data(context)) {
                Some(Ok(bytes)) => {
                    // Who sends may send as much again; for a stream that has ended there is no window.
                    let _ = this.stream.flow_control().release_capacity(bytes.len());
                    if let Some(left) = &mut this.left {
                        *left = left.saturating_sub(bytes.len() as u64);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(broken(error).into()))),
                None => this.is_data_through = true,
            }
        }
        Poll::Ready(match ready!(this.stream.poll_trailers(context)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => Some(Err(broken(error).into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
