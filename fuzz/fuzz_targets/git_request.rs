//! The first line of a git:// connection is read the same however it is cut, and never names a path.

#![no_main]
#![allow(clippy::unwrap_used)]

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, ReadBuf};

// What git-gate keeps for itself; these files of it need little else.
#[allow(dead_code)]
#[path = "../../gitgate/src/pktline.rs"]
mod pktline;
#[allow(dead_code)]
#[path = "../../gitgate/src/request.rs"]
mod request;

thread_local! {
    static RUNTIME: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime of one thread");
}

fuzz_target!(|bytes: &[u8]| {
    let Some((step, stream)) = bytes.split_first() else { return };
    let read = |step: usize| {
        let mut pieces = Pieces { bytes: stream, step };
        RUNTIME.with(|runtime| runtime.block_on(pktline::read(&mut pieces))).ok()
    };
    let line = read(stream.len().max(1));
    assert_eq!(read(usize::from(*step).max(1)), line);
    let Some(line) = line else { return };
    assert_eq!(pktline::line(&line).to_ascii_lowercase(), stream[..line.len() + 4].to_ascii_lowercase());
    let Ok(asked) = request::Request::parse(&line) else { return };
    assert!(line.starts_with(b"git-"));
    if let Some(name) = request::name(&asked.path) {
        let name = name.as_str();
        assert!(!name.contains(['/', '\\', '\0', '%']) && !name.starts_with(['.', '-']), "{name}");
    }
});

struct Pieces<'a> {
    bytes: &'a [u8],
    step: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, later) = self.bytes.split_at(self.bytes.len().min(self.step).min(buffer.remaining()));
        buffer.put_slice(now);
        self.bytes = later;
        Poll::Ready(Ok(()))
    }
}
