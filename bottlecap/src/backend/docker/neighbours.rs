//! Other bottles that work where this one does.
//!
//! The engine looks its binds up by name, after they were checked. Whoever can write in the directory could have put a link
//! to another place of the host there meanwhile: another bottle that works there is not to be around.

use std::path::Path;

use crate::fault::Fault;
use crate::manifest::Name;
use crate::run::Checked;
use crate::state::Record;
use crate::workdir::{Place, shown};

/// Refuses what another bottle that runs could change. `others` are the bottles of this host, and whether they run.
pub(super) fn refuse_shared(name: &Name, others: &[(Record, bool)], checked: &Checked) -> Result<(), Fault> {
    let running = others.iter().filter(|(record, running)| *running && record.name != name.as_str());
    let mounts: Vec<&Place> = checked.mounts.iter().map(|(place, _)| place).collect();
    for (record, _) in running {
        let Some(theirs) = record.workdir.as_deref() else { continue };
        if let Some(shared) = shared(theirs, &checked.workdir, &mounts) {
            return Err(Fault::refused(format!(
                "the bottle {} is at work in {}, and could change what the engine finds at {}",
                record.name,
                shown(theirs),
                shown(shared)
            ))
            .with_hint(
                "stop it, give each bottle a directory of its own (--cwd makes a clone), or use --backend sandbox",
            ));
        }
    }
    Ok(())
}

/// The place of ours that a bottle which works in `theirs` has to do with.
fn shared<'a>(theirs: &Path, workdir: &'a Place, mounts: &[&'a Place]) -> Option<&'a Path> {
    // A directory that is gone by that name is nobody's to go through.
    let theirs = Place::look(theirs).ok()?;
    if workdir.lies_in(&theirs) || theirs.lies_in(workdir) {
        return Some(&workdir.path);
    }
    mounts.iter().find(|place| place.lies_in(&theirs)).map(|place| place.path.as_path())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_directory_where_another_bottle_works_is_not_bound() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for name in ["work/inner", "other", "read"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        std::os::unix::fs::symlink(at("work"), at("alias")).unwrap();
        let look = |name: &str| Place::look(&at(name)).unwrap();
        let (work, inner, read) = (look("work"), look("work/inner"), look("read"));
        assert_eq!(shared(&at("work"), &work, &[]), Some(work.path.as_path()), "the same");
        assert_eq!(shared(&at("alias"), &work, &[]), Some(work.path.as_path()), "by another name");
        assert_eq!(shared(&at("work"), &inner, &[]), Some(inner.path.as_path()), "an enclosing one");
        assert_eq!(shared(&at("work/inner"), &work, &[]), Some(work.path.as_path()), "an inner one");
        assert_eq!(shared(&at("work"), &look("other"), &[&inner]), Some(inner.path.as_path()), "a mount");
        assert_eq!(shared(&at("other"), &work, &[&read]), None);
        assert_eq!(shared(&at("gone"), &work, &[&read]), None);
    }
}
