//! Where in a request the bottle's placeholder is replaced by the secret of the route.

use std::fmt;

/// One position; only a value that is the placeholder and nothing else is replaced there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Position {
    /// `header:NAME`: the value of a header, or what follows the scheme in `authorization`.
    Header(http::HeaderName),
    /// `query:KEY`: the value of a query key.
    Query(String),
    /// `basic:user`: the user in `authorization: Basic`.
    BasicUser,
    /// `basic:password`: the password in `authorization: Basic`.
    BasicPassword,
    /// `json:/pointer`: a string in a JSON body.
    Json(JsonPointer),
    /// `form:FIELD`: the value of a field of a form.
    Form(String),
    /// `ws-json:/pointer`: a string in each text message of a WebSocket.
    WsJson(JsonPointer),
}

/// Why a text is not a position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PositionError {
    /// None of the forms.
    #[error(
        "unknown position `{0}`, expected `header:NAME`, `query:KEY`, `basic:user`, `basic:password`, `json:/POINTER`, `form:FIELD` or `ws-json:/POINTER`"
    )]
    Unknown(String),
    /// The header frames or routes the request, or is none.
    #[error("`{0}` is not a header that can carry a credential")]
    Header(String),
    /// Not a JSON pointer.
    #[error("`{0}` is not a JSON pointer to a field: write it as `/auth/token` (RFC 6901)")]
    Pointer(String),
}

impl Position {
    /// The position, as in the file.
    pub fn parse(text: &str) -> Result<Position, PositionError> {
        let unknown = || PositionError::Unknown(text.to_owned());
        let (kind, name) = text.split_once(':').ok_or_else(unknown)?;
        match (kind, name) {
            ("basic", "user") => Ok(Position::BasicUser),
            ("basic", "password") => Ok(Position::BasicPassword),
            ("header", name) => {
                let header = name.parse::<http::HeaderName>();
                let header = header.ok().filter(|header| !frames_the_request(header));
                header.map(Position::Header).ok_or_else(|| PositionError::Header(name.to_owned()))
            }
            ("json", pointer) => JsonPointer::parse(pointer).map(Position::Json),
            ("ws-json", pointer) => JsonPointer::parse(pointer).map(Position::WsJson),
            ("query", key) if !key.is_empty() => Ok(Position::Query(key.to_owned())),
            ("form", field) if !field.is_empty() => Ok(Position::Form(field.to_owned())),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Position::Header(name) => write!(f, "header:{name}"),
            Position::Query(key) => write!(f, "query:{key}"),
            Position::BasicUser => f.write_str("basic:user"),
            Position::BasicPassword => f.write_str("basic:password"),
            Position::Json(pointer) => write!(f, "json:{pointer}"),
            Position::Form(field) => write!(f, "form:{field}"),
            Position::WsJson(pointer) => write!(f, "ws-json:{pointer}"),
        }
    }
}

/// Headers that frame or route the request cannot carry a credential.
pub(crate) fn frames_the_request(header: &http::HeaderName) -> bool {
    const RESERVED: [&str; 12] = [
        "host",
        "connection",
        "content-length",
        "content-type",
        "content-encoding",
        "transfer-encoding",
        "te",
        "trailer",
        "upgrade",
        "keep-alive",
        "proxy-connection",
        "expect",
    ];
    RESERVED.contains(&header.as_str())
}

/// A JSON pointer (RFC 6901) that names a field, never the whole document.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JsonPointer(Vec<String>);

impl JsonPointer {
    fn parse(text: &str) -> Result<JsonPointer, PositionError> {
        let refuse = || PositionError::Pointer(text.to_owned());
        let tokens = text.strip_prefix('/').ok_or_else(refuse)?;
        let token = |token: &str| {
            let stray = token.replace("~0", "").replace("~1", "").contains('~');
            (!stray).then(|| token.replace("~1", "/").replace("~0", "~")).ok_or_else(refuse)
        };
        Ok(JsonPointer(tokens.split('/').map(token).collect::<Result<_, _>>()?))
    }

    /// The names of the fields, or the numbers of the elements, from the outside in; never empty.
    #[must_use]
    pub fn tokens(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for JsonPointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|token| write!(f, "/{}", token.replace('~', "~0").replace('/', "~1")))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_position_reads_back_as_it_was_written() {
        let all = [
            "header:x-api-key",
            "query:key",
            "basic:user",
            "basic:password",
            "json:/auth/0/a~1b~0c",
            "form:client_secret",
            "ws-json:/token",
        ];
        for text in all {
            assert_eq!(Position::parse(text).unwrap().to_string(), text);
        }
        let Position::Json(pointer) = Position::parse(all[4]).unwrap() else { panic!("a JSON pointer") };
        assert_eq!(pointer.tokens(), ["auth", "0", "a/b~c"]);
    }

    #[test]
    fn what_is_no_position_is_refused() {
        for text in [
            "",
            "header",
            "header:",
            "header:host",
            "basic:realm",
            "json:",
            "json:auth",
            "json:/a~2",
            "query:",
            "body:/x",
        ] {
            assert!(Position::parse(text).is_err(), "{text}");
        }
    }
}
