//! A request with a secret in it waits for the operator: it goes out, as exactly those bytes and once, when the routes release it.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use http::{Method, Request};
use hudsucker::Body;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use proposal::peer::{Answer, Held, Hold, Question, Verdict, Word, datagram, message};
use serde_json::json;

use crate::support::{Bench, Transport, get, request};

const ASKS: &str = "dlp: {outbound_detectors: [token_patterns], outbound_on_match: supervise}";

/// A secret, made at run time so that no scanner trips over this file.
fn token() -> String {
    format!("glpat{}q8Zr2LkT0vWcN5mYx1Jd", "-")
}

fn body() -> String {
    format!("{{\"note\": \"ours\", \"key\": \"{}\"}}", token())
}

fn post(headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let mut request = request(Method::POST, "/v1/upload?a=1", headers);
    *request.body_mut() = body.into();
    request
}

/// Supervise's end of the socket.
struct Supervise(tokio::net::UnixDatagram);

impl Supervise {
    fn of(bench: &Bench) -> Supervise {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        tokio::spawn(egress::peer::serve(theirs, Arc::clone(&bench.proxy)));
        Supervise(tokio::net::UnixDatagram::from_std(UnixDatagram::from(ours)).unwrap())
    }

    async fn hear<T: serde::de::DeserializeOwned>(&self) -> T {
        let mut buffer = vec![0; proposal::peer::DATAGRAM_MAX];
        let length = self.0.recv(&mut buffer).await.unwrap();
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        message(&buffer[..length]).unwrap_or_else(|| panic!("{text}"))
    }

    async fn held(&self) -> Hold {
        match self.hear().await {
            Word::Held { hold } => hold,
            word => panic!("{word:?}"),
        }
    }

    async fn ask(&self, question: &Question) -> Answer {
        self.0.send(&datagram(question).unwrap()).await.unwrap();
        self.hear().await
    }

    async fn decide(&self, hold: &Hold, verdict: Verdict, reason: &str) -> bool {
        let (id, digest, reason) = (hold.id.clone(), hold.digest.clone(), reason.to_owned());
        let answer = self.ask(&Question::Decide { seq: 9, id, digest, verdict, reason }).await;
        answer == Answer::Decided { seq: 9, waited: true }
    }
}

fn releasing(bench: &Bench, digest: &str, grant: &str) -> String {
    let routes = bench.upstream.routes(ASKS);
    format!(
        "{routes}\nreleases:\n  - {{digest: \"{digest}\", expires_at: 2999-01-01T00:00:00Z, grant: {grant}}}\n"
    )
}

#[tokio::test]
async fn a_held_request_goes_out_when_the_routes_release_it_once_and_byte_for_byte() {
    for transport in Transport::ALL {
        let bench = Bench::allowing(ASKS).await;
        let supervise = Supervise::of(&bench);
        let sending = tokio::spawn({
            let agent = bench.agent();
            async move { agent.send(transport, post(&[("x-a", "1")], body())).await }
        });
        let hold = supervise.held().await;
        assert_eq!(hold.check(), Ok(()));
        let Held::Request { host, method, path, body: length, .. } = &hold.what else { panic!("{hold:?}") };
        let told = (host.as_str(), method.as_str(), path.as_str(), *length);
        assert_eq!(told, (crate::support::HOST, "POST", "/v1/upload", body().len() as u64));
        assert_eq!(hold.findings[0].position, "body");
        assert!(hold.findings[0].excerpt.contains("\"key\": \"****"), "{hold:?}");
        assert!(!serde_json::to_string(&hold).unwrap().contains(&token()[8..]));

        // Supervise cannot let it pass, by no word of its own, nor can a release of something else.
        assert!(supervise.decide(&hold, Verdict::Approve, "").await);
        let other = releasing(&bench, &format!("sha256:{}", "0".repeat(64)), "g1");
        bench.proxy.reload(&other).await.unwrap();
        let waiting = supervise.ask(&Question::Holds { seq: 3 }).await;
        assert_eq!(waiting, Answer::Holds { seq: 3, ids: vec![hold.id.clone()] });
        assert_eq!(supervise.held().await, hold);
        assert_eq!(bench.upstream.requests().len(), 0, "{transport:?}");

        bench.proxy.reload(&releasing(&bench, &hold.digest, "g2")).await.unwrap();
        assert_eq!(sending.await.unwrap().text(), body().len().to_string(), "{transport:?}");
        assert_eq!(supervise.hear::<Word>().await, Word::Exhausted { grant: "g2".to_owned() });
        assert_eq!(supervise.hear::<Word>().await, Word::Dropped { id: hold.id.clone() });
        let events = bench.events().await;
        assert_eq!(events.last().unwrap()["grant"], "g2", "{events:?}");

        // It was for once.
        let again = tokio::spawn({
            let agent = bench.agent();
            async move { agent.send(transport, post(&[("x-a", "1")], body())).await }
        });
        let second = supervise.held().await;
        assert_eq!(second.digest, hold.digest);
        assert!(supervise.decide(&second, Verdict::Reject, "not twice").await);
        let refused = again.await.unwrap();
        assert_eq!(refused.refusal(), "secret-detected");
        assert!(refused.text().contains("not twice"), "{}", refused.text());
        assert_eq!(bench.upstream.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_release_is_of_every_byte_that_goes_out() {
    let bench = Bench::allowing(ASKS).await;
    let supervise = Supervise::of(&bench);
    let agent = bench.agent();
    let first = tokio::spawn({
        let agent = agent.clone();
        async move { agent.send(Transport::Plain, post(&[], body())).await }
    });
    let hold = supervise.held().await;
    // Whoever waited goes away, and comes again.
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert_eq!(supervise.hear::<Word>().await, Word::Dropped { id: hold.id.clone() });
    assert!(!supervise.decide(&hold, Verdict::Reject, "").await, "nobody waits");
    bench.proxy.reload(&releasing(&bench, &hold.digest, "g1")).await.unwrap();
    for other in [
        post(&[("x-more", "1")], body()),
        post(&[], format!("{} ", body())),
        request(Method::POST, &format!("/v1/upload?a=1&key={}", token()), &[]),
        get(&format!("/v1/{}", token())),
    ] {
        let sending = tokio::spawn({
            let agent = agent.clone();
            async move { agent.send(Transport::Plain, other).await }
        });
        let held = supervise.held().await;
        assert_ne!(held.digest, hold.digest);
        assert!(!serde_json::to_string(&held).unwrap().contains(&token()[8..]), "{held:?}");
        assert!(supervise.decide(&held, Verdict::Reject, "").await);
        assert_eq!(sending.await.unwrap().refusal(), "secret-detected");
        assert_eq!(supervise.hear::<Word>().await, Word::Dropped { id: held.id });
    }
    assert_eq!(bench.upstream.requests().len(), 0);
    assert_eq!(agent.send(Transport::Plain, post(&[], body())).await.status, 200, "without waiting");
    assert_eq!(bench.upstream.requests().len(), 1);
}

#[tokio::test]
async fn a_release_is_of_what_stands_where_the_secret_may_be_put_too() {
    let bench = Bench::allowing(&format!("{ASKS}\nauth_scheme: bearer\ntoken_file: OURS")).await;
    std::fs::write(bench.secrets.join("OURS"), "kV9xQ2mZ7pL4wR8tY1uN6").unwrap();
    let supervise = Supervise::of(&bench);
    let with = |headers: &[(&str, &str)], path: &str| {
        let mut asked = request(Method::POST, path, headers);
        *asked.body_mut() = body().into();
        asked
    };
    let plain = "/v1/upload?a=1";
    let mut digests = Vec::new();
    for (asked, is_other) in [
        (with(&[], plain), true),
        (with(&[("x-api-key", "a-word")], plain), true),
        (with(&[("x-api-key", "other-word")], plain), true),
        (with(&[("authorization", "Bearer a-word")], plain), true),
        (with(&[], "/v1/upload?a=1&key=a-word"), true),
        (with(&[], plain), false),
    ] {
        let agent = bench.agent();
        let sending = tokio::spawn(async move { agent.send(Transport::Plain, asked).await });
        let hold = supervise.held().await;
        assert_eq!(!digests.contains(&hold.digest), is_other, "{hold:?}");
        assert!(supervise.decide(&hold, Verdict::Reject, "").await);
        assert_eq!(sending.await.unwrap().refusal(), "secret-detected");
        assert_eq!(supervise.hear::<Word>().await, Word::Dropped { id: hold.id });
        digests.push(hold.digest);
    }
}

#[tokio::test]
async fn what_has_no_secret_in_it_or_cannot_be_held_does_not_wait() {
    let bench = Bench::allowing(ASKS).await;
    let supervise = Supervise::of(&bench);
    let agent = bench.agent();
    assert_eq!(agent.send(Transport::TunnelHttp2, get("/v1/models")).await.status, 200);
    let long = "long text, ".repeat(200_000);
    let answer = agent.send(Transport::TunnelHttp1, post(&[], long.clone())).await;
    assert_eq!(answer.text(), long.len().to_string());
    let with_secret = agent.send(Transport::TunnelHttp1, post(&[], format!("{long}{}", body()))).await;
    assert_eq!(with_secret.refusal(), "secret-detected");
    let in_head = agent.send(Transport::TunnelHttp1, post(&[("x-key", &token())], long.clone())).await;
    assert_eq!(in_head.refusal(), "secret-detected");
    let rpc = [("content-type", "application/grpc"), ("x-key", &*token())];
    let refused = agent.send(Transport::TunnelHttp2, post(&rpc, "")).await;
    assert_eq!(refused.headers["x-bottlecap-denied"], "secret-detected");
    let asked = supervise.ask(&Question::Holds { seq: 3 }).await;
    assert_eq!(asked, Answer::Holds { seq: 3, ids: Vec::new() });
}

#[tokio::test]
async fn only_so_many_wait_and_what_waits_ends_with_its_route() {
    let bench = Bench::allowing(ASKS).await;
    let supervise = Supervise::of(&bench);
    let mut waiting = tokio::task::JoinSet::new();
    for number in 0..8 {
        let agent = bench.agent();
        let body = format!("{number} {}", body());
        waiting.spawn(async move { agent.send(Transport::Plain, post(&[], body)).await });
        supervise.held().await;
    }
    let ninth = bench.agent().send(Transport::Plain, post(&[], body())).await;
    assert_eq!(ninth.refusal(), "secret-detected");
    assert!(ninth.text().contains("too many wait"), "{}", ninth.text());
    bench.proxy.reload("routes: []").await.unwrap();
    for answer in waiting.join_all().await {
        assert_eq!(answer.refusal(), "host-not-allowed");
    }
    assert_eq!(bench.upstream.requests().len(), 0);
}

#[tokio::test]
async fn what_has_left_or_is_nothing_takes_no_turn_of_what_is_searched_as_a_whole() {
    const MORE_THAN_TURNS: usize = 40;
    let bench = Bench::allowing(ASKS).await;
    let mut waiting = tokio::task::JoinSet::new();
    for (method, body) in [(Method::GET, ""), (Method::POST, "a few words")] {
        for _ in 0..MORE_THAN_TURNS {
            let (agent, mut asked) = (bench.agent(), request(method.clone(), "/v1/gate/kept", &[]));
            *asked.body_mut() = Body::from(body);
            waiting.spawn(async move { agent.send(Transport::TunnelHttp2, asked).await.status.as_u16() });
        }
        while bench.upstream.requests().len() < MORE_THAN_TURNS && waiting.try_join_next().is_none() {
            tokio::task::yield_now().await;
        }
        bench.upstream.memory.requests.lock().unwrap().clear();
    }
    bench.upstream.memory.gate.0.close();
    let statuses = waiting.join_all().await;
    assert_eq!(statuses, [200; 2 * MORE_THAN_TURNS]);
}

#[tokio::test]
async fn a_request_over_its_routes_limit_spends_no_release() {
    let rules = format!("{ASKS}\nlimits: {{requests_per_minute: 1}}");
    let bench = Bench::allowing(&rules).await;
    let supervise = Supervise::of(&bench);
    let agent = bench.agent();
    let first = tokio::spawn({
        let agent = agent.clone();
        async move { agent.send(Transport::Plain, post(&[], body())).await }
    });
    let hold = supervise.held().await;
    first.abort();
    assert_eq!(supervise.hear::<Word>().await, Word::Dropped { id: hold.id.clone() });
    assert_eq!(agent.send(Transport::Plain, get("/v1/models")).await.status, 200);
    let released = releasing(&bench, &hold.digest, "g1");
    let limited = released.replace(&bench.upstream.routes(ASKS), &bench.upstream.routes(&rules));
    bench.proxy.reload(&limited).await.unwrap();
    assert_eq!(agent.send(Transport::Plain, post(&[], body())).await.status, 429);
    bench.proxy.reload(&released).await.unwrap();
    assert_eq!(agent.send(Transport::Plain, post(&[], body())).await.status, 200, "without waiting");
}

#[tokio::test]
async fn of_two_equal_requests_one_takes_the_release_and_the_other_nothing_of_the_route() {
    let rules = format!("{ASKS}\nmax_uses: 2\ngrant: g1\nlimits: {{concurrency: 2}}");
    let bench = Bench::allowing(&rules).await;
    let supervise = Supervise::of(&bench);
    let mut both = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let agent = bench.agent();
        both.spawn(async move { agent.send(Transport::Plain, post(&[], body())).await });
    }
    let hold = supervise.held().await;
    assert_eq!(supervise.held().await.digest, hold.digest);
    let released = releasing(&bench, &hold.digest, "g2");
    let counted = released.replace(&bench.upstream.routes(ASKS), &bench.upstream.routes(&rules));
    bench.proxy.reload(&counted).await.unwrap();
    assert_eq!(both.join_next().await.unwrap().unwrap().status, 200);
    // The other waits on, and the route's second use is there for whoever may go out.
    assert_eq!(bench.agent().send(Transport::Plain, get("/v1/models")).await.status, 200);
    assert_eq!((both.len(), bench.upstream.requests().len()), (1, 2));
}

#[tokio::test]
async fn a_grant_that_is_used_up_is_told() {
    let bench = Bench::allowing("max_uses: 1\ngrant: g1").await;
    let supervise = Supervise::of(&bench);
    assert_eq!(bench.agent().send(Transport::Plain, get("/v1/models")).await.status, 200);
    assert_eq!(supervise.hear::<Word>().await, Word::Exhausted { grant: "g1".to_owned() });
}

#[tokio::test]
async fn a_raised_limit_holds_for_its_host_and_ends() {
    const OWN: &str = "limits: {request_body: 1KiB}";
    let bench = Bench::allowing(OWN).await;
    let routes = bench.upstream.routes(OWN);
    let raised = |host: &str, until: &str| {
        let entry =
            json!({"host": host, "limit": "request_body", "value": 4096, "expires_at": until, "grant": "g"});
        format!("{routes}\nraised:\n  - {entry}\n")
    };
    let fits = async |bytes: usize| {
        let answer = bench.agent().send(Transport::Plain, post(&[], vec![b'a'; bytes])).await;
        answer.status == 200
    };
    assert!(fits(1000).await && !fits(3000).await);
    let (host, never) = (crate::support::HOST, "2999-01-01T00:00:00Z");
    for without in [raised("other.test", never), raised(host, "2020-01-01T00:00:00Z")] {
        bench.proxy.reload(&without).await.unwrap();
        assert!(!fits(3000).await);
    }
    bench.proxy.reload(&raised(host, never)).await.unwrap();
    assert!(fits(3000).await && !fits(5000).await);
    bench.proxy.reload(&routes).await.unwrap();
    assert!(!fits(3000).await);
}
