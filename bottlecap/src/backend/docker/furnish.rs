//! What of the host the agent's container sees: our own directory, made in the bottle's state, and what is bound.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::compose::{Access, Bind};
use crate::environment::JAVA_STORE;
use crate::etc::{self, Identity};
use crate::fault::{Attempted, Fault};
use crate::git::Protected;
use crate::layout::{HOME, OURS, empty_file};
use crate::run::Checked;
use crate::sys::beneath::Tree;
use crate::sys::descriptors::{open_beneath, open_path};
use crate::sys::mounts::Inode;
use crate::workdir::{Found, Place, shown};

/// The directory in the bottle's state.
pub(super) const DIRECTORY: &str = "agent";
/// What the home starts with, in it.
const SKELETON: &str = "home";

/// A directory of ours that was made, and everything that is bound.
#[derive(Debug)]
pub(super) struct Furnished {
    directory: PathBuf,
    binds: Vec<Bind>,
    /// What is to be seen at each place that somebody else could lead elsewhere.
    seen: Vec<(PathBuf, Inode)>,
    environment: BTreeMap<String, String>,
}

impl Furnished {
    /// Makes the directory anew in `state`.
    pub(super) fn new(
        state: &Path,
        identity: &Identity,
        checked: &Checked,
        git: &[Protected],
    ) -> Result<Furnished, Fault> {
        let directory = state.join(DIRECTORY);
        let told = || format!("cannot make {}", directory.display());
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).failing(told),
            Ok(()) | Err(_) => {}
        }
        fs::DirBuilder::new().mode(0o755).create(&directory).failing(told)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).failing(told)?;
        let tree = Tree::open(&directory).failing(told)?;
        for (path, bytes) in files(identity, checked.owner) {
            tree.write(&path, &bytes)
                .failing(|| format!("cannot write {}", directory.join(&path).display()))?;
        }
        let program = directory.join("bin/bottlecap");
        fs::create_dir_all(directory.join("bin")).failing(told)?;
        fs::copy("/proc/self/exe", &program)
            .failing(|| format!("cannot copy this program to {}", program.display()))?;
        // What its user cannot read makes a process that its user cannot look into, from the first instruction: the agent shares
        // its user with the one that holds its container open.
        fs::set_permissions(&program, fs::Permissions::from_mode(0o711)).failing(told)?;
        Ok(Furnished {
            binds: binds(&directory, checked, git),
            seen: seen(&directory, checked, git)
                .failing(|| format!("cannot look at what is bound in {}", shown(&checked.workdir.path)))?,
            environment: environment(checked)?,
            directory,
        })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn binds(&self) -> &[Bind] {
        &self.binds
    }

    pub(super) fn seen(&self) -> &[(PathBuf, Inode)] {
        &self.seen
    }

    pub(super) fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }
}

/// Path below the directory and content of each file.
fn files(identity: &Identity, owner: (u32, u32)) -> Vec<(PathBuf, Vec<u8>)> {
    let below = |root: &str, path: &Path| {
        path.strip_prefix(root).map_or_else(|_| path.to_path_buf(), Path::to_path_buf)
    };
    let mut files: Vec<(PathBuf, Vec<u8>)> = etc::own_files(identity)
        .into_iter()
        .map(|(path, text)| (below(OURS, &path), text.into_bytes()))
        .collect();
    files.extend(
        identity
            .home_files()
            .into_iter()
            .map(|(path, text)| (Path::new(SKELETON).join(below(HOME, &path)), text.into_bytes())),
    );
    files.extend(identity.java.iter().map(|store| (below(OURS, Path::new(JAVA_STORE)), store.clone())));
    files.push(("system/ca-certificates.crt".into(), identity.roots.clone().into_bytes()));
    files.push(("system/passwd".into(), etc::passwd(owner).into_bytes()));
    files.push(("system/group".into(), etc::group(owner).into_bytes()));
    files.push((below(OURS, &empty_file()), Vec::new()));
    files
}

fn binds(directory: &Path, checked: &Checked, git: &[Protected]) -> Vec<Bind> {
    let own = |name: &str, target: &str| Bind {
        source: directory.join(name),
        target: target.into(),
        access: Access::ReadOnly,
    };
    // Written once, before the container is: nothing renames another file into their place.
    let mut binds = vec![own("system/passwd", "/etc/passwd"), own("system/group", "/etc/group")];
    let mut share = |place: &Place, found: &Found, access| {
        let path = place.path.clone();
        binds.push(Bind { source: path.clone(), target: path.clone(), access });
        binds.extend(found.sockets.iter().map(|socket| Bind {
            source: directory.join("empty"),
            target: path.join(socket),
            access: Access::ReadOnly,
        }));
    };
    for (place, found) in &checked.mounts {
        share(place, found, Access::ReadOnly);
    }
    share(&checked.workdir, &checked.found, Access::Writable);
    binds.extend(git.iter().map(|protected| {
        let (path, access) = match protected {
            Protected::Pinned(path) => (path, Access::Writable),
            Protected::ReadOnly(path) => (path, Access::ReadOnly),
        };
        let path = checked.workdir.path.join(path);
        Bind { source: path.clone(), target: path, access }
    }));
    binds
}

/// What was looked at, by the place where it is to be seen.
fn seen(directory: &Path, checked: &Checked, git: &[Protected]) -> io::Result<Vec<(PathBuf, Inode)>> {
    let own = |path: &Path| fs::metadata(path).map(|metadata| Inode::from(&metadata));
    let nothing = own(&directory.join("empty"))?;
    let mut seen = vec![
        (PathBuf::from(OURS), own(directory)?),
        ("/etc/ssl/certs".into(), own(&directory.join("system"))?),
    ];
    let shared = checked.mounts.iter().map(|(place, found)| (place, found));
    for (place, found) in shared.chain([(&checked.workdir, &checked.found)]) {
        seen.push((place.path.clone(), place.inode()));
        seen.extend(found.sockets.iter().map(|socket| (place.path.join(socket), nothing)));
    }
    let workdir = open_path(&checked.workdir.path)?;
    if Inode::of(&workdir)? != checked.workdir.inode() {
        return Err(io::Error::other("it is another directory than was looked at"));
    }
    for protected in git {
        let (Protected::Pinned(path) | Protected::ReadOnly(path)) = protected;
        let found = open_beneath(workdir.as_fd(), path, libc::O_PATH)?;
        seen.push((checked.workdir.path.join(path), Inode::of(found)?));
    }
    Ok(seen)
}

fn environment(checked: &Checked) -> Result<BTreeMap<String, String>, Fault> {
    let text = |word: &std::ffi::OsStr| word.to_str().map(str::to_owned);
    let variable = |(name, value): (&std::ffi::OsString, &std::ffi::OsString)| match (text(name), text(value))
    {
        (Some(name), Some(value)) => Ok((name, value)),
        _ => Err(Fault::refused(format!("the variable {} is no text", name.to_string_lossy()))),
    };
    checked.environment.iter().map(variable).collect()
}
