//! From inside a daemon: what it cannot reach. And from outside, without the walls, that each of these attacks works.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use crate::common::{Bundle, Ground, NAMES, fake_daemon, is_root, text};

const NOBODY: u32 = 65534;

/// Whose uids the daemons have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Uids {
    /// One each.
    Own,
    /// All the same.
    Shared,
}

impl Uids {
    fn of(self, name: &str) -> u32 {
        match (self, name) {
            (Self::Shared, _) if is_root() => NOBODY,
            (Self::Shared, _) => nix::unistd::geteuid().as_raw(),
            (Self::Own, "egress") => 64101,
            (Self::Own, "git-gate") => 64102,
            (Self::Own, _) => 64103,
        }
    }

    /// Those that can be had here.
    fn here() -> Vec<Self> {
        if is_root() { vec![Self::Own, Self::Shared] } else { vec![Self::Shared] }
    }
}

/// Secret files of the daemons, below the root.
const SECRETS: [(&str, &str); 5] = [
    ("egress", "root/run/secrets/egress/TOKEN"),
    ("git-gate", "root/run/secrets/git-gate/TOKEN"),
    ("egress", "root/var/lib/sidecars/egress/ca/ca-key.pem"),
    ("git-gate", "root/git-gate/creds/web.key"),
    ("supervise", "root/var/lib/sidecars/audit/supervise/journal.jsonl"),
];

fn ground(uids: Uids) -> Ground {
    let ground = Ground::new();
    for (name, file) in SECRETS {
        let path = ground.path(file);
        let above: Vec<_> = path.ancestors().skip(1).take_while(|path| !path.ends_with("root")).collect();
        fs::create_dir_all(above[0]).unwrap();
        if uids == Uids::Own {
            chown(above[0], Some(uids.of(name)), Some(uids.of(name))).unwrap();
        }
        fs::write(&path, "t0ps3cret").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        if is_root() {
            chown(&path, Some(uids.of(name)), Some(uids.of(name))).unwrap();
        }
    }
    if uids == Uids::Shared && is_root() {
        let everything = Command::new("chown").args(["-R", "65534:65534"]).arg(ground.path("root")).status();
        assert!(everything.unwrap().success());
    }
    ground
}

fn command(ground: &Ground, uids: Uids) -> Command {
    let mut command = ground.command();
    if uids == Uids::Shared && is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn started(uids: Uids) -> Bundle {
    let ground = ground(uids);
    let command = command(&ground, uids);
    let bundle = ground.start_with(command);
    bundle.log.wait("all daemons are ready");
    bundle
}

/// What an attacker wants of a process.
fn attacks_on(pid: i32) -> Vec<String> {
    vec![
        format!("open /proc/{pid}/environ"),
        format!("open /proc/{pid}/mem"),
        format!("open /proc/{pid}/maps"),
        format!("list /proc/{pid}/fd"),
        format!("list /proc/{pid}/root/"),
        format!("attach {pid}"),
        format!("signal {pid}"),
    ]
}

#[test]
fn a_daemon_cannot_look_into_signal_or_attach_to_its_siblings_and_its_parent() {
    for uids in Uids::here() {
        let bundle = started(uids);
        let pids = NAMES.map(|name| bundle.daemon_pid(name));
        for attacker in NAMES {
            let others = NAMES.iter().zip(pids).filter(|(name, _)| **name != attacker);
            for pid in others.map(|(_, pid)| pid).chain([bundle.pid()]) {
                for attack in attacks_on(pid) {
                    let answer = bundle.ask(attacker, &format!("attack {attack}"));
                    assert!(answer.starts_with("refused"), "{uids:?} {attacker}: {attack}: {answer}");
                }
            }
        }
        assert_eq!(NAMES.map(|name| bundle.daemon_pid(name)), pids);
    }
}

#[test]
fn a_daemon_reaches_its_own_files_and_not_those_of_its_siblings() {
    for uids in Uids::here() {
        let bundle = started(uids);
        let path = |below: &str| bundle.ground.path(below).display().to_string();
        for attacker in NAMES {
            let asked = |attack: String| bundle.ask(attacker, &format!("attack {attack}"));
            for (owner, file) in SECRETS {
                let answer = asked(format!("open {}", path(file)));
                let expected = if owner == attacker { "done" } else { "refused" };
                assert!(answer.starts_with(expected), "{uids:?} {attacker}: {file}: {answer}");
                let run = path(&format!("root/run/sidecars/{owner}/x"));
                let answer = asked(format!("write {run}"));
                assert!(answer.starts_with(expected), "{uids:?} {attacker}: {run}: {answer}");
            }
            for common in ["root/run/sidecars/x", "root/etc/egress/routes.yaml", "bin/egress"] {
                let answer = asked(format!("write {}", path(common)));
                assert!(answer.starts_with("refused"), "{uids:?} {attacker}: {common}: {answer}");
            }
            assert!(asked("list /".to_owned()).starts_with("refused"), "{uids:?} {attacker}");
        }
    }
}

#[test]
fn secret_files_that_two_daemons_of_one_uid_could_read_are_refused() {
    let said = |uids: Uids, files: &[&str], daemons: &str| {
        let ground = Ground::new();
        for file in files {
            let path = ground.path("root/run/secrets").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "t0ps3cret").unwrap();
        }
        let mut command = command(&ground, uids);
        let output = command.args(["--check", "--daemons", daemons]).output().unwrap();
        let said =
            text(&output.stderr).replace(&ground.path("root/run/secrets").display().to_string(), "DIR");
        (output.status.code(), said)
    };
    let good = (Some(0), String::new());
    assert_eq!(
        said(Uids::Shared, &["TOKEN"], "egress,git-gate"),
        (
            Some(64),
            "error: without root the daemons share a uid: egress and git-gate could each read the other's secrets in DIR\n\
             hint: move each file to DIR/egress or DIR/git-gate, or hand the secrets over with --secrets-fd\n"
                .to_owned()
        )
    );
    assert_eq!(said(Uids::Shared, &["TOKEN"], "egress,supervise"), good);
    assert_eq!(said(Uids::Shared, &["egress/TOKEN", "git-gate/KEY"], "egress,git-gate"), good);
    if is_root() {
        assert_eq!(said(Uids::Own, &["TOKEN", "..data/TOKEN"], "egress,git-gate"), good);
    }
    for uids in Uids::here() {
        let (code, said) = said(uids, &["TOKEN", "git-gate/KEY"], "egress,git-gate");
        assert_eq!(code, Some(64));
        assert!(said.starts_with("error: DIR has files beside the directories of the daemons"), "{said}");
    }
}

#[test]
fn egress_and_supervise_execute_nothing_and_git_gate_executes_git_and_no_shell() {
    for uids in Uids::here() {
        let bundle = started(uids);
        let own = bundle.ground.path("bin/egress").display().to_string();
        for name in ["egress", "supervise"] {
            for attack in [
                "exec /bin/sh",
                "start /bin/sh",
                "start git",
                "memory /bin/sh",
                &format!("exec {own}"),
                "exec /proc/self/exe",
            ] {
                let answer = bundle.ask(name, &format!("attack {attack}"));
                assert!(answer.starts_with("refused"), "{uids:?} {name}: {attack}: {answer}");
            }
        }
        for attack in ["exec /bin/sh", "start /bin/sh", "memory /bin/sh", "start /usr/bin/env"] {
            let answer = bundle.ask("git-gate", &format!("attack {attack}"));
            assert!(answer.starts_with("refused"), "{uids:?} {attack}: {answer}");
        }
        assert_eq!(bundle.ask("git-gate", "attack start git"), "done", "{uids:?}");
        for name in NAMES {
            assert!(!bundle.ask(name, "pid").is_empty());
        }
    }
}

#[test]
fn status_says_what_a_daemon_is_confined_by() {
    for uids in Uids::here() {
        let bundle = started(uids);
        let mut client = bundle.ground.bare_command();
        client.args(["status", "--json"]);
        let output = if uids == Uids::Shared { as_nobody(client) } else { client }.output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        for (daemon, name) in status["daemons"].as_array().unwrap().iter().zip(NAMES) {
            let walls = daemon["walls"].to_string();
            let uid = format!("uid {}", uids.of(name));
            assert_eq!(walls.contains(&uid), uids == Uids::Own, "{walls}");
            assert!(walls.contains("landlock") && walls.contains("seccomp"), "{walls}");
            assert_eq!(walls.contains("one exec"), name != "git-gate", "{walls}");
        }
        // supervise tells its operators from its siblings by this where uids do not.
        let environment = bundle.ask("supervise", "environment");
        let told = environment.contains(&format!("BOTTLECAP_SUPERVISOR_PID={}\n", bundle.pid()));
        assert_eq!(told, uids == Uids::Shared, "{environment}");
    }
}

/// A process without walls that holds a secret, and its pid.
struct Bare(Child, i32);

impl Bare {
    fn start() -> Self {
        let mut command = Command::new(fake_daemon());
        command.arg("pause").env("SECRET", "t0ps3cret").stdout(Stdio::piped());
        let mut child = as_nobody(command).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self(child, line.trim().parse().unwrap())
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn as_nobody(mut command: Command) -> Command {
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// The same attack by a process of the daemons' shared uid that has no walls.
fn attack_without_walls(ground: &Ground, attack: &str) -> String {
    let mut command = Command::new(ground.path("bin/egress"));
    command.arg("attack").args(attack.split(' '));
    let output = as_nobody(command).output().unwrap();
    text(&output.stdout).trim().to_owned()
}

#[test]
fn every_attack_works_where_there_are_no_walls() {
    let ground = ground(Uids::Shared);
    let victim = Bare::start();
    let mut attacks = attacks_on(victim.1);
    attacks.extend(SECRETS.map(|(_, file)| format!("open {}", ground.path(file).display())));
    attacks.push(format!("write {}", ground.path("root/run/x").display()));
    attacks.extend(["list /", "exec /bin/sh", "start /bin/sh", "memory /bin/sh"].map(str::to_owned));
    for attack in attacks {
        assert_eq!(attack_without_walls(&ground, &attack), "done", "{attack}");
    }
}

#[test]
fn a_daemon_is_closed_to_others_of_its_uid_from_its_first_instruction() {
    // The stand-in does nothing for itself: what holds was so when its first instruction ran.
    let bundle = started(Uids::Shared);
    let uid = Uids::Shared.of("egress");
    for name in NAMES {
        let pid = bundle.daemon_pid(name);
        for what in ["environ", "mem", "maps"] {
            let answer = attack_without_walls(&bundle.ground, &format!("open /proc/{pid}/{what}"));
            assert!(answer.starts_with("refused"), "{name} {what}: {answer}");
        }
        let answer = attack_without_walls(&bundle.ground, &format!("attach {pid}"));
        assert!(answer.starts_with("refused"), "{name}: {answer}");
        assert_ne!(fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid(), uid);
    }
}

#[test]
fn a_program_that_its_uid_cannot_read_is_run_as_it_is() {
    if !is_root() {
        return;
    }
    let ground = ground(Uids::Own);
    for name in NAMES {
        fs::set_permissions(ground.path("bin").join(name), fs::Permissions::from_mode(0o711)).unwrap();
    }
    let bundle = ground.start();
    bundle.log.wait("all daemons are ready");
    for name in NAMES {
        let pid = bundle.daemon_pid(name);
        assert_eq!(fs::read_link(format!("/proc/{pid}/exe")).unwrap(), bundle.ground.path("bin").join(name));
        // A process that can be dumped has files of its own uid there.
        assert_eq!(fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid(), 0, "{name}");
    }
}

#[test]
fn a_daemon_that_has_our_uid_gets_no_answer_from_the_control_socket() {
    let bundle = started(Uids::Shared);
    let socket = bundle.ground.run_dir().join("supervisor.sock");
    let request = "{\"op\":\"health\"}";
    for name in NAMES {
        assert_eq!(bundle.ask(name, &format!("ask {} {request}", socket.display())), "", "{name}");
    }
    let mut outsider = Command::new(bundle.ground.path("bin/egress"));
    outsider.arg("ask").arg(&socket).arg(request);
    let output = as_nobody(outsider).output().unwrap();
    assert_eq!(text(&output.stdout), "{\"ok\":true,\"result\":{\"healthy\":true}}\n");
}

/// The supervisor as on a kernel without Landlock.
fn without_landlock(ground: &Ground, uids: Uids) -> Command {
    let inner = command(ground, uids);
    let mut outer = Command::new(fake_daemon());
    outer.env_clear().env("PATH", "/usr/bin:/bin").arg("without-landlock");
    outer.arg(inner.get_program()).args(inner.get_args());
    if uids == Uids::Shared { as_nobody(outer) } else { outer }
}

#[test]
fn without_landlock_and_without_uids_nothing_is_started() {
    let ground = ground(Uids::Shared);
    let output = without_landlock(&ground, Uids::Shared).output().unwrap();
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    let said = text(&output.stderr);
    assert!(
        said.starts_with("error: without root the daemons share a uid, and this kernel has no Landlock"),
        "{said}"
    );
    assert!(said.contains("\nhint: Linux 5.19 or newer"), "{said}");
    assert!(!ground.run_dir().exists());
}

#[test]
fn without_landlock_uids_keep_the_daemons_apart_and_the_gap_is_told() {
    if !is_root() {
        return;
    }
    let ground = ground(Uids::Own);
    let command = without_landlock(&ground, Uids::Own);
    let bundle = ground.start_with(command);
    bundle.log.wait("no Landlock: what a daemon may open is bounded by its uid alone");
    bundle.log.wait("all daemons are ready");
    let walls = bundle.daemon_status("egress")["walls"].to_string();
    assert_eq!(walls, "[\"uid 64101\",\"seccomp\",\"one exec\"]");
    let victim = bundle.daemon_pid("git-gate");
    for attack in attacks_on(victim) {
        let answer = bundle.ask("egress", &format!("attack {attack}"));
        assert!(answer.starts_with("refused"), "{attack}: {answer}");
    }
    assert!(bundle.ask("egress", "attack exec /bin/sh").starts_with("refused"));
}
