//! The agents that are known by name: what each needs to work in a bottle.

use std::path::PathBuf;

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::addresses::Addresses;
use crate::manifest::Name;

/// Who is to live in the bottle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// A shell, which reaches nothing until you write it down
    Shell,
    /// Claude Code: the Anthropic API, with your key put in outside the bottle
    ClaudeCode,
    /// Codex: the OpenAI API, with your key put in outside the bottle
    Codex,
}

const NO_ROUTES: &str = "routes: []\n";
/// What stands where a program wants a key: egress takes it out and puts the real one in.
const PLACEHOLDER: &str = "in-the-bottle-this-is-a-placeholder";

impl Preset {
    /// The variable that its key comes from, and the secret's name.
    #[must_use]
    pub fn variable(self) -> Option<&'static str> {
        match self {
            Preset::Shell => None,
            Preset::ClaudeCode => Some("ANTHROPIC_API_KEY"),
            Preset::Codex => Some("OPENAI_API_KEY"),
        }
    }

    /// The command that starts it.
    #[must_use]
    pub fn command(self) -> &'static str {
        match self {
            Preset::Shell => "bash",
            Preset::ClaudeCode => "claude",
            Preset::Codex => "codex",
        }
    }

    /// The routes that it needs, as routes.yaml.
    #[must_use]
    pub fn needs(self) -> &'static str {
        match self {
            Preset::Shell => NO_ROUTES,
            Preset::ClaudeCode => {
                "\
routes:
  - host: api.anthropic.com
    matches:
      - paths: [{type: prefix, value: /v1}]
        methods: [GET, POST]
    auth_scheme: header:x-api-key
    token_env: ANTHROPIC_API_KEY
    # What the agent has read goes along in its messages. One with a key or token of a known form is refused with `secret-detected`: better
    # taken out of what it reads. `own_credential_only: false` lets it pass to this host, and the agent's own credential headers too.
"
            }
            Preset::Codex => {
                "\
routes:
  - host: api.openai.com
    matches:
      - paths: [{type: prefix, value: /v1}]
        methods: [GET, POST]
    auth_scheme: bearer
    token_env: OPENAI_API_KEY
    # What the agent has read goes along in its messages. One with a key or token of a known form is refused with `secret-detected`: better
    # taken out of what it reads. `own_credential_only: false` lets it pass to this host, and the agent's own credential headers too.
"
            }
        }
    }

    /// The variables that it needs, where the manifest does not set them.
    #[must_use]
    pub fn variables(self) -> Vec<(&'static str, &'static str)> {
        match self {
            Preset::Shell => Vec::new(),
            // What it does besides answering (telemetry, its own updates) goes to hosts that no route names.
            Preset::ClaudeCode => vec![
                ("ANTHROPIC_API_KEY", PLACEHOLDER),
                ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
                ("DISABLE_AUTOUPDATER", "1"),
            ],
            Preset::Codex => vec![("OPENAI_API_KEY", PLACEHOLDER), ("CODEX_API_KEY", PLACEHOLDER)],
        }
    }

    /// Where in the home it looks for what it is told at its start.
    #[must_use]
    pub fn prompt_file(self) -> Option<&'static str> {
        match self {
            Preset::Shell => None,
            Preset::ClaudeCode => Some(".claude/CLAUDE.md"),
            Preset::Codex => Some(".codex/AGENTS.md"),
        }
    }

    /// Where in the home it looks for skills.
    #[must_use]
    pub fn skills_directory(self) -> &'static str {
        match self {
            Preset::Shell => "skills",
            Preset::ClaudeCode => ".claude/skills",
            Preset::Codex => ".codex/skills",
        }
    }

    /// A file of the home that registers the MCP server, where the common ones do not.
    #[must_use]
    pub fn registration(self, addresses: &Addresses) -> Option<(PathBuf, String)> {
        match self {
            Preset::Shell | Preset::ClaudeCode => None,
            Preset::Codex => Some((
                ".codex/config.toml".into(),
                format!("[mcp_servers.bottlecap]\nurl = \"{}\"\n", addresses.mcp()),
            )),
        }
    }

    /// A first manifest.
    #[must_use]
    pub fn manifest(self, name: &Name) -> String {
        let secrets = match self.variable() {
            None => "\
# secrets:                                # read on the host when the bottle starts; the bottle never sees them
#   EGRESS_TOKEN_0: {env: GITHUB_TOKEN}   # or {file: PATH}, {command: [pass, show, github]}; routes.yaml names it
"
            .to_owned(),
            Some(variable) => format!(
                "\
secrets:                                  # read on the host when the bottle starts; the bottle never sees them
  {variable}: {{env: {variable}}}         # or {{file: PATH}}, {{command: [pass, show, NAME]}}, {{keyring: {{service: NAME}}}}
"
            ),
        };
        let preset = self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        format!(
            "\
# What the bottle is made of. Paths are relative to this file. `bottlecap schema` prints the schema for your editor.
name: {name}
# extends: base                           # another of your bottles: what stands here goes before what stands there
routes: routes.yaml                       # what it may reach; without it, what the preset needs
# repos: repos.yaml                       # the git repositories it may use
{secrets}agent:
  preset: {preset}
#   prompt: prompt.md                     # what it is told at its start
#   skills: [skills/review]               # directories with a SKILL.md
#   git: {{name: Agent, email: agent@example.com}}
# env: {{EDITOR: vi}}                       # variables for the agent
# command: [{command}]                       # where none is given
# mounts: [{{path: /opt/tools}}]           # directories that the agent sees, read-only
# upstream_ca: company-ca.pem             # further certificate authorities for what egress and git-gate connect to
# transparent: true                       # serve programs that ignore proxy variables too
",
            command = self.command(),
        )
    }

    /// First routes.
    #[must_use]
    pub fn routes(self) -> String {
        format!(
            "\
# What may leave the bottle. What is not named here is refused, and the agent is told how to ask.
log: 1                                    # 0 nothing, 1 refusals, 2 every request
{}# - host: api.github.com                  # exact, or \"*.example.com\" for one label in its place
#   matches:
#     - paths: [{{type: prefix, value: /repos/acme}}]
#       methods: [GET]
#   auth_scheme: bearer
#   token_env: EGRESS_TOKEN_0
",
            self.needs()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest;
    use std::path::Path;

    #[test]
    fn every_preset_is_a_bottle_that_can_be_made() {
        let name: Name = "web".parse().expect("a name");
        for preset in Preset::value_variants() {
            let manifest = Manifest::parse("bottle.yaml", &preset.manifest(&name), Path::new("/b"));
            let manifest = manifest.unwrap_or_else(|found| panic!("{preset:?}: {found}"));
            assert_eq!(manifest.agent.preset, Some(*preset));
            let policy = policy::Policy::parse("routes.yaml", &preset.routes());
            let policy = policy.unwrap_or_else(|found| panic!("{preset:?}: {found}"));
            assert!(policy.warnings().is_empty(), "{preset:?}: {:?}", policy.warnings());
            for credential in policy.routes().iter().filter_map(policy::Route::credential) {
                let (policy::SecretRef::Env(secret) | policy::SecretRef::File(secret)) = &credential.secret;
                assert!(manifest.secrets.contains_key(secret.as_str()), "{preset:?}");
            }
        }
    }
}
