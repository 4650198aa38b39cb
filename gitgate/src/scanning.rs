//! `git-gate scan`: the scanner as a program.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use git2::{Oid, Repository};
use scan::Rules;
use serde::Serialize;

use crate::cli::Scan;
use crate::daemon::Failure;
use crate::inspect;
use crate::wire::Place;

/// How many zeros stand for no object.
const ZEROS_MIN: usize = 40;

/// What a scan came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was found.
    Clean,
    /// Something was.
    Found,
}

/// Scans what the command line names and prints the findings.
pub fn run(options: &Scan) -> Result<Outcome, Failure> {
    let rules = match &options.rules {
        None => Rules::builtin(),
        Some(path) => with(path).map_err(Failure::Configuration)?,
    };
    let mut out = Printer { rules, json: options.json, found: false, out: io::stdout().lock() };
    match &options.range {
        Some(range) => {
            let repo = open(&options.path)?;
            let (tips, known) = resolve(&repo, range).map_err(Failure::Configuration)?;
            out.objects(&repo, &tips, &known).map_err(Failure::Broken)?;
        }
        None if is_bare(&options.path) => {
            let repo = open(&options.path)?;
            let tips = all_refs(&repo).map_err(|e| Failure::Broken(e.into()))?;
            out.objects(&repo, &tips, &[]).map_err(Failure::Broken)?;
        }
        None => {
            let files = files(&options.path)?;
            let base = if options.path.is_dir() { options.path.as_path() } else { Path::new("") };
            for file in files {
                out.file(base, &file).map_err(Failure::Broken)?;
            }
        }
    }
    Ok(if out.found { Outcome::Found } else { Outcome::Clean })
}

/// The rules that are built in, and those of a file. They last as long as the program.
fn with(path: &Path) -> anyhow::Result<&'static Rules> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let rules = Rules::with_gitleaks(&text).with_context(|| format!("cannot use {}", path.display()))?;
    Ok(Box::leak(Box::new(rules)))
}

/// A line of `--json`.
#[derive(Serialize)]
struct Line<'a> {
    file: &'a str,
    line: u32,
    line_end: u32,
    column: u32,
    rule: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<&'a str>,
}

struct Printer<W> {
    rules: &'static Rules,
    json: bool,
    found: bool,
    out: W,
}

impl<W: Write> Printer<W> {
    fn objects(&mut self, repo: &Repository, tips: &[Oid], known: &[Oid]) -> anyhow::Result<()> {
        for place in inspect::new_objects(repo, tips, known, &inspect::Asked::nothing(self.rules))?.places {
            self.print(&place)?;
        }
        Ok(())
    }

    fn file(&mut self, base: &Path, path: &Path) -> anyhow::Result<()> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.strip_prefix(base).unwrap_or(path).to_string_lossy().into_owned();
        for finding in self.rules.scan(&bytes) {
            self.print(&inspect::place(finding, None, None, &name))?;
        }
        Ok(())
    }

    fn print(&mut self, place: &Place) -> anyhow::Result<()> {
        self.found = true;
        let Place { rule, commit, object, file, line, line_end, column, fingerprint: _ } = place;
        let (commit, object) = (commit.as_deref(), object.as_deref());
        if self.json {
            let line = Line { file, line: *line, line_end: *line_end, column: *column, rule, commit, object };
            serde_json::to_writer(&mut self.out, &line)?;
            writeln!(self.out)?;
        } else {
            let of = commit.map(|c| format!(" in commit {}", &c[..c.len().min(10)])).unwrap_or_default();
            writeln!(
                self.out,
                "{}:{line}:{column}: {rule}{of}",
                crate::git::printable(file).replace('\n', " ")
            )?;
        }
        Ok(())
    }
}

/// `A..B`, or one revision and everything before it.
fn resolve(repo: &Repository, range: &str) -> anyhow::Result<(Vec<Oid>, Vec<Oid>)> {
    if let Some((from, to)) = range.split_once("..")
        && from.len() >= ZEROS_MIN
        && from.bytes().all(|b| b == b'0')
    {
        // As hooks write it of a new ref: everything that no ref leads to yet.
        let to = repo.revparse_single(to).with_context(|| format!("`{to}` is not a revision"))?;
        return Ok((vec![to.id()], all_refs(repo)?));
    }
    let one = |text: &str| {
        let text = if text.is_empty() { "HEAD" } else { text };
        let object = repo.revparse_single(text).with_context(|| format!("`{text}` is not a revision"))?;
        anyhow::Ok(object.id())
    };
    if range.contains("...") {
        return Err(anyhow!("`A...B` is not supported; write `A..B`"));
    }
    match range.split_once("..") {
        Some((from, to)) => Ok((vec![one(to)?], vec![one(from)?])),
        None => Ok((vec![one(range)?], Vec::new())),
    }
}

fn all_refs(repo: &Repository) -> Result<Vec<Oid>, git2::Error> {
    let mut tips = Vec::new();
    for reference in repo.references()? {
        tips.extend(reference?.target());
    }
    Ok(tips)
}

fn open(path: &Path) -> Result<Repository, Failure> {
    let repo = Repository::open(path)
        .with_context(|| format!("{} is not a git repository", path.display()))
        .map_err(Failure::Configuration)?;
    for objects in given_objects() {
        let added = repo.odb().and_then(|odb| odb.add_disk_alternate(&objects.to_string_lossy()));
        added
            .with_context(|| format!("cannot read the objects in {}", objects.display()))
            .map_err(Failure::Configuration)?;
    }
    Ok(repo)
}

/// Where git says that objects are beside those of the repository: in a hook, what a push brings lies there.
fn given_objects() -> Vec<PathBuf> {
    let mut given: Vec<PathBuf> = ["GIT_QUARANTINE_PATH", "GIT_OBJECT_DIRECTORY"]
        .into_iter()
        .filter_map(std::env::var_os)
        .map(PathBuf::from)
        .collect();
    let others = std::env::var_os("GIT_ALTERNATE_OBJECT_DIRECTORIES").unwrap_or_default();
    given.extend(std::env::split_paths(&others));
    let mut given: Vec<PathBuf> = given.iter().filter_map(|path| path.canonicalize().ok()).collect();
    given.sort();
    given.dedup();
    given
}

fn is_bare(path: &Path) -> bool {
    path.join("HEAD").is_file() && path.join("objects").is_dir() && path.join("refs").is_dir()
}

/// The regular files below a path, of git's own only its configuration, in order of their names.
fn files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let meta = fs::metadata(path)
        .with_context(|| format!("cannot read {}", path.display()))
        .map_err(Failure::Configuration)?;
    if !meta.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    let mut waiting = vec![path.to_owned()];
    while let Some(dir) = waiting.pop() {
        let broken =
            |e: io::Error| Failure::Broken(anyhow!(e).context(format!("cannot read {}", dir.display())));
        for entry in fs::read_dir(&dir).map_err(broken)? {
            let entry = entry.map_err(broken)?;
            let kind = entry.file_type().map_err(broken)?;
            if kind.is_dir() && entry.file_name() == ".git" {
                // Objects are another matter, but the address of a remote may hold a password.
                found.extend(Some(entry.path().join("config")).filter(|config| config.is_file()));
            } else if kind.is_dir() {
                waiting.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}
