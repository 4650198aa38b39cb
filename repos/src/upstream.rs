//! Where a repository really lives.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::hostkey::HostKey;

/// The port of ssh when a URL names none.
pub(crate) const SSH_PORT: u16 = 22;
/// The port of https when a URL names none.
pub(crate) const HTTPS_PORT: u16 = 443;

/// Where a repository really lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// A host that speaks ssh.
    Ssh(Ssh),
    /// A host that speaks https, with a token.
    Https(Https),
    /// A directory of this machine; only with the option that allows it.
    File(PathBuf),
}

/// A repository behind ssh, with the key that proves the host and the key that opens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ssh {
    /// The account, `git` as a rule.
    pub user: String,
    /// The host's name, lower case, or an address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The path as the remote side sees it; without a leading slash it is relative to the account's home.
    pub path: String,
    /// The private key file that authenticates us.
    pub identity: PathBuf,
    /// The key the host must prove.
    pub host_key: HostKey,
    /// The address to dial instead of asking the resolver.
    pub address: Option<IpAddr>,
}

/// A repository behind https, with the token that opens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Https {
    /// The host's name, lower case, or an address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The path, with its leading slash.
    pub path: String,
    /// The account that goes with the token.
    pub user: String,
    /// The name of the secret that holds the token.
    pub token: String,
    /// The address to dial instead of asking the resolver.
    pub address: Option<IpAddr>,
}

/// The parts of a URL, before the keys are added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) user: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) path: String,
}

/// An upstream as written, recognised but not yet complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Written {
    Ssh(Location),
    Https(Location),
    File(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error("an upstream over plain http would show its token to the network; use https:// or ssh://")]
    Http,
    #[error(
        "an https upstream is https://HOST[:PORT]/PATH without a user; the token is named by `token_file`"
    )]
    Https,
    #[error("a file upstream needs the option --allow-local-upstream")]
    LocalNotAllowed,
    #[error("a file upstream is file:// and an absolute path without `..`")]
    FilePath,
    #[error("an upstream is ssh://USER@HOST[:PORT]/PATH or USER@HOST:PATH")]
    Form,
    #[error("the upstream names no user; write it as in ssh://git@HOST/PATH")]
    User,
    #[error("the upstream's host is not a host name or an address")]
    Host,
    #[error("the upstream's port is not a number from 1 to 65535")]
    Port,
    #[error("the upstream's path has letters, digits and `._~+@=,-/` only, without `..`")]
    Path,
}

impl Written {
    pub(crate) fn parse(text: &str) -> Result<Self, UpstreamError> {
        if let Some(path) = text.strip_prefix("file://") {
            let plain = path.starts_with('/') && is_path(path);
            return if plain { Ok(Self::File(PathBuf::from(path))) } else { Err(UpstreamError::FilePath) };
        }
        if text.starts_with("http://") {
            return Err(UpstreamError::Http);
        }
        if let Some(rest) = text.strip_prefix("https://") {
            let (authority, path) = rest.split_once('/').ok_or(UpstreamError::Https)?;
            return Location::https(authority, &format!("/{path}")).map(Self::Https);
        }
        if let Some(rest) = text.strip_prefix("ssh://") {
            let (authority, path) = rest.split_once('/').ok_or(UpstreamError::Form)?;
            return Location::new(authority, &format!("/{path}")).map(Self::Ssh);
        }
        if text.contains("://") {
            return Err(UpstreamError::Form);
        }
        let (authority, path) = text.split_once(':').ok_or(UpstreamError::Form)?;
        Location::new(authority, path).map(Self::Ssh)
    }
}

impl Location {
    fn new(authority: &str, path: &str) -> Result<Self, UpstreamError> {
        let (user, host) = authority.split_once('@').ok_or(UpstreamError::User)?;
        let (host, port) = split_port(host, SSH_PORT)?;
        let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if user.is_empty() || user.starts_with('-') || !user.bytes().all(word) {
            return Err(UpstreamError::User);
        }
        if path.trim_matches('/').is_empty() || path.starts_with('-') || !is_path(path) {
            return Err(UpstreamError::Path);
        }
        Ok(Self { user: user.to_owned(), host: host_name(host)?, port, path: path.to_owned() })
    }
}

impl Location {
    fn https(authority: &str, path: &str) -> Result<Self, UpstreamError> {
        if authority.contains('@') {
            return Err(UpstreamError::Https);
        }
        let (host, port) = split_port(authority, HTTPS_PORT)?;
        if path.trim_matches('/').is_empty() || !is_path(path) {
            return Err(UpstreamError::Path);
        }
        Ok(Self { user: String::new(), host: host_name(host)?, port, path: path.to_owned() })
    }
}

impl Https {
    /// The URL for git, without the account.
    pub fn url(&self) -> String {
        format!("https://{}{}", self.authority(), self.path)
    }

    /// `host`, or `host:port` where the port is not that of https.
    pub fn authority(&self) -> String {
        let host = bracketed(&self.host);
        if self.port == HTTPS_PORT { host } else { format!("{host}:{}", self.port) }
    }
}

impl Ssh {
    /// The URL for git.
    pub fn url(&self) -> String {
        let Self { user, port, path, .. } = self;
        let host = self.bracketed_host();
        match (path.starts_with('/'), *port) {
            (false, _) => format!("{user}@{host}:{path}"),
            (true, SSH_PORT) => format!("ssh://{user}@{host}{path}"),
            (true, port) => format!("ssh://{user}@{host}:{port}{path}"),
        }
    }

    pub(crate) fn bracketed_host(&self) -> String {
        bracketed(&self.host)
    }
}

impl Upstream {
    /// The URL for git.
    pub fn url(&self) -> String {
        match self {
            Self::Ssh(ssh) => ssh.url(),
            Self::Https(https) => https.url(),
            Self::File(path) => format!("file://{}", path.display()),
        }
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url())
    }
}

/// A host name or address in the one form in which it is compared.
pub(crate) fn host_name(text: &str) -> Result<String, UpstreamError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if text.len() <= 253 && text.split('.').all(label) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(UpstreamError::Host)
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

fn split_port(host: &str, default: u16) -> Result<(&str, u16), UpstreamError> {
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(UpstreamError::Port),
    };
    if let Some(rest) = host.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or(UpstreamError::Host)?;
        return match rest.strip_prefix(':') {
            Some(text) => Ok((address, port(text)?)),
            None if rest.is_empty() => Ok((address, default)),
            None => Err(UpstreamError::Host),
        };
    }
    match host.split_once(':') {
        Some((host, text)) => Ok((host, port(text)?)),
        None => Ok((host, default)),
    }
}

/// A path that needs no quoting anywhere.
pub(crate) fn is_path(path: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._~+@=,-/".contains(&b);
    path.bytes().all(plain) && path.split('/').all(|e| e != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(user: &str, host: &str, port: u16, path: &str) -> Result<Written, UpstreamError> {
        Ok(Written::Ssh(Location { user: user.into(), host: host.into(), port, path: path.into() }))
    }

    #[test]
    fn both_spellings_of_ssh_are_understood() {
        let parse = Written::parse;
        assert_eq!(
            parse("ssh://git@GitHub.com/acme/web.git"),
            location("git", "github.com", 22, "/acme/web.git")
        );
        assert_eq!(parse("git@github.com:acme/web.git"), location("git", "github.com", 22, "acme/web.git"));
        assert_eq!(parse("ssh://git@127.0.0.1:2222/srv/x"), location("git", "127.0.0.1", 2222, "/srv/x"));
        assert_eq!(parse("ssh://git@[::1]:2222/srv/x"), location("git", "::1", 2222, "/srv/x"));
    }

    #[test]
    fn options_quotes_and_passwords_are_not_upstreams() {
        let parse = Written::parse;
        assert_eq!(parse("https://me:pw@github.com/acme/web.git"), Err(UpstreamError::Https));
        assert_eq!(parse("https://github.com/acme/%2e%2e/web.git"), Err(UpstreamError::Path));
        assert_eq!(parse("https://github.com"), Err(UpstreamError::Https));
        assert_eq!(parse("http://github.com/acme/web.git"), Err(UpstreamError::Http));
        assert_eq!(parse("ext::sh -c true"), Err(UpstreamError::User));
        assert_eq!(parse("ssh://github.com/acme/web"), Err(UpstreamError::User));
        assert_eq!(parse("ssh://git:pw@github.com/acme/web"), Err(UpstreamError::User));
        assert_eq!(parse("ssh://-oProxyCommand=x@h/p"), Err(UpstreamError::User));
        assert_eq!(parse("ssh://git@-oProxyCommand=x/p"), Err(UpstreamError::Host));
        assert_eq!(parse("ssh://git@h:0/p"), Err(UpstreamError::Port));
        assert_eq!(parse("ssh://git@h/a'b"), Err(UpstreamError::Path));
        assert_eq!(parse("ssh://git@h/a%2fb"), Err(UpstreamError::Path));
        assert_eq!(parse("ssh://git@h/a/../b"), Err(UpstreamError::Path));
        assert_eq!(parse("ssh://git@h/"), Err(UpstreamError::Path));
        assert_eq!(parse("git://h/p"), Err(UpstreamError::Form));
        assert_eq!(parse("file://../x"), Err(UpstreamError::FilePath));
    }
}
