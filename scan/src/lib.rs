//! Finds secrets in bytes: rules for published token formats, secrets known by value, and where they are. No I/O.
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
//!
//! A [`Scanner`] takes the input in pieces of any size and comes to the same result; it also looks into what is encoded,
//! compressed or packed, within [`Bounds`] and the memory of a [`Budget`], and says when it could not. A [`Scrubber`] replaces known secrets in a stream.

mod budget;
mod builtin;
mod check;
mod codec;
mod entropy;
mod finding;
mod keywords;
mod known;
mod layer;
mod mark;
mod placeholder;
mod rules;
mod scanner;
mod scrub;

pub use budget::Budget;
pub use codec::{Decoder, Encoding, NotDecoded};
pub use finding::{Coding, Finding, Through};
pub use known::{KNOWN_MAX_BYTES, KNOWN_MIN_BYTES, KNOWN_MIN_ENTROPY, KNOWN_RULE, Known, KnownError};
pub use mark::{MARK_KEY_BYTES, Mark, MarkKey, Marks};
pub use rules::{RULES_VERSION, Rules, RulesError};
pub use scanner::{Bounds, Report, Scanner, Uninspectable};
pub use scrub::Scrubber;
