//! Files of a repository that git reads as configuration: `.gitmodules` and `.lfsconfig`.
//!
//! They are read by git's own parser, so that nothing means one thing here and another there.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::anyhow;
use git2::{Oid, Repository};

use crate::git::{bare_environment, printable};
use crate::wire::Lfs;

/// How many versions of them one push may bring.
const FILES_MAX: usize = 200;

/// The exit code of `git config` when no key is like that.
const NOTHING_FOUND: i32 = 1;

/// What in these blobs does not go through.
pub(crate) fn objections(
    repo: &Repository,
    blobs: &[(Oid, &'static str)],
    lfs: Lfs,
) -> anyhow::Result<Vec<String>> {
    if blobs.len() > FILES_MAX {
        anyhow::bail!(
            "the push brings more than {FILES_MAX} versions of .gitmodules and .lfsconfig; push in smaller parts"
        );
    }
    let mut found = Vec::new();
    for (blob, file) in blobs {
        let blob = repo.find_blob(*blob)?;
        if *file == ".lfsconfig" && lfs == Lfs::Refuse {
            found.push(format!(
                "{file} sends files to a server of its own, which this gate does not reach; remove it"
            ));
            continue;
        }
        let Ok(urls) = urls(blob.content()) else {
            found.push(format!("{file} is not configuration that git can read"));
            continue;
        };
        found.extend(urls.iter().filter_map(|(key, url)| {
            let fault = fault(url)?;
            Some(format!("{file}: {}: {fault}", printable(key)))
        }));
    }
    found.dedup();
    Ok(found)
}

/// The URLs in a configuration, with their keys. Inclusions are not followed.
fn urls(text: &[u8]) -> anyhow::Result<Vec<(String, String)>> {
    let mut command = Command::new("git");
    bare_environment(&mut command);
    command.args(["config", "-z", "--no-includes", "--file", "-", "--get-regexp", r"\.(push|lfs)?url$"]);
    command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().ok_or_else(|| anyhow!("git has no input"))?;
    let text = text.to_vec();
    let fed = std::thread::spawn(move || stdin.write_all(&text));
    let output = child.wait_with_output()?;
    let _ = fed.join();
    match output.status.code() {
        Some(0 | NOTHING_FOUND) => {}
        _ => anyhow::bail!("git cannot read it"),
    }
    let pairs = output.stdout.split(|b| *b == 0).filter(|pair| !pair.is_empty());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(pairs
        .map(|pair| match pair.iter().position(|b| *b == b'\n') {
            Some(at) => (text(&pair[..at]), text(&pair[at + 1..])),
            None => (text(pair), String::new()),
        })
        .collect())
}

/// Why a URL is not passed on.
fn fault(url: &str) -> Option<&'static str> {
    let remote = ["https://", "http://", "ssh://", "git://", "git+ssh://", "ssh+git://"];
    let after = remote.iter().find_map(|scheme| url.strip_prefix(scheme));
    if let Some(rest) = after {
        let authority = rest.split('/').next().unwrap_or_default();
        let password = authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'));
        return password.then_some("this URL has a password in it; name the repository without one");
    }
    if url.starts_with("./") || url.starts_with("../") {
        return None;
    }
    let scp =
        !url.starts_with(['-', '/', '.']) && !url.contains("::") && !url.contains("://") && url.contains(':');
    (!scp).then_some("this is no address of a repository elsewhere; use https://, ssh:// or a relative path")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_found_as_git_finds_them() {
        let text = b"[submodule \"a\"]\n\tpath = a\n\tURL = https://u:p\\\n@h/x ; c\n[include]\n\tpath = /etc/passwd\n";
        assert_eq!(urls(text).expect("read"), [("submodule.a.url".to_owned(), "https://u:p@h/x".to_owned())]);
        assert_eq!(urls(b"[a]\n").expect("read"), []);
        assert!(urls(b"[a\n").is_err());
    }

    #[test]
    fn addresses_elsewhere_pass_and_others_do_not() {
        for good in ["https://h/x.git", "ssh://git@h/x", "git@h:x/y.git", "../sibling.git", "git://h/x"] {
            assert_eq!(fault(good), None, "{good}");
        }
        for bad in ["https://u:p@h/x", "/srv/x", "file:///srv/x", "ext::sh -c x", "-x:y", "~/x", "", "x"] {
            assert!(fault(bad).is_some(), "{bad}");
        }
    }
}
