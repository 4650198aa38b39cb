//! `bottlecap start`: a bottle that goes on without whoever started it.
//!
//! This program starts itself again as the holder, which still has the person's terminal while it checks the manifest and
//! reads secrets, so that a program which gives one may ask; when the command runs it leaves the terminal for good.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::fault::{Attempted, Fault};
use crate::run::{self, Request};

/// What the holder is started as.
pub const HOLD: &str = "__hold";
const LOG: &str = "holder.log";

/// What the holder says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Said {
    Started { name: String },
    Not { refused: bool, message: String, hint: Option<String> },
}

/// Starts the bottle and leaves it; its name.
pub fn start(request: &Request) -> Result<String, Fault> {
    let told = || "cannot start the bottle's holder".to_owned();
    let (mut ours, theirs) = UnixStream::pair().failing(told)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg(HOLD).stdin(Stdio::inherit()).stderr(Stdio::inherit());
    let mut holder = command.stdout(std::os::fd::OwnedFd::from(theirs)).spawn().failing(told)?;
    drop(command);
    serde_json::to_writer(&mut ours, request).failing(told)?;
    ours.write_all(b"\n").failing(told)?;
    let mut line = String::new();
    BufReader::new(ours).read_line(&mut line).failing(told)?;
    match serde_json::from_str(&line) {
        Ok(Said::Started { name }) => Ok(name),
        Ok(Said::Not { refused, message, hint }) => {
            holder.wait().failing(told)?;
            let fault = if refused { Fault::refused(message) } else { Fault::failed(message) };
            Err(match hint {
                Some(hint) => fault.with_hint(hint),
                None => fault,
            })
        }
        // It said why on standard error.
        Err(_) => {
            let status = holder.wait().failing(told)?;
            Err(Fault::failed(format!("the bottle did not start: its holder ended ({status})")))
        }
    }
}

/// The holder: reads what is asked for, runs it, and ends with it. Its exit code.
pub fn hold() -> i32 {
    let starter = match io::stdout().as_fd().try_clone_to_owned() {
        Ok(fd) => UnixStream::from(fd),
        Err(_) => return crate::fault::FAILURE.into(),
    };
    let mut door = Door { starter };
    let outcome = door.request().and_then(|request| {
        let door = Door { starter: door.starter.try_clone().failing(|| "cannot answer".to_owned())? };
        run::run_apart(&request, door)
    });
    match outcome {
        Ok(code) => code,
        Err(fault) => {
            let said = Said::Not {
                refused: fault.code() == crate::fault::USAGE,
                message: fault.to_string(),
                hint: fault.hint().map(str::to_owned),
            };
            // After the start nobody listens any more; then it goes to the log.
            if door.say(&said).is_err() {
                tracing::error!("{fault}");
            }
            fault.code().into()
        }
    }
}

/// The way back to whoever starts the bottle, until it has started.
#[derive(Debug)]
pub struct Door {
    starter: UnixStream,
}

impl Door {
    fn request(&self) -> Result<Request, Fault> {
        let told = || "cannot read what to start".to_owned();
        let mut line = String::new();
        BufReader::new(&self.starter).read_line(&mut line).failing(told)?;
        serde_json::from_str(&line).failing(told)
    }

    fn say(&mut self, said: &Said) -> io::Result<()> {
        let mut line = serde_json::to_vec(said)?;
        line.push(b'\n');
        self.starter.write_all(&line)
    }

    /// Says that the bottle runs, and leaves the terminal: what is said from now on goes to a log in `home`.
    pub(crate) fn close(mut self, name: &str, home: &Path) -> io::Result<()> {
        let nothing = File::options().read(true).write(true).open("/dev/null")?;
        let log = File::options().create(true).append(true).mode(0o600).open(home.join(LOG))?;
        nix::unistd::setsid()?;
        std::env::set_current_dir("/")?;
        nix::unistd::dup2_stdin(&nothing)?;
        nix::unistd::dup2_stderr(&log)?;
        // Whoever started it may be gone; the bottle is there all the same.
        let _ = self.say(&Said::Started { name: name.to_owned() });
        nix::unistd::dup2_stdout(&nothing)?;
        Ok(())
    }
}
