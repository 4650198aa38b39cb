//! The private key that opens an upstream behind ssh, read anew for each login.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::keys::ssh_key::encoding::pem::{DecodePem as _, PemLabel};
use russh::keys::ssh_key::encoding::{self, Decode, Reader};
use russh::keys::ssh_key::private::{EcdsaKeypair, EcdsaPrivateKey, KeypairData};
use russh::keys::ssh_key::public::{EcdsaPublicKey, KeyData};
use russh::keys::ssh_key::{self, Comment, EcdsaCurve};
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
    });
    let key = key.or_else(|error| Short::decode_pem(&*text).map(|short| short.0).map_err(|_| error))?;
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

/// What the binary form of a key begins with.
const MAGIC: &[u8] = b"openssh-key-v1\0";

/// The bytes of a number below the order of P-256.
const P256_BYTES: usize = 32;

/// A P-256 key whose number is short. OpenSSH writes it as an mpint, which has no leading zeros (RFC 4251 section 5), so that
/// one key in 512 has fewer than 32 bytes, and those `ssh-key` does not read (0.7.0-rc.11). The form is that of PROTOCOL.key.
struct Short(PrivateKey);

impl PemLabel for Short {
    const PEM_LABEL: &'static str = PrivateKey::PEM_LABEL;
}

impl Decode for Short {
    type Error = ssh_key::Error;

    fn decode(reader: &mut impl Reader) -> ssh_key::Result<Self> {
        let mut magic = [0; MAGIC.len()];
        let open = reader.read(&mut magic)? == MAGIC
            && String::decode(reader)? == "none"
            && String::decode(reader)? == "none"
            && reader.drain_prefixed()? == 0
            && u32::decode(reader)? == 1;
        if !open {
            return Err(ssh_key::Error::FormatEncoding);
        }
        let public = reader.read_prefixed(KeyData::decode)?;
        reader.read_prefixed(|reader| {
            if u32::decode(reader)? != u32::decode(reader)? {
                return Err(ssh_key::Error::Crypto);
            }
            let algorithm = Algorithm::decode(reader)?;
            let curve = EcdsaCurve::decode(reader)?;
            let point = EcdsaPublicKey::from_sec1_bytes(&Vec::decode(reader)?)?;
            let (EcdsaCurve::NistP256, EcdsaPublicKey::NistP256(point)) = (curve, point) else {
                return Err(ssh_key::Error::AlgorithmUnsupported { algorithm });
            };
            let mut number = Zeroizing::new([0; P256_BYTES]);
            reader.read_prefixed(|reader| match reader.remaining_len() {
                length @ 1..P256_BYTES => reader.read(&mut number[P256_BYTES - length..]),
                _ => Err(encoding::Error::Length),
            })?;
            let pair = EcdsaKeypair::NistP256 { public: point, private: EcdsaPrivateKey::from(*number) };
            let key = PrivateKey::new(KeypairData::Ecdsa(pair), Comment::decode(reader)?)?;
            for filler in 1..8 {
                if reader.is_finished() {
                    break;
                }
                if u8::decode(reader)? != filler {
                    return Err(ssh_key::Error::FormatEncoding);
                }
            }
            reader.ensure_finished()?;
            if *key.public_key().key_data() != public {
                return Err(ssh_key::Error::PublicKey);
            }
            Ok(Self(key))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use russh::keys::ssh_key::LineEnding;
    use russh::keys::ssh_key::encoding::pem::EncodePem as _;
    use russh::keys::ssh_key::encoding::{Encode, Writer};

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

    struct Whole(Vec<u8>);

    impl PemLabel for Whole {
        const PEM_LABEL: &'static str = PrivateKey::PEM_LABEL;
    }

    impl Encode for Whole {
        fn encoded_len(&self) -> encoding::Result<usize> {
            Ok(self.0.len())
        }

        fn encode(&self, writer: &mut impl Writer) -> encoding::Result<()> {
            writer.write(&self.0)
        }
    }

    /// The file of a P-256 key whose number has 31 bytes, as OpenSSH writes it, but for what `spoil` does to what is private in it.
    fn short(dir: &Path, spoil: impl Fn(&mut Vec<u8>)) -> PathBuf {
        let number = [0x11; 31];
        let point = "04149c58d7b80fe7510afd51a3bb09ce8d1aaa337404467e076d29ac865ff9d42a\
                     41fa6f24e4b6898a0bec839e9c5de6840570ed963aff341f89ddfd7daf6c9ce3";
        let point: Vec<u8> = (0..point.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&point[at..at + 2], 16).expect("a byte"))
            .collect();
        let strings = |parts: &[&[u8]]| -> Vec<u8> {
            parts.iter().flat_map(|part| [&(part.len() as u32).to_be_bytes(), *part].concat()).collect()
        };
        let public = strings(&[b"ecdsa-sha2-nistp256", b"nistp256", &point]);
        let mut private = [&[7; 8], public.as_slice(), &strings(&[&number, b"me"])].concat();
        private.extend(1..=(8 - private.len() as u8 % 8) % 8);
        spoil(&mut private);
        let start = [MAGIC, &strings(&[b"none", b"none", b""]), &[0, 0, 0, 1]].concat();
        let whole = Whole([start, strings(&[&public, &private])].concat());
        let text = whole.encode_pem_string(LineEnding::LF).expect("text");
        let path = dir.join("short");
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("closed");
        path
    }

    #[test]
    fn a_number_that_is_short_by_chance_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = short(dir.path(), |_| {});
        let openssh = Command::new("ssh-keygen").arg("-y").arg("-f").arg(&path).output().expect("ssh-keygen");
        assert!(openssh.status.success(), "{openssh:?}");
        let key = read(&path).unwrap_or_else(|error| panic!("{error}"));
        let shown = key.public_key().to_openssh().expect("text");
        assert_eq!(shown, String::from_utf8_lossy(&openssh.stdout).trim_end());
        let number = key.key_data().ecdsa().expect("ecdsa").private_key_bytes();
        assert_eq!((number[0], &number[1..]), (0, &[0x11; 31][..]));
    }

    #[test]
    fn a_short_number_excuses_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let last = |private: &mut Vec<u8>| private.pop().expect("it has bytes");
        let spoils: [fn(&mut Vec<u8>); 3] = [
            |private| private[0] ^= 1,
            |private| *private.last_mut().expect("it has bytes") ^= 1,
            |private| private.extend(private.last().map(|last| last + 1).into_iter().cycle().take(8)),
        ];
        for (number, spoil) in spoils.into_iter().enumerate() {
            let path = short(dir.path(), spoil);
            assert!(matches!(read(&path), Err(IdentityError::Key { .. })), "{number}");
        }
        // What is spoilt is there.
        let path = short(dir.path(), |private| assert!((1..8).contains(&last(&mut private.clone()))));
        assert!(read(&path).is_ok());
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
