//! Pushes that no honest client sends: hand-made requests, hand-made objects.
#![allow(clippy::unwrap_used)]

mod common;

use common::{World, private_key};

const NONE: &str = "0000000000000000000000000000000000000000";

#[test]
fn a_ref_name_that_is_a_refspec_reaches_no_other_ref() {
    let world = World::new();
    let work = world.clone_web();
    let evil = work.write("key", &private_key()).commit("evil");
    work.git(&["reset", "-q", "--hard", "origin/main"]).succeed();
    let link = format!("160000,{evil},refs/heads/agent/x");
    work.git(&["update-index", "--add", "--cacheinfo", &link]).succeed();
    work.git(&["commit", "-q", "-m", "link"]).succeed();
    let carrier = work.git(&["rev-parse", "HEAD"]).succeed().trim().to_owned();
    let before = world.upstream.refs();
    let answer =
        world.push_raw(&work, &[(NONE, &carrier, "refs/heads/agent/x:refs/heads/main")], &[&carrier, &evil]);
    assert_eq!(world.upstream.refs(), before, "{answer}");
    assert!(answer.contains("this is not the name of a ref"), "{answer}");
}
