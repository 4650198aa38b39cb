//! What would be said to a request, without sending it.

use http::{HeaderMap, Method, Uri};
use jiff::Timestamp;
use policy::{CanonicalPath, Decision, Denial, Front, Host, Policy, RequestHead, Route, Scheme, describe};
use serde::{Deserialize, Serialize};

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
    method: Method,
    url: Uri,
    headers: HeaderMap,
}

impl Question {
    /// The request with this method, this URL and these headers (`name: value`).
    pub fn parse(method: &str, url: &str, headers: &[String]) -> Result<Question, Error> {
        let wrong = || Error::Url(url.escape_debug().to_string());
        let parsed = url.split('#').next().unwrap_or(url).parse::<Uri>().map_err(|_| wrong())?;
        if parsed.host().is_none() || !matches!(parsed.scheme_str(), Some("http" | "https")) {
            return Err(wrong());
        }
        let method = method.parse().map_err(|_| Error::Method(method.escape_debug().to_string()))?;
        let mut map = HeaderMap::new();
        for header in headers {
            let wrong = || Error::Header(header.escape_debug().to_string());
            let (name, value) = header.split_once(':').ok_or_else(wrong)?;
            let name = name.trim().parse::<http::HeaderName>().map_err(|_| wrong())?;
            map.append(name, value.trim().parse().map_err(|_| wrong())?);
        }
        Ok(Question { method, url: parsed, headers: map })
    }

    /// What `policy` says to it. Only what lies before a look-up is judged: a name may still lead to an address that is refused.
    pub fn answer(&self, policy: &Policy, now: Timestamp, spent: &dyn Fn(&Route) -> bool) -> Explanation {
        match self.judge(policy, now, spent) {
            Ok((outcome, route)) => Explanation {
                outcome,
                method: self.method.to_string(),
                url: self.url.to_string(),
                route: Some(route.id().to_string()),
                allows: Some(describe(route)),
                grant: route.grant().map(ToString::to_string),
                credential: route.credential().is_some(),
                code: None,
                hint: None,
            },
            Err(denial) => Explanation {
                outcome: Outcome::Deny,
                method: self.method.to_string(),
                url: self.url.to_string(),
                route: None,
                allows: None,
                grant: None,
                credential: false,
                code: Some(denial.code.to_string()),
                hint: Some(denial.hint),
            },
        }
    }

    fn judge<'p>(
        &self,
        policy: &'p Policy,
        now: Timestamp,
        spent: &dyn Fn(&Route) -> bool,
    ) -> Result<(Outcome, &'p Route), Denial> {
        let host = Host::parse(self.url.host().unwrap_or_default())?;
        let scheme = if self.url.scheme_str() == Some("http") { Scheme::Http } else { Scheme::Https };
        let port = self.url.port_u16().unwrap_or(scheme.default_port());
        if scheme == Scheme::Https {
            match policy.front(&host, port, now) {
                Front::Intercept => {}
                Front::Passthrough(route) => return Ok((Outcome::Passthrough, route)),
                Front::Refuse(denial) => return Err(denial),
            }
        }
        let path = CanonicalPath::of_request(self.url.path())?;
        let head = RequestHead {
            scheme,
            host: &host,
            port,
            method: &self.method,
            path: &path,
            query: self.url.query(),
            headers: &self.headers,
        };
        match policy.decide_unless(&head, now, spent) {
            Decision::Allow(route) => Ok((Outcome::Allow, route)),
            Decision::Deny(denial) => Err(denial),
        }
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

    fn explained(method: &str, url: &str) -> String {
        let routes = "routes:
  - {host: a.example.com, token_env: A, matches: [{paths: [{type: prefix, value: /v1}], methods: [GET]}]}
  - {host: b.example.com, tls: passthrough}
  - {host: c.example.com, allow_encoded_slashes: true}
";
        let policy = Policy::parse("routes.yaml", routes).unwrap();
        let now = "2026-11-21T12:00:00Z".parse().unwrap();
        Question::parse(method, url, &[]).unwrap().answer(&policy, now, &|_| false).text()
    }

    #[test]
    fn each_outcome_is_told_with_its_reason() {
        let told = explained("GET", "https://a.example.com/v1/x?y#z");
        assert_eq!(
            told,
            "GET https://a.example.com/v1/x?y: allowed\n  by routes[0]\n  which allows GET https://a.example.com/v1/**\n  credential is put in\n"
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
    fn what_is_no_request_is_an_error() {
        let parse = |method, url| Question::parse(method, url, &[]).map(drop);
        assert_eq!(parse("G T", "https://a.example.com/"), Err(Error::Method("G T".to_owned())));
        assert_eq!(parse("GET", "a.example.com"), Err(Error::Url("a.example.com".to_owned())));
        assert_eq!(parse("GET", "ftp://a.example.com/"), Err(Error::Url("ftp://a.example.com/".to_owned())));
    }
}
