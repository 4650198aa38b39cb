use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hudsucker::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha1::{Digest, Sha1};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::TlsAcceptor;

use super::frames::{DATA, HEADERS, SETTINGS, frame, next_frame};
use super::{Counter, HOST, grpc, listen_narrow, mirror, read_head};

pub(crate) const CHUNK: usize = 64 * 1024;
/// How many of them a large body has.
pub(crate) const CHUNKS: usize = 1024;

/// A request as upstream saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) version: http::Version,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
}

/// What upstream knows.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) requests: Mutex<Vec<Seen>>,
    pub(crate) connections: Counter,
    pub(crate) sent: Counter,
    pub(crate) received: Counter,
    pub(crate) trailers: Counter,
    /// With something in it, every connection speaks HTTP/1.1, gets this as the answer to its first request, and ends.
    pub(crate) raw: Mutex<Option<String>>,
    /// So many requests are refused before they are looked at.
    pub(crate) refuses: AtomicUsize,
    /// With something in it, the next connection of HTTP/2 answers each head and each piece of a body with the next of these, and leaves after
    /// the last.
    pub(crate) frames_told: Mutex<Vec<Vec<u8>>>,
    /// Lets `/stream` send its second part, `/hold` read its body, and `/feed`, `/feed-socket` and `/poll` tell of a credential.
    pub(crate) go_on: Notify,
    /// `/hold` has begun, or something was told.
    pub(crate) held: Notify,
    /// A request to `/never` was given up, or a download is over.
    pub(crate) given_up: Notify,
    /// Closed, it lets every `/gate` answer.
    pub(crate) gate: Gate,
    /// What came by the last WebSocket of `/frames`, until its end.
    pub(crate) frames: Mutex<Vec<u8>>,
}

/// Resets the stream on which it is met.
#[derive(Debug, thiserror::Error)]
#[error("taken back")]
struct TakenBack(#[source] h2::Error);

impl Memory {
    /// The credential that came last, once it may go on.
    async fn next_credential(&self) -> String {
        self.go_on.notified().await;
        let requests = self.requests.lock().unwrap();
        let last = requests.iter().rev().find_map(|seen| seen.headers.get("authorization"));
        last.map_or("none", |value| value.to_str().unwrap()).to_owned()
    }
}

/// Shut until it is closed for good.
pub(crate) struct Gate(pub(crate) Semaphore);

impl Default for Gate {
    fn default() -> Gate {
        Gate(Semaphore::new(0))
    }
}

/// An origin for `api.test`, with and without TLS, on loopback.
pub(crate) struct Upstream {
    pub(crate) tls: SocketAddr,
    pub(crate) plain: SocketAddr,
    pub(crate) roots: PathBuf,
    pub(crate) memory: Arc<Memory>,
}

impl Upstream {
    pub(crate) async fn start(directory: &Path) -> Upstream {
        let memory = Arc::<Memory>::default();
        let (config, roots) = certificates(directory);
        let mut http1 = config.clone();
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        let (acceptor, http1) = (TlsAcceptor::from(Arc::new(config)), TlsAcceptor::from(Arc::new(http1)));
        let (tls, plain) = (listen_narrow(), listen_narrow());
        let upstream = Upstream {
            tls: tls.local_addr().unwrap(),
            plain: plain.local_addr().unwrap(),
            roots,
            memory: Arc::clone(&memory),
        };
        let shared = Arc::clone(&memory);
        tokio::spawn(async move {
            while let Ok((stream, _)) = tls.accept().await {
                shared.connections.add(1);
                let memory = Arc::clone(&shared);
                let acceptor = if memory.raw.lock().unwrap().is_some() { &http1 } else { &acceptor }.clone();
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, memory).await;
                    }
                });
            }
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = plain.accept().await {
                memory.connections.add(1);
                tokio::spawn(serve(stream, Arc::clone(&memory)));
            }
        });
        upstream
    }

    /// Two routes with the same rules, one with TLS and one without.
    pub(crate) fn routes(&self, rules: &str) -> String {
        let route = |scheme: &str, port: u16| {
            let rules = rules.trim_end().replace('\n', "\n    ");
            format!(
                "  - host: {HOST}\n    scheme: {scheme}\n    ports: [{port}]\n    allow_private: [127.0.0.0/8]\n    {rules}\n"
            )
        };
        format!("routes:\n{}{}", route("https", self.tls.port()), route("http", self.plain.port()))
    }

    pub(crate) fn requests(&self) -> Vec<Seen> {
        self.memory.requests.lock().unwrap().clone()
    }

    pub(crate) fn last(&self) -> Seen {
        self.requests().last().unwrap().clone()
    }
}

fn certificates(directory: &Path) -> (ServerConfig, PathBuf) {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = authority.self_signed(&authority_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = [HOST.to_owned(), "other.test".to_owned(), "127.0.0.1".to_owned()];
    let leaf = CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, &Issuer::new(authority, authority_key))
        .unwrap();
    let roots = directory.join("upstream-ca.pem");
    std::fs::write(&roots, root.pem()).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (config, roots)
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(mut stream: S, memory: Arc<Memory>) {
    let raw = memory.raw.lock().unwrap().clone();
    if let Some(raw) = raw {
        read_head(&mut stream).await;
        let _ = stream.write_all(raw.as_bytes()).await;
        let _ = stream.shutdown().await;
        return;
    }
    let told = std::mem::take(&mut *memory.frames_told.lock().unwrap());
    if !told.is_empty() {
        let _ = tell(stream, told, &memory.held).await;
        return;
    }
    let service = service_fn(move |request| {
        let memory = Arc::clone(&memory);
        async move {
            let one_less = |left: usize| left.checked_sub(1);
            match memory.refuses.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less) {
                Ok(_) => Err(h2::Error::from(h2::Reason::REFUSED_STREAM)),
                Err(_) => Ok(answer(request, memory).await),
            }
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // A narrowing ends thousands of requests at once: that is no attack on this one.
    builder.http2().max_pending_accept_reset_streams(8 * 1024);
    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}

/// SETTINGS, and what is told at each head and each piece of a body.
async fn tell(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    told: Vec<Vec<u8>>,
    held: &Notify,
) -> std::io::Result<()> {
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    stream.read_exact(&mut [0; b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len()]).await?;
    let mut told = told.into_iter().peekable();
    while told.peek().is_some() {
        let Some((kind, ..)) = next_frame(&mut stream).await else { break };
        if matches!(kind, HEADERS | DATA) {
            stream.write_all(&told.next().unwrap()).await?;
            held.notify_one();
        }
    }
    stream.shutdown().await?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    Ok(())
}

async fn answer(mut request: Request<Incoming>, memory: Arc<Memory>) -> Response<Body> {
    memory.requests.lock().unwrap().push(Seen {
        version: request.version(),
        target: request.uri().path_and_query().unwrap().to_string(),
        headers: request.headers().clone(),
    });
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/v1/upload" | "/v1/hold" => {
            if path == "/v1/hold" {
                memory.held.notify_one();
                memory.go_on.notified().await;
            }
            let mut body = request.into_body();
            let mut length = 0;
            while let Some(Ok(frame)) = body.frame().await {
                memory.trailers.add(frame.trailers_ref().map_or(0, HeaderMap::len));
                let data = frame.data_ref().map_or(0, Bytes::len);
                length += data;
                memory.received.add(data);
            }
            Response::new(Body::from(length.to_string()))
        }
        "/v1/never" => {
            let _given_up = GivenUp(Arc::clone(&memory));
            memory.held.notify_one();
            std::future::pending().await
        }
        _ if path.starts_with("/v1.Echo/") => grpc::answer(request).await,
        "/v1/gate/kept" | "/v1/gate/dropped" => {
            let _closed = memory.gate.0.acquire().await;
            Response::new(Body::from("at last"))
        }
        "/v1/trailers" => {
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
            let message = Full::new(Bytes::from_static(b"\0\0\0\0\x02hi"));
            let body = message.with_trailers(std::future::ready(Some(Ok(trailers))));
            Response::builder()
                .header("content-type", "application/grpc")
                .body(Body::from(BoxBody::new(body.map_err(|never| match never {}))))
                .unwrap()
        }
        "/v1/forged-trailers" => {
            let trailers = ["alt-svc", "x-bottlecap-denied", "proxy-authenticate", "x-upstream"];
            let forged = trailers.map(|name| (name.parse().unwrap(), "h3=\":443\"".parse().unwrap()));
            let frames = [
                Ok::<_, hudsucker::Error>(Frame::data(Bytes::from_static(b"hello"))),
                Ok(Frame::trailers(HeaderMap::from_iter(forged))),
            ];
            // Of a length that is not said, else HTTP/1.1 has no trailers.
            let body = StreamBody::new(stream::iter(frames));
            Response::builder()
                .header("trailer", trailers.join(", "))
                .body(Body::from(BoxBody::new(body)))
                .unwrap()
        }
        "/v1/range" => match request.headers().get("range") {
            Some(range) if range == "bytes=2-3" => Response::builder()
                .status(StatusCode::PARTIAL_CONTENT)
                .header("content-range", "bytes 2-3/5")
                .body(Body::from("ll"))
                .unwrap(),
            _ => Response::builder().header("accept-ranges", "bytes").body(Body::from("hello")).unwrap(),
        },
        "/v1/range/unasked-bytes" | "/v1/range/of-a-list" => Response::builder()
            .header("content-range", if path.ends_with("list") { "0-14/*" } else { "bytes 2-4/5" })
            .body(Body::from("llo"))
            .unwrap(),
        "/v1/range/unasked-parts" => Response::builder()
            .header("content-type", "multipart/byteranges; boundary=x")
            .body(Body::from("--x\r\n\r\nllo\r\n--x--\r\n"))
            .unwrap(),
        "/v1/echo" => {
            let (parts, body) = request.into_parts();
            let content_type = parts.headers.get("content-type").cloned();
            let mut response = Response::new(Body::from(BoxBody::new(body.map_err(hudsucker::Error::from))));
            if let Some(content_type) = content_type {
                response.headers_mut().insert("content-type", content_type);
            }
            if let Some(encoding) = parts.headers.get("x-echo-encoding") {
                response.headers_mut().insert("content-encoding", encoding.clone());
            }
            response
        }
        _ if path.starts_with("/v1/status/") => {
            let status: u16 = path.rsplit('/').next().unwrap().parse().unwrap();
            Response::builder().status(status).header("etag", "\"e\"").body(Body::empty()).unwrap()
        }
        "/v1/download" => {
            let given_up = GivenUp(Arc::clone(&memory));
            let chunks = stream::iter(0..CHUNKS).map(move |_| {
                given_up.0.sent.add(CHUNK);
                Ok::<_, hudsucker::Error>(Bytes::from_static(&[7; CHUNK]))
            });
            Response::new(Body::from_stream(chunks))
        }
        "/v1/stream" | "/v1%2Fstream" => {
            let first =
                stream::once(async { Ok::<_, hudsucker::Error>(Bytes::from_static(b"data: one\n\n")) });
            let second = stream::once(async move {
                memory.go_on.notified().await;
                Ok(Bytes::from_static(b"data: two\n\n"))
            });
            let mut response = Response::new(Body::from_stream(first.chain(second)));
            response.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
            response
        }
        "/v1/taken-back" => {
            let first = stream::once(async { Ok::<_, hudsucker::Error>(Bytes::from_static(b"half")) });
            let reset = stream::once(async move {
                memory.go_on.notified().await;
                Err(std::io::Error::other(TakenBack(h2::Reason::NO_ERROR.into())).into())
            });
            Response::new(Body::from_stream(first.chain(reset)))
        }
        "/v1/unread" => {
            let body = request.into_body();
            let never = stream::once(async move {
                let _unread = body;
                std::future::pending::<Result<Bytes, hudsucker::Error>>().await
            });
            Response::new(Body::from_stream(never))
        }
        "/v1/early" => {
            let body = request.into_body();
            let memory = Arc::clone(&memory);
            tokio::spawn(async move {
                let mut body = body;
                while let Some(Ok(frame)) = body.frame().await {
                    memory.received.add(frame.data_ref().map_or(0, Bytes::len));
                }
            });
            Response::new(Body::from("hello"))
        }
        "/v1/feed" => {
            let first = Bytes::from_static(b"data: one\n\n");
            let feed = stream::unfold(Some(first), move |first| {
                let memory = Arc::clone(&memory);
                async move {
                    let next = match first {
                        Some(first) => first,
                        None => memory.next_credential().await.into(),
                    };
                    Some((Ok::<_, hudsucker::Error>(next), None))
                }
            });
            let mut response = Response::new(Body::from_stream(Box::pin(feed)));
            response.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
            response
        }
        "/v1/poll" => {
            memory.held.notify_one();
            let credential = memory.next_credential().await;
            Response::builder().header("x-got", &credential).body(Body::from(credential)).unwrap()
        }
        "/v1/feed-socket" => {
            let accept = accept_of(request.headers()["sec-websocket-key"].as_bytes());
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut socket = TokioIo::new(upgrade.await.unwrap());
                loop {
                    let text = memory.next_credential().await;
                    let head = [0x81, u8::try_from(text.len()).unwrap()];
                    if socket.write_all(&[&head[..], text.as_bytes()].concat()).await.is_err() {
                        break;
                    }
                }
            });
            Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header("connection", "upgrade")
                .header("upgrade", "websocket")
                .header("sec-websocket-accept", accept)
                .body(Body::empty())
                .unwrap()
        }
        "/v1/socket" | "/v1/socket-without-proof" => {
            let key = request.headers().get("sec-websocket-key").map(|key| accept_of(key.as_bytes()));
            let accept = key.filter(|_| path == "/v1/socket").unwrap_or_else(|| "none".to_owned());
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut socket = TokioIo::new(upgrade.await.unwrap());
                let mut word = [0; 4];
                if socket.read_exact(&mut word).await.is_ok() {
                    word.reverse();
                    socket.write_all(&word).await.unwrap();
                }
            });
            Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header("connection", "upgrade")
                .header("upgrade", "websocket")
                .header("sec-websocket-protocol", "chat")
                .header("sec-websocket-accept", accept)
                .body(Body::empty())
                .unwrap()
        }
        "/v1/frames" => {
            let accept = accept_of(request.headers()["sec-websocket-key"].as_bytes());
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut socket = TokioIo::new(upgrade.await.unwrap());
                let mut frames = Vec::new();
                let _ = socket.read_to_end(&mut frames).await;
                // Before the socket is closed: who sees that sees these.
                *memory.frames.lock().unwrap() = frames;
            });
            Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header("connection", "upgrade")
                .header("upgrade", "websocket")
                .header("sec-websocket-accept", accept)
                .body(Body::empty())
                .unwrap()
        }
        "/v1/headers/300" | "/v1/headers/600" => {
            let count = if path.ends_with("300") { 300 } else { 600 };
            let lines = (0..count).map(|number| format!("x-number-{number}"));
            lines
                .fold(Response::builder(), |response, name| response.header(name, "1"))
                .body(Body::empty())
                .unwrap()
        }
        "/v1/mirror" => mirror::answer(request).await,
        "/v1/liar" => Response::builder()
            .header("x-bottlecap-denied", "denied-by-rule")
            .header("x-bottlecap-approved", "yes")
            .body(Body::from("hello"))
            .unwrap(),
        _ if request.method() == Method::HEAD => {
            Response::builder().header("content-length", "5").body(Body::empty()).unwrap()
        }
        _ => Response::builder()
            .header("alt-svc", "h3=\":443\"")
            .header("x-upstream", "yes")
            .body(Body::from("hello"))
            .unwrap(),
    }
}

struct GivenUp(Arc<Memory>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.given_up.notify_one();
    }
}

fn accept_of(key: &[u8]) -> String {
    let digest =
        Sha1::new().chain_update(key).chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11").finalize();
    BASE64_STANDARD.encode(digest)
}
