//! A bottle of two containers: the agent's, whose one network is sealed, and the bundle's, which stands between that
//! network and its own way out.
//!
//! What the engine is told is a compose project in the bottle's state. What is secret goes to the bundle through a pipe each time
//! it starts, keys of git by standard input, and is in no file, no environment and no argument.

mod bound;
pub mod compose;
pub mod engine;
mod feed;
mod furnish;
pub mod guard;
pub mod inner;
mod neighbours;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::unistd::geteuid;
use zeroize::Zeroizing;

use super::{Backend, ENOUGH, Kind, Order, Remnant};
use crate::addresses::Addresses;
use crate::bundle::{Bundle, GIT_UPSTREAM_CA, LOG, UPSTREAM_CA, secret_lines};
use crate::fault::{Attempted, Fault};
use crate::manifest::Name;
use crate::plan::Stdio as Connection;
use crate::progress::Progress;
use crate::provision::{self, Item};
use crate::requests::client;
use crate::run::Checked;
use crate::state::{self, Directories, Home};
use crate::sys::process::{Setup, prepare};
use crate::sys::terminal::{open_pair, take_control};
use crate::terminal::{self, Relay};
use compose::{Bounds, Inputs, PROGRAM, Subnet};
use engine::{Engine, Running, joined};
use feed::Feed;
use furnish::Furnished;
use guard::Guard;

/// The image of the agent, unless another is named.
pub const AGENT_IMAGE: &str = "bottlecap-agent:latest";
/// The image of the bundle, unless `BOTTLECAP_SIDECARS_IMAGE` names another.
pub const SIDECARS_IMAGE: &str = "bottlecap-sidecars:latest";
/// The project, in the bottle's state.
const FILE: &str = "compose.json";
const EGRESS_USER: u32 = 64101;
const GIT_GATE_USER: u32 = 64102;
const SUPERVISE_USER: u32 = 64103;
/// The agent's container has no say in how long a signal takes.
const SIGNAL_PATIENCE: Duration = Duration::from_secs(2);
const READY_TIMEOUT: Duration = Duration::from_secs(20);
const LOOK_INTERVAL_MS: u16 = 20;
const LOG_TAIL: u64 = 4096;
/// How many networks are tried: others may be taken, by containers or by this host's routes.
const NETWORKS_TRIED: u32 = 64;
/// What the bundle may take of the environment of whoever starts it.
const FROM_CALLER: [&str; 2] = ["LANG", "TZ"];
const UPSTREAM_PROXY: &str = "EGRESS_UPSTREAM_PROXY";

/// A bottle of containers, as far as it is made.
#[derive(Debug, Default)]
pub struct Docker {
    engine: Option<Engine>,
    made: Option<Made>,
}

/// Containers that exist, or may.
#[derive(Debug)]
struct Made {
    engine: Engine,
    name: Name,
    state: PathBuf,
    run_dir: PathBuf,
    workdir: PathBuf,
    command: Vec<OsString>,
    guard: Option<Guard>,
    /// Follows the bundle's log, and ends with the bundle.
    log: Option<Running>,
}

impl Backend for Docker {
    fn kind(&self) -> Kind {
        Kind::Docker
    }

    fn addresses(&self) -> Addresses {
        Addresses::names()
    }

    fn daemons_root(&self, _home: &Home, _run_dir: &Path) -> PathBuf {
        PathBuf::from("/")
    }

    fn check(&mut self, checked: &Checked) -> Result<(), Fault> {
        if !geteuid().is_root() {
            return Err(Fault::refused(
                "containers need root: the bundle's sockets and files belong to users of their own",
            )
            .with_hint(
                "sudo bottlecap run …, or --backend sandbox; who may use Docker is root here anyway",
            ));
        }
        let images = [
            (agent_image(checked), "`make image-agent` builds it; --image names another"),
            (sidecars_image(), "`make image` builds it; BOTTLECAP_SIDECARS_IMAGE names another"),
        ];
        let is_there = |engine: &Engine, names: &[&str]| -> Result<bool, Fault> {
            Ok(engine.ask([&["image", "inspect", "--format", "{{.Id}}"], names].concat())?.good)
        };
        let local = Engine::local()?;
        // Both at once, while the engine says what it is; one by one only to say which is missing.
        let (found, all_there) = std::thread::scope(|scope| {
            let names = images.each_ref().map(|(image, _)| image.as_str());
            let asked = scope.spawn(move || is_there(&local, &names));
            (Engine::find(), joined(asked))
        });
        let engine = found?;
        if checked.owner.0 == 0 {
            return Err(Fault::refused(format!(
                "{} belongs to root, and so would the agent",
                checked.workdir.path.display()
            ))
            .with_hint("give it to an ordinary user (chown), or choose another --cwd"));
        }
        bundle_environment()?;
        if !all_there? {
            for (image, hint) in images {
                if !is_there(&engine, &[&image])? {
                    let message = format!("the image {} is not there", proposal::escaped(&image));
                    return Err(Fault::refused(message).with_hint(hint));
                }
            }
        }
        self.engine = Some(engine);
        Ok(())
    }

    fn start(&mut self, order: Order<'_>) -> Result<Vec<Item>, Fault> {
        let Some(engine) = self.engine.clone() else {
            return Err(Fault::failed("the engine was not looked for"));
        };
        let home = order.held.home();
        let checked = order.checked;
        // Where this bottle is written down already: of two that start together, one at least sees the other.
        let others = checked.directories.list().failing(|| "cannot list the bottles".to_owned())?;
        neighbours::refuse_shared(order.name, &others, checked)?;
        let progress = Progress::quiet(format!("starting {}", order.name));
        let bundle = Bundle::new(home, order.run_dir)?;
        let ca = std::thread::scope(|scope| {
            let cleared = scope.spawn(|| clear(&engine, order.name, home.path()));
            let provided = bundle.provide(&order.provisions);
            joined(cleared).and(provided)
        })?;
        let (identity, mut items) = provision::identity(checked, &self.addresses(), Some(ca))?;
        journals(&home.root())?;
        let furnished = Furnished::new(home.path(), &identity, checked, order.git)?;
        items.push(Item::done("image", agent_image(checked)));
        let lock = order.held.share().failing(|| "cannot hand the lock on".to_owned())?;
        let made = self.made.insert(Made {
            guard: Some(Guard::start(&engine, order.name, home.path(), lock)?),
            engine,
            name: order.name.clone(),
            state: home.path().to_path_buf(),
            run_dir: order.run_dir.to_path_buf(),
            workdir: checked.workdir.path.clone(),
            command: checked.command.clone(),
            log: None,
        });
        let feed = Feed::new(order.run_dir)?;
        let (keys, secrets) = (order.provisions.identities.keys(), secret_lines(&order.provisions.secrets));
        // The bundle starts as soon as it is there, while the agent's container is made; but not before git-gate has its keys.
        if keys.is_empty() {
            let (tried, networks) = mpsc::channel();
            // Who comes for them stands on the last network that was tried, which was there before.
            feed.begin(secrets, move || {
                networks.try_iter().last().is_some_and(|last| is_sealed(last).is_ok())
            })?;
            made.create(checked, &furnished, |network| {
                let _ = tried.send(network);
            })?;
        } else {
            made.create(checked, &furnished, |_| ())?;
            made.place(keys)?;
            feed.begin(secrets, || true)?;
        }
        // In the agent's container nothing of the agent runs yet.
        let (engine, agent) = (made.engine.clone(), compose::agent(&made.name));
        std::thread::scope(|scope| {
            let compared = scope.spawn(|| bound::compare(&engine, &agent, furnished.seen()));
            made.serve().and(joined(compared))
        })?;
        drop(feed);
        drop(progress);
        Ok(items)
    }

    fn exec(&mut self, signals: &SignalFd) -> Result<i32, Fault> {
        match &self.made {
            Some(made) => made.exec(signals),
            None => Err(Fault::failed("the bottle was not made")),
        }
    }

    fn stop(&mut self) {
        if let Some(made) = self.made.take() {
            made.stop();
        }
    }

    fn remnants(&self, directories: &Directories) -> Result<Vec<Remnant>, Fault> {
        // Without an engine nothing of it can be there that could be seen or removed.
        let Ok(engine) = Engine::find() else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for kind in OBJECTS {
            for (bottle, state, name) in kind.list(&engine, None)? {
                if Path::new(&state).parent() == Some(&directories.bottles)
                    && let Ok(bottle) = bottle.parse()
                {
                    found.push(Remnant { what: kind.what(), bottle, name });
                }
            }
        }
        Ok(found)
    }

    fn remove(&self, remnant: &Remnant) -> Result<(), Fault> {
        let engine = Engine::find()?;
        match OBJECTS.into_iter().find(|kind| kind.what() == remnant.what) {
            Some(kind) => kind.remove(&engine, &remnant.name),
            None => Ok(()),
        }
    }
}

/// Things that the engine keeps, in the order in which they can be removed.
const OBJECTS: [Object; 3] = [Object::Container, Object::Network, Object::Volume];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Object {
    Container,
    Network,
    Volume,
}

impl Object {
    fn what(self) -> &'static str {
        match self {
            Object::Container => "container",
            Object::Network => "network",
            Object::Volume => "volume",
        }
    }

    /// Bottle, state and name of each that is labelled; of one bottle alone, if that is wanted.
    fn list(self, engine: &Engine, bottle: Option<&str>) -> Result<Vec<(String, String, String)>, Fault> {
        let (words, name) = match self {
            Object::Container => (vec!["container", "ls", "--all", "--no-trunc"], "{{.Names}}"),
            Object::Network => (vec!["network", "ls", "--no-trunc"], "{{.Name}}"),
            Object::Volume => (vec!["volume", "ls"], "{{.Name}}"),
        };
        let label = |name: &str| format!("{{{{.Label \"{name}\"}}}}");
        let format = format!("{}\t{}\t{name}", label(compose::BOTTLE), label(compose::STATE));
        let filter = match bottle {
            Some(bottle) => format!("label={}={bottle}", compose::BOTTLE),
            None => format!("label={}", compose::STATE),
        };
        let output = engine.run(words.into_iter().chain(["--filter", &filter, "--format", &format]))?;
        let fields = |line: &str| {
            let mut fields = line.splitn(3, '\t').map(str::to_owned);
            Some((fields.next()?, fields.next()?, fields.next()?))
        };
        Ok(output.lines().filter_map(fields).collect())
    }

    fn remove(self, engine: &Engine, name: &str) -> Result<(), Fault> {
        let words = match self {
            Object::Container => vec!["container", "rm", "--force", "--volumes", name],
            Object::Network => vec!["network", "rm", name],
            Object::Volume => vec!["volume", "rm", "--force", name],
        };
        let said = engine.ask(words)?;
        if said.good
            || said.errors.to_ascii_lowercase().contains("no such")
            || said.errors.contains("not found")
        {
            return Ok(());
        }
        said.or_failed(&format!("removing the {} {name}", self.what())).map(drop)
    }
}

/// Removes all that the engine keeps of the bottle `name` whose state is in `state`; how much that was.
fn remove_all(engine: &Engine, name: &str, state: &Path) -> Result<usize, Fault> {
    let lists = std::thread::scope(|scope| {
        let asked = OBJECTS.map(|kind| scope.spawn(move || kind.list(engine, Some(name))));
        asked.map(joined)
    });
    let (mut found, mut failure) = (0, Ok(()));
    for (kind, list) in OBJECTS.into_iter().zip(lists) {
        let list = list?;
        let ours: Vec<&String> =
            list.iter().filter(|(_, of, _)| Path::new(of) == state).map(|(_, _, object)| object).collect();
        found += ours.len();
        // Those of one kind at once.
        let removed = std::thread::scope(|scope| {
            let asked: Vec<_> =
                ours.into_iter().map(|object| scope.spawn(move || kind.remove(engine, object))).collect();
            asked.into_iter().map(joined).collect::<Vec<_>>()
        });
        failure = removed.into_iter().fold(failure, Result::and);
    }
    failure.map(|()| found)
}

/// Removes what an earlier bottle of that name left, which nobody holds any more. One of somebody else is left alone.
fn clear(engine: &Engine, name: &Name, state: &Path) -> Result<(), Fault> {
    let named = [compose::agent(name), compose::sidecars(name)].map(|name| format!("name=^/{name}$"));
    let [agent, sidecars] = &named;
    let format = format!("{{{{.Label \"{}\"}}}}\t{{{{.Names}}}}", compose::STATE);
    let words = [
        "container",
        "ls",
        "--all",
        "--no-trunc",
        "--format",
        &format,
        "--filter",
        agent,
        "--filter",
        sidecars,
    ];
    let named = std::thread::scope(|scope| {
        let named = scope.spawn(|| engine.run(words));
        remove_all(engine, name.as_str(), state).and(joined(named))
    })?;
    let strange = |line: &str| line.split_once('\t').is_none_or(|(label, _)| Path::new(label) != state);
    match named.lines().find(|line| strange(line)) {
        None => Ok(()),
        Some(container) => {
            Err(Fault::refused(format!("a container {container} is there, and not of this user's bottles"))
                .with_hint("choose another --name, or look at it with docker inspect"))
        }
    }
}

fn agent_image(checked: &Checked) -> String {
    checked.image.clone().unwrap_or_else(|| AGENT_IMAGE.to_owned())
}

fn sidecars_image() -> String {
    std::env::var("BOTTLECAP_SIDECARS_IMAGE").unwrap_or_else(|_| SIDECARS_IMAGE.to_owned())
}

/// What the bundle finds in its environment, where the engine shows it to everybody who asks.
fn bundle_environment() -> Result<BTreeMap<String, String>, Fault> {
    let caller = |name: &str| std::env::var(name).ok().map(|value| (name.to_owned(), value));
    let mut environment: BTreeMap<String, String> =
        FROM_CALLER.iter().filter_map(|name| caller(name)).collect();
    if let Some((name, proxy)) = caller(UPSTREAM_PROXY) {
        if proxy.contains('@') {
            return Err(Fault::refused(format!(
                "{UPSTREAM_PROXY} has a password in it, which `docker inspect` would show"
            ))
            .with_hint("use a parent proxy that knows this host by its address, or --backend sandbox"));
        }
        environment.insert(name, proxy);
    }
    Ok(environment)
}

/// Makes the directories of the journals: in its container the supervisor cannot give a directory away.
fn journals(root: &Path) -> Result<(), Fault> {
    let audit = root.join("var/lib/sidecars/audit");
    for (name, user) in [("egress", EGRESS_USER), ("git-gate", GIT_GATE_USER), ("supervise", SUPERVISE_USER)]
    {
        let path = audit.join(name);
        fs::create_dir_all(&path).failing(|| format!("cannot make {}", path.display()))?;
        state::give(&path, Some(user))?;
    }
    Ok(())
}

/// Refuses a network that this host has an address on: an engine that does not know the option which keeps it off takes it in
/// silence, and the agent would reach what listens here.
fn is_sealed(network: Subnet) -> Result<(), Fault> {
    let own = getifaddrs().failing(|| "cannot list this host's addresses".to_owned())?;
    let mut own = own.filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()));
    match own.find(|address| network.contains(*address)) {
        None => Ok(()),
        Some(address) => Err(Fault::refused(format!(
            "this engine cannot hold a bottle: it gave this host the address {address} on the network that is to be sealed"
        ))
        .with_hint("use --backend sandbox, which needs no engine and no root")),
    }
}

/// A first number that two bottles seldom share.
fn first_subnet(name: &Name) -> u32 {
    name.as_str().bytes().fold(5381_u32, |sum, byte| sum.wrapping_mul(33) ^ u32::from(byte))
}

impl Made {
    /// Has the engine make and start networks and containers, on the first network that is free. `trying` is told of each before.
    fn create(&self, checked: &Checked, furnished: &Furnished, trying: impl Fn(Subnet)) -> Result<(), Fault> {
        let table = fs::read_to_string("/proc/net/route").unwrap_or_default();
        let (image, sidecars) = (agent_image(checked), sidecars_image());
        let mut bundle_environment = bundle_environment()?;
        let authorities = [("EGRESS_UPSTREAM_CA", UPSTREAM_CA), ("BOTTLECAP_UPSTREAM_CA", GIT_UPSTREAM_CA)];
        for (name, path) in authorities {
            if self.state.join("root").join(path).exists() {
                bundle_environment.insert(name.to_owned(), format!("/{path}"));
            }
        }
        let bounds = Bounds::of(&checked.manifest.limits, self.engine.limits)?;
        let first = first_subnet(&self.name);
        let free = (0..NETWORKS_TRIED)
            .map(|offset| Subnet::numbered(first.wrapping_add(offset)))
            .filter(|subnet| !subnet.is_routed(&table));
        let file = self.state.join(FILE);
        for network in free {
            let text = compose::render(&Inputs {
                name: &self.name,
                state: &self.state,
                run_dir: &self.run_dir,
                provisions: furnished.directory(),
                image: &image,
                sidecars: &sidecars,
                network,
                user: checked.owner,
                workdir: &checked.workdir.path,
                binds: furnished.binds(),
                environment: furnished.environment(),
                bundle_environment: &bundle_environment,
                limits: &bounds,
            });
            let written = || -> std::io::Result<()> {
                use std::io::Write;
                let mut file =
                    File::options().create(true).truncate(true).write(true).mode(0o600).open(&file)?;
                file.write_all(text.as_bytes())
            };
            written().failing(|| format!("cannot write {}", file.display()))?;
            trying(network);
            let said = self.engine.compose(&compose::project(&self.name), &file, &["up", "--detach"])?;
            if !said.good && said.errors.contains("overlaps with") {
                remove_all(&self.engine, self.name.as_str(), &self.state)?;
                continue;
            }
            said.or_failed("compose")?;
            return is_sealed(network);
        }
        Err(Fault::failed("no network is free for the bottle")
            .with_hint("`docker network prune` removes networks that nothing uses"))
    }

    /// Hands git-gate its keys.
    fn place(&self, keys: &[(PathBuf, Zeroizing<Vec<u8>>)]) -> Result<(), Fault> {
        let container = compose::sidecars(&self.name);
        let script =
            "umask 077; while read -r path key; do printf %s \"$key\" | base64 -d >\"$path\" || exit; done";
        let user = GIT_GATE_USER.to_string();
        let words = ["exec", "--interactive", "--user", &user, &container, "/bin/sh", "-c", script];
        self.engine.feed(words, key_lines(keys)).map(drop)
    }

    /// Waits until the bundle serves.
    fn serve(&mut self) -> Result<(), Fault> {
        self.log = Some(self.follow(&compose::sidecars(&self.name))?);
        self.wait_ready()
    }

    fn follow(&self, container: &str) -> Result<Running, Fault> {
        let path = self.state.join(LOG);
        let told = || format!("cannot write {}", path.display());
        let log =
            File::options().create(true).write(true).truncate(true).mode(0o600).open(&path).failing(told)?;
        let mut command = self.engine.command(["logs", "--follow", "--timestamps", container]);
        command.stdin(Stdio::null()).stdout(log.try_clone().failing(told)?).stderr(log);
        Running::start(command).failing(|| "cannot follow the bundle's log".to_owned())
    }

    fn wait_ready(&self) -> Result<(), Fault> {
        let deadline = Instant::now() + READY_TIMEOUT;
        let socket = self.run_dir.join("supervisor.sock");
        loop {
            let health: Result<serde_json::Value, Fault> =
                client::ask(&socket, &serde_json::json!({ "op": "health" }));
            if health.is_ok() {
                return Ok(());
            }
            let gone = self.log.as_ref().is_none_or(|log| is_readable(log.ended()));
            if gone || Instant::now() > deadline {
                let what = if gone {
                    "the bundle ended before it was ready"
                } else {
                    "the bundle was not ready in time"
                };
                return Err(Fault::failed(format!("{what}\n{}", self.log_tail()))
                    .with_hint(format!("the whole log is {}", self.state.join(LOG).display())));
            }
            // Waits for nothing but time: the socket appears on the other side of a mount.
            let _ = poll(&mut [], PollTimeout::from(LOOK_INTERVAL_MS));
        }
    }

    fn log_tail(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(self.state.join(LOG))?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
        };
        read().unwrap_or_default()
    }

    /// Runs the command in the agent's container; its exit code.
    fn exec(&self, signals: &SignalFd) -> Result<i32, Fault> {
        let told = || "cannot start the command".to_owned();
        let connection = terminal::wanted();
        let container = compose::agent(&self.name);
        let mut words: Vec<&OsStr> = vec!["exec".as_ref(), "--interactive".as_ref()];
        if connection == Connection::Terminal {
            words.push("--tty".as_ref());
        }
        words.extend(["--workdir".as_ref(), self.workdir.as_os_str(), container.as_ref()]);
        words.extend([PROGRAM, "__agent"].map(OsStr::new));
        words.extend(self.command.iter().map(OsString::as_os_str));
        let mut command = self.engine.command(words);
        let setup = Setup { descriptors: Vec::new(), on_parent_death: Signal::SIGKILL, close_others: true };
        let mut relay = None;
        if connection == Connection::Terminal {
            // A terminal between the caller's and the engine's, as in any bottle: people can come to it and go.
            let (master, end) = open_pair(Path::new("/dev")).failing(told)?;
            let slave = || end.try_clone().failing(told);
            command.stdin(slave()?).stdout(slave()?).stderr(slave()?);
            let control = slave()?;
            prepare(&mut command, setup, move || take_control(control.as_fd()));
            relay = Some(master);
        } else {
            prepare(&mut command, setup, || Ok(()));
        }
        let mut running = Running::start(command).failing(told)?;
        let relay = relay.map(|master| Relay::start(connection, vec![master])).transpose().failing(told)?;
        let outcome = self.attend(&mut running, signals, relay.as_ref());
        let code = outcome.as_ref().copied().unwrap_or(crate::fault::FAILURE.into());
        drop(running);
        if let Some(relay) = relay {
            relay.finish(code);
        }
        outcome
    }

    fn attend(&self, running: &mut Running, signals: &SignalFd, relay: Option<&Relay>) -> Result<i32, Fault> {
        loop {
            let mut watched = vec![
                PollFd::new(running.ended(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            watched.extend(self.log.as_ref().map(|log| PollFd::new(log.ended(), PollFlags::POLLIN)));
            match poll(&mut watched, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                polled => polled.failing(|| "cannot wait for the command".to_owned())?,
            };
            let woken: Vec<bool> = watched.iter().map(|entry| entry.any().unwrap_or(false)).collect();
            drop(watched);
            if woken[0] {
                return running.wait().failing(|| "cannot wait for the command".to_owned());
            }
            if woken[1] {
                self.pass_on(signals, relay)?;
            }
            if woken.get(2) == Some(&true) {
                return Err(Fault::failed(format!(
                    "the bundle ended, and the bottle with it\n{}",
                    self.log_tail()
                )));
            }
        }
    }

    fn pass_on(&self, signals: &SignalFd, relay: Option<&Relay>) -> Result<(), Fault> {
        let received = signals.read_signal().failing(|| "cannot read a signal".to_owned())?;
        let number = received.and_then(|signal| i32::try_from(signal.ssi_signo).ok());
        match (number.and_then(|number| Signal::try_from(number).ok()), relay) {
            (Some(Signal::SIGWINCH), Some(relay)) => relay.resize(),
            (Some(Signal::SIGWINCH) | None, _) => {}
            (Some(ENOUGH), _) => {
                let words = ["container", "kill", &compose::agent(&self.name)];
                let _ = self.engine.ask_within(SIGNAL_PATIENCE, words);
            }
            (Some(signal), _) => {
                let (container, number) = (compose::agent(&self.name), (signal as i32).to_string());
                let words = ["exec", &container, PROGRAM, "__signal", &number];
                // The command may have ended just now; then the loop sees it.
                let _ = self.engine.ask_within(SIGNAL_PATIENCE, words);
            }
        }
        Ok(())
    }

    /// Removes the agent, lets the bundle come to its end, and removes the rest.
    fn stop(mut self) {
        let (agent, sidecars) = (compose::agent(&self.name), compose::sidecars(&self.name));
        let removed = self.engine.ask(["container", "rm", "--force", "--volumes", &agent]);
        let stopped = self.engine.ask(["container", "stop", &sidecars]);
        if let Some(mut log) = self.log.take() {
            // It ends with the bundle's last line.
            let _ = log.wait();
        }
        let left = remove_all(&self.engine, self.name.as_str(), &self.state);
        // Only what was made for this run: the project and the log stay with the history.
        let _ = fs::remove_dir_all(self.state.join(furnish::DIRECTORY));
        for fault in [removed.err(), stopped.err(), left.err()].into_iter().flatten() {
            tracing::warn!("{fault}; `bottlecap cleanup` finds what is left");
        }
        if let Some(guard) = self.guard.take() {
            guard.dismiss();
        }
    }
}

fn is_readable(fd: std::os::fd::BorrowedFd<'_>) -> bool {
    matches!(poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO), Ok(1))
}

/// One key a line, after its place.
fn key_lines(keys: &[(PathBuf, Zeroizing<Vec<u8>>)]) -> Vec<u8> {
    let mut lines = Vec::new();
    for (place, key) in keys {
        lines.extend_from_slice(place.as_os_str().as_encoded_bytes());
        lines.push(b' ');
        lines.extend_from_slice(STANDARD.encode(key.as_slice()).as_bytes());
        lines.push(b'\n');
    }
    lines
}
