//! A git host on the loopback.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{git, whoami};

/// A git host: sshd with its own keys, and one bare repository.
pub struct Upstream {
    pub repository: PathBuf,
    pub port: u16,
    dir: PathBuf,
    sshd: Option<Child>,
    /// Connections whose listener is gone.
    outlived: Vec<u32>,
}

impl Upstream {
    pub fn start(dir: &Path) -> Self {
        let dir = dir.join("upstream");
        fs::create_dir(&dir).unwrap();
        for key in ["host", "other_host", "identity"] {
            let path = dir.join(key);
            let made =
                Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path).status();
            assert!(made.expect("these tests need ssh-keygen (Debian: openssh-client)").success());
        }
        let repository = dir.join("web.git");
        git(&dir, &["init", "-q", "--bare", "-b", "main", "web.git"]).succeed();
        let seed = dir.join("seed");
        git(&dir, &["clone", "-q", "web.git", "seed"]).succeed();
        fs::write(seed.join("README"), "hello\n").unwrap();
        git(&seed, &["checkout", "-q", "-b", "main"]).succeed();
        git(&seed, &["add", "."]).succeed();
        git(&seed, &["commit", "-qm", "one commit"]).succeed();
        git(&seed, &["push", "-q", "origin", "main"]).succeed();
        let mut upstream = Self { repository, port: 0, dir, sshd: None, outlived: Vec::new() };
        upstream.listen();
        upstream
    }

    /// The entry of repos.yaml for the repository.
    pub fn entry(&self, name: &str, rules: &str) -> String {
        self.entry_with_host_key(name, rules, "host")
    }

    pub fn entry_with_host_key(&self, name: &str, rules: &str, key: &str) -> String {
        let public = fs::read_to_string(self.dir.join(format!("{key}.pub"))).unwrap();
        let (dir, port) = (self.dir.display(), self.port);
        let user = whoami();
        format!(
            "repos:\n  - name: {name}\n    upstream: ssh://{user}@git.example.test:{port}{dir}/web.git\n    \
             identity: {dir}/identity\n    host_key: \"{}\"\n    extra_hosts: {{git.example.test: 127.0.0.1}}\n    {rules}\n",
            public.trim()
        )
    }

    /// What upstream's refs are, one line each.
    pub fn refs(&self) -> String {
        git(&self.repository, &["for-each-ref", "--format=%(objectname) %(refname)"]).succeed()
    }

    pub fn rev(&self, name: &str) -> String {
        git(&self.repository, &["rev-parse", name]).succeed().trim().to_owned()
    }

    /// A commit made by somebody else, directly at upstream.
    pub fn commit(&self, file: &str) -> String {
        let seed = self.dir.join("seed");
        fs::write(seed.join(file), "theirs\n").unwrap();
        git(&seed, &["add", "."]).succeed();
        git(&seed, &["commit", "-qm", file]).succeed();
        git(&seed, &["push", "-q", "origin", "main"]).succeed();
        self.rev("main")
    }

    /// Rewrites the branch, so that its last commit is no longer there.
    pub fn purge(&self) {
        let seed = self.dir.join("seed");
        git(&seed, &["reset", "-q", "--hard", "HEAD^"]).succeed();
        git(&seed, &["push", "-q", "--force", "origin", "main"]).succeed();
        git(&self.repository, &["reflog", "expire", "--expire=now", "--all"]).succeed();
        git(&self.repository, &["gc", "-q", "--prune=now"]).succeed();
    }

    /// The commands that came over ssh.
    pub fn commands(&self) -> String {
        fs::read_to_string(self.dir.join("commands")).unwrap_or_default()
    }

    /// How many processes serve connections.
    pub fn connections(&self) -> usize {
        self.sshd.as_ref().map_or(0, |sshd| descendants(sshd.id()).len())
    }

    /// As long as this file is there, the second command that came over ssh does not begin.
    pub fn slow(&self) -> PathBuf {
        self.dir.join("slow")
    }

    /// From now on a branch is elsewhere each time that somebody looks, there is another tag, and another branch in place of the last.
    pub fn move_at_each_look(&self) {
        self.write_login(&format!(
            "export GIT_DIR='{}' GIT_COMMITTER_NAME=T GIT_COMMITTER_EMAIL=t@example.test GIT_AUTHOR_NAME=T GIT_AUTHOR_EMAIL=t@example.test\n\
             new=$(git commit-tree -p main -m $$ 'main^{{tree}}') && git update-ref refs/heads/moving $new && git tag -a -m $$ t$$ $new\n\
             git for-each-ref --format='delete %(refname)' refs/heads/once | git update-ref --stdin\n\
             git update-ref refs/heads/once/$$ $new\n\
             unset GIT_DIR\n",
            self.repository.display()
        ));
    }

    /// Writes what runs for each command that comes over ssh.
    fn write_login(&self, first: &str) {
        let log = self.dir.join("login");
        let script = format!(
            "#!/bin/sh\n{first}echo \"$SSH_ORIGINAL_COMMAND\" >> '{0}'\n\
             if [ $(wc -l < '{0}') -eq 2 ]; then while [ -e '{1}' ]; do sleep 0.05; done; fi\n\
             exec sh -c \"$SSH_ORIGINAL_COMMAND\"\n",
            self.dir.join("commands").display(),
            self.slow().display()
        );
        // In one go: a login may be reading what was there.
        let new = log.with_extension("new");
        fs::write(&new, script).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&new, &log).unwrap();
    }

    pub fn hook(&self, name: &str, script: &str) {
        let path = self.repository.join("hooks").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub fn stop(&mut self) {
        if let Some(mut sshd) = self.sshd.take() {
            // The host is gone, and with it the connections it has.
            for pid in descendants(sshd.id()) {
                kill(pid);
            }
            sshd.kill().unwrap();
            sshd.wait().unwrap();
        }
    }

    /// Takes no new connections; those that there are live on.
    pub fn stop_listening(&mut self) {
        let mut sshd = self.sshd.take().unwrap();
        self.outlived.extend(descendants(sshd.id()));
        sshd.kill().unwrap();
        sshd.wait().unwrap();
    }

    /// Listens again as before.
    pub fn listen_again(&mut self) {
        self.listen_with_key("host");
    }

    /// A new connection of the URL kind that an outsider would use, past the gate.
    pub fn direct_url(&self) -> String {
        format!("file://{}", self.repository.display())
    }

    /// Listens again on the same port, with another host key.
    pub fn listen_with_key(&mut self, key: &str) {
        self.listen_with(key, "");
    }

    /// The same with further lines of its configuration.
    pub fn listen_with(&mut self, key: &str, more: &str) {
        let mut said = String::new();
        assert!(self.try_listen(&mut said, key, more), "{said}");
    }

    /// Makes a key of upstream's; its name is that of a host key from then on.
    pub fn make_key(&self, name: &str, kind: &[&str]) {
        let mut make = Command::new("ssh-keygen");
        make.args(["-q", "-N", "", "-f"]).arg(self.dir.join(name)).arg("-t").args(kind);
        assert!(make.status().unwrap().success());
    }

    fn listen(&mut self) {
        assert!(
            Path::new("/usr/sbin/sshd").exists(),
            "these tests need a real sshd (Debian: openssh-server)"
        );
        // As root, sshd wants its privilege separation directory.
        let _ = fs::create_dir_all("/run/sshd");
        let log = self.dir.join("login");
        self.write_login("");
        let public = fs::read_to_string(self.dir.join("identity.pub")).unwrap();
        let line = format!("restrict,command=\"{}\" {public}", log.display());
        fs::write(self.dir.join("authorized_keys"), line).unwrap();
        let mut said = String::new();
        for _ in 0..10 {
            self.port = free_port();
            if self.try_listen(&mut said, "host", "") {
                return;
            }
        }
        panic!("sshd does not start: {said}");
    }

    fn try_listen(&mut self, said: &mut String, key: &str, more: &str) -> bool {
        let dir = self.dir.display();
        // Another home keeps the login shell from the start-up files of whoever runs the tests.
        let config = format!(
            "ListenAddress 127.0.0.1:{}\nHostKey {dir}/{key}\nAuthorizedKeysFile {dir}/authorized_keys\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nPidFile none\n\
             AcceptEnv GIT_PROTOCOL\nMaxStartups 100\nSetEnv \"PATH={}\" HOME=/nonexistent\n{more}\n",
            self.port,
            std::env::var("PATH").unwrap()
        );
        fs::write(self.dir.join("sshd_config"), config).unwrap();
        let mut sshd = Command::new("/usr/sbin/sshd");
        sshd.args(["-D", "-e", "-f"]).arg(self.dir.join("sshd_config"));
        let mut child = sshd.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        for line in lines.by_ref().map_while(Result::ok) {
            said.push_str(&line);
            if line.contains("Server listening") {
                std::thread::spawn(move || lines.for_each(drop));
                self.sshd = Some(child);
                return true;
            }
        }
        let _ = child.wait();
        false
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop();
        for pid in &self.outlived {
            // The number may be somebody else's by now.
            if fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("sshd")) {
                kill(*pid);
            }
        }
    }
}

fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
}

/// The processes below a process.
pub fn descendants(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let children: Vec<u32> = children
        .flat_map(|of| of.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect();
    children.iter().flat_map(|pid| [vec![*pid], descendants(*pid)].concat()).collect()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
