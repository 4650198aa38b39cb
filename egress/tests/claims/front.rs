use std::time::Duration;

use http::{Method, Request};
use hudsucker::Body;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::support::{Answer, Bench, HOST, PATIENCE, Upstream, http1_on, http2_on, read_head};

const EVERYTHING: &str = "deny: false";

/// Sends raw text and gives the head of the answer.
pub(crate) async fn exchange(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), text: &str) -> String {
    stream.write_all(text.as_bytes()).await.unwrap();
    read_head(stream).await
}

#[tokio::test]
async fn a_client_hello_cut_into_single_bytes_is_still_intercepted() {
    let bench = Bench::allowing(EVERYTHING).await;
    let agent = bench.agent();
    let (status, tunnel) = agent.connect(&bench.target()).await;
    assert_eq!(status, 200);
    let (near, far) = tokio::io::duplex(64 * 1024);
    tokio::spawn(async move {
        let (mut from_client, mut to_client) = tokio::io::split(far);
        let (mut from_proxy, mut to_proxy) = tunnel.into_split();
        let up = async {
            while let Ok(byte) = from_client.read_u8().await {
                if to_proxy.write_all(&[byte]).await.is_err() {
                    break;
                }
            }
        };
        let down = async { tokio::io::copy(&mut from_proxy, &mut to_client).await };
        tokio::join!(up, down)
    });
    let name = HOST.try_into().unwrap();
    let stream = agent.tls(&["http/1.1"]).connect(name, near).await.unwrap();
    let response = http1_on(stream)
        .await
        .send_request(Request::get("/v1/models").header("host", bench.target()).body(Body::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(bench.upstream.last().target, "/v1/models");
}

#[tokio::test]
async fn bytes_that_are_not_tls_never_leave() {
    let bench = Bench::allowing(EVERYTHING).await;
    for bytes in [
        &b"GET /v1/models HTTP/1.1\r\nhost: api.test\r\n\r\n"[..],
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        b"\x04\x01\x01\xbb\x00\x00\x00\x01\x00api.test\x00",
        b"\x05\x01\x00",
        b"\x00\x01\x02\x03\x04\x05\x06\x07",
        b"\x16\x03\x01\x00\x05hello",
    ] {
        let (status, mut tunnel) = bench.agent().connect(&bench.target()).await;
        assert_eq!(status, 200);
        tunnel.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        tunnel.read_to_end(&mut answer).await.unwrap();
        // At most a TLS alert comes back.
        assert!(answer.is_empty() || answer[0] == 21, "{answer:?}");
    }
    assert_eq!(bench.upstream.memory.connections.get(), 0);
    assert_eq!(bench.names.asked(), [""; 0]);
    assert!(bench.events().await.iter().all(|event| event["code"] == "tunnel-not-tls"));
}

#[tokio::test]
async fn a_server_name_that_is_not_the_tunnels_host_ends_the_tunnel() {
    let bench = Bench::allowing(EVERYTHING).await;
    for name in ["evil.test", "127.0.0.1"] {
        let error = bench.agent().tunnel(&bench.target(), name, &[]).await.unwrap_err();
        assert!(error.to_string().contains("UnrecognisedName"), "{name}: {error}");
    }
    assert_eq!(bench.upstream.memory.connections.get(), 0);
    assert!(bench.events().await.iter().all(|event| event["code"] == "sni-mismatch"));
}

#[tokio::test]
async fn a_tunnel_to_an_address_gets_a_certificate_for_the_address() {
    let bench = Bench::allowing(EVERYTHING).await;
    let target = format!("127.0.0.1:{}", bench.upstream.tls.port());
    let stream = bench.agent().tunnel(&target, "127.0.0.1", &["http/1.1"]).await.unwrap();
    let request = Request::get("/").header("host", &target).body(Body::empty()).unwrap();
    let answer = Answer::of(http1_on(stream).await.send_request(request).await.unwrap()).await;
    assert_eq!(answer.refusal(), "host-not-allowed");
}

#[tokio::test]
async fn every_request_of_a_connection_is_bound_to_the_tunnels_host() {
    let bench = Bench::allowing(EVERYTHING).await;
    let target = bench.target();
    let mut stream = bench.agent().tunnel(&target, HOST, &["http/1.1"]).await.unwrap();
    let first = exchange(&mut stream, &format!("GET /v1/a HTTP/1.1\r\nhost: {target}\r\n\r\n")).await;
    assert!(first.starts_with("HTTP/1.1 200"), "{first}");
    let mut hello = [0; 5];
    stream.read_exact(&mut hello).await.unwrap();
    let second = exchange(&mut stream, "GET /v1/b HTTP/1.1\r\nhost: evil.test\r\n\r\n").await;
    assert!(second.contains("x-bottlecap-denied: authority-mismatch"), "{second}");
    assert_eq!(bench.upstream.requests().len(), 1);
}

#[tokio::test]
async fn no_second_name_gets_past_the_first() {
    let bench = Bench::allowing(EVERYTHING).await;
    let target = bench.target();
    let port = bench.upstream.tls.port();
    for (head, code) in [
        (format!("GET / HTTP/1.1\r\nhost: {target}\r\nhost: {target}\r\n\r\n"), "authority-mismatch"),
        (format!("GET / HTTP/1.1\r\nhost: {target}\r\nhost: evil.test\r\n\r\n"), "authority-mismatch"),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), "authority-mismatch"),
        (format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n"), "authority-mismatch"),
        (format!("GET https://evil.test:{port}/ HTTP/1.1\r\nhost: {target}\r\n\r\n"), "authority-mismatch"),
        (format!("GET http://{target}/ HTTP/1.1\r\nhost: {target}\r\n\r\n"), "authority-mismatch"),
        (format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n"), "nested-connect"),
    ] {
        let mut stream = bench.agent().tunnel(&target, HOST, &["http/1.1"]).await.unwrap();
        let answer = exchange(&mut stream, &head).await;
        assert!(answer.contains(&format!("x-bottlecap-denied: {code}")), "{head}{answer}");
    }
    assert_eq!(bench.upstream.memory.connections.get(), 0);
}

#[tokio::test]
async fn http2_is_bound_to_the_tunnels_host_too() {
    let bench = Bench::allowing(EVERYTHING).await;
    let target = bench.target();
    let mut sender = http2_on(bench.agent().tunnel(&target, HOST, &["h2"]).await.unwrap()).await;
    for (authority, host, code) in [
        ("evil.test".to_owned(), None, "authority-mismatch"),
        (HOST.to_owned(), None, "authority-mismatch"),
        (target.clone(), Some("evil.test"), "authority-mismatch"),
    ] {
        let mut request = Request::get(format!("https://{authority}/")).body(Body::empty()).unwrap();
        if let Some(host) = host {
            request.headers_mut().insert("host", host.parse().unwrap());
        }
        let answer = Answer::of(sender.send_request(request).await.unwrap()).await;
        assert_eq!(answer.refusal(), code, "{authority} {host:?}");
    }
    assert_eq!(bench.upstream.memory.connections.get(), 0);
}

#[tokio::test]
async fn another_port_or_a_malformed_target_is_refused_at_connect() {
    let bench = Bench::allowing(EVERYTHING).await;
    for target in ["api.test:22", "api.test", "user@api.test:443", "0x7f.1:443", "api.test:99999", "[::1:443"]
    {
        let (status, _) = bench.agent().connect(target).await;
        assert!(matches!(status, 400 | 403), "{target}: {status}");
    }
    let mut stream = bench.agent().dial().await;
    let answer = exchange(&mut stream, "CONNECT api.test:22 HTTP/1.1\r\nhost: api.test:22\r\n\r\n").await;
    assert!(answer.contains("x-bottlecap-denied: "), "{answer}");
    let mut stream = bench.agent().dial().await;
    let target = bench.target();
    let head = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\ncontent-length: 4\r\n\r\n");
    let answer = exchange(&mut stream, &head).await;
    assert!(answer.contains("x-bottlecap-denied: malformed-target"), "{answer}");
    assert_eq!(bench.upstream.memory.connections.get(), 0);
    assert_eq!(bench.names.asked(), [""; 0]);
}

#[tokio::test]
async fn the_plain_side_takes_absolute_targets_only() {
    let bench = Bench::allowing(EVERYTHING).await;
    let plain = format!("{HOST}:{}", bench.upstream.plain.port());
    for (head, code) in [
        (format!("GET /v1/a HTTP/1.1\r\nhost: {plain}\r\n\r\n"), "malformed-target"),
        (format!("GET https://{plain}/ HTTP/1.1\r\nhost: {plain}\r\n\r\n"), "malformed-target"),
        (format!("GET http://user@{plain}/ HTTP/1.1\r\nhost: {plain}\r\n\r\n"), "malformed-target"),
        (format!("GET http://{plain}/ HTTP/1.1\r\nhost: evil.test\r\n\r\n"), "authority-mismatch"),
        (
            format!("GET http://{plain}/ HTTP/1.1\r\nhost: {plain}\r\nhost: {plain}\r\n\r\n"),
            "authority-mismatch",
        ),
    ] {
        let mut stream = bench.agent().dial().await;
        let answer = exchange(&mut stream, &head).await;
        assert!(answer.contains(&format!("x-bottlecap-denied: {code}")), "{head}{answer}");
    }
    assert_eq!(bench.upstream.memory.connections.get(), 0);
}

#[tokio::test]
async fn a_smuggled_request_is_not_seen_by_upstream() {
    let bench = Bench::allowing("matches: [{paths: [{type: prefix, value: /v1/}]}]").await;
    let plain = format!("{HOST}:{}", bench.upstream.plain.port());
    let inner = format!("GET /admin HTTP/1.1\r\nhost: {plain}\r\n\r\n");
    for (framing, body) in [
        ("content-length: 4\r\ntransfer-encoding: chunked".to_owned(), format!("0\r\n\r\n{inner}")),
        ("transfer-encoding: chunked\r\ncontent-length: 4".to_owned(), format!("0\r\n\r\n{inner}")),
        ("transfer-encoding: xchunked".to_owned(), format!("0\r\n\r\n{inner}")),
        ("transfer-encoding: chunked, identity".to_owned(), format!("0\r\n\r\n{inner}")),
        (format!("content-length: 0\r\ncontent-length: {}", inner.len()), inner.clone()),
        ("content-length: 0\r\n content-length: 99".to_owned(), inner.clone()),
        ("content-length: +0".to_owned(), inner.clone()),
    ] {
        let mut stream = bench.agent().dial().await;
        let head =
            format!("POST http://{plain}/v1/upload HTTP/1.1\r\nhost: {plain}\r\n{framing}\r\n\r\n{body}");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
    }
    let seen = bench.upstream.requests();
    assert!(seen.iter().all(|seen| seen.target == "/v1/upload"), "{seen:?}");
    assert!(seen.iter().all(|seen| {
        !(seen.headers.contains_key("content-length") && seen.headers.contains_key("transfer-encoding"))
    }));
}

#[tokio::test]
async fn a_request_in_a_transfer_coding_that_is_not_undone_goes_nowhere() {
    let bench = Bench::allowing("path_allowlist: [/v1/]").await;
    let plain = format!("{HOST}:{}", bench.upstream.plain.port());
    for coding in
        ["gzip, chunked", "gzip\r\ntransfer-encoding: chunked", "chunked, chunked", "identity, chunked"]
    {
        let ask = |target: &str, host: &str| {
            let head =
                format!("POST {target} HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: {coding}\r\n\r\n");
            format!("{head}5\r\ncoded\r\n0\r\n\r\n")
        };
        let to_plain = ask(&format!("http://{plain}/v1/upload"), &plain);
        let answer = exchange(&mut bench.agent().dial().await, &to_plain).await;
        assert!(answer.contains("x-bottlecap-denied: content-uninspectable"), "{coding}: {answer}");
        let mut tunnel = bench.agent().tunnel(&bench.target(), HOST, &["http/1.1"]).await.unwrap();
        let answer = exchange(&mut tunnel, &ask("/v1/upload", &bench.target())).await;
        assert!(answer.contains("x-bottlecap-denied: content-uninspectable"), "{coding}: {answer}");
    }
    assert_eq!(bench.upstream.memory.connections.get(), 0);
}

#[tokio::test]
async fn a_body_that_breaks_off_at_the_client_is_not_told_as_a_fault_of_upstream() {
    const RULES: [&str; 3] = [
        "deny: false",
        "auth_scheme: bearer\ntoken_env: TOKEN\nplaceholder_in: ['json:/a']",
        "dlp: {outbound_on_match: supervise}",
    ];
    let bad_chunk = ("transfer-encoding: chunked", "5\r\n{\"a\":\r\nzz\r\n");
    let short = ("content-length: 10", "{\"a\":");
    for rules in RULES {
        for (framing, body) in [bad_chunk, short] {
            let bench = Bench::allowing(rules).await;
            let plain = format!("{HOST}:{}", bench.upstream.plain.port());
            let head = |target: &str, host: &str| {
                let more = format!("content-type: application/json\r\n{framing}");
                format!("POST {target} HTTP/1.1\r\nhost: {host}\r\n{more}\r\n\r\n{body}")
            };
            let is_cut = framing == short.0;
            let mut direct = bench.agent().dial().await;
            let to_plain = head(&format!("http://{plain}/v1/upload"), &plain);
            let mut tunnel = bench.agent().tunnel(&bench.target(), HOST, &["http/1.1"]).await.unwrap();
            let answers = [
                answer_to_half(&mut direct, &to_plain, is_cut).await,
                answer_to_half(&mut tunnel, &head("/v1/upload", &bench.target()), is_cut).await,
            ];
            for answer in answers {
                let is_told = answer.starts_with("HTTP/1.1 400")
                    && answer.contains("x-bottlecap-failed: malformed-body");
                assert!(is_told, "{rules} {framing}: {answer}");
            }
            while bench.events().await.len() < 2 {}
            for event in bench.events().await {
                assert_eq!(event["code"], "malformed-body", "{rules} {framing}");
            }
        }
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_is_told_as_what_ended_it() {
    const RULES: [&str; 2] =
        ["deny: false", "auth_scheme: bearer\ntoken_env: TOKEN\nplaceholder_in: ['json:/a']"];
    for rules in RULES {
        let soon = jiff::Timestamp::now() + Duration::from_secs(1);
        let idle = |upstream: &Upstream| upstream.routes(rules) + "defaults: {idle_timeout: 1s}\n";
        let idle = (Bench::with(idle).await, "504", "upstream-timeout");
        let ended = format!("{rules}\nexpires_at: {soon}\ngrant: g1");
        let ended = (Bench::allowing(&ended).await, "403", "grant-expired");
        for (bench, status, code) in [idle, ended] {
            let more = "content-type: application/json\r\ncontent-length: 100";
            let half =
                format!("POST /v1/upload HTTP/1.1\r\nhost: {}\r\n{more}\r\n\r\n{{\"a\":", bench.target());
            let mut tunnel = bench.agent().tunnel(&bench.target(), HOST, &["http/1.1"]).await.unwrap();
            let answer = answer_to_half(&mut tunnel, &half, false).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(code),
                "{rules}: {answer}"
            );
        }
    }
}

/// The answer to `text`, which may be all that the client sends.
async fn answer_to_half(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    text: &str,
    is_cut: bool,
) -> String {
    stream.write_all(text.as_bytes()).await.unwrap();
    if is_cut {
        stream.shutdown().await.unwrap();
    }
    read_head(stream).await
}

#[tokio::test]
async fn a_head_that_cannot_be_read_is_recorded_by_the_host_of_its_tunnel_alone() {
    let bench = Bench::allowing(EVERYTHING).await;
    let many: String = (0..101).map(|number| format!("x-{number}: 1\r\n")).collect();
    let long = "x".repeat(64 * 1024);
    for (head, status) in [
        ("GET / HTTP/1.1\r\nno\u{1b}[2J colon\r\n\r\n".to_owned(), 400),
        ("G\u{1b}[2JT / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/7.0\r\n\r\n".to_owned(), 400),
        ("POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n".to_owned(), 400),
        (format!("GET / HTTP/1.1\r\n{many}\r\n"), 431),
        // Its end is not waited for.
        (format!("GET / HTTP/1.1\r\nx: {long}"), 431),
    ] {
        let before = bench.events().await.len();
        let direct: Box<dyn Both> = Box::new(bench.agent().dial().await);
        let tunnel = bench.agent().tunnel(&bench.target(), HOST, &["http/1.1"]).await.unwrap();
        let port = bench.upstream.tls.port();
        for (mut stream, known) in [(direct, ("http", "", 0)), (Box::new(tunnel), ("https", HOST, port))] {
            let answered = bench.events().await.len();
            let _ = stream.write_all(head.as_bytes()).await;
            let answer = read_head(&mut stream).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head}: {answer}");
            let recorded = async {
                while bench.events().await.len() == answered {}
                bench.events().await.pop().unwrap()
            };
            let event = timeout(PATIENCE, recorded).await.expect("it is recorded");
            let told = ["scheme", "host", "port", "method", "path", "status", "code", "decision"]
                .map(|key| event[key].clone());
            let (scheme, host, port) = known;
            let wanted: [serde_json::Value; 8] = [
                scheme.into(),
                host.into(),
                port.into(),
                "".into(),
                "".into(),
                status.into(),
                "malformed-request".into(),
                "deny".into(),
            ];
            assert_eq!(told, wanted);
        }
        assert_eq!(bench.events().await.len(), before + 2);
    }
    assert!(!std::fs::read_to_string(&bench.journal).unwrap().contains("2J"));
    assert_eq!(bench.upstream.memory.connections.get(), 0);
}

trait Both: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Both for S {}

#[tokio::test]
async fn many_heads_that_cannot_be_read_are_counted_and_those_that_break_off_are_none() {
    let bench = Bench::allowing(EVERYTHING).await;
    for _ in 0..30 {
        let mut stream = bench.agent().dial().await;
        let answer = exchange(&mut stream, "no\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        let mut stream = bench.agent().dial().await;
        stream.write_all(b"GET / HT").await.unwrap();
    }
    let total = |events: Vec<serde_json::Value>| {
        let records = events.iter().filter(|event| event["type"] == "request").count() as u64;
        let counted = events.iter().filter_map(|event| event["count"].as_u64()).sum::<u64>();
        (records, counted)
    };
    let counted = async { while total(bench.events().await) != (20, 10) {} };
    timeout(PATIENCE, counted).await.expect("they are counted");
}

#[tokio::test]
async fn a_pipelined_second_request_is_judged() {
    let bench = Bench::allowing("matches: [{paths: [{type: prefix, value: /v1/}]}]").await;
    let plain = format!("{HOST}:{}", bench.upstream.plain.port());
    let one = |path: &str| format!("GET http://{plain}{path} HTTP/1.1\r\nhost: {plain}\r\n\r\n");
    let mut stream = bench.agent().dial().await;
    let first = exchange(&mut stream, &format!("{}{}", one("/v1/a"), one("/admin"))).await;
    assert!(first.starts_with("HTTP/1.1 200"), "{first}");
    let mut hello = [0; 5];
    stream.read_exact(&mut hello).await.unwrap();
    let second = read_head(&mut stream).await;
    assert!(second.contains("x-bottlecap-denied: path-not-allowed"), "{second}");
}

#[tokio::test]
async fn the_proxy_answers_for_itself_and_tells_no_secrets() {
    let bench = Bench::allowing("auth_scheme: bearer\ntoken_env: TOKEN").await;
    for head in [
        "GET http://_egress.local/allowlist HTTP/1.1\r\nhost: _egress.local\r\n\r\n",
        "GET /allowlist HTTP/1.1\r\nhost: _egress.local\r\n\r\n",
        "GET /allowlist HTTP/1.1\r\nhost: _egress.local:9099\r\n\r\n",
    ] {
        let mut stream = bench.agent().dial().await;
        stream.write_all(head.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"host\":\"api.test\""), "{answer}");
        assert!(!answer.contains("real-token") && !answer.contains("TOKEN"), "{answer}");
    }
    let mut sender = http1_on(bench.agent().dial().await).await;
    let request = Request::get("http://_egress.local/ca.pem").header("host", "_egress.local");
    let answer = Answer::of(sender.send_request(request.body(Body::empty()).unwrap()).await.unwrap()).await;
    assert!(answer.text().starts_with("-----BEGIN CERTIFICATE-----"));
    assert!(!answer.text().contains("PRIVATE"));
}

#[tokio::test]
async fn a_passed_through_tunnel_ends_at_the_origin_and_another_name_does_not_pass() {
    let bench = Bench::with(|upstream| {
        format!(
            "routes:\n  - {{host: api.test, ports: [{}], tls: passthrough, allow_private: [127.0.0.0/8]}}\n",
            upstream.tls.port()
        )
    })
    .await;
    let agent = bench.agent();
    let error = agent.tunnel(&bench.target(), "other.test", &[]).await.unwrap_err();
    assert!(error.to_string().contains("UnrecognisedName"), "{error}");
    assert_eq!(bench.upstream.memory.connections.get(), 0);
    // The origin's own certificate is not of the bottle's authority.
    let error = agent.tunnel(&bench.target(), HOST, &[]).await.unwrap_err();
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    assert_eq!(bench.upstream.memory.connections.get(), 1);
    let plain = agent.dial().await;
    let request = Request::builder()
        .method(Method::GET)
        .uri(format!("http://{}/", bench.target()))
        .header("host", bench.target())
        .body(Body::empty());
    let answer = Answer::of(http1_on(plain).await.send_request(request.unwrap()).await.unwrap()).await;
    assert_eq!(answer.refusal(), "host-not-allowed");
}
