//! The built program while the bottle has taken all descriptors.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::process::Child;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::program::{Running, directory, egress, egress_behind, get, init};

/// What a child has had of the processor, as far as the system tells: in hundredths of a second.
fn processor_time(child: &Child) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap());
    Duration::from_millis(10 * ticks.sum::<u64>())
}

#[test]
fn a_shortage_of_descriptors_is_waited_out_at_rest_and_passes() {
    let root = directory("routes: []\n");
    assert!(init(root.path()).status.success());
    let mut child = egress_behind("ulimit -n 24", root.path()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let listening = log.find(|line| line.contains("listening")).unwrap();
    let address = listening.rsplit('=').next().unwrap().to_owned();
    let many = (0..32).map(|_| TcpStream::connect(&address).unwrap()).collect::<Vec<_>>();
    let mut complaints = log.by_ref().filter(|line| line.contains("cannot accept a connection"));
    complaints.next().unwrap();
    let (began, spent) = (Instant::now(), processor_time(&child));
    // Between two of them it rests.
    complaints.by_ref().take(5).for_each(drop);
    let (took, spent) = (began.elapsed(), processor_time(&child) - spent);
    assert!(took >= Duration::from_millis(400), "5 attempts in {took:?}");
    assert!(spent < took / 4, "{spent:?} of processor time in {took:?} of pauses");
    let drained = std::thread::spawn(move || log.count());
    drop(many);
    let mut stream = TcpStream::connect(&address).unwrap();
    let request =
        b"GET http://_egress.local/ca.pem HTTP/1.1\r\nhost: _egress.local\r\nconnection: close\r\n\r\n";
    stream.write_all(request).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    child.kill().unwrap();
    child.wait().unwrap();
    drained.join().unwrap();
}

#[test]
fn a_revocation_comes_into_force_although_the_bottle_has_taken_all_descriptors() {
    let root = directory("routes:\n  - {host: revoked.test, scheme: http, ports: [80]}\n");
    assert!(init(root.path()).status.success());
    let path = root.path().join("notify");
    let notifications = UnixDatagram::bind(&path).unwrap();
    let child = egress_behind("ulimit -n 40", root.path()).env("NOTIFY_SOCKET", &path).spawn().unwrap();
    let mut running = Running { child, notifications };
    let mut log = BufReader::new(running.child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let listening = log.find(|line| line.contains("listening")).unwrap();
    let address = listening.rsplit('=').next().unwrap().to_owned();
    assert!(running.told().starts_with("READY=1"));
    let asked = |target: &str| {
        let arguments = ["explain", "--json", "GET", target];
        let output = egress(root.path()).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(asked("http://revoked.test/").0, Some(0));

    // Each has sent something, so that it is taken at once.
    let idle = || {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(b"G").unwrap();
        stream
    };
    let mut all = (0..64).map(|_| idle()).collect::<Vec<_>>();
    log.find(|line| line.contains("cannot accept a connection")).unwrap();
    let drained = std::thread::spawn(move || log.count());
    std::fs::write(root.path().join("etc/new"), "routes: []\n").unwrap();
    std::fs::rename(root.path().join("etc/new"), root.path().join("etc/routes.yaml")).unwrap();
    running.signal(Signal::SIGHUP);
    assert!(running.told().starts_with("RELOADING=1"));
    let told = running.told();
    assert!(told.starts_with("READY=1\nX_GENERATION=2") && !told.contains("ERROR"), "{told}");
    let status = std::fs::read_to_string(root.path().join("run/egress.status.json")).unwrap();
    assert!(status.starts_with("{\"generation\":2,"), "{status}");
    // The operator is answered, while nobody else comes in.
    let (code, told) = asked("http://revoked.test/");
    assert_eq!((code, told.contains("\"code\":\"host-not-allowed\"")), (Some(1), true), "{told}");
    // As is who was in already.
    let first = &mut all[0];
    first
        .write_all(b"ET http://revoked.test/ HTTP/1.1\r\nhost: revoked.test\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    first.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("host-not-allowed"), "{answer}");
    drop(all);
    assert!(get(&address, "http://revoked.test/").contains("host-not-allowed"));
    drop(running);
    drained.join().unwrap();
}
