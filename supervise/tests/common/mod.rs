//! A desk with both its sides, in this process, and what talks to them.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use proposal::peer::{self, DATAGRAM_MAX, Question, Refusal, datagram, message};
use proposal::wire::{Failure, Request, View};
use rmcp::ServerHandler;
use serde_json::{Value, json};
use supervise::access::Sources;
use supervise::client;
use supervise::desk::Desk;
use supervise::mcp::{Patience, Server};
use supervise::peer::Peer;
use supervise::{holds, http, operator};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub const ROUTES: &str = "routes:\n  - host: api.github.com\n";

/// Long enough that only an event ends a wait; progress comes often.
pub const PATIENT: Patience = Patience { poll: Duration::from_secs(60), progress: Duration::from_millis(20) };

pub struct Bundle {
    pub directory: TempDir,
    pub address: SocketAddr,
    runtime: tokio::runtime::Runtime,
    stop: CancellationToken,
}

impl Bundle {
    pub fn start() -> Bundle {
        Bundle::with(PATIENT)
    }

    pub fn with(patience: Patience) -> Bundle {
        Bundle::of(patience, None, |server| server)
    }

    /// With something else around our server.
    pub fn mounting<S: ServerHandler + Clone>(around: impl FnOnce(Server) -> S) -> Bundle {
        Bundle::of(PATIENT, None, around)
    }

    /// With an egress that knows these refusals.
    pub fn with_egress(refusals: impl Fn(&str) -> Option<Refusal> + Send + 'static) -> Bundle {
        let kind = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
        let (ours, theirs) = socketpair(AddressFamily::Unix, kind.0, None, kind.1).unwrap();
        let egress = UnixDatagram::from(theirs);
        std::thread::spawn(move || {
            let mut buffer = vec![0; DATAGRAM_MAX];
            while let Ok(length @ 1..) = egress.recv(&mut buffer) {
                let answer = match message::<Question>(&buffer[..length]).unwrap() {
                    Question::Refusal { seq, block_id } => {
                        peer::Answer::Refusal { seq, refusal: refusals(&block_id) }
                    }
                    Question::Head { seq } => peer::Answer::Head { seq, records: 3, hash: "0".repeat(64) },
                    Question::Holds { seq } => peer::Answer::Holds { seq, ids: Vec::new() },
                    Question::Finding { seq, fingerprint } => {
                        peer::Answer::Finding { seq, finding: located(&fingerprint) }
                    }
                    Question::Decide { seq, .. } => peer::Answer::Decided { seq, waited: false },
                };
                egress.send(&datagram(&answer).unwrap()).unwrap();
            }
        });
        Bundle::of(PATIENT, Some(ours), |server| server)
    }

    /// With an egress of which the test itself is the voice.
    pub fn with_voice() -> (Bundle, UnixDatagram) {
        let kind = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
        let (ours, theirs) = socketpair(AddressFamily::Unix, kind.0, None, kind.1).unwrap();
        let voice = UnixDatagram::from(theirs);
        voice.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        (Bundle::of(PATIENT, Some(ours), |server| server), voice)
    }

    fn of<S: ServerHandler + Clone>(
        patience: Patience,
        egress: Option<OwnedFd>,
        around: impl FnOnce(Server) -> S,
    ) -> Bundle {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("routes.yaml"), ROUTES).unwrap();
        let sources = Sources {
            routes: directory.path().join("routes.yaml"),
            status: directory.path().join("egress.status.json"),
        };
        let desk = Arc::new(Desk::open(&directory.path().join("audit/journal.jsonl")).unwrap());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let stop = CancellationToken::new();
        let egress = egress.map(|socket| {
            let _inside = runtime.enter();
            let link = Peer::new("egress", socket).unwrap();
            let (words, heard) = tokio::sync::mpsc::channel(holds::WORDS_MAX);
            runtime.spawn({
                let link = link.clone();
                async move { link.listen(words).await }
            });
            runtime.spawn(holds::attend(link.clone(), Arc::clone(&desk), heard));
            link
        });
        let peers: Vec<Peer> = egress.into_iter().collect();
        let server = around(Server::new(Arc::clone(&desk), sources, patience).with_peers(&peers));
        let (listener, operators) = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            (listener, operator::bind(&directory.path().join("supervise.sock")).unwrap())
        });
        let address = listener.local_addr().unwrap();
        runtime.spawn({
            let stop = stop.clone();
            async move { http::serve(listener, &[address], server, stop).await }
        });
        runtime.spawn(operator::serve(operators, desk, stop.clone()));
        Bundle { directory, address, runtime, stop }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A copy that another desk can open.
    pub fn copy_of_journal(&self) -> PathBuf {
        let copy = self.path("copy/journal.jsonl");
        std::fs::create_dir(self.path("copy")).unwrap();
        std::fs::copy(self.path("audit/journal.jsonl"), &copy).unwrap();
        copy
    }

    pub fn agent(&self) -> Agent {
        Agent { address: self.address }
    }

    pub fn operator(&self) -> Operator {
        Operator { socket: self.path("supervise.sock") }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What that egress says was found under a name: one thing.
fn located(fingerprint: &str) -> Option<peer::Located> {
    let found = peer::Found {
        rule: "gitlab-pat".to_owned(),
        position: "header `x-note`".to_owned(),
        commit: None,
        line: 0,
        excerpt: String::new(),
    };
    let target = peer::Target::Host("api.example.com".to_owned());
    (fingerprint == FINGERPRINT).then(|| peer::Located { fingerprint: FINGERPRINT.to_owned(), target, found })
}

/// The name of what [`Bundle::with_egress`] found.
pub const FINGERPRINT: &str = "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a";

/// The operator, over the socket.
pub struct Operator {
    pub socket: PathBuf,
}

impl Operator {
    pub fn ask(&self, request: Value) -> Result<Value, Failure> {
        let request: Request = serde_json::from_value(request).unwrap();
        match client::ask(&self.socket, &request) {
            Ok(value) => Ok(value),
            Err(client::Error::Refused(failure)) => Err(failure),
            Err(error) => panic!("{error}"),
        }
    }

    pub fn view(&self, request: Value) -> View {
        serde_json::from_value(self.ask(request).unwrap()).unwrap()
    }
}

/// A connection that is told of requests as they come.
pub struct Watch {
    lines: BufReader<UnixStream>,
    first: Option<Vec<Value>>,
}

impl Operator {
    pub fn watch(&self) -> Watch {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(b"{\"op\":\"tail\"}\n").unwrap();
        let mut watch = Watch { lines: BufReader::new(stream), first: None };
        // With the first answer it counts as there.
        watch.first = Some(watch.next());
        watch
    }
}

impl Watch {
    /// The requests of the next reply.
    pub fn next(&mut self) -> Vec<Value> {
        if let Some(first) = self.first.take() {
            return first;
        }
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        let reply: Value = serde_json::from_str(&line).unwrap();
        reply["result"]["requests"].as_array().unwrap().clone()
    }

    /// The next one that waits for a decision.
    pub fn next_pending(&mut self) -> Value {
        loop {
            if let Some(view) = self.next().into_iter().find(|view| view["state"] == "pending") {
                return view["id"].clone();
            }
        }
    }
}

/// An MCP client made of raw HTTP.
#[derive(Clone, Copy)]
pub struct Agent {
    pub address: SocketAddr,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The JSON-RPC messages, whether they came as one body or as an event stream.
    pub fn messages(&self) -> Vec<Value> {
        if self.head.contains("text/event-stream") {
            let data = self.body.lines().filter_map(|line| line.strip_prefix("data:"));
            return data.filter_map(|data| serde_json::from_str(data.trim()).ok()).collect();
        }
        serde_json::from_str(&self.body).map(|message| vec![message]).unwrap_or_default()
    }

    pub fn result(&self) -> Value {
        let last = self.messages().pop().unwrap_or_else(|| panic!("no message in {self:?}"));
        assert!(last.get("result").is_some(), "{last}");
        last["result"].clone()
    }
}

impl Agent {
    /// Sends one request; HTTP/1.0, so that the body comes as it is and ends with the connection.
    pub fn send(&self, start: &str, headers: &[(&str, &str)], body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut head = format!("{start} HTTP/1.0\r\ncontent-length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| *name == "host") {
            head.push_str(&format!("host: {}\r\n", self.address));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).unwrap();
        stream
    }

    pub fn receive(mut stream: TcpStream) -> Answer {
        let mut bytes = Vec::new();
        // A server that refuses a large body may reset after its answer.
        let _ = stream.read_to_end(&mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    pub fn post(&self, headers: &[(&str, &str)], message: &Value) -> Answer {
        Agent::receive(self.send("POST /mcp", &with_defaults(headers), &message.to_string()))
    }

    /// One message of revision 2025-06-18, after the handshake.
    pub fn legacy(&self, method: &str, params: Value) -> Answer {
        let message = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params});
        self.post(&[("mcp-protocol-version", "2025-06-18")], &message)
    }

    /// One message of revision 2026-07-28: self-contained.
    pub fn modern(&self, method: &str, name: Option<&str>, mut params: Value) -> Answer {
        params["_meta"] = json!({
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        });
        let message = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params});
        let mut headers = vec![("mcp-protocol-version", "2026-07-28"), ("mcp-method", method)];
        headers.extend(name.map(|name| ("mcp-name", name)));
        self.post(&headers, &message)
    }

    /// Calls a tool: its structured result, or the error that it told.
    pub fn call(&self, tool: &str, arguments: Value) -> Result<Value, Value> {
        let result =
            self.modern("tools/call", Some(tool), json!({"name": tool, "arguments": arguments})).result();
        let structured = result["structuredContent"].clone();
        let text: Value = serde_json::from_str(result["content"][0]["text"].as_str().unwrap()).unwrap();
        assert_eq!(text, structured, "the text for old clients says the same");
        if result["isError"] == json!(true) { Err(structured["error"].clone()) } else { Ok(structured) }
    }

    pub fn propose(&self, host: &str) -> Result<Value, Value> {
        self.call("propose_route", json!({"host": host, "reason": "to read it"}))
    }
}

fn with_defaults<'h>(headers: &[(&'h str, &'h str)]) -> Vec<(&'h str, &'h str)> {
    let mut all =
        vec![("content-type", "application/json"), ("accept", "application/json, text/event-stream")];
    all.extend_from_slice(headers);
    all
}

pub fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

pub fn refusal(host: &str, method: &str, path: &str, code: &str) -> Refusal {
    Refusal {
        block_id: "5f1d".to_owned(),
        code: code.to_owned(),
        at: jiff::Timestamp::UNIX_EPOCH,
        scheme: "https".to_owned(),
        host: host.to_owned(),
        port: 443,
        method: method.to_owned(),
        path: path.to_owned(),
    }
}
