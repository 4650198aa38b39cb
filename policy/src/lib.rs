//! Which requests may leave a bottle: `routes.yaml` parsed into a [`Policy`], asked for a [`Decision`].
//!
//! No I/O, no runtime, no clock: the text, the request and the time are arguments. The policy holds the
//! *names* of secrets, never a value.
//!
//! # Precedence
//!
//! 1. Only routes whose host pattern, scheme and port fit the request, and which have neither expired nor been
//!    used up, are looked at. Inside a route the entries of `matches` are alternatives; a route without `matches` fits
//!    every request.
//! 2. Base routes (those without `grant`) are judged first, alone. A grant can therefore only add: it never
//!    takes a request away from a base route, and so never strips the credential that route injects.
//! 3. A deny that fits refuses, unless an allow that fits is **more specific**: at least as specific in
//!    each of host, path, methods, headers and query, and more so in one. Host: exact, then `*.` and `**.`
//!    with the longer suffix first, `*.` before `**.` over the same suffix. Path: exact, then the longer
//!    prefix, then regex, then none; but a deny by regex yields to an exact path alone. Methods: listed before not listed. Headers and query: the larger number.
//! 4. Among allows the winner is the one with the more specific host, then path, then methods, headers,
//!    query; the earlier in the file wins a tie.
//! 5. A deny that fits always beats a grant.
//!    Doubt narrows an allow and widens a deny. Of a repeated header or query key an allow needs *all*
//!    occurrences to have the listed value, a deny *any*; what some server may take for the key is one. An allow is held
//!    against the canonical path alone; a deny also against what lenient servers make of it: `%40` as `@`, `/admin;x`, `/admin/`
//!    and `/ADMIN` as `/admin`, `_` in a header's name as `-`, a method or a value in another case.
//!    A path with `%2F` has two readings: an allow is for it only with `allow_encoded_slashes: true` and where both fit,
//!    a deny where one does.
//! 6. `tls: passthrough` routes allow tunnels ([`Policy::front`]), not requests: [`Policy::decide`] never
//!    answers with one.
//! 7. `git-receive-pack` is refused on every route, `git-upload-pack` on every route without
//!    `git: {fetch: true}`.

pub mod address;
mod allowlist;
mod append;
mod credential;
mod decide;
mod describe;
mod diagnostic;
mod dlp;
mod duration;
mod extra;
mod git;
mod grant;
mod host;
mod index;
mod limits;
pub mod lines;
mod lint;
mod matches;
mod parse;
mod path;
mod pattern;
mod placeholder;
mod policy;
mod query;
mod raw;
mod route;

pub use address::{AddressClass, AddressDenial, PrivateAllow, PrivateAllowError};
pub use allowlist::{Allowlist, AllowlistEntry, AllowlistMatch, AllowlistPath};
pub use append::{AppendError, append_route, remove_grant};
pub use credential::{AgentCredentials, AuthScheme, Credential, SecretName, SecretNameError, SecretRef};
pub use decide::{Code, Decision, Denial, Front, RequestHead};
pub use describe::describe;
pub use diagnostic::{Diagnostic, Diagnostics, text};
pub use dlp::{Detector, Dlp, OnMatch, Unreadable};
pub use extra::{Exception, Extra, Limit, Raise, Release, append_extra, remove_extra};
pub use grant::{Grant, GrantId, GrantIdError};
pub use host::{Host, HostError};
pub use limits::RouteLimits;
pub use matches::{Match, NamedValue, PathMatch, PathMatchError};
pub use path::{CanonicalPath, EscapedSlashes, PathError};
pub use pattern::{HostPattern, PatternError};
pub use placeholder::{JsonPointer, Position, PositionError};
pub use policy::{Defaults, LogLevel, Policy};
pub use route::{Resolves, Route, RouteId, Scheme, Tls, Verdict};
