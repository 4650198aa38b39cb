//! Inputs in which some bytes stand for a secret in one of its forms: a fuzzer would not find those by itself.

use std::io::Write as _;
use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, STANDARD, URL_SAFE_NO_PAD};
use scan::Known;

const SECRET: &str = "kV9/xQ+2mZ=7 pL4\\new\t&wR\u{e9}8\"tY1%uN6\\";

/// The secret, as it is looked for.
pub fn known() -> Arc<Known> {
    static KNOWN: LazyLock<Arc<Known>> = LazyLock::new(|| {
        let mut known = Known::default();
        known.add(SECRET.as_bytes()).expect("it is long and mixed");
        Arc::new(known)
    });
    Arc::clone(&KNOWN)
}

fn written(bytes: &[u8], each: fn(&u8) -> String) -> Vec<u8> {
    bytes.iter().map(each).collect::<String>().into_bytes()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("a vector takes everything")
}

fn forms() -> &'static [Vec<u8>] {
    static FORMS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
        let json = SECRET.replace('\\', "\\\\").replace('"', "\\\"").replace('\t', "\\t");
        let token = format!("glpat{}q8Zr2LkT0vWcN5mYx1Jd", "-");
        vec![
            SECRET.into(),
            STANDARD.encode(SECRET).into(),
            STANDARD.encode(format!("x{SECRET} after")).into(),
            URL_SAFE_NO_PAD.encode(format!("xy{SECRET} after")).into(),
            STANDARD.encode(STANDARD.encode(SECRET)).into(),
            written(SECRET.as_bytes(), |byte| format!("%{byte:02X}")),
            SECRET.replace('%', "%25").replace('/', "%2f").replace('+', "%2B").replace(' ', "+").into(),
            written(SECRET.as_bytes(), |byte| format!("{byte:02x}")),
            written(SECRET.as_bytes(), |byte| format!("{byte:02X}")),
            json.replace('/', "\\/").replace('&', "\\u0026").replace('\u{e9}', "\\u00e9").into(),
            SECRET.replace('&', "&amp;").replace('"', "&#34;").into(),
            SECRET.bytes().flat_map(|byte| [byte, 0]).collect(),
            gzip(SECRET.as_bytes()),
            gzip(token.as_bytes()),
            STANDARD.encode(&token).into(),
            token.into(),
        ]
    });
    &FORMS
}

/// What gives the secret away wherever it stands, whatever stands beside it: the secret, in small letters, in hexadecimal, and the characters
/// of base64, once and twice over, that depend on it alone.
pub fn cores() -> Vec<Vec<u8>> {
    let once = aligned(SECRET.as_bytes());
    let twice: Vec<Vec<u8>> = once.iter().flat_map(|core| aligned(core)).collect();
    let hex = [forms()[7].clone(), forms()[8].clone()];
    [SECRET.into(), SECRET.to_ascii_lowercase().into()]
        .into_iter()
        .chain(hex)
        .chain(once)
        .chain(twice)
        .collect()
}

/// At each of the three places of a group, in both alphabets.
fn aligned(value: &[u8]) -> Vec<Vec<u8>> {
    let core = |before: usize, alphabet: &GeneralPurpose| {
        let padded = [&[0; 2][..before], value].concat();
        alphabet.encode(&padded)[(before * 8).div_ceil(6)..padded.len() * 8 / 6].into()
    };
    (0..3).flat_map(|before| [core(before, &STANDARD), core(before, &URL_SAFE_NO_PAD)]).collect()
}

/// From 0xf0 on a byte is a form, from 0xe0 on the beginning of one, of as many bytes as the next byte says.
pub fn text(script: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    let mut script = script.iter();
    while let Some(byte) = script.next() {
        let form = &forms()[usize::from(byte & 15)];
        match byte {
            0xf0.. => text.extend(form),
            0xe0.. => {
                let length = script.next().copied().map_or(0, usize::from);
                // Less than its core: a form that is cut off at its end is none, and nobody says that it is masked.
                text.extend(&form[..length % (form.len() / 2)]);
            }
            other => text.push(*other),
        }
    }
    text
}
