//! The rules for published token formats.
//!
//! More specific rules stand before more general ones: of two that match the same place the first
//! is reported. A group named `s` is the secret where the pattern needs something around it.

use crate::check::Check;

/// One rule.
pub(crate) struct Rule {
    pub(crate) id: &'static str,
    /// Lower-case words, one of which occurs in or shortly before every match.
    pub(crate) keywords: &'static [&'static str],
    pub(crate) pattern: &'static str,
    pub(crate) check: Check,
}

const fn rule(
    id: &'static str,
    keywords: &'static [&'static str],
    pattern: &'static str,
    check: Check,
) -> Rule {
    Rule { id, keywords, pattern, check }
}

use Check::{Crc32, Entropy, Generic, Jwt, KeyBody, Password};

/// The table.
pub(crate) const BUILTIN: &[Rule] = &[
    // Private keys.
    rule("private-key", &["private key"], r"-----BEGIN[A-Z0-9 ]{0,40} PRIVATE KEY(?: BLOCK)?-----", KeyBody),
    rule(
        "putty-private-key",
        &["private-lines"],
        r"Private-Lines: [0-9]{1,3}\r?\n(?P<s>[A-Za-z0-9+/=]{40,64})",
        Entropy(3.5),
    ),
    rule(
        "age-secret-key",
        &["age-secret-key-1"],
        r"AGE-SECRET-KEY-1[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{58}\b",
        Entropy(3.5),
    ),
    // Forges.
    rule("github-pat", &["ghp_"], r"\bghp_[A-Za-z0-9]{36}\b", Crc32),
    rule("github-oauth", &["gho_"], r"\bgho_[A-Za-z0-9]{36}\b", Crc32),
    rule("github-app-token", &["ghu_", "ghs_"], r"\bgh[us]_[A-Za-z0-9]{36}\b", Crc32),
    rule("github-refresh-token", &["ghr_"], r"\bghr_[A-Za-z0-9]{36,76}\b", Crc32),
    rule(
        "github-fine-grained-pat",
        &["github_pat_"],
        r"\bgithub_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}\b",
        Entropy(4.0),
    ),
    rule(
        "gitlab-pat",
        &["glpat-"],
        r"\bglpat-[A-Za-z0-9_-]{20,300}(?:\.[0-9a-z]{2}\.?[0-9a-z]{7,9})?",
        Entropy(3.5),
    ),
    rule("gitlab-runner-authentication-token", &["glrt-"], r"\bglrt-[A-Za-z0-9_-]{20,300}", Entropy(3.5)),
    rule("gitlab-deploy-token", &["gldt-"], r"\bgldt-[A-Za-z0-9_-]{20,64}", Entropy(3.5)),
    rule("gitlab-ptt", &["glptt-"], r"\bglptt-[0-9a-f]{40}\b", Entropy(3.0)),
    rule("gitlab-cicd-job-token", &["glcbt-"], r"\bglcbt-[0-9a-zA-Z]{1,5}_[0-9a-zA-Z_-]{20}", Entropy(3.5)),
    rule("bitbucket-app-password", &["atbb"], r"\bATBB[A-Za-z0-9]{24}[A-F0-9]{8}\b", Entropy(3.5)),
    // Clouds and platforms.
    rule(
        "aws-access-token",
        &["akia", "asia", "abia", "acca"],
        r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b",
        Entropy(3.0),
    ),
    rule(
        "aws-secret-access-key",
        &["aws_secret", "secretaccesskey", "aws-secret", "secret_access_key"],
        r#"(?i:aws_?secret_?(?:access_?)?key|secret_?access_?key|aws-secret-access-key)["'`]?\s{0,4}(?:[:=]|:=|=>|,)\s{0,4}["'`]?(?P<s>[A-Za-z0-9/+]{40})(?:[^A-Za-z0-9/+=]|$)"#,
        Entropy(4.0),
    ),
    rule("gcp-api-key", &["aiza"], r"\bAIza[A-Za-z0-9_-]{35}(?:[^A-Za-z0-9_-]|$)", Entropy(3.5)),
    rule("gcp-oauth-client-secret", &["gocspx-"], r"\bGOCSPX-[A-Za-z0-9_-]{28}", Entropy(3.5)),
    rule(
        "azure-ad-client-secret",
        &["q~"],
        r#"(?:^|[\s"'`=:,>])(?P<s>[A-Za-z0-9_~.]{3}[0-9]Q~[A-Za-z0-9_~.-]{31,34})(?:$|[\s"'`,;<\\])"#,
        Entropy(3.5),
    ),
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
    ),
    rule("vault-service-token", &["hvs."], r"\bhvs\.[A-Za-z0-9_-]{24,160}", Entropy(3.5)),
    rule("vault-batch-token", &["hvb."], r"\bhvb\.[A-Za-z0-9_-]{138,300}", Entropy(3.5)),
    rule("cloudflare-origin-ca-key", &["v1.0-"], r"\bv1\.0-[a-f0-9]{24}-[a-f0-9]{146}\b", Entropy(3.0)),
    rule(
        "tailscale-auth-key",
        &["tskey-"],
        r"\btskey-(?:auth|api|client|scim|webhook)-[A-Za-z0-9]{8,32}-[A-Za-z0-9]{16,64}\b",
        Entropy(3.5),
    ),
    // Models.
    rule(
        "anthropic-api-key",
        &["sk-ant-"],
        r"\bsk-ant-(?:api|admin|oat|ort)[0-9]{2}-[A-Za-z0-9_-]{80,128}",
        Entropy(4.0),
    ),
    rule(
        "openai-api-key",
        &["t3blbkfj"],
        r"\bsk-(?:(?:proj|svcacct|admin)-)?[A-Za-z0-9_-]{20,80}T3BlbkFJ[A-Za-z0-9_-]{20,80}",
        Entropy(3.5),
    ),
    rule("huggingface-access-token", &["hf_"], r"\bhf_[A-Za-z]{34}\b", Entropy(3.5)),
    rule("groq-api-key", &["gsk_"], r"\bgsk_[A-Za-z0-9]{52}\b", Entropy(4.0)),
    rule("replicate-api-token", &["r8_"], r"\br8_[A-Za-z0-9]{37}\b", Entropy(3.5)),
    rule("perplexity-api-key", &["pplx-"], r"\bpplx-[A-Za-z0-9]{48}\b", Entropy(4.0)),
    rule("xai-api-key", &["xai-"], r"\bxai-[A-Za-z0-9]{70,90}\b", Entropy(4.0)),
    // Packages.
    rule("npm-access-token", &["npm_"], r"\bnpm_[A-Za-z0-9]{36}\b", Entropy(3.5)),
    rule(
        "pypi-upload-token",
        &["pypi-ag"],
        r"\bpypi-Ag(?:EIcHlwaS5vcmc|ENdGVzdC5weXBpLm9yZw)[A-Za-z0-9_-]{50,1000}",
        Entropy(3.5),
    ),
    rule("rubygems-api-token", &["rubygems_"], r"\brubygems_[a-f0-9]{48}\b", Entropy(3.0)),
    rule("crates-io-api-token", &["cio"], r"\bcio[A-Za-z0-9]{32}\b", Entropy(4.2)),
    rule("docker-hub-pat", &["dckr_"], r"\bdckr_(?:pat|oat)_[A-Za-z0-9_-]{27,32}", Entropy(3.5)),
    // Payment, messages, services.
    rule(
        "stripe-access-token",
        &["sk_live_", "sk_test_", "sk_prod_", "rk_live_", "rk_test_", "rk_prod_"],
        r"\b[sr]k_(?:live|test|prod)_[A-Za-z0-9]{16,128}\b",
        Entropy(3.0),
    ),
    rule(
        "square-access-token",
        &["sq0atp-", "sq0csp-"],
        r"\bsq0(?:atp|csp)-[A-Za-z0-9_-]{22,43}",
        Entropy(3.5),
    ),
    rule("shopify-access-token", &["shpat_"], r"\bshpat_[a-fA-F0-9]{32}\b", Entropy(3.0)),
    rule("shopify-custom-access-token", &["shpca_"], r"\bshpca_[a-fA-F0-9]{32}\b", Entropy(3.0)),
    rule("shopify-private-app-access-token", &["shppa_"], r"\bshppa_[a-fA-F0-9]{32}\b", Entropy(3.0)),
    rule("shopify-shared-secret", &["shpss_"], r"\bshpss_[a-fA-F0-9]{32}\b", Entropy(3.0)),
    rule("slack-bot-token", &["xoxb-"], r"\bxoxb-[0-9]{8,14}-[0-9A-Za-z-]{18,64}", Entropy(3.0)),
    rule(
        "slack-user-token",
        &["xoxp-", "xoxe-"],
        r"\bxox[pe]-(?:[0-9]{8,14}-){2,3}[0-9A-Za-z-]{24,64}",
        Entropy(3.0),
    ),
    rule(
        "slack-app-token",
        &["xapp-"],
        r"\bxapp-[0-9]-[A-Z0-9]{8,16}-[0-9]{8,16}-[a-z0-9]{32,80}\b",
        Entropy(3.0),
    ),
    rule(
        "slack-webhook-url",
        &["hooks.slack.com"],
        r"\bhooks\.slack\.com/(?:services|workflows|triggers)/(?P<s>[A-Za-z0-9+/]{40,60})",
        Entropy(3.5),
    ),
    rule(
        "discord-webhook-url",
        &["/api/webhooks/"],
        r"\bdiscord(?:app)?\.com/api/webhooks/[0-9]{17,20}/(?P<s>[A-Za-z0-9_-]{60,80})",
        Entropy(4.0),
    ),
    rule(
        "telegram-bot-api-token",
        &[":aa"],
        r"(?:^|[^0-9A-Za-z])(?P<s>[0-9]{8,10}:AA[A-Za-z0-9_-]{33})(?:[^A-Za-z0-9_-]|$)",
        Entropy(3.5),
    ),
    rule("twilio-api-key", &["twilio"], r"\bSK[0-9a-f]{32}\b", Entropy(3.0)),
    rule("sendgrid-api-token", &["sg."], r"\bSG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}", Entropy(4.0)),
    rule("mailgun-private-api-token", &["key-"], r"\bkey-[a-f0-9]{32}\b", Entropy(3.0)),
    rule("linear-api-key", &["lin_api_"], r"\blin_api_[A-Za-z0-9]{40}\b", Entropy(3.5)),
    rule(
        "grafana-service-account-token",
        &["glsa_"],
        r"\bglsa_[A-Za-z0-9]{32}_[A-Fa-f0-9]{8}\b",
        Entropy(3.5),
    ),
    rule("grafana-cloud-api-token", &["glc_ey"], r"\bglc_eyJ[A-Za-z0-9+/=]{60,400}", Entropy(3.5)),
    rule(
        "sentry-auth-token",
        &["sntrys_", "sntryu_"],
        r"\bsntry(?:s_eyJ[A-Za-z0-9+/=_-]{60,300}|u_[a-f0-9]{64}\b)",
        Entropy(3.0),
    ),
    rule("postman-api-token", &["pmak-"], r"\bPMAK-[a-fA-F0-9]{24}-[a-fA-F0-9]{34}\b", Entropy(3.0)),
    rule("new-relic-user-api-key", &["nrak-"], r"\bNRAK-[A-Z0-9]{27}\b", Entropy(3.0)),
    rule("dynatrace-api-token", &["dt0c01."], r"\bdt0c01\.[A-Z0-9]{24}\.[A-Z0-9]{64}\b", Entropy(3.5)),
    rule("atlassian-api-token", &["atatt3"], r"\bATATT3[A-Za-z0-9_=-]{180,200}", Entropy(4.0)),
    rule("facebook-access-token", &["eaac", "eaam"], r"\bEAA[MC][A-Za-z0-9]{100,255}\b", Entropy(4.0)),
    // Forms that carry a secret of any kind.
    rule(
        "jwt",
        &["eyj"],
        r"\beyJ[A-Za-z0-9_-]{14,2000}\.eyJ[A-Za-z0-9_-]{10,8000}\.[A-Za-z0-9_-]{20,2000}",
        Jwt,
    ),
    rule(
        "basic-auth-url",
        &["://"],
        r#"\b[A-Za-z][A-Za-z0-9+.-]{1,24}://[^\s/:@"'<>`\\]{0,100}:(?P<s>[^\s/@"'<>`\\]{6,200})@[A-Za-z0-9\[][A-Za-z0-9.:\]-]{0,252}"#,
        Password,
    ),
    rule(
        "npmrc-auth-token",
        &["_authtoken"],
        r#":_authToken\s{0,4}=\s{0,4}"?(?P<s>[A-Za-z0-9+/=_.-]{16,200})"#,
        Entropy(3.0),
    ),
    rule(
        "netrc-password",
        &["machine"],
        r"\bmachine\s{1,8}[^\s]{1,253}\s{1,8}login\s{1,8}[^\s]{1,100}\s{1,8}password\s{1,8}(?P<s>[^\s]{8,200})",
        Password,
    ),
    rule(
        "generic-api-key",
        &[
            "api_key",
            "apikey",
            "api-key",
            "secret",
            "token",
            "passwd",
            "password",
            "access_key",
            "accesskey",
            "auth_key",
            "credential",
            "private_key",
            "client_key",
        ],
        r#"(?i:api[_-]?key|secret|token|passwd|password|access[_-]?key|auth[_-]?key|credentials?|(?:private|client)_key)[A-Za-z0-9_-]{0,24}["'`]?\]?\s{0,4}(?:=>|:=|==|=|:)\s{0,4}(?:["'`](?P<s>[A-Za-z0-9+/=_.~!@#%^&*-]{16,160})["'`])"#,
        Generic,
    ),
];
