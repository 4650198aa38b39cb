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

/// What only WebDAV does: in a repository it is a push.
const DAV: [&str; 7] = ["LOCK", "UNLOCK", "MKCOL", "MOVE", "COPY", "PROPPATCH", "DELETE"];

fn in_reading(method: &Method, path: &str, query: &str) -> Option<GitService> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let is = |element: Option<&str>, names: &[&str]| {
        element.is_some_and(|element| names.iter().any(|name| name.eq_ignore_ascii_case(element)))
    };
    let mut elements = path.rsplit('/');
    let last = elements.next().unwrap_or_default();
    let (second, third) = (elements.next(), elements.next());
    let by_name = by_name(last.as_bytes());
    if by_name.is_some() {
        return by_name;
    }
    let is_dav = is(Some(method.as_str()), &DAV);
    let is_put = is(Some(method.as_str()), &["PUT"]);
    // A server that takes another method for GET gives the file too.
    let by_file = if is_dav || is_put { GitService::ReceivePack } else { GitService::UploadPack };
    if is(Some(last), &["refs"]) && is(second, &["info"]) {
        let named = query::occurrences(query, "service");
        let services = named.filter_map(|value| self::by_name(&query::lenient(value).collect::<Vec<_>>()));
        // git writes it in no way; a store of files may.
        return services.reduce(GitService::or).or((!is_put).then_some(by_file));
    }
    let is_listing = is(second, &["info"]) && is(Some(last), &["packs", "alternates", "http-alternates"]);
    let is_pack =
        is(second, &["pack"]) && last.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("pack-"));
    if is(third, &["objects"])
        && (is_listing || is_pack || second.is_some_and(|first| is_object(first, last)))
    {
        return Some(by_file);
    }
    if is_dav && has_elements(path, |element| ends_with(element, ".git")) {
        return Some(GitService::ReceivePack);
    }
    lfs(method, path, last)
}

/// What a request of git LFS asks for; GitLab has the objects at a place of its own.
fn lfs(method: &Method, path: &str, last: &str) -> Option<GitService> {
    let mut before = ["", ""];
    let is_lfs = has_elements(path, |element| {
        let named = |name: &str, known: &str| name.eq_ignore_ascii_case(known);
        let [first, second] = before;
        before = [second, element];
        let is_object = named(element, "objects");
        is_object && named(second, "gitlab-lfs")
            || (is_object || named(element, "locks")) && named(second, "lfs") && named(first, "info")
    });
    let is_read = [Method::GET, Method::HEAD].contains(method)
        || *method == Method::POST && last.eq_ignore_ascii_case("batch");
    is_lfs.then_some(if is_read { GitService::UploadPack } else { GitService::ReceivePack })
}

fn has_elements<'p>(path: &'p str, mut is_one: impl FnMut(&'p str) -> bool) -> bool {
    path.split('/').any(&mut is_one)
}

fn ends_with(element: &str, end: &str) -> bool {
    let at = element.len().checked_sub(end.len());
    at.and_then(|at| element.as_bytes().get(at..))
        .is_some_and(|found| found.eq_ignore_ascii_case(end.as_bytes()))
}

/// Whether these begin like the name of an object, by SHA-1 or SHA-256, as its file has it; while it is written more follows.
fn is_object(first: &str, rest: &str) -> bool {
    let is_hex = |text: &[u8]| text.iter().all(u8::is_ascii_hexdigit);
    first.len() == 2 && is_hex(first.as_bytes()) && rest.as_bytes().get(..38).is_some_and(is_hex)
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
            &format!("/r/objects/a0/{hash}_0b1c-lock"),
        ];
        for file in files {
            assert_eq!((service("GET", file), service("HEAD", file)), (fetch, fetch), "{file}");
            assert_eq!((service("MOVE", file), service("lock", file)), (push, push), "{file}");
            assert_eq!((service("POST", file), service("get", file)), (fetch, fetch), "{file}");
        }
        for written in [format!("/r/objects/a0/{hash}"), "/r/objects/pack/pack-1.idx".to_owned()] {
            assert_eq!(service("PUT", &written), push, "{written}");
        }
        for (method, path) in [("LOCK", "/r.git/refs/heads/main"), ("MKCOL", "/g/R.GIT/objects/a0/")] {
            assert_eq!(service(method, path), push, "{method} {path}");
        }
        for (method, path, wanted) in [
            ("POST", "/r.git/info/lfs/objects/batch", fetch),
            ("GET", "/g/p.git/gitlab-lfs/objects/00", fetch),
            ("PUT", "/g/p.git/gitlab-lfs/objects/00/12", push),
            ("PATCH", "/r/info/lfs/objects/00", push),
            ("POST", "/r/info/lfs/locks/1/unlock", push),
            ("GET", "/r/info/lfs/locks", fetch),
        ] {
            assert_eq!(service(method, path), wanted, "{method} {path}");
        }
        for other in [
            "/objects/a0/1",
            "/v1/objects/pack",
            "/info",
            "/objects/zz/x",
            "/info/refs/heads",
            "/docs/info/lfs/x",
            "/lfs/objects/x",
            "/repos/o/r/git/refs/heads/main",
            "/",
        ] {
            for method in ["GET", "PUT", "PATCH", "DELETE"] {
                assert_eq!(service(method, other), None, "{method} {other}");
            }
        }
        assert_eq!(service("PUT", "/bucket/r/info/refs"), None);
    }
}
