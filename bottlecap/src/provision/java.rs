//! The roots of trust as a Java machine reads them: its own keystore format, which every version still takes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

const MAGIC: u32 = 0xfeed_feed;
const VERSION: u32 = 2;
const TRUSTED_CERTIFICATE: u32 = 2;
/// What the format mixes into its check sum.
const SALT: &[u8] = b"Mighty Aphrodite";

/// The certificates in a PEM text, as DER. What is not one is left out.
#[must_use]
pub fn certificates(pem: &str) -> Vec<Vec<u8>> {
    let blocks = pem.split("-----BEGIN CERTIFICATE-----").skip(1);
    let body = |block: &str| {
        let (body, _) = block.split_once("-----END CERTIFICATE-----")?;
        let digits: String = body.chars().filter(|digit| !digit.is_ascii_whitespace()).collect();
        STANDARD.decode(digits).ok()
    };
    blocks.filter_map(body).collect()
}

/// A store with these certificates and no key, under `password`.
#[must_use]
pub fn store(certificates: &[Vec<u8>], password: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let number = |bytes: &mut Vec<u8>, number: usize| {
        bytes.extend_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes());
    };
    bytes.extend_from_slice(&MAGIC.to_be_bytes());
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    number(&mut bytes, certificates.len());
    for (index, certificate) in certificates.iter().enumerate() {
        bytes.extend_from_slice(&TRUSTED_CERTIFICATE.to_be_bytes());
        text(&mut bytes, &format!("root-{index}"));
        // When it was put in, which nobody asks.
        bytes.extend_from_slice(&0_u64.to_be_bytes());
        text(&mut bytes, "X.509");
        number(&mut bytes, certificate.len());
        bytes.extend_from_slice(certificate);
    }
    let mut sum = Sha1::new();
    for unit in password.encode_utf16() {
        sum.update(unit.to_be_bytes());
    }
    sum.update(SALT);
    sum.update(&bytes);
    bytes.extend_from_slice(&sum.finalize());
    bytes
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
}
