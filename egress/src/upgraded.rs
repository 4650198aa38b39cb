//! What a connection of the bottle, or a stream of it, is once its HTTP is over.

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tracing::debug;

use crate::http2::Duplex;
use crate::splice::Stream;

/// What comes with a request: the way to what it may become.
pub(crate) enum AgentSide {
    Http1(OnUpgrade),
    /// None for a stream that stays what it is.
    Http2(Option<oneshot::Receiver<Duplex>>),
}

/// Bytes both ways.
pub(crate) enum Opened {
    Http1(Upgraded),
    Http2(Duplex),
}

impl AgentSide {
    /// Waits until the answer is on its way; nothing where it does not come to that.
    pub(crate) async fn opened(self) -> Option<Opened> {
        match self {
            AgentSide::Http1(upgrade) => match upgrade.await {
                Ok(upgraded) => Some(Opened::Http1(upgraded)),
                Err(error) => {
                    debug!(%error, "an upgrade did not happen");
                    None
                }
            },
            AgentSide::Http2(opened) => opened?.await.ok().map(Opened::Http2),
        }
    }
}

impl Opened {
    pub(crate) fn into_stream(self) -> Box<dyn Stream> {
        match self {
            Opened::Http1(upgraded) => Box::new(TokioIo::new(upgraded)),
            Opened::Http2(duplex) => Box::new(duplex),
        }
    }
}
