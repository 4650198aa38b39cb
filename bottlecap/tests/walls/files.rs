//! What of the host's file system is there, and what can be written.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::process::Command;

use crate::support::{Bottle, Caller, PRELUDE, is_root, said};

#[test]
fn files_of_the_host_are_not_there() {
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        fs::write(bottle.path("home/secret"), "of the caller").unwrap();
        fs::write(bottle.path("beside"), "of the caller").unwrap();
        let absent = [
            "/etc/shadow",
            "/etc/ssh",
            "/etc/sudoers",
            "/etc/machine-id",
            "/root",
            "/boot",
            "/sys",
            "/mnt",
            "/media",
            "/srv",
            "/opt",
            "/run/docker.sock",
            "/var/run/docker.sock",
            "/var/log",
            "/dev/kmsg",
            "/dev/mem",
            "/dev/fuse",
            "/dev/net",
            "/dev/kvm",
            "/dev/vda",
            "/proc/kcore",
            "/etc/hosts.allow",
        ];
        let mut paths: Vec<String> = absent.map(str::to_owned).to_vec();
        paths.push(bottle.path("home").display().to_string());
        paths.push(bottle.path("beside").display().to_string());
        let source = format!(
            "for path in {paths:?}:\n    if os.path.exists(path) and not path == '/proc/kcore': print(path)"
        );
        assert_eq!(bottle.python("", &source), "");
        let empty =
            bottle.shell("", "ls -A /run /var/cache /var/lib /var/tmp; ls -A /home; ls -A /home/agent");
        assert_eq!(empty, "/run:\n\n/var/cache:\n\n/var/lib:\n\n/var/tmp:\nagent\n.claude.json");
    }
}

#[test]
fn a_directory_that_the_manifest_mounts_is_there_and_cannot_be_written() {
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        let tools = bottle.path("tools");
        fs::create_dir(&tools).unwrap();
        fs::write(tools.join("tool"), "a tool").unwrap();
        bottle.give_all_to_owner(&tools);
        let manifest = bottle.path("bottle.yaml");
        fs::write(&manifest, format!("mounts: [{{path: {}}}]\n", tools.display())).unwrap();
        let script =
            format!("cat {0}/tool; touch {0}/more 2>&1 | grep -c 'Read-only file system'", tools.display());
        let mut command =
            bottle.bottlecap(["run", "--bottle", manifest.to_str().unwrap(), "--", "sh", "-c", &script]);
        assert_eq!(said(&mut command), "a tool1");
    }
}

#[test]
fn what_the_agent_makes_belongs_to_the_owner_of_the_directory() {
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        bottle.write("there", "before");
        bottle.shell("", "echo more >>there; mkdir -p made/deep; echo x >made/deep/file; test \"$(stat -c %U there)\" = agent");
        for name in ["there", "made", "made/deep/file"] {
            let found = fs::metadata(bottle.work().join(name)).unwrap();
            assert_eq!((found.uid(), found.gid()), (bottle.owner(), bottle.owner()), "{name}");
        }
        assert_eq!(fs::read_to_string(bottle.work().join("there")).unwrap(), "beforemore\n");
    }
}

#[test]
fn without_mapped_owners_root_would_give_the_agent_a_directory_it_cannot_write() {
    if is_root() {
        let bottle = Bottle::of(Caller::Root);
        assert_eq!(bottle.python("owners", "print(attempt(open, 'file', 'w'))"), "EACCES");
        assert_eq!(bottle.python("", "print(attempt(open, 'file', 'w'))"), "done");
    }
}

#[test]
fn mounts_cannot_be_made_writable() {
    // MS_REMOUNT | MS_BIND, without MS_RDONLY.
    const REMOUNT: &str = "print(call(165, None, b'/usr', None, 0x1020, None))";
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        assert_eq!(bottle.python("", REMOUNT), "EPERM");
        // With a filter less and all its capabilities it still cannot: the mounts are locked in the second namespace.
        let mut capable = bottle.run(
            "seccomp,capabilities",
            ["/usr/bin/unshare", "--map-root-user", "--mount", "/usr/bin/python3", "-I", "-c"],
        );
        capable.arg(format!("{PRELUDE}\n{REMOUNT}"));
        assert_eq!(said(&mut capable), "EPERM");
        assert_eq!(bottle.python("seccomp,capabilities,second-namespace", REMOUNT), "done");
    }
}

#[test]
fn the_system_and_the_root_cannot_be_written() {
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        let script = "for path in ['/x', '/etc/x', '/etc/hosts', '/dev/x', '/usr/x', '/etc/bottlecap/ca.pem', '/proc/sys/kernel/hostname', '/proc/acpi/x', '/home/x']:\n    print(path, attempt(open, path, 'w'))";
        for line in bottle.python("", script).lines() {
            assert!(
                ["EROFS", "EACCES", "EPERM", "ENOENT"].iter().any(|errno| line.ends_with(errno)),
                "{line}"
            );
        }
    }
}

#[test]
fn git_configuration_hooks_and_the_way_to_them_cannot_be_changed() {
    const ATTEMPTS: &str = "
def write(path, flags=os.O_WRONLY | os.O_CREAT): os.close(os.open(path, flags))
print(attempt(write, '.git/config'), attempt(write, '.git/hooks/pre-commit'), attempt(write, '.git/info/attributes'),
      attempt(write, '.git/commondir'), attempt(os.unlink, '.git/commondir'), attempt(os.unlink, '.git/config'),
      attempt(os.rename, '.git/hooks', '.git/old'), attempt(os.rename, '.git', 'old'))";
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        init_repository(&bottle);
        assert_eq!(bottle.python("", ATTEMPTS), "EROFS EROFS EROFS EROFS EBUSY EBUSY EBUSY EBUSY");
        let commit =
            "git -c user.name=a -c user.email=a@b commit -q --allow-empty -m works && git log --format=%s -1";
        assert_eq!(bottle.shell("", commit), "works");
        assert!(!bottle.work().join(".git/commondir").exists());
        let free = bottle.python("git", ATTEMPTS);
        assert_eq!(free, "done done done done done done done done");
    }
}

fn init_repository(bottle: &Bottle) {
    let work = bottle.work();
    assert!(Command::new("git").args(["init", "-q"]).current_dir(&work).status().unwrap().success());
    fs::remove_dir_all(work.join(".git/hooks")).unwrap();
    fs::remove_dir_all(work.join(".git/info")).unwrap();
    bottle.give_all_to_owner(&work);
}

#[test]
fn a_link_in_place_of_hooks_is_refused() {
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        init_repository(&bottle);
        std::os::unix::fs::symlink("../hooks", bottle.work().join(".git/hooks")).unwrap();
        let output = bottle.run("", ["true"]).output().unwrap();
        assert_eq!(output.status.code(), Some(64));
        assert!(String::from_utf8_lossy(&output.stderr).contains(".git/hooks is a symbolic link"));
    }
}

#[test]
fn a_submodule_cannot_be_led_to_another_git_directory() {
    const ATTEMPTS: &str = "
def write(path): os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
print(attempt(write, '.git/modules/sub/config'), attempt(os.rename, '.git/modules/sub', '.git/modules/old'),
      attempt(write, 'libs/sub/.git'), attempt(os.unlink, 'libs/sub/.git'),
      attempt(os.rename, 'libs/sub', 'libs/old'), attempt(os.rename, 'libs', 'old'), attempt(write, 'old/libs'))";
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        init_repository(&bottle);
        let work = bottle.work();
        fs::create_dir_all(work.join("libs/sub")).unwrap();
        fs::write(work.join("libs/sub/.git"), "gitdir: ../../.git/modules/sub\n").unwrap();
        fs::create_dir_all(work.join(".git/modules/sub/objects")).unwrap();
        fs::write(work.join(".git/modules/sub/config"), "").unwrap();
        bottle.give_all_to_owner(&work);
        assert_eq!(bottle.python("", ATTEMPTS), "EROFS EBUSY EROFS EBUSY EBUSY EBUSY ENOENT");
        assert_eq!(bottle.shell("", "echo x >libs/sub/file; cat libs/sub/file"), "x");
        assert_eq!(bottle.python("git", ATTEMPTS), "done done done done done done done");
    }
}

#[test]
fn a_git_directory_of_another_name_is_refused() {
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        let work = bottle.work();
        let mut init = Command::new("git");
        init.args(["init", "-q", "--separate-git-dir=real"]).current_dir(&work);
        assert!(init.status().unwrap().success());
        bottle.give_all_to_owner(&work);
        let (code, error) = refusal(&bottle);
        assert_eq!(code, Some(64), "{error}");
        assert!(
            error.contains("/work/.git leads to ") && error.contains("hint: put the git directory"),
            "{error}"
        );
    }
}

#[test]
fn sockets_in_the_working_directory_are_hidden() {
    const CONNECT: &str = "print(attempt(socket.socket(socket.AF_UNIX).connect, 'deep/service.sock'))";
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        fs::create_dir(bottle.work().join("deep")).unwrap();
        let _service = UnixListener::bind(bottle.work().join("deep/service.sock")).unwrap();
        bottle.give_all_to_owner(&bottle.work());
        assert_eq!(bottle.python("", CONNECT), "ECONNREFUSED");
        assert_eq!(bottle.python("sockets", CONNECT), "done");
    }
}

#[test]
fn a_directory_that_an_agent_closed_is_refused_in_the_next_bottle() {
    let bottle = Bottle::of(Caller::Ordinary);
    let closed = bottle.work().join("deep");
    fs::create_dir(&closed).unwrap();
    let _service = UnixListener::bind(closed.join("service.sock")).unwrap();
    bottle.give_all_to_owner(&bottle.work());
    bottle.shell("", "chmod 0300 deep");
    let (code, error) = refusal(&bottle);
    assert_eq!(code, Some(64), "{error}");
    assert!(error.contains(&format!("cannot look at everything in {}", closed.display())), "{error}");
    assert!(error.contains(&format!("hint: chmod u+rwx {}", closed.display())), "{error}");
}

#[test]
fn a_file_with_the_rights_of_its_owner_is_refused_when_root_starts_the_bottle() {
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        bottle.write("tool", "");
        fs::set_permissions(bottle.work().join("tool"), fs::Permissions::from_mode(0o4755)).unwrap();
        let (code, error) = refusal(&bottle);
        match caller {
            Caller::Root => {
                assert_eq!(code, Some(64), "{error}");
                assert!(error.contains("hint: chmod u-s,g-s "), "{error}");
            }
            Caller::Ordinary => assert_eq!(code, Some(0), "{error}"),
        }
    }
}

/// The exit code and the words of a bottle that ought not to start.
fn refusal(bottle: &Bottle) -> (Option<i32>, String) {
    let output = bottle.run("", ["true"]).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn no_file_gets_a_set_id_bit() {
    const ATTEMPTS: &str = "
open('tool', 'w').close()
os.mkdir('place')
name = lambda text: ctypes.create_string_buffer(text)
print(attempt(os.chmod, 'tool', 0o4755), attempt(os.chmod, 'place', 0o2755), call(452, -100, name(b'tool'), 0o4755, 0),
      attempt(os.open, 'a', os.O_CREAT | os.O_WRONLY, 0o4755), attempt(os.open, '.', os.O_TMPFILE | os.O_WRONLY, 0o4755),
      attempt(os.mkdir, 'b', 0o2755), attempt(os.mknod, 'c', 0o104755), call(437, -100, name(b'tool'), name(bytes(24)), 24))
print(attempt(os.chmod, 'tool', 0o755), attempt(os.open, 'd', os.O_CREAT | os.O_WRONLY, 0o755))";
    for caller in Caller::all() {
        let walled = Bottle::of(caller).python("", ATTEMPTS);
        assert_eq!(walled, "EPERM EPERM EPERM EPERM EPERM EPERM EPERM ENOSYS\ndone done");
        let bottle = Bottle::of(caller);
        assert_eq!(bottle.python("seccomp", ATTEMPTS), "done done done done done done done done\ndone done");
        let mode = fs::metadata(bottle.work().join("tool")).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o755);
    }
}

#[test]
fn directories_that_hold_more_than_a_project_are_refused() {
    for caller in Caller::all() {
        let bottle = Bottle::of(caller);
        let home = bottle.path("home").display().to_string();
        let state = bottle.path("state/bottlecap/bottles");
        said(bottle.command("mkdir").arg("-p").arg(&state));
        let above = bottle.path("").display().to_string();
        for place in
            ["/", "/etc", "/tmp", "/usr/share", "/var/lib", &home, &above, &state.display().to_string()]
        {
            let output = bottle.bottlecap(["run", "--cwd", place, "--", "true"]).output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(64), "{place}: {error}");
            assert!(error.contains("hint: give the bottle a project directory"), "{place}: {error}");
        }
    }
}

#[test]
fn a_manifest_in_the_working_directory_is_refused() {
    let bottle = Bottle::of(Caller::Ordinary);
    bottle.write("bottle.yaml", "name: mine\n");
    let output = bottle.bottlecap(["run", "--bottle", "bottle.yaml", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("contains what the bottle is made by"));
}
