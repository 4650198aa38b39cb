//! The clients: `supervisor status`, `health`, `reload`, `restart`, `stop`, `logs`.

use std::io::{self, BufRead as _, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::bundle::control_path;
use crate::cli::Ask;
use crate::control::{
    DaemonStatus, Failure, Healthy, LogLines, Reloaded, Reply, Request, Restarting, Status, Stopping,
};
use crate::sys;

/// Why a client got no good answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("cannot reach the supervisor at {path}")]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} belongs to uid {uid}, not to root or to us")]
    Stranger { path: PathBuf, uid: u32 },
    #[error("the connection to the supervisor failed")]
    Connection(#[from] io::Error),
    #[error("the supervisor closed the connection without an answer")]
    Silent,
    #[error("the answer of the supervisor is not understood")]
    Answer,
    #[error(transparent)]
    Refused(#[from] Failure),
}

impl ClientError {
    /// What the reader can do.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Connect { .. } => {
                Some("is it running, and is --run-dir (or BOTTLECAP_RUN_DIR) the one it was started with?")
            }
            Self::Stranger { .. } | Self::Connection(_) | Self::Silent | Self::Answer | Self::Refused(_) => {
                None
            }
        }
    }

    /// 64 for a name that does not exist, 1 for a failed health check (as Docker defines it), 70 otherwise.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(failure) if failure.code == "unknown-daemon" => 64,
            Self::Refused(failure) if failure.code == "unhealthy" => 1,
            Self::Connect { .. }
            | Self::Stranger { .. }
            | Self::Connection(_)
            | Self::Silent
            | Self::Answer
            | Self::Refused(_) => 70,
        }
    }
}

struct Connection(BufReader<UnixStream>);

impl Connection {
    fn open(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path)
            .map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
        let uid = sys::sockets::peer_uid(&stream)?;
        if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
            return Err(ClientError::Stranger { path: path.to_owned(), uid });
        }
        Ok(Self(BufReader::new(stream)))
    }

    fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(request).map_err(io::Error::from)?;
        line.push(b'\n');
        Ok(self.0.get_mut().write_all(&line)?)
    }

    fn line(&mut self) -> Result<Option<String>, ClientError> {
        let mut line = String::new();
        Ok((self.0.read_line(&mut line)? > 0).then_some(line))
    }

    fn answer<T: DeserializeOwned>(&mut self) -> Result<T, ClientError> {
        parse(&self.line()?.ok_or(ClientError::Silent)?)
    }
}

fn parse<T: DeserializeOwned>(line: &str) -> Result<T, ClientError> {
    let reply: Reply<T> = serde_json::from_str(line).map_err(|_| ClientError::Answer)?;
    Ok(reply.outcome().ok_or(ClientError::Answer)??)
}

/// Asks the supervisor in this run directory and prints its answer.
pub(crate) fn run(command: &Ask, run_dir: &Path, out: &mut impl Write) -> Result<(), ClientError> {
    let mut connection = Connection::open(&control_path(run_dir))?;
    match command {
        Ask::Status { json } => {
            connection.send(&Request::Status {})?;
            let status: Status = connection.answer()?;
            if *json {
                writeln!(out, "{}", serde_json::to_string(&status).map_err(io::Error::from)?)?;
            } else {
                print_status(&status, out)?;
            }
        }
        Ask::Health => {
            connection.send(&Request::Health {})?;
            let Healthy { healthy: _ } = connection.answer()?;
            writeln!(out, "every daemon is ready")?;
        }
        Ask::Reload { name } => {
            connection.send(&Request::Reload { name: name.clone() })?;
            let reloaded: Reloaded = connection.answer()?;
            if reloaded.daemons.is_empty() {
                writeln!(out, "no daemon of this bundle reloads")?;
            }
            for daemon in reloaded.daemons {
                let generation =
                    daemon.generation.map(|number| format!(" generation {number}")).unwrap_or_default();
                let digest = daemon.digest.map(|digest| format!(" {digest}")).unwrap_or_default();
                writeln!(out, "{}{generation}{digest}", daemon.name)?;
            }
        }
        Ask::Restart { name } => {
            connection.send(&Request::Restart { name: name.clone() })?;
            let Restarting { name } = connection.answer()?;
            writeln!(out, "{name} is being restarted")?;
        }
        Ask::Stop => {
            connection.send(&Request::Stop {})?;
            let Stopping {} = connection.answer()?;
            // The connection ends with the supervisor.
            while let Ok(Some(_)) = connection.line() {}
        }
        Ask::Logs { follow, name } => {
            connection.send(&Request::Logs { name: name.clone(), follow: *follow })?;
            print_lines(&connection.answer()?, out)?;
            while *follow && let Some(line) = connection.line()? {
                print_lines(&parse(&line)?, out)?;
            }
        }
    }
    out.flush()?;
    Ok(())
}

fn print_lines(log: &LogLines, out: &mut impl Write) -> io::Result<()> {
    for line in &log.lines {
        writeln!(out, "[{}] {}", line.name, line.line)?;
    }
    out.flush()
}

fn print_status(status: &Status, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "{:<10} {:<10} {:>7} {:>9} {:>8} {:>10}  LAST EXIT",
        "DAEMON", "STATE", "PID", "UPTIME", "RESTARTS", "GENERATION"
    )?;
    for daemon in &status.daemons {
        print_daemon(daemon, out)?;
    }
    for daemon in status.daemons.iter().filter(|daemon| !daemon.walls.is_empty()) {
        writeln!(out, "{}: confined by {}", daemon.name, daemon.walls.join(", "))?;
    }
    for daemon in &status.daemons {
        if let Some(error) = &daemon.reload_error {
            writeln!(out, "{}: last reload refused: {error}", daemon.name)?;
        }
    }
    Ok(())
}

fn print_daemon(daemon: &DaemonStatus, out: &mut impl Write) -> io::Result<()> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    writeln!(
        out,
        "{:<10} {:<10} {:>7} {:>9} {:>8} {:>10}  {}",
        daemon.name,
        daemon.state.as_str(),
        or_dash(daemon.pid.map(|pid| pid.to_string())),
        or_dash(daemon.uptime_ms.map(uptime)),
        daemon.restarts,
        or_dash(daemon.generation.map(|number| number.to_string())),
        or_dash(daemon.last_exit.clone()),
    )
}

fn uptime(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds}s"),
        (0, 0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (0, hours, minutes, _) => format!("{hours}h{minutes:02}m"),
        (days, hours, _, _) => format!("{days}d{hours:02}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptimes_are_short() {
        let shown: Vec<String> = [900, 61_000, 3_720_000, 200_000_000].into_iter().map(uptime).collect();
        assert_eq!(shown, ["0s", "1m01s", "1h02m", "2d07h"]);
    }

    #[test]
    fn the_status_table_reads_well() {
        let golden = include_str!("../../docs/control/supervisor.jsonl");
        let status: Status = parse(golden.lines().nth(1).unwrap()).unwrap();
        let mut out = Vec::new();
        print_status(&status, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\
DAEMON     STATE          PID    UPTIME RESTARTS GENERATION  LAST EXIT
egress     ready           12        5s        1          3  signal 9
git-gate   backoff          -         -        2          -  not started: cannot execute the program: Permission denied (os error 13)
egress: confined by uid 64101, landlock 7, seccomp, one exec
egress: last reload refused: routes.yaml:5:5: unknown field `metods`, expected one of `host`, `methods`
"
        );
    }
}
