//! Clouds and platforms.

use super::{Rule, rule};
use crate::check::Check::{Entropy, Mixed};

pub(super) const RULES: &[Rule] = &[
    rule(
        "aws-access-token",
        &["akia", "asia", "abia", "acca"],
        r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b",
        Entropy(3.0),
    ),
    rule(
        "aws-secret-access-key",
        &["aws_secret", "awssecret", "aws-secret", "secretaccesskey", "secretaccess_key", "secret_access"],
        r#"(?i:aws_?secret_?(?:access_?)?key|secret_?access_?key|aws-secret-access-key)\\?["'`]?\s{0,4}(?:[:=]|:=|=>|,)\s{0,4}\\?["'`]?(?P<s>[A-Za-z0-9/+]{40})(?:[^A-Za-z0-9/+=]|$)"#,
        Entropy(4.0),
    ),
    rule("gcp-api-key", &["aiza"], r"\bAIza[A-Za-z0-9_-]{35}(?:[^A-Za-z0-9_-]|$)", Entropy(3.5)),
    rule("gcp-oauth-client-secret", &["gocspx-"], r"\bGOCSPX-[A-Za-z0-9_-]{28}", Entropy(3.5)),
    rule(
        "azure-ad-client-secret",
        &["q~"],
        r#"(?:^|[\s"'`=:,>])(?P<s>[A-Za-z0-9_~.]{3}[0-9]Q~[A-Za-z0-9_~.-]{31,34})(?:$|[\s"'`,;<\\])"#,
        Entropy(3.5),
    )
    .lead(4, 5),
    rule("azure-storage-key", &["accountkey="], r"(?i:AccountKey)=(?P<s>[A-Za-z0-9+/]{86}==)", Entropy(4.5)),
    rule("digitalocean-pat", &["dop_v1_"], r"\bdop_v1_[a-f0-9]{64}\b", Entropy(3.0)),
    rule("digitalocean-access-token", &["doo_v1_"], r"\bdoo_v1_[a-f0-9]{64}\b", Entropy(3.0)),
    rule("digitalocean-refresh-token", &["dor_v1_"], r"(?i:\bdor_v1_[a-f0-9]{64}\b)", Entropy(3.0)),
    rule("databricks-api-token", &["dapi"], r"\bdapi[a-f0-9]{32}(?:-[0-9])?\b", Entropy(3.0)),
    rule("doppler-api-token", &["dp.pt."], r"\bdp\.pt\.[A-Za-z0-9]{40,44}\b", Entropy(3.5)),
    rule("flyio-access-token", &["fo1_"], r"\bfo1_[A-Za-z0-9_-]{43}", Entropy(3.5)),
    rule(
        "planetscale-api-token",
        &["pscale_"],
        r"\bpscale_(?:tkn|pw|oauth)_[A-Za-z0-9_=.-]{32,64}",
        Entropy(3.5),
    ),
    rule("pulumi-api-token", &["pul-"], r"\bpul-[a-f0-9]{40}\b", Entropy(3.0)),
    rule(
        "hashicorp-tf-api-token",
        &[".atlasv1."],
        r"\b[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{60,70}",
        Entropy(3.5),
    )
    .lead(14, 14),
    rule("vault-service-token", &["hvs."], r"\bhvs\.[A-Za-z0-9_-]{24,160}", Entropy(3.5)),
    rule("vault-batch-token", &["hvb."], r"\bhvb\.[A-Za-z0-9_-]{138,300}", Entropy(3.5)),
    rule("cloudflare-origin-ca-key", &["v1.0-"], r"\bv1\.0-[a-f0-9]{24}-[a-f0-9]{146}\b", Entropy(3.0)),
    rule(
        "tailscale-auth-key",
        &["tskey-"],
        r"\btskey-(?:auth|api|client|scim|webhook)-[A-Za-z0-9]{8,32}-[A-Za-z0-9]{16,64}\b",
        Entropy(3.5),
    ),
    rule("aws-bedrock-api-key", &["absk"], r"\bABSK[A-Za-z0-9+/]{109,269}={0,2}", Entropy(4.0)),
    rule("gcp-oauth-access-token", &["ya29."], r"\bya29\.[A-Za-z0-9_-]{30,400}", Entropy(4.0)),
    rule("gcp-oauth-refresh-token", &["1//0"], r"\b1//0[A-Za-z0-9_-]{40,200}", Entropy(4.0)),
    rule("azure-devops-pat", &["azdo"], r"\b[A-Za-z0-9]{76}AZDO[A-Za-z0-9]{4}\b", Entropy(4.0)).lead(76, 76),
    rule(
        "azure-shared-access-key",
        &["sharedaccesskey="],
        r"(?i:SharedAccessKey)=(?P<s>[A-Za-z0-9+/]{43}=)",
        Entropy(4.0),
    ),
    rule(
        "azure-sas-signature",
        &["&sig=", "?sig=", ";sig="],
        r"[&?;]sig=(?P<s>(?:[A-Za-z0-9/+]|%2[BbFf]){43,60}(?:=|%3[Dd]))",
        Entropy(4.0),
    ),
    rule("alibaba-access-key-id", &["ltai"], r"\bLTAI[A-Za-z0-9]{17,21}\b", Entropy(3.7)),
    rule("tencent-secret-id", &["akid"], r"\bAKID[A-Za-z0-9]{32}\b", Entropy(4.0)),
    rule("yandex-api-key", &["aqvn"], r"\bAQVN[A-Za-z0-9_-]{35,38}", Entropy(4.0)),
    rule("heroku-api-key", &["hrku-aa"], r"\bHRKU-AA[A-Za-z0-9_-]{58}", Entropy(4.0)),
    rule("netlify-access-token", &["nfp_"], r"\bnfp_[A-Za-z0-9]{36,40}\b", Entropy(3.7)),
    rule("render-api-key", &["rnd_"], r"\brnd_[A-Za-z0-9]{28,32}\b", Entropy(3.7)),
    rule("supabase-access-token", &["sbp_"], r"\bsbp_[a-f0-9]{40}\b", Entropy(3.0)),
    rule("supabase-secret-key", &["sb_secret_"], r"\bsb_secret_[A-Za-z0-9_-]{22,44}", Entropy(3.7)),
    rule("neon-api-key", &["napi_"], r"\bnapi_[a-z0-9]{64}\b", Entropy(3.7)),
    rule(
        "flyio-macaroon",
        &["fm1r_", "fm1a_", "fm2_"],
        r"\bfm(?:1[ra]|2)_[A-Za-z0-9+/=]{100,2000}",
        Entropy(4.0),
    ),
    rule(
        "doppler-service-token",
        &["dp."],
        r"\bdp\.(?:st|ct|sa|scim|audit)\.(?:[a-z0-9._-]{1,60}\.)?[A-Za-z0-9]{40,44}\b",
        Entropy(3.5),
    ),
    rule("vault-legacy-token", &["s."], r"\bs\.[A-Za-z0-9]{24}\b", Mixed).alone(),
    rule("onepassword-service-token", &["ops_eyj"], r"\bops_eyJ[A-Za-z0-9+/]{200,2000}={0,3}", Entropy(4.0)),
    rule(
        "onepassword-secret-key",
        &["a3-"],
        r"\bA3-[A-Z0-9]{6}-(?:[A-Z0-9]{11}|[A-Z0-9]{6}-[A-Z0-9]{5})-[A-Z0-9]{5}-[A-Z0-9]{5}-[A-Z0-9]{5}\b",
        Entropy(3.8),
    ),
    rule("prefect-api-key", &["pnu_"], r"\bpnu_[A-Za-z0-9]{36}\b", Entropy(3.7)),
    rule("infracost-api-key", &["ico-"], r"\bico-[A-Za-z0-9]{32}\b", Entropy(3.7)),
];

/// Of no form of their own: the name beside them tells.
pub(super) const NAMED: &[Rule] = &[
    rule(
        "aws-session-token",
        &["session_token", "sessiontoken", "session-token", "security-token", "security_token"],
        r#"(?i:(?:session|security)[_-]?token)\\?["'`]?\s{0,4}(?:[:=]|=>)\s{0,4}\\?["'`]?(?P<s>[A-Za-z0-9/+=]{100,2000})"#,
        Entropy(4.5),
    ),
    // An older key is a UUID like any other, so only its name tells.
    rule(
        "heroku-legacy-api-key",
        &["heroku"],
        concat!(
            r"(?i:heroku[_-]?(?:api[_-]?key|api[_-]?token|oauth[_-]?token|auth[_-]?token|secret))",
            r"(?:[^A-Za-z0-9]{1,60}value[^A-Za-z0-9]{1,6}|[^A-Za-z0-9\r\n]{1,12})",
            r"(?P<s>[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12})\b"
        ),
        Entropy(3.0),
    ),
];
