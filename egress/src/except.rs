//! What the operator excepts of what the scanner finds: one finding each, on its way to one host. The scanner names what it finds by a key
//! that stays here; the agent is told the name, and the operator where it stood.

use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use policy::Exception;
use proposal::peer::{Found, Located, Target};
use scan::{MARK_KEY_BYTES, Mark, MarkKey, Marks};

use crate::tls::random;

/// How many findings are remembered.
const FOUND_MAX: usize = 64;

/// Where the key is kept, under the state directory.
pub(crate) fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("audit/egress/fingerprint.key")
}

/// Something that was found, as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) rule: &'static str,
    pub(crate) mark: Mark,
    pub(crate) position: String,
}

/// Names findings, and remembers those that something was refused for.
#[derive(Debug)]
pub struct Marking {
    key: Arc<MarkKey>,
    /// The newest last.
    found: Mutex<VecDeque<Located>>,
}

impl Marking {
    /// With the key in `path`, which is made when there is none.
    ///
    /// # Errors
    /// When it cannot be kept, or what stands there is none.
    pub fn open(path: &Path) -> io::Result<Marking> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = random::<MARK_KEY_BYTES>();
                let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
                file.write_all(&key)?;
                key.to_vec()
            }
            Err(error) => return Err(error),
        };
        let key = bytes.try_into().map_err(|_| io::Error::other("it has another length than a key"))?;
        Ok(Marking { key: Arc::new(MarkKey::new(key)), found: Mutex::default() })
    }

    /// For one search in which these are excepted, in their order.
    pub(crate) fn marks(&self, exceptions: &[Exception]) -> Marks {
        // The policy has only fingerprints of this form; one that were none would end the list, so that what is met keeps its place.
        let excepted =
            exceptions.iter().map_while(|one| Some((one.rule.clone(), Mark::parse(&one.fingerprint)?)));
        let excepted = excepted.collect();
        Marks::new(Arc::clone(&self.key), excepted)
    }

    /// Remembers what a request to `host` is refused for.
    pub(crate) fn note(&self, host: &str, named: &Named) {
        let fingerprint = named.mark.to_string();
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let target = Target::Host(host.to_owned());
        found.retain(|known| known.fingerprint != fingerprint || known.target != target);
        if found.len() == FOUND_MAX {
            found.pop_front();
        }
        let place = Found {
            rule: named.rule.to_owned(),
            position: named.position.clone(),
            commit: None,
            line: 0,
            excerpt: String::new(),
        };
        found.push_back(Located { fingerprint, target, found: place });
    }

    /// The newest that was found under that name.
    pub(crate) fn find(&self, fingerprint: &str) -> Option<Located> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.iter().rev().find(|known| known.fingerprint == fingerprint).cloned()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_key_is_made_once_and_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fingerprint.key");
        let key = |marking: Marking| *marking.key.open();
        let first = key(Marking::open(&path).unwrap());
        assert_eq!(first, key(Marking::open(&path).unwrap()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "short").unwrap();
        assert!(Marking::open(&path).is_err());
    }

    #[test]
    fn of_many_findings_the_newest_are_known() {
        let directory = tempfile::tempdir().unwrap();
        let marking = Marking::open(&directory.path().join("fingerprint.key")).unwrap();
        let name = |number: usize| format!("{number:032x}");
        for number in 0..=FOUND_MAX {
            let mark = Mark::parse(&name(number)).unwrap();
            marking.note("a.example.com", &Named { rule: "r", mark, position: "body".to_owned() });
        }
        assert_eq!(marking.find(&name(0)), None);
        assert_eq!(marking.find(&name(1)).unwrap().target, Target::Host("a.example.com".to_owned()));
    }
}
