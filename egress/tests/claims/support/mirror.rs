//! An upstream that sends back the credential that it got, in the form and place that the query names.

use std::io::Write as _;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response, StatusCode};
use hudsucker::Body;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;

/// A secret in a form.
pub(crate) fn in_form(secret: &str, form: &str) -> String {
    let coded = |bytes: &[u8], write: fn(&u8) -> String| bytes.iter().map(write).collect::<String>();
    let bytes = secret.as_bytes();
    match form {
        "base64" => BASE64_STANDARD.encode(secret),
        "base64-1" => BASE64_STANDARD.encode(format!("x{secret} and more")),
        "base64-2" => BASE64_STANDARD.encode(format!("xy{secret} and more")),
        "base64url" => BASE64_URL_SAFE_NO_PAD.encode(format!("user:{secret}")),
        "twice" => BASE64_STANDARD.encode(BASE64_STANDARD.encode(secret)),
        "thrice" => BASE64_STANDARD.encode(in_form(secret, "twice")),
        "hex of base64" => in_form(&in_form(secret, "base64"), "hex"),
        "base64 of utf-16" => BASE64_STANDARD.encode(in_form(secret, "utf-16")),
        "percent" => coded(bytes, |byte| format!("%{byte:02X}")),
        "hex" => coded(bytes, |byte| format!("{byte:02x}")),
        "HEX" => coded(bytes, |byte| format!("{byte:02X}")),
        "utf-16" => coded(bytes, |byte| format!("{}\0", char::from(*byte))),
        "json" => secret.replace('/', "\\/").replace('"', "\\\"").replace('&', "\\u0026"),
        "html" => secret.replace('&', "&amp;").replace('"', "&quot;"),
        _ => secret.to_owned(),
    }
}

fn compressed(text: &str, encoding: &str) -> Vec<u8> {
    match encoding {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.finish().unwrap()
        }
        "deflate" => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.finish().unwrap()
        }
        // One part as it is and an empty last one, as RFC 7932 has it: whatever undoes Brotli reads it.
        "br" => {
            let length = u32::try_from(text.len() - 1).unwrap();
            let head = (length << 4 | 1 << 20).to_le_bytes();
            [&head[..3], text.as_bytes(), &[3]].concat()
        }
        "zstd" => zstd::stream::encode_all(text.as_bytes(), 3).unwrap(),
        _ => text.as_bytes().to_vec(),
    }
}

/// Answers `/v1/mirror?place=…&form=…`.
pub(super) async fn answer(mut request: Request<Incoming>) -> Response<Body> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let part = |key: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(name, _)| *name == key).map(|(_, value)| value.to_owned()).unwrap_or_default()
    };
    let (place, form) = (part("place").replace('+', " "), part("form").replace('+', " "));
    let authorization = request.headers()["authorization"].to_str().unwrap().to_owned();
    let secret = in_form(authorization.trim_start_matches("Bearer "), &form);
    let text = format!("you sent {secret}, did you not?");
    // So much that it is worth compressing: of less, compressors let some stand as it is.
    let file = format!("{} {text}", "what nobody hides ".repeat(20));
    match place.as_str() {
        "header" => Response::builder().header("x-got", text).body(Body::empty()).unwrap(),
        "cookie" => Response::builder()
            .header("set-cookie", format!("token={secret}; Path=/; HttpOnly"))
            .body(Body::empty())
            .unwrap(),
        "header name" => {
            let name = if form == "plain" { secret } else { in_form(&secret, "hex") };
            let name = format!("x-{name}");
            Response::builder().header(name, "1").header("x-got", "********").body(Body::empty()).unwrap()
        }
        "redirect" => Response::builder()
            .status(StatusCode::FOUND)
            .header("location", format!("https://elsewhere.test/?token={secret}"))
            .body(Body::empty())
            .unwrap(),
        "error" => Response::builder().status(StatusCode::UNAUTHORIZED).body(Body::from(text)).unwrap(),
        "split" => {
            let bytes: Vec<_> =
                text.bytes().map(|b| Ok::<_, hudsucker::Error>(Bytes::from(vec![b]))).collect();
            Response::new(Body::from_stream(stream::iter(bytes)))
        }
        "trailer" => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-got", text.parse().unwrap());
            let frames = vec![
                Ok::<_, hudsucker::Error>(http_body::Frame::data(Bytes::from_static(b"data"))),
                Ok(http_body::Frame::trailers(trailers)),
            ];
            let body = http_body_util::StreamBody::new(stream::iter(frames));
            let mut response = Response::new(Body::from(http_body_util::combinators::BoxBody::new(body)));
            response.headers_mut().insert("trailer", "x-got".parse().unwrap());
            response
        }
        "grpc" => {
            let asked = request.headers().get("grpc-accept-encoding").is_some();
            let packs = asked || form == "unasked";
            let message = if packs { compressed(&text, "gzip") } else { text.into_bytes() };
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            let frame = [&[u8::from(packs)][..], &length, &message].concat();
            let encoding = if packs { "gzip" } else { "identity" };
            Response::builder().header("grpc-encoding", encoding).body(Body::from(frame)).unwrap()
        }
        "socket" | "binary socket" | "packed socket" => {
            let opcode = if place == "socket" { 1 } else { 2 };
            let reason = hyper::ext::ReasonPhrase::try_from(text.clone().into_bytes()).unwrap();
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut socket = TokioIo::new(upgrade.await.unwrap());
                let bytes =
                    if place == "packed socket" { compressed(&file, "gzip") } else { text.into_bytes() };
                let last = bytes.len() - 1;
                for (at, byte) in bytes.into_iter().enumerate() {
                    let first = if at == 0 { opcode } else { 0 } | if at == last { 0x80 } else { 0 };
                    socket.write_all(&[first, 1, byte]).await.unwrap();
                }
                socket.shutdown().await.unwrap();
            });
            Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header("connection", "upgrade")
                .header("upgrade", "websocket")
                .extension(reason)
                .body(Body::empty())
                .unwrap()
        }
        "pings" | "pings and a close" | "pings and a code" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut socket = TokioIo::new(upgrade.await.unwrap());
                let mut pieces: Vec<_> = secret.as_bytes().chunks(10).collect();
                let last = if place == "pings" { None } else { pieces.pop() };
                let code = if place == "pings and a code" { &[][..] } else { &4000_u16.to_be_bytes() };
                let closing = last.map(|last| [code, last].concat());
                let pings = pieces.into_iter().map(|piece| (0x89, piece));
                for (first, content) in pings.chain(closing.as_deref().map(|content| (0x88, content))) {
                    let length = u8::try_from(content.len()).unwrap();
                    socket.write_all(&[&[first, length][..], content].concat()).await.unwrap();
                }
                socket.shutdown().await.unwrap();
            });
            Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header("connection", "upgrade")
                .header("upgrade", "websocket")
                .body(Body::empty())
                .unwrap()
        }
        "gzip in transfer" => Response::builder()
            .header("transfer-encoding", "gzip, chunked")
            .body(Body::from(compressed(&text, "gzip")))
            .unwrap(),
        "gzip nominated" => Response::builder()
            .header("content-encoding", "gzip")
            .header("connection", "Content-Encoding")
            .body(Body::from(compressed(&text, "gzip")))
            .unwrap(),
        "gzip file" | "zstd file" | "deflate file" => {
            let encoding = place.split(' ').next().unwrap();
            Response::new(Body::from(compressed(&file, encoding)))
        }
        encoding => {
            let mut response = Response::new(Body::from(compressed(&text, encoding)));
            if !encoding.is_empty() && encoding != "body" {
                response.headers_mut().insert("content-encoding", encoding.parse().unwrap());
            }
            response
        }
    }
}
