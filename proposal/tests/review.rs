//! What the operator reads before saying yes.
#![allow(clippy::unwrap_used)]

use std::num::NonZeroU32;

use jiff::Timestamp;
use proposal::{Difference, Id, Proposal, Review, ReviewError, digest, review};
use serde_json::{Value, json};

const BASE: &str = "\
# what this bottle may do
routes:
  - host: api.example.com
    matches:
      - paths: [{type: prefix, value: /public}]
        methods: [GET]
  - host: api.example.com
    deny: true
    matches:
      - paths: [{type: prefix, value: /v1/admin}]
  - host: blocked.example.com
    deny: true
";

fn now() -> Timestamp {
    "2026-11-21T10:00:00.123456Z".parse().unwrap()
}

fn reviewed(proposal: Value) -> Review {
    let proposal = Proposal::parse(&proposal).unwrap();
    let id = Id::parse("7c0e11aa22bb33cc").unwrap();
    review(BASE, &id, &proposal, "1", now()).unwrap()
}

fn prefix(host: &str, path: &str) -> Value {
    json!({"host": host, "paths": [{"type": "prefix", "value": path}], "reason": "r"})
}

#[test]
fn a_new_permission_is_said_in_words_with_its_end() {
    insta::assert_snapshot!(reviewed(prefix("new.example.com", "/v1")).difference,
        @"this newly allows GET https://new.example.com/v1/** until 2026-11-21T11:00:00Z, for example GET https://new.example.com/v1");
}

#[test]
fn what_is_allowed_already_changes_nothing() {
    insta::assert_snapshot!(reviewed(prefix("api.example.com", "/public/docs")).difference,
        @"this changes nothing: already allowed by route #1");
}

#[test]
fn a_deny_rule_makes_a_grant_useless() {
    insta::assert_snapshot!(reviewed(prefix("blocked.example.com", "/")).difference,
        @"this changes nothing: blocked by a deny rule, granting has no effect");
}

#[test]
fn a_part_that_stays_refused_or_is_allowed_already_is_named() {
    insta::assert_snapshot!(reviewed(prefix("api.example.com", "/")).difference, @r"
    this newly allows GET https://api.example.com/** until 2026-11-21T11:00:00Z, for example GET https://api.example.com/
    a part of it is already allowed by route #1
    stays refused: GET /v1/admin/bottlecap-probe (denied-by-rule)
    ");
}

#[test]
fn a_rule_that_is_written_with_an_escaped_slash_stays_refused_by_a_grant() {
    let base = "\
routes:
  - host: git.example.com
    deny: true
    path_allowlist: [/projects/acme%2Fsecret]
  - host: git.example.com
    allow_encoded_slashes: true
    matches:
      - paths: [{type: exact, value: /projects/acme%2Fweb}]
        methods: [POST]
";
    let proposal = Proposal::parse(&prefix("git.example.com", "/projects")).unwrap();
    let id = Id::parse("7c0e11aa22bb33cc").unwrap();
    insta::assert_snapshot!(review(base, &id, &proposal, "1", now()).unwrap().difference, @r"
    this newly allows GET https://git.example.com/projects/** until 2026-11-21T11:00:00Z, for example GET https://git.example.com/projects
    stays refused: GET /projects/acme%2Fsecret/bottlecap-probe (ambiguous-path)
    stays refused: GET /projects/acme%2Fweb (ambiguous-path)
    ");
}

#[test]
fn the_text_is_the_base_with_one_more_route() {
    let review = reviewed(json!({
        "host": "new.example.com", "methods": ["GET", "POST"], "paths": [{"type": "exact", "value": "/a"}], "ttl_seconds": 600, "reason": "r",
    }));
    let added = review.text.strip_prefix(BASE).unwrap();
    assert!(added.contains("new.example.com") && added.contains("7c0e11aa22bb33cc"), "{added}");
    assert_eq!(review.digest(), digest(&review.text));
    assert_eq!(review.base_digest(), digest(BASE));
    assert_eq!(review.grant.expires_at, "2026-11-21T10:10:00Z".parse().unwrap());
}

#[test]
fn the_token_is_of_this_text_on_this_base_alone() {
    let one = reviewed(prefix("new.example.com", "/v1"));
    assert_eq!(one.token, reviewed(prefix("new.example.com", "/v1")).token);
    assert_ne!(one.token, reviewed(prefix("new.example.com", "/v2")).token);
    let proposal = Proposal::parse(&prefix("new.example.com", "/v1")).unwrap();
    let id = Id::parse("7c0e11aa22bb33cc").unwrap();
    let base = BASE.replace("/public", "/other");
    assert_ne!(one.token, review(&base, &id, &proposal, "1", now()).unwrap().token);
    let other = |id: &str, proposal: &Proposal, in_force: &str| {
        review(BASE, &Id::parse(id).unwrap(), proposal, in_force, now()).unwrap().token
    };
    assert_eq!(one.token, other("7c0e11aa22bb33cc", &proposal, "1"));
    assert_ne!(one.token, other("7c0e11aa22bb33cc", &proposal, "2"), "another generation serves");
    assert_ne!(one.token, other("8d1f11aa22bb33cc", &proposal, "1"), "another request");
    assert_ne!(
        one.token,
        other("7c0e11aa22bb33cc", &proposal.clone().limited(60, None), "1"),
        "another time"
    );
    assert_ne!(
        one.token,
        other("7c0e11aa22bb33cc", &proposal.clone().limited(3600, NonZeroU32::new(1)), "1")
    );
}

#[test]
fn an_answer_an_hour_later_has_the_same_token() {
    let proposal = Proposal::parse(&prefix("new.example.com", "/v1")).unwrap();
    let id = Id::parse("7c0e11aa22bb33cc").unwrap();
    let later = now() + jiff::SignedDuration::from_hours(1);
    let then = review(BASE, &id, &proposal, "1", later).unwrap();
    assert_eq!(then.token, review(BASE, &id, &proposal, "1", now()).unwrap().token);
}

#[test]
fn the_refusals_that_would_pass_are_named() {
    let refusal = |host: &str, method: &str, path: &str| proposal::peer::Refusal {
        block_id: "b".to_owned(),
        code: "host-not-allowed".to_owned(),
        at: now(),
        scheme: "https".to_owned(),
        host: host.to_owned(),
        port: 443,
        method: method.to_owned(),
        path: path.to_owned(),
    };
    let refusals = [
        refusal("new.example.com", "GET", "/v1/a"),
        refusal("new.example.com", "POST", "/v1/a"),
        refusal("new.example.com", "GET", "/v2"),
        refusal("other.example.com", "GET", "/v1/a"),
        refusal("new.example.com", "GET", "/v1/a/../../v2"),
        refusal("new.example.com", "GET", "/v1/b"),
    ];
    let would = reviewed(prefix("new.example.com", "/v1")).would_pass(&refusals);
    assert_eq!(would.of, 6);
    assert_eq!(would.passing, ["GET https://new.example.com/v1/b", "GET https://new.example.com/v1/a"]);
}

#[test]
fn write_access_to_a_new_host_needs_the_host_typed() {
    let needs = |ask: Value| reviewed(ask).needs_typing;
    let write = |host: &str| json!({"host": host, "methods": ["POST"], "reason": "r"});
    assert!(needs(write("new.example.com")) && needs(write("blocked.example.com")));
    assert!(!needs(write("api.example.com")) && !needs(prefix("new.example.com", "/")));
}

#[test]
fn routes_that_are_not_valid_are_no_base() {
    let proposal = Proposal::parse(&prefix("new.example.com", "/")).unwrap();
    let id = Id::parse("x").unwrap();
    let error = review("routes: [{hots: a}]\n", &id, &proposal, "1", now()).unwrap_err();
    assert!(
        matches!(&error, ReviewError::Base(diagnostics) if diagnostics.to_string().starts_with("routes.yaml:1:")),
        "{error}"
    );
}

#[test]
fn a_base_without_routes_takes_a_grant() {
    let proposal = Proposal::parse(&prefix("new.example.com", "/")).unwrap();
    let id = Id::parse("x").unwrap();
    let review = review("routes: []\n", &id, &proposal, "1", now()).unwrap();
    assert!(matches!(review.difference, Difference::Allows { .. }));
}
