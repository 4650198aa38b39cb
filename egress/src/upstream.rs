//! The open side: names resolved once, addresses checked, exactly a checked address dialled.

mod connector;
mod dial;
mod gateways;
mod line;
mod near;
mod parent;
mod pool;
mod race;
mod resolve;
mod socket;

pub use dial::{DialError, Dialer};
pub use parent::{Parent, ParentError, ParseParentError};
pub use resolve::{Resolve, SystemResolver};

use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::sync::Arc;

use http::{Request, Response};
use hudsucker::Body;
use policy::{Defaults, Route};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::body::Whole;
use crate::interim::Tap;
use crate::limits::Gauge;
use crate::refusal::{Code, Refusal};
use crate::snapshot::OpenSide;
use crate::tls::provider;
use connector::Connector;
use pool::{HEAD_LIMIT, HEADERS_LIMIT, Pool};

pub(crate) use pool::{Lent, RequestError};
pub(crate) use race::AT_ONCE as DIALLED_AT_ONCE;

/// Why upstream TLS cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file of additional roots cannot be read.
    #[error("cannot read the additional roots in {path}")]
    Read {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file holds no certificate.
    #[error("{path} holds no PEM certificate that can be a root")]
    NoRoots {
        /// The file.
        path: std::path::PathBuf,
    },
    /// The configuration was not accepted.
    #[error("cannot prepare TLS")]
    Tls(#[from] rustls::Error),
}

/// The TLS of the open side, with each choice of protocols.
#[derive(Debug, Clone)]
pub struct UpstreamTls {
    any: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
}

impl UpstreamTls {
    /// The roots of the web, and those in the PEM file at `additional`.
    pub fn new(additional: Option<&Path>) -> Result<UpstreamTls, TlsError> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        if let Some(path) = additional {
            let pem =
                std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })?;
            let certificates = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok);
            let (added, _) = roots.add_parsable_certificates(certificates);
            if added == 0 {
                return Err(TlsError::NoRoots { path: path.to_owned() });
            }
        }
        let mut any = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut http1 = any.clone();
        any.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(UpstreamTls { any: Arc::new(any), http1: Arc::new(http1) })
    }
}

/// The connections of one route. Nothing of it is shared with another route: what one may dial, another may not.
#[derive(Clone)]
pub(crate) struct RouteClient(Arc<Pool>);

impl RouteClient {
    pub(crate) fn new(
        route: &Route,
        defaults: &Defaults,
        open: &OpenSide,
        gauge: &Arc<Gauge>,
    ) -> RouteClient {
        let connector = Connector::new(
            Arc::clone(&open.dialer),
            (route.allow_private().to_vec(), route.resolves()),
            open.tls.clone(),
            defaults.connect_timeout,
            Arc::clone(gauge),
        );
        RouteClient(Arc::new(Pool::new(connector, open.tasks.clone())))
    }

    /// The head of the answer to `request`, whose target is absolute, and the connection that its body comes on. What HTTP/1.1 says before
    /// goes to `tap`.
    pub(crate) fn request(
        &self,
        request: Request<Body>,
        tap: Option<Tap>,
    ) -> impl Future<Output = Result<(Response<Whole>, Option<Lent>), RequestError>> + Send {
        self.0.request(request, tap)
    }

    /// The same for a request that upgrades, over a connection of HTTP/1.1 of its own.
    pub(crate) async fn upgrade(
        &self,
        request: Request<Body>,
        tap: Option<Tap>,
    ) -> Result<Response<Whole>, RequestError> {
        self.0.upgrade(request, tap).await
    }
}

/// What the agent is told when upstream cannot be reached.
pub(crate) fn refusal_of_dial(error: &DialError) -> Refusal {
    let refusal = match error {
        DialError::NotAllowed(denial) => policy::Denial::from(*denial).into(),
        DialError::Ours(_) => Refusal::new(
            Code::Policy(policy::Code::AddressNotAllowed),
            "the host resolves to this proxy itself",
        ),
        DialError::Near(_) => Refusal::new(
            Code::Policy(policy::Code::AddressNotAllowed),
            "the host resolves to a gateway or the resolver of the machine that the proxy runs on",
        ),
        DialError::Resolve(_) | DialError::NoAddress => {
            Refusal::new(Code::UpstreamUnresolved, "the name of the upstream host could not be resolved")
        }
        DialError::Connect(_) => Refusal::new(
            Code::UpstreamUnreachable,
            "no connection to the upstream host: it refused, or no route leads there",
        ),
        DialError::Parent(_) => Refusal::new(
            Code::UpstreamUnreachable,
            "the parent proxy did not open a connection to the upstream host",
        ),
        DialError::TooMany(error) => (*error).into(),
        DialError::Full => Refusal::new(
            Code::UpstreamUnreachable,
            "this bottle has as many connections to upstream hosts open as it may; close some",
        ),
        DialError::Timeout => Refusal::new(Code::UpstreamTimeout, "the upstream host did not answer in time"),
        DialError::Tls(_) => {
            Refusal::new(Code::UpstreamTls, "the certificate or TLS of the upstream host is not acceptable")
        }
        DialError::Name => Refusal::new(Code::Internal, "the host of the request was lost on the way"),
    };
    refusal.because(error)
}

const BROKE_OFF: &str = "the upstream host broke off, or its answer was not HTTP";

/// What the agent is told when a request failed.
pub(crate) fn refusal_of_request(error: &RequestError) -> Refusal {
    let error = match error {
        RequestError::Dial(error) => return refusal_of_dial(error),
        RequestError::Target(error) => {
            return Refusal::new(Code::Internal, "the request cannot be forwarded").because(error);
        }
        RequestError::Http2(error) => {
            return Refusal::new(Code::UpstreamFailed, BROKE_OFF).because(error);
        }
        RequestError::Http1(error) => error,
    };
    let mut source: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(cause) = source {
        if cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse_too_large) {
            let hint = format!(
                "the head of the upstream host's answer is too large: at most {HEADERS_LIMIT} headers and {HEAD_LIMIT} bytes"
            );
            return Refusal::new(Code::UpstreamFailed, hint).because(error);
        }
        source = cause.source();
    }
    Refusal::new(Code::UpstreamFailed, BROKE_OFF).because(error)
}
