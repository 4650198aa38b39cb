//! What of a route's traffic is searched for secrets, and what follows when one is found.

/// The inspection of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dlp {
    /// What requests are searched for; empty for nothing.
    pub outbound: Vec<Detector>,
    /// What answers are searched for; empty for nothing.
    pub inbound: Vec<Detector>,
    /// What follows when a request has it.
    pub on_match: OnMatch,
    /// What follows when a request cannot be searched.
    pub unreadable: Unreadable,
}

/// What follows when something of a request cannot be searched: another encoding, an encrypted archive, more than the bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Unreadable {
    /// `refuse`: the request ends there.
    #[default]
    Refuse,
    /// `pass`: it goes on, searched as far as it can be.
    Pass,
}

/// What is searched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Detector {
    /// `token_patterns`: the forms of keys and tokens.
    TokenPatterns,
    /// `known_secrets`: the secrets of this bottle, in their usual encodings.
    KnownSecrets,
}

/// What follows when a request has a secret in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnMatch {
    /// `block`: the request ends there.
    #[default]
    Block,
    /// `redact`: the secret is masked and the request goes on.
    Redact,
    /// `supervise`: the request waits for a person.
    Supervise,
}

impl Detector {
    /// What may be listed for requests.
    pub(crate) const OUTBOUND: [(&'static str, Detector); 2] =
        [("token_patterns", Detector::TokenPatterns), ("known_secrets", Detector::KnownSecrets)];
    /// What may be listed for answers.
    pub(crate) const INBOUND: [(&'static str, Detector); 1] = [("known_secrets", Detector::KnownSecrets)];
}

impl OnMatch {
    pub(crate) const WORDS: [(&'static str, OnMatch); 3] =
        [("block", OnMatch::Block), ("redact", OnMatch::Redact), ("supervise", OnMatch::Supervise)];
}

impl Unreadable {
    pub(crate) const WORDS: [(&'static str, Unreadable); 2] =
        [("refuse", Unreadable::Refuse), ("pass", Unreadable::Pass)];
}
