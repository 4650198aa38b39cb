//! `%2F` in a path, and `allow_encoded_slashes`.

use proptest::prelude::*;

use super::{denial, outcome, policy};

fn npm(rest: &str) -> String {
    format!(
        "  - {{host: npm.example.com, allow_encoded_slashes: true, matches: [{{methods: [GET]}}]}}\n{rest}"
    )
}

fn asked(policy: &policy::Policy, path: &str) -> String {
    outcome(policy, "GET", &format!("https://npm.example.com{path}"))
}

#[test]
fn an_escaped_slash_passes_by_a_route_that_takes_it_and_by_no_other() {
    let open = policy(&npm(""));
    assert_eq!(asked(&open, "/@acme%2fcore"), "allow routes[0]");
    assert_eq!(asked(&open, "/@acme/core"), "allow routes[0]");
    for rest in ["", ", allow_encoded_slashes: false", ", path_allowlist: [/]"] {
        let closed = policy(&format!("  - {{host: npm.example.com{rest}}}\n"));
        assert_eq!(asked(&closed, "/@acme%2Fcore"), "ambiguous-path");
        assert_eq!(asked(&closed, "/@acme/core"), "allow routes[0]");
    }
    let other = policy(
        "  - {host: other.example.com, allow_encoded_slashes: true}\n  - host: npm.example.com\n  - host: '*.example.com'\n",
    );
    assert_eq!(asked(&other, "/@acme%2Fcore"), "ambiguous-path");
}

#[test]
fn an_allow_needs_both_readings_of_an_escaped_slash() {
    let with = |paths: &str| {
        policy(&format!(
            "  - {{host: npm.example.com, allow_encoded_slashes: true, matches: [{{paths: [{paths}]}}]}}\n"
        ))
    };
    let cases = [
        ("{type: prefix, value: /v1}", "/v1/a%2Fb", true),
        ("{type: prefix, value: /v1}", "/v1/a%2Fb/c%2Fd/", true),
        ("{type: prefix, value: /v1}", "/v1%2Fb", false),
        ("{type: prefix, value: /v1}", "/v2%2Fv1/b", false),
        ("{type: prefix, value: /v1/a}", "/v1%2Fa/b", false),
        ("{type: prefix, value: /v1/a}", "/v1/a%2Fb", false),
        ("{type: exact, value: /v1/a}", "/v1%2Fa", false),
        ("{type: regex, value: '/v1/[^/]+'}", "/v1/a%2Fb", false),
        ("{type: regex, value: '/v1/.+'}", "/v1/a%2Fb", true),
        ("{type: regex, value: '/@acme%2F[^/]+'}", "/@acme%2Fcore", false),
        ("{type: regex, value: '/@acme(/|%2F)[^/]+'}", "/@acme%2Fcore", true),
        ("{type: prefix, value: /@acme}, {type: regex, value: '/@acme%2F[^/]+'}", "/@acme%2Fcore", true),
        ("{type: prefix, value: /@acme}, {type: regex, value: '/@acme%2F[^/]+'}", "/@acme%2Fcore%2Fx", true),
        ("{type: prefix, value: /@acme}, {type: regex, value: '/@acme%2F[^/]+'}", "/@other%2Fcore", false),
        ("{type: prefix, value: /@acme}", "/@acme%2Fcore", false),
        // As written it is meant in both readings, and as written alone.
        ("{type: exact, value: /@acme%2Fcore}", "/@acme%2Fcore", true),
        ("{type: exact, value: /@acme%2Fcore}", "/@acme%2fcore", true),
        ("{type: exact, value: /@acme%2Fcore}", "/@acme/core", false),
        ("{type: prefix, value: /projects/acme%2Fweb}", "/projects/acme%2Fweb/issues/a%2Fb", true),
        ("{type: prefix, value: /projects/acme%2Fweb}", "/projects/acme%2Fweb%2Fissues", false),
        ("{type: prefix, value: /projects/acme%2Fweb}", "/projects/acme%2Fwebs", false),
        ("{type: prefix, value: /projects/acme%2Fweb}", "/projects/acme/web/issues", false),
    ];
    for (paths, path, passes) in cases {
        let expected = match (passes, path.contains("%2")) {
            (true, _) => "allow routes[0]",
            (false, true) => "ambiguous-path",
            (false, false) => "path-not-allowed",
        };
        assert_eq!(asked(&with(paths), path), expected, "{paths} {path}");
    }
    // Two entries are alternatives, and one of them has to fit both readings.
    let apart = policy(
        "  - host: npm.example.com
    allow_encoded_slashes: true
    matches: [{paths: [{type: prefix, value: /@acme}]}, {paths: [{type: regex, value: '/@acme%2F[^/]+'}]}]
",
    );
    assert_eq!(asked(&apart, "/@acme%2Fcore"), "ambiguous-path");
}

#[test]
fn a_deny_needs_one_reading_of_an_escaped_slash() {
    let denies = [
        "path_allowlist: [/@acme/core]",
        "path_allowlist: [/@acme]",
        "path_allowlist: [/@acme%2Fcore]",
        "path_allowlist: ['/%40acme/core']",
        "path_allowlist: [/@ACME/Core]",
        "matches: [{paths: [{type: exact, value: /@acme/core}]}]",
        "matches: [{paths: [{type: exact, value: /@acme/core/}]}]",
        "matches: [{paths: [{type: regex, value: '/@acme/co.e'}]}]",
        "matches: [{paths: [{type: regex, value: '/@acme%2Fco.e'}]}]",
        "allow_encoded_slashes: true, path_allowlist: [/@acme/core]",
    ];
    for deny in denies {
        let policy = policy(&npm(&format!("  - {{host: npm.example.com, deny: true, {deny}}}\n")));
        for path in
            ["/@acme%2Fcore", "/@acme%2fcore", "/%40acme%2fcore", "/@acme%2Fcore;x=1", "/@Acme%2FCORE"]
        {
            assert_eq!(asked(&policy, path), "denied-by-rule", "{deny} {path}");
        }
        assert_eq!(asked(&policy, "/@other%2Fcore"), "allow routes[0]", "{deny}");
    }
    let parameters = policy(&npm("  - {host: npm.example.com, deny: true, path_allowlist: [/a/b]}\n"));
    // To who cuts parameters off first this is `/a/b`, to who takes `%2F` for `/` first it is not.
    assert_eq!(asked(&parameters, "/a;x%2Fy/b"), "denied-by-rule");
}

#[test]
fn an_allow_is_not_narrower_for_its_escapes() {
    let policy = policy(
        "  - {host: npm.example.com, allow_encoded_slashes: true, path_allowlist: [/projects/acme%2Fweb]}
  - {host: npm.example.com, deny: true, path_allowlist: [/projects/acme/web]}
  - {host: npm.example.com, path_allowlist: ['/users/%40me']}
  - {host: npm.example.com, deny: true, path_allowlist: [/users/@me]}
",
    );
    assert_eq!(asked(&policy, "/projects/acme%2Fweb/x"), "denied-by-rule");
    assert_eq!(asked(&policy, "/users/%40me/x"), "denied-by-rule");
    // One reading is allowed by its exact path, the other by a pattern alone.
    let unlike = super::policy(
        "  - host: npm.example.com
    allow_encoded_slashes: true
    matches: [{paths: [{type: exact, value: /@acme/core}, {type: regex, value: '/@acme%2F[^/]+'}]}]
  - {host: npm.example.com, deny: true, path_allowlist: [/@acme]}
",
    );
    assert_eq!(asked(&unlike, "/@acme/core"), "allow routes[0]");
    assert_eq!(asked(&unlike, "/@acme%2Fcore"), "denied-by-rule");
}

#[test]
fn a_push_is_seen_in_every_reading() {
    let policy = policy("  - {host: npm.example.com, allow_encoded_slashes: true, git: {fetch: true}}\n");
    for path in [
        "/a.git%2Fgit-receive-pack",
        "/a.git/git-receive-pack%2F",
        "/a.git/git-receive-pack;x%2Fy",
        "/a.git%2Finfo%2Frefs?service=git-receive-pack",
        "/a.git/info%2Frefs/?Service[]=git-receive-pack",
    ] {
        assert_eq!(asked(&policy, path), "git-push-refused", "{path}");
    }
    assert_eq!(asked(&policy, "/a%2Fb.git/info/refs?service=git-upload-pack"), "allow routes[0]");
}

#[test]
fn the_refusal_is_as_before_and_names_the_setting_where_the_host_is_allowed() {
    let closed = policy("  - {host: npm.example.com, path_allowlist: [/v1]}\n");
    insta::assert_snapshot!(denial(&closed, "GET", "https://npm.example.com/v1/a%2Fb"), @"ambiguous-path: path has an escaped slash (`%2F`): it passes only by a route with `allow_encoded_slashes: true` that fits it with `/` in that place too; allowed on this host: any method https://npm.example.com/v1/**");
    insta::assert_snapshot!(denial(&closed, "GET", "https://x.example.org/v1/a%2Fb"), @"ambiguous-path: path has an escaped slash (`%2F`)");
    let open = policy(&npm("  - {host: npm.example.com}\n"));
    insta::assert_snapshot!(denial(&open, "POST", "https://npm.example.com/v1/a%2Fb"), @"ambiguous-path: path has an escaped slash (`%2F`): it passes only by a route with `allow_encoded_slashes: true` that fits it with `/` in that place too; allowed on this host: GET https://npm.example.com/** (also with %2F); any method https://npm.example.com/**");
    let ended = policy(
        "  - {host: npm.example.com, allow_encoded_slashes: true, expires_at: 2026-11-01T00:00:00Z}\n",
    );
    assert_eq!(asked(&ended, "/a%2Fb"), "grant-expired");
}

proptest! {
    /// Whatever else a policy says, without the key no path with `%2F` passes, and each is refused by the same code.
    #[test]
    fn without_the_key_every_escaped_slash_is_refused_alike(
        routes in prop::collection::vec((0..4usize, any::<bool>(), any::<bool>()), 1..6),
        path in prop::sample::select(vec!["/a%2Fb", "/v1/a%2Fb", "/v1%2Fa", "/v1/git-receive-pack%2F"]),
    ) {
        const PATHS: [&str; 4] = ["/", "/v1", "/v1/a", "/a"];
        let line = |(path, deny, exact): &(usize, bool, bool)| format!(
            "  - {{host: npm.example.com, deny: {deny}, matches: [{{paths: [{{type: {}, value: {}}}]}}]}}\n",
            if *exact { "exact" } else { "prefix" }, PATHS[*path],
        );
        let policy = policy(&routes.iter().map(line).collect::<String>());
        prop_assert_eq!(asked(&policy, path), "ambiguous-path");
    }

    /// What passes with `%2F` passes with `/` in its place too, where no path is written with it.
    #[test]
    fn what_passes_with_an_escaped_slash_passes_with_a_slash(
        routes in prop::collection::vec((0..7usize, any::<bool>()), 1..6),
        elements in prop::collection::vec(prop::sample::select(vec!["v1", "a", "b", "@"]), 1..5),
        joints in prop::collection::vec(prop::sample::select(vec!["/", "%2F", "%2f"]), 4),
    ) {
        const PATHS: [&str; 7] = [
            "{type: prefix, value: /}", "{type: prefix, value: /v1}", "{type: prefix, value: /v1/a}",
            "{type: exact, value: /v1/a}", "{type: regex, value: '/v1.*'}", "{type: regex, value: '/.*a'}", "{type: regex, value: '/[^/]+'}",
        ];
        let line = |(path, deny): &(usize, bool)| format!(
            "  - {{host: npm.example.com, allow_encoded_slashes: true, deny: {deny}, matches: [{{paths: [{}]}}]}}\n", PATHS[*path],
        );
        let policy = policy(&routes.iter().map(line).collect::<String>());
        let path: String = elements.iter().enumerate().map(|(index, element)| {
            format!("{}{element}", if index == 0 { "/" } else { joints[index - 1] })
        }).collect();
        if asked(&policy, &path).starts_with("allow") {
            let slashed = path.replace("%2F", "/").replace("%2f", "/");
            let answer = asked(&policy, &slashed);
            prop_assert!(answer.starts_with("allow"), "{path} passes, {slashed}: {answer}");
        }
    }
}
