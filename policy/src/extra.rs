//! What an approval can add beside a route: that what is held may pass, that one finding of the scanner is none, and that a limit is higher for a while.

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};

use jiff::Timestamp;

use crate::append::AppendError;
use crate::grant::GrantId;
use crate::host::Host;
use crate::limits::RouteLimits;
use crate::lines::{self, List, quoted};
use crate::policy::Policy;

/// One thing that an approval adds, with its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extra {
    /// A request that is held may pass.
    Release(Release),
    /// A limit is higher.
    Raise(Raise),
    /// One finding of the scanner is none.
    Exception(Exception),
}

/// That a request which is held may pass, as exactly that request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// Of everything that would go out, `sha256:…`.
    pub digest: String,
    /// Until when.
    pub expires_at: Timestamp,
    /// How often.
    pub max_uses: NonZeroU64,
    /// The proposal that made it.
    pub grant: GrantId,
}

/// That one thing the scanner finds may go to one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exception {
    /// One host, never a wildcard.
    pub host: Host,
    /// The rule that finds it.
    pub rule: String,
    /// Which of what the rule finds: the name that egress gives it, 32 hexadecimal digits.
    pub fingerprint: String,
    /// Until when.
    pub expires_at: Timestamp,
    /// In how many requests.
    pub max_uses: NonZeroU64,
    /// The proposal that made it.
    pub grant: GrantId,
}

/// That the requests to a host have a higher limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raise {
    /// One host, never a wildcard.
    pub host: Host,
    /// Which limit.
    pub limit: Limit,
    /// What it is instead; a limit that is higher, or none, stays.
    pub value: NonZeroU64,
    /// Until when.
    pub expires_at: Timestamp,
    /// The proposal that made it.
    pub grant: GrantId,
}

/// A limit of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `requests_per_minute`.
    RequestsPerMinute,
    /// `request_body`, in bytes.
    RequestBody,
    /// `connections`.
    Connections,
    /// `concurrency`.
    Concurrency,
}

impl Limit {
    /// All of them, by their names.
    pub const ALL: [(&'static str, Limit); 4] = [
        ("requests_per_minute", Limit::RequestsPerMinute),
        ("request_body", Limit::RequestBody),
        ("connections", Limit::Connections),
        ("concurrency", Limit::Concurrency),
    ];

    /// The limit of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Limit> {
        Limit::ALL.into_iter().find(|(known, _)| *known == name).map(|(_, limit)| limit)
    }

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Limit::RequestsPerMinute => "requests_per_minute",
            Limit::RequestBody => "request_body",
            Limit::Connections => "connections",
            Limit::Concurrency => "concurrency",
        }
    }

    /// What it is among `limits`.
    #[must_use]
    pub fn of(self, limits: &RouteLimits) -> Option<u64> {
        let count = |count: Option<NonZeroU32>| count.map(|count| u64::from(count.get()));
        match self {
            Limit::RequestsPerMinute => count(limits.requests_per_minute),
            Limit::RequestBody => limits.request_body,
            Limit::Connections => count(limits.connections),
            Limit::Concurrency => count(limits.concurrency),
        }
    }

    /// The most that it can be.
    #[must_use]
    pub fn most(self) -> u64 {
        match self {
            Limit::RequestBody => u64::MAX,
            Limit::RequestsPerMinute | Limit::Connections | Limit::Concurrency => u64::from(u32::MAX),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl RouteLimits {
    /// With one of them no lower than `value`.
    #[must_use]
    pub fn raised(mut self, limit: Limit, value: NonZeroU64) -> RouteLimits {
        let count = NonZeroU32::try_from(value).unwrap_or(NonZeroU32::MAX);
        match limit {
            Limit::RequestsPerMinute => {
                self.requests_per_minute = self.requests_per_minute.map(|own| own.max(count))
            }
            Limit::RequestBody => self.request_body = self.request_body.map(|own| own.max(value.get())),
            Limit::Connections => self.connections = self.connections.map(|own| own.max(count)),
            Limit::Concurrency => self.concurrency = self.concurrency.map(|own| own.max(count)),
        }
        self
    }
}

impl Extra {
    /// The proposal that made it.
    #[must_use]
    pub fn grant(&self) -> &GrantId {
        match self {
            Extra::Release(Release { grant, .. })
            | Extra::Raise(Raise { grant, .. })
            | Extra::Exception(Exception { grant, .. }) => grant,
        }
    }

    /// Until when.
    #[must_use]
    pub fn expires_at(&self) -> Timestamp {
        match self {
            Extra::Release(Release { expires_at, .. })
            | Extra::Raise(Raise { expires_at, .. })
            | Extra::Exception(Exception { expires_at, .. }) => *expires_at,
        }
    }

    fn list(&self) -> List {
        match self {
            Extra::Release(_) => List::Optional("releases"),
            Extra::Raise(_) => List::Optional("raised"),
            Extra::Exception(_) => List::Optional("exceptions"),
        }
    }

    fn item(&self) -> Vec<String> {
        let end = format!("expires_at: {}, grant: {}", self.expires_at(), quoted(self.grant().as_str()));
        vec![match self {
            Extra::Release(Release { digest, max_uses, .. }) => {
                format!("{{digest: {}, max_uses: {max_uses}, {end}}}", quoted(digest))
            }
            Extra::Raise(Raise { host, limit, value, .. }) => {
                format!("{{host: {}, limit: {limit}, value: {value}, {end}}}", quoted(host.as_str()))
            }
            Extra::Exception(Exception { host, rule, fingerprint, max_uses, .. }) => {
                let (host, rule, fingerprint) = (quoted(host.as_str()), quoted(rule), quoted(fingerprint));
                format!(
                    "{{host: {host}, rule: {rule}, fingerprint: {fingerprint}, max_uses: {max_uses}, {end}}}"
                )
            }
        }]
    }
}

impl Policy {
    /// The bounds of requests to `host` where their route has `limits`.
    #[must_use]
    pub fn limits(&self, limits: &RouteLimits, host: &Host, now: Timestamp) -> RouteLimits {
        self.extras().iter().fold(*limits, |limits, extra| match extra {
            Extra::Raise(raise) if raise.host == *host && now < raise.expires_at => {
                limits.raised(raise.limit, raise.value)
            }
            Extra::Raise(_) | Extra::Release(_) | Extra::Exception(_) => limits,
        })
    }

    /// What lets the request of that digest pass, unless `is_spent` says that it was used as often as it may be.
    pub fn released(
        &self,
        digest: &str,
        now: Timestamp,
        is_spent: impl Fn(&Release) -> bool,
    ) -> Option<&Release> {
        self.extras().iter().find_map(|extra| match extra {
            Extra::Release(release) => {
                let holds = release.digest == digest && now < release.expires_at && !is_spent(release);
                holds.then_some(release)
            }
            Extra::Raise(_) | Extra::Exception(_) => None,
        })
    }

    /// What of the scanner's findings may go to `host`.
    pub fn exceptions<'p>(&'p self, host: &'p Host, now: Timestamp) -> impl Iterator<Item = &'p Exception> {
        self.extras().iter().filter_map(move |extra| match extra {
            Extra::Exception(exception) => {
                (exception.host == *host && now < exception.expires_at).then_some(exception)
            }
            Extra::Raise(_) | Extra::Release(_) => None,
        })
    }
}

/// The text of `routes.yaml` with this added; comments and everything else stay.
///
/// # Errors
/// When the file is wrong, has something of that grant, or would become something else.
pub fn append_extra(text: &str, extra: &Extra) -> Result<String, AppendError> {
    let base = Policy::parse("routes.yaml", text).map_err(AppendError::Base)?;
    if has_grant(&base, extra.grant()) {
        return Err(AppendError::Exists(extra.grant().clone()));
    }
    let appended = lines::add_item(text, extra.list(), &extra.item()).ok_or(AppendError::Layout)?;
    let after = Policy::parse("routes.yaml", &appended).map_err(AppendError::Contradiction)?;
    let rest = without(after.extras(), extra.grant());
    let same = after.extras().contains(extra) && rest == base.extras() && is_same_but_extras(&base, &after);
    if same { Ok(appended) } else { Err(AppendError::Changed) }
}

/// The text without what [`append_extra`] added for this grant.
///
/// # Errors
/// When there is no such thing, or the file would become something else.
pub fn remove_extra(text: &str, id: &GrantId) -> Result<String, AppendError> {
    let base = Policy::parse("routes.yaml", text).map_err(AppendError::Base)?;
    let found = base.extras().iter().find(|extra| extra.grant() == id);
    let extra = found.ok_or_else(|| AppendError::Absent(id.clone()))?;
    let removed = lines::remove_item(text, extra.list(), &extra.item()).ok_or(AppendError::Layout)?;
    let after = Policy::parse("routes.yaml", &removed).map_err(AppendError::Contradiction)?;
    let same = after.extras() == without(base.extras(), id) && is_same_but_extras(&base, &after);
    if same { Ok(removed) } else { Err(AppendError::Changed) }
}

fn has_grant(policy: &Policy, id: &GrantId) -> bool {
    policy.routes().iter().any(|route| route.grant() == Some(id))
        || policy.extras().iter().any(|extra| extra.grant() == id)
}

fn without(extras: &[Extra], id: &GrantId) -> Vec<Extra> {
    extras.iter().filter(|extra| extra.grant() != id).cloned().collect()
}

fn is_same_but_extras(one: &Policy, other: &Policy) -> bool {
    one.routes() == other.routes() && one.log() == other.log() && one.defaults() == other.defaults()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const BASE: &str = "routes:\n  # ours\n  - host: a.example.com\n    limits: {requests_per_minute: 10}\n";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn release() -> Extra {
        Extra::Release(Release {
            digest: format!("sha256:{}", "0".repeat(64)),
            expires_at: at(100),
            max_uses: NonZeroU64::MIN,
            grant: GrantId::parse("r").unwrap(),
        })
    }

    fn raise() -> Extra {
        Extra::Raise(Raise {
            host: Host::parse("a.example.com").unwrap(),
            limit: Limit::RequestsPerMinute,
            value: 50.try_into().unwrap(),
            expires_at: at(100),
            grant: GrantId::parse("l").unwrap(),
        })
    }

    #[test]
    fn what_is_added_is_read_back_and_can_be_taken_out() {
        let with = append_extra(&append_extra(BASE, &release()).unwrap(), &raise()).unwrap();
        insta::assert_snapshot!(with, @r#"
        routes:
          # ours
          - host: a.example.com
            limits: {requests_per_minute: 10}
        releases:
          - {digest: "sha256:0000000000000000000000000000000000000000000000000000000000000000", max_uses: 1, expires_at: 1970-01-01T00:01:40Z, grant: "r"}
        raised:
          - {host: "a.example.com", limit: requests_per_minute, value: 50, expires_at: 1970-01-01T00:01:40Z, grant: "l"}
        "#);
        assert!(matches!(append_extra(&with, &raise()), Err(AppendError::Exists(_))));
        let without = remove_extra(&with, raise().grant()).unwrap();
        assert_eq!(remove_extra(&without, release().grant()).unwrap(), BASE);
        assert!(matches!(remove_extra(BASE, raise().grant()), Err(AppendError::Absent(_))));
    }

    #[test]
    fn a_limit_is_higher_for_that_host_until_its_end_and_never_lower() {
        let policy = Policy::parse("routes.yaml", &append_extra(BASE, &raise()).unwrap()).unwrap();
        let host = |name: &str| Host::parse(name).unwrap();
        let own = policy.routes()[0].limits();
        let per_minute = |name: &str, second: i64| {
            policy.limits(own, &host(name), at(second)).requests_per_minute.map(NonZeroU32::get)
        };
        assert_eq!(per_minute("a.example.com", 99), Some(50));
        assert_eq!(per_minute("a.example.com", 100), Some(10));
        assert_eq!(per_minute("b.example.com", 99), Some(10));
        let higher = RouteLimits { requests_per_minute: NonZeroU32::new(90), ..RouteLimits::default() };
        let raised = policy.limits(&higher, &host("a.example.com"), at(1));
        assert_eq!(raised, higher, "neither lowered nor bounded where it was not");
    }

    #[test]
    fn a_release_is_for_one_digest_until_its_end_and_while_it_is_not_spent() {
        let policy = Policy::parse("routes.yaml", &append_extra(BASE, &release()).unwrap()).unwrap();
        let digest = format!("sha256:{}", "0".repeat(64));
        assert!(policy.released(&digest, at(99), |_| false).is_some());
        assert!(policy.released(&digest, at(100), |_| false).is_none());
        assert!(policy.released(&digest, at(99), |_| true).is_none());
        assert!(policy.released(&digest.replace('0', "1"), at(99), |_| false).is_none());
    }

    #[test]
    fn an_exception_is_for_one_finding_to_one_host_until_its_end() {
        let host = |name: &str| Host::parse(name).unwrap();
        let exception = Extra::Exception(Exception {
            host: host("a.example.com"),
            rule: "gitlab-pat".to_owned(),
            fingerprint: "0a".repeat(16),
            expires_at: at(100),
            max_uses: NonZeroU64::MIN,
            grant: GrantId::parse("e").unwrap(),
        });
        let text = append_extra(BASE, &exception).unwrap();
        assert!(text.ends_with("exceptions:\n  - {host: \"a.example.com\", rule: \"gitlab-pat\", fingerprint: \"0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a\", max_uses: 1, expires_at: 1970-01-01T00:01:40Z, grant: \"e\"}\n"), "{text}");
        assert_eq!(remove_extra(&text, exception.grant()).unwrap(), BASE);
        let policy = Policy::parse("routes.yaml", &text).unwrap();
        let count = |name: &str, second| policy.exceptions(&host(name), at(second)).count();
        assert_eq!(
            [count("a.example.com", 99), count("a.example.com", 100), count("b.example.com", 99)],
            [1, 0, 0]
        );
    }

    #[test]
    fn an_exception_that_names_nothing_exact_is_refused_with_its_place() {
        let text = "routes: []\nexceptions:\n  - {host: \"*.example.com\", rule: known-secret, fingerprint: 0a, expires_at: 2026-12-01T12:00:00Z, grant: e}\n";
        insta::assert_snapshot!(Policy::parse("routes.yaml", text).unwrap_err(), @r"
        routes.yaml:3:12: `*.example.com` is not a host: host has a character that is not a letter, digit, hyphen, underscore or dot
        routes.yaml:3:35: `rule` is the name of a rule, and not `known-secret`
        routes.yaml:3:62: `fingerprint` is 32 hexadecimal digits
        ");
    }

    #[test]
    fn what_is_wrong_with_them_is_named_with_its_place() {
        let text = "routes: []\nreleases:\n  - {digest: sha256:0, expires_at: soon, grant: r}\nraised:\n  - {host: a.example.com, limit: speed, value: 0, expires_at: 2026-12-01T12:00:00Z, grant: l}\n";
        insta::assert_snapshot!(Policy::parse("routes.yaml", text).unwrap_err(), @r"
        routes.yaml:3:14: `digest` is `sha256:` and 64 hexadecimal digits
        routes.yaml:3:36: `soon` is not a time: write it as `2026-12-01T12:00:00Z`
        routes.yaml:5:34: unknown limit `speed`, expected `requests_per_minute` or `request_body` or `connections` or `concurrency`
        routes.yaml:5:48: `value` is `0`, expected a whole number from 1 to 18446744073709551615
        ");
        let endless =
            "routes: []\nraised:\n  - {host: a.example.com, limit: concurrency, value: 5, grant: l}\n";
        insta::assert_snapshot!(Policy::parse("routes.yaml", endless).unwrap_err(), @"routes.yaml:3:5: `expires_at` is missing");
    }
}
