//! Programs that agents run, as they come, each in a bottle: nothing is set but what a bottle sets, and none of them ever has the
//! credential that its requests arrive with.
//!
//! `scripts/need.sh python venv git curl pyclients node22` installs them; without them, and without root for a hosts file of
//! their own, these tests fail and say so.
#![allow(clippy::unwrap_used)]

use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tests::{Binaries, Finished, Run, target_directory, workspace_root};

const HOST: &str = "api.test";
const SECRETS: [&str; 2] = ["real-token-for-upstream", "real-key-for-upstream"];
/// Makes a hosts file that the bottle's daemons alone see, and goes on as what is named.
const APART: &str = "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"";

/// An origin for `api.test`, and a bottle that may reach it.
struct Stage {
    root: tempfile::TempDir,
    origin: Child,
    port: u16,
    sockets: u16,
    clients: PathBuf,
}

impl Stage {
    fn start() -> Stage {
        let clients = target_directory().join("clients");
        for program in ["py/bin/python", "node_modules/.bin/node", "node_modules/.bin/claude"] {
            let path = clients.join(program);
            assert!(path.exists(), "no {}: run `scripts/need.sh pyclients node22`", path.display());
        }
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), Permissions::from_mode(0o711)).unwrap();
        for name in ["work", "home", "files/v1", "files/simple", "files/index", "git"] {
            fs::create_dir_all(root.path().join(name)).unwrap();
        }
        certificates(root.path());
        let mut origin = Command::new(clients.join("py/bin/python"))
            .arg(scripts().join("upstream.py"))
            .arg(root.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ports = BufReader::new(origin.stdout.take().unwrap()).lines();
        let mut port = || ports.next().expect("the origin starts").unwrap().parse().unwrap();
        let (port, sockets) = (port(), port());
        let stage = Stage { root, origin, port, sockets, clients };
        stage.write("hosts", &format!("127.0.0.1 localhost {HOST}\n::1 localhost\n"));
        stage.write("token", SECRETS[0]);
        stage.write("key", SECRETS[1]);
        stage.write("routes.yaml", &stage.routes());
        stage.write("bottle.yaml", &stage.manifest());
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn url(&self) -> String {
        format!("https://{HOST}:{}", self.port)
    }

    fn routes(&self) -> String {
        let route = |port: u16, rules: &str| {
            format!("  - host: {HOST}\n    ports: [{port}]\n    allow_private: [127.0.0.0/8]\n{rules}")
        };
        let bearer = "    path_allowlist: [/v1/, /git/, /simple/, /index/]\n    git: {fetch: true}\n    auth_scheme: bearer\n    \
                      token_file: token\n    dlp: {inbound_detectors: []}\n";
        let key = "    matches:\n      - paths: [{type: prefix, value: /v1/messages}]\n    auth_scheme: \"header:x-api-key\"\n    \
                   token_file: key\n";
        let told = "    path_allowlist: [/v1/told]\n    token_file: token\n    placeholder_in: [\"ws-json:/auth/token\"]\n";
        format!(
            "routes:\n{}{}{}{}",
            route(self.sockets, told),
            route(self.port, bearer),
            route(self.port, key),
            route(self.sockets, "    path_allowlist: [/v1/]\n")
        )
    }

    fn manifest(&self) -> String {
        let mounts = [self.clients.clone(), scripts(), toolchain()]
            .map(|path| format!("{{path: {}}}", path.display()));
        format!(
            "routes: routes.yaml\nsecrets: {{token: {{file: token}}, key: {{file: key}}}}\nupstream_ca: origin-ca.pem\n\
             mounts: [{}]\nenv: {{ANTHROPIC_BASE_URL: \"{}\", ANTHROPIC_API_KEY: placeholder, DISABLE_AUTOUPDATER: \"1\", \
             CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: \"1\"}}\n",
            mounts.join(", "),
            self.url()
        )
    }

    /// A command in a bottle of its own; `options` are those of `bottlecap run`. No secret comes out of it.
    fn bottle(&self, options: &[&str], command: &[&str]) -> Finished {
        let program = Binaries::find().unwrap().program("bottlecap");
        let finished = Run::bare("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", APART, "sh"])
            .args([self.path("hosts"), program])
            .args(["run", "--bottle"])
            .args([self.path("bottle.yaml")])
            .args(options)
            .args(["--"])
            .args(command)
            .env("HOME", self.path("home"))
            .env("XDG_STATE_HOME", self.path("state"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .within(self.path("work"))
            .finish()
            .unwrap();
        for secret in SECRETS {
            assert!(!finished.stdout.contains(secret) && !finished.stderr.contains(secret), "{finished:?}");
        }
        finished
    }

    /// What a command in a bottle prints; it succeeds.
    fn said(&self, command: &[&str]) -> String {
        self.bottle(&[], command).ok().unwrap()
    }

    /// The same, of a script for the shell.
    fn shell(&self, script: &str) -> String {
        self.said(&["sh", "-ec", script])
    }

    fn python(&self) -> String {
        self.clients.join("py/bin/python").display().to_string()
    }

    fn node(&self, program: &str) -> String {
        self.clients.join("node_modules/.bin").join(program).display().to_string()
    }

    /// The requests that the origin saw, each of which had the route's credential and nothing of a hop.
    fn seen(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("seen.jsonl")).unwrap();
        let seen: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for request in &seen {
            let headers = request["headers"].as_object().unwrap();
            let bearer =
                headers.get("authorization").is_some_and(|value| *value == format!("Bearer {}", SECRETS[0]));
            let key = headers.get("x-api-key").is_some_and(|value| value == SECRETS[1]);
            assert!(bearer || key, "{request}");
            assert!(headers.keys().all(|name| !name.starts_with("proxy-")), "{request}");
        }
        assert!(!seen.is_empty());
        seen
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.origin.kill();
        let _ = self.origin.wait();
    }
}

fn scripts() -> PathBuf {
    workspace_root().join("egress/tests/clients")
}

fn script(name: &str) -> String {
    scripts().join(name).display().to_string()
}

/// Where rustc and cargo are.
fn toolchain() -> PathBuf {
    Run::new("rustc").args(["--print", "sysroot"]).ok().unwrap().into()
}

fn certificates(root: &Path) {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(root.join("origin-ca.pem"), authority.self_signed(&authority_key).unwrap().pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new([HOST.to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::new(authority, authority_key)).unwrap();
    fs::write(root.join("cert.pem"), leaf.pem()).unwrap();
    fs::write(root.join("key.pem"), key.serialize_pem()).unwrap();
}

#[test]
fn curl_in_a_bottle_speaks_both_versions_uploads_and_resumes() {
    let stage = Stage::start();
    let content: Vec<u8> = (0..=255).collect::<Vec<u8>>().repeat(64);
    fs::write(stage.path("files/v1/file"), &content).unwrap();
    let url = stage.url();
    let said = stage.shell(&format!(
        "for version in --http1.1 --http2; do
           curl -sS $version -w ' %{{http_version}} %{{http_code}}\\n' {url}/v1/echo
           curl -sS $version -o /dev/null -w '%{{http_code}} %header{{x-bottlecap-denied}}\\n' {url}/secret
         done
         head -c 20000000 /dev/zero >large
         curl -sSf --data-binary @large -o echoed {url}/v1/echo
         cmp large echoed && rm large echoed
         curl -sSf -r 0-255 -o part {url}/v1/file
         head -c 256 part >cut && mv cut part
         curl -sSf -C - -o part {url}/v1/file"
    ));
    assert_eq!(said, "nothing 1.1 200\n403 path-not-allowed\nnothing 2 200\n403 path-not-allowed");
    assert_eq!(fs::read(stage.path("work/part")).unwrap(), content);
    assert_eq!(stage.seen().last().unwrap()["headers"]["range"], "bytes=256-");
}

#[test]
fn pythons_http_clients_in_a_bottle_pass_and_read_their_refusals() {
    let stage = Stage::start();
    let said = stage.said(&[&stage.python(), &script("http_clients.py"), &stage.url()]);
    let expected = ["requests 1.1", "httpx 1.1", "httpx 2", "aiohttp 1.1"]
        .map(|client| format!("{client} 200 same 403 path-not-allowed"))
        .join("\n");
    assert_eq!(said, expected);
    stage.seen();
}

#[test]
fn websockets_in_a_bottle_pass_unchanged() {
    let stage = Stage::start();
    let url = format!("wss://{HOST}:{}", stage.sockets);
    let said = stage.said(&[&stage.python(), &script("websocket_client.py"), &url, "1"]);
    assert_eq!(said, "chat\nclosed 1000\n403 path-not-allowed");
}

#[test]
fn a_websocket_in_a_bottle_sends_the_secret_in_place_of_the_placeholder_and_never_sees_it() {
    let stage = Stage::start();
    let url = format!("wss://{HOST}:{}", stage.sockets);
    let said = stage.said(&[&stage.python(), &script("websocket_placeholder.py"), &url]);
    // What came back was the secret, or it would not be masked.
    assert_eq!(said, format!("{} True", "*".repeat(SECRETS[0].len())));
}

#[test]
fn nodes_fetch_in_a_bottle_passes_and_streams_events() {
    let stage = Stage::start();
    let said = stage.said(&[&stage.node("node"), &script("fetch.mjs"), &stage.url()]);
    assert_eq!(said, "200 from node\n403 path-not-allowed\ntext/event-stream 7");
    stage.seen();
}

#[test]
fn git_in_a_bottle_fetches_over_https_and_its_push_is_refused() {
    let stage = Stage::start();
    let commit = "git -c user.name=agent -c user.email=agent@example.com commit -q --allow-empty -m";
    let origin = stage.path("git/project.git").display().to_string();
    let seed = stage.path("seed").display().to_string();
    Run::bare("sh")
        .args(["-ec", &format!("git init -q --bare -b main {origin}; git clone -q {origin} {seed}; cd {seed}; {commit} one; git push -q origin HEAD:main")])
        .ok()
        .unwrap();
    let said = stage.shell(&format!(
        "git clone -q {}/git/project.git clone 2>&1; cd clone; git log --format=%s; {commit} two; git push origin HEAD:main 2>&1 || echo refused",
        stage.url()
    ));
    assert!(said.starts_with("one\n") && said.contains("403") && said.ends_with("refused"), "{said}");
    assert_eq!(Run::bare("git").args(["-C", &origin, "log", "--format=%s"]).ok().unwrap(), "one");
    stage.seen();
}

#[test]
fn pip_in_a_bottle_installs_from_an_index() {
    let stage = Stage::start();
    let place = stage.path("files/simple/capped");
    fs::create_dir(&place).unwrap();
    let build = "import sys, zipfile\n\
                 with zipfile.ZipFile(sys.argv[1], 'w') as wheel:\n\
                 \x20   wheel.writestr('capped.py', \"NAME = 'capped'\\n\")\n\
                 \x20   wheel.writestr('capped-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: capped\\nVersion: 1.0\\n')\n\
                 \x20   wheel.writestr('capped-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n\
                 \x20   wheel.writestr('capped-1.0.dist-info/RECORD', '')\n";
    let file = "capped-1.0-py3-none-any.whl";
    Run::bare(stage.python()).args(["-c", build]).args([place.join(file)]).ok().unwrap();
    fs::write(place.join("index.html"), format!("<a href=\"{file}\">{file}</a>\n")).unwrap();
    let said = stage.shell(&format!(
        "{python} -m pip install -q --disable-pip-version-check --no-cache-dir --index-url {url}/simple/ --target here capped\n\
         PYTHONPATH=here {python} -c 'import capped; print(capped.NAME)'",
        python = stage.python(),
        url = stage.url()
    ));
    assert_eq!(said, "capped");
    stage.seen();
}

#[test]
fn cargo_in_a_bottle_fetches_from_a_registry() {
    let stage = Stage::start();
    let (index, package) = (stage.path("files/index"), stage.path("capped-1.0.0"));
    fs::create_dir_all(package.join("src")).unwrap();
    fs::create_dir_all(index.join("dl")).unwrap();
    fs::create_dir_all(index.join("ca/pp")).unwrap();
    fs::write(package.join("src/lib.rs"), "").unwrap();
    fs::write(
        package.join("Cargo.toml"),
        "[package]\nname = \"capped\"\nversion = \"1.0.0\"\nedition = \"2021\"\n",
    )
    .unwrap();
    let archive = index.join("dl/capped-1.0.0.crate");
    Run::bare("tar")
        .args(["czf", archive.to_str().unwrap(), "capped-1.0.0"])
        .within(stage.root.path())
        .ok()
        .unwrap();
    let digest = Sha256::digest(fs::read(&archive).unwrap());
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let config = format!("{{\"dl\":\"{}/index/dl/{{crate}}-{{version}}.crate\"}}", stage.url());
    fs::write(index.join("config.json"), config).unwrap();
    let line = serde_json::json!({"name": "capped", "vers": "1.0.0", "deps": [], "cksum": digest, "features": {}, "yanked": false});
    fs::write(index.join("ca/pp/capped"), format!("{line}\n")).unwrap();
    let project = "[package]\nname = \"p\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[dependencies]\n\
                   capped = { version = \"1\", registry = \"local\" }\n\n[workspace]\n";
    let said = stage.shell(&format!(
        "mkdir -p src .cargo; : >src/lib.rs; cat >Cargo.toml <<'END'\n{project}END\n\
         printf '[registries.local]\\nindex = \"sparse+{url}/index/\"\\n' >.cargo/config.toml\n\
         PATH={programs}:$PATH cargo fetch -q; ls $HOME/.cargo/registry/cache/*",
        url = stage.url(),
        programs = toolchain().join("bin").display()
    ));
    assert_eq!(said, "capped-1.0.0.crate");
    assert!(stage.seen().iter().any(|seen| seen["path"] == "/index/dl/capped-1.0.0.crate"));
}

#[test]
fn claude_code_in_a_bottle_streams_from_its_api_and_never_had_the_key() {
    let stage = Stage::start();
    let claude = stage.node("claude");
    let said = stage.shell(&format!(
        "{claude} --print 'say hello'; env; cat /proc/self/environ; grep -rs real-key /etc /home /run /tmp/work . || echo nowhere"
    ));
    assert!(said.contains("hello from the stand-in") && said.ends_with("nowhere"), "{said}");
    let seen = stage.seen();
    let calls = seen.iter().filter(|seen| seen["path"].as_str().unwrap().starts_with("/v1/messages"));
    let calls: Vec<_> = calls.collect();
    assert!(!calls.is_empty());
    for call in calls {
        assert_eq!(call["headers"]["x-api-key"], SECRETS[1]);
        assert!(!call["headers"].to_string().contains("placeholder"), "{call}");
    }
}

#[test]
fn codex_in_a_bottle_speaks_to_its_api_with_the_bottles_tools_and_never_had_the_key() {
    let stage = Stage::start();
    let codex = stage.clients.join("mcp/node_modules/.bin/codex");
    assert!(codex.exists(), "no {}: run `scripts/need.sh mcpclients`", codex.display());
    stage.write("bottle.yaml", &format!("{}agent: {{preset: codex}}\n", stage.manifest()));
    let provider = format!(
        "model_providers.stand-in={{name=\"stand-in\",base_url=\"{}/v1\",wire_api=\"responses\",env_key=\"OPENAI_API_KEY\"}}",
        stage.url()
    );
    let said = stage.shell(&format!(
        "{node} {codex} exec --skip-git-repo-check --dangerously-bypass-approvals-and-sandbox -c 'model=\"stand-in\"' \
         -c 'model_provider=\"stand-in\"' -c '{provider}' 'say hello' 2>told || {{ cat told; exit 1; }}\n\
         env; cat /proc/self/environ; grep -rls real-token-for /etc ~ /run . || echo nowhere",
        node = stage.node("node"),
        codex = codex.display()
    ));
    // The tools are those of the registration that the preset brings.
    assert!(
        said.contains("hello from the stand-in, with mcp__bottlecap") && said.ends_with("nowhere"),
        "{said}"
    );
    let seen = stage.seen();
    let calls: Vec<_> =
        seen.iter().filter(|seen| seen["path"].as_str().unwrap().starts_with("/v1/responses")).collect();
    assert!(!calls.is_empty());
    for call in calls {
        assert_eq!(call["headers"]["authorization"], format!("Bearer {}", SECRETS[0]));
        assert!(!call["headers"].to_string().contains("placeholder"), "{call}");
    }
}

#[test]
fn a_program_without_proxy_variables_is_served_in_a_bottle_that_is_transparent_and_in_no_other() {
    let stage = Stage::start();
    let url = format!("{}/v1/echo", stage.url());
    let direct = ["curl", "-sS", "--noproxy", "*", &url];
    let port = stage.port.to_string();
    assert_eq!(stage.bottle(&["--transparent"], &direct).ok().unwrap(), "nothing");
    assert_eq!(stage.seen().len(), 1);
    let (python, program) = (stage.python(), script("direct.py"));
    let said = stage.bottle(&["--transparent"], &[&python, &program, HOST, &port]).ok().unwrap();
    let expected = "allowed 200\nipv4 200\nipv6 200\npath 403 path-not-allowed\nlying name 403 host-not-allowed\n\
                    lying host 403 authority-mismatch\nunknown name gaierror\naddress OSError\nother port ConnectionRefusedError";
    assert_eq!(said, expected);
    assert_eq!(stage.seen().len(), 4);
    let without = stage.bottle(&[], &direct);
    assert!(without.code != 0 && without.stderr.contains("Could not resolve host"), "{without:?}");
}
