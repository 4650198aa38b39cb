//! A client of DHCPv4 without I/O: time and messages go in, what to do comes out.

use std::net::Ipv4Addr;
use std::time::Duration;

use message::{Answer, AnswerKind, Hardware, Question, QuestionKind, Terms};

pub(crate) mod message;

/// The first question is repeated after this, and each further one after twice the time before it.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest time between two questions of somebody who has no address.
const LONGEST_WAIT: Duration = Duration::from_secs(64);
/// How often an offer is taken before another is looked for.
const TAKES: u32 = 3;
/// A shorter lease is not worth the questions.
pub(super) const SHORTEST_LEASE: u32 = 5;
/// The kernel's and the protocol's number for a lease without end.
const ENDLESS: u32 = u32::MAX;
/// Every host of IPv4 takes packets of this length.
const SMALLEST_MTU: u16 = 576;
/// Jumbo frames.
const LARGEST_MTU: u16 = 9216;
/// A wider network than this is no network of machines.
const WIDEST_PREFIX: u32 = 8;

/// An address for some time. What it holds can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
    pub(super) router: Option<Ipv4Addr>,
    pub(super) resolvers: Vec<Ipv4Addr>,
    pub(super) mtu: Option<u16>,
    pub(super) server: Ipv4Addr,
    /// `u32::MAX` for one without end.
    pub(super) seconds: u32,
    renew_after: u32,
    rebind_after: u32,
}

impl Lease {
    /// Checks what a server says; `None` where it cannot be meant.
    fn new(terms: Terms, server: Ipv4Addr) -> Option<Self> {
        let mask = terms.mask.to_bits();
        let prefix = mask.leading_ones();
        let contiguous = prefix == 32 - mask.trailing_zeros();
        if !contiguous || prefix < WIDEST_PREFIX || terms.seconds < SHORTEST_LEASE {
            return None;
        }
        let own = terms.address.to_bits();
        // The first and the last address of a network are nobody's, where it is large enough to have them.
        let nobody = prefix < 31 && (own & !mask == 0 || own & !mask == !mask);
        if !is_host(terms.address) || !is_host(server) || nobody {
            return None;
        }
        let rebind_usual = terms.seconds / 8 * 7;
        let rebind_after = terms.rebind_after.unwrap_or(rebind_usual).clamp(2, terms.seconds - 1);
        let renew_after = terms.renew_after.unwrap_or(terms.seconds / 2).clamp(1, rebind_after - 1);
        Some(Self {
            address: terms.address,
            prefix: u8::try_from(prefix).ok()?,
            router: terms.router.filter(|router| is_host(*router) && *router != terms.address),
            resolvers: terms.resolvers.into_iter().filter(|resolver| is_host(*resolver)).collect(),
            mtu: terms.mtu.filter(|mtu| (SMALLEST_MTU..=LARGEST_MTU).contains(mtu)),
            server,
            seconds: terms.seconds,
            renew_after,
            rebind_after,
        })
    }

    /// Whether the router lies in the network of the address.
    pub(super) fn is_neighbour(&self, router: Ipv4Addr) -> bool {
        let differing = (self.address.to_bits() ^ router.to_bits()).leading_zeros();
        differing >= u32::from(self.prefix)
    }
}

fn is_host(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    first != 0 && first != 127 && first < 224
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Send to everybody, or to the one server that the lease is from.
    Send(Question, Option<Ipv4Addr>),
    /// The lease is ours from now on, for as long as it says.
    Take(Lease),
    /// The address is no longer ours.
    Lose(Loss),
}

/// How an address was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// The server says so.
    Refused,
    /// Nobody renewed it in time.
    Expired,
}

#[derive(Clone, Debug)]
enum Phase {
    Looking,
    Taking { offer: Lease, times: u32 },
    Holding { lease: Lease, since: Duration },
}

/// The client of one interface.
#[derive(Clone, Debug)]
pub(super) struct Client {
    hardware: Hardware,
    phase: Phase,
    /// The number of the question that is open.
    xid: Option<u32>,
    wait: Duration,
    due: Duration,
    /// When the open question was first asked: a lease counts from there.
    asked: Duration,
}

impl Client {
    /// A client that begins to look at once.
    pub(super) fn new(hardware: Hardware, now: Duration) -> Self {
        Self { hardware, phase: Phase::Looking, xid: None, wait: FIRST_WAIT, due: now, asked: now }
    }

    /// The same client, which holds this lease since then.
    pub(super) fn holding(&self, lease: Lease, since: Duration) -> Self {
        let mut client = self.clone();
        client.hold(lease, since);
        client
    }

    /// When time itself is the next event; never with a lease without end.
    pub(super) fn due(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Holding { lease, .. } if lease.seconds == ENDLESS => None,
            _ => Some(self.due),
        }
    }

    /// Time passed. The number is one that nobody else can know.
    pub(super) fn on_time(&mut self, now: Duration, number: u32) -> Vec<Action> {
        if self.due().is_none_or(|due| now < due) {
            return Vec::new();
        }
        match self.phase.clone() {
            Phase::Looking => vec![self.look(now, number)],
            Phase::Taking { times, .. } if times >= TAKES => {
                self.phase = Phase::Looking;
                vec![self.look(now, number)]
            }
            Phase::Taking { offer, times } => {
                let (address, server) = (offer.address, offer.server);
                self.phase = Phase::Taking { offer, times: times + 1 };
                self.back_off(now);
                let xid = self.xid.unwrap_or(number);
                vec![self.send(xid, QuestionKind::Take { address, server }, None)]
            }
            Phase::Holding { lease, since } => self.renew(&lease, since, now, number),
        }
    }

    /// A message came.
    pub(super) fn on_answer(&mut self, now: Duration, answer: &Answer) -> Vec<Action> {
        if self.xid != Some(answer.xid) || answer.hardware != self.hardware {
            return Vec::new();
        }
        match (self.phase.clone(), &answer.kind) {
            (Phase::Looking, AnswerKind::Offer(terms)) => {
                let Some(offer) = Lease::new(terms.clone(), answer.server) else { return Vec::new() };
                let kind = QuestionKind::Take { address: offer.address, server: offer.server };
                self.phase = Phase::Taking { offer, times: 1 };
                self.wait = FIRST_WAIT;
                self.asked = now;
                self.back_off(now);
                vec![self.send(answer.xid, kind, None)]
            }
            (Phase::Taking { offer, .. }, AnswerKind::Granted(terms)) => {
                let granted = Lease::new(terms.clone(), answer.server);
                let Some(lease) =
                    granted.filter(|lease| (lease.address, lease.server) == (offer.address, offer.server))
                else {
                    return Vec::new();
                };
                self.hold(lease.clone(), self.asked);
                vec![Action::Take(lease)]
            }
            (Phase::Taking { offer, .. }, AnswerKind::Refused) if answer.server == offer.server => {
                self.look_again(now);
                Vec::new()
            }
            (Phase::Holding { lease: held, since }, AnswerKind::Granted(terms)) => {
                let anybody = now >= since + seconds(held.rebind_after);
                let granted = Lease::new(terms.clone(), answer.server);
                let Some(lease) = granted.filter(|lease| {
                    lease.address == held.address && (anybody || lease.server == held.server)
                }) else {
                    return Vec::new();
                };
                self.hold(lease.clone(), self.asked);
                vec![Action::Take(lease)]
            }
            (Phase::Holding { lease, since }, AnswerKind::Refused)
                if answer.server == lease.server || now >= since + seconds(lease.rebind_after) =>
            {
                self.look_again(now);
                vec![Action::Lose(Loss::Refused)]
            }
            _ => Vec::new(),
        }
    }

    fn hold(&mut self, lease: Lease, since: Duration) {
        self.due = since + seconds(lease.renew_after);
        self.phase = Phase::Holding { lease, since };
        self.xid = None;
        self.wait = FIRST_WAIT;
    }

    /// From the beginning, after a while: who refused once may do so again and again.
    fn look_again(&mut self, now: Duration) {
        self.phase = Phase::Looking;
        self.xid = None;
        self.back_off(now);
    }

    fn look(&mut self, now: Duration, number: u32) -> Action {
        self.xid = Some(number);
        self.back_off(now);
        self.send(number, QuestionKind::Discover, None)
    }

    fn renew(&mut self, lease: &Lease, since: Duration, now: Duration, number: u32) -> Vec<Action> {
        let end = since + seconds(lease.seconds);
        if now >= end {
            self.phase = Phase::Looking;
            self.wait = FIRST_WAIT;
            return vec![Action::Lose(Loss::Expired), self.look(now, number)];
        }
        let rebind = since + seconds(lease.rebind_after);
        let (server, next) = if now < rebind { (Some(lease.server), rebind) } else { (None, end) };
        // Half of what is left each time, and not more often than makes sense.
        let least = seconds(lease.seconds / 8).clamp(Duration::from_secs(1), Duration::from_secs(60));
        self.due = (now + ((next - now) / 2).max(least)).min(next);
        self.asked = now;
        self.xid = Some(number);
        vec![self.send(number, QuestionKind::Keep { address: lease.address }, server)]
    }

    fn back_off(&mut self, now: Duration) {
        self.due = now + self.wait;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }

    fn send(&self, xid: u32, kind: QuestionKind, to: Option<Ipv4Addr>) -> Action {
        Action::Send(Question { xid, hardware: self.hardware, kind }, to)
    }
}

fn seconds(count: u32) -> Duration {
    Duration::from_secs(count.into())
}

#[cfg(test)]
pub(super) mod tests;
