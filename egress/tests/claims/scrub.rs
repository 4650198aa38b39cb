//! A secret that upstream sends back does not reach the bottle.

use bytes::Bytes;
use futures_util::stream;
use http::Method;
use http_body_util::BodyExt;
use hudsucker::Body;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::{Bench, HOST, Origin, Transport, farewell, get, in_form, read_head, request};

const SECRET: &str = "kV9/xQ+2mZ=7pL4&wR8\"tY1%uN6";
const FORMS: [&str; 11] =
    ["raw", "base64", "base64-1", "base64-2", "base64url", "twice", "percent", "hex", "HEX", "json", "html"];

async fn bench(rules: &str) -> Bench {
    let bench = Bench::allowing(&format!("auth_scheme: bearer\ntoken_file: LONG\n{rules}")).await;
    std::fs::write(bench.secrets.join("LONG"), SECRET).unwrap();
    bench
}

/// The part of a form that says what the secret is.
fn core(form: &str) -> String {
    let text = in_form(SECRET, form);
    text[text.len() / 4..text.len() / 2].to_owned()
}

fn masked(text: &str, form: &str) -> bool {
    text.contains("********") && !text.contains(&core(form)) && !text.contains(&SECRET[4..20])
}

#[tokio::test]
async fn a_reflected_secret_is_masked_in_every_form_and_place() {
    let bench = bench("").await;
    let agent = bench.agent();
    for transport in Transport::ALL {
        for form in FORMS {
            for place in
                ["body", "header", "cookie", "redirect", "error", "split", "gzip", "deflate", "br", "zstd"]
            {
                let answer =
                    agent.send(transport, get(&format!("/v1/mirror?place={place}&form={form}"))).await;
                let seen = format!("{:?} {}", answer.headers, answer.text());
                let whole = format!("you sent {}, did you not?", in_form(SECRET, form));
                assert!(masked(&seen, form), "{form} in {place}: {seen}");
                if !["header", "cookie", "redirect"].contains(&place) {
                    assert_eq!(answer.body.len(), whole.len(), "the mask of {form} is as long");
                    assert!(
                        answer.text().starts_with("you sent ") && answer.text().ends_with("did you not?")
                    );
                    assert!(!answer.headers.contains_key("content-encoding"));
                }
            }
        }
    }
    let journal = std::fs::read_to_string(&bench.journal).unwrap();
    assert!(FORMS.iter().all(|form| !journal.contains(&core(form))));
}

#[tokio::test]
async fn a_reflected_secret_is_masked_in_wide_text_and_takes_a_headers_name_with_it() {
    let bench = bench("").await;
    let agent = bench.agent();
    for transport in Transport::ALL {
        for place in ["body", "split", "gzip", "br"] {
            let answer = agent.send(transport, get(&format!("/v1/mirror?place={place}&form=utf-16"))).await;
            assert!(masked(answer.text(), "utf-16"), "{place}: {answer:?}");
        }
        let answer = agent.send(transport, get("/v1/mirror?place=header+name&form=raw")).await;
        assert!(answer.headers.keys().all(|name| !name.as_str().contains(&core("hex"))), "{answer:?}");
        assert_eq!(answer.headers["x-got"], "********");
    }
}

#[tokio::test]
async fn a_secret_that_is_hidden_in_a_header_or_a_trailer_takes_its_value_with_it() {
    let (bench, open) = (bench("").await, bench("dlp: {inbound_detectors: []}").await);
    for form in ["thrice", "hex of base64", "base64 of utf-16"] {
        for transport in Transport::ALL {
            let asked = || get(&format!("/v1/mirror?place=header&form={}", form.replace(' ', "+")));
            assert_eq!(bench.agent().send(transport, asked()).await.headers["x-got"], "", "{form}");
            let shown = open.agent().send(transport, asked()).await;
            assert!(shown.headers["x-got"].to_str().unwrap().contains(&core(form)), "{form}: {shown:?}");
        }
        let asked = get(&format!("/v1/mirror?place=trailer&form={}", form.replace(' ', "+")));
        let response = bench.agent().open(Transport::TunnelHttp2, HOST, asked).await;
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["x-got"], "", "{form}");
    }
}

#[tokio::test]
async fn the_length_of_what_was_compressed_beside_a_secret_is_not_told_by_a_head() {
    let scrubbed = Origin::with("auth_scheme: bearer\n    token_file: LONG").await;
    let open = Origin::with("deny: false").await;
    for origin in [scrubbed, open] {
        let scrubs = origin.bench.secrets.join("LONG");
        std::fs::write(scrubs, SECRET).unwrap();
        for (coding, told) in [("gzip", false), ("x-unknown", false), ("identity", true)] {
            let mut agent = origin.bench.agent().dial().await;
            origin.ask(&mut agent, "HEAD", "accept-encoding: gzip\r\n").await;
            let mut line = origin.accept().await;
            let asked = read_head(&mut line).await;
            let is_scrubbed = asked.contains("authorization: Bearer ");
            let wanted = if is_scrubbed { "identity" } else { "gzip" };
            assert!(asked.contains(&format!("accept-encoding: {wanted}\r\n")), "{asked}");
            let answer =
                format!("HTTP/1.1 200 OK\r\ncontent-encoding: {coding}\r\ncontent-length: 133\r\n\r\n");
            line.write_all(answer.as_bytes()).await.unwrap();
            let head = read_head(&mut agent).await;
            assert_eq!(head.contains("content-length: 133"), told || !is_scrubbed, "{coding}: {head}");
        }
    }
}

#[tokio::test]
async fn what_one_route_gave_to_a_host_does_not_come_back_by_another() {
    for (rules, comes) in [("", false), ("\ndlp: {inbound_detectors: [], outbound_detectors: []}", true)] {
        let bench = Bench::with(|upstream| {
            let giving = "auth_scheme: bearer\ntoken_file: LONG\npath_allowlist: [/v1/x]";
            let other = upstream.routes(&format!("path_allowlist: [/v1/echo]{rules}"));
            upstream.routes(giving) + other.trim_start_matches("routes:\n")
        })
        .await;
        std::fs::write(bench.secrets.join("LONG"), SECRET).unwrap();
        for transport in Transport::ALL {
            assert_eq!(bench.agent().send(transport, get("/v1/x")).await.text(), "hello");
            let mut asked = request(Method::POST, "/v1/echo", &[]);
            *asked.body_mut() = Body::from(format!("is it {SECRET}?"));
            let answer = bench.agent().send(transport, asked).await;
            assert_eq!(answer.text().contains(SECRET), comes, "{answer:?}");
        }
    }
}

#[tokio::test]
async fn a_secret_as_the_name_of_a_header_neither_leaves_nor_comes_back() {
    let bench = bench("dlp: {outbound_detectors: [known_secrets]}").await;
    let secret = "kV9xQ2mZ7pL4wR8tY1uN6Bq";
    std::fs::write(bench.secrets.join("LONG"), secret).unwrap();
    for transport in Transport::ALL {
        let answer = bench.agent().send(transport, get("/v1/mirror?place=header+name&form=plain")).await;
        let lower = secret.to_ascii_lowercase();
        assert!(answer.headers.keys().all(|name| !name.as_str().contains(&lower)), "{answer:?}");
        assert_eq!(answer.headers["x-got"], "********");
        let asked = request(Method::GET, "/v1/x", &[(secret, "1")]);
        assert_eq!(bench.agent().send(transport, asked).await.refusal(), "secret-detected");
    }
}

#[tokio::test]
async fn without_the_scrub_the_same_upstream_shows_the_secret() {
    let bench = bench("dlp: {inbound_detectors: []}").await;
    for form in FORMS {
        let answer =
            bench.agent().send(Transport::Plain, get(&format!("/v1/mirror?place=body&form={form}"))).await;
        assert!(answer.text().contains(&core(form)), "{form}");
    }
}

#[tokio::test]
async fn a_reflected_secret_is_masked_in_trailers() {
    let bench = bench("").await;
    let response =
        bench.agent().open(Transport::TunnelHttp2, HOST, get("/v1/mirror?place=trailer&form=raw")).await;
    let body = response.into_body().collect().await.unwrap();
    let got = body.trailers().unwrap()["x-got"].to_str().unwrap().to_owned();
    assert!(masked(&got, "raw"), "{got}");
}

#[tokio::test]
async fn no_header_of_upstreams_has_a_compressed_answer_taken_for_another() {
    let bench = bench("").await;
    let answer = |place: &'static str| {
        let asked = get(&format!("/v1/mirror?place={}&form=raw", place.replace(' ', "+")));
        let agent = bench.agent();
        // Over HTTP/1.1 to upstream: in HTTP/2 there is neither header.
        async move { agent.send(Transport::Plain, asked).await }
    };
    let nominated = answer("gzip nominated").await;
    assert!(masked(nominated.text(), "raw"), "{nominated:?}");
    let transferred = answer("gzip in transfer").await;
    assert_eq!((transferred.status.as_u16(), transferred.text().contains("transfer coding")), (502, true));
}

#[tokio::test]
async fn an_answer_ends_where_a_secret_comes_in_something_compressed() {
    let (bench, open) = (bench("").await, bench("dlp: {inbound_detectors: []}").await);
    let mut cut = 0;
    for transport in Transport::ALL {
        for file in ["gzip", "zstd", "deflate"] {
            for form in ["raw", "base64", "twice", "json"] {
                let asked = || get(&format!("/v1/mirror?place={file}+file&form={form}"));
                let stands = |body: Bytes| body.windows(8).any(|part| part == b"********");
                let body = bench.agent().open(transport, HOST, asked()).await.into_body().collect().await;
                cut += usize::from(body.is_err());
                // Zstandard lets a short text stand as it is, and there it is masked.
                assert!(body.is_err() || stands(body.unwrap().to_bytes()), "{form} in {file}");
                // The control: the same where nothing is scrubbed.
                let body = open.agent().open(transport, HOST, asked()).await.into_body();
                assert!(body.collect().await.is_ok(), "{form} in {file}");
            }
        }
        let mut clean = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut clean, "what nobody hides ".repeat(5000).as_bytes()).unwrap();
        let clean = Bytes::from(clean.finish().unwrap());
        let mut asked = request(Method::POST, "/v1/echo", &[]);
        *asked.body_mut() = Body::from(clean.clone());
        assert_eq!(bench.agent().send(transport, asked).await.body, clean);
    }
    // The record of each says so, and the others' say nothing.
    let events = bench.events().await;
    let (told, clean): (Vec<_>, Vec<_>) =
        events.iter().partition(|event| event["code"] == "secret-reflected");
    assert_eq!(told.len(), cut);
    for event in told {
        let is_told = event["block_id"].is_string() && event["sent"] == true && event["status"] == 200;
        assert!(is_told && event["decision"] == "deny", "{event}");
    }
    assert!(clean.iter().all(|event| event["code"].is_null() && event["decision"] == "allow"), "{clean:?}");
}

#[tokio::test]
async fn a_websocket_ends_where_a_secret_comes_in_something_compressed() {
    for (rules, comes) in [("", false), ("dlp: {inbound_detectors: []}", true)] {
        let bench = bench(rules).await;
        let headers = [("connection", "Upgrade"), ("upgrade", "websocket")];
        let asked = request(Method::GET, "/v1/mirror?place=packed+socket&form=raw", &headers);
        let response = bench.agent().open(Transport::TunnelHttp1, HOST, asked).await;
        let mut socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        let mut frames = Vec::new();
        let _ = socket.read_to_end(&mut frames).await;
        let ends = |frame: &[u8]| frame[0] & 0x80 != 0;
        let end = frames.chunks(3).position(ends).map_or(frames.len(), |at| 3 * at);
        let told = farewell(&frames[end..]);
        assert_eq!(told.is_none(), comes);
        assert!(comes || told.is_some_and(|(code, reason)| code == 1008 && reason.contains("secret")));
    }
}

#[tokio::test]
async fn a_reflected_secret_is_masked_in_the_fragments_of_a_websocket_message() {
    let bench = bench("").await;
    let headers = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-extensions", "permessage-deflate"),
    ];
    for (form, place) in FORMS.iter().flat_map(|form| [(*form, "socket"), (*form, "binary+socket")]) {
        let asked = request(Method::GET, &format!("/v1/mirror?place={place}&form={form}"), &headers);
        let response = bench.agent().open(Transport::TunnelHttp1, HOST, asked).await;
        let reason = response.extensions().get::<hyper::ext::ReasonPhrase>();
        assert!(reason.is_none(), "{form}: {reason:?}");
        let mut socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        let mut frames = Vec::new();
        socket.read_to_end(&mut frames).await.unwrap();
        let text: String = frames.chunks(3).map(|frame| char::from(frame[2])).collect();
        assert!(masked(&text, form), "{form}: {text}");
        assert!(text.starts_with("you sent ") && text.ends_with("did you not?"));
        assert!(!bench.upstream.last().headers.contains_key("sec-websocket-extensions"));
    }
}

#[tokio::test]
async fn a_websocket_ends_where_its_control_frames_together_hold_a_secret() {
    for (place, rules, comes) in [
        ("pings", "", false),
        ("pings+and+a+close", "", false),
        ("pings+and+a+code", "", false),
        ("pings", "dlp: {inbound_detectors: []}", true),
    ] {
        let bench = bench(rules).await;
        let headers = [("connection", "Upgrade"), ("upgrade", "websocket")];
        let asked = request(Method::GET, &format!("/v1/mirror?place={place}&form=raw"), &headers);
        let response = bench.agent().open(Transport::TunnelHttp1, HOST, asked).await;
        let mut socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        let mut frames = Vec::new();
        let _ = socket.read_to_end(&mut frames).await;
        let frames_of = frames.chunk_by(|_, next| ![0x88, 0x89].contains(next));
        let pings: Vec<_> = frames_of.filter(|frame| frame[0] == 0x89).map(|frame| &frame[2..]).collect();
        let shown = String::from_utf8(pings.concat()).unwrap();
        assert!(SECRET.starts_with(&shown), "{place}: {shown}");
        assert_eq!(shown == SECRET, comes, "{place}");
        let told = farewell(&frames).is_some_and(|(code, reason)| code == 1008 && reason.contains("secret"));
        assert_eq!(told, !comes, "{place}");
    }
}

#[tokio::test]
async fn upstream_is_asked_for_whole_answers_in_codings_that_can_be_undone() {
    let bench = bench("").await;
    let ranges = ["range", "if-range", "request-range", "x-ms-range", "x_ms_range"];
    let headers = ranges.map(|name| (name, "bytes=3-"));
    let headers = [&headers[..], &[("accept-encoding", "br;q=1, compress, *, gzip")]].concat();
    bench.agent().send(Transport::Plain, request(Method::GET, "/v1/x", &headers)).await;
    let seen = bench.upstream.last();
    assert_eq!(seen.headers["accept-encoding"], "br;q=1, gzip");
    assert!(!ranges.iter().any(|name| seen.headers.contains_key(*name)), "{:?}", seen.headers);
}

#[tokio::test]
async fn a_part_of_an_answer_is_not_passed_on() {
    for (rules, passes) in [("", false), ("dlp: {inbound_detectors: []}", true)] {
        let bench = bench(rules).await;
        for transport in Transport::ALL {
            let parts = ["/v1/status/206", "/v1/range/unasked-bytes", "/v1/range/unasked-parts"];
            for path in parts {
                let answer = bench.agent().send(transport, get(path)).await;
                assert_eq!(answer.status != 502, passes, "{rules} {path}");
            }
            let answer = bench.agent().send(transport, get("/v1/range/of-a-list")).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.text(), "llo");
        }
    }
}

#[tokio::test]
async fn messages_that_are_compressed_one_by_one_are_neither_asked_for_nor_passed_on() {
    let bench = bench("").await;
    for name in ["grpc-accept-encoding", "grpc_accept_encoding"] {
        let asked = request(Method::GET, "/v1/mirror?place=grpc&form=raw", &[(name, "gzip")]);
        let answer = bench.agent().send(Transport::TunnelHttp2, asked).await;
        assert!(masked(&String::from_utf8_lossy(&answer.body), "raw"));
        assert!(!bench.upstream.last().headers.contains_key(name));
    }
    let answer = bench.agent().send(Transport::TunnelHttp2, get("/v1/mirror?place=grpc&form=unasked")).await;
    assert_eq!(answer.headers["x-bottlecap-failed"], "upstream-failed");
}

#[tokio::test]
async fn who_guesses_how_a_secret_begins_by_what_is_held_back_is_refused_soon() {
    for (guess, guesses) in [(&SECRET[..8], true), ("aV9/xQ+2", false)] {
        let bench = bench("").await;
        let agent = bench.agent();
        let mut refused = 0;
        for _ in 0..6 {
            let (parts, body) = tokio::sync::mpsc::channel::<Result<Bytes, hudsucker::Error>>(1);
            let body = stream::unfold(body, async |mut body| Some((body.recv().await?, body)));
            let mut asked = request(Method::POST, "/v1/echo", &[]);
            *asked.body_mut() = Body::from_stream(Box::pin(body));
            parts.send(Ok(Bytes::from(format!("is it {guess}")))).await.unwrap();
            let response = agent.open(Transport::TunnelHttp1, HOST, asked).await;
            if response.status().is_client_error() {
                refused += 1;
                continue;
            }
            let mut body = response.into_body();
            let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(first == "is it ", guesses, "what shows: {first:?}");
            parts.send(Ok(Bytes::from_static(b"?"))).await.unwrap();
            drop(parts);
            body.collect().await.unwrap();
        }
        assert_eq!(refused, if guesses { 2 } else { 0 });
    }
}

#[tokio::test]
async fn who_guesses_again_and_again_in_one_answer_is_cut_off() {
    for (guess, guesses) in [(&SECRET[..8], true), ("aV9/xQ+2", false)] {
        let bench = bench("").await;
        let agent = bench.agent();
        let (parts, body) = tokio::sync::mpsc::channel::<Result<Bytes, hudsucker::Error>>(1);
        let body = stream::unfold(body, async |mut body| Some((body.recv().await?, body)));
        let mut asked = request(Method::POST, "/v1/echo", &[]);
        *asked.body_mut() = Body::from_stream(Box::pin(body));
        parts.send(Ok(Bytes::from(format!("is it {guess}")))).await.unwrap();
        let mut body = agent.open(Transport::TunnelHttp1, HOST, asked).await.into_body();
        let mut came = 0;
        while let Some(Ok(_)) = body.frame().await {
            came += 1;
            // What upstream does with it after the answer was cut off is its own business.
            if came == 20 || parts.send(Ok(Bytes::from(format!("? is it {guess}")))).await.is_err() {
                break;
            }
        }
        assert_eq!(came < 20, guesses, "{came}");
        let after = agent.send(Transport::TunnelHttp1, get("/v1/x")).await;
        assert_eq!(after.status.is_success(), !guesses);
    }
}

#[tokio::test]
async fn an_event_stream_is_not_held_back() {
    let bench = bench("").await;
    let response = bench.agent().open(Transport::TunnelHttp1, HOST, get("/v1/stream")).await;
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "data: one\n\n");
    bench.upstream.memory.go_on.notify_one();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: two\n\n");
}

#[tokio::test]
async fn a_secret_that_cannot_be_told_from_text_is_refused_where_the_scrub_is_asked_for() {
    for (rules, refused) in [("dlp: {inbound_detectors: [known_secrets]}", true), ("", false)] {
        let bench = bench(rules).await;
        std::fs::write(bench.secrets.join("LONG"), "short").unwrap();
        let answer = bench.agent().send(Transport::Plain, get("/v1/x")).await;
        if refused {
            assert_eq!(answer.refusal(), "credential-unavailable");
        } else {
            assert_eq!(answer.text(), "hello");
        }
    }
}

#[tokio::test]
async fn routes_that_ask_for_a_weak_secret_to_be_looked_for_are_refused_where_they_name_it() {
    let bench = bench("").await;
    let asking = bench
        .upstream
        .routes("auth_scheme: bearer\ntoken_file: LONG\ndlp: {inbound_detectors: [known_secrets]}\n");
    let before = bench.proxy.in_force().generation;
    for weak in ["short", "aaaaaaaaaaaaaaaaaaaaaaaa"] {
        std::fs::write(bench.secrets.join("LONG"), weak).unwrap();
        let refused = bench.proxy.reload(&asking).await.unwrap_err().to_string();
        assert!(refused.starts_with("routes.yaml:7:17: the secret `LONG` cannot be looked for"), "{refused}");
        assert!(!refused.contains(weak), "{refused}");
        assert_eq!(bench.proxy.in_force().generation, before);
    }
    std::fs::write(bench.secrets.join("LONG"), SECRET).unwrap();
    assert_eq!(bench.proxy.reload(&asking).await.unwrap().generation, before + 1);
}

#[tokio::test]
async fn a_host_whose_answers_hold_a_secret_too_often_is_closed_until_the_secret_is_another() {
    let bench = bench("").await;
    let agent = bench.agent();
    let text = bench.upstream.routes("auth_scheme: bearer\ntoken_file: LONG\n");
    let mut sender =
        super::support::http1_on(agent.tunnel(&bench.target(), HOST, &["http/1.1"]).await.unwrap()).await;
    let mut refused = 0;
    for _ in 0..1005 {
        let asked = request(Method::GET, "/v1/mirror?place=error&form=raw", &[("host", &bench.target())]);
        let response = sender.send_request(asked).await.unwrap();
        let code = response.headers().get("x-bottlecap-denied").map(|code| code.to_str().unwrap().to_owned());
        refused += usize::from(code.as_deref() == Some("secret-reflected"));
        response.into_body().collect().await.unwrap();
    }
    assert_eq!(refused, 5);
    // A reload for something else gives no more guesses, nor does a grant, nor a while without the route.
    let granted =
        text.replace("token_file: LONG", "token_file: LONG\n    matches: [{methods: [GET]}]\n    grant: g1");
    for routes in [&text, &granted, "routes: []", &text] {
        bench.proxy.reload(routes).await.unwrap();
        if routes != "routes: []" {
            assert_eq!(agent.send(Transport::TunnelHttp1, get("/v1/x")).await.refusal(), "secret-reflected");
        }
    }
    std::fs::write(bench.secrets.join("LONG"), SECRET.chars().rev().collect::<String>()).unwrap();
    bench.proxy.reload(&text).await.unwrap();
    assert_eq!(agent.send(Transport::TunnelHttp1, get("/v1/x")).await.text(), "hello");
}
