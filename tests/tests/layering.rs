//! Who may depend on whom, and what must not be in the tree at all.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

/// The edges that the house allows between the workspace's crates; every other is a mistake.
const EDGES: [(&str, &[&str]); 12] = [
    ("audit", &[]),
    ("bottlecap", &["audit", "policy", "proposal", "repos"]),
    ("bottlecap-corpus", &[]),
    ("egress", &["audit", "policy", "proposal", "scan"]),
    ("git-gate", &["audit", "proposal", "repos", "scan"]),
    ("policy", &[]),
    ("proposal", &["policy", "repos"]),
    ("repos", &[]),
    ("scan", &[]),
    ("supervise", &["audit", "proposal"]),
    ("supervisor", &[]),
    ("tests", &[]),
];

static METADATA: LazyLock<Metadata> = LazyLock::new(|| {
    MetadataCommand::new()
        .manifest_path(tests::workspace_root().join("Cargo.toml"))
        .other_options([
            "--locked".to_owned(),
            "--filter-platform".to_owned(),
            format!("{}-unknown-linux-gnu", std::env::consts::ARCH),
        ])
        .exec()
        .unwrap()
});

fn name_of(id: &PackageId) -> &str {
    METADATA.packages.iter().find(|package| package.id == *id).unwrap().name.as_str()
}

/// Which of the unwanted crates are linked into the program or library: build and test dependencies do not count.
fn found_in(root: &str, unwanted: &[&'static str]) -> Vec<&'static str> {
    let nodes: BTreeMap<_, _> =
        METADATA.resolve.as_ref().unwrap().nodes.iter().map(|node| (&node.id, node)).collect();
    let start = METADATA.workspace_packages().into_iter().find(|package| package.name == root).unwrap();
    let (mut queue, mut linked) = (vec![&start.id], BTreeSet::new());
    while let Some(id) = queue.pop() {
        for dependency in &nodes[id].deps {
            let normal = dependency.dep_kinds.iter().any(|info| info.kind == DependencyKind::Normal);
            if normal && linked.insert(&dependency.pkg) {
                queue.push(&dependency.pkg);
            }
        }
    }
    let names: BTreeSet<_> = linked.into_iter().map(name_of).collect();
    unwanted.iter().copied().filter(|name| names.contains(name)).collect()
}

#[test]
fn an_edge_between_our_crates_is_one_that_the_house_allows() {
    let allowed: BTreeMap<_, _> = EDGES.into_iter().collect();
    let ours: BTreeSet<_> =
        METADATA.workspace_packages().iter().map(|package| package.name.to_string()).collect();
    assert_eq!(ours, allowed.keys().map(|name| (*name).to_owned()).collect());
    for package in METADATA.workspace_packages() {
        let siblings = package.dependencies.iter().filter(|dependency| ours.contains(&dependency.name));
        for dependency in siblings.filter(|dependency| dependency.kind != DependencyKind::Development) {
            let (from, to) = (package.name.as_str(), dependency.name.as_str());
            assert!(allowed[from].contains(&to), "{from} -> {to}");
        }
    }
}

#[test]
fn the_supervisor_links_no_runtime_no_tls_and_no_parser_of_foreign_formats() {
    let unwanted = [
        "tokio",
        "mio",
        "hyper",
        "rustls",
        "aws-lc-rs",
        "serde-saphyr",
        "regex",
        "git2",
        "tracing",
        "futures-util",
    ];
    assert_eq!(found_in("supervisor", &unwanted), [""; 0]);
}

#[test]
fn a_leaf_that_only_decides_has_no_runtime_and_no_network() {
    for leaf in ["policy", "repos", "scan", "proposal"] {
        assert_eq!(
            found_in(leaf, &["tokio", "mio", "hyper", "rustls", "git2", "nix", "socket2"]),
            [""; 0],
            "in {leaf}"
        );
    }
}

#[test]
fn the_gate_and_the_queue_hold_no_tls_stack() {
    for daemon in ["git-gate", "supervise"] {
        assert_eq!(found_in(daemon, &["rustls", "hudsucker", "rcgen"]), [""; 0], "in {daemon}");
    }
    // The gate's ssh stands on it.
    for daemon in ["bottlecap", "supervise"] {
        assert_eq!(found_in(daemon, &["russh"]), [""; 0], "in {daemon}");
    }
    assert_eq!(found_in("supervise", &["aws-lc-rs"]), [""; 0]);
}

#[test]
fn tls_is_one_rustls_with_one_provider() {
    // `cargo tree` prints what is compiled; the metadata above also names what a feature could bring in.
    let tree = tests::Run::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--workspace",
            "--edges=normal,build,dev",
            "--prefix=none",
            "--format={p}",
        ])
        .within(tests::workspace_root())
        .ok()
        .unwrap();
    let versions_of = |name: &str| {
        let lines = tree
            .lines()
            .filter(|line| line.split_once(' ').is_some_and(|(crate_name, _)| crate_name == name));
        lines.map(|line| line.split(' ').nth(1).unwrap_or_default()).collect::<BTreeSet<_>>()
    };
    assert_eq!(versions_of("rustls").len(), 1, "{:?}", versions_of("rustls"));
    for unwanted in ["ring", "openssl", "openssl-sys", "native-tls", "boring", "libssh2-sys"] {
        assert_eq!(versions_of(unwanted), BTreeSet::new(), "{unwanted} is in the tree");
    }
}
