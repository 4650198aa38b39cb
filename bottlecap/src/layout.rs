//! What a bottle's file system is made of: an ordered list of steps, worked out before anything is mounted.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::environment;
use crate::etc::{self, Identity};
use crate::git::Protected;
use crate::sys::mounts::Inode;
use crate::workdir::shown;

/// Where the home of the agent is.
pub const HOME: &str = "/home/agent";
/// Where our own files are.
pub const OURS: &str = "/etc/bottlecap";

/// One thing to make. Paths are those inside the bottle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "make", rename_all = "kebab-case")]
pub enum Step {
    /// A directory, with those above it.
    Directory {
        /// Where.
        path: PathBuf,
    },
    /// A symbolic link.
    Symlink {
        /// Where.
        path: PathBuf,
        /// To where.
        target: PathBuf,
    },
    /// A file with this text.
    File {
        /// Where.
        path: PathBuf,
        /// What is in it.
        text: String,
    },
    /// A file with these bytes.
    Bytes {
        /// Where.
        path: PathBuf,
        /// What is in it, as base64.
        base64: String,
    },
    /// A copy of a file of the host, if the unprivileged wall can read it.
    Copy {
        /// Where.
        path: PathBuf,
        /// The host's file.
        from: PathBuf,
    },
    /// An empty file system in memory.
    Memory {
        /// Where.
        path: PathBuf,
        /// At most this much.
        mebibytes: u32,
        /// At most so many files.
        files: u32,
        /// The mode of its root.
        mode: u32,
    },
    /// Something that exists, bound.
    Bind {
        /// Where.
        path: PathBuf,
        /// What.
        from: Source,
        /// What may be done with it.
        access: Access,
    },
    /// A fresh /proc of the bottle's own pid namespace, with what concerns the host masked.
    Processes,
    /// Pseudo-terminals of the bottle's own.
    Terminals,
}

/// What is bound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A path of the host. With an inode: only if it is still that one.
    Host(PathBuf, Option<Inode>),
    /// A mount that was handed over, by its place in the list.
    Handed(usize),
    /// A path inside a directory that is bound already; symbolic links are not followed.
    Itself {
        /// The directory.
        within: PathBuf,
    },
    /// The empty file, in place of something inside a directory that is bound already.
    Nothing {
        /// The directory.
        within: PathBuf,
    },
}

/// What may be done with what is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Read.
    ReadOnly,
    /// Read and written.
    Writable,
    /// A device file, used.
    Device,
}

/// A directory of the host that is visible inside at its own path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// Its path, there and here.
    pub path: PathBuf,
    /// How the wall gets at it.
    pub source: Source,
    /// Unix sockets in it, to be hidden.
    pub sockets: Vec<PathBuf>,
}

/// How the host's own tree looks, as far as a bottle shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostTree {
    /// Top-level directories of programs and libraries.
    pub programs: Vec<(PathBuf, Entry)>,
    /// Files of /etc that are present.
    pub etc_files: Vec<PathBuf>,
    /// Directories of /etc that are present.
    pub etc_directories: Vec<PathBuf>,
    /// Links of /etc that are present, with their targets.
    pub etc_links: Vec<(PathBuf, PathBuf)>,
}

/// A top-level entry of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Directory,
    /// A link to elsewhere.
    Link(PathBuf),
}

/// Everything that the layout depends on.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The host.
    pub host: &'a HostTree,
    /// The working directory.
    pub workdir: &'a Shared,
    /// What of git in it is kept from the agent.
    pub git: &'a [Protected],
    /// More directories, read-only.
    pub mounts: &'a [Shared],
    /// Texts of /etc and the home.
    pub identity: &'a Identity,
}

const HOME_MEBIBYTES: u32 = 1024;
const TEMPORARY_MEBIBYTES: u32 = 1024;
const VAR_MEBIBYTES: u32 = 512;
const RUN_MEBIBYTES: u32 = 64;
const SHARED_MEMORY_MEBIBYTES: u32 = 256;
const MANY_FILES: u32 = 400_000;
const FEW_FILES: u32 = 20_000;
const STICKY: u32 = 0o1777;
const ORDINARY: u32 = 0o755;
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// The steps, in order. The root they are made on is sealed read-only after the last.
#[must_use]
pub fn steps(inputs: &Inputs<'_>) -> Vec<Step> {
    let mut steps = programs(inputs.host);
    steps.extend(configuration(inputs.host, inputs.identity));
    steps.extend(empty_places());
    steps.extend(devices());
    steps.push(Step::Processes);
    steps.extend(inputs.identity.home_files().into_iter().map(|(path, text)| Step::File { path, text }));
    for mount in inputs.mounts {
        steps.extend(share(mount, Access::ReadOnly));
    }
    steps.extend(share(inputs.workdir, Access::Writable));
    steps.extend(inputs.git.iter().map(|protected| keep(inputs.workdir, protected)));
    steps
}

fn programs(host: &HostTree) -> Vec<Step> {
    let step = |(path, entry): &(PathBuf, Entry)| match entry {
        Entry::Link(target) => Step::Symlink { path: path.clone(), target: target.clone() },
        Entry::Directory => bind_host(path, Access::ReadOnly),
    };
    host.programs.iter().map(step).collect()
}

fn configuration(host: &HostTree, identity: &Identity) -> Vec<Step> {
    let mut steps = vec![Step::Directory { path: PathBuf::from("/etc") }];
    steps.extend(host.etc_files.iter().map(|path| Step::Copy { path: path.clone(), from: path.clone() }));
    steps.extend(host.etc_directories.iter().map(|path| bind_host(path, Access::ReadOnly)));
    steps.extend(
        host.etc_links
            .iter()
            .map(|(path, target)| Step::Symlink { path: path.clone(), target: target.clone() }),
    );
    steps.extend(etc::files(identity).into_iter().map(|(path, text)| Step::File { path, text }));
    steps.extend(
        identity.java.iter().map(|store| Step::Bytes {
            path: environment::JAVA_STORE.into(),
            base64: STANDARD.encode(store),
        }),
    );
    steps.push(Step::File { path: empty_file(), text: String::new() });
    steps
}

fn empty_places() -> Vec<Step> {
    let memory =
        |path: &str, mebibytes, files, mode| Step::Memory { path: path.into(), mebibytes, files, mode };
    let directory = |path: &str| Step::Directory { path: path.into() };
    vec![
        memory(HOME, HOME_MEBIBYTES, MANY_FILES, ORDINARY),
        memory("/run", RUN_MEBIBYTES, FEW_FILES, ORDINARY),
        memory("/tmp", TEMPORARY_MEBIBYTES, MANY_FILES, STICKY),
        memory("/var", VAR_MEBIBYTES, MANY_FILES, ORDINARY),
        directory("/var/cache"),
        directory("/var/lib"),
        directory("/var/tmp"),
    ]
}

fn devices() -> Vec<Step> {
    let mut steps = vec![Step::Directory { path: "/dev".into() }];
    steps.extend(DEVICES.map(|name| bind_host(&Path::new("/dev").join(name), Access::Device)));
    steps.push(Step::Terminals);
    steps.push(Step::Memory {
        path: "/dev/shm".into(),
        mebibytes: SHARED_MEMORY_MEBIBYTES,
        files: FEW_FILES,
        mode: STICKY,
    });
    let links = [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ];
    steps.extend(
        links.map(|(name, target)| Step::Symlink {
            path: Path::new("/dev").join(name),
            target: target.into(),
        }),
    );
    steps
}

fn share(shared: &Shared, access: Access) -> Vec<Step> {
    let mut steps = vec![Step::Bind { path: shared.path.clone(), from: shared.source.clone(), access }];
    steps.extend(shared.sockets.iter().map(|socket| Step::Bind {
        path: shared.path.join(socket),
        from: Source::Nothing { within: shared.path.clone() },
        access: Access::ReadOnly,
    }));
    steps
}

fn keep(workdir: &Shared, protected: &Protected) -> Step {
    let (path, access) = match protected {
        Protected::Pinned(path) => (path, Access::Writable),
        Protected::ReadOnly(path) => (path, Access::ReadOnly),
    };
    let within = workdir.path.clone();
    Step::Bind { path: workdir.path.join(path), from: Source::Itself { within }, access }
}

fn bind_host(path: &Path, access: Access) -> Step {
    Step::Bind { path: path.to_path_buf(), from: Source::Host(path.to_path_buf(), None), access }
}

/// The file that stands in for what is hidden.
#[must_use]
pub fn empty_file() -> PathBuf {
    Path::new(OURS).join("empty")
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Directory { path } => write!(f, "directory   {}", shown(path)),
            Step::Symlink { path, target } => {
                write!(f, "link        {} -> {}", shown(path), shown(target))
            }
            Step::File { path, .. } | Step::Bytes { path, .. } => write!(f, "own file    {}", shown(path)),
            Step::Copy { path, .. } => write!(f, "copy        {}", shown(path)),
            Step::Memory { path, mebibytes, .. } => {
                write!(f, "memory      {} ({mebibytes} MiB)", shown(path))
            }
            Step::Bind { path, from: Source::Nothing { .. }, .. } => {
                write!(f, "hidden      {}", shown(path))
            }
            Step::Bind { path, access: Access::ReadOnly, .. } => write!(f, "read-only   {}", shown(path)),
            Step::Bind { path, access: Access::Writable, .. } => write!(f, "writable    {}", shown(path)),
            Step::Bind { path, access: Access::Device, .. } => write!(f, "device      {}", shown(path)),
            Step::Processes => write!(f, "fresh       /proc"),
            Step::Terminals => write!(f, "fresh       /dev/pts"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(path: &str, sockets: &[&str]) -> Shared {
        Shared {
            path: path.into(),
            source: Source::Host(path.into(), None),
            sockets: sockets.iter().map(PathBuf::from).collect(),
        }
    }

    #[test]
    fn a_bottle_shows_named_parts_and_nothing_else() {
        let host = HostTree {
            programs: vec![("/usr".into(), Entry::Directory), ("/bin".into(), Entry::Link("usr/bin".into()))],
            etc_files: vec!["/etc/ld.so.cache".into()],
            etc_directories: vec!["/etc/alternatives".into()],
            etc_links: vec![("/etc/localtime".into(), "/usr/share/zoneinfo/UTC".into())],
        };
        let workdir = shared("/src/web", &["server.sock"]);
        let git = [Protected::Pinned(".git".into()), Protected::ReadOnly(".git/config".into())];
        let mounts = [shared("/opt/tools", &[])];
        let identity = Identity {
            gitconfig: String::new(),
            roots: "host and ours\n".into(),
            ca: Some("ours\n".into()),
            luggage: Vec::new(),
            java: Some(vec![0xfe]),
            addresses: crate::addresses::Addresses::names(),
            names: crate::etc::Names::Files,
        };
        let steps = steps(&Inputs {
            host: &host,
            workdir: &workdir,
            git: &git,
            mounts: &mounts,
            identity: &identity,
        });
        let text: Vec<String> = steps.iter().map(Step::to_string).collect();
        insta::assert_snapshot!(text.join("\n"), @r"
        read-only   /usr
        link        /bin -> usr/bin
        directory   /etc
        copy        /etc/ld.so.cache
        read-only   /etc/alternatives
        link        /etc/localtime -> /usr/share/zoneinfo/UTC
        own file    /etc/hosts
        own file    /etc/hostname
        own file    /etc/resolv.conf
        own file    /etc/nsswitch.conf
        own file    /etc/passwd
        own file    /etc/group
        own file    /etc/gitconfig
        own file    /etc/shells
        own file    /etc/ssl/certs/ca-certificates.crt
        own file    /etc/ssl/cert.pem
        own file    /etc/bottlecap/ca-bundle.pem
        own file    /etc/bottlecap/gitconfig
        own file    /etc/bottlecap/mcp.json
        own file    /etc/bottlecap/ca.pem
        own file    /etc/bottlecap/cacerts.jks
        own file    /etc/bottlecap/empty
        memory      /home/agent (1024 MiB)
        memory      /run (64 MiB)
        memory      /tmp (1024 MiB)
        memory      /var (512 MiB)
        directory   /var/cache
        directory   /var/lib
        directory   /var/tmp
        directory   /dev
        device      /dev/null
        device      /dev/zero
        device      /dev/full
        device      /dev/random
        device      /dev/urandom
        device      /dev/tty
        fresh       /dev/pts
        memory      /dev/shm (256 MiB)
        link        /dev/ptmx -> pts/ptmx
        link        /dev/fd -> /proc/self/fd
        link        /dev/stdin -> /proc/self/fd/0
        link        /dev/stdout -> /proc/self/fd/1
        link        /dev/stderr -> /proc/self/fd/2
        fresh       /proc
        own file    /home/agent/.claude.json
        read-only   /opt/tools
        writable    /src/web
        hidden      /src/web/server.sock
        writable    /src/web/.git
        read-only   /src/web/.git/config
        ");
    }

    #[test]
    fn a_step_does_not_speak_to_the_terminal() {
        let steps = share(&shared("/src/web", &["\u{1b}[2J.sock"]), Access::Writable);
        assert_eq!(steps[1].to_string(), r"hidden      /src/web/\u{1b}[2J.sock");
    }
}
