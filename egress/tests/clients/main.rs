//! Programs that agents run, as they come, through the proxy: nothing is set but the environment of a bottle.
//!
//! `scripts/need.sh python venv git curl pyclients node22` installs them; without them these tests fail and say so.
#![allow(clippy::unwrap_used)]

mod stage;

use std::path::Path;

use stage::{Stage, text_of};

#[test]
fn curl_speaks_both_versions_uploads_and_resumes() {
    let stage = Stage::start();
    let url = stage.url();
    for version in ["--http1.1", "--http2"] {
        let write = ["--silent", "--show-error", version, "--write-out", " %{http_version} %{http_code}"];
        let got = stage.run("curl", write.iter().copied().chain([&*format!("{url}/v1/echo")]));
        let expected = if version == "--http2" { "nothing 2 200" } else { "nothing 1.1 200" };
        assert_eq!(got, expected);
        let refused = stage.run("curl", write.iter().copied().chain([&*format!("{url}/secret")]));
        assert!(refused.contains("path-not-allowed") && refused.ends_with("403"), "{refused}");
        let head = stage.run("curl", write.iter().copied().chain(["--head", &format!("{url}/secret")]));
        assert!(head.contains("x-bottlecap-denied: path-not-allowed"), "{head}");
    }
    let large = stage.path("large");
    std::fs::write(&large, vec![7; 40 << 20]).unwrap();
    let upload = format!("@{}", large.display());
    let echoed = stage.path("echoed");
    let output = echoed.to_str().unwrap();
    stage.run(
        "curl",
        ["--silent", "--fail", "--data-binary", &upload, "-o", output, &format!("{url}/v1/echo")],
    );
    assert_eq!(std::fs::metadata(&echoed).unwrap().len(), 40 << 20);

    std::fs::write(stage.path("files/v1/file"), (0..=255).collect::<Vec<u8>>().repeat(64)).unwrap();
    let part = stage.path("part");
    std::fs::write(&part, (0..=255).collect::<Vec<u8>>()).unwrap();
    let output = part.to_str().unwrap();
    stage.run("curl", ["--silent", "--fail", "-C", "-", "-o", output, &format!("{url}/v1/file")]);
    assert_eq!(std::fs::read(&part).unwrap(), (0..=255).collect::<Vec<u8>>().repeat(64));
    assert_eq!(stage.seen().last().unwrap()["headers"]["range"], "bytes=256-");
    stage.only_real_credentials();
}

#[test]
fn pythons_http_clients_pass_and_read_their_refusals() {
    let stage = Stage::start();
    let said = stage.run(stage.python(), [script("http_clients.py"), stage.url()]);
    let expected = ["requests 1.1", "httpx 1.1", "httpx 2", "aiohttp 1.1"]
        .map(|client| format!("{client} 200 same 403 path-not-allowed\n"))
        .concat();
    assert_eq!(said, expected);
    stage.only_real_credentials();
}

#[test]
fn websockets_of_any_shape_pass_unchanged_with_subprotocol_and_compression() {
    let stage = Stage::start();
    for seed in 0..3 {
        let url = format!("wss://localhost:{}", stage.sockets);
        let said = stage.run(stage.python(), [script("websocket_client.py"), url, seed.to_string()]);
        assert_eq!(said, "chat\nclosed 1000\n403 path-not-allowed\n");
    }
}

#[test]
fn nodes_fetch_passes_by_the_proxy_variables_and_streams_events() {
    let stage = Stage::start();
    let said = stage.run(stage.node("node"), [script("fetch.mjs"), stage.url()]);
    assert_eq!(said, "200 from node\n403 path-not-allowed\ntext/event-stream 7\n");
    stage.only_real_credentials();
}

#[test]
fn git_fetches_over_https_and_a_push_is_refused_with_the_way_to_git_gate() {
    let stage = Stage::start();
    let origin = stage.path("git/project.git");
    let origin = origin.to_str().unwrap();
    stage.run("git", ["init", "--quiet", "--bare", "--initial-branch=main", origin]);
    let seed = stage.path("seed");
    let seed = seed.to_str().unwrap();
    stage.run("git", ["clone", "--quiet", origin, seed]);
    stage.commit(seed, "one");
    stage.run("git", ["-C", seed, "push", "--quiet", origin, "HEAD:main"]);

    let clone = stage.path("clone");
    let clone = clone.to_str().unwrap();
    stage.run("git", ["clone", "--quiet", &format!("{}/git/project.git", stage.url()), clone]);
    assert_eq!(stage.run("git", ["-C", clone, "log", "--format=%s"]), "one\n");
    stage.commit(clone, "two");
    let refused = stage.output("git", ["-C", clone, "push", "origin", "HEAD:main"]);
    assert!(!refused.status.success());
    assert!(text_of(&refused.stderr).contains("403"), "{}", text_of(&refused.stderr));
    assert_eq!(stage.run("git", ["-C", origin, "log", "--format=%s"]), "one\n");
    let reason = stage.run(
        "curl",
        ["--silent", &format!("{}/git/project.git/info/refs?service=git-receive-pack", stage.url())],
    );
    assert!(reason.contains("git-push-refused") && reason.contains("git-gate"), "{reason}");
    stage.only_real_credentials();

    // The dumb protocol, file by file: with the same leave, and without it.
    stage.run("git", ["-C", origin, "update-server-info"]);
    let closed = stage.path("git/closed.git");
    std::os::unix::fs::symlink(origin, closed).unwrap();
    let dumb = |name: &str| {
        let (url, into) = (format!("{}/git/{name}.git", stage.url()), stage.path(&format!("dumb-{name}")));
        stage.output("env", ["GIT_SMART_HTTP=0", "git", "clone", "--quiet", &url, into.to_str().unwrap()])
    };
    let (allowed, refused) = (dumb("project"), dumb("closed"));
    assert!(allowed.status.success(), "{}", text_of(&allowed.stderr));
    assert!(!refused.status.success() && text_of(&refused.stderr).contains("403"), "{refused:?}");
}

#[test]
fn pip_installs_from_an_index() {
    let stage = Stage::start();
    let target = stage.path("installed");
    stage.wheel("capped", "1.0");
    let index = format!("{}/simple/", stage.url());
    stage.run(
        stage.python(),
        ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "--index-url"]
            .into_iter()
            .chain([&*index, "--target", target.to_str().unwrap(), "capped"]),
    );
    assert_eq!(std::fs::read_to_string(target.join("capped.py")).unwrap(), "NAME = 'capped'\n");
    stage.only_real_credentials();
}

#[test]
fn cargo_fetches_from_a_registry() {
    let stage = Stage::start();
    stage.registry("capped", "1.0.0");
    let project = stage.path("project");
    std::fs::create_dir_all(project.join("src")).unwrap();
    std::fs::write(project.join("src/lib.rs"), "").unwrap();
    let manifest = "[package]\nname = \"p\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n\
                    [dependencies]\ncapped = { version = \"1\", registry = \"local\" }\n\n[workspace]\n";
    std::fs::write(project.join("Cargo.toml"), manifest).unwrap();
    std::fs::create_dir(project.join(".cargo")).unwrap();
    let registry = format!("[registries.local]\nindex = \"sparse+{}/index/\"\n", stage.url());
    std::fs::write(project.join(".cargo/config.toml"), registry).unwrap();
    stage.run_in(&project, "cargo", ["fetch", "--quiet"]);
    let fetched = stage.seen().iter().any(|seen| seen["path"] == "/index/dl/capped-1.0.0.crate");
    assert!(fetched, "the crate itself came this way");
    stage.only_real_credentials();
}

#[test]
fn claude_code_talks_to_its_api_with_our_key_and_never_had_one() {
    let stage = Stage::start();
    let said = stage.run(stage.node("claude"), ["--print", "say hello"]);
    assert!(said.contains("hello from the stand-in"), "{said}");
    let calls: Vec<_> = stage
        .seen()
        .into_iter()
        .filter(|seen| seen["path"].as_str().unwrap().starts_with("/v1/messages"))
        .collect();
    assert!(!calls.is_empty());
    for call in calls {
        assert_eq!(call["headers"]["x-api-key"], "real-key");
        assert!(!call["headers"].to_string().contains("placeholder"), "{call}");
    }
}

fn script(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name);
    path.to_str().unwrap().to_owned()
}
