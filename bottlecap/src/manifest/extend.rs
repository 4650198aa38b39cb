//! A bottle over the one that it extends, and so on: a chain with an end.

use std::path::PathBuf;

use policy::Diagnostics;

use super::draft::{Draft, at};
use super::{Agent, Limits, Manifest};

/// A file of a bottle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its name in messages.
    pub file: String,
    /// Its whole path, without links: what it is known by.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
}

/// How many bottles may stand above each other.
pub const DEPTH_MAX: usize = 8;

/// The bottle that `source` describes. `parent` finds what the word in a file means.
///
/// # Errors
/// What is wrong, in the file where it is.
pub fn resolve(
    source: Source,
    mut parent: impl FnMut(&str, &Source) -> Result<Source, String>,
) -> Result<Manifest, Diagnostics> {
    let mut chain: Vec<Manifest> = Vec::new();
    let mut seen = vec![source.path.clone()];
    let mut next = Some(source);
    while let Some(source) = next.take() {
        let directory = source.path.parent().unwrap_or(std::path::Path::new("/"));
        let Draft { manifest, extends } = Draft::parse(&source.file, &source.text, directory)?;
        chain.push(manifest);
        let Some(extends) = extends else { continue };
        let fail = |message: String| Diagnostics::from(at(&source.file, extends.place, message));
        if chain.len() == DEPTH_MAX {
            return Err(fail(format!("more than {DEPTH_MAX} bottles extend each other")));
        }
        let above = parent(&extends.word, &source).map_err(fail)?;
        if seen.contains(&above.path) {
            return Err(fail(format!("`{}` extends this one again", extends.word.escape_debug())));
        }
        seen.push(above.path.clone());
        next = Some(above);
    }
    let mut merged = chain.into_iter().rev().reduce(|above, below| below.over(above)).unwrap_or_default();
    merged.files = seen;
    Ok(merged)
}

impl Manifest {
    /// What `self` says, and where it says nothing, what `above` says. The name is its own.
    fn over(self, above: Manifest) -> Manifest {
        let Manifest {
            name,
            routes,
            repos,
            secrets,
            env,
            mounts,
            upstream_ca,
            transparent,
            image,
            command,
            limits,
            agent,
            files,
        } = self;
        let mut merged = Manifest {
            name,
            routes: routes.or(above.routes),
            repos: repos.or(above.repos),
            secrets: above.secrets,
            env: above.env,
            mounts: above.mounts,
            upstream_ca: upstream_ca.or(above.upstream_ca),
            transparent: transparent.or(above.transparent),
            image: image.or(above.image),
            command: if command.is_empty() { above.command } else { command },
            limits: limits.over(above.limits),
            agent: agent.over(above.agent),
            files,
        };
        merged.secrets.extend(secrets);
        merged.env.extend(env);
        merged.mounts.extend(mounts);
        merged
    }
}

impl Limits {
    fn over(self, above: Limits) -> Limits {
        Limits {
            memory: self.memory.or(above.memory),
            processes: self.processes.or(above.processes),
            cpu_thousandths: self.cpu_thousandths.or(above.cpu_thousandths),
            place: self.place.or(above.place),
        }
    }
}

impl Agent {
    /// What `self` says, and where it says nothing, what `above` says; its skills beside those.
    #[must_use]
    pub fn over(self, above: Agent) -> Agent {
        let mut skills = above.skills;
        skills.extend(self.skills);
        Agent {
            preset: self.preset.or(above.preset),
            prompt: self.prompt.or(above.prompt),
            skills,
            git: self.git.or(above.git),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::path::Path;

    fn source(name: &str, text: &str) -> Source {
        let path = Path::new("/b").join(name).join("bottle.yaml");
        Source { file: format!("{name}/bottle.yaml"), path, text: text.to_owned() }
    }

    fn resolved(first: &str, bottles: &[(&str, &str)]) -> Result<Manifest, String> {
        let bottles: BTreeMap<&str, &str> = bottles.iter().copied().collect();
        let find = |name: &str| {
            bottles
                .get(name)
                .map(|text| source(name, text))
                .ok_or_else(|| format!("there is no bottle {name}"))
        };
        resolve(find(first).unwrap(), |word, _| find(word)).map_err(|found| found.to_string())
    }

    #[test]
    fn what_a_bottle_says_goes_before_what_it_extends() {
        let base = "name: base\nroutes: base.yaml\nrepos: repos.yaml\nsecrets: {A: {env: BASE}, B: {env: B}}\nenv: {X: '1'}\n\
                    mounts: [{path: /opt}]\ncommand: [bash]\nagent: {preset: codex, skills: [s]}\nlimits: {memory: 1GiB, cpus: 2}\n";
        let web = "name: web\nextends: base\nroutes: routes.yaml\nsecrets: {A: {env: WEB}}\nmounts: [{path: /srv/data}]\n\
                   agent: {skills: [t]}\nlimits: {memory: 2GiB}\n";
        let manifest = resolved("web", &[("base", base), ("web", web)]).unwrap();
        assert_eq!(manifest.name.as_ref().unwrap().as_str(), "web");
        assert_eq!(manifest.routes.as_deref(), Some(Path::new("/b/web/routes.yaml")));
        assert_eq!(
            manifest.repos.as_deref(),
            Some(Path::new("/b/base/repos.yaml")),
            "relative to where it is said"
        );
        let secret = |name: &str| super::super::SecretSource::Variable(name.to_owned());
        assert_eq!(manifest.secrets, [("A".to_owned(), secret("WEB")), ("B".to_owned(), secret("B"))].into());
        assert_eq!(manifest.mounts, [Path::new("/opt"), Path::new("/srv/data")]);
        assert_eq!(manifest.command, ["bash"]);
        assert_eq!(manifest.agent.preset, Some(crate::preset::Preset::Codex));
        assert_eq!(manifest.agent.skills, [Path::new("/b/base/s"), Path::new("/b/web/t")]);
        assert_eq!((manifest.limits.memory, manifest.limits.cpu_thousandths), (Some(2 << 30), Some(2000)));
        assert_eq!(manifest.files, [Path::new("/b/web/bottle.yaml"), Path::new("/b/base/bottle.yaml")]);
    }

    #[test]
    fn a_name_is_not_inherited() {
        let manifest = resolved("web", &[("base", "name: base\n"), ("web", "extends: base\n")]).unwrap();
        assert_eq!(manifest.name, None);
    }

    #[test]
    fn a_circle_is_told_where_it_closes() {
        let circle = [("a", "extends: b\n"), ("b", "name: b\nextends: a\n")];
        assert_eq!(resolved("a", &circle).unwrap_err(), "b/bottle.yaml:2:10: `a` extends this one again");
        assert_eq!(
            resolved("a", &[("a", "extends: a\n")]).unwrap_err(),
            "a/bottle.yaml:1:10: `a` extends this one again"
        );
    }

    #[test]
    fn a_chain_has_an_end() {
        let names: Vec<String> = (0..=DEPTH_MAX).map(|number| format!("b{number}")).collect();
        let texts: Vec<String> = (1..=DEPTH_MAX + 1).map(|number| format!("extends: b{number}\n")).collect();
        let bottles: Vec<(&str, &str)> =
            names.iter().map(String::as_str).zip(texts.iter().map(String::as_str)).collect();
        let told = resolved("b0", &bottles).unwrap_err();
        assert_eq!(told, "b7/bottle.yaml:1:10: more than 8 bottles extend each other");
    }

    #[test]
    fn what_is_wrong_above_is_told_with_its_own_file() {
        let told = resolved("web", &[("base", "{rotues: x}"), ("web", "extends: base\n")]).unwrap_err();
        assert_eq!(told, "base/bottle.yaml:1:2: unknown field `rotues`: did you mean `routes`?");
        let told = resolved("web", &[("web", "extends: bose\n")]).unwrap_err();
        assert_eq!(told, "web/bottle.yaml:1:10: there is no bottle bose");
    }
}
