//! An upstream of git behind https, opened with a secret of the manifest.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tests::{Binaries, Finished, Run};

const TOKEN: &str = "tok-7q-of-the-operator";
const SERVER: &str = include_str!("../../gitgate/tests/https_server.py");

struct Stage {
    root: TempDir,
    server: Child,
    port: u16,
}

impl Stage {
    fn new() -> Stage {
        let root = tempfile::Builder::new().prefix("bc-token-").tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let at = |name: &str| root.path().join(name);
        let done = |program: &str, words: &[&str]| {
            let ran = Run::new(program).args(words).within(root.path()).finish().unwrap();
            assert_eq!(ran.code, 0, "{program}: {}", ran.stderr);
        };
        let author = ["-c", "user.name=A", "-c", "user.email=a@example.com"];
        done("git", &["init", "-q", "-b", "main", "seed"]);
        fs::write(at("seed/README"), "hello\n").unwrap();
        done("git", &["-C", "seed", "add", "README"]);
        done("git", &[&author[..], &["-C", "seed", "commit", "-q", "-m", "one"]].concat());
        fs::create_dir(at("root")).unwrap();
        done("git", &["clone", "-q", "--bare", "seed", "root/web.git"]);
        let name = ["-subj", "/CN=git.example.test", "-addext", "subjectAltName=DNS:git.example.test"];
        let made =
            ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
        done("openssl", &[&made[..], &name, &["-keyout", "key.pem", "-out", "ca.pem"]].concat());
        let both = ["key.pem", "ca.pem"].map(|name| fs::read_to_string(at(name)).unwrap()).concat();
        fs::write(at("server.pem"), both).unwrap();
        let mut server = Command::new("python3")
            .args(["-c", SERVER])
            .args([at("root"), at("server.pem")])
            .arg(TOKEN)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(server.stdout.take().unwrap()).lines().map_while(Result::ok);
        let port = said.next().unwrap().parse().unwrap();
        std::thread::spawn(move || said.for_each(drop));
        let stage = Stage { root, server, port };
        fs::create_dir(stage.path("work")).unwrap();
        stage.write("token", TOKEN);
        stage.write(
            "repos.yaml",
            &format!(
                "repos:\n  - name: web\n    upstream: https://git.example.test:{port}/web.git\n    token_file: GIT_TOKEN\n    \
                 extra_hosts: {{git.example.test: 127.0.0.1}}\n"
            ),
        );
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// A bottle with those secrets and a clone, to the end of it.
    fn bottle(&self, secrets: &str) -> Finished {
        self.write("bottle.yaml", &format!("repos: repos.yaml\nupstream_ca: ca.pem\n{secrets}"));
        let script = format!(
            "git clone -q https://git.example.test:{}/web.git clone && cat clone/README && grep -r {TOKEN} /proc/self/environ clone",
            self.port
        );
        let mut command = Command::new(Binaries::find().unwrap().program("bottlecap"));
        command.args(["run", "--bottle"]).arg(self.path("bottle.yaml")).args(["--", "sh", "-c", &script]);
        command.env("XDG_STATE_HOME", self.path("state")).env("XDG_RUNTIME_DIR", self.path("run"));
        Run::from(command).within(self.path("work")).finish().unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
fn a_secret_of_the_manifest_opens_an_https_upstream_of_git() {
    let stage = Stage::new();
    let ran = stage.bottle("secrets: {GIT_TOKEN: {file: token}}\n");
    // The last of the script looks for the token and does not find it.
    assert_eq!((ran.stdout.as_str(), ran.code), ("hello\n", 1), "{}", ran.stderr);

    let refused = stage.bottle("");
    assert_eq!(refused.code, 64);
    assert!(refused.stderr.contains("the repositories use the secret `GIT_TOKEN`"), "{}", refused.stderr);
}
