//! What is tried from inside, beside what a program would do by itself: with somebody who would see it wherever it came out.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use tests::{Docker, NameServer, Network, Process, Run, leaks};

use crate::stage::{Kind, Stage, for_each};

/// The host on a network that is there for a story alone, from the range that is for documentation: this address is nobody's. It is not
/// the first of its network, where egress expects a router.
pub(crate) fn documentation(docker: &Docker) -> (Network<'_>, Ipv4Addr) {
    let found = (0..16).find_map(|number: u8| {
        let address = |last: u8| format!("192.0.2.{}", number * 16 + last);
        let options = [format!("--subnet={}/28", address(0)), format!("--gateway={}", address(9))];
        let network = docker.network(options).ok()?;
        Some((network, address(9).parse().unwrap()))
    });
    found.expect("one of sixteen networks is free")
}

/// What comes to one port of this host, on any of its addresses.
struct Sink {
    tcp: TcpListener,
    udp: UdpSocket,
    port: u16,
}

impl Sink {
    fn open() -> Sink {
        loop {
            let tcp = TcpListener::bind("[::]:0").unwrap();
            let port = tcp.local_addr().unwrap().port();
            if let Ok(udp) = UdpSocket::bind(("::", port)) {
                tcp.set_nonblocking(true).unwrap();
                udp.set_nonblocking(true).unwrap();
                return Sink { tcp, udp, port };
            }
        }
    }

    /// What has come since the last call: what was sent on this host has, once the sender has ended.
    fn count(&self) -> usize {
        let connections = std::iter::from_fn(|| self.tcp.accept().ok()).count();
        connections + std::iter::from_fn(|| self.udp.recv(&mut [0; 64]).ok()).count()
    }
}

#[test]
fn no_name_but_an_allowed_one_and_no_byte_leaves_a_bottle_of_containers() {
    let Some(docker) = Docker::connect().unwrap() else { return };
    let engine = Docker::connect().unwrap().unwrap();
    let (network, address) = documentation(&engine);
    let server = NameServer::start(address).unwrap();
    let sink = Sink::open();
    let (at, port) = (address.to_string(), sink.port);
    let stage = Stage::new(Kind::Docker, docker);
    stage
        .write("routes.yaml", "routes:\n  - {host: allowed.example, scheme: http, path_allowlist: [/v1/]}\n");

    // The host's end of every link, each of its addresses, the bundle's, the engine's own resolver, and a public one.
    let host = Run::new("hostname").args(["-I"]).ok().unwrap();
    let own: Vec<&str> =
        host.split_whitespace().filter(|address| address.parse::<Ipv4Addr>().is_ok()).collect();
    let mut servers = vec![at.as_str(), "127.0.0.11", "198.51.100.53", "egress"];
    servers.extend(&own);
    let mut tried = leaks::everything(&servers);
    for address in own.iter().copied().chain([at.as_str()]) {
        // Straight there, and by egress: as a literal, under an allowed name, and as a tunnel.
        tried.push_str(&format!(
            "timeout 3 bash -c 'echo x >/dev/tcp/{address}/{port}'; timeout 3 bash -c 'echo x >/dev/udp/{address}/{port}'\n"
        ));
        for (method, target) in
            [("GET", format!("http://{address}:{port}/v1/")), ("CONNECT", format!("{address}:{port}"))]
        {
            tried.push_str(&leaks::through(method, &target, "allowed.example"));
        }
    }
    let script = format!(
        "({tried}) 2>/dev/null\n{}",
        leaks::through("GET", "http://allowed.example/v1/", "allowed.example")
    );
    let ran = stage.bottle_asking(IpAddr::V4(address), &script);

    let lines: Vec<&str> = ran.stdout.lines().collect();
    let (names, rest) = lines.split_at(leaks::ANSWERS);
    // The one is a tunnel, which is opened here so that the refusal can be told inside.
    assert_eq!((ran.code, names.iter().filter(|line| line.contains(" 200")).count()), (0, 1), "{ran:?}");
    let (literals, _allowed) = rest.split_at(2 * (own.len() + 1));
    assert!(literals.iter().all(|line| line.contains(" 403")), "{ran:?}");
    // What is allowed is asked for, and nothing else is.
    assert_eq!(server.asked().unwrap(), ["allowed.example"], "{ran:?}");
    assert_eq!(sink.count(), 0, "{ran:?}");

    // Where there is no wall, all of it arrives.
    let options =
        ["run", "--rm", "--network", network.name(), "--dns", &at, "--entrypoint=bash", &stage.image];
    let open = leaks::asking("open.example", &[&at]);
    let open = format!(
        "{open}timeout 20 getent ahosts resolver.open.example\necho x >/dev/tcp/{at}/{port}; echo x >/dev/udp/{at}/{port}"
    );
    stage.docker.run(options.into_iter().chain(["-c", &open])).ok().unwrap();
    let wanted = leaks::ASKED.into_iter().chain(["resolver"]).map(|name| format!("{name}.open.example"));
    let mut wanted: Vec<String> = wanted.chain(["allowed.example".to_owned()]).collect();
    wanted.sort_unstable();
    assert_eq!(server.asked().unwrap(), wanted);
    assert_eq!(sink.count(), 2);
}

/// Says what is done that a bottle keeps from being done: with sockets of other programs, the caller's descriptors, keys and terminal, the
/// rights of a file's owner, processes of the host, and what a kernel does for root.
const ATTEMPTS: &str = r#"
use Socket; use Errno;
my ($path, $name, $process) = @ARGV;
my ($device, $kind, $key) = ("device\0", "user\0", "$name\0");
sub says { my ($what, $is) = @_; print "$what\n" if $is }
sub connects { socket(my $socket, AF_UNIX, SOCK_STREAM, 0) or return; connect($socket, shift) }
says "connects to a path", connects(pack_sockaddr_un($path));
says "connects to a name", connects(pack("S", AF_UNIX) . "\0$name");
says "types a line", ioctl(STDIN, 0x5412, my $typed = "x") || !$!{EPERM};
says "has a descriptor", scalar grep { (readlink($_) // "") =~ /of-the-caller/ } glob "/proc/self/fd/*";
says "has a key", syscall(250, 10, -3, $kind, $key, 0) >= 0;
open(my $own, ">", "own") or die; close $own;
says "lends its owner's rights", chmod 04755, "own";
says "gives a file away", chown 1, 1, "own";
says "makes a device", syscall(133, $device, 020666, 0x101) >= 0;
says "sees a process", kill 0, $process;
says "traces a process", syscall(101, 16, 0 + $process, 0, 0) >= 0;
for (qw(/proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/1/mem /proc/1/oom_score_adj /sys/kernel/uevent_helper /dev/kmsg)) {
    says "writes $_", open(my $file, ">>", $_);
}
if (open(my $space, "<", "/proc/self/ns/net")) { says "joins a network", syscall(308, fileno $space, 0) >= 0 }
"#;
/// Gives a program a session keyring with a key, and an open file.
const CALLER: &str = "import ctypes, os, sys
call = ctypes.CDLL(None).syscall
assert call(250, 1, None) > 0 and call(248, b'user', sys.argv[1].encode(), b'secret', 6, -3) > 0
os.dup2(os.open(sys.argv[2], os.O_RDONLY), 9)
os.execvp(sys.argv[3], sys.argv[3:])";

#[test]
fn what_belongs_to_others_is_out_of_reach_from_a_bottle() {
    assert!(geteuid().is_root(), "only root can show that all of it can be done outside");
    for_each(|stage| {
        let name = format!("of-the-caller-{}", stage.name);
        let path = UnixListener::bind(stage.path("work/host.sock")).unwrap();
        let named = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let listeners = [path, named];
        for listener in &listeners {
            listener.set_nonblocking(true).unwrap();
        }
        let connected = || listeners.each_ref().map(|listener| listener.accept().is_ok());
        fs::write(stage.path("work/attempts.pl"), ATTEMPTS).unwrap();
        stage.write("of-the-caller", "of the host");
        // Somebody to be traced.
        let mut process = Process::start(Command::new("sleep").arg("600")).unwrap();
        let number = process.pid().to_string();
        let words = ["perl", "attempts.pl", "host.sock", &name, &number];
        let run = |program: &Command| {
            let mut command = stage.starts("python3");
            command.args(["-c", CALLER, &name]).arg(stage.path("of-the-caller"));
            command.arg(program.get_program()).args(program.get_args());
            Run::from(command).finish().unwrap()
        };

        let inside = run(&stage.started_as(&words));
        assert_eq!((inside.stdout.as_str(), inside.code), ("", 0), "{}", inside.stderr);
        assert_eq!(connected(), [false; 2]);
        // Outside all of it can be done.
        let outside = run(Command::new(words[0]).args(&words[1..]));
        for can in [
            "connects to a path",
            "connects to a name",
            "types a line",
            "has a descriptor",
            "has a key",
            "lends its owner's rights",
            "gives a file away",
            "makes a device",
            "sees a process",
            "traces a process",
            "writes /proc/sys/kernel/core_pattern",
            "joins a network",
        ] {
            assert!(outside.stdout.lines().any(|line| line == can), "{can}: {outside:?}");
        }
        assert_eq!(connected(), [true; 2]);
        process.signal(Signal::SIGKILL).unwrap();
        process.wait().unwrap();
    });
}
