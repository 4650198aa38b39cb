//! WebSocket messages: the placeholder in them, and nothing else of them, is replaced.

use http::{Method, Request, Version};
use hudsucker::Body;
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Bench, HOST, PLACEHOLDER, Transport, Upstream, farewell, http2_on, request};

const RULES: &str = "token_env: TOKEN\nplaceholder_in: ['ws-json:/auth/token', 'ws-json:/keys/1']";
const FIN: u8 = 0x80;
const MORE: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const KEY: [u8; 4] = [0x5a, 0x13, 0x77, 0xe1];

#[derive(Debug, Clone, PartialEq, Eq)]
struct Frame {
    first: u8,
    content: String,
}

fn frame(first: u8, content: &str) -> Frame {
    Frame { first, content: content.replace('@', PLACEHOLDER) }
}

impl Frame {
    /// As a client sends it.
    fn bytes(&self) -> Vec<u8> {
        let length = self.content.len();
        let mut bytes = vec![self.first];
        match length {
            0..126 => bytes.push(0x80 | u8::try_from(length).unwrap()),
            126..65_536 => {
                bytes.push(0x80 | 126);
                bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            _ => {
                bytes.push(0x80 | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.extend(KEY);
        bytes.extend(self.content.bytes().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
        bytes
    }
}

/// The frames in `bytes`, which must all be masked and in their shortest form.
fn frames(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let [first, second, rest @ ..] = bytes {
        assert_eq!(second & 0x80, 0x80, "what a client sends is masked");
        let (length, rest) = match second & 0x7f {
            126 => {
                let length = usize::from(u16::from_be_bytes(*rest.first_chunk().unwrap()));
                assert!(length >= 126);
                (length, &rest[2..])
            }
            127 => {
                let length = usize::try_from(u64::from_be_bytes(*rest.first_chunk().unwrap())).unwrap();
                assert!(length >= 65_536);
                (length, &rest[8..])
            }
            length => (usize::from(length), rest),
        };
        let (key, rest) = rest.split_at(4);
        let content = rest[..length].iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key);
        frames.push(Frame { first: *first, content: String::from_utf8(content.collect()).unwrap() });
        bytes = &rest[length..];
    }
    frames
}

/// A WebSocket over HTTP/1.1.
async fn opened(bench: &Bench) -> TokioIo<hyper::upgrade::Upgraded> {
    let headers = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-extensions", "permessage-deflate"),
    ];
    let asked = request(Method::GET, "/v1/frames", &headers);
    let response = bench.agent().open(Transport::TunnelHttp1, HOST, asked).await;
    assert_eq!(response.status(), 101);
    TokioIo::new(hyper::upgrade::on(response).await.unwrap())
}

/// A WebSocket on a connection of HTTP/2.
async fn opened_over_http2(bench: &Bench) -> TokioIo<hyper::upgrade::Upgraded> {
    let target = bench.target();
    let mut sender = http2_on(bench.agent().tunnel(&target, HOST, &["h2"]).await.unwrap()).await;
    // The proxy's settings, which allow it, have come once an answer has.
    let first = crate::support::get(&format!("https://{target}/v1/x"));
    assert_eq!(sender.send_request(first).await.unwrap().status(), 200);
    let mut asked = Request::connect(format!("https://{target}/v1/frames"))
        .version(Version::HTTP_2)
        .header("sec-websocket-version", "13")
        .body(Body::empty())
        .unwrap();
    asked.extensions_mut().insert(Protocol::from_static("websocket"));
    let opened = sender.send_request(asked).await.unwrap();
    assert_eq!(opened.status(), 200);
    TokioIo::new(hyper::upgrade::on(opened).await.unwrap())
}

/// Sends `sent` in pieces of `size`, and gives what upstream got until the end.
async fn passed(bench: &Bench, sent: &[Frame], size: usize) -> Vec<u8> {
    through(bench, opened(bench).await, sent, size).await
}

async fn through(
    bench: &Bench,
    mut socket: TokioIo<hyper::upgrade::Upgraded>,
    sent: &[Frame],
    size: usize,
) -> Vec<u8> {
    bench.upstream.memory.frames.lock().unwrap().clear();
    let sent: Vec<u8> = sent.iter().flat_map(Frame::bytes).collect();
    for piece in sent.chunks(size) {
        // It may be cut before all is sent.
        if socket.write_all(piece).await.is_err() || socket.flush().await.is_err() {
            break;
        }
    }
    let _ = socket.shutdown().await;
    let _ = socket.read_to_end(&mut Vec::new()).await;
    bench.upstream.memory.frames.lock().unwrap().clone()
}

#[tokio::test]
async fn the_placeholder_is_replaced_at_its_pointer_in_text_messages_whatever_their_fragments() {
    let bench = Bench::allowing(RULES).await;
    let long = "x".repeat(70_000);
    let before = format!("{{\"text\":\"@ {long}\",\"auth\":{{\"token\":\"@\",\"note\":\"@\"}}}}");
    let after = format!(
        "{{\"text\":\"{PLACEHOLDER} {long}\",\"auth\":{{\"token\":\"real-token\",\"note\":\"{PLACEHOLDER}\"}}}}"
    );
    let sent = [
        frame(FIN | TEXT, &before),
        frame(FIN | TEXT, "{\"keys\":[\"@\",\"@\"]}"),
        frame(TEXT, "{\"auth\":{\"token\":\"placeholder-0123"),
        frame(FIN | PING, "@"),
        frame(MORE, ""),
        frame(FIN | MORE, "456789\"}}"),
        frame(FIN | TEXT, "{\"auth\":{\"token\":\"@\"}}"),
    ];
    for size in [usize::MAX, 1000, 7] {
        let got = frames(&passed(&bench, &sent, size).await);
        assert_eq!(got[0], frame(FIN | TEXT, &after));
        assert_eq!(got[1], frame(FIN | TEXT, "{\"keys\":[\"@\",\"real-token\"]}"));
        assert_eq!(got[2], frame(TEXT, "{\"auth\":{\"token\":"));
        assert_eq!(got[3], frame(FIN | PING, "@"));
        assert_eq!(got[4], frame(MORE, ""));
        assert_eq!(got[5], frame(FIN | MORE, "\"real-token\"}}"));
        assert_eq!(got[6], frame(FIN | TEXT, "{\"auth\":{\"token\":\"real-token\"}}"));
        assert_eq!(got.len(), sent.len());
    }
    assert!(!bench.upstream.last().headers.contains_key("sec-websocket-extensions"));
}

#[tokio::test]
async fn the_word_anywhere_else_in_a_message_goes_out_byte_for_byte() {
    let bench = Bench::allowing(RULES).await;
    let sent = [
        frame(FIN | TEXT, "{\"auth\":{\"token\":\"x@\"},\"token\":\"@\"}"),
        frame(FIN | BINARY, "{\"auth\":{\"token\":\"@\"}}"),
        frame(FIN | TEXT, "hello @, {\"auth\":{\"token\":\"@\"}}"),
        frame(BINARY, "{\"auth\":"),
        frame(FIN | MORE, "{\"token\":\"@\"}}"),
        frame(FIN | TEXT, ""),
    ];
    let bytes: Vec<u8> = sent.iter().flat_map(Frame::bytes).collect();
    assert_eq!(passed(&bench, &sent, 11).await, bytes);
}

#[tokio::test]
async fn a_message_with_a_foreign_credential_does_not_go_out_beside_ours() {
    let token = format!("glpat{}q8Zr2LkT0vWcN5mYx1Jd", "-");
    let sent = [frame(FIN | TEXT, "hello"), frame(FIN | TEXT, &format!("{{\"say\": \"{token}\"}}"))];
    let all: Vec<u8> = sent.iter().flat_map(Frame::bytes).collect();
    let credential = "auth_scheme: bearer\ntoken_env: TOKEN";
    for (rules, passes) in [(credential, false), (&format!("{credential}\nown_credential_only: false"), true)]
    {
        let bench = Bench::allowing(rules).await;
        let got = passed(&bench, &sent, usize::MAX).await;
        assert_eq!(got == all, passes, "{rules}");
        assert!(passes || got.len() <= sent[0].bytes().len());
    }
}

#[tokio::test]
async fn a_secret_in_pieces_over_control_frames_does_not_go_out_whole() {
    let [first, second, last] = [&format!("glpat{}q8Zr", "-"), "2LkT0vWc", "N5mYx1Jd"];
    let code_and_text = format!("\u{10}\u{1}{last}");
    for last in [frame(FIN | PING, last), frame(FIN | CLOSE, &code_and_text), frame(FIN | CLOSE, last)] {
        let sent = [frame(FIN | PING, first), frame(FIN | PING, second), last];
        for (rules, passes) in [("dlp: {outbound_detectors: [token_patterns]}", false), ("deny: false", true)]
        {
            let bench = Bench::allowing(rules).await;
            let got = frames(&passed(&bench, &sent, usize::MAX).await);
            assert!(sent.starts_with(&got) && (got.len() == sent.len()) == passes, "{rules}: {got:?}");
        }
    }
}

#[tokio::test]
async fn whoever_is_cut_is_told_why() {
    let bench = Bench::allowing("auth_scheme: bearer\ntoken_env: TOKEN").await;
    let token = format!("glpat{}q8Zr2LkT0vWcN5mYx1Jd", "-");
    let foreign = frame(FIN | TEXT, &format!("{{\"say\": \"{token}\"}}")).bytes();
    let too_large = [&[FIN | BINARY, 0xff][..], &(5_u64 << 20).to_be_bytes(), &KEY].concat();
    for (sent, code, word) in [(foreign, 1008, "looks like a secret"), (too_large, 1009, "4 MiB")] {
        let mut socket = opened(&bench).await;
        socket.write_all(&sent).await.unwrap();
        socket.flush().await.unwrap();
        let mut got = Vec::new();
        socket.read_to_end(&mut got).await.unwrap();
        let (told, reason) = farewell(&got).unwrap();
        assert!(told == code && reason.contains(word), "{told} {reason}");
    }
}

#[tokio::test]
async fn who_is_cut_for_silence_is_told_so_over_either_protocol() {
    let routes = |upstream: &Upstream| upstream.routes("deny: false") + "defaults: {idle_timeout: 1s}\n";
    let bench = Bench::with(routes).await;
    let mut got = Vec::new();
    opened(&bench).await.read_to_end(&mut got).await.unwrap();
    assert_eq!(farewell(&got).unwrap().0, 1001);

    let mut got = Vec::new();
    opened_over_http2(&bench).await.read_to_end(&mut got).await.unwrap();
    assert_eq!(farewell(&got).unwrap().0, 1001);
}

#[tokio::test]
async fn without_a_credential_no_message_is_touched_and_extensions_stay() {
    let bench = Bench::allowing("path_allowlist: [/v1/]").await;
    let sent = [frame(FIN | TEXT, "{\"auth\":{\"token\":\"@\"}}")];
    assert_eq!(passed(&bench, &sent, usize::MAX).await, sent[0].bytes());
    assert_eq!(bench.upstream.last().headers["sec-websocket-extensions"], "permessage-deflate");
}

#[tokio::test]
async fn what_cannot_be_told_apart_into_messages_ends_the_websocket_before_it_leaves() {
    let word = "{\"auth\":{\"token\":\"@\"}}";
    for wrong in [
        vec![frame(FIN | 0x40 | TEXT, word)],
        vec![frame(FIN | MORE, word)],
        vec![frame(TEXT, "{"), frame(FIN | TEXT, word)],
        vec![frame(BINARY, "{"), frame(FIN | TEXT, word)],
    ] {
        let bench = Bench::allowing(RULES).await;
        let got = passed(&bench, &wrong, usize::MAX).await;
        assert!(!String::from_utf8_lossy(&got).contains("real-token"));
        let begun = &wrong[..wrong.len() - 1];
        let begun: Vec<u8> = begun.iter().flat_map(Frame::bytes).collect();
        assert!(begun.starts_with(&got), "{wrong:?}: {got:?}");
        let events = serde_json::to_string(&bench.events().await).unwrap();
        assert!(events.contains("content-uninspectable"), "{events}");
    }
}

#[tokio::test]
async fn the_placeholder_is_replaced_in_a_websocket_over_http2_too() {
    let bench = Bench::allowing(RULES).await;
    let socket = opened_over_http2(&bench).await;
    let got = through(&bench, socket, &[frame(FIN | TEXT, "{\"auth\":{\"token\":\"@\"}}")], 5).await;
    assert_eq!(frames(&got), [frame(FIN | TEXT, "{\"auth\":{\"token\":\"real-token\"}}")]);
}
