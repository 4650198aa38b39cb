//! How it ends.

use crate::common::{Init, PLAIN, code, stderr};

fn exit_code(init: Init, options: &[&str], script: &str) -> i32 {
    code(&init.over(options, ["sh", "-c", script]).output().unwrap())
}

#[test]
fn every_exit_code_is_passed_on() {
    for number in 0..=255 {
        assert_eq!(exit_code(Init::Ours, &PLAIN, &format!("exit {number}")), number);
    }
    for number in [0, 1, 2, 32, 64, 127, 254, 255] {
        for control in [Init::Tini, Init::Dumb] {
            assert_eq!(exit_code(control, &PLAIN, &format!("exit {number}")), number, "{control:?}");
        }
    }
}

#[test]
fn the_end_by_a_signal_is_128_and_its_number() {
    for number in [1, 2, 3, 6, 9, 10, 11, 12, 15, 31, 64] {
        for init in [Init::Ours, Init::Tini, Init::Dumb] {
            let script = format!("kill -{number} $$");
            assert_eq!(exit_code(init, &PLAIN, &script), 128 + number, "{init:?}");
        }
    }
}

#[test]
fn an_expected_code_becomes_zero_and_no_other_does() {
    for expected in (0..=255).step_by(15) {
        let (one, own) = (expected.to_string(), format!("exit {expected}"));
        let others: Vec<String> =
            (0..=255).filter(|other| *other != expected).map(|c| c.to_string()).collect();
        let others: Vec<&str> = others.iter().flat_map(|other| ["-e", other]).collect();
        for init in [Init::Ours, Init::Tini] {
            assert_eq!(exit_code(init, &["-e", &one], &own), 0, "{init:?}");
            assert_eq!(exit_code(init, &others, &own), expected, "{init:?}");
        }
    }
    // A signal counts as the code that stands for it.
    for init in [Init::Ours, Init::Tini] {
        assert_eq!(exit_code(init, &["-e", "143"], "kill -15 $$"), 0, "{init:?}");
    }
}

#[test]
fn what_cannot_be_executed_is_told_as_shells_tell_it() {
    for (program, number, words) in [
        ("/doesnotexist", 127, "No such file"),
        ("nosuchprogram", 127, "No such file"),
        ("/etc/passwd", 126, "denied"),
    ] {
        for init in [Init::Ours, Init::Tini] {
            let output = init.over(PLAIN, [program]).output().unwrap();
            assert_eq!(code(&output), number, "{init:?} {program}");
            assert!(stderr(&output).contains(program), "{output:?}");
            assert!(stderr(&output).contains(words), "{output:?}");
        }
    }
    // A command that says so itself is passed on without a word of ours.
    let output = Init::Ours.over(PLAIN, ["sh", "-c", "exit 127"]).output().unwrap();
    assert_eq!((code(&output), stderr(&output).as_str()), (127, ""));
}

#[test]
fn a_wrong_command_line_is_64_and_says_why() {
    let tool = |arguments: &[&str]| {
        let output =
            std::process::Command::new(env!("CARGO_BIN_EXE_supervisor")).args(arguments).output().unwrap();
        (code(&output), stderr(&output))
    };
    for (arguments, words) in [
        (&["run"][..], "required"),
        (&["run", "-z", "true"], "-z"),
        (&["run", "-e", "256", "true"], "256"),
        (&["run", "-e", "-1", "true"], "-1"),
        (&["run", "-p", "SIGNOTHING", "true"], "SIGNOTHING"),
        (&["run", "-r", "KILL:TERM", "true"], "SIGKILL"),
        (&["run", "-r", "TERM", "true"], "FROM:TO"),
        (&["--log", "json", "run", "true"], "behind it"),
    ] {
        let (number, said) = tool(arguments);
        assert_eq!(number, 64, "{arguments:?}");
        assert!(said.contains(words), "{said}");
    }
    for arguments in [&["run", "-h"][..], &["run", "--help"], &["--version"]] {
        assert_eq!(tool(arguments).0, 0);
    }
}

#[test]
fn it_is_silent_unless_asked_to_speak() {
    let words = |options: &[&str]| {
        let output = Init::Ours.over(options, ["echo", "oh,", "hi"]).output().unwrap();
        assert_eq!(output.stdout, b"oh, hi\n");
        stderr(&output)
    };
    assert_eq!(words(&[]), "");
    let said = words(&["-v"]);
    assert!(said.contains("[supervisor] echo runs as pid ") && said.contains("Exited(0)"), "{said}");
}

#[test]
fn the_command_keeps_rights_environment_and_directory() {
    // Both let go of their directory once the command has started.
    let script = "until [ $(readlink /proc/$PPID/cwd) = / ]; do :; done; readlink /proc/$$/cwd; echo $EGRESS_TOKEN_0; grep NoNewPrivs /proc/self/status";
    for init in [Init::Ours, Init::Dumb] {
        let mut command = init.over(PLAIN, ["sh", "-c", script]);
        let output = command.current_dir("/tmp").env("EGRESS_TOKEN_0", "kept").output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "/tmp\nkept\nNoNewPrivs:\t0\n", "{init:?}");
    }
}

#[test]
fn who_waits_for_the_end_of_a_pipe_does_not_wait_for_us() {
    use std::io::Read as _;
    // The command closes its end and stays.
    let script = "exec >&- 3>&-; exec sleep 1000";
    let mut running =
        Init::Ours.over(PLAIN, ["sh", "-c", script]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut rest = String::new();
    running.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
    assert!(running.try_wait().unwrap().is_none());
    running.kill().unwrap();
    running.wait().unwrap();
}

#[test]
fn as_pid_1_of_a_container_without_proc_it_takes_nothing_over() {
    assert!(nix::unistd::geteuid().is_root(), "needs root: /proc is taken away in a mount namespace");
    let script = "mount --make-rprivate / && umount --lazy /proc && exec \"$0\"";
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--", "sh", "-c", script]);
    let output = command.arg(env!("CARGO_BIN_EXE_supervisor")).output().unwrap();
    assert_eq!(code(&output), 64, "{output:?}");
    assert!(stderr(&output).contains("hint: mount /proc in the container"), "{output:?}");
}
