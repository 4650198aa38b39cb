//! From a refusal to a grant and back, through the whole bundle and the host's command.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tests::{Bundle, Finished, GitHost, HttpsEcho, Run};

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

/// Somebody who watches.
struct Watch(std::io::Lines<BufReader<UnixStream>>);

impl Watch {
    /// From when this returns, somebody is there.
    fn start(bundle: &Bundle) -> Watch {
        let mut stream = UnixStream::connect(bundle.root.path("run/sidecars/supervise.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(b"{\"op\":\"tail\"}\n").unwrap();
        let mut watch = Watch(BufReader::new(stream).lines());
        assert_eq!(watch.next(), [Value::Null; 0], "nothing waits yet");
        watch
    }

    fn next(&mut self) -> Vec<Value> {
        let line = self.0.next().expect("the daemon goes on").unwrap();
        let reply: Value = serde_json::from_str(&line).unwrap();
        reply["result"]["requests"].as_array().unwrap().clone()
    }

    /// The id of the request that waits, once there is one.
    fn pending(&mut self) -> String {
        loop {
            if let Some(one) = self.next().iter().find(|one| one["state"] == "pending") {
                return one["id"].as_str().unwrap().to_owned();
            }
        }
    }
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

    let mut watch = Watch::start(&bundle);
    let answer = std::thread::scope(|scope| {
        let sending = scope.spawn(send);
        let id = watch.pending();
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
        let id = watch.pending();
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
    let said = bundle.bottlecap(&["requests", "revoke", &id, "--reason", "tidy up"]).unwrap();
    assert!(said.starts_with("revoked") && said.contains("it was exhausted already"), "{said}");
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

/// A branch with a file of this text, pushed to `reference`.
fn push_of(bundle: &Bundle, text: &str, reference: &str) -> std::thread::JoinHandle<Finished> {
    let work = tempfile::tempdir().unwrap();
    let git = |words: &[&str]| bundle.git(work.path()).args(words);
    git(&["clone", "--quiet", &bundle.git_url("web"), "."]).ok().unwrap();
    std::fs::write(work.path().join("config.py"), text).unwrap();
    git(&["add", "."]).ok().unwrap();
    git(&["-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "--quiet", "-m", "settings"])
        .ok()
        .unwrap();
    let push = git(&["push", "--quiet", "origin", &format!("HEAD:{reference}")]);
    std::thread::spawn(move || {
        let finished = push.finish().unwrap();
        drop(work);
        finished
    })
}

#[test]
fn one_finding_goes_to_one_host_as_often_as_excepted_and_nothing_else_does() {
    let upstream = HttpsEcho::start(&[]).unwrap();
    let port = upstream.port();
    let routes = format!(
        "routes:\n  - host: localhost\n    ports: [{port}]\n    allow_private: [\"127.0.0.0/8:{port}\", \"[::1]:{port}\"]\n    \
         dlp: {{outbound_detectors: [token_patterns]}}\n"
    );
    let builder = Bundle::builder().unwrap().upstream_ca(upstream.ca());
    let bundle = builder.routes(&routes).unwrap().start().unwrap();
    let url = format!("https://localhost:{port}/upload");
    let send = |body: String| bundle.curl_with(["--data-binary", "@-", &url], body.into_bytes()).unwrap();
    let example = || format!("key = {}\n", token());
    let another = token().replace("q8Z", "w7Y");

    let refused = send(example());
    assert_eq!((refused.code, refused.denied()), (403, Some("secret-detected")));
    let told = refused.json().unwrap()["error"]["finding"].clone();
    let fingerprint = told["fingerprint"].as_str().unwrap_or_else(|| panic!("{told}")).to_owned();
    assert!(!told.to_string().contains(&token()[6..]), "{told}");
    let ask = json!({"capability": "dlp_exception", "fingerprint": fingerprint, "max_uses": 2, "reason": "an example"});
    let filed = bundle.tool("propose_capability", &ask).unwrap();
    let id = filed["id"].as_str().unwrap_or_else(|| panic!("{filed}")).to_owned();
    assert_eq!(
        (&filed["proposal"]["host"], &filed["proposal"]["place"]),
        (&json!("localhost"), &json!("body"))
    );
    assert_eq!(send(example()).code, 403, "nothing is excepted by asking");
    let shown = bundle.bottlecap(&["requests", "show", &id]).unwrap();
    assert!(shown.contains("this lets exactly what") && !shown.contains(&token()), "{shown}");
    bundle.approve(&id, &[]).unwrap();

    let before = upstream.requests();
    assert_eq!(send(example()).code, 200);
    // What it is not for, and what stands beside it.
    for other in [another.clone(), format!("{}{another}\n", example())] {
        assert_eq!(send(other).denied(), Some("secret-detected"));
    }
    assert_eq!(upstream.requests(), before + 1);
    assert_eq!(
        bundle.curl_with(["-H", &format!("x-note: {}", token()), &url], Vec::new()).unwrap().code,
        200
    );
    assert_eq!(send(example()).denied(), Some("secret-detected"), "it was for two requests");
    becomes(&bundle, &id, "exhausted");
    bundle.bottlecap(&["requests", "revoke", &id, "--reason", "over"]).unwrap();
    assert_eq!(std::fs::read_to_string(bundle.root.path("etc/egress/routes.yaml")).unwrap(), routes);
}

#[test]
fn one_finding_is_pushed_to_one_repository_as_often_as_excepted() {
    let host = GitHost::start().unwrap();
    let bundle = Bundle::builder().unwrap().repository("web", &host).unwrap().start().unwrap();
    let push = |text: &str, name: &str| push_of(&bundle, text, &format!("refs/heads/{name}")).join().unwrap();
    let example = format!("key = \"{}\"\n", token());
    let refused = push(&example, "one");
    let (_, after) = refused.stderr.split_once("\"fingerprint\":\"").unwrap_or_else(|| panic!("{refused:?}"));
    let fingerprint = &after[..32];
    assert!(!refused.stderr.contains(&token()), "{refused:?}");
    let ask = json!({"capability": "dlp_exception", "fingerprint": fingerprint, "reason": "an example"});
    let filed = bundle.tool("propose_capability", &ask).unwrap();
    let id = filed["id"].as_str().unwrap_or_else(|| panic!("{filed}")).to_owned();
    assert_eq!(filed["proposal"]["repo"], "web");
    assert!(filed["proposal"]["place"].as_str().unwrap().starts_with("config.py, line 1"), "{filed}");
    bundle.approve(&id, &[]).unwrap();

    let another = example.replace("q8Z", "w7Y");
    assert_ne!(push(&format!("{example}{another}"), "two").code, 0, "what stands beside it is not excepted");
    let passed = push(&example, "three");
    assert_eq!(passed.code, 0, "{passed:?}");
    assert!(host.resolve("refs/heads/three").unwrap().is_some());
    assert_ne!(push(&format!("# again\n{example}"), "four").code, 0, "it was for one push");
    assert_eq!(host.resolve("refs/heads/four").unwrap(), None);
    becomes(&bundle, &id, "exhausted");
}

#[test]
fn a_push_with_a_secret_waits_and_goes_on_when_a_person_lets_it() {
    let host = GitHost::start().unwrap();
    let bundle = Bundle::builder().unwrap().repository("web", &host).unwrap().start().unwrap();
    let repos = bundle.root.path("etc/git-gate/repos.yaml");
    let text = std::fs::read_to_string(&repos).unwrap();
    std::fs::write(&repos, text.replace("push: {", "push: {on_secret: supervise, ")).unwrap();
    bundle.control(&json!({"op": "reload"})).unwrap();

    let secret = format!("key = \"{}\"\n", token());
    let refused = push_of(&bundle, &secret, "refs/heads/early").join().unwrap();
    assert!(refused.code != 0 && refused.stderr.contains("operator_offline"), "{refused:?}");

    let mut watch = Watch::start(&bundle);
    let pushing = push_of(&bundle, &secret, "refs/heads/held");
    let id = watch.pending();
    let shown = bundle.bottlecap(&["requests", "show", &id]).unwrap();
    assert!(
        shown.contains("refs/heads/held") && shown.contains("config.py") && !shown.contains(&token()),
        "{shown}"
    );
    assert_eq!(host.resolve("refs/heads/held").unwrap(), None);
    bundle.approve(&id, &[]).unwrap();
    let pushed = pushing.join().unwrap();
    assert_eq!(pushed.code, 0, "{pushed:?}");
    assert!(host.resolve("refs/heads/held").unwrap().is_some());

    let pushing = push_of(&bundle, &format!("{secret}# more\n"), "refs/heads/other");
    let id = watch.pending();
    bundle.bottlecap(&["requests", "reject", &id, "--reason", "take it out"]).unwrap();
    let refused = pushing.join().unwrap();
    assert!(refused.code != 0 && refused.stderr.contains("take it out"), "{refused:?}");
    assert_eq!(host.resolve("refs/heads/other").unwrap(), None);
}

#[test]
fn routes_that_egress_does_not_take_are_rolled_back_and_both_sides_are_told() {
    let bundle = Bundle::builder().unwrap().start().unwrap();
    let file = bundle.root.path("etc/egress/routes.yaml");
    let base = std::fs::read_to_string(&file).unwrap();
    let ask = json!({"host": "docs.example.com", "reason": "r"});
    let id = bundle.tool("propose_route", &ask).unwrap()["id"].as_str().unwrap().to_owned();
    let token = bundle.token(&id, &[]).unwrap();
    let egress = nix::unistd::Pid::from_raw(bundle.pid("egress").unwrap());
    nix::sys::signal::kill(egress, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let refused = bundle.bottlecap(&["requests", "approve", &id, "--token", &token]).unwrap_err();
    let refused = format!("{refused:#}");
    nix::sys::signal::kill(egress, nix::sys::signal::Signal::SIGCONT).unwrap();
    assert!(refused.contains("did not take the routes"), "{refused}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), base);
    let told = bundle.tool("get_request", &json!({"id": id})).unwrap();
    assert_eq!(told["state"], "apply_failed");
    let shown = bundle.bottlecap(&["requests", "show", &id]).unwrap();
    assert!(shown.contains("apply_failed") && shown.contains("did not take"), "{shown}");
    assert_eq!(bundle.outcome(WANTED).unwrap(), "host-not-allowed");
    // The same yes, given again, counts.
    bundle.approve(&id, &[]).unwrap();
    assert_eq!(bundle.outcome(WANTED).unwrap(), "allow");
}

#[test]
fn a_grant_that_ends_while_routes_are_loaded_again_and_again_is_over_at_its_end() {
    let bundle = Bundle::builder().unwrap().start().unwrap();
    let now = || i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    let end = (now() / 1000 + 4) * 1000;
    let until = date(end / 1000);
    let table = |number: u64| {
        format!(
            "# {number}\nroutes:\n  - host: docs.example.com\n    expires_at: {until}\n    grant: 0707070707070707\n"
        )
    };
    let load = |number: u64| {
        bundle.root.write("etc/egress/routes.yaml", &table(number)).unwrap();
        let reply = bundle.control(&json!({"op": "reload", "name": "egress"})).unwrap();
        assert_eq!(reply["ok"], true, "{reply}");
    };
    load(0);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| (1..).take_while(|_| !over.load(Ordering::Relaxed)).for_each(load));
        let mut after_the_end = 0;
        while after_the_end < 20 {
            let before = now();
            let outcome = bundle.outcome(WANTED);
            let after = now();
            if outcome.is_err() {
                over.store(true, Ordering::Relaxed);
            }
            let outcome = outcome.unwrap();
            if after < end {
                assert_eq!(outcome, "allow");
            } else if before >= end {
                after_the_end += 1;
                if outcome != "grant-expired" {
                    over.store(true, Ordering::Relaxed);
                }
                assert_eq!(outcome, "grant-expired");
            }
        }
        over.store(true, Ordering::Relaxed);
    });
}

/// A second of Unix time as routes.yaml has it.
fn date(second: i64) -> String {
    let said =
        Run::bare("date").args(["-u", "-d", &format!("@{second}"), "+%Y-%m-%dT%H:%M:%SZ"]).ok().unwrap();
    said.trim().to_owned()
}
