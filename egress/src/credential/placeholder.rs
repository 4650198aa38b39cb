//! The bottle's placeholder: a random word that the agent uses like a credential. At the positions that a route names, and only
//! where the word is the whole value, the route's secret takes its place. Anywhere else it goes out as it is.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use policy::Position;
use zeroize::Zeroizing;

use super::rewrite::Rewriter;
use super::{Error, Secret, escape, percent_decode};
use crate::tls::{hex, random};

/// The name under which the word is handed over, as a secret is.
pub(crate) const NAME: &str = "EGRESS_PLACEHOLDER";
const LENGTH_MIN: usize = 16;
const LENGTH_MAX: usize = 128;
/// Charsets in which every byte of ASCII is what it is in ASCII, and belongs to no other character.
const PLAIN_CHARSETS: [&str; 7] =
    ["utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "iso-8859-15", "windows-1252"];

/// The word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placeholder(String);

/// Why there is no word.
#[derive(Debug, thiserror::Error)]
pub enum PlaceholderError {
    /// It would be changed on its way, or could be met by chance.
    #[error("a placeholder has {LENGTH_MIN} to {LENGTH_MAX} letters, digits, `-` and `_`")]
    Form,
    /// It cannot be kept.
    #[error("cannot keep the placeholder in {path}")]
    Keep {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Where the word is kept when none is handed over, under the state directory.
pub(crate) fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("audit/egress/placeholder")
}

impl Placeholder {
    /// The word in `text`.
    pub fn parse(text: &str) -> Result<Placeholder, PlaceholderError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if !(LENGTH_MIN..=LENGTH_MAX).contains(&text.len()) || !text.bytes().all(plain) {
            return Err(PlaceholderError::Form);
        }
        Ok(Placeholder(text.to_owned()))
    }

    /// The word that was handed over; or the one kept in `path`, which is made when there is none.
    pub fn open(handed_over: Option<&Secret>, path: &Path) -> Result<Placeholder, PlaceholderError> {
        if let Some(word) = handed_over {
            let word = std::str::from_utf8(word.open()).map_err(|_| PlaceholderError::Form)?;
            return Placeholder::parse(word);
        }
        let keep = |source| PlaceholderError::Keep { path: path.to_owned(), source };
        match fs::read_to_string(path) {
            Ok(text) => Placeholder::parse(text.trim_end()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let word = format!("placeholder-{}", hex(&random::<16>()));
                // Whole or not at all, so that a full disk does not leave half a word for the next start.
                let new = path.with_extension("new");
                let mut options = OpenOptions::new();
                let mut file =
                    options.write(true).create(true).truncate(true).mode(0o600).open(&new).map_err(keep)?;
                file.write_all(word.as_bytes()).and_then(|()| fs::rename(&new, path)).map_err(keep)?;
                Ok(Placeholder(word))
            }
            Err(error) => Err(keep(error)),
        }
    }

    /// The word, for the agent.
    pub fn word(&self) -> &str {
        &self.0
    }
}

/// What replaces the word in one request.
pub(super) struct Substitution<'a> {
    pub(super) positions: &'a [Position],
    pub(super) word: &'a str,
    pub(super) secret: &'a Secret,
}

impl Substitution<'_> {
    /// The headers in which the word is replaced, to be put back once the agent's credentials are out.
    pub(super) fn headers(&self, headers: &HeaderMap) -> Result<Vec<(HeaderName, HeaderValue)>, Error> {
        let mut replaced = Vec::new();
        for position in self.positions {
            let Position::Header(name) = position else { continue };
            if let Some(value) = only(headers, name).and_then(|value| self.header(name, value)) {
                replaced.push((name.clone(), sensitive(&value)?));
            }
        }
        if let Some(value) = only(headers, &AUTHORIZATION)
            && let Some(value) = self.basic(value)?
        {
            replaced.push((AUTHORIZATION, sensitive(&value)?));
        }
        Ok(replaced)
    }

    fn header(&self, name: &HeaderName, value: &str) -> Option<Zeroizing<Vec<u8>>> {
        if value == self.word {
            return Some(Zeroizing::new(self.secret.open().to_vec()));
        }
        let (scheme, word) = value.split_once(' ').filter(|_| *name == AUTHORIZATION)?;
        let is_token = scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        let whole = is_token && word == self.word;
        whole.then(|| Zeroizing::new([scheme.as_bytes(), b" ", self.secret.open()].concat()))
    }

    fn basic(&self, value: &str) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        let names = |position: &Position| self.positions.contains(position);
        let (user_here, password_here) = (names(&Position::BasicUser), names(&Position::BasicPassword));
        let pair = value.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"));
        let decoded = pair.and_then(|(_, encoded)| BASE64_STANDARD.decode(encoded.trim()).ok());
        let Some((user, password)) = decoded.as_deref().and_then(|pair| {
            let colon = pair.iter().position(|byte| *byte == b':')?;
            Some((&pair[..colon], &pair[colon + 1..]))
        }) else {
            return Ok(None);
        };
        let word = self.word.as_bytes();
        let (for_user, for_password) = (user_here && user == word, password_here && password == word);
        if !for_user && !for_password {
            return Ok(None);
        }
        let secret = self.secret.open();
        if for_user && secret.contains(&b':') {
            return Err(Error::NotAUser);
        }
        let user = if for_user { secret } else { user };
        let password = if for_password { secret } else { password };
        let pair = Zeroizing::new([user, b":", password].concat());
        let encoded = Zeroizing::new(BASE64_STANDARD.encode(&*pair));
        Ok(Some(Zeroizing::new([b"Basic ", encoded.as_bytes()].concat())))
    }

    /// The pair with the word replaced, when it stands at a position.
    pub(super) fn query_pair(&self, pair: &str) -> Option<String> {
        let (raw_key, value) = pair.split_once('=')?;
        let key = percent_decode(&raw_key.replace('+', " "));
        let here = self.positions.iter().any(
            |position| matches!(position, Position::Query(wanted) if wanted.as_bytes() == key.as_slice()),
        );
        if !here || percent_decode(value) != self.word.as_bytes() {
            return None;
        }
        let mut replaced = format!("{raw_key}=");
        escape(&mut replaced, self.secret.open());
        Some(replaced)
    }

    /// What replaces the word in the body, when a position is in a body of this kind and it can be read.
    pub(super) fn body(&self, headers: &HeaderMap) -> Result<Option<Rewriter>, Error> {
        if headers.contains_key(CONTENT_ENCODING) {
            return Ok(None);
        }
        let content_type = only(headers, &CONTENT_TYPE).unwrap_or_default().to_ascii_lowercase();
        if !is_plain_charset(&content_type) {
            return Ok(None);
        }
        let kind = content_type.split(';').next().unwrap_or_default().trim();
        if kind == "application/x-www-form-urlencoded" {
            let fields = self.positions.iter().filter_map(|position| match position {
                Position::Form(field) => Some(field.clone()),
                _ => None,
            });
            return Ok(Rewriter::form(fields.collect(), self.word, self.secret.open()));
        }
        if kind == "application/json" || kind.starts_with("application/") && kind.ends_with("+json") {
            let pointers = self.positions.iter().filter_map(|position| match position {
                Position::Json(pointer) => Some(pointer.tokens().to_vec()),
                _ => None,
            });
            return Rewriter::json(pointers.collect(), self.word, self.secret.open());
        }
        Ok(None)
    }

    /// What replaces the word in the text messages of a WebSocket, when a position is in them.
    pub(super) fn messages(&self) -> Result<Option<Rewriter>, Error> {
        let pointers = self.positions.iter().filter_map(|position| match position {
            Position::WsJson(pointer) => Some(pointer.tokens().to_vec()),
            _ => None,
        });
        Rewriter::json(pointers.collect(), self.word, self.secret.open())
    }
}

/// Whether upstream reads a body of this type as it is followed here: in some charsets the same bytes are another document.
fn is_plain_charset(content_type: &str) -> bool {
    let mut charsets = content_type.split(';').skip(1).filter(|parameter| parameter.contains("charset"));
    let is_plain = charsets.next().is_none_or(|charset| {
        let name = charset.trim().strip_prefix("charset=").unwrap_or_default();
        let unquoted = name.strip_prefix('"').and_then(|name| name.strip_suffix('"'));
        PLAIN_CHARSETS.contains(&unquoted.unwrap_or(name))
    });
    is_plain && charsets.next().is_none()
}

/// The value of a header that is there once and is text.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    value.to_str().ok()
}

fn sensitive(bytes: &[u8]) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_bytes(bytes).map_err(|_| Error::NotAHeaderValue)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_body_is_followed_where_its_charset_changes_nothing() {
        for plain in [
            "",
            "; charset=utf-8",
            "; charset=ISO-8859-1",
            ";charset=\"utf-8\"; x=y",
            "; x=y ; charset=us-ascii",
        ] {
            assert!(is_plain_charset(&format!("application/json{plain}").to_ascii_lowercase()), "{plain}");
        }
        for other in [
            "; charset=utf-7",
            "; charset=\"hz\"",
            "; charset=utf-8; charset=utf-7",
            "; charset*=utf-8''utf-7",
            "; charset = utf-8",
            "; x=\"; charset=utf-8\"; charset=utf-16",
            "; charset",
            "; charset=",
        ] {
            assert!(!is_plain_charset(&format!("application/json{other}")), "{other}");
        }
    }

    #[test]
    fn a_word_is_made_once_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("placeholder");
        let first = Placeholder::open(None, &path).unwrap();
        assert_eq!(first.word().len(), "placeholder-".len() + 32);
        assert_eq!(Placeholder::open(None, &path).unwrap(), first);
        let handed_over = Secret::new(b"placeholder-of-the-host\n".to_vec());
        assert_eq!(Placeholder::open(Some(&handed_over), &path).unwrap().word(), "placeholder-of-the-host");
        for wrong in ["short", "has space in it 0123", "percent%20percent%20"] {
            assert!(Placeholder::parse(wrong).is_err(), "{wrong}");
        }
    }
}
