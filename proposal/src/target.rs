//! Where no grant can lead, whoever approves it.

use policy::{Host, address};

/// Why a host is refused before anybody is asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NeverGrantable {
    /// `*.example.com`.
    #[error("`host` must be one name: only the operator can add a wildcard")]
    Wildcard,
    /// An address that the proxy never dials.
    #[error("{host} can never be granted: {reason}")]
    Address {
        /// The literal.
        host: String,
        /// What `policy` says about it.
        reason: String,
    },
    /// The bottle itself, or a part of its bundle.
    #[error("{host} can never be granted: it is the bottle itself or a part of its bundle")]
    Own {
        /// The name.
        host: String,
    },
    /// A name of the host's or the cloud's inside.
    #[error("{host} can never be granted: it is a name of the machine's or the cloud's inside")]
    Internal {
        /// The name.
        host: String,
    },
}

const OWN: [&str; 7] =
    ["localhost", "egress", "git-gate", "supervise", "supervisor", "_egress.local", "localhost.localdomain"];
const INTERNAL: [&str; 3] = ["metadata", "instance-data", "kubernetes"];
const INSIDE: [&str; 7] = ["internal", "local", "localdomain", "lan", "home.arpa", "svc", "cluster.local"];

/// Refuses the wildcard spelling, which is no host at all.
pub(crate) fn check_spelling(host: &str) -> Result<(), NeverGrantable> {
    if host.contains('*') { Err(NeverGrantable::Wildcard) } else { Ok(()) }
}

/// Refuses what the proxy would never dial, or should never be asked about.
pub(crate) fn check(host: &Host, ports: &[u16]) -> Result<(), NeverGrantable> {
    let name = host.as_str();
    if let Some(ip) = host.ip() {
        return ports
            .iter()
            .try_for_each(|port| address::check(ip, *port, &[]))
            .map_err(|denial| NeverGrantable::Address { host: name.to_owned(), reason: denial.to_string() });
    }
    if OWN.contains(&name) || is_under(name, "localhost") {
        return Err(NeverGrantable::Own { host: name.to_owned() });
    }
    if INTERNAL.contains(&name) || INSIDE.iter().any(|suffix| is_under(name, suffix)) {
        return Err(NeverGrantable::Internal { host: name.to_owned() });
    }
    Ok(())
}

fn is_under(name: &str, suffix: &str) -> bool {
    name.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'))
}
