//! The daemons of a bottle, as seen from the host: their files are provided, they are started with the bottle's sockets,
//! and stopped when it ends.

mod identities;

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

pub use identities::Identities;

use crate::doctor::wire;
use crate::errand::finish;
use crate::fault::{Attempted, Fault};
use crate::plan::doors;
use crate::state::{self, Home};
use crate::sys::descriptors::duplicate_above;
use crate::sys::process::{self, ListeningImage, Setup, prepare};

/// The daemons' log in a bottle's state.
pub const LOG: &str = "daemons.log";
/// The user of egress when root starts the bundle.
const EGRESS_USER: u32 = 64101;
/// The user of git-gate when root starts the bundle.
const GIT_GATE_USER: u32 = 64102;
/// Roots for upstream, below the bundle's root.
pub(crate) const UPSTREAM_CA: &str = "etc/egress/upstream-ca.pem";
/// The same for git-gate, which takes them in place of the system's: those stand in it too.
pub(crate) const GIT_UPSTREAM_CA: &str = "etc/git-gate/upstream-ca.pem";
const SYSTEM_CA: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];
const DOCTOR_PATIENCE: Duration = Duration::from_secs(10);
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// The supervisor's own grace is 8 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
const LOG_TAIL: u64 = 4096;
/// So old a file is not being written any more.
const SETTLED: Duration = Duration::from_secs(1);
/// Numbers from here on are free for what a child gets at fixed numbers.
const HIGH: i32 = 128;

/// A value that is never shown and is wiped when dropped.
pub struct Secret(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// Takes the bytes over.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Secret {
        Secret(Zeroizing::new(bytes))
    }

    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// A secret for one daemon.
#[derive(Debug)]
pub struct Handed {
    /// The daemon.
    pub to: &'static str,
    /// What the daemon's configuration calls it.
    pub name: String,
    /// The value.
    pub secret: Secret,
}

/// What the daemons are given.
#[derive(Debug)]
pub struct Provisions {
    /// The text of routes.yaml.
    pub routes: String,
    /// The text of repos.yaml, and the keys that it names.
    pub identities: Identities,
    /// Secrets, each for the daemon that uses it.
    pub secrets: Vec<Handed>,
    /// More roots for upstream.
    pub upstream_ca: Option<PathBuf>,
    /// Where clients that ignore proxy variables are served, if they are.
    pub direct: Vec<SocketAddr>,
}

/// Where the daemons of one bottle have their things.
#[derive(Debug)]
pub struct Bundle {
    root: PathBuf,
    /// Where the daemons see `root`: elsewhere when they have users of their own, who cannot pass through the state.
    seen: PathBuf,
    run_dir: PathBuf,
    log: PathBuf,
    /// What the doctor's origins are known by.
    doctor: PathBuf,
    programs: PathBuf,
    as_root: bool,
}

impl Bundle {
    /// The bundle of the bottle at `home`, with the programs beside this one.
    pub fn new(home: &Home, run_dir: &Path) -> Result<Bundle, Fault> {
        let programs = programs()?;
        let as_root = nix::unistd::geteuid().is_root();
        Ok(Bundle {
            root: home.root(),
            seen: Bundle::seen_root(home, run_dir),
            run_dir: run_dir.to_path_buf(),
            log: home.path().join(LOG),
            doctor: home.doctor(),
            programs,
            as_root,
        })
    }

    /// Where the daemons of processes on this host see their tree.
    #[must_use]
    pub fn seen_root(home: &Home, run_dir: &Path) -> PathBuf {
        if nix::unistd::geteuid().is_root() { run_dir.with_extension("root") } else { home.root() }
    }

    /// Writes the daemons' configuration and makes the bottle's certificate authorities; the certificate of its own.
    pub fn provide(&self, provisions: &Provisions) -> Result<String, Fault> {
        let identities = &provisions.identities;
        self.directory("", None)?;
        let egress = self.directory("etc/egress", None)?;
        let git_gate = self.directory("etc/git-gate", None)?;
        self.directory("run/secrets", None)?;
        self.directory("git", self.user(GIT_GATE_USER))?;
        self.directory("git-gate/creds", None)?;
        self.directory("var/lib/sidecars/egress", self.user(EGRESS_USER))?;
        write_settled(&egress.join("routes.yaml"), &provisions.routes)?;
        write(&git_gate.join("repos.yaml"), identities.repos())?;
        // What an earlier bottle of that name was given.
        for path in [UPSTREAM_CA, GIT_UPSTREAM_CA].map(|path| self.root.join(path)) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).failing(|| format!("cannot remove {}", path.display()));
                }
                Ok(()) | Err(_) => {}
            }
        }
        let mut upstream = String::new();
        if let Some(path) = &provisions.upstream_ca {
            let roots = fs::read_to_string(path).refusing(|| format!("cannot read {}", path.display()))?;
            if !holds_a_root(&roots) {
                let message = format!("{} holds no PEM certificate that can be a root", path.display());
                return Err(Fault::refused(message).with_hint("`upstream_ca` in the manifest names it"));
            }
            upstream = format!("{}\n", roots.trim_end());
            let system = SYSTEM_CA.iter().find_map(|path| fs::read_to_string(path).ok());
            write(&self.root.join(GIT_UPSTREAM_CA), &both_roots(system.as_deref(), &roots))?;
        }
        state::own_directory(&self.run_dir, state::runtime_mode())?;
        if self.seen != self.root {
            state::own_directory(&self.seen, state::runtime_mode())?;
        }
        // Both at once.
        let (own, doctors) = std::thread::scope(|scope| {
            let doctors = scope.spawn(|| self.doctors_authority());
            (self.certificate_authority(), doctors.join())
        });
        match doctors {
            Ok(Ok(roots)) => upstream.push_str(&roots),
            // Only the doctor would miss it, and says so.
            Ok(Err(fault)) => tracing::debug!(%fault, "the doctor cannot look at this bottle while it runs"),
            Err(_) => {}
        }
        if !upstream.is_empty() {
            write(&self.root.join(UPSTREAM_CA), &upstream)?;
        }
        own
    }

    /// Makes the authority of the origins that the doctor has for a bottle that runs, which egress trusts for this host's loopback; its
    /// certificate.
    fn doctors_authority(&self) -> Result<String, Fault> {
        state::own_directory(&self.doctor, 0o700)?;
        let mut command = Command::new(self.programs.join(wire::PLAYER));
        command.arg("--prepare").arg("--origin-dir").arg(&self.doctor).env_clear();
        finish(command, Vec::new(), DOCTOR_PATIENCE)?.or_failed(wire::PLAYER)?;
        let path = self.doctor.join(wire::AUTHORITY);
        fs::read_to_string(&path).failing(|| format!("cannot read {}", path.display()))
    }

    fn user(&self, user: u32) -> Option<u32> {
        self.as_root.then_some(user)
    }

    fn directory(&self, name: &str, owner: Option<u32>) -> Result<PathBuf, Fault> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).failing(|| format!("cannot make {}", path.display()))?;
        state::give(&path, owner)?;
        Ok(path)
    }

    fn certificate_authority(&self) -> Result<String, Fault> {
        let directory = self.root.join("var/lib/sidecars/egress/ca");
        let mut command = Command::new(self.programs.join("egress"));
        command
            .args(["ca", "init", "--if-absent", "--ca-dir"])
            .arg(&directory)
            .env_clear()
            .stdin(Stdio::null());
        let output =
            command.output().failing(|| format!("cannot run {}", self.programs.join("egress").display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Fault::failed(format!("egress cannot make the certificate authority: {said}")));
        }
        for name in ["", "ca.pem", "ca-key.pem"] {
            state::give(&directory.join(name), self.user(EGRESS_USER))?;
        }
        let path = directory.join("ca.pem");
        fs::read_to_string(&path).failing(|| format!("cannot read {}", path.display()))
    }

    /// Starts the supervisor with `listeners`, and waits until its daemons are ready.
    pub fn start(&self, listeners: Vec<OwnedFd>, provisions: Provisions) -> Result<Supervisor, Fault> {
        let program = self.programs.join("supervisor");
        let ready_path = self.run_dir.with_extension("ready");
        let ready = ready_socket(&ready_path).failing(|| format!("cannot make {}", ready_path.display()))?;
        let (secrets_read, secrets_write) =
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).failing(|| "cannot make a pipe".to_owned())?;
        let log = self.open_log().failing(|| format!("cannot open {}", self.log.display()))?;
        let descriptors = listeners
            .iter()
            .chain([&secrets_read])
            .map(|fd| duplicate_above(fd.as_fd(), HIGH))
            .collect::<io::Result<Vec<_>>>()
            .failing(|| "cannot prepare descriptors".to_owned())?;
        let mut command = Command::new(&program);
        command.current_dir("/").stdin(Stdio::null());
        command.stdout(log.try_clone().failing(|| "cannot use the log".to_owned())?).stderr(log);
        let mut image = self.image(&program, &ready_path, &provisions)?;
        let mount = self
            .as_root
            .then(|| provisions.identities.mount(&self.root, &self.seen, GIT_GATE_USER))
            .transpose()?;
        let setup = Setup { descriptors, on_parent_death: Signal::SIGTERM, close_others: true };
        prepare(&mut command, setup, move || {
            if let Some(mount) = &mount {
                mount.place()?;
            }
            Err(image.execute())
        });
        let child = command.spawn().failing(|| format!("cannot start {}", program.display()))?;
        drop(command);
        drop(secrets_read);
        let secrets = secret_lines(&provisions.secrets);
        // The supervisor reads while it starts; a thread keeps a long secret from blocking the wait for it.
        let writer = std::thread::Builder::new().name("secrets".into()).spawn(move || {
            // When the supervisor is gone, that is seen and told below.
            let _ = File::from(secrets_write).write_all(&secrets);
        });
        writer.failing(|| "cannot start a thread".to_owned())?;
        let pid = Pid::from_raw(child.id() as i32);
        let ended = process::watch(pid).failing(|| "cannot watch the supervisor".to_owned())?;
        let mut supervisor = Supervisor { child, ended, ready, ready_path };
        match self.wait_ready(&supervisor) {
            Ok(()) => Ok(supervisor),
            Err(problem) => {
                supervisor.stop();
                Err(Fault::failed(format!("{problem}\n{}", self.log_tail()))
                    .with_hint(format!("the whole log is {}", self.log.display())))
            }
        }
    }

    fn image(&self, program: &Path, ready: &Path, provisions: &Provisions) -> Result<ListeningImage, Fault> {
        let doors = doors(&provisions.direct);
        // The number after the sockets.
        let descriptor = (3 + doors.len()).to_string();
        let mut arguments: Vec<Vec<u8>> = [
            program.as_os_str().as_bytes(),
            b"--root",
            self.seen.as_os_str().as_bytes(),
            b"--run-dir",
            self.run_dir.as_os_str().as_bytes(),
            b"--secrets-fd",
            descriptor.as_bytes(),
        ]
        .map(<[u8]>::to_vec)
        .into();
        for key in provisions.identities.elsewhere() {
            arguments.push(b"--readable".to_vec());
            arguments.push([b"git-gate=", key.as_os_str().as_bytes()].concat());
        }
        let names: Vec<&str> = doors.iter().map(|door| door.name).collect();
        let mut environment = vec![
            format!("LISTEN_FDS={}", doors.len()).into_bytes(),
            format!("LISTEN_FDNAMES={}", names.join(":")).into_bytes(),
            [b"NOTIFY_SOCKET=", ready.as_os_str().as_bytes()].concat(),
        ];
        for name in ["PATH", "LANG", "TZ", "EGRESS_UPSTREAM_PROXY"] {
            let value = std::env::var_os(name);
            environment.extend(value.map(|value| [name.as_bytes(), b"=", value.as_bytes()].concat()));
        }
        for (name, path) in
            [("EGRESS_UPSTREAM_CA=", UPSTREAM_CA), ("BOTTLECAP_UPSTREAM_CA=", GIT_UPSTREAM_CA)]
        {
            if self.root.join(path).exists() {
                let path = self.seen.join(path);
                environment.push([name.as_bytes(), path.as_os_str().as_bytes()].concat());
            }
        }
        let arguments = arguments.iter().map(|text| c_string(text)).collect::<Result<_, _>>()?;
        let environment = environment.iter().map(|text| c_string(text)).collect::<Result<_, _>>()?;
        Ok(ListeningImage::new(c_string(program.as_os_str().as_bytes())?, arguments, environment))
    }

    fn open_log(&self) -> io::Result<File> {
        File::options().create(true).write(true).truncate(true).mode(0o600).open(&self.log)
    }

    /// The last lines of the log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let read = || -> io::Result<String> {
            let mut file = File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
        };
        read().unwrap_or_default()
    }

    fn wait_ready(&self, supervisor: &Supervisor) -> Result<(), String> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut watched = [
                PollFd::new(supervisor.ready.as_fd(), PollFlags::POLLIN),
                PollFd::new(supervisor.ended(), PollFlags::POLLIN),
            ];
            match poll(&mut watched, timeout) {
                Err(nix::errno::Errno::EINTR) => continue,
                Err(errno) => return Err(format!("cannot wait for the daemons: {errno}")),
                Ok(0) => {
                    return Err(format!("the daemons were not ready within {} s", READY_TIMEOUT.as_secs()));
                }
                Ok(_) => {}
            }
            let [told, ended] = watched.map(|entry| entry.any().unwrap_or(false));
            if told && is_ready(&supervisor.ready) {
                return Ok(());
            }
            if ended {
                return Err("the supervisor ended before the daemons were ready".to_owned());
            }
        }
    }
}

fn is_ready(socket: &UnixDatagram) -> bool {
    let mut message = [0; 4096];
    let length = socket.recv(&mut message).unwrap_or(0);
    message[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1")
}

/// The socket of readiness. It lies beside the daemons' own directory, where no daemon with another user can write.
fn ready_socket(path: &Path) -> io::Result<UnixDatagram> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    UnixDatagram::bind(path)
}

/// The directory of this program.
pub fn programs() -> Result<PathBuf, Fault> {
    let own = std::env::current_exe().failing(|| "cannot find this program".to_owned())?;
    Ok(own.parent().map_or_else(|| PathBuf::from("/"), Path::to_path_buf))
}

pub(crate) fn secret_lines(secrets: &[Handed]) -> Zeroizing<Vec<u8>> {
    let mut lines = Zeroizing::new(Vec::new());
    for Handed { to, name, secret } in secrets {
        let value = Zeroizing::new(STANDARD.encode(secret.expose()));
        // Names are checked when the manifest is read, and base64 needs no escape.
        let parts = [r#"{"daemon":""#, to, r#"","name":""#, name, r#"","value":""#, &value, "\"}\n"];
        parts.iter().for_each(|part| lines.extend_from_slice(part.as_bytes()));
    }
    lines
}

fn c_string(bytes: &[u8]) -> Result<CString, Fault> {
    CString::new(bytes).failing(|| "a path has a NUL in it".to_owned())
}

fn write(path: &Path, text: &str) -> Result<(), Fault> {
    fs::write(path, text).failing(|| format!("cannot write {}", path.display()))
}

/// The same for a file that its daemon would wait for if it were just being written: nobody reads it before it is whole.
fn write_settled(path: &Path, text: &str) -> Result<(), Fault> {
    let written = || -> io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(text.as_bytes())?;
        file.set_modified(SystemTime::now() - SETTLED)
    };
    written().failing(|| format!("cannot write {}", path.display()))
}

/// A supervisor that runs.
#[derive(Debug)]
pub struct Supervisor {
    child: Child,
    ended: OwnedFd,
    ready: UnixDatagram,
    ready_path: PathBuf,
}

impl Supervisor {
    /// Readable when it has ended.
    #[must_use]
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Stops it: politely, then not.
    pub fn stop(&mut self) {
        // It may have ended by itself.
        let _ = process::signal(self.ended.as_fd(), Signal::SIGTERM);
        let timeout = PollTimeout::try_from(STOP_TIMEOUT).unwrap_or(PollTimeout::MAX);
        let mut watched = [PollFd::new(self.ended.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut watched, timeout), Ok(1)) {
            let _ = process::signal(self.ended.as_fd(), Signal::SIGKILL);
        }
        let status: io::Result<ExitStatus> = self.child.wait();
        tracing::debug!(?status, "supervisor ended");
        // It may have been swept away with the runtime directory.
        let _ = fs::remove_file(&self.ready_path);
    }
}

/// Whether egress would take something of it: beside the doctor's own authority it would not miss it.
fn holds_a_root(pem: &str) -> bool {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok);
    RootCertStore::empty().add_parsable_certificates(certificates).0 > 0
}

/// Certificate authorities of the system and the others, one file after the other.
fn both_roots(system: Option<&str>, others: &str) -> String {
    [system.unwrap_or_default(), others]
        .map(|roots| format!("{}\n", roots.trim_end()))
        .concat()
        .trim_start()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_of_the_system_and_others_stand_in_one_file() {
        assert_eq!(both_roots(Some("a"), "b\n"), "a\nb\n");
        assert_eq!(both_roots(None, "b"), "b\n");
    }

    #[test]
    fn a_file_without_a_root_is_known() {
        let framed = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        assert!(!holds_a_root("") && !holds_a_root("roots: none\n") && !holds_a_root(framed));
        let system = SYSTEM_CA.iter().find_map(|path| fs::read_to_string(path).ok());
        assert!(holds_a_root(&system.expect("this host has roots of trust")));
    }

    #[test]
    fn secrets_are_lines_of_json_for_one_daemon_each() {
        let secret = Secret::new(b"one\"two".to_vec());
        let lines = secret_lines(&[Handed { to: "egress", name: "TOKEN_0".into(), secret }]);
        let line: serde_json::Value = serde_json::from_slice(&lines).expect("one JSON value");
        assert_eq!(line, serde_json::json!({"daemon": "egress", "name": "TOKEN_0", "value": "b25lInR3bw=="}));
    }

    #[test]
    fn a_secret_is_never_shown() {
        assert_eq!(format!("{:?}", Secret::new(b"hunter2".to_vec())), "Secret(..)");
    }
}
