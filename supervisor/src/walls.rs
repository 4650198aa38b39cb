//! What a daemon may touch, as data: files by path, system calls by name. Nothing is opened here but to look where a name leads.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::daemon::{Daemon, Paths};

pub(crate) mod calls;

/// What may be done with a file, or with everything below a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    /// Read, and list.
    Read,
    /// Read and execute.
    Run,
    /// Read and write what is there.
    Use,
    /// Anything but to execute and to make devices.
    Own,
}

/// One permission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) path: PathBuf,
    pub(crate) access: Access,
}

/// What a process of a daemon is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It is the daemon.
    Serve,
    /// It makes the CA and ends.
    MakeCa,
}

/// Libraries, and what they look at when they start.
const LIBRARIES: &[&str] = &[
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/sys/devices/system/cpu",
    "/sys/fs/cgroup",
    "/dev/urandom",
    "/dev/random",
    "/dev/zero",
];
/// The programs that start other programs with their libraries.
const LOADERS: &[&str] = &["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];
/// What git reads of its own beside its programs.
const GIT_SHARES: &[&str] =
    &["/usr/share/git-core", "/usr/local/share/git-core", "/usr/share/ca-certificates", "/usr/share/locale"];
/// Files that name resolution reads, and that are links to elsewhere on many machines.
const RESOLVER_FILES: &[&str] = &["/etc/resolv.conf", "/etc/hosts"];
/// The program of others that git-gate starts.
const GIT: &str = "git";

/// What decides the permissions beside the daemon itself.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    pub(crate) paths: &'a Paths,
    /// Where programs are searched.
    pub(crate) search: &'a OsStr,
    /// The file of further certificate authorities, if one is named.
    pub(crate) upstream_ca: Option<PathBuf>,
    /// Further paths that the operator lets it read.
    pub(crate) readable: Vec<PathBuf>,
}

/// The files of a daemon. A path that does not exist is no permission.
pub(crate) fn files(daemon: Daemon, purpose: Purpose, around: &Surroundings<'_>) -> Vec<Grant> {
    let paths = around.paths;
    let mut grants = Grants::default();
    grants.add(Access::Read, LIBRARIES);
    grants.add(Access::Run, LOADERS);
    grants.add(Access::Run, [paths.program(daemon)]);
    grants.add(Access::Use, ["/dev/null"]);
    grants.add(Access::Read, around.readable.iter().chain(&around.upstream_ca));
    match (daemon, purpose) {
        (Daemon::Egress, Purpose::MakeCa) => {
            grants.add(Access::Read, ["/proc"]);
            grants.add(Access::Own, [paths.state().join("egress")]);
        }
        (Daemon::Egress, Purpose::Serve) => {
            // What may be seen of other processes there is bounded by the domain itself.
            grants.add(Access::Read, ["/proc", "/etc"]);
            grants.add(Access::Read, resolver_directories());
            grants.add(Access::Read, [paths.root.join("etc/egress"), paths.ca(), paths.secrets(daemon)]);
            grants.add(Access::Own, [paths.run_of(daemon), paths.journal(daemon)]);
        }
        (Daemon::GitGate, Purpose::Serve | Purpose::MakeCa) => {
            grants.add(Access::Read, ["/proc", "/etc"]);
            grants.add(Access::Read, GIT_SHARES);
            grants.add(Access::Read, resolver_directories());
            grants.add(Access::Run, git_programs(around.search));
            grants.add(
                Access::Read,
                [paths.root.join("etc/git-gate"), paths.root.join("git-gate"), paths.secrets(daemon)],
            );
            grants.add(Access::Own, [paths.run_of(daemon), paths.journal(daemon), paths.mirrors()]);
        }
        (Daemon::Supervise, Purpose::Serve | Purpose::MakeCa) => {
            grants.add(Access::Read, ["/proc"]);
            grants.add(Access::Read, [paths.root.join("etc/egress"), paths.run_of(Daemon::Egress)]);
            grants.add(Access::Own, [paths.run_of(daemon), paths.journal(daemon)]);
        }
    }
    grants.0
}

#[derive(Default)]
struct Grants(Vec<Grant>);

impl Grants {
    fn add<P: AsRef<Path>>(&mut self, access: Access, paths: impl IntoIterator<Item = P>) {
        self.0.extend(paths.into_iter().map(|path| Grant { path: path.as_ref().to_owned(), access }));
    }
}

/// The directories that the files of name resolution really lie in. The whole directory, because the files are replaced by renaming.
fn resolver_directories() -> Vec<PathBuf> {
    let real = RESOLVER_FILES.iter().filter_map(|path| std::fs::canonicalize(path).ok());
    let directory = |path: PathBuf| match path.parent() {
        // Of a directory right below the root, such as /run, the file alone.
        Some(parent) if parent.components().count() > 2 => parent.to_owned(),
        Some(_) | None => path,
    };
    real.map(directory).collect()
}

/// git wherever it is found on the search path, and the directory of git's own programs. A script in their place is left
/// out: it would need a shell.
fn git_programs(search: &OsStr) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for directory in std::env::split_paths(search) {
        let Ok(program) = directory.join(GIT).canonicalize() else { continue };
        if let Some(prefix) = program.parent().and_then(Path::parent) {
            found.extend([prefix.join("lib/git-core"), prefix.join("libexec/git-core")]);
        }
        found.push(program);
    }
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(daemon: Daemon) -> Vec<Grant> {
        let paths = Paths { root: "/r".into(), run: "/r/run/sidecars".into(), bin: "/b".into() };
        let around = Surroundings {
            paths: &paths,
            search: OsStr::new("/usr/bin:/bin"),
            upstream_ca: (daemon == Daemon::Egress).then(|| "/home/ca.pem".into()),
            readable: Vec::new(),
        };
        files(daemon, Purpose::Serve, &around)
    }

    fn covering(daemon: Daemon, path: &str) -> Option<Access> {
        grants(daemon)
            .into_iter()
            .filter(|grant| Path::new(path).starts_with(&grant.path))
            .map(|grant| grant.access)
            .max()
    }

    #[test]
    fn each_daemon_reaches_its_own_files_and_none_of_the_others() {
        let cases = [
            ("/r/var/lib/sidecars/egress/ca/ca-key.pem", [Some(Access::Read), None, None]),
            ("/r/git-gate/creds/web.key", [None, Some(Access::Read), None]),
            ("/r/git/web.git/config", [None, Some(Access::Own), None]),
            ("/r/var/lib/sidecars/audit/supervise/journal.jsonl", [None, None, Some(Access::Own)]),
            ("/r/var/lib/sidecars/audit/egress/journal.jsonl", [Some(Access::Own), None, None]),
            ("/r/run/sidecars/egress/egress.status.json", [Some(Access::Own), None, Some(Access::Read)]),
            ("/r/run/sidecars/supervise/supervise.sock", [None, None, Some(Access::Own)]),
            ("/home/ca.pem", [Some(Access::Read), None, None]),
            ("/home/me/.ssh/id_ed25519", [None, None, None]),
            ("/tmp/x", [None, None, None]),
        ];
        for (path, expected) in cases {
            assert_eq!(Daemon::ALL.map(|daemon| covering(daemon, path)), expected, "{path}");
        }
    }

    #[test]
    fn nobody_may_execute_a_shell() {
        for shell in ["/bin/sh", "/usr/bin/bash", "/usr/bin/dash"] {
            for daemon in Daemon::ALL {
                assert_eq!(covering(daemon, shell), None, "{daemon} {shell}");
            }
        }
    }

    #[test]
    fn what_may_be_written_may_not_be_executed() {
        for daemon in Daemon::ALL {
            let grants = grants(daemon);
            let runs = grants.iter().filter(|grant| grant.access == Access::Run);
            for run in runs {
                let writes = grants.iter().filter(|grant| matches!(grant.access, Access::Own | Access::Use));
                assert!(
                    writes.into_iter().all(|write| !run.path.starts_with(&write.path)),
                    "{daemon} {run:?}"
                );
            }
        }
    }
}
