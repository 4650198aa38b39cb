//! The certificate authority of one bottle: made by `egress ca init` alone, read at start, kept in two files.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{hex, provider, random};

/// The certificate's file; the only one that leaves the directory.
const CERTIFICATE_FILE: &str = "ca.pem";
/// The key's file, for our uid alone.
const KEY_FILE: &str = "ca-key.pem";
/// How long a new authority is valid. A bottle lives for days; two years spare its owner a renewal and bound a forgotten key.
const VALIDITY: Duration = Duration::from_secs(2 * 365 * 24 * 60 * 60);
/// Clocks in a bottle may be behind ours.
pub(crate) const BACKDATED: Duration = Duration::from_secs(60 * 60);

/// Why there is no authority to sign with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither file exists.
    #[error("there is no certificate authority in {dir}")]
    Missing {
        /// The directory.
        dir: PathBuf,
    },
    /// `ca init` was asked to write over something.
    #[error("{path} exists; a certificate authority is never replaced")]
    Exists {
        /// What is in the way.
        path: PathBuf,
    },
    /// One file of the pair is there, the other is not.
    #[error("{missing} is missing, although the other file of the pair exists")]
    Half {
        /// The absent file.
        missing: PathBuf,
    },
    /// A file cannot be used.
    #[error("cannot use {path}: {reason}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The key may be read by others.
    #[error("{path} may be read by others (mode {mode:04o}); it must be 0600")]
    Exposed {
        /// The key.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file or directory could not be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The cryptography failed.
    #[error("cannot make a certificate authority")]
    Make(#[source] rcgen::Error),
}

impl Error {
    /// What the reader can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Missing { dir } => Some(format!(
                "make one with `egress ca init --ca-dir {}`, or correct --ca-dir",
                dir.display()
            )),
            Error::Half { .. } | Error::Unusable { .. } => {
                Some("restore the pair, or empty the directory and run `egress ca init`".to_owned())
            }
            Error::Exposed { path, .. } => Some(format!("run `chmod 600 {}`", path.display())),
            Error::Exists { .. } => {
                Some("`egress ca init --if-absent` accepts a complete, valid pair".to_owned())
            }
            Error::Io { .. } | Error::Make(_) => None,
        }
    }
}

/// Whether a pair that exists already is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It is.
    Refuse,
    /// A complete, valid pair is left as it is.
    Keep,
}

/// The certificate and the key that signs with it.
pub struct CertificateAuthority {
    certificate: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl CertificateAuthority {
    /// Makes a new authority in `dir`, which is created with mode 0700 where it does not exist.
    pub fn init(dir: &Path, existing: Existing) -> Result<CertificateAuthority, Error> {
        match (existing, CertificateAuthority::load(dir)) {
            (Existing::Keep, Ok(authority)) => return Ok(authority),
            (Existing::Keep, Err(Error::Missing { .. })) | (Existing::Refuse, _) => {}
            (Existing::Keep, Err(error)) => return Err(error),
        }
        create_dir(dir)?;
        if let Some(entry) = first_entry(dir)? {
            return Err(Error::Exists { path: entry });
        }
        let key = KeyPair::generate().map_err(Error::Make)?;
        let certificate = parameters().self_signed(&key).map_err(Error::Make)?;
        write_new(&dir.join(KEY_FILE), 0o600, Zeroizing::new(key.serialize_pem()).as_bytes())?;
        write_new(&dir.join(CERTIFICATE_FILE), 0o644, certificate.pem().as_bytes())?;
        File::open(dir).and_then(|handle| handle.sync_all()).map_err(|source| Error::Io {
            action: "sync",
            path: dir.to_owned(),
            source,
        })?;
        CertificateAuthority::load(dir)
    }

    /// Reads the authority in `dir`. Makes nothing: a wrong directory is an error.
    pub fn load(dir: &Path) -> Result<CertificateAuthority, Error> {
        let certificate_path = dir.join(CERTIFICATE_FILE);
        let key_path = dir.join(KEY_FILE);
        let (pem, key) = match (read(&certificate_path)?, read_key(&key_path)?) {
            (Some(pem), Some(key)) => (pem, key),
            (None, None) => return Err(Error::Missing { dir: dir.to_owned() }),
            (None, Some(_)) => return Err(Error::Half { missing: certificate_path }),
            (Some(_), None) => return Err(Error::Half { missing: key_path }),
        };
        let unusable = |path: &Path, reason: &dyn std::fmt::Display| Error::Unusable {
            path: path.to_owned(),
            reason: reason.to_string(),
        };
        let pem = String::from_utf8(pem).map_err(|_| unusable(&certificate_path, &"not a PEM file"))?;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| unusable(&certificate_path, &"no certificate in it"))?;
        check_certificate(&certificate, SystemTime::now())
            .map_err(|reason| unusable(&certificate_path, &reason))?;
        check_pair(&certificate, &key).map_err(|reason| unusable(&key_path, &reason))?;
        let key = std::str::from_utf8(&key)
            .ok()
            .and_then(|pem| KeyPair::from_pem(pem).ok())
            .ok_or_else(|| unusable(&key_path, &"no private key in it"))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| unusable(&certificate_path, &error))?;
        Ok(CertificateAuthority { certificate, pem, issuer })
    }

    /// The certificate as it is given to the bottle.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The SHA-256 of the certificate, in the usual colons.
    pub fn fingerprint(&self) -> String {
        let digest = Sha256::digest(&self.certificate);
        digest.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub(crate) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }
}

fn parameters() -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::OrganizationName, "bottlecap");
    parameters
        .distinguished_name
        .push(DnType::CommonName, format!("bottlecap bottle CA {}", hex(&random::<6>())));
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now();
    parameters.not_before = (now - BACKDATED).into();
    parameters.not_after = (now + VALIDITY).into();
    parameters
}

fn check_certificate(certificate: &CertificateDer<'_>, now: SystemTime) -> Result<(), String> {
    let (rest, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|_| "the certificate cannot be parsed")?;
    if !rest.is_empty() {
        return Err("something follows the certificate".to_owned());
    }
    if !parsed.is_ca() {
        return Err("it is not the certificate of an authority".to_owned());
    }
    let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let validity = parsed.validity();
    if now < validity.not_before.timestamp() {
        return Err(format!("it is valid only from {}", validity.not_before));
    }
    if now > validity.not_after.timestamp() {
        return Err(format!("it expired at {}", validity.not_after));
    }
    Ok(())
}

fn check_pair(certificate: &CertificateDer<'static>, key_pem: &[u8]) -> Result<(), &'static str> {
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| "no private key in it")?;
    let key = provider().key_provider.load_private_key(key).map_err(|_| "the key is of an unknown kind")?;
    CertifiedKey::new(vec![certificate.clone()], key)
        .keys_match()
        .map_err(|_| "it is not the key of the certificate beside it")
}

fn create_dir(dir: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| Error::Io {
        action: "create",
        path: dir.to_owned(),
        source,
    })
}

fn first_entry(dir: &Path) -> Result<Option<PathBuf>, Error> {
    let failed = |source| Error::Io { action: "list", path: dir.to_owned(), source };
    let entry = fs::read_dir(dir).map_err(failed)?.next().transpose().map_err(failed)?;
    Ok(entry.map(|entry| entry.path()))
}

fn write_new(path: &Path, mode: u32, content: &[u8]) -> Result<(), Error> {
    let failed = |source| Error::Io { action: "write", path: path.to_owned(), source };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failed)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { action: "read", path: path.to_owned(), source }),
    }
}

fn read_key(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    let Some(content) = read(path)?.map(Zeroizing::new) else { return Ok(None) };
    let mode = fs::metadata(path)
        .map_err(|source| Error::Io { action: "read", path: path.to_owned(), source })?
        .permissions()
        .mode()
        & 0o7777;
    if mode & 0o077 != 0 {
        return Err(Error::Exposed { path: path.to_owned(), mode });
    }
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn failure(result: Result<CertificateAuthority, Error>) -> Error {
        match result {
            Ok(_) => panic!("an authority was made or read"),
            Err(error) => error,
        }
    }

    #[test]
    fn a_new_authority_reads_back_and_its_key_is_private() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("egress/ca");
        let made = CertificateAuthority::init(&dir, Existing::Refuse).unwrap();
        let read = CertificateAuthority::load(&dir).unwrap();
        assert_eq!(made.fingerprint(), read.fingerprint());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(&dir), mode(&dir.join(KEY_FILE)), mode(&dir.join(CERTIFICATE_FILE))),
            (0o700, 0o600, 0o644)
        );
    }

    #[test]
    fn loading_from_a_wrong_directory_makes_nothing_and_names_the_command() {
        let root = tempfile::tempdir().unwrap();
        let error = failure(CertificateAuthority::load(root.path()));
        assert!(error.hint().unwrap().contains("egress ca init"));
        assert!(matches!(error, Error::Missing { .. }));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn init_refuses_a_directory_that_holds_anything() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("notes"), "").unwrap();
        assert!(matches!(
            failure(CertificateAuthority::init(root.path(), Existing::Refuse)),
            Error::Exists { .. }
        ));
        assert!(matches!(
            failure(CertificateAuthority::init(root.path(), Existing::Keep)),
            Error::Exists { .. }
        ));
    }

    #[test]
    fn if_absent_keeps_a_valid_pair_and_refuses_half_of_one() {
        let root = tempfile::tempdir().unwrap();
        let made = CertificateAuthority::init(root.path(), Existing::Keep).unwrap();
        let kept = CertificateAuthority::init(root.path(), Existing::Keep).unwrap();
        assert_eq!(made.fingerprint(), kept.fingerprint());
        assert!(matches!(
            failure(CertificateAuthority::init(root.path(), Existing::Refuse)),
            Error::Exists { .. }
        ));
        fs::remove_file(root.path().join(KEY_FILE)).unwrap();
        assert!(matches!(
            failure(CertificateAuthority::init(root.path(), Existing::Keep)),
            Error::Half { .. }
        ));
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let root = tempfile::tempdir().unwrap();
        CertificateAuthority::init(root.path(), Existing::Refuse).unwrap();
        let key = root.path().join(KEY_FILE);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(
            failure(CertificateAuthority::load(root.path())).to_string(),
            format!("{} may be read by others (mode 0640); it must be 0600", key.display())
        );
    }

    #[test]
    fn the_key_of_another_authority_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let (ours, theirs) = (root.path().join("ours"), root.path().join("theirs"));
        CertificateAuthority::init(&ours, Existing::Refuse).unwrap();
        CertificateAuthority::init(&theirs, Existing::Refuse).unwrap();
        fs::copy(theirs.join(KEY_FILE), ours.join(KEY_FILE)).unwrap();
        let error = failure(CertificateAuthority::load(&ours)).to_string();
        assert!(error.ends_with("it is not the key of the certificate beside it"), "{error}");
    }

    #[test]
    fn a_certificate_that_is_no_authority_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(["a.example".to_owned()]).unwrap().self_signed(&key).unwrap();
        write_new(&root.path().join(KEY_FILE), 0o600, key.serialize_pem().as_bytes()).unwrap();
        write_new(&root.path().join(CERTIFICATE_FILE), 0o644, certificate.pem().as_bytes()).unwrap();
        let error = failure(CertificateAuthority::load(root.path())).to_string();
        assert!(error.ends_with("it is not the certificate of an authority"), "{error}");
    }
}
