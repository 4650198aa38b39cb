//! The agent's side: both eras of the protocol on one endpoint, and what an agent can and cannot get by asking.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Agent, Bundle};
use serde_json::{Value, json};

const TOOLS: [&str; 14] = [
    "propose_route",
    "propose_capability",
    "wait_decision",
    "get_request",
    "list_requests",
    "withdraw_request",
    "explain_block",
    "current_access",
    "dry_run",
    "egress-block",
    "pipelock-block",
    "allow",
    "capability-block",
    "list-egress-routes",
];

fn names(result: &Value) -> Vec<&str> {
    result["tools"].as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect()
}

#[test]
fn a_client_of_2025_06_18_shakes_hands_and_calls() {
    let bundle = Bundle::start();
    let agent = bundle.agent();
    let hello = json!({
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "old", "version": "1"}},
    });
    let answer = agent.post(&[], &hello);
    assert_eq!(answer.result()["protocolVersion"], "2025-06-18");
    assert!(!answer.head.contains("mcp-session-id"), "{}", answer.head);
    let initialized = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    assert_eq!(agent.post(&[("mcp-protocol-version", "2025-06-18")], &initialized).status, 202);
    assert_eq!(names(&agent.legacy("tools/list", json!({})).result()), TOOLS);
    let arguments = json!({"host": "api.example.com", "reason": "to read it"});
    let filed = agent.legacy("tools/call", json!({"name": "propose_route", "arguments": arguments})).result();
    assert_eq!(filed["structuredContent"]["state"], "pending");
}

#[test]
fn a_client_of_2026_07_28_needs_no_handshake() {
    let bundle = Bundle::start();
    let agent = bundle.agent();
    let discovered = agent.modern("server/discover", None, json!({})).result();
    assert!(
        discovered["supportedVersions"].as_array().unwrap().contains(&json!("2026-07-28")),
        "{discovered}"
    );
    assert_eq!(discovered["resultType"], "complete");
    assert_eq!(names(&agent.modern("tools/list", None, json!({})).result()), TOOLS);
    assert_eq!(agent.propose("api.example.com").unwrap()["state"], "pending");
}

#[test]
fn headers_that_say_another_thing_than_the_body_are_refused() {
    let bundle = Bundle::start();
    let agent = bundle.agent();
    let params = json!({"name": "propose_route", "arguments": {"host": "api.example.com", "reason": "r"}});
    assert_eq!(agent.modern("tools/call", Some("list_requests"), params).status, 400);
    assert_eq!(agent.call("list_requests", json!({})).unwrap(), json!({"requests": []}));
}

#[test]
fn both_paths_serve_and_only_post_is_understood() {
    let bundle = Bundle::start();
    let agent = bundle.agent();
    for path in ["/", "/mcp"] {
        let get = Agent::receive(agent.send(&format!("GET {path}"), &[("accept", "text/event-stream")], ""));
        assert_eq!(get.status, 405, "{path}");
        let delete = Agent::receive(agent.send(&format!("DELETE {path}"), &[("mcp-session-id", "x")], ""));
        assert_eq!(delete.status, 405, "{path}");
    }
    assert_eq!(Agent::receive(agent.send("POST /other", &[], "")).status, 404);
}

#[test]
fn a_page_in_a_browser_cannot_use_it() {
    let bundle = Bundle::start();
    let agent = bundle.agent();
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}});
    let port = agent.address.port();
    let named = |name: &str| format!("{name}:{port}");
    for host in ["evil.example", &named("evil.example"), &named("supervise.evil.example"), "supervise:1"] {
        assert_eq!(agent.post(&[("host", host)], &list).status, 403, "{host}");
    }
    for origin in ["http://evil.example", "null", "http://supervise", &format!("http://127.0.0.1:{port}")] {
        assert_eq!(agent.post(&[("origin", origin)], &list).status, 403, "{origin}");
    }
    for host in [named("supervise"), named("localhost"), named("127.0.0.1"), named("[::1]")] {
        assert_eq!(agent.post(&[("host", &host)], &list).status, 200, "{host}");
    }
}

#[test]
fn a_large_body_is_refused_and_the_next_call_works() {
    let bundle = Bundle::start();
    let agent = bundle.agent();
    let message = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"cursor": "x".repeat(70 << 10)}});
    assert_eq!(agent.post(&[], &message).status, 413);
    assert_eq!(agent.propose("api.example.com").unwrap()["state"], "pending");
}

#[test]
fn what_is_no_json_rpc_is_refused() {
    let bundle = Bundle::start();
    let agent = bundle.agent();
    for body in
        ["", "{", "[]", "[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/list\"}]", "{\"jsonrpc\":\"1.0\"}"]
    {
        let headers =
            [("content-type", "application/json"), ("accept", "application/json, text/event-stream")];
        let answer = Agent::receive(agent.send("POST /mcp", &headers, body));
        assert!((400..500).contains(&answer.status), "{body}: {answer:?}");
    }
}

#[test]
fn a_proposal_is_approved_applied_and_the_waiting_agent_is_told() {
    let bundle = Bundle::start();
    let (agent, operator) = (bundle.agent(), bundle.operator());
    let id = agent.propose("api.example.com").unwrap()["id"].clone();
    let listed = operator.ask(json!({"op": "list", "state": "pending"})).unwrap();
    assert_eq!(listed["requests"][0]["id"], id);

    let waiting = std::thread::spawn({
        let id = id.clone();
        move || agent.call("wait_decision", json!({"id": id})).unwrap()
    });
    let approved = operator.view(json!({"op": "approve", "id": id, "ttl_seconds": 600}));
    assert_eq!(agent.call("get_request", json!({"id": id})).unwrap()["state"], "approved");
    operator.ask(json!({"op": "applied", "id": id, "generation": 2, "digest": "sha256:aa"})).unwrap();

    let told = waiting.join().unwrap();
    let expires_at = approved.decision.unwrap().expires_at().unwrap();
    assert_eq!(
        (&told["state"], &told["decision"], &told["generation"], &told["expires_at"]),
        (&json!("active"), &json!("approved"), &json!(2), &json!(expires_at))
    );
    assert!(told.get("by").is_none() && told.get("digest").is_none(), "{told}");
}

#[test]
fn the_reason_of_a_rejection_reaches_the_agent() {
    let bundle = Bundle::start();
    let (agent, operator) = (bundle.agent(), bundle.operator());
    let id = agent.propose("api.example.com").unwrap()["id"].clone();
    operator.ask(json!({"op": "reject", "id": id, "reason": "use the mirror"})).unwrap();
    let told = agent.call("wait_decision", json!({"id": id})).unwrap();
    assert_eq!(
        (&told["state"], &told["decision"], &told["reason"]),
        (&json!("rejected"), &json!("rejected"), &json!("use the mirror"))
    );
}

#[test]
fn what_the_host_could_not_apply_is_told_without_its_words() {
    let bundle = Bundle::start();
    let (agent, operator) = (bundle.agent(), bundle.operator());
    let id = agent.propose("api.example.com").unwrap()["id"].clone();
    operator.ask(json!({"op": "approve", "id": id})).unwrap();
    operator
        .ask(json!({"op": "apply_failed", "id": id, "error": "cannot write /home/someone/routes.yaml"}))
        .unwrap();
    let told = agent.call("wait_decision", json!({"id": id})).unwrap();
    assert_eq!(told["state"], "apply_failed");
    assert!(!told.to_string().contains("someone"), "{told}");
}

#[test]
fn asking_again_for_the_same_is_the_same_request() {
    let bundle = Bundle::start();
    let (agent, operator) = (bundle.agent(), bundle.operator());
    let first = agent.propose("api.example.com").unwrap();
    let again = agent
        .call("allow", json!({"host": "API.example.com.", "methods": ["get"], "reason": "other words"}))
        .unwrap();
    assert_eq!(again["id"], first["id"]);
    assert_eq!(again["proposal"]["reason"], "to read it");
    operator.ask(json!({"op": "approve", "id": first["id"]})).unwrap();
    assert_eq!(agent.propose("api.example.com").unwrap()["state"], "approved", "a duplicate flips nothing");
    assert_eq!(agent.call("list_requests", json!({})).unwrap()["requests"].as_array().unwrap().len(), 1);
}

#[test]
fn old_names_and_underscores_are_understood() {
    let bundle = Bundle::start();
    let agent = bundle.agent();
    let id = agent.propose("api.example.com").unwrap()["id"].clone();
    let ask = json!({"host": "api.example.com", "reason": "r"});
    for alias in ["egress-block", "egress_block", "pipelock-block", "allow"] {
        assert_eq!(agent.call(alias, ask.clone()).unwrap()["id"], id, "{alias}");
    }
    assert!(agent.call("list-egress-routes", json!({})).is_ok());
}

#[test]
fn a_key_that_is_not_there_is_told_with_those_that_are() {
    let bundle = Bundle::start();
    let agent = bundle.agent();
    let told = |key: &str| {
        let mut ask = json!({"host": "api.example.com", "reason": "r"});
        ask[key] = json!("x");
        let error = agent.call("propose_route", ask).unwrap_err();
        format!("{}: {}", error["code"].as_str().unwrap(), error["message"].as_str().unwrap())
    };
    insta::assert_snapshot!([told("metod"), told("credential")].join("\n"), @"
    invalid-proposal: unknown key `metod`, allowed are `host`, `ports`, `scheme`, `methods`, `paths`, `ttl_seconds`, `max_uses`, `reason`
    operator-only: only the operator can add `credential`; a proposal has the keys `host`, `ports`, `scheme`, `methods`, `paths`, `ttl_seconds`, `max_uses`, `reason`
    ");
    assert_eq!(agent.propose("169.254.169.254").unwrap_err()["code"], "never-grantable");
    assert_eq!(agent.call("list_requests", json!({})).unwrap(), json!({"requests": []}));
}

#[test]
fn arguments_that_are_not_of_the_schema_are_refused() {
    let bundle = Bundle::start();
    let agent = bundle.agent();
    for (tool, arguments) in [
        ("wait_decision", json!({})),
        ("wait_decision", json!({"id": "a", "more": 1})),
        ("get_request", json!({"id": "../x"})),
        ("list_requests", json!({"state": "pending"})),
        ("current_access", json!({"x": 1})),
    ] {
        assert_eq!(agent.call(tool, arguments).unwrap_err()["code"], "invalid-arguments", "{tool}");
    }
    assert_eq!(agent.call("wait_decision", json!({"id": "none"})).unwrap_err()["code"], "unknown-id");
    assert_eq!(agent.call("withdraw_request", json!({"id": "none"})).unwrap_err()["code"], "unknown-id");
}

#[test]
fn the_agent_can_take_back_what_waits_and_nothing_else() {
    let bundle = Bundle::start();
    let (agent, operator) = (bundle.agent(), bundle.operator());
    let id = agent.propose("api.example.com").unwrap()["id"].clone();
    assert_eq!(agent.call("withdraw_request", json!({"id": id})).unwrap()["state"], "withdrawn");
    assert_eq!(operator.ask(json!({"op": "approve", "id": id})).unwrap_err().code, "wrong-state");
    let other = agent.propose("api.example.com").unwrap()["id"].clone();
    assert_ne!(other, id);
    operator.ask(json!({"op": "approve", "id": other})).unwrap();
    assert_eq!(agent.call("withdraw_request", json!({"id": other})).unwrap_err()["code"], "wrong-state");
}

#[test]
fn current_access_says_what_is_written_and_whether_it_is_in_force() {
    let bundle = Bundle::start();
    let agent = bundle.agent();
    let access = agent.call("current_access", json!({})).unwrap();
    assert_eq!((&access["routes"][0]["host"], &access["in_force"]), (&json!("api.github.com"), &Value::Null));
    let status = |digest: &Value| {
        let status = json!({"generation": 4, "digest": digest, "loaded_at": "2026-11-21T10:00:00Z", "last_error": null});
        std::fs::write(bundle.path("egress.status.json"), status.to_string()).unwrap();
        agent.call("current_access", json!({})).unwrap()
    };
    let in_force = status(&access["digest"]);
    assert_eq!((&in_force["in_force"], &in_force["generation"]), (&json!(true), &json!(4)));
    assert_eq!(status(&json!("sha256:other"))["in_force"], false);
    std::fs::write(bundle.path("routes.yaml"), "routes: [{token: abc}]").unwrap();
    assert_eq!(agent.call("current_access", json!({})).unwrap_err()["code"], "routes-unavailable");
}

#[test]
fn a_pipe_in_place_of_the_status_of_egress_does_not_hold_a_call() {
    let bundle = Bundle::start();
    let status = bundle.path("egress.status.json");
    nix::unistd::mkfifo(&status, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(bundle.agent().call("current_access", json!({})).unwrap()["in_force"], json!(null));
}

#[test]
fn a_call_that_is_repeated_with_its_key_is_the_same_request_whatever_became_of_it() {
    let bundle = Bundle::start();
    let (agent, operator) = (bundle.agent(), bundle.operator());
    let ask = |host: &str| {
        agent.call("propose_route", json!({"host": host, "reason": "r", "idempotency_key": "call-1"}))
    };
    let id = ask("api.example.com").unwrap()["id"].clone();
    operator.ask(json!({"op": "reject", "id": id, "reason": "no"})).unwrap();
    let again = ask("api.example.com").unwrap();
    assert_eq!((&again["id"], &again["state"]), (&id, &json!("rejected")));
    assert_eq!(ask("other.example.com").unwrap_err()["code"], "idempotency-conflict");
    assert_eq!(agent.call("list_requests", json!({})).unwrap()["requests"].as_array().unwrap().len(), 1);
}

#[test]
fn a_no_answers_whoever_asks_for_the_same_again() {
    let bundle = Bundle::start();
    let (agent, operator) = (bundle.agent(), bundle.operator());
    let id = agent.propose("api.example.com").unwrap()["id"].clone();
    operator.ask(json!({"op": "reject", "id": id, "reason": "use the mirror"})).unwrap();
    let again = agent.propose("api.example.com").unwrap();
    assert_eq!((&again["id"], &again["reason"]), (&id, &json!("use the mirror")));
    let pending = operator.ask(json!({"op": "list", "state": "pending"})).unwrap();
    assert_eq!(pending, json!({"requests": []}), "the operator is not asked twice");
}

#[test]
fn while_the_operator_pauses_nothing_new_is_taken_also_after_a_restart() {
    let bundle = Bundle::start();
    let (agent, operator) = (bundle.agent(), bundle.operator());
    let id = agent.propose("one.example.com").unwrap()["id"].clone();
    assert_eq!(operator.ask(json!({"op": "pause"})).unwrap()["paused"], true);
    assert_eq!(agent.propose("two.example.com").unwrap_err()["code"], "paused");
    assert_eq!(agent.propose("one.example.com").unwrap()["id"], id, "what was asked before is still known");
    let replayed = supervise::Desk::open(&bundle.copy_of_journal()).unwrap();
    assert!(replayed.status(replayed.now()).paused);
    assert_eq!(operator.ask(json!({"op": "resume"})).unwrap()["paused"], false);
    assert!(agent.propose("two.example.com").is_ok());
}

#[test]
fn an_agent_is_told_when_nobody_is_there() {
    let bundle = Bundle::start();
    let (agent, operator) = (bundle.agent(), bundle.operator());
    let filed = agent.propose("api.example.com").unwrap();
    assert_eq!(filed["operator_offline"], true);
    assert!(filed["meanwhile"].as_str().unwrap().contains("current_access"), "{filed}");
    operator.ask(json!({"op": "list"})).unwrap();
    let seen = agent.call("get_request", json!({"id": filed["id"]})).unwrap();
    assert_eq!((&seen["operator_offline"], seen.get("meanwhile")), (&json!(false), None));
}

#[test]
fn a_pending_request_can_be_replaced_by_a_better_one() {
    let bundle = Bundle::start();
    let (agent, operator) = (bundle.agent(), bundle.operator());
    let old = agent.propose("api.example.com").unwrap()["id"].clone();
    let ask = json!({"host": "api.example.com", "paths": [{"type": "exact", "value": "/v1"}], "reason": "r", "supersedes": old});
    let new = agent.call("propose_route", ask).unwrap()["id"].clone();
    assert_eq!(agent.call("get_request", json!({"id": old})).unwrap()["state"], "superseded");
    assert_eq!(operator.ask(json!({"op": "approve", "id": old})).unwrap_err().code, "wrong-state");
    assert_eq!(operator.ask(json!({"op": "list", "state": "pending"})).unwrap()["requests"][0]["id"], new);
}

#[test]
fn a_capability_is_asked_for_decided_and_applied_by_no_program() {
    let bundle = Bundle::start();
    let (agent, operator) = (bundle.agent(), bundle.operator());
    let ask = json!({"capability": "other", "what": "a compiler", "reason": "r"});
    let filed = agent.call("capability-block", ask).unwrap();
    assert_eq!(filed["proposal"]["what"], "a compiler");
    operator.ask(json!({"op": "approve", "id": filed["id"]})).unwrap();
    let told = agent.call("wait_decision", json!({"id": filed["id"]})).unwrap();
    assert_eq!(told["state"], "approved", "there is nothing more to wait for");
    assert!(told["next"].as_str().unwrap().contains("by hand"), "{told}");
    let applied = json!({"op": "applied", "id": filed["id"], "generation": 2, "digest": "sha256:00"});
    assert_eq!(operator.ask(applied).unwrap_err().code, "by-hand");
    let wrong = json!({"capability": "other", "what": "x", "host": "a.example", "reason": "r"});
    assert_eq!(agent.call("propose_capability", wrong).unwrap_err()["code"], "invalid-proposal");
}

#[test]
fn a_grant_that_was_revoked_is_told_with_the_reason() {
    let bundle = Bundle::start();
    let (agent, operator) = (bundle.agent(), bundle.operator());
    let id = agent.propose("api.example.com").unwrap()["id"].clone();
    operator.ask(json!({"op": "approve", "id": id})).unwrap();
    operator.ask(json!({"op": "applying", "id": id, "digest": "sha256:00"})).unwrap();
    assert_eq!(agent.call("get_request", json!({"id": id})).unwrap()["state"], "applying");
    operator.ask(json!({"op": "applied", "id": id, "generation": 2, "digest": "sha256:00"})).unwrap();
    operator.ask(json!({"op": "revoke", "id": id, "reason": "enough"})).unwrap();
    let told = agent.call("wait_decision", json!({"id": id})).unwrap();
    assert_eq!((&told["state"], &told["reason"]), (&json!("revoked"), &json!("enough")));
}

#[test]
fn a_dry_run_says_what_the_routes_say_and_what_to_ask_for() {
    let bundle = Bundle::start();
    let agent = bundle.agent();
    let run = |url: &str| agent.call("dry_run", json!({"url": url, "method": "post"})).unwrap();
    assert_eq!(run("https://api.github.com/x")["decision"], "allow");
    let refused = run("https://api.example.com:8443/v1/items?x=1");
    assert_eq!((&refused["decision"], &refused["code"]), (&json!("deny"), &json!("host-not-allowed")));
    let filed = agent.call("propose_route", refused["propose"]["arguments"].clone()).unwrap();
    assert_eq!(filed["proposal"]["ports"], json!([8443]));
    assert_eq!(filed["proposal"]["methods"], json!(["POST"]));
    assert_eq!(run("https://api.github.com/a/../b")["code"], "ambiguous-path");
    let escaped = run("https://api.github.com/a%2fb");
    assert_eq!((&escaped["code"], escaped.get("propose")), (&json!("ambiguous-path"), None));
    assert!(escaped["hint"].as_str().unwrap().contains("allow_encoded_slashes"), "{escaped}");
    for wrong in [json!({}), json!({"url": "ftp://a"}), json!({"url": "https://a.example", "x": 1})] {
        assert_eq!(agent.call("dry_run", wrong).unwrap_err()["code"], "invalid-arguments");
    }
}

#[test]
fn a_refusal_fills_in_the_proposal_and_the_agent_cannot_change_the_place() {
    let bundle = Bundle::with_egress(|block_id| {
        (block_id == "5f1d")
            .then(|| common::refusal("api.example.com", "POST", "/v1/items", "host-not-allowed"))
    });
    let agent = bundle.agent();
    let explained = agent.call("explain_block", json!({"block_id": "5f1d"})).unwrap();
    assert_eq!((&explained["host"], &explained["path"]), (&json!("api.example.com"), &json!("/v1/items")));
    assert_eq!(explained["propose"]["arguments"]["block_id"], "5f1d");
    assert_eq!(
        agent.call("explain_block", json!({"block_id": "none"})).unwrap_err()["code"],
        "unknown-block"
    );
    let wrong = json!({"block_id": "5f1d", "host": "evil.example.com", "reason": "r"});
    assert_eq!(agent.call("propose_route", wrong).unwrap_err()["code"], "invalid-proposal");
    let filed = agent.call("propose_route", json!({"block_id": "5f1d", "reason": "r"})).unwrap();
    assert_eq!(filed["block_id"], "5f1d");
    assert_eq!(
        filed["proposal"],
        json!({
            "host": "api.example.com", "scheme": "https", "ports": [443], "methods": ["POST"],
            "paths": [{"type": "exact", "value": "/v1/items"}], "ttl_seconds": 3600, "reason": "r",
        })
    );
}

#[test]
fn what_no_route_changes_cannot_be_asked_for_by_its_refusal() {
    let bundle =
        Bundle::with_egress(|_| Some(common::refusal("api.example.com", "GET", "/", "denied-by-rule")));
    let agent = bundle.agent();
    let refused = agent.call("propose_route", json!({"block_id": "5f1d", "reason": "r"})).unwrap_err();
    assert_eq!(refused["code"], "not-proposable");
    assert_eq!(agent.call("explain_block", json!({"block_id": "5f1d"})).unwrap().get("propose"), None);
}

#[test]
fn without_egress_a_refusal_cannot_be_looked_up_and_that_is_said() {
    let bundle = Bundle::start();
    let refused = bundle.agent().call("explain_block", json!({"block_id": "5f1d"})).unwrap_err();
    assert_eq!(refused["code"], "refusals-unavailable");
}

#[test]
fn one_finding_is_asked_about_by_its_name_and_the_place_is_the_daemons_to_say() {
    let bundle = Bundle::with_egress(|_| None);
    let agent = bundle.agent();
    let ask = |more: Value| {
        let mut ask = json!({"capability": "dlp_exception", "fingerprint": common::FINGERPRINT, "reason": "an example"});
        ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        agent.call("propose_capability", ask)
    };
    for key in ["host", "repo", "rule", "place"] {
        let refused = ask(json!({key: "api.evil.example"})).unwrap_err();
        assert_eq!(refused["code"], "invalid-arguments", "{key}");
    }
    let unknown = ask(json!({"fingerprint": "ff".repeat(16)})).unwrap_err();
    assert_eq!(unknown["code"], "unknown-finding");
    let filed = ask(json!({"max_uses": 3})).unwrap();
    assert_eq!(
        filed["proposal"],
        json!({
            "capability": "dlp_exception", "host": "api.example.com", "rule": "gitlab-pat", "fingerprint": common::FINGERPRINT,
            "place": "header `x-note`", "max_uses": 3, "ttl_seconds": 3600, "reason": "an example",
        })
    );
    let nobody = Bundle::start();
    let refused = nobody.agent().call(
        "propose_capability",
        json!({"capability": "dlp_exception", "fingerprint": common::FINGERPRINT, "reason": "r"}),
    );
    assert_eq!(refused.unwrap_err()["code"], "unknown-finding");
}

#[test]
fn a_repository_that_is_granted_is_told_with_the_way_to_it() {
    let bundle = Bundle::start();
    let (agent, operator) = (bundle.agent(), bundle.operator());
    let upstream = "ssh://git@git.example.com/acme/api.git";
    let ask = json!({"capability": "git_repo", "upstream": upstream, "reason": "r"});
    let filed = agent.call("propose_capability", ask).unwrap();
    assert_eq!(filed.get("use"), None, "there is none yet");
    let id = filed["id"].clone();
    operator.ask(json!({"op": "approve", "id": id})).unwrap();
    operator.ask(json!({"op": "applied", "id": id, "generation": 2, "digest": "sha256:00"})).unwrap();
    let told = agent.call("wait_decision", json!({"id": id})).unwrap();
    assert_eq!(told["use"], "git clone git://git-gate/api.git");
    assert_eq!(
        told["use_address"],
        format!("git config --global url.git://git-gate/api.git.insteadOf {upstream}")
    );
}
