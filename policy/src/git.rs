//! Is a request one of git's: of its smart HTTP, of its dumb HTTP, by which repositories are read as files and written by WebDAV, or of LFS?
//! (gitprotocol-http(5), git-http-push(1), git-lfs' docs/api)

use http::Method;

use crate::decide::RequestHead;
use crate::query;

/// Which git service a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GitService {
    /// Clone and fetch.
    UploadPack,
    /// Push.
    ReceivePack,
}

/// The service named by the path's last element, by `info/refs?service=`, or by a file of a repository, in any reading of them; a push when
/// both are named.
pub(crate) fn service(head: &RequestHead<'_>) -> Option<GitService> {
    let query = head.query.unwrap_or_default();
    let named = head.path.readings().filter_map(|path| in_reading(head.method, path, query));
    named.reduce(GitService::or)
}

fn in_reading(method: &Method, path: &str, query: &str) -> Option<GitService> {
    let path = path.strip_suffix('/').unwrap_or(path);
    // Files are read; anything else that is done to them is a push.
    let by_file = if [Method::GET, Method::HEAD].contains(method) {
        GitService::UploadPack
    } else {
        GitService::ReceivePack
    };
    let lower = path.to_ascii_lowercase();
    let elements: Vec<&str> = lower.rsplitn(4, '/').collect();
    match elements[..] {
        ["refs", "info", ..] => {
            let named = query::occurrences(query, "service");
            let services = named.filter_map(|value| by_name(&query::lenient(value).collect::<Vec<_>>()));
            Some(services.reduce(GitService::or).unwrap_or(by_file))
        }
        ["packs" | "alternates" | "http-alternates", "info", "objects", ..] => Some(by_file),
        [file, "pack", "objects", ..] if file.starts_with("pack-") => Some(by_file),
        [rest, first, "objects", ..] if is_object(first, rest) => Some(by_file),
        _ if lower.contains("/info/lfs/") && *method == Method::PUT => Some(GitService::ReceivePack),
        _ if lower.contains("/info/lfs/") => Some(GitService::UploadPack),
        _ => by_name(elements.first().copied().unwrap_or_default().as_bytes()),
    }
}

/// Whether these are the name of an object, by SHA-1 or SHA-256, as its file has it.
fn is_object(first: &str, rest: &str) -> bool {
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    first.len() == 2 && matches!(rest.len(), 38 | 62) && is_hex(first) && is_hex(rest)
}

impl GitService {
    fn or(self, other: GitService) -> GitService {
        if self == GitService::ReceivePack { self } else { other }
    }
}

fn by_name(name: &[u8]) -> Option<GitService> {
    if name.eq_ignore_ascii_case(b"git-upload-pack") {
        Some(GitService::UploadPack)
    } else if name.eq_ignore_ascii_case(b"git-receive-pack") {
        Some(GitService::ReceivePack)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_that_is_read_or_written_as_files_is_seen() {
        let hash = "0".repeat(38);
        let (fetch, push) = (Some(GitService::UploadPack), Some(GitService::ReceivePack));
        let service = |method: &str, path: &str| {
            let method = method.parse().expect("a method");
            in_reading(&method, path, "")
        };
        let files = [
            "/r.git/info/refs",
            "/r.git/INFO/refs/",
            "/r.git/objects/info/packs",
            "/r.git/objects/info/alternates",
            "/r.git/objects/pack/pack-1.pack",
            &format!("/r.git/objects/a0/{hash}"),
        ];
        for file in files {
            assert_eq!((service("GET", file), service("HEAD", file)), (fetch, fetch), "{file}");
            assert_eq!((service("PUT", file), service("LOCK", file)), (push, push), "{file}");
        }
        assert_eq!(service("POST", "/r.git/info/lfs/objects/batch"), fetch);
        assert_eq!(service("PUT", "/r.git/info/lfs/objects/00"), push);
        for other in
            ["/objects/a0/1", "/v1/objects/pack", "/info", "/objects/zz/x", "/info/refs/heads", "/lfs/x", "/"]
        {
            assert_eq!(service("GET", other), None, "{other}");
        }
    }
}
