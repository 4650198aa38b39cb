//! Reading the values of an object that an agent wrote.

use std::num::NonZeroU32;

use serde_json::{Map, Value};

use crate::parse::{Invalid, TTL_DEFAULT, TTL_MAX, TTL_MIN, USES_MAX};

const REASON_MAX_CHARS: usize = 500;

/// The text of a key that has to be there.
pub(crate) fn required<'o>(
    object: &'o Map<String, Value>,
    key: &'static str,
    expected: &'static str,
) -> Result<&'o str, Invalid> {
    match object.get(key) {
        None | Some(Value::Null) => Err(Invalid::Missing { key }),
        Some(value) => value.as_str().ok_or(Invalid::Value { key, expected }),
    }
}

/// The value of an optional key; `null` is as good as nothing, because some clients send it for what was left out.
pub(crate) fn optional<'o>(object: &'o Map<String, Value>, key: &str) -> Option<&'o Value> {
    object.get(key).filter(|value| !value.is_null())
}

/// The elements of an optional list, which must not be empty: an empty list would not say whether it means all or nothing.
pub(crate) fn list<'o>(
    object: &'o Map<String, Value>,
    key: &'static str,
    most: usize,
    expected: &'static str,
) -> Result<Option<&'o Vec<Value>>, Invalid> {
    match optional(object, key) {
        None => Ok(None),
        Some(Value::Array(values)) if (1..=most).contains(&values.len()) => Ok(Some(values)),
        Some(_) => Err(Invalid::Value { key, expected }),
    }
}

pub(crate) fn ttl(object: &Map<String, Value>) -> Result<u32, Invalid> {
    let Some(value) = optional(object, "ttl_seconds") else { return Ok(TTL_DEFAULT) };
    value
        .as_u64()
        .and_then(|ttl| u32::try_from(ttl).ok())
        .filter(|ttl| (TTL_MIN..=TTL_MAX).contains(ttl))
        .ok_or(Invalid::Value { key: "ttl_seconds", expected: "a number of seconds from 60 to 86400" })
}

pub(crate) fn uses(object: &Map<String, Value>) -> Result<Option<NonZeroU32>, Invalid> {
    let Some(value) = optional(object, "max_uses") else { return Ok(None) };
    value
        .as_u64()
        .and_then(|uses| u32::try_from(uses).ok())
        .filter(|uses| *uses <= USES_MAX)
        .and_then(NonZeroU32::new)
        .map(Some)
        .ok_or(Invalid::Value { key: "max_uses", expected: "a number from 1 to 100000" })
}

pub(crate) fn reason(object: &Map<String, Value>) -> Result<String, Invalid> {
    sentence(object, "reason")
}

/// A text of the agent's own, of a bounded length.
pub(crate) fn sentence(object: &Map<String, Value>, key: &'static str) -> Result<String, Invalid> {
    const EXPECTED: &str = "a sentence of at most 500 characters";
    let text = required(object, key, EXPECTED)?.trim();
    if text.is_empty() || text.chars().count() > REASON_MAX_CHARS {
        return Err(Invalid::Value { key, expected: EXPECTED });
    }
    Ok(text.to_owned())
}
