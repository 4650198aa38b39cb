//! Bad flags and bad surroundings: what is said, and the exit code.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::common::{Ground, text};

fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    text(&output.stderr)
}

#[test]
fn a_port_in_use_names_the_daemon_and_the_address() {
    let ground = Ground::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut command = ground.bare_command();
    command.args(["--daemons", "git-gate", "--listen", &format!("git-gate={address}")]);
    assert_eq!(
        refused(&mut command),
        format!(
            "error: git-gate cannot listen on {address}: Address already in use (os error 98)\n\
             hint: another process listens there: stop it, or choose another address with --listen git-gate=ADDR\n"
        )
    );
}

#[test]
fn an_unknown_daemon_is_refused_with_the_names_that_exist() {
    let ground = Ground::new();
    let said = refused(ground.command().env("SIDECAR_DAEMONS", "egress,proxy"));
    assert!(said.contains("unknown daemon `proxy`, expected one of egress, git-gate, supervise"), "{said}");
}

#[test]
fn a_wildcard_address_is_refused() {
    let ground = Ground::new();
    let said = refused(ground.bare_command().args(["--bottle-addr", "0.0.0.0"]));
    assert!(said.contains("refusing to listen on 0.0.0.0"), "{said}");
}

#[test]
fn a_missing_program_is_named() {
    let ground = Ground::new();
    std::fs::remove_file(ground.path("bin/supervise")).unwrap();
    let said = refused(&mut ground.command());
    assert_eq!(
        said,
        format!(
            "error: supervise has no program at {}\nhint: say where the daemons are with --bin-dir DIR\n",
            ground.path("bin/supervise").display()
        )
    );
}

#[test]
fn a_run_directory_with_too_long_a_path_is_refused() {
    let ground = Ground::new();
    let long = ground.path(&"x".repeat(120));
    let said = refused(ground.command().arg("--run-dir").arg(&long));
    assert!(
        said.contains("hint: choose a writable directory with a short path with --run-dir DIR"),
        "{said}"
    );
}

#[test]
fn a_second_supervisor_on_the_same_directory_is_refused() {
    let bundle = Ground::new().started();
    let said = refused(&mut bundle.ground.command());
    assert!(said.starts_with("error: another supervisor runs on "), "{said}");
    assert!(bundle.client(&["health"]).status.success());
}

#[test]
fn check_prints_the_plan_and_starts_nothing() {
    let ground = Ground::new();
    let mut command = ground.bare_command();
    command.args(["--check", "--bottle-addr", "127.0.0.0/8", "--listen", "supervise=[::1]:7000"]);
    let output = command.env("SIDECAR_DAEMONS", "egress,supervise").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let uid = |fixed: u32| if crate::common::is_root() { fixed } else { nix::unistd::geteuid().as_raw() };
    let bin = ground.path("bin");
    let expected = format!(
        "DAEMON     LISTENS ON             UID      PROGRAM\n\
         egress     127.0.0.1:9099         {:<8} {}\n\
         supervise  [::1]:7000             {:<8} {}\n",
        uid(64101),
        bin.join("egress").display(),
        uid(64103),
        bin.join("supervise").display(),
    );
    assert_eq!(text(&output.stdout), expected);
    assert!(!ground.run_dir().exists());
}

#[test]
fn a_client_without_a_supervisor_says_where_it_looked() {
    let ground = Ground::new();
    let output = ground.bare_command().arg("health").output().unwrap();
    assert_eq!(output.status.code(), Some(70));
    let said = text(&output.stderr);
    assert!(said.starts_with("error: cannot reach the supervisor at "), "{said}");
    assert!(said.contains("hint: is it running"), "{said}");
}

#[test]
fn usage_errors_are_64_and_help_is_0() {
    let ground = Ground::new();
    refused(ground.bare_command().arg("--no-such-flag"));
    for flag in ["--help", "--version"] {
        assert_eq!(ground.bare_command().arg(flag).output().unwrap().status.code(), Some(0));
    }
}

#[test]
fn an_address_that_is_given_twice_is_refused() {
    let ground = Ground::new();
    let mut command = ground.bare_command();
    command.args(["--listen", "egress=127.0.0.1:7001", "--listen", "supervise=127.0.0.1:7001"]);
    command.args(["--daemons", "egress,supervise"]);
    assert_eq!(refused(&mut command), "error: 127.0.0.1:7001 is given to --listen twice\n");
}

#[test]
fn a_program_that_cannot_be_executed_is_named() {
    let ground = Ground::new();
    let program = ground.path("bin/git-gate");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o644)).unwrap();
    let said = refused(&mut ground.command());
    let expected = "error: git-gate cannot be started: ";
    assert_eq!(said, format!("{expected}{} is no program that can be executed\n", program.display()));
}

#[test]
fn a_path_to_read_that_is_none_is_refused() {
    let ground = Ground::new();
    let said = refused(ground.command().args(["--readable", "git-gate=keys"]));
    assert!(said.contains("`git-gate=keys` is not NAME=PATH with an absolute path"), "{said}");
    let said = refused(ground.command().args(["--readable", "proxy=/keys"]));
    assert!(said.contains("unknown daemon `proxy`"), "{said}");
}

/// A supervisor below `prlimit`, as nobody where we are root: root is above some limits.
fn limited(ground: &Ground, limit: &str) -> Command {
    let inner = ground.command();
    let mut command = Command::new("prlimit");
    command.env_clear().env("PATH", "/usr/bin:/bin").arg(limit);
    command.arg(inner.get_program()).args(inner.get_args());
    if crate::common::is_root() {
        let given = Command::new("chown").args(["-R", "65534:65534"]).arg(ground.path("root")).status();
        assert!(given.unwrap().success());
        command.uid(65534).gid(65534);
    }
    command
}

#[test]
fn a_machine_that_makes_no_more_processes_ends_the_start_with_70() {
    let ground = Ground::new();
    let mut bundle = {
        let command = limited(&ground, "--nproc=1");
        ground.start_with(command)
    };
    bundle.log.wait("egress ended: not started: cannot fork: Resource temporarily unavailable");
    assert_eq!(bundle.wait().code(), Some(70));
}

#[test]
fn too_few_descriptors_end_the_start_with_a_message_whatever_their_number() {
    for count in [6, 9, 12, 15, 18, 21, 24] {
        let ground = Ground::new();
        let command = limited(&ground, &format!("--nofile={count}"));
        let mut bundle = ground.start_with(command);
        let code = bundle.wait().code();
        let log = bundle.log.whole();
        assert!(matches!(code, Some(64 | 70)), "{count}: {code:?} {log:#?}");
        assert!(log.iter().any(|line| line.contains("Too many open files")), "{count}: {log:#?}");
    }
}

/// A supervisor whose run directory is a file system of its own, mounted with these options.
fn on_a_file_system(ground: &Ground, options: &str) -> Command {
    std::fs::create_dir_all(ground.run_dir()).unwrap();
    let inner = ground.command();
    let mut command = Command::new("unshare");
    command.env_clear().env("PATH", "/usr/bin:/bin").args(["--mount", "sh", "-c"]);
    command.arg("mount -t tmpfs -o \"$1\" tmpfs \"$2\" && shift 2 && exec \"$@\"");
    command.args(["sh", options]).arg(ground.run_dir()).arg(inner.get_program()).args(inner.get_args());
    command
}

#[test]
fn a_run_directory_that_is_full_or_read_only_is_named() {
    if !crate::common::is_root() {
        return;
    }
    for (options, reason) in [("ro", "Read-only file system"), ("nr_inodes=2", "No space left on device")] {
        let ground = Ground::new();
        let said = refused(&mut on_a_file_system(&ground, options));
        assert!(said.starts_with("error: cannot use ") && said.contains(reason), "{said}");
        assert!(said.contains("hint: choose a writable directory"), "{said}");
    }
}
