use std::sync::{Arc, Mutex, PoisonError};

use policy::AuthScheme;
use scan::{Known, KnownError, Scrubber};

use super::Secret;

/// More secrets than one bottle uses at once, and more bytes of them; past it the oldest are no longer looked for. One that is
/// still in use is learned again with the next request.
const MEMBERS_MAX: usize = 64;
const MEMBERS_MAX_BYTES: usize = 64 * 1024;

/// The secrets that were put into requests, to be found where they must not be. One that was replaced stays.
#[derive(Debug, Default)]
pub(crate) struct Knowns(Mutex<Members>);

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
        let mut members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Another scheme may look for a part of it by itself, as `basic` does for the password.
        let same = |member: &&Member| member.secret == *secret && member.scheme.as_ref() == scheme;
        if let Some(member) = members.secrets.iter().find(same) {
            return member.outcome;
        }
        let outcome = add(Arc::make_mut(&mut members.known), secret, scheme);
        members.secrets.push(Member { secret: secret.clone(), scheme: scheme.cloned(), outcome });
        members.forget_oldest();
        outcome
    }

    /// What is looked for now.
    pub(crate) fn current(&self) -> Arc<Known> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner).known)
    }

    /// `text` without what is looked for.
    pub(crate) fn masked(&self, text: &str) -> String {
        let masked = Scrubber::new(self.current()).whole(text.as_bytes());
        masked.map_or_else(|| text.to_owned(), |masked| String::from_utf8_lossy(&masked).into_owned())
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
