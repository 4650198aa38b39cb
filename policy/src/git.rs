//! Is a request one of git's smart HTTP requests?

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

/// The service named by the path's last element, or by `info/refs?service=`, in any reading of them; a push when both are named.
pub(crate) fn service(head: &RequestHead<'_>) -> Option<GitService> {
    let named = head.path.readings().filter_map(|path| in_reading(path, head.query.unwrap_or_default()));
    named.reduce(GitService::or)
}

fn in_reading(path: &str, query: &str) -> Option<GitService> {
    const LISTING: &str = "/info/refs";
    let path = path.strip_suffix('/').unwrap_or(path);
    let end = path.len().checked_sub(LISTING.len()).and_then(|start| path.as_bytes().get(start..));
    if end.is_some_and(|end| end.eq_ignore_ascii_case(LISTING.as_bytes())) {
        let named = query::occurrences(query, "service");
        let services = named.filter_map(|value| by_name(&query::lenient(value).collect::<Vec<_>>()));
        return services.reduce(GitService::or);
    }
    by_name(path.rsplit('/').next().unwrap_or_default().as_bytes())
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
