//! Every command in the tutorial and the how-to pages is run, as a person who follows the page would run it.
//!
//! A block of `sh` is run. A block below a line `<!-- file: PATH -->` is written to that file first.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs")
}

/// The program, beside the daemons that it starts.
fn bottlecap() -> PathBuf {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_bottlecap"));
    let daemon = program.with_file_name("supervisor");
    assert!(daemon.exists(), "{} is not built: cargo build --workspace", daemon.display());
    program
}

/// The page as a script.
fn script(page: &str) -> String {
    let mut script = String::from("set -euo pipefail\nset -x\n");
    let (mut file, mut block): (Option<&str>, Option<(bool, Option<&str>)>) = (None, None);
    for line in page.lines() {
        match (&block, line.strip_prefix("```")) {
            (None, Some(kind)) => {
                let (runs, target) = (kind == "sh", file.take());
                if let Some(target) = target {
                    let target = target.replace('~', "$HOME");
                    writeln!(
                        script,
                        "mkdir -p \"$(dirname \"{target}\")\"\ncat > \"{target}\" <<'END_OF_FILE'"
                    )
                    .unwrap();
                }
                block = Some((runs, target));
            }
            (Some((_, target)), Some(_)) => {
                if target.is_some() {
                    script.push_str("END_OF_FILE\n");
                }
                block = None;
            }
            (Some((runs, target)), None) => {
                if *runs || target.is_some() {
                    writeln!(script, "{line}").unwrap();
                }
            }
            (None, None) => {
                let named = line.strip_prefix("<!-- file: ").and_then(|rest| rest.strip_suffix(" -->"));
                file = named.or(file.filter(|_| line.is_empty()));
            }
        }
    }
    script
}

fn follow(name: &str) {
    let page = fs::read_to_string(docs().join(name)).unwrap();
    let script = script(&page);
    assert!(script.contains("bottlecap "), "{name} has commands");
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let path = format!("{}:{}", bottlecap().parent().unwrap().display(), std::env::var("PATH").unwrap());
    let bash = |script: &str| {
        // A page that waits for what never comes fails too.
        let mut command = Command::new("timeout");
        command
            .args(["120", "bash", "-c"])
            .arg(script)
            .current_dir(home.path())
            .stdin(Stdio::null())
            .env_clear();
        command.env("PATH", &path).env("HOME", home.path()).env("XDG_RUNTIME_DIR", home.path().join("run"));
        command.output().unwrap()
    };
    let output = bash(&script);
    // What a page that failed half-way left running.
    bash("for name in web app old; do bottlecap stop $name --grace 0; done");
    assert!(
        output.status.success(),
        "{name}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_tutorial_can_be_followed() {
    follow("tutorial.md");
}

#[test]
fn a_host_is_allowed_as_the_page_says() {
    follow("how-to/allow-a-host.md");
}

#[test]
fn a_repository_is_given_as_the_page_says() {
    follow("how-to/git-access.md");
}

#[test]
fn a_request_is_decided_as_the_page_says() {
    follow("how-to/decide-a-request.md");
}

#[test]
fn a_build_runs_as_the_page_says() {
    follow("how-to/ci.md");
}

#[test]
fn an_old_bottle_moves_as_the_page_says() {
    follow("how-to/move.md");
}

#[test]
fn a_page_with_a_wrong_command_fails() {
    assert!(script("```sh\nfalse\n```\n").contains("false"));
    assert!(!script("```text\nfalse\n```\n").contains("false"), "only what is to be run");
    let written = script("<!-- file: ~/a -->\n```yaml\nx: 1\n```\n");
    assert!(written.contains("cat > \"$HOME/a\"") && written.contains("x: 1\nEND_OF_FILE"), "{written}");
}

#[test]
fn every_page_of_the_directory_is_followed() {
    let mut pages: Vec<String> = fs::read_dir(docs().join("how-to"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    pages.sort();
    assert_eq!(pages, ["allow-a-host.md", "ci.md", "decide-a-request.md", "git-access.md", "move.md"]);
}

#[test]
fn the_reference_is_what_the_program_says() {
    let published = fs::read_to_string(docs().join("cli.md")).unwrap();
    let output = Command::new(bottlecap()).arg("reference").output().unwrap();
    let made = String::from_utf8(output.stdout).unwrap();
    assert!(published == made, "bottlecap reference > docs/cli.md");
}
