//! `supervisor run` beside tini, catatonit and s6, each as PID 1 of a PID namespace: prints a table. Needs root.
#![allow(unsafe_code, missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd, FromRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};

/// Starts and stops of each init.
const ROUNDS: usize = 20;
/// Orphans that end at once.
const ORPHANS: usize = 3000;
/// How often that is done.
const ORPHAN_ROUNDS: usize = 5;
/// How long the idle init is watched.
const IDLE: Duration = Duration::from_secs(5);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("child") => child(),
        Some("orphans") => orphans(),
        _ => table(),
    }
}

/// Microseconds on the clock that all processes share.
fn now() -> f64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    Duration::from(time).as_secs_f64() * 1e6
}

/// Says when it began, and stays until SIGTERM.
fn child() {
    println!("{}", now());
    loop {
        nix::unistd::pause();
    }
}

/// Makes orphans, lets them all end at once, and says how long it took until every one was reaped.
fn orphans() {
    let (gate, hold) = nix::unistd::pipe().unwrap();
    let (read, write) = nix::unistd::pipe().unwrap();
    for _ in 0..ORPHANS {
        // SAFETY: one thread; the children only make system calls.
        unsafe {
            if libc::fork() == 0 {
                if libc::fork() == 0 {
                    let (pid, mut byte) = (libc::getpid(), 0_u8);
                    libc::write(std::os::fd::AsRawFd::as_raw_fd(&write), (&raw const pid).cast(), 4);
                    libc::close(std::os::fd::AsRawFd::as_raw_fd(&hold));
                    libc::read(std::os::fd::AsRawFd::as_raw_fd(&gate), (&raw mut byte).cast(), 1);
                }
                libc::_exit(0);
            }
            libc::wait(std::ptr::null_mut());
        }
    }
    let mut pids = vec![0; ORPHANS * 4];
    fs::File::from(read).read_exact(&mut pids).unwrap();
    let began = now();
    drop(hold);
    for pid in pids.chunks(4).map(|bytes| i32::from_ne_bytes(bytes.try_into().unwrap())) {
        // SAFETY: no memory is passed. A zombie still has its number.
        while unsafe { libc::kill(pid, 0) } == 0 {
            pause(Duration::from_micros(200));
        }
    }
    println!("{}", now() - began);
}

fn pause(time: Duration) {
    let time = libc::timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
    // SAFETY: a valid time, and nobody asks how much of it was left.
    unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
}

/// An init, and how it is told what to run.
struct Init {
    name: &'static str,
    words: Vec<String>,
}

impl Init {
    fn all() -> Vec<Self> {
        let ours =
            std::env::var("BENCH_SUPERVISOR").unwrap_or_else(|_| env!("CARGO_BIN_EXE_supervisor").to_owned());
        let words = |text: &str| text.split(' ').map(str::to_owned).collect();
        vec![
            Self { name: "supervisor", words: vec![ours, "run".into(), "--".into()] },
            Self { name: "tini", words: words("tini --") },
            Self { name: "catatonit", words: words("catatonit --") },
            Self { name: "s6-svscan", words: vec!["s6-svscan".into()] },
        ]
    }

    /// Runs this program again under the init, as PID 1 of a namespace.
    fn start(&self, what: &str, scratch: &Path) -> Running {
        let own = std::env::current_exe().unwrap();
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"]).args(&self.words);
        if self.name == "s6-svscan" {
            command.arg(service(scratch, &format!("exec {} {what}", own.display())));
        } else {
            command.arg(own).arg(what);
        }
        let began = now();
        let mut outer =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(outer.stdout.take().unwrap());
        Running { outer, lines, began }
    }
}

/// A directory of one service, as s6 wants it.
fn service(scratch: &Path, line: &str) -> PathBuf {
    let directory = scratch.join("services");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(directory.join("one")).unwrap();
    let run = directory.join("one/run");
    fs::write(&run, format!("#!/bin/sh\n{line}\n")).unwrap();
    fs::set_permissions(&run, fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

struct Running {
    outer: Child,
    lines: BufReader<ChildStdout>,
    began: f64,
}

impl Running {
    fn number(&mut self) -> f64 {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim().parse().unwrap()
    }

    /// The init, as this namespace numbers it.
    fn init(&self) -> i32 {
        let outer = self.outer.id();
        let list = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap();
        list.trim().parse().unwrap()
    }

    /// Sends SIGTERM and waits for the init: how long that took.
    fn stop(mut self) -> f64 {
        let init = self.init();
        // SAFETY: no memory is passed; the descriptor is fresh.
        let handle = unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_open, init, 0);
            OwnedFd::from_raw_fd(i32::try_from(fd).unwrap())
        };
        let began = now();
        // SAFETY: no memory is passed.
        unsafe { libc::kill(init, libc::SIGTERM) };
        poll(&mut [PollFd::new(handle.as_fd(), PollFlags::POLLIN)], PollTimeout::try_from(20_000).unwrap())
            .unwrap();
        let took = now() - began;
        self.outer.wait().unwrap();
        took
    }
}

fn status(pid: i32, fields: &[&str]) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let number = |line: &str| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
    text.lines().filter(|line| fields.iter().any(|field| line.starts_with(field))).map(number).sum()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn table() {
    let scratch = std::env::temp_dir().join(format!("bench-init-{}", std::process::id()));
    let inits = Init::all();
    let (mut spawns, mut stops, mut reaps) = (vec![vec![]; 4], vec![vec![]; 4], vec![vec![]; 4]);
    // One after the other in each round, so that what else the machine does falls on all alike.
    for _ in 0..ROUNDS {
        for (at, init) in inits.iter().enumerate() {
            let mut running = init.start("child", &scratch);
            spawns[at].push(running.number() - running.began);
            stops[at].push(running.stop());
        }
    }
    for _ in 0..ORPHAN_ROUNDS {
        for (at, init) in inits.iter().enumerate() {
            let mut running = init.start("orphans", &scratch);
            reaps[at].push(running.number());
            if init.name == "s6-svscan" {
                running.stop();
            } else {
                running.outer.wait().unwrap();
            }
        }
    }
    let idle: Vec<(u64, u64)> = inits
        .iter()
        .map(|init| {
            let mut running = init.start("child", &scratch);
            running.number();
            let pid = running.init();
            pause(Duration::from_millis(200));
            let switches = |pid| status(pid, &["voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"]);
            let before = switches(pid);
            pause(IDLE);
            let seen = (status(pid, &["VmRSS"]), switches(pid) - before);
            running.stop();
            seen
        })
        .collect();
    let _ = fs::remove_dir_all(&scratch);

    let mut out = String::from("| as PID 1 |");
    for init in &inits {
        out += &format!(" {} |", init.name);
    }
    out += "\n|---|---:|---:|---:|---:|\n";
    let mut row = |name: &str, cells: Vec<String>| out += &format!("| {name} | {} |\n", cells.join(" | "));
    let milliseconds = |values: &[Vec<f64>]| {
        values.iter().map(|values| format!("{:.1} ms", median(values.clone()) / 1e3)).collect()
    };
    row("resident (VmRSS)", idle.iter().map(|(rss, _)| format!("{:.1} MB", *rss as f64 / 1024.0)).collect());
    row("from start to the command's main", milliseconds(&spawns));
    row("from TERM to the end", milliseconds(&stops));
    row(&format!("{ORPHANS} orphans that end at once, until reaped"), milliseconds(&reaps));
    row(
        &format!("wake-ups in {} s of rest", IDLE.as_secs()),
        idle.iter().map(|(_, count)| count.to_string()).collect(),
    );
    std::io::stdout().write_all(out.as_bytes()).unwrap();
}
