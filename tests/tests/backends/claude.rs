//! Claude Code from npm at work in a bottle: it speaks to its API with a key that it never has, clones and pushes through the gate, is
//! refused, asks, and goes on when the person outside has said yes.

use std::net::IpAddr;

use serde_json::{Value, json};
use tests::{Conversation, Docker, GitHost, HttpsEcho, Process, Run, target_directory};

use crate::escapes::documentation;
use crate::stage::{Kind, Stage, TOKEN};

/// What stands after `"key":"` in a text.
fn word<'t>(text: &'t str, key: &str) -> &'t str {
    let text = text.split_once(&format!("\"{key}\":")).unwrap_or_else(|| panic!("no {key} in {text}")).1;
    text.split('"').nth(1).unwrap()
}

/// Whether `wait_decision` has to be asked again.
fn undecided(result: &str) -> bool {
    ["pending", "approved", "applying"].iter().any(|state| result.contains(&format!("\"state\":\"{state}\"")))
}

/// The model's part: what it does, tool by tool.
fn script(upstream: String, page: String) -> impl Fn(&[String]) -> Value + Send + Sync {
    move |results| {
        let shell =
            |script: String| Conversation::tool("Bash", json!({"command": script, "description": "work"}));
        let fetch = format!(
            "node --no-warnings -e 'fetch(\"{page}\").then(async answer => console.log(answer.status, await answer.text()))'"
        );
        let (last, again) = (
            results.last().map_or("", String::as_str),
            results.iter().skip(3).filter(|result| undecided(result)).count(),
        );
        match results.len() - again {
            0 => shell(format!(
                "git clone -q {upstream} web && cd web && git checkout -q -b agent/work && echo two >two && git add two && \
                 git commit -q -m two && git push -q origin agent/work && echo pushed; cd .."
            )),
            1 => shell(fetch),
            2 => Conversation::tool(
                "mcp__bottlecap__propose_route",
                json!({"block_id": word(last, "block_id"), "reason": "to read the page"}),
            ),
            3 => {
                let filed = results
                    .iter()
                    .find(|result| result.contains("\"proposal\""))
                    .map_or(last, String::as_str);
                Conversation::tool("mcp__bottlecap__wait_decision", json!({"id": word(filed, "id")}))
            }
            4 => shell(fetch),
            // In two pieces, so that what looks for it does not have it.
            5 => shell(format!(
                "key={}''{}; env | grep -c placeholder; grep -rlsF \"$key\" /proc/[0-9]*/environ /proc/[0-9]*/cmdline /etc /run /tmp \
                 ~ . 2>/dev/null || echo nowhere",
                &TOKEN[..7],
                &TOKEN[7..]
            )),
            _ => Conversation::text("all of it is done"),
        }
    }
}

fn tell(kind: Kind, docker: Docker) {
    let images = match kind {
        Kind::Sandbox => Default::default(),
        Kind::Docker => (docker.bundle_image().unwrap(), docker.agent_image().unwrap()),
    };
    let engine = Docker::connect().unwrap().unwrap();
    let (_network, address) = documentation(&engine);
    let address = IpAddr::V4(address);
    let origin = GitHost::start_on(address).unwrap();
    // Where it leads to is known when it listens, and what is said when it is asked.
    let place = std::sync::Arc::new(std::sync::OnceLock::new());
    let (page, upstream) = (std::sync::Arc::clone(&place), origin.url());
    let conversation = Conversation::new(Box::new(move |results| {
        script(upstream.clone(), page.get().cloned().unwrap_or_default())(results)
    }));
    let api = HttpsEcho::start_scripted(address, &[&address.to_string()], conversation.script()).unwrap();
    let url = format!("https://{}", api.address());
    place.set(format!("{url}/docs/page")).unwrap();

    let stage = Stage::with(kind, docker, images, api);
    stage.furnish(&origin, address);
    let mut bottle = Process::start(&mut stage.started_as(&[
        "claude",
        "--print",
        "--dangerously-skip-permissions",
        "--output-format",
        "text",
        "do what there is to do",
    ]))
    .unwrap();

    // The person outside: the request is there as soon as the agent has its number.
    let filed = conversation
        .result(2)
        .unwrap_or_else(|error| panic!("{error}\n{}{}", bottle.stdout.text(), bottle.stderr.text()));
    let id = word(&filed, "id").to_owned();
    let said = |words: &[&str]| Run::from(stage.command(words)).ok().unwrap();
    let listed: Value = serde_json::from_str(&said(&["requests", "list", "--json"])).unwrap();
    assert_eq!(
        (&listed["requests"][0]["id"], &listed["requests"][0]["state"]),
        (&json!(id), &json!("pending"))
    );
    let shown: Value = serde_json::from_str(&said(&["requests", "show", &id, "--json"])).unwrap();
    said(&["requests", "approve", &id, "--token", shown["review"]["token"].as_str().unwrap()]);

    let code = bottle.wait().unwrap();
    let (results, told) = (conversation.results(), bottle.stdout.text());
    assert_eq!((code, told.trim_end()), (0, "all of it is done"), "{results:#?}\n{}", bottle.stderr.text());
    // Cloned and pushed, through the gate.
    assert!(results[0].contains("pushed"), "{results:#?}");
    assert!(origin.resolve("refs/heads/agent/work").unwrap().is_some());
    // Refused, asked, approved, gone on.
    assert!(results[1].starts_with("403 ") && results[1].contains("path-not-allowed"), "{results:#?}");
    let fetched = &results[results.len() - 2];
    assert!(fetched.starts_with("200 ") && fetched.contains("/docs/page"), "{results:#?}");
    // The search finds what is there, and the key nowhere.
    let searched: Vec<&str> = results.last().unwrap().lines().collect();
    assert!(searched[0] != "0" && searched[1..] == ["nowhere"], "{results:#?}");
    // Each call had the key all the same, and not what stood in its place.
    let calls = conversation.calls();
    assert!(calls.len() >= results.len());
    for headers in calls {
        assert_eq!(headers["x-api-key"], TOKEN);
        assert!(!headers.to_string().contains("placeholder"), "{headers}");
    }
    assert!(!told.contains(TOKEN) && !bottle.stderr.text().contains(TOKEN));
}

impl Stage {
    /// The manifest, the routes and the repositories of an agent that works on `origin`.
    fn furnish(&self, origin: &GitHost, address: IpAddr) {
        let clients = target_directory().join("clients");
        // A sandbox shows programs of the host, a container those of its image.
        let (mounts, path) = match self.kind {
            Kind::Sandbox => {
                assert!(clients.join("node_modules/.bin/claude").exists(), "run `scripts/need.sh node22`");
                let path = format!(", PATH: \"{}/node_modules/.bin:/usr/bin:/bin\"", clients.display());
                (format!("mounts: [{{path: {}}}]\n", clients.display()), path)
            }
            Kind::Docker => Default::default(),
        };
        let identity = self.path("identity");
        self.write("identity", &origin.client_key().unwrap());
        self.write("repos.yaml", &format!(
            "repos:\n  - name: web\n    upstream: {}\n    identity: {}\n    host_key: \"{}\"\n    push: {{allow: [refs/heads/agent/*]}}\n",
            origin.url(),
            identity.display(),
            origin.host_key().unwrap()
        ));
        let port = self.api.port();
        self.write("routes.yaml", &format!(
            "routes:\n  - host: {address}\n    ports: [{port}]\n    matches:\n      - paths: [{{type: prefix, value: /v1/messages}}]\n        \
             methods: [POST]\n    auth_scheme: \"header:x-api-key\"\n    token_env: KEY\n"
        ));
        self.write("bottle.yaml", &format!(
            "routes: routes.yaml\nrepos: repos.yaml\nsecrets:\n  KEY: {{env: STORY_TOKEN}}\nupstream_ca: {}\n{mounts}\
             agent: {{preset: claude-code, git: {{name: Agent, email: agent@example.com}}}}\n\
             env: {{ANTHROPIC_BASE_URL: \"https://{address}:{port}\"{path}}}\n",
            self.api.ca().display()
        ));
    }
}

#[test]
fn claude_code_in_a_sandbox_is_refused_asks_is_approved_and_goes_on() {
    let Some(docker) = Docker::connect().unwrap() else { return };
    tell(Kind::Sandbox, docker);
}

#[test]
fn claude_code_in_containers_is_refused_asks_is_approved_and_goes_on() {
    let Some(docker) = Docker::connect().unwrap() else { return };
    tell(Kind::Docker, docker);
}

#[test]
fn the_agents_image_has_its_programs_and_is_no_root() {
    let Some(docker) = Docker::connect().unwrap() else { return };
    let image = docker.agent_image().unwrap();
    let look = "id -u; node --version; claude --version; git --version; grep -c BEGIN /etc/ssl/certs/ca-certificates.crt";
    let said = docker.run(["run", "--rm", "--network=none", &image, "sh", "-ec", look]).ok().unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "1000");
    assert!(lines[1].starts_with("v22.") && lines[2].contains("Claude Code"), "{said}");
    assert!(lines[3].starts_with("git version") && lines[4].parse::<u32>().unwrap() > 50, "{said}");
}
