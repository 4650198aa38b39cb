//! The rules for published token formats.
//!
//! More specific rules stand before more general ones: of two that match the same place the first
//! is reported. A group named `s` is the secret where the pattern needs something around it.

mod carriers;
mod clouds;
mod forges;
mod issued;
mod keys;
mod models;
mod packages;
mod services;

use crate::check::Check;

/// One rule.
#[derive(Clone, Copy)]
pub(crate) struct Rule {
    pub(crate) id: &'static str,
    /// Lower-case words, one of which stands at the start of every match, or `lead` bytes into it.
    pub(crate) keywords: &'static [&'static str],
    pub(crate) pattern: &'static str,
    pub(crate) check: Check,
    /// How many bytes of a match stand before its keyword: the least and the most.
    pub(crate) lead: (usize, usize),
    /// Whether a match may not follow a character of a token.
    pub(crate) alone: bool,
}

const fn rule(
    id: &'static str,
    keywords: &'static [&'static str],
    pattern: &'static str,
    check: Check,
) -> Rule {
    Rule { id, keywords, pattern, check, lead: (0, 0), alone: false }
}

impl Rule {
    const fn lead(self, least: usize, most: usize) -> Self {
        Self { lead: (least, most), ..self }
    }

    const fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    /// Whether what stands before a match has a say.
    pub(crate) fn is_bounded(&self) -> bool {
        self.alone || [r"\b", r"(?i:\b", "(?:^|"].iter().any(|start| self.pattern.starts_with(start))
    }
}

/// The tables, in order of precedence.
pub(crate) const BUILTIN: [&[Rule]; 9] = [
    keys::RULES,
    forges::RULES,
    clouds::RULES,
    clouds::NAMED,
    models::RULES,
    packages::RULES,
    services::RULES,
    issued::RULES,
    carriers::RULES,
];

/// Those that know a credential by its own form, and not by what stands beside it.
pub(crate) const FORMATS: [&[Rule]; 7] = [
    keys::RULES,
    forges::RULES,
    clouds::RULES,
    models::RULES,
    packages::RULES,
    services::RULES,
    issued::RULES,
];
