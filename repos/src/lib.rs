//! The repositories that git-gate serves: `repos.yaml` parsed into values that cannot be wrong, the
//! decision about one ref of a push, and the text made from them (git configuration for the
//! bottle). No I/O.
//!
//! ```
//! use repos::{Allow, Repos};
//!
//! let repos = Repos::parse("repos.yaml", "repos: []", Allow::SshUpstream)?;
//! assert_eq!(repos.iter().count(), 0);
//! # Ok::<(), repos::Diagnostics>(())
//! ```

mod diagnostics;
mod fetch;
mod grant;
mod hostkey;
mod name;
mod parse;
mod push;
mod refs;
mod render;
mod upstream;

pub use diagnostics::{Diagnostic, Diagnostics};
pub use fetch::{FetchRules, Stale};
pub use grant::{Exception, Grant, GrantEnd, Moment, Release};
pub use hostkey::{HostKey, HostKeyError};
pub use name::{NameError, RepoName};
pub use parse::{Allow, Repo, Repos};
pub use push::{Change, OnSecret, PushDenial, PushRules};
pub use refs::{PatternError, RefPattern};
pub use render::gitconfig;
pub use upstream::{Https, Ssh, Upstream};
