//! What an agent asks for, and what becomes of it.
//!
//! A [`Proposal`] is parsed strictly and normalised with the grammar of `policy`; a [`Queue`] is the state machine that its
//! [`Event`]s drive, the same whether they come from a caller or from the journal; a [`Review`] says in words what granting it
//! would change and holds the exact text that would be written; [`wire`] is how the operator's side talks to the daemon, [`show`] what a person
//! reads of it. [`peer`] is what the daemons ask each other.
//!
//! No I/O and no clock: time is an argument.

mod addition;
mod ask;
mod capability;
mod event;
mod fields;
mod held;
mod id;
mod parse;
pub mod peer;
mod queue;
mod review;
mod risk;
pub mod show;
mod target;
mod text;
pub mod wire;

pub use addition::{Addition, AdditionError, Table, Terms, added, addition, ended, grants, removed};
pub use ask::Ask;
pub use capability::{Access, Capability, Wish};
pub use event::{Change, Entry, Event, Note, Noted};
pub use held::{NotHeld, RELEASE_SECONDS};
pub use id::Id;
pub use parse::{Invalid, PathRule, Proposal, TTL_DEFAULT, TTL_MAX, TTL_MIN, USES_MAX};
pub use policy;
pub use queue::{
    Decided, Granted, Illegal, Item, KEPT_MAX, KEY_MAX_CHARS, PENDING_LIFETIME, Queue, REJECTION_STANDS,
    Revoked, State,
};
pub use review::{Difference, Review, ReviewError, WouldPass, digest, review};
pub use risk::{Breadth, Flag};
pub use target::NeverGrantable;
pub use text::{escaped, is_invisible};
