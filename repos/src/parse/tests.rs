use proptest::prelude::*;

use super::*;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH";

fn parse(text: &str) -> Result<Repos, Diagnostics> {
    Repos::parse("repos.yaml", text, Allow::SshUpstream)
}

fn faults(text: &str) -> String {
    parse(text).expect_err("the file is wrong").to_string()
}

#[test]
fn the_documented_example_is_understood() {
    let repos = parse(&format!(
        "repos:
  - name: acme-web
    upstream: ssh://git@github.com/acme/web.git
    identity: /git-gate/creds/acme-web.key
    host_key: \"{KEY}\"
    extra_hosts: {{github.com: 140.82.121.3}}
    push: {{allow: [refs/heads/agent/*], force: false, delete: false, tags: true, max_pack: 200MiB, on_secret: block}}
    fetch: {{allow: [\"refs/heads/*\", \"refs/tags/*\"], stale: refuse}}
"
    ))
    .expect("a good file");
    let repo = repos.get(&RepoName::parse("acme-web").expect("a name")).expect("it is there");
    let Upstream::Ssh(ssh) = &repo.upstream else { panic!("the upstream is ssh") };
    assert_eq!(ssh.url(), "ssh://git@github.com/acme/web.git");
    assert_eq!(ssh.address, "140.82.121.3".parse().ok());
    assert_eq!(repo.push.max_pack(), 200 << 20);
    assert_eq!(repo.fetch.allow.len(), 2);
}

#[test]
fn without_push_nothing_may_be_pushed() {
    let text = format!("repos:\n  - {{name: a, upstream: 'git@h:p', identity: /k, host_key: '{KEY}'}}\n");
    let repos = parse(&text).expect("a good file");
    let repo = repos.iter().next().expect("one repository");
    let moment = crate::Moment { now: jiff::Timestamp::UNIX_EPOCH, used: &BTreeMap::new() };
    assert!(repo.push.decide("refs/heads/x", crate::Change::Create, &moment).is_err());
    assert_eq!(repo.fetch.allow[0].as_str(), "refs/heads/*");
}

#[test]
fn wrong_keys_and_values_are_named_with_their_place() {
    insta::assert_snapshot!(faults("repos:\n  - nmae: x\n"), @"repos.yaml:2:5: unknown field `nmae`, expected one of `name`, `upstream`, `identity`, `host_key`, `token_file`, `token_user`, `extra_hosts`, `push`, `fetch`, `expires_at`, `grant`");
    insta::assert_snapshot!(faults("repos:\n  - name: x\n    name: y\n    upstream: git@h:p\n"), @"repos.yaml:3:5: the key `name` is given twice");
    insta::assert_snapshot!(faults("repos: [\n"), @"repos.yaml:1:8: unclosed bracket '['");
    insta::assert_snapshot!(faults(&format!(
        "repos:
  - name: ../x
    upstream: https://github.com/acme/web.git
  - name: b
    upstream: git@h:p
    push:
      allow: [heads/*, refs/heads/*]
      max_pack: lots
      on_secret: redact
      max_uses: 2
      max_file: 1GiB
      expires_at: tomorrow
      author_domains: ['a@b']
    fetch: {{allow: [], stale: allow}}
  - name: c
    upstream: git@h:p
    identity: key
    host_key: ssh-dss AAAA
    extra_hosts: {{h: here, g: 10.0.0.1}}
  - name: d
    upstream: file:///srv/d.git
  - name: e
    upstream: git@h:p
    identity: /k
    host_key: {KEY}
  - name: e
    upstream: git@h:p
    identity: /k
    host_key: {KEY}
"
    )), @r#"
    repos.yaml:2:11: `../x`: a repository name has letters, digits, `.`, `_` and `-` only, and starts with a letter or digit
    repos.yaml:3:15: an https upstream needs `token_file: NAME`, the name of the secret that holds its token
    repos.yaml:5:15: an ssh upstream needs `identity: /path/of/a/private/key` (ssh-keygen -t ed25519 -f KEY makes one)
    repos.yaml:5:15: an ssh upstream needs `host_key: "TYPE BASE64"`; get it with `ssh-keyscan -p 22 -t ed25519 h` and compare it with what the host publishes
    repos.yaml:7:15: `heads/*`: a ref pattern is a full name: it starts with `refs/`
    repos.yaml:8:17: `lots` is not a size from 1KiB to 16GiB, such as 200MiB
    repos.yaml:9:18: `on_secret` is `block` or `supervise`, not `redact`
    repos.yaml:10:17: `max_uses` needs `grant: ID`: uses are counted under that name
    repos.yaml:11:17: `1GiB` is not a size from 1KiB to 512MiB, such as 200MiB
    repos.yaml:12:19: `tomorrow` is not a time: write it as `2026-12-01T12:00:00Z`
    repos.yaml:13:24: `a@b` is not the part of an address after `@`
    repos.yaml:14:20: `fetch.allow` is empty: nothing could be read
    repos.yaml:14:31: `stale` is `refuse`, or `allow` with an age of at most 24h as in `allow 60s`, not `allow`
    repos.yaml:17:15: `identity` is the absolute path of a private key file: letters, digits and `._~+@=,-/`, without `..`
    repos.yaml:18:15: `ssh-dss AAAA`: unknown host key type `ssh-dss`, expected one of ssh-ed25519, ecdsa-sha2-nistp256, ecdsa-sha2-nistp384, ecdsa-sha2-nistp521, ssh-rsa
    repos.yaml:19:22: `here` is not an IP address
    repos.yaml:19:31: `g` is not this repository's upstream host `h`
    repos.yaml:21:15: `file:///srv/d.git`: a file upstream needs the option --allow-local-upstream
    repos.yaml:26:11: the name `e` is used twice
    "#);
}

#[test]
fn a_local_upstream_needs_its_option_and_no_keys() {
    let text = "repos:\n  - {name: a, upstream: 'file:///srv/a.git'}\n";
    assert!(parse(text).is_err());
    assert!(Repos::parse("repos.yaml", text, Allow::LocalUpstream).is_ok());
    let keyed = "repos:\n  - {name: a, upstream: 'file:///srv/a.git', identity: /k}\n";
    assert!(Repos::parse("repos.yaml", keyed, Allow::LocalUpstream).is_err());
}

#[test]
fn two_addresses_for_one_host_are_an_error() {
    let text = format!(
        "repos:\n  - {{name: a, upstream: 'git@h:p', identity: /k, host_key: '{KEY}', extra_hosts: {{h: 10.0.0.1, H: 10.0.0.2}}}}\n"
    );
    assert!(faults(&text).contains("two addresses"), "{}", faults(&text));
}

proptest! {
    #[test]
    fn parsing_never_panics_and_every_fault_has_a_place(text in "[a-z:\\[\\]{}\\- \n\"'&*!|>#%@]{0,120}") {
        if let Err(faults) = parse(&format!("repos:\n{text}")) {
            prop_assert!(faults.iter().count() > 0);
            prop_assert!(faults.iter().all(|f| f.line > 0 && f.column > 0));
        }
    }
}

#[test]
fn an_https_upstream_names_its_secret_and_no_ssh_keys() {
    let text = "repos:
  - name: web
    upstream: https://Git.example.com:8443/acme/web.git
    token_file: GIT_TOKEN
    extra_hosts: {git.example.com: 192.0.2.7}
    fetch: {stale: allow 60s}
";
    let repos = parse(text).expect("a good file");
    let repo = repos.iter().next().expect("one repository");
    let Upstream::Https(https) = &repo.upstream else { panic!("the upstream is https") };
    assert_eq!(https.url(), "https://git.example.com:8443/acme/web.git");
    assert_eq!((https.user.as_str(), https.token.as_str()), ("x-access-token", "GIT_TOKEN"));
    assert_eq!(repo.fetch.stale, crate::Stale::Allow(std::time::Duration::from_secs(60)));
    insta::assert_snapshot!(faults(&text.replace("token_file: GIT_TOKEN", "identity: /k")), @r"
    repos.yaml:3:15: an https upstream needs `token_file: NAME`, the name of the secret that holds its token
    repos.yaml:4:15: `identity` has no meaning for an https upstream
    ");
    assert!(faults(&text.replace("GIT_TOKEN", "../x")).contains("not a path"));
}

#[test]
fn what_approvals_add_stands_beside_the_repositories() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let base = format!("repos:\n  - {{name: a, upstream: 'git@h:p', identity: /k, host_key: '{KEY}'}}\n");
    let until = "expires_at: 2026-12-01T12:00:00Z";
    let text = format!(
        "{base}granted:\n  - {{repo: a, ref: refs/heads/x, {until}, grant: g}}\nreleases:\n  - {{digest: '{digest}', {until}, grant: r}}\n"
    );
    let repos = parse(&text).expect("a good file");
    let at = |now: &str, used: u64| {
        let used = BTreeMap::from([("r".to_owned(), used)]);
        let moment = Moment { now: now.parse().expect("a time"), used: &used };
        let repo = repos.iter().next().expect("one repository");
        let push = repo.push.decide("refs/heads/x", crate::Change::Create, &moment).is_ok();
        (push, repos.released(&digest, &moment).is_some())
    };
    assert_eq!(at("2026-12-01T11:59:59Z", 0), (true, true));
    assert_eq!(at("2026-12-01T11:59:59Z", 1), (true, false), "it was for one push");
    assert_eq!(at("2026-12-01T12:00:00Z", 0), (false, false));
    let moment = Moment { now: jiff::Timestamp::UNIX_EPOCH, used: &BTreeMap::new() };
    assert!(repos.released(&digest.replace('0', "1"), &moment).is_none(), "of another push");
    let wrong = format!(
        "{base}granted:\n  - {{repo: b, ref: refs/heads/x, {until}, grant: g}}\nreleases:\n  - {{digest: sha256:0, {until}, grant: r}}\n"
    );
    insta::assert_snapshot!(faults(&wrong), @r"
    repos.yaml:4:12: there is no repository `b`
    repos.yaml:6:14: `digest` is `sha256:` and 64 hexadecimal digits, as the held push has it
    ");
    let endless = format!("{base}releases:\n  - {{digest: '{digest}', grant: r}}\n");
    assert!(parse(&endless).is_err(), "it has an end");
}

#[test]
fn an_exception_is_for_one_finding_in_one_repository_and_ends() {
    let base = format!("repos:\n  - {{name: a, upstream: 'git@h:p', identity: /k, host_key: '{KEY}'}}\n");
    let exception = |repo: &str, rule: &str, fingerprint: &str, end: &str| {
        format!(
            "{base}exceptions:\n  - {{repo: {repo}, rule: {rule}, fingerprint: '{fingerprint}', {end}grant: e}}\n"
        )
    };
    let (until, name) = ("expires_at: 2026-12-01T12:00:00Z, ", "0a".repeat(16));
    let repos = parse(&exception("a", "gitlab-pat", &name, until)).expect("a good file");
    let [one] = repos.exceptions() else { panic!("one") };
    assert_eq!((one.repo.as_str(), one.rule.as_str(), &one.fingerprint), ("a", "gitlab-pat", &name));
    let moment = |used| Moment { now: jiff::Timestamp::UNIX_EPOCH, used };
    let (unused, used) = (BTreeMap::new(), BTreeMap::from([("e".to_owned(), 1)]));
    assert!(one.grant.holds(&moment(&unused)).is_ok() && one.grant.holds(&moment(&used)).is_err());
    for (wrong, said) in [
        (exception("b", "r", &name, until), "there is no repository `b`"),
        (exception("a", "'*'", &name, until), "`rule` is the name of a rule"),
        (exception("a", "r", "0A", until), "`fingerprint` is 32 hexadecimal digits"),
        (exception("a", "r", &name, ""), "expires_at"),
    ] {
        let told = faults(&wrong);
        assert!(told.contains(said) && told.starts_with("repos.yaml:"), "{told}");
    }
}
