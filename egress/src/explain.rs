//! What would be said to a request, without sending it.

use http::header::{CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING};
use http::{Request, Uri, request};
use jiff::Timestamp;
use policy::{CanonicalPath, Decision, Denial, Front, Policy, RequestHead, Route, Scheme, describe};
use serde::{Deserialize, Serialize};

use crate::authority::{self, Endpoint};
use crate::exchange::{admit, not_provided};
use crate::local;
use crate::refusal::Refusal;

/// What would happen to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explanation {
    /// What.
    pub outcome: Outcome,
    /// The method that was asked about.
    pub method: String,
    /// The URL as it would be judged.
    pub url: String,
    /// The route that allows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// That route in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allows: Option<String>,
    /// The proposal that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<String>,
    /// Whether a credential is put in.
    pub credential: bool,
    /// The code of the refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// What would be allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// What would happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It would go out.
    Allow,
    /// It would be refused.
    Deny,
    /// The tunnel would be passed on, and what is in it not seen.
    Passthrough,
}

/// Why a request cannot be explained.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a method.
    #[error("`{0}` is not a method")]
    Method(String),
    /// Not a URL that a proxy serves.
    #[error("`{0}` is not a URL: write it as `https://api.example.com/v1`")]
    Url(String),
    /// Not a header.
    #[error("`{0}` is not a header: write it as `name: value`")]
    Header(String),
}

/// A request to be explained.
#[derive(Debug)]
pub struct Question {
    /// As it would come to the proxy, but for the target: that is still the whole URL.
    request: request::Parts,
    scheme: Scheme,
}

/// What is known besides the routes.
pub struct Circumstances<'a> {
    /// The time by which routes end.
    pub now: Timestamp,
    /// Whether a route is used up.
    pub is_spent: &'a dyn Fn(&Route) -> bool,
    /// Whether the secret that a route injects is there.
    pub has_secret: &'a dyn Fn(&Route) -> bool,
}

/// Who would answer a request that is not refused.
enum Answering<'p> {
    Upstream(&'p Route),
    /// Whoever is at the other end of a tunnel that is passed on.
    Unseen(&'p Route),
    Egress,
}

impl Question {
    /// The request with this method, this URL and these headers (`name: value`).
    pub fn parse(method: &str, url: &str, headers: &[String]) -> Result<Question, Error> {
        let wrong = || Error::Url(url.escape_debug().to_string());
        let parsed = url.split('#').next().unwrap_or(url).parse::<Uri>().map_err(|_| wrong())?;
        let scheme = match parsed.scheme_str() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            Some(_) | None => return Err(wrong()),
        };
        let authority = parsed.authority().filter(|authority| !authority.host().is_empty());
        let host = authority.and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
        let host = host.ok_or_else(wrong)?;
        let (mut request, ()) = Request::new(()).into_parts();
        request.method = method.parse().map_err(|_| Error::Method(method.escape_debug().to_string()))?;
        request.uri = parsed;
        for header in headers {
            let wrong = || Error::Header(header.escape_debug().to_string());
            let (name, value) = header.split_once(':').ok_or_else(wrong)?;
            let name = name.trim().parse::<http::HeaderName>().map_err(|_| wrong())?;
            request.headers.append(name, value.trim().parse().map_err(|_| wrong())?);
        }
        request.headers.entry(HOST).or_insert(host);
        Ok(Question { request, scheme })
    }

    /// What is said to it by `policy`, and by what is refused whatever a route allows. Only what lies before a look-up and before a search
    /// for secrets is judged: a name may still lead to an address that is refused.
    pub fn answer(&self, policy: &Policy, circumstances: &Circumstances<'_>) -> Explanation {
        let (outcome, route, refusal) = match self.judge(policy, circumstances) {
            Ok(Answering::Upstream(route)) => (Outcome::Allow, Some(route), None),
            Ok(Answering::Unseen(route)) => (Outcome::Passthrough, Some(route), None),
            Ok(Answering::Egress) => (Outcome::Allow, None, None),
            Err(refusal) => (Outcome::Deny, None, Some(refusal)),
        };
        let by_egress = || (outcome == Outcome::Allow).then(|| "what egress answers itself".to_owned());
        Explanation {
            outcome,
            method: self.request.method.to_string(),
            url: self.request.uri.to_string(),
            route: route.map(|route| route.id().to_string()),
            allows: route.map(describe).or_else(by_egress),
            grant: route.and_then(Route::grant).map(ToString::to_string),
            credential: route.is_some_and(|route| route.credential().is_some()),
            code: refusal.as_ref().map(|refusal| refusal.code.as_str().to_owned()),
            hint: refusal.map(|refusal| refusal.hint),
        }
    }

    fn judge<'p>(
        &self,
        policy: &'p Policy,
        circumstances: &Circumstances<'_>,
    ) -> Result<Answering<'p>, Refusal> {
        let Circumstances { now, is_spent, has_secret } = circumstances;
        let mut parts = self.request.clone();
        if local::is_for_us(&parts.uri, &parts.headers) {
            return Ok(Answering::Egress);
        }
        admit::nested(&parts.method)?;
        let endpoint = self.endpoint()?;
        if self.scheme == Scheme::Https {
            match policy.front(&endpoint.host, endpoint.port, *now) {
                Front::Intercept => {}
                Front::Passthrough(route) => return Ok(Answering::Unseen(route)),
                Front::Refuse(denial) => return Err(denial.into()),
            }
        }
        let path = CanonicalPath::of_request(parts.uri.path()).map_err(Denial::from)?;
        let length = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let length = length.unwrap_or_default();
        let has_body = length > 0 || parts.headers.contains_key(TRANSFER_ENCODING);
        let wanted = admit::prepare(&mut parts)?;
        let head = RequestHead {
            scheme: self.scheme,
            host: &endpoint.host,
            port: endpoint.port,
            method: &parts.method,
            path: &path,
            query: parts.uri.query(),
            headers: &parts.headers,
        };
        let route = match policy.decide_unless(&head, *now, is_spent) {
            Decision::Allow(route) => route,
            Decision::Deny(denial) => return Err(denial.into()),
        };
        admit::upgrade(wanted.as_deref(), &parts, has_body)?;
        admit::length(length, policy.limits(route.limits(), &endpoint.host, *now).request_body)?;
        admit::echo(route, &parts.method)?;
        match route.credential() {
            Some(wanted) if !has_secret(route) => Err(not_provided(wanted)),
            Some(_) | None => Ok(Answering::Upstream(route)),
        }
    }

    /// Where it would go, when all of it agrees.
    fn endpoint(&self) -> Result<Endpoint, authority::Error> {
        if self.scheme == Scheme::Http {
            return authority::of_plain(&self.request);
        }
        let authority = self.request.uri.authority().map_or("", |authority| authority.as_str());
        let endpoint = authority::of_url(self.scheme, authority)?;
        authority::bind_to_tunnel(&self.request, &endpoint)?;
        Ok(endpoint)
    }
}

impl Explanation {
    /// For a person, with a line end.
    #[must_use]
    pub fn text(&self) -> String {
        let Explanation { outcome, method, url, route, allows, grant, credential, code, hint } = self;
        let outcome = match outcome {
            Outcome::Allow => "allowed",
            Outcome::Deny => "refused",
            Outcome::Passthrough => "passed on unseen",
        };
        let mut text = format!("{method} {url}: {outcome}");
        let lines = [
            ("by", route.as_deref()),
            ("which allows", allows.as_deref()),
            ("of grant", grant.as_deref()),
            ("code", code.as_deref()),
            ("hint", hint.as_deref()),
            ("credential", credential.then_some("is put in")),
        ];
        for (name, value) in lines {
            if let Some(value) = value {
                text.push_str(&format!("\n  {name} {}", value.replace('\n', "\n    ")));
            }
        }
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn told(method: &str, url: &str, headers: &[&str], has_secret: bool) -> String {
        let routes = "routes:
  - {host: a.example.com, token_env: A, matches: [{paths: [{type: prefix, value: /v1}], methods: [GET, TRACE]}]}
  - {host: b.example.com, tls: passthrough}
  - {host: c.example.com, allow_encoded_slashes: true, limits: {request_body: 10}}
  - {host: c.example.com, scheme: http}
";
        let policy = Policy::parse("routes.yaml", routes).unwrap();
        let now = "2026-11-21T12:00:00Z".parse().unwrap();
        let circumstances = Circumstances { now, is_spent: &|_| false, has_secret: &|_| has_secret };
        let headers: Vec<String> = headers.iter().map(ToString::to_string).collect();
        Question::parse(method, url, &headers).unwrap().answer(&policy, &circumstances).text()
    }

    fn explained(method: &str, url: &str) -> String {
        told(method, url, &[], true)
    }

    #[test]
    fn each_outcome_is_told_with_its_reason() {
        let told = explained("GET", "https://a.example.com/v1/x?y#z");
        assert_eq!(
            told,
            "GET https://a.example.com/v1/x?y: allowed\n  by routes[0]\n  which allows GET, TRACE https://a.example.com/v1/**\n  credential is put in\n"
        );
        assert!(explained("GET", "https://b.example.com/").contains("passed on unseen\n  by routes[1]"));
        assert!(explained("POST", "https://a.example.com/v1").contains("refused\n  code method-not-allowed"));
        assert!(explained("GET", "http://a.example.com/v1").contains("refused\n  code host-not-allowed"));
        assert!(explained("GET", "https://a.example.com/v1/../x").contains("code ambiguous-path"));
        assert!(
            explained("GET", "https://a.example.com/v1/a%2fb")
                .contains("code ambiguous-path\n  hint path has an escaped slash")
        );
        assert_eq!(
            explained("GET", "https://c.example.com/@a%2fb"),
            "GET https://c.example.com/@a%2fb: allowed\n  by routes[2]\n  which allows any method https://c.example.com/** (also with %2F)\n"
        );
        assert!(explained("GET", "https://b.example.com:8443/").contains("code host-not-allowed"));
    }

    #[test]
    fn what_no_route_lets_out_is_told_too() {
        let code = |method, url, headers: &[&str]| {
            let told = told(method, url, headers, true);
            told.lines().find_map(|line| line.strip_prefix("  code ").map(str::to_owned)).unwrap_or(told)
        };
        let a = "https://a.example.com/v1";
        assert_eq!(code("TRACE", a, &[]), "method-not-allowed");
        assert_eq!(code("CONNECT", a, &[]), "nested-connect");
        assert_eq!(code("GET", "https://me@a.example.com/v1", &[]), "malformed-target");
        assert_eq!(code("GET", "http://me:x@c.example.com/", &[]), "malformed-target");
        assert_eq!(code("GET", a, &["host: b.example.com"]), "authority-mismatch");
        assert_eq!(code("GET", a, &["X_HTTP_Method_Override: DELETE"]), "override-refused");
        assert_eq!(code("GET", a, &["transfer-encoding: gzip, chunked"]), "content-uninspectable");
        assert_eq!(code("GET", a, &["connection: upgrade", "upgrade: h2c"]), "upgrade-not-supported");
        assert_eq!(code("POST", "https://c.example.com/", &["content-length: 11"]), "body-too-large");
        assert!(told("GET", a, &[], false).contains("credential-unavailable\n  hint the operator has to"));
        let websocket = ["connection: upgrade", "upgrade: websocket"];
        assert!(code("GET", a, &websocket).contains("GET https://a.example.com/v1: allowed\n"));
        assert!(code("POST", "https://c.example.com/", &["content-length: 10"]).contains("allowed"));
    }

    #[test]
    fn what_egress_answers_itself_is_allowed_by_no_route() {
        assert_eq!(
            explained("GET", "http://_egress.local/ca.pem"),
            "GET http://_egress.local/ca.pem: allowed\n  which allows what egress answers itself\n"
        );
        assert!(explained("GET", "https://_egress.local/ca.pem").contains("refused"));
    }

    #[test]
    fn what_is_no_request_is_an_error() {
        let parse = |method, url| Question::parse(method, url, &[]).map(drop);
        assert_eq!(parse("G T", "https://a.example.com/"), Err(Error::Method("G T".to_owned())));
        assert_eq!(parse("GET", "a.example.com"), Err(Error::Url("a.example.com".to_owned())));
        assert_eq!(parse("GET", "ftp://a.example.com/"), Err(Error::Url("ftp://a.example.com/".to_owned())));
    }
}
