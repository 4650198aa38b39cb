//! The files that secrets are found in: each with lines that are none around the ones that are.

use fastrand::Rng;

use super::alphabet::{ALNUM, base64, one, text, uuid};
use super::families::{Form, Planted};
use super::keys::in_one_line;
use super::{Label, Sample, Weight};

/// A file being written.
pub(super) struct Draft {
    kind: &'static str,
    path: String,
    lines: Vec<String>,
    labels: Vec<Label>,
}

impl Draft {
    pub(super) fn new(kind: &'static str, path: &str) -> Self {
        Self { kind, path: path.to_owned(), lines: Vec::new(), labels: Vec::new() }
    }

    pub(super) fn line(mut self, line: impl Into<String>) -> Self {
        self.lines.extend(line.into().split('\n').map(str::to_owned));
        self
    }

    fn marked(mut self, family: &'static str, weight: Weight, line: impl Into<String>) -> Self {
        let first = self.lines.len() + 1;
        self = self.line(line);
        let last = self.lines.len();
        self.labels.push(Label { family, first, last, weight });
        self
    }

    pub(super) fn finish(self, index: usize) -> Sample {
        let mut text = self.lines.join("\n");
        text.push('\n');
        Sample { path: format!("{index:05}/{}", self.path), text, labels: self.labels, kind: self.kind }
    }
}

/// A file with this secret in it.
pub(super) fn place(rng: &mut Rng, planted: &Planted, index: usize) -> Sample {
    let (family, name) = (planted.family, planted.name.as_str());
    let draft = match &planted.form {
        Form::Token(value) => {
            if rng.u8(..3) == 0 {
                bare(rng, family, value)
            } else {
                assigned(rng, family, name, value)
            }
        }
        Form::Named(value) => assigned(rng, family, name, value),
        Form::Url(value) => {
            if rng.bool() {
                url(rng, family, value)
            } else {
                assigned(rng, family, name, value)
            }
        }
        Form::Block(lines) => block(rng, family, lines),
        Form::Pair { beside, public, secret } => pair(rng, family, (beside, public), (name, secret)),
    };
    draft.finish(index)
}

fn shout(name: &str) -> String {
    name.to_uppercase()
}

fn camel(name: &str) -> String {
    let mut words = name.split('_');
    let mut text = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        text.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        text.push_str(letters.as_str());
    }
    text
}

fn pascal(name: &str) -> String {
    let text = camel(name);
    text[..1].to_uppercase() + &text[1..]
}

fn kebab(name: &str) -> String {
    name.replace('_', "-")
}

type Place = fn(&mut Rng, &'static str, &str, &str) -> Draft;

/// Places that name what they hold.
const ASSIGNED: &[Place] = &[
    |r, f, n, v| {
        let quote = one(r, &["", "\"", "'"]);
        Draft::new("dotenv", ".env.production")
            .line(format!("NODE_ENV=production\nPORT=8080\n# build {}", uuid(r)))
            .marked(f, Weight::Secret, format!("{}={quote}{v}{quote}", shout(n)))
            .line("LOG_LEVEL=info\nFEATURE_FLAGS=search,export")
    },
    |_, f, n, v| {
        Draft::new("shell-profile", "scripts/env.sh")
            .line("#!/usr/bin/env bash\nset -euo pipefail\nexport PATH=\"$HOME/.local/bin:$PATH\"")
            .marked(f, Weight::Secret, format!("export {}=\"{v}\"", shout(n)))
            .line("exec \"$@\"")
    },
    |_, f, n, v| {
        Draft::new("yaml", "config/settings.yml")
            .line("service:\n  name: billing\n  replicas: 3\n  image: registry.corp.test/billing:2.14.0")
            .marked(f, Weight::Secret, format!("  {n}: {v}"))
            .line("  timeout: 30s\n  features: [export, search]")
    },
    |_, f, n, v| {
        Draft::new("kubernetes-env", "deploy/deployment.yaml")
            .line("apiVersion: apps/v1\nkind: Deployment\nspec:\n  template:\n    spec:\n      containers:\n        - name: web")
            .line(format!("          env:\n            - name: {}", shout(n)))
            .marked(f, Weight::Secret, format!("              value: \"{v}\""))
            .line("            - name: PORT\n              value: \"8080\"")
    },
    |_, f, n, v| {
        Draft::new("docker-compose", "docker-compose.yml")
            .line("services:\n  api:\n    image: acme/api:1.9\n    ports: [\"8080:8080\"]\n    environment:")
            .marked(f, Weight::Secret, format!("      - {}={v}", shout(n)))
            .line("      - TZ=Europe/Berlin\n    restart: unless-stopped")
    },
    |_, f, n, v| {
        Draft::new("dockerfile", "Dockerfile")
            .line("FROM node:22-slim\nWORKDIR /app\nCOPY package.json .")
            .marked(f, Weight::Secret, format!("ENV {}={v}", shout(n)))
            .line("RUN npm ci --omit=dev\nCMD [\"node\", \"server.js\"]")
    },
    |_, f, n, v| {
        Draft::new("json", "appsettings.json")
            .line("{\n  \"logging\": {\"level\": \"info\"},\n  \"auth\": {")
            .marked(f, Weight::Secret, format!("    \"{}\": \"{v}\",", camel(n)))
            .line("    \"issuer\": \"https://login.corp.test/\"\n  }\n}")
    },
    |_, f, n, v| {
        Draft::new("toml", "config.toml")
            .line("[server]\nbind = \"127.0.0.1:8080\"\n\n[credentials]")
            .marked(f, Weight::Secret, format!("{n} = \"{v}\""))
            .line("retries = 3")
    },
    |_, f, n, v| {
        Draft::new("ini", "etc/app.ini")
            .line("; production\n[main]\nhost = 10.0.3.7\nport = 5432")
            .marked(f, Weight::Secret, format!("{n} = {v}"))
            .line("pool_size = 20")
    },
    |_, f, n, v| {
        Draft::new("properties", "src/main/resources/application.properties")
            .line("server.port=8443\nspring.application.name=orders")
            .marked(f, Weight::Secret, format!("app.{}={v}", n.replace('_', ".")))
            .line("management.endpoints.web.exposure.include=health")
    },
    |_, f, n, v| {
        Draft::new("python", "app/settings.py")
            .line("import os\n\nDEBUG = False\nALLOWED_HOSTS = [\"app.corp.test\"]")
            .marked(f, Weight::Secret, format!("{} = \"{v}\"", shout(n)))
            .line("TIME_ZONE = os.environ.get(\"TZ\", \"UTC\")")
    },
    |_, f, n, v| {
        Draft::new("python-call", "jobs/sync.py")
            .line("from vendor import Client\n\n\ndef main() -> None:")
            .marked(f, Weight::Secret, format!("    client = Client({n}='{v}', timeout=10)"))
            .line("    client.sync(batch=500)")
    },
    |_, f, n, v| {
        Draft::new("javascript", "src/client.js")
            .line("import { Client } from \"./vendor.js\";\n")
            .marked(f, Weight::Secret, format!("const {} = '{v}';", camel(n)))
            .line("export const client = new Client({ retries: 3 });")
    },
    |_, f, n, v| {
        Draft::new("typescript", "src/config.ts")
            .line("export const config = {\n  region: \"eu-central-1\",")
            .marked(f, Weight::Secret, format!("  {}: \"{v}\",", camel(n)))
            .line("  retries: 5,\n} as const;")
    },
    |_, f, n, v| {
        Draft::new("go", "internal/config/config.go")
            .line("package config\n\nconst (\n\tregion = \"eu-central-1\"")
            .marked(f, Weight::Secret, format!("\t{} = \"{v}\"", camel(n)))
            .line("\tretries = 3\n)")
    },
    |_, f, n, v| {
        Draft::new("java", "src/main/java/test/corp/Config.java")
            .line("package test.corp;\n\nfinal class Config {\n    static final int RETRIES = 3;")
            .marked(f, Weight::Secret, format!("    private static final String {} = \"{v}\";", shout(n)))
            .line("}")
    },
    |_, f, n, v| {
        Draft::new("csharp", "Services/Settings.cs")
            .line("namespace Acme;\n\npublic static class Settings\n{")
            .marked(f, Weight::Secret, format!("    public const string {} = \"{v}\";", pascal(n)))
            .line("}")
    },
    |_, f, n, v| {
        Draft::new("ruby", "config/initializers/vendor.rb")
            .line("Vendor.configure do |config|\n  config.timeout = 5")
            .marked(f, Weight::Secret, format!("  config.{n} = '{v}'"))
            .line("end")
    },
    |_, f, n, v| {
        Draft::new("php", "config/services.php")
            .line("<?php\n\nreturn [\n    'region' => 'eu-central-1',")
            .marked(f, Weight::Secret, format!("    '{n}' => '{v}',"))
            .line("];")
    },
    |_, f, n, v| {
        Draft::new("rust", "src/config.rs").line("//! Settings.\n\npub const RETRIES: u32 = 3;").marked(
            f,
            Weight::Secret,
            format!("pub const {}: &str = \"{v}\";", shout(n)),
        )
    },
    |_, f, n, v| {
        Draft::new("kotlin", "app/src/main/java/Api.kt")
            .line("package test.corp\n\nobject Api {")
            .marked(f, Weight::Secret, format!("    const val {} = \"{v}\"", shout(n)))
            .line("}")
    },
    |_, f, n, v| {
        Draft::new("swift", "Sources/App/Keys.swift")
            .line("enum Keys {")
            .marked(f, Weight::Secret, format!("    static let {} = \"{v}\"", camel(n)))
            .line("}")
    },
    |_, f, n, v| {
        Draft::new("terraform", "prod.tfvars").line("region     = \"eu-central-1\"\nnode_count = 3").marked(
            f,
            Weight::Secret,
            format!("{n} = \"{v}\""),
        )
    },
    |_, f, n, v| {
        Draft::new("github-actions", ".github/workflows/release.yml")
            .line("on: push\njobs:\n  release:\n    runs-on: ubuntu-24.04\n    env:")
            .marked(f, Weight::Secret, format!("      {}: {v}", shout(n)))
            .line("    steps:\n      - uses: actions/checkout@08c6903cd8c0fde910a37f88322edcfb5dd907a8")
    },
    |_, f, n, v| {
        Draft::new("gitlab-ci", ".gitlab-ci.yml")
            .line("stages: [build]\nvariables:\n  GIT_DEPTH: \"20\"")
            .marked(f, Weight::Secret, format!("  {}: \"{v}\"", shout(n)))
            .line("build:\n  script: [make]")
    },
    |_, f, n, v| {
        Draft::new("xml", "settings.xml")
            .line("<settings>\n  <servers>\n    <server>\n      <id>releases</id>")
            .marked(f, Weight::Secret, format!("      <{n}>{v}</{n}>"))
            .line("    </server>\n  </servers>\n</settings>")
    },
    |_, f, n, v| {
        Draft::new("shell-history", ".bash_history")
            .line("cd ~/src/web\ngit status\nmake test")
            .marked(f, Weight::Secret, format!("{}={v} ./deploy.sh staging", shout(n)))
            .line("ls -la\nexit")
    },
    |_, f, n, v| {
        Draft::new("command-line", "runbook.md")
            .line("# Rotate\n\nRun this on the bastion:\n\n```sh")
            .marked(f, Weight::Secret, format!("acmectl login --{} {v}", kebab(n)))
            .line("```")
    },
    |_, f, n, v| {
        Draft::new("diff", "change.patch")
            .line("diff --git a/conf.py b/conf.py\n--- a/conf.py\n+++ b/conf.py\n@@ -1,2 +1,3 @@\n DEBUG = False")
            .marked(f, Weight::Secret, format!("+{} = \"{v}\"", shout(n)))
    },
    |_, f, n, v| {
        Draft::new("notebook", "analysis.ipynb")
            .line("{\n \"cells\": [\n  {\n   \"cell_type\": \"code\",\n   \"source\": [\n    \"import pandas as pd\\n\",")
            .marked(f, Weight::Secret, format!("    \"{n} = \\\"{v}\\\"\\n\","))
            .line("    \"df = load()\"\n   ]\n  }\n ]\n}")
    },
    |r, f, n, v| {
        Draft::new("log", "app.log")
            .line(format!("2026-11-02T08:14:07Z INFO request id={} status=200 ms=14", uuid(r)))
            .marked(f, Weight::Secret, format!("2026-11-02T08:14:08Z DEBUG loaded settings {n}={v}"))
            .line("2026-11-02T08:14:09Z INFO listening on 0.0.0.0:8080")
    },
    |_, f, n, v| {
        Draft::new("kubernetes-secret", "secret.yaml")
            .line("apiVersion: v1\nkind: Secret\nmetadata:\n  name: api\ntype: Opaque\nstringData:")
            .marked(f, Weight::Secret, format!("  {}: {v}", kebab(n)))
    },
    |_, f, n, v| {
        Draft::new("minified-json", "state.json")
            .line("{\"version\":4,\"serial\":118,\"lineage\":\"web\"}")
            .marked(
                f,
                Weight::Secret,
                format!("{{\"outputs\":{{\"{n}\":{{\"value\":\"{v}\",\"type\":\"string\"}}}}}}"),
            )
    },
    |r, f, n, v| {
        Draft::new("query-string", "crawl.txt")
            .line("https://www.corp.test/about?lang=en")
            .marked(f, Weight::Secret, format!("https://api.corp.test/v2/items?page=2&{n}={v}&limit=50"))
            .line(format!("https://www.corp.test/item/{}", uuid(r)))
    },
];

/// Places where the word stands without a name that gives it away.
const BARE: &[Place] = &[
    |_, f, _, v| {
        Draft::new("curl-header", ".zsh_history")
            .line(": 1764230000:0;git pull")
            .marked(
                f,
                Weight::Secret,
                format!(": 1764230011:0;curl -sH 'Authorization: Bearer {v}' https://api.corp.test/v1/me"),
            )
            .line(": 1764230020:0;ls")
    },
    |_, f, _, v| {
        Draft::new("http-file", "requests.http")
            .line("POST https://api.corp.test/v1/messages\nContent-Type: application/json")
            .marked(f, Weight::Secret, format!("X-Api-Key: {v}"))
            .line("\n{\"limit\": 3}")
    },
    |r, f, _, v| {
        Draft::new("chat", "notes.md")
            .line("# Hand-over\n\n- the dashboards moved\n- on call: Jane")
            .marked(f, Weight::Secret, format!("- for now use {v} until the vault works"))
            .line(format!("- ticket {}", text(r, b"0123456789", 6)))
    },
    |_, f, _, v| {
        Draft::new("source-argument", "lib/client.rb").line("require 'vendor'").marked(
            f,
            Weight::Secret,
            format!("CLIENT = Vendor::Client.new(\"{v}\")"),
        )
    },
    |_, f, _, v| {
        Draft::new("nginx", "nginx.conf")
            .line("location /api/ {\n    proxy_pass https://api.corp.test/;")
            .marked(f, Weight::Secret, format!("    proxy_set_header Authorization \"Bearer {v}\";"))
            .line("}")
    },
    |_, f, _, v| {
        Draft::new("sql-dump", "dump.sql")
            .line("INSERT INTO integrations (id, vendor, enabled, value) VALUES")
            .marked(f, Weight::Secret, format!("(14, 'vendor', true, '{v}'),"))
            .line("(15, 'none', false, NULL);")
    },
    |_, f, _, v| {
        Draft::new("csv", "export.csv").line("id,owner,value,created").marked(
            f,
            Weight::Secret,
            format!("7,jane,{v},2026-03-01"),
        )
    },
    |r, f, _, v| {
        let nonce = text(r, ALNUM, 8);
        Draft::new("comment", "src/main.c")
            .line("#include <stdio.h>")
            .marked(f, Weight::Secret, format!("/* {nonce}: tested with {v} on staging */"))
            .line("int main(void) { return 0; }")
    },
    |_, f, _, v| {
        Draft::new("kubernetes-secret-data", "sealed.yaml")
            .line("apiVersion: v1\nkind: Secret\ndata:")
            .marked(f, Weight::Secret, format!("  value: {}", base64(v.as_bytes())))
    },
    |_, f, _, v| {
        Draft::new("netrc", ".netrc").line("machine api.corp.test").line("  login deploy").marked(
            f,
            Weight::Secret,
            format!("  password {v}"),
        )
    },
];

fn assigned(rng: &mut Rng, family: &'static str, name: &str, value: &str) -> Draft {
    ASSIGNED[rng.usize(..ASSIGNED.len())](rng, family, name, value)
}

fn bare(rng: &mut Rng, family: &'static str, value: &str) -> Draft {
    BARE[rng.usize(..BARE.len())](rng, family, "", value)
}

fn url(rng: &mut Rng, family: &'static str, value: &str) -> Draft {
    match rng.u8(..5) {
        0 => Draft::new("gitconfig", ".git/config")
            .line("[core]\n\tbare = false\n[remote \"origin\"]")
            .marked(family, Weight::Secret, format!("\turl = {value}"))
            .line("\tfetch = +refs/heads/*:refs/remotes/origin/*"),
        1 => Draft::new("pip-conf", "pip.conf").line("[global]").marked(
            family,
            Weight::Secret,
            format!("index-url = {value}"),
        ),
        2 => Draft::new("history-url", ".bash_history")
            .line("cd /srv")
            .marked(family, Weight::Secret, format!("wget -q {value}"))
            .line("exit"),
        3 => Draft::new("log-url", "error.log").line("2026-10-30 11:02:01 WARN retrying").marked(
            family,
            Weight::Secret,
            format!("2026-10-30 11:02:02 ERROR cannot connect to {value}: timed out"),
        ),
        _ => Draft::new("source-url", "app/db.py").line("import sqlalchemy").marked(
            family,
            Weight::Secret,
            format!("engine = sqlalchemy.create_engine(\"{value}\")"),
        ),
    }
}

fn block(rng: &mut Rng, family: &'static str, lines: &[String]) -> Draft {
    let indented = |pad: &str| lines.iter().map(|line| format!("{pad}{line}")).collect::<Vec<_>>().join("\n");
    match rng.u8(..6) {
        0 => Draft::new("yaml-block", "inventory.yml")
            .line("all:\n  vars:\n    ansible_user: deploy")
            .marked(family, Weight::Secret, format!("    key: |\n{}", indented("      ")))
            .line("    port: 22"),
        1 => Draft::new("service-account", "service-account.json")
            .line("{\n  \"type\": \"service_account\",\n  \"project_id\": \"acme-prod\",")
            .marked(family, Weight::Secret, format!("  \"private_key\": \"{}\",", in_one_line(lines)))
            .line("  \"client_email\": \"ci@acme-prod.iam.gserviceaccount.com\"\n}"),
        2 => Draft::new("source-block", "tests/fixtures.py")
            .line("import ssl\n")
            .marked(family, Weight::Secret, format!("KEY = \"\"\"{}\"\"\"", lines.join("\n")))
            .line("CIPHERS = ssl.OP_ALL"),
        3 => Draft::new("dotenv-block", ".env").line("PORT=80").marked(
            family,
            Weight::Secret,
            format!("SIGNING_KEY=\"{}\"", in_one_line(lines)),
        ),
        4 => Draft::new("heredoc", "user-data.sh")
            .line("#!/bin/sh\ncat > /etc/ssl/server.key <<'KEY'")
            .marked(family, Weight::Secret, lines.join("\n"))
            .line("KEY\nsystemctl restart nginx"),
        _ => Draft::new("key-file", one(rng, &["id_ed25519", "server.key", "deploy.pem"])).marked(
            family,
            Weight::Secret,
            lines.join("\n"),
        ),
    }
}

fn pair(
    rng: &mut Rng,
    family: &'static str,
    (beside, public): (&str, &str),
    (name, secret): (&str, &str),
) -> Draft {
    let (kind, path, head, first, second) = match rng.u8(..5) {
        0 => (
            "pair-ini",
            ".aws/credentials",
            "[default]",
            format!("{beside} = {public}"),
            format!("{name} = {secret}"),
        ),
        1 => (
            "pair-dotenv",
            ".env",
            "TZ=UTC",
            format!("{}={public}", shout(beside)),
            format!("{}={secret}", shout(name)),
        ),
        2 => (
            "pair-yaml",
            "values.yaml",
            "vendor:",
            format!("  {}: {public}", camel(beside)),
            format!("  {}: {secret}", camel(name)),
        ),
        3 => (
            "pair-python",
            "upload.py",
            "import boto3\n",
            format!("{} = \"{public}\"", shout(beside)),
            format!("{} = \"{secret}\"", shout(name)),
        ),
        _ => (
            "pair-terraform",
            "main.tf",
            "provider \"vendor\" {",
            format!("  {beside} = \"{public}\""),
            format!("  {name} = \"{secret}\""),
        ),
    };
    Draft::new(kind, path).line(head).marked(family, Weight::Beside, first).marked(
        family,
        Weight::Secret,
        second,
    )
}
