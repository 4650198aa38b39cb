//! What a process in the bottle has, and whom it can reach.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::Command;

use crate::support::{Bottle, Caller, PRELUDE, said};

#[test]
fn loopback_is_the_only_interface() {
    const INTERFACES: &str = "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' ' | sort | tr '\\n' ' '";
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        assert_eq!(bottle.shell("", INTERFACES), "lo");
        let of_host = said(bottle.command("sh").args(["-c", INTERFACES]));
        assert_eq!(bottle.shell("network", INTERFACES), of_host);
    }
}

#[test]
fn services_of_the_host_cannot_be_reached() {
    let service = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let name = format!("bottlecap-test-{}", std::process::id());
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let source = format!(
        "print(attempt(socket.create_connection, ('127.0.0.1', {})), attempt(socket.create_connection, ('192.0.2.1', 80), 1),
               attempt(socket.socket(socket.AF_UNIX).connect, '\\0{name}'))",
        service.local_addr().unwrap().port()
    );
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        assert_eq!(bottle.python("", &source), "ECONNREFUSED ENETUNREACH ECONNREFUSED");
        let open = bottle.python("network", &source.replace("('192.0.2.1', 80), 1", "('127.0.0.1', 1), 1"));
        assert_eq!(open, "done ECONNREFUSED done");
    }
}

/// What comes to one port of the host, on any of its addresses, over TCP and UDP.
struct Sink {
    tcp: TcpListener,
    udp: UdpSocket,
    port: u16,
}

impl Sink {
    fn open() -> Sink {
        loop {
            let tcp = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
            let port = tcp.local_addr().unwrap().port();
            if let Ok(udp) = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)) {
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
fn nothing_leaves_by_any_protocol_to_any_address() {
    const SOURCE: &str = "
def datagram(address, family):
    sender = socket.socket(family, socket.SOCK_DGRAM)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    return attempt(sender.sendto, b'x', address)
family = lambda address: socket.AF_INET6 if ':' in address else socket.AF_INET
def send(address, port):
    return datagram((address, port), family(address)), attempt(socket.create_connection, (address, port), 1)
for address in HOST + ['127.0.0.1', '::1']:
    send(address, PORT)
# What speaks DNS, DNS over TLS and HTTPS, QUIC, multicast DNS, or answers for a cloud.
for address in FAR:
    for port in [53, 443, 853, 5353]:
        assert 'done' not in send(address, port), address
print(attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1), attempt(socket.socket, socket.AF_INET6, socket.SOCK_RAW, 58))
print(attempt(socket.socket, socket.AF_INET, socket.SOCK_DGRAM, 1), attempt(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM, 58))
print([path for path in ['/run/dbus/system_bus_socket', '/var/run/docker.sock', '/run/user', '/tmp/.X11-unix'] if os.path.exists(path)])";
    const FAR: &str = "['192.0.2.1', '198.51.100.53', '169.254.169.254', '224.0.0.251', '255.255.255.255', '2001:db8::1', 'ff02::fb']";
    let sink = Sink::open();
    let host = said(Command::new("hostname").arg("-I"));
    let host: Vec<&str> = host.split_whitespace().chain(["127.0.0.11", "::ffff:127.0.0.1"]).collect();
    let source = SOURCE.replace("PORT", &sink.port.to_string());
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        let walled = bottle.python("", &source.replace("HOST", &format!("{host:?}")).replace("FAR", FAR));
        assert_eq!(walled, "EPERM EPERM\nEACCES EACCES\n[]");
        assert_eq!(sink.count(), 0);
        // Where there is a network, what is not on this host is left alone; so are its addresses that may just have gone.
        bottle.python("network", &source.replace("HOST", "[]").replace("FAR", "[]"));
        assert_eq!(sink.count(), 4, "the sink sees what reaches the host");
    }
}

#[test]
fn the_first_process_cannot_be_traced_and_a_child_can() {
    // ptrace: 101, with ATTACH 16.
    const SOURCE: &str = "
import time
child = os.fork()
if child == 0: time.sleep(60)
print(call(101, 16, 1, None, None), call(101, 16, child, None, None))
os.kill(child, 9)";
    for caller in Caller::all() {
        assert_eq!(Bottle::of(caller).python("", SOURCE), "EPERM done");
    }
}

#[test]
fn names_are_looked_up_nowhere() {
    for caller in Caller::all() {
        let source = "
try: socket.getaddrinfo('example.com', 80)
except socket.gaierror as error: print('no')
print(socket.gethostbyname('egress'), socket.gethostbyname('git-gate'), socket.gethostbyname('supervise'))";
        assert_eq!(Bottle::of(caller).python("", source), "no\n127.0.0.1 127.0.0.1 127.0.0.1");
    }
}

#[test]
fn no_capability_and_no_new_privilege_is_left() {
    const STATUS: &str =
        "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr -d '\\t' | tr '\\n' ' '";
    const WALLED: &str = "CapInh:0000000000000000 CapPrm:0000000000000000 CapEff:0000000000000000 \
                          CapBnd:0000000000000000 CapAmb:0000000000000000 NoNewPrivs:1 Seccomp:2";
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        assert_eq!(bottle.shell("", STATUS), WALLED);
        assert!(!bottle.shell("capabilities", STATUS).contains("CapBnd:0000000000000000"));
        assert!(bottle.shell("no-new-privileges,seccomp", STATUS).contains("NoNewPrivs:0 Seccomp:0"));
        // Without the second namespace the agent is user 0 of the first, and every program it starts is capable.
        assert!(!bottle.shell("second-namespace,capabilities", STATUS).contains("CapEff:0000000000000000"));
    }
}

#[test]
fn the_agent_is_an_ordinary_user_with_no_group_of_the_caller() {
    for caller in Caller::all() {
        assert_eq!(
            Bottle::of(caller).shell("", "id; cat /proc/self/setgroups; hostname"),
            "uid=1000(agent) gid=1000(agent) groups=1000(agent)\ndeny\nbottle"
        );
    }
}

#[test]
fn variables_of_the_caller_do_not_come_in() {
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        let names =
            ["SECRET_TOKEN", "DBUS_SESSION_BUS_ADDRESS", "SSH_AUTH_SOCK", "DISPLAY", "LD_PRELOAD_X", "TERM"];
        let run = |without: &str| {
            let mut command = bottle.run(without, ["/usr/bin/env"]);
            command.envs(names.map(|name| (name, "of-the-caller")));
            let text = said(&mut command);
            text.lines()
                .filter(|line| line.ends_with("=of-the-caller"))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(run(""), ["TERM=of-the-caller"]);
        assert_eq!(run("environment").len(), names.len());
    }
}

#[test]
fn descriptors_of_the_caller_are_closed() {
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        let secret = bottle.path("secret");
        std::fs::write(&secret, "of the caller").unwrap();
        let run = |without: &str| {
            let mut command = bottle.command("/bin/sh");
            let program = bottle.program().display();
            command.env("BOTTLECAP_TEST_WITHOUT", format!("bundle,{without}")).args([
                "-c",
                &format!(
                    "exec 9<{}; exec {program} run -- sh -c 'ls /proc/self/fd; (cat <&9) 2>&1; true'",
                    secret.display()
                ),
            ]);
            said(&mut command)
        };
        // 3 is the directory that is listed.
        let walled = run("");
        assert!(walled.starts_with("0\n1\n2\n3\n") && walled.contains("Bad file descriptor"), "{walled}");
        assert!(run("descriptors").ends_with("of the caller"));
    }
}

#[test]
fn standard_descriptors_are_not_the_callers_own() {
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        let output = std::fs::File::create(bottle.path("output")).unwrap();
        let script = "for fd in 0 1 2; do readlink /proc/self/fd/$fd | cut -d: -f1; done";
        let status = bottle.run("", ["sh", "-c", script]).stdout(output).status().unwrap();
        assert!(status.success());
        assert_eq!(std::fs::read_to_string(bottle.path("output")).unwrap(), "pipe\npipe\npipe\n");
    }
}

#[test]
fn the_session_is_its_own() {
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        let own = "print(os.getsid(0) == os.getpid(), attempt(open, '/dev/tty'))";
        assert_eq!(bottle.python("", own), "True ENXIO");
        assert_eq!(bottle.python("session", own), "False ENXIO");
    }
}

#[test]
fn on_a_terminal_the_command_has_one_of_the_bottles_own() {
    const TIOCSTI: &str = "import fcntl\nprint(os.ttyname(0), attempt(fcntl.ioctl, 0, 0x5412, b'x'), os.getsid(0) == os.getpid())";
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        let run = |without: &str| {
            let words = format!("{} run -- /usr/bin/python3 -I -c \"$SOURCE\"", bottle.program().display());
            let mut command = bottle.command("/usr/bin/script");
            command.env("SOURCE", format!("{PRELUDE}\n{TIOCSTI}")).env("SHELL", "/bin/sh");
            command.env("BOTTLECAP_TEST_WITHOUT", format!("bundle,{without}"));
            // The outer terminal shows the end of input that script sends through it, whenever that comes.
            said(command.args(["-qec", &words, "/dev/null"])).replace("^@", "").trim_end().to_owned()
        };
        assert_eq!(run(""), "/dev/pts/0 EPERM True");
        // Without the filter it is the kernel's setting that decides.
        assert!(!run("seccomp").contains("EPERM"));
    }
}

#[test]
fn the_callers_session_keyring_is_not_there() {
    // keyctl: 250, with JOIN_SESSION_KEYRING 1 and SEARCH 10; add_key: 248; the session keyring: -3.
    const PUT: &str = "import ctypes, os, sys
libc = ctypes.CDLL(None)
assert libc.syscall(250, 1, None) > 0
assert libc.syscall(248, b'user', b'bottlecap-test', b'secret', 6, -3) > 0
os.execv(sys.argv[1], sys.argv[1:])";
    const SEARCH: &str = "print(call(250, 10, -3, b'user', b'bottlecap-test', 0))";
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        let run = |without: &str| {
            let inside = bottle.run(without, ["/usr/bin/python3", "-I", "-c"]);
            let mut command = bottle.command("/usr/bin/python3");
            command.args(["-c", PUT]).arg(inside.get_program()).args(inside.get_args());
            command
                .arg(format!("{PRELUDE}\n{SEARCH}"))
                .env("BOTTLECAP_TEST_WITHOUT", format!("bundle,{without}"));
            said(&mut command)
        };
        assert_eq!(run(""), "EPERM");
        assert_eq!(run("seccomp"), "ENOKEY");
        assert_eq!(run("seccomp,keyring"), "done");
    }
}

#[test]
fn processes_of_the_host_are_neither_seen_nor_reached() {
    let host = std::process::id();
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        let source = format!(
            "pids = sorted(int(name) for name in os.listdir('/proc') if name.isdigit())
print(pids, attempt(os.kill, {host}, 0), attempt(open, '/proc/1/environ'), attempt(os.listdir, '/proc/1/fd'), attempt(os.readlink, '/proc/1/root'))"
        );
        assert_eq!(bottle.python("", &source), "[1, 2] ESRCH EACCES EACCES EACCES");
    }
}
