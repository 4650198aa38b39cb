//! The body of a message that goes out on a stream.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body as HttpBody;
use hudsucker::Error;

use super::broken;

/// Sends a body to its end, as fast as the other side takes it. One that breaks off has the stream reset with `cut`.
pub(super) struct Sending<B> {
    body: B,
    stream: SendStream<Bytes>,
    cut: Reason,
    /// What waits for the other side to take anything, and whether it is the last.
    waiting: Option<(Bytes, bool)>,
}

impl<B> Sending<B> {
    pub(super) fn new(body: B, stream: SendStream<Bytes>, cut: Reason) -> Sending<B> {
        Sending { body, stream, cut, waiting: None }
    }

    /// The body, of which no more is sent.
    pub(super) fn into_body(self) -> B {
        self.body
    }
}

impl<B: HttpBody<Data = Bytes, Error = Error> + Unpin> Future for Sending<B> {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = &mut *self;
        loop {
            if let Poll::Ready(reason) = this.stream.poll_reset(context) {
                let error = reason.map_or_else(|error| error, h2::Error::from);
                return Poll::Ready(Err(broken(error).into()));
            }
            if this.waiting.is_some() {
                while this.stream.capacity() == 0 {
                    match ready!(this.stream.poll_capacity(context)) {
                        Some(capacity) => _ = capacity.map_err(broken)?,
                        None => return Poll::Ready(Err(broken(Reason::STREAM_CLOSED.into()).into())),
                    }
                }
            }
            if let Some((data, ends)) = this.waiting.take() {
                // What is more than it takes is kept by h2, one piece at most.
                this.stream.send_data(data, ends).map_err(broken)?;
                if ends {
                    return Poll::Ready(Ok(()));
                }
            }
            let frame = match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    this.stream.send_reset(this.cut);
                    return Poll::Ready(Err(error));
                }
                None => {
                    this.stream.send_data(Bytes::new(), true).map_err(broken)?;
                    return Poll::Ready(Ok(()));
                }
            };
            match frame.into_data() {
                Ok(data) => {
                    let ends = this.body.is_end_stream();
                    if data.is_empty() {
                        this.stream.send_data(data, ends).map_err(broken)?;
                        if ends {
                            return Poll::Ready(Ok(()));
                        }
                    } else {
                        this.stream.reserve_capacity(1);
                        this.waiting = Some((data, ends));
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        this.stream.send_trailers(trailers).map_err(broken)?;
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }
}
