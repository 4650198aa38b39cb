//! Which files a git may touch: its mirror, what every program needs, and what leads to upstream where it goes there.
//! The key of an upstream is for none of them.
//!
//! Landlock holds it to that, whatever a mistake in git or in a repository makes it try. Where the
//! kernel has no Landlock there is no fence, and a warning says so once.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Once;

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, PathBeneath, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _,
};
use repos::{Repo, Upstream};
use tracing::warn;

use crate::door::Keyring;
use crate::git::{GateDir, search_path};

/// The newest rights that are handled, where the kernel has them.
const NEWEST: ABI = ABI::V5;
const PROGRAMS: [&str; 7] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store"];
const CONFIGURATION: [&str; 13] = [
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/resolv.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/localtime",
    "/etc/ssl",
    "/etc/ca-certificates",
];
/// What is in `/proc` of processes outside is closed to a process in a domain by the kernel itself.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/proc"];

static WARNED: Once = Once::new();

#[derive(Debug, Clone, Copy)]
enum Right {
    Read,
    Run,
    Use,
    Own,
}

/// How far a git goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// No further than its mirror.
    Mirror,
    /// To what the hook of a push needs: also to upstream where it is the hook that pushes.
    Hook,
    /// To upstream.
    Upstream,
}

/// The fence around a git that works on a mirror; none where the kernel has no Landlock that git can live with.
pub(crate) fn around(
    repo: &Repo,
    mirror: &Path,
    reach: Reach,
    gate: &GateDir,
    keyring: &Keyring,
) -> io::Result<Option<OwnedFd>> {
    let mut places = common();
    places.push((Right::Own, mirror.to_owned()));
    match (reach, &repo.upstream) {
        (Reach::Mirror, _) => {}
        // The daemon speaks to it, and the key is its own.
        (Reach::Hook, Upstream::Ssh(_)) => places.push(hook(gate)),
        (Reach::Upstream, Upstream::Ssh(_)) => places.push((Right::Run, gate.ssh_program())),
        (Reach::Hook, Upstream::Https(_) | Upstream::File(_)) | (Reach::Upstream, _) => {
            places.extend(forwarding(repo, gate, keyring));
        }
    }
    fence(&places)
}

/// The fence around a git that goes no further than its mirror.
pub(crate) fn around_mirror(mirror: &Path) -> io::Result<Option<OwnedFd>> {
    let mut places = common();
    places.push((Right::Own, mirror.to_owned()));
    fence(&places)
}

fn fence(places: &[(Right, PathBuf)]) -> io::Result<Option<OwnedFd>> {
    let fence = build(places)?;
    if fence.is_none() {
        WARNED.call_once(|| {
            warn!("this kernel has no Landlock (5.19 or newer); git is not held to its mirror")
        });
    }
    Ok(fence)
}

fn common() -> Vec<(Right, PathBuf)> {
    let all = |right, paths: &[&str]| paths.iter().map(|p| (right, PathBuf::from(p))).collect::<Vec<_>>();
    let mut places =
        [all(Right::Run, &PROGRAMS), all(Right::Read, &CONFIGURATION), all(Right::Use, &DEVICES)].concat();
    let searched =
        std::env::split_paths(&search_path()).filter(|path| path.is_absolute()).collect::<Vec<_>>();
    places.extend(searched.into_iter().map(|path| (Right::Run, path)));
    places
}

/// A link to our own program, which is what the right goes to.
fn hook(gate: &GateDir) -> (Right, PathBuf) {
    (Right::Run, gate.hooks().join("pre-receive"))
}

/// What leads to upstream, and what the hook of a push needs.
fn forwarding(repo: &Repo, gate: &GateDir, keyring: &Keyring) -> Vec<(Right, PathBuf)> {
    let mut places = vec![(Right::Read, gate.path().to_owned()), hook(gate)];
    match &repo.upstream {
        Upstream::Ssh(_) => {}
        Upstream::Https(_) => places.extend(keyring.roots.clone().map(|roots| (Right::Read, roots))),
        Upstream::File(path) => places.push((Right::Own, path.clone())),
    }
    places
}

fn build(places: &[(Right, PathBuf)]) -> io::Result<Option<OwnedFd>> {
    // Without this right git could not move what it received out of the quarantine.
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let Ok(ruleset) = ruleset.handle_access(AccessFs::Refer) else {
        return Ok(None);
    };
    let ruleset =
        ruleset.set_compatibility(CompatLevel::BestEffort).handle_access(AccessFs::from_all(NEWEST));
    let mut ruleset = ruleset.and_then(Ruleset::create).map_err(io::Error::other)?;
    for (right, path) in places {
        let place = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path);
        // What is not there, or out of our own reach, needs no right.
        let Ok(place) = place else { continue };
        let is_file = !place.metadata()?.is_dir();
        let rights = rights(*right) & if is_file { AccessFs::from_file(NEWEST) } else { BitFlags::all() };
        ruleset = ruleset.add_rule(PathBeneath::new(place.as_fd(), rights)).map_err(io::Error::other)?;
    }
    Ok(ruleset.into())
}

fn rights(right: Right) -> BitFlags<AccessFs> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::WriteFile | AccessFs::Truncate;
    match right {
        Right::Read => read,
        Right::Run => read | AccessFs::Execute,
        Right::Use => read | write | AccessFs::IoctlDev,
        Right::Own => {
            let names = AccessFs::MakeReg | AccessFs::MakeDir | AccessFs::MakeSym | AccessFs::Refer;
            read | write | names | AccessFs::RemoveFile | AccessFs::RemoveDir
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::sync::Arc;

    use super::*;

    #[test]
    fn no_git_can_read_the_key_of_upstream() {
        let dir = tempfile::tempdir().expect("a directory");
        let (gate, identity) = (GateDir::new(dir.path().join("gate")), dir.path().join("identity"));
        let mirror = dir.path().join("web.git");
        std::fs::create_dir_all(&mirror).expect("a directory");
        for file in [&identity, &mirror.join("HEAD")] {
            std::fs::write(file, "text").expect("written");
        }
        let text = format!(
            "repos:\n  - {{name: web, upstream: 'ssh://git@h/p', identity: {}, host_key: 'ssh-ed25519 \
             AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'}}\n",
            identity.display()
        );
        let repos = repos::Repos::parse("repos.yaml", &text, repos::Allow::SshUpstream).expect("a good file");
        let repo = repos.iter().next().expect("a repository");
        let keyring = Keyring { secrets_dir: dir.path().to_owned(), handed: Arc::default(), roots: None };
        let reads = |reach: Option<Reach>, file: &Path| {
            let mut command = Command::new("cat");
            command.arg(file).stdout(Stdio::null()).stderr(Stdio::null());
            if let Some(reach) = reach {
                let fence = around(repo, &mirror, reach, &gate, &keyring).expect("a fence");
                crate::sys::confine(&mut command, fence.expect("this test needs Landlock"));
            }
            command.status().expect("cat runs").success()
        };
        assert!(reads(None, &identity), "the control: without a fence it can");
        for reach in [Reach::Upstream, Reach::Hook, Reach::Mirror] {
            assert!(reads(Some(reach), &mirror.join("HEAD")), "{reach:?}");
            assert!(!reads(Some(reach), &identity), "{reach:?}");
        }
    }
}
