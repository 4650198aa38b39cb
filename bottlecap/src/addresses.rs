//! Where the daemons are reached from inside a bottle: by name, or by address where nothing gives a name.

use std::net::IpAddr;

/// The hosts of the daemons, as the agent writes them in a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    egress: String,
    git_gate: String,
    supervise: String,
}

/// Names that are never asked for through the proxy.
const OWN: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

impl Addresses {
    /// The three names.
    #[must_use]
    pub fn names() -> Addresses {
        Addresses { egress: "egress".into(), git_gate: "git-gate".into(), supervise: "supervise".into() }
    }

    /// One address for all three.
    #[must_use]
    pub fn at(address: IpAddr) -> Addresses {
        let host = match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        Addresses { egress: host.clone(), git_gate: host.clone(), supervise: host }
    }

    /// The host of egress, for what wants host and port apart.
    #[must_use]
    pub fn egress(&self) -> &str {
        plain(&self.egress)
    }

    /// The proxy.
    #[must_use]
    pub fn proxy(&self) -> String {
        format!("http://{}:9099", self.egress)
    }

    /// What comes before the name of a repository.
    #[must_use]
    pub fn git(&self) -> String {
        format!("git://{}", self.git_gate)
    }

    /// The same with its port, which programs that know git's addresses by half go to as well.
    #[must_use]
    pub fn git_with_port(&self) -> String {
        format!("{}:9418", self.git())
    }

    /// The MCP server.
    #[must_use]
    pub fn mcp(&self) -> String {
        format!("http://{}:9100/mcp", self.supervise)
    }

    /// Hosts that are reached without the proxy, each once and without brackets.
    #[must_use]
    pub fn unproxied(&self) -> Vec<&str> {
        let mut hosts: Vec<&str> = Vec::new();
        let ours = [&self.egress, &self.git_gate, &self.supervise].map(|host| plain(host));
        for host in ours.into_iter().chain(OWN) {
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        hosts
    }
}

/// A host without the brackets of a URL.
fn plain(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_stands_wherever_a_name_does() {
        let told = |addresses: &Addresses| {
            [addresses.proxy(), addresses.git(), addresses.mcp(), addresses.unproxied().join(",")].join(" ")
        };
        assert_eq!(
            told(&Addresses::names()),
            "http://egress:9099 git://git-gate http://supervise:9100/mcp egress,git-gate,supervise,localhost,127.0.0.1,::1"
        );
        assert_eq!(
            told(&Addresses::at([192, 0, 2, 7].into())),
            "http://192.0.2.7:9099 git://192.0.2.7 http://192.0.2.7:9100/mcp 192.0.2.7,localhost,127.0.0.1,::1"
        );
        assert_eq!(
            told(&Addresses::at("2001:db8::7".parse().expect("an address"))),
            "http://[2001:db8::7]:9099 git://[2001:db8::7] http://[2001:db8::7]:9100/mcp 2001:db8::7,localhost,127.0.0.1,::1"
        );
    }
}
