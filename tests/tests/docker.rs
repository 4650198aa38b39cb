//! The bundle as a container between two networks, with a real Docker engine.
//!
//! The set-up is that of examples/compose, in plain `docker` commands.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{Binaries, Container, Docker, Lines, Network, Process, Run, leaks, rounds};

const TOKEN: &str = "the-real-token";
const API: &str = "api.example.test";
/// The state of a listening socket in /proc/net/tcp.
const LISTEN: &str = "0A";
/// 127.0.0.11, where the engine puts its resolver into each container, as /proc/net/tcp writes it.
const DOCKER_RESOLVER: &str = "0B00007F:";

/// A bottle in Docker: the sealed network, the open one, and three containers.
struct World<'d> {
    // Fields are dropped in this order: containers before their networks.
    agent: Container<'d>,
    bundle: Container<'d>,
    api: Container<'d>,
    logs: Lines,
    _follower: Process,
    sealed: Network<'d>,
    outside: Network<'d>,
    files: TempDir,
    bundle_address: String,
    /// Of both networks, the sealed one first.
    gateways: [String; 2],
}

/// A network of sixteen addresses that nothing else on this machine uses: the engine refuses an overlap, so try the next.
/// With it come the address that its bridge has on the host, and the first one for a container.
fn network<'d>(docker: &'d Docker, options: &[&str]) -> (Network<'d>, String, String) {
    let first = std::process::id() % 4096;
    (first..first + 64)
        .find_map(|number| {
            let address = |last: u32| format!("10.{}.{}.{}", 200 + number % 4096 / 256, number % 256, last);
            let (range, gateway) =
                (format!("--subnet={}/28", address(0)), format!("--gateway={}", address(1)));
            let options = options.iter().copied().chain([range.as_str(), gateway.as_str()]);
            docker.network(options).ok().map(|network| (network, address(1), address(2)))
        })
        .unwrap()
}

fn routes(prefix: &str) -> String {
    format!(
        "log: 2\nroutes:\n  - host: {API}\n    allow_private: [10.0.0.0/8]\n    matches:\n      \
         - paths: [{{type: prefix, value: {prefix}}}]\n        methods: [GET]\n    auth_scheme: bearer\n    token_env: EGRESS_TOKEN_0\n"
    )
}

impl<'d> World<'d> {
    fn start(docker: &'d Docker) -> Self {
        let image = docker.bundle_image().unwrap();
        let files = tempfile::Builder::new().prefix("bc-docker-").tempdir().unwrap();
        let at = |name: &str| files.path().join(name);
        Run::new("chmod").args(["755"]).args([files.path()]).ok().unwrap();
        std::fs::create_dir(at("routes")).unwrap();
        std::fs::create_dir(at("git-gate")).unwrap();
        std::fs::write(at("routes/routes.yaml"), routes("/v1/")).unwrap();
        std::fs::write(at("git-gate/repos.yaml"), "repos: []\n").unwrap();

        let sealed_options =
            ["--internal", "--driver=bridge", "--opt=com.docker.network.bridge.inhibit_ipv4=true"];
        let (sealed, sealed_gateway, bundle_address) = network(docker, &sealed_options);
        let (outside, outside_gateway, _) = network(docker, &["--driver=bridge"]);

        // The outside world: one API on the open network.
        let echo =
            ["--entrypoint=/echo-api", &image, "--listen=0.0.0.0:443", "--name", API, "--ca-out=/ca.pem"];
        let on_outside = ["--user=0", "--network", outside.name(), "--network-alias", API];
        let api = docker.container(on_outside.into_iter().chain(echo)).unwrap();
        api.put(&docker.echo_api().unwrap(), "/echo-api").unwrap();
        api.start().unwrap();
        api.follow().unwrap().stdout.wait(|line| line.starts_with("listening")).unwrap();
        docker
            .run(["cp", &format!("{}:/ca.pem", api.name()), &at("routes/upstream-ca.pem").to_string_lossy()])
            .ok()
            .unwrap();

        // The bundle, on both networks.
        let mount = |from: &str, to: &str| format!("--volume={}:{to}:ro", at(from).display());
        let (routes, gate) = (mount("routes", "/etc/egress"), mount("git-gate", "/etc/git-gate"));
        let address = format!("BOTTLECAP_BOTTLE_ADDR={bundle_address}");
        let token = format!("EGRESS_TOKEN_0={TOKEN}");
        // Whoever answers for all names outside, when a story has it listen.
        let resolver = format!("--dns={}", api.address(&outside).unwrap());
        let mut arguments =
            vec!["--network", sealed.name(), "--ip", &bundle_address, &resolver, &routes, &gate];
        arguments.extend([
            "--env",
            &address,
            "--env",
            &token,
            "--env=EGRESS_UPSTREAM_CA=/etc/egress/upstream-ca.pem",
        ]);
        arguments.extend(["--tmpfs=/run:mode=0755,uid=0,gid=0,size=16m", "--read-only", "--cap-drop=ALL"]);
        arguments.extend([
            "--cap-add=SETUID",
            "--cap-add=SETGID",
            "--cap-add=KILL",
            "--security-opt=no-new-privileges:true",
        ]);
        arguments.extend(["--sysctl=net.ipv6.conf.all.disable_ipv6=1", &image]);
        let bundle = docker.container(arguments).unwrap();
        bundle.join(&outside, ["--alias=bundle"]).unwrap();
        bundle.start().unwrap();
        let follower = bundle.follow().unwrap();
        let logs = follower.stderr.clone();

        // The agent, on the sealed network alone.
        let hosts =
            ["egress", "git-gate", "supervise"].map(|name| format!("--add-host={name}:{bundle_address}"));
        let mut arguments =
            vec!["--network", sealed.name(), "--dns", &bundle_address, "--init", "--cap-drop=ALL"];
        arguments.extend(hosts.iter().map(String::as_str));
        arguments
            .extend(["--security-opt=no-new-privileges:true", "--sysctl=net.ipv6.conf.all.disable_ipv6=1"]);
        arguments.extend(["--entrypoint=sleep", &image, "infinity"]);
        let agent = docker.container(arguments).unwrap();
        agent.start().unwrap();

        let gateways = [sealed_gateway, outside_gateway];
        let world = Self {
            agent,
            bundle,
            api,
            logs,
            _follower: follower,
            sealed,
            outside,
            files,
            bundle_address,
            gateways,
        };
        for name in ["egress", "git-gate", "supervise"] {
            world.logs.wait(|line| line.contains(&format!("{name} is ready"))).unwrap();
        }
        // The certificate that the agent is to trust, from egress itself.
        let fetch = "exec 3<>/dev/tcp/egress/9099; printf 'GET http://_egress.local/ca.pem HTTP/1.1\\r\\nHost: _egress.local\\r\\nConnection: close\\r\\n\\r\\n' >&3; \
                     sed -n '/BEGIN/,/END/p' <&3 >/tmp/ca.pem; grep -c BEGIN /tmp/ca.pem";
        assert_eq!(world.agent.shell(fetch).unwrap().ok().unwrap(), "1");
        world
    }

    /// A request by the agent through the proxy: everything that came back.
    fn request(&self, path: &str) -> String {
        let script = format!(
            "printf 'GET {path} HTTP/1.1\\r\\nHost: {API}\\r\\nAuthorization: Bearer my-own\\r\\nConnection: close\\r\\n\\r\\n' \
             | timeout 20 openssl s_client -quiet -ign_eof -verify_return_error -CAfile /tmp/ca.pem -verify_hostname {API} \
               -servername {API} -proxy egress:9099 -connect {API}:443 2>/dev/null"
        );
        self.agent.shell(&script).unwrap().stdout
    }

    /// Whether the container can open a TCP connection.
    fn reaches(container: &Container<'_>, host: &str, port: u16) -> bool {
        let finished =
            container.shell(&format!("timeout 5 bash -c 'exec 3<>/dev/tcp/{host}/{port}'")).unwrap();
        finished.code == 0
    }

    fn apply(&self, text: &str) {
        let path = self.files.path().join("routes/routes.yaml");
        std::fs::write(path.with_extension("new"), text).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    }
}

fn docker() -> Option<Docker> {
    Docker::connect().unwrap()
}

#[test]
fn the_agent_reaches_what_routes_allow_and_the_credential_is_put_in_outside() {
    let Some(docker) = docker() else { return };
    let world = World::start(&docker);

    let allowed = world.request("/v1/users");
    let refused = world.request("/admin");

    assert!(allowed.starts_with("HTTP/1.1 200"), "{allowed}\n{}", world.logs.text());
    assert!(allowed.contains(&format!("Bearer {TOKEN}")) && !allowed.contains("my-own"), "{allowed}");
    assert!(
        refused.starts_with("HTTP/1.1 403") && refused.contains("x-bottlecap-denied: path-not-allowed"),
        "{refused}"
    );
    assert!(!world.logs.text().contains(TOKEN), "the credential is in the log:\n{}", world.logs.text());
}

#[test]
fn the_agent_reaches_the_bundle_and_nothing_else() {
    let Some(docker) = docker() else { return };
    let world = World::start(&docker);
    // A service of the host on every address it has.
    let host = std::net::TcpListener::bind("[::]:0").unwrap();
    let port = host.local_addr().unwrap().port();
    let api = world.api.address(&world.outside).unwrap();
    let reaches = |host: &str, port: u16| World::reaches(&world.agent, host, port);

    assert_eq!(
        [9099, 9418, 9420, 9100].map(|port| reaches(&world.bundle_address, port)),
        [true; 4],
        "the bundle itself"
    );
    assert!(!reaches(&api, 443), "the API directly");
    for address in world.gateways.iter().map(String::as_str).chain(["172.17.0.1"]) {
        assert!(!reaches(address, port), "a service of the host on {address}");
    }
    // The bridge has a link-local address; the agent has no IPv6 to reach it with.
    let bridge = format!("br-{}", &world.sealed.inspect("{{.Id}}").unwrap()[..12]);
    let link_local =
        Run::new("ip").args(["-6", "-o", "addr", "show", "dev", &bridge, "scope", "link"]).ok().unwrap();
    assert_eq!(world.agent.shell("cat /proc/net/if_inet6").unwrap().stdout, "");
    if let Some(address) = link_local.split_whitespace().find(|word| word.starts_with("fe80")) {
        let address = address.split('/').next().unwrap();
        assert!(!reaches(&format!("{address}%eth0"), port), "a service of the host on {address}");
    }
    // What is not our proxy is not on the bundle's address either, and its other address is out of reach.
    let other = world.bundle.address(&world.outside).unwrap();
    assert!(!reaches(&other, 9099), "the bundle's outside address");

    // Names: ours, and no other.
    let resolves =
        |name: &str| world.agent.shell(&format!("timeout 20 getent ahosts {name}")).unwrap().code == 0;
    assert!(resolves("egress"));
    assert!(!resolves(API), "a name of the outside network");
    assert!(!resolves("data.leaks.example.com"), "a public name");
    assert!(!World::reaches(&world.agent, "1.1.1.1", 53), "a public resolver");
}

/// Answers every question with nothing, by UDP and TCP, and says which name it was asked for.
const NAME_SERVER: &str = r#"
use Socket; use IO::Select; $| = 1;
my $any = pack_sockaddr_in(53, INADDR_ANY);
socket(my $udp, AF_INET, SOCK_DGRAM, 0); bind($udp, $any) or die "udp: $!";
socket(my $tcp, AF_INET, SOCK_STREAM, 0); setsockopt($tcp, SOL_SOCKET, SO_REUSEADDR, 1); bind($tcp, $any) && listen($tcp, 16) or die "tcp: $!";
my $select = IO::Select->new($udp, $tcp);
sub answer {
    my ($query) = @_; my ($at, @labels) = 12;
    while (my $length = ord substr $query, $at, 1) { push @labels, substr $query, $at + 1, $length; $at += 1 + $length }
    print join(".", @labels), "\n";
    return substr($query, 0, 2) . "\x81\x80\0\1\0\0\0\0\0\0" . substr($query, 12, $at - 7);
}
print "ready\n";
while (1) {
    for my $socket ($select->can_read) {
        if ($socket == $udp) {
            my $from = recv($udp, my $query, 4096, 0); send($udp, answer($query), 0, $from) if length $query > 16;
        } elsif ($socket == $tcp) {
            accept(my $new, $tcp); $select->add($new);
        } else {
            sysread($socket, my $query, 4096);
            if (length $query > 18) { my $reply = answer(substr $query, 2); syswrite($socket, pack("n", length $reply) . $reply) }
            $select->remove($socket); close $socket;
        }
    }
}
"#;

#[test]
fn no_name_but_those_of_the_routes_gets_to_who_answers_for_it() {
    let Some(docker) = docker() else { return };
    let world = World::start(&docker);
    let server = ["exec", world.api.name(), "perl", "-e", NAME_SERVER];
    let server = Process::start(docker.client().args(server)).unwrap();
    server.stdout.wait(|line| line == "ready").unwrap();
    let asked = || -> BTreeSet<String> {
        server.stdout.text().lines().filter(|line| *line != "ready").map(str::to_owned).collect()
    };
    let api = world.api.address(&world.outside).unwrap();
    world.apply(&format!(
        "{}  - {{host: allowed.example, scheme: http, allow_private: [10.0.0.0/8], path_allowlist: [/v1/]}}\n",
        routes("/v1/")
    ));
    let mark = world.logs.mark();
    world.bundle.kill("HUP").unwrap();
    world.logs.wait_after(mark, |line| line.contains("generation 2")).unwrap();

    let [sealed, outside] = &world.gateways;
    let servers = [&api, &world.bundle_address, sealed, outside, "198.51.100.53", "127.0.0.11"];
    let tried = world.agent.shell(&leaks::everything(&servers)).unwrap();
    assert_eq!(tried.stdout.lines().count(), leaks::ANSWERS, "{tried:?}");

    // What is allowed is looked up there, as the first of all: had another name come before, it would stand before it.
    world.agent.shell(&leaks::through("GET", "http://allowed.example/v1/", "allowed.example")).unwrap();
    server.stdout.wait(|line| line == "allowed.example").unwrap();
    assert_eq!(asked(), BTreeSet::from(["allowed.example".to_owned()]), "{tried:?}");
    // Where there is no wall, everything that was tried arrives.
    world.bundle.shell(&leaks::asking("open.example", &[&api])).unwrap().ok().unwrap();
    for name in leaks::ASKED {
        server.stdout.wait(|line| line == format!("{name}.open.example")).unwrap();
    }
}

#[test]
fn without_its_two_options_the_network_would_leak_to_the_host() {
    let Some(docker) = docker() else { return };
    let image = docker.bundle_image().unwrap();
    let (leaky, gateway, _) = network(&docker, &["--internal"]);
    let host = std::net::TcpListener::bind("[::]:0").unwrap();
    let port = host.local_addr().unwrap().port();
    let arguments =
        ["--network", leaky.name(), "--init", "--cap-drop=ALL", "--entrypoint=sleep", &image, "infinity"];
    let container = docker.container(arguments).unwrap();
    container.start().unwrap();

    // The probe that the story above relies on does see a way out where there is one.
    assert!(World::reaches(&container, &gateway, port));
}

#[test]
fn neither_the_outside_network_nor_the_host_reaches_the_proxy() {
    let Some(docker) = docker() else { return };
    let world = World::start(&docker);
    let outside = world.bundle.address(&world.outside).unwrap();

    for port in [9099, 9418, 9420, 9100] {
        assert!(!World::reaches(&world.api, &outside, port), "port {port} from the outside network");
    }
    // Some machines have a router that accepts connections to any address, so the host asks for what egress alone answers.
    for address in [&outside, &world.bundle_address] {
        let url = "http://_egress.local/ca.pem";
        let proxy = format!("http://{address}:9099");
        let asked =
            Run::bare("curl").args(["--silent", "--max-time", "3", "--proxy", &proxy, url]).finish().unwrap();
        assert!(!asked.stdout.contains("BEGIN CERTIFICATE"), "egress answered the host on {address}");
    }
    // The reason: every listening socket of the bundle is bound to its bottle-facing address.
    let sockets = world.bundle.shell("cat /proc/net/tcp /proc/net/tcp6 2>/dev/null").unwrap().ok().unwrap();
    let listening: BTreeSet<_> = sockets
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.get(3) == Some(&LISTEN))
        .filter(|fields| !fields[1].starts_with(DOCKER_RESOLVER))
        .map(|fields| fields[1].to_owned())
        .collect();
    let octets = world.bundle_address.parse::<Ipv4Addr>().unwrap().octets();
    let address = u32::from_ne_bytes(octets);
    let wanted = [9099, 9418, 9420, 9100].map(|port| format!("{address:08X}:{port:04X}"));
    assert_eq!(listening, BTreeSet::from(wanted));
}

#[test]
fn a_hangup_reloads_what_was_renamed_into_the_mounted_directory() {
    let Some(docker) = docker() else { return };
    let world = World::start(&docker);
    let code = |path: &str| world.request(path).split(' ').nth(1).unwrap_or("none").to_owned();
    assert_eq!([code("/v1/x"), code("/v2/x")], ["200", "403"]);

    for round in 0..rounds(1, 20) {
        let (new, old) = if round % 2 == 0 { ("/v2/", "/v1/") } else { ("/v1/", "/v2/") };
        let mark = world.logs.mark();
        world.apply(&routes(new));
        world.bundle.kill("HUP").unwrap();
        let generation = format!("generation {}", round + 2);
        world.logs.wait_after(mark, |line| line.contains(&generation)).unwrap();
        assert_eq!([code(&format!("{new}x")), code(&format!("{old}x"))], ["200", "403"]);

        let mark = world.logs.mark();
        world.apply("routes:\n  - host: x\n    metods: [GET]\n");
        world.bundle.kill("HUP").unwrap();
        world.logs.wait_after(mark, |line| line.contains("routes.yaml:3:5")).unwrap();
        assert_eq!([code(&format!("{new}x")), code(&format!("{old}x"))], ["200", "403"]);
    }
}

#[test]
fn the_container_is_healthy_and_stops_with_zero() {
    let Some(docker) = docker() else { return };
    let world = World::start(&docker);

    let health = world.bundle.shell("supervisor health").unwrap();
    assert_eq!(health.code, 0, "{health:?}");
    let users = world.bundle.shell("for p in /proc/[0-9]*; do echo $(cat $p/comm) $(sed -n 's/^Uid:\\t\\([0-9]*\\).*/\\1/p' $p/status); done").unwrap();
    for line in ["supervisor 0", "egress 64101", "git-gate 64102", "supervise 64103"] {
        assert!(users.stdout.lines().any(|seen| seen == line), "{line} is not in\n{}", users.stdout);
    }
    // Its start kept the token out of PID 1's environment.
    assert!(!world.bundle.shell("cat /proc/1/environ").unwrap().stdout.contains(TOKEN));

    assert_eq!(world.bundle.stop().unwrap(), 0, "{}", world.logs.text());
}

#[test]
fn nothing_is_left_of_a_story() {
    let Some(docker) = docker() else { return };
    let (network, ..) = network(&docker, &["--internal"]);
    let image = docker.bundle_image().unwrap();
    let container = docker.container(["--network", network.name(), "--entrypoint=true", &image]).unwrap();
    let names = [container.name().to_owned(), network.name().to_owned()];
    drop(container);
    drop(network);
    for name in names {
        assert_ne!(docker.run(["inspect", &name]).finish().unwrap().code, 0, "{name} still exists");
    }
}

/// The compose example under a project name of its own, taken down when dropped.
struct Compose<'d> {
    docker: &'d Docker,
    plugin: bool,
    directory: TempDir,
    image: String,
}

impl Compose<'_> {
    fn run(&self, args: &[&str]) -> Run {
        let project = format!("bottlecap-test-{}", std::process::id());
        let run = if self.plugin {
            self.docker.run(["compose"])
        } else {
            self.docker.command("docker-compose").into()
        };
        let run = run.args(["-p", &project]).args(args).within(self.directory.path());
        run.env("SIDECARS_IMAGE", &self.image).env("AGENT_IMAGE", &self.image).env("EGRESS_TOKEN_0", TOKEN)
    }
}

impl Drop for Compose<'_> {
    fn drop(&mut self) {
        drop(self.run(&["down", "--volumes"]).finish());
    }
}

#[test]
fn the_compose_example_runs_and_reloads_as_its_readme_says() {
    let Some(docker) = docker() else { return };
    let plugin = docker.run(["compose", "version"]).finish().unwrap().code == 0;
    let directory = tempfile::Builder::new().prefix("bc-compose-").tempdir().unwrap();
    let example = tests::workspace_root().join("examples/compose/.");
    Run::new("cp").args(["-r"]).args([example.as_path(), directory.path()]).ok().unwrap();
    Run::new("chmod").args(["755"]).args([directory.path()]).ok().unwrap();
    let compose = Compose { docker: &docker, plugin, directory, image: docker.bundle_image().unwrap() };

    compose.run(&["up", "--detach"]).ok().unwrap();
    let id = compose.run(&["ps", "-q", "sidecars"]).ok().unwrap();
    let follower = Process::start(docker.client().args(["logs", "--follow", &id])).unwrap();
    follower.stderr.wait(|line| line.contains("all daemons are ready")).unwrap();
    compose.run(&["exec", "-T", "sidecars", "supervisor", "health"]).ok().unwrap();

    let table = compose.directory.path().join("routes/routes.yaml");
    let changed = std::fs::read_to_string(&table).unwrap().replace("rust-lang", "acme");
    std::fs::write(table.with_extension("new"), changed).unwrap();
    std::fs::rename(table.with_extension("new"), &table).unwrap();
    let mark = follower.stderr.mark();
    docker.run(["kill", "--signal", "HUP", &id]).ok().unwrap();
    follower.stderr.wait_after(mark, |line| line.contains("generation 2")).unwrap();

    let exchange = |name: &str, port: u16, request: String| {
        let script = format!("exec 3<>/dev/tcp/{name}/{port}; cat >&3; cat <&3");
        compose.run(&["exec", "-T", "agent", "bash", "-c", &script]).input(request).ok().unwrap()
    };
    let allowed =
        || exchange("egress", 9099, http("GET http://_egress.local/allowlist", "_egress.local", ""));
    assert!(allowed().contains("/repos/acme/"), "{}", allowed());

    // The agent asks; the host reads the request through the container's own files, and applies what it decides.
    let proposal = json!({"host": "docs.example.com", "methods": ["GET"], "reason": "the manual"});
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "propose_route", "arguments": proposal}});
    let proposed = exchange("supervise", 9100, http("POST /mcp", "supervise:9100", &call.to_string()));
    assert!(proposed.contains("pending"), "{proposed}");
    let pid = docker.run(["inspect", "--format", "{{.State.Pid}}", &id]).ok().unwrap();
    let run_dir = format!("/proc/{pid}/root/run/sidecars");
    let hup = format!("{} kill --signal HUP {id}", docker.program());
    let bottlecap = Binaries::find().unwrap().program("bottlecap");
    let requests = |args: &[&str]| {
        let run = Run::from(docker.command(&bottlecap.to_string_lossy())).args(["requests"]).args(args);
        run.args(["--run-dir", &run_dir, "--routes"]).args([table.parent().unwrap()])
    };
    let listed: Value = serde_json::from_str(&requests(&["list", "--json"]).ok().unwrap()).unwrap();
    let request = listed["requests"][0]["id"].as_str().unwrap();
    let shown: Value = serde_json::from_str(&requests(&["show", request, "--json"]).ok().unwrap()).unwrap();
    let token = shown["review"]["token"].as_str().unwrap();
    requests(&["approve", request, "--token", token, "--hup", &hup]).ok().unwrap();
    assert!(allowed().contains("docs.example.com"), "{}", allowed());
}

/// A request as text, for an agent without an HTTP client.
fn http(target: &str, host: &str, body: &str) -> String {
    format!(
        "{target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: 2025-06-18\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}
