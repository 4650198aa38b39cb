//! The host of these stories, the same for each backend.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;
use tests::{Binaries, Docker, Finished, HttpsEcho, Run};

pub(crate) const TOKEN: &str = "ghp_the-real-token-that-no-bottle-sees";
/// The owner of the working directory: whoever starts a container's agent as itself needs one that is not root.
pub(crate) const OWNER: u32 = 64_300;

/// Where the host answers both kinds of bundle: on the engine's own bridge.
pub(crate) const HOST: &str = "172.17.0.1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sandbox,
    Docker,
}

/// A host with a bottle to be started on it, and an API outside.
pub(crate) struct Stage {
    pub(crate) kind: Kind,
    pub(crate) docker: Docker,
    /// The bundle's.
    pub(crate) image: String,
    /// The agent's.
    pub(crate) agent: String,
    root: TempDir,
    pub(crate) api: HttpsEcho,
    pub(crate) name: String,
}

impl Stage {
    /// One with an API that echoes, and an agent in the bundle's own image.
    pub(crate) fn new(kind: Kind, docker: Docker) -> Self {
        let image = docker.bundle_image().unwrap();
        let api = HttpsEcho::start_on(HOST.parse().unwrap(), &[HOST]).unwrap();
        let stage = Self::with(kind, docker, (image.clone(), image), api);
        stage.write(
            "bottle.yaml",
            &format!(
                "routes: routes.yaml\nsecrets:\n  KEY: {{env: STORY_TOKEN}}\nupstream_ca: {}\n",
                stage.api.ca().display()
            ),
        );
        stage.write("routes.yaml", &format!(
            "routes:\n  - host: {HOST}\n    ports: [{port}]\n    allow_private: [\"{HOST}/32:{port}\"]\n    matches:\n      \
             - paths: [{{type: prefix, value: /v1/}}]\n        methods: [GET]\n    auth_scheme: bearer\n    token_env: KEY\n",
            port = stage.api.port()
        ));
        stage
    }

    /// One without a manifest; `images` are the bundle's and the agent's.
    pub(crate) fn with(kind: Kind, docker: Docker, (image, agent): (String, String), api: HttpsEcho) -> Self {
        let root = tempfile::Builder::new().prefix("bc-back-").tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o711)).unwrap();
        for name in ["work", "state", "run"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        std::os::unix::fs::chown(root.path().join("work"), Some(OWNER), Some(OWNER)).unwrap();
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("t{}-{:03}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
        Self { kind, docker, image, agent, root, api, name }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = self.starts(&Binaries::find().unwrap().program("bottlecap").to_string_lossy());
        command.args(words);
        command
    }

    /// Any program, as the person starts it.
    pub(crate) fn starts(&self, program: &str) -> Command {
        let mut command = self.docker.command(program);
        command.current_dir(self.path("work"));
        command.env("XDG_STATE_HOME", self.path("state")).env("XDG_RUNTIME_DIR", self.path("run"));
        command.env("STORY_TOKEN", TOKEN).env("BOTTLECAP_SIDECARS_IMAGE", &self.image);
        command
    }

    pub(crate) fn run_words(&self) -> Vec<String> {
        let manifest = self.path("bottle.yaml").display().to_string();
        let mut words = vec!["run", "--bottle", &manifest, "--name", &self.name, "--report"];
        match self.kind {
            Kind::Sandbox => words.extend(["--backend", "sandbox"]),
            Kind::Docker => words.extend(["--backend", "docker", "--image", &self.agent]),
        }
        words.push("--");
        words.into_iter().map(str::to_owned).collect()
    }

    /// The bottle with a shell script in it, to its end.
    pub(crate) fn bottle(&self, script: &str) -> Finished {
        Run::from(self.started(script)).finish().unwrap()
    }

    /// The same with something done at the last moment before the engine is told what to make: stand-ins for both programs that
    /// compose do it.
    pub(crate) fn bottle_after(&self, done: &str, script: &str) -> Finished {
        let programs = self.path("programs");
        fs::create_dir_all(&programs).unwrap();
        for (name, real) in [("docker", self.docker.program()), ("docker-compose", "/usr/bin/docker-compose")]
        {
            let script = format!(
                "#!/bin/sh\ncase \" $* \" in *\" up --detach \"*) {done};; esac\nexec {real} \"$@\"\n"
            );
            fs::write(programs.join(name), script).unwrap();
            fs::set_permissions(programs.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let mut command = self.started(script);
        command.env("BOTTLECAP_DOCKER", programs.join("docker"));
        command.env("PATH", format!("{}:{}", programs.display(), std::env::var("PATH").unwrap()));
        Run::from(command).finish().unwrap()
    }

    /// The bottle of containers, whose bundle asks `server` for names.
    pub(crate) fn bottle_asking(&self, server: IpAddr, script: &str) -> Finished {
        let project = self.path("state/bottlecap/bottles").join(&self.name).join("compose.json");
        let bundle = format!("\"container_name\": \"bottlecap-sidecars-{}\",", self.name);
        let done = format!("sed -i 's/{bundle}/&\"dns\": [\"{server}\"],/' {}", project.display());
        self.bottle_after(&done, script)
    }

    pub(crate) fn started(&self, script: &str) -> Command {
        self.started_as(&["bash", "-c", script])
    }

    /// The bottle with that command in it.
    pub(crate) fn started_as(&self, command: &[&str]) -> Command {
        let mut words = self.run_words();
        words.extend(command.iter().map(|word| (*word).to_owned()));
        self.command(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// What the engine knows this bottle's things by.
    pub(crate) fn label(&self) -> String {
        format!("label=bottlecap.bottle={}", self.name)
    }

    /// Names of what the engine has of this bottle.
    pub(crate) fn objects(&self) -> String {
        let filter = self.label();
        ["container ls --all --quiet", "network ls --quiet", "volume ls --quiet"]
            .map(|words| {
                let words = words.split(' ').chain(["--filter", &filter]);
                self.docker.run(words).ok().unwrap()
            })
            .join("\n")
            .trim()
            .to_owned()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        drop(Run::from(self.command(&["cleanup", "--history", "--yes"])).finish());
    }
}

/// Tells `story` for each backend.
pub(crate) fn for_each(story: impl Fn(&Stage)) {
    for kind in [Kind::Sandbox, Kind::Docker] {
        let Some(docker) = Docker::connect().unwrap() else { return };
        story(&Stage::new(kind, docker));
    }
}
