//! Which directories of the host a bottle may be given.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::sys::mounts::Inode;

mod walk;
pub use walk::{Found, SetIds, WalkError, walk};

/// A file or directory of the host with all that it lies in, known by inode as well as by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its name, without links.
    pub path: PathBuf,
    /// Itself first, then what it lies in, up to the root.
    chain: Vec<Inode>,
}

impl Place {
    /// Looks at `path`.
    pub fn look(path: &Path) -> io::Result<Place> {
        let path = fs::canonicalize(path)?;
        let chain =
            path.ancestors().map(|path| Ok(Inode::from(&fs::metadata(path)?))).collect::<io::Result<_>>()?;
        Ok(Place { path, chain })
    }

    /// What it is, whatever its name.
    #[must_use]
    pub fn inode(&self) -> Inode {
        self.chain[0]
    }

    /// Whether `self` is `other` or lies in it.
    #[must_use]
    pub fn lies_in(&self, other: &Place) -> bool {
        self.path.starts_with(&other.path) || self.chain.contains(&other.inode())
    }
}

/// Something of the host that a bottle must not get.
#[derive(Debug, Clone)]
pub struct Guarded {
    /// What it is, for the reader.
    pub what: String,
    /// Where.
    pub place: Place,
    /// How far the guard reaches.
    pub reach: Reach,
    /// What an agent could do with it that it must not.
    pub harm: Harm,
}

/// What an agent could do with what is guarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// Reading is enough.
    Read,
    /// It would have to write.
    Write,
}

/// How far a guard reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// A directory may lie in it, but not be it or contain it.
    Itself,
    /// Nor may a directory lie in it.
    Everything,
}

/// Why a directory is not given to a bottle.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A part of the system.
    #[error("{} belongs to the system ({root})", shown(.path))]
    System {
        /// The directory.
        path: PathBuf,
        /// The part.
        root: &'static str,
    },
    /// It is, or would show, something guarded.
    #[error("{} {relation} {what} ({})", shown(.path), shown(.guarded))]
    Guarded {
        /// The directory.
        path: PathBuf,
        /// How they lie to each other.
        relation: &'static str,
        /// What is guarded.
        what: String,
        /// Where it is.
        guarded: PathBuf,
    },
    /// Another file system is mounted in it.
    #[error("another file system is mounted below {}, at {}", shown(.path), shown(.mounted))]
    Mounted {
        /// The directory.
        path: PathBuf,
        /// Where.
        mounted: PathBuf,
    },
}

impl Refusal {
    /// What to do.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Refusal::System { .. } | Refusal::Guarded { .. } => {
                "give the bottle a project directory of its own, and keep its manifest, routes and secrets outside of it"
            }
            Refusal::Mounted { .. } => {
                "unmount it, or give the bottle a directory without other mounts in it"
            }
        }
    }
}

/// Directories of the system, with all that is in them.
const SYSTEM: [&str; 13] = [
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run", "/sbin", "/sys",
    "/usr",
];
/// Directories that many share: what lies in them may be given, they themselves not.
const COMMON: [&str; 9] = ["/", "/home", "/media", "/mnt", "/opt", "/srv", "/tmp", "/var", "/var/tmp"];

/// Whether `place` may be given to a bottle, `guarded` and the mount points of the host being what they are.
pub fn check(place: &Place, guarded: &[Guarded], mounted: &[PathBuf]) -> Result<(), Refusal> {
    let path = || place.path.clone();
    if let Some(root) = system_part(&place.path) {
        return Err(Refusal::System { path: path(), root });
    }
    for guard in guarded {
        let relation = if place.inode() == guard.place.inode() {
            "is"
        } else if guard.place.lies_in(place) {
            "contains"
        } else if guard.reach == Reach::Everything && place.lies_in(&guard.place) {
            "lies in"
        } else {
            continue;
        };
        let (what, guarded) = (guard.what.clone(), guard.place.path.clone());
        return Err(Refusal::Guarded { path: path(), relation, what, guarded });
    }
    match mounted.iter().find(|point| point.starts_with(&place.path) && **point != place.path) {
        Some(mounted) => Err(Refusal::Mounted { path: path(), mounted: mounted.clone() }),
        None => Ok(()),
    }
}

fn system_part(path: &Path) -> Option<&'static str> {
    let common = COMMON.into_iter().find(|root| path == Path::new(root));
    let system = || SYSTEM.into_iter().find(|root| path.starts_with(root));
    let var = || (path.starts_with("/var") && !path.starts_with("/var/tmp")).then_some("/var");
    common.or_else(system).or_else(var)
}

/// The mount points of this process, from the text of /proc/self/mountinfo.
#[must_use]
pub fn mount_points(mountinfo: &str) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .collect()
}

/// Undoes the octal escapes of mountinfo.
fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                text.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                text.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    text.push_str(rest);
    text
}

/// `path` as it may be printed: an agent may have named it.
#[must_use]
pub fn shown(path: &Path) -> String {
    proposal::escaped(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &str, chain: &[u64]) -> Place {
        Place {
            path: path.into(),
            chain: chain.iter().map(|inode| Inode { device: 1, inode: *inode }).collect(),
        }
    }

    fn guard(what: &str, place: Place, reach: Reach) -> Guarded {
        Guarded { what: what.into(), place, reach, harm: Harm::Read }
    }

    fn verdict(place: &Place, guarded: &[Guarded], mounted: &[PathBuf]) -> String {
        check(place, guarded, mounted).map_or_else(|refusal| refusal.to_string(), |()| "given".into())
    }

    #[test]
    fn a_project_below_the_home_is_given_and_the_home_is_not() {
        let home = [guard("the home directory", place("/home/me", &[20, 10, 2]), Reach::Itself)];
        assert_eq!(verdict(&place("/home/me/web", &[30, 20, 10, 2]), &home, &[]), "given");
        assert_eq!(
            verdict(&place("/home/me", &[20, 10, 2]), &home, &[]),
            "/home/me is the home directory (/home/me)"
        );
    }

    #[test]
    fn a_home_under_another_name_is_still_the_home() {
        let home = [guard("the home directory", place("/home/me", &[20, 10, 2]), Reach::Itself)];
        let alias = place("/data/alias", &[20, 5, 2]);
        assert_eq!(verdict(&alias, &home, &[]), "/data/alias is the home directory (/home/me)");
        let around = place("/data/all", &[10, 5, 2]);
        assert_eq!(verdict(&around, &home, &[]), "/data/all contains the home directory (/home/me)");
    }

    #[test]
    fn nothing_in_the_state_is_given() {
        let state = [guard("the state", place("/data/state", &[20, 10, 2]), Reach::Everything)];
        let inside = place("/data/state/bottles/a", &[40, 30, 20, 10, 2]);
        assert_eq!(verdict(&inside, &state, &[]), "/data/state/bottles/a lies in the state (/data/state)");
    }

    #[test]
    fn the_system_is_not_given() {
        for path in [
            "/",
            "/usr/src/x",
            "/etc",
            "/var/lib/x",
            "/var",
            "/run/user/0",
            "/tmp",
            "/var/tmp",
            "/home",
            "/proc/1",
        ] {
            assert!(matches!(check(&place(path, &[9, 2]), &[], &[]), Err(Refusal::System { .. })), "{path}");
        }
        for path in ["/tmp/x", "/var/tmp/x", "/srv/app", "/library"] {
            assert_eq!(check(&place(path, &[9, 2]), &[], &[]), Ok(()), "{path}");
        }
    }

    #[test]
    fn a_directory_with_a_mount_in_it_is_refused_and_one_that_is_a_mount_is_not() {
        let points =
            mount_points("22 1 8:1 / / rw - ext4 x rw\n30 22 0:5 / /src/my\\040web/cache rw - tmpfs x rw\n");
        let web = place("/src/my web", &[9, 2]);
        assert_eq!(
            verdict(&web, &[], &points),
            "another file system is mounted below /src/my web, at /src/my web/cache"
        );
        assert_eq!(check(&place("/src/my web/cache", &[10, 9, 2]), &[], &points), Ok(()));
    }

    #[test]
    fn a_path_does_not_speak_to_the_terminal() {
        let points = ["/src/web/\u{1b}[2J".into()];
        assert_eq!(
            verdict(&place("/src/web", &[9, 2]), &[], &points),
            r"another file system is mounted below /src/web, at /src/web/\u{1b}[2J"
        );
    }
}
