//! A minimal interception proxy with hudsucker as it comes, TCP_NODELAY on both sides, no policy and no record.
//!
//! hudsucker-peer ADDRESS CA.pem CA-KEY.pem UPSTREAM-CA.pem

use std::net::SocketAddr;

use hudsucker::Proxy;
use hudsucker::certificate_authority::RcgenAuthority;
use hudsucker::rcgen::{Issuer, KeyPair};
use hudsucker::rustls::pki_types::CertificateDer;
use hudsucker::rustls::pki_types::pem::PemObject;
use hudsucker::rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().expect("ADDRESS CA.pem CA-KEY.pem UPSTREAM-CA.pem");
    let address: SocketAddr = next().parse().expect("an address");
    let authority = std::fs::read_to_string(next()).expect("the authority");
    let key = KeyPair::from_pem(&std::fs::read_to_string(next()).expect("its key")).expect("a key");
    let issuer = Issuer::from_ca_cert_pem(&authority, key).expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(next()).expect("upstream's authority")).expect("a root");

    let config = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_or_http()
        .enable_http1()
        .enable_http2()
        .wrap_connector(http);
    let mut client = hyper_util::client::legacy::Client::builder(TokioExecutor::new());
    client.pool_timer(TokioTimer::new());

    let listener = tokio::net::TcpListener::bind(address).await.expect("the address is free");
    // What is accepted inherits it.
    setsockopt(&listener, sockopt::TcpNoDelay, &true).expect("TCP_NODELAY");
    eprintln!("listening");
    let proxy = Proxy::builder()
        .with_listener(listener)
        .with_ca(RcgenAuthority::new(issuer, 1000, aws_lc_rs::default_provider()))
        .with_http_connector(connector)
        .with_client(client)
        .build()
        .expect("a proxy");
    proxy.start().await.expect("it serves");
}
