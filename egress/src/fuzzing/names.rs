//! What the DNS responder makes of any message.

use std::net::Ipv4Addr;

use policy::Host;

use crate::dns::{Answers, Known, answer};

/// The name that the claims are about, as it stands in a message.
const ALLOWED: &[u8] = b"\x03api\x04test\x00";
const HEADER: usize = 12;
/// A pointer, a type, a class, a time and an IPv4 address.
const RECORD: usize = 16;

/// The answer holds nothing but what was asked and the one address, and that only for the one name.
pub fn dns(query: &[u8]) {
    let answers = Answers { v4: Some(Ipv4Addr::new(192, 0, 2, 53)), v6: None };
    let Some(reply) = answer(query, answers, known) else { return };
    assert_eq!((&reply[..2], reply[2] & 0x80), (&query[..2], 0x80));
    let records = u16::from_be_bytes([reply[6], reply[7]]);
    assert!(records <= 1 && reply[8..HEADER] == [0; 4]);
    let question = &reply[HEADER..reply.len() - usize::from(records) * RECORD];
    assert!(query[HEADER..].starts_with(question));
    if records == 1 {
        let (name, kind) = question.split_at(ALLOWED.len());
        assert_eq!((name.to_ascii_lowercase().as_slice(), kind), (ALLOWED, &[0, 1, 0, 1][..]));
        assert_eq!((reply[3] & 0x0f, &reply[reply.len() - 4..]), (0, &[192, 0, 2, 53][..]));
    }
}

fn known(host: &Host) -> Known {
    match host.as_str() {
        "api.test" => Known::Allowed,
        "test" => Known::Above,
        _ => Known::Not,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    fn part() -> impl Strategy<Value = Vec<u8>> {
        let fixed: Vec<&[u8]> = vec![
            b"\xab\xcd\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00",
            b"\xab\xcd\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01",
            b"\x03api\x04test\x00",
            b"\x03API\x04Test",
            b"\x08api.test",
            b"\x00\x00\x01\x00\x01",
            b"\x00\x01\x00\x01",
            b"\x00\x1c\x00\x01",
            b"\xc0\x0c",
            b"\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x00",
        ];
        prop_oneof![
            4 => prop::sample::select(fixed).prop_map(<[u8]>::to_vec),
            1 => prop::collection::vec(any::<u8>(), 0..40),
        ]
    }

    proptest! {
        #[test]
        fn an_answer_holds_what_was_asked_and_the_one_address(parts in prop::collection::vec(part(), 1..6)) {
            super::dns(&parts.concat());
        }
    }

    #[test]
    fn the_allowed_name_is_among_what_is_answered() {
        let query = b"\xab\xcd\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03api\x04test\x00\x00\x01\x00\x01";
        super::dns(query);
        let answers = super::Answers { v4: Some(std::net::Ipv4Addr::LOCALHOST), v6: None };
        assert_eq!(super::answer(query, answers, |_| super::Known::Allowed).map(|reply| reply[7]), Some(1));
    }
}
