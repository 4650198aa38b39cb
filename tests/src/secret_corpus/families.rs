//! The kinds of secret, each in the form that its vendor publishes.

use fastrand::Rng;

use super::alphabet::{
    ALNUM, BASE32, DIGITS, HEX, LETTERS, LOWER, UPPER, URL64, base64, base64_url, bytes, one, padded,
    password, text, uuid,
};
use super::keys;

/// A secret, and what it needs around it to be one.
#[derive(Debug)]
pub(super) struct Planted {
    pub(super) family: &'static str,
    /// What a program would call it, in snake case.
    pub(super) name: String,
    pub(super) form: Form,
}

#[derive(Debug)]
pub(super) enum Form {
    /// Recognisable by itself: it may stand anywhere.
    Token(String),
    /// A secret only beside its name.
    Named(String),
    /// A URL with the secret inside.
    Url(String),
    /// Lines.
    Block(Vec<String>),
    /// A public half with its name, and the secret.
    Pair { beside: &'static str, public: String, secret: String },
}

type Maker = fn(&mut Rng) -> String;
type Shape = fn(&mut Rng) -> Planted;

/// The families that are one word: name, what a program calls it, whether the word is enough, how it is made.
const WORDS: &[(&str, &[&str], bool, Maker)] = &[
    ("github-classic", &["github_token", "gh_token", "token"], true, |r| checked(r, "ghp_")),
    ("github-oauth", &["github_oauth_token", "access_token"], true, |r| checked(r, "gho_")),
    ("github-app", &["installation_token", "gh_token"], true, |r| {
        let prefix = one(r, &["ghs_", "ghu_", "ghr_"]);
        checked(r, prefix)
    }),
    ("github-fine-grained", &["github_token", "repo_token"], true, |r| {
        format!("github_pat_{}_{}", text(r, ALNUM, 22), text(r, ALNUM, 59))
    }),
    ("gitlab-personal", &["gitlab_token", "private_token"], true, |r| {
        format!("glpat-{}", text(r, URL64, 20))
    }),
    ("gitlab-routable", &["gitlab_token", "ci_push_token"], true, |r| {
        let head = format!("glpat-{}.01.0r", text(r, URL64, 27));
        let sum = padded(crc(&head), LOWER, 7);
        format!("{head}{sum}")
    }),
    ("gitlab-deploy", &["deploy_token", "registry_password"], true, |r| {
        format!("gldt-{}", text(r, URL64, 20))
    }),
    ("gitlab-runner", &["runner_token", "ci_server_token"], true, |r| format!("glrt-{}", text(r, URL64, 20))),
    ("gitlab-trigger", &["trigger_token"], true, |r| format!("glptt-{}", text(r, HEX, 40))),
    ("gcp-api-key", &["google_api_key", "maps_key", "gcp_key"], true, |r| {
        format!("AIza{}", text(r, URL64, 35))
    }),
    ("gcp-oauth-secret", &["google_client_secret"], true, |r| format!("GOCSPX-{}", text(r, URL64, 28))),
    ("azure-client-secret", &["azure_client_secret", "client_secret"], true, |r| {
        format!("{}{}Q~{}", text(r, ALNUM, 3), one(r, &["7", "8"]), text(r, URL64, 34))
    }),
    ("azure-storage", &["azure_storage_connection_string"], true, |r| {
        format!(
            "DefaultEndpointsProtocol=https;AccountName={};AccountKey={};EndpointSuffix=core.windows.net",
            text(r, LOWER, 12),
            base64(&bytes(r, 64))
        )
    }),
    ("slack-bot", &["slack_bot_token", "slack_token"], true, |r| {
        format!("xoxb-{}-{}-{}", digits(r, 12), digits(r, 13), text(r, ALNUM, 24))
    }),
    ("slack-user", &["slack_user_token"], true, |r| {
        format!("xoxp-{}-{}-{}-{}", digits(r, 12), digits(r, 12), digits(r, 13), text(r, HEX, 32))
    }),
    ("slack-app", &["slack_app_token"], true, |r| {
        format!("xapp-1-A{}-{}-{}", text(r, UPPER, 10), digits(r, 13), text(r, HEX, 64))
    }),
    ("slack-webhook", &["slack_webhook_url", "alert_url"], true, |r| {
        format!(
            "https://hooks.slack.com/services/T{}/B{}/{}",
            text(r, UPPER, 10),
            text(r, UPPER, 10),
            text(r, ALNUM, 24)
        )
    }),
    ("stripe-live", &["stripe_secret_key", "stripe_key"], true, |r| format!("sk_live_{}", stripe_body(r))),
    ("stripe-restricted", &["stripe_api_key"], true, |r| format!("rk_live_{}", stripe_body(r))),
    ("stripe-webhook", &["stripe_webhook_secret"], true, |r| format!("whsec_{}", text(r, ALNUM, 32))),
    ("openai-project", &["openai_api_key"], true, |r| {
        format!("sk-proj-{}T3BlbkFJ{}", text(r, URL64, 74), text(r, URL64, 74))
    }),
    ("openai-legacy", &["openai_api_key", "llm_key"], true, |r| {
        format!("sk-{}T3BlbkFJ{}", text(r, ALNUM, 20), text(r, ALNUM, 20))
    }),
    ("openai-service", &["openai_api_key"], true, |r| {
        format!("sk-svcacct-{}T3BlbkFJ{}", text(r, URL64, 74), text(r, URL64, 74))
    }),
    ("anthropic-api", &["anthropic_api_key", "claude_key"], true, |r| {
        format!("sk-ant-api03-{}AA", text(r, URL64, 93))
    }),
    ("anthropic-oauth", &["claude_code_oauth_token"], true, |r| {
        format!("sk-ant-oat01-{}AA", text(r, URL64, 93))
    }),
    ("anthropic-admin", &["anthropic_admin_key"], true, |r| {
        format!("sk-ant-admin01-{}AA", text(r, URL64, 93))
    }),
    ("npm", &["npm_token", "node_auth_token"], true, |r| checked(r, "npm_")),
    ("pypi", &["twine_password", "pypi_token"], true, keys::pypi),
    ("crates-io", &["cargo_registry_token"], true, |r| format!("cio{}", text(r, ALNUM, 32))),
    ("sendgrid", &["sendgrid_api_key", "mail_key"], true, |r| {
        format!("SG.{}.{}", text(r, URL64, 22), text(r, URL64, 43))
    }),
    ("twilio-auth-token", &["twilio_auth_token"], false, |r| text(r, HEX, 32)),
    ("digitalocean", &["digitalocean_token", "do_token"], true, |r| {
        format!("{}{}", one(r, &["dop_v1_", "doo_v1_", "dor_v1_"]), text(r, HEX, 64))
    }),
    ("hugging-face", &["hf_token", "hugging_face_hub_token"], true, |r| {
        format!("hf_{}", text(r, LETTERS, 34))
    }),
    ("shopify", &["shopify_access_token"], true, |r| {
        format!("{}{}", one(r, &["shpat_", "shpss_", "shpca_", "shppa_"]), text(r, HEX, 32))
    }),
    ("vault-service", &["vault_token"], true, |r| format!("hvs.CAESI{}", text(r, URL64, 90))),
    ("vault-short", &["vault_token"], true, |r| format!("hvs.{}", text(r, ALNUM, 24))),
    ("vault-batch", &["vault_token"], true, |r| format!("hvb.AAAAAQ{}", text(r, URL64, 150))),
    ("age", &["age_secret_key", "sops_age_key"], true, keys::age_secret),
    ("jwt", &["access_token", "id_token", "jwt"], true, keys::jwt),
    ("telegram", &["telegram_bot_token"], true, |r| format!("{}:AA{}", digits(r, 10), text(r, URL64, 33))),
    ("grafana", &["grafana_token"], true, |r| format!("glsa_{}_{}", text(r, ALNUM, 32), text(r, HEX, 8))),
    ("linear", &["linear_api_key"], true, |r| format!("lin_api_{}", text(r, ALNUM, 40))),
    ("docker-hub", &["dockerhub_token"], true, |r| format!("dckr_pat_{}", text(r, URL64, 27))),
    ("sentry-user", &["sentry_auth_token"], true, |r| format!("sntryu_{}", text(r, HEX, 64))),
    ("new-relic", &["new_relic_api_key"], true, |r| format!("NRAK-{}", text(r, UPPER, 27))),
    ("databricks", &["databricks_token"], true, |r| format!("dapi{}", text(r, HEX, 32))),
    ("doppler", &["doppler_token"], true, |r| format!("dp.pt.{}", text(r, ALNUM, 43))),
    ("postman", &["postman_api_key"], true, |r| format!("PMAK-{}-{}", text(r, HEX, 24), text(r, HEX, 34))),
    ("pulumi", &["pulumi_access_token"], true, |r| format!("pul-{}", text(r, HEX, 40))),
    ("rubygems", &["gem_host_api_key"], true, |r| format!("rubygems_{}", text(r, HEX, 48))),
    ("planetscale", &["planetscale_service_token"], true, |r| format!("pscale_tkn_{}", text(r, URL64, 43))),
    ("openrouter", &["openrouter_api_key"], true, |r| format!("sk-or-v1-{}", text(r, HEX, 64))),
    ("groq", &["groq_api_key"], true, |r| format!("gsk_{}", text(r, ALNUM, 52))),
    ("tailscale", &["ts_authkey"], true, |r| {
        format!("tskey-auth-{}CNTRL-{}", text(r, ALNUM, 12), text(r, ALNUM, 32))
    }),
    ("terraform-cloud", &["tf_api_token"], true, |r| {
        format!("{}.atlasv1.{}", text(r, ALNUM, 14), text(r, ALNUM, 67))
    }),
    ("airtable", &["airtable_api_key"], true, |r| format!("pat{}.{}", text(r, ALNUM, 14), text(r, HEX, 64))),
    ("square", &["square_access_token"], true, |r| format!("sq0atp-{}", text(r, URL64, 22))),
    ("atlassian", &["jira_api_token"], true, |r| {
        format!("ATATT3xFfGF0{}={}", text(r, URL64, 171), text(r, b"0123456789ABCDEF", 8))
    }),
    ("mailgun", &["mailgun_api_key"], false, |r| format!("key-{}", text(r, HEX, 32))),
    ("mailchimp", &["mailchimp_api_key"], false, |r| format!("{}-us{}", text(r, HEX, 32), r.u8(1..22))),
    ("datadog", &["dd_api_key", "datadog_api_key"], false, |r| text(r, HEX, 32)),
    ("heroku", &["heroku_api_key"], false, uuid),
    ("cloudflare", &["cloudflare_api_token"], false, |r| text(r, URL64, 40)),
    ("wireguard", &["wireguard_private_key"], false, keys::curve),
    ("generic-alnum", GENERIC, false, |r| {
        let length = r.usize(20..44);
        text(r, ALNUM, length)
    }),
    ("generic-hex", GENERIC, false, |r| {
        let length = *one(r, &[&32, &40, &64]);
        text(r, HEX, length)
    }),
    ("generic-base64", GENERIC, false, |r| {
        let length = *one(r, &[&24, &32, &48]);
        base64(&bytes(r, length))
    }),
    ("generic-password", PASSWORDS, false, |r| {
        let length = r.usize(14..25);
        password(r, length)
    }),
];

const GENERIC: &[&str] = &[
    "api_key",
    "client_secret",
    "secret_key",
    "auth_token",
    "access_token",
    "signing_secret",
    "session_secret",
    "jwt_secret",
    "encryption_key",
    "webhook_secret",
    "internal_api_token",
    "app_secret",
    "partner_api_secret",
];
const PASSWORDS: &[&str] = &[
    "password",
    "db_password",
    "smtp_password",
    "admin_password",
    "redis_password",
    "postgres_password",
    "passwd",
];

/// The families of more than a word.
const SHAPES: &[(&str, Shape)] = &[
    ("aws-pair", |r| Planted {
        family: "aws-pair",
        name: "aws_secret_access_key".to_owned(),
        form: Form::Pair {
            beside: "aws_access_key_id",
            public: format!("{}{}", one(r, &["AKIA", "ASIA"]), text(r, BASE32, 16)),
            secret: text(r, b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", 40),
        },
    }),
    ("twilio-pair", |r| Planted {
        family: "twilio-pair",
        name: "twilio_auth_token".to_owned(),
        form: Form::Pair {
            beside: "twilio_account_sid",
            public: format!("AC{}", text(r, HEX, 32)),
            secret: text(r, HEX, 32),
        },
    }),
    ("database-url", |r| url(r, "database-url", "database_url", database_url)),
    ("basic-auth-url", |r| url(r, "basic-auth-url", "registry_url", basic_url)),
    ("pem-rsa", |r| block("pem-rsa", keys::rsa(r))),
    ("pem-ec", |r| block("pem-ec", keys::elliptic(r))),
    ("pem-pkcs8", |r| block("pem-pkcs8", keys::pkcs8_pem(r))),
    ("pgp-private", |r| block("pgp-private", keys::pgp(r))),
    ("openssh", |r| block("openssh", keys::openssh(r))),
];

/// A secret: each family in turn, the listed shapes more often than their share.
pub(super) fn pick(rng: &mut Rng, index: usize) -> Planted {
    let all = WORDS.len() + SHAPES.len();
    let turn = index % (all + SHAPES.len());
    if turn >= WORDS.len() {
        return SHAPES[(turn - WORDS.len()) % SHAPES.len()].1(rng);
    }
    let (family, names, alone, make) = WORDS[turn];
    let value = make(rng);
    let form = if alone { Form::Token(value) } else { Form::Named(value) };
    Planted { family, name: one(rng, names).to_owned(), form }
}

#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    WORDS.iter().map(|word| word.0).chain(SHAPES.iter().map(|shape| shape.0))
}

fn block(family: &'static str, lines: Vec<String>) -> Planted {
    Planted { family, name: "private_key".to_owned(), form: Form::Block(lines) }
}

fn url(rng: &mut Rng, family: &'static str, name: &str, make: Maker) -> Planted {
    Planted { family, name: name.to_owned(), form: Form::Url(make(rng)) }
}

fn crc(text: &str) -> u64 {
    u64::from(crc32fast::hash(text.as_bytes()))
}

/// Thirty characters and their checksum, as GitHub and npm have them.
fn checked(rng: &mut Rng, prefix: &str) -> String {
    let body = text(rng, ALNUM, 30);
    let sum = padded(crc(&body), ALNUM, 6);
    format!("{prefix}{body}{sum}")
}

/// The same with a checksum that does not hold: a word that no GitHub ever gave out.
pub(super) fn unchecked(rng: &mut Rng, prefix: &str) -> String {
    let body = text(rng, ALNUM, 30);
    let sum = padded(crc(&body) ^ 1, ALNUM, 6);
    format!("{prefix}{body}{sum}")
}

fn digits(rng: &mut Rng, length: usize) -> String {
    format!("{}{}", rng.u8(1..10), text(rng, DIGITS, length - 1))
}

fn stripe_body(rng: &mut Rng) -> String {
    let length = *one(rng, &[&24, &99]);
    text(rng, ALNUM, length)
}

fn user_password(rng: &mut Rng) -> String {
    let length = rng.usize(12..28);
    if rng.bool() { text(rng, ALNUM, length) } else { base64_url(&bytes(rng, length)) }
}

fn database_url(rng: &mut Rng) -> String {
    let scheme = one(
        rng,
        &[
            "postgres",
            "postgresql",
            "mysql",
            "mongodb+srv",
            "mongodb",
            "redis",
            "amqps",
            "postgresql+asyncpg",
        ],
    );
    let user =
        if scheme == "redis" { "" } else { one(rng, &["app", "billing_rw", "svc-orders", "root", "etl"]) };
    let host = one(rng, &["db-1.prod.corp.test", "10.20.4.17", "cluster0.x7k2p.db.test", "pg.internal"]);
    let secret = user_password(rng);
    let name = one(rng, &["orders", "billing", "0", "warehouse"]);
    format!("{scheme}://{user}:{secret}@{host}:{}/{name}", rng.u16(1025..30000))
}

fn basic_url(rng: &mut Rng) -> String {
    let host =
        one(rng, &["artifacts.corp.test/simple/", "git.corp.test/acme/web.git", "jenkins.corp.test/job/7/"]);
    let user = one(rng, &["deploy", "ci-bot", "jane.doe", "svc_build"]);
    let secret = user_password(rng);
    format!("https://{user}:{secret}@{host}")
}
