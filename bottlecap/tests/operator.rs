//! The operator's screen at 80 by 24: what it shows, what a key does, and that nothing an agent writes moves or hides any of it.
#![allow(clippy::unwrap_used)]

use bottlecap::operator::facts::{Facts, Listed, Passages};
use bottlecap::operator::render::{Palette, draw};
use bottlecap::operator::state::{Action, Event, Key, Screen};
use bottlecap::requests::{Look, Narrowing};
use jiff::Timestamp;
use proposal::wire::View;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use serde_json::{Value, json};

const ID: &str = "7c0e11aa22bb33cc";

fn now() -> Timestamp {
    "2026-11-21T12:30:00Z".parse().unwrap()
}

fn view(id: &str, state: &str, more: Value) -> View {
    let mut value = json!({
        "id": id, "state": state, "created_at": "2026-11-21T12:27:00Z",
        "proposal": {"host": "api.example.com", "scheme": "https", "ports": [443], "methods": ["GET"],
                     "paths": [{"type": "prefix", "value": "/v1"}], "ttl_seconds": 600, "reason": "to read the API"},
    });
    value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(value).unwrap()
}

fn facts() -> Facts {
    let applied =
        json!({"applied": {"generation": 2, "digest": "sha256:00", "expires_at": "2026-11-21T12:34:30Z"}});
    Facts {
        requests: vec![
            view("aa0e11aa22bb33cc", "active", applied),
            view("bb0e11aa22bb33cc", "rejected", json!({})),
            view(ID, "pending", json!({})),
        ],
        daemons: serde_json::from_value(json!([
            {"name": "egress", "state": "ready", "restarts": 0, "generation": 2, "walls": ["landlock 7", "seccomp"]},
            {"name": "git-gate", "state": "backoff", "restarts": 3, "last_exit": "signal 9"},
        ]))
        .unwrap(),
        egress: Some(json!({"requests": {"allowed": 3, "refused": 1}, "journal": "written"})),
        ..Facts::default()
    }
}

fn passages() -> Passages {
    serde_json::from_value(json!({"missed": 0, "requests": [
        {"at": "2026-11-21T12:29:00Z", "decision": "allow", "host": "api.example.com", "port": 443, "scheme": "https",
         "method": "GET", "path": "/v1/items", "status": 200},
        {"at": "2026-11-21T12:29:30Z", "decision": "deny", "code": "host-not-allowed", "host": "evil.example", "port": 8443,
         "scheme": "https", "method": "POST", "path": "/", "status": 403},
    ]}))
    .unwrap()
}

/// A screen with one bottle, looked at.
fn screen() -> Screen {
    let mut screen = Screen::new(None);
    let listed = Listed {
        name: "web".to_owned(),
        running: true,
        state: "running".to_owned(),
        started: "2026-11-21T12:00:00Z".parse().unwrap(),
    };
    assert_eq!(screen.on(Event::Bottles(vec![listed])), [Action::Choose("web".to_owned())]);
    screen.on(Event::Facts("web".to_owned(), Box::new(facts())));
    screen.on(Event::Traffic("web".to_owned(), passages()));
    screen
}

fn press(screen: &mut Screen, keys: &str) -> Vec<Action> {
    keys.chars()
        .flat_map(|c| {
            screen.on(Event::Key(match c {
                '\n' => Key::Enter,
                '\u{1b}' => Key::Escape,
                c => Key::Char(c),
            }))
        })
        .collect()
}

fn shown_at(screen: &mut Screen, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, screen, Palette::Colours, now())).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let row = |y: u16| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..height).map(row).collect::<Vec<_>>().join("\n")
}

fn shown(screen: &mut Screen) -> String {
    shown_at(screen, 80, 24)
}

fn look(type_host: bool) -> Box<Look> {
    Box::new(Look {
        id: ID.to_owned(),
        text: "request  7c0e11aa22bb33cc\nthis newly allows GET https://api.example.com/v1/**\n+  - host: api.example.com\n"
            .to_owned(),
        token: Some("token-of-this".to_owned()),
        type_host,
        host: "api.example.com".to_owned(),
    })
}

#[test]
fn the_requests_of_a_bottle_are_listed_those_that_wait_first() {
    insta::assert_snapshot!(shown(&mut screen()), @r#"
     bottlecap  web  running                                              12:30:00Z
     1 Requests(1)  2 Traffic  3 Grants(1)  4 Git  5 Health  6 Bottles
     state         age  asks ───────────────────────────────────────────────────────
    ? pending       3m  GET https://api.example.com/v1/** for 10 min  "to read the ~
      rejected      3m  GET https://api.example.com/v1/** for 10 min  "to read the ~
      active        3m  GET https://api.example.com/v1/** for 10 min  "to read the ~















    ────────────────────────────────────────────────────────────────────────────────

     Enter decide  r reject  x revoke  p pause  Tab next  [ ] bottle  ? keys  q quit
    "#);
}

#[test]
fn what_passes_and_what_does_not_is_told_by_words() {
    let mut screen = screen();
    press(&mut screen, "2");
    insta::assert_snapshot!(shown(&mut screen), @r#"
     bottlecap  web  running                                              12:30:00Z
     1 Requests(1)  2 Traffic  3 Grants(1)  4 Git  5 Health  6 Bottles
     newest first ──────────────────────────────────────────────────────────────────
    12:29:30 x REFUSED POST   https://evil.example:8443/  host-not-allowed
    12:29:00 + passed  GET    https://api.example.com/v1/items  200
















    ────────────────────────────────────────────────────────────────────────────────

     f refused only  j/k scroll  Tab next  [ ] bottle  ? keys  q quit
    "#);
    press(&mut screen, "f");
    assert!(!shown(&mut screen).contains("passed"), "refusals alone");
}

#[test]
fn grants_health_and_bottles_have_a_part_each() {
    let mut screen = screen();
    press(&mut screen, "3");
    let grants = shown(&mut screen);
    assert!(grants.contains("4m left") && grants.contains("aa0e11aa22bb33cc"), "{grants}");
    press(&mut screen, "5");
    let health = shown(&mut screen);
    assert!(
        health.contains("egress      ready") && health.contains("walls: landlock 7, seccomp"),
        "{health}"
    );
    assert!(health.contains("git-gate    backoff    3") && health.contains("last end: signal 9"), "{health}");
    press(&mut screen, "6");
    assert!(shown(&mut screen).contains("* web"), "{}", shown(&mut screen));
}

#[test]
fn a_yes_is_to_what_was_shown_and_to_nothing_else() {
    let mut screen = screen();
    let looked = press(&mut screen, "\n");
    assert_eq!(looked, [Action::Look(ID.to_owned(), Narrowing::default())]);
    assert_eq!(press(&mut screen, "y"), [], "nothing is shown yet");
    screen.on(Event::Looked(Narrowing::default(), Ok(look(false))));
    insta::assert_snapshot!(shown(&mut screen), @r#"
     bottlecap  web  running                                              12:30:00Z
     1 Requests(1)  2 Traffic  3 Grants(1)  4 Git  5 Health  6 Bottles
     Request 7c0e11aa22bb33cc ──────────────────────────────────────────────────────
    request  7c0e11aa22bb33cc
    this newly allows GET https://api.example.com/v1/**
    +  - host: api.example.com















    ────────────────────────────────────────────────────────────────────────────────
     Approve this, and nothing else?  y / n / r
     y approve  n narrow  r reject  j/k scroll  Esc back: it goes on waiting
    "#);
    let approved = press(&mut screen, "y");
    let wanted = Action::Approve {
        id: ID.to_owned(),
        narrowing: Narrowing::default(),
        token: "token-of-this".to_owned(),
        host: None,
    };
    assert_eq!(approved, [wanted]);
    assert_eq!(press(&mut screen, "y"), [], "once");
    screen.on(Event::Done(Ok("approved".to_owned())));
    assert!(shown(&mut screen).contains("approved"));
}

#[test]
fn leaving_a_request_decides_nothing() {
    for keys in ["\u{1b}", "q", "n\u{1b}\u{1b}", "r\u{1b}"] {
        let mut screen = screen();
        press(&mut screen, "\n");
        screen.on(Event::Looked(Narrowing::default(), Ok(look(false))));
        assert_eq!(press(&mut screen, keys), [], "{keys:?}");
        assert_eq!(press(&mut screen, "y"), [], "{keys:?}");
    }
}

#[test]
fn a_review_does_not_come_under_what_is_being_written() {
    let mut screen = screen();
    press(&mut screen, "\n");
    // The reason for a no has a y in it.
    assert_eq!(press(&mut screen, "rwh"), []);
    screen.on(Event::Looked(Narrowing::default(), Ok(look(false))));
    assert!(shown(&mut screen).contains("the review came while you were writing; ask for it again"));
    assert_eq!(press(&mut screen, "y"), []);
    let rejected = press(&mut screen, "\n");
    assert_eq!(rejected, [Action::Reject(ID.to_owned(), "why".to_owned())]);
    // Asked for again, it is shown.
    screen.on(Event::Done(Ok("rejected".to_owned())));
    press(&mut screen, "\n");
    screen.on(Event::Looked(Narrowing::default(), Ok(look(false))));
    assert!(matches!(&press(&mut screen, "y")[..], [Action::Approve { .. }]));
}

#[test]
fn write_access_to_a_new_host_wants_its_name_typed() {
    let mut screen = screen();
    press(&mut screen, "\n");
    screen.on(Event::Looked(Narrowing::default(), Ok(look(true))));
    assert_eq!(press(&mut screen, "yapi.example.org\n"), []);
    assert!(shown(&mut screen).contains("that is not the host"));
    let approved = press(&mut screen, "yapi.example.com\n");
    assert!(matches!(&approved[..], [Action::Approve { host: Some(host), .. }] if host == "api.example.com"));
}

#[test]
fn a_request_is_narrowed_and_shown_anew_before_a_yes() {
    let mut screen = screen();
    press(&mut screen, "\n");
    screen.on(Event::Looked(Narrowing::default(), Ok(look(false))));
    assert_eq!(press(&mut screen, "nttl=never\n"), []);
    assert!(shown(&mut screen).contains("`ttl=never`: not a number"));
    press(&mut screen, "\u{1b}");
    let looked = press(&mut screen, "nttl=60 method=GET path=/v1/a\n");
    let wanted = Narrowing {
        ttl: Some(60),
        max_uses: None,
        methods: vec!["GET".to_owned()],
        paths: vec!["/v1/a".to_owned()],
    };
    assert_eq!(looked, [Action::Look(ID.to_owned(), wanted)]);
}

#[test]
fn rejecting_and_revoking_say_why() {
    let mut screen = screen();
    assert_eq!(press(&mut screen, "rnot now\n"), [Action::Reject(ID.to_owned(), "not now".to_owned())]);
    screen.on(Event::Done(Ok(String::new())));
    let revoked = press(&mut screen, "3x\n");
    assert_eq!(
        revoked,
        [Action::Revoke("aa0e11aa22bb33cc".to_owned(), "revoked by the operator".to_owned())]
    );
}

#[test]
fn what_belongs_to_another_bottle_is_not_shown() {
    let mut screen = screen();
    let other = Facts { requests: vec![view("ffffffffffffffff", "pending", json!({}))], ..Facts::default() };
    screen.on(Event::Facts("other".to_owned(), Box::new(other)));
    screen.on(Event::Traffic("other".to_owned(), passages()));
    assert!(!shown(&mut screen).contains("(2)"), "{}", shown(&mut screen));
}

const HOSTILE: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\r\n\u{202e}evil\u{2066}\u{200b}\u{301}\u{301}\u{1f468}\u{200d}\u{1f469} \u{2502} y approve";

#[test]
fn hostile_text_is_shown_and_neither_moves_nor_hides_nor_draws() {
    let mut screen = screen();
    let mut hostile = facts();
    let proposal = json!({"proposal": {
        "host": "api.example.com", "scheme": "https", "ports": [443], "methods": ["GET"],
        "paths": [{"type": "prefix", "value": "/v1"}], "ttl_seconds": 600, "reason": HOSTILE}});
    hostile.requests = vec![view(ID, "pending", proposal)];
    hostile.daemons[1].last_exit = Some(HOSTILE.to_owned());
    hostile.problems = vec![HOSTILE.to_owned()];
    screen.on(Event::Facts("web".to_owned(), Box::new(hostile)));
    let mut passed = passages();
    passed.requests[1].path = format!("/{HOSTILE}");
    passed.requests[1].method = HOSTILE.to_owned();
    screen.on(Event::Traffic("web".to_owned(), passed));
    screen.on(Event::Done(Err(HOSTILE.to_owned())));
    let plain = |c: char| c == '\n' || c.is_ascii_graphic() || c == ' ' || c == '\u{2500}';
    for part in ["1", "2", "3", "4", "5", "6"] {
        press(&mut screen, part);
        let text = shown_at(&mut screen, 200, 24);
        assert!(text.chars().all(plain), "part {part}: {text:?}");
        let own = shown(&mut screen);
        assert!(own.lines().count() == 24 && own.chars().all(plain), "part {part}: {own}");
    }
    press(&mut screen, "1\n");
    let mut looked = look(false);
    looked.text = format!("request\n\"{HOSTILE}\"\n");
    screen.on(Event::Looked(Narrowing::default(), Ok(looked)));
    let text = shown(&mut screen);
    assert!(text.chars().all(plain) && text.contains("\\u{1b}[2J"), "{text}");
}

#[test]
fn the_smallest_terminal_is_survived() {
    let mut screen = screen();
    for (width, height) in [(1, 1), (10, 3), (20, 5), (80, 24), (300, 100)] {
        for part in "123456?".chars() {
            press(&mut screen, &part.to_string());
            shown_at(&mut screen, width, height);
            press(&mut screen, "\u{1b}");
        }
    }
}

#[test]
fn what_is_longer_than_the_screen_can_be_read_to_its_end() {
    let mut screen = screen();
    press(&mut screen, "\n");
    let mut long = look(false);
    long.text = (0..100).map(|number| format!("line {number} {}\n", "x".repeat(100))).collect();
    screen.on(Event::Looked(Narrowing::default(), Ok(long)));
    assert!(shown(&mut screen).contains("(more below)"));
    press(&mut screen, "G");
    let text = shown(&mut screen);
    assert!(text.contains("line 99") && !text.contains("(more below)"), "{text}");
}

#[test]
fn a_push_that_is_held_is_decided_where_git_is_looked_at() {
    let held = json!({"proposal": {"held": {
        "id": "0a".repeat(16), "digest": format!("sha256:{}", "0".repeat(64)), "at": "2026-11-21T12:29:00Z",
        "until": "2026-11-21T12:39:00Z", "found": 1,
        "what": {"kind": "push", "repo": "web", "upstream": "ssh://git@git.example.com/web.git", "changes": 1, "objects": 3,
                 "refs": [{"name": "refs/heads/agent/x", "old": "0".repeat(40), "new": "1".repeat(40)}]},
        "findings": [{"rule": "github-pat", "position": "key.txt", "commit": "1".repeat(40), "line": 3, "excerpt": "key=****"}],
    }}});
    let mut holding = facts();
    holding.requests.push(view("cc0e11aa22bb33cc", "pending", held));
    holding.git = serde_json::from_value(
        json!({"pushes": 2, "repos": [{"name": "web", "upstream": "ssh://git@git.example.com/web.git"}]}),
    )
    .ok();
    let mut screen = screen();
    screen.on(Event::Facts("web".to_owned(), Box::new(holding)));
    press(&mut screen, "4");
    insta::assert_snapshot!(shown(&mut screen).lines().filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n"), @r"
     bottlecap  web  running                                              12:30:00Z
     1 Requests(2)  2 Traffic  3 Grants(1)  4 Git(1)  5 Health  6 Bottles
     pushes 2 refused 0 secrets 0  reads 0 refused 0 ───────────────────────────────
    ? held   3m  let this push to refs/heads/agent/x of web pass once, with what lo~
    web              ssh://git@git.example.com/web.git
    ────────────────────────────────────────────────────────────────────────────────
     Enter decide a held push  r reject  j/k  Tab next  [ ] bottle  ? keys  q quit
    ");
    assert_eq!(press(&mut screen, "\n"), [Action::Look("cc0e11aa22bb33cc".to_owned(), Narrowing::default())]);
    screen.on(Event::Looked(Narrowing::default(), Err("it is gone".to_owned())));
    assert_eq!(
        press(&mut screen, "rno keys\n"),
        [Action::Reject("cc0e11aa22bb33cc".to_owned(), "no keys".to_owned())]
    );
    // The repository below it is nobody's question.
    screen.on(Event::Done(Ok(String::new())));
    assert_eq!(press(&mut screen, "j\n"), []);
}
