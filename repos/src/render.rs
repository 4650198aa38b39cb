//! A text made from repositories: git configuration for the bottle.

use std::fmt::Write as _;

use crate::parse::{Repo, Repos};
use crate::upstream::{HTTPS_PORT, Https, SSH_PORT, Upstream};

/// Git configuration that sends every spelling of each upstream to the gate.
///
/// `gate` is the gate's URL as the bottle sees it, `git://git-gate`.
pub fn gitconfig(repos: &Repos, gate: &str) -> String {
    let mut text = String::new();
    for repo in repos.iter() {
        let spellings = spellings(repo);
        if spellings.is_empty() {
            continue;
        }
        let _ = writeln!(text, "[url \"{}/{}.git\"]", gate.trim_end_matches('/'), repo.name);
        // The second keeps a rule of the user's own from sending pushes past the gate: the longest one wins.
        for key in ["insteadOf", "pushInsteadOf"] {
            for spelling in &spellings {
                let _ = writeln!(text, "\t{key} = {spelling}");
            }
        }
    }
    if !text.is_empty() {
        // Where git-lfs asks for its files beside a git:// address: there the gate says that it has none.
        text.push_str("[lfs]\n\tgitprotocol = http\n");
    }
    text
}

fn spellings(repo: &Repo) -> Vec<String> {
    let ssh = match &repo.upstream {
        Upstream::Ssh(ssh) => ssh,
        Upstream::Https(https) => return https_spellings(https),
        Upstream::File(_) => return vec![repo.upstream.url()],
    };
    let user = &ssh.user;
    let host = ssh.bracketed_host();
    let path = ssh.path.trim_matches('/');
    let stem = path.strip_suffix(".git").unwrap_or(path);
    let mut bases = vec![format!("ssh://{user}@{host}:{}/", ssh.port)];
    if ssh.port == SSH_PORT {
        bases.push(format!("ssh://{user}@{host}/"));
        bases.push(format!("{user}@{host}:"));
        bases.push(format!("{user}@{host}:/"));
    }
    bases.push(format!("https://{host}/"));
    both(&bases, stem)
}

/// The ssh spellings are those of the account that hosts give to everyone.
fn https_spellings(https: &Https) -> Vec<String> {
    let path = https.path.trim_matches('/');
    let stem = path.strip_suffix(".git").unwrap_or(path);
    let mut bases = vec![format!("https://{}/", https.authority())];
    if https.port == HTTPS_PORT {
        let host = &https.host;
        bases.push(format!("https://{host}:{HTTPS_PORT}/"));
        bases.push(format!("ssh://git@{host}/"));
        bases.push(format!("git@{host}:"));
    }
    both(&bases, stem)
}

/// With and without `.git`.
fn both(bases: &[String], stem: &str) -> Vec<String> {
    bases.iter().flat_map(|base| [format!("{base}{stem}.git"), format!("{base}{stem}")]).collect()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;
    use crate::parse::Allow;

    fn key() -> String {
        let mut blob = 11_u32.to_be_bytes().to_vec();
        blob.extend_from_slice(b"ssh-ed25519");
        blob.extend([0, 0, 0, 32].iter().chain([7; 32].iter()));
        format!("ssh-ed25519 {}", base64::engine::general_purpose::STANDARD.encode(blob))
    }

    fn repos(upstream: &str) -> Repos {
        let text = format!(
            "repos:\n  - name: web\n    upstream: {upstream}\n    identity: /k\n    host_key: \"{}\"\n",
            key()
        );
        Repos::parse("repos.yaml", &text, Allow::SshUpstream).expect("a good file")
    }

    #[test]
    fn every_spelling_of_an_upstream_is_sent_to_the_gate() {
        insta::assert_snapshot!(gitconfig(&repos("git@github.com:acme/web.git"), "git://git-gate"), @r#"
        [url "git://git-gate/web.git"]
        	insteadOf = ssh://git@github.com:22/acme/web.git
        	insteadOf = ssh://git@github.com:22/acme/web
        	insteadOf = ssh://git@github.com/acme/web.git
        	insteadOf = ssh://git@github.com/acme/web
        	insteadOf = git@github.com:acme/web.git
        	insteadOf = git@github.com:acme/web
        	insteadOf = git@github.com:/acme/web.git
        	insteadOf = git@github.com:/acme/web
        	insteadOf = https://github.com/acme/web.git
        	insteadOf = https://github.com/acme/web
        	pushInsteadOf = ssh://git@github.com:22/acme/web.git
        	pushInsteadOf = ssh://git@github.com:22/acme/web
        	pushInsteadOf = ssh://git@github.com/acme/web.git
        	pushInsteadOf = ssh://git@github.com/acme/web
        	pushInsteadOf = git@github.com:acme/web.git
        	pushInsteadOf = git@github.com:acme/web
        	pushInsteadOf = git@github.com:/acme/web.git
        	pushInsteadOf = git@github.com:/acme/web
        	pushInsteadOf = https://github.com/acme/web.git
        	pushInsteadOf = https://github.com/acme/web
        [lfs]
        	gitprotocol = http
        "#);
        insta::assert_snapshot!(gitconfig(&repos("ssh://git@h:2222/srv/web"), "git://git-gate/"), @r#"
        [url "git://git-gate/web.git"]
        	insteadOf = ssh://git@h:2222/srv/web.git
        	insteadOf = ssh://git@h:2222/srv/web
        	insteadOf = https://h/srv/web.git
        	insteadOf = https://h/srv/web
        	pushInsteadOf = ssh://git@h:2222/srv/web.git
        	pushInsteadOf = ssh://git@h:2222/srv/web
        	pushInsteadOf = https://h/srv/web.git
        	pushInsteadOf = https://h/srv/web
        [lfs]
        	gitprotocol = http
        "#);
    }
}
