//! The built program notices by itself that the routes changed, and tries again what failed.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::program::{ROUTES, Running, directory, init, start_seeing};

const PATIENCE: Duration = Duration::from_secs(20);
const OTHERS: &str = "routes: []\n";

/// The program over a directory of routes that `prepare` has changed, ready.
fn ready(root: &Path, more: &[&str]) -> Running {
    assert!(init(root).status.success());
    let (running, mut log) = start_seeing(root, more);
    // Read to the end, so that nothing waits for a reader.
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    assert!(running.told().starts_with("READY=1\nX_GENERATION=1"));
    running.notifications.set_read_timeout(Some(PATIENCE)).unwrap();
    running
}

/// What is told of the next reload.
fn reloaded(running: &Running) -> String {
    assert!(running.told().starts_with("RELOADING=1"));
    running.told()
}

fn rename_into_place(directory: &Path, routes: &str) {
    let new = directory.join("new");
    std::fs::write(&new, routes).unwrap();
    std::fs::rename(&new, directory.join("routes.yaml")).unwrap();
}

/// As Kubernetes mounts it: routes.yaml -> ..data/routes.yaml, ..data -> a directory that is swapped by renaming.
fn mounted() -> tempfile::TempDir {
    let root = directory(ROUTES);
    let etc = root.path().join("etc");
    std::fs::remove_file(etc.join("routes.yaml")).unwrap();
    for (name, routes) in [("..1", ROUTES), ("..2", OTHERS)] {
        std::fs::create_dir(etc.join(name)).unwrap();
        std::fs::write(etc.join(name).join("routes.yaml"), routes).unwrap();
    }
    symlink("..1", etc.join("..data")).unwrap();
    symlink("..data/routes.yaml", etc.join("routes.yaml")).unwrap();
    root
}

fn swap_data(root: &Path) {
    let etc = root.join("etc");
    symlink("..2", etc.join("..data_tmp")).unwrap();
    std::fs::rename(etc.join("..data_tmp"), etc.join("..data")).unwrap();
}

#[test]
fn a_change_in_the_directory_is_a_reload_when_it_is_watched() {
    let root = directory(ROUTES);
    let etc = root.path().join("etc");
    let running = ready(root.path(), &["--watch"]);
    rename_into_place(&etc, OTHERS);
    assert!(reloaded(&running).starts_with("READY=1\nX_GENERATION=2"));
    rename_into_place(&etc, "routes:\n  - hots: a\n");
    assert!(reloaded(&running).contains("X_GENERATION=2\n"));
}

#[test]
fn a_swap_of_data_is_a_reload_also_where_no_watch_was_asked_for() {
    for more in [&["--watch"][..], &[]] {
        let root = mounted();
        let running = ready(root.path(), more);
        swap_data(root.path());
        assert!(reloaded(&running).starts_with("READY=1\nX_GENERATION=2"), "{more:?}");
    }
}

#[test]
fn routes_that_are_removed_are_told_and_read_when_they_are_back() {
    let root = directory(ROUTES);
    let etc = root.path().join("etc");
    let running = ready(root.path(), &["--watch"]);
    for removed in [etc.join("gone"), root.path().join("gone")] {
        std::fs::rename(etc.join("routes.yaml"), &removed).unwrap();
        let told = reloaded(&running);
        assert!(told.contains("X_RELOAD_ERROR=routes.yaml: cannot be read: No such file"), "{told}");
        let status = std::fs::read_to_string(root.path().join("run/egress.status.json")).unwrap();
        assert!(status.contains("routes.yaml: cannot be read: No such file"), "{status}");
        std::fs::rename(&removed, etc.join("routes.yaml")).unwrap();
        let told = reloaded(&running);
        assert!(told.starts_with("READY=1\nX_GENERATION=") && !told.contains("ERROR"), "{told}");
    }
    std::fs::remove_file(etc.join("routes.yaml")).unwrap();
    assert!(reloaded(&running).contains("X_RELOAD_ERROR=routes.yaml: cannot be read: No such file"));
}

#[test]
fn a_directory_that_takes_the_place_of_the_watched_one_is_watched_in_its_place() {
    let root = directory(ROUTES);
    let (etc, new, old) = (root.path().join("etc"), root.path().join("etc.new"), root.path().join("etc.old"));
    let running = ready(root.path(), &["--watch"]);
    std::fs::create_dir(&new).unwrap();
    std::fs::write(new.join("routes.yaml"), OTHERS).unwrap();
    std::fs::rename(&etc, &old).unwrap();
    std::fs::rename(&new, &etc).unwrap();
    // Between the two there was none, which may have been noticed.
    let until = |generation: u32| {
        let generation = format!("\nX_GENERATION={generation}\n");
        while !running.told().contains(&generation) {}
    };
    until(2);
    rename_into_place(&etc, ROUTES);
    until(3);
    // Gone for a while, and then another.
    std::fs::remove_dir_all(&etc).unwrap();
    while !running.told().contains("X_RELOAD_ERROR=routes.yaml: cannot be read: No such file") {}
    std::fs::create_dir(&etc).unwrap();
    rename_into_place(&etc, OTHERS);
    until(4);
    rename_into_place(&etc, ROUTES);
    until(5);
    // The path leads elsewhere.
    std::fs::create_dir(&new).unwrap();
    std::fs::write(new.join("routes.yaml"), OTHERS).unwrap();
    let parent = root.path().join("parent");
    std::fs::rename(&etc, root.path().join("etc.gone")).unwrap();
    symlink("etc.gone", &etc).unwrap();
    rename_into_place(&etc, &format!("{ROUTES}# more\n"));
    until(6);
    symlink("etc.new", &parent).unwrap();
    std::fs::rename(&parent, &etc).unwrap();
    until(7);
    rename_into_place(&etc, ROUTES);
    until(8);
}

#[test]
fn routes_that_could_not_be_read_are_read_when_they_can_be() {
    let root = directory(ROUTES);
    let routes = root.path().join("etc/routes.yaml");
    let running = ready(root.path(), &[]);
    std::fs::remove_file(&routes).unwrap();
    running.signal(Signal::SIGHUP);
    assert!(reloaded(&running).contains("X_RELOAD_ERROR=routes.yaml: cannot be read: No such file"));
    rename_into_place(&root.path().join("etc"), OTHERS);
    assert!(reloaded(&running).starts_with("READY=1\nX_GENERATION=2"));
}

#[test]
fn a_status_that_could_not_be_written_is_written_when_it_can_be() {
    let root = directory(ROUTES);
    let status = root.path().join("run/egress.status.json");
    let running = ready(root.path(), &[]);
    std::fs::remove_file(&status).unwrap();
    std::fs::create_dir(&status).unwrap();
    rename_into_place(&root.path().join("etc"), OTHERS);
    running.signal(Signal::SIGHUP);
    assert!(reloaded(&running).starts_with("READY=1\nX_GENERATION=2"));
    std::fs::remove_dir(&status).unwrap();
    let began = Instant::now();
    while !std::fs::read_to_string(&status).is_ok_and(|text| text.starts_with("{\"generation\":2,")) {
        assert!(began.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
}
