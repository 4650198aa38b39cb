use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::HOST as HOST_HEADER;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hudsucker::Body;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::HOST;

/// The ways to upstream that have to be judged alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Plain,
    TunnelHttp1,
    TunnelHttp2,
}

impl Transport {
    pub(crate) const ALL: [Transport; 3] = [Transport::Plain, Transport::TunnelHttp1, Transport::TunnelHttp2];
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) async fn of(response: Response<Incoming>) -> Answer {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The code of a refusal, which must be there in both places.
    pub(crate) fn refusal(&self) -> String {
        assert_eq!(self.status, StatusCode::FORBIDDEN, "{}", self.text());
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        let code = body["error"]["code"].as_str().unwrap().to_owned();
        assert_eq!(self.headers["x-bottlecap-denied"], code);
        assert_eq!(self.headers["content-type"], "application/json");
        assert!(!body["error"]["block_id"].as_str().unwrap().is_empty());
        assert!(!body["error"]["hint"].as_str().unwrap().is_empty());
        code
    }
}

/// A program in a bottle.
#[derive(Clone)]
pub(crate) struct Agent {
    proxy: SocketAddr,
    roots: RootCertStore,
    plain: SocketAddr,
    tls: SocketAddr,
}

impl Agent {
    pub(crate) fn new(proxy: SocketAddr, roots: RootCertStore, plain: SocketAddr, tls: SocketAddr) -> Agent {
        Agent { proxy, roots, plain, tls }
    }

    /// What it trusts.
    pub(crate) fn roots(&self) -> RootCertStore {
        self.roots.clone()
    }

    pub(crate) async fn dial(&self) -> TcpStream {
        self.try_dial().await.unwrap()
    }

    pub(crate) async fn try_dial(&self) -> std::io::Result<TcpStream> {
        let stream = super::narrow().connect(self.proxy).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A CONNECT and the status of its answer.
    pub(crate) async fn connect(&self, target: &str) -> (u16, TcpStream) {
        let mut stream = self.dial().await;
        let request = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        (head.split(' ').nth(1).unwrap().parse().unwrap(), stream)
    }

    pub(crate) fn tls(&self, protocols: &[&str]) -> TlsConnector {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }

    /// TLS for `name` in a tunnel for `target`.
    pub(crate) async fn tunnel(
        &self,
        target: &str,
        name: &str,
        protocols: &[&str],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let (status, stream) = self.connect(target).await;
        assert_eq!(status, 200, "CONNECT {target}");
        self.tls(protocols).connect(ServerName::try_from(name.to_owned()).unwrap(), stream).await
    }

    /// Sends to `HOST`.
    pub(crate) async fn send(&self, transport: Transport, request: Request<Body>) -> Answer {
        self.send_to(transport, HOST, request).await
    }

    /// Sends to `host`, on the port of the upstream.
    pub(crate) async fn send_to(&self, transport: Transport, host: &str, request: Request<Body>) -> Answer {
        Answer::of(self.open(transport, host, request).await).await
    }

    /// Sends to `host` and gives the answer as it begins.
    pub(crate) async fn open(
        &self,
        transport: Transport,
        host: &str,
        mut request: Request<Body>,
    ) -> Response<Incoming> {
        let path = request.uri().to_string();
        let (scheme, port) = match transport {
            Transport::Plain => ("http", self.plain.port()),
            Transport::TunnelHttp1 | Transport::TunnelHttp2 => ("https", self.tls.port()),
        };
        let authority = format!("{host}:{port}");
        let answer = match transport {
            Transport::Plain => {
                *request.uri_mut() = format!("{scheme}://{authority}{path}").parse().unwrap();
                request.headers_mut().insert(HOST_HEADER, authority.parse().unwrap());
                http1_on(self.dial().await).await.send_request(request).await
            }
            Transport::TunnelHttp1 => {
                request.headers_mut().insert(HOST_HEADER, authority.parse().unwrap());
                let stream = self.tunnel(&authority, host, &["http/1.1"]).await.unwrap();
                http1_on(stream).await.send_request(request).await
            }
            Transport::TunnelHttp2 => {
                *request.uri_mut() = format!("{scheme}://{authority}{path}").parse().unwrap();
                let stream = self.tunnel(&authority, host, &["h2"]).await.unwrap();
                http2_on(stream).await.send_request(request).await
            }
        };
        answer.unwrap()
    }
}

pub(crate) async fn http1_on<S>(stream: S) -> http1::SendRequest<Body>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let connecting = http1::Builder::new().max_headers(1024).handshake(TokioIo::new(stream));
    let (sender, connection) = connecting.await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

pub(crate) async fn http2_on<S>(stream: S) -> http2::SendRequest<Body>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// The head of an answer, up to the empty line; what there is, when the connection ends before.
pub(crate) async fn read_head(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

pub(crate) fn get(path: &str) -> Request<Body> {
    request(Method::GET, path, &[])
}

pub(crate) fn request(method: Method, path: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}
