//! Carries out the steps of a layout.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Attempt, Setback};
use crate::layout::{Access, OURS, Source, Step, empty_file};
use crate::sys::descriptors::{open_beneath, open_path};
use crate::sys::mounts::{Attributes, Inode, attach, clone_tree, clone_tree_of, restrict, restrict_one};

/// Where the new root is put together, before it becomes the root.
const SITE: &str = "/tmp";
const ROOT_OPTIONS: &str = "mode=0755,size=32m,nr_inodes=20k";
const TERMINAL_OPTIONS: &str = "newinstance,ptmxmode=0666,mode=0620";
const COPY_MAX: u64 = 8 * 1024 * 1024;

/// Parts of /proc that tell or change something of the host: readable, or hidden.
const PROC_READ_ONLY: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];
const PROC_HIDDEN: [&str; 13] = [
    "acpi",
    "asound",
    "kallsyms",
    "kcore",
    "key-users",
    "keys",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
];

/// Builds the file system and moves into it.
pub(super) fn build(steps: &[Step], handed: Vec<OwnedFd>) -> Result<(), Setback> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)
        .to("take the mounts out of the host's propagation")?;
    // What is taken from the host is taken before the new root covers a part of it.
    let taken = steps.iter().map(Taken::take).collect::<Result<Vec<_>, _>>()?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("bottle"), SITE, Some("tmpfs"), flags, Some(ROOT_OPTIONS)).to("mount a new root")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let site = Site { root: open_path(Path::new(SITE)).to("open the new root")?, handed };
    for (step, taken) in steps.iter().zip(taken) {
        site.carry_out(step, taken)?;
    }
    std::env::set_current_dir(SITE).to("enter the new root")?;
    nix::unistd::pivot_root(".", ".").to("change the root")?;
    umount2(".", MntFlags::MNT_DETACH).to("let go of the host's root")?;
    std::env::set_current_dir("/").to("enter the new root")?;
    restrict_one(Path::new("/"), Attributes::SEALED).to("seal the root")
}

/// What a step needs of the host.
enum Taken {
    Nothing,
    Tree(OwnedFd),
    Text(Vec<u8>),
}

impl Taken {
    fn take(step: &Step) -> Result<Taken, Setback> {
        match step {
            Step::Bind { from: Source::Host(path, inode), access, .. } => {
                let tree = clone_tree(path).to(format!("take {}", path.display()))?;
                same(&tree, *inode).to(format!("find {} as it was", path.display()))?;
                restrict(tree.as_fd(), attributes(*access)).to(format!("restrict {}", path.display()))?;
                Ok(Taken::Tree(tree))
            }
            Step::Copy { from, .. } => Ok(read(from).map_or(Taken::Nothing, Taken::Text)),
            _ => Ok(Taken::Nothing),
        }
    }
}

fn same(tree: &OwnedFd, wanted: Option<Inode>) -> io::Result<()> {
    match wanted {
        Some(wanted) if Inode::of(tree)? != wanted => Err(io::Error::from_raw_os_error(libc::ESTALE)),
        Some(_) | None => Ok(()),
    }
}

/// The file, if this process may read it. What it may not read, the bottle does without.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(COPY_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn attributes(access: Access) -> Attributes {
    match access {
        Access::ReadOnly => Attributes::READ_ONLY,
        Access::Writable => Attributes::BASE,
        Access::Device => Attributes::DEVICE,
    }
}

/// The root that is being put together.
struct Site {
    root: OwnedFd,
    handed: Vec<OwnedFd>,
}

impl Site {
    fn carry_out(&self, step: &Step, taken: Taken) -> Result<(), Setback> {
        let attempt = format!("make {step}");
        match (step, taken) {
            (Step::Directory { path }, _) => make_directory(&here(path)).to(attempt),
            (Step::Symlink { path, target }, _) => make_link(&here(path), target).to(attempt),
            (Step::File { path, text }, _) => make_file(&here(path), text.as_bytes()).to(attempt),
            (Step::Bytes { path, base64 }, _) => {
                let bytes = STANDARD.decode(base64).map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
                bytes.and_then(|bytes: Vec<u8>| make_file(&here(path), &bytes)).to(attempt)
            }
            (Step::Copy { path, .. }, Taken::Text(text)) => make_file(&here(path), &text).to(attempt),
            (Step::Copy { .. }, _) => Ok(()),
            (Step::Memory { path, mebibytes, files, mode }, _) => {
                memory(&here(path), *mebibytes, *files, *mode).to(attempt)
            }
            (Step::Bind { path, access, .. }, Taken::Tree(tree)) => {
                self.bind(path, &tree, *access).to(attempt)
            }
            (Step::Bind { path, from, access }, _) => self.bind_found(path, from, *access).to(attempt),
            (Step::Processes, _) => self.processes(),
            (Step::Terminals, _) => terminals().to(attempt),
        }
    }

    fn bind_found(&self, path: &Path, from: &Source, access: Access) -> io::Result<()> {
        match from {
            Source::Handed(place) => {
                let tree =
                    self.handed.get(*place).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
                self.bind(path, tree, access)
            }
            Source::Itself { within } => {
                let found = self.find(within, path)?;
                let tree = clone_tree_of(found.as_fd())?;
                restrict(tree.as_fd(), attributes(access))?;
                attach(tree.as_fd(), found.as_fd())
            }
            Source::Nothing { within } => match self.find(within, path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
                Ok(found) => self.hide(&found),
            },
            Source::Host(..) => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }

    /// Attaches `tree`, on a fresh directory or file if nothing is there.
    fn bind(&self, path: &Path, tree: &OwnedFd, access: Access) -> io::Result<()> {
        let target = match self.open(path) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match access {
                    Access::Device => make_file(&here(path), b"")?,
                    Access::ReadOnly | Access::Writable => make_directory(&here(path))?,
                }
                self.open(path)?
            }
            Err(error) => return Err(error),
        };
        attach(tree.as_fd(), target.as_fd())
    }

    fn open(&self, path: &Path) -> io::Result<OwnedFd> {
        open_beneath(self.root.as_fd(), relative(path), libc::O_PATH)
    }

    /// What is at `path`, which lies in `within`; no link in it is followed.
    fn find(&self, within: &Path, path: &Path) -> io::Result<OwnedFd> {
        let inside = path.strip_prefix(within).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let directory = self.open(within)?;
        open_beneath(directory.as_fd(), inside, libc::O_PATH)
    }

    fn hide(&self, found: &OwnedFd) -> io::Result<()> {
        let nothing = clone_tree_of(self.open(&empty_file())?.as_fd())?;
        restrict(nothing.as_fd(), Attributes::READ_ONLY)?;
        attach(nothing.as_fd(), found.as_fd())
    }

    fn processes(&self) -> Result<(), Setback> {
        let proc = PathBuf::from("/proc");
        make_directory(&here(&proc)).to("make /proc")?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("proc"), &here(&proc), Some("proc"), flags, None::<&str>).to(crate::doctor::MOUNT_PROC)?;
        let nowhere = Path::new(OURS).join("nothing");
        make_directory(&here(&nowhere)).to("make an empty directory")?;
        for name in PROC_READ_ONLY {
            self.guard_proc(&proc.join(name), |found| {
                let tree = clone_tree_of(found.as_fd())?;
                restrict(tree.as_fd(), Attributes::READ_ONLY)?;
                attach(tree.as_fd(), found.as_fd())
            })?;
        }
        for name in PROC_HIDDEN {
            let path = proc.join(name);
            self.guard_proc(&path, |found| {
                if here(&path).is_dir() {
                    let nothing = clone_tree_of(self.open(&nowhere)?.as_fd())?;
                    restrict(nothing.as_fd(), Attributes::READ_ONLY)?;
                    attach(nothing.as_fd(), found.as_fd())
                } else {
                    self.hide(found)
                }
            })?;
        }
        Ok(())
    }

    fn guard_proc(&self, path: &Path, guard: impl Fn(&OwnedFd) -> io::Result<()>) -> Result<(), Setback> {
        match self.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            found => found.and_then(|found| guard(&found)).to(format!("guard {}", path.display())),
        }
    }
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn here(path: &Path) -> PathBuf {
    Path::new(SITE).join(relative(path))
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), make_directory)
}

fn make_link(path: &Path, target: &Path) -> io::Result<()> {
    make_parent(path)?;
    std::os::unix::fs::symlink(target, path)
}

fn make_file(path: &Path, text: &[u8]) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    make_parent(path)?;
    File::options().write(true).create(true).truncate(true).mode(0o644).open(path)?.write_all(text)
}

fn memory(path: &Path, mebibytes: u32, files: u32, mode: u32) -> io::Result<()> {
    make_directory(path)?;
    let options = format!("mode={mode:04o},size={mebibytes}m,nr_inodes={files}");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    Ok(mount(Some("bottle"), path, Some("tmpfs"), flags, Some(options.as_str()))?)
}

fn terminals() -> io::Result<()> {
    let path = here(Path::new("/dev/pts"));
    make_directory(&path)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    Ok(mount(Some("devpts"), &path, Some("devpts"), flags, Some(TERMINAL_OPTIONS))?)
}
