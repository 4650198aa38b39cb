use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use policy::{Host, PrivateAllow, Resolves};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::dial::{DialError, Dialer};
use crate::limits::{Gauge, Held};

/// Makes the connections of one route.
#[derive(Clone)]
pub(crate) struct Connector {
    dialer: Arc<Dialer>,
    allow_private: Arc<[PrivateAllow]>,
    resolves: Resolves,
    tls: TlsConnector,
    time_limit: Duration,
    gauge: Arc<Gauge>,
}

impl Connector {
    pub(super) fn new(
        dialer: Arc<Dialer>,
        (allow_private, resolves): (Vec<PrivateAllow>, Resolves),
        tls: Arc<ClientConfig>,
        time_limit: Duration,
        gauge: Arc<Gauge>,
    ) -> Connector {
        Connector {
            dialer,
            allow_private: allow_private.into(),
            resolves,
            tls: TlsConnector::from(tls),
            time_limit,
            gauge,
        }
    }

    async fn connect(self, uri: Uri) -> Result<UpstreamStream, DialError> {
        let deadline = Instant::now() + self.time_limit;
        let host = uri.host().and_then(|host| Host::parse(host).ok()).ok_or(DialError::Name)?;
        let place = (self.gauge.connection(&host)?, self.dialer.place(deadline).await?);
        let tls = uri.scheme() == Some(&Scheme::HTTPS);
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let stream = self.dialer.dial(&host, port, (&self.allow_private, self.resolves), deadline).await?;
        if !tls {
            return Ok(UpstreamStream { io: UpstreamIo::Plain(TokioIo::new(stream)), _place: place });
        }
        let name = match host.ip() {
            Some(ip) => ServerName::from(ip),
            None => ServerName::try_from(host.as_str().to_owned()).map_err(|_| DialError::Name)?,
        };
        match timeout_at(deadline, self.tls.connect(name, stream)).await {
            Ok(Ok(stream)) => {
                Ok(UpstreamStream { io: UpstreamIo::Tls(Box::new(TokioIo::new(stream))), _place: place })
            }
            Ok(Err(error)) => Err(DialError::Tls(error)),
            Err(_) => Err(DialError::Timeout),
        }
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = UpstreamStream;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<UpstreamStream, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// A connection to upstream, counted as long as it is open: among its route's, and among all.
pub(crate) struct UpstreamStream {
    io: UpstreamIo,
    _place: (Held, OwnedSemaphorePermit),
}

enum UpstreamIo {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Connection for UpstreamStream {
    fn connected(&self) -> Connected {
        match &self.io {
            UpstreamIo::Plain(_) => Connected::new(),
            UpstreamIo::Tls(stream) => match stream.inner().get_ref().1.alpn_protocol() {
                Some(b"h2") => Connected::new().negotiated_h2(),
                Some(_) | None => Connected::new(),
            },
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
        match &mut self.get_mut().io {
            UpstreamIo::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            UpstreamIo::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            UpstreamIo::Plain(stream) => Pin::new(stream).poll_flush(context),
            UpstreamIo::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
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
        match &mut self.get_mut().io {
            UpstreamIo::Plain(stream) => Pin::new(stream).poll_write_vectored(context, buffers),
            UpstreamIo::Tls(stream) => Pin::new(stream).poll_write_vectored(context, buffers),
        }
    }
}
