//! The supervisor as a program, on stand-in daemons.
#![allow(clippy::unwrap_used)]

mod common;
mod life;
mod refusals;
mod rights;
mod walls;
