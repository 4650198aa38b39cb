use super::{now, policy};

const ROUTES: &str = "  - host: api.example.com
    matches:
      - {paths: [{type: prefix, value: /v1/}, {type: exact, value: /health}], methods: [GET, HEAD]}
      - {paths: [{type: regex, value: '/v2/[a-z]+'}], headers: [{name: Accept, value: text/plain}], query: [{name: q, value: x}]}
    token_env: EGRESS_TOKEN_0
  - {host: '*.example.org', scheme: http, ports: [80, 8080]}
  - {host: '**.example.net', deny: true, path_allowlist: [/]}
  - {host: '[2001:db8::1]', tls: passthrough}
  - {host: npm.example.com, allow_encoded_slashes: true, matches: [{methods: [GET]}]}
  - {host: npm.example.com, allow_encoded_slashes: true, ports: [8443]}
  - {host: npm.example.com, allow_encoded_slashes: true, deny: true, path_allowlist: [/-]}
  - {host: old.example.com, expires_at: 2026-11-01T00:00:00Z, grant: g1}
";

#[test]
fn a_route_is_told_in_words() {
    let policy = policy(ROUTES);
    let words: Vec<String> = policy.routes().iter().map(policy::describe).collect();
    insta::assert_snapshot!(words.join("\n"), @r"
    GET, HEAD https://api.example.com/v1/**, https://api.example.com/health
    any method https://api.example.com~/v2/[a-z]+ with header accept: text/plain, query q=x
    any method http://*.example.org/**
    any method http://*.example.org:8080/**
    deny any method https://**.example.net/**
    tunnel to https://[2001:db8::1] (not inspected)
    GET https://npm.example.com/** (also with %2F)
    any method https://npm.example.com:8443/** (also with %2F)
    deny any method https://npm.example.com/-/**
    any method https://old.example.com/**
    ");
}

#[test]
fn the_allowlist_has_what_is_in_force_and_no_secret_name() {
    let list = serde_json::to_string_pretty(&policy(ROUTES).allowlist(now())).unwrap();
    assert!(!list.contains("EGRESS_TOKEN_0") && !list.contains("old.example.com"), "{list}");
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    insta::assert_snapshot!(list["routes"][0], @r#"{"allow_encoded_slashes":false,"credential":true,"deny":false,"git_fetch":false,"host":"api.example.com","matches":[{"methods":["GET","HEAD"],"paths":[{"type":"prefix","value":"/v1/"},{"type":"exact","value":"/health"}]},{"headers":[{"name":"accept","value":"text/plain"}],"paths":[{"type":"regex","value":"/v2/[a-z]+"}],"query":[{"name":"q","value":"x"}]}],"ports":[443],"scheme":"https","tls":"intercept"}"#);
    insta::assert_snapshot!(list["routes"][3], @r#"{"allow_encoded_slashes":false,"credential":false,"deny":false,"git_fetch":false,"host":"[2001:db8::1]","matches":[],"ports":[443],"scheme":"https","tls":"passthrough"}"#);
    assert_eq!(list["routes"][4]["allow_encoded_slashes"], true);
}
