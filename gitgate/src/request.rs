//! The first line of a `git://` connection.

use std::fmt;

use repos::RepoName;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) service: Service,
    /// As sent; never used as a path.
    pub(crate) path: String,
    pub(crate) protocol: Protocol,
}

/// The two services there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    UploadPack,
    ReceivePack,
}

/// How git is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) protocol: Protocol,
    pub(crate) shape: Shape,
}

/// What one run of git does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The whole conversation.
    Conversation,
    /// The first answer of it, over HTTP.
    Advertisement,
    /// One exchange of it, over HTTP.
    Exchange,
}

impl Shape {
    pub(crate) fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Conversation => &[],
            Self::Advertisement => &["--stateless-rpc", "--advertise-refs"],
            Self::Exchange => &["--stateless-rpc"],
        }
    }
}

/// The version of the wire protocol that the client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    V0,
    V1,
    V2,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("this is not a git:// request")]
    Malformed,
    #[error("`{0}` is not served here; git-upload-pack and git-receive-pack are")]
    Service(String),
}

impl Request {
    /// Parses the payload of the first pkt-line: `git-SERVICE SP PATH NUL host=… NUL [NUL version=2 NUL …]`.
    pub(crate) fn parse(payload: &[u8]) -> Result<Self, RequestError> {
        let mut fields = payload.split(|b| *b == 0);
        let command = fields.next().unwrap_or_default();
        let command = std::str::from_utf8(command).map_err(|_| RequestError::Malformed)?;
        let (service, path) =
            command.trim_end_matches('\n').split_once(' ').ok_or(RequestError::Malformed)?;
        let service = match service {
            "git-upload-pack" => Service::UploadPack,
            "git-receive-pack" => Service::ReceivePack,
            other if other.starts_with("git-") && other.len() <= 64 => {
                return Err(RequestError::Service(other.escape_debug().to_string()));
            }
            _ => return Err(RequestError::Malformed),
        };
        let protocol = fields.find_map(Protocol::parse).unwrap_or(Protocol::V0);
        Ok(Self { service, path: path.to_owned(), protocol })
    }
}

/// The repository name that a path stands for: `/NAME.git` or `/NAME`.
pub(crate) fn name(path: &str) -> Option<RepoName> {
    let path = path.strip_prefix('/')?;
    let path = path.strip_suffix('/').unwrap_or(path);
    RepoName::parse(path.strip_suffix(".git").unwrap_or(path)).ok()
}

impl Protocol {
    pub(crate) fn parse(field: &[u8]) -> Option<Self> {
        match field {
            b"version=0" => Some(Self::V0),
            b"version=1" => Some(Self::V1),
            b"version=2" => Some(Self::V2),
            _ => None,
        }
    }

    /// The value of `GIT_PROTOCOL`; none for the oldest.
    pub(crate) fn variable(self) -> Option<&'static str> {
        match self {
            Self::V0 => None,
            Self::V1 => Some("version=1"),
            Self::V2 => Some("version=2"),
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UploadPack => "upload-pack",
            Self::ReceivePack => "receive-pack",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(path: &str) -> Option<String> {
        super::name(path).map(|n| n.to_string())
    }

    #[test]
    fn a_request_of_a_real_client_is_understood() {
        let request = Request::parse(b"git-upload-pack /acme-web.git\0host=git-gate:9418\0\0version=2\0");
        let expected =
            Request { service: Service::UploadPack, path: "/acme-web.git".into(), protocol: Protocol::V2 };
        assert_eq!(request, Ok(expected));
    }

    #[test]
    fn an_old_client_without_host_or_version_is_understood() {
        let request = Request::parse(b"git-receive-pack /acme-web\n");
        let expected =
            Request { service: Service::ReceivePack, path: "/acme-web".into(), protocol: Protocol::V0 };
        assert_eq!(request, Ok(expected));
    }

    #[test]
    fn nothing_but_a_version_reaches_the_child() {
        let version = |line: &[u8]| Request::parse(line).map(|r| r.protocol.variable());
        assert_eq!(version(b"git-upload-pack /a\0host=h\0\0version=2:evil=1\0"), Ok(None));
        assert_eq!(version(b"git-upload-pack /a\0host=h\0\0evil=1\0version=1\0"), Ok(Some("version=1")));
        assert_eq!(version(b"git-upload-pack /a\0host=h\0\0version=3\0"), Ok(None));
    }

    #[test]
    fn other_services_and_garbage_are_refused() {
        assert_eq!(
            Request::parse(b"git-upload-archive /a\0host=h\0"),
            Err(RequestError::Service("git-upload-archive".into()))
        );
        for line in
            [&b""[..], b"GET / HTTP/1.1\r\n", b"git-upload-pack", b"\xff\xfe /a", b"git-upload-pack\0/a"]
        {
            assert_eq!(Request::parse(line), Err(RequestError::Malformed), "{line:?}");
        }
    }

    #[test]
    fn a_path_is_a_name_or_nothing() {
        assert_eq!(name("/acme-web.git").as_deref(), Some("acme-web"));
        assert_eq!(name("/acme-web").as_deref(), Some("acme-web"));
        assert_eq!(name("/acme-web.git/").as_deref(), Some("acme-web"));
        for path in
            ["acme-web", "/", "//acme-web", "/../acme-web", "/acme-web.git/objects", "/%61", "/a\\b", "/~x"]
        {
            assert_eq!(name(path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic_and_a_name_is_never_a_path(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut line = b"git-upload-pack /".to_vec();
            line.extend(&bytes);
            for payload in [&bytes, &line] {
                if let Some(name) = Request::parse(payload).ok().and_then(|r| super::name(&r.path)) {
                    prop_assert!(!name.as_str().contains(['/', '\\', '\0', '%']));
                    prop_assert!(!name.as_str().starts_with(['.', '-']));
                }
            }
        }
    }
}
