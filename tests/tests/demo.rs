//! `make demo` is the main job: what it prints is what a newcomer sees, so it is played here as it stands.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use tests::{Binaries, workspace_root};

/// Plays the demo as `user` and returns its transcript.
fn demo(user: Option<&str>) -> String {
    let binaries = Binaries::find().unwrap();
    let mut command = Command::new("bash");
    command
        .arg("scripts/demo.sh")
        .current_dir(workspace_root())
        .env("BOTTLECAP_BIN_DIR", binaries.directory());
    if let Some(user) = user {
        command.env("DEMO_USER", user);
    }
    let output = command.output().unwrap();
    let transcript = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the demo ended with {}:\n{transcript}\n{errors}", output.status);
    transcript
}

#[test]
fn the_demo_does_every_step_it_shows() {
    let transcript = demo(None);
    assert!(transcript.ends_with("Every step did what it says.\n"), "{transcript}");
    assert!(
        !transcript.contains("demo-secret-held-outside"),
        "the credential is in the transcript:\n{transcript}"
    );
}

#[test]
fn the_demo_needs_no_root_inside() {
    let transcript = demo(Some("dana:12345"));
    assert!(transcript.ends_with("Every step did what it says.\n"), "{transcript}");
}
