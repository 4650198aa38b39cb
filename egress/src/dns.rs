//! Answers for names, for clients that resolve before they connect: every allowed name has one and the same address, the
//! one where connections are led here. A name above an allowed one is there and has none: who is told that a name does not exist
//! may take what is below it for non-existent too (RFC 8020). No query is ever passed on, so a name cannot carry anything out.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use policy::Host;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::timeout;
use tracing::debug;

use crate::front::Connection;
use crate::local;
use crate::proxy::Proxy;
use crate::splice::Stream;

/// How long a client may keep an answer: no longer than a reload may take to show.
const TTL_SECONDS: u32 = 5;
/// How long a connection may be silent.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER: usize = 12;
/// A name on the wire.
const NAME_LIMIT: usize = 255;
const LABEL_LIMIT: u8 = 63;
/// A question, and what an EDNS client adds to it.
const QUERY_LIMIT: usize = 4096;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;
/// A compressed name that stands for the one in the question.
const NAME_OF_QUESTION: [u8; 2] = [0xc0, HEADER as u8];
const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const AUTHORITATIVE: u8 = 0x04;
const RECURSION_DESIRED: u8 = 0x01;
const RECURSION_AVAILABLE: u8 = 0x80;

/// The addresses that stand for every allowed name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answers {
    /// For `A`.
    pub v4: Option<Ipv4Addr>,
    /// For `AAAA`.
    pub v6: Option<Ipv6Addr>,
}

impl FromIterator<IpAddr> for Answers {
    /// The first of each kind; none that is no address of a host.
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Answers {
        let mut answers = Answers::default();
        for address in addresses.into_iter().filter(|address| !address.is_unspecified()) {
            match address {
                IpAddr::V4(address) => answers.v4 = answers.v4.or(Some(address)),
                IpAddr::V6(address) => answers.v6 = answers.v6.or(Some(address)),
            }
        }
        answers
    }
}

/// What is known of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It is allowed.
    Allowed,
    /// One below it is allowed.
    Above,
    /// Neither.
    Not,
}

#[derive(Clone, Copy)]
enum Outcome {
    NoError = 0,
    Malformed = 1,
    NoSuchName = 3,
    NotImplemented = 4,
    Refused = 5,
}

/// The answer to one message; nothing to what is not a query.
pub fn answer(query: &[u8], answers: Answers, known: impl FnOnce(&Host) -> Known) -> Option<Vec<u8>> {
    let header = query.get(..HEADER)?;
    if header[2] & RESPONSE != 0 {
        return None;
    }
    if header[2] & OPCODE != 0 {
        return Some(reply(header, Outcome::NotImplemented, &[], None));
    }
    // One question, no records but those of EDNS, which come last.
    let question = if header[4..10] == [0, 1, 0, 0, 0, 0] { Question::parse(&query[HEADER..]) } else { None };
    let Some(question) = question else { return Some(reply(header, Outcome::Malformed, &[], None)) };
    let bytes = question.bytes;
    if question.class != CLASS_IN {
        return Some(reply(header, Outcome::Refused, bytes, None));
    }
    let host = question.name.as_deref().and_then(|name| Host::parse(name).ok());
    let known = host.filter(|host| host.ip().is_none()).map_or(Known::Not, |host| known(&host));
    let address = match (known, question.kind) {
        (Known::Not, _) => return Some(reply(header, Outcome::NoSuchName, bytes, None)),
        (Known::Allowed, TYPE_A) => answers.v4.map(IpAddr::V4),
        (Known::Allowed, TYPE_AAAA) => answers.v6.map(IpAddr::V6),
        (Known::Allowed | Known::Above, _) => None,
    };
    Some(reply(header, Outcome::NoError, bytes, address))
}

struct Question<'q> {
    /// As it stands in the query.
    bytes: &'q [u8],
    /// The name, where its labels are text without dots.
    name: Option<String>,
    kind: u16,
    class: u16,
}

impl<'q> Question<'q> {
    /// The question at the beginning of `rest`. The first name of a message has nothing that it could point back to.
    fn parse(rest: &'q [u8]) -> Option<Question<'q>> {
        let mut name = Some(String::new());
        let mut at = 0;
        loop {
            let length = *rest.get(at)?;
            at += 1;
            if length == 0 {
                break;
            }
            if length > LABEL_LIMIT {
                return None;
            }
            let label = rest.get(at..at + usize::from(length))?;
            at += label.len();
            if at >= NAME_LIMIT {
                return None;
            }
            let text = std::str::from_utf8(label).ok().filter(|label| !label.contains('.'));
            name = name.zip(text).map(|(mut name, label)| {
                if !name.is_empty() {
                    name.push('.');
                }
                name.push_str(label);
                name
            });
        }
        let &[kind_high, kind_low, class_high, class_low] = rest.get(at..at + 4)? else { return None };
        Some(Question {
            bytes: &rest[..at + 4],
            name,
            kind: u16::from_be_bytes([kind_high, kind_low]),
            class: u16::from_be_bytes([class_high, class_low]),
        })
    }
}

fn reply(header: &[u8], outcome: Outcome, question: &[u8], address: Option<IpAddr>) -> Vec<u8> {
    let mut reply = Vec::with_capacity(512);
    reply.extend(&header[..2]);
    reply.push(RESPONSE | (header[2] & (OPCODE | RECURSION_DESIRED)) | AUTHORITATIVE);
    reply.push(RECURSION_AVAILABLE | outcome as u8);
    reply.extend([0, u8::from(!question.is_empty()), 0, u8::from(address.is_some()), 0, 0, 0, 0]);
    reply.extend(question);
    let mut record = |kind: u16, address: &[u8]| {
        reply.extend(NAME_OF_QUESTION);
        reply.extend(kind.to_be_bytes());
        reply.extend(CLASS_IN.to_be_bytes());
        reply.extend(TTL_SECONDS.to_be_bytes());
        reply.extend([0, address.len() as u8]);
        reply.extend(address);
    };
    match address {
        Some(IpAddr::V4(address)) => record(TYPE_A, &address.octets()),
        Some(IpAddr::V6(address)) => record(TYPE_AAAA, &address.octets()),
        None => {}
    }
    reply
}

fn known(proxy: &Proxy, host: &Host) -> Known {
    let (policy, now) = (&proxy.snapshot().policy, proxy.now());
    if host.as_str() == local::NAME || policy.names(host, now) {
        Known::Allowed
    } else if policy.is_above_allowed(host, now) {
        Known::Above
    } else {
        Known::Not
    }
}

/// Answers datagrams for as long as it is polled.
pub(crate) async fn serve_udp(proxy: Arc<Proxy>, socket: UdpSocket, answers: Answers) {
    let mut query = vec![0; QUERY_LIMIT];
    loop {
        let (length, client) = match socket.recv_from(&mut query).await {
            Ok(received) => received,
            Err(error) => {
                // Of an earlier answer that its client did not take.
                debug!(%error, "cannot receive a query");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let Some(reply) = answer(&query[..length], answers, |host| known(&proxy, host)) else {
            continue;
        };
        if let Err(error) = socket.send_to(&reply, client).await {
            debug!(%error, "cannot answer a query");
        }
    }
}

/// Answers the queries of one connection, one after the other.
pub(crate) async fn serve_tcp(connection: &Connection, mut stream: impl Stream, answers: Answers) {
    let answering = async {
        while let Ok(length) = timeout(IDLE_TIMEOUT, stream.read_u16()).await? {
            if usize::from(length) > QUERY_LIMIT {
                break;
            }
            let mut query = vec![0; usize::from(length)];
            timeout(IDLE_TIMEOUT, stream.read_exact(&mut query)).await??;
            let Some(reply) = answer(&query, answers, |host| known(&connection.proxy, host)) else {
                break;
            };
            let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
            let framed = [&length.to_be_bytes()[..], &reply].concat();
            timeout(IDLE_TIMEOUT, stream.write_all(&framed)).await??;
        }
        io::Result::Ok(())
    };
    tokio::select! {
        _ = answering => {}
        () = connection.stop.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ANSWERS: Answers = Answers { v4: Some(Ipv4Addr::new(192, 0, 2, 53)), v6: None };

    fn query(name: &str, kind: u16, class: u16) -> Vec<u8> {
        let mut query = vec![0xab, 0xcd, RECURSION_DESIRED, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.').filter(|label| !label.is_empty()) {
            query.push(u8::try_from(label.len()).unwrap());
            query.extend(label.as_bytes());
        }
        query.push(0);
        query.extend(kind.to_be_bytes());
        query.extend(class.to_be_bytes());
        query
    }

    fn ask(query: &[u8]) -> Option<Vec<u8>> {
        answer(query, ANSWERS, |host| match host.as_str() {
            "api.test" => Known::Allowed,
            "above.test" => Known::Above,
            _ => Known::Not,
        })
    }

    /// The code of the answer, and how many records it has.
    fn outcome(query: &[u8]) -> (u8, u8) {
        let reply = ask(query).unwrap();
        assert_eq!(reply[..2], query[..2]);
        (reply[3] & 0x0f, reply[7])
    }

    #[test]
    fn an_allowed_name_has_the_one_address_and_its_question_back_as_it_was_asked() {
        let asked = query("aPi.Test", TYPE_A, CLASS_IN);
        let reply = ask(&asked).unwrap();
        let mut expected = vec![0xab, 0xcd, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
        expected.extend(&asked[HEADER..]);
        expected.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 192, 0, 2, 53]);
        assert_eq!(reply, expected);
    }

    #[test]
    fn an_allowed_name_has_no_data_of_any_other_type() {
        for kind in [TYPE_AAAA, 2, 5, 12, 15, 16, 33, 65, 255] {
            assert_eq!(outcome(&query("api.test", kind, CLASS_IN)), (0, 0), "{kind}");
        }
        let answers = [IpAddr::from(Ipv6Addr::LOCALHOST), IpAddr::from([0, 0, 0, 0])].into_iter().collect();
        let reply = answer(&query("api.test", TYPE_AAAA, CLASS_IN), answers, |_| Known::Allowed).unwrap();
        assert_eq!((reply[7], &reply[reply.len() - 16..]), (1, &Ipv6Addr::LOCALHOST.octets()[..]));
        assert_eq!(answers.v4, None);
    }

    #[test]
    fn a_name_above_an_allowed_one_is_there_without_data() {
        for kind in [TYPE_A, TYPE_AAAA, 16] {
            assert_eq!(outcome(&query("above.test", kind, CLASS_IN)), (0, 0), "{kind}");
        }
    }

    #[test]
    fn a_name_that_is_not_allowed_does_not_exist() {
        for name in ["secret.evil.test", "api.test.evil.test", "x.api.test", "test", "", "127.0.0.1"] {
            assert_eq!(outcome(&query(name, TYPE_A, CLASS_IN)), (3, 0), "{name}");
        }
        let mut dotted = query("api-test", TYPE_A, CLASS_IN);
        dotted[HEADER + 4] = b'.';
        assert_eq!(outcome(&dotted), (3, 0), "a dot inside a label");
    }

    #[test]
    fn what_is_not_a_plain_question_gets_its_code_or_nothing() {
        assert_eq!(outcome(&query("api.test", TYPE_A, 3)).0, 5, "another class");
        let changed = |at: usize, value: u8| {
            let mut query = query("api.test", TYPE_A, CLASS_IN);
            query[at] = value;
            query
        };
        assert_eq!(outcome(&changed(2, 0x28)).0, 4, "an update");
        assert_eq!(outcome(&changed(5, 0)).0, 1, "no question");
        assert_eq!(outcome(&changed(5, 2)).0, 1, "two questions");
        assert_eq!(outcome(&changed(7, 1)).0, 1, "an answer inside");
        assert_eq!(outcome(&changed(HEADER, 0xc0)).0, 1, "a pointer");
        assert_eq!(outcome(&changed(HEADER, 64)).0, 1, "a long label");
        assert_eq!(outcome(&query(&"a.".repeat(128), TYPE_A, CLASS_IN)).0, 1, "a long name");
        assert_eq!(ask(&changed(2, RESPONSE)), None, "an answer");
        assert_eq!(ask(&[0; HEADER - 1]), None, "too short");
        let whole = query("api.test", TYPE_A, CLASS_IN);
        for length in HEADER..whole.len() {
            assert_eq!(outcome(&whole[..length]).0, 1, "cut at {length}");
        }
    }
}
