use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use policy::SecretRef;

use super::Secret;

/// A secret larger than this is a mistake.
const SIZE_LIMIT: u64 = 64 * 1024;
/// A file is looked at again when the last look is older than this.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// Where secrets come from: handed over at birth, or files of a directory that are read again when they change.
#[derive(Debug, Default)]
pub struct SecretStore {
    inherited: HashMap<String, Secret>,
    directory: PathBuf,
    files: Mutex<HashMap<String, Remembered>>,
}

#[derive(Debug)]
struct Remembered {
    looked: Instant,
    stamp: Stamp,
    secret: Secret,
}

type Stamp = (u64, u64, i64, i64, u64);

/// Why a secret is not to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No descriptor or variable of this name was handed over.
    #[error("no secret of this name was handed over")]
    NotHandedOver,
    /// Its file cannot be read.
    #[error("cannot read its file")]
    File(#[source] io::Error),
}

impl SecretStore {
    /// Secrets handed over by name, and the directory for the others.
    pub fn new(inherited: HashMap<String, Secret>, directory: PathBuf) -> SecretStore {
        SecretStore { inherited, directory, files: Mutex::default() }
    }

    /// The secret as it is now. What was handed over goes before a file of the same name.
    pub(crate) fn get(&self, reference: &SecretRef) -> Result<Secret, Error> {
        let name = reference.name().as_str();
        if let Some(secret) = self.inherited.get(name) {
            return Ok(secret.clone());
        }
        match reference {
            SecretRef::Env(_) => Err(Error::NotHandedOver),
            SecretRef::File(_) => self.file(name).map_err(Error::File),
        }
    }

    /// Forgets what was read from files, so that the next use reads them again.
    pub(crate) fn refresh(&self) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn file(&self, name: &str) -> io::Result<Secret> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(remembered) = files.get(name)
            && now.duration_since(remembered.looked) < FRESH_FOR
        {
            return Ok(remembered.secret.clone());
        }
        let read = self.read(name, files.get(name));
        match read {
            Ok((stamp, secret)) => {
                files.insert(name.to_owned(), Remembered { looked: now, stamp, secret: secret.clone() });
                Ok(secret)
            }
            Err(error) => {
                files.remove(name);
                Err(error)
            }
        }
    }

    fn read(&self, name: &str, known: Option<&Remembered>) -> io::Result<(Stamp, Secret)> {
        let file = File::open(self.directory.join(name))?;
        let metadata = file.metadata()?;
        let stamp =
            (metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.size());
        if let Some(known) = known.filter(|known| known.stamp == stamp) {
            return Ok((stamp, known.secret.clone()));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.size().min(SIZE_LIMIT)).unwrap_or(0) + 1);
        if file.take(SIZE_LIMIT + 1).read_to_end(&mut bytes)? as u64 > SIZE_LIMIT {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("larger than {SIZE_LIMIT} bytes"),
            ));
        }
        Ok((stamp, Secret::new(bytes)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use policy::SecretName;

    use super::*;

    fn file(name: &str) -> SecretRef {
        SecretRef::File(SecretName::parse(name).unwrap())
    }

    #[test]
    fn a_secret_that_was_handed_over_goes_before_a_file() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("A"), "file").unwrap();
        let inherited = HashMap::from([("A".to_owned(), Secret::new(b"handed".to_vec()))]);
        let store = SecretStore::new(inherited, directory.path().to_owned());
        assert_eq!(store.get(&file("A")).unwrap().open(), b"handed");
        assert_eq!(store.get(&SecretRef::Env(SecretName::parse("A").unwrap())).unwrap().open(), b"handed");
    }

    #[test]
    fn a_changed_file_is_read_again_after_a_refresh_and_a_removed_one_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("A");
        let store = SecretStore::new(HashMap::new(), directory.path().to_owned());
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(store.get(&file("A")).unwrap().open(), b"one");
        std::fs::write(&path, "second\n").unwrap();
        store.refresh();
        assert_eq!(store.get(&file("A")).unwrap().open(), b"second");
        std::fs::remove_file(&path).unwrap();
        store.refresh();
        assert!(matches!(store.get(&file("A")), Err(Error::File(_))));
    }

    #[test]
    fn a_variable_that_was_not_handed_over_is_not_looked_for_in_files() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("A"), "file").unwrap();
        let store = SecretStore::new(HashMap::new(), directory.path().to_owned());
        assert!(matches!(
            store.get(&SecretRef::Env(SecretName::parse("A").unwrap())),
            Err(Error::NotHandedOver)
        ));
    }
}
