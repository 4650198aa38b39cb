//! What reaches the command.

use std::process::{Command, Stdio};

use nix::libc;

use crate::common::{Handle, Init, PLAIN, Running, await_state, send};

/// What stops the receiver and is no use in a list of the others.
const TERMINAL_STOPS: [i32; 3] = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

fn ordinary() -> impl Iterator<Item = i32> {
    let unseen = [libc::SIGKILL, libc::SIGSTOP, libc::SIGCHLD];
    (1..=31).filter(move |number| !unseen.contains(number) && !TERMINAL_STOPS.contains(number))
}

/// Sends one and expects the other to arrive.
fn becomes(running: &Running, sent: i32, arrives: i32) {
    running.send(sent);
    assert_eq!(running.line(), format!("got {}", name(arrives)), "{sent}");
}

/// As perl names it.
fn name(number: i32) -> String {
    match number {
        34 => "RTMIN".to_owned(),
        64 => "RTMAX".to_owned(),
        35..=63 => format!("NUM{number}"),
        _ => {
            let signal = nix::sys::signal::Signal::try_from(number).unwrap();
            signal.as_str().trim_start_matches("SIG").to_owned()
        }
    }
}

#[test]
fn every_signal_that_can_be_caught_reaches_the_command() {
    for (init, options) in
        [(Init::Ours, &[][..]), (Init::Ours, &["-g"]), (Init::Dumb, &[]), (Init::Dumb, &["-c"])]
    {
        let running = Running::telling(init, options);
        for number in ordinary() {
            becomes(&running, number, number);
        }
        // A second time: a handler that puts itself out would show here.
        for number in ordinary() {
            becomes(&running, number, number);
        }
    }
    // Real-time signals too, which dumb-init leaves alone.
    for init in [Init::Ours, Init::Tini] {
        let running = Running::telling(init, &PLAIN);
        for number in 34..=64 {
            becomes(&running, number, number);
        }
    }
}

#[test]
fn a_command_that_a_signal_ends_ends_us() {
    for init in [Init::Ours, Init::Tini] {
        for number in [libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2] {
            let mut running = Running::start(&mut init.over(PLAIN, ["sh", "-c", "echo up; exec sleep 1000"]));
            running.line();
            running.send(number);
            assert_eq!(running.code(), 128 + number, "{init:?}");
        }
    }
}

#[test]
fn signals_can_be_rewritten_and_withheld() {
    let (term, quit, cont, int) = (libc::SIGTERM, libc::SIGQUIT, libc::SIGCONT, libc::SIGINT);
    let rewrite = |from: i32, to: i32| format!("{from}:{to}");
    for init in [Init::Ours, Init::Dumb] {
        for (rules, sequence) in [
            (vec![], vec![(term, term), (quit, quit), (cont, cont), (int, int)]),
            (vec![(term, int)], vec![(term, int), (quit, quit), (cont, cont), (int, int)]),
            (
                vec![(term, int), (int, term), (quit, quit)],
                vec![(term, int), (quit, quit), (cont, cont), (int, term)],
            ),
            (vec![(1, 31), (31, 1)], vec![(1, 31), (31, 1)]),
        ] {
            let options: Vec<String> =
                rules.iter().flat_map(|(from, to)| ["-r".to_owned(), rewrite(*from, *to)]).collect();
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            let running = Running::telling(init, &options);
            for (sent, arrives) in sequence {
                becomes(&running, sent, arrives);
            }
        }
        let running = Running::telling(init, &["-r", "2:0", "-r", "28:0"]);
        running.send(libc::SIGINT);
        becomes(&running, libc::SIGTERM, libc::SIGTERM);
        running.send(libc::SIGWINCH);
        becomes(&running, libc::SIGHUP, libc::SIGHUP);
    }
    let running = Running::telling(Init::Ours, &["--rewrite", "TERM:SIGINT,INT:0"]);
    running.send(libc::SIGINT);
    becomes(&running, libc::SIGTERM, libc::SIGINT);
}

#[test]
fn a_terminal_stop_is_passed_on_and_stops_us_until_we_are_continued() {
    for (init, options) in [(Init::Ours, &[][..]), (Init::Ours, &["-g"]), (Init::Dumb, &["-c"])] {
        let running = Running::telling(init, options);
        for number in TERMINAL_STOPS {
            becomes(&running, number, number);
            await_state(running.pid(), "T");
            becomes(&running, libc::SIGCONT, libc::SIGCONT);
            await_state(running.pid(), "SR");
        }
    }
    // Rewritten, the stop of the terminal is still one.
    for init in [Init::Ours, Init::Dumb] {
        let running = Running::telling(init, &["-r", "21:15", "-r", "22:2", "-r", "20:1"]);
        for (sent, arrives) in [(libc::SIGTTIN, 15), (libc::SIGTTOU, 2), (libc::SIGTSTP, 1)] {
            becomes(&running, sent, arrives);
            await_state(running.pid(), "T");
            becomes(&running, libc::SIGCONT, libc::SIGCONT);
        }
    }
}

#[test]
fn a_command_without_handlers_stops_and_goes_on_with_us() {
    for init in [Init::Ours, Init::Dumb] {
        let script = "$| = 1; print \"$$\\n\"; sleep 1000 while 1";
        let running = Running::start(&mut init.over(PLAIN, ["perl", "-e", script]));
        let command = running.line().parse().unwrap();
        for number in TERMINAL_STOPS {
            running.send(number);
            await_state(running.pid(), "T");
            await_state(command, "T");
            running.send(libc::SIGCONT);
            await_state(running.pid(), "SR");
            await_state(command, "SR");
        }
        send(command, libc::SIGKILL);
    }
}

/// A command that ignores USR1 over a child that does not; it ends when the child does.
const FAMILY: &str = "$| = 1; $SIG{USR1} = 'IGNORE'; my $child = fork;
    unless ($child) { $SIG{USR1} = 'DEFAULT'; print \"child $$\\n\"; sleep 1000 while 1 }
    waitpid $child, 0; print \"over\\n\"";

#[test]
fn the_group_gets_a_signal_with_g_and_only_the_command_without() {
    for init in [Init::Ours, Init::Tini] {
        let mut running = Running::start(&mut init.over(["-g"], ["perl", "-e", FAMILY]));
        running.line();
        running.send(libc::SIGUSR1);
        assert_eq!(running.rest(), ["over"]);
        assert_eq!(running.code(), 0);

        let mut running = Running::start(&mut init.over(PLAIN, ["perl", "-e", FAMILY]));
        let child: i32 = running.line().strip_prefix("child ").unwrap().parse().unwrap();
        running.send(libc::SIGUSR1);
        // Sent on later, so that the first one has arrived when this one does.
        running.send(libc::SIGTERM);
        assert_eq!(running.code(), 128 + libc::SIGTERM);
        assert!(matches!(crate::common::state(child), 'S' | 'R'), "{init:?}");
        send(child, libc::SIGKILL);
    }
}

#[test]
fn what_is_left_of_the_group_gets_term_when_the_command_ends_with_g_only() {
    // The command ends once its child is ready to tell.
    let family = "$| = 1; pipe R, W; my $child = fork;
        unless ($child) { $SIG{TERM} = sub { print \"got TERM\\n\"; exit }; $SIG{HUP} = sub { print \"got HUP\\n\"; exit };
            close R; close W; sleep 1000 while 1 }
        close W; <R>; print \"$child\\n\"";
    for (init, options) in [(Init::Ours, &["-g"][..]), (Init::Dumb, &[])] {
        let mut running = Running::start(&mut init.over(options, ["perl", "-e", family]));
        running.line();
        assert_eq!(running.code(), 0);
        assert_eq!(running.rest(), ["got TERM"], "{init:?}");
    }
    for (init, options) in [(Init::Ours, &[][..]), (Init::Dumb, &["-c"]), (Init::Tini, &["-g"])] {
        let mut running = Running::start(&mut init.over(options, ["perl", "-e", family]));
        let left: i32 = running.line().parse().unwrap();
        assert_eq!(running.code(), 0);
        send(left, libc::SIGHUP);
        assert_eq!(running.rest(), ["got HUP"], "{init:?}");
    }
}

#[test]
fn ignored_and_blocked_signals_are_as_they_were_before_us() {
    let odd = "use POSIX; $SIG{$_} = 'IGNORE' for qw(TTOU SEGV INT PIPE);
        sigprocmask(SIG_BLOCK, POSIX::SigSet->new(SIGTTIN, SIGILL, SIGTERM)); exec @ARGV";
    let sets = |words: Vec<&str>| {
        let mut command = Command::new("perl");
        command.args(["-e", odd]).args(words).args(["cat", "/proc/self/status"]);
        crate::common::with_plain_signals(&mut command);
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        ["SigBlk:\t", "SigIgn:\t"].map(|field| {
            let set = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
            // The C library keeps 32 and 33 for itself, and lets a program that it starts ignore them.
            u64::from_str_radix(set, 16).unwrap() & !0x1_8000_0000
        })
    };
    let bit = |number: i32| 1_u64 << (number - 1);
    let ignored = [libc::SIGTTOU, libc::SIGSEGV, libc::SIGINT, libc::SIGPIPE].map(bit).iter().sum::<u64>();
    let blocked = [libc::SIGTTIN, libc::SIGILL, libc::SIGTERM].map(bit).iter().sum::<u64>();
    for init in [Init::Ours, Init::Tini] {
        let mut words = init.words();
        words.push("--");
        assert_eq!(sets(words), [blocked, ignored], "{init:?}");
    }
    // And a signal that was blocked or ignored for us is sent on all the same.
    let mut command = Command::new("perl");
    command.args(["-e", odd]).args(Init::Ours.words()).args(["--", "perl", "-e"]);
    let open = crate::common::TELL_SIGNALS.replace(
        "syswrite STDOUT, \"ready",
        "sigprocmask(SIG_SETMASK, POSIX::SigSet->new); syswrite STDOUT, \"ready",
    );
    let running = Running::start(command.arg(open).stdin(Stdio::null()));
    let pid: i32 = running.line().strip_prefix("ready ").unwrap().parse().unwrap();
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGTTIN, libc::SIGILL] {
        becomes(&running, number, number);
        if number == libc::SIGTTIN {
            await_state(running.pid(), "T");
            becomes(&running, libc::SIGCONT, libc::SIGCONT);
        }
    }
    send(pid, libc::SIGKILL);
}

/// Starts an init, tells its command's pid, and stays until it is killed.
fn under_a_parent(init: Init, options: &[&str]) -> (Running, i32) {
    let mut words = init.words();
    words.extend(options);
    words.extend(["--", "perl", "-e", crate::common::TELL_SIGNALS]);
    let start = "unless (fork) { exec @ARGV } sleep 1000 while 1";
    let parent = Running::start(Command::new("perl").args(["-e", start]).args(words).stdin(Stdio::null()));
    let command = parent.line().strip_prefix("ready ").unwrap().parse().unwrap();
    (parent, command)
}

#[test]
fn the_end_of_our_parent_can_be_a_signal() {
    for init in [Init::Ours, Init::Tini] {
        let (parent, command) = under_a_parent(init, &["-p", "SIGUSR1"]);
        send(parent.pid(), libc::SIGKILL);
        assert_eq!(parent.line(), "got USR1", "{init:?}");
        send(command, libc::SIGKILL);
    }
    let (parent, command) = under_a_parent(Init::Ours, &[]);
    send(parent.pid(), libc::SIGKILL);
    send(command, libc::SIGHUP);
    assert_eq!(parent.line(), "got HUP", "without -p nothing comes");
    send(command, libc::SIGKILL);
}

#[test]
fn the_command_does_not_outlive_us() {
    let running = Running::telling(Init::Ours, &PLAIN);
    let command = Handle::open(running.command());
    running.send(libc::SIGKILL);
    command.wait();
    // With tini it does.
    let running = Running::telling(Init::Tini, &PLAIN);
    running.send(libc::SIGKILL);
    send(running.command(), libc::SIGHUP);
    assert_eq!(running.line(), "got HUP");
}
