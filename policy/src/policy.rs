//! The policy as a whole: routes, defaults and what is asked of them.

use std::collections::HashSet;
use std::time::Duration;

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::extra::Extra;
use crate::host::Host;
use crate::index::Index;
use crate::path::CanonicalPath;
use crate::route::{Route, Scheme, Tls, Verdict};

/// How much of the traffic is logged; never bodies, never secrets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// `0`: nothing.
    Nothing,
    /// `1`: refusals.
    #[default]
    Refusals,
    /// `2`: every request.
    Requests,
}

/// The time limits of every route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// For name resolution, dialling and TLS together.
    pub connect_timeout: Duration,
    /// Without a byte in either direction.
    pub idle_timeout: Duration,
}

impl Default for Defaults {
    fn default() -> Defaults {
        Defaults { connect_timeout: Duration::from_secs(10), idle_timeout: Duration::from_secs(5 * 60) }
    }
}

/// A parsed `routes.yaml`.
#[derive(Clone, Debug)]
pub struct Policy {
    log: LogLevel,
    defaults: Defaults,
    routes: Vec<Route>,
    index: Index,
    intercepted_ports: HashSet<u16>,
    warnings: Vec<Diagnostic>,
    file: String,
    /// Where each route names its secret: the line and the column.
    secrets: Vec<(u64, u64)>,
    extras: Vec<Extra>,
}

impl Policy {
    /// The policy in `text`; `file` is only for messages.
    pub fn parse(file: &str, text: &str) -> Result<Policy, Diagnostics> {
        crate::parse::parse(file, text)
    }

    pub(crate) fn new(
        log: LogLevel,
        defaults: Defaults,
        routes: Vec<Route>,
        warnings: Vec<Diagnostic>,
    ) -> Policy {
        let index = Index::new(&routes);
        let intercepted = |route: &&Route| route.scheme == Scheme::Https && route.tls == Tls::Intercept;
        let ports = routes.iter().filter(intercepted).flat_map(|route| &route.ports).copied();
        let intercepted_ports = ports.chain([Scheme::Https.default_port()]).collect();
        let (file, secrets, extras) = (String::new(), Vec::new(), Vec::new());
        Policy { log, defaults, routes, index, intercepted_ports, warnings, file, secrets, extras }
    }

    pub(crate) fn with_places(self, file: &str, secrets: Vec<(u64, u64)>) -> Policy {
        Policy { file: file.to_owned(), secrets, ..self }
    }

    pub(crate) fn with_extras(self, extras: Vec<Extra>) -> Policy {
        Policy { extras, ..self }
    }

    /// What is wrong with the secret of a route, at the place where the route names it.
    #[must_use]
    pub fn wrong_secret(&self, route: &Route, message: String) -> Diagnostic {
        let (line, column) = self.secrets.get(route.id().index()).copied().unwrap_or((1, 1));
        Diagnostic { file: self.file.clone(), line, column, message }
    }

    /// The routes in the order of the file.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// What approvals added beside the routes.
    #[must_use]
    pub fn extras(&self) -> &[Extra] {
        &self.extras
    }

    /// What is no error and yet is hardly meant: routes that nothing reaches, conflicts, dangerous breadth. In the order
    /// of the file.
    #[must_use]
    pub fn warnings(&self) -> &[Diagnostic] {
        &self.warnings
    }

    /// How much is logged.
    #[must_use]
    pub fn log(&self) -> LogLevel {
        self.log
    }

    /// The time limits.
    #[must_use]
    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// 443, and every port of an intercepted route: there a refusal can be told inside the tunnel.
    pub(crate) fn is_intercepted_port(&self, port: u16) -> bool {
        self.intercepted_ports.contains(&port)
    }

    /// The routes whose host pattern fits, narrower hosts first.
    pub(crate) fn candidates<'p>(&'p self, host: &Host) -> impl Iterator<Item = &'p Route> {
        self.index.candidates(&self.routes, host)
    }

    /// The first candidate of each kind.
    pub(crate) fn kinds<'p>(&'p self, host: &Host) -> impl Iterator<Item = &'p Route> {
        self.index.kinds(&self.routes, host)
    }

    /// The first of each kind of the routes for names below `host`.
    pub(crate) fn below<'p>(&'p self, host: &Host) -> impl Iterator<Item = &'p Route> {
        self.index.below(&self.routes, host)
    }

    /// A route that puts a credential into requests to this host and port, whatever the path.
    #[must_use]
    pub fn injecting(&self, scheme: Scheme, host: &Host, port: u16) -> Option<&Route> {
        let injects = |route: &&Route| route.credential.is_some() && route.verdict == Verdict::Allow;
        self.kinds(host).filter(injects).find(|route| route.scheme == scheme && route.ports.contains(&port))
    }

    /// Of the candidates all that `path` may fit; a route may come twice.
    pub(crate) fn reached<'p>(&'p self, host: &Host, path: &CanonicalPath) -> Vec<&'p Route> {
        self.index.reached(&self.routes, host, path)
    }
}
