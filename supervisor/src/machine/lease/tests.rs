//! The client against servers of every kind, on a cable between two network namespaces.

use std::io::{BufRead as _, BufReader, Read as _, Seek as _};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

use super::super::dhcp::message::Hardware;
use super::super::dhcp::tests::message;
use super::*;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 15);
/// A busy machine is no reason to fail.
const LONG: Duration = Duration::from_secs(60);

const DISCOVER: u8 = 1;
const REQUEST: u8 = 3;
const OFFER: u8 = 2;
const ACK: u8 = 5;
const NAK: u8 = 6;

/// What the server saw.
#[derive(Clone, Debug)]
struct Seen {
    kind: u8,
    xid: u32,
    hardware: Hardware,
    /// The address that the client says it has.
    own: Ipv4Addr,
    from: SocketAddr,
}

impl Seen {
    fn read(bytes: &[u8], from: SocketAddr) -> Self {
        Self {
            kind: bytes[242],
            xid: u32::from_be_bytes(bytes[4..8].try_into().unwrap()),
            hardware: bytes[28..34].try_into().unwrap(),
            own: <[u8; 4]>::try_from(&bytes[12..16]).unwrap().into(),
            from,
        }
    }

    /// An answer with a lease of so many seconds, to be renewed after one.
    fn answer(&self, kind: u8, address: Ipv4Addr, seconds: u8) -> Vec<u8> {
        self.answer_of(SERVER, kind, address, seconds)
    }

    fn answer_of(&self, server: Ipv4Addr, kind: u8, address: Ipv4Addr, seconds: u8) -> Vec<u8> {
        let options: [(u8, &[u8]); 8] = [
            (53, &[kind]),
            (54, &server.octets()),
            (1, &[255, 255, 255, 0]),
            (3, &[10, 7, 0, 1]),
            (6, &[10, 7, 0, 3]),
            (26, &[5, 120]),
            (51, &[0, 0, 0, seconds]),
            (58, &[0, 0, 0, 1]),
        ];
        message(self.xid, self.hardware, address, &options)
    }
}

fn ip(args: &str) -> String {
    let output = Command::new("ip").args(args.split_whitespace()).output().expect("the program `ip`");
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Moves this thread into a network of its own.
fn leave_the_network() {
    unshare(CloneFlags::CLONE_NEWNET).expect("the right to make network namespaces: run the tests as root");
}

/// Lays a cable from our `eth0` to a server that answers with what this returns.
fn with_server(mut answers: impl FnMut(&Seen) -> Vec<Vec<u8>> + Send + 'static) -> Receiver<Seen> {
    leave_the_network();
    let (tell, told): (Sender<Seen>, _) = channel();
    let (tell_place, place) = channel();
    let (tell_laid, laid) = channel();
    let (tell_ready, ready) = channel();
    std::thread::spawn(move || {
        leave_the_network();
        tell_place.send(gettid()).unwrap();
        laid.recv().unwrap();
        ip("address add 10.7.0.1/24 dev server");
        ip("link set server up");
        let socket = kernel::socket_of("server", SERVER_PORT).unwrap();
        tell_ready.send(()).unwrap();
        let mut buffer = [0; LONGEST];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let seen = Seen::read(&buffer[..length], from);
            let to = if seen.own.is_unspecified() { Ipv4Addr::BROADCAST } else { seen.own };
            for answer in answers(&seen) {
                let _ = socket.send_to(&answer, (to, CLIENT_PORT));
            }
            if tell.send(seen).is_err() {
                break;
            }
        }
    });
    ip(&format!("link add eth0 type veth peer name server netns {}", place.recv().unwrap()));
    kernel::link_up("eth0").unwrap();
    tell_laid.send(()).unwrap();
    ready.recv().unwrap();
    told
}

fn acquire() -> (Kept, File) {
    let resolvers = tempfile::tempfile().unwrap();
    let kept = Kept::acquire("eth0", Some(resolvers.try_clone().unwrap()), LONG).unwrap();
    (kept, resolvers)
}

fn addresses() -> String {
    ip("-4 -oneline address show dev eth0")
}

#[test]
fn a_lease_is_found_among_wrong_answers_and_used() {
    let mut refused = false;
    let told = with_server(move |seen| match seen.kind {
        DISCOVER => {
            let right = seen.answer(OFFER, ADDRESS, 200);
            let other = Seen { xid: seen.xid.wrapping_add(1), ..seen.clone() };
            let stranger = Seen { hardware: [2; 6], ..seen.clone() };
            vec![
                Vec::new(),
                vec![0xff; LONGEST],
                right[..right.len() - 3].to_vec(),
                other.answer(OFFER, Ipv4Addr::new(10, 7, 0, 66), 200),
                stranger.answer(OFFER, Ipv4Addr::new(10, 7, 0, 66), 200),
                seen.answer(OFFER, Ipv4Addr::LOCALHOST, 200),
                right,
            ]
        }
        _ if !std::mem::replace(&mut refused, true) => vec![seen.answer(NAK, ADDRESS, 200)],
        _ => vec![
            seen.answer_of(Ipv4Addr::new(10, 7, 0, 9), ACK, ADDRESS, 200),
            seen.answer(ACK, Ipv4Addr::new(10, 7, 0, 66), 200),
            seen.answer(ACK, ADDRESS, 200),
        ],
    });
    let (_kept, mut resolvers) = acquire();
    let seen: Vec<Seen> = told.try_iter().collect();
    let kinds: Vec<u8> = seen.iter().map(|seen| seen.kind).collect();
    assert_eq!(kinds[..3], [DISCOVER, REQUEST, DISCOVER]);
    assert!(seen.iter().all(|seen| seen.from.ip() == Ipv4Addr::UNSPECIFIED), "{seen:?}");
    assert!(addresses().contains("inet 10.7.0.15/24 brd 10.7.0.255"), "{}", addresses());
    assert!(!addresses().contains("valid_lft forever"), "{}", addresses());
    assert!(ip("route show").contains("default via 10.7.0.1 dev eth0 proto dhcp"), "{}", ip("route show"));
    assert!(ip("link show dev eth0").contains("mtu 1400"));
    let mut text = String::new();
    resolvers.rewind().unwrap();
    resolvers.read_to_string(&mut text).unwrap();
    assert_eq!(text, "nameserver 10.7.0.3\n");
}

#[test]
fn an_answer_that_comes_after_the_next_question_is_too_late() {
    let mut first: Option<Seen> = None;
    let told = with_server(move |seen| match (seen.kind, &first) {
        (DISCOVER, None) => {
            first = Some(seen.clone());
            Vec::new()
        }
        (DISCOVER, Some(first)) => {
            vec![first.answer(OFFER, Ipv4Addr::new(10, 7, 0, 66), 200), seen.answer(OFFER, ADDRESS, 200)]
        }
        _ => vec![seen.answer(ACK, ADDRESS, 200)],
    });
    let (kept, _) = acquire();
    assert_eq!(kept.lease.address, ADDRESS);
    assert!(told.try_iter().filter(|seen| seen.kind == DISCOVER).count() >= 2);
}

#[test]
fn a_lease_is_renewed_and_lost_when_refused_and_another_address_starts_the_machine_again() {
    let (mut asked, mut renewals) = (0, 0);
    let told = with_server(move |seen| match seen.kind {
        DISCOVER => {
            asked += 1;
            vec![seen.answer(OFFER, Ipv4Addr::new(10, 7, 0, 14 + asked), 100)]
        }
        _ if seen.own.is_unspecified() => vec![seen.answer(ACK, Ipv4Addr::new(10, 7, 0, 14 + asked), 100)],
        _ => {
            renewals += 1;
            vec![seen.answer(if renewals == 1 { ACK } else { NAK }, ADDRESS, 100)]
        }
    });
    let (kept, _) = acquire();
    // With no more rights than the process has that does this in a machine; the thread shares our network.
    let follow = move || {
        kernel::keep_to_the_network().unwrap();
        assert!(File::open("/etc/passwd").is_err());
        let mut restarted = false;
        kept.follow(|| restarted = true).map(|()| restarted)
    };
    assert!(std::thread::spawn(follow).join().unwrap().unwrap());
    assert_eq!(addresses(), "");
    assert_eq!(ip("route show"), "");
    let renewals: Vec<Seen> = told.try_iter().filter(|seen| !seen.own.is_unspecified()).collect();
    assert!(renewals.len() >= 2, "{renewals:?}");
    assert!(renewals.iter().all(|seen| seen.from.ip() == ADDRESS), "{renewals:?}");
}

#[test]
fn a_network_without_a_server_is_an_error_that_says_so() {
    let _told = with_server(|_| Vec::new());
    let outcome = Kept::acquire("eth0", None, Duration::from_secs(2)).map(drop).unwrap_err();
    assert_eq!(outcome.to_string(), "no server on the network gave an address within 2 s");
    assert_eq!(addresses(), "");
}

#[test]
fn the_kernel_takes_an_address_away_that_nobody_renews() {
    let _told = with_server(|_| Vec::new());
    let mut monitor =
        Command::new("ip").args(["-4", "monitor", "address"]).stdout(Stdio::piped()).spawn().unwrap();
    let (tell, told) = channel();
    let lines = BufReader::new(monitor.stdout.take().unwrap()).lines();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| tell.send(line)));
    // Until the program is known to listen.
    loop {
        netlink::put_address("eth0", ADDRESS, 24, 1).unwrap();
        if told.recv_timeout(Duration::from_millis(50)).is_ok() {
            break;
        }
    }
    while !told.recv_timeout(LONG).unwrap().starts_with("Deleted") {}
    assert_eq!(addresses(), "");
    let _ = monitor.kill();
    let _ = monitor.wait();
}
