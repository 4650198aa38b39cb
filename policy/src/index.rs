//! From a host to the routes that are for it, without walking the whole table.

use std::collections::HashMap;

use crate::host::Host;
use crate::pattern::HostPattern;
use crate::route::Route;

/// Route positions by exact host and by wildcard suffix.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    exact: HashMap<String, Vec<usize>>,
    suffix: HashMap<String, Vec<usize>>,
}

impl Index {
    pub(crate) fn new(routes: &[Route]) -> Index {
        let mut index = Index::default();
        for (position, route) in routes.iter().enumerate() {
            let (map, key) = match &route.host {
                HostPattern::Exact(host) => (&mut index.exact, host),
                HostPattern::OneLabel(suffix) | HostPattern::AnyDepth(suffix) => (&mut index.suffix, suffix),
            };
            map.entry(key.as_str().to_owned()).or_default().push(position);
        }
        index
    }

    /// The positions of the routes whose pattern fits, narrower hosts first.
    pub(crate) fn candidates<'i>(
        &'i self,
        routes: &'i [Route],
        host: &Host,
    ) -> impl Iterator<Item = &'i Route> {
        let exact = self.exact.get(host.as_str()).into_iter().flatten();
        let dots = host.as_str().match_indices('.').map(|(dot, _)| &host.as_str()[dot + 1..]);
        let wildcard = dots.filter_map(|suffix| self.suffix.get(suffix)).flatten();
        let fitting = wildcard.filter(|&&position| routes[position].host.matches(host));
        exact.chain(fitting).map(|&position| &routes[position])
    }
}
