//! How much a route may do.

use std::num::NonZeroU32;

/// The bounds of a route; what is `None` has no bound of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteLimits {
    /// Requests that may begin within a minute. A whole minute's worth may begin at once, then it is made good evenly.
    pub requests_per_minute: Option<NonZeroU32>,
    /// The bytes of a request's body.
    pub request_body: Option<u64>,
    /// Connections to upstream that may be open at once: those in use, kept for later, upgraded or passed through.
    pub connections: Option<NonZeroU32>,
    /// Requests that may be unanswered, or answered in part, at once.
    pub concurrency: Option<NonZeroU32>,
}

/// Why a text is not a number of bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SizeError {
    #[error("`{0}` is not a size: write a whole number and a unit, as `64KiB`, `50MiB` or `1GiB`")]
    Form(String),
    #[error("`{0}` is larger than can be counted")]
    TooLarge(String),
}

/// `50MiB`, `10MB`, `512B`, or a number of bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, SizeError> {
    const UNITS: [(&str, u64); 8] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1_000),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
    ];
    let unit = UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
    let (digits, bytes) = unit.unwrap_or((text, 1));
    let digits = digits.strip_suffix(' ').unwrap_or(digits);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(SizeError::Form(text.to_owned()));
    }
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(bytes));
    number.ok_or_else(|| SizeError::TooLarge(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_numbers_with_a_unit() {
        assert_eq!(parse_size("50MiB"), Ok(50 * 1024 * 1024));
        assert_eq!(parse_size("1 GB"), Ok(1_000_000_000));
        assert_eq!(parse_size("12"), Ok(12));
        assert_eq!(parse_size("0B"), Ok(0));
        for text in ["", "MiB", "1.5MiB", "-1", "1 TiB", "1  KiB"] {
            assert_eq!(parse_size(text), Err(SizeError::Form(text.to_owned())));
        }
        let huge = "99999999999GiB";
        assert_eq!(parse_size(huge), Err(SizeError::TooLarge(huge.to_owned())));
    }
}
