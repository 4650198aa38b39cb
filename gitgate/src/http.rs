//! Smart HTTP: the same repositories, the same rules, the same words.
//!
//! One conversation is several requests here, on one connection as a rule. What lists refs asks upstream; what
//! asks for objects soon after that on the same connection continues from there.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_compression::tokio::bufread::GzipDecoder;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyDataStream, BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio_util::io::{ReaderStream, StreamReader};
use tracing::debug;

use crate::front::{Front, Since};
use crate::pktline;
use crate::request::{Asked, Protocol, Service, Shape};
use crate::session::Client;
use crate::v2::Memory;

/// How long a client may take for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long after its first request a push may go on without another refresh.
const PUSH_CONTINUES: Duration = Duration::from_secs(60);
/// How long a request of a reader may be, unpacked.
const READ_MAX_BYTES: u64 = 64 << 20;
/// What may come before and after the pack of a push.
const PUSH_MORE_BYTES: u64 = 16 << 20;
const HEAD_MAX_BYTES: usize = 16 << 10;
const PIPE_BYTES: usize = 64 << 10;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Serves the requests of one connection.
pub(crate) async fn serve(front: Arc<Front>, stream: TcpStream) {
    let Some(_place) = front.greeting() else {
        return debug!("too many connections");
    };
    let _ = stream.set_nodelay(true);
    let shown = Memory::default();
    let service = service_fn(|request| {
        let (front, shown) = (front.clone(), shown.clone());
        async move { Ok::<_, Infallible>(answer(front, request, shown).await) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_MAX_BYTES);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        debug!(%error, "connection ended");
    }
}

/// What a URL names.
#[derive(Debug, PartialEq, Eq)]
enum Asks<'u> {
    Refs(&'u str, Service),
    Exchange(&'u str, Service),
    Lfs,
    Nothing,
}

fn asks<'u>(method: &Method, path: &'u str, query: Option<&str>) -> Asks<'u> {
    let services = [("git-upload-pack", Service::UploadPack), ("git-receive-pack", Service::ReceivePack)];
    if path.contains("/info/lfs") {
        return Asks::Lfs;
    }
    if let (&Method::GET, Some(repo)) = (method, path.strip_suffix("/info/refs")) {
        let wanted = query.unwrap_or_default();
        let service = services.iter().find(|(name, _)| wanted.strip_prefix("service=") == Some(name));
        return service.map_or(Asks::Nothing, |(_, service)| Asks::Refs(repo, *service));
    }
    if method == Method::POST {
        for (name, service) in services {
            if let Some(repo) = path.strip_suffix(name).and_then(|path| path.strip_suffix('/')) {
                return Asks::Exchange(repo, service);
            }
        }
    }
    Asks::Nothing
}

async fn answer(front: Arc<Front>, request: Request<Incoming>, shown: Memory) -> Response<Body> {
    let (head, body) = request.into_parts();
    let protocol = protocol(&head.headers);
    match asks(&head.method, head.uri.path(), head.uri.query()) {
        Asks::Refs(path, service) => {
            let intro = format!("# service=git-{service}\n");
            let intro = [pktline::line(intro.as_bytes()), b"0000".to_vec()].concat();
            let kind = format!("application/x-git-{service}-advertisement");
            let asked = Asked { protocol, shape: Shape::Advertisement };
            let start = if by_command(protocol, service) {
                Start { intro: Vec::new(), kind, since: Since::Later, shown }
            } else {
                Start { intro: intro.clone(), kind, since: Since::Now, shown }
            };
            converse(front, path, service, asked, start, tokio::io::empty(), &intro).await
        }
        Asks::Exchange(path, service) => {
            let kind = format!("application/x-git-{service}-result");
            let since = match service {
                Service::UploadPack if by_command(protocol, service) => Since::Later,
                // It is asked again: what was shown before may be gone since.
                Service::UploadPack => Since::Now,
                // What upstream has is looked at again before anything is forwarded.
                Service::ReceivePack => Since::Within(PUSH_CONTINUES),
            };
            let start = Start { intro: Vec::new(), kind, since, shown };
            let limit = match (service, front.served(path)) {
                (Service::ReceivePack, Ok(served)) => served.repo.push.max_pack() + PUSH_MORE_BYTES,
                (Service::ReceivePack, Err(_)) | (Service::UploadPack, _) => READ_MAX_BYTES,
            };
            let body = match unpacked(&head.headers, body) {
                Ok(body) => body.take(limit),
                Err(()) => {
                    return plain(
                        StatusCode::UNSUPPORTED_MEDIA_TYPE,
                        "git-gate: requests are plain or gzip\n",
                    );
                }
            };
            let asked = Asked { protocol, shape: Shape::Exchange };
            converse(front, path, service, asked, start, body, &[]).await
        }
        Asks::Lfs => {
            let text = r#"{"message":"git-gate: git-lfs is not served here; files go through the gate as ordinary files"}"#;
            response(StatusCode::NOT_IMPLEMENTED, "application/vnd.git-lfs+json", text)
        }
        Asks::Nothing => plain(
            StatusCode::NOT_FOUND,
            "git-gate: nothing is here; repositories are served to git as /NAME.git over smart HTTP\n",
        ),
    }
}

/// How an answer begins.
struct Start {
    intro: Vec<u8>,
    kind: String,
    since: Since,
    /// What was shown on this connection.
    shown: Memory,
}

/// Whether each command of a conversation sees to it that its answer is fresh.
fn by_command(protocol: Protocol, service: Service) -> bool {
    protocol == Protocol::V2 && service == Service::UploadPack
}

async fn converse(
    front: Arc<Front>,
    path: &str,
    service: Service,
    asked: Asked,
    start: Start,
    body: impl AsyncRead + Unpin + Send + 'static,
    before_error: &[u8],
) -> Response<Body> {
    let Start { intro, kind, since, shown } = start;
    let told = |message: &str| {
        let text = [before_error, &pktline::error(message)].concat();
        response(StatusCode::OK, &kind, text)
    };
    let served = match front.served(path) {
        Ok(served) => served,
        Err(message) => return told(&message),
    };
    // The right to the session is given back by the task that has it.
    let (begun, begins) = tokio::sync::oneshot::channel();
    let (reader, mut writer) = tokio::io::duplex(PIPE_BYTES);
    let work = front.clone();
    front.spawn(async move {
        let front = work;
        match front.admission(service, &served, since).await {
            Ok(mut admitted) => {
                admitted.shown = shown;
                let _ = begun.send(None);
                if intro.is_empty() || writer.write_all(&intro).await.is_ok() {
                    let client = Client { reader: body, writer };
                    front.converse(client, service, asked, &served, &admitted).await;
                }
                admitted.end();
            }
            Err(message) => {
                let _ = begun.send(Some(message));
            }
        }
    });
    match begins.await {
        Ok(None) => {
            let stream = StreamBody::new(ReaderStream::with_capacity(reader, PIPE_BYTES).map_ok(Frame::data));
            fresh(Response::builder().header(header::CONTENT_TYPE, kind), UnsyncBoxBody::new(stream))
        }
        Ok(Some(message)) => told(&message),
        Err(_) => told("git-gate: the gate is stopping"),
    }
}

/// The body without its compression.
fn unpacked(headers: &HeaderMap, body: Incoming) -> Result<Box<dyn AsyncRead + Unpin + Send>, ()> {
    let body = StreamReader::new(BodyDataStream::new(body).map_err(io::Error::other));
    match headers.get(header::CONTENT_ENCODING).map(|value| value.as_bytes()) {
        None | Some(b"identity") => Ok(Box::new(body)),
        Some(b"gzip" | b"x-gzip") => Ok(Box::new(GzipDecoder::new(BufReader::new(body)))),
        Some(_) => Err(()),
    }
}

/// The version that the client asks for; nothing else of what it says reaches git.
fn protocol(headers: &HeaderMap) -> Protocol {
    let value = headers.get("git-protocol").map(|value| value.as_bytes()).unwrap_or_default();
    value.split(|b| *b == b':').find_map(Protocol::parse).unwrap_or(Protocol::V0)
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    response(status, "text/plain; charset=utf-8", text)
}

fn response(status: StatusCode, kind: &str, text: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(text.into()).map_err(|never| match never {});
    fresh(Response::builder().status(status).header(header::CONTENT_TYPE, kind), body.boxed_unsync())
}

fn fresh(response: http::response::Builder, body: Body) -> Response<Body> {
    let response = response.header(header::CACHE_CONTROL, "no-cache, max-age=0, must-revalidate");
    response.body(body).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_three_urls_of_smart_http_are_served() {
        let get = |path, query| asks(&Method::GET, path, query);
        let upload = Some("service=git-upload-pack");
        assert_eq!(get("/web.git/info/refs", upload), Asks::Refs("/web.git", Service::UploadPack));
        assert_eq!(
            asks(&Method::POST, "/web.git/git-receive-pack", None),
            Asks::Exchange("/web.git", Service::ReceivePack)
        );
        for path in
            ["/web.git/HEAD", "/web.git/objects/info/packs", "/web.git/info/refs", "/", "/web.git/config"]
        {
            assert_eq!(get(path, None), Asks::Nothing, "{path}");
        }
        assert_eq!(get("/web.git/info/refs", Some("service=git-upload-archive")), Asks::Nothing);
        assert_eq!(asks(&Method::POST, "/web.git/info/lfs/objects/batch", None), Asks::Lfs);
    }
}
