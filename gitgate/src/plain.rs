//! Ordinary repositories, as git-daemon(1) serves them, with its flags and its words.
//!
//! No mirror, no upstream, no scan: what was written for git daemon can be pointed at this. A
//! newcomer over the limit is refused, where git daemon ends somebody else's connection; names are
//! not looked up in the DNS, so that `%CH` is the name that the client gave.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{ArgAction, Parser};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::pktline;
use crate::session::{self, Client, Hangup, Moved, SessionError};

mod place;
mod service;

use place::{Host, Paths};
use service::{Service, Services};

const USAGE: u8 = 64;
const BROKEN: u8 = 70;
const CONNECTIONS: usize = 32;
const PORT: u16 = 9418;

/// Serves ordinary repositories, with the flags of git-daemon(1).
#[derive(Debug, Parser)]
#[command(name = "git-gate --plain")]
pub(crate) struct Plain {
    #[arg(long, hide = true)]
    plain: bool,
    /// Say on standard error what is asked for.
    #[arg(long)]
    verbose: bool,
    /// Address or name to listen on; repeatable.
    #[arg(long, value_name = "HOST")]
    listen: Vec<String>,
    /// Port to listen on.
    #[arg(long, default_value_t = PORT)]
    port: u16,
    /// As git daemon; listening sockets can always be taken again at once.
    #[arg(long)]
    reuseaddr: bool,
    /// File for the number of the process.
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Directory that paths are below.
    #[arg(long, value_name = "DIR")]
    base_path: Option<PathBuf>,
    /// Look at the path as it is too, when nothing is below the base path.
    #[arg(long, requires = "base_path")]
    base_path_relaxed: bool,
    /// Path with %H (host), %CH (the same), %IP, %P (port), %D (directory) and %%.
    #[arg(long, value_name = "PATH")]
    interpolated_path: Option<String>,
    /// Take paths exactly as they are asked for, and only those that are listed.
    #[arg(long)]
    strict_paths: bool,
    /// Serve repositories without git-daemon-export-ok too.
    #[arg(long)]
    export_all: bool,
    /// upload-pack (on unless disabled), upload-archive or receive-pack; repeatable.
    #[arg(long, value_name = "SERVICE")]
    enable: Vec<Service>,
    /// The same services, off.
    #[arg(long, value_name = "SERVICE")]
    disable: Vec<Service>,
    /// Services that a repository may switch by daemon.SERVICE in its configuration.
    #[arg(long, value_name = "SERVICE")]
    allow_override: Vec<Service>,
    /// Services that it may not.
    #[arg(long, value_name = "SERVICE")]
    forbid_override: Vec<Service>,
    /// Tell clients why they are refused.
    #[arg(long, overrides_with = "no_informative_errors")]
    informative_errors: bool,
    /// Tell them only that they are.
    #[arg(long, action = ArgAction::SetTrue)]
    no_informative_errors: bool,
    /// Seconds that upload-pack waits for a client.
    #[arg(long, default_value_t = 0)]
    timeout: u64,
    /// Seconds that a client has for its request; 10 if 0.
    #[arg(long, default_value_t = 0)]
    init_timeout: u64,
    /// How many clients at once; 0 for no limit.
    #[arg(long, default_value_t = CONNECTIONS)]
    max_connections: usize,
    /// Directories that may be served; all if none is given.
    #[arg(value_name = "DIR")]
    directories: Vec<PathBuf>,
}

/// Serves until it is ended.
#[allow(clippy::print_stderr)]
pub fn run() -> ExitCode {
    let options = match Plain::try_parse() {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let served = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(serve(options)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(BROKEN)
        }
    }
}

/// What all connections share.
struct Daemon {
    verbose: bool,
    informative: bool,
    paths: Paths,
    services: Services,
    /// For the request line.
    patience: Duration,
    upload_timeout: u64,
    places: Semaphore,
}

async fn serve(options: Plain) -> anyhow::Result<()> {
    let hosts = if options.listen.is_empty() { vec!["0.0.0.0".to_owned()] } else { options.listen };
    let mut listeners = Vec::new();
    for host in hosts {
        let addresses = lookup_host((host.as_str(), options.port)).await;
        for address in addresses.with_context(|| format!("cannot resolve {host}"))? {
            let bound = TcpListener::bind(address).await;
            listeners.push(bound.with_context(|| format!("cannot listen on {address}"))?);
        }
    }
    if let Some(path) = &options.pid_file {
        fs::write(path, format!("{}\n", std::process::id()))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let daemon = Arc::new(Daemon {
        verbose: options.verbose,
        informative: options.informative_errors,
        paths: Paths {
            base: options.base_path,
            relaxed: options.base_path_relaxed,
            interpolated: options.interpolated_path,
            strict: options.strict_paths,
            export_all: options.export_all,
            listed: options.directories,
        },
        services: Services::new(
            &options.enable,
            &options.disable,
            &options.allow_override,
            &options.forbid_override,
        ),
        patience: Duration::from_secs(if options.init_timeout == 0 { 10 } else { options.init_timeout }),
        upload_timeout: options.timeout,
        places: Semaphore::new(match options.max_connections {
            0 => Semaphore::MAX_PERMITS,
            limit => limit,
        }),
    });
    say("Ready to rumble");
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(accept(listener, daemon.clone()));
    }
    while accepting.join_next().await.is_some() {}
    Ok(())
}

async fn accept(listener: TcpListener, daemon: Arc<Daemon>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let daemon = daemon.clone();
                tokio::spawn(async move { daemon.connection(stream, peer).await });
            }
            Err(error) => {
                say(&format!("cannot accept: {error}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A line on standard error, as git daemon writes it.
fn say(text: &str) {
    let text = crate::git::printable(text).replace('\n', " ");
    let _ = writeln!(std::io::stderr().lock(), "[{}] {text}", std::process::id());
}

impl Daemon {
    fn note(&self, text: &str) {
        if self.verbose {
            say(text);
        }
    }

    async fn connection(&self, mut stream: TcpStream, peer: SocketAddr) {
        let _ = stream.set_nodelay(true);
        self.note(&format!("Connection from {peer}"));
        let message = match self.places.try_acquire() {
            Ok(_place) => self.conversation(&mut stream, peer).await,
            Err(_) => Some("too many connections at once; try again in a moment".to_owned()),
        };
        if let Some(message) = message {
            let farewell = async {
                stream.write_all(&pktline::line(format!("ERR {message}").as_bytes())).await?;
                stream.shutdown().await?;
                tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
            };
            let _ = timeout(Duration::from_secs(2), farewell).await;
        }
        self.note("Disconnected");
    }

    /// Serves one request; what to tell the client where it is refused.
    async fn conversation(&self, stream: &mut TcpStream, peer: SocketAddr) -> Option<String> {
        let line = timeout(self.patience, pktline::read(stream)).await.ok()?.ok()?;
        let Some(request) = service::Request::parse(&line) else {
            say(&format!("Protocol error: '{}'", String::from_utf8_lossy(&line).escape_debug()));
            return None;
        };
        if let Some(host) = &request.host {
            self.note(&format!("Extended attribute \"host\": {host}"));
        }
        if let Some(protocol) = &request.protocol {
            self.note(&format!("Extended attribute \"protocol\": {protocol}"));
        }
        self.note(&format!("Request {} for '{}'", request.service, request.path));
        let local: Option<IpAddr> = stream.local_addr().ok().map(|address| address.ip());
        let found = self.find(&request, local);
        let path = match found {
            Ok(path) => path,
            Err(Refused { why, log }) => {
                say(&log);
                let why = if self.informative { why } else { "access denied or repository not exported" };
                return Some(format!("{why}: {}", request.path));
            }
        };
        let mut command = Command::new("git");
        command.arg(request.service.as_str()).current_dir(&path);
        if request.service == Service::UploadPack {
            command.args(["--strict", &format!("--timeout={}", self.upload_timeout)]);
        }
        command.arg(".");
        command.env("REMOTE_ADDR", peer.ip().to_string()).env("REMOTE_PORT", peer.port().to_string());
        if let Some(protocol) = &request.protocol {
            command.env("GIT_PROTOCOL", protocol);
        }
        let hangup = match request.service {
            Service::UploadPack | Service::UploadArchive => Hangup::Kills,
            Service::ReceivePack => Hangup::LeavesTheChild,
        };
        let (reader, writer) = stream.split();
        match session::run(Client { reader, writer }, command, hangup, &Moved::default()).await {
            Ok(_) | Err(SessionError::Hangup) => {}
            Err(error) => say(&error.to_string()),
        }
        None
    }

    /// The repository that is asked for, if the service is on there.
    fn find(&self, request: &service::Request, local: Option<IpAddr>) -> Result<PathBuf, Refused> {
        let service = request.service;
        if !self.services.possible(service) {
            return Err(Refused {
                why: "service not enabled",
                log: format!("'{service}': service not enabled."),
            });
        }
        let host = Host { name: request.host.as_deref(), port: request.port.as_deref(), address: local };
        let path = self
            .paths
            .find(&request.path, &host)
            .map_err(|log| Refused { why: "no such repository", log })?;
        if !self.paths.export_all && !path.join("git-daemon-export-ok").exists() {
            let log = format!("'{}': repository not exported.", path.display());
            return Err(Refused { why: "repository not exported", log });
        }
        if !self.services.enabled(service, &path) {
            let log = format!("'{service}': service not enabled for '{}'", path.display());
            return Err(Refused { why: "service not enabled", log });
        }
        Ok(path)
    }
}

/// Why nothing is served.
struct Refused {
    /// For a client that may know.
    why: &'static str,
    log: String,
}
