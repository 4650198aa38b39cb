//! Grants written into and taken out of the text of `routes.yaml`, everything else left as the operator wrote it.

use crate::credential::AgentCredentials;
use crate::diagnostic::Diagnostics;
use crate::grant::{Grant, GrantId};
use crate::limits::RouteLimits;
use crate::matches::{Match, PathMatch};
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
    if base.routes().iter().any(|route| route.grant() == Some(&grant.id)) {
        return Err(AppendError::Exists(grant.id.clone()));
    }
    let appended = insert(text, grant).ok_or(AppendError::Layout)?;
    let after = Policy::parse("routes.yaml", &appended).map_err(AppendError::Contradiction)?;
    let expected = Route { id: RouteId(base.routes().len()), ..grant.to_route() };
    let same_settings = after.log() == base.log() && after.defaults() == base.defaults();
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
    for indent in 0..=INDENT_MAX {
        let block = render(&grant, indent);
        let Some(start) = find_lines(text, &block) else { continue };
        let mut removed = format!("{}{}", &text[..start], &text[start + block.len()..]);
        if kept.is_empty() {
            removed = close_sequence(&removed).ok_or(AppendError::Layout)?;
        }
        let after = Policy::parse("routes.yaml", &removed).map_err(AppendError::Contradiction)?;
        let same = after.routes().len() == kept.len()
            && after.routes().iter().zip(&kept).all(|(one, other)| one.same_but_place(other));
        return if same { Ok(removed) } else { Err(AppendError::Changed) };
    }
    Err(AppendError::Layout)
}

const INDENT_MAX: usize = 16;

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

/// The text with the grant's lines behind the last line of `routes`.
fn insert(text: &str, grant: &Grant) -> Option<String> {
    const KEY: &str = "routes:";
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let key = lines.iter().position(|line| line.starts_with(KEY))?;
    let value = lines[key][KEY.len()..].trim();
    let (opening, end, indent) = if is_empty_sequence(value) {
        let comment = value.find('#').map(|start| format!(" {}", &value[start..]));
        (format!("{KEY}{}", comment.unwrap_or_default()), key + 1, 2)
    } else if value.is_empty() || value.starts_with('#') {
        let (end, indent) = block_end(&lines, key + 1)?;
        (lines[key..end].concat(), end, indent)
    } else {
        return None;
    };
    let newline = if opening.ends_with('\n') { "" } else { "\n" };
    let before = lines[..key].concat();
    let after = lines[end..].concat();
    Some(format!("{before}{opening}{newline}{}{after}", render(grant, indent)))
}

/// Behind the last line of the block sequence that starts at or after `start`, and its indentation.
/// Comments after the last route stay behind what is inserted.
fn block_end(lines: &[&str], start: usize) -> Option<(usize, usize)> {
    let content = |line: &&str| !is_blank(line);
    let first = lines[start..].iter().find(|line| content(line))?;
    let indent = depth(first);
    if !is_item(first) {
        return None;
    }
    let inside = |line: &&str| depth(line) > indent || depth(line) == indent && is_item(line);
    let mut end = start;
    for (index, line) in lines.iter().enumerate().skip(start).filter(|(_, line)| content(line)) {
        if !inside(line) {
            break;
        }
        end = index + 1;
    }
    Some((end, indent))
}

fn depth(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

fn is_item(line: &str) -> bool {
    let item = line.trim_start_matches(' ').strip_prefix('-');
    item.is_some_and(|rest| rest.trim_end().is_empty() || rest.starts_with(' '))
}

fn is_empty_sequence(value: &str) -> bool {
    let bare = value.split('#').next().unwrap_or(value).trim();
    bare.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|inner| inner.trim().is_empty())
}

/// Only white space, or a comment.
fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}

/// `routes:` with nothing left under it becomes `routes: []`.
fn close_sequence(text: &str) -> Option<String> {
    let start = if text.starts_with("routes:") { 0 } else { text.find("\nroutes:")? + 1 };
    let after = start + "routes:".len();
    Some(format!("{} []{}", &text[..after], &text[after..]))
}

/// Where `block` stands in the text as whole lines.
fn find_lines(text: &str, block: &str) -> Option<usize> {
    text.match_indices(block)
        .map(|(start, _)| start)
        .find(|&start| start == 0 || text.as_bytes()[start - 1] == b'\n')
}

/// The grant as a block of lines; what is the default is left out.
fn render(grant: &Grant, indent: usize) -> String {
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
    let margin = " ".repeat(indent);
    let line = |(index, field): (usize, &String)| {
        format!("{margin}{}{field}\n", if index == 0 { "- " } else { "  " })
    };
    fields.iter().enumerate().map(line).collect()
}

/// A YAML scalar in double quotes that reads back as `text`.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            control if control.is_control() => quoted.push_str(&format!("\\U{:08X}", u32::from(control))),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}
