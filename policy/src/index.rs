//! From a host and a path to the routes that may be for them, without walking the whole table.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use crate::host::Host;
use crate::path::CanonicalPath;
use crate::pattern::HostPattern;
use crate::route::{Route, Scheme, Tls, Verdict};

/// How many segments of a path lead to a route; by more it is only judged.
const DEPTH_MAX: usize = 64;

/// Route positions by exact host and by wildcard suffix, and under each by path.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    exact: HashMap<String, Bucket>,
    suffix: HashMap<String, Bucket>,
    /// By each name above theirs, the first of each kind.
    below: HashMap<String, Vec<usize>>,
}

/// The routes of one host pattern.
#[derive(Clone, Debug, Default)]
struct Bucket {
    all: Vec<usize>,
    /// The first of each kind.
    kinds: Vec<usize>,
    /// Of all, the routes that some path may fit which is not written in them.
    unbound: Vec<usize>,
    paths: Node,
}

/// What routes have in common that differ in their paths and in what they do with a request alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    host: HostPattern,
    scheme: Scheme,
    ports: Vec<u16>,
    verdict: Verdict,
    tls: Tls,
    expires_at: Option<Timestamp>,
    is_grant: bool,
    is_for_all: bool,
    injects: bool,
}

/// The routes whose paths begin with the segments that lead here, and the segments that go on. In lower case: a deny does not
/// tell cases apart, and what an allow is for is judged afterwards.
#[derive(Clone, Debug, Default)]
struct Node {
    here: Vec<usize>,
    below: HashMap<String, Node>,
}

impl Index {
    pub(crate) fn new(routes: &[Route]) -> Index {
        let mut index = Index::default();
        let mut kinds = HashSet::new();
        for (position, route) in routes.iter().enumerate() {
            let (map, key) = match &route.host {
                HostPattern::Exact(host) => (&mut index.exact, host),
                HostPattern::OneLabel(suffix) | HostPattern::AnyDepth(suffix) => (&mut index.suffix, suffix),
            };
            let bucket = map.entry(key.as_str().to_owned()).or_default();
            let is_first = kinds.insert(Kind::of(route));
            if is_first {
                bucket.kinds.push(position);
            }
            bucket.insert(position, route);
            if is_first {
                for name in names_above(&route.host) {
                    index.below.entry(name.to_owned()).or_default().push(position);
                }
            }
        }
        index
    }

    /// The routes whose host pattern fits, narrower hosts first.
    pub(crate) fn candidates<'i>(
        &'i self,
        routes: &'i [Route],
        host: &Host,
    ) -> impl Iterator<Item = &'i Route> {
        fitting(routes, host, self.buckets(host).flat_map(|bucket| &bucket.all))
    }

    /// The first candidate of each kind, in their order.
    pub(crate) fn kinds<'i>(&'i self, routes: &'i [Route], host: &Host) -> impl Iterator<Item = &'i Route> {
        fitting(routes, host, self.buckets(host).flat_map(|bucket| &bucket.kinds))
    }

    /// The first of each kind of the routes whose hosts lie below `host`.
    pub(crate) fn below<'i>(&'i self, routes: &'i [Route], host: &Host) -> impl Iterator<Item = &'i Route> {
        self.below.get(host.as_str()).into_iter().flatten().map(|&position| &routes[position])
    }

    /// Of the candidates all that `path` may fit in one of its readings, and few others. A route may come twice.
    pub(crate) fn reached<'i>(
        &'i self,
        routes: &'i [Route],
        host: &Host,
        path: &CanonicalPath,
    ) -> Vec<&'i Route> {
        let unbound = self.buckets(host).flat_map(|bucket| &bucket.unbound);
        let mut reached: Vec<&Route> = fitting(routes, host, unbound).collect();
        for reading in path.readings() {
            let along = self.buckets(host).flat_map(|bucket| bucket.paths.along(reading));
            reached.extend(fitting(routes, host, along));
        }
        reached
    }

    /// Those of the host and of the names above it, narrower ones first.
    fn buckets(&self, host: &Host) -> impl Iterator<Item = &Bucket> {
        let wildcard = parents(host.as_str()).filter_map(|suffix| self.suffix.get(suffix));
        self.exact.get(host.as_str()).into_iter().chain(wildcard)
    }
}

/// The names that a name is below, the nearest first.
fn parents(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('.').map(|(dot, _)| &name[dot + 1..])
}

/// The names that every host of the pattern is below; an address is below none.
fn names_above(pattern: &HostPattern) -> impl Iterator<Item = &str> {
    let (host, itself) = match pattern {
        HostPattern::Exact(host) => (host, None),
        HostPattern::OneLabel(suffix) | HostPattern::AnyDepth(suffix) => (suffix, Some(suffix.as_str())),
    };
    itself.into_iter().chain(parents(host.as_str())).filter(|_| host.ip().is_none())
}

/// Of a name's patterns some are for one label alone.
fn fitting<'i>(
    routes: &'i [Route],
    host: &Host,
    positions: impl Iterator<Item = &'i usize>,
) -> impl Iterator<Item = &'i Route> {
    positions.map(|&position| &routes[position]).filter(|route| route.host.matches(host))
}

impl Kind {
    fn of(route: &Route) -> Kind {
        Kind {
            host: route.host.clone(),
            scheme: route.scheme,
            ports: route.ports.clone(),
            verdict: route.verdict,
            tls: route.tls,
            expires_at: route.expires_at,
            is_grant: route.grant.is_some(),
            is_for_all: route.matches.is_empty(),
            injects: route.credential.is_some(),
        }
    }
}

impl Bucket {
    fn insert(&mut self, position: usize, route: &Route) {
        self.all.push(position);
        let Some(paths) = written_paths(route) else { return self.unbound.push(position) };
        for path in paths {
            self.paths.insert(&path, position);
        }
    }
}

/// Exact paths and prefixes, if the route is for nothing else, in every spelling.
fn written_paths(route: &Route) -> Option<Vec<Cow<'_, str>>> {
    let mut written = Vec::new();
    for entry in &route.matches {
        if entry.paths.is_empty() {
            return None;
        }
        for path in &entry.paths {
            written.push(path.written()?.into());
            written.extend(path.spellings());
        }
    }
    Some(written).filter(|written| !written.is_empty())
}

impl Node {
    fn insert(&mut self, path: &str, position: usize) {
        let mut node = self;
        for segment in segments(path).take(DEPTH_MAX) {
            node = node.below.entry(segment.to_ascii_lowercase()).or_default();
        }
        node.here.push(position);
    }

    /// What stands on the way of `path`, and one `/` further: to a deny `/admin` is `/admin/` too.
    fn along<'n>(&'n self, path: &str) -> Vec<&'n usize> {
        let mut node = self;
        let mut found: Vec<&usize> = node.here.iter().collect();
        for segment in segments(path).chain([""]) {
            let Some(next) = node.below.get(lower_case(segment).as_ref()) else { break };
            node = next;
            found.extend(&node.here);
        }
        found
    }
}

fn lower_case(segment: &str) -> Cow<'_, str> {
    if segment.bytes().any(|byte| byte.is_ascii_uppercase()) {
        segment.to_ascii_lowercase().into()
    } else {
        segment.into()
    }
}

/// `/a/b` has two, `/a/` has two of which the second is empty, and the path of the prefix `/`, which is empty here, has none.
fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').skip(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::matches::Match;
    use crate::policy::Policy;

    /// Few segments, so that they meet.
    fn path() -> impl Strategy<Value = String> {
        let segment = prop::sample::select(vec!["a", "A", "a;x", "%40", "@", "a%2Fa", "%40%2F@"]);
        (prop::collection::vec(segment, 0..3), any::<bool>()).prop_map(|(segments, slash)| {
            let path = format!("/{}", segments.join("/"));
            if slash && path != "/" { path + "/" } else { path }
        })
    }

    /// Most of them are for written paths alone.
    fn route() -> impl Strategy<Value = String> {
        let host = prop::sample::select(vec!["h.example.com", "'*.example.com'", "other.example.com"]);
        let written = (prop::sample::select(vec!["exact", "prefix"]), path())
            .prop_map(|(kind, path)| format!("paths: [{{type: {kind}, value: '{path}'}}]"));
        let entry = prop_oneof![
            8 => written,
            1 => Just("paths: [{type: regex, value: '/a/.*'}]".to_owned()),
            1 => Just("methods: [GET]".to_owned()),
        ];
        (host, prop::collection::vec(entry, 1..3), any::<bool>()).prop_map(|(host, entries, deny)| {
            let entries = entries.iter().map(|entry| format!("{{{entry}}}")).collect::<Vec<_>>().join(", ");
            format!("  - {{host: {host}, deny: {deny}, allow_encoded_slashes: true, matches: [{entries}]}}\n")
        })
    }

    proptest! {
        #[test]
        fn what_a_path_may_fit_is_reached(
            routes in prop::collection::vec(route(), 1..12),
            asked in path(),
        ) {
            let policy = Policy::parse("routes.yaml", &format!("routes:\n{}", routes.concat()));
            let policy = policy.map_err(|error| TestCaseError::reject(error.to_string()))?;
            let path = CanonicalPath::of_request(&asked).expect("a path");
            let host = Host::parse("h.example.com").expect("a host");
            let reached = policy.reached(&host, &path);
            for route in policy.candidates(&host) {
                let fits_entry = |entry: &Match| entry.path_rank(&path, route.purpose()).is_some();
                let fits = route.matches.iter().any(fits_entry);
                prop_assert!(!fits || reached.contains(&route), "{asked} is not led to {route:?}");
                let stands_for = |first: &Route| Kind::of(first) == Kind::of(route) && first.id <= route.id;
                prop_assert!(policy.kinds(&host).any(stands_for), "nothing stands for {route:?}");
            }
        }
    }
}
