//! A virtual machine of a real Debian kernel, with the supervisor as its init.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::temp_root::{EGRESS, GIT_GATE};
use crate::{Process, Run, target_directory, workspace_root};

/// A start image: files in the form that the kernel unpacks (cpio, "newc").
#[derive(Debug, Default)]
pub struct StartImage {
    bytes: Vec<u8>,
    entries: u32,
    directories: std::collections::BTreeSet<String>,
}

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

impl StartImage {
    fn entry(&mut self, path: &str, kind_and_mode: u32, owner: u32, data: &[u8]) {
        let name = path.trim_start_matches('/');
        self.entries += 1;
        let fields = [
            self.entries,
            kind_and_mode,
            owner,
            owner,
            1,
            0,
            u32::try_from(data.len()).expect("a file of a start image is small"),
            0,
            0,
            0,
            0,
            u32::try_from(name.len() + 1).expect("a path is short"),
            0,
        ];
        let mut head = String::from("070701");
        for field in fields {
            let _ = write!(head, "{field:08x}");
        }
        self.bytes.extend(head.as_bytes());
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn parents(&mut self, path: &str) {
        let parents: Vec<_> = Path::new(path).ancestors().skip(1).map(Path::to_path_buf).collect();
        for parent in parents.iter().rev().map(|parent| parent.to_string_lossy()) {
            if parent != "/" && self.directories.insert(parent.clone().into_owned()) {
                self.entry(&parent, DIRECTORY | 0o755, 0, &[]);
            }
        }
    }

    /// An empty directory.
    pub fn directory(&mut self, path: &str, mode: u32, owner: u32) -> &mut Self {
        self.parents(path);
        if self.directories.insert(path.to_owned()) {
            self.entry(path, DIRECTORY | mode, owner, &[]);
        }
        self
    }

    /// A file.
    pub fn file(&mut self, path: &str, mode: u32, owner: u32, data: impl AsRef<[u8]>) -> &mut Self {
        self.parents(path);
        self.entry(path, FILE | mode, owner, data.as_ref());
        self
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, target: &str) -> &mut Self {
        self.parents(path);
        self.entry(path, LINK | 0o777, 0, target.as_bytes());
        self
    }

    /// A program of this machine in its place, with the libraries that it is linked to.
    pub fn program(&mut self, path: &str) -> Result<&mut Self> {
        self.file(path, 0o755, 0, fs::read(path)?);
        for line in Run::bare("ldd").args([path]).ok()?.lines() {
            let library = line.split_whitespace().find(|word| word.starts_with('/'));
            let Some(library) = library else { continue };
            // Under the name that the program asks for.
            if self.directories.insert(library.to_owned()) {
                self.file(library, 0o755, 0, fs::read(library)?);
            }
        }
        Ok(self)
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, 0, &[]);
        self.bytes
    }
}

/// A kernel that Debian made, unpacked and not installed.
#[derive(Debug)]
pub struct Kernel {
    root: PathBuf,
    release: String,
}

impl Kernel {
    /// The cloud kernel of this Debian, downloaded once for all tests.
    pub fn debian() -> Result<Self> {
        let root = target_directory().join("vm-kernel");
        if !root.join("complete").exists() {
            unpack(&root).context("cannot get a kernel from Debian's archive")?;
        }
        let release = fs::read_to_string(root.join("complete"))?;
        Ok(Self { root, release })
    }

    fn image(&self) -> PathBuf {
        self.root.join(format!("boot/vmlinuz-{}", self.release))
    }

    /// Puts these modules and what they need into the start image.
    pub fn add_modules(&self, image: &mut StartImage, names: &[&str]) -> Result<()> {
        let base = format!("lib/modules/{}", self.release);
        let list = fs::read_to_string(self.root.join(&base).join("modules.dep"))?;
        image.file(&format!("/{base}/modules.dep"), 0o644, 0, &list);
        let mut files = std::collections::BTreeSet::new();
        for line in list.lines() {
            let (file, needed) = line.split_once(':').unwrap_or((line, ""));
            let name = file.rsplit('/').next().unwrap_or(file).replace('-', "_");
            if names.iter().any(|wanted| name == format!("{wanted}.ko")) {
                files.extend(std::iter::once(file).chain(needed.split_whitespace()));
            }
        }
        for file in files {
            image.file(&format!("/{base}/{file}"), 0o644, 0, fs::read(self.root.join(&base).join(file))?);
        }
        Ok(())
    }
}

fn unpack(root: &Path) -> Result<()> {
    let scratch = tempfile::Builder::new().prefix("bc-kernel-").tempdir()?;
    // The package that is meant is a name for the newest one.
    let depends = Run::new("apt-cache").args(["depends", "--important", "linux-image-cloud-amd64"]).ok()?;
    let package = depends
        .split_whitespace()
        .find(|word| word.starts_with("linux-image-") && *word != "linux-image-cloud-amd64")
        .context("apt knows no cloud kernel")?
        .to_owned();
    Run::new("apt-get").args(["download", "-qq", &package]).within(scratch.path()).ok()?;
    let archive = fs::read_dir(scratch.path())?.flatten().next().context("apt brought nothing")?.path();
    fs::create_dir_all(root)?;
    Run::new("dpkg-deb").args([Path::new("-x"), &archive, root]).ok()?;
    let release = package.trim_start_matches("linux-image-").to_owned();
    Run::new("depmod").args(["-b"]).args([root]).args([&release]).ok()?;
    fs::write(root.join("complete"), release)?;
    Ok(())
}

/// A machine that is about to start.
#[derive(Debug)]
pub struct VmBuilder {
    directory: TempDir,
    kernel: Kernel,
    /// What its memory holds at the start.
    pub image: StartImage,
    forwards: Vec<(u16, u16)>,
    outside: Vec<(Ipv4Addr, u16, PathBuf)>,
    words: Vec<String>,
}

/// The address of every machine: each has a network of its own.
pub const VM_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

impl VmBuilder {
    /// A machine with the bundle and git, that can reach nothing.
    pub fn new() -> Result<Self> {
        let programs = static_programs()?;
        let directory = tempfile::Builder::new().prefix("bc-vm-").tempdir()?;
        let kernel = Kernel::debian()?;
        let mut image = StartImage::default();
        kernel.add_modules(
            &mut image,
            &["virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "button", "evdev"],
        )?;
        for program in ["supervisor", "egress", "git-gate", "supervise"] {
            let stripped = directory.path().join(program);
            Run::new("strip").args([Path::new("-o"), &stripped, &programs.join(program)]).ok()?;
            image.file(&format!("/usr/local/bin/{program}"), 0o755, 0, fs::read(&stripped)?);
        }
        image.link("/init", "/usr/local/bin/supervisor").program("/usr/bin/git")?;
        for name in ["git", "git-upload-pack", "git-receive-pack", "git-upload-archive"] {
            image.link(&format!("/usr/lib/git-core/{name}"), "/usr/bin/git");
        }
        image
            .file("/etc/passwd", 0o644, 0, passwd())
            .file("/etc/group", 0o644, 0, "root:x:0:\n")
            .file("/etc/nsswitch.conf", 0o644, 0, "passwd: files\nhosts: files dns\n")
            .directory("/git-gate/creds", 0o700, GIT_GATE);
        Ok(Self { directory, kernel, image, forwards: Vec::new(), outside: Vec::new(), words: Vec::new() })
    }

    /// A secret that egress alone may open.
    pub fn secret(&mut self, name: &str, value: &str) -> &mut Self {
        self.image.file(&format!("/run/secrets/{name}"), 0o400, EGRESS, value);
        self
    }

    /// The key of git-gate for one repository.
    pub fn git_key(&mut self, name: &str, key: &str) -> &mut Self {
        self.image.file(&format!("/git-gate/creds/{name}.key"), 0o600, GIT_GATE, key);
        self
    }

    /// A word on the kernel's command line.
    pub fn word(&mut self, word: &str) -> &mut Self {
        self.words.push(word.to_owned());
        self
    }

    /// A port of the machine, as one of this host's loopback.
    pub fn forward(&mut self, port: u16) -> Result<SocketAddr> {
        // Chosen by the kernel and given free again: qemu 7.2 cannot say which one it was given.
        let address = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        self.forwards.push((address.port(), port));
        Ok(address)
    }

    /// An address that the machine can reach: what listens there on this host.
    pub fn outside(&mut self, address: Ipv4Addr, port: u16, listener: SocketAddr) -> Result<&mut Self> {
        let script = self.directory.path().join(format!("to-{address}-{port}"));
        let (host, real) = (listener.ip(), listener.port());
        fs::write(
            &script,
            format!(
                "#!/bin/bash\nexec 3<>/dev/tcp/{host}/{real} || exit\ncat <&3 & reader=$!\ncat >&3\nkill $reader\n"
            ),
        )?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        self.outside.push((address, port, script));
        Ok(self)
    }

    /// Starts it; the first line of the console may be seconds away.
    pub fn start(self) -> Result<Vm> {
        let at = |name: &str| self.directory.path().join(name);
        fs::write(at("initrd"), self.image.finish())?;
        let disk = fs::File::create(at("disk"))?;
        disk.set_len(64 << 20)?;
        Run::bare("/usr/sbin/mkfs.ext4").args(["-q", "-F"]).args([at("disk")]).ok()?;

        let mut network = String::from("user,id=n0,restrict=on");
        for (host, guest) in &self.forwards {
            let _ = write!(network, ",hostfwd=tcp:127.0.0.1:{host}-{VM_ADDRESS}:{guest}");
        }
        for (address, port, script) in &self.outside {
            let _ = write!(network, ",guestfwd=tcp:{address}:{port}-cmd:{}", script.display());
        }
        let line = format!(
            "console=ttyS0 quiet unknown_nmi_panic bottlecap.eth0={VM_ADDRESS}/24 bottlecap.data=/dev/vda bottlecap.hostname=bottle {}",
            self.words.join(" ")
        );
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-machine", "q35,accel=tcg", "-cpu", "max", "-m", "768", "-smp", "1"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"])
            .arg("-kernel")
            .arg(self.kernel.image())
            .arg("-initrd")
            .arg(at("initrd"))
            .args(["-append", &line])
            .args(["-netdev", &network, "-device", "virtio-net-pci,netdev=n0"])
            .args(["-device", "virtio-rng-pci", "-drive"])
            .arg(format!("if=virtio,format=raw,file={}", at("disk").display()))
            .arg("-monitor")
            .arg(format!("unix:{},server=on,wait=off", at("monitor").display()));
        Ok(Vm { process: Process::start(&mut command)?, directory: self.directory })
    }
}

fn passwd() -> String {
    let mut text = String::from("root:x:0:0::/:/nonexistent\n");
    for (name, id) in [("egress", EGRESS), ("git-gate", GIT_GATE), ("supervise", crate::temp_root::SUPERVISE)]
    {
        let _ = writeln!(text, "{name}:x:{id}:{id}::/nonexistent:/nonexistent");
    }
    text
}

/// The programs without a C library of their own: those that the image of the tests is made of.
fn static_programs() -> Result<PathBuf> {
    let printed = Run::new("bash")
        .args(["scripts/binaries.sh", "supervisor", "egress", "git-gate", "supervise"])
        .env("PROFILE", "dev")
        .env("CARGO_TARGET_DIR", target_directory())
        .within(workspace_root())
        .ok()?;
    Ok(printed.lines().last().context("no directory of programs")?.into())
}

/// A running machine; switched off when dropped.
#[derive(Debug)]
pub struct Vm {
    /// qemu; its standard output is the console.
    pub process: Process,
    directory: TempDir,
}

impl Vm {
    /// Gives qemu's monitor a command.
    pub fn monitor(&self, command: &str) -> Result<()> {
        let mut stream = UnixStream::connect(self.directory.path().join("monitor"))?;
        writeln!(stream, "{command}")?;
        // Its prompt comes back when it was carried out.
        stream.set_read_timeout(Some(crate::PATIENCE))?;
        let mut seen = Vec::new();
        let mut piece = [0; 512];
        while seen.windows(6).filter(|part| part == b"(qemu)").count() < 2 {
            let count = std::io::Read::read(&mut stream, &mut piece)?;
            if count == 0 {
                break;
            }
            seen.extend_from_slice(&piece[..count]);
        }
        Ok(())
    }

    /// The disk of the machine, once that is off.
    pub fn disk(&self) -> PathBuf {
        self.directory.path().join("disk")
    }
}
