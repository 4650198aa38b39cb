//! The origin: `localhost` with TLS, once with HTTP/1.1 and once with HTTP/2, in threads of its own.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::BodyExt;
use hudsucker::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const CHUNK: usize = 64 * 1024;
/// How many events `/v1/events` sends, one each millisecond.
pub(crate) const EVENTS: usize = 5000;

pub(crate) struct Origin {
    pub(crate) http1: u16,
    pub(crate) http2: u16,
    /// What an event's time counts from.
    pub(crate) start: Instant,
    /// Its authority, as PEM.
    pub(crate) roots: PathBuf,
    _directory: tempfile::TempDir,
}

impl Origin {
    pub(crate) fn start() -> Origin {
        let directory = tempfile::tempdir().unwrap();
        let roots = directory.path().join("origin-ca.pem");
        let config = certificate(&roots);
        let start = Instant::now();
        let serve = |protocol: &[u8]| {
            let mut config = config.clone();
            config.alpn_protocols = vec![protocol.to_vec()];
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            listener.set_nonblocking(true).unwrap();
            let port = listener.local_addr().unwrap().port();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(accept(listener, config, start));
            });
            port
        };
        Origin { http1: serve(b"http/1.1"), http2: serve(b"h2"), start, roots, _directory: directory }
    }
}

async fn accept(listener: std::net::TcpListener, config: ServerConfig, start: Instant) {
    let listener = TcpListener::from_std(listener).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service =
                service_fn(|request| async move { Ok::<_, Infallible>(answer(request, start).await) });
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(request: Request<Incoming>, start: Instant) -> Response<Body> {
    let path = request.uri().path();
    if let Some(length) = path.strip_prefix("/v1/bytes/") {
        let chunks = length.parse::<usize>().unwrap() / CHUNK;
        let chunks = (0..chunks).map(|_| Ok::<_, hudsucker::Error>(Bytes::from_static(&[7; CHUNK])));
        return Response::new(Body::from_stream(stream::iter(chunks)));
    }
    match path {
        "/v1/events" => {
            let ticks = tokio::time::interval(Duration::from_millis(1));
            let events = stream::unfold((ticks, 0), move |(mut ticks, sent)| async move {
                if sent == EVENTS {
                    return None;
                }
                ticks.tick().await;
                let event = format!("data: {:020}\n\n", start.elapsed().as_nanos());
                Some((Ok::<_, hudsucker::Error>(Bytes::from(event)), (ticks, sent + 1)))
            });
            Response::builder()
                .header("content-type", "text/event-stream")
                .body(Body::from_stream(events))
                .unwrap()
        }
        "/v1/upload" => {
            let mut body = request.into_body();
            let mut length = 0;
            while let Some(Ok(frame)) = body.frame().await {
                length += frame.data_ref().map_or(0, Bytes::len);
            }
            Response::new(Body::from(length.to_string()))
        }
        "/v1/first" => {
            let mut body = request.into_body();
            let mut first = None;
            while let Some(Ok(_)) = body.frame().await {
                first.get_or_insert_with(|| start.elapsed());
            }
            Response::new(Body::from(first.unwrap().as_nanos().to_string()))
        }
        _ => Response::new(Body::from("hello")),
    }
}

fn certificate(roots: &PathBuf) -> ServerConfig {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Else it has the name of the leaf, which OpenSSL then takes for one that signed itself.
    authority.distinguished_name.push(DnType::CommonName, "origin");
    std::fs::write(roots, authority.self_signed(&authority_key).unwrap().pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::new(authority, authority_key)).unwrap();
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap()
}
