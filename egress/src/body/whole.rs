//! The body of a message, in whichever version it came.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hudsucker::Error;
use hyper::body::Incoming;

use crate::http2::Received;

/// A body that ends without an error only as a whole.
pub(crate) enum Whole {
    Http1(Incoming),
    Http2(Received),
}

impl Whole {
    /// Whether it came in HTTP/2.
    pub(super) fn is_stream(&self) -> bool {
        matches!(self, Whole::Http2(_))
    }
}

impl From<Incoming> for Whole {
    fn from(incoming: Incoming) -> Whole {
        Whole::Http1(incoming)
    }
}

impl From<Received> for Whole {
    fn from(received: Received) -> Whole {
        Whole::Http2(received)
    }
}

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut *self {
            Whole::Http1(incoming) => Pin::new(incoming)
                .poll_frame(context)
                .map(|frame| frame.map(|frame| frame.map_err(Error::from))),
            Whole::Http2(received) => Pin::new(received).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Whole::Http1(incoming) => incoming.is_end_stream(),
            Whole::Http2(received) => received.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Whole::Http1(incoming) => incoming.size_hint(),
            Whole::Http2(received) => received.size_hint(),
        }
    }
}
