//! Certificates for the hosts that the bottle asks for, signed by its own authority.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::uri::Authority;
use policy::{Host, HostError};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType};
use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::ca::{BACKDATED, CertificateAuthority};
use super::{provider, random};

/// How long a leaf is valid.
const VALIDITY: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// A leaf is replaced when this much of its life has passed.
const RENEWED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// How many hosts are remembered.
const REMEMBERED: usize = 1024;
/// How many new hosts may come at once, and how fast more may follow: each costs a signature.
const SIGNED_AT_ONCE: u32 = 512;
const SIGNATURE_INTERVAL: Duration = Duration::from_millis(20);
/// How long a new host waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest common name that X.509 permits; a longer host is in the subject alternative name alone.
const COMMON_NAME_LIMIT: usize = 64;

/// Why no server configuration can be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The leaf could not be signed.
    #[error("cannot sign a certificate")]
    Sign(#[from] rcgen::Error),
    /// It is not for a host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Too many new hosts at once.
    #[error("the bottle asks for too many new hosts at once")]
    TooMany,
    /// The key or the configuration was not accepted.
    #[error("cannot prepare TLS")]
    Tls(#[from] rustls::Error),
}

/// Signs one leaf per host, with one key that is not the authority's, over one shared basis of TLS settings.
pub(crate) struct LeafAuthority {
    authority: CertificateAuthority,
    leaf_key: KeyPair,
    signing_key: Arc<dyn SigningKey>,
    basis: ServerConfig,
    remembered: Mutex<Remembered>,
    pace: Mutex<Pace>,
}

/// The rate of signatures (GCRA): when the next one would be due if they came evenly.
struct Pace {
    due: Instant,
}

impl Pace {
    /// How long to wait for a turn, which is then taken; nothing when that would be too long.
    fn turn(&mut self, now: Instant) -> Option<Duration> {
        let due = self.due.max(now);
        let wait = due.duration_since(now).saturating_sub(SIGNATURE_INTERVAL * (SIGNED_AT_ONCE - 1));
        if wait > TURN_TIMEOUT {
            return None;
        }
        self.due = due + SIGNATURE_INTERVAL;
        Some(wait)
    }
}

type Slot = Arc<OnceCell<Arc<ServerConfig>>>;

#[derive(Default)]
struct Remembered {
    clock: u64,
    slots: HashMap<Host, (u64, SystemTime, Slot)>,
}

#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

impl LeafAuthority {
    pub(crate) fn new(authority: CertificateAuthority) -> Result<LeafAuthority, Error> {
        let leaf_key = KeyPair::generate()?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
        let signing_key = provider().key_provider.load_private_key(der)?;
        let placeholder = CertifiedKey::new(vec![authority.certificate().clone()], Arc::clone(&signing_key));
        let mut basis = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Fixed(Arc::new(placeholder))));
        basis.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Client and proxy share the machine, so what is cheap for one is for the other.
        basis.ignore_client_order = true;
        // No session is resumed: a ticket costs each connection a write, and what few clients come back with one would save is little
        // beside that where no packet has far to go.
        basis.send_tls13_tickets = 0;
        basis.session_storage = Arc::new(NoServerSessionStorage {});
        let pace = Mutex::new(Pace { due: Instant::now() });
        Ok(LeafAuthority { authority, leaf_key, signing_key, basis, remembered: Mutex::default(), pace })
    }

    /// The authority's certificate, as PEM.
    pub(crate) fn pem(&self) -> &str {
        self.authority.pem()
    }

    /// The TLS settings that present a certificate for `host`. Callers that want the same host wait for one signature.
    async fn config(&self, host: &Host) -> Result<Arc<ServerConfig>, Error> {
        let slot = self.slot(host, SystemTime::now());
        let signed = slot.get_or_try_init(async || {
            let turn = self.pace.lock().unwrap_or_else(PoisonError::into_inner).turn(Instant::now());
            match turn.ok_or(Error::TooMany)? {
                Duration::ZERO => {}
                wait => tokio::time::sleep(wait).await,
            }
            self.sign(host, SystemTime::now())
        });
        signed.await.cloned()
    }

    fn slot(&self, host: &Host, now: SystemTime) -> Slot {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.clock += 1;
        let clock = remembered.clock;
        if let Some((used, made, slot)) = remembered.slots.get_mut(host)
            && now.duration_since(*made).is_ok_and(|age| age < RENEWED_AFTER)
        {
            *used = clock;
            return Arc::clone(slot);
        }
        if remembered.slots.len() >= REMEMBERED
            && let Some(oldest) =
                remembered.slots.iter().min_by_key(|(_, (used, ..))| *used).map(|(host, _)| host.clone())
        {
            remembered.slots.remove(&oldest);
        }
        let slot = Slot::default();
        remembered.slots.insert(host.clone(), (clock, now, Arc::clone(&slot)));
        slot
    }

    fn sign(&self, host: &Host, now: SystemTime) -> Result<Arc<ServerConfig>, Error> {
        let leaf = parameters(host, now)?.signed_by(&self.leaf_key, self.authority.issuer())?;
        let chain = vec![leaf.der().clone(), self.authority.certificate().clone()];
        let mut config = self.basis.clone();
        config.cert_resolver =
            Arc::new(Fixed(Arc::new(CertifiedKey::new(chain, Arc::clone(&self.signing_key)))));
        Ok(Arc::new(config))
    }
}

fn parameters(host: &Host, now: SystemTime) -> Result<CertificateParams, Error> {
    let mut parameters = CertificateParams::default();
    parameters.subject_alt_names = vec![match host.ip() {
        Some(ip) => SanType::IpAddress(ip),
        None => SanType::DnsName(host.as_str().try_into()?),
    }];
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    let name = host.as_str();
    parameters
        .distinguished_name
        .push(DnType::CommonName, if name.len() <= COMMON_NAME_LIMIT { name } else { "bottlecap" });
    parameters.serial_number = Some(serial().to_vec().into());
    parameters.use_authority_key_identifier_extension = true;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    parameters.not_before = (now - BACKDATED).into();
    parameters.not_after = (now + VALIDITY).into();
    Ok(parameters)
}

/// Random, positive and without a leading zero byte.
fn serial() -> [u8; 16] {
    let mut serial = random::<16>();
    serial[0] = (serial[0] & 0x7f) | 0x40;
    serial
}

impl hudsucker::certificate_authority::CertificateAuthority for LeafAuthority {
    /// As [`LeafAuthority::config`]; an authority that is not a canonical host, or that cannot be signed for, gets settings
    /// without a certificate, with which every handshake fails.
    async fn gen_server_config(&self, authority: &Authority) -> Arc<ServerConfig> {
        let config = match Host::parse(authority.host()) {
            Ok(host) => self.config(&host).await,
            Err(error) => Err(error.into()),
        };
        config.unwrap_or_else(|error| {
            tracing::warn!(%error, %authority, "cannot present a certificate");
            let mut closed = self.basis.clone();
            closed.cert_resolver = Arc::new(NoCertificate);
            Arc::new(closed)
        })
    }
}

#[derive(Debug)]
struct NoCertificate;

impl ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

/// Whether a server name from a ClientHello names `host`: equal once canonical, absent only for an address.
pub(crate) fn names(server_name: Option<&str>, host: &Host) -> bool {
    match (server_name, host.ip()) {
        (Some(name), None) => Host::parse(name).is_ok_and(|name| name == *host),
        (None, Some(_)) => true,
        (Some(_), Some(_)) | (None, None) => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use hudsucker::certificate_authority::CertificateAuthority as _;

    use super::*;
    use crate::tls::ca::Existing;

    fn authority() -> LeafAuthority {
        let root = tempfile::tempdir().unwrap();
        LeafAuthority::new(CertificateAuthority::init(root.path(), Existing::Refuse).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn those_who_want_the_same_host_share_one_certificate() {
        let leaves = authority();
        let of = |text: &str| Authority::try_from(text.to_owned()).unwrap();
        let (one, same, other) = (of("API.test:443"), of("api.test:8443"), of("other.test:443"));
        let (one, same, other) = tokio::join!(
            leaves.gen_server_config(&one),
            leaves.gen_server_config(&same),
            leaves.gen_server_config(&other)
        );
        assert!(Arc::ptr_eq(&one, &same));
        assert!(!Arc::ptr_eq(&one, &other));
    }

    #[tokio::test]
    async fn no_session_can_be_resumed() {
        let leaves = authority();
        let host = Host::parse("api.test").unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(leaves.authority.certificate().clone()).unwrap();
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            let client = rustls::ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(roots.clone())
                .with_no_client_auth();
            let client = Arc::new(client);
            for _ in 0..2 {
                let name = host.as_str().to_owned().try_into().unwrap();
                let mut client = rustls::ClientConnection::new(Arc::clone(&client), name).unwrap();
                let mut server = rustls::ServerConnection::new(leaves.config(&host).await.unwrap()).unwrap();
                pass_on(&mut client, &mut server);
                assert_eq!(client.tls13_tickets_received(), 0);
                assert_eq!(client.handshake_kind(), Some(rustls::HandshakeKind::Full));
            }
        }
    }

    /// Until neither has anything to say.
    fn pass_on(client: &mut rustls::ClientConnection, server: &mut rustls::ServerConnection) {
        while client.wants_write() || server.wants_write() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut bytes.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            bytes.clear();
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            client.read_tls(&mut bytes.as_slice()).unwrap();
            client.process_new_packets().unwrap();
        }
    }

    #[test]
    fn the_memory_of_hosts_is_bounded_and_forgets_what_was_used_longest_ago() {
        let leaves = authority();
        let host = |number: usize| Host::parse(&format!("h{number}.test")).unwrap();
        let now = SystemTime::now();
        let first = leaves.slot(&host(0), now);
        let second = leaves.slot(&host(1), now);
        for number in 2..REMEMBERED {
            leaves.slot(&host(number), now);
        }
        assert!(Arc::ptr_eq(&first, &leaves.slot(&host(0), now)));
        leaves.slot(&host(REMEMBERED), now);
        assert_eq!(leaves.remembered.lock().unwrap().slots.len(), REMEMBERED);
        assert!(Arc::ptr_eq(&first, &leaves.slot(&host(0), now)));
        assert!(!Arc::ptr_eq(&second, &leaves.slot(&host(1), now)));
    }

    #[test]
    fn new_hosts_come_at_a_pace_and_beyond_it_wait_and_beyond_that_are_refused() {
        let now = Instant::now();
        let mut pace = Pace { due: now };
        for _ in 0..SIGNED_AT_ONCE {
            assert_eq!(pace.turn(now), Some(Duration::ZERO));
        }
        assert_eq!(pace.turn(now), Some(SIGNATURE_INTERVAL));
        let waiting = std::iter::from_fn(|| pace.turn(now)).count() as u32;
        assert_eq!(waiting, TURN_TIMEOUT.as_millis() as u32 / SIGNATURE_INTERVAL.as_millis() as u32 - 1);
        assert_eq!(pace.turn(now), None);
        let later = now + TURN_TIMEOUT + SIGNATURE_INTERVAL * SIGNED_AT_ONCE;
        assert_eq!(pace.turn(later), Some(Duration::ZERO));
    }

    #[test]
    fn a_leaf_is_backdated_and_renewed_before_it_ends() {
        let leaves = authority();
        let host = Host::parse("api.test").unwrap();
        let now = SystemTime::now();
        let parameters = parameters(&host, now).unwrap();
        assert!(parameters.not_before <= now - Duration::from_secs(3599));
        let slot = leaves.slot(&host, now);
        assert!(!Arc::ptr_eq(&slot, &leaves.slot(&host, now + RENEWED_AFTER)));
    }

    #[test]
    fn a_server_name_has_to_be_there_unless_the_host_is_an_address() {
        let host = |text: &str| Host::parse(text).unwrap();
        assert!(names(Some("API.test"), &host("api.test")));
        assert!(!names(Some("api.test.evil.test"), &host("api.test")));
        assert!(!names(None, &host("api.test")));
        assert!(names(None, &host("192.0.2.1")));
        assert!(!names(Some("api.test"), &host("192.0.2.1")));
    }
}
