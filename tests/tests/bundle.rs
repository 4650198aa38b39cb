//! The bundle as plain processes: what a user sees of it from start to stop.
#![allow(clippy::unwrap_used)]

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::{Bundle, BundleBuilder, GitHost, HttpsEcho, Run, rounds};

/// GET below /v1/ on the stand-in, with the secret `api` as a bearer token.
fn routes(upstream: &HttpsEcho, paths: &str) -> String {
    let port = upstream.port();
    format!(
        "routes:\n  - host: localhost\n    ports: [{port}]\n    allow_private: [\"127.0.0.0/8:{port}\", \"[::1]:{port}\"]\n    \
         matches:\n      - paths: [{{type: prefix, value: {paths}}}]\n        methods: [GET, POST]\n    \
         auth_scheme: bearer\n    token_file: api\n"
    )
}

fn builder(upstream: &HttpsEcho) -> BundleBuilder {
    let builder = Bundle::builder().unwrap().upstream_ca(upstream.ca());
    builder.secret("api", "the-real-token").unwrap().routes(&routes(upstream, "/v1/")).unwrap()
}

fn url(upstream: &HttpsEcho, path: &str) -> String {
    format!("https://localhost:{}{path}", upstream.port())
}

/// The daemons' states, by name.
fn states(bundle: &Bundle) -> Vec<(String, String)> {
    let status = bundle.control(&json!({"op": "status"})).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    status["result"]["daemons"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| (text(&d["name"]), text(&d["state"])))
        .collect()
}

fn exists(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None).is_ok()
}

#[test]
fn the_bundle_says_when_all_daemons_are_ready() {
    let upstream = HttpsEcho::start(&[]).unwrap();
    let bundle = builder(&upstream).start().unwrap();
    let ready = |name: &str| (name.to_owned(), "ready".to_owned());
    assert_eq!(states(&bundle), [ready("egress"), ready("git-gate"), ready("supervise")]);
}

#[test]
fn an_allowed_request_carries_the_injected_credential_and_not_the_agents() {
    let upstream = HttpsEcho::start(&[]).unwrap();
    let bundle = builder(&upstream).start().unwrap();

    let answer = bundle
        .curl(["-H", "Authorization: Bearer the-agents-own", &url(&upstream, "/v1/users?page=2")])
        .unwrap();

    assert_eq!(answer.code, 200);
    let seen = answer.json().unwrap();
    assert_eq!(seen["headers"]["authorization"], "Bearer the-real-token");
    assert_eq!((&seen["path"], &seen["query"]), (&json!("/v1/users"), &json!("page=2")));
}

#[test]
fn a_refused_request_is_answered_with_its_code_and_never_reaches_upstream() {
    let upstream = HttpsEcho::start(&[]).unwrap();
    let bundle = builder(&upstream).start().unwrap();

    let path = bundle.curl([url(&upstream, "/admin")]).unwrap();
    let method = bundle.curl(["-X", "DELETE", &url(&upstream, "/v1/users")]).unwrap();
    let host = bundle.curl(["https://elsewhere.example/"]).unwrap();

    let refusals = [&path, &method, &host].map(|answer| (answer.code, answer.denied().unwrap().to_owned()));
    let refused = |code: &str| (403, code.to_owned());
    assert_eq!(
        refusals,
        [refused("path-not-allowed"), refused("method-not-allowed"), refused("host-not-allowed")]
    );
    assert_eq!(host.json().unwrap()["error"]["host"], "elsewhere.example");
    assert_eq!(upstream.requests(), 0);
}

#[test]
fn a_body_streams_through_in_both_directions_unchanged() {
    let upstream = HttpsEcho::start(&[]).unwrap();
    let bundle = builder(&upstream).start().unwrap();
    let length = rounds(8, 512) * 1024 * 1024;

    let down = bundle.curl([url(&upstream, &format!("/v1/bytes/{length}"))]).unwrap();
    let up =
        bundle.curl_with(["--data-binary", "@-", &url(&upstream, "/v1/upload")], vec![7; 8 << 20]).unwrap();

    assert_eq!((down.code, down.body.len() as u64), (200, length));
    assert_eq!(up.json().unwrap()["body"]["length"], 8 << 20);
}

/// The most memory that egress ever had, in MiB.
fn most_memory(bundle: &Bundle) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", bundle.pid("egress").unwrap())).unwrap();
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    kibibytes.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[test]
fn a_transfer_of_any_length_takes_the_memory_of_a_short_one() {
    let upstream = HttpsEcho::start(&[]).unwrap();
    let port = upstream.port();
    let routes = format!(
        "routes:\n  - host: localhost\n    ports: [{port}]\n    allow_private: [\"127.0.0.0/8:{port}\", \"[::1]:{port}\"]\n"
    );
    let bundle =
        Bundle::builder().unwrap().upstream_ca(upstream.ca()).routes(&routes).unwrap().start().unwrap();
    let mebibytes = rounds(256, 10 * 1024);
    let transfer = |version: &str, mebibytes: u64| {
        let curl = format!(
            "curl -sSf {version} --proxy http://{} --cacert {} -o /dev/null -w '%{{http_version}} %{{size_download}} %{{size_upload}}\\n'",
            bundle.address(9099),
            bundle.ca().display()
        );
        let bytes = mebibytes << 20;
        let script = format!(
            "{curl} {down}\nhead -c {bytes} /dev/zero | {curl} -X POST -T - {up}",
            down = url(&upstream, &format!("/v1/bytes/{bytes}")),
            up = url(&upstream, "/v1/upload")
        );
        let said = Run::bare("sh").args(["-ec", &script]).ok().unwrap();
        let lines: Vec<Vec<&str>> = said.lines().map(|line| line.split(' ').collect()).collect();
        assert_eq!(lines[0][1], bytes.to_string(), "{version}");
        // What curl says of an upload counts the chunks' heads too.
        assert_eq!(upstream.last().unwrap()["body"]["length"], bytes, "{version}");
        lines[0][0].to_owned()
    };
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        assert_eq!(transfer(flag, 8), version);
    }
    let before = most_memory(&bundle);
    for flag in ["--http1.1", "--http2"] {
        transfer(flag, mebibytes);
    }
    let after = most_memory(&bundle);
    assert!(after <= before + 16, "{before} MiB after 8 MiB each way, {after} MiB after {mebibytes}");
}

#[test]
fn a_reload_takes_a_good_table_and_keeps_the_old_one_when_the_new_is_bad() {
    let upstream = HttpsEcho::start(&[]).unwrap();
    let bundle = builder(&upstream).start().unwrap();
    let get = |path: &str| bundle.curl([url(&upstream, path)]).unwrap().code;
    assert_eq!((get("/v1/x"), get("/v2/x")), (200, 403));

    for round in 0..rounds(2, 200) {
        let (new, old) = if round % 2 == 0 { ("/v2/", "/v1/") } else { ("/v1/", "/v2/") };
        bundle.root.write("etc/egress/routes.yaml", &routes(&upstream, new)).unwrap();
        let reply = bundle.control(&json!({"op": "reload"})).unwrap();
        let generation = 2 + round;
        assert_eq!(
            (&reply["ok"], &reply["result"]["daemons"][0]["generation"]),
            (&json!(true), &json!(generation)),
            "{reply}"
        );
        assert_eq!((get(&format!("{new}x")), get(&format!("{old}x"))), (200, 403));

        bundle
            .root
            .write("etc/egress/routes.yaml", "routes:\n  - host: localhost\n    metods: [GET]\n")
            .unwrap();
        let reply = bundle.control(&json!({"op": "reload"})).unwrap();
        assert_eq!(
            (&reply["ok"], &reply["error"]["code"]),
            (&json!(false), &json!("reload-failed")),
            "{reply}"
        );
        assert!(reply["error"]["message"].as_str().unwrap().contains("routes.yaml:3:5"), "{reply}");
        assert_eq!(bundle.daemon("egress").unwrap()["generation"], json!(generation));
        assert_eq!((get(&format!("{new}x")), get(&format!("{old}x"))), (200, 403));
    }
}

#[test]
fn no_request_is_lost_while_the_routes_are_reloaded() {
    let upstream = HttpsEcho::start(&[]).unwrap();
    let bundle = builder(&upstream).start().unwrap();
    let done = AtomicBool::new(false);
    let served = std::thread::scope(|scope| {
        let client = || {
            let mut served = 0_u64;
            while !done.load(Ordering::SeqCst) {
                let answer = bundle.curl([url(&upstream, "/v1/x")]).unwrap();
                assert_eq!(answer.code, 200);
                served += 1;
            }
            served
        };
        let clients = [scope.spawn(client), scope.spawn(client)];
        for round in 0..rounds(50, 1000) {
            // Each table differs from the one before, and all allow what the clients ask for.
            let table = format!("# {round}\n{}", routes(&upstream, "/v1/"));
            bundle.root.write("etc/egress/routes.yaml", &table).unwrap();
            let reply = bundle.control(&json!({"op": "reload", "name": "egress"})).unwrap();
            assert_eq!(reply["result"]["daemons"][0]["generation"], json!(2 + round), "{reply}");
        }
        done.store(true, Ordering::SeqCst);
        clients.map(|client| client.join().unwrap())
    });
    assert!(served.iter().all(|count| *count > 0), "{served:?}");
    assert_eq!(upstream.requests(), served.iter().sum::<u64>());
}

#[test]
fn a_hangup_to_the_supervisor_reloads_as_the_control_socket_does() {
    let upstream = HttpsEcho::start(&[]).unwrap();
    let bundle = builder(&upstream).start().unwrap();
    bundle.root.write("etc/egress/routes.yaml", &routes(&upstream, "/v2/")).unwrap();

    let mark = bundle.supervisor.stderr.mark();
    bundle.supervisor.signal(Signal::SIGHUP).unwrap();
    bundle
        .supervisor
        .stderr
        .wait_after(mark, |line| line.contains("egress") && line.contains("generation 2"))
        .unwrap();

    assert_eq!(bundle.curl([url(&upstream, "/v2/x")]).unwrap().code, 200);
}

#[test]
fn a_crashed_egress_comes_back_while_its_port_keeps_accepting() {
    // Few crashes per bundle: one that crashes again and again is given up.
    const CRASHES: u64 = 2;
    let upstream = HttpsEcho::start(&[]).unwrap();
    for _ in 0..rounds(1, 50) {
        let bundle = builder(&upstream).start().unwrap();
        let gate = bundle.pid("git-gate").unwrap();
        for crash in 1..=CRASHES {
            let killed = bundle.pid("egress").unwrap();

            let mark = bundle.supervisor.stderr.mark();
            kill(Pid::from_raw(killed), Signal::SIGKILL).unwrap();
            bundle.supervisor.stderr.wait_after(mark, |line| line.contains("egress ended")).unwrap();
            // The socket accepts whether or not a process does; the connection waits in its queue.
            drop(TcpStream::connect(bundle.address(9099)).unwrap());
            assert_eq!(bundle.curl([url(&upstream, "/v1/after")]).unwrap().code, 200);

            // The request is answered a moment before the supervisor hears that egress is ready.
            bundle.supervisor.stderr.wait_after(mark, |line| line.contains("egress is ready")).unwrap();
            let egress = bundle.daemon("egress").unwrap();
            assert_eq!((&egress["state"], &egress["restarts"]), (&json!("ready"), &json!(crash)), "{egress}");
            assert_ne!(egress["pid"], json!(killed));
        }
        assert_eq!(bundle.pid("git-gate").unwrap(), gate, "a sibling was touched");
    }
}

#[test]
fn daemons_that_run_and_do_nothing_any_more_are_killed_and_come_back() {
    const NAMES: [&str; 3] = ["egress", "git-gate", "supervise"];
    let upstream = HttpsEcho::start(&[]).unwrap();
    let bundle = builder(&upstream).start().unwrap();
    let stopped = NAMES.map(|name| bundle.pid(name).unwrap());
    for pid in stopped {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    }
    let mark = bundle.supervisor.stderr.mark();
    for name in NAMES {
        for said in [format!("{name} gave no sign of life"), format!("{name} is ready")] {
            bundle.supervisor.stderr.wait_after(mark, |line| line.contains(&said)).unwrap();
        }
    }
    assert!(stopped.iter().all(|pid| !exists(*pid)));
    assert_eq!(bundle.curl([url(&upstream, "/v1/after")]).unwrap().code, 200);
}

#[test]
fn stopping_ends_every_daemon_and_exits_with_zero() {
    let upstream = HttpsEcho::start(&[]).unwrap();
    let mut bundle = builder(&upstream).start().unwrap();
    let pids = ["egress", "git-gate", "supervise"].map(|name| bundle.pid(name).unwrap());

    assert_eq!(bundle.stop().unwrap(), 0, "{}", bundle.supervisor.stderr.text());

    assert_eq!(pids.map(exists), [false; 3]);
    assert!(TcpStream::connect(bundle.address(9099)).is_err());
}

#[test]
fn a_bad_table_at_the_start_is_named_with_its_position() {
    let mut bundle = Bundle::builder().unwrap().routes("routes:\n  - hots: x\n").unwrap().launch().unwrap();
    bundle.supervisor.stderr.wait(|line| line.contains("routes.yaml:2:5")).unwrap();
    assert_eq!(bundle.supervisor.wait().unwrap(), 64, "{}", bundle.supervisor.stderr.text());
}

#[test]
fn an_unknown_daemon_name_is_a_usage_error() {
    let mut bundle = Bundle::builder().unwrap().daemons("egress,proxy").launch().unwrap();
    assert_eq!(bundle.supervisor.wait().unwrap(), 64);
    assert!(bundle.supervisor.stderr.text().contains("proxy"), "{}", bundle.supervisor.stderr.text());
}

#[test]
fn a_secret_is_in_no_environment_no_log_and_no_journal() {
    let upstream = HttpsEcho::start(&[]).unwrap();
    let table = routes(&upstream, "/v1/").replace("token_file: api", "token_env: EGRESS_TOKEN_0");
    let builder = builder(&upstream).routes(&table).unwrap().env("EGRESS_TOKEN_0", "from-the-env");
    let mut bundle = builder.start().unwrap();
    let answer = bundle.curl([url(&upstream, "/v1/x")]).unwrap();
    assert_eq!(answer.json().unwrap()["headers"]["authorization"], "Bearer from-the-env");

    let mut pids = ["egress", "git-gate", "supervise"].map(|name| bundle.pid(name).unwrap()).to_vec();
    pids.push(bundle.supervisor.pid());
    for pid in pids {
        // A process that is not dumpable shows root alone what it was started with.
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        assert!(
            !String::from_utf8_lossy(&environment).contains("from-the-env"),
            "in the environment of {pid}"
        );
    }
    bundle.stop().unwrap();
    let logs = bundle.supervisor.stderr.text() + &bundle.supervisor.stdout.text();
    assert!(!logs.contains("from-the-env"), "{logs}");
    let found = Run::new("grep").args(["-r", "from-the-env"]).args([bundle.root.path("")]).finish().unwrap();
    assert_eq!((found.code, found.stdout.as_str()), (1, ""));
}

#[test]
fn a_clone_through_the_gate_has_what_upstream_has_now() {
    let host = GitHost::start().unwrap();
    let bundle = Bundle::builder().unwrap().repository("web", &host).unwrap().start().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    bundle.git(scratch.path()).args(["clone", "--quiet", &bundle.git_url("web"), "web"]).ok().unwrap();

    let newer = host.commit("later.txt", "written after the clone\n").unwrap();
    let clone = scratch.path().join("web");
    bundle.git(&clone).args(["pull", "--quiet"]).ok().unwrap();

    assert_eq!(bundle.git(&clone).args(["rev-parse", "HEAD"]).ok().unwrap(), newer);
}

#[test]
fn a_reload_serves_a_new_repository_and_a_bad_file_leaves_the_old_ones_served() {
    let host = GitHost::start().unwrap();
    let bundle = Bundle::builder().unwrap().repository("web", &host).unwrap().start().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let read =
        |name: &str| bundle.git(scratch.path()).args(["ls-remote", &bundle.git_url(name)]).finish().unwrap();
    let reload = || bundle.control(&json!({"op": "reload", "name": "git-gate"})).unwrap();
    let missing = read("docs");
    assert!(missing.code != 0 && missing.stderr.contains("no repository"), "{}", missing.stderr);
    assert_eq!(read("web").code, 0);

    let file = "etc/git-gate/repos.yaml";
    let text = std::fs::read_to_string(bundle.root.path(file)).unwrap();
    let entry = text.strip_prefix("repos:\n").unwrap().replace("name: web", "name: docs");
    bundle.root.write(file, &format!("{text}{entry}")).unwrap();
    let reply = reload();
    assert_eq!(
        (&reply["ok"], &reply["result"]["daemons"][0]["generation"]),
        (&json!(true), &json!(2)),
        "{reply}"
    );
    assert_eq!((read("web").code, read("docs").code), (0, 0));

    bundle.root.write(file, "repos:\n  - name: docs\n    upstrem: x\n").unwrap();
    let reply = reload();
    assert_eq!((&reply["ok"], &reply["error"]["code"]), (&json!(false), &json!("reload-failed")), "{reply}");
    assert!(reply["error"]["message"].as_str().unwrap().contains("repos.yaml:3:5"), "{reply}");
    assert_eq!(bundle.daemon("git-gate").unwrap()["generation"], json!(2));
    assert_eq!((read("web").code, read("docs").code), (0, 0));
}

#[test]
fn a_clean_push_lands_and_one_with_a_key_in_its_history_is_refused_before_upstream_is_asked() {
    let host = GitHost::start().unwrap();
    let bundle = Bundle::builder().unwrap().repository("web", &host).unwrap().start().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    bundle.git(scratch.path()).args(["clone", "--quiet", &bundle.git_url("web"), "web"]).ok().unwrap();
    let clone = scratch.path().join("web");
    let git = |args: &[&str]| bundle.git(&clone).args(args);
    git(&["switch", "--quiet", "-c", "agent/work"]).ok().unwrap();

    let openssh = tempfile::tempdir().unwrap();
    Run::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .args([openssh.path().join("key")])
        .ok()
        .unwrap();
    std::fs::copy(openssh.path().join("key"), clone.join("deploy.key")).unwrap();
    git(&["add", "deploy.key"]).ok().unwrap();
    git(&["commit", "--quiet", "-m", "Add the key"]).ok().unwrap();
    git(&["rm", "--quiet", "deploy.key"]).ok().unwrap();
    git(&["commit", "--quiet", "-m", "Take it out again"]).ok().unwrap();

    let refused = git(&["push", "origin", "agent/work"]).finish().unwrap();

    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("private-key") && refused.stderr.contains("deploy.key:1"),
        "{}",
        refused.stderr
    );
    assert!(!refused.stderr.contains("b3BlbnNzaC1rZXk"), "the key itself is shown:\n{}", refused.stderr);
    assert_eq!(host.resolve("refs/heads/agent/work").unwrap(), None);
    let pushes = || {
        host.commands().unwrap().into_iter().filter(|command| command.starts_with("git-receive-pack")).count()
    };
    assert_eq!(pushes(), 0, "upstream was asked to receive");

    git(&["reset", "--quiet", "--hard", "origin/main"]).ok().unwrap();
    std::fs::write(clone.join("clean.txt"), "nothing secret\n").unwrap();
    git(&["add", "clean.txt"]).ok().unwrap();
    git(&["commit", "--quiet", "-m", "Add a clean file"]).ok().unwrap();
    git(&["push", "--quiet", "origin", "agent/work"]).ok().unwrap();

    let head = git(&["rev-parse", "HEAD"]).ok().unwrap();
    assert_eq!(host.resolve("refs/heads/agent/work").unwrap(), Some(head));
    assert_eq!(pushes(), 1);
}
