//! What others leave behind.

use std::process::{Command, Stdio};

use crate::common::{Init, Running, code, stderr};

/// Leaves twenty orphans behind that end as soon as they are adopted; then says by whom they were, and how many of them its
/// own parent still has not reaped.
const ORPHANS: &str = "$| = 1; pipe R, W;
    for (1..20) {
        unless (fork) {
            my $middle = $$;
            unless (fork) { 1 while getppid == $middle; syswrite W, getppid . \"\\n\"; exit }
            exit
        }
    }
    1 while wait > 0; close W;
    my %parents; while (<R>) { chomp; $parents{$_}++ }
    print \"adopted by $_\\n\" for keys %parents;
    sub left {
        open my $list, '<', '/proc/' . getppid . '/task/' . getppid . '/children' or die;
        scalar grep { $_ != $$ } split ' ', <$list> // ''
    }
    my $until = time + 30; 1 while left() && time < $until;
    print 'left ' . left() . \"\\n\"";

fn adopted(init: Init, options: &[&str]) -> (String, Vec<String>, i32, String) {
    let mut command = init.over(options, ["perl", "-e", ORPHANS]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id().to_string();
    let output = child.wait_with_output().unwrap();
    let lines = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    (pid, lines, code(&output), stderr(&output))
}

#[test]
fn orphans_are_adopted_and_reaped_without_a_word() {
    for (init, options) in [(Init::Ours, &[][..]), (Init::Ours, &["-s"]), (Init::Tini, &["-s"])] {
        let (pid, lines, code, said) = adopted(init, options);
        assert_eq!(lines, [format!("adopted by {pid}"), "left 0".to_owned()], "{init:?}");
        assert_eq!((code, said.as_str()), (0, ""), "{init:?}");
    }
    // Without its flag tini adopts nobody when it is not PID 1, and warns.
    let (pid, lines, _, said) = adopted(Init::Tini, &[]);
    assert_ne!(lines[0], format!("adopted by {pid}"));
    assert!(said.contains("zombie reaping won't work"), "{said}");
}

#[test]
fn reaping_is_told_when_asked_for() {
    let (.., said) = adopted(Init::Ours, &["-w"]);
    assert_eq!(said.matches("[supervisor] reaped pid ").count(), 20, "{said}");
    let (.., said) = adopted(Init::Tini, &["-s", "-w"]);
    assert_eq!(said.matches("Reaped zombie process").count(), 20, "{said}");
}

/// An init as PID 1 of a PID namespace of its own.
fn as_pid_1(init: Init, script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
    command.args(init.words()).args(["--", "sh", "-c", script]).stdin(Stdio::null());
    command
}

#[test]
fn as_pid_1_it_adopts_signals_and_exits_the_same() {
    for init in [Init::Ours, Init::Tini, Init::Dumb] {
        let output = as_pid_1(init, "cat /proc/1/comm; exit 9").output().unwrap();
        assert_eq!(code(&output), 9, "{init:?} {output:?}");
        let name = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(["supervisor\n", "tini\n", "dumb-init\n"].contains(&name.as_str()), "{name}");
        // A signal from inside, which the kernel would drop for a PID 1 that handles nothing.
        let output = as_pid_1(init, "kill -TERM 1; exec sleep 1000").output().unwrap();
        assert_eq!(code(&output), 143, "{init:?} {output:?}");
    }
}

#[test]
fn as_pid_1_a_terminal_stop_does_not_hold_it_up() {
    let script =
        "trap 'echo stopped' TSTP; echo up; kill -TSTP 1; kill -TERM 1; sleep 1000 & while :; do wait; done";
    let mut running = Running::start(&mut as_pid_1(Init::Ours, script));
    assert_eq!(running.line(), "up");
    assert_eq!(running.code(), 143);
}
