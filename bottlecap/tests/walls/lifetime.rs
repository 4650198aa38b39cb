//! From start to end: codes, signals, bytes, and that nothing stays.

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use bottlecap::sys::process::watch;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Bottle, Caller, fed};

#[test]
fn the_exit_code_is_the_commands() {
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        bottle.write("plain", "not a program");
        let code = |words: [&str; 3]| bottle.run("", words).output().unwrap().status.code();
        assert_eq!(code(["sh", "-c", "exit 0"]), Some(0));
        assert_eq!(code(["sh", "-c", "exit 3"]), Some(3));
        assert_eq!(code(["sh", "-c", "kill -TERM $$"]), Some(143));
        assert_eq!(code(["sh", "-c", "kill -KILL $$"]), Some(137));
        assert_eq!(code(["no-such-program", "", ""]), Some(127));
        assert_eq!(code(["./plain", "", ""]), Some(126));
        assert_eq!(code(["/etc", "", ""]), Some(126));
    }
}

#[test]
fn a_command_that_cannot_be_executed_is_told() {
    let output = Bottle::of(Caller::Ordinary).run("", ["no-such-program"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("no-such-program: No such file or directory"));
}

#[test]
fn bytes_pass_whole_in_both_directions() {
    let bytes: Vec<u8> =
        (0..24 << 20).map(|index: u32| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        let output = fed(&mut bottle.run("", ["sh", "-c", "tee /dev/stderr"]), bytes.clone());
        assert!(output.status.success());
        assert!(output.stdout == bytes, "standard output differs");
        assert!(output.stderr == bytes, "standard error differs");
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_command() {
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        let mut child = bottle.run("", ["yes"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "y\n");
        assert_eq!(child.wait().unwrap().code(), Some(128 + 13));
    }
}

#[test]
fn signals_reach_the_command() {
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        let script = "trap 'exit 42' TERM; echo ready; while :; do sleep 60 & wait; done";
        let mut child = bottle.run("", ["sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(42));
    }
}

#[test]
fn what_the_command_leaves_behind_ends_with_it() {
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        let marker = format!("{}.{}", 90_000 + std::process::id(), caller as u32);
        let output =
            bottle.run("", ["sh", "-c", &format!("setsid sleep {marker} & echo ok")]).output().unwrap();
        assert_eq!(output.stdout, b"ok\n");
        assert_eq!(with_argument(&marker), Vec::<i32>::new());
    }
}

#[test]
fn killing_bottlecap_kills_everything() {
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        let marker = format!("{}.{}", 80_000 + std::process::id(), caller as u32);
        let script = format!("setsid sleep {marker} & sleep {marker} & echo ready; wait");
        let mut child = bottle.run("", ["sh", "-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut inside = with_argument(&marker);
        inside.extend(children_of(child.id() as i32));
        let watched: Vec<_> = inside.into_iter().filter_map(|pid| watch(Pid::from_raw(pid)).ok()).collect();
        child.kill().unwrap();
        assert!(watched.len() > 3, "bottlecap, wall, init, shell, and two more: {}", watched.len());
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        for pidfd in &watched {
            let mut entry = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut entry, PollTimeout::from(10_000_u16)).unwrap(), 1, "a process lives on");
        }
    }
}

/// Processes with `word` in their arguments.
fn with_argument(word: &str) -> Vec<i32> {
    let pids = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has = |pid: &i32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).contains(word)
    };
    pids.filter(has).collect()
}

fn children_of(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

#[test]
fn a_bottle_without_a_name_leaves_no_state() {
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        assert!(bottle.run("", ["true"]).status().unwrap().success());
        let left = |path: &str| std::fs::read_dir(bottle.path(path)).unwrap().count();
        assert_eq!((left("state/bottlecap/bottles"), left("run/bottlecap")), (0, 0));
    }
}

#[test]
fn a_second_bottle_of_the_same_name_is_refused() {
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        let mut first = bottle.bottlecap(["run", "--name", "one", "--", "sh", "-c", "echo ready; read end"]);
        let mut child = first.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let second = bottle.bottlecap(["run", "--name", "one", "--", "true"]).output().unwrap();
        assert_eq!(second.status.code(), Some(64));
        assert!(String::from_utf8_lossy(&second.stderr).contains("the bottle one is running"));
        let list = bottle.bottlecap(["list", "--json"]).output().unwrap();
        assert!(String::from_utf8_lossy(&list.stdout).contains(r#""name":"one""#));
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}

#[test]
fn a_kernel_that_refuses_user_namespaces_is_named_and_nothing_is_started() {
    let bottle = Bottle::of(Caller::Ordinary);
    let script = format!(
        "echo 0 >/proc/sys/user/max_user_namespaces; {0} run -- touch started; echo code $?; {0} doctor; echo code $?",
        bottle.program().display()
    );
    let mut command = bottle.command("/usr/bin/unshare");
    command.args(["--user", "--map-current-user", "--keep-caps", "/bin/sh", "-c", &script]);
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(out.contains("code 64") && out.ends_with("code 64\n"), "{out}{err}");
    assert!(out.contains("MISSING  user, network, mount and pid namespaces"), "{out}");
    assert!(err.contains("hint: user.max_user_namespaces is 0"), "{err}");
    assert!(!bottle.work().join("started").exists());
}

#[test]
fn core_handlers_of_the_host_see_nothing_of_the_bottle() {
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        assert_eq!(
            bottle.shell("", "ulimit -Hc; grep core /proc/self/limits | tr -s ' '"),
            "0\nMax core file size 1 1 bytes"
        );
        assert_ne!(
            bottle.shell("cores", "grep core /proc/self/limits | tr -s ' '"),
            "Max core file size 1 1 bytes"
        );
    }
}
