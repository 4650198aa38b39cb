//! Grants written into and taken out of the text of `routes.yaml`, everything else left as the operator wrote it.

use crate::credential::AgentCredentials;
use crate::diagnostic::Diagnostics;
use crate::grant::{Grant, GrantId};
use crate::limits::RouteLimits;
use crate::lines::{self, List, quoted};
use crate::matches::{Match, PathMatch};
use crate::path::EscapedSlashes;
use crate::pattern::HostPattern;
use crate::policy::Policy;
use crate::route::{Resolves, Route, RouteId, Tls, Verdict};

/// Why a grant cannot be written into a file, or taken out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The file itself is wrong.
    #[error("the routes cannot be read\n{0}")]
    Base(#[source] Diagnostics),
    /// The file already has a route of this grant.
    #[error("grant {0} is already in the routes")]
    Exists(GrantId),
    /// The file has no route of this grant.
    #[error("grant {0} is not in the routes")]
    Absent(GrantId),
    /// `routes` is a flow sequence with entries, or otherwise not a block that lines can be added to.
    #[error(
        "`routes` is not a block sequence (one `- ` per route): a grant cannot be added without rewriting it"
    )]
    Layout,
    /// With the grant the file would be wrong: the grant contradicts a base route.
    #[error("the grant contradicts the routes\n{0}")]
    Contradiction(#[source] Diagnostics),
    /// The result is not the base plus exactly this grant.
    #[error("adding the grant would change other routes")]
    Changed,
}

/// The text with the grant as its last route; comments and everything else stay.
///
/// The result is parsed again and compared: the base routes are the same and exactly this grant was added.
pub fn append_route(text: &str, grant: &Grant) -> Result<String, AppendError> {
    let base = Policy::parse("routes.yaml", text).map_err(AppendError::Base)?;
    if base.routes().iter().any(|route| route.grant() == Some(&grant.id))
        || base.extras().iter().any(|extra| *extra.grant() == grant.id)
    {
        return Err(AppendError::Exists(grant.id.clone()));
    }
    let appended = lines::add_item(text, ROUTES, &render(grant)).ok_or(AppendError::Layout)?;
    let after = Policy::parse("routes.yaml", &appended).map_err(AppendError::Contradiction)?;
    let expected = Route { id: RouteId(base.routes().len()), ..grant.to_route() };
    let same_settings =
        after.log() == base.log() && after.defaults() == base.defaults() && after.extras() == base.extras();
    match after.routes().split_last() {
        Some((last, rest)) if rest == base.routes() && *last == expected && same_settings => Ok(appended),
        Some(_) | None => Err(AppendError::Changed),
    }
}

/// The text without the block that [`append_route`] wrote for this grant.
pub fn remove_grant(text: &str, id: &GrantId) -> Result<String, AppendError> {
    let base = Policy::parse("routes.yaml", text).map_err(AppendError::Base)?;
    let Some(grant) = base.routes().iter().find(|route| route.grant() == Some(id)).and_then(Grant::of_route)
    else {
        return Err(AppendError::Absent(id.clone()));
    };
    let kept: Vec<&Route> = base.routes().iter().filter(|route| route.grant() != Some(id)).collect();
    let removed = lines::remove_item(text, ROUTES, &render(&grant)).ok_or(AppendError::Layout)?;
    let after = Policy::parse("routes.yaml", &removed).map_err(AppendError::Contradiction)?;
    let same = after.routes().len() == kept.len()
        && after.routes().iter().zip(&kept).all(|(one, other)| one.same_but_place(other))
        && after.extras() == base.extras();
    if same { Ok(removed) } else { Err(AppendError::Changed) }
}

/// The list that a grant stands in.
const ROUTES: List = List::Needed("routes");

impl Grant {
    fn to_route(&self) -> Route {
        let restricted = !self.paths.is_empty() || !self.methods.is_empty();
        let entry = Match {
            paths: self.paths.clone(),
            methods: self.methods.clone(),
            headers: Vec::new(),
            query: Vec::new(),
        };
        Route {
            id: RouteId(0),
            host: HostPattern::Exact(self.host.clone()),
            scheme: self.scheme,
            ports: self.ports.clone(),
            matches: if restricted { vec![entry] } else { Vec::new() },
            verdict: Verdict::Allow,
            escaped_slashes: EscapedSlashes::Refused,
            credential: None,
            agent_credentials: AgentCredentials::new(None, None),
            git_fetch: false,
            tls: Tls::Intercept,
            allow_private: Vec::new(),
            resolves: Resolves::Here,
            expires_at: Some(self.expires_at),
            grant: Some(self.id.clone()),
            limits: RouteLimits::default(),
            dlp: None,
            max_uses: self.max_uses,
        }
    }

    /// The grant that a route was rendered from; `None` when someone made it into something else.
    fn of_route(route: &Route) -> Option<Grant> {
        let HostPattern::Exact(host) = &route.host else { return None };
        let (paths, methods) = match route.matches.as_slice() {
            [] => (Vec::new(), Vec::new()),
            [entry] => (entry.paths.clone(), entry.methods.clone()),
            _ => return None,
        };
        let grant = Grant {
            id: route.grant.clone()?,
            host: host.clone(),
            scheme: route.scheme,
            ports: route.ports.clone(),
            methods,
            paths,
            expires_at: route.expires_at?,
            max_uses: route.max_uses,
        };
        grant.to_route().same_but_place(route).then_some(grant)
    }
}

impl Route {
    fn same_but_place(&self, other: &Route) -> bool {
        Route { id: other.id, ..self.clone() } == *other
    }
}

/// The grant as the lines of an item; what is the default is left out.
fn render(grant: &Grant) -> Vec<String> {
    let mut fields = vec![format!("host: {}", quoted(grant.host.as_str()))];
    let default_port = [grant.scheme.default_port()];
    if grant.scheme != crate::route::Scheme::Https {
        fields.push(format!("scheme: {}", grant.scheme));
    }
    if grant.ports != default_port {
        let ports: Vec<String> = grant.ports.iter().map(ToString::to_string).collect();
        fields.push(format!("ports: [{}]", ports.join(", ")));
    }
    if !grant.paths.is_empty() || !grant.methods.is_empty() {
        fields.push("matches:".to_owned());
        let mut entry = Vec::new();
        if !grant.paths.is_empty() {
            let path =
                |path: &PathMatch| format!("{{type: {}, value: {}}}", path.kind(), quoted(path.value()));
            entry.push(format!("paths: [{}]", grant.paths.iter().map(path).collect::<Vec<_>>().join(", ")));
        }
        if !grant.methods.is_empty() {
            let methods: Vec<&str> = grant.methods.iter().map(http::Method::as_str).collect();
            entry.push(format!("methods: [{}]", methods.join(", ")));
        }
        let marks = ["  - ", "    "];
        fields.extend(entry.iter().enumerate().map(|(index, line)| format!("{}{line}", marks[index.min(1)])));
    }
    fields.push(format!("expires_at: {}", grant.expires_at));
    if let Some(uses) = grant.max_uses {
        fields.push(format!("max_uses: {uses}"));
    }
    fields.push(format!("grant: {}", quoted(grant.id.as_str())));
    fields
}
