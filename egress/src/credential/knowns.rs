use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use policy::{AuthScheme, HostPattern, Route, Scheme};
use scan::{Known, KnownError, Scrubber};

use super::Secret;
use crate::authority::Endpoint;
use crate::scrub::Hits;

/// More secrets than one bottle uses at once, and more bytes of them; past it the oldest are no longer looked for. One that is
/// still in use is learned again with the next request.
const MEMBERS_MAX: usize = 64;
const MEMBERS_MAX_BYTES: usize = 64 * 1024;

/// Routes by which one secret went out that are remembered; they are the operator's, and more of them are other files of routes.
const PLACES_MAX: usize = 256;

/// The secrets that were put into requests, to be found where they must not be, and where they went. One that was replaced stays.
#[derive(Debug, Default)]
pub(crate) struct Knowns {
    members: Mutex<Members>,
    /// Another, once more is looked for, or one of them went to another place.
    generation: AtomicU64,
}

#[derive(Debug, Default)]
struct Members {
    known: Arc<Known>,
    secrets: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    secret: Secret,
    scheme: Option<AuthScheme>,
    outcome: Result<(), KnownError>,
    places: Vec<Place>,
}

/// Where a secret went, which outlives the route that it went by: upstream may have kept it.
#[derive(Debug)]
struct Place {
    scheme: Scheme,
    host: HostPattern,
    ports: Vec<u16>,
    hits: Arc<Hits>,
}

impl Place {
    fn is_of(&self, route: &Route) -> bool {
        self.scheme == route.scheme() && self.host == *route.host() && self.ports == route.ports()
    }

    fn holds(&self, endpoint: &Endpoint) -> bool {
        self.scheme == endpoint.scheme
            && self.ports.contains(&endpoint.port)
            && self.host.matches(&endpoint.host)
    }
}

/// What is known at one time.
pub(crate) struct Now {
    pub(crate) known: Arc<Known>,
    pub(crate) generation: u64,
    /// A secret that is looked for went to the place in question: how often it came back from there.
    pub(crate) gone: Option<Arc<Hits>>,
}

fn add(known: &mut Known, secret: &Secret, scheme: Option<&AuthScheme>) -> Result<(), KnownError> {
    let outcome = known.add(secret.open());
    if matches!(scheme, Some(AuthScheme::Basic))
        && let Some(colon) = secret.open().iter().position(|byte| *byte == b':')
    {
        // The password may come back without the user; a short one only as a part of the pair.
        let _ = known.add(&secret.open()[colon + 1..]);
    }
    outcome
}

impl Members {
    /// What is looked for is made anew of those that stay: fingerprints cannot be taken out.
    fn forget_oldest(&mut self) {
        let bytes =
            |members: &[Member]| -> usize { members.iter().map(|member| member.secret.open().len()).sum() };
        let mut from = self.secrets.len().saturating_sub(MEMBERS_MAX);
        while from + 1 < self.secrets.len() && bytes(&self.secrets[from..]) > MEMBERS_MAX_BYTES {
            from += 1;
        }
        if from == 0 {
            return;
        }
        self.secrets.drain(..from);
        let mut known = Known::default();
        for member in &self.secrets {
            let _ = add(&mut known, &member.secret, member.scheme.as_ref());
        }
        self.known = Arc::new(known);
    }
}

impl Knowns {
    /// Looks for this secret from now on; an error when it cannot be told from other text.
    pub(crate) fn learn(&self, secret: &Secret, scheme: Option<&AuthScheme>) -> Result<(), KnownError> {
        let mut members = self.lock();
        let at = self.member(&mut members, secret, scheme);
        members.secrets[at].outcome
    }

    /// The same, and remembers that it goes out by `route`; `hits` counts how often it comes back.
    pub(crate) fn give(
        &self,
        secret: &Secret,
        scheme: Option<&AuthScheme>,
        route: &Route,
        hits: &Arc<Hits>,
    ) -> Result<(), KnownError> {
        let mut members = self.lock();
        let at = self.member(&mut members, secret, scheme);
        let member = &mut members.secrets[at];
        member.outcome?;
        if !member.places.iter().any(|place| place.is_of(route)) {
            let (host, ports) = (route.host().clone(), route.ports().to_vec());
            member.places.push(Place { scheme: route.scheme(), host, ports, hits: Arc::clone(hits) });
            let over = member.places.len().saturating_sub(PLACES_MAX);
            member.places.drain(..over);
            self.generation.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }

    /// What is looked for now, and whether any of it went to `endpoint`.
    pub(crate) fn now(&self, endpoint: &Endpoint) -> Now {
        let members = self.lock();
        let mut places = members.secrets.iter().flat_map(|member| &member.places);
        let gone = places.find(|place| place.holds(endpoint)).map(|place| Arc::clone(&place.hits));
        Now { known: Arc::clone(&members.known), generation: self.generation(), gone }
    }

    /// What is looked for now.
    pub(crate) fn current(&self) -> Arc<Known> {
        Arc::clone(&self.lock().known)
    }

    /// `text` without what is looked for.
    pub(crate) fn masked(&self, text: &str) -> String {
        let masked = Scrubber::new(self.current()).whole(text.as_bytes());
        masked.map_or_else(|| text.to_owned(), |masked| String::from_utf8_lossy(&masked).into_owned())
    }

    /// To be asked whether there is more than at another time.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is among the members, of which it is one from now on.
    fn member(&self, members: &mut Members, secret: &Secret, scheme: Option<&AuthScheme>) -> usize {
        // Another scheme may look for a part of it by itself, as `basic` does for the password.
        let same = |member: &Member| member.secret == *secret && member.scheme.as_ref() == scheme;
        if let Some(at) = members.secrets.iter().position(same) {
            return at;
        }
        let outcome = add(Arc::make_mut(&mut members.known), secret, scheme);
        let (secret, scheme) = (secret.clone(), scheme.cloned());
        members.secrets.push(Member { secret, scheme, outcome, places: Vec::new() });
        members.forget_oldest();
        self.generation.fetch_add(1, Ordering::Release);
        members.secrets.len() - 1
    }
}

/// What is looked for in something that goes on, while more may become known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lookout {
    knowns: Arc<Knowns>,
    known: Arc<Known>,
    generation: u64,
}

impl Lookout {
    /// From what is known now.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn new(knowns: &Arc<Knowns>) -> Lookout {
        // Before, so that what is learned meanwhile is asked for again.
        let generation = knowns.generation();
        Lookout { knowns: Arc::clone(knowns), known: knowns.current(), generation }
    }

    /// The same, from what was known at this time.
    pub(crate) fn since(knowns: &Arc<Knowns>, now: &Now) -> Lookout {
        let (knowns, known) = (Arc::clone(knowns), Arc::clone(&now.known));
        Lookout { knowns, known, generation: now.generation }
    }

    pub(crate) fn known(&self) -> &Arc<Known> {
        &self.known
    }

    /// What is looked for by now.
    pub(crate) fn newest(&self) -> Arc<Known> {
        if self.knowns.generation() == self.generation {
            Arc::clone(&self.known)
        } else {
            self.knowns.current()
        }
    }

    /// What is looked for by now, when that is something else than before.
    pub(crate) fn renewed(&mut self) -> Option<&Arc<Known>> {
        let generation = self.knowns.generation();
        if generation == self.generation {
            return None;
        }
        self.generation = generation;
        let before = mem::replace(&mut self.known, self.knowns.current());
        (!Arc::ptr_eq(&before, &self.known)).then_some(&self.known)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_secret_is_learned_once_and_a_short_one_is_not() {
        let knowns = Knowns::default();
        let good = Secret::new(b"q8Zr2LkT0vWcN5mYx1Jd".to_vec());
        assert_eq!(knowns.learn(&good, None), Ok(()));
        let first = knowns.current();
        assert_eq!(knowns.learn(&good, None), Ok(()));
        assert!(Arc::ptr_eq(&first, &knowns.current()));
        assert_eq!(knowns.learn(&Secret::new(b"short".to_vec()), None), Err(KnownError::Short(5)));
        assert!(!knowns.current().is_empty());
        let words = "certificate is only valid for DnsName(\"Q8ZR2LKT0VWCN5MYX1JD.é.test\")";
        assert_eq!(
            knowns.masked(&words.to_ascii_lowercase()),
            words.to_ascii_lowercase().replace("q8zr2lkt0vwcn5myx1jd", &"*".repeat(20))
        );
        assert_eq!(knowns.masked("as it was"), "as it was");
    }

    /// Whether a text is changed by taking out what is known.
    fn is_looked_for(knowns: &Knowns, text: &str) -> bool {
        Scrubber::new(knowns.current()).whole(text.as_bytes()).is_some()
    }

    #[test]
    fn what_is_looked_for_does_not_grow_with_every_rotation() {
        let knowns = Knowns::default();
        let rotated = |number: usize| format!("q8Zr2LkT0vWcN5mYx1Jd{number:06}");
        let learn = |number| knowns.learn(&Secret::new(rotated(number).into_bytes()), None);
        for number in 0..MEMBERS_MAX {
            assert_eq!(learn(number), Ok(()));
        }
        let full = format!("{:?}", knowns.current());
        for number in MEMBERS_MAX..2 * MEMBERS_MAX {
            assert_eq!(learn(number), Ok(()));
        }
        let count = |text: &str| {
            text.chars().filter(char::is_ascii_digit).collect::<String>().parse::<usize>().unwrap()
        };
        assert!(count(&format!("{:?}", knowns.current())) <= count(&full) * 11 / 10);
        assert!(
            is_looked_for(&knowns, &rotated(2 * MEMBERS_MAX - 1))
                && is_looked_for(&knowns, &rotated(MEMBERS_MAX))
        );
        assert!(!is_looked_for(&knowns, &rotated(0)));
        // In use again, it is looked for again.
        assert_eq!(learn(0), Ok(()));
        assert!(is_looked_for(&knowns, &rotated(0)));
    }
}
