//! The control socket: JSON lines, one request object per line, one or more reply lines.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use serde::{Deserialize, Serialize};

use crate::logs::{Entry, Logs, Source};
use crate::plan::{State, View};
use crate::sys;
use crate::sys::sockets::Reach;

/// Longest request line.
const REQUEST_LIMIT: usize = 4 * 1024;
/// Clients at the same time.
const CLIENT_LIMIT: usize = 32;
/// Bytes that may wait for a client before it gets no more log lines and none of its requests is taken.
const OUTPUT_LIMIT: usize = 64 * 1024;
/// Log lines in one reply.
const LINES_PER_REPLY: usize = 256;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    /// What each daemon is doing.
    Status {},
    /// Whether every daemon is ready.
    Health {},
    /// Reload, and answer when the daemons acknowledged.
    Reload {
        /// This daemon alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// Restart one daemon.
    Restart {
        /// Its name.
        name: String,
    },
    /// Stop the bundle.
    Stop {},
    /// The last log lines.
    Logs {
        /// Of this source alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// Go on with further replies as lines come.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        follow: bool,
    },
}

/// One reply line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reply<T> {
    ok: bool,
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    result: Option<T>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
}

fn none<T>() -> Option<T> {
    None
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// A stable word.
    pub(crate) code: String,
    /// For a person.
    pub(crate) message: String,
}

impl Failure {
    /// A failure of that code.
    pub(crate) fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }
}

impl<T> Reply<T> {
    /// A reply of either kind.
    pub(crate) fn new(outcome: Result<T, Failure>) -> Self {
        match outcome {
            Ok(result) => Self { ok: true, result: Some(result), error: None },
            Err(error) => Self { ok: false, result: None, error: Some(error) },
        }
    }

    /// What it says; `None` when it contradicts itself.
    pub(crate) fn outcome(self) -> Option<Result<T, Failure>> {
        match (self.ok, self.result, self.error) {
            (true, Some(result), None) => Some(Ok(result)),
            (false, None, Some(error)) => Some(Err(error)),
            (true | false, _, _) => None,
        }
    }
}

/// Result of `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) state: BundleState,
    pub(crate) daemons: Vec<DaemonStatus>,
}

/// The word for the whole bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BundleState {
    Starting,
    Running,
    Stopping,
}

/// One daemon in `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DaemonStatus {
    pub(crate) name: String,
    pub(crate) state: State,
    pub(crate) pid: Option<i32>,
    pub(crate) restarts: u32,
    pub(crate) uptime_ms: Option<u64>,
    pub(crate) last_exit: Option<String>,
    pub(crate) generation: Option<u64>,
    pub(crate) digest: Option<String>,
    pub(crate) reload_error: Option<String>,
    /// What its process is confined by.
    #[serde(default)]
    pub(crate) walls: Vec<String>,
}

impl From<View> for DaemonStatus {
    fn from(view: View) -> Self {
        Self {
            name: view.daemon.name().to_owned(),
            state: view.state,
            pid: view.pid,
            restarts: view.restarts,
            uptime_ms: view.uptime.map(|uptime| u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX)),
            last_exit: view.last_exit.map(|exit| exit.to_string()),
            generation: view.report.generation,
            digest: view.report.digest,
            reload_error: view.report.reload_error,
            walls: Vec::new(),
        }
    }
}

/// Result of `health`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Healthy {
    pub(crate) healthy: bool,
}

/// Result of `reload`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reloaded {
    pub(crate) daemons: Vec<DaemonGeneration>,
}

/// What a daemon has in force after a reload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DaemonGeneration {
    pub(crate) name: String,
    pub(crate) generation: Option<u64>,
    pub(crate) digest: Option<String>,
}

/// Result of `restart`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Restarting {
    pub(crate) name: String,
}

/// Result of `stop`. The connection stays open until the supervisor is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stopping {}

/// Result of `logs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogLines {
    pub(crate) lines: Vec<LogLine>,
}

/// One log line and who said it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogLine {
    pub(crate) name: String,
    pub(crate) line: String,
}

impl From<Entry> for LogLine {
    fn from(entry: Entry) -> Self {
        Self { name: entry.source.name().to_owned(), line: entry.text }
    }
}

/// Names one connection.
pub(crate) type ClientId = u64;

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// No further request is read until this one is answered.
    busy: bool,
    follow: Option<Follow>,
    ended: bool,
}

#[derive(Debug)]
struct Follow {
    source: Option<Source>,
    next: u64,
}

/// The listening socket and its clients.
#[derive(Debug)]
pub(crate) struct Control {
    listener: UnixListener,
    clients: BTreeMap<ClientId, Client>,
    next: ClientId,
    reach: Reach,
}

impl Control {
    /// Serves on this socket.
    pub(crate) fn new(listener: UnixListener, reach: Reach) -> Self {
        Self { listener, clients: BTreeMap::new(), next: 0, reach }
    }

    /// The listening socket.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// The connections: which, its socket, whether we want to read, whether we want to write.
    pub(crate) fn clients(&self) -> impl Iterator<Item = (ClientId, BorrowedFd<'_>, bool, bool)> {
        self.clients
            .iter()
            .map(|(id, client)| (*id, client.stream.as_fd(), client.wants_input(), !client.output.is_empty()))
    }

    /// Takes new connections of root and of our own uid; others are closed. Daemons that have our uid are told by their descent.
    pub(crate) fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let own = nix::unistd::geteuid().as_raw();
            let allowed = sys::sockets::peer_uid(&stream).is_ok_and(|uid| uid == 0 || uid == own)
                && (self.reach == Reach::EveryUid || !sys::sockets::is_peer_below_us(&stream));
            if allowed && self.clients.len() < CLIENT_LIMIT && stream.set_nonblocking(true).is_ok() {
                let client = Client {
                    stream,
                    input: Vec::new(),
                    output: Vec::new(),
                    busy: false,
                    follow: None,
                    ended: false,
                };
                self.clients.insert(self.next, client);
                self.next += 1;
            }
        }
    }

    /// Reads what a client sent; closes it when the connection is broken.
    pub(crate) fn read(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let mut bytes = [0; 1024];
        loop {
            match client.stream.read(&mut bytes) {
                Ok(0) => client.ended = true,
                Ok(count) => {
                    client.input.extend_from_slice(&bytes[..count]);
                    if client.input.len() <= REQUEST_LIMIT {
                        continue;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => self.close(id),
            }
            return;
        }
    }

    /// The next request of any client that waits for no answer.
    pub(crate) fn next_request(&mut self) -> Option<(ClientId, Result<Request, Failure>)> {
        for (id, client) in &mut self.clients {
            if client.busy || client.follow.is_some() || client.output.len() >= OUTPUT_LIMIT {
                continue;
            }
            if let Some(end) = client.input.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = client.input.drain(..=end).collect();
                client.busy = true;
                let request = serde_json::from_slice(&line)
                    .map_err(|error| Failure::new("bad-request", error.to_string()));
                return Some((*id, request));
            }
            if client.input.len() > REQUEST_LIMIT {
                client.input.clear();
                client.ended = true;
                client.busy = true;
                return Some((*id, Err(Failure::new("bad-request", "the request is too long"))));
            }
        }
        None
    }

    /// Answers the request that the client waits for.
    pub(crate) fn reply<T: Serialize>(&mut self, id: ClientId, outcome: Result<T, Failure>) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.busy = false;
            client.queue(&Reply::new(outcome));
        }
    }

    /// Sends kept log lines from now on, and new ones as they come.
    pub(crate) fn follow(&mut self, id: ClientId, source: Option<Source>) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.busy = false;
            client.follow = Some(Follow { source, next: 0 });
        }
    }

    /// Hands new log lines to those who follow.
    pub(crate) fn feed(&mut self, logs: &Logs) {
        for client in self.clients.values_mut() {
            while client.output.len() < OUTPUT_LIMIT
                && let Some(follow) = &mut client.follow
            {
                let entries = logs.since(follow.next, follow.source, LINES_PER_REPLY);
                let Some(last) = entries.last() else {
                    follow.next = logs.next();
                    break;
                };
                follow.next = last.number + 1;
                let lines = entries.into_iter().map(LogLine::from).collect();
                client.queue(&Reply::new(Ok(LogLines { lines })));
            }
        }
    }

    /// Writes what waits, and closes clients that are done.
    pub(crate) fn flush(&mut self) {
        self.clients.retain(|_, client| {
            let alive = client.write();
            let waits = client.busy || client.follow.is_some() || client.input.contains(&b'\n');
            alive && (waits || !client.ended || !client.output.is_empty())
        });
    }

    /// Closes one connection.
    pub(crate) fn close(&mut self, id: ClientId) {
        self.clients.remove(&id);
    }
}

impl Client {
    fn wants_input(&self) -> bool {
        !self.ended && self.input.len() <= REQUEST_LIMIT
    }

    fn queue<T: Serialize>(&mut self, reply: &Reply<T>) {
        if serde_json::to_writer(&mut self.output, reply).is_ok() {
            self.output.push(b'\n');
        }
    }

    /// Whether the connection still stands.
    fn write(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;

    use super::*;

    const GOLDEN: &str = include_str!("../../docs/control/supervisor.jsonl");

    fn round_trip<T: Serialize + DeserializeOwned>(line: &str) {
        let value: T = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        let again: serde_json::Value = serde_json::to_value(&value).unwrap();
        assert_eq!(again, serde_json::from_str::<serde_json::Value>(line).unwrap());
    }

    #[test]
    fn the_golden_file_is_what_we_speak() {
        let lines: Vec<&str> = GOLDEN.lines().collect();
        assert!(lines.len() >= 16 && lines.len().is_multiple_of(2));
        for pair in lines.chunks(2) {
            round_trip::<Request>(pair[0]);
            match serde_json::from_str::<Request>(pair[0]).unwrap() {
                Request::Status {} => round_trip::<Reply<Status>>(pair[1]),
                Request::Health {} => round_trip::<Reply<Healthy>>(pair[1]),
                Request::Reload { .. } => round_trip::<Reply<Reloaded>>(pair[1]),
                Request::Restart { .. } => round_trip::<Reply<Restarting>>(pair[1]),
                Request::Stop {} => round_trip::<Reply<Stopping>>(pair[1]),
                Request::Logs { .. } => round_trip::<Reply<LogLines>>(pair[1]),
            }
        }
    }

    #[test]
    fn requests_of_a_client_that_reads_nothing_wait() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let mut control = Control::new(sys::sockets::bind_private(&path).unwrap(), Reach::OwnUid);
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(&b"{\"op\":\"status\"}\n".repeat(100)).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        control.accept();
        control.read(0);
        let large =
            || LogLines { lines: vec![LogLine { name: String::new(), line: "x".repeat(OUTPUT_LIMIT) }] };
        let mut served = 0;
        while let Some((id, request)) = control.next_request() {
            assert_eq!(request, Ok(Request::Status {}));
            control.reply(id, Ok(large()));
            served += 1;
        }
        assert_eq!(served, 1);
        // As it reads, it gets all of them.
        stream.set_nonblocking(true).unwrap();
        let mut bytes = vec![0; 4 * OUTPUT_LIMIT];
        while served < 100 {
            while matches!(stream.read(&mut bytes), Ok(1..)) {}
            control.read(0);
            control.flush();
            if let Some((id, _)) = control.next_request() {
                control.reply(id, Ok(large()));
                served += 1;
            }
        }
        assert!(control.next_request().is_none());
    }

    #[test]
    fn unknown_words_are_refused() {
        for line in ["{}", "{\"op\":\"dance\"}", "{\"op\":\"status\",\"now\":true}", "{\"op\":\"restart\"}"] {
            assert!(serde_json::from_str::<Request>(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_reply_that_contradicts_itself_has_no_outcome() {
        let reply: Reply<Healthy> = serde_json::from_str("{\"ok\":true}").unwrap();
        assert_eq!(reply.outcome(), None);
    }
}
