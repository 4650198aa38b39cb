//! Landlock: which files a process may touch, and that it neither looks into nor signals what is outside its domain.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, PathBeneath, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _,
    Scope,
};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::walls::{Access, Grant};

/// Asks for the version, instead of making a ruleset.
const VERSION: u32 = 1;
/// From this version on a file can be moved between directories that are both allowed, which git does.
const OLDEST_ABI: i32 = 2;
/// From this version on signals and abstract sockets stay within the domain.
pub(crate) const SCOPES_ABI: i32 = 6;

/// The version of Landlock that this kernel offers us, if it is one that we can use.
pub(crate) fn abi() -> Option<i32> {
    let none: *const libc::c_void = std::ptr::null();
    // SAFETY: with this flag the kernel reads no memory.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, VERSION) };
    i32::try_from(version).ok().filter(|version| *version >= OLDEST_ABI)
}

/// A domain that allows these files and nothing else; what the kernel is too old for is left out. What we may not reach ourselves, as
/// root in a hardened container may not enter the directories of others, is looked up as that uid.
pub(crate) fn ruleset(grants: &[Grant], uid: Option<u32>) -> io::Result<Option<OwnedFd>> {
    let find =
        |path: &Path| open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(io::Error::from);
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(ABI::V6)))
        .and_then(Ruleset::create)
        .map_err(io::Error::other)?;
    for grant in grants {
        let place = match find(&grant.path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                super::as_owner(uid, || find(&grant.path))
            }
            other => other,
        };
        let place = match place {
            Ok(place) => place,
            // What is not there, or what neither of us reaches, needs no permission.
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(error),
        };
        let is_directory =
            std::fs::File::from(place.try_clone()?).metadata()?.mode() & libc::S_IFMT == libc::S_IFDIR;
        let mut allowed = rights(grant.access);
        if !is_directory {
            allowed &= AccessFs::from_file(ABI::V5);
        }
        ruleset = ruleset.add_rule(PathBeneath::new(place.as_fd(), allowed)).map_err(io::Error::other)?;
    }
    Ok(ruleset.into())
}

/// From now on this process opens no file, and no program; what is open stays so. Old kernels do not know of it.
pub(crate) fn leave_files() -> io::Result<()> {
    let ruleset = Ruleset::default().handle_access(AccessFs::from_all(ABI::V5)).and_then(Ruleset::create);
    ruleset.and_then(landlock::RulesetCreated::restrict_self).map(drop).map_err(io::Error::other)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::EACCES))
}

fn rights(access: Access) -> BitFlags<AccessFs> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    match access {
        Access::Read => read,
        Access::Run => read | AccessFs::Execute,
        Access::Use => read | AccessFs::WriteFile | AccessFs::Truncate,
        Access::Own => {
            read | AccessFs::WriteFile
                | AccessFs::Truncate
                | AccessFs::Refer
                | AccessFs::MakeReg
                | AccessFs::MakeDir
                | AccessFs::MakeSym
                | AccessFs::MakeSock
                | AccessFs::MakeFifo
                | AccessFs::RemoveFile
                | AccessFs::RemoveDir
        }
    }
}
