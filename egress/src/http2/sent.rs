//! The body of a message that goes out on a stream.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body as HttpBody;
use hudsucker::Error;

use super::broken;

/// Sends `body` to its end, as fast as the other side takes it. One that breaks off has the stream reset with `cut`.
pub(super) async fn send(
    mut body: impl HttpBody<Data = Bytes, Error = Error> + Unpin,
    mut stream: SendStream<Bytes>,
    cut: Reason,
) -> Result<(), Error> {
    loop {
        let frame = poll_fn(|context| match stream.poll_reset(context) {
            Poll::Ready(reason) => Poll::Ready(Err(reset(reason))),
            Poll::Pending => Pin::new(&mut body).poll_frame(context).map(Ok),
        });
        let Some(frame) = frame.await? else {
            return stream.send_data(Bytes::new(), true).map_err(|error| broken(error).into());
        };
        let frame = frame.inspect_err(|_| stream.send_reset(cut))?;
        match frame.into_data() {
            Ok(data) => {
                let ends = body.is_end_stream();
                if !data.is_empty() {
                    window(&mut stream).await?;
                }
                stream.send_data(data, ends).map_err(broken)?;
                if ends {
                    return Ok(());
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    return stream.send_trailers(trailers).map_err(|error| broken(error).into());
                }
            }
        }
    }
}

/// Waits until the other side takes anything. What is more than it takes is kept by h2, one piece at most.
async fn window(stream: &mut SendStream<Bytes>) -> Result<(), Error> {
    stream.reserve_capacity(1);
    while stream.capacity() == 0 {
        let capacity = poll_fn(|context| match stream.poll_reset(context) {
            Poll::Ready(reason) => Poll::Ready(Some(Err(reset(reason)))),
            Poll::Pending => stream
                .poll_capacity(context)
                .map(|capacity| capacity.map(|capacity| capacity.map_err(|error| broken(error).into()))),
        });
        match capacity.await {
            Some(capacity) => _ = capacity?,
            None => return Err(broken(Reason::STREAM_CLOSED.into()).into()),
        }
    }
    Ok(())
}

fn reset(reason: Result<Reason, h2::Error>) -> Error {
    broken(reason.map_or_else(|error| error, h2::Error::from)).into()
}
