//! Forms that carry a secret of any kind.

use super::{Rule, rule};
use crate::check::Check::{BasicPair, Entropy, Generic, Passphrase, Password};

/// Names of what is kept secret.
const NAMES: &[&str] = &[
    "api_key",
    "apikey",
    "api-key",
    "secret",
    "token",
    "passwd",
    "password",
    "access_key",
    "accesskey",
    "access-key",
    "auth_key",
    "authkey",
    "auth-key",
    "credential",
    "private_key",
    "private-key",
    "private.key",
    "privatekey",
    "client_key",
    "encryption_key",
    "signing_key",
];
/// The pattern of such a name, and what else it is called.
macro_rules! named {
    ($pattern:literal) => {
        concat!(
            r"(?i:api[_-]?key|secret|token|passwd|password|access[_-]?key|auth[_-]?key|credentials?",
            r"|private[_.-]?key|(?:client|encryption|signing)_key)[A-Za-z0-9_-]{0,24}",
            $pattern
        )
    };
}

/// Names of passwords.
const PASSWORDS: &[&str] = &["password", "passwd", "passphrase", "pwd"];

pub(super) const RULES: &[Rule] = &[
    rule(
        "basic-auth-url",
        &["://"],
        r#"://[^\s/:@"'<>`\\]{0,100}:(?P<s>[^\s/@"'<>`\\]{6,200})@[A-Za-z0-9\[][A-Za-z0-9.:\]-]{0,252}"#,
        Password,
    ),
    rule(
        "npmrc-auth-token",
        &[":_authtoken"],
        r#":_authToken\s{0,4}=\s{0,4}"?(?P<s>[A-Za-z0-9+/=_.-]{16,200})"#,
        Entropy(3.0),
    ),
    rule(
        "netrc-password",
        &["machine"],
        r"\bmachine\s{1,8}[^\s]{1,253}\s{1,8}login\s{1,8}[^\s]{1,100}\s{1,8}password\s{1,8}(?P<s>[^\s]{8,200})",
        Password,
    ),
    rule(
        "basic-authorization",
        &["basic "],
        r"\b(?i:basic) {1,4}(?P<s>[A-Za-z0-9+/]{12,400}={0,2})",
        BasicPair,
    ),
    rule(
        "docker-config-auth",
        &["\"auth\"", "\\\"auth\\\""],
        r#"\\?"auth\\?"\s{0,4}:\s{0,4}\\?"(?P<s>[A-Za-z0-9+/]{12,400}={0,2})\\?""#,
        BasicPair,
    ),
    rule(
        "bearer-authorization",
        &["bearer "],
        r"\b(?i:bearer) {1,4}(?P<s>[A-Za-z0-9._~+/-]{20,500}={0,2})",
        Generic,
    ),
    rule(
        "command-line-password",
        &[" -u", " --user"],
        r#" (?:-u ?|--user[ =])\\?["']?[A-Za-z0-9_.@-]{1,64}:(?P<s>[^\s"'\\]{8,200})"#,
        Passphrase,
    ),
    // A value of unknown format beside a telling name: in quotes, or alone to the end of a line.
    rule(
        "generic-api-key",
        NAMES,
        named!(
            r#"(?:\\?["'`])?\]?(?:[ \t]{0,2}:[ \t]{0,2}&?(?:'static[ \t])?[A-Za-z]{1,16})?[ \t]{0,4}(?:=>|:=|==|=|:)[ \t]{0,4}(?:\\?["'`](?P<s>[A-Za-z0-9+/=_.~!@#%^&*-]{16,160})\\?["'`])"#
        ),
        Generic,
    ),
    rule(
        "generic-assignment",
        NAMES,
        named!(
            r#"(?:[ \t]{0,2}=[ \t]{0,2}|:[ \t]{1,4})(?P<s>[A-Za-z0-9+/=_.~!@#%^&*-]{16,160})(?:[ \t]{0,4}[\r\n&]|[ \t]{1,4}[#;]|\\n|$)"#
        ),
        Generic,
    ),
    // `NAME=value command`, as a shell has it.
    rule(
        "generic-environment",
        NAMES,
        named!(r#"=(?P<s>[A-Za-z0-9+/=_.~!@#%^&*-]{16,160})[ \t]{1,4}[^\s]"#),
        Generic,
    ),
    // `name: NAME` and `value: …` on the line below.
    rule(
        "generic-name-and-value",
        NAMES,
        named!(
            r#"["']?[ \t]{0,4}\r?\n[ \t]{1,40}value:[ \t]{1,4}["']?(?P<s>[A-Za-z0-9+/=_.~!@#%^&*-]{16,160})["']?[ \t]{0,4}(?:[\r\n]|$)"#
        ),
        Generic,
    ),
    // `"name": {"value": "…"`, as the state of an infrastructure holds it.
    rule(
        "generic-output",
        NAMES,
        named!(
            r#"\\?"[ \t]{0,4}:[ \t]{0,4}\{\s{0,40}\\?"value\\?"[ \t]{0,4}:[ \t]{0,4}\\?"(?P<s>[A-Za-z0-9+/=_.~!@#%^&*-]{16,160})\\?""#
        ),
        Generic,
    ),
    rule(
        "generic-element",
        NAMES,
        named!(r"[ \t]{0,2}>\s{0,40}(?P<s>[A-Za-z0-9+/=_.~!@#%^*-]{16,160})\s{0,40}</"),
        Generic,
    ),
    rule(
        "command-line-secret",
        &[" --"],
        r#" --[a-z0-9-]{0,40}(?:secret|token|password|key)(?:=| {1,4})["']?(?P<s>[A-Za-z0-9+/=_.~!@#%^&*-]{16,160})(?:["'\s]|$)"#,
        Generic,
    ),
    rule(
        "generic-password",
        PASSWORDS,
        r#"(?i:passw(?:or)?d|passphrase|pwd)(?:\\?["'`])?\]?[ \t]{0,4}(?:=>|:=|=|:)[ \t]{0,4}(?:\\?["'`](?P<s>[^\s"'`\\<>]{8,128})\\?["'`])"#,
        Passphrase,
    ),
    rule(
        "password-assignment",
        PASSWORDS,
        r#"(?i:passw(?:or)?d|passphrase|pwd)(?:=|:[ \t]{1,4})(?P<s>[^\s"'`;,<>&\\()]{8,128})(?:[;&]|[ \t]{0,4}[\r\n]|\\n|$)"#,
        Passphrase,
    ),
    rule(
        "password-environment",
        PASSWORDS,
        r#"(?i:passw(?:or)?d|passphrase|pwd)=(?P<s>[^\s"'`;,<>&\\()]{8,128})[ \t]{1,4}[^\s]"#,
        Passphrase,
    ),
];
