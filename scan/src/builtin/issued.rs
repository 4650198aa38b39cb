//! Tokens that any issuer makes.

use super::{Rule, rule};
use crate::check::Check::Jwt;

pub(super) const RULES: &[Rule] =
    &[rule("jwt", &["eyj"], r"\beyJ[A-Za-z0-9_-]{14,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}", Jwt)
        .alone()];
