//! Any text parses or is refused with positions; what parses renders to text without control characters.

#![no_main]

use libfuzzer_sys::fuzz_target;
use repos::{Allow, Repos, gitconfig};

fuzz_target!(|text: &str| {
    for allow in [Allow::SshUpstream, Allow::LocalUpstream] {
        match Repos::parse("repos.yaml", text, allow) {
            Ok(repos) => {
                let config = gitconfig(&repos, "git://git-gate");
                let plain = |character: char| matches!(character, '\n' | '\t') || !character.is_control();
                assert!(config.chars().all(plain), "{config:?}");
            }
            Err(diagnostics) => assert!(diagnostics.to_string().starts_with("repos.yaml:"), "{diagnostics}"),
        }
    }
});
