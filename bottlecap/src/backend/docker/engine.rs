//! Docker by its command line, and what of it a bottle can use.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::Deserialize;

use crate::errand::{Said, finish};
use crate::fault::{Attempted, Fault};
use crate::sys::process;

/// The longest that the engine may take for one thing.
const PATIENCE: Duration = Duration::from_secs(90);
/// Where the distribution puts the client, before a newer one in PATH that may lack its plugins.
const DISTRIBUTIONS: &str = "/usr/bin/docker";
/// The oldest engine that a bottle was tried with.
const OLDEST: u32 = 20;

/// The client, and how it composes.
#[derive(Debug, Clone)]
pub struct Engine {
    client: PathBuf,
    compose: Vec<OsString>,
    /// What the engine can bound.
    pub limits: Limits,
}

/// Bounds that the engine's control groups give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory.
    pub memory: bool,
    /// Processes.
    pub processes: bool,
}

/// What the engine says of itself.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Information {
    #[serde(default)]
    server_version: String,
    #[serde(default)]
    security_options: Option<Vec<String>>,
    #[serde(default, rename = "OSType")]
    os_type: String,
    #[serde(default)]
    memory_limit: bool,
    #[serde(default)]
    pids_limit: bool,
    #[serde(default)]
    server_errors: Option<Vec<String>>,
}

impl Engine {
    /// The engine of this host.
    ///
    /// # Errors
    /// When there is none, or one that a bottle cannot be made with.
    pub fn find() -> Result<Engine, Fault> {
        let mut engine = Engine::local()?;
        // Two questions that each take the client's own time.
        let (said, composer) = std::thread::scope(|scope| {
            let composer = scope.spawn(|| engine.composer());
            (engine.ask(["info", "--format", "{{json .}}"]), joined(composer))
        });
        let said = said
            .map_err(|fault| fault.with_hint("install Docker, or use --backend sandbox, which needs none"))?;
        let information: Information = serde_json::from_str(&said.output).refusing(|| {
            format!("{} is no Docker client: its answer cannot be read", engine.client.display())
        })?;
        information.usable()?;
        engine.limits = Limits { memory: information.memory_limit, processes: information.pids_limit };
        engine.compose = composer?;
        Ok(engine)
    }

    /// The engine of this host, not looked at yet.
    ///
    /// # Errors
    /// When what the client takes for the engine may be elsewhere.
    pub fn local() -> Result<Engine, Fault> {
        let variable = |name: &str| std::env::var(name).ok();
        is_local(variable("DOCKER_HOST").as_deref())?;
        if variable("DOCKER_HOST").is_none_or(|host| host.is_empty()) {
            let directory = variable("DOCKER_CONFIG").map(PathBuf::from);
            let home = variable("HOME").map(|home| Path::new(&home).join(".docker"));
            let file = directory.or(home).map(|directory| directory.join("config.json"));
            let configured = file.and_then(|file| std::fs::read(file).ok());
            is_default(variable("DOCKER_CONTEXT").as_deref(), configured.as_deref())?;
        }
        Ok(Engine::at(match std::env::var_os("BOTTLECAP_DOCKER") {
            Some(client) => PathBuf::from(client),
            None if Path::new(DISTRIBUTIONS).exists() => PathBuf::from(DISTRIBUTIONS),
            None => PathBuf::from("docker"),
        }))
    }

    /// The engine behind the client at that path, which was looked at before.
    #[must_use]
    pub fn at(client: impl Into<PathBuf>) -> Engine {
        Engine {
            client: client.into(),
            compose: Vec::new(),
            limits: Limits { memory: false, processes: false },
        }
    }

    /// The plugin, or the program that came before it.
    fn composer(&self) -> Result<Vec<OsString>, Fault> {
        if self.ask(["compose", "version"]).is_ok_and(|said| said.good) {
            return Ok(vec![self.client.clone().into(), "compose".into()]);
        }
        // It is not asked: that alone would take it half a second.
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&paths).map(|path| path.join("docker-compose"));
        if let Some(alone) = found.into_iter().find(|path| path.is_file()) {
            return Ok(vec![alone.into()]);
        }
        Err(Fault::refused("neither `docker compose` nor `docker-compose` is there")
            .with_hint("install the compose plugin, or the package docker-compose"))
    }

    /// The client itself.
    #[must_use]
    pub fn client(&self) -> &Path {
        &self.client
    }

    /// One command of the client, not yet started.
    #[must_use]
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(&self.client);
        command.args(arguments);
        command
    }

    /// Runs a command of the client to its end, whatever that is.
    pub fn ask<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Said, Fault> {
        self.ask_within(PATIENCE, arguments)
    }

    /// The same, with another patience.
    pub fn ask_within<A: AsRef<OsStr>>(
        &self,
        patience: Duration,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Said, Fault> {
        finish(self.command(arguments), Vec::new(), patience)
    }

    /// Runs a command of the client that has to succeed; its standard output.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<String, Fault> {
        self.feed(arguments, Vec::new())
    }

    /// The same, with standard input.
    pub fn feed<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
        input: Vec<u8>,
    ) -> Result<String, Fault> {
        let arguments: Vec<OsString> = arguments.into_iter().map(|word| word.as_ref().to_owned()).collect();
        let word = arguments.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
        finish(self.command(&arguments), input, PATIENCE)?.or_failed(&format!("docker {word}"))
    }

    /// Runs a command of compose on the project that `file` describes.
    pub fn compose(&self, project: &str, file: &Path, arguments: &[&str]) -> Result<Said, Fault> {
        let Some((program, rest)) = self.compose.split_first() else {
            return Err(Fault::failed("there is no compose"));
        };
        let mut command = Command::new(program);
        command.args(rest).args(["--project-name", project, "--file"]).arg(file).args(arguments);
        // Neither a file beside it nor the caller's variables have a say in what the file means.
        for name in ["COMPOSE_FILE", "COMPOSE_PROJECT_NAME", "COMPOSE_PROFILES", "COMPOSE_ENV_FILES"] {
            command.env_remove(name);
        }
        command.env("COMPOSE_IGNORE_ORPHANS", "1").env("COMPOSE_DISABLE_ENV_FILE", "1");
        command.current_dir(file.parent().unwrap_or(Path::new("/")));
        finish(command, Vec::new(), PATIENCE)
    }
}

/// What a thread came to.
pub(super) fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T, Fault>>) -> Result<T, Fault> {
    thread.join().unwrap_or_else(|_| Err(Fault::failed("a question to the engine was cut short")))
}

fn is_local(host: Option<&str>) -> Result<(), Fault> {
    match host {
        Some(host) if !host.is_empty() && !host.starts_with("unix://") => Err(Fault::refused(
            "DOCKER_HOST names an engine elsewhere: it cannot see this host's directories",
        )
        .with_hint("unset DOCKER_HOST, or run bottlecap on that machine")),
        Some(_) | None => Ok(()),
    }
}

/// What the client takes for the engine, where nothing names its address: `configured` is its configuration.
fn is_default(context: Option<&str>, configured: Option<&[u8]>) -> Result<(), Fault> {
    #[derive(Deserialize)]
    struct Configured {
        #[serde(rename = "currentContext")]
        context: Option<String>,
    }
    let named = context.filter(|name| !name.is_empty()).map(str::to_owned).or_else(|| {
        // One that the client cannot read either is its own to complain of.
        configured.and_then(|text| serde_json::from_slice::<Configured>(text).ok())?.context
    });
    match named {
        Some(name) if !name.is_empty() && name != "default" => Err(Fault::refused(format!(
            "the Docker context {} may be an engine elsewhere, which cannot see this host's directories",
            proposal::escaped(&name)
        ))
        .with_hint("docker context use default; or DOCKER_HOST=unix:///run/docker.sock for this command")),
        Some(_) | None => Ok(()),
    }
}

impl Information {
    /// Whether a bottle can be made with it.
    fn usable(&self) -> Result<(), Fault> {
        if let Some(error) = self.server_errors.iter().flatten().next() {
            return Err(Fault::refused(format!("no Docker engine answers: {}", proposal::escaped(error)))
                .with_hint("start it (systemctl start docker), or use --backend sandbox, which needs none"));
        }
        let options = self.security_options.as_deref().unwrap_or_default();
        let has = |word: &str| options.iter().any(|option| option.split(',').any(|part| part == word));
        let major: Option<u32> = self.server_version.split('.').next().and_then(|word| word.parse().ok());
        let refused = |what: &str| {
            Err(Fault::refused(format!("this engine cannot hold a bottle: {what}"))
                .with_hint("use --backend sandbox, which needs no engine and no root"))
        };
        if has("name=rootless") || has("rootless") {
            return refused("it is rootless, and owners of files would be others than they seem");
        }
        if has("name=userns") {
            return refused(
                "it maps users (userns-remap), and owners of files would be others than they seem",
            );
        }
        if self.os_type != "linux" {
            return refused("it is no Docker engine for Linux containers");
        }
        match major {
            Some(OLDEST..) => Ok(()),
            Some(_) | None => refused(
                "it is older than 20.10, or none of Docker's (podman leaves this host an address on the sealed network)",
            ),
        }
    }
}

/// A client that runs beside us.
#[derive(Debug)]
pub struct Running {
    child: Child,
    ended: std::os::fd::OwnedFd,
}

impl Running {
    /// Starts it.
    pub fn start(mut command: Command) -> std::io::Result<Running> {
        let child = command.spawn()?;
        let ended = process::watch(Pid::from_raw(child.id() as i32))?;
        Ok(Running { child, ended })
    }

    /// Readable when it has ended.
    #[must_use]
    pub fn ended(&self) -> std::os::fd::BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        // It may be ending at this moment.
        let _ = process::signal(self.ended.as_fd(), signal);
    }

    /// Waits for its end; its exit code.
    pub fn wait(&mut self) -> std::io::Result<i32> {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.wait()?;
        let by_signal = status.signal().map(|signal| 128 + signal);
        Ok(status.code().or(by_signal).unwrap_or(i32::from(crate::fault::FAILURE)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        // Reaped, so that nothing is left of it.
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        let information: Information = serde_json::from_str(text).expect("an answer");
        information.usable().map_or_else(|fault| fault.to_string(), |()| "usable".to_owned())
    }

    #[test]
    fn an_engine_that_cannot_hold_a_bottle_is_refused_in_words() {
        let seen = [
            r#"{"ServerVersion":"20.10.24+dfsg1","OSType":"linux","SecurityOptions":["name=seccomp,profile=default"]}"#,
            r#"{"ServerVersion":"28.2.2","OSType":"linux","SecurityOptions":["name=seccomp,profile=builtin","name=rootless"]}"#,
            r#"{"ServerVersion":"28.2.2","OSType":"linux","SecurityOptions":["name=userns"]}"#,
            r#"{"ServerVersion":"19.3.1","OSType":"linux","SecurityOptions":null}"#,
            r#"{"host":{"security":{"rootless":true}},"version":{"Version":"4.3.1"}}"#,
            r#"{"ServerVersion":"4.3.1","OSType":"linux","SecurityOptions":["name=seccomp,profile=default"]}"#,
            r#"{"ServerErrors":["Cannot connect to the Docker daemon"]}"#,
        ];
        insta::assert_snapshot!(seen.map(refusal).join("\n"), @r"
        usable
        this engine cannot hold a bottle: it is rootless, and owners of files would be others than they seem
        this engine cannot hold a bottle: it maps users (userns-remap), and owners of files would be others than they seem
        this engine cannot hold a bottle: it is older than 20.10, or none of Docker's (podman leaves this host an address on the sealed network)
        this engine cannot hold a bottle: it is no Docker engine for Linux containers
        this engine cannot hold a bottle: it is older than 20.10, or none of Docker's (podman leaves this host an address on the sealed network)
        no Docker engine answers: Cannot connect to the Docker daemon
        ");
    }

    #[test]
    fn an_engine_elsewhere_is_refused() {
        assert!(is_local(Some("tcp://192.0.2.1:2376")).is_err());
        assert!(is_local(Some("ssh://build@example.com")).is_err());
        assert!(is_local(Some("unix:///run/docker.sock")).is_ok());
        assert!(is_local(None).is_ok());
    }

    #[test]
    fn a_context_that_is_not_the_default_is_refused() {
        let configured = br#"{"auths":{},"currentContext":"far"}"#;
        assert!(is_default(None, Some(configured)).is_err());
        assert!(is_default(Some("far"), None).is_err());
        assert!(is_default(Some(""), Some(configured)).is_err());
        // The variable goes before the file.
        assert!(is_default(Some("default"), Some(configured)).is_ok());
        assert!(is_default(None, Some(b"{}")).is_ok());
        assert!(is_default(None, Some(br#"{"currentContext":"default"}"#)).is_ok());
        assert!(is_default(None, None).is_ok());
    }
}
