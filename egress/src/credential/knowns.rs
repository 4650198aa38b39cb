use std::sync::{Arc, Mutex, PoisonError};

use policy::AuthScheme;
use scan::{Known, KnownError};

use super::Secret;

/// More secrets than one bottle uses; past it the oldest are no longer looked for.
const MEMBERS_MAX: usize = 256;

/// The secrets that were put into requests, to be found where they must not be. One that was replaced stays.
#[derive(Debug, Default)]
pub(crate) struct Knowns(Mutex<Members>);

#[derive(Debug, Default)]
struct Members {
    known: Arc<Known>,
    secrets: Vec<(Secret, Result<(), KnownError>)>,
}

impl Knowns {
    /// Looks for this secret from now on; an error when it cannot be told from other text.
    pub(crate) fn learn(&self, secret: &Secret, scheme: Option<&AuthScheme>) -> Result<(), KnownError> {
        let mut members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, outcome)) = members.secrets.iter().find(|(member, _)| member == secret) {
            return *outcome;
        }
        if members.secrets.len() == MEMBERS_MAX {
            members.secrets.drain(..1);
        }
        let outcome = Arc::make_mut(&mut members.known).add(secret.open());
        if matches!(scheme, Some(AuthScheme::Basic))
            && let Some(colon) = secret.open().iter().position(|byte| *byte == b':')
        {
            // The password may come back without the user; a short one only as a part of the pair.
            let _ = Arc::make_mut(&mut members.known).add(&secret.open()[colon + 1..]);
        }
        members.secrets.push((secret.clone(), outcome));
        outcome
    }

    /// What is looked for now.
    pub(crate) fn current(&self) -> Arc<Known> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner).known)
    }
}

#[cfg(test)]
mod tests {
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
    }
}
