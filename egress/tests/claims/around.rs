//! The machine that the program runs on: what it gives, and what of it is never dialled.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use nix::sys::signal::Signal;

use crate::program::{address_in, directory, egress_behind, get, init, reflecting, start_seeing};
use crate::transparent::{Led, apart, lead, run};

/// Runs `ip`, which says where an address or a route is to be.
fn ip(arguments: &str) {
    run("ip", &arguments.split(' ').collect::<Vec<_>>(), "");
}

/// Routes that allow plain HTTP to these on one port.
fn routes(hosts: &[&str], port: u16) -> String {
    let allow = "allow_private: [0.0.0.0/0, '::/0']";
    let route = |host: &&str| format!("  - {{host: '{host}', scheme: http, ports: [{port}], {allow}}}\n");
    format!("routes:\n{}", hosts.iter().map(route).collect::<String>())
}

#[test]
fn a_listener_on_every_address_is_not_dialled_by_any_address_of_the_machine() {
    apart(async {
        ip("address add 203.0.113.5/32 dev lo");
        let root = directory(&routes(&["203.0.113.5", "203.0.113.6"], 8081));
        assert!(init(root.path()).status.success());
        let (running, mut log) = start_seeing(root.path(), &["--direct", "0.0.0.0:8081"]);
        let proxy = address_in(&mut log, "listening");
        assert!(running.told().starts_with("READY=1"));
        let answer = get(&proxy, "http://203.0.113.5:8081/");
        assert!(answer.contains("address-not-allowed") && answer.contains("this proxy itself"), "{answer}");

        ip("address add 203.0.113.6/32 dev lo");
        running.signal(Signal::SIGHUP);
        assert!(running.told().starts_with("RELOADING=1"));
        assert!(running.told().starts_with("READY=1"));
        let answer = get(&proxy, "http://203.0.113.6:8081/");
        assert!(answer.contains("address-not-allowed") && answer.contains("this proxy itself"), "{answer}");
    });
}

#[test]
fn a_transparent_listener_for_both_families_serves_what_is_redirected_over_ipv4() {
    apart(async {
        let (port, _seen) = reflecting();
        let root = directory(&routes(&["127.0.0.1"], port));
        assert!(init(root.path()).status.success());
        let (running, _log) = start_seeing(root.path(), &["--transparent", "[::]:9098"]);
        assert!(running.told().starts_with("READY=1"));
        lead(Led::Redirected, "127.0.0.1:9098".parse().unwrap());
        let mut stream = TcpStream::connect(("198.51.100.7", port)).unwrap();
        write!(stream, "GET / HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    });
}

#[test]
fn no_gateway_of_any_route_of_any_table_is_dialled() {
    apart(async {
        ip("link add one type veth peer name two");
        ip("link set two up");
        ip("link set one up");
        ip("address add 10.1.0.9/24 dev one");
        ip("-6 address add 2001:db8::9/64 dev one nodad");
        ip("route add default via 10.1.0.1 dev one");
        ip("route add 192.0.2.0/26 nexthop via 10.1.0.2 dev one nexthop via 10.1.0.3 dev one");
        ip("route add 192.0.2.64/26 via 10.1.0.4 dev one table 77");
        ip("nexthop add id 5 via 10.1.0.5 dev one");
        ip("route add 192.0.2.128/26 nhid 5");
        ip("route add 192.0.2.192/26 via inet6 2001:db8::1 dev one");
        ip("-6 route add 2001:db8:1::/48 nexthop via 2001:db8::2 dev one nexthop via 2001:db8::3 dev one");
        ip("-6 route add 2001:db8:2::/48 via 2001:db8::4 dev one table 77");
        let near = ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5"];
        let near = [&near[..], &["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::4"]].concat();
        // Nobody listens there, so it is refused by the system and not by us.
        let (free, later) = ("10.1.0.9", "10.1.0.6");
        let root = directory(&routes(&[&near[..], &[free, later]].concat(), 80));
        assert!(init(root.path()).status.success());
        let (running, mut log) = start_seeing(root.path(), &[]);
        let proxy = address_in(&mut log, "listening");
        assert!(running.told().starts_with("READY=1"));
        let ask = |host: &str| {
            let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
            get(&proxy, &format!("http://{host}/"))
        };
        for host in near {
            let answer = ask(host);
            assert!(answer.contains("a gateway or the resolver"), "{host}: {answer}");
        }
        assert!(ask(free).contains("upstream-unreachable"));

        ip("route add 198.51.100.0/24 via 10.1.0.6 dev one table 78");
        running.signal(Signal::SIGHUP);
        assert!(running.told().starts_with("RELOADING=1"));
        assert!(running.told().starts_with("READY=1"));
        assert!(ask(later).contains("a gateway or the resolver"));
    });
}

#[test]
fn where_there_are_few_descriptors_a_bottle_may_have_few_connections_and_those_are_served() {
    let (port, _seen) = reflecting();
    let root = directory(&routes(&["127.0.0.1"], port));
    assert!(init(root.path()).status.success());
    let mut child = egress_behind("ulimit -n 150", root.path()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let said = log.find(|line| line.contains("the limit of open files is low")).unwrap();
    assert!(said.contains("from_bottle=64 upstream=16"), "{said}");
    let listening = log.find(|line| line.contains("listening")).unwrap();
    let address = listening.rsplit('=').next().unwrap().to_owned();
    let drained = std::thread::spawn(move || log.filter(|line| line.contains("cannot accept")).count());

    let connect = || TcpStream::connect(&address).unwrap();
    let mut first = connect();
    // Each time on a new connection to upstream, which closes it.
    let mut ask = || {
        write!(first, "GET http://127.0.0.1:{port}/ HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n").unwrap();
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            first.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split('\r').next()).unwrap();
        first.read_exact(&mut vec![0; length.parse().unwrap()]).unwrap();
        head
    };
    assert!(ask().starts_with("HTTP/1.1 200"));
    let begun = || {
        let mut stream = connect();
        stream.write_all(b"GET http://").unwrap();
        stream
    };
    let many = (0..160).map(|_| begun()).collect::<Vec<_>>();
    for _ in 0..50 {
        let answer = ask();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    drop(many);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(drained.join().unwrap(), 0);
}
