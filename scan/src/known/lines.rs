//! The lines of a key, which keep their meaning however they are put under each other.

use crate::entropy::shannon;

/// A shorter line may stand in another text.
const LINE_MIN_BYTES: usize = 40;
/// What a line must look like, in bits per byte.
const LINE_MIN_ENTROPY: f32 = 3.5;

/// The parts of a value of several lines that nothing but such lines stands in: not its armour, and not what a program reads as text.
pub(super) fn bodies(value: &[u8]) -> Vec<Vec<&[u8]>> {
    let lines: Vec<&[u8]> = value.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).collect();
    if lines.len() < 2 {
        return Vec::new();
    }
    let bodies = lines.split(|line| !is_of_key(line)).map(<[&[u8]]>::to_vec);
    bodies.filter(|body| body.iter().any(|line| is_long(line))).collect()
}

/// Whether a line says enough to be looked for by itself.
pub(super) fn is_long(line: &[u8]) -> bool {
    line.len() >= LINE_MIN_BYTES && shannon(line) >= LINE_MIN_ENTROPY
}

fn is_of_key(line: &[u8]) -> bool {
    let in_key = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'-' | b'_');
    !line.is_empty() && !line.starts_with(b"-----") && line.iter().all(in_key)
}
