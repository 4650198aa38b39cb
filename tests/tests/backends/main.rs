//! What holds for a bottle whatever its walls are made of: one story of escapes, one of provisions and one of an agent at work, told
//! for each backend.
#![allow(clippy::unwrap_used)]

mod claude;
mod escapes;
mod stage;
mod traces;

use std::fs;
use std::net::{TcpListener, UdpSocket};

use serde_json::Value;
use stage::{HOST, Kind, OWNER, Stage, TOKEN, for_each};
use tests::{Docker, Process, Run};
use traces::Marks;

/// Says for each pair of host and port whether a connection can be opened, and for each name whether it is known.
const PROBE: &str = r#"
reach() { if timeout 4 bash -c "exec 3<>/dev/tcp/$1/$2" 2>/dev/null; then echo "reaches $1 $2"; fi; }
knows() { if timeout 8 getent ahosts "$1" >/dev/null 2>&1; then echo "knows $1"; fi; }
"#;

#[test]
fn a_bottle_reaches_its_bundle_and_nothing_else() {
    for_each(|stage| {
        // Services of this host on every address it has, and another container beside the bottle.
        let service = TcpListener::bind("[::]:0").unwrap();
        let port = service.local_addr().unwrap().port();
        let neighbour = ["--entrypoint=sleep", &stage.image, "infinity"];
        let neighbour = stage.docker.container(neighbour).unwrap();
        neighbour.start().unwrap();
        let beside = neighbour.inspect("{{.NetworkSettings.IPAddress}}").unwrap();
        let addresses = Run::new("hostname").args(["-I"]).ok().unwrap();
        let mut script = String::from(PROBE);
        for ours in ["9099", "9418", "9420", "9100"] {
            script.push_str(&format!("reach egress {ours}\n"));
        }
        script.push_str("knows egress; knows supervise\n");
        for address in addresses.split_whitespace().chain([HOST, &beside]) {
            script.push_str(&format!("reach {address} {port}\n"));
        }
        // The host's end of the bottle's own network, wherever that is, by both protocols.
        script.push_str(&format!(
            "for hop in $(awk 'NR>1 && $3!=\"00000000\" {{print $3}}' /proc/net/route); do \
             reach $((0x${{hop:6:2}})).$((0x${{hop:4:2}})).$((0x${{hop:2:2}})).$((0x${{hop:0:2}})) {port}; done\n\
             for link in $(ls /sys/class/net 2>/dev/null || cut -d: -f1 /proc/net/dev | tail -n +3); do reach fe80::1%$link {port}; done\n\
             reach {HOST} {api}\nreach 1.1.1.1 443\nreach 1.1.1.1 53\nreach 169.254.169.254 80\nreach fd00:ec2::254 80\nreach 8.8.8.8 53\n\
             knows api.example.com\nknows data.leaks.example.com\nknows metadata.google.internal\nknows host.docker.internal\n\
             cat /proc/net/if_inet6 2>/dev/null | grep -v ' lo$'\n\
             ls -d /var/run/docker.sock /run/docker.sock /run/containerd /sys/fs/cgroup/docker 2>/dev/null\ntrue\n",
            api = stage.api.port()
        ));
        let finished = stage.bottle(&script);
        let wanted = "reaches egress 9099\nreaches egress 9418\nreaches egress 9420\nreaches egress 9100\nknows egress\nknows supervise";
        assert_eq!(finished.stdout.trim_end(), wanted, "{}", finished.stderr);
        // The probe sees a way out where there is one.
        let open = Run::new("bash")
            .args(["-c", &format!("{PROBE}reach {HOST} {port}\nreach {HOST} {}", stage.api.port())]);
        assert_eq!(open.ok().unwrap().lines().count(), 2);
    });
}

/// Says which sockets can be made that go by other ways than TCP and UDP, and which calls are let through that reach beyond a process;
/// then sends a datagram to each of the addresses and ports that follow, and says which of them are known to lead nowhere.
const CALLS: &str = r#"
use Socket qw(:DEFAULT inet_pton pack_sockaddr_in6);
for (qw(17,3,0 17,2,0 40,1,0 44,3,0 2,3,1 2,3,255 10,3,58 38,5,0 15,3,2 16,3,16 31,3,1)) {
    my ($family, $kind, $protocol) = split /,/;
    print "opens $_\n" if socket(my $socket, $family, $kind, $protocol);
}
my ($space, $root, $none) = ("\0" x 256, "/usr\0", 0);
my %calls = (io_uring => [425, 1, $space], keyctl => [250, 0, -3, 0], bpf => [321, 0, $space, 128], perf => [298, $space, 0, -1, -1, 0],
    userfaultfd => [323, 0], unshare => [272, 0x10000000], remount => [165, $none, $root, $none, 0x1020, $none], trace => [101, 16, 1, 0, 0]);
for (sort keys %calls) {
    my ($number, @words) = @{$calls{$_}};
    print "calls $_\n" if syscall($number, @words) >= 0;
}
my $port = shift;
for (@ARGV) {
    my $six = /:/;
    socket(my $socket, $six ? AF_INET6 : AF_INET, SOCK_DGRAM, 0) or next;
    setsockopt($socket, SOL_SOCKET, SO_BROADCAST, 1);
    my $address = inet_pton($six ? AF_INET6 : AF_INET, $_) or next;
    for ($port, 53, 443, 853, 5353) {
        send($socket, "x", 0, $six ? pack_sockaddr_in6($_, $address) : pack_sockaddr_in($_, $address));
        last if $ENV{ONE_PORT};
    }
}
"#;

#[test]
fn no_other_protocol_and_no_call_leads_out_of_a_bottle() {
    for_each(|stage| {
        let sink = UdpSocket::bind("[::]:0").unwrap();
        sink.set_nonblocking(true).unwrap();
        let port = sink.local_addr().unwrap().port();
        let count = || std::iter::from_fn(|| sink.recv(&mut [0; 8]).ok()).count();
        fs::write(stage.path("work/calls.pl"), CALLS).unwrap();
        let addresses = Run::new("hostname").args(["-I"]).ok().unwrap();
        let script = format!(
            "perl calls.pl {port} {} {HOST} 127.0.0.1 ::1 127.0.0.11 192.0.2.1 198.51.100.53 224.0.0.251 255.255.255.255 2001:db8::1\n\
             ls -d /run/dbus /run/user /var/run/dbus /tmp/.X11-unix 2>/dev/null\ntrue\n",
            addresses.split_whitespace().collect::<Vec<_>>().join(" ")
        );
        let finished = stage.bottle(&script);
        assert_eq!((finished.stdout.trim_end(), count()), ("", 0), "{}", finished.stderr);
        // Where there is no wall, it goes on.
        let open = Run::new("perl").args([stage.path("work/calls.pl").as_os_str()]);
        let said = open.args([&port.to_string(), "127.0.0.1", "::1"]).env("ONE_PORT", "1").ok().unwrap();
        assert!(said.contains("opens 17,3,0") && said.contains("calls keyctl"), "{said}");
        assert_eq!(count(), 2);
    });
}

/// A datagram from one program to another over loopback, and what a C library may ask before it looks a name up: whether a datagram could
/// go to this machine, by either protocol. musl takes a refusal that is not one of these for a failure of the look-up.
const DATAGRAMS: &str = r#"
use Socket qw(:DEFAULT inet_pton pack_sockaddr_in6); use Errno;
for ([AF_INET, pack_sockaddr_in(65535, INADDR_LOOPBACK)], [AF_INET6, pack_sockaddr_in6(65535, inet_pton(AF_INET6, "::1"))]) {
    my ($family, $address) = @$_;
    my $good = socket(my $asked, $family, SOCK_DGRAM, 17);
    $good &&= connect($asked, $address);
    $good ||= $!{EADDRNOTAVAIL} || $!{EAFNOSUPPORT} || $!{EHOSTUNREACH} || $!{ENETDOWN} || $!{ENETUNREACH};
    print $good ? "asked\n" : "$!\n";
}
socket(my $one, AF_INET, SOCK_DGRAM, 0) or exit;
bind($one, pack_sockaddr_in(0, INADDR_LOOPBACK)) or die $!;
socket(my $other, AF_INET, SOCK_DGRAM, 0); connect($other, getsockname $one) or die $!;
send($other, "heard", 0); recv($one, my $word, 8, 0); print "$word\n";
"#;

#[test]
fn datagrams_pass_within_a_sandbox_and_are_refused_in_a_container_whose_link_leads_to_the_host() {
    for_each(|stage| {
        fs::write(stage.path("work/datagrams.pl"), DATAGRAMS).unwrap();
        let finished = stage.bottle("perl datagrams.pl");
        let wanted = match stage.kind {
            Kind::Sandbox => "asked\nasked\nheard",
            Kind::Docker => "Operation not permitted\nOperation not permitted",
        };
        assert_eq!(finished.stdout.trim_end(), wanted, "{}", finished.stderr);
    });
}

#[test]
fn what_the_walls_hide_is_not_there_and_what_they_keep_cannot_be_changed() {
    for_each(|stage| {
        fs::write(stage.path("beside"), "of the host").unwrap();
        let beside = stage.path("beside").display().to_string();
        let state = stage.path("state").display().to_string();
        let script = format!(
            "id -u; grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'\n\
             for path in /etc/shadow /root/.ssh {beside} {state} /dev/kvm /dev/mem; do \
               if [ -r \"$path\" ]; then echo \"sees $path\"; fi; done\n\
             for path in /x /etc/x /usr/x /etc/bottlecap/ca.pem /etc/passwd /proc/sys/kernel/hostname; do \
               if (echo x >>\"$path\") 2>/dev/null; then echo \"writes $path\"; fi; done\n\
             ls /proc/1/fd /proc/1/cwd 2>/dev/null && echo 'looks into its init'\n\
             if unshare --user true 2>/dev/null; then echo 'makes namespaces'; fi\n\
             echo made >made; touch ~/own /tmp/own /run/own && echo 'has places of its own'\n"
        );
        let finished = stage.bottle(&script);
        let lines: Vec<&str> = finished.stdout.lines().skip(1).collect();
        let walls = [
            "CapEff:0000000000000000",
            "CapBnd:0000000000000000",
            "NoNewPrivs:1",
            "Seccomp:2",
            "has places of its own",
        ];
        assert_eq!(lines, walls, "{}", finished.stderr);
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!(fs::metadata(stage.path("work/made")).unwrap().uid(), OWNER);
    });
}

#[test]
fn the_secret_is_where_it_is_used_and_nowhere_else() {
    for_each(|stage| {
        // Read by the story while the bottle runs: the agent says when it is there, and stays.
        let script = format!(
            "{PROBE}token=$(printf ghp%s _the); env | grep -c $token; grep -rls $token /proc/[0-9]*/environ /proc/[0-9]*/cmdline /etc /run /tmp ~ . 2>/dev/null\n\
             exec 3<>/dev/tcp/egress/9099\n\
             printf 'GET http://_egress.local/allowlist HTTP/1.1\\r\\nHost: _egress.local\\r\\nConnection: close\\r\\n\\r\\n' >&3; grep -c $token <&3\n\
             echo there; touch there; exec sleep 600"
        );
        let mut command = stage.started(&script);
        let mut bottle = Process::start(&mut command).unwrap();
        bottle.stdout.wait(|line| line == "there").unwrap();
        assert_eq!(
            bottle.stdout.text().lines().filter(|line| *line != "there").collect::<Vec<_>>(),
            ["0", "0"]
        );

        let found = Run::new("grep").args(["-rlsF", TOKEN]).args([stage.path("state"), stage.path("run")]);
        assert_eq!(found.finish().unwrap().stdout, "", "files of the host");
        for container in stage.objects().lines() {
            let told = stage.docker.run(["inspect", container]).finish().unwrap().stdout;
            assert!(!told.contains(TOKEN), "docker inspect shows the secret");
        }
        // Looked for without a program, whose own arguments would have it.
        let arguments = std::fs::read_dir("/proc").unwrap().flatten();
        let mut shown = arguments.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
        let shows = |line: Vec<u8>| line.windows(TOKEN.len()).any(|part| part == TOKEN.as_bytes());
        assert!(!shown.any(shows), "an argument shows the secret");
        bottle.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
        bottle.wait().unwrap();
    });
}

#[test]
fn a_bottle_is_provided_with_what_its_programs_need() {
    for_each(|stage| {
        let url = format!("https://{HOST}:{}", stage.api.port());
        let host = format!("{HOST}:{}", stage.api.port());
        // openssl follows the system's own place here, as what reads no variable does.
        let request = format!(
            "env -u SSL_CERT_FILE sh -c \"printf 'GET /v1/users HTTP/1.1\\r\\nHost: {host}\\r\\nAuthorization: Bearer mine\\r\\nConnection: close\\r\\n\\r\\n' \
             | timeout 30 openssl s_client -quiet -ign_eof -verify_return_error -CAfile /etc/ssl/certs/ca-certificates.crt -verify_ip {HOST} \
               -proxy egress:9099 -connect {host} 2>/dev/null\""
        );
        let script = format!(
            "{request}\necho; echo \"$NODE_EXTRA_CA_CERTS $SSL_CERT_FILE $GIT_SSL_CAINFO $CARGO_HTTP_CAINFO $DENO_CERT $REQUESTS_CA_BUNDLE\"\n\
             cat $NODE_EXTRA_CA_CERTS | grep -c BEGIN; cat ~/.claude.json | tr -d ' \\n'; echo\n\
             head -c 4 /etc/bottlecap/cacerts.jks | od -An -tx1; git config --system --list >/dev/null && echo git\n"
        );
        let finished = stage.bottle(&script);
        let said = &finished.stdout;
        assert!(said.starts_with("HTTP/1.1 200") && !said.contains(TOKEN), "{url}: {finished:?}");
        let seen = stage.api.last().unwrap();
        assert_eq!(seen["headers"]["authorization"], format!("Bearer {TOKEN}"));
        assert!(said.contains("/etc/bottlecap/ca.pem /etc/bottlecap/ca-bundle.pem"), "{said}");
        assert!(said.contains("\"alwaysLoad\":true") && said.contains("http://supervise:9100/mcp"), "{said}");
        assert!(said.contains("fe ed fe ed") || stage.kind == Kind::Sandbox, "{said}");
        // The report comes in its fixed order, and is kept.
        let reported: Vec<&str> =
            finished.stderr.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
        let order =
            ["authority", "trust", "trust-java", "agent", "git", "workdir", "mcp", "environment", "image"];
        let wanted: Vec<&str> = order.into_iter().filter(|step| reported.contains(step)).collect();
        assert_eq!(reported, wanted, "{}", finished.stderr);
        assert!(reported.len() >= 6, "{reported:?}");
        let info: Value =
            serde_json::from_str(&Run::from(stage.command(&["info", &stage.name, "--json"])).ok().unwrap())
                .unwrap();
        assert_eq!(info["provided"][0]["step"], "authority");
        assert!(info["provided"][0]["detail"].as_str().unwrap().starts_with("SHA-256 "), "{info}");
    });
}

#[test]
fn a_bottle_that_ends_leaves_nothing_however_it_ends() {
    use nix::sys::signal::Signal::{SIGHUP, SIGINT, SIGKILL, SIGTERM};
    for_each(|stage| {
        // Asked by another command, by Ctrl-C, by `kill`, by a terminal that closes, and not asked at all.
        for signal in [None, Some(SIGINT), Some(SIGTERM), Some(SIGHUP), Some(SIGKILL)] {
            let mut command = stage.started("echo there; exec sleep 600");
            let mut bottle = Process::start(&mut command).unwrap();
            bottle.stdout.wait(|line| line == "there").unwrap();
            let marks = Marks::of(stage);
            let there = marks.traces();
            let is_there = |kind: &str| there.iter().any(|trace| trace.starts_with(kind));
            // The search finds what there is.
            let seen = (stage.objects().is_empty(), ["process ", "socket ", "ip "].map(is_there));
            let wanted = match stage.kind {
                Kind::Sandbox => (true, [true, true, false]),
                Kind::Docker => (false, [true, false, true]),
            };
            assert_eq!(seen, wanted, "{there:#?}");
            match signal {
                None => drop(Run::from(stage.command(&["stop", &stage.name])).ok().unwrap()),
                Some(signal) => bottle.signal(signal).unwrap(),
            }
            bottle.wait().unwrap();
            // Whoever holds the bottle now is the guard, which goes when it has removed everything.
            let lock = stage.path("state/bottlecap/bottles").join(&stage.name).join("lock");
            Run::new("flock").args([lock.as_os_str(), "true".as_ref()]).ok().unwrap();
            assert_eq!(stage.objects(), "", "after {signal:?}");
            marks.are_gone(&format!("{signal:?}"));
        }
        Run::from(stage.command(&["cleanup", "--history", "--yes"])).ok().unwrap();
        assert!(fs::read_dir(stage.path("state/bottlecap/bottles")).unwrap().next().is_none());
        let sockets = fs::read_dir(stage.path("run/bottlecap")).map_or(0, Iterator::count);
        assert_eq!(sockets, 0);
    });
}

#[test]
fn the_command_has_its_input_its_signals_and_its_exit_code() {
    for_each(|stage| {
        let run = Run::from(stage.started("cat; exit 7")).input("through\n").finish().unwrap();
        assert_eq!((run.stdout.trim_end(), run.code), ("through", 7), "{}", run.stderr);

        let mut command =
            stage.started("trap 'echo asked; exit 9' TERM; echo there; while :; do sleep 0.1; done");
        let mut bottle = Process::start(&mut command).unwrap();
        bottle.stdout.wait(|line| line == "there").unwrap();
        bottle.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
        assert_eq!(bottle.wait().unwrap(), 9);
        assert!(bottle.stdout.text().contains("asked"));
    });
}

#[test]
fn the_persons_commands_work_on_a_bottle_of_containers() {
    let Some(docker) = Docker::connect().unwrap() else { return };
    let stage = Stage::new(Kind::Docker, docker);
    let mut command = stage.started("echo there; exec sleep 600");
    let mut bottle = Process::start(&mut command).unwrap();
    bottle.stdout.wait(|line| line == "there").unwrap();
    let said = |words: &[&str]| Run::from(stage.command(words)).ok().unwrap();

    let listed: Value = serde_json::from_str(&said(&["list", "--json"])).unwrap();
    assert_eq!((&listed[0]["running"], &listed[0]["backend"]), (&true.into(), &"docker".into()));
    let info = said(&["info", &stage.name]);
    for daemon in ["egress", "git-gate", "supervise"] {
        assert!(
            info.lines()
                .any(|line| line.starts_with("daemon") && line.contains(daemon) && line.contains("ready")),
            "{info}"
        );
    }
    assert!(said(&["logs", &stage.name]).contains("all daemons are ready"));
    let changed = stage.path("changed.yaml");
    fs::write(&changed, fs::read_to_string(stage.path("routes.yaml")).unwrap().replace("/v1/", "/v2/"))
        .unwrap();
    said(&["routes", "apply", &changed.display().to_string(), "--yes"]);
    assert!(said(&["routes", "show"]).contains("/v2/"));
    assert!(said(&["requests", "list"]).lines().count() <= 1);
    said(&["stop", &stage.name]);
    bottle.wait().unwrap();
    assert!(said(&["audit", "verify", "--bottle", &stage.name]).contains("egress"));
}

#[test]
fn a_directory_that_is_exchanged_while_the_container_starts_is_not_given_to_the_agent() {
    let Some(docker) = Docker::connect().unwrap() else { return };
    let stage = Stage::new(Kind::Docker, docker);
    let (work, aside, home) = (stage.path("work"), stage.path("aside"), stage.path("secrets"));
    fs::create_dir(&home).unwrap();
    fs::write(home.join("key"), "of the host").unwrap();
    let exchange = format!("mv {0} {1} && ln -s {2} {0}", work.display(), aside.display(), home.display());
    let run = |exchange: &str| stage.bottle_after(exchange, "cat key; echo there");
    let undisturbed = run(":");
    assert_eq!(undisturbed.stdout.trim_end(), "there", "{}", undisturbed.stderr);
    let refused = run(&exchange);
    assert_eq!((refused.code, refused.stdout.as_str()), (64, ""), "{}", refused.stderr);
    assert!(
        refused.stderr.contains(&format!("bound something else at {}", work.display())),
        "{}",
        refused.stderr
    );
    assert_eq!(stage.objects(), "");
}

#[test]
fn an_engine_that_leaves_the_host_an_address_on_the_sealed_network_gets_no_agent() {
    let Some(docker) = Docker::connect().unwrap() else { return };
    let stage = Stage::new(Kind::Docker, docker);
    // As podman does, which takes the option and drops it.
    let project = stage.path("state/bottlecap/bottles").join(&stage.name).join("compose.json");
    let forget =
        format!("sed -i s/com.docker.network.bridge.inhibit_ipv4/example.unknown/ {}", project.display());
    let refused = stage.bottle_after(&forget, "echo there");
    assert_eq!((refused.code, refused.stdout.as_str()), (64, ""), "{}", refused.stderr);
    assert!(refused.stderr.contains("on the network that is to be sealed"), "{}", refused.stderr);
    assert_eq!(stage.objects(), "");
}

#[test]
fn the_plugin_composes_where_the_client_has_it() {
    let Some(docker) = Docker::connect().unwrap() else { return };
    let stage = Stage::new(Kind::Docker, docker);
    // A plugin as the client finds it, and no program of its own: what it is told is what the older program understands too.
    let plugins = stage.path("client/cli-plugins");
    fs::create_dir_all(&plugins).unwrap();
    let metadata = r#"{"SchemaVersion":"0.1.0","Vendor":"test","Version":"v2","ShortDescription":"compose"}"#;
    let used = stage.path("used");
    let plugin = format!(
        "#!/bin/sh\n[ \"$1\" != docker-cli-plugin-metadata ] || {{ echo '{metadata}'; exit; }}\nshift; echo \"$*\" >>{}\n\
         exec /usr/bin/docker-compose \"$@\"\n",
        used.display()
    );
    fs::write(plugins.join("docker-compose"), plugin).unwrap();
    fs::set_permissions(plugins.join("docker-compose"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let mut command = stage.started("echo there");
    command.env("DOCKER_CONFIG", stage.path("client"));
    let ran = Run::from(command).finish().unwrap();
    assert_eq!((ran.code, ran.stdout.trim_end()), (0, "there"), "{}", ran.stderr);
    let told = fs::read_to_string(used).unwrap();
    assert!(
        told.contains(&format!("--project-name bottlecap-{}", stage.name)) && told.contains("up --detach"),
        "{told}"
    );
}

#[test]
fn a_command_that_does_not_end_is_ended_and_its_bottle_taken_down() {
    for_each(|stage| {
        let mut command = stage.started("trap '' TERM; echo there; while :; do sleep 600; done");
        let mut bottle = Process::start(&mut command).unwrap();
        bottle.stdout.wait(|line| line == "there").unwrap();
        Run::from(stage.command(&["stop", &stage.name, "--grace", "0"])).ok().unwrap();
        assert_eq!(bottle.wait().unwrap(), 137);
        let listed = Run::from(stage.command(&["list"])).ok().unwrap();
        assert!(listed.contains("ended, exit 137"), "{listed}");
        assert_eq!(stage.objects(), "");
    });
}

#[test]
fn a_bottle_that_runs_is_attacked_where_it_is() {
    for_each(|stage| {
        let mut command = stage.started("echo there; exec sleep 600");
        let mut bottle = Process::start(&mut command).unwrap();
        bottle.stdout.wait(|line| line == "there").unwrap();
        for only in ["smuggling: both", "must work"] {
            let words = ["doctor", "--bottle", &stage.name, "--only", only, "--json"];
            let finished = Run::from(stage.command(&words)).finish().unwrap();
            let outcome: Value =
                serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{finished:?}"));
            assert_eq!((finished.code, &outcome["failures"]), (0, &Value::Array(Vec::new())), "{outcome:#}");
            assert_eq!(outcome["bottle"]["running"], Value::from(stage.name.as_str()), "{outcome:#}");
            assert!(outcome["plays"].as_u64().unwrap() > 0);
        }
        let shown = Run::from(stage.command(&["routes", "show", "--bottle", &stage.name])).finish().unwrap();
        assert!(shown.stdout.contains(HOST) && !shown.stdout.contains("localhost"), "{shown:?}");
        Run::from(stage.command(&["stop", &stage.name])).ok().unwrap();
        bottle.wait().unwrap();
    });
}

#[test]
fn a_bottle_of_containers_is_attacked_from_inside() {
    let Some(docker) = Docker::connect().unwrap() else { return };
    let stage = Stage::new(Kind::Docker, docker);
    let manifest = stage.path("bottle.yaml").display().to_string();
    let doctor = |only: &str| {
        let words = [
            "doctor",
            "--bottle",
            &manifest,
            "--backend",
            "docker",
            "--image",
            &stage.agent,
            "--only",
            only,
            "--json",
        ];
        let finished = Run::from(stage.command(&words)).finish().unwrap();
        let outcome: Value =
            serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{finished:?}"));
        assert_eq!((finished.code, &outcome["failures"]), (0, &Value::Array(Vec::new())), "{outcome:#}");
        outcome["plays"].as_u64().unwrap()
    };
    assert!(doctor("smuggling: both") > 0);
    // What must arrive does: refusing everything would not do.
    assert!(doctor("must work") > 0);
    assert!(fs::read_dir(stage.path("state/bottlecap/bottles")).unwrap().next().is_none(), "nothing is left");
}
