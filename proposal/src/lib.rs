//! What an agent asks for, and what becomes of it.
//!
//! A [`Proposal`] is parsed strictly and normalised with the grammar of `policy`; a [`Queue`] is the state machine that its
//! [`Event`]s drive, the same whether they come from a caller or from the journal; a [`Review`] says in words what granting it
//! would change and holds the exact text that would be written; [`wire`] is how the operator's side talks to the daemon, [`show`] what a person
//! reads of it. [`peer`] is what the daemons ask each other.
//!
//! No I/O and no clock: time is an argument.

mod event;
mod id;
mod parse;
pub mod peer;
mod queue;
mod review;
pub mod show;
mod target;
mod text;
pub mod wire;

pub use event::{Change, Event};
pub use id::Id;
pub use parse::{Invalid, PathRule, Proposal, TTL_DEFAULT, TTL_MAX, TTL_MIN};
pub use policy;
pub use queue::{Decided, Granted, Illegal, Item, KEPT_MAX, PENDING_LIFETIME, Queue, State};
pub use review::{Difference, Review, ReviewError, digest, review};
pub use target::NeverGrantable;
pub use text::escaped;
