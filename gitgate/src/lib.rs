//! git-gate: repositories for a bottle over `git://` and smart HTTP, without keys in the bottle.
//!
//! A read asks upstream first what it has, brings a bare mirror there, and is refused when that fails. A push is
//! received into quarantine; a hook (this same program) scans every object that upstream does not
//! have and forwards the push under lease, so that the agent's push succeeds exactly when upstream
//! took it. The agent speaks to `git upload-pack` and `git receive-pack` run with nothing but the
//! environment and configuration given here; upstream is ssh with a pinned host key, which this process
//! speaks itself, or https with a token that git reads from a pipe.

pub mod activation;
pub mod cli;
pub mod control;
pub mod courier;
pub mod daemon;
pub mod door;
pub mod hook;
pub mod plain;
pub mod scanning;
pub mod ssh;
pub mod sys;

mod configuring;
mod fault;
mod fence;
mod front;
mod git;
mod hold;
mod http;
mod inspect;
mod journal;
mod leftovers;
mod lister;
mod listing;
mod maintain;
mod marking;
mod metrics;
mod mirror;
mod pktline;
mod reach;
mod receive;
mod refresh;
mod report;
mod request;
mod send;
mod session;
mod state;
mod status;
mod v0;
mod v2;
mod verdict;
mod warm;
mod wire;
