//! The services of git daemon, and the request line as it reads it.

use std::fmt;
use std::path::Path;

use clap::ValueEnum;

/// What a client can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Service {
    UploadPack,
    UploadArchive,
    ReceivePack,
}

impl Service {
    const ALL: [Self; 3] = [Self::UploadPack, Self::UploadArchive, Self::ReceivePack];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::UploadPack => "upload-pack",
            Self::UploadArchive => "upload-archive",
            Self::ReceivePack => "receive-pack",
        }
    }

    /// Its key below `daemon.` in the configuration of a repository.
    fn key(self) -> &'static str {
        match self {
            Self::UploadPack => "uploadpack",
            Self::UploadArchive => "uploadarch",
            Self::ReceivePack => "receivepack",
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which services are on, and which of them a repository may switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Services {
    on: Vec<Service>,
    switchable: Vec<Service>,
}

impl Services {
    pub(super) fn new(
        enable: &[Service],
        disable: &[Service],
        allow_override: &[Service],
        forbid_override: &[Service],
    ) -> Self {
        let by_default = |s: &Service| *s == Service::UploadPack || enable.contains(s);
        let switchable = |s: &Service| !forbid_override.contains(s) || allow_override.contains(s);
        let on = Service::ALL.into_iter().filter(|s| by_default(s) && !disable.contains(s));
        // As in git daemon, a repository may switch each service unless that is forbidden.
        Self { on: on.collect(), switchable: Service::ALL.into_iter().filter(switchable).collect() }
    }

    /// Whether it could be on anywhere.
    pub(super) fn possible(&self, service: Service) -> bool {
        self.on.contains(&service) || self.switchable.contains(&service)
    }

    /// Whether it is on in a repository.
    pub(super) fn enabled(&self, service: Service, repository: &Path) -> bool {
        let on = self.on.contains(&service);
        if !self.switchable.contains(&service) {
            return on;
        }
        let config = git2::Config::open(&repository.join("config"));
        let key = format!("daemon.{}", service.key());
        config.and_then(|config| config.get_bool(&key)).unwrap_or(on)
    }
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) service: Service,
    pub(super) path: String,
    pub(super) host: Option<String>,
    pub(super) port: Option<String>,
    /// What stands behind the second zero byte, for `GIT_PROTOCOL`.
    pub(super) protocol: Option<String>,
}

impl Request {
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(line).ok()?;
        let (command, rest) = text.split_once('\0').unwrap_or((text, ""));
        let (service, path) = command.trim_end_matches('\n').strip_prefix("git-")?.split_once(' ')?;
        let service = Service::ALL.into_iter().find(|s| s.as_str() == service)?;
        let (host, more) = rest.split_once('\0').unwrap_or((rest, ""));
        let (host, port) = match host.strip_prefix("host=").map(split_port) {
            Some((host, port)) => (Some(harmless(&host.to_ascii_lowercase())), port.map(harmless)),
            None => (None, None),
        };
        let more: Vec<&str> = more.split('\0').filter(|part| !part.is_empty()).collect();
        let protocol = (!more.is_empty()).then(|| more.join(":"));
        Some(Self { service, path: path.to_owned(), host, port, protocol })
    }
}

fn split_port(host: &str) -> (&str, Option<&str>) {
    if let Some((address, rest)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (address, rest.strip_prefix(':'));
    }
    match host.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (host, None),
    }
}

/// A name that leads nowhere when it becomes part of a path.
fn harmless(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().filter(|c| *c != '/') {
        if c != '.' || !(out.is_empty() || out.ends_with('.')) {
            out.push(c);
        }
    }
    out.trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_git_daemon_reads_it() {
        let line = b"git-upload-pack /x.git\0host=LocalHost:99\0\0version=1\0";
        let expected = Request {
            service: Service::UploadPack,
            path: "/x.git".into(),
            host: Some("localhost".into()),
            port: Some("99".into()),
            protocol: Some("version=1".into()),
        };
        assert_eq!(Request::parse(line), Some(expected));
        assert_eq!(Request::parse(b"git-shell /x\0"), None);
        let host = |line: &[u8]| Request::parse(line).and_then(|r| r.host);
        assert_eq!(host(b"git-upload-pack /x\0host=..//../a..b.\0"), Some("a.b".into()));
        assert_eq!(host(b"git-upload-pack /x\0host=[::1]:9418\0"), Some("::1".into()));
    }

    #[test]
    fn services_are_switched_on_and_off() {
        let services = Services::new(&[Service::ReceivePack], &[], &[], &[Service::UploadArchive]);
        assert!(services.possible(Service::UploadPack) && services.possible(Service::ReceivePack));
        assert!(!services.possible(Service::UploadArchive));
        let dir = tempfile::tempdir().expect("a directory");
        assert!(services.enabled(Service::ReceivePack, dir.path()));
        std::fs::write(dir.path().join("config"), "[daemon]\n\treceivepack = false\n").expect("written");
        assert!(!services.enabled(Service::ReceivePack, dir.path()));
    }
}
