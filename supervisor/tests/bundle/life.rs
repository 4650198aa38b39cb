//! The life of a bundle: start, crash, reload, stop, seen from outside.

use std::io::IoSlice;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use crate::common::{Ground, NAMES, PATIENCE, Process, ask, text};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

#[test]
fn every_daemon_gets_its_own_socket_and_answers_on_it() {
    let mut bundle = Ground::new().started();
    for name in NAMES {
        assert_eq!(bundle.ask(name, "pid"), bundle.daemon_status(name)["pid"].to_string());
        let environment = bundle.ask(name, "environment");
        let handed = match name {
            "supervise" => "LISTEN_FDS=3\nLISTEN_FDNAMES=supervise:peer.egress:peer.git-gate\n".to_owned(),
            other => format!("LISTEN_FDS=2\nLISTEN_FDNAMES={other}:peer.supervise\n"),
        };
        assert!(environment.contains(&handed), "{environment}");
        bundle.log.wait(&format!("[{name}] hello from {name}"));
    }
    let status = bundle.status();
    assert_eq!(status["state"], "running");
    assert_eq!(status["daemons"][0]["state"], "ready");
    assert_eq!(status["daemons"][0]["generation"], 1);
    assert!(bundle.client(&["health"]).status.success());
    bundle.signal(Signal::SIGTERM);
    assert_eq!(bundle.wait().code(), Some(0));
    let log = bundle.log.whole();
    let goodbyes: Vec<&String> = log.iter().filter(|line| line.contains("goodbye")).collect();
    assert_eq!(
        goodbyes,
        [
            "[supervise] goodbye from supervise",
            "[git-gate] goodbye from git-gate",
            "[egress] goodbye from egress"
        ]
    );
    assert!(!bundle.ground.run_dir().join("supervisor.sock").exists());
}

#[test]
fn no_connection_is_refused_while_a_daemon_crashes_and_restarts() {
    let bundle = Ground::new().started();
    let address = bundle.address("egress");
    for _ in 0..3 {
        let before = bundle.daemon_pid("egress");
        assert_eq!(ask(address, "abort").unwrap(), "");
        // Until the new process answers, every connect succeeds and waits for it.
        let after = loop {
            match ask(address, "pid").expect("never refused").parse::<i32>() {
                Ok(pid) if pid != before => break pid,
                Ok(_) | Err(_) => {}
            }
        };
        assert_ne!(before, after);
    }
    bundle.log.wait("egress ended: signal 6");
    assert_eq!(bundle.daemon_status("egress")["restarts"], 3);
    assert_eq!(bundle.daemon_status("supervise")["restarts"], 0);
}

#[test]
fn a_readiness_message_of_another_process_is_ignored() {
    let ground = Ground::new();
    ground.write("root/etc/egress/egress.behaviour", "silent");
    let bundle = ground.start();
    bundle.log.wait("[egress] hello");
    bundle.log.wait("supervise is ready");
    let forged = UnixDatagram::unbound().unwrap();
    forged.send_to(b"READY=1\nX_GENERATION=99\n", bundle.ground.run_dir().join("notify.sock")).unwrap();
    let line = bundle.log.wait("ignored a readiness message");
    assert!(line.contains(&format!("pid {}", std::process::id())), "{line}");
    assert_eq!(bundle.daemon_status("egress")["state"], "starting");
    let health = bundle.client(&["health"]);
    assert_eq!(health.status.code(), Some(1));
    assert_eq!(text(&health.stderr), "error: egress is starting\n");
    assert_eq!(bundle.ask("egress", "ready"), "ok");
    bundle.log.wait("all daemons are ready");
    assert_eq!(bundle.daemon_status("egress")["generation"], 1);
}

#[test]
fn a_readiness_message_with_a_descriptor_is_ignored_and_harms_nobody() {
    let bundle = Ground::new().started();
    let file = std::fs::File::open("/dev/null").unwrap();
    let target = UnixAddr::new(&bundle.ground.run_dir().join("notify.sock")).unwrap();
    let sender = UnixDatagram::unbound().unwrap();
    sendmsg(
        sender.as_raw_fd(),
        &[IoSlice::new(b"READY=1\n")],
        &[ControlMessage::ScmRights(&[file.as_raw_fd()])],
        MsgFlags::empty(),
        Some(&target),
    )
    .unwrap();
    bundle.log.wait("ignored a readiness message");
    assert_eq!(bundle.status()["state"], "running");
}

#[test]
fn forgers_of_readiness_messages_cannot_fill_the_log() {
    let mut bundle = Ground::new().started();
    let notify = bundle.ground.run_dir().join("notify.sock");
    for _ in 0..40 {
        let forger =
            std::process::Command::new(bundle.ground.path("bin/egress")).arg("forge").arg(&notify).status();
        assert!(forger.unwrap().success());
    }
    bundle.signal(Signal::SIGTERM);
    assert_eq!(bundle.wait().code(), Some(0));
    let log = bundle.log.whole();
    let ignored = log.iter().filter(|line| line.contains("ignored a readiness message")).count();
    assert!((1..=32).contains(&ignored), "{ignored}");
}

#[test]
fn a_hangup_before_ready_is_delivered_once_after_it() {
    let ground = Ground::new();
    ground.write("root/etc/egress/egress.behaviour", "silent");
    let bundle = ground.start();
    bundle.log.wait("[egress] hello");
    for count in 1..=3 {
        bundle.signal(Signal::SIGHUP);
        bundle.log.wait_for("egress is not ready: the reload waits", count);
    }
    assert_eq!(bundle.ask("egress", "hangups"), "0");
    bundle.ask("egress", "ready");
    bundle.log.wait("egress reloaded, generation 2");
    assert_eq!(bundle.ask("egress", "hangups"), "1");
    // One that is ready gets it at once, and one that has nothing to reload never.
    bundle.log.wait("git-gate reloaded, generation 2");
    assert_eq!(bundle.ask("supervise", "hangups"), "0");
}

#[test]
fn a_reload_is_answered_with_the_new_generation_or_with_the_error() {
    let bundle = Ground::new().started();
    let good = bundle.client(&["reload"]);
    let line =
        |name: &str, generation: u64| format!("{name} generation {generation} sha256:{generation:064x}\n");
    assert_eq!(text(&good.stdout), line("egress", 2) + &line("git-gate", 2));
    let one = bundle.client(&["reload", "git-gate"]);
    assert_eq!(text(&one.stdout), line("git-gate", 3));
    let none = bundle.client(&["reload", "supervise"]);
    assert_eq!(text(&none.stderr), "error: supervise has nothing to reload\n");
    bundle.ground.write("root/etc/egress/routes.yaml", "bad");
    let bad = bundle.client(&["reload"]);
    assert_eq!(
        (bad.status.code(), text(&bad.stderr)),
        (Some(70), "error: egress: routes.yaml:1:1: bad\n".to_owned())
    );
    let status = bundle.daemon_status("egress");
    assert_eq!(status["generation"], 2);
    assert_eq!(status["reload_error"], "routes.yaml:1:1: bad");
    bundle.log.wait("egress keeps its old configuration: routes.yaml:1:1: bad");
    let table = text(&bundle.client(&["status"]).stdout);
    assert!(table.contains("egress: last reload refused: routes.yaml:1:1: bad"), "{table}");
}

#[test]
fn what_a_hangup_led_to_stands_in_the_log_and_in_the_status() {
    let bundle = Ground::new().started();
    bundle.ground.write("root/etc/egress/routes.yaml", "bad");
    bundle.signal(Signal::SIGHUP);
    bundle.log.wait("[supervisor] egress keeps its old configuration: routes.yaml:1:1: bad");
    assert_eq!(bundle.daemon_status("egress")["reload_error"], "routes.yaml:1:1: bad");
    bundle.ground.write("root/etc/egress/routes.yaml", "good");
    bundle.signal(Signal::SIGHUP);
    bundle.log.wait("[supervisor] egress reloaded, generation 2");
    let status = bundle.daemon_status("egress");
    assert_eq!((&status["generation"], &status["reload_error"]), (&2.into(), &serde_json::Value::Null));
}

#[test]
fn a_stop_leaves_nothing_behind_not_even_what_left_its_session() {
    let mut bundle = Ground::new().started();
    let escaped = Process::open(bundle.ask("git-gate", "escape").trim().parse().unwrap());
    let daemons = NAMES.map(|name| Process::open(bundle.daemon_pid(name)));
    let begin = Instant::now();
    bundle.signal(Signal::SIGINT);
    assert_eq!(bundle.wait().code(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(5), "a stop ends with the last child, not with the grace");
    escaped.wait_for_its_end();
    daemons.iter().for_each(Process::wait_for_its_end);
}

#[test]
fn what_left_the_session_of_a_daemon_ends_with_the_daemon() {
    let bundle = Ground::new().started();
    let escaped = Process::open(bundle.ask("git-gate", "escape").trim().parse().unwrap());
    bundle.ask("git-gate", "abort");
    escaped.wait_for_its_end();
    bundle.log.wait_for("git-gate is ready", 2);
    assert_eq!(bundle.daemon_status("egress")["restarts"], 0);
}

#[test]
fn what_forks_away_from_every_signal_ends_with_the_daemon_too() {
    let bundle = Ground::new().started();
    assert_eq!(bundle.ask("git-gate", "hop 2"), "2");
    bundle.ask("git-gate", "abort");
    bundle.log.wait_for("git-gate is ready", 2);
    bundle.wait_until_only_daemons_are_left();
}

#[test]
fn generations_of_processes_that_left_their_sessions_end_with_the_bundle() {
    let mut bundle = Ground::new().started();
    // Each is the parent of the next, and none is in the group or the session of the daemon. The last daemon that stops is another one,
    // so that only the end of the bundle finds the deepest of them.
    let pids = bundle.ask("git-gate", "escape 4");
    let escaped: Vec<Process> =
        pids.split_whitespace().map(|pid| Process::open(pid.parse().unwrap())).collect();
    assert_eq!(escaped.len(), 4);
    bundle.signal(Signal::SIGTERM);
    assert_eq!(bundle.wait().code(), Some(0));
    escaped.iter().for_each(Process::wait_for_its_end);
}

#[test]
fn thousands_of_orphans_that_die_at_once_are_reaped() {
    const ORPHANS: usize = 3000;
    let bundle = Ground::new().started();
    let children = || {
        let path = format!("/proc/{0}/task/{0}/children", bundle.pid());
        std::fs::read_to_string(path).unwrap().split_whitespace().count()
    };
    assert_eq!(bundle.ask("git-gate", &format!("orphans {ORPHANS}")), ORPHANS.to_string());
    let until = Instant::now() + PATIENCE;
    while children() > NAMES.len() {
        assert!(Instant::now() < until, "{} children are left", children());
        std::thread::yield_now();
    }
    assert!(bundle.client(&["health"]).status.success());
}

#[test]
fn fifty_reloads_are_answered_in_order_while_clients_connect() {
    let bundle = Ground::new().started();
    let address = bundle.address("egress");
    let done = std::sync::atomic::AtomicBool::new(false);
    let served = std::thread::scope(|scope| {
        let client = || {
            let mut served = 0;
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                assert!(!ask(address, "pid").unwrap().is_empty());
                served += 1;
            }
            served
        };
        let clients = [scope.spawn(client), scope.spawn(client)];
        for generation in 2..52 {
            let reply = bundle.client(&["reload", "egress"]);
            let said = text(&reply.stdout);
            assert!(said.starts_with(&format!("egress generation {generation} ")), "{said} {reply:?}");
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        clients.map(|client| client.join().unwrap())
    });
    assert!(served.iter().all(|count| *count > 0), "{served:?}");
}

#[test]
fn a_daemon_that_does_not_stop_is_killed_after_the_grace() {
    let mut bundle = Ground::new().started();
    assert_eq!(bundle.ask("git-gate", "deaf"), "ok");
    let begin = Instant::now();
    assert!(bundle.client(&["stop"]).status.success());
    assert_eq!(bundle.wait().code(), Some(0));
    assert!(begin.elapsed() >= Duration::from_secs(8));
    bundle.log.wait("git-gate did not stop within 8 s, killing it");
    bundle.log.wait("[egress] goodbye from egress");
}

#[test]
fn no_daemon_outlives_a_killed_supervisor() {
    let mut bundle = Ground::new().started();
    let daemons = NAMES.map(|name| Process::open(bundle.daemon_pid(name)));
    bundle.signal(Signal::SIGKILL);
    bundle.wait();
    daemons.iter().for_each(Process::wait_for_its_end);
}

#[test]
fn a_stop_during_start_up_exits_with_the_signal() {
    let ground = Ground::new();
    ground.write("root/etc/git-gate/git-gate.behaviour", "silent");
    let mut bundle = ground.start();
    bundle.log.wait("[git-gate] hello");
    bundle.signal(Signal::SIGTERM);
    assert_eq!(bundle.wait().code(), Some(128 + 15));
}

#[test]
fn a_program_that_cannot_be_executed_is_not_taken_for_an_early_exit() {
    let ground = Ground::new();
    ground.write("bin/git-gate", "no program");
    std::fs::set_permissions(ground.path("bin/git-gate"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut bundle = ground.start();
    bundle
        .log
        .wait("git-gate ended: not started: cannot execute the program: Exec format error (os error 8)");
    assert_eq!(bundle.wait().code(), Some(70));
    bundle.log.wait("git-gate failed for good, the bundle stops");
}

#[test]
fn a_daemon_that_fails_again_and_again_ends_the_bundle_with_70() {
    let ground = Ground::new();
    ground.write("root/etc/egress/supervise.behaviour", "fail 3");
    let mut bundle = ground.start();
    assert_eq!(bundle.wait().code(), Some(70));
    let log = bundle.log.whole();
    assert_eq!(log.iter().filter(|line| line.contains("supervise ended: exit 3")).count(), 6);
}

#[test]
fn a_daemon_that_refuses_its_configuration_ends_the_start_with_64() {
    let ground = Ground::new();
    ground.write("root/etc/egress/egress.behaviour", "fail 64");
    let mut bundle = ground.start();
    assert_eq!(bundle.wait().code(), Some(64));
    assert_eq!(bundle.log.whole().iter().filter(|line| line.contains("egress ended: exit 64")).count(), 1);
}

#[test]
fn a_daemon_that_never_becomes_ready_is_shown_with_its_last_words() {
    let ground = Ground::new();
    ground.write("root/etc/egress/egress.behaviour", "silent");
    let bundle = ground.start();
    bundle.log.wait("[egress] hello");
    bundle.ask("egress", "say waiting for something");
    bundle.log.wait("egress was not ready within 10 s");
    bundle.log.wait("[supervisor] egress said last: waiting for something");
    bundle.log.wait("egress ended: signal 9");
    bundle.log.wait_for("[egress] hello", 2);
}

#[test]
fn an_optional_daemon_stays_down_and_a_signal_brings_it_back() {
    let ground = Ground::new();
    ground.write("root/etc/git-gate/git-gate.behaviour", "fail 1");
    let mut command = ground.command();
    command.args(["--optional", "git-gate"]);
    let mut bundle = ground.start_with(command);
    bundle.log.wait("git-gate failed for good");
    bundle.log.wait("all daemons but git-gate are ready");
    assert_eq!(bundle.status()["state"], "running");
    assert_eq!(bundle.daemon_status("git-gate")["state"], "failed");
    assert_eq!(bundle.daemon_status("egress")["state"], "ready");
    bundle.ground.write("root/etc/git-gate/git-gate.behaviour", "");
    bundle.signal(Signal::SIGUSR1);
    bundle.log.wait("git-gate is ready");
    assert_eq!(bundle.daemon_status("egress")["restarts"], 0);
    bundle.signal(Signal::SIGTERM);
    assert_eq!(bundle.wait().code(), Some(0));
}

#[test]
fn one_daemon_is_restarted_in_place() {
    let bundle = Ground::new().started();
    let (egress, gate) = (bundle.daemon_pid("egress"), bundle.daemon_pid("git-gate"));
    let output = bundle.client(&["restart", "git-gate"]);
    assert_eq!(text(&output.stdout), "git-gate is being restarted\n");
    bundle.log.wait_for("git-gate is ready", 2);
    assert_ne!(bundle.daemon_pid("git-gate"), gate);
    assert_eq!(bundle.daemon_pid("egress"), egress);
    let unknown = bundle.client(&["restart", "proxy"]);
    assert_eq!(unknown.status.code(), Some(64));
    assert_eq!(
        text(&unknown.stderr),
        "error: unknown daemon `proxy`, expected one of egress, git-gate, supervise\n"
    );
}

#[test]
fn logs_are_kept_and_can_be_followed() {
    use std::io::{BufRead as _, BufReader};
    let bundle = Ground::new().started();
    assert_eq!(text(&bundle.client(&["logs", "egress"]).stdout), "[egress] hello from egress\n");
    let mut command = bundle.ground.bare_command();
    let mut follower =
        command.args(["logs", "-f", "git-gate"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "[git-gate] hello from git-gate");
    bundle.ask("egress", "say not for the follower");
    bundle.ask("git-gate", "say something \u{1b}[31mnew");
    assert_eq!(lines.next().unwrap().unwrap(), "[git-gate] something \\u{1b}[31mnew");
    follower.kill().unwrap();
    follower.wait().unwrap();
}

#[test]
fn whoever_started_us_is_told_when_all_are_ready() {
    let ground = Ground::new();
    let path = ground.path("parent.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = ground.command();
    command.env("NOTIFY_SOCKET", &path);
    let bundle = ground.start_with(command);
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"READY=1\n");
    assert!(bundle.client(&["health"]).status.success());
    bundle.signal(Signal::SIGTERM);
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"STOPPING=1\n");
}

#[test]
fn requests_on_one_connection_are_answered_in_order_also_after_its_end() {
    use std::io::{Read as _, Write as _};
    let bundle = Ground::new().started();
    let mut stream =
        std::os::unix::net::UnixStream::connect(bundle.ground.run_dir().join("supervisor.sock")).unwrap();
    stream.write_all(b"{\"op\":\"reload\"}\n{\"op\":\"health\"}\nnonsense\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let lines: Vec<&str> = answer.lines().collect();
    assert_eq!(lines.len(), 3, "{answer}");
    assert!(
        lines[0].starts_with("{\"ok\":true,\"result\":{\"daemons\":[{\"name\":\"egress\",\"generation\":2"),
        "{answer}"
    );
    assert_eq!(lines[1], "{\"ok\":true,\"result\":{\"healthy\":true}}");
    assert!(lines[2].starts_with("{\"ok\":false,\"error\":{\"code\":\"bad-request\""), "{answer}");
}

#[test]
fn a_daemon_that_talks_without_end_harms_nobody() {
    let bundle = Ground::new().started();
    assert_eq!(bundle.ask("git-gate", "chatter 200000"), "ok");
    assert_eq!(text(&bundle.client(&["logs", "egress"]).stdout), "[egress] hello from egress\n");
    assert!(bundle.client(&["health"]).status.success());
    let status = std::fs::read_to_string(format!("/proc/{}/status", bundle.pid())).unwrap();
    let resident: u64 = crate::common::fields(&status)["VmRSS"].trim_end_matches(" kB").parse().unwrap();
    assert!(resident < 16 * 1024, "{resident} kB");
}

#[test]
fn daemons_that_must_talk_keep_their_socket_across_a_crash_of_either() {
    let bundle = Ground::new().started();
    for (one, other) in [
        ("egress", "supervise"),
        ("supervise", "egress"),
        ("git-gate", "supervise"),
        ("supervise", "git-gate"),
    ] {
        assert_eq!(bundle.ask(one, &format!("tell {other} from-{one}")), "told");
        assert_eq!(bundle.ask(other, &format!("hear {one}")), format!("from-{one}"));
        assert!(bundle.ask(other, &format!("hear {one}")).starts_with("cannot hear: EAGAIN"));
    }
    // What was sent to a process that fell is there for the next.
    assert_eq!(bundle.ask("egress", "tell supervise held"), "told");
    bundle.ask("supervise", "abort");
    bundle.log.wait_for("supervise is ready", 2);
    assert_eq!(bundle.ask("supervise", "hear egress"), "held");
    assert_eq!(bundle.ask("supervise", "tell egress allowed"), "told");
    assert_eq!(bundle.ask("egress", "hear supervise"), "allowed");
}
