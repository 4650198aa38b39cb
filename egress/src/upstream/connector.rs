use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::{Authority, Scheme};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use policy::{Host, PrivateAllow, Resolves};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::UpstreamTls;
use super::dial::{DialError, Dialer};
use crate::limits::{Gauge, Held};
use crate::splice::Prefixed;
use crate::tls::WRITE_BYTES;

/// What may be spoken on a connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum Protocols {
    /// What upstream chooses.
    Any,
    /// HTTP/1.1 only.
    Http1,
}

/// Makes the connections of one route.
pub(super) struct Connector {
    dialer: Arc<Dialer>,
    allow_private: Vec<PrivateAllow>,
    resolves: Resolves,
    tls: UpstreamTls,
    time_limit: Duration,
    gauge: Arc<Gauge>,
}

impl Connector {
    pub(super) fn new(
        dialer: Arc<Dialer>,
        (allow_private, resolves): (Vec<PrivateAllow>, Resolves),
        tls: UpstreamTls,
        time_limit: Duration,
        gauge: Arc<Gauge>,
    ) -> Connector {
        Connector { dialer, allow_private, resolves, tls, time_limit, gauge }
    }

    /// A connection for requests of one of `protocols`.
    pub(super) async fn connect(
        &self,
        scheme: &Scheme,
        authority: &Authority,
        protocols: Protocols,
    ) -> Result<UpstreamStream, DialError> {
        let deadline = Instant::now() + self.time_limit;
        let host = Host::parse(authority.host()).map_err(|_| DialError::Name)?;
        let place = (self.gauge.connection(&host)?, self.dialer.place(deadline).await?);
        let tls = *scheme == Scheme::HTTPS;
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let stream = self.dialer.dial(&host, port, (&self.allow_private, self.resolves), deadline).await?;
        if !tls {
            return Ok(UpstreamStream::new(UpstreamIo::Plain(TokioIo::new(stream)), place));
        }
        let name = match host.ip() {
            Some(ip) => ServerName::from(ip),
            None => ServerName::try_from(host.as_str().to_owned()).map_err(|_| DialError::Name)?,
        };
        let tls = match protocols {
            Protocols::Any => &self.tls.any,
            Protocols::Http1 => &self.tls.http1,
        };
        let connector = TlsConnector::from(Arc::clone(tls));
        match timeout_at(deadline, connector.connect(name, Prefixed::new(Vec::new(), stream))).await {
            Ok(Ok(mut stream)) => {
                stream.get_mut().1.set_buffer_limit(Some(WRITE_BYTES));
                Ok(UpstreamStream::new(UpstreamIo::Tls(Box::new(TokioIo::new(stream))), place))
            }
            Ok(Err(error)) => Err(DialError::Tls(error)),
            Err(_) => Err(DialError::Timeout),
        }
    }
}

/// A connection to upstream, counted as long as it is open: among its route's, and among all.
pub(super) struct UpstreamStream {
    io: UpstreamIo,
    /// Whether bytes wait for upstream to read.
    is_stuck: Arc<AtomicBool>,
    _place: (Held, OwnedSemaphorePermit),
}

enum UpstreamIo {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<Prefixed<TcpStream>>>>),
}

impl UpstreamStream {
    fn new(io: UpstreamIo, place: (Held, OwnedSemaphorePermit)) -> UpstreamStream {
        UpstreamStream { io, is_stuck: Arc::default(), _place: place }
    }

    /// Shows whether bytes wait for upstream to read.
    pub(super) fn is_stuck(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_stuck)
    }

    /// Notes that what was to be written could not be. Only after a flush is all of it out.
    fn noted<T>(&self, written: Poll<T>) -> Poll<T> {
        if written.is_pending() {
            self.is_stuck.store(true, Ordering::Relaxed);
        }
        written
    }

    /// Whether upstream chose HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        match &self.io {
            UpstreamIo::Plain(_) => false,
            UpstreamIo::Tls(stream) => stream.inner().get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }
}

impl Read for UpstreamStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            UpstreamIo::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            UpstreamIo::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl Write for UpstreamStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match &mut this.io {
            UpstreamIo::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            UpstreamIo::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        };
        this.noted(written)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = match &mut this.io {
            UpstreamIo::Plain(stream) => Pin::new(stream).poll_flush(context),
            UpstreamIo::Tls(stream) => Pin::new(stream).poll_flush(context),
        };
        this.is_stuck.store(flushed.is_pending(), Ordering::Relaxed);
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            UpstreamIo::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            UpstreamIo::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            UpstreamIo::Plain(stream) => stream.is_write_vectored(),
            UpstreamIo::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match &mut this.io {
            UpstreamIo::Plain(stream) => Pin::new(stream).poll_write_vectored(context, buffers),
            UpstreamIo::Tls(stream) => Pin::new(stream).poll_write_vectored(context, buffers),
        };
        this.noted(written)
    }
}
