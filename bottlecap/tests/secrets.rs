//! Secrets from each source reach egress and are nowhere else: in no file, no argument, no environment, no log, nothing of the bottle.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::{Person, appears, told};

/// What each source gives. Long enough for egress, and nothing else looks like it.
const SECRETS: [&str; 4] = [
    "env-4f1c9b7e2a8d4e6fb3c5",
    "file-9d2e7c1b5a8f4c3eb6d0",
    "command-1b8e4d7a9c2f5e3db0a6",
    "keyring-6c3a9e1d8b4f7c2ea5d0",
];
/// What stands in the routes, and so in the state: to show that what is looked for is found.
const KNOWN: &str = "api.known.example";

struct Stage {
    person: Person,
}

impl Stage {
    fn new() -> Stage {
        let stage = Stage { person: Person::new() };
        for directory in ["bin", "config"] {
            fs::create_dir(stage.path(directory)).unwrap();
        }
        let [_, file, command, keyring] = SECRETS;
        fs::write(stage.path("config/token"), format!("{file}\n")).unwrap();
        stage.program("vault", &format!("[ \"$1 $2\" = 'read x' ] && echo {command}"));
        stage.program(
            "secret-tool",
            &format!("[ \"$*\" = 'lookup account me service api' ] && echo {keyring}"),
        );
        let manifest = "name: web\nroutes: routes.yaml\nsecrets:\n  A: {env: OUTSIDE}\n  B: {file: token}\n  \
                        C: {command: [vault, read, x]}\n  D: {keyring: {service: api, account: me}}\n";
        fs::write(stage.path("config/bottle.yaml"), manifest).unwrap();
        let mut routes = format!("routes:\n  - host: {KNOWN}\n");
        for name in ["A", "B", "C", "D"] {
            let lower = name.to_lowercase();
            routes.push_str(&format!(
                "  - host: {lower}.example\n    auth_scheme: bearer\n    token_env: {name}\n"
            ));
        }
        fs::write(stage.path("config/routes.yaml"), routes).unwrap();
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.person.path(name)
    }

    fn program(&self, name: &str, script: &str) {
        fs::write(self.path("bin").join(name), format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(self.path("bin").join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn bottlecap(&self, words: &[&str]) -> Output {
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        self.person.command(words).env("PATH", path).env("OUTSIDE", SECRETS[0]).output().unwrap()
    }

    fn said(&self, words: &[&str]) -> String {
        told(&self.bottlecap(words))
    }

    fn start(&self, script: &str) -> String {
        let manifest = self.path("config/bottle.yaml").display().to_string();
        self.said(&["start", "--bottle", &manifest, "--", "sh", "-c", script])
    }
}

/// Where `needle` is below `directory`.
fn found(directory: &Path, needle: &str) -> Vec<PathBuf> {
    let output = Command::new("grep").args(["-rlaF", "--devices=skip", "--", needle]).arg(directory).output();
    let output = output.unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(PathBuf::from).collect()
}

/// Itself and all that it started.
fn family(pid: i64) -> Vec<i64> {
    let output = Command::new("ps").args(["-eo", "pid=,ppid="]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let pairs: Vec<(i64, i64)> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
        })
        .collect();
    let mut all = vec![pid];
    let mut next = 0;
    while next < all.len() {
        let parent = all[next];
        all.extend(pairs.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    all
}

#[test]
fn a_secret_is_with_egress_and_nowhere_else() {
    let stage = Stage::new();
    let script = "env > seen; cat /proc/*/cmdline /proc/*/environ >> seen 2>&1; grep -ra example /etc /home /run /tmp >> seen 2>/dev/null; \
                  mv seen found; exec sleep 600";
    let started = stage.start(script);
    assert!(started.starts_with("web runs"), "{started}");
    appears(&stage.path("work/found"));
    let info: serde_json::Value = serde_json::from_str(&stage.said(&["info", "web", "--json"])).unwrap();
    let holder = info["pid"].as_i64().unwrap();
    let family = family(holder);
    assert!(family.len() >= 5, "the holder, the supervisor, its daemons and the wall: {family:?}");
    let said = [
        stage.said(&["info", "web"]),
        stage.said(&["logs", "web"]),
        stage.said(&["routes", "show"]),
        stage.said(&["operator", "--json"]),
        stage.said(&["audit", "export"]),
        stage.said(&["list", "--json"]),
    ]
    .concat();
    assert!(!found(&stage.path("state"), KNOWN).is_empty(), "what is in the state is found there");
    assert!(fs::read_to_string(stage.path("work/found")).unwrap().contains("BOTTLECAP_MCP_URL"));
    assert!(said.contains(KNOWN));
    for secret in SECRETS {
        for directory in ["state", "run", "work"] {
            assert_eq!(found(&stage.path(directory), secret), Vec::<PathBuf>::new(), "{secret}");
        }
        assert!(!said.contains(secret), "{secret} is said");
        for pid in &family {
            let process = Path::new("/proc").join(pid.to_string());
            let text = |name: &str| fs::read(process.join(name)).unwrap_or_default();
            assert!(
                !String::from_utf8_lossy(&text("cmdline")).contains(secret),
                "{secret}: arguments of {pid}"
            );
            // The holder has the environment of whoever started it, and hands none of it on.
            let own = *pid == holder && secret == SECRETS[0];
            assert!(own || !String::from_utf8_lossy(&text("environ")).contains(secret), "{secret}: {pid}");
        }
    }
    let holders = fs::read(format!("/proc/{holder}/environ")).unwrap();
    assert!(String::from_utf8_lossy(&holders).contains(SECRETS[0]), "what is looked for would be seen");
    assert!(stage.said(&["stop", "web"]).contains("has ended"));
    for secret in SECRETS {
        assert_eq!(found(&stage.path("state"), secret), Vec::<PathBuf>::new(), "after the end");
    }
}

#[test]
fn a_program_that_gives_no_secret_stops_the_start() {
    let stage = Stage::new();
    stage.program("vault", "echo no such item >&2; exit 1");
    let said = stage.start("true");
    assert!(said.contains("vault did not give the secret `C`: exit status: 1"), "{said}");
    assert!(said.contains("no such item"), "the program speaks to the person: {said}");
    fs::remove_file(stage.path("bin/secret-tool")).unwrap();
    stage.program("vault", &format!("echo {}", SECRETS[2]));
    let said = stage.start("true");
    assert!(
        said.contains("install libsecret-tools") || said.contains("did not give the secret `D`"),
        "{said}"
    );
}

#[test]
fn a_program_beside_the_command_is_not_taken_for_one_of_the_hosts() {
    let stage = Stage::new();
    fs::remove_file(stage.path("bin/vault")).unwrap();
    let planted = stage.path("work/vault");
    fs::write(&planted, "#!/bin/sh\ntouch ran\necho planted-secret-of-some-length\n").unwrap();
    fs::set_permissions(&planted, fs::Permissions::from_mode(0o755)).unwrap();
    let said = stage.start("true");
    assert!(said.contains("cannot run vault for the secret `C`"), "{said}");
    assert!(!stage.path("work/ran").exists());
}
