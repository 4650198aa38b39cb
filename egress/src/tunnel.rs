//! CONNECT: what is in the tunnel must be TLS for the host that the tunnel was asked for. Nothing leaves before that is known.

use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use http::{Method, Request, Response, Version};
use http_body::Body as _;
use hudsucker::Body;
use hudsucker::certificate_authority::CertificateAuthority as _;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use policy::{Front, Host, RouteId, Scheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::StartHandshake;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::authority::{self, Endpoint};
use crate::body::{Limits, Progress, Upload};
use crate::exchange::{Judged, Via};
use crate::front::{Connection, Next};
use crate::interim::Interposed;
use crate::lease::Asked;
use crate::proxy::Proxy;
use crate::refusal::{Code, Form, Refusal, Subject};
use crate::snapshot::Snapshot;
use crate::splice::{Prefixed, Spliced, Stream, splice};
use crate::tls::hello::{self, ClientHello, EncryptedHello};
use crate::tls::{WRITE_BYTES, leaf};
use crate::upgraded::{AgentSide, Opened};
use crate::upstream;

/// How long the client may take for its part of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A fatal TLS alert: `unrecognized_name`.
const UNRECOGNIZED_NAME: &[u8] = &[21, 3, 3, 0, 2, 2, 112];
/// A fatal TLS alert: `access_denied`.
const ACCESS_DENIED: &[u8] = &[21, 3, 3, 0, 2, 2, 49];
/// A fatal TLS alert: `handshake_failure`.
const HANDSHAKE_FAILURE: &[u8] = &[21, 3, 3, 0, 2, 2, 40];
/// What is read and thrown away, so that the client sees our last words and not a reset.
const LINGER_LIMIT: u64 = 64 * 1024;
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// A tunnel that was granted.
struct Tunnel {
    connection: Connection,
    snapshot: Arc<Snapshot>,
    endpoint: Endpoint,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Intercept,
    Passthrough(RouteId),
}

/// Why a tunnel ends before anything was forwarded.
struct Failure {
    refusal: Refusal,
    last_words: Box<[u8]>,
}

/// Answers a CONNECT: with a tunnel, which then runs in the connection's task, or with a refusal.
pub(crate) async fn open(
    connection: &Connection,
    request: Request<Upload>,
    agent_side: AgentSide,
) -> Response<Body> {
    let snapshot = connection.proxy.snapshot();
    let (parts, body) = request.into_parts();
    let target = if body.is_end_stream() {
        authority::of_connect(&parts)
    } else {
        Err(authority::Error::Malformed("CONNECT has no body".to_owned()))
    };
    let (host, port) = match target {
        Ok(target) => target,
        Err(error) => {
            let target = parts.uri.authority().map_or("", |authority| authority.as_str());
            let host = target.escape_default().to_string();
            return refuse(connection, snapshot, subject(host, 0), &error.into()).await;
        }
    };
    let kind = match kind(&snapshot, &host, port, connection.proxy.now()) {
        Ok(kind) => kind,
        Err(denial) => {
            let subject = subject(host.as_str().to_owned(), port);
            return refuse(connection, snapshot, subject, &denial.into()).await;
        }
    };
    // One of HTTP/1.1 has the place of its connection, which is nothing else from then on.
    let place = match (parts.version == Version::HTTP_2).then(|| connection.another_place()).transpose() {
        Ok(place) => place,
        Err(refusal) => {
            let subject = subject(host.as_str().to_owned(), port);
            return refuse(connection, snapshot, subject, &refusal).await;
        }
    };
    let endpoint = Endpoint { scheme: Scheme::Https, host, port };
    let tunnel = Tunnel { connection: connection.inner(), snapshot, endpoint, kind };
    let next = Next::new(async move { agent_side.opened().await.map(|opened| tunnel.run(opened)) });
    connection.go_on_with(match place {
        Some(place) => next.holding(place),
        None => next,
    });
    Response::new(Body::empty())
}

fn subject(host: String, port: u16) -> Subject {
    Subject {
        scheme: Scheme::Https.as_str(),
        host,
        port,
        method: Method::CONNECT.to_string(),
        path: String::new(),
        form: Form::Json,
    }
}

async fn refuse(
    connection: &Connection,
    snapshot: Arc<Snapshot>,
    subject: Subject,
    refusal: &Refusal,
) -> Response<Body> {
    match Judged::begin(&connection.proxy, snapshot, subject).await {
        Ok(mut judged) => judged.refuse(refusal),
        Err(response) => *response,
    }
}

/// TLS that was led here and meant for `port`, of whichever host its ClientHello names.
pub(crate) async fn led_here(
    connection: Connection,
    mut stream: TcpStream,
    already: Vec<u8>,
    port: u16,
) -> Option<Next> {
    let snapshot = connection.proxy.snapshot();
    let hello = connection.stop.run_until_cancelled(hello::read(&mut stream, already)).await?;
    let met = match hello {
        Ok(hello) => {
            meet(&snapshot, &hello, port, connection.proxy.now()).map(|(host, kind)| (hello, host, kind))
        }
        Err(error) => Err(Box::new(Stranger { name: String::new(), failure: error.into() })),
    };
    match met {
        Ok((hello, host, kind)) => {
            let endpoint = Endpoint { scheme: Scheme::Https, host, port };
            let tunnel = Tunnel { connection, snapshot, endpoint, kind };
            Some(tunnel.go_on(stream, Ok(hello)))
        }
        Err(stranger) => {
            let Stranger { name, failure } = *stranger;
            refuse(&connection, snapshot, subject(name, port), &failure.refusal).await;
            close(&mut stream, &failure.last_words, &connection.stop).await;
            None
        }
    }
}

/// A host that is not served, as it was named.
struct Stranger {
    name: String,
    failure: Failure,
}

/// The host that a ClientHello names, and what is done with its TLS.
fn meet(
    snapshot: &Snapshot,
    hello: &ClientHello,
    port: u16,
    now: Timestamp,
) -> Result<(Host, Kind), Box<Stranger>> {
    let name = hello.server_name.as_deref().unwrap_or_default();
    let stranger = |refusal, last_words: &[u8]| {
        let failure = Failure { refusal, last_words: last_words.into() };
        Box::new(Stranger { name: name.escape_default().to_string(), failure })
    };
    if name.is_empty() {
        let hint = "the TLS names no host, and an address alone is not believed: use the proxy";
        return Err(stranger(Refusal::new(Code::SniMismatch, hint), UNRECOGNIZED_NAME));
    }
    let refused = |denial: policy::Denial| stranger(denial.into(), ACCESS_DENIED);
    let host = Host::parse(name).map_err(|error| refused(error.into()))?;
    let kind = kind(snapshot, &host, port, now).map_err(refused)?;
    Ok((host, kind))
}

fn kind(snapshot: &Snapshot, host: &Host, port: u16, now: Timestamp) -> Result<Kind, policy::Denial> {
    match snapshot.policy.front(host, port, now) {
        Front::Intercept => Ok(Kind::Intercept),
        Front::Passthrough(route) => Ok(Kind::Passthrough(route.id())),
        Front::Refuse(denial) => Err(denial),
    }
}

impl Tunnel {
    /// Boxed, because requests inside are answered by what answers CONNECT.
    fn run(self, opened: Opened) -> Next {
        match opened {
            Opened::Http1(upgraded) => match beneath(upgraded) {
                Ok((already, stream)) => Next::new(self.open(already, stream)),
                Err(upgraded) => Next::new(self.open(Vec::new(), TokioIo::new(upgraded))),
            },
            Opened::Http2(stream) => Next::new(self.open(Vec::new(), stream)),
        }
    }

    /// Reads the ClientHello and holds it against the host of the tunnel.
    async fn open(self, already: Vec<u8>, mut stream: impl Stream) -> Option<Next> {
        // A tunnel in which nothing was asked yet does not hold up a stop.
        let hello = self.connection.stop.run_until_cancelled(hello::read(&mut stream, already)).await?;
        Some(self.go_on(stream, hello))
    }

    /// No async function, as are those that follow: what is passed to one keeps its room for as long as the tunnel is open.
    fn go_on(self, stream: impl Stream, hello: Result<ClientHello, hello::Error>) -> Next {
        match hello.map_err(Failure::from).and_then(|hello| self.check(&hello).map(|()| hello)) {
            Ok(hello) => self.serve(stream, hello),
            Err(failure) => Next::last(self.fail(stream, failure)),
        }
    }

    fn check(&self, hello: &ClientHello) -> Result<(), Failure> {
        if !leaf::names(hello.server_name.as_deref(), &self.endpoint.host) {
            return Err(Failure {
                refusal: Refusal::new(Code::SniMismatch, "the TLS server name is not the host of the tunnel"),
                last_words: Box::from(UNRECOGNIZED_NAME),
            });
        }
        if matches!(self.kind, Kind::Passthrough(_)) && hello.encrypted == EncryptedHello::Present {
            return Err(Failure {
                refusal: Refusal::new(
                    Code::EncryptedHello,
                    "the TLS server name may be hidden; turn ECH off",
                ),
                last_words: Box::from(HANDSHAKE_FAILURE),
            });
        }
        Ok(())
    }

    fn serve(self, stream: impl Stream, hello: ClientHello) -> Next {
        match self.kind {
            Kind::Intercept => {
                let stop = self.connection.stop.clone();
                Next::new(stop.run_until_cancelled_owned(self.shaken(stream, hello)))
            }
            Kind::Passthrough(route) => Next::last(self.pass(stream, hello, route)),
        }
    }

    /// Shakes hands. What serves the requests is a future of its own: in this one's room the handshake would be kept with it.
    async fn shaken(self, stream: impl Stream, hello: ClientHello) -> Next {
        let authority = match Authority::try_from(self.endpoint.authority()) {
            Ok(authority) => authority,
            Err(error) => {
                let refusal = Refusal::new(Code::MalformedTarget, "the host cannot be named").because(&error);
                return Next::last(async move { self.record(&refusal).await });
            }
        };
        let proxy = Arc::clone(&self.connection.proxy);
        match shake_hands(proxy, authority.clone(), stream, hello).await {
            Ok(stream) => {
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let (via, connection) = (Arc::new(Via::Tunnel(self.endpoint, authority)), self.connection);
                if http2 {
                    Next::last(async move { connection.serve_http2(stream, via).await })
                } else {
                    Next::new(connection.serve_http1(stream, via))
                }
            }
            Err(refusal) => Next::last(async move { self.record(&refusal).await }),
        }
    }

    async fn pass(self, mut stream: impl Stream, hello: ClientHello, route: RouteId) {
        let snapshot = Arc::clone(&self.snapshot);
        let subject = subject(self.endpoint.host.as_str().to_owned(), self.endpoint.port);
        let Ok(mut judged) = Judged::begin(&self.connection.proxy, Arc::clone(&snapshot), subject).await
        else {
            return;
        };
        let route = &snapshot.policy.routes()[route.index()];
        let defaults = snapshot.policy.defaults();
        let until = Instant::now() + defaults.connect_timeout;
        let dialer = &self.connection.proxy.open.dialer;
        let endpoint = &self.endpoint;
        let asked = Asked::Tunnel(endpoint.host.clone(), endpoint.port);
        let limits = Limits {
            idle: defaults.idle_timeout,
            request_body: None,
            lease: Arc::new(judged.lease(asked, route)),
        };
        let gauge = snapshot.gauge(route);
        let bounds = snapshot.policy.limits(route.limits(), &endpoint.host, self.connection.proxy.now());
        gauge.bound_for(&endpoint.host, &bounds);
        let _place = match gauge.connection(&endpoint.host) {
            Ok(place) => place,
            Err(error) => {
                judged.refuse(&error.into());
                return close(&mut stream, HANDSHAKE_FAILURE, &self.connection.stop).await;
            }
        };
        let dialled = tokio::select! {
            // First, because the routes may be others since CONNECT was answered.
            biased;
            denial = Arc::clone(&limits.lease).ended() => Err(denial.into()),
            dialled = dialer.dial(&endpoint.host, endpoint.port, (route.allow_private(), route.resolves()), until) => {
                dialled.map_err(|error| upstream::refusal_of_dial(&error))
            }
        };
        let upstream = match dialled {
            Ok(upstream) => upstream,
            Err(refusal) => {
                judged.refuse(&refusal);
                return close(&mut stream, HANDSHAKE_FAILURE, &self.connection.stop).await;
            }
        };
        let spliced = Spliced { up: Progress::new(), down: Progress::new() };
        judged.passed(route, &spliced.up);
        splice(Prefixed::new(hello.bytes, stream), upstream, &spliced, &limits).await;
        judged.entry.event.bytes_down = spliced.down.bytes();
    }

    async fn fail(self, mut stream: impl Stream, failure: Failure) {
        self.record(&failure.refusal).await;
        close(&mut stream, &failure.last_words, &self.connection.stop).await;
    }

    async fn record(&self, refusal: &Refusal) {
        let subject = subject(self.endpoint.host.as_str().to_owned(), self.endpoint.port);
        refuse(&self.connection, Arc::clone(&self.snapshot), subject, refusal).await;
    }
}

/// What an upgraded connection stands on, and what was read of it already; nothing of the HTTP before it is kept.
fn beneath(upgraded: Upgraded) -> Result<(Vec<u8>, TcpStream), Upgraded> {
    let parts = upgraded.downcast::<TokioIo<Interposed<Prefixed<TcpStream>>>>()?;
    let (rest, stream) = parts.io.into_inner().into_inner().into_parts();
    Ok(([&parts.read_buf[..], &rest].concat(), stream))
}

/// TLS with the client, with a certificate for `authority`.
async fn shake_hands<S: Stream>(
    proxy: Arc<Proxy>,
    authority: Authority,
    stream: S,
    hello: ClientHello,
) -> Result<TlsStream<Prefixed<S>>, Refusal> {
    let config = proxy.leaves.gen_server_config(&authority).await;
    let ClientHello { bytes, accepted, left_over, .. } = hello;
    let stream = Prefixed::new(bytes[bytes.len() - left_over..].to_vec(), stream);
    let handshake = StartHandshake::from_parts(accepted, stream).into_stream(config);
    match timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(mut stream)) => {
            stream.get_mut().1.set_buffer_limit(Some(WRITE_BYTES));
            Ok(stream)
        }
        Ok(Err(error)) => {
            let hint = "the TLS handshake failed; does the client trust http://_egress.local/ca.pem?";
            Err(Refusal::new(Code::HandshakeFailed, hint).because(&error))
        }
        Err(_) => {
            let hint = "the client did not finish its TLS handshake in time";
            Err(Refusal::new(Code::HandshakeFailed, hint))
        }
    }
}

impl From<hello::Error> for Failure {
    fn from(error: hello::Error) -> Failure {
        let refusal = Refusal::new(Code::TunnelNotTls, error.to_string()).because(&error);
        let last_words = match error {
            hello::Error::Malformed { alert } => alert,
            hello::Error::TooLarge => HANDSHAKE_FAILURE.to_vec(),
            hello::Error::NotTls | hello::Error::Closed | hello::Error::TooSlow | hello::Error::Read(_) => {
                Vec::new()
            }
        };
        Failure { refusal, last_words: last_words.into() }
    }
}

/// Says the last words and closes, so that the other side reads them; it has until `stop`.
async fn close(stream: &mut impl Stream, last_words: &[u8], stop: &CancellationToken) {
    let lingering = async {
        stream.write_all(last_words).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(LINGER_LIMIT), &mut tokio::io::sink()).await
    };
    let _ = stop.run_until_cancelled(timeout(LINGER_TIMEOUT, lingering)).await;
}
