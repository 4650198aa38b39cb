//! The host side of a bottle: what it is made of, its walls, its daemons, and the person who decides.
//!
//! `run` checks a manifest, re-executes this program as the wall process (`wall`), which goes apart into namespaces of its
//! own and hands out listening sockets; starts the daemons on them (`bundle`); and lets the command go.

#[cfg(all(feature = "test-walls", not(debug_assertions)))]
compile_error!("walls can be left out in this build: never in a release");

pub mod addresses;
pub mod agent;
pub mod backend;
pub mod bundle;
pub mod cgroup;
pub mod cli;
pub mod clone;
pub mod command;
pub mod doctor;
pub mod environment;
pub mod errand;
pub mod etc;
pub mod fault;
pub mod git;
pub mod host;
pub mod init;
pub mod journals;
pub mod layout;
pub mod life;
pub mod manifest;
pub mod operator;
pub mod owners;
pub mod plan;
pub mod preset;
pub mod progress;
pub mod provision;
pub mod reference;
pub mod requests;
pub mod routes;
pub mod run;
pub mod seccomp;
pub mod secrets;
pub mod state;
pub mod sys;
pub mod terminal;
pub mod text;
pub mod wall;
pub mod workdir;
