//! An HTTPS API that answers every request with what it received.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

/// One piece of a long answer.
const CHUNK: usize = 64 * 1024;

/// What is answered to a request in place of the echo, given that and its body: media type and text.
pub type Script = Box<dyn Fn(&Value, &[u8]) -> Option<(&'static str, String)> + Send + Sync>;

/// What every connection shares.
#[derive(Default)]
struct Seen {
    script: Option<Script>,
    /// The bearer token that the API knows; it then says whether it was sent, and echoes no Authorization.
    token: Option<String>,
    connections: AtomicU64,
    requests: AtomicU64,
    last: Mutex<Option<Value>>,
}

/// The server as a value, to be run on a runtime of the caller's.
pub struct EchoServer {
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    ca_pem: String,
    seen: Arc<Seen>,
}

impl EchoServer {
    /// Binds, with a fresh certificate authority and one certificate for these names and addresses.
    pub async fn bind(address: SocketAddr, names: &[String]) -> Result<Self> {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(DnType::CommonName, "upstream test CA");
        let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new(names.to_vec())?.signed_by(&key, &issuer)?;
        let mut config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            acceptor: Some(TlsAcceptor::from(Arc::new(config))),
            ca_pem: issuer.pem(),
            ..Self::bind_plain(address).await?
        })
    }

    /// Binds without TLS.
    pub async fn bind_plain(address: SocketAddr) -> Result<Self> {
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        Ok(Self { listener, acceptor: None, ca_pem: String::new(), seen: Arc::default() })
    }

    /// The same, as an API with accounts: it says `"authenticated"` instead of echoing the Authorization it was sent, and prints a line
    /// for each request.
    #[must_use]
    pub fn with_token(self, token: String) -> Self {
        Self { seen: Arc::new(Seen { token: Some(token), ..Seen::default() }), ..self }
    }

    /// The same, answering what is written down before.
    #[must_use]
    pub fn with_script(self, script: Script) -> Self {
        Self { seen: Arc::new(Seen { script: Some(script), ..Seen::default() }), ..self }
    }

    /// Where it listens.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// What a client has to trust.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Answers until the future is dropped.
    pub async fn serve(self) -> Result<Infallible> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            self.seen.connections.fetch_add(1, Ordering::SeqCst);
            stream.set_nodelay(true)?;
            let (acceptor, seen) = (self.acceptor.clone(), self.seen.clone());
            tokio::spawn(async move {
                match acceptor {
                    Some(acceptor) => {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            converse(TokioIo::new(stream), seen).await;
                        }
                    }
                    None => converse(TokioIo::new(stream), seen).await,
                }
            });
        }
    }
}

async fn converse<I>(io: I, seen: Arc<Seen>)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let service = service_fn(move |request| answer(request, seen.clone()));
    // A client that goes away in the middle is no fault of the stand-in.
    drop(
        hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
            .serve_connection(io, service)
            .await,
    );
}

async fn answer(
    request: Request<Incoming>,
    seen: Arc<Seen>,
) -> Result<Response<BoxBody<Bytes, hyper::Error>>, hyper::Error> {
    let (head, mut body) = request.into_parts();
    let (mut hash, mut length, mut kept) = (Sha256::new(), 0_u64, Vec::new());
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            hash.update(&data);
            if seen.script.is_some() {
                kept.extend_from_slice(&data);
            }
            length += data.len() as u64;
        }
    }
    let mut headers = serde_json::Map::new();
    for name in head.headers.keys() {
        let values: Vec<_> = head
            .headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        headers.insert(name.to_string(), json!(values.join(", ")));
    }
    let mut echo = json!({
        "method": head.method.as_str(),
        "host": head.uri.host(),
        "path": head.uri.path(),
        "query": head.uri.query(),
        "headers": headers,
        "body": {"length": length, "sha256": hex(&hash.finalize())},
    });
    if let Some(token) = &seen.token {
        let sent = take_authorization(&mut echo);
        echo["authenticated"] = json!(sent == Some(format!("Bearer {token}")));
        // A stand-in whose terminal is gone has nobody to tell.
        drop(writeln!(std::io::stdout(), "{echo}"));
    }
    seen.requests.fetch_add(1, Ordering::SeqCst);
    *seen.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(echo.clone());

    let response = Response::builder().status(StatusCode::OK);
    let whole = |text: String| Full::from(text).map_err(|never| match never {}).boxed();
    let scripted = seen.script.as_ref().and_then(|script| script(&echo, &kept));
    let bytes = head.uri.path().rsplit_once("/bytes/").and_then(|(_, count)| count.parse::<u64>().ok());
    Ok(match (scripted, bytes) {
        (Some((media, text)), _) => response.header("content-type", media).body(whole(text)),
        (None, Some(count)) => response.header("content-type", "application/octet-stream").body(zeros(count)),
        (None, None) => {
            response.header("content-type", "application/json").body(whole(format!("{echo:#}\n")))
        }
    }
    .expect("a status and one constant header make a response"))
}

/// Takes the Authorization out of what will be echoed.
fn take_authorization(echo: &mut Value) -> Option<String> {
    match echo["headers"].as_object_mut()?.remove("authorization")? {
        Value::String(text) => Some(text),
        _ => None,
    }
}

/// A body of that many zero bytes, never in memory as a whole.
fn zeros(count: u64) -> BoxBody<Bytes, hyper::Error> {
    static PIECE: [u8; CHUNK] = [0; CHUNK];
    let pieces = (0..count.div_ceil(CHUNK as u64)).map(move |index| {
        let left = usize::try_from(count - index * CHUNK as u64).unwrap_or(CHUNK).min(CHUNK);
        Ok(Frame::data(Bytes::from_static(&PIECE[..left])))
    });
    StreamBody::new(futures_util::stream::iter(pieces)).boxed()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The server on a thread of its own, until dropped.
pub struct HttpsEcho {
    address: SocketAddr,
    ca: tempfile::NamedTempFile,
    seen: Arc<Seen>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl HttpsEcho {
    /// On a free port of 127.0.0.1, with a certificate for `localhost`, that address and these names.
    pub fn start(names: &[&str]) -> Result<Self> {
        let mut names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        names.extend(["localhost".to_owned(), "127.0.0.1".to_owned()]);
        Self::run(move || async move { EchoServer::bind(loopback(), &names).await })
    }

    /// On a free port of `address`, with a certificate for these names and addresses.
    pub fn start_on(address: IpAddr, names: &[&str]) -> Result<Self> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Self::run(move || async move { EchoServer::bind(SocketAddr::new(address, 0), &names).await })
    }

    /// The same, answering what is written down before.
    pub fn start_scripted(address: IpAddr, names: &[&str], script: Script) -> Result<Self> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Self::run(move || async move {
            Ok(EchoServer::bind(SocketAddr::new(address, 0), &names).await?.with_script(script))
        })
    }

    /// On a free port of 127.0.0.1, without TLS.
    pub fn start_plain() -> Result<Self> {
        Self::run(|| EchoServer::bind_plain(loopback()))
    }

    fn run<F, S>(bind: F) -> Result<Self>
    where
        F: FnOnce() -> S + Send + 'static,
        S: Future<Output = Result<EchoServer>>,
    {
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, bound) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready.send(Err(error.into()))),
            };
            runtime.block_on(async move {
                let server = match bind().await {
                    Ok(server) => server,
                    Err(error) => return drop(ready.send(Err(error))),
                };
                let facts = server
                    .address()
                    .map(|address| (address, server.ca_pem().to_owned(), server.seen.clone()));
                drop(ready.send(facts));
                tokio::select! {
                    _ = stopped => {}
                    _ = server.serve() => {}
                }
            });
        });
        let (address, pem, seen) = bound.recv().context("the stand-in ended before it listened")??;
        let ca = tempfile::Builder::new().prefix("upstream-ca-").suffix(".pem").tempfile()?;
        std::fs::write(ca.path(), pem)?;
        // Daemons with users of their own read it.
        std::fs::set_permissions(ca.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        Ok(Self { address, ca, seen, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The file with what a client has to trust.
    pub fn ca(&self) -> &Path {
        self.ca.path()
    }

    /// How many requests reached it.
    pub fn requests(&self) -> u64 {
        self.seen.requests.load(Ordering::SeqCst)
    }

    /// How many connections reached it.
    pub fn connections(&self) -> u64 {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// The last request, as it was answered.
    pub fn last(&self) -> Option<Value> {
        self.seen.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for HttpsEcho {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 0)
}
