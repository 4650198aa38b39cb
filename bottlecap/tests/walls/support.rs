//! Bottles without daemons, run by the built program as root and as an ordinary user, with single walls left out.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

/// Who starts the bottle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    Root,
    Ordinary,
}

/// A user that nobody is.
const ORDINARY: u32 = 64_200;
/// The owner of the working directory when root starts the bottle.
const OWNER: u32 = 64_300;

impl Caller {
    /// All that this process can be: a test that is not run by root shows the ordinary user alone.
    pub(crate) fn all() -> Vec<Caller> {
        if is_root() { vec![Caller::Root, Caller::Ordinary] } else { vec![Caller::Ordinary] }
    }
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The program, where every user can execute it.
fn program() -> &'static Path {
    static PLACE: OnceLock<TempDir> = OnceLock::new();
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let place = PLACE.get_or_init(open_directory);
        let path = place.path().join("bottlecap");
        fs::copy(env!("CARGO_BIN_EXE_bottlecap"), &path).unwrap();
        path
    })
}

fn open_directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

/// A place with a working directory, a home and a state, for one caller.
pub(crate) struct Bottle {
    caller: Caller,
    root: TempDir,
}

impl Bottle {
    pub(crate) fn of(caller: Caller) -> Bottle {
        let bottle = Bottle { caller, root: open_directory() };
        for (name, user) in [
            ("work", bottle.owner()),
            ("home", bottle.user()),
            ("state", bottle.user()),
            ("run", bottle.user()),
        ] {
            let path = bottle.path(name);
            fs::create_dir(&path).unwrap();
            bottle.give(&path, user);
        }
        bottle
    }

    fn user(&self) -> u32 {
        match self.caller {
            Caller::Root => 0,
            Caller::Ordinary if is_root() => ORDINARY,
            Caller::Ordinary => nix::unistd::geteuid().as_raw(),
        }
    }

    /// The owner of the working directory.
    pub(crate) fn owner(&self) -> u32 {
        if self.caller == Caller::Root { OWNER } else { self.user() }
    }

    fn give(&self, path: &Path, user: u32) {
        if is_root() {
            chown(path, Some(user), Some(user)).unwrap();
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.path("work")
    }

    /// A file in the working directory, of its owner.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.work().join(name);
        fs::write(&path, text).unwrap();
        self.give(&path, self.owner());
    }

    /// Makes `path` and what is in it the owner's.
    pub(crate) fn give_all_to_owner(&self, path: &Path) {
        if is_root() {
            let user = self.owner().to_string();
            assert!(
                Command::new("chown")
                    .args(["-R", &format!("{user}:{user}")])
                    .arg(path)
                    .status()
                    .unwrap()
                    .success()
            );
        }
    }

    /// `program` as the caller, in the caller's environment.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
        command.env("HOME", self.path("home")).env("XDG_STATE_HOME", self.path("state"));
        command.env("XDG_RUNTIME_DIR", self.path("run")).env("BOTTLECAP_TEST_WITHOUT", "bundle");
        command.current_dir(self.work()).stdin(Stdio::null());
        if is_root() && self.caller == Caller::Ordinary {
            command.uid(ORDINARY).gid(ORDINARY);
        }
        command
    }

    /// `bottlecap ARGUMENTS…`
    pub(crate) fn bottlecap<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut command = self.command(program());
        command.args(arguments);
        command
    }

    /// `bottlecap run -- WORDS…`, with the walls of `without` left out.
    pub(crate) fn run<const N: usize>(&self, without: &str, words: [&str; N]) -> Command {
        let mut command = self.bottlecap(["run", "--"]);
        command.args(words).env("BOTTLECAP_TEST_WITHOUT", format!("bundle,{without}"));
        command
    }

    /// What a Python program says in the bottle.
    pub(crate) fn python(&self, without: &str, source: &str) -> String {
        said(&mut self.run(without, ["/usr/bin/python3", "-I", "-c", &format!("{PRELUDE}\n{source}")]))
    }

    /// What a shell says in the bottle.
    pub(crate) fn shell(&self, without: &str, source: &str) -> String {
        said(&mut self.run(without, ["/bin/sh", "-c", source]))
    }

    pub(crate) fn program(&self) -> &'static Path {
        program()
    }
}

/// `call` makes a system call by number and names its error; `attempt` does the same for a Python function.
pub(crate) const PRELUDE: &str = r#"
import ctypes, errno, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    words = [a if isinstance(a, (bytes, ctypes.Array)) or a is None else ctypes.c_long(a) for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    return "done" if result >= 0 else errno.errorcode[ctypes.get_errno()]
def attempt(function, *arguments, **named):
    try:
        function(*arguments, **named)
        return "done"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
"#;

/// Standard output, trimmed, of a command that succeeds.
pub(crate) fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    assert!(output.status.success(), "{}\n{}\n{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// The output of a command that is given `input`.
pub(crate) fn fed(command: &mut Command, input: Vec<u8>) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || pipe.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    output
}
