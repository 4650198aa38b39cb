//! Finds secrets in bytes: rules for published token formats, and where they match. No I/O.
//!
//! A keyword search over the whole input decides where the rules look at all; each rule then runs
//! on windows around its own keywords. What matched is checked further (checksums, entropy,
//! placeholders) before it becomes a [`Finding`], which says which rule and where, never what.
//! Comments in the text that ask to be ignored have no power here: whoever writes the text
//! writes them too.
//!
//! ```
//! let rules = scan::Rules::builtin();
//! assert!(rules.scan(b"nothing to see").is_empty());
//! ```

mod builtin;
mod check;
mod entropy;
mod finding;
mod placeholder;
mod rules;
mod text;

pub use finding::Finding;
pub use rules::{RULES_VERSION, Rules};
