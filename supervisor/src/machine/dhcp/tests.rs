use proptest::prelude::*;

use super::message::LONGEST;
use super::*;

const HARDWARE: Hardware = [2, 0, 0, 0, 0, 7];
const XID: u32 = 0x1234_5678;
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// A server's message, with these options behind the cookie.
pub(in crate::machine) fn message(
    xid: u32,
    hardware: Hardware,
    address: Ipv4Addr,
    options: &[(u8, &[u8])],
) -> Vec<u8> {
    let mut bytes = vec![2, 1, 6, 0];
    bytes.extend(xid.to_be_bytes());
    bytes.resize(16, 0);
    bytes.extend(address.octets());
    bytes.resize(28, 0);
    bytes.extend(hardware);
    bytes.resize(236, 0);
    bytes.extend([99, 130, 83, 99]);
    for (option, value) in options {
        bytes.extend([*option, u8::try_from(value.len()).unwrap()]);
        bytes.extend(*value);
    }
    bytes.push(255);
    bytes
}

fn options(kind: u8) -> Vec<(u8, &'static [u8])> {
    let kind: &[u8] = match kind {
        2 => &[2],
        5 => &[5],
        _ => &[6],
    };
    vec![
        (53, kind),
        (54, &[10, 0, 2, 2]),
        (1, &[255, 255, 255, 0]),
        (3, &[10, 0, 2, 2]),
        (6, &[10, 0, 2, 3, 10, 0, 2, 4]),
        (26, &[5, 120]),
        (51, &[0, 0, 14, 16]),
    ]
}

fn answer(kind: u8) -> Answer {
    Answer::decode(&message(XID, HARDWARE, ADDRESS, &options(kind))).unwrap()
}

fn with(kind: u8, option: u8, value: &'static [u8]) -> Option<Answer> {
    let mut options = options(kind);
    options.retain(|(found, _)| *found != option);
    options.push((option, value));
    Answer::decode(&message(XID, HARDWARE, ADDRESS, &options))
}

fn lease() -> Lease {
    Lease {
        address: ADDRESS,
        prefix: 24,
        router: Some(SERVER),
        resolvers: vec![Ipv4Addr::new(10, 0, 2, 3), Ipv4Addr::new(10, 0, 2, 4)],
        mtu: Some(1400),
        server: SERVER,
        seconds: 3600,
        renew_after: 1800,
        rebind_after: 3150,
    }
}

fn question(xid: u32, kind: QuestionKind) -> Question {
    Question { xid, hardware: HARDWARE, kind }
}

fn take(xid: u32) -> Action {
    Action::Send(question(xid, QuestionKind::Take { address: ADDRESS, server: SERVER }), None)
}

/// A client that asked for the first time.
fn looking() -> Client {
    let mut client = Client::new(HARDWARE, seconds(0));
    assert_eq!(client.on_time(seconds(0), XID), [Action::Send(question(XID, QuestionKind::Discover), None)]);
    client
}

fn holding() -> Client {
    let mut client = looking();
    assert_eq!(client.on_answer(seconds(0), &answer(2)), [take(XID)]);
    assert_eq!(client.on_answer(seconds(0), &answer(5)), [Action::Take(lease())]);
    client
}

#[test]
fn an_offer_is_taken_and_what_is_granted_is_used() {
    holding();
}

#[test]
fn a_question_has_its_fields_where_servers_look() {
    let bytes = question(XID, QuestionKind::Take { address: ADDRESS, server: SERVER }).encode();
    assert_eq!(bytes[..12], [1, 1, 6, 0, 0x12, 0x34, 0x56, 0x78, 0, 0, 0x80, 0]);
    assert_eq!(bytes[28..34], HARDWARE);
    assert_eq!(bytes[236..243], [99, 130, 83, 99, 53, 1, 3]);
    assert_eq!(bytes[243..255], [50, 4, 10, 0, 2, 15, 54, 4, 10, 0, 2, 2]);
    assert_eq!(bytes.len(), 300);
    let keep = question(XID, QuestionKind::Keep { address: ADDRESS }).encode();
    // Unicast, from the address itself, and without the options that are for a new one.
    assert_eq!((&keep[10..16], keep[243]), (&[0, 0, 10, 0, 2, 15][..], 55));
}

#[test]
fn questions_are_asked_less_and_less_often() {
    let mut client = Client::new(HARDWARE, seconds(0));
    let mut times = Vec::new();
    for number in 0..9 {
        let due = client.due().unwrap();
        assert_eq!(client.on_time(due, number).len(), 1);
        times.push((client.due().unwrap() - due).as_secs());
    }
    assert_eq!(times, [1, 2, 4, 8, 16, 32, 64, 64, 64]);
}

#[test]
fn an_answer_to_another_question_or_another_client_is_passed_over() {
    let mut client = looking();
    for wrong in [Answer { xid: XID + 1, ..answer(2) }, Answer { hardware: [2; 6], ..answer(2) }] {
        assert_eq!(client.on_answer(seconds(0), &wrong), []);
    }
    // Neither what nobody asked for yet.
    assert_eq!(client.on_answer(seconds(0), &answer(5)), []);
    assert_eq!(client.on_answer(seconds(0), &answer(6)), []);
    assert_eq!(client.on_answer(seconds(0), &answer(2)), [take(XID)]);
    let other = Answer { server: Ipv4Addr::new(10, 0, 2, 9), ..answer(5) };
    assert_eq!(client.on_answer(seconds(0), &other), [], "another server grants");
    let other = Answer { kind: AnswerKind::Refused, ..other };
    assert_eq!(client.on_answer(seconds(0), &other), [], "another server refuses");
    assert_eq!(client.on_answer(seconds(0), &answer(5)), [Action::Take(lease())]);
    assert_eq!(client.on_answer(seconds(1), &answer(6)), [], "a late refusal");
}

#[test]
fn who_offers_and_does_not_grant_is_asked_three_times() {
    let mut client = looking();
    client.on_answer(seconds(0), &answer(2));
    let again: Vec<Action> = (0..3).flat_map(|_| client.on_time(client.due().unwrap(), 9)).collect();
    assert_eq!(again, [take(XID), take(XID), Action::Send(question(9, QuestionKind::Discover), None)]);
}

#[test]
fn after_a_refusal_all_begins_again_later_and_with_another_number() {
    let mut client = looking();
    client.on_answer(seconds(0), &answer(2));
    assert_eq!(client.on_answer(seconds(0), &answer(6)), []);
    assert_eq!(client.on_time(seconds(0), 9), [], "not at once");
    assert_eq!(client.on_answer(seconds(0), &answer(2)), [], "the old number is over");
    let due = client.due().unwrap();
    assert_eq!(client.on_time(due, 9), [Action::Send(question(9, QuestionKind::Discover), None)]);
}

#[test]
fn a_lease_is_renewed_with_its_server_then_with_any_and_ends() {
    let mut client = holding();
    let keep = |xid| question(xid, QuestionKind::Keep { address: ADDRESS });
    assert_eq!(client.due(), Some(seconds(1800)));
    assert_eq!(client.on_time(seconds(1799), 2), []);
    assert_eq!(client.on_time(seconds(1800), 2), [Action::Send(keep(2), Some(SERVER))]);
    let elsewhere = Answer { xid: 2, server: Ipv4Addr::new(10, 0, 2, 9), ..answer(5) };
    assert_eq!(client.on_answer(seconds(1801), &elsewhere), [], "not yet anybody's");
    assert_eq!(client.due(), Some(seconds(1800 + 675)));
    assert_eq!(client.on_time(seconds(3150), 3), [Action::Send(keep(3), None)]);
    let mut rebound = client.clone();
    let elsewhere = Answer { xid: 3, ..elsewhere };
    let expected = Lease { server: elsewhere.server, ..lease() };
    assert_eq!(rebound.on_answer(seconds(3151), &elsewhere), [Action::Take(expected)]);
    assert_eq!(rebound.due(), Some(seconds(3150 + 1800)), "it counts from the question");
    assert_eq!(
        client.on_time(seconds(3600), 4),
        [Action::Lose(Loss::Expired), Action::Send(question(4, QuestionKind::Discover), None)]
    );
}

#[test]
fn a_refused_renewal_loses_the_address_at_once() {
    let mut client = holding();
    client.on_time(seconds(1800), XID);
    let elsewhere = Answer { server: Ipv4Addr::new(10, 0, 2, 9), ..answer(6) };
    assert_eq!(client.on_answer(seconds(1801), &elsewhere), []);
    assert_eq!(client.on_answer(seconds(1801), &answer(6)), [Action::Lose(Loss::Refused)]);
}

#[test]
fn a_renewal_with_another_address_is_passed_over() {
    let mut client = holding();
    client.on_time(seconds(1800), XID);
    let bytes = message(XID, HARDWARE, Ipv4Addr::new(10, 0, 2, 16), &options(5));
    assert_eq!(client.on_answer(seconds(1801), &Answer::decode(&bytes).unwrap()), []);
}

#[test]
fn a_lease_without_end_wakes_nobody() {
    let mut client = looking();
    client.on_answer(seconds(0), &answer(2));
    let endless = with(5, 51, &[255; 4]).unwrap();
    assert!(
        matches!(&client.on_answer(seconds(0), &endless)[..], [Action::Take(lease)] if lease.seconds == u32::MAX)
    );
    assert_eq!(client.due(), None);
}

#[test]
fn what_a_server_cannot_mean_is_no_offer() {
    let offer = |answer: Answer| looking().on_answer(seconds(0), &answer);
    for (option, value) in [
        (1, &[255, 0, 255, 0][..]),
        (1, &[0, 0, 0, 0]),
        (1, &[240, 0, 0, 0]),
        (51, &[0, 0, 0, 1]),
        (54, &[127, 0, 0, 1]),
    ] {
        assert_eq!(offer(with(2, option, value).unwrap()), [], "{option} {value:?}");
    }
    for address in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4], [10, 0, 2, 0], [10, 0, 2, 255]] {
        let bytes = message(XID, HARDWARE, address.into(), &options(2));
        assert_eq!(offer(Answer::decode(&bytes).unwrap()), [], "{address:?}");
    }
}

#[test]
fn times_that_would_make_us_ask_without_end_are_put_right() {
    for (renew, rebind) in [(&[0; 4], &[0; 4]), (&[255; 4], &[255; 4]), (&[0, 0, 255, 0], &[0; 4])] {
        let mut all = options(2);
        all.extend([(58, &renew[..]), (59, &rebind[..])]);
        let answer = Answer::decode(&message(XID, HARDWARE, ADDRESS, &all)).unwrap();
        let AnswerKind::Offer(terms) = answer.kind else { panic!("an offer") };
        let lease = Lease::new(terms, SERVER).unwrap();
        assert!(1 <= lease.renew_after && lease.renew_after < lease.rebind_after, "{lease:?}");
        assert!(lease.rebind_after < lease.seconds, "{lease:?}");
    }
}

#[test]
fn what_is_not_vital_is_left_out_when_it_is_nonsense() {
    for (option, value) in [(26, &[0, 68][..]), (26, &[255, 255]), (3, &[0, 0, 0, 0]), (6, &[127, 0, 0, 1])] {
        let AnswerKind::Offer(terms) = with(2, option, value).unwrap().kind else { panic!("an offer") };
        let found = Lease::new(terms, SERVER).unwrap();
        let whole = lease();
        assert_eq!(found.mtu, whole.mtu.filter(|_| option != 26));
        assert_eq!(found.router, whole.router.filter(|_| option != 3));
        assert_eq!(found.resolvers.is_empty(), option == 6);
    }
}

#[test]
fn short_double_and_cut_options_make_no_answer() {
    for (option, value) in
        [(51, &[1, 2, 3][..]), (1, &[255; 3]), (3, &[1; 5]), (6, &[1; 3]), (26, &[1]), (53, &[])]
    {
        assert_eq!(with(2, option, value), None, "{option}");
    }
    let mut twice = options(2);
    twice.push((54, &[10, 0, 2, 9]));
    assert_eq!(Answer::decode(&message(XID, HARDWARE, ADDRESS, &twice)), None);
    let whole = message(XID, HARDWARE, ADDRESS, &options(2));
    for length in 0..whole.len() {
        assert_eq!(Answer::decode(&whole[..length]), None, "{length}");
    }
    for (at, byte) in [(0, 1), (1, 6), (2, 16), (236, 0)] {
        let mut wrong = whole.clone();
        wrong[at] = byte;
        assert_eq!(Answer::decode(&wrong), None, "{at}");
    }
    let mut long = whole;
    long.resize(LONGEST + 1, 0);
    assert_eq!(Answer::decode(&long), None);
}

proptest! {
    #[test]
    fn any_bytes_are_an_answer_or_none(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut framed = message(XID, HARDWARE, ADDRESS, &[]);
        framed.pop();
        framed.extend(&bytes);
        for input in [&bytes, &framed] {
            if let Some(answer) = Answer::decode(input) {
                looking().on_answer(seconds(0), &answer);
            }
        }
    }

    /// Whatever servers say and whenever: no address but in a lease, nothing is lost that was not held, time never stands still.
    #[test]
    fn no_server_brings_the_client_out_of_step(
        events in prop::collection::vec((0_u8..6, 0_u64..4000, any::<u32>()), 1..60),
    ) {
        let mut client = Client::new(HARDWARE, seconds(0));
        let mut now = seconds(0);
        let mut held = false;
        for (event, passed, number) in events {
            now += Duration::from_secs(passed);
            let actions = match event {
                kind @ (2 | 5) => client.on_answer(now, &Answer { xid: client.xid.unwrap_or(number), ..answer(kind) }),
                0 => client.on_answer(now, &Answer { xid: client.xid.unwrap_or(number), ..answer(6) }),
                1 => client.on_answer(now, &Answer { xid: number, ..answer(5) }),
                _ => client.on_time(now, number),
            };
            for action in actions {
                match action {
                    Action::Take(_) => held = true,
                    Action::Lose(_) => prop_assert!(std::mem::take(&mut held)),
                    Action::Send(question, _) => {
                        prop_assert_eq!(held, matches!(question.kind, QuestionKind::Keep { .. }));
                    }
                }
            }
            let due = client.due();
            prop_assert!(due.is_some());
            if event > 2 && event != 5 {
                prop_assert!(due.unwrap() > now, "{:?} at {:?}", due, now);
            }
        }
    }
}
