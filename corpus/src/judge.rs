//! Whether what happened is what a sound proxy does. Values in, verdict out.

use crate::{
    case::{Case, Expect, Over},
    request::{Request, readings},
};

/// The part of the origin that the proxy is told to allow.
pub(crate) const ALLOWED: &str = "/allowed/";
/// The methods that it is told to allow.
const METHODS: [&str; 2] = ["GET", "POST"];
/// What is between a client and its proxy, and nobody else's.
const HOP: [&str; 3] = ["proxy-authorization", "proxy-connection", "proxy-authenticate"];

/// What the client saw, and what came to the origin.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// Statuses of the answers, those of CONNECT left out.
    pub(crate) statuses: Vec<u16>,
    /// Whether the tunnel's certificate was the origin's own.
    pub(crate) bypassed: bool,
    /// New connections to the origin.
    pub(crate) connections: usize,
    /// Requests that reached it.
    pub(crate) requests: Vec<Request>,
    /// Whether the next client was served; only looked at where it matters.
    pub(crate) next_served: bool,
    /// How the exchange ended, in words.
    pub(crate) end: String,
}

/// `Ok` with what was seen, or `Err` with what is wrong.
pub(crate) fn judge(case: &Case, over: Over, authority: &str, seen: &Seen) -> Result<String, String> {
    if seen.bypassed {
        return Err("the tunnel leads to the origin itself, not intercepted".into());
    }
    let arrived = seen.requests.len();
    let answer = seen.statuses.first();
    match case.expect {
        Expect::Refused => {
            if arrived > 0 {
                return Err(format!("reached the origin: {}", shown(&seen.requests)));
            }
            if over == Over::Raw && seen.connections > 0 {
                return Err("the origin was dialled".into());
            }
            if over == Over::Raw && seen.statuses == [200] && case.opens_tunnel() {
                return Ok("a tunnel that leads to the proxy itself".into());
            }
            match seen.statuses.iter().find(|status| **status < 400) {
                Some(status) => Err(format!("answered {status}")),
                None => {
                    Ok(answer.map_or_else(|| seen.end.clone(), |status| format!("refused with {status}")))
                }
            }
        }
        Expect::Sound => {
            sound(case, authority, seen)?;
            Ok(match (arrived, answer) {
                (0, Some(status)) => format!("refused with {status}"),
                (0, None) => seen.end.clone(),
                (count, _) => format!("forwarded {count}, sound"),
            })
        }
        Expect::Served => {
            sound(case, authority, seen)?;
            if arrived < case.most {
                return Err(format!("{arrived} of {} reached the origin; {}", case.most, seen.end));
            }
            match seen.statuses.iter().filter(|status| **status == 200).count() {
                count if count >= case.most => Ok("served".into()),
                count => Err(format!("{count} of {} answers came back; {}", case.most, seen.end)),
            }
        }
        Expect::Survives => {
            each_sound(case, authority, seen)?;
            if !seen.next_served {
                return Err(format!("the next client was not served; {}", seen.end));
            }
            Ok(answer.map_or_else(|| seen.end.clone(), |status| format!("answered {status}")))
        }
    }
}

fn sound(case: &Case, authority: &str, seen: &Seen) -> Result<(), String> {
    if seen.requests.len() > case.most {
        return Err(format!(
            "{} requests reached the origin: {}",
            seen.requests.len(),
            shown(&seen.requests)
        ));
    }
    each_sound(case, authority, seen)
}

fn each_sound(case: &Case, authority: &str, seen: &Seen) -> Result<(), String> {
    for request in &seen.requests {
        if let Some(wrong) = unsound(request, authority, &case.absent) {
            return Err(format!("{wrong}: {}", shown(std::slice::from_ref(request))));
        }
    }
    Ok(())
}

/// What is wrong with a request that reached the origin.
fn unsound(request: &Request, authority: &str, absent: &[String]) -> Option<String> {
    if let Some(flaw) = request.flaws.first() {
        return Some((*flaw).to_owned());
    }
    if !METHODS.contains(&request.method.as_str()) {
        return Some("a method that is not allowed".into());
    }
    let hosts: Vec<_> = request.values("host").collect();
    if hosts.len() != 1 || !hosts[0].eq_ignore_ascii_case(authority) {
        return Some(format!("host {hosts:?}"));
    }
    if let Some(reading) = readings(&request.target).into_iter().find(|path| !allowed(path)) {
        return Some(format!("a path that can be read as `{reading}`"));
    }
    let named =
        absent.iter().map(String::as_str).chain(HOP).find(|name| request.values(name).next().is_some());
    named.map(|name| format!("the header {name}"))
}

/// Below the allowed part, or the part itself: a prefix ends at a segment (Gateway API, PathPrefix).
fn allowed(path: &str) -> bool {
    path.starts_with(ALLOWED) || path == ALLOWED.trim_end_matches('/')
}

fn shown(requests: &[Request]) -> String {
    let lines: Vec<_> = requests
        .iter()
        .take(3)
        .map(|request| {
            let target: String = request.target.chars().take(60).collect();
            format!("{} {target:?}", request.method)
        })
        .collect();
    lines.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(expect: &str) -> Case {
        let text = format!(
            r#"{{"id":"x","class":"x","over":["plain"],"play":{{"send":["x"]}},"expect":"{expect}","absent":["x-bad"],"reference":"x"}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn arrival(change: impl FnOnce(&mut Request)) -> Seen {
        let mut request = Request {
            method: "GET".into(),
            target: "/allowed/a".into(),
            headers: vec![("host".into(), "h:1".into())],
            flaws: Vec::new(),
        };
        change(&mut request);
        Seen { statuses: vec![200], requests: vec![request], connections: 1, ..Seen::default() }
    }

    fn passes(expect: &str, seen: &Seen) -> bool {
        judge(&case(expect), Over::Plain, "h:1", seen).is_ok()
    }

    #[test]
    fn a_sound_arrival_passes_where_one_is_allowed_and_fails_where_none_is() {
        let seen = arrival(|_| {});
        assert!(passes("sound", &seen) && passes("served", &seen) && !passes("refused", &seen));
    }

    #[test]
    fn each_unsound_arrival_fails() {
        let add = |name: &str| arrival(|request| request.headers.push((name.into(), "v".into())));
        for seen in [
            add("host"),
            add("x-bad"),
            add("proxy-authorization"),
            arrival(|request| request.method = "DELETE".into()),
            arrival(|request| request.target = "/allowed/../x".into()),
            arrival(|request| request.target = "http://h:1/allowed/a".into()),
            arrival(|request| request.headers[0].1 = "other:1".into()),
            arrival(|request| request.headers.clear()),
            arrival(|request| request.flaws.push("two lengths")),
            Seen { bypassed: true, ..arrival(|_| {}) },
            Seen {
                requests: [arrival(|_| {}).requests, arrival(|_| {}).requests].concat(),
                ..arrival(|_| {})
            },
        ] {
            assert!(!passes("sound", &seen) && !passes("served", &seen), "{seen:?}");
        }
    }

    #[test]
    fn silence_is_a_refusal_and_no_service() {
        let seen = Seen { end: "closed".into(), ..Seen::default() };
        assert!(passes("refused", &seen) && passes("sound", &seen) && !passes("served", &seen));
        assert!(!passes("survives", &seen));
        assert!(passes("survives", &Seen { next_served: true, ..seen }));
    }

    #[test]
    fn an_answer_below_400_is_not_a_refusal() {
        assert!(!passes("refused", &Seen { statuses: vec![302], ..Seen::default() }));
        assert!(passes("refused", &Seen { statuses: vec![403], ..Seen::default() }));
    }

    #[test]
    fn dialling_for_a_refused_tunnel_fails() {
        let seen = Seen { connections: 1, ..Seen::default() };
        assert!(judge(&case("refused"), Over::Raw, "h:1", &seen).is_err());
        assert!(judge(&case("refused"), Over::Plain, "h:1", &seen).is_ok());
    }
}
