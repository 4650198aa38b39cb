//! Private keys in the containers that tools write, public keys, and tokens that are structures.

use fastrand::Rng;

use super::alphabet::{BECH32, base64, base64_url, bytes, text, uuid, wrapped};

fn pem(label: &str, body: &[u8]) -> Vec<String> {
    let mut lines = vec![format!("-----BEGIN {label}-----")];
    lines.extend(wrapped(body, 64));
    lines.push(format!("-----END {label}-----"));
    lines
}

fn with_head(rng: &mut Rng, head: &[u8], length: usize) -> Vec<u8> {
    let mut body = head.to_vec();
    body.extend(bytes(rng, length - head.len()));
    body
}

/// The DER of an RSA key of 2048 bits as PKCS #1, its numbers random.
fn pkcs1(rng: &mut Rng) -> Vec<u8> {
    with_head(rng, &[0x30, 0x82, 0x04, 0xa4, 0x02, 0x01, 0x00, 0x02, 0x82, 0x01, 0x01, 0x00], 1192)
}

fn pkcs8(rng: &mut Rng) -> Vec<u8> {
    let mut body = vec![
        0x30, 0x82, 0x04, 0xbe, 0x02, 0x01, 0x00, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d,
        0x01, 0x01, 0x01, 0x05, 0x00, 0x04, 0x82, 0x04, 0xa8,
    ];
    body.extend(pkcs1(rng));
    body
}

pub(super) fn rsa(rng: &mut Rng) -> Vec<String> {
    pem("RSA PRIVATE KEY", &pkcs1(rng))
}

pub(super) fn pkcs8_pem(rng: &mut Rng) -> Vec<String> {
    pem("PRIVATE KEY", &pkcs8(rng))
}

pub(super) fn elliptic(rng: &mut Rng) -> Vec<String> {
    let mut body = with_head(rng, &[0x30, 0x77, 0x02, 0x01, 0x01, 0x04, 0x20], 39);
    body.extend([
        0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0xa1, 0x44, 0x03, 0x42, 0, 4,
    ]);
    body.extend(bytes(rng, 64));
    pem("EC PRIVATE KEY", &body)
}

pub(super) fn pgp(rng: &mut Rng) -> Vec<String> {
    let mut lines = vec!["-----BEGIN PGP PRIVATE KEY BLOCK-----".to_owned(), String::new()];
    lines.extend(wrapped(&with_head(rng, &[0x95, 0x03, 0xd8, 0x04], 976), 64));
    lines.push(format!("={}", &base64(&bytes(rng, 3))));
    lines.push("-----END PGP PRIVATE KEY BLOCK-----".to_owned());
    lines
}

/// openssh-key-v1 with an Ed25519 key and no passphrase.
pub(super) fn openssh(rng: &mut Rng) -> Vec<String> {
    fn field(out: &mut Vec<u8>, data: &[u8]) {
        out.extend(u32::try_from(data.len()).unwrap_or_default().to_be_bytes());
        out.extend(data);
    }
    let public = bytes(rng, 32);
    let mut public_blob = Vec::new();
    field(&mut public_blob, b"ssh-ed25519");
    field(&mut public_blob, &public);
    let mut private = bytes(rng, 4);
    private.extend_from_within(..4);
    private.extend(&public_blob);
    let mut secret = bytes(rng, 32);
    secret.extend(&public);
    field(&mut private, &secret);
    field(&mut private, b"deploy@build-07");
    private.extend([1, 2, 3, 4]);
    let mut body = b"openssh-key-v1\0".to_vec();
    for part in [&b"none"[..], b"none", b""] {
        field(&mut body, part);
    }
    body.extend(1_u32.to_be_bytes());
    field(&mut body, &public_blob);
    field(&mut body, &private);
    let mut lines = vec!["-----BEGIN OPENSSH PRIVATE KEY-----".to_owned()];
    lines.extend(wrapped(&body, 70));
    lines.push("-----END OPENSSH PRIVATE KEY-----".to_owned());
    lines
}

/// The same as the one line that a JSON file has.
pub(super) fn in_one_line(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\\n")).collect()
}

pub(super) fn public_pem(rng: &mut Rng) -> Vec<String> {
    pem("PUBLIC KEY", &with_head(rng, &[0x30, 0x82, 0x01, 0x22, 0x30, 0x0d, 0x06, 0x09, 0x2a], 294))
}

pub(super) fn certificate(rng: &mut Rng) -> Vec<String> {
    pem(
        "CERTIFICATE",
        &with_head(rng, &[0x30, 0x82, 0x03, 0x5c, 0x30, 0x82, 0x02, 0x44, 0xa0, 0x03, 2, 1, 2], 864),
    )
}

pub(super) fn request(rng: &mut Rng) -> Vec<String> {
    pem(
        "CERTIFICATE REQUEST",
        &with_head(rng, &[0x30, 0x82, 0x02, 0x8a, 0x30, 0x82, 0x01, 0x72, 0x02, 1, 0], 654),
    )
}

pub(super) fn ssh_public(rng: &mut Rng) -> String {
    let mut blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20".to_vec();
    blob.extend(bytes(rng, 32));
    format!("ssh-ed25519 {} dev@laptop", base64(&blob))
}

fn bech32_checksum(prefix: &str, data: &[u8]) -> [u8; 6] {
    let step = |sum: u32, value: u32| {
        let top = sum >> 25;
        let next = ((sum & 0x01ff_ffff) << 5) ^ value;
        [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3]
            .iter()
            .enumerate()
            .filter(|(bit, _)| top >> bit & 1 == 1)
            .fold(next, |sum, (_, generator)| sum ^ generator)
    };
    let high = prefix.bytes().map(|byte| u32::from(byte >> 5));
    let low = prefix.bytes().map(|byte| u32::from(byte & 31));
    let values = high.chain([0]).chain(low).chain(data.iter().map(|value| u32::from(*value))).chain([0; 6]);
    let sum = values.fold(1, step) ^ 1;
    std::array::from_fn(|index| u8::try_from(sum >> (5 * (5 - index)) & 31).unwrap_or_default())
}

fn bech32(rng: &mut Rng, prefix: &str) -> String {
    // 32 bytes are 51 groups of five bits and one bit, padded with zeros.
    let mut data: Vec<u8> = (0..51).map(|_| rng.u8(..32)).collect();
    data.push(rng.u8(..2) << 4);
    let sum = bech32_checksum(prefix, &data);
    let word: String = data.iter().chain(&sum).map(|value| char::from(BECH32[usize::from(*value)])).collect();
    format!("{prefix}1{word}")
}

pub(super) fn age_secret(rng: &mut Rng) -> String {
    bech32(rng, "age-secret-key-").to_uppercase()
}

pub(super) fn age_public(rng: &mut Rng) -> String {
    bech32(rng, "age")
}

pub(super) fn jwt(rng: &mut Rng) -> String {
    let (algorithm, signature) = if rng.bool() { ("HS256", 32) } else { ("RS256", 256) };
    let head = format!(r#"{{"alg":"{algorithm}","typ":"JWT"}}"#);
    let issued = 1_780_000_000 + rng.u32(..9_000_000);
    let claims = format!(
        r#"{{"iss":"https://login.corp.test/","sub":"{}","aud":"api","iat":{issued},"exp":{}}}"#,
        uuid(rng),
        issued + 86_400
    );
    format!(
        "{}.{}.{}",
        base64_url(head.as_bytes()),
        base64_url(claims.as_bytes()),
        base64_url(&bytes(rng, signature))
    )
}

/// A macaroon, version 2, as PyPI gives it out.
pub(super) fn pypi(rng: &mut Rng) -> String {
    let mut data = vec![0x02, 0x01, 0x08];
    data.extend(b"pypi.org");
    data.extend([0x02, 0x24]);
    data.extend(uuid(rng).bytes());
    let caveat = format!(r#"[3,"{}"]"#, uuid(rng));
    data.extend([0x00, 0x02, u8::try_from(caveat.len()).unwrap_or_default()]);
    data.extend(caveat.bytes());
    data.extend([0x00, 0x00, 0x06, 0x20]);
    data.extend(bytes(rng, 32));
    format!("pypi-{}", base64_url(&data))
}

/// A WireGuard or Curve25519 key: 32 bytes of base64, public or private by its name alone.
pub(super) fn curve(rng: &mut Rng) -> String {
    base64(&bytes(rng, 32))
}

/// Text of an image: what a data URL carries.
pub(super) fn png(rng: &mut Rng, length: usize) -> String {
    base64(&with_head(rng, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", length))
}

pub(super) fn hex(rng: &mut Rng, length: usize) -> String {
    text(rng, super::alphabet::HEX, length)
}
