//! What a reader may say with a command of protocol v2.

use std::collections::BTreeSet;

use git2::Oid;

use super::MALFORMED;

const FILTER: &str = "this filter is not served; blob:none, blob:limit=, tree: and object:type= are";
/// How many digits the name of an object has.
const OID_DIGITS: usize = 40;
/// The depth by which git means everything.
const DEPTH_ENDLESS: u32 = 0x7fff_ffff;
/// How many prefixes of refs are looked at.
const PREFIXES_MAX: usize = 1000;

/// The arguments of one command.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// Whether the whole answer is in bands, so that words can come before it.
    pub(crate) banded: bool,
    pub(crate) wants: BTreeSet<Oid>,
    /// Where the history ends that the client has.
    pub(crate) shallows: BTreeSet<Oid>,
    /// Whether it asks for all that comes before.
    pub(crate) whole_history: bool,
    pub(crate) peel: bool,
    pub(crate) symrefs: bool,
    pub(crate) unborn: bool,
    pub(crate) prefixes: Vec<String>,
    /// Whether there were too many prefixes.
    pub(crate) all: bool,
}

impl Arguments {
    /// Takes one line in. Git reads some lines by their beginning only, so what is not exactly known is refused: it would
    /// mean something else there than here.
    pub(crate) fn understand(&mut self, line: &[u8]) -> Result<(), &'static str> {
        let line = std::str::from_utf8(line).ok().filter(|line| !line.contains('\0')).ok_or(MALFORMED)?;
        let Some((key, value)) = line.split_once(' ') else {
            match line {
                "sideband-all" => self.banded = true,
                "peel" => self.peel = true,
                "symrefs" => self.symrefs = true,
                "unborn" => self.unborn = true,
                "done" | "thin-pack" | "no-progress" | "include-tag" | "ofs-delta" | "wait-for-done"
                | "deepen-relative" => {}
                _ => return Err(MALFORMED),
            }
            return Ok(());
        };
        match key {
            "want" => drop(self.wants.insert(oid(value)?)),
            "shallow" => drop(self.shallows.insert(oid(value)?)),
            "have" => drop(oid(value)?),
            "deepen" => self.whole_history |= depth(value)? == DEPTH_ENDLESS,
            "deepen-since" => digits(value)?,
            "deepen-not" if !value.is_empty() => {}
            "filter" if is_filter(value) => {}
            "filter" => return Err(FILTER),
            "ref-prefix" => self.prefix(value),
            _ => return Err(MALFORMED),
        }
        Ok(())
    }

    /// Prefixes are a hint: of very many none counts.
    fn prefix(&mut self, prefix: &str) {
        if self.prefixes.len() >= PREFIXES_MAX {
            self.prefixes = Vec::new();
            self.all = true;
        }
        if !self.all {
            self.prefixes.push(prefix.to_owned());
        }
    }

    /// What git may take objects from: with an endless depth also what comes before the ends that the client names.
    pub(crate) fn sources(&self) -> BTreeSet<Oid> {
        let ends = self.shallows.iter().filter(|_| self.whole_history);
        self.wants.iter().chain(ends).copied().collect()
    }
}

/// The full name of an object and nothing else.
fn oid(value: &str) -> Result<Oid, &'static str> {
    let whole = value.len() == OID_DIGITS && value.bytes().all(|b| b.is_ascii_hexdigit());
    if whole { Oid::from_str(value).map_err(|_| MALFORMED) } else { Err(MALFORMED) }
}

fn digits(value: &str) -> Result<(), &'static str> {
    let plain = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    if plain { Ok(()) } else { Err(MALFORMED) }
}

/// A depth as git writes it; git itself would also read other bases, and cut off what is too large.
fn depth(value: &str) -> Result<u32, &'static str> {
    digits(value)?;
    let depth = value.parse().ok().filter(|_| !value.starts_with('0'));
    depth.filter(|depth| *depth <= DEPTH_ENDLESS).ok_or(MALFORMED)
}

/// A filter that names no object of its own.
fn is_filter(value: &str) -> bool {
    let one = |filter: &str| match filter.split_once([':', '=']) {
        Some(("blob", "none")) => true,
        Some(("blob", limit)) => limit.strip_prefix("limit=").is_some_and(|n| {
            n.strip_suffix(['k', 'K', 'm', 'M', 'g', 'G']).map_or(digits(n), digits).is_ok()
        }),
        Some(("tree", depth)) => digits(depth).is_ok(),
        Some(("object", kind)) => ["type=blob", "type=tree", "type=commit", "type=tag"].contains(&kind),
        _ => false,
    };
    value.strip_prefix("combine:").map_or_else(|| one(value), |all| all.split('+').all(one))
}

#[cfg(test)]
mod tests {
    use super::super::read;
    use super::*;
    use crate::pktline;

    const A: &str = "95d09f2b10159347eece71399a7e2e907ea3df4f";
    const B: &str = "2222222222222222222222222222222222222222";

    fn request(lines: &[&str]) -> Vec<u8> {
        let lines = lines.iter().map(|line| pktline::line(line.as_bytes()));
        let command = pktline::line(b"command=fetch\n");
        [command, b"0001".to_vec(), lines.collect::<Vec<_>>().concat(), b"0000".to_vec()].concat()
    }

    #[tokio::test]
    async fn what_git_would_read_by_its_beginning_is_refused() {
        for name in ["want", "have", "shallow"] {
            for rest in ["x", "zz", " x", "\0", "\0 x", "\n"] {
                let line = format!("{name} {A}{rest}\n");
                assert_eq!(read(&mut &request(&[&line])[..]).await, Err(MALFORMED), "{line:?}");
            }
        }
        let lines = [
            "want 95d09f2",
            "want ",
            "want",
            "want-ref refs/heads/main",
            "deepen 0x7fffffff",
            "deepen 017777777777",
            "deepen 6442450943",
            "deepen 1 ",
            "deepen-since now",
            "deepen-not ",
            "done\0",
            "packfile-uris https",
        ];
        for line in lines {
            assert_eq!(read(&mut &request(&[line])[..]).await, Err(MALFORMED), "{line:?}");
        }
        for filter in ["sparse:oid=95d09f2", "combine:blob:none+sparse:oid=95d09f2", "blob:limit=k", ""] {
            let line = format!("filter {filter}");
            assert_eq!(read(&mut &request(&[&line])[..]).await, Err(FILTER), "{line:?}");
        }
    }

    #[tokio::test]
    async fn what_git_asks_with_is_understood() {
        let names = [format!("want {A}\n"), format!("have {A}"), format!("shallow {B}\n")];
        let mut asked = vec!["thin-pack\n", "deepen 2147483647", "deepen-since 1700000000"];
        asked.extend(names.iter().map(String::as_str));
        asked.extend(["deepen-not refs/heads/a", "filter blob:limit=1m", "filter combine:tree:2+blob:none"]);
        asked.extend(["filter object:type=tag", "include-tag", "ofs-delta", "wait-for-done", "done"]);
        let command = read(&mut &request(&asked)[..]).await.expect("a command").expect("one");
        let sources = [A, B].map(|name| Oid::from_str(name).expect("a name"));
        assert_eq!(
            command.arguments.sources(),
            BTreeSet::from(sources),
            "an endless depth reaches beyond an end"
        );
    }

    #[tokio::test]
    async fn of_very_many_prefixes_none_counts() {
        for (count, kept) in [(PREFIXES_MAX, PREFIXES_MAX), (PREFIXES_MAX + 1, 0), (2 * PREFIXES_MAX + 2, 0)]
        {
            let asked = vec!["ref-prefix refs/x"; count];
            let command = read(&mut &request(&asked)[..]).await.expect("a command").expect("one");
            assert_eq!(command.arguments.prefixes.len(), kept, "{count}");
        }
    }
}
