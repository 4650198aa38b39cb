//! The table of a bottle that runs is replaced as a whole, or not at all: the program against a stand-in for the supervisor.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use proposal::digest;
use serde_json::{Value, json};
use tempfile::TempDir;

const OLD: &str = "# ours\nroutes:\n  - host: api.acme.test\n";
const NEW: &str = "# ours\nroutes:\n  - host: docs.acme.test\n";

struct Stage {
    root: TempDir,
}

impl Stage {
    /// With a supervisor that answers each reload by what `reload` makes of the routes as they are then.
    fn with(reload: impl Fn(&str) -> Value + Send + 'static) -> Stage {
        let stage = Stage { root: tempfile::tempdir().unwrap() };
        fs::create_dir(stage.path("routes")).unwrap();
        fs::write(stage.path("routes/routes.yaml"), OLD).unwrap();
        let (file, listener) =
            (stage.path("routes/routes.yaml"), UnixListener::bind(stage.path("supervisor.sock")).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                BufReader::new(&stream).read_line(&mut String::new()).unwrap();
                writeln!(stream, "{}", reload(&fs::read_to_string(&file).unwrap())).unwrap();
            }
        });
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn routes(&self) -> String {
        fs::read_to_string(self.path("routes/routes.yaml")).unwrap()
    }

    /// What `bottlecap routes …` says, and its exit code.
    fn run(&self, words: &[&str], editor: Option<&str>) -> (String, i32) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bottlecap"));
        command.arg("routes").args(words).arg("--routes").arg(self.path("routes"));
        command.arg("--run-dir").arg(self.root.path()).env("XDG_STATE_HOME", self.root.path());
        command.env_remove("VISUAL").env("TMPDIR", self.root.path()).stdin(Stdio::null());
        command.env("EDITOR", editor.unwrap_or("false"));
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (String::from_utf8(said).unwrap(), output.status.code().unwrap())
    }

    fn new_routes(&self, text: &str) -> String {
        fs::write(self.path("new.yaml"), text).unwrap();
        self.path("new.yaml").display().to_string()
    }

    /// An editor that puts `text` in the place of what it is given.
    fn editor(&self, text: &str) -> String {
        fs::write(self.path("text"), text).unwrap();
        let editor = self.path("editor");
        fs::write(&editor, format!("#!/bin/sh\ncp {} \"$1\"\n", self.path("text").display())).unwrap();
        fs::set_permissions(&editor, fs::Permissions::from_mode(0o700)).unwrap();
        editor.display().to_string()
    }
}

fn acknowledged(routes: &str) -> Value {
    json!({"ok": true, "result": {"daemons": [{"name": "egress", "generation": 2, "digest": digest(routes)}]}})
}

fn never(_: &str) -> Value {
    json!({"ok": false, "error": {"code": "internal", "message": "asked to reload"}})
}

#[test]
fn routes_are_shown_compared_and_applied() {
    let stage = Stage::with(acknowledged);
    assert_eq!(stage.run(&["show"], None), (OLD.to_owned(), 0));
    let file = stage.new_routes(NEW);
    let (said, code) = stage.run(&["diff", &file], None);
    assert_eq!(code, 0, "{said}");
    assert!(said.starts_with(
        "newly says: any method https://docs.acme.test/**\nno longer says: any method https://api.acme.test/**\n"
    ), "{said}");
    assert_eq!(stage.routes(), OLD);
    let (said, code) = stage.run(&["apply", &file, "--yes"], None);
    assert_eq!(code, 0, "{said}");
    assert!(said.ends_with(&format!("egress has it as generation 2 ({})\n", digest(NEW))), "{said}");
    assert_eq!(stage.routes(), NEW);
}

#[test]
fn a_bad_file_never_reaches_the_bundle() {
    let stage = Stage::with(never);
    let file = stage.new_routes("routes:\n  - host: a.test\n    metods: [GET]\n");
    let (said, code) = stage.run(&["apply", &file, "--yes"], None);
    assert!(said.contains("new.yaml:3:5: unknown field `metods`"), "{said}");
    assert_eq!((code, stage.routes().as_str()), (64, OLD));
}

#[test]
fn without_a_yes_nothing_is_changed() {
    let stage = Stage::with(never);
    let file = stage.new_routes(NEW);
    let (said, code) = stage.run(&["apply", &file], None);
    assert!(said.contains("nobody can be asked"), "{said}");
    assert_eq!((code, stage.routes().as_str()), (64, OLD));
}

#[test]
fn routes_that_egress_does_not_take_are_put_back() {
    let refuse_new = |routes: &str| if routes == OLD { acknowledged(routes) } else { never(routes) };
    let stage = Stage::with(refuse_new);
    let file = stage.new_routes(NEW);
    let (said, code) = stage.run(&["apply", &file, "--yes"], None);
    assert!(said.contains("egress did not take the routes") && said.contains("back in force"), "{said}");
    assert_eq!((code, stage.routes().as_str()), (1, OLD));
}

#[test]
fn an_edit_is_applied_as_it_was_left() {
    let stage = Stage::with(acknowledged);
    let editor = stage.editor(NEW);
    let (said, code) = stage.run(&["edit", "--yes"], Some(&editor));
    assert_eq!((code, stage.routes().as_str()), (0, NEW), "{said}");
}

#[test]
fn an_edit_that_does_not_parse_is_kept_beside_the_routes_as_they_were() {
    let stage = Stage::with(never);
    let editor = stage.editor("routes: {}\n");
    let (said, code) = stage.run(&["edit", "--yes"], Some(&editor));
    assert_eq!((code, stage.routes().as_str()), (64, OLD), "{said}");
    let (_, kept) =
        said.trim_end().split_once("what you wrote is kept: bottlecap routes apply ").expect("a path");
    assert_eq!(fs::read_to_string(kept).unwrap(), "routes: {}\n");
}
