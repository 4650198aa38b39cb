//! What egress holds is asked about on the desk, and what was decided is told back; the desk's own word lets nothing pass.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::Bundle;
use jiff::Timestamp;
use proposal::peer::{Answer, DATAGRAM_MAX, Found, Held, Hold, Question, Verdict, Word, datagram, message};
use serde_json::{Value, json};

/// An egress that holds what the test says, and notes what it is told.
struct Voice {
    socket: Arc<UnixDatagram>,
    held: Arc<Mutex<Vec<String>>>,
    decided: Receiver<(String, Verdict, String)>,
}

impl Voice {
    fn of(socket: UnixDatagram) -> Voice {
        let (socket, held) = (Arc::new(socket), Arc::new(Mutex::new(Vec::<String>::new())));
        let (tell, decided) = channel();
        std::thread::spawn({
            let (socket, held) = (Arc::clone(&socket), Arc::clone(&held));
            move || {
                let mut buffer = vec![0; DATAGRAM_MAX];
                while let Ok(length @ 1..) = socket.recv(&mut buffer) {
                    let answer = match message::<Question>(&buffer[..length]).unwrap() {
                        Question::Refusal { seq, .. } => Answer::Refusal { seq, refusal: None },
                        Question::Head { seq } => Answer::Head { seq, records: 0, hash: "0".repeat(64) },
                        Question::Holds { seq } => Answer::Holds { seq, ids: held.lock().unwrap().clone() },
                        Question::Finding { seq, .. } => Answer::Finding { seq, finding: None },
                        Question::Decide { seq, id, verdict, reason, .. } => {
                            let _ = tell.send((id, verdict, reason));
                            Answer::Decided { seq, waited: true }
                        }
                    };
                    socket.send(&datagram(&answer).unwrap()).unwrap();
                }
            }
        });
        Voice { socket, held, decided }
    }

    fn say(&self, word: &Word) {
        self.socket.send(&datagram(word).unwrap()).unwrap();
    }

    fn hold(&self, number: u8) -> Hold {
        let hold = hold(number);
        self.held.lock().unwrap().push(hold.id.clone());
        self.say(&Word::Held { hold: hold.clone() });
        hold
    }

    fn told(&self) -> (String, Verdict, String) {
        self.decided.recv_timeout(Duration::from_secs(30)).unwrap()
    }
}

fn hold(number: u8) -> Hold {
    Hold {
        id: format!("{number:02x}").repeat(16),
        digest: format!("sha256:{}", format!("{number:02x}").repeat(32)),
        at: Timestamp::now(),
        until: Timestamp::now() + Duration::from_secs(600),
        what: Held::Request {
            scheme: "https".to_owned(),
            host: "api.example.com".to_owned(),
            port: 443,
            method: "POST".to_owned(),
            path: "/v1".to_owned(),
            body: 9,
        },
        findings: vec![Found {
            rule: "github-pat".to_owned(),
            position: "body".to_owned(),
            commit: None,
            line: 1,
            excerpt: "key=****".to_owned(),
        }],
        found: 1,
    }
}

fn start() -> (Bundle, Voice) {
    let (bundle, socket) = Bundle::with_voice();
    (bundle, Voice::of(socket))
}

#[test]
fn what_is_held_waits_on_the_desk_and_a_no_is_told() {
    let (bundle, voice) = start();
    let operator = bundle.operator();
    let mut watch = operator.watch();
    let hold = voice.hold(1);
    let id = watch.next_pending();
    let view = operator.view(json!({"op": "show", "id": id}));
    assert_eq!(view.proposal.held(), Some(&hold));
    operator.view(json!({"op": "reject", "id": id, "reason": "it is a real key"}));
    assert_eq!(voice.told(), (hold.id, Verdict::Reject, "it is a real key".to_owned()));
    // The same content under another name is that no.
    let mut again = self::hold(1);
    again.id = "ff".repeat(16);
    voice.say(&Word::Held { hold: again.clone() });
    assert_eq!(voice.told(), (again.id, Verdict::Reject, "it is a real key".to_owned()));
}

#[test]
fn a_yes_is_told_when_the_host_has_put_it_in_force_and_not_before() {
    let (bundle, voice) = start();
    let operator = bundle.operator();
    let mut watch = operator.watch();
    let hold = voice.hold(2);
    let id = watch.next_pending();
    operator.view(json!({"op": "approve", "id": id, "max_uses": 1}));
    operator.view(json!({"op": "applying", "id": id, "digest": "sha256:00"}));
    assert!(voice.decided.try_recv().is_err());
    operator.view(json!({"op": "applied", "id": id, "generation": 2, "digest": "sha256:00"}));
    assert_eq!(voice.told(), (hold.id, Verdict::Approve, String::new()));
    voice.say(&Word::Exhausted { grant: id.as_str().unwrap().to_owned() });
    loop {
        let changed = watch.next();
        if changed.iter().any(|view| view["state"] == "exhausted") {
            break;
        }
    }
}

/// The daemon sees its new table before the host has said that it is in force.
#[test]
fn what_is_used_up_before_it_is_said_to_be_in_force_ends_all_the_same() {
    let (bundle, voice) = start();
    let operator = bundle.operator();
    let mut watch = operator.watch();
    voice.hold(2);
    let id = watch.next_pending();
    operator.view(json!({"op": "approve", "id": id, "max_uses": 1}));
    operator.view(json!({"op": "applying", "id": id, "digest": "sha256:00"}));
    voice.say(&Word::Exhausted { grant: id.as_str().unwrap().to_owned() });
    // Said after that, so that it was heard.
    voice.hold(3);
    watch.next_pending();
    operator.view(json!({"op": "applied", "id": id, "generation": 2, "digest": "sha256:00"}));
    while !watch.next().iter().any(|view| view["id"] == id && view["state"] == "exhausted") {}
    // The same content is asked about anew.
    let mut again = hold(2);
    again.id = "ff".repeat(16);
    voice.say(&Word::Held { hold: again });
    assert_ne!(watch.next_pending(), id);
}

#[test]
fn whoever_waits_no_more_is_taken_off_the_desk() {
    let (bundle, voice) = start();
    let mut watch = bundle.operator().watch();
    let (first, second) = (voice.hold(3), voice.hold(4));
    let ids = [watch.next_pending(), watch.next_pending()];
    voice.say(&Word::Dropped { id: first.id.clone() });
    let withdrawn = |watch: &mut common::Watch| loop {
        if let Some(view) = watch.next().into_iter().find(|view| view["state"] == "withdrawn") {
            return view["proposal"]["held"]["id"].clone();
        }
    };
    assert_eq!(withdrawn(&mut watch), json!(first.id));
    // A word that is lost is made good by asking.
    voice.held.lock().unwrap().clear();
    assert_eq!(withdrawn(&mut watch), json!(second.id));
    let operator = bundle.operator();
    for id in ids {
        let refused = operator.ask(json!({"op": "approve", "id": id})).unwrap_err();
        assert_eq!(refused.code, "wrong-state");
    }
}

#[test]
fn what_nobody_could_be_shown_or_is_not_egress_to_hold_is_not_asked_about() {
    let (bundle, voice) = start();
    let mut odd = hold(5);
    odd.findings.clear();
    voice.say(&Word::Held { hold: odd.clone() });
    assert_eq!(voice.told().0, odd.id);
    let mut push = hold(6);
    push.what =
        Held::Push { repo: "web".to_owned(), upstream: "u".to_owned(), refs: vec![], changes: 0, objects: 0 };
    voice.say(&Word::Held { hold: push });
    voice.say(&Word::Exhausted { grant: "../x".to_owned() });
    // Said after those, so that they were looked at.
    let mut watch = bundle.operator().watch();
    voice.hold(7);
    let id = watch.next_pending();
    let all: Value = bundle.operator().ask(json!({"op": "list"})).unwrap();
    let ids: Vec<&Value> = all["requests"].as_array().unwrap().iter().map(|view| &view["id"]).collect();
    assert_eq!(ids, [&id]);
}

#[test]
fn an_agent_is_told_until_when_its_request_waits_and_cannot_approve_by_asking_again() {
    let (bundle, voice) = start();
    let mut watch = bundle.operator().watch();
    let hold = voice.hold(8);
    let id = watch.next_pending();
    let seen = bundle.agent().call("get_request", json!({"id": id})).unwrap();
    assert_eq!((&seen["state"], &seen["held_until"]), (&json!("pending"), &json!(hold.until)));
    let said = bundle.agent().call("propose_route", json!({"held": hold, "reason": "r"})).unwrap_err();
    assert_eq!(said["code"], "invalid-proposal");
}

#[test]
fn with_nobody_there_what_is_held_is_refused_at_once_and_told_why() {
    let (bundle, voice) = start();
    let hold = voice.hold(9);
    let (id, verdict, reason) = voice.told();
    assert_eq!((id, verdict), (hold.id, Verdict::Reject));
    assert!(reason.starts_with("operator_offline") && reason.contains("propose_capability"), "{reason}");
    let all = bundle.operator().ask(json!({"op": "list"})).unwrap();
    assert_eq!(all["requests"], json!([]), "nothing is asked that nobody can answer in time");
    // That was a person; from now on there is one.
    let mut watch = bundle.operator().watch();
    voice.hold(10);
    watch.next_pending();
}

#[test]
fn what_waits_already_goes_on_when_the_operator_leaves() {
    let (bundle, voice) = start();
    let mut watch = bundle.operator().watch();
    let hold = voice.hold(11);
    let id = watch.next_pending();
    drop(watch);
    voice.say(&Word::Held { hold: hold.clone() });
    let seen = bundle.agent().call("get_request", json!({"id": id})).unwrap();
    assert_eq!(seen["state"], "pending");
    bundle.operator().view(json!({"op": "reject", "id": id, "reason": "no"}));
    assert_eq!(voice.told(), (hold.id, Verdict::Reject, "no".to_owned()));
}
