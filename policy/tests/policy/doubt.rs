//! Doubt narrows an allow and widens a deny: methods, paths, headers and queries that servers read in more than one way.

use proptest::prelude::*;

use super::{Ask, in_short, outcome, policy};

const HOST: &str = "https://a.example.com";

fn answer(routes: &str, target: &str) -> String {
    outcome(&policy(routes), "GET", &format!("{HOST}{target}"))
}

#[test]
fn a_deny_by_method_is_not_passed_in_lower_case() {
    let policy = policy(
        "  - host: a.example.com
  - {host: a.example.com, deny: true, matches: [{methods: [DELETE, PURGE]}]}
  - {host: b.example.com, matches: [{methods: [GET]}]}
",
    );
    for method in ["DELETE", "delete", "Delete", "purge"] {
        assert_eq!(outcome(&policy, method, &format!("{HOST}/x")), "denied-by-rule", "{method}");
    }
    assert_eq!(outcome(&policy, "DELETED", &format!("{HOST}/x")), "allow routes[0]");
    assert_eq!(outcome(&policy, "get", "https://b.example.com/"), "method-not-allowed");
}

#[test]
fn a_deny_by_path_is_not_passed_in_another_case_or_spelling() {
    let routes = "  - host: a.example.com
  - {host: a.example.com, deny: true, path_allowlist: [/repos/Acme/secret]}
  - {host: a.example.com, deny: true, matches: [{paths: [{type: exact, value: /Keys}, {type: regex, value: '/v[0-9]/Raw'}]}]}
  - {host: a.example.com, deny: true, path_allowlist: ['/users/%40me', '/a%3Bb']}
";
    let denied = [
        "/repos/Acme/secret",
        "/REPOS/acme/Secret/contents",
        "/keys",
        "/KEYS/",
        "/v1/raw",
        "/V1/RAW/",
        "/users/%40me",
        "/users/@me",
        "/Users/@Me/x",
        "/a;b",
        "/a%3Bb/c",
    ];
    for path in denied {
        assert_eq!(answer(routes, path), "denied-by-rule", "{path}");
    }
    for path in ["/repos/acme/secrets", "/users/@you", "/v1/raws", "/a"] {
        assert_eq!(answer(routes, path), "allow routes[0]", "{path}");
    }
    let narrow = "  - {host: a.example.com, matches: [{paths: [{type: regex, value: '/v1/[a-z]+'}, {type: exact, value: /Keys}]}]}\n";
    for path in ["/V1/a", "/v1/A", "/keys"] {
        assert_eq!(answer(narrow, path), "path-not-allowed", "{path}");
    }
}

#[test]
fn a_deny_by_header_finds_its_value_in_a_list_and_in_either_case() {
    let policy = policy(
        "  - host: a.example.com
  - {host: a.example.com, deny: true, matches: [{headers: [{name: x-kind, value: raw}]}]}
  - {host: a.example.com, deny: true, matches: [{headers: [{name: accept, value: 'a/b, c/d'}]}]}
",
    );
    let ask = |lines: &[(&'static str, &'static str)]| {
        let ask = Ask::new("GET", "https://a.example.com/");
        in_short(&lines.iter().fold(ask, |ask, (name, value)| ask.header(name, value)).of(&policy))
    };
    for value in ["raw", "RAW", "plain, raw", "plain,Raw ;q=1", "raw; x=y"] {
        assert_eq!(ask(&[("x-kind", value)]), "denied-by-rule", "{value}");
        assert_eq!(ask(&[("x-kind", "plain"), ("x_kind", value)]), "denied-by-rule", "{value}");
    }
    assert_eq!(ask(&[("accept", "a/b"), ("accept", "c/d")]), "denied-by-rule");
    assert_eq!(ask(&[("accept", "x/y, a/b,c/d")]), "denied-by-rule");
    for value in ["raws", "plain", "x raw"] {
        assert_eq!(ask(&[("x-kind", value)]), "allow routes[0]", "{value}");
    }
    assert_eq!(ask(&[("accept", "a/b")]), "allow routes[0]");
}

#[test]
fn an_allow_by_header_takes_no_list() {
    let policy = policy("  - {host: a.example.com, matches: [{headers: [{name: x-mode, value: read}]}]}\n");
    for (value, expected) in [
        ("read", "allow routes[0]"),
        ("read, write", "request-not-allowed"),
        ("read;write", "request-not-allowed"),
        ("READ", "request-not-allowed"),
    ] {
        let ask = Ask::new("GET", "https://a.example.com/").header("x-mode", value);
        assert_eq!(in_short(&ask.of(&policy)), expected, "{value}");
    }
}

const SAFE: &str = "  - {host: a.example.com, matches: [{query: [{name: q, value: safe}]}]}\n";

#[test]
fn an_allow_by_query_is_not_passed_with_a_second_value_hidden() {
    for query in [
        "a=1;q=evil&q=safe",
        "q=safe&a=1;q=evil",
        "q=safe;q=evil",
        "q=safe;x",
        "q=safe&q%5B%5D=evil",
        "q=safe&q[]=evil",
        "q=safe&q[x]=evil",
        "q=safe&q[=evil",
        "q=safe&q]=evil",
        "q=safe&[q]=evil",
        "q=safe&%20q=evil",
        "q=safe&+q=evil",
        "q=safe&q+=evil",
        "q=safe&q%09[]=evil",
        "q=safe&q%00x=evil",
        "q=safe&?q=evil",
        "?q=evil&q=safe",
        "Q=evil&q=safe",
        "q=safe&%51=evil",
        "q=safe&%u0071=evil",
        "q=safe&%uff=&%q=evil",
        "q=safe&amp;q=evil",
        "q=safe&q",
        "q=safe&q=",
        "q=safe&q=safe%20",
        "q=safe&q=Safe",
        "a=1;q=safe",
        "Q=safe",
        "q[]=safe",
        "%20q=safe",
        "",
        "a=q=safe",
    ] {
        assert_eq!(answer(SAFE, &format!("/?{query}")), "request-not-allowed", "{query}");
    }
    for query in [
        "q=safe",
        "a=1&q=safe&b[q]=2",
        "q=safe&q=s%61fe",
        "%71=safe",
        "q=safe&Q[]=safe",
        "q=safe&qq=x&a.q=y&q_=z",
        "q=safe&&",
    ] {
        assert_eq!(answer(SAFE, &format!("/?{query}")), "allow routes[0]", "{query}");
    }
    let named = |name: &str| {
        format!("  - {{host: a.example.com, matches: [{{query: [{{name: '{name}', value: safe}}]}}]}}\n")
    };
    for (name, query) in [
        ("a.b", "a.b=safe&a_b=evil"),
        ("a_b", "a_b=safe&a%20b=evil"),
        ("a_b", "a_b=safe&a[b=evil"),
        ("a b", "a+b=safe&a.b=evil"),
        ("f[x]", "f[x]=safe&f[x][]=evil"),
        ("f[x]", "f[x]=safe&f%5bx=evil"),
        ("f[x]", "f[x]=safe&f=evil"),
        ("Q", "Q=safe&q=evil"),
    ] {
        assert_eq!(answer(&named(name), &format!("/?{query}")), "request-not-allowed", "{name} {query}");
    }
    assert_eq!(answer(&named("f[x]"), "/?f[x]=safe&f[y]=other"), "allow routes[0]");
    assert_eq!(answer(&named("f[x]"), "/?f%5Bx%5D=safe"), "allow routes[0]");
}

#[test]
fn a_deny_by_query_is_not_passed_in_another_spelling() {
    let routes = "  - host: a.example.com
  - {host: a.example.com, deny: true, matches: [{query: [{name: admin, value: 'yes'}]}]}
";
    for query in [
        "admin=yes",
        "Admin=YES",
        "admin=no&admin[]=yes",
        "x=1;admin=yes",
        "admin=yes;x=1",
        "%20admin=yes+",
        "admin=%u0079es",
        "admin=yes%00no",
        "ad%u006Din=y%es",
    ] {
        assert_eq!(answer(routes, &format!("/?{query}")), "denied-by-rule", "{query}");
    }
    for query in ["admin=no", "administrator=yes", "x=admin=yes", ""] {
        assert_eq!(answer(routes, &format!("/?{query}")), "allow routes[0]", "{query}");
    }
}

/// The values of `q` to a server that takes these for separators and these for the key.
fn read_by(query: &str, separators: &[char], is_key: fn(&str) -> bool) -> Vec<String> {
    let decode = |text: &str| {
        let text = text.replace('+', " ").replace("%20", " ").replace("%5B", "[").replace("%5D", "]");
        text.replace("%71", "q").replace("%51", "Q").replace("%00", "\0").replace("%2E", ".")
    };
    let pairs = query.split(separators).map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(|(key, _)| is_key(&decode(key))).map(|(_, value)| decode(value)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8 * ProptestConfig::default().cases, ..ProptestConfig::default() })]

    /// Servers of several kinds, each simply written, read no other value out of a query that an allow lets pass.
    #[test]
    fn no_server_reads_another_value_out_of_a_query_that_passes(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "q", "q", "Q", "%71", "=", "=", "=", "safe", "safe", "evil", "&", "&", "&", ";", "[", "]", "[]", "%5B%5D", "+", "%20", "%00", ".", "a",
        ]), 1..14),
    ) {
        let query = format!("q=safe&{}", pieces.concat());
        let servers: [fn(&str) -> bool; 6] = [
            |key| key == "q",
            |key| key.eq_ignore_ascii_case("q"),
            |key| key.trim() == "q",
            |key| key.trim_start().split(['[', '\0']).next() == Some("q"),
            |key| key.split('\0').next() == Some("q"),
            |key| key.trim_matches(['[', ']']) == "q",
        ];
        if answer(SAFE, &format!("/?{query}")).starts_with("allow") {
            for separators in [&['&'][..], &['&', ';']] {
                for server in servers {
                    prop_assert!(read_by(&query, separators, server).iter().all(|value| value == "safe"), "{query}");
                }
            }
        }
    }
}
