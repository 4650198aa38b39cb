//! A body of which the end is told from a stream that was reset.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Version;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hudsucker::Error;
use hyper::body::Incoming;

/// A body that ends without an error only as a whole: hyper takes RST_STREAM(NO_ERROR) for an end too.
pub(crate) struct Whole {
    incoming: Incoming,
    is_stream: bool,
}

impl Whole {
    /// What came in this version.
    pub(crate) fn new(incoming: Incoming, version: Version) -> Whole {
        Whole { incoming, is_stream: version == Version::HTTP_2 }
    }

    /// Whether it came in HTTP/2.
    pub(super) fn is_stream(&self) -> bool {
        self.is_stream
    }
}

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(context));
        if frame.is_none() && self.is_stream && !self.incoming.is_end_stream() {
            let error = io::Error::new(io::ErrorKind::ConnectionReset, "the stream was reset before its end");
            return Poll::Ready(Some(Err(error.into())));
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
