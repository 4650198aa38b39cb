//! Is a request one of git's smart HTTP requests?

use crate::decide::RequestHead;
use crate::matches::pairs;

/// Which git service a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GitService {
    /// Clone and fetch.
    UploadPack,
    /// Push.
    ReceivePack,
}

/// The service named by the path's last element, or by `info/refs?service=`; a push when both are named.
pub(crate) fn service(head: &RequestHead<'_>) -> Option<GitService> {
    let path = head.path.readings().last().unwrap_or_default();
    let path = path.strip_suffix('/').unwrap_or(path);
    if path.to_ascii_lowercase().ends_with("/info/refs") {
        let named = pairs(head.query.unwrap_or_default(), &['&', ';'])
            .filter(|(key, _)| key.eq_ignore_ascii_case(b"service"));
        let services = named.filter_map(|(_, value)| by_name(&value));
        return services.reduce(|one, other| if one == GitService::ReceivePack { one } else { other });
    }
    by_name(path.rsplit('/').next().unwrap_or_default().as_bytes())
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
