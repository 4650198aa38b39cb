//! How far a clone is: a bar where a person sits, lines where nobody does.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use nix::pty::{Winsize, openpty};
use support::{Person, told};

/// A person with a repository of one commit.
fn with_repository() -> Person {
    let person = Person::new();
    person.write("code/a", "one\n");
    let script =
        "git init -q -b main && git add a && git -c user.name=A -c user.email=a@x.test commit -qm one";
    let made = person.starts("sh").args(["-ec", script]).current_dir(person.path("code")).output().unwrap();
    assert!(made.status.success(), "{}", told(&made));
    person
}

/// The command with its standard error on a terminal: how it ended, and what was shown there.
fn at_a_terminal(mut command: Command) -> (Output, String) {
    let size = Winsize { ws_row: 24, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
    let ends = openpty(&size, None).unwrap();
    let child = command.stdout(Stdio::piped()).stderr(ends.slave).spawn().unwrap();
    // With it goes its copy of the terminal's end: the reading ends when the child's does.
    drop(command);
    let (mut shown, mut piece) = (Vec::new(), [0; 4096]);
    let mut master = File::from(ends.master);
    while let Ok(length @ 1..) = master.read(&mut piece) {
        shown.extend_from_slice(&piece[..length]);
    }
    (child.wait_with_output().unwrap(), String::from_utf8(shown).unwrap())
}

#[test]
fn a_clone_shows_a_bar_on_a_terminal_and_nothing_of_it_stays() {
    let person = with_repository();
    let code = person.path("code").display().to_string();
    let command = person.command(&["run", "--name", "web", "--cwd", &code, "--", "cat", "a"]);
    let (output, shown) = at_a_terminal(command);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"one\n"[..]), "{shown}");
    assert!(shown.contains(&format!("cloning {code}: receiving [")) && shown.contains("%"), "{shown:?}");
    // What is written after it stands where the bar was.
    let (_, last) = shown.split_once("the work is in the bottle's clone").unwrap();
    assert!(!last.contains("cloning "), "{shown:?}");
    let bar = shown.rfind("cloning ").unwrap();
    assert!(
        shown[bar..].contains("\u{1b}[2K") || shown[bar..].contains("\u{1b}[K"),
        "it is cleared: {shown:?}"
    );
}

#[test]
fn a_clone_says_lines_where_there_is_no_terminal() {
    let person = with_repository();
    let code = person.path("code").display().to_string();
    let output = person.output(&["run", "--name", "web", "--cwd", &code, "--", "cat", "a"]);
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.stdout, b"one\n", "{}", told(&output));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], format!("cloning {code}"));
    assert!(lines.contains(&format!("cloning {code}: receiving").as_str()), "{said}");
    assert!(!said.contains('\u{1b}') && !said.contains('\r'), "{said:?}");
}

#[test]
fn a_build_shows_its_own_progress_on_a_terminal_alone() {
    let person = Person::new();
    person.write("docker", "#!/bin/sh\necho \"$*\"; echo step 1 >&2\n");
    fs::set_permissions(person.path("docker"), Permissions::from_mode(0o755)).unwrap();
    let build = || {
        let library = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/lib.sh");
        let mut command = person.starts("bash");
        command.args(["-euc", &format!(". {library}; docker_build -t x .; echo built")]);
        command.env("BOTTLECAP_DOCKER", person.path("docker")).env("DOCKER_HOST", "unix:///nowhere");
        command
    };
    let (output, shown) = at_a_terminal(build());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "built\n");
    assert_eq!(shown, "build -t x .\r\nstep 1\r\n");
    let output = build().output().unwrap();
    assert_eq!(told(&output), "built\nstep 1\n", "what goes wrong is told there too");
}
