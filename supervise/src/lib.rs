//! The daemon through which an agent asks and an operator answers.
//!
//! On the bottle's side it is an MCP server ([`mcp`]) whose tools file proposals; on the operator's side a unix socket
//! ([`operator`]) over which they are decided. Between the two is the [`Desk`]: a state machine and a journal. Nothing here changes
//! what a bottle may reach; the host does, and tells the desk.

pub mod access;
pub mod activation;
mod answer;
pub mod cli;
pub mod client;
mod clock;
pub mod commands;
pub mod daemon;
pub mod desk;
pub mod holds;
pub mod http;
mod kin;
pub mod mcp;
pub mod operator;
mod pace;
pub mod peer;
mod sys;
mod tools;

pub use desk::Desk;
pub use sys::harden;
