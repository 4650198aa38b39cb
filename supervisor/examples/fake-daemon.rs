//! A stand-in for any of the daemons, for the tests of the supervisor.
//!
//! It serves its sockets with a tiny line protocol: one command per connection, the answer, and the end. A file
//! `NAME.behaviour` in its configuration directory says what it does at its start.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::zombie_processes)]

use std::env;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio, exit};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use signal_hook::consts::signal::{SIGHUP, SIGTERM};
use signal_hook::{flag, low_level};

fn main() {
    let arguments: Vec<String> = env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("launch") => launch(&arguments[2..]),
        Some("pause") => pause(arguments.get(2)),
        Some("ca") => make_ca(&arguments),
        Some("forge") => {
            UnixDatagram::unbound().unwrap().send_to(b"READY=1", &arguments[2]).unwrap();
        }
        Some("ask") => print!("{}", ask(&arguments[2], &arguments[3])),
        Some("attack") => println!("{}", attack(&arguments[2], &arguments[3])),
        Some("without-landlock") => without_landlock(&arguments[2..]),
        Some(_) | None => Daemon::new(&arguments).serve(),
    }
}

/// Hands the socket at standard input over to a program, as a service manager does.
#[allow(unsafe_code)]
fn launch(command: &[String]) {
    // SAFETY: nothing else in this process uses descriptor 3.
    let _ = unsafe { nix::unistd::dup2_raw(std::io::stdin(), 3) }.unwrap().into_raw_fd();
    let error = Command::new(&command[1])
        .args(&command[2..])
        .env("LISTEN_PID", std::process::id().to_string())
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", &command[0])
        .exec();
    panic!("{error}");
}

/// A process that leaves its session and only a SIGKILL ends, and below it so many more of the kind. Their pids come out.
fn pause(depth: Option<&String>) {
    let _ = nix::unistd::setsid();
    flag::register(SIGTERM, Arc::new(AtomicBool::new(false))).unwrap();
    let mut pids = std::process::id().to_string();
    if let Some(more) = depth.and_then(|depth| depth.parse::<u32>().ok()).filter(|depth| *depth > 1) {
        pids.push(' ');
        pids.push_str(&start_pausing(more - 1));
    }
    println!("{pids}");
    loop {
        nix::unistd::pause();
    }
}

fn start_pausing(depth: u32) -> String {
    let mut command = Command::new("/proc/self/exe");
    let mut child = command.args(["pause", &depth.to_string()]).stdout(Stdio::piped()).spawn().unwrap();
    let mut pids = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut pids).unwrap();
    pids.trim().to_owned()
}

/// Leaves so many processes without a parent that end at the same time.
#[allow(unsafe_code)]
fn orphans(count: u32) -> u32 {
    let (read, write) = nix::unistd::pipe().unwrap();
    // SAFETY: this process has one thread, and its children do nothing but fork, read and exit.
    unsafe {
        let parent = nix::libc::fork();
        if parent == 0 {
            for _ in 0..count {
                if nix::libc::fork() == 0 {
                    drop(write);
                    let mut byte = [0];
                    let _ = nix::unistd::read(&read, &mut byte);
                    nix::libc::_exit(0);
                }
            }
            nix::libc::_exit(0);
        }
        let mut status = 0;
        nix::libc::waitpid(parent, &raw mut status, 0);
    }
    count
}

/// Starts so many processes that fork and end, again and again, each in a session of its own: whoever aims at one is late.
#[allow(unsafe_code)]
fn hop(count: u32) -> u32 {
    for _ in 0..count {
        // SAFETY: this process has one thread, and its children do nothing but fork, leave their session and exit.
        unsafe {
            if nix::libc::fork() == 0 {
                // Whoever asked for this waits for the end of the connection.
                nix::libc::close_range(3, nix::libc::c_uint::MAX, 0);
                loop {
                    nix::libc::setsid();
                    if nix::libc::fork() != 0 {
                        nix::libc::_exit(0);
                    }
                }
            }
        }
    }
    count
}

/// Does what an attacker inside a daemon would do; `done`, or `refused: ` and why.
fn attack(what: &str, target: &str) -> String {
    let outcome = match what {
        "open" => fs::File::open(target).map(drop),
        "list" => fs::read_dir(target).map(drop),
        "write" => fs::write(target, "mine").map(drop),
        "start" => Command::new(target).arg("--version").stdout(Stdio::null()).spawn().map(drop),
        "exec" => Err(Command::new(target).args(["-c", "echo done"]).exec()),
        "signal" => nix::sys::signal::kill(Pid::from_raw(target.parse().unwrap()), None).map_err(Into::into),
        "attach" => attach(target.parse().unwrap()),
        "memory" => memory(target),
        other => panic!("unknown attack {other}"),
    };
    match outcome {
        Ok(()) => "done".to_owned(),
        Err(error) => format!("refused: {error}"),
    }
}

#[allow(unsafe_code)]
fn attach(pid: i32) -> io::Result<()> {
    // SAFETY: attaching touches no memory of ours; the kernel detaches when we end.
    let result = unsafe { nix::libc::ptrace(nix::libc::PTRACE_SEIZE, pid, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Executes a program from memory, which no file permission bounds.
fn memory(program: &str) -> io::Result<()> {
    let file = nix::sys::memfd::memfd_create("program", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut file = fs::File::from(file);
    file.write_all(&fs::read(program)?)?;
    Err(Command::new(format!("/proc/self/fd/{}", file.as_raw_fd())).args(["-c", "echo done"]).exec())
}

/// Runs a program as on a kernel without Landlock.
fn without_landlock(command: &[String]) {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let calls = [
        nix::libc::SYS_landlock_create_ruleset,
        nix::libc::SYS_landlock_add_rule,
        nix::libc::SYS_landlock_restrict_self,
    ];
    let absent = SeccompAction::Errno(nix::libc::ENOSYS as u32);
    let rules = calls.into_iter().map(|call| (call, Vec::new())).collect();
    let architecture = env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, absent, architecture).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
    panic!("{}", Command::new(&command[0]).args(&command[1..]).exec());
}

/// Says one line to a unix socket; what comes back.
fn ask(socket: &str, line: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    // Whoever turns us away may have hung up already.
    let _ = stream.write_all(format!("{line}\n").as_bytes());
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

fn make_ca(arguments: &[String]) {
    assert_eq!(&arguments[1..5], ["ca", "init", "--if-absent", "--ca-dir"]);
    let directory = PathBuf::from(&arguments[5]);
    if let Err(error) = fs::create_dir_all(&directory) {
        println!("cannot make {}: {error}", directory.display());
        exit(64);
    }
    fs::write(directory.join("ca.pem"), "a certificate").unwrap();
}

struct Daemon {
    name: String,
    config: PathBuf,
    listeners: Vec<TcpListener>,
    secrets: Vec<(String, fs::File)>,
    peers: Vec<(String, OwnedFd)>,
    hangups: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    wake: UnixStream,
    generation: u64,
    deaf: bool,
    ready: bool,
}

impl Daemon {
    fn new(arguments: &[String]) -> Self {
        let name = arguments[0].rsplit('/').next().unwrap().to_owned();
        let at = arguments.iter().position(|argument| argument == "--config").unwrap();
        let (wake, write) = UnixStream::pair().unwrap();
        wake.set_nonblocking(true).unwrap();
        let (hangups, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        flag::register(SIGTERM, Arc::clone(&stop)).unwrap();
        for number in [SIGHUP, SIGTERM] {
            low_level::pipe::register(number, write.try_clone().unwrap()).unwrap();
        }
        let (listeners, secrets, peers) = handed_over();
        Self {
            name,
            config: PathBuf::from(&arguments[at + 1]),
            listeners,
            secrets,
            peers,
            hangups,
            stop,
            wake,
            generation: 1,
            deaf: false,
            ready: false,
        }
    }

    fn serve(mut self) {
        let behaviour =
            fs::read_to_string(self.config.join(format!("{}.behaviour", self.name))).unwrap_or_default();
        println!("hello from {}", self.name);
        match behaviour.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["fail", code] => exit(code.parse().unwrap()),
            ["silent"] => {}
            _ => self.say_ready(),
        }
        loop {
            let sockets = self.listeners.iter().map(AsFd::as_fd).chain([self.wake.as_fd()]);
            let mut fds: Vec<PollFd<'_>> = sockets.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            if poll(&mut fds, PollTimeout::NONE).is_err() {
                continue;
            }
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap()).collect();
            if ready[self.listeners.len()] {
                self.woken();
            }
            for (at, _) in ready.iter().enumerate().take(self.listeners.len()).filter(|(_, ready)| **ready) {
                let (stream, _) = self.listeners[at].accept().unwrap();
                self.command(stream);
            }
        }
    }

    fn woken(&mut self) {
        let mut bytes = [0; 64];
        let count = (&self.wake).read(&mut bytes).unwrap_or(0);
        if self.stop.swap(false, Ordering::SeqCst) {
            if !self.deaf {
                println!("goodbye from {}", self.name);
                exit(0);
            }
            return;
        }
        if count > 0 {
            self.hangups.fetch_add(count as u64, Ordering::SeqCst);
            self.reload();
        }
    }

    fn reload(&mut self) {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
        let began = now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000;
        notify(&format!("RELOADING=1\nMONOTONIC_USEC={began}\n"));
        let routes = fs::read_to_string(self.config.join("routes.yaml")).unwrap_or_default();
        if routes.starts_with("bad") {
            let generation = self.generation;
            notify(&format!(
                "READY=1\nX_GENERATION={generation}\nX_DIGEST={}\nX_RELOAD_ERROR=routes.yaml:1:1: bad\n",
                digest(generation)
            ));
        } else {
            self.generation += 1;
            self.say_ready();
        }
    }

    fn peer(&self, name: &str) -> &OwnedFd {
        &self.peers.iter().find(|(other, _)| other == name).unwrap().1
    }

    fn say_ready(&mut self) {
        self.ready = true;
        let generation = self.generation;
        notify(&format!("READY=1\nX_GENERATION={generation}\nX_DIGEST={}\n", digest(generation)));
    }

    fn command(&mut self, stream: TcpStream) {
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        let mut stream = stream;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words.as_slice() {
            ["pid"] => std::process::id().to_string(),
            ["uid"] => nix::unistd::getuid().to_string(),
            ["hangups"] => self.hangups.load(Ordering::SeqCst).to_string(),
            ["environment"] => {
                env::vars().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("\n")
            }
            ["proc", file] => fs::read_to_string(format!("/proc/self/{file}")).unwrap(),
            ["descriptors"] => {
                let entries = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap());
                let mut lines: Vec<String> = entries
                    .filter_map(|entry| {
                        let target = fs::read_link(entry.path()).ok()?;
                        Some(format!("{} {}", entry.file_name().display(), target.display()))
                    })
                    .collect();
                lines.sort_unstable();
                lines.join("\n")
            }
            ["secrets"] => {
                let mut text = String::new();
                for (name, file) in &mut self.secrets {
                    let mut value = String::new();
                    file.rewind().unwrap();
                    file.read_to_string(&mut value).unwrap();
                    text.push_str(&format!("{name}={value}\n"));
                }
                text
            }
            ["ready"] => {
                self.say_ready();
                "ok".to_owned()
            }
            ["tell", peer, word] => match nix::unistd::write(self.peer(peer), word.as_bytes()) {
                Ok(_) => "told".to_owned(),
                Err(error) => format!("cannot tell: {error}"),
            },
            ["hear", peer] => {
                let mut bytes = [0; 256];
                match nix::unistd::read(self.peer(peer), &mut bytes) {
                    Ok(count) => String::from_utf8_lossy(&bytes[..count]).into_owned(),
                    Err(error) => format!("cannot hear: {error}"),
                }
            }
            ["ask", socket, line] => ask(socket, line),
            ["attack", what, target] => attack(what, target),
            ["deaf"] => {
                self.deaf = true;
                "ok".to_owned()
            }
            ["say", rest @ ..] => {
                println!("{}", rest.join(" "));
                "ok".to_owned()
            }
            ["chatter", count] => {
                let mut out = std::io::stdout().lock();
                for number in 0..count.parse::<u32>().unwrap() {
                    writeln!(out, "line {number} of a daemon that talks and talks and talks").unwrap();
                }
                "ok".to_owned()
            }
            ["hop", count] => hop(count.parse().unwrap()).to_string(),
            ["escape"] => start_pausing(1),
            ["escape", depth] => start_pausing(depth.parse().unwrap()),
            ["orphans", count] => orphans(count.parse().unwrap()).to_string(),
            ["exit", code] => exit(code.parse().unwrap()),
            ["abort"] => std::process::abort(),
            other => format!("unknown command {other:?}"),
        };
        let _ = stream.write_all(answer.as_bytes());
    }
}

fn digest(generation: u64) -> String {
    format!("sha256:{generation:064x}")
}

fn notify(text: &str) {
    let path = env::var("NOTIFY_SOCKET").unwrap();
    UnixDatagram::unbound().unwrap().send_to(text.as_bytes(), path).unwrap();
}

type Named<T> = Vec<(String, T)>;

fn handed_over() -> (Vec<TcpListener>, Named<fs::File>, Named<OwnedFd>) {
    assert_eq!(env::var("LISTEN_PID").unwrap(), std::process::id().to_string());
    let count: i32 = env::var("LISTEN_FDS").unwrap().parse().unwrap();
    let names = env::var("LISTEN_FDNAMES").unwrap();
    let (mut listeners, mut secrets, mut peers) = (Vec::new(), Vec::new(), Vec::new());
    for (number, name) in (3..3 + count).zip(names.split(':')) {
        let fd = own(number);
        match name.split_once('.') {
            Some(("secret", name)) => secrets.push((name.to_owned(), fd.into())),
            Some(("peer", name)) => peers.push((name.to_owned(), fd)),
            Some(_) | None => listeners.push(fd.into()),
        }
    }
    (listeners, secrets, peers)
}

#[allow(unsafe_code)]
fn own(number: i32) -> OwnedFd {
    // SAFETY: the supervisor passed this descriptor, and it is taken once.
    unsafe { OwnedFd::from_raw_fd(number) }
}
