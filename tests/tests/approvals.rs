//! From a refusal to a grant and back, through the whole bundle and the host's command.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::{Bundle, GitHost, HttpsEcho};

const WANTED: &str = "https://docs.example.com/guide/start";

#[test]
fn what_was_refused_is_asked_for_granted_and_taken_back() {
    let bundle = Bundle::builder().unwrap().start().unwrap();
    let refused = bundle.curl([WANTED]).unwrap();
    let block_id = refused.json().unwrap()["error"]["block_id"].as_str().unwrap().to_owned();

    let explained = bundle.tool("explain_block", &json!({"block_id": block_id})).unwrap();
    assert_eq!(
        (&explained["host"], &explained["path"]),
        (&json!("docs.example.com"), &json!("/guide/start"))
    );
    let filed = bundle.tool("propose_route", &json!({"block_id": block_id, "reason": "the guide"})).unwrap();
    let id = filed["id"].as_str().unwrap_or_else(|| panic!("{filed}")).to_owned();
    assert_eq!(filed["proposal"]["paths"], json!([{"type": "exact", "value": "/guide/start"}]));
    assert_eq!(bundle.outcome(WANTED).unwrap(), "host-not-allowed", "nothing is allowed by asking");

    bundle.approve(&id, &[]).unwrap();
    assert_eq!(bundle.outcome(WANTED).unwrap(), "allow");
    assert_eq!(bundle.outcome("https://docs.example.com/other").unwrap(), "path-not-allowed");
    assert_eq!(bundle.tool("wait_decision", &json!({"id": id})).unwrap()["state"], "active");

    bundle.bottlecap(&["requests", "revoke", &id, "--reason", "enough"]).unwrap();
    assert_eq!(bundle.outcome(WANTED).unwrap(), "host-not-allowed");
    assert_eq!(bundle.tool("get_request", &json!({"id": id})).unwrap()["state"], "revoked");
}

#[test]
fn the_journals_of_a_bundle_hold_and_a_cut_end_shows() {
    let bundle = Bundle::builder().unwrap().start().unwrap();
    for number in 0..30 {
        bundle.curl([format!("https://docs.example.com/{number}")]).unwrap();
    }
    let audit = bundle.root.path("var/lib/sidecars/audit");
    let audit = audit.to_str().unwrap();
    let said = bundle.bottlecap(&["audit", "verify", "--dir", audit]).unwrap();
    assert!(
        said.contains("egress") && said.contains("supervise") && said.contains("the chain holds"),
        "{said}"
    );
    let exported = bundle.bottlecap(&["audit", "export", "--dir", audit]).unwrap();
    let anchors = exported.lines().filter(|line| line.contains("\"desk\":\"anchor\"")).count();
    assert!(anchors >= 1, "supervise recorded where egress' journal ended: {exported}");
}

/// The id of the request that waits, once there is one.
fn waiting(bundle: &Bundle) -> String {
    let socket = bundle.root.path("run/sidecars/supervise.sock");
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(b"{\"op\":\"tail\"}\n").unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(stream));
    for line in lines {
        let reply: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let requests = reply["result"]["requests"].as_array().unwrap();
        if let Some(one) = requests.iter().find(|one| one["state"] == "pending") {
            return one["id"].as_str().unwrap().to_owned();
        }
    }
    panic!("nothing waits");
}

/// Asks until the request is in that state: what brings it there is told beside the answers.
fn becomes(bundle: &Bundle, id: &str, state: &str) {
    let end = Instant::now() + tests::PATIENCE;
    while bundle.tool("get_request", &json!({"id": id})).unwrap()["state"] != state {
        assert!(Instant::now() < end, "{id} is never {state}");
    }
}

/// A secret, made at run time so that no scanner trips over this file.
fn token() -> String {
    format!("glpat{}q8Zr2LkT0vWcN5mYx1Jd", "-")
}

#[test]
fn a_request_with_a_secret_waits_and_goes_out_once_when_a_person_lets_it() {
    let upstream = HttpsEcho::start(&[]).unwrap();
    let port = upstream.port();
    let routes = format!(
        "routes:\n  - host: localhost\n    ports: [{port}]\n    allow_private: [\"127.0.0.0/8:{port}\", \"[::1]:{port}\"]\n    \
         dlp: {{outbound_detectors: [token_patterns], outbound_on_match: supervise}}\n"
    );
    let builder = Bundle::builder().unwrap().upstream_ca(upstream.ca());
    let bundle = builder.routes(&routes).unwrap().start().unwrap();
    let url = format!("https://localhost:{port}/upload");
    let body = format!("key={}", token());
    let send = || bundle.curl_with(["--data-binary", "@-", &url], body.clone().into_bytes()).unwrap();

    let answer = std::thread::scope(|scope| {
        let sending = scope.spawn(send);
        let id = waiting(&bundle);
        let shown = bundle.bottlecap(&["requests", "show", &id]).unwrap();
        assert!(shown.contains("this lets pass exactly what is held") && !shown.contains(&body), "{shown}");
        assert_eq!(upstream.requests(), 0);
        bundle.approve(&id, &[]).unwrap();
        let answer = sending.join().unwrap();
        assert!(bundle.tool("get_request", &json!({"id": id})).unwrap()["held_until"].is_string());
        answer
    });
    assert_eq!(
        (answer.code, answer.json().unwrap()["body"]["length"].as_u64()),
        (200, Some(body.len() as u64))
    );

    // It was for once: the next one waits, and is refused.
    let refused = std::thread::scope(|scope| {
        let sending = scope.spawn(send);
        let id = waiting(&bundle);
        bundle.bottlecap(&["requests", "reject", &id, "--reason", "use the vault"]).unwrap();
        sending.join().unwrap()
    });
    assert_eq!((refused.code, refused.denied()), (403, Some("secret-detected")));
    assert!(String::from_utf8_lossy(&refused.body).contains("use the vault"));
    assert_eq!(upstream.requests(), 1);
}

#[test]
fn a_grant_that_is_used_up_is_told_to_the_agent() {
    let bundle = Bundle::builder().unwrap().start().unwrap();
    let ask = json!({"host": "docs.example.com", "max_uses": 1, "reason": "r"});
    let id = bundle.tool("propose_route", &ask).unwrap()["id"].as_str().unwrap().to_owned();
    bundle.approve(&id, &[]).unwrap();
    bundle.curl([WANTED]).unwrap();
    assert_eq!(bundle.curl([WANTED]).unwrap().denied(), Some("grant-used-up"));
    becomes(&bundle, &id, "exhausted");
}

#[test]
fn a_limit_is_raised_by_an_approval_and_lowered_when_it_is_taken_back() {
    let routes = "routes:\n  - host: docs.example.com\n    limits: {request_body: 1KiB}\n";
    let bundle = Bundle::builder().unwrap().routes(routes).unwrap().start().unwrap();
    let ask = json!({
        "capability": "egress_limit", "host": "docs.example.com", "limit": "request_body", "value": 4096, "reason": "r",
    });
    let id = bundle.tool("propose_capability", &ask).unwrap()["id"].as_str().unwrap().to_owned();
    let limited = || {
        let answer = bundle.curl_with(["--data-binary", "@-", WANTED], vec![b'a'; 3000]).unwrap();
        answer.denied() == Some("body-too-large")
    };
    assert!(limited());
    bundle.approve(&id, &[]).unwrap();
    assert!(!limited());
    bundle.bottlecap(&["requests", "revoke", &id, "--reason", "enough"]).unwrap();
    assert!(limited());
    let written = std::fs::read_to_string(bundle.root.path("etc/egress/routes.yaml")).unwrap();
    assert_eq!(written, routes);
}

#[test]
fn a_ref_may_be_pushed_as_often_as_granted() {
    let host = GitHost::start().unwrap();
    let bundle = Bundle::builder().unwrap().repository("web", &host).unwrap().start().unwrap();
    let work = tempfile::tempdir().unwrap();
    let git = |words: &[&str]| bundle.git(work.path()).args(words);
    git(&["clone", "--quiet", &bundle.git_url("web"), "."]).ok().unwrap();
    git(&["tag", "v1"]).ok().unwrap();
    git(&["tag", "v2"]).ok().unwrap();
    let push = |tag: &str| git(&["push", "--quiet", "origin", tag]).ok();
    assert!(push("v1").is_err(), "tags may not be pushed");

    let ask = json!({"capability": "git_ref", "repo": "web", "ref": "refs/tags/*", "access": "push", "reason": "r"});
    let filed = bundle.tool("propose_capability", &ask).unwrap();
    let id = filed["id"].as_str().unwrap_or_else(|| panic!("{filed}")).to_owned();
    bundle.approve(&id, &["--max-uses", "1"]).unwrap();
    assert_eq!(bundle.tool("get_request", &json!({"id": id})).unwrap()["state"], "active");
    push("v1").unwrap();
    assert!(host.resolve("refs/tags/v1").unwrap().is_some());
    assert!(push("v2").is_err(), "it was for one push");
    assert_eq!(host.resolve("refs/tags/v2").unwrap(), None);

    becomes(&bundle, &id, "exhausted");
}
