//! What the engine has bound, compared with what was looked at.
//!
//! The engine looks its binds up by name when it starts a container, and whoever may write beside a directory could have put
//! another in its place. Nothing of the agent runs yet when this is looked at.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::engine::Engine;
use crate::fault::{Attempted, Fault};
use crate::sys::descriptors::open_in_root;
use crate::sys::mounts::Inode;
use crate::workdir::shown;

/// Refuses a container in which something else is seen at one of these places.
pub(super) fn compare(engine: &Engine, container: &str, wanted: &[(PathBuf, Inode)]) -> Result<(), Fault> {
    let process = engine.run(["container", "inspect", "--format", "{{.State.Pid}}", container])?;
    let told = || format!("cannot look into the container {container}");
    let process: u32 = process.parse().failing(told)?;
    let root = File::open(Path::new("/proc").join(process.to_string()).join("root")).failing(told)?;
    match other(&root, wanted) {
        None => Ok(()),
        Some(place) => Err(Fault::refused(format!(
            "the engine has bound something else at {} than was looked at",
            shown(place)
        ))
        .with_hint("something renames or replaces directories there: start again when it is done")),
    }
}

/// The first of these places that is not what it is to be for a process with this root.
fn other<'w>(root: &impl AsFd, wanted: &'w [(PathBuf, Inode)]) -> Option<&'w Path> {
    let is_seen = |path: &Path, inode: Inode| -> io::Result<bool> {
        Ok(Inode::of(open_in_root(root.as_fd(), path)?)? == inode)
    };
    let other = wanted.iter().find(|(path, inode)| !is_seen(path, *inode).unwrap_or(false));
    other.map(|(path, _)| path.as_path())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_place_that_leads_elsewhere_is_found() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for name in ["work", "elsewhere"] {
            fs::create_dir(at(name)).unwrap();
        }
        let inode = |name: &str| Inode::from(&fs::metadata(at(name)).unwrap());
        let wanted = [("/work".into(), inode("work")), ("/elsewhere".into(), inode("elsewhere"))];
        let opened = File::open(root.path()).unwrap();
        assert_eq!(other(&opened, &wanted), None);
        // Links are those of whoever has this root.
        std::os::unix::fs::symlink("/work", at("alias")).unwrap();
        assert_eq!(other(&opened, &[("/alias".into(), inode("work"))]), None);
        fs::rename(at("work"), at("moved")).unwrap();
        std::os::unix::fs::symlink("/elsewhere", at("work")).unwrap();
        assert_eq!(other(&opened, &wanted), Some(Path::new("/work")));
        fs::remove_file(at("work")).unwrap();
        assert_eq!(other(&opened, &wanted), Some(Path::new("/work")));
    }
}
