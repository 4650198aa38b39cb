//! Encrypted Client Hello: a client may hide another name than the one that it shows.

use std::sync::Arc;

use rustls::client::{EchConfig, EchGreaseConfig, EchMode};
use rustls::crypto::aws_lc_rs::{default_provider, hpke};
use rustls::crypto::hpke::Hpke;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{EchConfigListBytes, ServerName};
use tokio_rustls::TlsConnector;

use super::support::{Bench, HOST, get, http1_on};

/// An ECHConfigList (RFC 9849) for `public`, with a key of which nobody has the other half.
fn config_list(public: &str, key: &[u8]) -> EchConfigListBytes<'static> {
    let number = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
    let mut contents = vec![7, 0, 0x20];
    contents.extend(number(key.len()));
    contents.extend(key);
    // HKDF-SHA256 with AES-128-GCM.
    contents.extend([0, 4, 0, 1, 0, 1, 64, u8::try_from(public.len()).unwrap()]);
    contents.extend(public.as_bytes());
    contents.extend([0, 0]);
    let config = [&[0xfe, 0x0d][..], &number(contents.len()), &contents].concat();
    EchConfigListBytes::from([&number(config.len())[..], &config].concat())
}

/// What a client may do: nothing, as browsers do without a configuration, or hide the name behind another.
fn ways() -> [(&'static str, Option<EchMode>); 3] {
    let suite: &dyn Hpke = hpke::DH_KEM_X25519_HKDF_SHA256_AES_128;
    let key = suite.generate_key_pair().unwrap().0;
    let grease = EchMode::from(EchGreaseConfig::new(suite, key.clone()));
    let hiding = EchMode::from(EchConfig::new(config_list(HOST, &key.0), &[suite]).unwrap());
    [("without", None), ("grease", Some(grease)), ("hiding", Some(hiding))]
}

fn client(ech: Option<EchMode>, roots: RootCertStore) -> TlsConnector {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = match ech {
        Some(mode) => builder.with_ech(mode).unwrap(),
        None => builder.with_safe_default_protocol_versions().unwrap(),
    };
    TlsConnector::from(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

#[tokio::test]
async fn an_intercepted_tunnel_is_for_the_name_that_is_shown_whatever_is_hidden() {
    let bench = Bench::allowing("deny: false").await;
    let agent = bench.agent();
    for (way, ech) in ways() {
        let (status, stream) = agent.connect(&bench.target()).await;
        assert_eq!(status, 200);
        let hides = way == "hiding";
        // The name that is asked for is the hidden one; the one that is shown is that of the configuration.
        let name = if hides { "hidden.test" } else { HOST };
        let connected = client(ech, agent.roots()).connect(ServerName::try_from(name).unwrap(), stream).await;
        if hides {
            // The client sees that what it hid was not read, and goes no further.
            assert!(connected.is_err(), "{way}");
            continue;
        }
        let mut request = get("/v1/x");
        request.headers_mut().insert("host", bench.target().parse().unwrap());
        let answer = http1_on(connected.unwrap()).await.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200, "{way}");
    }
    assert!(bench.upstream.requests().len() == 2 && !bench.names.asked().contains(&"hidden.test".to_owned()));
}

#[tokio::test]
async fn a_passed_through_tunnel_that_may_hide_a_name_is_refused_before_anything_is_dialled() {
    let bench = Bench::with(|upstream| {
        let port = upstream.tls.port();
        format!(
            "routes:\n  - {{host: {HOST}, ports: [{port}], tls: passthrough, allow_private: [127.0.0.0/8]}}\n"
        )
    })
    .await;
    let friend = bench.friend_of_upstream();
    for (way, ech) in ways() {
        let before = bench.upstream.memory.connections.get();
        let (status, stream) = friend.connect(&bench.target()).await;
        assert_eq!(status, 200);
        let name = if way == "hiding" { "hidden.test" } else { HOST };
        let connected =
            client(ech, friend.roots()).connect(ServerName::try_from(name).unwrap(), stream).await;
        assert_eq!(connected.is_ok(), way == "without", "{way}");
        let dialled = bench.upstream.memory.connections.get() - before;
        assert_eq!(dialled, usize::from(way == "without"), "{way}");
    }
    let codes = bench.events().await.iter().filter(|event| event["code"] == "encrypted-hello").count();
    assert_eq!(codes, 2);
}
