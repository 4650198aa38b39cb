//! The only way out of a bottle: an HTTP proxy that opens TLS with the bottle's own authority, judges every request by
//! `routes.yaml`, takes the agent's credentials out and puts the route's in.
//!
//! The way of a request, in one direction: [`serve`] accepts, as a proxy or what was led here (`transparent`); `tunnel`
//! reads the ClientHello whole and binds it to the host that CONNECT named; `exchange` binds the request to the same host, asks the policy, exchanges the credentials and
//! streams; `upstream` resolves once and dials exactly a checked address. Every answer that is not upstream's own is made
//! in `refusal`; every request ends as one record of the journal. What is let out holds a `lease`, which ends with its
//! route or when new routes refuse it.
//!
//! The front is ours because hudsucker's opens a raw tunnel when the first read after CONNECT is short or is not TLS; its
//! `CertificateAuthority` and `Body` are used behind it. docs/adr/0002-connect-tls-front.md has the reasons.

pub mod activation;
mod alarm;
mod authority;
mod body;
pub mod cli;
mod clock;
pub mod control;
mod credential;
mod dns;
mod doors;
mod except;
mod exchange;
pub mod explain;
mod frames;
mod front;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod headers;
mod hold;
mod http2;
mod inspect;
mod interim;
pub mod journal;
mod lease;
mod limits;
mod local;
pub mod metrics;
mod notify;
pub mod observe;
pub mod peer;
mod proxy;
mod refusal;
mod relay;
mod room;
pub mod run;
mod scrub;
mod snapshot;
mod splice;
pub mod sys;
pub mod tail;
mod tasks;
mod tls;
mod transparent;
mod tunnel;
mod upgraded;
pub mod upstream;
pub mod uses;
mod websocket;

pub use credential::{
    CREDENTIAL_HEADERS, CREDENTIAL_QUERY_KEYS, Placeholder, PlaceholderError, Secret, SecretStore,
};
pub use dns::{Answers, Known, answer as dns_answer};
pub use doors::{Doors, serve};
pub use except::Marking;
pub use proxy::{Error as ProxyError, InForce, Parts, Proxy};
pub use refusal::{CODES, Code};
pub use tls::ca;
pub use transparent::listen as listen_transparent;
