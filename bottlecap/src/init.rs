//! `bottlecap init`: a first manifest with its routes, commented, for a person to change.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::fault::{Attempted, Fault};
use crate::manifest::Name;
use crate::preset::Preset;

/// Where a user's bottles are described: `bottlecap/bottles/NAME/bottle.yaml` below `XDG_CONFIG_HOME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shelf(PathBuf);

impl Shelf {
    /// That of the user of this process; `variable` is its environment.
    #[must_use]
    pub fn of_user(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<Shelf> {
        let set = |name: &str| variable(name).filter(|path| path.is_absolute());
        let config = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")))?;
        Some(Shelf(config.join("bottlecap/bottles")))
    }

    /// That which the environment of this process names.
    #[must_use]
    pub fn of_process() -> Option<Shelf> {
        Shelf::of_user(|name| std::env::var_os(name).map(PathBuf::from))
    }

    /// The directory of one bottle's files.
    #[must_use]
    pub fn directory(&self, name: &Name) -> PathBuf {
        self.0.join(name.as_str())
    }

    /// Where a user's agents are described, `NAME.yaml` each.
    #[must_use]
    pub fn agents(&self) -> PathBuf {
        self.0.with_file_name("agents")
    }

    /// The same of a bottle that is to be there.
    ///
    /// # Errors
    /// When `word` is a name, and nothing of that name was written.
    pub fn written(&self, word: &Path) -> Result<PathBuf, Fault> {
        let path = self.manifest(word);
        if path == word || path.exists() {
            return Ok(path);
        }
        let name = word.display();
        Err(Fault::refused(format!("no bottle {name} is described: {} is not there", path.display()))
            .with_hint(format!(
                "`bottlecap init {name}` describes one; a file of this directory is ./{name}"
            )))
    }

    /// The manifest that `word` means: a name is always one of this shelf, so that nothing in a working directory can
    /// stand in for it; anything that cannot be a name is a path.
    #[must_use]
    pub fn manifest(&self, word: &Path) -> PathBuf {
        match word.to_str().and_then(|word| word.parse::<Name>().ok()) {
            Some(name) => self.directory(&name).join(MANIFEST),
            None => word.to_owned(),
        }
    }
}

const MANIFEST: &str = "bottle.yaml";

/// Writes the files of a bottle into `directory`, and says what to do next. What is there already stays.
pub fn init(directory: &Path, name: &Name, preset: Preset, out: &mut impl Write) -> Result<(), Fault> {
    let told = || format!("cannot make {}", directory.display());
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).failing(told)?;
    let files = [(MANIFEST, preset.manifest(name)), ("routes.yaml", preset.routes())];
    for (file, _) in &files {
        let path = directory.join(file);
        if fs::symlink_metadata(&path).is_ok() {
            return Err(Fault::refused(format!("{} is there already", path.display()))
                .with_hint("change it, or choose another name or --dir"));
        }
    }
    for (file, text) in &files {
        let path = directory.join(file);
        write_new(&path, text).failing(|| format!("cannot write {}", path.display()))?;
        writeln!(out, "wrote {}", path.display()).failing(|| "cannot print".to_owned())?;
    }
    let key = preset.variable().map(|variable| format!("{variable}=… ")).unwrap_or_default();
    writeln!(
        out,
        "\nnext:\n  {key}bottlecap run --bottle {} -- {}",
        told_as(directory, name),
        preset.command()
    )
    .failing(|| "cannot print".to_owned())
}

/// A bottle of the shelf is called by its name.
fn told_as(directory: &Path, name: &Name) -> String {
    if Shelf::of_process().is_some_and(|shelf| shelf.directory(name) == directory) {
        name.to_string()
    } else {
        directory.join(MANIFEST).display().to_string()
    }
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    File::options().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_the_users_own_bottle_whatever_lies_in_the_working_directory() {
        let shelf = Shelf::of_user(|name| (name == "XDG_CONFIG_HOME").then(|| "/c".into())).expect("set");
        assert_eq!(shelf.manifest(Path::new("web")), Path::new("/c/bottlecap/bottles/web/bottle.yaml"));
        assert_eq!(shelf.manifest(Path::new("./web")), Path::new("./web"));
        assert_eq!(shelf.manifest(Path::new("bottle.yaml")), Path::new("bottle.yaml"));
    }

    #[test]
    fn what_is_there_already_stays() {
        let root = tempfile::tempdir().expect("a directory");
        let name: Name = "web".parse().expect("a name");
        fs::write(root.path().join("routes.yaml"), "mine").expect("written");
        let fault = init(root.path(), &name, Preset::Shell, &mut Vec::new()).expect_err("refused");
        assert!(fault.to_string().ends_with("routes.yaml is there already"), "{fault}");
        assert!(!root.path().join("bottle.yaml").exists());
        assert_eq!(fs::read_to_string(root.path().join("routes.yaml")).expect("read"), "mine");
    }
}
