//! A request posted to a place of the operator's, signed, so that the place can tell who says it and when.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::TIMEOUT;
use crate::fault::{Attempted, Fault};

const TIMESTAMP: &str = "X-Bottlecap-Timestamp";
const SIGNATURE: &str = "X-Bottlecap-Signature";
/// Shorter ones can be guessed.
const SECRET_MIN_BYTES: usize = 16;

pub(super) struct Webhook {
    url: String,
    secret: Zeroizing<Vec<u8>>,
    agent: ureq::Agent,
}

impl Webhook {
    pub(super) fn new(url: &str, secret: &Path) -> Result<Webhook, Fault> {
        check(url)?;
        let told = || format!("cannot read the webhook's secret {}", secret.display());
        let text = Zeroizing::new(fs::read(secret).refusing(told)?);
        let bare = Zeroizing::new(text.trim_ascii_end().to_vec());
        if bare.len() < SECRET_MIN_BYTES {
            return Err(Fault::refused(format!(
                "the webhook's secret in {} has less than {SECRET_MIN_BYTES} bytes",
                secret.display()
            )));
        }
        // Another part of the program may have chosen it already, to the same effect.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let config =
            ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).max_redirects(0).proxy(None).build();
        Ok(Webhook { url: url.to_owned(), secret: bare, agent: config.into() })
    }

    /// What is answered is not read.
    pub(super) fn post(&self, body: &str, now: Timestamp) -> Result<(), Fault> {
        let timestamp = now.as_second().to_string();
        let signature = signature(&self.secret, &timestamp, body);
        let request = self.agent.post(&self.url).header("Content-Type", "application/json");
        let request = request.header(TIMESTAMP, &timestamp).header(SIGNATURE, &signature);
        request.send(body).failing(|| "the webhook did not take it".to_owned()).map(drop)
    }
}

/// `v1=` and the hexadecimal HMAC-SHA256 of the time, a dot and the body.
fn signature(secret: &[u8], timestamp: &str, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(body.as_bytes());
    mac.finalize().into_bytes().iter().fold("v1=".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// In the clear only to this very machine.
fn check(url: &str) -> Result<(), Fault> {
    let refused = || {
        Fault::refused(format!("{url} is no place for a webhook"))
            .with_hint("write https://HOST/PATH; http:// leads to an address of this machine only, such as http://127.0.0.1:8080/")
    };
    let uri: ureq::http::Uri = url.parse().map_err(|_| refused())?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_here = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match uri.scheme_str() {
        Some("https") if !host.is_empty() => Ok(()),
        Some("http") if is_here => Ok(()),
        Some(_) | None => Err(refused()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_the_one_that_openssl_makes() {
        // printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac 0123456789abcdef
        let made = signature(b"0123456789abcdef", "1700000000", "{\"a\":1}");
        insta::assert_snapshot!(made, @"v1=9eb18f493f8ec135d9eb2dad817c369bb4e9cbfa818657897a7437c1cd8c3a23");
    }

    #[test]
    fn a_webhook_is_encrypted_or_on_this_machine() {
        for url in ["https://hooks.example.com/x", "http://127.0.0.1:8080/x", "http://[::1]/x"] {
            assert!(check(url).is_ok(), "{url}");
        }
        for url in [
            "http://hooks.example.com/x",
            "http://localhost/x",
            "ftp://127.0.0.1/x",
            "nonsense",
            "http://127.0.0.1.example.com/",
        ] {
            assert!(check(url).is_err(), "{url}");
        }
    }
}
