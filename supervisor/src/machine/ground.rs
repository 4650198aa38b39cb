//! Mounts, modules, clock and disk: what has to be there before the bundle, and is taken away after it.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::modules::{Modules, USUAL};
use super::{MachineError, say, step};
use crate::sys::{self, machine as kernel};

/// How long a start waits for unpredictable random numbers.
pub(super) const ENTROPY_PATIENCE: Duration = Duration::from_secs(10);
/// How long a start waits for the data disk to appear.
const DISK_PATIENCE: Duration = Duration::from_secs(10);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long processes have to end by themselves before SIGKILL.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// Seconds from a panic of the kernel to its next start.
const PANIC_SECONDS: &str = "1";
/// A clock before this time (2026-01-01) was never set.
const CLOCK_FLOOR: Duration = Duration::from_secs(1_767_225_600);

/// The PID namespace that a kernel starts with has this number on every Linux.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";
/// Where the data disk is.
const DATA: &str = "/data";
/// What of it is seen where.
const BINDS: [(&str, &str); 2] = [("/data/state", "/var/lib/sidecars"), ("/data/git", "/git")];

const HIDDEN: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

fn directory(path: &str) -> Result<(), MachineError> {
    step(DirBuilder::new().recursive(true).mode(0o755).create(path), || format!("make {path}"))
}

fn attach(kind: &str, on: &str, flags: MsFlags, options: Option<&str>) -> Result<(), MachineError> {
    directory(on)?;
    step(mount(Some(kind), on, Some(kind), flags, options), || format!("mount {kind} on {on}"))
}

/// proc, sys, dev and the rest, as daemons expect them.
pub(super) fn mount_kernel_views() -> Result<(), MachineError> {
    attach("proc", "/proc", HIDDEN, None)?;
    // Before anything else is touched: a container without /proc is not ours to take over.
    let namespace = step(fs::read_link("/proc/self/ns/pid"), || "look at our PID namespace".to_owned())?;
    if namespace != Path::new(FIRST_PID_NAMESPACE) {
        return Err(MachineError::NotAKernel);
    }
    attach("sysfs", "/sys", HIDDEN, None)?;
    attach("devtmpfs", "/dev", MsFlags::MS_NOSUID, Some("mode=0755"))?;
    attach("devpts", "/dev/pts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, Some("mode=0620,ptmxmode=0666"))?;
    attach("tmpfs", "/dev/shm", HIDDEN, Some("mode=1777,size=16m"))?;
    let secrets = take_files(Path::new("/run/secrets"));
    attach("tmpfs", "/run", HIDDEN, Some("mode=0755,size=32m"))?;
    attach("tmpfs", "/tmp", HIDDEN, Some("mode=1777,size=64m"))?;
    attach("cgroup2", "/sys/fs/cgroup", HIDDEN, None)?;
    directory("/run/secrets")?;
    for file in secrets {
        let path = Path::new("/run/secrets").join(&file.name);
        path.parent().and_then(Path::to_str).map_or(Ok(()), directory)?;
        step(file.put(&path), || format!("keep {}", path.display()))?;
    }
    Ok(())
}

/// A file on its way from the start image to memory.
struct Taken {
    name: PathBuf,
    bytes: Vec<u8>,
    mode: u32,
    owner: (u32, u32),
}

impl Taken {
    fn put(mut self, path: &Path) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        io::Write::write_all(&mut file, &self.bytes)?;
        sys::wipe(&mut self.bytes);
        chown(path, Some(self.owner.0), Some(self.owner.1))?;
        fs::set_permissions(path, Permissions::from_mode(self.mode & 0o777))
    }
}

/// The plain files of a directory of the start image, and of the directories of the daemons in it. The image loses them.
fn take_files(directory: &Path) -> Vec<Taken> {
    let mut taken = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let name = PathBuf::from(entry.file_name());
            let below = take_files(&entry.path()).into_iter();
            taken.extend(below.map(|file| Taken { name: name.join(&file.name), ..file }));
            continue;
        }
        let (Ok(found), Ok(bytes)) = (entry.metadata(), fs::read(entry.path())) else { continue };
        let owner = (found.uid(), found.gid());
        taken.push(Taken { name: entry.file_name().into(), bytes, mode: found.mode(), owner });
        let _ = fs::remove_file(entry.path());
    }
    taken
}

/// A crash of ours is a panic of the kernel, and a panic must not be the end. `panic=` on the command line says otherwise.
pub(super) fn start_again_after_a_panic(chosen: bool) {
    let values = [("panic", PANIC_SECONDS), ("panic_on_oops", "1")];
    for (name, value) in values.into_iter().filter(|(name, _)| !(chosen && *name == "panic")) {
        if let Err(error) = fs::write(Path::new("/proc/sys/kernel").join(name), value) {
            say(&format!("warning: cannot set kernel.{name}: {error}"));
        }
    }
}

/// Loads the usual modules and these, with what they need.
pub(super) fn load_modules(further: &[String]) -> Result<(), MachineError> {
    let release =
        step(fs::read_to_string("/proc/sys/kernel/osrelease"), || "read the kernel's release".to_owned())?;
    let directory = Path::new("/lib/modules").join(release.trim());
    // A kernel that has everything built in comes without the file.
    let modules = Modules::parse(&fs::read_to_string(directory.join("modules.dep")).unwrap_or_default());
    for name in further {
        if modules.files(name).is_empty() {
            say(&format!("warning: this kernel has no module {name}"));
        }
    }
    for name in USUAL.into_iter().chain(further.iter().map(String::as_str)) {
        for file in modules.files(name) {
            step(kernel::load_module(&directory.join(file)), || format!("load {file}"))?;
        }
    }
    Ok(())
}

/// The power buttons, each of which becomes a signal to stop.
pub(super) fn power_buttons() -> Vec<fs::File> {
    let mut open = Vec::new();
    for entry in fs::read_dir("/sys/class/input").into_iter().flatten().flatten() {
        let name = fs::read_to_string(entry.path().join("device/name")).unwrap_or_default();
        if name.trim() == "Power Button" && entry.file_name().to_string_lossy().starts_with("event") {
            let device = Path::new("/dev/input").join(entry.file_name());
            match kernel::watch_power_button(&device) {
                Ok(file) => open.push(file),
                Err(error) => say(&format!("warning: cannot watch the power button: {error}")),
            }
        }
    }
    open
}

/// The time that grants and certificates are checked by.
pub(super) fn set_clock() {
    let set = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|now| now >= CLOCK_FLOOR);
    if !set() {
        if let Err(error) = kernel::clock_from_hardware() {
            say(&format!("warning: cannot read the clock of the hardware: {error}"));
        }
        if !set() {
            say("warning: the clock is wrong: certificates and grants will be taken for not yet valid");
        }
    }
}

/// Mounts the data disk, and what of it is seen elsewhere.
pub(super) fn mount_data(device: &Path) -> Result<(), MachineError> {
    let until = Instant::now() + DISK_PATIENCE;
    while !device.exists() && Instant::now() < until {
        kernel::pause(LOOK_EVERY);
    }
    directory(DATA)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    step(mount(Some(device), DATA, Some("ext4"), flags, None::<&str>), || {
        format!("mount the ext4 file system of {} on {DATA}", device.display())
    })?;
    for (source, target) in BINDS {
        directory(source)?;
        directory(target)?;
        step(mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>), || {
            format!("show {source} as {target}")
        })?;
    }
    let boots = count_boot(&Path::new(DATA).join("boots"))?;
    say(&format!("boot {boots} on {}", device.display()));
    Ok(())
}

/// Counts the starts of the machine on its disk.
fn count_boot(path: &Path) -> Result<u64, MachineError> {
    let boots = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0_u64) + 1;
    let beside = path.with_extension("new");
    let write = || {
        let mut file = fs::File::create(&beside)?;
        io::Write::write_all(&mut file, format!("{boots}\n").as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    step(write(), || format!("write {}", path.display()))?;
    Ok(boots)
}

/// From here on nothing is written outside of the disk and memory, and no module is loaded.
pub(super) fn close_the_ground() -> Result<(), MachineError> {
    let none = None::<&str>;
    step(mount(none, "/", none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none), || {
        "make the root file system read-only".to_owned()
    })?;
    let path = "/proc/sys/kernel/modules_disabled";
    // A kernel without modules has no such file.
    if Path::new(path).exists() {
        step(fs::write(path, "1"), || "close the kernel to modules".to_owned())?;
    }
    Ok(())
}

/// Ends every process but this one.
pub(super) fn end_processes() {
    for (signal, patience) in [(libc::SIGTERM, END_PATIENCE), (libc::SIGKILL, END_PATIENCE)] {
        kernel::signal_everyone(signal);
        let until = Instant::now() + patience;
        while !sys::children().is_empty() && Instant::now() < until {
            while let Ok(Some(pid)) = sys::peek_ended_child() {
                let _ = sys::reap(pid);
            }
            kernel::pause(LOOK_EVERY);
        }
    }
}

/// Takes the data disk away; what is still in use is made read-only, so that nothing of it is lost.
pub(super) fn unmount_data() {
    let none = None::<&str>;
    for target in BINDS.iter().rev().map(|(_, target)| *target).chain([DATA]) {
        match umount2(target, MntFlags::empty()) {
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(error) => {
                say(&format!("warning: cannot unmount {target}: {error}"));
                let _ = mount(none, target, none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boots_are_counted_on_the_disk() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("boots");
        let counted = [1, 2, 3].map(|_| count_boot(&path).unwrap());
        assert_eq!(counted, [1, 2, 3]);
    }

    #[test]
    fn what_is_taken_is_gone_and_put_as_it_was() {
        let home = tempfile::tempdir().unwrap();
        let (from, to) = (home.path().join("from"), home.path().join("to"));
        fs::create_dir_all(from.join("egress")).unwrap();
        let key = from.join("egress/KEY");
        fs::write(&key, "hunter2").unwrap();
        fs::set_permissions(&key, Permissions::from_mode(0o400)).unwrap();
        for file in take_files(&from) {
            assert_eq!(file.name, Path::new("egress/KEY"));
            file.put(&to).unwrap();
        }
        assert!(!key.exists());
        assert_eq!(fs::read_to_string(&to).unwrap(), "hunter2");
        assert_eq!(fs::metadata(&to).unwrap().mode() & 0o777, 0o400);
    }
}
