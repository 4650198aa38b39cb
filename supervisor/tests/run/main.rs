//! `supervisor run -- CMD`, and beside it tini and dumb-init where a behaviour is theirs.
#![allow(clippy::unwrap_used)]

mod common;
mod exit;
mod orphans;
mod signals;
mod terminal;
