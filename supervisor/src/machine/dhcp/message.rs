//! The messages of DHCPv4 (RFC 2131, RFC 2132), as far as a client needs them. No I/O, and nothing of this crate: it is fuzzed alone.

use std::net::Ipv4Addr;

/// The longest message that is sent or read: a frame of Ethernet without the heads around it.
pub(crate) const LONGEST: usize = 1472;
/// The shortest that every relay passes on.
const SHORTEST: usize = 300;
/// Where the options begin, behind the cookie.
const OPTIONS: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const TO_SERVER: u8 = 1;
const TO_CLIENT: u8 = 2;
const ETHERNET: u8 = 1;
/// Who has no address yet can only hear a broadcast.
const ANSWER_BY_BROADCAST: u16 = 0x8000;
/// Resolvers of one lease that are kept.
const MOST_RESOLVERS: usize = 3;

const PAD: u8 = 0;
const MASK: u8 = 1;
const ROUTER: u8 = 3;
const RESOLVERS: u8 = 6;
const MTU: u8 = 26;
const ADDRESS: u8 = 50;
const LEASE_TIME: u8 = 51;
const KIND: u8 = 53;
const SERVER: u8 = 54;
const ASKED: u8 = 55;
const LONGEST_ANSWER: u8 = 57;
const RENEW_AFTER: u8 = 58;
const REBIND_AFTER: u8 = 59;
const END: u8 = 255;

/// An address of Ethernet.
pub(crate) type Hardware = [u8; 6];

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    /// What the answer must carry too.
    pub(crate) xid: u32,
    pub(crate) hardware: Hardware,
    pub(crate) kind: QuestionKind,
}

/// The questions of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QuestionKind {
    /// Who has an address for me?
    Discover,
    /// I take this one of that server.
    Take { address: Ipv4Addr, server: Ipv4Addr },
    /// May I keep the one that I have?
    Keep { address: Ipv4Addr },
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) xid: u32,
    pub(crate) hardware: Hardware,
    pub(crate) server: Ipv4Addr,
    pub(crate) kind: AnswerKind,
}

/// The answers that matter to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AnswerKind {
    Offer(Terms),
    Granted(Terms),
    Refused,
}

/// An address and what comes with it. Whether it can be used is the reader's to decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) address: Ipv4Addr,
    pub(crate) mask: Ipv4Addr,
    pub(crate) router: Option<Ipv4Addr>,
    pub(crate) resolvers: Vec<Ipv4Addr>,
    pub(crate) mtu: Option<u16>,
    pub(crate) seconds: u32,
    pub(crate) renew_after: Option<u32>,
    pub(crate) rebind_after: Option<u32>,
}

impl Question {
    /// The message as it is sent.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (flags, own) = match self.kind {
            QuestionKind::Discover | QuestionKind::Take { .. } => {
                (ANSWER_BY_BROADCAST, Ipv4Addr::UNSPECIFIED)
            }
            QuestionKind::Keep { address } => (0, address),
        };
        let mut bytes = vec![TO_SERVER, ETHERNET, 6, 0];
        bytes.extend(self.xid.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(flags.to_be_bytes());
        bytes.extend(own.octets());
        bytes.resize(28, 0);
        bytes.extend(self.hardware);
        bytes.resize(OPTIONS - COOKIE.len(), 0);
        bytes.extend(COOKIE);
        let kind = if self.kind == QuestionKind::Discover { 1 } else { 3 };
        bytes.extend([KIND, 1, kind]);
        if let QuestionKind::Take { address, server } = self.kind {
            for (option, value) in [(ADDRESS, address), (SERVER, server)] {
                bytes.extend([option, 4]);
                bytes.extend(value.octets());
            }
        }
        // Not the routes of option 121: a neighbour could lead single networks past the router with them.
        bytes.extend([ASKED, 7, MASK, ROUTER, RESOLVERS, MTU, LEASE_TIME, RENEW_AFTER, REBIND_AFTER]);
        bytes.extend([LONGEST_ANSWER, 2]);
        bytes.extend(1500_u16.to_be_bytes());
        bytes.push(END);
        bytes.resize(bytes.len().max(SHORTEST), 0);
        bytes
    }
}

impl Answer {
    /// Reads a message; `None` for everything that is not a whole answer.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > LONGEST || bytes.get(..3)? != [TO_CLIENT, ETHERNET, 6] {
            return None;
        }
        if *bytes.get(OPTIONS - COOKIE.len()..OPTIONS)? != COOKIE {
            return None;
        }
        let options = Options::parse(&bytes[OPTIONS..])?;
        let terms = || Terms::from(address_at(bytes, 16)?, &options);
        let kind = match *options.get(KIND)? {
            [2] => AnswerKind::Offer(terms()?),
            [5] => AnswerKind::Granted(terms()?),
            [6] => AnswerKind::Refused,
            _ => return None,
        };
        Some(Self {
            xid: number(bytes.get(4..8)?)?,
            hardware: bytes.get(28..34)?.try_into().ok()?,
            server: options.address(SERVER)?,
            kind,
        })
    }
}

impl Terms {
    fn from(address: Ipv4Addr, options: &Options<'_>) -> Option<Self> {
        // What is there must be whole; what is not there is none.
        let time = |option| options.get(option).map_or(Some(None), |value| number(value).map(Some));
        let mtu = match options.get(MTU) {
            Some(value) => Some(u16::from_be_bytes(value.try_into().ok()?)),
            None => None,
        };
        Some(Self {
            address,
            mask: options.address(MASK)?,
            router: options.addresses(ROUTER)?.next(),
            resolvers: options.addresses(RESOLVERS)?.take(MOST_RESOLVERS).collect(),
            mtu,
            seconds: number(options.get(LEASE_TIME)?)?,
            renew_after: time(RENEW_AFTER)?,
            rebind_after: time(REBIND_AFTER)?,
        })
    }
}

/// The options of a message, each at most once.
struct Options<'a>([Option<&'a [u8]>; 256]);

impl<'a> Options<'a> {
    fn parse(mut rest: &'a [u8]) -> Option<Self> {
        let mut found = [None; 256];
        loop {
            match *rest.first()? {
                PAD => rest = &rest[1..],
                END => return Some(Self(found)),
                option => {
                    let length = usize::from(*rest.get(1)?);
                    let value = rest.get(2..2 + length)?;
                    if found[usize::from(option)].replace(value).is_some() {
                        return None;
                    }
                    rest = &rest[2 + length..];
                }
            }
        }
    }

    fn get(&self, option: u8) -> Option<&'a [u8]> {
        self.0[usize::from(option)]
    }

    fn address(&self, option: u8) -> Option<Ipv4Addr> {
        let value: [u8; 4] = self.get(option)?.try_into().ok()?;
        Some(value.into())
    }

    fn addresses(&self, option: u8) -> Option<impl Iterator<Item = Ipv4Addr> + use<'a>> {
        let (addresses, rest) = self.get(option).unwrap_or_default().as_chunks::<4>();
        rest.is_empty().then(|| addresses.iter().map(|&address| address.into()))
    }
}

fn address_at(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let value: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(value.into())
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}
