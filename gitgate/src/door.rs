//! The way of a git to an upstream that it reaches by itself: https with a token, or a directory.
//!
//! A token waits in a pipe that git inherits; git asks this program, under the name `askpass`, which
//! reads it from there. The token is in no argument, no environment and no file.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use repos::{Https, Upstream};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::git::GateDir;
use crate::sys;

/// The environment variable with the number of the pipe.
const TOKEN_FD: &str = "GIT_GATE_TOKEN_FD";
/// The environment variable with the one question that is answered.
const QUESTION: &str = "GIT_GATE_QUESTION";
const TOKEN_MAX_BYTES: u64 = 16 << 10;
/// Git asks once; a second time when it was turned away.
const ANSWERS: usize = 2;

/// How a child reaches upstream.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Door {
    /// Git's own https.
    Https { authority: String, user: String, resolve: Option<String>, roots: Option<PathBuf>, token: Token },
    /// A directory of this machine.
    Local,
}

/// What opens an https upstream.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Token(Zeroizing<String>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// A pipe with as many answers in it as git may ask for; they fit into its buffer.
    fn piped(&self) -> io::Result<OwnedFd> {
        let (reader, mut writer) = io::pipe()?;
        for _ in 0..ANSWERS {
            writer.write_all(self.0.as_bytes())?;
            writer.write_all(b"\n")?;
        }
        Ok(reader.into())
    }
}

/// A secret as it came, of which no more is kept than what shows that it is too long for a token.
pub(crate) struct Secret(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    pub(crate) fn read(from: impl io::Read) -> io::Result<Secret> {
        // With room for all of it: what grows leaves copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(2 * TOKEN_MAX_BYTES as usize));
        from.take(TOKEN_MAX_BYTES + 1).read_to_end(&mut bytes)?;
        Ok(Secret(bytes))
    }

    /// One line of text, if it is that.
    fn token(&self) -> Option<Token> {
        let text = std::str::from_utf8(&self.0).ok().filter(|text| text.len() as u64 <= TOKEN_MAX_BYTES)?;
        let line = text.trim_end_matches(['\n', '\r']);
        let is_line = !line.is_empty() && !line.contains(char::is_control);
        is_line.then(|| Token(Zeroizing::new(line.to_owned())))
    }
}

/// Where the gate finds what opens upstreams.
#[derive(Debug, Clone)]
pub(crate) struct Keyring {
    pub(crate) secrets_dir: PathBuf,
    /// Secrets that were handed over; they come before those of the directory.
    pub(crate) handed: Arc<HashMap<String, Secret>>,
    /// Certificate authorities for https in place of the system's.
    pub(crate) roots: Option<PathBuf>,
}

#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("the secret `{name}` with its token cannot be read: {reason}")]
    Read { name: String, reason: String },
    #[error("the secret `{0}` is not one line of text")]
    Form(String),
}

impl Keyring {
    /// The door to an upstream, if it has one that a git goes through by itself; reads the token as it is now.
    pub(crate) fn door(&self, repo: &repos::Repo) -> Result<Option<Door>, TokenError> {
        Ok(match &repo.upstream {
            Upstream::Ssh(_) => None,
            Upstream::File(_) => Some(Door::Local),
            Upstream::Https(https) => Some(Door::Https {
                authority: https.authority(),
                user: https.user.clone(),
                resolve: https.address.map(|address| format!("{}:{}:{address}", https.host, https.port)),
                roots: self.roots.clone(),
                token: self.token(https)?,
            }),
        })
    }

    fn token(&self, https: &Https) -> Result<Token, TokenError> {
        let name = &https.token;
        let token = match self.handed.get(name) {
            Some(secret) => secret.token(),
            None => std::fs::File::open(self.secrets_dir.join(name))
                .and_then(Secret::read)
                .map_err(|error| TokenError::Read { name: name.clone(), reason: error.to_string() })?
                .token(),
        };
        token.ok_or_else(|| TokenError::Form(name.clone()))
    }
}

impl Door {
    /// Lets the command pass, and through this door only.
    pub(crate) fn open(&self, command: &mut Command, gate: &GateDir) -> io::Result<()> {
        match self {
            Self::Local => {
                command.env("GIT_ALLOW_PROTOCOL", "file").args(["-c", "protocol.file.allow=always"]);
            }
            Self::Https { authority, user, resolve, roots, token } => {
                command.env("GIT_ALLOW_PROTOCOL", "https").env("GIT_ASKPASS", gate.askpass_program());
                for setting in [
                    "protocol.https.allow=always",
                    "credential.helper=",
                    "http.followRedirects=false",
                    "http.sslVerify=true",
                    "http.proxy=",
                    "http.proactiveAuth=basic",
                    "http.lowSpeedLimit=1",
                    "http.lowSpeedTime=60",
                ] {
                    command.args(["-c", setting]);
                }
                if let Some(resolve) = resolve {
                    command.arg("-c").arg(format!("http.curloptResolve={resolve}"));
                }
                if let Some(roots) = roots {
                    let mut setting = OsString::from("http.sslCAInfo=");
                    setting.push(roots);
                    command.arg("-c").arg(setting);
                }
                command.env(QUESTION, question(user, authority));
                let number = sys::inherit(command, token.piped()?);
                command.env(TOKEN_FD, number.to_string());
            }
        }
        Ok(())
    }
}

/// The URL for git: with the account where there is one to name.
pub(crate) fn url(upstream: &Upstream) -> String {
    match upstream {
        Upstream::Https(https) => format!("https://{}@{}{}", https.user, https.authority(), https.path),
        Upstream::Ssh(_) | Upstream::File(_) => upstream.url(),
    }
}

/// Git's question for the password of an account at a host.
fn question(user: &str, authority: &str) -> String {
    format!("Password for 'https://{user}@{authority}': ")
}

/// Answers git's question, if it is the one that was expected.
pub fn askpass(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let asked = arguments.next();
    let expected = std::env::var_os(QUESTION);
    if asked.is_none() || asked != expected {
        return ExitCode::FAILURE;
    }
    let answer = || -> io::Result<()> {
        let number = std::env::var(TOKEN_FD).ok().and_then(|n| n.parse().ok());
        let mut pipe = std::fs::File::from(sys::adopt(number.ok_or_else(|| io::Error::other("no pipe"))?)?);
        // One byte at a time: what follows is the next answer.
        let mut token = Zeroizing::new(Vec::with_capacity(TOKEN_MAX_BYTES as usize));
        let mut byte = [0];
        while token.last() != Some(&b'\n') && pipe.read(&mut byte)? == 1 {
            token.push(byte[0]);
        }
        io::stdout().lock().write_all(&token)
    };
    if answer().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::Objects;
    use std::path::Path;

    #[test]
    fn a_token_stands_in_no_argument_and_no_variable() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("T"), "s3cr3t-t0ken\n").expect("written");
        let text =
            "repos:\n  - {name: a, upstream: 'https://h/p', token_file: T, extra_hosts: {h: 192.0.2.1}}\n";
        let repos = repos::Repos::parse("repos.yaml", text, repos::Allow::SshUpstream).expect("a good file");
        let repo = repos.iter().next().expect("one repository");
        let keyring = Keyring { secrets_dir: dir.path().into(), handed: Arc::default(), roots: None };
        let gate = GateDir::new("/gate".into());
        let door = keyring.door(repo).expect("a token").expect("a door");
        let command = gate.git_through(Path::new("/r"), Objects::Own, Some(&door)).expect("a command");
        let shown = format!("{command:?} {door:?}");
        assert!(
            shown.contains("http.curloptResolve=h:443:192.0.2.1") && shown.contains("Token(..)"),
            "{shown}"
        );
        assert!(!shown.contains("s3cr3t"), "{shown}");
        assert_eq!(url(&repo.upstream), "https://x-access-token@h/p");
    }

    #[test]
    fn a_token_is_one_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let keyring = Keyring { secrets_dir: dir.path().into(), handed: Arc::default(), roots: None };
        let https = Https {
            host: "h".into(),
            port: 443,
            path: "/p".into(),
            user: "u".into(),
            token: "T".into(),
            address: None,
        };
        assert!(matches!(keyring.token(&https), Err(TokenError::Read { .. })));
        let long = vec![b'a'; TOKEN_MAX_BYTES as usize + 1];
        for bad in [&b""[..], b"\n", b"a\nb\n", b"a\x1bb", b"a\xff", &long] {
            std::fs::write(dir.path().join("T"), bad).expect("written");
            assert!(matches!(keyring.token(&https), Err(TokenError::Form(_))), "{bad:?}");
        }
        // What was handed over comes before a file.
        let handed = HashMap::from([("T".to_owned(), Secret::read(&b"t0ken\n"[..]).expect("read"))]);
        let keyring = Keyring { handed: Arc::new(handed), ..keyring };
        assert_eq!(keyring.token(&https).expect("a token").0.as_str(), "t0ken");
    }
}
