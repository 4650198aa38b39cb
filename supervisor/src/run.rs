//! `supervisor run -- CMD`: the init of one command. It sends signals on, reaps what is left behind, and ends as the command ended.

use std::ffi::OsString;
use std::io::{self, Write as _};

use clap::{ArgAction, Args};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::run::rules::{Deed, Number, Rewrite, Rules};
use crate::sys::exec::{self, BackgroundWrites, ExecError, Target, Terminal};
use crate::sys::signals::{Inherited, Recorder};
use crate::sys::{self, Ended};
use crate::{EXIT_FAILED, EXIT_USAGE};

mod rules;

/// Exit code of a command that is not there, as shells have it.
const EXIT_NOT_FOUND: u8 = 127;
/// Exit code of a command that is there and cannot be executed.
const EXIT_NOT_EXECUTABLE: u8 = 126;

/// Flags as tini has them, and the rewrites of dumb-init.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(after_help = "\
Exit codes: that of CMD, or 128+n when signal n ended it; 127 CMD not found, 126 not executable; 64 usage; 70 no process can be made.

Examples:
  supervisor run -- nginx -g 'daemon off;'      PID 1 of a container
  supervisor run -g -e 143 -- sh -c 'a | b'     a pipeline that is stopped as a whole, and then exits with 0")]
pub(crate) struct RunArgs {
    /// Send signals to the whole process group of CMD, and TERM to what is left of it when CMD ends
    #[arg(short = 'g', long = "group", env = "BOTTLECAP_RUN_GROUP", value_parser = clap::builder::FalseyValueParser::new())]
    group: bool,

    /// Adopt orphans even when not PID 1; so it always is, the flag is known for the sake of tini's users
    #[arg(short = 's', long = "subreaper", env = "BOTTLECAP_RUN_SUBREAPER", value_parser = clap::builder::FalseyValueParser::new())]
    _subreaper: bool,

    /// Receive this signal, and send it on, when the process that started us ends
    #[arg(short = 'p', long, value_name = "SIGNAL", env = "BOTTLECAP_RUN_PARENT_DEATH")]
    parent_death: Option<Number>,

    /// Exit with 0 when CMD exits with this code; repeatable
    #[arg(
        short = 'e',
        long = "expect",
        value_name = "CODE",
        env = "BOTTLECAP_RUN_EXPECT",
        value_delimiter = ','
    )]
    expect: Vec<u8>,

    /// Send signal TO where FROM comes in, or nothing where TO is 0; repeatable
    #[arg(short = 'r', long, value_name = "FROM:TO", env = "BOTTLECAP_RUN_REWRITE", value_delimiter = ',')]
    rewrite: Vec<Rewrite>,

    /// Say which orphans are reaped
    #[arg(short = 'w', long, env = "BOTTLECAP_RUN_WARN_ON_REAP", value_parser = clap::builder::FalseyValueParser::new())]
    warn_on_reap: bool,

    /// Say what is done
    #[arg(short = 'v', long, action = ArgAction::Count, env = "BOTTLECAP_RUN_VERBOSE")]
    verbose: u8,

    /// The command and its arguments, found along PATH
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
}

/// Why the command was not run to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error(transparent)]
    Exec(#[from] ExecError),
    #[error("the system refuses what an init needs")]
    System(#[from] io::Error),
}

impl RunError {
    /// The exit code, as shells have it.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Exec(ExecError::Exec { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                EXIT_NOT_FOUND
            }
            Self::Exec(ExecError::Exec { .. }) => EXIT_NOT_EXECUTABLE,
            Self::Exec(ExecError::Words(_)) => EXIT_USAGE,
            Self::Exec(ExecError::Fork(_) | ExecError::Prepare { .. }) | Self::System(_) => EXIT_FAILED,
        }
    }
}

/// Runs the command to its end; returns the exit code.
pub(crate) fn run(args: &RunArgs) -> Result<u8, RunError> {
    let inherited = Inherited::now()?;
    let caught = (1..=64).filter(|number| !matches!(*number, libc::SIGKILL | libc::SIGSTOP | 32 | 33));
    let recorder = Recorder::install(caught)?;
    if std::process::id() != 1 {
        sys::become_subreaper()?;
    }
    if let Some(number) = args.parent_death {
        exec::on_parent_death(number.get())?;
    }
    let terminal = Terminal::now();
    let pid = exec::start(&args.command, &inherited, terminal)?;
    exec::let_go(recorder.descriptors());
    let init = Init {
        rules: Rules::new(args.rewrite.iter().copied(), args.expect.iter().copied()),
        target: if args.group { Target::Group(pid) } else { Target::Process(pid) },
        terminal,
        pid,
        warn_on_reap: args.warn_on_reap,
        verbose: args.verbose > 0,
        recorder,
    };
    init.say(|| format!("{} runs as pid {pid}", args.command[0].to_string_lossy()));
    init.serve()
}

/// The init at work.
#[derive(Debug)]
struct Init {
    rules: Rules,
    target: Target,
    terminal: Terminal,
    pid: i32,
    warn_on_reap: bool,
    verbose: bool,
    recorder: Recorder,
}

impl Init {
    fn serve(mut self) -> Result<u8, RunError> {
        loop {
            let mut fds = [PollFd::new(self.recorder.fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
            let signals = self.recorder.take();
            for deed in self.rules.on(&signals) {
                self.perform(deed);
            }
            if let Some(ended) = self.reap()? {
                return Ok(self.rules.exit_code(shell_code(ended)));
            }
            self.follow_a_stop();
        }
    }

    fn perform(&self, deed: Deed) {
        match deed {
            Deed::ReturnTerminal => {
                if self.terminal == Terminal::Ours && Terminal::now() == Terminal::Ours {
                    let _ = exec::hand_terminal_to(self.pid);
                }
            }
            Deed::Send(number) => {
                let sent = exec::send(self.target, number);
                self.say(|| match sent {
                    Ok(()) => format!("sent signal {number} on"),
                    Err(error) => format!("cannot send signal {number} on: {error}"),
                });
            }
            Deed::Suspend => {
                self.say(|| "stopped, until someone continues it".to_owned());
                exec::suspend_self();
            }
        }
    }

    /// The one place that waits for children: how the command ended, once it has.
    fn reap(&self) -> Result<Option<Ended>, RunError> {
        let mut over = None;
        while let Some(pid) = sys::peek_ended_child()? {
            if pid == self.pid && matches!(self.target, Target::Group(_)) {
                // While the leader is a zombie, the number of its group cannot belong to anyone else.
                let _ = exec::send(self.target, libc::SIGTERM);
            }
            let ended = sys::reap(pid)?;
            if pid == self.pid {
                self.say(|| format!("the command ended: {ended:?}"));
                over = Some(ended);
            } else if self.warn_on_reap || self.verbose {
                say(&format!("reaped pid {pid}, an orphan"));
            }
        }
        Ok(over)
    }

    /// A command that the terminal stopped is the whole of us: the shell that started us must get its prompt back.
    fn follow_a_stop(&self) {
        let held = self.terminal == Terminal::Ours && !leads_session();
        if held && exec::has_stopped(self.pid) {
            self.say(|| "the command was stopped, and so are we".to_owned());
            exec::suspend_self();
        }
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            say(&text());
        }
    }
}

/// Whether there is no shell that could continue us.
fn leads_session() -> bool {
    nix::unistd::getsid(None).is_ok_and(|session| session == nix::unistd::getpid())
}

fn shell_code(ended: Ended) -> u8 {
    let code = match ended {
        Ended::Exited(code) => code,
        Ended::Killed(number) => 128 + number,
    };
    u8::try_from(code).unwrap_or(u8::MAX)
}

fn say(text: &str) {
    let _quiet = BackgroundWrites::allow();
    let _ = writeln!(io::stderr(), "[supervisor] {text}");
}
