//! What an agent brings into its bottle: what it is told at its start, its skills, who its commits are by.
//!
//! A repository may bring agents, in `.bottlecap/agents/`. They are somebody else's words: nothing in them says what may be
//! reached, and no path in them leads out of the repository.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::fault::{Attempted, Fault};
use crate::init::Shelf;
use crate::layout::{HOME, OURS};
use crate::manifest::{Agent, GitUser, Name};
use crate::preset::Preset;
use crate::sys::descriptors::open_beneath;
use crate::workdir::shown;

/// Where a repository keeps its agents.
const IN_REPOSITORY: &str = ".bottlecap/agents";
const SKILL: &str = "SKILL.md";
/// Who makes commits when nobody says who: what the repository itself says goes before it.
const NOBODY: &str = "[user]\n\tname = Agent\n\temail = agent@bottle.invalid\n";
const FILE_MAX: u64 = 256 * 1024;
const ALL_MAX: u64 = 4 * 1024 * 1024;
const FILES_MAX: usize = 500;
const DEPTH_MAX: usize = 8;

/// What is put into a bottle for its agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Luggage {
    /// The program.
    pub preset: Option<Preset>,
    /// Path and text of each file.
    pub files: Vec<(PathBuf, String)>,
    /// Who its commits are by.
    pub git: Option<GitUser>,
}

/// Where the paths of an agent lead to.
enum Ground {
    /// Anywhere: a person wrote them.
    Host,
    /// A repository: the directory, and where in it the paths begin.
    Repository(OwnedFd, PathBuf),
}

/// Looks into the manifest's agent and, if one is named, into that one: of the person's own, or of the repository.
pub fn pack(
    own: &Agent,
    named: Option<&Name>,
    shelf: Option<&Shelf>,
    repository: &Path,
) -> Result<Luggage, Fault> {
    let mut packer = Packer { preset: own.preset, files: Vec::new(), skills: BTreeSet::new(), bytes: 0 };
    let Some(name) = named else {
        let prompt = packer.agent(&Ground::Host, own)?;
        return Ok(packer.finish(prompt, own.git.clone()));
    };
    let (ground, agent) = find(name, shelf, repository)?;
    let mine = packer.agent(&Ground::Host, own)?;
    let theirs = packer.agent(&ground, &agent)?;
    Ok(packer.finish(theirs.or(mine), agent.git.or_else(|| own.git.clone())))
}

/// The person's own agent of that name goes before one of the repository, so that nothing there can stand in for it.
fn find(name: &Name, shelf: Option<&Shelf>, repository: &Path) -> Result<(Ground, Agent), Fault> {
    let file_name = format!("{name}.yaml");
    if let Some(shelf) = shelf {
        let path = shelf.agents().join(&file_name);
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let mut agent = Agent::parse(&path.display().to_string(), &text)?;
                let directory = path.parent().unwrap_or(Path::new("/"));
                agent.prompt = agent.prompt.map(|path| directory.join(path));
                agent.skills = agent.skills.iter().map(|path| directory.join(path)).collect();
                return Ok((Ground::Host, agent));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).refusing(|| format!("cannot read the agent {}", path.display())),
        }
    }
    let root = File::open(repository).refusing(|| format!("cannot open {}", shown(repository)))?;
    let ground = Ground::Repository(root.into(), IN_REPOSITORY.into());
    let path = Path::new(&file_name);
    let told = || format!("there is no agent {name}");
    let file = ground.open(path, OFlag::O_RDONLY).refusing(told).map_err(|fault| {
        fault.with_hint(format!(
            "it is looked for in your bottlecap/agents, and in {IN_REPOSITORY} of the repository"
        ))
    })?;
    let text = text(file, FILE_MAX).refusing(|| format!("cannot read {IN_REPOSITORY}/{file_name}"))?;
    let agent = Agent::parse(&format!("{IN_REPOSITORY}/{file_name}"), &text)?;
    Ok((ground, agent))
}

impl Ground {
    fn open(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        let flags = flags | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        match self {
            Ground::Host => Ok(nix::fcntl::open(path, flags, Mode::empty())?),
            Ground::Repository(root, beginning) => {
                open_beneath(root.as_fd(), &beginning.join(path), flags.bits())
            }
        }
    }
}

/// The text of a file; not of anything else that has a name.
fn text(file: OwnedFd, most: u64) -> io::Result<String> {
    let file = File::from(file);
    let refuse = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(refuse("not a file".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(refuse(format!("larger than {} KiB", most / 1024)));
    }
    String::from_utf8(bytes).map_err(|_| refuse("not text".to_owned()))
}

struct Packer {
    preset: Option<Preset>,
    files: Vec<(PathBuf, String)>,
    skills: BTreeSet<PathBuf>,
    bytes: u64,
}

impl Packer {
    /// Its prompt; its skills are packed.
    fn agent(&mut self, ground: &Ground, agent: &Agent) -> Result<Option<String>, Fault> {
        for path in &agent.skills {
            self.skill(ground, path)?;
        }
        let prompt = agent.prompt.as_ref().map(|path| {
            let told = || format!("cannot read the prompt {}", shown(path));
            text(ground.open(path, OFlag::O_RDONLY).refusing(told)?, FILE_MAX).refusing(told)
        });
        prompt.transpose()
    }

    fn skill(&mut self, ground: &Ground, path: &Path) -> Result<(), Fault> {
        let refuse = |why: &str| Fault::refused(format!("the skill {} {why}", shown(path)));
        let Some(name) = path.file_name() else { return Err(refuse("has no name")) };
        let directory = self.preset.unwrap_or(Preset::Shell).skills_directory();
        let inside = Path::new(HOME).join(directory).join(name);
        if !self.skills.insert(inside.clone()) {
            return Err(refuse("has the name of another one"));
        }
        let opened = ground
            .open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
            .refusing(|| format!("cannot open the skill {}", shown(path)))?;
        let before = self.files.len();
        self.walk(opened.as_fd(), path, &inside, DEPTH_MAX)?;
        if self.files[before..].iter().any(|(path, _)| *path == inside.join(SKILL)) {
            Ok(())
        } else {
            Err(refuse("has no SKILL.md"))
        }
    }

    fn walk(&mut self, directory: BorrowedFd<'_>, from: &Path, to: &Path, depth: usize) -> Result<(), Fault> {
        let told = || format!("cannot read {}", shown(from));
        if depth == 0 {
            return Err(Fault::refused(format!("{} is too deep for a skill", shown(from))));
        }
        let mut listed = Dir::from_fd(directory.try_clone_to_owned().refusing(told)?).refusing(told)?;
        let mut names: Vec<PathBuf> = Vec::new();
        for entry in listed.iter() {
            let entry = entry.refusing(told)?;
            let name = PathBuf::from(std::ffi::OsStr::new(entry.file_name().to_str().refusing(told)?));
            if name != Path::new(".") && name != Path::new("..") {
                names.push(name);
            }
        }
        names.sort();
        for name in names {
            let (from, to) = (from.join(&name), to.join(&name));
            let told = || format!("cannot read {}", shown(&from));
            // Links are not followed, whoever made them.
            let opened = open_beneath(directory, &name, (OFlag::O_RDONLY | OFlag::O_NONBLOCK).bits());
            let opened = File::from(opened.refusing(told)?);
            if opened.metadata().refusing(told)?.is_dir() {
                self.walk(opened.as_fd(), &from, &to, depth - 1)?;
                continue;
            }
            let text = text(opened.into(), FILE_MAX).refusing(told)?;
            self.bytes += text.len() as u64;
            if self.bytes > ALL_MAX || self.files.len() == FILES_MAX {
                return Err(Fault::refused(format!(
                    "the skills have more than {FILES_MAX} files or {} MiB",
                    ALL_MAX / 1024 / 1024
                )));
            }
            self.files.push((to, text));
        }
        Ok(())
    }

    fn finish(mut self, prompt: Option<String>, git: Option<GitUser>) -> Luggage {
        if let Some(prompt) = prompt {
            let told_at = self.preset.and_then(Preset::prompt_file);
            self.files.extend(told_at.map(|path| (Path::new(HOME).join(path), prompt.clone())));
            self.files.push((Path::new(OURS).join("prompt.md"), prompt));
        }
        Luggage { preset: self.preset, files: self.files, git }
    }
}

impl Luggage {
    /// What git's configuration says about it.
    #[must_use]
    pub fn gitconfig(&self) -> String {
        // The manifest's parser lets no quote, backslash or line end through.
        let user = |GitUser { name, email }: &GitUser| {
            format!("[user]\n\tname = \"{name}\"\n\temail = \"{email}\"\n")
        };
        self.git.as_ref().map_or_else(|| NOBODY.to_owned(), user)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A repository with an agent `review`.
    fn repository(agent: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let agents = root.path().join("repo").join(IN_REPOSITORY);
        fs::create_dir_all(&agents).unwrap();
        fs::write(agents.join("review.yaml"), agent).unwrap();
        fs::write(root.path().join("secret"), "hunter2").unwrap();
        root
    }

    fn packed(root: &tempfile::TempDir, own: &Agent) -> Result<Luggage, String> {
        let name: Name = "review".parse().unwrap();
        pack(own, Some(&name), None, &root.path().join("repo")).map_err(|fault| fault.to_string())
    }

    #[test]
    fn a_repository_brings_a_prompt_skills_and_a_git_user() {
        let root =
            repository("prompt: ../../AGENTS.md\nskills: [tidy]\ngit: {name: A Gent, email: a@x.test}\n");
        let repo = root.path().join("repo");
        fs::write(repo.join("AGENTS.md"), "be kind").unwrap();
        fs::create_dir_all(repo.join(IN_REPOSITORY).join("tidy/more")).unwrap();
        fs::write(repo.join(IN_REPOSITORY).join("tidy/SKILL.md"), "how").unwrap();
        fs::write(repo.join(IN_REPOSITORY).join("tidy/more/list"), "what").unwrap();
        let own = Agent { preset: Some(Preset::ClaudeCode), ..Agent::default() };
        let luggage = packed(&root, &own).unwrap();
        let file = |path: &str, text: &str| (PathBuf::from(path), text.to_owned());
        assert_eq!(
            luggage.files,
            [
                file("/home/agent/.claude/skills/tidy/SKILL.md", "how"),
                file("/home/agent/.claude/skills/tidy/more/list", "what"),
                file("/home/agent/.claude/CLAUDE.md", "be kind"),
                file("/etc/bottlecap/prompt.md", "be kind"),
            ]
        );
        // Without a name git makes no commit.
        assert_eq!(Luggage::default().gitconfig(), NOBODY);
        assert_eq!(luggage.gitconfig(), "[user]\n\tname = \"A Gent\"\n\temail = \"a@x.test\"\n");
    }

    #[test]
    fn no_path_of_a_repositorys_agent_leads_out_of_it() {
        let outside = ["prompt: ../../../secret\n", "prompt: /etc/hostname\n"];
        for agent in outside {
            let root = repository(agent);
            let told = packed(&root, &Agent::default()).unwrap_err();
            assert!(told.starts_with("cannot read the prompt "), "{told}");
        }
        // The same paths are a person's to use.
        let root = repository("{}");
        let own = Agent { prompt: Some(root.path().join("repo/../secret")), ..Agent::default() };
        let luggage = packed(&root, &own).unwrap();
        assert_eq!(luggage.files, [(PathBuf::from("/etc/bottlecap/prompt.md"), "hunter2".to_owned())]);
    }

    #[test]
    fn a_link_in_a_repository_brings_nothing_of_the_host() {
        let root = repository("prompt: notes.md\n");
        let agents = root.path().join("repo").join(IN_REPOSITORY);
        symlink(root.path().join("secret"), agents.join("notes.md")).unwrap();
        assert!(packed(&root, &Agent::default()).unwrap_err().starts_with("cannot read the prompt notes.md"));
        fs::write(agents.join("review.yaml"), "skills: [tidy]\n").unwrap();
        fs::create_dir(agents.join("tidy")).unwrap();
        fs::write(agents.join("tidy/SKILL.md"), "how").unwrap();
        assert!(packed(&root, &Agent::default()).is_ok(), "without the link");
        symlink(root.path().join("secret"), agents.join("tidy/more.md")).unwrap();
        assert!(packed(&root, &Agent::default()).unwrap_err().starts_with("cannot read tidy/more.md"));
        fs::remove_dir_all(&agents).unwrap();
        symlink(root.path(), &agents).unwrap();
        fs::write(root.path().join("review.yaml"), "{}").unwrap();
        assert!(packed(&root, &Agent::default()).unwrap_err().starts_with("there is no agent review"));
    }

    #[test]
    fn a_pipe_or_a_large_file_is_no_prompt() {
        let root = repository("prompt: notes.md\n");
        let notes = root.path().join("repo").join(IN_REPOSITORY).join("notes.md");
        nix::unistd::mkfifo(&notes, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        assert!(packed(&root, &Agent::default()).unwrap_err().ends_with("not a file"));
        fs::remove_file(&notes).unwrap();
        fs::write(&notes, vec![b'a'; FILE_MAX as usize + 1]).unwrap();
        assert!(packed(&root, &Agent::default()).unwrap_err().ends_with("larger than 256 KiB"));
    }
}
