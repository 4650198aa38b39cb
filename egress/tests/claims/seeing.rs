use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use proposal::peer::{Answer, Question, datagram, message};

use crate::support::{Bench, Transport, get};

#[tokio::test]
async fn supervise_learns_what_was_refused_and_where_the_journal_ends() {
    let bench = Bench::allowing("path_allowlist: [/v1]").await;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    let answering = tokio::spawn(egress::peer::serve(theirs, std::sync::Arc::clone(&bench.proxy)));
    let ours = tokio::net::UnixDatagram::from_std(datagrams(ours)).unwrap();

    let answer = bench.agent().send(Transport::TunnelHttp2, get("/v2?key=hidden")).await;
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let block_id = body["error"]["block_id"].as_str().unwrap().to_owned();
    let ask = async |question: Question| {
        ours.send(&datagram(&question).unwrap()).await.unwrap();
        let mut buffer = vec![0; proposal::peer::DATAGRAM_MAX];
        let length = ours.recv(&mut buffer).await.unwrap();
        message::<Answer>(&buffer[..length]).unwrap()
    };
    let Answer::Refusal { seq: 7, refusal: Some(refusal) } =
        ask(Question::Refusal { seq: 7, block_id: block_id.clone() }).await
    else {
        panic!("the refusal is known");
    };
    assert_eq!((refusal.code.as_str(), refusal.path.as_str()), ("path-not-allowed", "/v2"));
    assert_eq!((refusal.method.as_str(), refusal.block_id), ("GET", block_id));
    let unknown = ask(Question::Refusal { seq: 8, block_id: "none".to_owned() }).await;
    assert_eq!(unknown, Answer::Refusal { seq: 8, refusal: None });

    ours.send(b"nonsense").await.unwrap();
    bench.proxy.flush().await;
    let journal = std::fs::read_to_string(&bench.journal).unwrap();
    let last: serde_json::Value = serde_json::from_str(journal.lines().last().unwrap()).unwrap();
    let head = ask(Question::Head { seq: 9 }).await;
    let hash = last["hash"].as_str().unwrap().to_owned();
    assert_eq!(head, Answer::Head { seq: 9, records: last["seq"].as_u64().unwrap(), hash });
    answering.abort();
}

/// A connected datagram socket keeps the borders of messages, as a seqpacket socket does.
fn datagrams(socket: OwnedFd) -> UnixDatagram {
    UnixDatagram::from(socket)
}
