//! Each wall of a bottle: that it stands, started by root and by an ordinary user, and what comes through without it.
#![allow(clippy::unwrap_used)]

mod calls;
mod files;
mod lifetime;
mod limits;
mod process;
mod support;
