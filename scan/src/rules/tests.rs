use proptest::prelude::*;

use super::*;
use crate::finding::{Coding, Through};

/// Characters that look drawn by chance, the same on each run.
fn random(alphabet: &str, length: usize) -> String {
    let alphabet = alphabet.as_bytes();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ (length as u64) << 7;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(alphabet[(state >> 33) as usize % alphabet.len()])
    };
    (0..length).map(|_| next()).collect()
}

const UPPER: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const HEX: &str = "0123456789abcdef";
const ALNUM: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const ALPHA: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

fn alnum(length: usize) -> String {
    random(ALNUM, length)
}

fn found(text: &str) -> Vec<&'static str> {
    Rules::builtin().scan(text.as_bytes()).into_iter().map(|f| f.rule).collect()
}

/// One secret of each rule, made at run time so that no scanner trips over this file.
fn specimens() -> Vec<(&'static str, String)> {
    let hex = |n| random(HEX, n);
    let jwt = format!("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJ{}.{}", alnum(40), alnum(43));
    vec![
        ("private-key", private_key("RSA ")),
        ("private-key", private_key("OPENSSH ")),
        ("private-key", private_key("")),
        ("putty-private-key", format!("Private-Lines: 1\n{}\n", alnum(64))),
        (
            "age-secret-key",
            format!("AGE-SECRET-{}1{}", "KEY-", random("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", 58)),
        ),
        ("github-fine-grained-pat", format!("github_{}_{}_{}", "pat", alnum(22), alnum(59))),
        ("gitlab-pat", format!("glpat{}{}", "-", alnum(20))),
        ("gitlab-runner-authentication-token", format!("glrt{}{}", "-", alnum(20))),
        ("gitlab-deploy-token", format!("gldt{}{}", "-", alnum(20))),
        ("gitlab-ptt", format!("glptt{}{}", "-", hex(40))),
        ("gitlab-cicd-job-token", format!("glcbt{}64_{}", "-", alnum(20))),
        ("bitbucket-app-password", format!("AT{}{}{}", "BB", alnum(24), "0A1B2C3D")),
        ("aws-access-token", format!("AK{}{}", "IA", random(UPPER, 16))),
        ("aws-secret-access-key", format!("aws_secret_access_key = {}", alnum(40))),
        ("gcp-api-key", format!("AI{}{}", "za", alnum(35))),
        ("gcp-oauth-client-secret", format!("GOC{}{}", "SPX-", alnum(28))),
        ("azure-ad-client-secret", format!("\"abc8{}{}\"", "Q~", alnum(34))),
        ("azure-storage-key", format!("Account{}{}==", "Key=", alnum(86))),
        ("digitalocean-pat", format!("dop{}{}", "_v1_", hex(64))),
        ("digitalocean-access-token", format!("doo{}{}", "_v1_", hex(64))),
        ("digitalocean-refresh-token", format!("dor{}{}", "_v1_", hex(64))),
        ("databricks-api-token", format!("da{}{}", "pi", hex(32))),
        ("doppler-api-token", format!("dp{}{}", ".pt.", alnum(43))),
        ("flyio-access-token", format!("fo{}{}", "1_", alnum(43))),
        ("planetscale-api-token", format!("pscale{}{}", "_tkn_", alnum(43))),
        ("pulumi-api-token", format!("pu{}{}", "l-", hex(40))),
        ("hashicorp-tf-api-token", format!("{}{}{}", alnum(14), ".atlasv1.", alnum(65))),
        ("vault-service-token", format!("hv{}{}", "s.", alnum(95))),
        ("vault-batch-token", format!("hv{}{}", "b.", alnum(150))),
        ("cloudflare-origin-ca-key", format!("v1{}{}-{}", ".0-", hex(24), hex(146))),
        ("tailscale-auth-key", format!("tskey{}{}-{}", "-auth-", alnum(16), alnum(32))),
        ("anthropic-api-key", format!("sk-{}-api03-{}AA", "ant", alnum(93))),
        ("openai-api-key", format!("sk-proj-{}T3Blb{}{}", alnum(74), "kFJ", alnum(74))),
        ("openai-api-key", format!("sk-{}T3Blb{}{}", alnum(20), "kFJ", alnum(20))),
        ("huggingface-access-token", format!("hf{}{}", "_", random(ALPHA, 34))),
        ("groq-api-key", format!("gsk{}{}", "_", alnum(52))),
        ("replicate-api-token", format!("r8{}{}", "_", alnum(37))),
        ("perplexity-api-key", format!("pplx{}{}", "-", alnum(48))),
        ("xai-api-key", format!("xai{}{}", "-", alnum(80))),
        ("npm-access-token", format!("npm{}{}", "_", alnum(36))),
        ("pypi-upload-token", format!("pypi-Ag{}{}", "EIcHlwaS5vcmc", alnum(120))),
        ("rubygems-api-token", format!("rubygems{}{}", "_", hex(48))),
        ("crates-io-api-token", format!("ci{}{}", "o", alnum(32))),
        ("docker-hub-pat", format!("dckr{}{}", "_pat_", alnum(27))),
        ("stripe-access-token", format!("sk{}{}", "_live_", alnum(24))),
        ("square-access-token", format!("sq0{}{}", "atp-", alnum(22))),
        ("shopify-access-token", format!("shp{}{}", "at_", hex(32))),
        ("shopify-custom-access-token", format!("shp{}{}", "ca_", hex(32))),
        ("shopify-private-app-access-token", format!("shp{}{}", "pa_", hex(32))),
        ("shopify-shared-secret", format!("shp{}{}", "ss_", hex(32))),
        ("slack-bot-token", format!("xo{}-17653672481-19874698323-{}", "xb", alnum(24))),
        ("slack-user-token", format!("xo{}-17653672481-19874698323-13876398721-{}", "xp", hex(32))),
        ("slack-app-token", format!("xa{}-1-A052FGTS2DL-5171572773297-{}", "pp", hex(64))),
        (
            "slack-webhook-url",
            format!(
                "https://hooks.slack{}/services/T{}/B{}/{}",
                ".com",
                random(UPPER, 9),
                random(UPPER, 9),
                alnum(24)
            ),
        ),
        (
            "discord-webhook-url",
            format!("https://discord{}/api/webhooks/104712345678901234/{}", ".com", alnum(68)),
        ),
        ("telegram-bot-api-token", format!("819283746{}A{}", ":A", alnum(33))),
        ("twilio-api-key", format!("twilio: S{}{}", "K", hex(32))),
        ("sendgrid-api-token", format!("SG{}{}.{}", ".", alnum(22), alnum(43))),
        ("mailgun-private-api-token", format!("key{}{}", "-", hex(32))),
        ("linear-api-key", format!("lin{}{}", "_api_", alnum(40))),
        ("grafana-service-account-token", format!("gl{}{}_8a1b2c3d", "sa_", alnum(32))),
        ("grafana-cloud-api-token", format!("gl{}{}", "c_eyJ", alnum(90))),
        ("sentry-auth-token", format!("sntry{}{}", "u_", hex(64))),
        ("postman-api-token", format!("PM{}{}-{}", "AK-", hex(24), hex(34))),
        ("new-relic-user-api-key", format!("NR{}{}", "AK-", random(UPPER, 27))),
        ("dynatrace-api-token", format!("dt0{}{}.{}", "c01.", random(UPPER, 24), random(UPPER, 64))),
        ("atlassian-api-token", format!("ATA{}{}", "TT3", alnum(186))),
        ("facebook-access-token", format!("EA{}{}", "AC", alnum(150))),
        ("jwt", jwt),
        ("basic-auth-url", format!("https://deploy:{}@git.acme.test/x", alnum(14))),
        ("npmrc-auth-token", format!("//registry.acme.test/:_auth{}={}", "Token", alnum(30))),
        ("netrc-password", format!("machine git.acme.test login me password {}", alnum(16))),
        ("gitlab-scim-token", format!("glso{}{}", "at-", alnum(20))),
        ("gitlab-feature-flag-client-token", format!("glff{}{}", "ct-", alnum(20))),
        ("gitlab-incoming-mail-token", format!("glim{}{}", "t-", alnum(25))),
        ("gitlab-kubernetes-agent-token", format!("glag{}{}", "ent-", alnum(50))),
        ("gitlab-oauth-app-secret", format!("glo{}{}", "as-", hex(64))),
        ("gitlab-runner-registration-token", format!("GR13{}{}", "48941", alnum(20))),
        ("buildkite-token", format!("bk{}{}", "ua_", hex(40))),
        ("circleci-token", format!("CCI{}{}_{}", "PAT_", alnum(22), hex(40))),
        ("sourcegraph-access-token", format!("sg{}{}_{}", "p_", hex(16), hex(40))),
        ("sonar-token", format!("sq{}{}", "p_", hex(40))),
        ("harness-token", format!("pa{}{}.{}.{}", "t.", alnum(22), hex(24), alnum(20))),
        ("octopus-api-key", format!("AP{}{}", "I-", random(UPPER, 26))),
        ("aws-bedrock-api-key", format!("AB{}{}", "SK", alnum(120))),
        ("aws-session-token", format!("aws_session_tok{}: {}", "en", alnum(300))),
        ("gcp-oauth-access-token", format!("ya{}{}", "29.", alnum(120))),
        ("gcp-oauth-refresh-token", format!("1/{}{}", "/0", alnum(60))),
        ("azure-devops-pat", format!("{}AZ{}{}", alnum(76), "DO", alnum(4))),
        ("azure-shared-access-key", format!("SharedAccess{}{}=", "Key=", alnum(43))),
        ("azure-sas-signature", format!("https://x.blob.test/c?sv=1&si{}{}%3D", "g=", alnum(43))),
        ("alibaba-access-key-id", format!("LT{}{}", "AI", alnum(20))),
        ("tencent-secret-id", format!("AK{}{}", "ID", alnum(32))),
        ("yandex-api-key", format!("AQ{}{}", "VN", alnum(36))),
        ("heroku-api-key", format!("HRKU{}{}", "-AA", alnum(58))),
        ("netlify-access-token", format!("nf{}{}", "p_", alnum(40))),
        ("render-api-key", format!("rn{}{}", "d_", alnum(32))),
        ("supabase-access-token", format!("sb{}{}", "p_", hex(40))),
        ("supabase-secret-key", format!("sb_se{}{}", "cret_", alnum(31))),
        ("neon-api-key", format!("na{}{}", "pi_", random("abcdefghijklmnopqrstuvwxyz0123456789", 64))),
        ("flyio-macaroon", format!("fm{}{}", "2_", alnum(200))),
        ("doppler-service-token", format!("dp{}dev.{}", ".st.", alnum(40))),
        ("vault-legacy-token", format!("s{}{}", ".", "q8Zr2LkT0vWcN5mYx1JdB7sH")),
        ("onepassword-service-token", format!("op{}{}", "s_eyJ", alnum(300))),
        ("onepassword-secret-key", format!("A3{}ASWWYB-798JRYLJVD4-23DC2-86TVM-H43EB", "-")),
        ("prefect-api-key", format!("pn{}{}", "u_", alnum(36))),
        ("infracost-api-key", format!("ic{}{}", "o-", alnum(32))),
        ("openrouter-api-key", format!("sk-o{}{}", "r-v1-", hex(64))),
        ("deepseek-api-key", format!("s{}{}", "k-", hex(32))),
        ("langsmith-api-key", format!("lsv{}{}_{}", "2_pt_", hex(32), hex(10))),
        ("nvidia-api-key", format!("nva{}{}", "pi-", alnum(64))),
        ("together-api-key", format!("tg{}{}", "p_v1_", alnum(43))),
        ("fireworks-api-key", format!("f{}{}", "w_", "q8Zr2LkT0vWcN5mYx1JdB7sH")),
        ("pinecone-api-key", format!("pc{}{}_{}", "sk_", alnum(6), alnum(63))),
        ("nuget-api-key", format!("o{}{}", "y2", random("abcdefghijklmnopqrstuvwxyz0123456789", 43))),
        ("clojars-api-token", format!("CLO{}{}", "JARS_", hex(60))),
        ("artifactory-api-key", format!("AK{}{}", "Cp", alnum(69))),
        ("artifactory-reference-token", format!("cmVm{}{}", "dGtu", alnum(56))),
        ("packagist-token", format!("packa{}{}", "gist_ort_", hex(68))),
        ("stripe-webhook-secret", format!("wh{}{}", "sec_", alnum(32))),
        ("square-production-token", format!("EA{}{}", "AA", alnum(60))),
        (
            "braintree-access-token",
            format!(
                "access_to{}{}${}",
                "ken$production$",
                random("abcdefghijklmnopqrstuvwxyz0123456789", 16),
                hex(32)
            ),
        ),
        (
            "plaid-access-token",
            format!("access-sand{}{}-{}-{}-{}-{}", "box-", hex(8), hex(4), hex(4), hex(4), hex(12)),
        ),
        ("flutterwave-secret-key", format!("FLW{}{}-X", "SECK-", alnum(32))),
        ("shippo-api-token", format!("ship{}{}", "po_live_", hex(40))),
        ("easypost-api-token", format!("EZ{}{}", "AK", alnum(54))),
        ("duffel-api-token", format!("duff{}{}", "el_live_", alnum(43))),
        ("slack-legacy-token", format!("xo{}-2-{}-{}", "xs", "1234098765", alnum(24))),
        ("slack-config-token", format!("xo{}xoxp-1-{}", "xe.", alnum(163))),
        ("slack-refresh-token", format!("xo{}{}", "xe-1-", alnum(147))),
        (
            "teams-webhook-url",
            format!(
                "https://acme.web{}/webhookb2/{}@{}/IncomingWebhook/{}/{}",
                "hook.office.com",
                hex(36),
                hex(36),
                hex(32),
                hex(36)
            ),
        ),
        ("zapier-webhook-url", format!("https://hooks{}/hooks/catch/1234567/b7xq2kd/", ".zapier.com")),
        ("mailchimp-api-key", format!("{}-us{}", hex(32), 12)),
        ("brevo-api-key", format!("xkey{}{}-{}", "sib-", hex(64), alnum(16))),
        ("notion-api-token", format!("nt{}{}", "n_", alnum(46))),
        ("notion-integration-token", format!("sec{}{}", "ret_", alnum(43))),
        ("figma-access-token", format!("fi{}{}", "gd_", alnum(40))),
        ("airtable-access-token", format!("pa{}{}.{}", "t", alnum(14), hex(64))),
        ("typeform-api-token", format!("tf{}{}", "p_", alnum(59))),
        ("contentful-access-token", format!("CF{}{}", "PAT-", alnum(43))),
        ("readme-api-token", format!("rd{}{}", "me_", random("abcdefghijklmnopqrstuvwxyz0123456789", 70))),
        ("posthog-api-key", format!("ph{}{}", "x_", alnum(43))),
        (
            "honeycomb-ingest-key",
            format!("hca{}{}", "ik_", random("abcdefghijklmnopqrstuvwxyz0123456789", 58)),
        ),
        ("new-relic-insert-key", format!("NR{}{}", "II-", alnum(32))),
        ("launchdarkly-sdk-key", format!("sd{}a1f3c9d2-6b7e-4c1a-9d3f-0b8e7a6c5d4f", "k-")),
        ("dropbox-access-token", format!("s{}{}", "l.", alnum(140))),
        ("twitter-bearer-token", format!("{}{}", "A".repeat(21), alnum(90))),
        ("linkedin-client-secret", format!("WPL{}{}.a8Zq1x==", "_AP1.", alnum(16))),
        ("discord-bot-token", format!("DISCORD_KEY=M{}.{}.{}", alnum(23), alnum(6), alnum(38))),
        ("basic-authorization", format!("Authorization: Basic {}", "ZGVwbG95OnE4WnIyTGtUMHZXYzVt")),
        ("docker-config-auth", format!("\"auth\": \"{}\"", "ZGVwbG95OnE4WnIyTGtUMHZXYzVt")),
        ("bearer-authorization", format!("Authorization: Bearer {}", alnum(40))),
        ("command-line-password", "curl -u deploy:q8Zr2LkT0vWc https://x.test".to_owned()),
        ("generic-assignment", format!("APP_SECRET={}", alnum(32))),
        ("generic-environment", format!("APP_SECRET={} ./deploy.sh", alnum(32))),
        ("generic-name-and-value", format!("- name: APP_SECRET\n  value: \"{}\"", alnum(32))),
        ("generic-output", format!("{{\"app_secret\":{{\"value\":\"{}\"}}}}", alnum(32))),
        ("generic-element", format!("<app_secret>{}</app_secret>", alnum(32))),
        ("command-line-secret", format!("acme login --app-key {}", alnum(32))),
        ("password-environment", "DB_PASSWORD=q8Zr2!LkT0vWc ./deploy.sh".to_owned()),
        ("heroku-legacy-api-key", "HEROKU_API_KEY: a8b1f3c9-6b7e-4c1a-9d3f-0b8e7a6c5d4f".to_owned()),
        ("generic-password", "password: \"q8Zr2LkT0vWc\"".to_owned()),
        ("password-assignment", "DB_PASSWORD=q8Zr2!LkT0vWc".to_owned()),
        ("generic-api-key", format!("api_key = \"{}\"", alnum(32))),
    ]
}

fn private_key(kind: &str) -> String {
    let line = alnum(64);
    format!("-----BEGIN {kind}PRIVATE {}-----\n{line}\n{line}\n-----END {kind}PRIVATE KEY-----\n", "KEY")
}

#[test]
fn each_rule_finds_its_specimen_and_only_that_rule_fires() {
    for (rule, text) in specimens() {
        assert_eq!(found(&format!("first line\nvalue {text}\nlast line\n")), [rule], "{text}");
    }
}

#[test]
fn every_rule_has_a_specimen_or_its_own_checksum() {
    let specimens: Vec<&str> = specimens().into_iter().map(|(rule, _)| rule).collect();
    let checked = ["github-pat", "github-oauth", "github-app-token", "github-refresh-token"];
    let bare: Vec<&str> =
        Rules::builtin().ids().filter(|id| !specimens.contains(id) && !checked.contains(id)).collect();
    assert_eq!(bare, Vec::<&str>::new());
    assert!(Rules::builtin().ids().count() >= 100);
}

#[test]
fn github_tokens_count_only_with_a_right_checksum() {
    let body = ["zQWBuTSOoRi4A9sp", "HcVY5ncnsDkxkJ"].concat();
    for (rule, prefix) in [
        ("github-pat", "ghp"),
        ("github-oauth", "gho"),
        ("github-app-token", "ghs"),
        ("github-refresh-token", "ghr"),
    ] {
        assert_eq!(found(&format!("t = {prefix}_{body}0mLq17")), [rule]);
        assert_eq!(found(&format!("t = {prefix}_{body}0mLq18")), Vec::<&str>::new());
    }
}

#[test]
fn a_position_names_lines_and_bytes_from_one() {
    let key = private_key("RSA ");
    let findings = Rules::builtin().scan(format!("a\nb\n  {key}").as_bytes());
    assert_eq!(
        findings,
        [Finding {
            rule: "private-key",
            line: 3,
            line_end: 6,
            column: 3,
            offset: 6,
            through: Through::default(),
            mark: None
        }]
    );
}

/// What software puts right before a token, which ends in a letter or a digit and is no part of it.
const BEFORE: [&str; 17] = [
    "\\n",
    "\\t",
    "\\r\\n",
    "\\\\n",
    "\\\\\\\\n",
    "\\0",
    "\\x1e",
    "\\u000a",
    "\\u001b[32m",
    "\\\\u001B[1;31m",
    "\\x1b[0m",
    "\\033[01;31m\\033[K",
    "\\e[m",
    "^[[32m",
    "\u{1b}[32m",
    "\u{1b}[1;31m",
    "\u{1b}[01;31m\u{1b}[K",
];

#[test]
fn a_token_right_behind_an_escape_or_a_colour_is_found() {
    for (rule, text) in specimens() {
        for before in BEFORE {
            let findings = Rules::builtin().scan(format!("{{\"a\":\"x{before}{text}\\nz\"}}").as_bytes());
            // What takes the rest of its line for a part of it sees the end of this one elsewhere.
            let alone = Rules::builtin().scan(format!("{{\"a\":\"x {text}\\nz\"}}").as_bytes());
            let rules = |findings: &[Finding]| findings.iter().map(|found| found.rule).collect::<Vec<_>>();
            assert_eq!(rules(&findings), rules(&alone), "{rule} behind {before:?}");
        }
    }
}

#[test]
fn the_formats_alone_know_a_token_behind_an_escape() {
    let text = format!("$ cat token\\nglpat{}{}\\n", "-", alnum(20));
    let findings = Rules::formats().scan(text.as_bytes());
    assert_eq!(
        findings.iter().map(|found| (found.rule, found.offset)).collect::<Vec<_>>(),
        [("gitlab-pat", 13)]
    );
}

#[test]
fn a_token_between_underscores_is_found_and_one_inside_a_name_is_not() {
    let stripe = format!("sk{}{}", "_live_", alnum(24));
    for text in [format!("_{stripe}_"), format!("see __{stripe}__."), format!("\\n_{stripe}_ and")] {
        assert_eq!(found(&text), ["stripe-access-token"], "{text}");
    }
    // One that has in it what emphasis ends with.
    let gitlab = format!("glpat{}{}_-{}", "-", alnum(8), alnum(11));
    for text in [format!("_{gitlab}_"), format!("see _{gitlab} ")] {
        assert_eq!(found(&text), ["gitlab-pat"], "{text}");
    }
    for text in
        [format!("name_{stripe}"), format!("______{stripe}"), format!("x{stripe}"), format!("\\w{stripe}")]
    {
        assert_eq!(found(&text), Vec::<&str>::new(), "{text}");
    }
}

#[test]
fn a_length_right_before_a_token_is_no_part_of_it_when_it_is_its_length() {
    let key = format!("sk-{}-api03-{}AA", "ant", alnum(93));
    let field = |tag: u8, length: usize| {
        [&[0x0a, tag, u8::try_from(length).unwrap_or(0)], key.as_bytes(), b"\x1a\x04text"].concat()
    };
    let found =
        |bytes: &[u8]| Rules::builtin().scan(bytes).iter().map(|found| found.rule).collect::<Vec<_>>();
    for tag in [0x12, 0xd9, b'x'] {
        assert_eq!(found(&field(tag, key.len())), ["anthropic-api-key"], "{tag:x}");
        assert_eq!(found(&field(tag, key.len() + 1)), Vec::<&str>::new(), "{tag:x}");
    }
    assert_eq!(found(&field(b'a', key.len())), Vec::<&str>::new());
}

/// What stands before and behind a text of so many bytes in what software writes.
fn surroundings(length: usize) -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let low = u8::try_from(length & 0xff).unwrap_or(0);
    let high = u8::try_from(length >> 8).unwrap_or(0);
    let varint = match u8::try_from(length) {
        Ok(one @ ..0x80) => vec![one],
        _ => vec![low | 0x80, u8::try_from(length >> 7).unwrap_or(0)],
    };
    let field = |tag: u8| [&[0x08, 0x01, tag][..], &varint].concat();
    let message_pack = match u8::try_from(length) {
        Ok(one) => vec![0xd9, one],
        Err(_) => vec![0xda, high, low],
    };
    let cbor = match u8::try_from(length) {
        Ok(one @ ..24) => vec![0x60 + one],
        Ok(one) => vec![0x78, one],
        Err(_) => vec![0x79, high, low],
    };
    let mut all = vec![
        ("the start of a text", Vec::new(), Vec::new()),
        ("quotation marks", b"\"".to_vec(), b"\"".to_vec()),
        ("line ends in JSON", b"{\"a\":\"x\\n".to_vec(), b"\\nz\"}".to_vec()),
        ("underscores", b"_".to_vec(), b"_".to_vec()),
        ("an underscore before it", b"see _".to_vec(), b" ".to_vec()),
        ("a low byte", b"\x05\x06".to_vec(), b"\x07".to_vec()),
        ("a high byte", b"\x0a\x85".to_vec(), b"\x85".to_vec()),
        ("a colour", b"x\x1b[31m".to_vec(), b"\x1b[0m".to_vec()),
        ("MessagePack", [b"\x92", &message_pack[..]].concat(), b"Az".to_vec()),
        ("CBOR", [b"\x82", &cbor[..]].concat(), b"eother".to_vec()),
        ("a big endian length", [b"ab\0\0", &[high, low][..]].concat(), b"z\x01".to_vec()),
        ("a little endian length", [b"ab", &[low, high][..], &[0; 6]].concat(), b"J\0\0\0\0\0\0\0".to_vec()),
        ("a short little endian length", [b"ab", &[low, high][..], &[0; 2]].concat(), b"J\0\0\0".to_vec()),
    ];
    for tag in *b"\x12\x1a\"*2:BJRZbjrz" {
        all.push(("a field before a field", field(tag), vec![tag, 1, b'x']));
    }
    all
}

#[test]
fn a_token_is_found_wherever_software_puts_it() {
    let mut missed = Vec::new();
    for (rule, text) in specimens() {
        let formats: Vec<&str> =
            Rules::formats().scan(text.as_bytes()).iter().map(|found| found.rule).collect();
        // Behind its name a value is not the whole of its field.
        if formats != [rule] || rule == "aws-secret-access-key" {
            continue;
        }
        let text = text.strip_prefix("twilio: ").unwrap_or(&text);
        for (name, before, behind) in surroundings(text.len()) {
            let whole = [&before, text.as_bytes(), &behind].concat();
            let found = Rules::formats().scan(&whole);
            if !found.iter().any(|found| found.rule == rule && found.through.is_nothing()) {
                missed.push(format!(
                    "{rule} in {name}, before {:?}",
                    behind.first().map(|byte| char::from(*byte))
                ));
            }
        }
    }
    assert_eq!(missed, Vec::<String>::new());
}

#[test]
fn no_rule_that_minds_its_neighbours_is_asked_with_others() {
    let rules = Rules::builtin();
    for gate in &rules.gates {
        for compiled in &rules.rules[usize::from(gate.rules.start)..usize::from(gate.rules.end)] {
            assert!(
                !matches!(&compiled.search, Search::Anchored(rule, _) if rule.is_bounded()),
                "{}",
                compiled.id
            );
        }
    }
}

/// Code for x86-64 is padded so, and stands there in base64.
#[test]
fn many_zeros_before_other_bytes_in_base64_are_no_token() {
    assert_eq!(found(&format!("Dx+/EAAAA{}", alnum(60))), Vec::<&str>::new());
    assert_eq!(found(&format!("EAAA{}", alnum(60))), ["square-production-token"]);
}

#[test]
fn several_secrets_are_reported_in_order() {
    let stripe = format!("sk{}{}", "_live_", alnum(24));
    assert_eq!(
        found(&format!("{stripe}\n{}{stripe}", private_key(""))),
        ["stripe-access-token", "private-key", "stripe-access-token"]
    );
}

#[test]
fn utf16_text_is_read_in_both_orders_with_and_without_a_mark() {
    let text = format!("one\nkey: glpat{}{}\n", "-", alnum(20));
    let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let marked = [&[0xff, 0xfe][..], &little].concat();
    let wide = Through::default().and(Coding::Utf16).unwrap_or_default();
    for (bytes, offset) in [(&little, 18), (&big, 18), (&marked, 20)] {
        let expected = Finding {
            rule: "gitlab-pat",
            line: 2,
            line_end: 2,
            column: 6,
            offset,
            through: wide,
            mark: None,
        };
        assert_eq!(Rules::builtin().scan(bytes), [expected]);
    }
}

#[test]
fn a_start_that_looks_like_utf16_hides_nothing() {
    let text = format!("key: glpat{}{}\n", "-", alnum(20));
    let wide: Vec<u8> = "x".repeat(5000).encode_utf16().flat_map(u16::to_le_bytes).collect();
    for start in [&[0xff, 0xfe][..], &[0xfe, 0xff], &wide] {
        let findings = Rules::builtin().scan(&[start, text.as_bytes()].concat());
        assert_eq!(
            findings.iter().map(|f| (f.rule, f.offset)).collect::<Vec<_>>(),
            [("gitlab-pat", start.len() + 5)]
        );
    }
}

#[test]
fn a_key_in_a_json_string_is_found() {
    let key = private_key("").replace('\n', "\\n");
    assert_eq!(found(&format!("{{\"private_key\": \"{key}\"}}")), ["private-key"]);
}

#[test]
fn the_zero_bytes_at_the_start_of_an_openssh_key_are_no_placeholder() {
    let line = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gt";
    assert_eq!(found(&format!("-----BEGIN OPENSSH PRIVATE {}-----\n{line}\n", "KEY")), ["private-key"]);
}

#[test]
fn a_key_without_its_last_line_is_found() {
    let key = private_key("EC ");
    let cut = key.split("-----END").next().expect("a key has an end");
    assert_eq!(found(cut), ["private-key"]);
}

#[test]
fn public_and_placeholder_values_do_not_fire() {
    let base64 = alnum(64);
    for text in [
        format!("-----BEGIN PUBLIC KEY-----\n{base64}\n-----END PUBLIC KEY-----\n"),
        format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n"),
        format!("-----BEGIN PRIVATE {}-----\n...\n-----END PRIVATE KEY-----\n", "KEY"),
        format!("if line.contains(\"-----BEGIN PRIVATE {}-----\") {{", "KEY"),
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH".into(),
        format!("AK{}IOSFODNN7EXAMPLE", "IA"),
        "GITHUB_TOKEN=ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx".into(),
        "token: \"${GITHUB_TOKEN_FROM_ENV_1}\"".into(),
        "api_key = \"<your-api-key-goes-here-1>\"".into(),
        "api_key = \"YOUR_API_KEY_HERE_12345\"".into(),
        "\"integrity\": \"sha512-q8Zr2LkT0vWcN5mYx1JdB7sHfG3aPeq8Zr2LkT0vWcN5mYx1JdB7sHfG3aPe==\"".into(),
        "checksum = \"da39a3ee5e6b4b0d3255bfef95601890afd80709da39a3ee5e6b4b0d3255bfef\"".into(),
        "token: \"3f2504e0-4f89-11d3-9a0c-0305e82c3301\"".into(),
        "secret_name = \"projects/acme-prod/secrets/db-1\"".into(),
        "let token = self.tokens.next_token_after_position1();".into(),
        "postgres://postgres:postgres@localhost/db".into(),
        "https://user:password@example.com/".into(),
        "https://${USER}:${PASSWORD}@host/".into(),
        "git clone https://x-access-token:$TOKEN@github.com/a/b".into(),
        "http://[::1]:8080/a@b".into(),
    ] {
        assert_eq!(found(&text), Vec::<&str>::new(), "{text}");
    }
}

#[test]
fn a_comment_that_asks_to_be_ignored_has_no_power() {
    let text = format!("glpat{}{} # gitleaks:allow nosec pragma: allowlist secret", "-", alnum(20));
    assert_eq!(found(&text), ["gitlab-pat"]);
}

#[test]
fn a_secret_far_inside_a_long_line_is_found() {
    let noise = "lorem ipsum dolor sit amet ".repeat(40_000);
    let text = format!("{noise}glpat{}{} {noise}", "-", alnum(20));
    assert_eq!(found(&text), ["gitlab-pat"]);
}

proptest! {
    #[test]
    fn any_bytes_are_scanned_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        Rules::builtin().scan(&bytes);
    }

    #[test]
    fn keyword_soup_is_scanned_without_panic(words in prop::collection::vec(prop::sample::select(vec![
        "-----BEGIN ", "PRIVATE KEY-----", "-----END", "ghp_", "eyJ", ".", "://", ":", "@", "secret", "=", "\"", "\n", "AKIA", "\0", "aaaaaaaaaaaaaaaaaaaaaaaa", "Q7x9",
    ]), 0..80)) {
        Rules::builtin().scan(words.concat().as_bytes());
    }

    #[test]
    fn line_column_and_offset_agree_wherever_the_secret_stands(before in "[ a-z\n]{0,200}", after in "[ a-z\n]{0,50}") {
        let secret = format!("glpat{}{}", "-", alnum(20));
        let text = format!("{before} {secret} {after}");
        let findings = Rules::builtin().scan(text.as_bytes());
        prop_assert_eq!(findings.len(), 1);
        let at = before.len() + 1;
        let line = text[..at].matches('\n').count() as u32 + 1;
        let column = (at - text[..at].rfind('\n').map_or(0, |n| n + 1)) as u32 + 1;
        let expected = Finding { rule: "gitlab-pat", line, line_end: line, column, offset: at, through: Through::default(), mark: None };
        prop_assert_eq!(findings[0], expected);
    }
}
