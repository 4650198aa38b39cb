//! The environment of the agent: an allow-list of the caller's, ours, and what the manifest adds.

use std::collections::BTreeMap;
use std::ffi::OsString;

use crate::addresses::Addresses;
use crate::etc::USER;
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

const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";
const ROOTS: &str = "/etc/bottlecap/ca-bundle.pem";

/// Where a Java machine finds the same roots.
pub const JAVA_STORE: &str = "/etc/bottlecap/cacerts.jks";
/// What Java calls its public trust stores' password.
pub const JAVA_PASSWORD: &str = "changeit";

/// Whether a Java machine may run in the bottle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Java {
    /// It may.
    Present,
    /// There is none.
    Absent,
}

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
    addresses: &Addresses,
    java: Java,
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
        set(name, &addresses.proxy());
    }
    for name in ["NO_PROXY", "no_proxy"] {
        set(name, &addresses.unproxied().join(","));
    }
    for name in ROOT_VARIABLES {
        set(name, ROOTS);
    }
    set("NODE_EXTRA_CA_CERTS", "/etc/bottlecap/ca.pem");
    set("NODE_USE_ENV_PROXY", "1");
    set("GIT_CONFIG_SYSTEM", "/etc/bottlecap/gitconfig");
    set("BOTTLECAP_MCP_URL", &addresses.mcp());
    set("BOTTLECAP_MCP_CONFIG", "/etc/bottlecap/mcp.json");
    if java == Java::Present {
        set("JAVA_TOOL_OPTIONS", &java_options(addresses));
    }
    for (name, value) in manifest {
        set(name, value);
    }
    variables
}

/// A Java machine reads neither the variables for proxies nor those for roots.
fn java_options(addresses: &Addresses) -> String {
    let (host, unproxied) = (addresses.egress(), addresses.unproxied().join("|"));
    format!(
        "-Djavax.net.ssl.trustStore={JAVA_STORE} -Djavax.net.ssl.trustStorePassword={JAVA_PASSWORD} \
         -Dhttp.proxyHost={host} -Dhttp.proxyPort=9099 -Dhttps.proxyHost={host} -Dhttps.proxyPort=9099 \
         -Dhttp.nonProxyHosts={unproxied}"
    )
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
        let passed: Vec<OsString> = variables(caller, &BTreeMap::new(), &Addresses::names(), Java::Absent)
            .into_iter()
            .filter_map(|(name, value)| (value == "the caller's").then_some(name))
            .collect();
        assert_eq!(passed, ["LC_ALL", "TERM"]);
    }

    #[test]
    fn every_text_names_addresses_where_there_are_no_names() {
        let addresses = Addresses::at("2001:db8::7".parse().expect("an address"));
        let mut told: Vec<String> = variables([], &BTreeMap::new(), &addresses, Java::Present)
            .into_iter()
            .map(|(name, value)| format!("{}={}", name.to_string_lossy(), value.to_string_lossy()))
            .collect();
        let repos = "repos:\n  - {name: web, upstream: \"ssh://git@git.example.com/acme/web.git\", identity: /k, \
                     host_key: \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGk0Jx1hXcJ3hW3xZ2m0o2Q0m1c9q0c2v5b3n1m7k8l9\"}\n";
        let repos = repos::Repos::parse("repos.yaml", repos, repos::Allow::SshUpstream).expect("valid");
        let identity = crate::etc::Identity {
            gitconfig: repos::gitconfig(&repos, &addresses.git_with_port()),
            roots: String::new(),
            ca: None,
            java: None,
            luggage: Vec::new(),
            names: crate::etc::Names::Files,
            addresses,
        };
        told.extend(crate::etc::own_files(&identity).into_iter().map(|(_, text)| text));
        let registration = crate::preset::Preset::Codex.registration(&identity.addresses);
        told.extend(registration.map(|(_, text)| text));
        told.extend(identity.home_files().into_iter().map(|(_, text)| text));
        let naming = |name: &str| told.iter().filter(|text| text.contains(name)).count();
        assert_eq!(["egress", "git-gate", "supervise"].map(naming), [0, 0, 0], "{told:#?}");
        // Four proxies and their two exceptions, the MCP server four times, Java, and git.
        assert_eq!(naming("2001:db8::7"), 12, "{told:#?}");
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
