//! Commands that run to their end.

use std::ffi::OsStr;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

/// What a command left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The exit code, or 128 + the signal that ended it.
    pub code: i32,
    /// Standard output, as text.
    pub stdout: String,
    /// Standard error, as text.
    pub stderr: String,
}

impl Finished {
    /// Standard output without its last line end, when the command succeeded; an error with everything it said otherwise.
    pub fn ok(self) -> Result<String> {
        anyhow::ensure!(self.code == 0, "exit code {}\n{}{}", self.code, self.stdout, self.stderr);
        Ok(self.stdout.trim_end().to_owned())
    }
}

/// A command under construction that ends by itself.
#[derive(Debug)]
pub struct Run {
    command: Command,
    input: Vec<u8>,
}

impl From<Command> for Run {
    fn from(command: Command) -> Self {
        Self { command, input: Vec::new() }
    }
}

impl Run {
    /// A command that inherits the environment.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Command::new(program).into()
    }

    /// A command that sees PATH and nothing else of the environment.
    pub fn bare(program: impl AsRef<OsStr>) -> Self {
        let mut run = Self::new(program);
        run.command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LC_ALL", "C");
        run
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Adds a variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it in this directory.
    #[must_use]
    pub fn within(mut self, directory: impl AsRef<std::path::Path>) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// What it reads on standard input.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// Runs it to its end.
    pub fn finish(mut self) -> Result<Finished> {
        use std::os::unix::process::ExitStatusExt as _;
        let described = format!("{:?}", self.command);
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {described}"))?;
        let mut stdin = child.stdin.take().expect("standard input was asked to be a pipe");
        let input = std::mem::take(&mut self.input);
        // A thread, so that a command that prints before it has read everything is not held up.
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().with_context(|| format!("cannot wait for {described}"))?;
        // A command that does not read its input is no failure of ours.
        drop(writer.join());
        Ok(Finished {
            code: output
                .status
                .code()
                .or_else(|| output.status.signal().map(|signal| 128 + signal))
                .unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs it and insists on success: standard output without its last line end.
    pub fn ok(self) -> Result<String> {
        let described = format!("{:?}", self.command);
        self.finish()?.ok().with_context(|| described)
    }
}
