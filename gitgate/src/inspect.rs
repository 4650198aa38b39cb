//! Every object that a push brings, through the scanner.
//!
//! All new commits are walked, parents first, not only the tips. A tree is compared with the trees
//! of its commit's parents, so that what upstream already has at a path is not judged again, and
//! what a merge adds on its own is.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use git2::{ObjectType, OdbLookupFlags, Oid, Repository, Sort, Tree};
use scan::{Bounds, Finding, Marks, Report, Rules, Scanner, Uninspectable};

use crate::wire::{Lfs, Opaque, Place};

/// The largest object that is judged where no rules say otherwise.
const OBJECT_MAX_BYTES: u64 = 64 << 20;
/// A pointer of git-lfs is shorter.
const LFS_POINTER_MAX_BYTES: usize = 1024;
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\n";
/// How many objections are kept, and how many files that configure git.
const OBJECTIONS_MAX: usize = 20;
/// How much is judged in one push.
const TOTAL_MAX_BYTES: usize = 8 << 30;
/// How many objects are judged in one push.
const OBJECTS_MAX: usize = 500_000;
/// How deep directories may be nested.
const DEPTH_MAX: usize = 256;
/// How long judging may take.
const TIME_MAX: Duration = Duration::from_secs(600);
/// Files at the root that git and git-lfs read as configuration.
const CONFIGURING: [&str; 2] = [".gitmodules", ".lfsconfig"];
const SHORT_ID: usize = 10;
/// How many findings are kept; more say nothing more.
const PLACES_MAX: usize = 200;

/// Why objects could not be judged. Such a push is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InspectError {
    #[error("cannot read the new objects")]
    Git(#[from] git2::Error),
    #[error("{file} has {size} bytes; at most {max} are taken (`max_file`)")]
    ObjectSize { file: String, size: usize, max: u64 },
    #[error(
        "the push brings more than {OBJECTS_MAX} objects or {TOTAL_MAX_BYTES} bytes; push in smaller parts"
    )]
    Amount,
    #[error("{file} is not the kind of object that its tree says")]
    Kind { file: String },
    #[error("the push brings {0} objects that no pushed ref reaches")]
    Strays(usize),
    #[error("directories are nested deeper than {DEPTH_MAX}")]
    Depth,
    #[error("judging the push took longer than {} s; push in smaller parts", TIME_MAX.as_secs())]
    Time,
}

/// What the new objects came to.
#[derive(Debug, Default)]
pub(crate) struct Judgement {
    pub(crate) places: Vec<Place>,
    /// What the rules of the repository do not let through.
    pub(crate) objections: Vec<String>,
    /// Blobs that git reads as configuration, and their names.
    pub(crate) configuring: Vec<(Oid, &'static str)>,
    /// How many objects there are.
    pub(crate) objects: u64,
    /// Which they are.
    pub(crate) content: BTreeSet<Oid>,
    /// How large, without the lists of names.
    pub(crate) bytes: usize,
    /// Objects of the repository itself that the push needs, or brings a second time.
    pub(crate) taken: BTreeSet<Oid>,
}

/// What is asked of objects beside that they hold no secret.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) max_file: u64,
    pub(crate) author_domains: Vec<String>,
    pub(crate) lfs: Lfs,
    pub(crate) opaque: Opaque,
    pub(crate) rules: &'static Rules,
    /// Names what is found, and passes over what is excepted.
    pub(crate) marks: Option<Arc<Marks>>,
}

impl Asked {
    /// Nothing but the bound that judging needs.
    pub(crate) fn nothing(rules: &'static Rules) -> Self {
        let (lfs, opaque) = (Lfs::Pass, Opaque::Pass);
        Self { max_file: OBJECT_MAX_BYTES, author_domains: Vec::new(), lfs, opaque, rules, marks: None }
    }

    fn search(&self, bytes: &[u8]) -> Report {
        let mut scanner = Scanner::new(self.rules, None, Bounds::default());
        if let Some(marks) = &self.marks {
            scanner = scanner.marked(Arc::clone(marks));
        }
        scanner.feed(bytes);
        scanner.finish()
    }
}

/// What is found in the objects that `tips` reach and `known` do not.
pub(crate) fn new_objects(
    repo: &Repository,
    tips: &[Oid],
    known: &[Oid],
    asked: &Asked,
) -> Result<Judgement, InspectError> {
    Ok(inspect(repo, tips, known, asked)?.judgement())
}

/// The same for a push, whose objects lie in a directory of their own beside the repository's.
///
/// An object there that no tip reaches is an error: it would come into the mirror without having been judged.
pub(crate) fn quarantined(
    repo: &Repository,
    quarantine: &Path,
    tips: &[Oid],
    known: &[Oid],
    asked: &Asked,
) -> Result<Judgement, InspectError> {
    let own = Repository::open_bare(repo.path())?;
    let own = own.odb()?;
    let inspection = inspect(repo, tips, known, asked)?;
    let brought = git2::Odb::new()?;
    brought.add_disk_alternate(&quarantine.to_string_lossy())?;
    let mut strays = 0;
    let mut taken = inspection.new_ones();
    brought.foreach(|oid| {
        // What git completes a pack with, so that its differences lead to something, is there twice.
        if own.exists_ext(*oid, OdbLookupFlags::NO_REFRESH) {
            taken.insert(*oid);
        } else {
            taken.remove(oid);
            strays += usize::from(!inspection.seen.contains(oid));
        }
        true
    })?;
    let judgement = Judgement { taken, ..inspection.judgement() };
    if strays > 0 { Err(InspectError::Strays(strays)) } else { Ok(judgement) }
}

fn inspect<'r>(
    repo: &'r Repository,
    tips: &[Oid],
    known: &'r [Oid],
    asked: &'r Asked,
) -> Result<Inspection<'r>, InspectError> {
    let mut inspection = Inspection {
        repo,
        odb: repo.odb()?,
        known,
        asked,
        objections: Vec::new(),
        configuring: Vec::new(),
        upstream_blobs: None,
        seen: known.iter().copied().collect(),
        places: Vec::new(),
        bytes: 0,
        deadline: Instant::now() + TIME_MAX,
    };
    let mut walk = repo.revwalk()?;
    walk.set_sorting(Sort::TOPOLOGICAL | Sort::REVERSE)?;
    for tip in tips {
        if let Some(commit) = inspection.tip(*tip)? {
            walk.push(commit)?;
        }
    }
    for oid in known {
        if let Ok(commit) = repo.find_object(*oid, None).and_then(|o| o.peel_to_commit()) {
            walk.hide(commit.id())?;
        }
    }
    for commit in walk {
        inspection.commit(commit?)?;
    }
    Ok(inspection)
}

/// What is found in a name.
pub(crate) fn name(name: &str, kind: &str, asked: &Asked) -> Vec<Place> {
    let findings = asked.search(name.as_bytes()).findings;
    findings.into_iter().map(|finding| place(finding, None, None, kind)).collect()
}

struct Inspection<'r> {
    repo: &'r Repository,
    odb: git2::Odb<'r>,
    known: &'r [Oid],
    asked: &'r Asked,
    objections: Vec<String>,
    configuring: Vec<(Oid, &'static str)>,
    /// Blobs of upstream's newest trees; read when the first finding asks for them.
    upstream_blobs: Option<HashSet<Oid>>,
    seen: HashSet<Oid>,
    places: Vec<Place>,
    bytes: usize,
    deadline: Instant,
}

impl Inspection<'_> {
    fn new_ones(&self) -> BTreeSet<Oid> {
        let known: HashSet<&Oid> = self.known.iter().collect();
        self.seen.iter().filter(|oid| !known.contains(oid)).copied().collect()
    }

    fn judgement(self) -> Judgement {
        let content = self.new_ones();
        let objects = content.len();
        Judgement {
            content,
            taken: BTreeSet::new(),
            bytes: self.bytes,
            places: self.places,
            objections: self.objections,
            configuring: self.configuring,
            objects: objects as u64,
        }
    }

    /// Judges what a ref points to directly; the commit it leads to, if any.
    fn tip(&mut self, tip: Oid) -> Result<Option<Oid>, InspectError> {
        let mut oid = tip;
        loop {
            let (_, kind) = self.odb.read_header(oid)?;
            match kind {
                ObjectType::Commit => return Ok(Some(oid)),
                ObjectType::Tree => {
                    let tree = self.repo.find_tree(oid)?;
                    self.tree(&tree, &[], "", None, 0)?;
                    return Ok(None);
                }
                ObjectType::Tag => {
                    if self.first_sight(oid)? {
                        self.object(oid, kind, "(tag)", None)?;
                    }
                    let tag = self.repo.find_tag(oid)?;
                    if let Some(tagger) = tag.tagger() {
                        self.address(tagger.email_bytes(), "tagger", oid);
                    }
                    oid = tag.target_id();
                }
                _ => {
                    if self.first_sight(oid)? {
                        self.object(oid, kind, "(object)", None)?;
                    }
                    return Ok(None);
                }
            }
        }
    }

    fn commit(&mut self, oid: Oid) -> Result<(), InspectError> {
        self.first_sight(oid)?;
        self.size(oid, "(commit)")?;
        let commit = self.repo.find_commit(oid)?;
        self.address(commit.author().email_bytes(), "author", oid);
        self.address(commit.committer().email_bytes(), "committer", oid);
        // The bytes as they are stored: what parses a commit stops at a zero byte.
        let raw = self.odb.read(oid)?.data().to_vec();
        let end = raw.windows(2).position(|w| w == b"\n\n").map_or(raw.len(), |at| at + 2);
        let (header, message) = raw.split_at(end);
        self.text(header, "(commit header)", oid);
        self.text(message, "(commit message)", oid);
        let parents: Vec<Tree<'_>> = commit.parents().map(|p| p.tree()).collect::<Result<_, _>>()?;
        self.tree(&commit.tree()?, &parents, "", Some(oid), 0)
    }

    fn tree(
        &mut self,
        tree: &Tree<'_>,
        parents: &[Tree<'_>],
        path: &str,
        commit: Option<Oid>,
        depth: usize,
    ) -> Result<(), InspectError> {
        if depth > DEPTH_MAX {
            return Err(InspectError::Depth);
        }
        if !self.first_sight(tree.id())? {
            return Ok(());
        }
        for entry in tree {
            let old: Vec<_> = parents.iter().filter_map(|p| same_name(p, entry.name_bytes())).collect();
            if old.iter().any(|(id, kind)| *id == entry.id() && Some(*kind) == entry.kind()) {
                continue;
            }
            let path = format!("{path}{}", String::from_utf8_lossy(entry.name_bytes()));
            if old.is_empty() {
                self.path(&path, commit);
            }
            match entry.kind() {
                Some(ObjectType::Tree) => {
                    let trees = old.iter().filter(|(_, kind)| *kind == ObjectType::Tree);
                    let parents: Vec<_> =
                        trees.map(|(id, _)| self.repo.find_tree(*id)).collect::<Result<_, _>>()?;
                    let subtree = self.repo.find_tree(entry.id())?;
                    self.tree(&subtree, &parents, &format!("{path}/"), commit, depth + 1)?;
                }
                Some(ObjectType::Blob) => {
                    if let Some(name) = CONFIGURING.into_iter().find(|name| path.eq_ignore_ascii_case(name)) {
                        self.configuring.push((entry.id(), name));
                    }
                    if self.first_sight(entry.id())? {
                        self.object(entry.id(), ObjectType::Blob, &path, commit)?;
                    }
                }
                // Seen before, or a submodule: the name of a commit in another repository.
                _ => {}
            }
        }
        Ok(())
    }

    fn object(
        &mut self,
        oid: Oid,
        kind: ObjectType,
        file: &str,
        commit: Option<Oid>,
    ) -> Result<(), InspectError> {
        if self.size(oid, file)? != kind {
            return Err(InspectError::Kind { file: file.to_owned() });
        }
        let (pointer, Report { findings, uninspectable }) = {
            let object = self.odb.read(oid)?;
            let bytes = object.data();
            let pointer = bytes.len() < LFS_POINTER_MAX_BYTES && bytes.starts_with(LFS_POINTER);
            (pointer, self.asked.search(bytes))
        };
        if let (Some(reason), Opaque::Refuse) = (uninspectable.filter(hides), self.asked.opaque) {
            self.object_to(format!("{file} cannot be looked into: {reason}; commit what is in it, or ask the operator for `opaque: true`"));
        }
        if pointer && self.asked.lfs == Lfs::Refuse {
            self.object_to(format!(
                "{file} is a pointer of git-lfs, whose content does not go through this gate; commit the file itself \
                 (git lfs migrate export), or ask the operator for `lfs: true`"
            ));
        }
        if !findings.is_empty() && !self.upstream_has(oid)? {
            self.add(findings.into_iter().map(|finding| place(finding, commit, Some(oid), file)));
        }
        Ok(())
    }

    /// Counts an object in, if it is not too large; its kind.
    fn size(&mut self, oid: Oid, file: &str) -> Result<ObjectType, InspectError> {
        let (size, kind) = self.odb.read_header(oid)?;
        let max = self.asked.max_file;
        if size as u64 > max {
            return Err(InspectError::ObjectSize { file: file.to_owned(), size, max });
        }
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > TOTAL_MAX_BYTES { Err(InspectError::Amount) } else { Ok(kind) }
    }

    /// Asks whose address it is.
    fn address(&mut self, email: &[u8], role: &str, commit: Oid) {
        let domains = &self.asked.author_domains;
        if domains.is_empty() {
            return;
        }
        let email = String::from_utf8_lossy(email).to_ascii_lowercase();
        let domain = email.rsplit_once('@').map_or("", |(_, domain)| domain);
        if !domains.iter().any(|allowed| allowed == domain) {
            let (id, all) = (commit.to_string(), domains.join(", "));
            self.object_to(format!(
                "the {role} of {} has an address outside of {all}; set user.email and rewrite it \
                 (git commit --amend --reset-author)",
                &id[..SHORT_ID]
            ));
        }
    }

    fn object_to(&mut self, objection: String) {
        if self.objections.len() < OBJECTIONS_MAX && !self.objections.contains(&objection) {
            self.objections.push(objection);
        }
    }

    fn text(&mut self, bytes: &[u8], label: &str, commit: Oid) {
        let findings = self.asked.search(bytes).findings;
        self.add(findings.into_iter().map(|finding| place(finding, Some(commit), None, label)));
    }

    fn path(&mut self, path: &str, commit: Option<Oid>) {
        let findings = self.asked.search(path.as_bytes()).findings;
        self.add(findings.into_iter().map(|finding| place(finding, commit, None, "(file name)")));
    }

    fn add(&mut self, places: impl Iterator<Item = Place>) {
        let room = PLACES_MAX - self.places.len().min(PLACES_MAX);
        self.places.extend(places.take(room));
    }

    /// Whether an object comes into view for the first time; also where the bounds are kept.
    fn first_sight(&mut self, oid: Oid) -> Result<bool, InspectError> {
        if self.seen.len() > OBJECTS_MAX + self.known.len() {
            return Err(InspectError::Amount);
        }
        if Instant::now() > self.deadline {
            return Err(InspectError::Time);
        }
        Ok(self.seen.insert(oid))
    }

    /// Whether the newest trees of upstream hold this blob, so that moving it tells nothing new.
    fn upstream_has(&mut self, blob: Oid) -> Result<bool, InspectError> {
        if self.upstream_blobs.is_none() {
            let mut blobs = HashSet::new();
            let mut trees = HashSet::new();
            for oid in self.known {
                if let Ok(tree) = self.repo.find_object(*oid, None).and_then(|o| o.peel_to_tree()) {
                    self.collect(&tree, &mut trees, &mut blobs, 0)?;
                }
            }
            self.upstream_blobs = Some(blobs);
        }
        Ok(self.upstream_blobs.as_ref().is_some_and(|blobs| blobs.contains(&blob)))
    }

    fn collect(
        &self,
        tree: &Tree<'_>,
        trees: &mut HashSet<Oid>,
        blobs: &mut HashSet<Oid>,
        depth: usize,
    ) -> Result<(), InspectError> {
        if depth > DEPTH_MAX || !trees.insert(tree.id()) {
            return Ok(());
        }
        if Instant::now() > self.deadline {
            return Err(InspectError::Time);
        }
        for entry in tree {
            match entry.kind() {
                Some(ObjectType::Blob) => {
                    blobs.insert(entry.id());
                }
                Some(ObjectType::Tree) => {
                    self.collect(&self.repo.find_tree(entry.id())?, trees, blobs, depth + 1)?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether something may stand where the scanner did not look. What is merely damaged was read as far as it can be.
fn hides(reason: &Uninspectable) -> bool {
    match reason {
        Uninspectable::Encoding
        | Uninspectable::Archive
        | Uninspectable::Encrypted
        | Uninspectable::Size
        | Uninspectable::Depth
        | Uninspectable::Memory => true,
        Uninspectable::Damaged => false,
    }
}

fn same_name(tree: &Tree<'_>, name: &[u8]) -> Option<(Oid, ObjectType)> {
    let entry = tree.get_name_bytes(name)?;
    Some((entry.id(), entry.kind()?))
}

pub(crate) fn place(finding: Finding, commit: Option<Oid>, object: Option<Oid>, file: &str) -> Place {
    let Finding { rule, line, line_end, column, mark, .. } = finding;
    Place {
        rule: rule.to_owned(),
        commit: commit.map(|oid| oid.to_string()),
        object: object.map(|oid| oid.to_string()),
        file: file.to_owned(),
        line,
        line_end,
        column,
        fingerprint: mark.map(|mark| mark.to_string()),
    }
}
