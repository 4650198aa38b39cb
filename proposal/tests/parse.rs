//! What can be proposed, and what is refused with which words.
#![allow(clippy::unwrap_used)]

use proposal::{Invalid, NeverGrantable, Proposal};
use serde_json::{Value, json};

fn parse(value: Value) -> Result<Proposal, Invalid> {
    Proposal::parse(&value)
}

fn refusal(value: Value) -> (&'static str, String) {
    let invalid = parse(value).unwrap_err();
    (invalid.code(), invalid.to_string())
}

fn refused_host(host: &str) -> &'static str {
    parse(json!({"host": host, "reason": "r"})).unwrap_err().code()
}

#[test]
fn what_is_left_out_has_the_narrowest_useful_default() {
    let proposal = parse(json!({"host": "API.Example.com.", "reason": " read the API "})).unwrap();
    assert_eq!(
        Value::from(proposal.clone()),
        json!({
            "host": "api.example.com", "scheme": "https", "ports": [443], "methods": ["GET"],
            "paths": [{"type": "prefix", "value": "/"}], "ttl_seconds": 3600, "reason": "read the API",
        })
    );
    insta::assert_snapshot!(proposal, @"GET https://api.example.com/** for 1 h");
}

#[test]
fn equal_wishes_have_one_form() {
    let one = parse(json!({
        "host": "api.example.com", "ports": [8443, 443, 443], "methods": ["post", "GET"], "ttl_seconds": 90,
        "paths": [{"type": "prefix", "value": "/%76%31"}, {"type": "exact", "value": "/a"}], "reason": "one",
    }))
    .unwrap();
    let other = parse(json!({
        "host": "api.example.com.", "ports": [443, 8443], "methods": ["GET", "POST", "GET"], "ttl_seconds": 90,
        "paths": [{"type": "exact", "value": "/a"}, {"type": "prefix", "value": "/v1"}], "reason": "other", "scheme": null,
    }))
    .unwrap();
    assert!(one.is_same_as(&other));
    insta::assert_snapshot!(one, @"GET, POST https://api.example.com:443,8443/a or /v1/** for 90 s");
}

#[test]
fn the_wire_form_is_read_back_by_the_same_grammar() {
    let proposal = parse(json!({"host": "api.example.com", "reason": "r", "methods": ["DELETE"]})).unwrap();
    let text = serde_json::to_string(&proposal).unwrap();
    assert_eq!(serde_json::from_str::<Proposal>(&text).unwrap(), proposal);
    let wider = text.replace("api.example.com", "*.example.com");
    assert!(serde_json::from_str::<Proposal>(&wider).is_err());
}

#[test]
fn a_path_that_is_too_long_as_it_is_written_afterwards_is_refused() {
    // Each `]` becomes `%5D`.
    let with = |count: usize| {
        parse(json!({
            "host": "api.example.com", "paths": [{"type": "exact", "value": format!("/{}", "]".repeat(count))}],
            "reason": "r",
        }))
    };
    assert_eq!(with(171).unwrap_err().code(), "invalid-proposal");
    let taken = with(170).unwrap();
    assert_eq!(parse(Value::from(taken.clone())).unwrap(), taken);
}

#[test]
fn an_unknown_key_is_refused_with_the_ones_that_exist() {
    insta::assert_snapshot!(refusal(json!({"host": "a.example", "metods": ["GET"], "reason": "r"})).1,
        @"unknown key `metods`, allowed are `host`, `ports`, `scheme`, `methods`, `paths`, `ttl_seconds`, `max_uses`, `reason`");
}

#[test]
fn a_key_of_the_route_grammar_is_the_operators() {
    for key in
        ["credential", "token_env", "tls", "allow_private", "matches", "deny", "git", "allow_encoded_slashes"]
    {
        let mut value = json!({"host": "a.example", "reason": "r"});
        value[key] = json!(true);
        let (code, message) = refusal(value);
        assert_eq!(code, "operator-only", "{key}");
        assert!(
            message
                .starts_with(&format!("only the operator can add `{key}`; a proposal has the keys `host`")),
            "{message}"
        );
    }
}

#[test]
fn each_wrong_value_is_named_with_what_it_must_be() {
    let with = |key: &str, value: Value| {
        let mut proposal = json!({"host": "a.example", "reason": "r"});
        proposal[key] = value;
        refusal(proposal).1
    };
    let messages = [
        with("ports", json!([0])),
        with("ports", json!([])),
        with("scheme", json!("ftp")),
        with("methods", json!(["CONNECT"])),
        with("paths", json!(["/v1"])),
        with("paths", json!([{"type": "regex", "value": ".*"}])),
        with("paths", json!([{"type": "prefix", "value": "/a/../b"}])),
        with("ttl_seconds", json!(86_401)),
        with("ttl_seconds", json!("1h")),
        with("reason", json!("")),
        with("reason", json!("x".repeat(501))),
        with("reason", Value::Null),
        with("host", json!("exa mple.com")),
        refusal(json!([])).1,
    ];
    insta::assert_snapshot!(messages.join("\n"), @r#"
    `ports` must be a list of 1 to 8 port numbers
    `ports` must be a list of 1 to 8 port numbers
    `scheme` must be `https` or `http`
    `methods` must be a list of GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS
    `paths` must be a list of 1 to 16 objects {"type": "exact" or "prefix", "value": "/path"}
    `paths` must be a list of 1 to 16 objects {"type": "exact" or "prefix", "value": "/path"}
    `paths` has "/a/../b": path has a `.` or `..` segment
    `ttl_seconds` must be a number of seconds from 60 to 86400
    `ttl_seconds` must be a number of seconds from 60 to 86400
    `reason` must be a sentence of at most 500 characters
    `reason` must be a sentence of at most 500 characters
    `reason` is missing
    `host` is not valid: host has a character that is not a letter, digit, hyphen, underscore or dot
    a proposal is an object with the keys `host`, `ports`, `scheme`, `methods`, `paths`, `ttl_seconds`, `max_uses`, `reason`
    "#);
}

#[test]
fn places_that_no_grant_leads_to_are_refused_at_once() {
    for host in [
        "127.0.0.1",
        "[::1]",
        "10.0.0.5",
        "169.254.169.254",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "0.0.0.0",
        "100.64.0.1",
        "localhost",
        "LOCALHOST.",
        "a.localhost",
        "_egress.local",
        "egress",
        "git-gate",
        "supervise",
        "supervisor",
        "metadata.google.internal",
        "host.docker.internal",
        "metadata",
        "printer.local",
        "*.example.com",
        "*",
    ] {
        assert_eq!(refused_host(host), "never-grantable", "{host}");
    }
    for host in [
        "0x7f.1",
        "2130706433",
        "0177.0.0.1",
        "ex\u{3002}com",
        "a..b",
        "a%00.com",
        "evil.com/path",
        "user@host",
    ] {
        assert_eq!(refused_host(host), "invalid-proposal", "{host}");
    }
    for host in ["internal.example.com", "egress.example.com", "93.184.216.34", "mylocalhost"] {
        assert!(parse(json!({"host": host, "reason": "r"})).is_ok(), "{host}");
    }
}

#[test]
fn a_wildcard_is_the_operators() {
    let invalid = parse(json!({"host": "*.example.com", "reason": "r"})).unwrap_err();
    assert_eq!(invalid, Invalid::NeverGrantable(NeverGrantable::Wildcard));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parser_panic_and_what_it_takes_it_takes_again(
        host in "\\PC{0,40}|[a-z.*:\\[\\]0-9-]{0,30}", path in "\\PC{0,20}|/[a-z0-9%./;-]{0,20}", reason in ".{0,40}",
    ) {
        let value = json!({"host": host, "reason": reason, "paths": [{"type": "prefix", "value": path}]});
        if let Ok(proposal) = parse(value) {
            let again = parse(Value::from(proposal.clone())).unwrap();
            proptest::prop_assert_eq!(again, proposal);
        }
    }
}

fn capability(value: Value) -> Result<String, (&'static str, String)> {
    let ask = proposal::Ask::parse(&value).map_err(|error| (error.code(), error.to_string()))?;
    let wire: Value = ask.clone().into();
    assert_eq!(proposal::Ask::parse(&wire), Ok(ask.clone()), "the wire form is read back");
    Ok(ask.to_string())
}

#[test]
fn a_capability_is_said_in_words() {
    let said = [
        json!({"capability": "git_repo", "upstream": "ssh://git@git.example.com/acme/web.git", "access": "push", "reason": "r"}),
        json!({"capability": "git_ref", "repo": "acme-web", "ref": "refs/heads/agent/*", "reason": "r", "ttl_seconds": 600}),
        json!({"capability": "dlp_exception", "host": "api.example.com", "rule": "aws-access-key", "fingerprint": "0a".repeat(16), "place": "header `x-note`", "reason": "r"}),
        json!({"capability": "dlp_exception", "repo": "web", "rule": "aws-access-key", "fingerprint": "0a".repeat(16), "place": "a.py, line 3", "max_uses": 2, "reason": "r"}),
        json!({"capability": "egress_limit", "host": "api.example.com", "limit": "request_body", "value": 1_000_000, "reason": "r"}),
        json!({"capability": "other", "what": "a newer \u{202e}compiler", "reason": "r"}),
    ]
    .map(|value| capability(value).unwrap());
    insta::assert_snapshot!(said.join("\n"), @r#"
    fetch from and push to the repository ssh://git@git.example.com/acme/web.git for 1 h
    fetch from refs/heads/agent/* of acme-web for 10 min
    let what `aws-access-key` found in header `x-note` (0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a) pass to api.example.com once for 1 h
    let what `aws-access-key` found in a.py, line 3 (0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a) pass to the repository web 2 times for 1 h
    request_body of 1000000 for api.example.com for 1 h
    "a newer \u{202e}compiler" for 1 h
    "#);
}

#[test]
fn a_capability_has_the_keys_of_its_kind_alone_and_leads_nowhere_that_no_grant_does() {
    let refused = |value: Value| {
        let (code, message) = capability(value).unwrap_err();
        format!("{code}: {message}")
    };
    let messages = [
        refused(json!({"capability": "root", "reason": "r"})),
        refused(json!({"capability": "other", "what": "x", "host": "a.example", "reason": "r"})),
        refused(json!({"capability": "git_repo", "upstream": "file:///etc", "reason": "r"})),
        refused(
            json!({"capability": "git_repo", "upstream": "https://me:secret@git.example.com/a", "reason": "r"}),
        ),
        refused(json!({"capability": "git_repo", "upstream": "ssh://git@169.254.169.254/a", "reason": "r"})),
        refused(json!({"capability": "git_ref", "repo": "../x", "ref": "refs/heads/a", "reason": "r"})),
        refused(json!({"capability": "git_ref", "repo": "x", "ref": "main", "reason": "r"})),
        refused(
            json!({"capability": "egress_limit", "host": "a.example", "limit": "all", "value": 1, "reason": "r"}),
        ),
        refused(json!({"capability": "dlp_exception", "host": "a.example", "repo": "x", "reason": "r"})),
        refused(
            json!({"capability": "dlp_exception", "host": "a.example", "rule": "known-secret", "reason": "r"}),
        ),
        refused(
            json!({"capability": "dlp_exception", "repo": "x", "rule": "x", "fingerprint": "0A", "reason": "r"}),
        ),
    ];
    insta::assert_snapshot!(messages.join("\n"), @"
    invalid-proposal: `capability` must be `git_repo`, `git_ref`, `dlp_exception`, `egress_limit` or `other`
    invalid-proposal: unknown key `host`, allowed are `what`, `capability`, `ttl_seconds`, `reason`
    invalid-proposal: `upstream` must be ssh://git@HOST/PATH or https://HOST/PATH
    invalid-proposal: `upstream` must be ssh://git@HOST/PATH or https://HOST/PATH
    never-grantable: 169.254.169.254 can never be granted: 169.254.169.254 is a cloud metadata address
    invalid-proposal: `repo` must be the name of a repository
    invalid-proposal: `ref` must be a reference such as refs/heads/agent/work
    invalid-proposal: `limit` must be `requests_per_minute`, `request_body`, `connections` or `concurrency`
    invalid-proposal: `host` must be there, or `repo`
    invalid-proposal: `rule` must be the name of a rule, and not `known-secret`
    invalid-proposal: `fingerprint` must be 32 hexadecimal digits
    ");
}
