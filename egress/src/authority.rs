//! Which host a request is for: every place that names one must name the same.

use http::header::HOST;
use http::request::Parts;
use http::uri::Authority;
use http::{Uri, Version};
use policy::{Host, Scheme};

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) scheme: Scheme,
    pub(crate) host: Host,
    pub(crate) port: u16,
}

impl Endpoint {
    /// As it stands in a URL: the port only where it is not the scheme's own.
    pub(crate) fn authority(&self) -> String {
        if self.port == self.scheme.default_port() {
            self.host.to_string()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Why it cannot be told where a request goes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// The target is not one that this proxy serves.
    #[error("{0}")]
    Malformed(String),
    /// Two places name different hosts.
    #[error("{0}")]
    Mismatch(String),
}

/// The host and port of `CONNECT host:port`.
pub(crate) fn of_connect(request: &Parts) -> Result<(Host, u16), Error> {
    let malformed = || Error::Malformed("the target of CONNECT must be `host:port`".to_owned());
    let authority = request.uri.authority().ok_or_else(malformed)?;
    if request.uri.scheme().is_some() || request.uri.path_and_query().is_some_and(|path| path != "/") {
        return Err(malformed());
    }
    let (host, port) = split(authority.as_str())?;
    let port = port.ok_or_else(malformed)?;
    if let Some(named) = host_header(request)? {
        let (named, named_port) = split(named)?;
        if named != host || named_port.is_some_and(|named| named != port) {
            return Err(Error::Mismatch("the Host header names another host than CONNECT".to_owned()));
        }
    }
    Ok((host, port))
}

/// Where a request on the plain side goes: `http://` in absolute form, and a Host header that agrees.
pub(crate) fn of_plain(request: &Parts) -> Result<Endpoint, Error> {
    let (scheme, authority) = absolute(&request.uri).ok_or_else(|| {
        Error::Malformed("this is a proxy: the target must be absolute, `http://host/path`".to_owned())
    })?;
    if scheme != Scheme::Http {
        return Err(Error::Malformed("an https target needs CONNECT".to_owned()));
    }
    let endpoint = of_url(scheme, authority)?;
    agree(request, &endpoint)?;
    Ok(endpoint)
}

/// Where a URL with this scheme and authority leads.
pub(crate) fn of_url(scheme: Scheme, authority: &str) -> Result<Endpoint, Error> {
    let (host, port) = split(authority)?;
    Ok(Endpoint { scheme, host, port: port.unwrap_or(scheme.default_port()) })
}

/// Where a request goes that was led here on its way to `port`: to the host that it names, on that port and no other.
pub(crate) fn of_led_here(request: &Parts, port: u16) -> Result<Endpoint, Error> {
    let named = match absolute(&request.uri) {
        Some((_, authority)) => Some(authority),
        None => host_header(request)?,
    };
    let named = named.ok_or_else(|| Error::Mismatch("the request has no Host header".to_owned()))?;
    let (host, _) = split(named)?;
    let endpoint = Endpoint { scheme: Scheme::Http, host, port };
    bind_to_tunnel(request, &endpoint)?;
    Ok(endpoint)
}

/// Whether a request inside a tunnel names the tunnel's host and port in one place, as they stand in its own authority: what nearly
/// all do, and what [`bind_to_tunnel`] then finds too.
pub(crate) fn names_plainly(request: &Parts, tunnel: &Authority) -> bool {
    let mut named = request.headers.get_all(HOST).iter();
    request.uri.scheme().is_none()
        && request.uri.authority().is_none()
        && named.next().is_some_and(|named| named.as_bytes() == tunnel.as_str().as_bytes())
        && named.next().is_none()
}

/// Checks that a request inside a tunnel names the host and port of the tunnel wherever it names one.
pub(crate) fn bind_to_tunnel(request: &Parts, tunnel: &Endpoint) -> Result<(), Error> {
    match (absolute(&request.uri), request.uri.authority()) {
        (Some((scheme, authority)), _) => {
            if scheme != tunnel.scheme {
                return Err(Error::Mismatch("the target has another scheme than the tunnel".to_owned()));
            }
            same(authority, tunnel, "the target")?;
        }
        (None, Some(_)) => return Err(Error::Malformed("the target is not a path".to_owned())),
        (None, None) if request.uri.scheme().is_some() => {
            return Err(Error::Malformed("the target has a scheme and no host".to_owned()));
        }
        (None, None) => {}
    }
    agree(request, tunnel)
}

/// The Host header must agree with `endpoint`; HTTP/1.1 must have one, and exactly one.
fn agree(request: &Parts, endpoint: &Endpoint) -> Result<(), Error> {
    match host_header(request)? {
        Some(named) => same(named, endpoint, "the Host header"),
        None if request.version != Version::HTTP_11 && request.uri.authority().is_some() => Ok(()),
        None => Err(Error::Mismatch("the request has no Host header".to_owned())),
    }
}

fn same(named: &str, endpoint: &Endpoint, place: &str) -> Result<(), Error> {
    let (host, port) = split(named)?;
    let port = port.unwrap_or(endpoint.scheme.default_port());
    if (&host, port) == (&endpoint.host, endpoint.port) {
        return Ok(());
    }
    Err(Error::Mismatch(format!("{place} names another host than the connection was opened for")))
}

fn host_header(request: &Parts) -> Result<Option<&str>, Error> {
    let mut values = request.headers.get_all(HOST).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Error::Mismatch("the request has more than one Host header".to_owned()));
    }
    value.to_str().map(Some).map_err(|_| Error::Malformed("the Host header is not text".to_owned()))
}

fn absolute(uri: &Uri) -> Option<(Scheme, &str)> {
    let scheme = match uri.scheme_str()? {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return None,
    };
    Some((scheme, uri.authority()?.as_str()))
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`; no user, no empty port, no bare IPv6.
fn split(authority: &str) -> Result<(Host, Option<u16>), Error> {
    let malformed = |reason: &str| Error::Malformed(format!("the target's host cannot be used: {reason}"));
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (inner, rest) = rest.split_once(']').ok_or_else(|| malformed("a bracket is not closed"))?;
            if !inner.contains(':') {
                return Err(malformed("brackets are for IPv6 addresses"));
            }
            match rest {
                "" => (inner, None),
                _ => (
                    inner,
                    Some(rest.strip_prefix(':').ok_or_else(|| malformed("it has text after the bracket"))?),
                ),
            }
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let host = Host::parse(host).map_err(|error| malformed(&error.to_string()))?;
    let port = port
        .map(|port| parse_port(port).ok_or_else(|| malformed("its port is not a number from 1 to 65535")));
    Ok((host, port.transpose()?))
}

fn parse_port(text: &str) -> Option<u16> {
    let plain = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn request(target: &str, hosts: &[&str]) -> Parts {
        let mut request = http::Request::builder().uri(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn authority(endpoint: &Endpoint) -> Authority {
        Authority::try_from(endpoint.authority()).unwrap()
    }

    fn tunnel(host: &str, port: u16) -> Endpoint {
        Endpoint { scheme: Scheme::Https, host: Host::parse(host).unwrap(), port }
    }

    #[test]
    fn the_host_of_a_tunnel_may_be_spelled_in_any_equal_way() {
        let tunnel = tunnel("api.example.com", 443);
        for host in ["api.example.com", "API.example.com", "api.example.com.", "api.example.com:443"] {
            let request = request("/", &[host]);
            assert_eq!(bind_to_tunnel(&request, &tunnel), Ok(()), "{host}");
            assert_eq!(names_plainly(&request, &authority(&tunnel)), host == "api.example.com", "{host}");
        }
        assert_eq!(
            bind_to_tunnel(&request("https://api.example.com/", &["api.example.com"]), &tunnel),
            Ok(())
        );
    }

    #[test]
    fn any_other_name_in_a_tunnel_is_refused() {
        let tunnel = tunnel("api.example.com", 443);
        let cases: &[(&str, &[&str])] = &[
            ("/", &[]),
            ("/", &["evil.example"]),
            ("/", &["api.example.com:8443"]),
            ("/", &["api.example.com", "api.example.com"]),
            ("/", &["api.example.com", "evil.example"]),
            ("/", &["user@api.example.com"]),
            ("/", &["api.example.com:"]),
            ("/", &["api.example.com:0443"]),
            ("/", &["[api.example.com]"]),
            ("/", &["api.example.com evil.example"]),
            ("/", &["api.example.com,evil.example"]),
            ("https://evil.example/", &["api.example.com"]),
            ("https://api.example.com/", &["evil.example"]),
            ("https://api.example.com/", &[]),
            ("http://api.example.com/", &["api.example.com"]),
            ("https://user@api.example.com/", &["api.example.com"]),
            ("evil.example:443", &["api.example.com"]),
        ];
        for (target, hosts) in cases {
            assert!(bind_to_tunnel(&request(target, hosts), &tunnel).is_err(), "{target} {hosts:?}");
        }
    }

    #[test]
    fn a_host_without_port_means_the_schemes_own_port() {
        assert!(
            bind_to_tunnel(&request("/", &["api.example.com"]), &tunnel("api.example.com", 8443)).is_err()
        );
        assert!(
            bind_to_tunnel(&request("/", &["api.example.com:8443"]), &tunnel("api.example.com", 8443))
                .is_ok()
        );
    }

    #[test]
    fn http2_may_name_the_host_in_its_authority_alone() {
        let mut request = request("https://api.example.com/", &[]);
        request.version = Version::HTTP_2;
        assert_eq!(bind_to_tunnel(&request, &tunnel("api.example.com", 443)), Ok(()));
        assert!(bind_to_tunnel(&request, &tunnel("other.example", 443)).is_err());
    }

    #[test]
    fn a_plain_request_is_absolute_and_http() {
        let endpoint =
            of_plain(&request("http://api.example.com:8080/x", &["api.example.com:8080"])).unwrap();
        assert_eq!(endpoint.authority(), "api.example.com:8080");
        for (target, host) in [
            ("/x", "api.example.com"),
            ("https://api.example.com/", "api.example.com"),
            ("http://api.example.com/", "evil.example"),
            ("http://0177.0.0.1/", "0177.0.0.1"),
            ("ftp://api.example.com/", "api.example.com"),
        ] {
            assert!(of_plain(&request(target, &[host])).is_err(), "{target}");
        }
    }

    #[test]
    fn a_request_that_was_led_here_goes_to_the_host_it_names_on_the_port_it_was_meant_for() {
        let led = |target: &str, hosts: &[&str], port| of_led_here(&request(target, hosts), port);
        assert_eq!(led("/x", &["API.test"], 80).unwrap().authority(), "api.test");
        assert_eq!(led("/x", &["api.test:8080"], 8080).unwrap().authority(), "api.test:8080");
        assert_eq!(led("http://api.test/x", &["api.test"], 80).unwrap().authority(), "api.test");
        let refused: &[(&str, &[&str], u16)] = &[
            ("/x", &[], 80),
            ("/x", &["api.test"], 8080),
            ("/x", &["api.test:81"], 80),
            ("/x", &["api.test", "evil.test"], 80),
            ("http://evil.test/x", &["api.test"], 80),
            ("https://api.test/x", &["api.test"], 80),
            ("api.test:80", &["api.test"], 80),
        ];
        for (target, hosts, port) in refused {
            assert!(led(target, hosts, *port).is_err(), "{target} {hosts:?} {port}");
        }
    }

    #[test]
    fn connect_needs_a_host_and_a_port_and_nothing_else() {
        let connect = |target: &str| {
            let mut request = request(target, &[]);
            request.method = http::Method::CONNECT;
            of_connect(&request)
        };
        assert_eq!(connect("[2001:DB8::1]:443"), Ok((Host::parse("2001:db8::1").unwrap(), 443)));
        for target in [
            "api.example.com",
            "https://api.example.com:443/",
            "/",
            "user@api.example.com:443",
            "api.example.com:0",
        ] {
            assert!(connect(target).is_err(), "{target}");
        }
    }
}
