//! Docker by its command line, with everything made here taken away again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;

use crate::{Finished, Process, Run, workspace_root};

/// On everything these tests make, with the process id as the value.
const LABEL: &str = "bottlecap.test";

/// The Docker engine.
#[derive(Debug)]
pub struct Docker {
    client: String,
    through_sudo: bool,
}

impl Docker {
    /// The engine that answers; an error says how to start one. `BOTTLECAP_SKIP=docker` leaves its stories out, except in CI.
    pub fn connect() -> Result<Option<Self>> {
        let skipped =
            std::env::var("BOTTLECAP_SKIP").is_ok_and(|names| names.split(',').any(|name| name == "docker"));
        if skipped && std::env::var_os("CI").is_none() {
            return Ok(None);
        }
        let client = std::env::var("BOTTLECAP_DOCKER").unwrap_or_else(|_| {
            // The distribution's client before a newer one in PATH, which may lack its build plugin.
            if Path::new("/usr/bin/docker").exists() {
                "/usr/bin/docker".to_owned()
            } else {
                "docker".to_owned()
            }
        });
        let direct = Self { client, through_sudo: false };
        let Err(refusal) = direct.run(["info"]).ok() else { return Ok(Some(direct)) };
        // A user without the docker group, as scripts/lib.sh does it.
        let elevated = Self { through_sudo: true, ..direct };
        let answers = !nix::unistd::geteuid().is_root()
            && elevated.run(["info"]).finish().is_ok_and(|run| run.code == 0);
        anyhow::ensure!(
            answers,
            "no Docker engine answers (scripts/docker-up.sh starts one; BOTTLECAP_SKIP=docker leaves these stories out): {refusal:#}"
        );
        Ok(Some(elevated))
    }

    /// A program with the rights that Docker needs here.
    pub fn command(&self, program: &str) -> Command {
        if self.through_sudo {
            let mut command = Command::new("sudo");
            command.args(["-n", "--preserve-env", "--", program]);
            command
        } else {
            Command::new(program)
        }
    }

    /// The client's own program.
    pub fn program(&self) -> &str {
        &self.client
    }

    /// One docker command, not yet started.
    pub fn client(&self) -> Command {
        self.command(&self.client)
    }

    /// One docker command.
    pub fn run<A: AsRef<str>>(&self, args: impl IntoIterator<Item = A>) -> Run {
        Run::from(self.client()).args(args.into_iter().map(|arg| arg.as_ref().to_owned()))
    }

    /// Builds the bundle image from this checkout, quickly compiled, and returns its tag; or the one that
    /// `BOTTLECAP_SIDECARS_IMAGE` names.
    pub fn bundle_image(&self) -> Result<String> {
        if let Ok(image) = std::env::var("BOTTLECAP_SIDECARS_IMAGE") {
            return Ok(image);
        }
        self.script("scripts/image.sh").env("TAG", "bottlecap-sidecars:test").ok()
    }

    /// Builds the image of the agent's container from this machine's packages, once for this process, and returns its tag.
    pub fn agent_image(&self) -> Result<String> {
        static BUILT: OnceLock<Result<String, String>> = OnceLock::new();
        let build = || self.script("scripts/agent-image.sh").env("TAG", "bottlecap-agent:test").ok();
        let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
        built.clone().map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// The API stand-in as a static program.
    pub fn echo_api(&self) -> Result<PathBuf> {
        let directory = self.script("scripts/binaries.sh").args(["tests"]).ok()?;
        Ok(Path::new(&directory).join("echo-api"))
    }

    fn script(&self, path: &str) -> Run {
        Run::new("bash")
            .args([path])
            .within(workspace_root())
            .env("PROFILE", "dev")
            .env("CARGO_TARGET_DIR", crate::target_directory())
    }

    /// Makes a network; `options` go to `docker network create`.
    pub fn network<A: AsRef<str>>(&self, options: impl IntoIterator<Item = A>) -> Result<Network<'_>> {
        let name = unique("net");
        self.run(["network", "create", "--label", &label()])
            .args(options.into_iter().map(|arg| arg.as_ref().to_owned()))
            .args([&name])
            .ok()?;
        Ok(Network { docker: self, name })
    }

    /// Makes a container without starting it; `arguments` go to `docker create`, image and command included.
    pub fn container<A: AsRef<str>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Container<'_>> {
        let name = unique("c");
        self.run(["create", "--label", &label(), "--name", &name])
            .args(arguments.into_iter().map(|arg| arg.as_ref().to_owned()))
            .ok()?;
        Ok(Container { docker: self, name })
    }
}

fn label() -> String {
    format!("{LABEL}={}", std::process::id())
}

fn unique(kind: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("bottlecap-test-{}-{kind}{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst))
}

/// A Docker network, removed when dropped.
#[derive(Debug)]
pub struct Network<'d> {
    docker: &'d Docker,
    name: String,
}

impl Network<'_> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A field of `docker network inspect`, by a Go template.
    pub fn inspect(&self, template: &str) -> Result<String> {
        self.docker.run(["network", "inspect", "--format", template, &self.name]).ok()
    }
}

impl Drop for Network<'_> {
    fn drop(&mut self) {
        drop(self.docker.run(["network", "rm", &self.name]).finish());
    }
}

/// A container, removed with its volumes when dropped.
#[derive(Debug)]
pub struct Container<'d> {
    docker: &'d Docker,
    name: String,
}

impl Container<'_> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A field of `docker inspect`, by a Go template.
    pub fn inspect(&self, template: &str) -> Result<String> {
        self.docker.run(["inspect", "--format", template, &self.name]).ok()
    }

    /// Its address on a network.
    pub fn address(&self, network: &Network<'_>) -> Result<String> {
        self.inspect(&format!("{{{{(index .NetworkSettings.Networks \"{}\").IPAddress}}}}", network.name))
    }

    /// Copies a file from this machine into it.
    pub fn put(&self, from: &Path, to: &str) -> Result<()> {
        let from = from.to_string_lossy();
        self.docker.run(["cp", &from, &format!("{}:{to}", self.name)]).ok().map(drop)
    }

    /// Joins another network.
    pub fn join<A: AsRef<str>>(
        &self,
        network: &Network<'_>,
        options: impl IntoIterator<Item = A>,
    ) -> Result<()> {
        let run = self
            .docker
            .run(["network", "connect"])
            .args(options.into_iter().map(|arg| arg.as_ref().to_owned()));
        run.args([&network.name, &self.name]).ok().map(drop)
    }

    /// Starts it.
    pub fn start(&self) -> Result<()> {
        self.docker.run(["start", &self.name]).ok().map(drop)
    }

    /// Follows what it prints, from its beginning; the supervisor's lines are on standard error.
    pub fn follow(&self) -> Result<Process> {
        Process::start(self.docker.client().args(["logs", "--follow", &self.name]))
    }

    /// Runs a shell script inside it, to its end.
    pub fn shell(&self, script: &str) -> Result<Finished> {
        self.docker.run(["exec", "-i", &self.name, "bash", "-c", script]).finish()
    }

    /// Sends PID 1 a signal.
    pub fn kill(&self, signal: &str) -> Result<()> {
        self.docker.run(["kill", "--signal", signal, &self.name]).ok().map(drop)
    }

    /// Stops it and returns its exit code.
    pub fn stop(&self) -> Result<i32> {
        self.docker.run(["stop", "--time", "12", &self.name]).ok()?;
        Ok(self.docker.run(["wait", &self.name]).ok()?.parse()?)
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        drop(self.docker.run(["rm", "--force", "--volumes", &self.name]).finish());
    }
}
