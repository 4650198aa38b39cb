//! Private keys.

use super::{Rule, rule};
use crate::check::Check::{Entropy, KeyBody};

pub(super) const RULES: &[Rule] = &[
    rule("private-key", &["-----begin"], r"-----BEGIN[A-Z0-9 ]{0,40} PRIVATE KEY(?: BLOCK)?-----", KeyBody),
    rule(
        "putty-private-key",
        &["private-lines"],
        r"Private-Lines: [0-9]{1,3}\r?\n(?P<s>[A-Za-z0-9+/=]{40,64})",
        Entropy(3.5),
    ),
    rule(
        "age-secret-key",
        &["age-secret-key-1"],
        r"AGE-SECRET-KEY-1[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{58}",
        Entropy(3.5),
    ),
];
