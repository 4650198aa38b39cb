//! What a daemon has and does not have, and how secrets reach it.

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use crate::common::{Ground, NAMES, Process, fields, is_root, text};
use nix::sys::signal::Signal;

#[test]
fn a_daemon_has_no_right_that_it_does_not_need() {
    let ground = Ground::new();
    let mut command = ground.command();
    if is_root() {
        let inner = command;
        command = Command::new("setpriv");
        command.env_clear().env("PATH", "/usr/bin:/bin").args(["--groups", "4,24"]);
        command.arg(inner.get_program()).args(inner.get_args());
    }
    let bundle = ground.start_with(command);
    bundle.log.wait("all daemons are ready");
    for (name, uid) in NAMES.iter().zip(["64101", "64102", "64103"]) {
        let uid = if is_root() { uid.to_owned() } else { nix::unistd::geteuid().to_string() };
        assert_eq!(bundle.ask(name, "uid"), uid);
        let status = fields(&bundle.ask(name, "proc status"));
        for (field, value) in [
            ("Uid", format!("{uid} {uid} {uid} {uid}")),
            ("CapInh", "0".repeat(16)),
            ("CapPrm", "0".repeat(16)),
            ("CapEff", "0".repeat(16)),
            ("CapAmb", "0".repeat(16)),
            ("NoNewPrivs", "1".to_owned()),
            ("SigBlk", "0".repeat(16)),
            ("Umask", "0077".to_owned()),
            ("Threads", "1".to_owned()),
        ] {
            assert_eq!(status[field], value, "{name} {field}");
        }
        if is_root() {
            assert_eq!(status["CapBnd"], "0".repeat(16));
            assert_eq!(status["Groups"], "");
            assert_eq!(status["Gid"], format!("{uid} {uid} {uid} {uid}"));
        }
        // The session and the group are its own.
        let pid = bundle.ask(name, "pid");
        let stat = bundle.ask(name, "proc stat");
        let after_name: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        assert_eq!(
            (after_name[1], after_name[2], after_name[3]),
            (bundle.pid().to_string().as_str(), &*pid, &*pid)
        );
        let limits = bundle.ask(name, "proc limits");
        assert!(limits.lines().any(|line| line.starts_with("Max core file size        0")), "{limits}");
    }
}

#[test]
fn a_daemon_has_its_own_descriptors_only() {
    let ground = Ground::new();
    // Someone leaves a file open across the exec of the supervisor.
    let file = fs::File::create(ground.path("left-open")).unwrap();
    let leaked = nix::unistd::dup(&file).unwrap();
    let bundle = ground.started();
    assert!(fs::read_link(format!("/proc/{}/fd/{}", bundle.pid(), leaked.as_raw_fd())).is_ok() || !is_root());
    for name in NAMES {
        let descriptors = bundle.ask(name, "descriptors");
        assert!(!descriptors.contains("left-open"), "{descriptors}");
        assert!(descriptors.starts_with("0 /dev/null\n1 pipe:"), "{descriptors}");
        assert!(descriptors.contains("\n3 socket:"), "{descriptors}");
        assert!(!descriptors.contains("anon_inode"), "{descriptors}");
    }
}

#[test]
fn a_daemon_sees_listed_variables_only() {
    let ground = Ground::new();
    let mut command = ground.command();
    command.envs([
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("HTTP_PROXY", "http://p"),
        ("TZ", "UTC"),
        ("EGRESS_UPSTREAM_CA", "/ca"),
    ]);
    let bundle = ground.start_with(command);
    bundle.log.wait("all daemons are ready");
    let names = |daemon: &str| {
        let environment = bundle.ask(daemon, "environment");
        let mut names: Vec<String> =
            environment.lines().map(|line| line.split('=').next().unwrap().to_owned()).collect();
        names.sort();
        names.join(" ")
    };
    let common = "LISTEN_FDNAMES LISTEN_FDS LISTEN_PID NOTIFY_SOCKET PATH TZ WATCHDOG_USEC";
    assert_eq!(names("git-gate"), format!("BOTTLECAP_PROGRAM {common}"));
    assert_eq!(names("supervise"), common);
    assert_eq!(names("egress"), format!("EGRESS_UPSTREAM_CA {common}"));
}

#[test]
fn a_token_of_the_environment_is_moved_to_egress_and_wiped() {
    let ground = Ground::new();
    let mut command = ground.command();
    command.env("EGRESS_TOKEN_0", "t0ps3cret").env("LAST", "kept");
    let mut bundle = ground.start_with(command);
    bundle.log.wait("all daemons are ready");
    let warning = bundle.log.wait("EGRESS_TOKEN_0 was moved");
    assert!(!warning.contains("t0ps3cret"));
    assert_eq!(bundle.ask("egress", "secrets"), "EGRESS_TOKEN_0=t0ps3cret\n");
    let environment = bundle.ask("egress", "environment");
    assert!(environment.contains("LISTEN_FDNAMES=egress:secret.EGRESS_TOKEN_0"), "{environment}");
    assert!(!environment.contains("t0ps3cret"), "{environment}");
    for name in ["git-gate", "supervise"] {
        assert_eq!(bundle.ask(name, "secrets"), "");
        assert!(!bundle.ask(name, "environment").contains("TOKEN"));
    }
    // The process is not dumpable: only root may look at its environment block at all.
    match fs::read(format!("/proc/{}/environ", bundle.pid())) {
        Ok(block) => {
            let block = String::from_utf8_lossy(&block).into_owned();
            assert!(!block.contains("t0ps3cret") && !block.contains("TOKEN"), "{block:?}");
            assert!(block.contains("LAST=kept"), "{block:?}");
        }
        Err(error) => assert!(!is_root(), "{error}"),
    }
    // A fresh copy after each restart.
    bundle.ask("egress", "abort");
    bundle.log.wait_for("egress is ready", 2);
    assert_eq!(bundle.ask("egress", "secrets"), "EGRESS_TOKEN_0=t0ps3cret\n");
    bundle.signal(Signal::SIGTERM);
    bundle.wait();
    assert!(bundle.log.whole().iter().all(|line| !line.contains("t0ps3cret")));
}

/// A command that reads secrets from its standard input.
fn with_secrets(ground: &Ground, text: &str) -> (Command, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(text.as_bytes()).unwrap();
    // Without CLOEXEC, so that the supervisor finds it under its number.
    let inherited = nix::unistd::dup(&reader).unwrap();
    let mut command = ground.command();
    command.arg("--secrets-fd").arg(inherited.as_raw_fd().to_string());
    // Lives as long as the test.
    std::mem::forget(inherited);
    (command, writer)
}

#[test]
fn secrets_from_a_descriptor_reach_their_daemon_alone() {
    let ground = Ground::new();
    let lines = "{\"daemon\":\"egress\",\"name\":\"API\",\"value\":\"aGVsbG8=\"}\n\
                 {\"daemon\":\"git-gate\",\"name\":\"KEY\",\"value\":\"d29ybGQ=\"}\n";
    let (command, writer) = with_secrets(&ground, lines);
    drop(writer);
    let bundle = ground.start_with(command);
    bundle.log.wait("all daemons are ready");
    assert_eq!(bundle.ask("egress", "secrets"), "API=hello\n");
    assert_eq!(bundle.ask("git-gate", "secrets"), "KEY=world\n");
    assert_eq!(bundle.ask("supervise", "secrets"), "");
}

#[test]
fn a_broken_line_of_secrets_is_refused_without_showing_it() {
    let ground = Ground::new();
    let (mut command, writer) =
        with_secrets(&ground, "{\"daemon\":\"egress\",\"name\":\"A\",\"value\":\"t0ps3cret!\"}");
    drop(writer);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(text(&output.stderr), "error: secrets, line 1: the value of A is not base64\n");
}

#[test]
fn the_control_socket_is_for_its_owner() {
    let bundle = Ground::new().started();
    let run = bundle.ground.run_dir();
    let mode = |name: &str| fs::metadata(run.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("supervisor.sock"), 0o600);
    assert_eq!(mode("."), if is_root() { 0o755 } else { 0o700 });
    assert_eq!(mode("notify.sock"), if is_root() { 0o666 } else { 0o600 });
}

#[test]
fn a_foreign_uid_gets_no_answer_even_where_it_may_open_the_control_socket() {
    if !is_root() {
        return;
    }
    let bundle = Ground::new().started();
    let socket = bundle.ground.run_dir().join("supervisor.sock");
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    let answer_to = |uid: u32| {
        let mut client = Command::new(bundle.ground.path("bin/egress"));
        client.arg("ask").arg(&socket).arg("{\"op\":\"health\"}").uid(uid).gid(uid);
        let output = client.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout)
    };
    assert_eq!(answer_to(0), "{\"ok\":true,\"result\":{\"healthy\":true}}\n");
    for uid in [64101, 65534] {
        assert_eq!(answer_to(uid), "", "uid {uid}");
    }
}

#[test]
fn directories_belong_to_the_daemon_that_writes_to_them() {
    let bundle = Ground::new().started();
    for (name, uid) in NAMES.iter().zip([64101, 64102, 64103]) {
        let directory = bundle.ground.path(&format!("root/var/lib/sidecars/audit/{name}"));
        let owner = if is_root() { uid } else { nix::unistd::geteuid().as_raw() };
        assert_eq!(fs::metadata(directory).unwrap().uid(), owner);
    }
}

#[test]
fn the_ca_is_made_before_egress_starts_when_asked() {
    let ground = Ground::new();
    let mut command = ground.command();
    command.arg("--ca-init");
    let bundle = ground.start_with(command);
    bundle.log.wait("all daemons are ready");
    let ca = bundle.ground.path("root/var/lib/sidecars/egress/ca/ca.pem");
    let owner = if is_root() { 64101 } else { nix::unistd::geteuid().as_raw() };
    assert_eq!(fs::metadata(ca).unwrap().uid(), owner);
}

#[test]
fn a_ca_that_cannot_be_made_ends_the_start() {
    let ground = Ground::new();
    fs::create_dir_all(ground.path("root/var/lib/sidecars")).unwrap();
    ground.write("root/var/lib/sidecars/egress", "in the way");
    let mut command = ground.command();
    command.env("BOTTLECAP_CA_INIT", "1");
    let mut bundle = ground.start_with(command);
    assert_eq!(bundle.wait().code(), Some(64));
    bundle.log.wait("cannot make the CA: egress ca init ended: exit 64");
}

#[test]
fn sockets_that_were_handed_to_us_are_handed_on() {
    let ground = Ground::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut command = Command::new(crate::common::fake_daemon());
    command.env_clear().env("PATH", "/usr/bin:/bin").env("SIDECAR_DAEMONS", "supervise");
    command.args(["launch", "supervise"]).arg(ground.path("bin/supervisor"));
    command.arg("--root").arg(ground.path("root"));
    let mut child = command.stdin(OwnedFd::from(listener)).stderr(Stdio::piped()).spawn().unwrap();
    assert!(!crate::common::ask(address, "pid").unwrap().is_empty());
    let environment = crate::common::ask(address, "environment").unwrap();
    assert!(environment.contains("LISTEN_FDNAMES=supervise"), "{environment}");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    crate::common::wait(&mut child);
}

#[test]
fn as_pid_1_it_reaps_orphans_and_stops_in_order() {
    if !is_root() {
        return;
    }
    let ground = Ground::new();
    let mut command = Command::new("unshare");
    command.env_clear().env("PATH", "/usr/bin:/bin").args([
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    let inner = ground.command();
    command.arg(inner.get_program()).args(inner.get_args());
    let mut bundle = ground.start_with(command);
    bundle.log.wait("all daemons are ready");
    let escaped: i32 = bundle.ask("git-gate", "escape").trim().parse().unwrap();
    assert!(escaped > 1);
    bundle.ask("git-gate", "abort");
    bundle.log.wait_for("git-gate is ready", 2);
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", bundle.pid())).unwrap();
    let init = nix::unistd::Pid::from_raw(children.trim().parse().unwrap());
    nix::sys::signal::kill(init, Signal::SIGHUP).unwrap();
    bundle.log.wait("egress reloaded, generation 2");
    nix::sys::signal::kill(init, Signal::SIGTERM).unwrap();
    assert_eq!(bundle.wait().code(), Some(0));
}

#[test]
fn it_works_without_root() {
    const NOBODY: u32 = 65534;
    let ground = Ground::new();
    let mut command = ground.command();
    if is_root() {
        for directory in ["root", "root/run", "root/var"] {
            std::os::unix::fs::chown(ground.path(directory), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        std::os::unix::process::CommandExt::uid(&mut command, NOBODY);
        std::os::unix::process::CommandExt::gid(&mut command, NOBODY);
    }
    let mut bundle = ground.start_with(command);
    bundle.log.wait("all daemons are ready");
    assert_eq!(bundle.ask("egress", "uid"), bundle.ask("supervise", "uid"));
    bundle.signal(Signal::SIGTERM);
    assert_eq!(bundle.wait().code(), Some(0));
}

#[test]
fn three_capabilities_of_a_hardened_container_are_enough() {
    if !is_root() {
        return;
    }
    let ground = Ground::new();
    // What an image prepares, as the capability to change owners is missing.
    for (directory, owner) in [
        ("root/run/sidecars", 0),
        ("root/var/lib", 0),
        ("root/var/lib/sidecars", 0),
        ("root/var/lib/sidecars/audit", 0),
        ("root/var/lib/sidecars/egress", 64101),
        ("root/var/lib/sidecars/audit/egress", 64101),
        ("root/var/lib/sidecars/audit/git-gate", 64102),
        ("root/var/lib/sidecars/audit/supervise", 64103),
        ("root/git", 64102),
    ] {
        let path = ground.path(directory);
        fs::create_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(owner), Some(owner)).unwrap();
        // As in the image: root without its capabilities cannot enter what belongs to a daemon.
        let mode = if owner == 0 { 0o755 } else { 0o700 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let ca = ground.path("root/var/lib/sidecars/egress/ca");
    fs::create_dir(&ca).unwrap();
    fs::write(ca.join("ca-key.pem"), "a key").unwrap();
    std::os::unix::fs::chown(&ca, Some(64101), Some(64101)).unwrap();
    let inner = ground.command();
    let mut command = Command::new("setpriv");
    command.env_clear().env("PATH", "/usr/bin:/bin");
    command.args(["--bounding-set", "-all,+setuid,+setgid,+kill", "--inh-caps", "-all"]);
    command.arg(inner.get_program()).args(inner.get_args());
    let mut bundle = ground.start_with(command);
    bundle.log.wait("all daemons are ready");
    for (name, uid) in NAMES.iter().zip(["64101", "64102", "64103"]) {
        assert_eq!(bundle.ask(name, "uid"), uid);
    }
    let ca_key =
        format!("attack open {}", bundle.ground.path("root/var/lib/sidecars/egress/ca/ca-key.pem").display());
    assert_eq!(bundle.ask("egress", &ca_key), "done");
    let journal = bundle.ground.path("root/var/lib/sidecars/audit/git-gate/journal.jsonl");
    assert_eq!(bundle.ask("git-gate", &format!("attack write {}", journal.display())), "done");
    let escaped = Process::open(bundle.ask("git-gate", "escape").trim().parse().unwrap());
    bundle.ask("supervise", "abort");
    bundle.log.wait_for("supervise is ready", 2);
    bundle.signal(Signal::SIGHUP);
    bundle.log.wait("egress reloaded, generation 2");
    bundle.signal(Signal::SIGTERM);
    assert_eq!(bundle.wait().code(), Some(0));
    escaped.wait_for_its_end();
    let log = bundle.log.whole();
    assert!(log.iter().all(|line| !line.contains("cannot")), "{log:#?}");
}

#[test]
fn programs_in_a_directory_that_only_root_may_enter_can_be_run() {
    let ground = Ground::new();
    fs::set_permissions(ground.path("bin"), fs::Permissions::from_mode(0o700)).unwrap();
    let bundle = ground.started();
    assert!(bundle.client(&["health"]).status.success());
}

#[test]
fn secrets_can_come_through_standard_input() {
    let ground = Ground::new();
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"{\"daemon\":\"egress\",\"name\":\"API\",\"value\":\"aGVsbG8=\"}").unwrap();
    drop(writer);
    let mut command = ground.command();
    command.args(["--secrets-fd", "0"]);
    let bundle = ground.start_on(command, reader.into());
    bundle.log.wait("all daemons are ready");
    assert_eq!(bundle.ask("egress", "secrets"), "API=hello\n");
}

#[test]
fn a_stop_ends_the_waiting_for_secrets() {
    let ground = Ground::new();
    let (command, writer) = with_secrets(&ground, "");
    let mut bundle = ground.start_with(command);
    let catches_sigterm = || {
        let status = fields(&fs::read_to_string(format!("/proc/{}/status", bundle.pid())).unwrap());
        u64::from_str_radix(&status["SigCgt"], 16).unwrap() & (1 << (Signal::SIGTERM as i32 - 1)) != 0
    };
    while !catches_sigterm() {
        std::thread::yield_now();
    }
    bundle.signal(Signal::SIGTERM);
    let status = bundle.wait();
    assert_eq!(status.code(), Some(128 + 15));
    drop(writer);
}
