use super::refused;

/// Below `routes:\n  - host: a.example.com\n`.
fn refused_route(fields: &str) -> String {
    let fields: String = fields.lines().map(|line| format!("    {line}\n")).collect();
    refused(&format!("routes:\n  - host: a.example.com\n{fields}"))
}

#[test]
fn routes_must_be_there_but_may_be_empty() {
    for text in ["", "\n", "log: 1\n", "routes:\n", "routes: ~\n", "# nothing\n"] {
        insta::allow_duplicates! {
            insta::assert_snapshot!(refused(text), @"routes.yaml:1:1: `routes` is missing: list the routes, or write `routes: []` to refuse everything");
        }
    }
    assert!(policy::Policy::parse("routes.yaml", "routes: []\n").unwrap().routes().is_empty());
}

#[test]
fn an_unknown_field_names_the_fields_that_are_expected() {
    insta::assert_snapshot!(refused("routes:\n  - host: a.example.com\n    matches:\n      - metods: [GET]\n"), @"routes.yaml:4:9: unknown field `metods`, expected one of `paths`, `methods`, `headers`, `query`; did you mean `methods`?");
    insta::assert_snapshot!(refused("route: []\n"), @"routes.yaml:1:1: unknown field `route`, expected one of `log`, `defaults`, `routes`, `releases`, `raised`, `exceptions`; did you mean `routes`?");
    insta::assert_snapshot!(refused_route("colour: red"), @"routes.yaml:3:5: unknown field `colour`, expected one of `host`, `scheme`, `ports`, `matches`, `deny`, `path_allowlist`, `allow_encoded_slashes`, `auth_scheme`, `token_env`, `token_file`, `own_credential_only`, `git`, `tls`, `allow_private`, `parent_resolves`, `expires_at`, `grant`, `placeholder_in`, `dlp`, `limits`, `max_uses`");
}

#[test]
fn duplicate_keys_merge_keys_and_second_documents_are_refused() {
    insta::assert_snapshot!(refused_route("host: b.example.com"), @"routes.yaml:3:5: duplicate key `host`");
    insta::assert_snapshot!(refused("routes: []\nroutes: []\n"), @"routes.yaml:2:1: duplicate key `routes`");
    insta::assert_snapshot!(refused("routes:\n  - &a\n    host: a.example.com\n  - <<: *a\n"), @"routes.yaml:4:5: merge keys (`<<`) are not supported: write the fields out");
    insta::assert_snapshot!(refused("---\nroutes: []\n---\nroutes: []\n"), @"routes.yaml:4:1: more than one YAML document in the file");
}

#[test]
fn wrong_shapes_say_what_is_expected() {
    insta::assert_snapshot!(refused("- a\n"), @"routes.yaml:1:1: expected a mapping: `key: value`");
    insta::assert_snapshot!(refused("routes: hello\n"), @"routes.yaml:1:9: expected a list: `[a, b]`, or a line with `- ` for each");
    insta::assert_snapshot!(refused("routes: [\n"), @"routes.yaml:1:9: unclosed bracket '['");
    insta::assert_snapshot!(refused("routes:\n  - a.example.com\n"), @"routes.yaml:2:5: expected a mapping: `key: value`");
    insta::assert_snapshot!(refused_route("ports: 443"), @"routes.yaml:3:12: expected a list: `[a, b]`, or a line with `- ` for each");
    insta::assert_snapshot!(refused_route("deny: yes"), @"routes.yaml:3:11: expected `true` or `false`");
    insta::assert_snapshot!(refused_route("scheme: [https]"), @"routes.yaml:3:13: expected a single value");
    insta::assert_snapshot!(refused_route("scheme:"), @"routes.yaml:3:11: a value is missing");
}

#[test]
fn a_field_without_a_value_is_never_the_same_as_no_field() {
    insta::assert_snapshot!(refused_route("matches:"), @"routes.yaml:3:12: `matches` is empty: list at least one entry, or leave it out to match every request on the host");
    insta::assert_snapshot!(refused_route("matches: []"), @"routes.yaml:3:14: `matches` is empty: list at least one entry, or leave it out to match every request on the host");
    insta::assert_snapshot!(refused_route("matches: [{}]"), @"routes.yaml:3:15: an entry of `matches` needs one of `paths`, `methods`, `headers`, `query`");
    insta::assert_snapshot!(refused_route("matches: [{paths: }]"), @"routes.yaml:3:21: `paths` is empty: list at least one, or leave it out");
    insta::assert_snapshot!(refused_route("matches: [{methods: []}]"), @"routes.yaml:3:25: `methods` is empty: list at least one, or leave it out");
    insta::assert_snapshot!(refused_route("path_allowlist:"), @"routes.yaml:3:19: `path_allowlist` is empty: list at least one prefix, or leave it out to match every request on the host");
    insta::assert_snapshot!(refused_route("ports: []"), @"routes.yaml:3:12: `ports` is empty: list at least one, or leave it out");
    insta::assert_snapshot!(refused_route("git:"), @"routes.yaml:3:5: `git` has no `fetch`: write `git: {fetch: true}`, or leave it out");
    insta::assert_snapshot!(refused_route("deny:"), @"routes.yaml:3:9: expected `true` or `false`");
    insta::assert_snapshot!(refused_route("expires_at:"), @"routes.yaml:3:15: a value is missing");
}

#[test]
fn values_that_make_no_sense_are_all_reported_at_once() {
    let text = "log: 5
defaults: {connect_timeout: 10, idle_timeout: 25h}
routes:
  - host: '*'
  - host: '*.com'
  - host: 0x7f.1
  - host: _egress.local
  - {}
  - host: a.example.com
    scheme: ftp
    ports: [0, 70000, http, 443, 443]
    tls: none
    allow_private: [localhost]
    expires_at: tomorrow
    grant: a b
    token_file: ../key
    auth_scheme: digest
    matches:
      - methods: [get, GTE, CONNECT]
        headers: [{name: a b, value: x}, {name: x}]
        paths: [{type: prefix, value: /a/../b}, {type: exact, value: /%61}, {type: glob, value: /x}, {type: regex, value: (}, {value: /x}]
";
    insta::assert_snapshot!(refused(text), @r"
    routes.yaml:1:6: `log` is `5`, expected `0` (nothing), `1` (refusals) or `2` (every request)
    routes.yaml:2:29: `connect_timeout`: `10` is not a duration: write a number and a unit, as `500ms`, `10s`, `5m` or `1h`
    routes.yaml:2:47: `idle_timeout`: `25h` is out of range: more than 0, at most 24h
    routes.yaml:4:11: `*` is not a host: a wildcard alone would allow every host: name a domain, as in `*.example.com`
    routes.yaml:5:11: `*.com` is not a host: a wildcard directly over a single label is too broad: name a domain, as in `*.example.com`
    routes.yaml:6:11: `0x7f.1` is not a host: host could be read as an IPv4 address: write it as four decimal numbers
    routes.yaml:7:11: `_egress.local` is answered by egress itself and cannot have a route
    routes.yaml:8:5: `host` is missing: name a host, as in `api.example.com`, `*.example.com` or `**.example.com`
    routes.yaml:10:13: unknown scheme `ftp`, expected `https` or `http`
    routes.yaml:11:13: `0` is not a port: expected 1 to 65535
    routes.yaml:11:16: `70000` is not a port: expected 1 to 65535
    routes.yaml:11:23: `http` is not a port: expected 1 to 65535
    routes.yaml:11:34: port 443 is listed twice
    routes.yaml:12:10: unknown `tls` mode `none`, expected `intercept` or `passthrough`
    routes.yaml:13:21: `localhost` is not an address: write `10.1.2.3`, `10.0.0.0/8`, `10.1.2.3:8443`, `fd00::1` or `[fd00::/64]:8443`
    routes.yaml:14:17: `tomorrow` is not a time: write it as `2026-12-01T12:00:00Z`
    routes.yaml:15:12: `a b`: a grant's identifier is 1 to 64 letters, digits, `-` and `_`
    routes.yaml:16:17: `../key`: a secret's name is 1 to 128 letters, digits, `_`, `-` and `.`, not starting with a dot
    routes.yaml:17:18: unknown `auth_scheme` `digest`, expected `bearer`, `token`, `basic`, `header:NAME` or `query:NAME`
    routes.yaml:19:19: method `get` is not in upper case: write `GET`
    routes.yaml:19:24: unknown method `GTE`; did you mean `GET`?
    routes.yaml:19:29: `CONNECT` opens tunnels and is not a method of a request
    routes.yaml:20:26: `a b` is not a header name
    routes.yaml:20:42: `value` is missing
    routes.yaml:21:39: `/a/../b` can never match: path has a `.` or `..` segment
    routes.yaml:21:70: `/%61` can never match: requests are compared in canonical form, write `/a`
    routes.yaml:21:84: unknown path type `glob`, expected `exact`, `prefix` or `regex`
    routes.yaml:21:123: `(` is not a usable regular expression: unclosed group
    routes.yaml:21:127: `type` is missing
    ");
}

#[test]
fn a_path_written_with_an_escaped_slash_needs_a_route_that_takes_it() {
    insta::assert_snapshot!(refused_route("path_allowlist: [/@acme%2Fcore]"), @"routes.yaml:3:22: `/@acme%2Fcore` can never match: a route is for paths with `%2F` only with `allow_encoded_slashes: true`");
    insta::assert_snapshot!(refused_route("allow_encoded_slashes: true\npath_allowlist: [/@acme%2fcore, /a/..%2Fb]"), @r"
    routes.yaml:4:22: `/@acme%2fcore` can never match: requests are compared in canonical form, write `/@acme%2Fcore`
    routes.yaml:4:37: `/a/..%2Fb` can never match: path has a `.` or `..` segment
    ");
    insta::assert_snapshot!(refused_route("allow_encoded_slashes: yes"), @"routes.yaml:3:28: expected `true` or `false`");
    for rest in ["allow_encoded_slashes: true", "deny: true"] {
        let text = format!("routes:\n  - {{host: a.example.com, path_allowlist: [/@acme%2Fcore], {rest}}}\n");
        assert!(policy::Policy::parse("routes.yaml", &text).is_ok(), "{rest}");
    }
}

#[test]
fn contradictions_are_refused() {
    insta::assert_snapshot!(refused_route("tls: passthrough\nmatches: [{methods: [GET]}]\ngit: {fetch: true}\ntoken_env: A\nauth_scheme: bearer"), @r"
    routes.yaml:4:5: `matches` contradicts `tls: passthrough`: what is in the tunnel cannot be seen or changed
    routes.yaml:5:5: `git` contradicts `tls: passthrough`: what is in the tunnel cannot be seen or changed
    routes.yaml:6:5: `token_env` contradicts `tls: passthrough`: what is in the tunnel cannot be seen or changed
    routes.yaml:7:5: `auth_scheme` contradicts `tls: passthrough`: what is in the tunnel cannot be seen or changed
    ");
    insta::assert_snapshot!(refused_route("tls: passthrough\nallow_encoded_slashes: true"), @"routes.yaml:4:5: `allow_encoded_slashes` contradicts `tls: passthrough`: what is in the tunnel cannot be seen or changed");
    insta::assert_snapshot!(refused_route("deny: true\ntoken_file: A\nallow_private: [10.0.0.1]\ngrant: g"), @r"
    routes.yaml:4:5: `token_file` contradicts `deny: true`: a refused request is not sent
    routes.yaml:5:5: `allow_private` contradicts `deny: true`: a refused request is not sent
    routes.yaml:6:5: `grant` contradicts `deny: true`: a grant only allows
    ");
    insta::assert_snapshot!(refused_route("path_allowlist: [/a]\nmatches: [{methods: [GET]}]"), @"routes.yaml:3:5: `path_allowlist` contradicts `matches`: it is the older shorthand for it");
    insta::assert_snapshot!(refused_route("token_env: A\ntoken_file: B"), @"routes.yaml:4:5: `token_file` contradicts `token_env`: a route has one credential");
    insta::assert_snapshot!(refused_route("auth_scheme: bearer"), @"routes.yaml:3:5: `auth_scheme` without a token: name it in `token_file` or `token_env`");
    insta::assert_snapshot!(refused_route("scheme: http\ntls: passthrough"), @"routes.yaml:4:5: `tls` contradicts `scheme: http`: there is no TLS to pass on");
    insta::assert_snapshot!(refused("routes:\n  - {host: a.example.com}\n  - {host: A.example.com., tls: passthrough}\n"), @"routes.yaml:3:12: `a.example.com` has both `tls: intercept` and `tls: passthrough` on port 443: choose one");
}

#[test]
fn what_this_version_does_not_enforce_is_refused() {
    insta::assert_snapshot!(refused_route("auth_scheme: sigv4\ntoken_env: A"), @"routes.yaml:3:18: `auth_scheme: sigv4` is not supported by this version");
}

#[test]
fn a_credential_needs_a_place_that_can_carry_it() {
    for scheme in ["header:host", "header:content-length", "header:a b", "header:", "query:", "cookie:x"] {
        let message = refused_route(&format!("token_env: A\nauth_scheme: '{scheme}'"));
        assert!(message.starts_with("routes.yaml:4:18: "), "{message}");
    }
}

#[test]
fn a_huge_or_deep_file_is_refused_quickly() {
    let deep = format!("routes: {}{}\n", "[".repeat(10_000), "]".repeat(10_000));
    assert!(refused(&deep).starts_with("routes.yaml:1:"));
    let bomb = "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nroutes: [*b, *b, *b, *b, *b]\n";
    assert!(refused(bomb).starts_with("routes.yaml:"));
    assert!(refused(&"#".repeat(9 * 1024 * 1024)).contains("larger than 8 MiB"));
}

#[test]
fn bounds_that_make_no_sense_are_refused() {
    insta::assert_snapshot!(refused_route("limits: {requests_per_minute: 0, request_body: 5 MEGA, connections: many, concurrency: -1}\nmax_uses: 0"), @r"
    routes.yaml:3:35: `requests_per_minute` is `0`, expected a whole number from 1
    routes.yaml:3:52: `request_body`: `5 MEGA` is not a size: write a whole number and a unit, as `64KiB`, `50MiB` or `1GiB`
    routes.yaml:3:73: `connections` is `many`, expected a whole number from 1
    routes.yaml:3:92: `concurrency` is `-1`, expected a whole number from 1
    routes.yaml:4:15: `max_uses` is `0`, expected a whole number from 1
    ");
    insta::assert_snapshot!(refused_route("limits: {}"), @"routes.yaml:3:13: `limits` needs one of `requests_per_minute`, `request_body`, `connections`, `concurrency`");
    insta::assert_snapshot!(refused_route("limits: {requests_per_minut: 5}"), @"routes.yaml:3:14: unknown field `requests_per_minut`, expected one of `requests_per_minute`, `request_body`, `connections`, `concurrency`; did you mean `requests_per_minute`?");
    insta::assert_snapshot!(refused_route("deny: true\nlimits: {concurrency: 1}\nmax_uses: 1"), @r"
    routes.yaml:4:5: `limits` contradicts `deny: true`: a refused request is not sent
    routes.yaml:5:5: `max_uses` contradicts `deny: true`: a refused request is not sent
    ");
    insta::assert_snapshot!(refused_route("tls: passthrough\nlimits: {requests_per_minute: 1, request_body: 1MiB, connections: 2}\nmax_uses: 1"), @r"
    routes.yaml:4:14: `requests_per_minute` contradicts `tls: passthrough`: what is in the tunnel cannot be seen or changed
    routes.yaml:4:38: `request_body` contradicts `tls: passthrough`: what is in the tunnel cannot be seen or changed
    routes.yaml:5:5: `max_uses` contradicts `tls: passthrough`: what is in the tunnel cannot be seen or changed
    ");
}

#[test]
fn positions_of_a_placeholder_are_checked() {
    insta::assert_snapshot!(refused_route("placeholder_in: [header:authorization]"), @"routes.yaml:3:5: `placeholder_in` without a token: name it in `token_file` or `token_env`");
    let message = refused_route(
        "token_env: A\nplaceholder_in: ['header:host', 'body:/x', 'query:key', 'query:key', 'json:token']",
    );
    insta::assert_snapshot!(message, @r"
    routes.yaml:4:22: `host` is not a header that can carry a credential
    routes.yaml:4:37: unknown position `body:/x`, expected `header:NAME`, `query:KEY`, `basic:user`, `basic:password`, `json:/POINTER`, `form:FIELD` or `ws-json:/POINTER`
    routes.yaml:4:61: `query:key` is listed twice
    routes.yaml:4:74: `token` is not a JSON pointer to a field: write it as `/auth/token` (RFC 6901)
    ");
    insta::assert_snapshot!(refused_route("token_env: A\nplaceholder_in: []"), @"routes.yaml:4:21: `placeholder_in` is empty: list at least one position, or leave it out");
}

#[test]
fn what_asks_a_parent_by_name_checks_no_address_and_a_rule_for_the_unreadable_is_one_of_two() {
    insta::assert_snapshot!(refused_route("allow_private: [10.0.0.0/8]\nparent_resolves: true"), @"routes.yaml:3:5: `allow_private` contradicts `parent_resolves: true`: where the parent leads is not checked here");
    insta::assert_snapshot!(refused_route("dlp: {outbound_uninspectable: pas}"), @"routes.yaml:3:35: unknown `outbound_uninspectable` `pas`, expected `refuse` or `pass`; did you mean `pass`?");
}
