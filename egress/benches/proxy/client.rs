//! The client: HTTP/1.1 over TLS, through a tunnel or direct.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hudsucker::Body;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::origin::{EVENTS, Origin};
use crate::subject::Subject;

const CHUNK: usize = 64 * 1024;
/// How many tunnels are opened at the same time.
const AT_ONCE: usize = 32;

pub(crate) struct Client {
    sender: SendRequest<Body>,
    host: String,
}

impl Client {
    /// Through the proxy. No TLS session is resumed: each is a new program's first.
    pub(crate) async fn connect(subject: &Subject, port: u16) -> Client {
        let mut stream = TcpStream::connect(subject.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let connect = format!("CONNECT localhost:{port} HTTP/1.1\r\nhost: localhost:{port}\r\n\r\n");
        stream.write_all(connect.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
        Client::over(stream, subject, port).await
    }

    /// Past the proxy.
    pub(crate) async fn direct(subject: &Subject, port: u16) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Client::over(stream, subject, port).await
    }

    async fn over(stream: TcpStream, subject: &Subject, port: u16) -> Client {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(subject.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::disabled();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Client { sender, host: format!("localhost:{port}") }
    }

    /// Many, each with one request behind it.
    pub(crate) async fn connect_many(subject: &Subject, port: u16, count: usize) -> Vec<Client> {
        let one = async |_| {
            let mut client = Client::connect(subject, port).await;
            client.small().await;
            client
        };
        stream::iter(0..count).map(one).buffer_unordered(AT_ONCE).collect().await
    }

    async fn send(&mut self, method: Method, path: &str, body: Body) -> Response<Incoming> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.host)
            .header("user-agent", "bench/1")
            .header("accept", "*/*")
            .body(body)
            .unwrap();
        self.sender.ready().await.unwrap();
        let response = self.sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response
    }

    pub(crate) async fn small(&mut self) {
        let response = self.send(Method::GET, "/v1/small", Body::empty()).await;
        assert_eq!(&response.into_body().collect().await.unwrap().to_bytes()[..], b"hello");
    }

    pub(crate) async fn download(&mut self, bytes: u64) {
        let mut body = self.send(Method::GET, &format!("/v1/bytes/{bytes}"), Body::empty()).await.into_body();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            length += frame.unwrap().data_ref().map_or(0, Bytes::len) as u64;
        }
        assert_eq!(length, bytes);
    }

    pub(crate) async fn upload(&mut self, bytes: u64) {
        let chunks =
            (0..bytes / CHUNK as u64).map(|_| Ok::<_, hudsucker::Error>(Bytes::from_static(&[7; CHUNK])));
        let response = self.send(Method::POST, "/v1/upload", Body::from_stream(stream::iter(chunks))).await;
        let answer = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(&answer[..], bytes.to_string().as_bytes());
    }

    pub(crate) async fn upload_text(&mut self, bytes: u64) {
        let text = text(CHUNK);
        let chunks = (0..bytes / CHUNK as u64).map(move |_| Ok::<_, hudsucker::Error>(text.clone()));
        let response = self.send(Method::POST, "/v1/upload", Body::from_stream(stream::iter(chunks))).await;
        let answer = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(&answer[..], bytes.to_string().as_bytes());
    }

    /// A message as an agent sends many.
    pub(crate) async fn message(&mut self) {
        let body =
            serde_json::json!({"role": "user", "content": String::from_utf8_lossy(&text(4000))}).to_string();
        let length = body.len().to_string();
        let response = self.send(Method::POST, "/v1/upload", Body::from(body)).await;
        assert_eq!(&response.into_body().collect().await.unwrap().to_bytes()[..], length.as_bytes());
    }

    /// How long it takes from sending a body of 256 KiB until the origin has some of it.
    pub(crate) async fn first_byte(&mut self, origin: &Origin) -> Duration {
        let body = Body::from(text(4 * CHUNK));
        let sent = origin.start.elapsed();
        let answer = self.send(Method::POST, "/v1/first", body).await.into_body().collect().await.unwrap();
        let nanos = std::str::from_utf8(&answer.to_bytes()).unwrap().parse().unwrap();
        Duration::from_nanos(nanos).saturating_sub(sent)
    }

    /// How long each event was on its way, shortest first.
    pub(crate) async fn events(&mut self, origin: &Origin) -> Vec<Duration> {
        let mut body = self.send(Method::GET, "/v1/events", Body::empty()).await.into_body();
        let mut delays = Vec::with_capacity(EVENTS);
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            let now = origin.start.elapsed();
            text.extend_from_slice(frame.unwrap().data_ref().map_or(&[], |data| &data[..]));
            while text.len() >= 28 {
                let sent: u64 = std::str::from_utf8(&text[6..26]).unwrap().parse().unwrap();
                delays.push(now - Duration::from_nanos(sent));
                text.drain(..28);
            }
        }
        assert_eq!(delays.len(), EVENTS);
        delays.sort();
        delays
    }
}

/// Ordinary text.
fn text(length: usize) -> Bytes {
    include_bytes!("client.rs").iter().copied().cycle().take(length).collect()
}
