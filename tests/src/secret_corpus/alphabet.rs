//! Random text in the alphabets that tokens are written in.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use fastrand::Rng;

pub(super) const ALNUM: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
pub(super) const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
pub(super) const LOWER: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
pub(super) const UPPER: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
pub(super) const HEX: &[u8] = b"0123456789abcdef";
pub(super) const DIGITS: &[u8] = b"0123456789";
pub(super) const BASE32: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
pub(super) const URL64: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";
pub(super) const BECH32: &[u8] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
const SYMBOLS: &[u8] = b"!#%*+-.:=?@^_~";

/// So many characters of the alphabet.
pub(super) fn text(rng: &mut Rng, alphabet: &[u8], length: usize) -> String {
    (0..length).map(|_| char::from(alphabet[rng.usize(..alphabet.len())])).collect()
}

pub(super) fn bytes(rng: &mut Rng, length: usize) -> Vec<u8> {
    (0..length).map(|_| rng.u8(..)).collect()
}

pub(super) fn base64(data: &[u8]) -> String {
    STANDARD.encode(data)
}

pub(super) fn base64_url(data: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(data)
}

/// Base64 wrapped at `width`, as PEM has it.
pub(super) fn wrapped(data: &[u8], width: usize) -> Vec<String> {
    let line = base64(data);
    line.as_bytes().chunks(width).map(|chunk| String::from_utf8_lossy(chunk).into_owned()).collect()
}

pub(super) fn uuid(rng: &mut Rng) -> String {
    let mut hex = |length| text(rng, HEX, length);
    format!("{}-{}-4{}-a{}-{}", hex(8), hex(4), hex(3), hex(3), hex(12))
}

pub(super) fn one<'a, T: ?Sized>(rng: &mut Rng, choices: &[&'a T]) -> &'a T {
    choices[rng.usize(..choices.len())]
}

/// The number in `radix` digits of the order 0-9, A-Z, a-z, left-padded with zeros.
pub(super) fn padded(mut number: u64, digits: &[u8], width: usize) -> String {
    let radix = digits.len() as u64;
    let mut text = vec![b'0'; width];
    for place in text.iter_mut().rev() {
        *place = digits[usize::try_from(number % radix).unwrap_or_default()];
        number /= radix;
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// A password as a generator of passwords makes it.
pub(super) fn password(rng: &mut Rng, length: usize) -> String {
    let mut all = text(rng, ALNUM, length).into_bytes();
    for _ in 0..2 {
        let place = rng.usize(1..length - 1);
        all[place] = SYMBOLS[rng.usize(..SYMBOLS.len())];
    }
    String::from_utf8_lossy(&all).into_owned()
}
