//! A git host on OpenSSH: one seeded repository, one key that may use it, and a record of who asked what.

use std::fs::{self, File, OpenOptions, Permissions};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::Run;

/// The stand-in for a forge. `sshd -i` serves each connection, so that the port is never free between choosing and using it.
#[derive(Debug)]
pub struct GitHost {
    directory: TempDir,
    address: SocketAddr,
    user: String,
    connections: Arc<AtomicU64>,
    closing: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl GitHost {
    /// Listens on 127.0.0.1 with a repository `seed.git` of one commit on `main`.
    pub fn start() -> Result<Self> {
        Self::start_on(Ipv4Addr::LOCALHOST.into())
    }

    /// The same, on that address.
    pub fn start_on(address: IpAddr) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("bc-git-").tempdir()?;
        let at = |name: &str| directory.path().join(name);
        for key in ["host_key", "client_key"] {
            Run::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", key, "-f"])
                .args([at(key)])
                .ok()?;
        }
        fs::copy(at("client_key.pub"), at("authorized_keys"))?;
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid())?
            .context("the user who runs this has no name")?
            .name;
        // Started by root, sshd separates its privileges and wants this directory.
        if nix::unistd::geteuid().is_root() {
            fs::create_dir_all("/run/sshd")?;
        }
        write_script(
            &at("command"),
            &format!(
                "#!/bin/sh\nprintf '%s\\n' \"$SSH_ORIGINAL_COMMAND\" >>{log}\nexec git-shell -c \"$SSH_ORIGINAL_COMMAND\"\n",
                log = at("commands").display()
            ),
        )?;
        fs::write(at("commands"), "")?;
        fs::write(
            at("sshd_config"),
            format!(
                "HostKey {dir}/host_key\nAuthorizedKeysFile {dir}/authorized_keys\nForceCommand {dir}/command\nAuthenticationMethods publickey\n\
                 PermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\nPermitUserEnvironment no\nAcceptEnv GIT_PROTOCOL\n\
                 PidFile none\nPrintMotd no\nSetEnv PATH={path}\nLogLevel VERBOSE\n",
                dir = directory.path().display(),
                path = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".to_owned()),
            ),
        )?;

        let listener = TcpListener::bind((address, 0))?;
        let address = listener.local_addr()?;
        let connections = Arc::new(AtomicU64::new(0));
        let closing = Arc::new(AtomicBool::new(false));
        let log = OpenOptions::new().create(true).append(true).open(at("sshd.log"))?;
        let acceptor = std::thread::spawn({
            let (config, connections, closing) = (at("sshd_config"), connections.clone(), closing.clone());
            move || accept(&listener, &config, &log, &connections, &closing)
        });
        let host = Self { directory, address, user, connections, closing, acceptor: Some(acceptor) };
        host.seed()?;
        Ok(host)
    }

    fn seed(&self) -> Result<()> {
        let work = self.path("work");
        fs::create_dir(&work)?;
        git(&work).args(["init", "--quiet", "--initial-branch=main"]).ok()?;
        fs::write(work.join("README.md"), "seed\n")?;
        git(&work).args(["add", "README.md"]).ok()?;
        git(&work).args(["commit", "--quiet", "-m", "Seed"]).ok()?;
        git(&work).args(["clone", "--quiet", "--bare", "."]).args([self.repository()]).ok()?;
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The bare repository on disk.
    pub fn repository(&self) -> PathBuf {
        self.path("seed.git")
    }

    /// The same, as its users name it.
    pub fn url(&self) -> String {
        format!("ssh://{}@{}{}", self.user, self.address, self.repository().display())
    }

    /// The public host key, as repos.yaml pins it: type and key.
    pub fn host_key(&self) -> Result<String> {
        let line = fs::read_to_string(self.path("host_key.pub"))?;
        Ok(line.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
    }

    /// The private key of the one user it admits.
    pub fn client_key(&self) -> Result<String> {
        Ok(fs::read_to_string(self.path("client_key"))?)
    }

    /// The commands that were run over ssh, oldest first.
    pub fn commands(&self) -> Result<Vec<String>> {
        Ok(fs::read_to_string(self.path("commands"))?.lines().map(str::to_owned).collect())
    }

    /// How often somebody connected.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }

    /// What the reference names, if it exists.
    pub fn resolve(&self, reference: &str) -> Result<Option<String>> {
        let finished =
            git(&self.repository()).args(["rev-parse", "--verify", "--quiet", reference]).finish()?;
        Ok((finished.code == 0).then(|| finished.stdout.trim().to_owned()))
    }

    /// Adds a commit upstream, as a colleague would, and returns its name.
    pub fn commit(&self, file: &str, text: &str) -> Result<String> {
        let work = self.path("work");
        fs::write(work.join(file), text)?;
        git(&work).args(["add", file]).ok()?;
        git(&work).args(["commit", "--quiet", "-m", &format!("Add {file}")]).ok()?;
        git(&work).args(["push", "--quiet"]).args([self.repository()]).args(["main"]).ok()?;
        git(&work).args(["rev-parse", "HEAD"]).ok()
    }
}

impl Drop for GitHost {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        drop(std::net::TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            drop(acceptor.join());
        }
    }
}

fn accept(listener: &TcpListener, config: &Path, log: &File, connections: &AtomicU64, closing: &AtomicBool) {
    let mut sessions: Vec<Child> = Vec::new();
    for stream in listener.incoming() {
        if closing.load(Ordering::SeqCst) {
            break;
        }
        sessions.retain_mut(|session| matches!(session.try_wait(), Ok(None)));
        let Ok(stream) = stream else { continue };
        connections.fetch_add(1, Ordering::SeqCst);
        if let Ok(session) = serve(stream.into(), config, log) {
            sessions.push(session);
        }
    }
    for mut session in sessions {
        drop(session.kill());
        drop(session.wait());
    }
}

fn serve(stream: OwnedFd, config: &Path, log: &File) -> std::io::Result<Child> {
    // sshd starts itself again by its path, and wants that absolute.
    let sshd = ["/usr/sbin/sshd", "/usr/bin/sshd"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .unwrap_or("/usr/sbin/sshd");
    Command::new(sshd)
        .args(["-i", "-e", "-f"])
        .arg(config)
        .stdin(stream.try_clone()?)
        .stdout(stream)
        .stderr(Stdio::from(log.try_clone()?))
        .spawn()
}

fn write_script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, Permissions::from_mode(0o755))?)
}

/// git with an identity, and without anybody's configuration.
pub(crate) fn git(directory: &Path) -> Run {
    Run::bare("git")
        .within(directory)
        .env("HOME", "/nonexistent")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_AUTHOR_NAME", "Agent")
        .env("GIT_AUTHOR_EMAIL", "agent@example.test")
        .env("GIT_COMMITTER_NAME", "Agent")
        .env("GIT_COMMITTER_EMAIL", "agent@example.test")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_serves_its_key_alone_and_remembers_the_commands() {
        let host = GitHost::start().unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let known = scratch.path().join("known_hosts");
        fs::write(&known, format!("[127.0.0.1]:{} {}\n", host.address.port(), host.host_key().unwrap()))
            .unwrap();
        let ssh = format!(
            "ssh -F none -i {} -o UserKnownHostsFile={} -o BatchMode=yes",
            host.path("client_key").display(),
            known.display()
        );
        let heads = git(scratch.path()).env("GIT_SSH_COMMAND", ssh).args([
            "ls-remote",
            &host.url(),
            "refs/heads/main",
        ]);

        let seed = host.resolve("refs/heads/main").unwrap().unwrap();
        assert_eq!(heads.ok().unwrap(), format!("{seed}\trefs/heads/main"));
        assert_eq!(host.commands().unwrap(), [format!("git-upload-pack '{}'", host.repository().display())]);
        assert_eq!(host.connections(), 1);
    }
}
