//! What granting anything but a route adds to the host's files: exactly one line, in words first, and it can be taken out again.
#![allow(clippy::unwrap_used)]

use std::num::NonZeroU32;

use jiff::{SignedDuration, Timestamp};
use proposal::{Addition, AdditionError, Ask, Id, Table, addition, ended, grants, removed};
use serde_json::{Value, json};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH";
const ROUTES: &str = "routes:\n  - host: api.example.com   # ours\n    limits: {requests_per_minute: 60}\n";

fn repos() -> String {
    format!(
        "repos:\n  - name: web   # ours\n    upstream: git@git.example.com:acme/web.git\n    identity: /keys/web\n    host_key: \"{KEY}\"\n    extra_hosts: {{git.example.com: 192.0.2.7}}\n"
    )
}

fn id() -> Id {
    Id::from_random([7; 8])
}

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1000)
}

fn ask(value: &Value) -> Ask {
    Ask::parse(value).unwrap()
}

fn add(base: &str, ask: &Ask, uses: Option<u32>) -> Result<Addition, AdditionError> {
    addition(base, &id(), ask, (600, uses.and_then(NonZeroU32::new)), "1 sha256:00", now())
}

/// What was added, and that it can be taken out so that nothing is left.
fn added(base: &str, ask: &Ask, uses: Option<u32>) -> (String, String) {
    let addition = add(base, ask, uses).unwrap();
    let line: Vec<&str> =
        addition.text.lines().filter(|line| !base.lines().any(|old| old == *line)).collect();
    assert_eq!(removed(&addition.text, addition.table, &id()).unwrap().as_deref(), Some(base));
    assert_eq!(grants(&addition.text, addition.table), [(id(), Some(addition.expires_at))]);
    assert_eq!(ended(&addition.text, addition.table, now()), []);
    assert_eq!(ended(&addition.text, addition.table, addition.expires_at), [id()]);
    (addition.words.clone(), line.join("\n"))
}

fn held(what: &Value) -> Ask {
    ask(&json!({"held": {
        "id": "0a".repeat(16), "digest": format!("sha256:{}", "0".repeat(64)), "at": now(), "until": now(), "what": what,
        "findings": [{"rule": "github-pat", "position": "body", "excerpt": "key=****"}], "found": 1,
    }}))
}

fn request() -> Value {
    json!({"kind": "request", "scheme": "https", "host": "api.example.com", "port": 443, "method": "POST", "path": "/v1", "body": 9})
}

fn push(repo: &str) -> Value {
    let refs = json!([{"name": "refs/heads/a", "old": "0".repeat(40), "new": "1".repeat(40)}]);
    json!({"kind": "push", "repo": repo, "upstream": "u", "refs": refs, "changes": 1, "objects": 3})
}

#[test]
fn a_limit_is_raised_by_one_line_of_routes() {
    let wish = json!({"capability": "egress_limit", "host": "api.example.com", "limit": "requests_per_minute", "value": 600, "reason": "r"});
    let (words, line) = added(ROUTES, &ask(&wish), None);
    insta::assert_snapshot!(words, @"this makes the requests_per_minute of api.example.com 600 (it is 60), until 1970-01-01T00:26:40Z");
    insta::assert_snapshot!(line, @r#"
    raised:
      - {host: "api.example.com", limit: requests_per_minute, value: 600, expires_at: 1970-01-01T00:26:40Z, grant: "0707070707070707"}
    "#);
    let elsewhere = json!({"capability": "egress_limit", "host": "b.example.com", "limit": "concurrency", "value": 600, "reason": "r"});
    assert_eq!(
        add(ROUTES, &ask(&elsewhere), None).unwrap().careful,
        ["no route to b.example.com has a concurrency: this changes nothing"]
    );
}

#[test]
fn what_is_held_passes_once_by_its_digest() {
    let (words, line) = added(ROUTES, &held(&request()), None);
    insta::assert_snapshot!(words, @r"
    this lets pass exactly what is held (sha256:0000000000000000000000000000000000000000000000000000000000000000), once, until 1970-01-01T00:26:40Z
    found    `github-pat` in body: key=****
    ");
    insta::assert_snapshot!(line, @r#"
    releases:
      - {digest: "sha256:0000000000000000000000000000000000000000000000000000000000000000", max_uses: 1, expires_at: 1970-01-01T00:26:40Z, grant: "0707070707070707"}
    "#);
    let (_, line) = added(&repos(), &held(&push("web")), None);
    insta::assert_snapshot!(line, @r#"
    releases:
      - {digest: "sha256:0000000000000000000000000000000000000000000000000000000000000000", max_uses: 1, expires_at: 1970-01-01T00:26:40Z, grant: "0707070707070707"}
    "#);
    assert!(matches!(add(&repos(), &held(&push("other")), None), Err(AdditionError::NoRepo(_))));
}

#[test]
fn a_ref_may_be_pushed_for_a_while() {
    let wish = |access: &str| {
        ask(
            &json!({"capability": "git_ref", "repo": "web", "ref": "refs/heads/release", "access": access, "reason": "r"}),
        )
    };
    let (words, line) = added(&repos(), &wish("push"), Some(2));
    insta::assert_snapshot!(words, @"this newly allows pushes to refs/heads/release of web (git@git.example.com:acme/web.git), 2 times, until 1970-01-01T00:26:40Z");
    insta::assert_snapshot!(line, @r#"
    granted:
      - {repo: "web", ref: "refs/heads/release", max_uses: 2, expires_at: 1970-01-01T00:26:40Z, grant: "0707070707070707"}
    "#);
    assert!(matches!(add(&repos(), &wish("fetch"), None), Err(AdditionError::ByHand)));
}

#[test]
fn a_repository_is_reached_with_what_its_neighbour_is_reached_with_or_not_at_all() {
    let wish = |upstream: &str, access: &str| {
        ask(&json!({"capability": "git_repo", "upstream": upstream, "access": access, "reason": "r"}))
    };
    let (words, line) = added(&repos(), &wish("ssh://git@git.example.com/acme/api.git", "push"), None);
    insta::assert_snapshot!(words, @"this newly allows reads of, and pushes under refs/heads/agent/ to, ssh://git@git.example.com/acme/api.git as /api.git, until 1970-01-01T00:26:40Z");
    assert!(
        line.contains("identity: \"/keys/web\"") && line.contains(KEY) && line.contains("192.0.2.7"),
        "{line}"
    );
    for upstream in [
        "ssh://git@other.example.com/acme/api.git",
        "ssh://root@git.example.com/api.git",
        "ssh://git@git.example.com:2222/api.git",
        "https://git.example.com/api.git",
    ] {
        let refused = add(&repos(), &wish(upstream, "fetch"), None);
        assert!(matches!(refused, Err(AdditionError::UnknownHost(_))), "{upstream}");
    }
    let taken = add(&repos(), &wish("ssh://git@git.example.com/other/web.git", "fetch"), None);
    assert!(matches!(taken, Err(AdditionError::Taken(_))));
}

#[test]
fn what_names_nothing_exact_is_for_a_person() {
    for wish in [
        json!({"capability": "other", "what": "a compiler", "reason": "r"}),
        json!({"capability": "git_ref", "repo": "web", "ref": "refs/heads/a", "access": "fetch", "reason": "r"}),
    ] {
        assert_eq!(ask(&wish).table(), None);
        assert!(matches!(add(ROUTES, &ask(&wish), None), Err(AdditionError::ByHand)));
    }
}

#[test]
fn one_finding_is_excepted_by_one_line() {
    let wish = |key: &str, place: &str| {
        ask(&json!({
            "capability": "dlp_exception", key: place, "rule": "gitlab-pat", "fingerprint": "0a".repeat(16), "place": "body",
            "reason": "an example of the documentation",
        }))
    };
    let (words, line) = added(ROUTES, &wish("host", "api.example.com"), None);
    insta::assert_snapshot!(words, @"this lets exactly what `gitlab-pat` found in body (0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a) pass to api.example.com, once, until 1970-01-01T00:26:40Z");
    insta::assert_snapshot!(line, @r#"
    exceptions:
      - {host: "api.example.com", rule: "gitlab-pat", fingerprint: "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a", max_uses: 1, expires_at: 1970-01-01T00:26:40Z, grant: "0707070707070707"}
    "#);
    let (words, line) = added(&repos(), &wish("repo", "web"), Some(3));
    insta::assert_snapshot!(words, @"this lets exactly what `gitlab-pat` found in body (0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a) pass to the repository web, 3 times, until 1970-01-01T00:26:40Z");
    insta::assert_snapshot!(line, @r#"
    exceptions:
      - {repo: "web", rule: "gitlab-pat", fingerprint: "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a", max_uses: 3, expires_at: 1970-01-01T00:26:40Z, grant: "0707070707070707"}
    "#);
    assert!(matches!(add(&repos(), &wish("repo", "other"), None), Err(AdditionError::NoRepo(_))));
}

#[test]
fn the_token_is_of_the_request_the_terms_the_base_and_what_is_in_force() {
    let ask = held(&request());
    let token = |base: &str, seconds: u32, uses: Option<u32>, in_force: &str| {
        addition(base, &id(), &ask, (seconds, uses.and_then(NonZeroU32::new)), in_force, now()).unwrap().token
    };
    let first = token(ROUTES, 600, None, "1");
    assert_eq!(first, token(ROUTES, 600, Some(1), "1"));
    let other = format!("{ROUTES}# more\n");
    for another in [
        token(&other, 600, None, "1"),
        token(ROUTES, 60, None, "1"),
        token(ROUTES, 600, Some(2), "1"),
        token(ROUTES, 600, None, "2"),
    ] {
        assert_ne!(first, another);
    }
}

#[test]
fn a_file_without_the_grant_is_left_as_it_is() {
    assert_eq!(removed(ROUTES, Table::Routes, &id()).unwrap(), None);
    assert_eq!(removed(&repos(), Table::Repos, &id()).unwrap(), None);
    assert!(removed("repos: [", Table::Repos, &id()).is_err());
}

#[test]
fn no_agent_can_say_that_something_is_held() {
    let value = json!({"held": {"id": "x"}});
    assert!(Ask::parse(&value).is_err());
    assert!(proposal::Proposal::parse(&value).is_err() && proposal::Capability::parse(&value).is_err());
}
