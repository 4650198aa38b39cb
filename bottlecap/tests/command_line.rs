//! What a person reads when something is wrong.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

fn bottlecap(directory: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bottlecap"));
    command
        .args(arguments)
        .current_dir(directory)
        .env("XDG_STATE_HOME", directory)
        .env("XDG_RUNTIME_DIR", directory)
        .env("BOTTLECAP_DOCKER", directory.join("no-docker"));
    let output = command.env_remove("TOKEN").stdin(std::process::Stdio::null()).output().unwrap();
    format!(
        "{}{}exit {}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        output.status.code().unwrap()
    )
}

#[test]
fn a_wrong_manifest_is_named_with_line_and_column() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("bottle.yaml"), "name: web\nroute: routes.yaml\n").unwrap();
    insta::assert_snapshot!(bottlecap(directory.path(), &["check", "bottle.yaml"]), @r"
    error: bottle.yaml:2:1: unknown field `route`: did you mean `routes`?
    exit 64
    ");
}

#[test]
fn wrong_routes_are_named_with_line_and_column() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("bottle.yaml"), "routes: routes.yaml\n").unwrap();
    fs::write(directory.path().join("routes.yaml"), "routes:\n  - host: a.test\n    metods: [GET]\n")
        .unwrap();
    let said = bottlecap(directory.path(), &["check", "bottle.yaml"]);
    assert!(said.contains("/routes.yaml:3:5: unknown field `metods`") && said.ends_with("exit 64"), "{said}");
}

#[test]
fn a_secret_that_is_not_set_stops_the_start() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("work")).unwrap();
    fs::write(directory.path().join("bottle.yaml"), "secrets: {T: {env: TOKEN}}\n").unwrap();
    let said =
        bottlecap(&directory.path().join("work"), &["run", "--bottle", "../bottle.yaml", "--", "true"]);
    insta::assert_snapshot!(said, @r"
    error: the secret `T` is to come from TOKEN, which is not set
    hint: set it for this command: TOKEN=… bottlecap run …
    exit 64
    ");
}

#[test]
fn a_secret_that_the_routes_need_is_missed_before_the_start() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("bottle.yaml"), "routes: routes.yaml\n").unwrap();
    let routes = "routes:\n  - host: a.test\n    auth_scheme: bearer\n    token_env: TOKEN\n";
    fs::write(directory.path().join("routes.yaml"), routes).unwrap();
    insta::assert_snapshot!(bottlecap(directory.path(), &["check", "bottle.yaml"]), @r"
    error: the routes use the secret `TOKEN`, which the manifest does not have
    hint: add to the manifest: secrets: {TOKEN: {env: VARIABLE}}
    exit 64
    ");
}

#[test]
fn containers_without_an_engine_or_without_root_are_refused_with_a_next_step() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("work")).unwrap();
    let words = ["run", "--backend", "docker", "--mount", "work", "--", "true"];
    let told = bottlecap(directory.path(), &words);
    assert!(
        told.contains("hint: ") && told.contains("--backend sandbox") && told.ends_with("exit 64"),
        "{told}"
    );
}

#[test]
fn requests_without_a_bottle_say_where_to_look() {
    let directory = tempfile::tempdir().unwrap();
    insta::assert_snapshot!(bottlecap(directory.path(), &["requests", "list"]), @r"
    error: no bottle is running
    hint: `bottlecap list` shows the bottles; --bottle NAME chooses one
    exit 64
    ");
}

#[test]
fn a_wrong_call_is_usage() {
    let directory = tempfile::tempdir().unwrap();
    for arguments in [&["routes"][..], &["run", "--name", "Not A Name", "--", "true"], &["no-such-command"]] {
        let said = bottlecap(directory.path(), arguments);
        assert!(said.ends_with("exit 64"), "{said}");
    }
    assert!(bottlecap(directory.path(), &["--help"]).ends_with("exit 0"));
    assert!(bottlecap(directory.path(), &["--version"]).ends_with("exit 0"));
}

#[test]
fn a_working_directory_that_the_state_is_about_to_lie_in_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let said = bottlecap(directory.path(), &["run", "--", "true"]);
    assert!(said.contains("bottlecap's state") && said.ends_with("exit 64"), "{said}");
}
