//! What an upstream shows: its refs, as far as they may be read, and where its HEAD leads.
//!
//! Names lie one behind the other in one text, so that a million refs are some tens of megabytes.

use git2::Oid;
use repos::FetchRules;

/// How many refs are taken.
pub(crate) const REFS_MAX: usize = 2_000_000;
/// How long a name may be, and all of them together.
pub(crate) const NAME_MAX_BYTES: usize = 1024;
const NAMES_MAX_BYTES: usize = 160 << 20;
/// The names that the gate keeps for itself, and the one of them to which HEAD leads where it leads nowhere. No ref that an
/// upstream shows is taken under them.
const OWN: &str = "refs/git-gate/";
pub(crate) const NOWHERE: &str = "refs/git-gate/nowhere";

/// Where HEAD leads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Head {
    /// Nowhere that may be read.
    #[default]
    Hidden,
    /// To a branch, which may not exist yet.
    Branch(String),
    /// To a commit.
    Commit(Oid),
}

/// One ref.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown<'l> {
    pub(crate) name: &'l str,
    pub(crate) oid: Oid,
    /// What a tag leads to in the end.
    pub(crate) peeled: Option<Oid>,
}

/// What upstream shows, in order of the names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) head: Head,
    names: String,
    refs: Vec<Entry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    start: u32,
    length: u32,
    oid: Oid,
    peeled: Option<Oid>,
}

impl Listing {
    pub(crate) fn len(&self) -> usize {
        self.refs.len()
    }

    /// All refs, in order of their names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Shown<'_>> {
        self.refs.iter().map(|entry| self.shown(entry))
    }

    /// The ref of that name.
    pub(crate) fn find(&self, name: &str) -> Option<Shown<'_>> {
        let at = self.refs.binary_search_by(|entry| self.shown(entry).name.cmp(name)).ok()?;
        self.refs.get(at).map(|entry| self.shown(entry))
    }

    /// Whether some ref leads to this object, at once or as a tag.
    pub(crate) fn shows(&self, oid: Oid) -> bool {
        self.iter().any(|shown| shown.oid == oid || shown.peeled == Some(oid))
    }

    fn shown(&self, entry: &Entry) -> Shown<'_> {
        let (start, end) = (entry.start as usize, entry.start as usize + entry.length as usize);
        Shown { name: &self.names[start..end], oid: entry.oid, peeled: entry.peeled }
    }
}

/// Why what upstream says is no listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unlisted {
    /// There is more than is taken.
    Much,
    /// A name is longer than is taken.
    Name,
    /// It is not what it should be.
    Malformed,
}

/// A listing as it comes in, of what the rules allow to be read.
pub(crate) struct Gathering<'r> {
    rules: &'r FetchRules,
    listing: Listing,
    /// Whether it is known which branch HEAD leads to.
    led: bool,
}

impl<'r> Gathering<'r> {
    pub(crate) fn new(rules: &'r FetchRules) -> Self {
        Self { rules, listing: Listing::default(), led: false }
    }

    /// Takes a ref in. `HEAD` that leads to no branch counts as a commit.
    pub(crate) fn add(&mut self, name: &str, oid: Oid, peeled: Option<Oid>) -> Result<(), Unlisted> {
        if name == "HEAD" {
            if !self.led {
                self.listing.head = Head::Commit(oid);
            }
            return Ok(());
        }
        // Upstream's git would not take a name that is none; a stranger in its place might say one.
        if !self.allowed(name) || !git2::Reference::is_valid_name(name) {
            return Ok(());
        }
        if name.len() > NAME_MAX_BYTES {
            return Err(Unlisted::Name);
        }
        let Listing { names, refs, .. } = &mut self.listing;
        let (Ok(start), Ok(length)) = (u32::try_from(names.len()), u32::try_from(name.len())) else {
            return Err(Unlisted::Much);
        };
        if refs.len() >= REFS_MAX || names.len() + name.len() > NAMES_MAX_BYTES {
            return Err(Unlisted::Much);
        }
        names.push_str(name);
        refs.push(Entry { start, length, oid, peeled });
        Ok(())
    }

    /// Takes note of what the tag that came last leads to.
    pub(crate) fn peel(&mut self, name: &str, peeled: Oid) {
        let last = self.listing.refs.last().map(|entry| self.listing.shown(entry).name);
        if last == Some(name)
            && let Some(entry) = self.listing.refs.last_mut()
        {
            entry.peeled = Some(peeled);
        }
    }

    /// Takes note of the branch that HEAD leads to.
    pub(crate) fn head(&mut self, target: &str) {
        self.led = true;
        let taken = self.allowed(target) && target.len() <= NAME_MAX_BYTES;
        self.listing.head = if taken { Head::Branch(target.to_owned()) } else { Head::Hidden };
    }

    /// Takes a line of `git ls-remote --symref`.
    pub(crate) fn line(&mut self, line: &str) -> Result<(), Unlisted> {
        let Some((value, name)) = line.split_once('\t') else {
            return Ok(());
        };
        if let Some(target) = value.strip_prefix("ref: ") {
            if name == "HEAD" {
                self.head(target);
            }
            return Ok(());
        }
        let oid = Oid::from_str(value).map_err(|_| Unlisted::Malformed)?;
        match name.strip_suffix("^{}") {
            Some(name) => {
                self.peel(name, oid);
                Ok(())
            }
            None => self.add(name, oid, None),
        }
    }

    /// The whole.
    pub(crate) fn end(self) -> Result<Listing, Unlisted> {
        let mut listing = self.listing;
        let Listing { names, refs, .. } = &mut listing;
        let name = |entry: &Entry| &names[entry.start as usize..entry.start as usize + entry.length as usize];
        // The order is part of what makes two listings equal.
        if !refs.is_sorted_by(|a, b| name(a) < name(b)) {
            let mut sorted: Vec<Shown<'_>> = refs
                .iter()
                .map(|entry| Shown { name: name(entry), oid: entry.oid, peeled: entry.peeled })
                .collect();
            sorted.sort_by(|a, b| a.name.cmp(b.name));
            if !sorted.is_sorted_by(|a, b| a.name < b.name) {
                return Err(Unlisted::Malformed);
            }
            let mut again = Gathering::new(self.rules);
            for Shown { name, oid, peeled } in sorted {
                again.add(name, oid, peeled)?;
            }
            again.listing.head = listing.head;
            listing = again.listing;
        }
        listing.names.shrink_to_fit();
        listing.refs.shrink_to_fit();
        Ok(listing)
    }

    fn allowed(&self, name: &str) -> bool {
        !name.starts_with(OWN) && self.rules.allow.iter().any(|pattern| pattern.matches(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "1111111111111111111111111111111111111111";
    const B: &str = "2222222222222222222222222222222222222222";

    fn rules(patterns: &[&str]) -> FetchRules {
        FetchRules {
            allow: patterns.iter().filter_map(|p| repos::RefPattern::parse(p).ok()).collect(),
            stale: repos::Stale::Refuse,
        }
    }

    fn listing(patterns: &[&str], lines: &[String]) -> Result<Listing, Unlisted> {
        let rules = rules(patterns);
        let mut gathering = Gathering::new(&rules);
        for line in lines {
            gathering.line(line)?;
        }
        gathering.end()
    }

    fn lines() -> Vec<String> {
        [
            "ref: refs/heads/main\tHEAD".to_owned(),
            format!("{A}\tHEAD"),
            format!("{A}\trefs/pull/1/head"),
            format!("{A}\trefs/tags/v1"),
            format!("{B}\trefs/tags/v1^{{}}"),
            format!("{A}\trefs/heads/main"),
        ]
        .into()
    }

    fn oid(text: &str) -> Oid {
        Oid::from_str(text).expect("a name")
    }

    #[test]
    fn a_listing_holds_what_may_be_read_in_order() {
        let listing = listing(&["refs/heads/*", "refs/tags/*"], &lines()).expect("a listing");
        let main = Shown { name: "refs/heads/main", oid: oid(A), peeled: None };
        let tag = Shown { name: "refs/tags/v1", oid: oid(A), peeled: Some(oid(B)) };
        assert_eq!(listing.iter().collect::<Vec<_>>(), [main, tag]);
        assert_eq!(listing.head, Head::Branch("refs/heads/main".into()));
        assert_eq!(listing.find("refs/tags/v1"), Some(tag));
        assert_eq!(listing.find("refs/pull/1/head"), None);
    }

    #[test]
    fn a_head_that_may_not_be_read_is_not_followed() {
        assert_eq!(listing(&["refs/tags/*"], &lines()).expect("a listing").head, Head::Hidden);
        let detached = [format!("{B}\tHEAD"), format!("{A}\trefs/tags/v1")];
        assert_eq!(listing(&["refs/tags/*"], &detached).expect("a listing").head, Head::Commit(oid(B)));
    }

    #[test]
    fn what_comes_twice_or_is_no_name_is_no_listing() {
        let twice = [format!("{A}\trefs/heads/a"), format!("{B}\trefs/heads/a")];
        assert_eq!(listing(&["refs/heads/*"], &twice), Err(Unlisted::Malformed));
        assert_eq!(listing(&["refs/heads/*"], &["xyz\trefs/heads/a".into()]), Err(Unlisted::Malformed));
    }

    #[test]
    fn names_are_bounded_one_by_one_and_together() {
        let named = |length: usize| format!("{A}\trefs/heads/{}", "x".repeat(length - "refs/heads/".len()));
        let all = ["refs/heads/*"];
        assert_eq!(listing(&all, &[named(NAME_MAX_BYTES)]).map(|listing| listing.len()), Ok(1));
        assert_eq!(listing(&all, &[named(NAME_MAX_BYTES + 1)]), Err(Unlisted::Name));
        assert_eq!(listing(&["refs/tags/*"], &[named(5000)]).map(|listing| listing.len()), Ok(0));
        let rules = rules(&all);
        let mut gathering = Gathering::new(&rules);
        let oid = oid(A);
        let most = NAMES_MAX_BYTES / NAME_MAX_BYTES;
        let name = |n: usize| format!("refs/heads/{n:0width$}", width = NAME_MAX_BYTES - "refs/heads/".len());
        assert!((0..most).all(|n| gathering.add(&name(n), oid, None).is_ok()));
        assert_eq!(gathering.add(&name(most), oid, None), Err(Unlisted::Much));
    }

    #[test]
    fn what_the_gate_names_itself_is_not_taken_from_upstream() {
        let lines = [format!("{A}\t{NOWHERE}"), format!("{A}\trefs/heads/main")];
        let listing = listing(&["refs/*"], &lines).expect("a listing");
        assert_eq!(listing.iter().map(|shown| shown.name).collect::<Vec<_>>(), ["refs/heads/main"]);
    }
}
