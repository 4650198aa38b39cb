//! The certificates of the runner's own origin, and the TLS settings made from them.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, GeneralSubtree, IsCa, Issuer, KeyPair,
    NameConstraints,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject as _,
};

const CA_FILE: &str = "origin-ca.pem";
const KEY_FILE: &str = "origin-ca-key.pem";

/// The origin's certificate, and the configuration it serves with.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) leaf: CertificateDer<'static>,
    pub(crate) server: Arc<ServerConfig>,
    ca: CertificateDer<'static>,
}

impl Identity {
    /// From the authority in `directory`, which is made when it is not there; with `None` from one that nobody keeps.
    pub(crate) fn new(directory: Option<&Path>, name: &str, ip: IpAddr) -> anyhow::Result<Self> {
        let (ca_pem, ca_key) = authority(directory, name, ip)?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key)?;
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new(vec![name.to_owned(), ip.to_string()])?.signed_by(&key, &issuer)?;
        let leaf = leaf.der().clone();
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )?;
        // HTTP/1.1 alone: how a proxy translates HTTP/2 is part of what is tested.
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes())?;
        Ok(Self { leaf, server: Arc::new(server), ca })
    }
}

/// Whoever trusts it does so for the origin alone: `name`, this machine's loopback, and `ip`.
fn authority(directory: Option<&Path>, name: &str, ip: IpAddr) -> anyhow::Result<(String, KeyPair)> {
    if let Some(directory) = directory {
        let (ca, key) = (directory.join(CA_FILE), directory.join(KEY_FILE));
        if ca.exists() {
            let pem = fs::read_to_string(&key).with_context(|| format!("cannot read {}", key.display()))?;
            return Ok((fs::read_to_string(ca)?, KeyPair::from_pem(&pem)?));
        }
    }
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.distinguished_name.push(DnType::CommonName, "bottlecap-corpus origin");
    let whole = if ip.is_ipv4() { 32 } else { 128 };
    let addresses = [(Ipv4Addr::LOCALHOST.into(), 8), (Ipv6Addr::LOCALHOST.into(), 128), (ip, whole)]
        .map(|(address, bits)| GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(address, bits)));
    let mut permitted_subtrees = vec![GeneralSubtree::DnsName(name.to_owned())];
    permitted_subtrees.extend(addresses);
    params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    let key = KeyPair::generate()?;
    let pem = params.self_signed(&key)?.pem();
    if let Some(directory) = directory {
        fs::create_dir_all(directory)?;
        fs::write(directory.join(KEY_FILE), key.serialize_pem())?;
        fs::write(directory.join(CA_FILE), &pem)
            .with_context(|| format!("cannot write below {}", directory.display()))?;
    }
    Ok((pem, key))
}

/// Makes the authority's files and nothing else.
pub(crate) fn prepare(directory: &Path, name: &str, ip: IpAddr) -> anyhow::Result<()> {
    authority(Some(directory), name, ip).map(drop)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Trusts the proxy's authority, and the origin's own, so that a tunnel that is not intercepted shows.
#[derive(Debug)]
struct Watching {
    inner: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
    leaf: Arc<Mutex<Option<CertificateDer<'static>>>>,
}

/// TLS as a client of the proxy speaks it, and the certificate that it met.
pub(crate) struct Client {
    pub(crate) config: Arc<ClientConfig>,
    leaf: Arc<Mutex<Option<CertificateDer<'static>>>>,
}

impl Client {
    /// Whether the certificate met was this one.
    pub(crate) fn met(&self, leaf: &CertificateDer<'_>) -> bool {
        self.leaf.lock().unwrap_or_else(PoisonError::into_inner).as_ref() == Some(leaf)
    }
}

/// Whom clients trust.
#[derive(Debug, Clone)]
pub(crate) struct Trust(Option<Arc<RootCertStore>>);

impl Trust {
    /// The authority of the proxy in a PEM file; without one, anybody.
    pub(crate) fn new(ca: Option<&Path>, identity: &Identity) -> anyhow::Result<Self> {
        let Some(path) = ca else { return Ok(Self(None)) };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(path).with_context(|| path.display().to_string())? {
            roots.add(certificate.with_context(|| path.display().to_string())?)?;
        }
        ensure!(!roots.is_empty(), "{} holds no certificate", path.display());
        roots.add(identity.ca.clone())?;
        Ok(Self(Some(Arc::new(roots))))
    }

    pub(crate) fn client(&self, alpn: &str, old: bool) -> anyhow::Result<Client> {
        let leaf = Arc::new(Mutex::new(None));
        let inner = match &self.0 {
            Some(roots) => {
                Some(WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), provider()).build()?)
            }
            None => None,
        };
        let verifier = Watching { inner, provider: provider(), leaf: Arc::clone(&leaf) };
        let versions: &[_] = if old { &[&rustls::version::TLS12] } else { rustls::ALL_VERSIONS };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Client { config: Arc::new(config), leaf })
    }
}

impl ServerCertVerifier for Watching {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        *self.leaf.lock().unwrap_or_else(PoisonError::into_inner) = Some(end_entity.clone().into_owned());
        match &self.inner {
            Some(inner) => inner.verify_server_cert(end_entity, intermediates, server_name, ocsp, now),
            None => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
