//! A secret in the desktop's own keyring: gnome-keyring, unlocked, on a session bus that exists for one test.
//!
//! `scripts/need.sh keyring` installs it; without it these tests fail and say so.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Output;
use std::thread;

use support::{Person, bottlecap, told};

const SECRET: &str = "keyring-3b7f0d9c6e2a4815b0d7";
/// Unlocks a keyring, puts the secret of standard input into it, and does what is asked for. The bus takes the keyring along when it ends.
const SESSION: &str = r#"
set -eu
printf pw | gnome-keyring-daemon --unlock --components=secrets >/dev/null 2>&1
secret-tool store --label=api service api account me
exec "$@" </dev/null
"#;

/// `words` of bottlecap beside an unlocked keyring with the secret in it.
fn beside_a_keyring(person: &Person, words: &[&str]) -> Output {
    for program in ["dbus-run-session", "gnome-keyring-daemon", "secret-tool"] {
        let found =
            std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|path| path.join(program).exists());
        assert!(found, "no {program}: run `scripts/need.sh keyring`");
    }
    for place in ["home", "run"] {
        std::fs::create_dir_all(person.path(place)).unwrap();
    }
    let mut command = person.starts("dbus-run-session");
    command.args(["--", "sh", "-c", SESSION, "sh"]).arg(bottlecap()).args(words);
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(SECRET.as_bytes()).unwrap();
    drop(writer);
    command.stdin(reader).output().unwrap()
}

fn manifest(person: &Person, port: u16, account: &str) -> String {
    person.write(
        "bottle.yaml",
        &format!("routes: routes.yaml\nsecrets:\n  KEY: {{keyring: {{service: api, account: {account}}}}}\n"),
    );
    person.write(
        "routes.yaml",
        &format!(
            "routes:\n  - {{host: 127.0.0.1, scheme: http, ports: [{port}], allow_private: [\"127.0.0.1:{port}\"], auth_scheme: bearer, \
             token_env: KEY}}\n"
        ),
    );
    person.path("bottle.yaml").display().to_string()
}

#[test]
fn a_secret_of_the_keyring_reaches_egress_and_no_argument_and_no_file() {
    let person = Person::new();
    let api = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = api.local_addr().unwrap().port();
    let seen = thread::spawn(move || {
        let (mut stream, _) = api.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        let head: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
        head
    });
    let manifest = manifest(&person, port, "me");
    let script = format!(
        "cat /proc/*/cmdline /proc/*/environ > seen 2>/dev/null; curl -sS --noproxy '' -x http://egress:9099 http://127.0.0.1:{port}/v1"
    );
    let output = beside_a_keyring(
        &person,
        &["run", "--name", "web", "--bottle", &manifest, "--", "sh", "-c", &script],
    );
    assert!(output.status.success(), "{}", told(&output));
    let head = seen.join().unwrap();
    assert!(head.contains(&format!("authorization: Bearer {SECRET}")), "{head:?}");
    assert!(!told(&output).contains(SECRET));
    let mut inside = String::new();
    std::fs::File::open(person.path("work/seen")).unwrap().read_to_string(&mut inside).unwrap();
    assert!(inside.contains("curl") && !inside.contains(SECRET));
    for place in ["state", "run", "work"] {
        let found = person
            .starts("grep")
            .args(["-rlaF", "--devices=skip", "--", SECRET])
            .arg(person.path(place))
            .output();
        assert_eq!(told(&found.unwrap()), "", "{place}");
    }
}

#[test]
fn an_entry_that_the_keyring_does_not_have_stops_the_start() {
    let person = Person::new();
    let manifest = manifest(&person, 1, "nobody");
    let output = beside_a_keyring(&person, &["run", "--bottle", &manifest, "--", "touch", "ran"]);
    assert_eq!(output.status.code(), Some(64), "{}", told(&output));
    assert!(told(&output).contains("secret-tool did not give the secret `KEY`"), "{}", told(&output));
    assert!(!person.path("work/ran").exists());
}
