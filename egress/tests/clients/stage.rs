//! What the clients meet: an origin, the proxy before it, and the environment that a bottle gives its programs.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::Value;
use sha2::{Digest, Sha256};

pub(crate) struct Stage {
    directory: tempfile::TempDir,
    origin: Child,
    proxy: Child,
    address: SocketAddr,
    port: u16,
    /// Where the origin speaks WebSocket.
    pub(crate) sockets: u16,
    clients: PathBuf,
}

impl Stage {
    pub(crate) fn start() -> Stage {
        let clients = clients();
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for name in
            ["etc", "run", "state", "secrets", "files/v1", "files/simple", "files/index", "git", "home"]
        {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        std::fs::write(root.join("secrets/token"), "real-token").unwrap();
        std::fs::write(root.join("secrets/key"), "real-key").unwrap();
        certificates(root);
        let mut origin = Command::new(clients.join("py/bin/python"))
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/upstream.py"))
            .arg(root)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ports = BufReader::new(origin.stdout.take().unwrap()).lines();
        let mut port = || ports.next().expect("the origin starts").unwrap().parse().unwrap();
        let (port, sockets) = (port(), port());
        std::fs::write(root.join("etc/routes.yaml"), routes(port, sockets)).unwrap();
        let made =
            egress(root).args(["ca", "init", "--ca-dir", "ca"]).stdout(Stdio::null()).status().unwrap();
        assert!(made.success());
        let mut proxy = egress(root)
            .args(["--config", "etc", "--ca-dir", "ca", "--run-dir", "run", "--state-dir", "state"])
            .args(["--secrets-dir", "secrets", "--listen", "127.0.0.1:0"])
            .env("EGRESS_UPSTREAM_CA", root.join("origin-ca.pem"))
            .env("NO_COLOR", "1")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(proxy.stderr.take().unwrap()).lines().map_while(Result::ok);
        let listening = log.find(|line| line.contains("listening")).expect("the proxy starts");
        let address = listening.rsplit('=').next().unwrap().parse().unwrap();
        // Read to the end, so that the proxy never waits for a reader.
        std::thread::spawn(move || log.for_each(drop));
        Stage { directory, origin, proxy, address, port, sockets, clients }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    pub(crate) fn python(&self) -> PathBuf {
        self.clients.join("py/bin/python")
    }

    pub(crate) fn node(&self, program: &str) -> PathBuf {
        self.clients.join("node_modules/.bin").join(program)
    }

    /// Runs a client, which must succeed, and gives what it printed.
    pub(crate) fn run<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> String {
        self.run_in(&self.path("home"), program, arguments)
    }

    pub(crate) fn run_in<A: AsRef<OsStr>>(
        &self,
        directory: &Path,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> String {
        let name = program.as_ref().to_owned();
        let output = self.command(program, arguments).current_dir(directory).output().unwrap();
        let (out, err) = (text_of(&output.stdout), text_of(&output.stderr));
        assert!(output.status.success(), "{name:?}: {}\n{out}\n{err}", output.status);
        out
    }

    pub(crate) fn output<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Output {
        self.command(program, arguments).output().unwrap()
    }

    fn command<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let proxy = format!("http://{}", self.address);
        let mut command = Command::new(program);
        command.env_clear().args(arguments).current_dir(self.path("home")).stdin(Stdio::null());
        for name in ["PATH", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        // rustup finds its toolchain by the real home.
        let rustup = std::env::var_os("HOME").map(|home| Path::new(&home).join(".rustup"));
        if std::env::var_os("RUSTUP_HOME").is_none() {
            command.envs(rustup.map(|path| ("RUSTUP_HOME", path)));
        }
        for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
            command.env(name, &proxy);
        }
        for name in [
            "SSL_CERT_FILE",
            "REQUESTS_CA_BUNDLE",
            "CURL_CA_BUNDLE",
            "GIT_SSL_CAINFO",
            "PIP_CERT",
            "CARGO_HTTP_CAINFO",
            "NODE_EXTRA_CA_CERTS",
        ] {
            command.env(name, self.path("ca/ca.pem"));
        }
        command
            .env("HOME", self.path("home"))
            .env("CARGO_HOME", self.path("home/cargo"))
            .env("NODE_USE_ENV_PROXY", "1")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("ANTHROPIC_BASE_URL", self.url())
            .env("ANTHROPIC_API_KEY", "placeholder")
            .env("DISABLE_AUTOUPDATER", "1")
            .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1");
        command
    }

    pub(crate) fn commit(&self, repository: &str, subject: &str) {
        let identity = ["-c", "user.name=agent", "-c", "user.email=agent@example.com"];
        let commit = ["-C", repository, "commit", "--quiet", "--allow-empty", "-m", subject];
        self.run("git", identity.iter().chain(&commit));
    }

    /// The requests that the origin saw.
    pub(crate) fn seen(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("seen.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The origin saw the route's credential on every request, and no header of one hop.
    pub(crate) fn only_real_credentials(&self) {
        for seen in self.seen() {
            let headers = seen["headers"].as_object().unwrap();
            let key = headers.get("x-api-key").is_some_and(|key| key == "real-key");
            assert!(key || headers["authorization"] == "Bearer real-token", "{seen}");
            assert!(headers.keys().all(|name| !name.starts_with("proxy-")), "{seen}");
        }
    }

    /// A wheel with one module, in the index of the origin.
    pub(crate) fn wheel(&self, name: &str, version: &str) {
        let place = self.path(&format!("files/simple/{name}"));
        std::fs::create_dir_all(&place).unwrap();
        let file = format!("{name}-{version}-py3-none-any.whl");
        let build = "import sys, zipfile\n\
                     path, name, version = sys.argv[1:]\n\
                     info = f'{name}-{version}.dist-info'\n\
                     with zipfile.ZipFile(path, 'w') as wheel:\n\
                     \x20   wheel.writestr(f'{name}.py', f'NAME = {name!r}\\n')\n\
                     \x20   wheel.writestr(f'{info}/METADATA', f'Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n')\n\
                     \x20   wheel.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n\
                     \x20   wheel.writestr(f'{info}/RECORD', '')\n";
        let path = place.join(&file);
        self.run(self.python(), ["-c", build, path.to_str().unwrap(), name, version]);
        std::fs::write(place.join("index.html"), format!("<a href=\"{file}\">{file}</a>\n")).unwrap();
    }

    /// A registry with one crate, by cargo's sparse protocol.
    pub(crate) fn registry(&self, name: &str, version: &str) {
        let index = self.path("files/index");
        let package = self.path(&format!("home/{name}-{version}"));
        std::fs::create_dir_all(package.join("src")).unwrap();
        std::fs::write(package.join("src/lib.rs"), "").unwrap();
        let manifest = format!("[package]\nname = \"{name}\"\nversion = \"{version}\"\nedition = \"2021\"\n");
        std::fs::write(package.join("Cargo.toml"), manifest).unwrap();
        std::fs::create_dir_all(index.join("dl")).unwrap();
        let archive = index.join(format!("dl/{name}-{version}.crate"));
        self.run("tar", ["czf", archive.to_str().unwrap(), &format!("{name}-{version}")]);
        let digest = Sha256::digest(std::fs::read(&archive).unwrap());
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let config = format!("{{\"dl\":\"{}/index/dl/{{crate}}-{{version}}.crate\"}}", self.url());
        std::fs::write(index.join("config.json"), config).unwrap();
        let place = index.join(&name[..2]).join(&name[2..4]);
        std::fs::create_dir_all(&place).unwrap();
        let line = serde_json::json!({"name": name, "vers": version, "deps": [], "cksum": digest, "features": {}, "yanked": false});
        std::fs::write(place.join(name), format!("{line}\n")).unwrap();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for child in [&mut self.proxy, &mut self.origin] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn egress(root: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_egress"));
    command.env_clear().current_dir(root);
    command
}

/// Where scripts/need.sh puts the clients.
fn clients() -> PathBuf {
    let named = std::env::var_os("BOTTLECAP_CLIENTS").map(PathBuf::from);
    // TARGET/PROFILE/deps/TEST
    let beside = || std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("clients");
    let clients = named.unwrap_or_else(beside);
    for program in ["py/bin/python", "node_modules/.bin/node", "node_modules/.bin/claude"] {
        let path = clients.join(program);
        assert!(path.exists(), "no {}: run `scripts/need.sh pyclients node22`", path.display());
    }
    clients
}

fn certificates(root: &Path) {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(root.join("origin-ca.pem"), authority.self_signed(&authority_key).unwrap().pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::new(authority, authority_key)).unwrap();
    std::fs::write(root.join("cert.pem"), leaf.pem()).unwrap();
    std::fs::write(root.join("key.pem"), key.serialize_pem()).unwrap();
}

fn routes(port: u16, sockets: u16) -> String {
    let route = |port: u16, rules: &str| {
        format!(
            "  - host: localhost\n    ports: [{port}]\n    allow_private: [127.0.0.0/8, \"::1/128\"]\n{rules}"
        )
    };
    let bearer = "    auth_scheme: bearer\n    token_file: token\n";
    let paths = "    path_allowlist: [/v1/, /git/project.git/, /simple/, /index/]\n    git: {fetch: true}\n";
    let key = "    matches:\n      - paths: [{type: prefix, value: /v1/messages}]\n    auth_scheme: \"header:x-api-key\"\n    token_file: key\n";
    let closed = "    matches:\n      - paths: [{type: prefix, value: /git/closed.git/}]\n";
    let socket = "    path_allowlist: [/v1/]\n";
    format!(
        "routes:\n{}{}{}{}",
        route(port, &format!("{paths}{bearer}")),
        route(port, key),
        route(port, &format!("{closed}{bearer}")),
        route(sockets, socket)
    )
}
