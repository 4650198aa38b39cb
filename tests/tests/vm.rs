//! The bundle as the whole of a virtual machine: a real kernel, real restarts, and only forwarded ports to it.
#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tests::{GitHost, HttpsEcho, Run, Vm, VmBuilder};

const API: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const FORGE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 101);

/// A machine without hardware support starts in 3 s, and in many times that on a busy host.
const BOOT_PATIENCE: Duration = Duration::from_secs(240);

/// The machine, what it reaches, and where it is reached.
struct World {
    vm: Vm,
    api: HttpsEcho,
    forge: GitHost,
    proxy: SocketAddr,
    gate: SocketAddr,
    scratch: tempfile::TempDir,
}

impl World {
    fn start() -> Self {
        let (api, forge) = (HttpsEcho::start(&["api.example.test"]).unwrap(), GitHost::start().unwrap());
        let mut builder = VmBuilder::new().unwrap();
        let (proxy, gate) = (builder.forward(9099).unwrap(), builder.forward(9418).unwrap());
        let seed = forge.url();
        let (user, rest) = seed.strip_prefix("ssh://").unwrap().split_once('@').unwrap();
        let (place, path) = rest.split_once('/').unwrap();
        builder.outside(API, 443, api.address()).unwrap();
        builder.outside(FORGE, 22, place.parse().unwrap()).unwrap();
        builder.image.file(
            "/etc/egress/routes.yaml",
            0o644,
            0,
            format!(
                "routes:\n  - host: api.example.test\n    allow_private: [\"{API}/32:443\"]\n    matches:\n      \
                 - paths: [{{type: prefix, value: /v1/}}]\n    auth_scheme: bearer\n    token_file: api\n"
            ),
        );
        builder.image.file(
            "/etc/git-gate/repos.yaml",
            0o644,
            0,
            format!(
                "repos:\n  - name: acme\n    upstream: ssh://{user}@forge.example.test/{path}\n    identity: /git-gate/creds/acme.key\n    \
                 host_key: \"{}\"\n    push: {{allow: [\"refs/heads/*\"]}}\n",
                forge.host_key().unwrap()
            ),
        );
        let hosts = format!("127.0.0.1 localhost\n{API} api.example.test\n{FORGE} forge.example.test\n");
        builder.image.file("/etc/hosts", 0o644, 0, hosts);
        builder.image.file("/etc/ssl/upstream.pem", 0o644, 0, std::fs::read(api.ca()).unwrap());
        builder.secret("api", "the-real-token").git_key("acme", &forge.client_key().unwrap());
        builder.word("EGRESS_UPSTREAM_CA=/etc/ssl/upstream.pem");
        let vm = builder.start().unwrap();
        Self { vm, api, forge, proxy, gate, scratch: tempfile::tempdir().unwrap() }
    }

    /// Waits for the machine to serve after its start of this number.
    fn serves(&self, boot: u32) {
        let console = &self.vm.process.stdout;
        let told = AtomicU32::new(0);
        let wanted = |line: &str| {
            let counts = line.contains("all daemons are ready");
            counts && told.fetch_add(1, Ordering::SeqCst) + 1 == boot
        };
        console.wait_within(BOOT_PATIENCE, 0, wanted).unwrap();
        assert!(console.text().contains(&format!("boot {boot} on /dev/vda")), "{}", console.text());
    }

    fn curl(&self, args: &[&str]) -> String {
        let run = Run::bare("curl").args(["--silent", "--show-error", "--max-time", "50", "--proxy"]);
        run.args([format!("http://{}", self.proxy)]).args(args).ok().unwrap()
    }

    /// What an agent does with the proxy.
    fn asks_the_api(&self, path: &str) -> String {
        let ca = self.scratch.path().join("ca.pem");
        std::fs::write(&ca, self.curl(&["http://_egress.local/ca.pem"])).unwrap();
        let url = format!("https://api.example.test{path}");
        self.curl(&["--cacert", ca.to_str().unwrap(), "--write-out", "%{http_code}", &url])
    }

    fn git(&self, directory: &Path, args: &[&str]) -> String {
        let run = Run::bare("git")
            .within(directory)
            .env("HOME", self.scratch.path())
            .env("GIT_CONFIG_NOSYSTEM", "1");
        let identity = ["-c", "user.name=Agent", "-c", "user.email=agent@example.test"];
        run.args(identity).args(args).ok().unwrap()
    }
}

#[test]
fn a_machine_serves_starts_again_with_its_state_and_is_switched_off() {
    let mut world = World::start();
    world.serves(1);
    // The agent's side of both doors.
    let answer = world.asks_the_api("/v1/x");
    assert!(answer.ends_with("200"), "{answer}\n{}", world.vm.process.stdout.text());
    let seen = world.api.last().unwrap();
    assert_eq!(seen["headers"]["authorization"], "Bearer the-real-token");
    assert!(world.asks_the_api("/v2/x").ends_with("403"));
    let ca = std::fs::read_to_string(world.scratch.path().join("ca.pem")).unwrap();

    let url = format!("git://{}/acme.git", world.gate);
    world.git(world.scratch.path(), &["clone", "--quiet", &url, "work"]);
    let work = world.scratch.path().join("work");
    std::fs::write(work.join("NOTE"), "from the machine\n").unwrap();
    world.git(&work, &["add", "NOTE"]);
    world.git(&work, &["commit", "--quiet", "-m", "Note"]);
    world.git(&work, &["push", "--quiet", "origin", "HEAD:refs/heads/note"]);
    let pushed = world.git(&work, &["rev-parse", "HEAD"]);
    assert_eq!(world.forge.resolve("refs/heads/note").unwrap(), Some(pushed));

    // A restart in order: the keys that mean it reach PID 1 as SIGINT.
    world.vm.monitor("sendkey ctrl-alt-delete").unwrap();
    world.serves(2);
    assert!(world.vm.process.stdout.text().contains("the machine starts again"));
    assert!(world.asks_the_api("/v1/y").ends_with("200"));
    assert_eq!(std::fs::read_to_string(world.scratch.path().join("ca.pem")).unwrap(), ca, "the CA was kept");

    // A restart that nobody asked for: the kernel panics, and starts again instead of hanging.
    world.vm.monitor("nmi").unwrap();
    world.serves(3);
    assert!(world.vm.process.stdout.text().contains("Kernel panic"));
    world.git(&work, &["fetch", "--quiet", "origin"]);

    // The button is SIGTERM: everything stops in order, and qemu ends with the machine.
    world.vm.monitor("system_powerdown").unwrap();
    assert_eq!(world.vm.process.wait().unwrap(), 0);
    let console = world.vm.process.stdout.text();
    assert!(console.contains("the machine is switched off"), "{console}");
    let check = Run::bare("/usr/sbin/e2fsck").args(["-f", "-n"]).args([world.vm.disk()]).finish().unwrap();
    assert_eq!(check.code, 0, "{check:?}");
}
