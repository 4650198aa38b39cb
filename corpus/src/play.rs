//! Playing the cases, as many at once as there are origins.

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde::Serialize;

use crate::{
    case::{Case, Expect, Over, Request, Script, Tls},
    exchange::{Setting, exchange},
    judge::{Seen, judge},
    origin::Origin,
};

/// After an exchange: how long the origin must be quiet before it is asked what came.
const SETTLED: Duration = Duration::from_millis(60);

/// A case over one transport.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Play<'a> {
    case: &'a Case,
    pub(crate) over: Over,
}

impl<'a> Play<'a> {
    pub(crate) fn of(case: &'a Case) -> impl Iterator<Item = Self> {
        case.over.iter().map(move |over| Self { case, over: *over })
    }

    /// Whether the first bytes on the proxy's port say which origin is meant.
    #[cfg(test)]
    pub(crate) fn names_the_port(&self) -> bool {
        let named = |text: &str| text.contains("{port}") || text.contains("{authority}");
        match (&self.case.connect, &self.case.play) {
            (Some(connect), _) => named(connect),
            (None, Script::Send(parts)) if self.over != Over::Tunnel => {
                parts.first().is_some_and(|part| part.len() < 2_000 && (named(part) || part.contains("{to}")))
            }
            (None, Script::Send(_) | Script::Request(_) | Script::Frames(_)) => true,
        }
    }
}

/// What came of one play.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome<'a> {
    pub(crate) id: &'a str,
    pub(crate) class: &'a str,
    pub(crate) over: Over,
    /// Whether the proxy did what a sound one does.
    pub(crate) passed: bool,
    /// What was seen, for a person.
    pub(crate) seen: String,
    pub(crate) reference: &'a str,
}

/// Every play, in their order.
pub(crate) fn all<'a>(setting: &Setting, origins: &[Origin], plays: &[Play<'a>]) -> Vec<Outcome<'a>> {
    let queue = Mutex::new(plays.iter().enumerate());
    let done = Mutex::new(Vec::with_capacity(plays.len()));
    std::thread::scope(|scope| {
        for origin in origins {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some((index, play)) = next else { break };
                    let outcome = one(setting, origin, *play);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((index, outcome));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

fn one<'a>(setting: &Setting, origin: &Origin, play: Play<'a>) -> Outcome<'a> {
    let Play { case, over } = play;
    let mark = origin.mark();
    let seen = exchange(setting, case, over, origin.address).map(|seen| {
        origin.settle(SETTLED);
        let (connections, requests) = origin.since(&mark);
        let next_served = case.expect != Expect::Survives || served(setting, over, origin.address);
        Seen { connections, requests, next_served, ..seen }
    });
    let authority = format!("{}:{}", setting.host, origin.address.port());
    let (passed, seen) = match seen {
        Err(error) => (false, format!("could not be played: {error}")),
        Ok(seen) => match judge(case, over, &authority, &seen) {
            Ok(seen) => (true, seen),
            Err(wrong) => (false, wrong),
        },
    };
    Outcome { id: &case.id, class: &case.class, over, passed, seen, reference: &case.reference }
}

/// Whether a friendly request by another client is answered.
fn served(setting: &Setting, over: Over, origin: SocketAddr) -> bool {
    let request =
        Request { method: "GET".into(), path: "/allowed/next".into(), headers: Vec::new(), body: None };
    let case = Case {
        id: String::new(),
        class: String::new(),
        over: vec![over],
        connect: None,
        tls: Tls::default(),
        play: Script::Request(request),
        expect: Expect::Served,
        most: 1,
        absent: Vec::new(),
        reference: String::new(),
    };
    let over = if over == Over::Raw { Over::Plain } else { over };
    exchange(setting, &case, over, origin).is_ok_and(|seen| seen.statuses == [200])
}
