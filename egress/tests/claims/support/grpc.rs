//! A gRPC service, `v1.Echo`, whose messages are bytes.

use std::io;

use bytes::{Buf, BufMut, Bytes};
use futures_util::{Stream, StreamExt, stream};
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, StreamBody};
use hudsucker::Body;
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder, Streaming};
use tonic::server::Grpc;
use tonic::{Code, Status};

/// Messages as they are.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Plain;
    type Decoder = Plain;

    fn encoder(&mut self) -> Plain {
        Plain
    }

    fn decoder(&mut self) -> Plain {
        Plain
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

type Reply<T> = Result<tonic::Response<T>, Status>;

/// Says it louder, or that it knows nothing of `nothing`.
async fn unary(request: tonic::Request<Bytes>) -> Reply<Bytes> {
    let asked = request.into_inner();
    if asked == "nothing" {
        return Err(Status::with_details(
            Code::NotFound,
            "no such thing",
            Bytes::from_static(b"looked twice"),
        ));
    }
    let mut reply = tonic::Response::new(Bytes::from(asked.to_ascii_uppercase()));
    reply.metadata_mut().insert("x-served-by", "echo".parse().unwrap());
    Ok(reply)
}

type Messages = std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// Says it three times.
async fn three_times(request: tonic::Request<Bytes>) -> Reply<Messages> {
    let asked = request.into_inner();
    Ok(tonic::Response::new(stream::iter(vec![Ok(asked); 3]).boxed()))
}

/// Says all messages at once when the last has come.
async fn joined(request: tonic::Request<Streaming<Bytes>>) -> Reply<Bytes> {
    let mut messages = request.into_inner();
    let mut all = Vec::new();
    while let Some(message) = messages.message().await? {
        all.extend_from_slice(&message);
    }
    Ok(tonic::Response::new(all.into()))
}

/// Says that it took too long, and how long it was given.
async fn late(request: tonic::Request<Bytes>) -> Reply<Bytes> {
    let given = request.metadata().get("grpc-timeout").map(|given| given.to_str().unwrap());
    Err(Status::deadline_exceeded(given.unwrap_or("for ever").to_owned()))
}

/// Says each message back as it comes, until one is `stop`.
async fn converse(request: tonic::Request<Streaming<Bytes>>) -> Reply<Messages> {
    let messages = request.into_inner().map(|message| match message {
        Ok(message) if message == "stop" => Err(Status::aborted("stopped")),
        other => other,
    });
    Ok(tonic::Response::new(messages.boxed()))
}

pub(super) async fn answer(request: Request<Incoming>) -> Response<Body> {
    let mut grpc = Grpc::new(Plain);
    let answer = match request.uri().path() {
        "/v1.Echo/Unary" => grpc.unary(tower::service_fn(unary), request).await,
        "/v1.Echo/ThreeTimes" => grpc.server_streaming(tower::service_fn(three_times), request).await,
        "/v1.Echo/Joined" => grpc.client_streaming(tower::service_fn(joined), request).await,
        "/v1.Echo/Late" => grpc.unary(tower::service_fn(late), request).await,
        _ => grpc.streaming(tower::service_fn(converse), request).await,
    };
    let (parts, mut body) = answer.into_parts();
    // Through a channel, because what tonic gives cannot be shared between threads.
    let (sender, mut receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|status| hudsucker::Error::Io(io::Error::other(status)));
            if sender.send(frame).await.is_err() {
                break;
            }
        }
    });
    let frames = stream::poll_fn(move |context| receiver.poll_recv(context));
    Response::from_parts(parts, Body::from(BoxBody::new(StreamBody::new(frames))))
}
