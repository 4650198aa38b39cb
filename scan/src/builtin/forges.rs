//! Forges, and what builds from them.

use super::{Rule, rule};
use crate::check::Check::{Crc32, Entropy};

pub(super) const RULES: &[Rule] = &[
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
    rule("gitlab-scim-token", &["glsoat-"], r"\bglsoat-[A-Za-z0-9_-]{20,64}", Entropy(3.5)),
    rule("gitlab-feature-flag-client-token", &["glffct-"], r"\bglffct-[A-Za-z0-9_-]{20,64}", Entropy(3.5)),
    rule("gitlab-incoming-mail-token", &["glimt-"], r"\bglimt-[A-Za-z0-9_-]{20,64}", Entropy(3.5)),
    rule("gitlab-kubernetes-agent-token", &["glagent-"], r"\bglagent-[A-Za-z0-9_-]{50,1024}", Entropy(3.5)),
    rule("gitlab-oauth-app-secret", &["gloas-"], r"\bgloas-[a-f0-9]{64}\b", Entropy(3.0)),
    rule("gitlab-runner-registration-token", &["gr1348941"], r"\bGR1348941[A-Za-z0-9_-]{20}", Entropy(3.5)),
    rule("buildkite-token", &["bkua_"], r"\bbkua_[a-f0-9]{40}\b", Entropy(3.0)),
    rule("circleci-token", &["ccipat_"], r"\bCCIPAT_[A-Za-z0-9]{22}_[a-f0-9]{40}\b", Entropy(3.5)),
    rule(
        "sourcegraph-access-token",
        &["sgp_"],
        r"\bsgp_(?:(?:[a-f0-9]{16}|local)_)?[a-f0-9]{40}\b",
        Entropy(3.0),
    ),
    rule("sonar-token", &["sqp_", "squ_", "sqa_"], r"\bsq[pua]_[a-f0-9]{40}\b", Entropy(3.0)),
    rule(
        "harness-token",
        &["pat.", "sat."],
        r"\b[ps]at\.[A-Za-z0-9_-]{22}\.[a-f0-9]{24}\.[A-Za-z0-9]{20}\b",
        Entropy(3.5),
    ),
    rule("octopus-api-key", &["api-"], r"\bAPI-[A-Z0-9]{26,32}\b", Entropy(3.5)),
];
