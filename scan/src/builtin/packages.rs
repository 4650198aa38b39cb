//! Package registries.

use super::{Rule, rule};
use crate::check::Check::Entropy;

pub(super) const RULES: &[Rule] = &[
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
    rule("nuget-api-key", &["oy2"], r"\boy2[a-z0-9]{43}\b", Entropy(3.7)),
    rule("clojars-api-token", &["clojars_"], r"\bCLOJARS_[a-f0-9]{60}\b", Entropy(3.0)),
    rule("artifactory-api-key", &["akcp"], r"\bAKCp[A-Za-z0-9]{69}\b", Entropy(4.0)),
    rule("artifactory-reference-token", &["cmvmdgtu"], r"\bcmVmdGtu[A-Za-z0-9]{56}\b", Entropy(4.0)),
    rule("packagist-token", &["packagist_"], r"\bpackagist_[ou][ru]t_[A-Fa-f0-9]{68}\b", Entropy(3.0)),
];
