//! What the proxy promises, each promise a test against the real thing over loopback.
#![allow(clippy::unwrap_used)]

mod around;
mod credentials;
mod decoding;
mod feeds;
mod forwarding;
mod front;
mod grpc;
mod held;
mod hidden_name;
mod http2;
mod inspection;
mod interim;
mod journal;
mod limits;
mod lines;
mod messages;
mod pieces;
mod policy;
mod program;
mod reload;
mod scrub;
mod seeing;
mod shortage;
mod stopping;
mod streams;
mod support;
mod transparent;
mod watching;
