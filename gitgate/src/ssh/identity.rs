//! The private key that opens an upstream behind ssh, read anew for each login.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::keys::{Algorithm, Error, PrivateKey, decode_secret_key};
use zeroize::Zeroizing;

/// The longest file that is read; one of RSA with 16,384 bits has 13 KB.
const IDENTITY_MAX_BYTES: u64 = 64 << 10;

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// It cannot be opened.
    #[error("cannot read the identity {}", path.display())]
    Read {
        /// The private key file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others may read it.
    #[error("the identity {} may be read by others (mode {mode:04o}): chmod 600", path.display())]
    Open {
        /// The private key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is locked.
    #[error("the identity {} has a passphrase, and nobody is there to type it: ssh-keygen -p -N '' -f FILE", path.display())]
    Locked {
        /// The private key file.
        path: PathBuf,
    },
    /// It leads to a device.
    #[error("the identity {} is that of a hardware key, which cannot sign here: give a key of type ed25519, rsa or ecdsa", path.display())]
    Hardware {
        /// The private key file.
        path: PathBuf,
    },
    /// It is something else.
    #[error("the identity {} is not a private key of type ed25519, rsa or ecdsa: {reason}", path.display())]
    Key {
        /// The private key file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Opens an identity that no other user may read.
pub(super) fn open(path: &Path) -> Result<File, IdentityError> {
    let read = |source| IdentityError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(read)?;
    let meta = file.metadata().map_err(read)?;
    if !meta.is_file() {
        return Err(read(io::Error::other("not a file")));
    }
    let mode = meta.permissions().mode() & 0o7777;
    if meta.uid() == nix::unistd::Uid::effective().as_raw() && mode & 0o077 != 0 {
        return Err(IdentityError::Open { path: path.to_owned(), mode });
    }
    Ok(file)
}

/// Reads an identity.
pub(crate) fn read(path: &Path) -> Result<Arc<PrivateKey>, IdentityError> {
    let mut text = Zeroizing::new(String::with_capacity(IDENTITY_MAX_BYTES as usize));
    let file = open(path)?;
    file.take(IDENTITY_MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(|source| IdentityError::Read { path: path.to_owned(), source })?;
    let path = || path.to_owned();
    let key = decode_secret_key(&text, None).map_err(|error| match error {
        Error::KeyIsEncrypted => IdentityError::Locked { path: path() },
        _ if text.contains("ENCRYPTED") => IdentityError::Locked { path: path() },
        error => IdentityError::Key { path: path(), reason: error.to_string() },
    })?;
    if key.is_encrypted() {
        return Err(IdentityError::Locked { path: path() });
    }
    match key.algorithm() {
        Algorithm::Ed25519 | Algorithm::Ecdsa { .. } | Algorithm::Rsa { .. } => {}
        Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256 => {
            return Err(IdentityError::Hardware { path: path() });
        }
        other => {
            let reason = format!("it is of type {}", other.as_str());
            return Err(IdentityError::Key { path: path(), reason });
        }
    }
    Ok(Arc::new(key))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    fn made(dir: &Path, arguments: &[&str]) -> PathBuf {
        let path = dir.join(arguments.join("-"));
        let mut make = Command::new("ssh-keygen");
        make.args(["-q", "-f"]).arg(&path).args(arguments);
        assert!(make.status().expect("this test needs ssh-keygen").success(), "{arguments:?}");
        path
    }

    #[test]
    fn an_identity_may_have_any_form_that_ssh_keygen_writes() {
        let dir = tempfile::tempdir().expect("a directory");
        for arguments in [
            &["-t", "ed25519", "-N", ""][..],
            &["-t", "rsa", "-b", "2048", "-N", ""],
            &["-t", "rsa", "-b", "2048", "-N", "", "-m", "PEM"],
            &["-t", "rsa", "-b", "2048", "-N", "", "-m", "PKCS8"],
            &["-t", "ecdsa", "-b", "256", "-N", ""],
            &["-t", "ecdsa", "-b", "384", "-N", ""],
            &["-t", "ecdsa", "-b", "521", "-N", ""],
            &["-t", "ecdsa", "-N", "", "-m", "PEM"],
            &["-t", "ecdsa", "-N", "", "-m", "PKCS8"],
        ] {
            let path = made(dir.path(), arguments);
            let key = read(&path).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
            let public = fs::read_to_string(path.with_extension("pub")).expect("its other half");
            let shown = key.public_key().to_openssh().expect("text");
            let (shown, public) = (shown.split(' ').nth(1), public.split(' ').nth(1));
            assert_eq!(shown, public, "{arguments:?}");
        }
    }

    #[test]
    fn a_locked_identity_is_told_apart_from_one_that_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        for arguments in [
            &["-t", "ed25519", "-N", "secret"][..],
            &["-t", "rsa", "-b", "2048", "-N", "secret", "-m", "PEM"],
            &["-t", "ecdsa", "-N", "secret", "-m", "PKCS8"],
        ] {
            let path = made(dir.path(), arguments);
            assert!(matches!(read(&path), Err(IdentityError::Locked { .. })), "{arguments:?}");
        }
        let path = dir.path().join("text");
        for text in
            ["", "text\n", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"]
        {
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("closed");
            assert!(matches!(read(&path), Err(IdentityError::Key { .. })), "{text}");
        }
    }

    #[test]
    fn the_key_of_a_device_is_refused_as_that() {
        use russh::keys::ssh_key::private::{KeypairData, SkEd25519};
        use russh::keys::ssh_key::public::{self, Ed25519PublicKey};
        let dir = tempfile::tempdir().expect("a directory");
        let public = public::SkEd25519::new(Ed25519PublicKey([7; 32]), "ssh:");
        let key = KeypairData::SkEd25519(SkEd25519::new(public, 1, [9; 16]).expect("a handle"));
        let key = PrivateKey::new(key, "").expect("a key");
        let path = dir.path().join("device");
        fs::write(&path, key.to_openssh(Default::default()).expect("text").as_bytes()).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("closed");
        assert!(matches!(read(&path), Err(IdentityError::Hardware { .. })), "{:?}", read(&path).err());
    }
}
