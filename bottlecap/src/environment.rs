//! The environment of the agent: an allow-list of the caller's, ours, and what the manifest adds.

use std::collections::BTreeMap;
use std::ffi::OsString;

use crate::etc::{MCP_URL, USER};
use crate::layout::HOME;

/// Names that the caller's environment may contribute.
const FROM_CALLER: [&str; 18] = [
    "TERM",
    "LANG",
    "TZ",
    "COLORTERM",
    "NO_COLOR",
    "LC_ALL",
    "LC_ADDRESS",
    "LC_COLLATE",
    "LC_CTYPE",
    "LC_IDENTIFICATION",
    "LC_MEASUREMENT",
    "LC_MESSAGES",
    "LC_MONETARY",
    "LC_NAME",
    "LC_NUMERIC",
    "LC_PAPER",
    "LC_TELEPHONE",
    "LC_TIME",
];

const PROXY: &str = "http://egress:9099";
const UNPROXIED: &str = "egress,git-gate,supervise,localhost,127.0.0.1,::1";
const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";
const ROOTS: &str = "/etc/bottlecap/ca-bundle.pem";

/// Every tool that has a variable of its own for the roots of trust.
const ROOT_VARIABLES: [&str; 8] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "CARGO_HTTP_CAINFO",
    "DENO_CERT",
    "AWS_CA_BUNDLE",
];

/// Names that the manifest may not set: they say how the bottle is left and who is in it. Everything else is the
/// command's own affair, inside the walls.
const RESERVED: [&str; 8] =
    ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "HOME", "USER"];

/// Whether the manifest may set `name`.
#[must_use]
pub fn may_be_set(name: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let is_name =
        name.bytes().all(word) && !name.is_empty() && !name.starts_with(|first: char| first.is_ascii_digit());
    is_name && !RESERVED.contains(&name)
}

/// The variables, by name.
#[must_use]
pub fn variables(
    caller: impl IntoIterator<Item = (OsString, OsString)>,
    manifest: &BTreeMap<String, String>,
) -> BTreeMap<OsString, OsString> {
    let mut variables: BTreeMap<OsString, OsString> =
        caller.into_iter().filter(|(name, _)| name.to_str().is_some_and(is_from_caller)).collect();
    let mut set = |name: &str, value: &str| {
        variables.insert(name.into(), value.into());
    };
    set("HOME", HOME);
    set("USER", USER);
    set("LOGNAME", USER);
    set("SHELL", "/bin/bash");
    set("PATH", PATH);
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"] {
        set(name, PROXY);
    }
    for name in ["NO_PROXY", "no_proxy"] {
        set(name, UNPROXIED);
    }
    for name in ROOT_VARIABLES {
        set(name, ROOTS);
    }
    set("NODE_EXTRA_CA_CERTS", "/etc/bottlecap/ca.pem");
    set("NODE_USE_ENV_PROXY", "1");
    set("GIT_CONFIG_SYSTEM", "/etc/gitconfig");
    set("BOTTLECAP_MCP_URL", MCP_URL);
    set("BOTTLECAP_MCP_CONFIG", "/etc/bottlecap/mcp.json");
    for (name, value) in manifest {
        set(name, value);
    }
    variables
}

fn is_from_caller(name: &str) -> bool {
    FROM_CALLER.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_caller_passes_but_the_list() {
        let caller = [
            "AWS_SECRET_ACCESS_KEY",
            "SSH_AUTH_SOCK",
            "DBUS_SESSION_BUS_ADDRESS",
            "TERM",
            "LC_ALL",
            "LC_API_TOKEN",
            "LD_PRELOAD",
        ];
        let caller = caller.map(|name| (OsString::from(name), OsString::from("the caller's")));
        let passed: Vec<OsString> = variables(caller, &BTreeMap::new())
            .into_iter()
            .filter_map(|(name, value)| (value == "the caller's").then_some(name))
            .collect();
        assert_eq!(passed, ["LC_ALL", "TERM"]);
    }

    #[test]
    fn the_manifest_adds_variables_but_not_another_way_out() {
        assert!(may_be_set("ANTHROPIC_BASE_URL"));
        assert!(may_be_set("PATH"));
        for name in ["HTTPS_PROXY", "no_proxy", "HOME", "", "1X", "A=B", "A B"] {
            assert!(!may_be_set(name), "{name}");
        }
    }
}
