//! Durations as people write them: `10s`, `5m`.

use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// `500ms`, `10s`, `5m` or `1h`; more than nothing, at most a day.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let allowed =
        || format!("`{text}` is not a duration: write a number and a unit, as `500ms`, `10s`, `5m` or `1h`");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| allowed())?;
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(allowed()),
    };
    let duration = number.checked_mul(unit_ms).map(Duration::from_millis);
    match duration {
        Some(duration) if !duration.is_zero() && duration <= DAY => Ok(duration),
        Some(_) | None => Err(format!("`{text}` is out of range: more than 0, at most 24h")),
    }
}
