//! The published schema is the one that the parser has, and what we show people fits it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use bottlecap::manifest::{Manifest, schema};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

#[test]
fn the_published_schema_is_what_the_program_prints() {
    let published = fs::read_to_string(root().join("docs/manifest.schema.json")).unwrap();
    assert_eq!(published, format!("{:#}\n", schema()), "bottlecap schema > docs/manifest.schema.json");
}

#[test]
fn every_key_of_the_schema_is_one_of_the_parser() {
    let schema = schema();
    assert_eq!(schema["additionalProperties"], false);
    for key in schema["properties"].as_object().unwrap().keys() {
        let found = Manifest::parse("b", &format!("{key}: {{wrong: [x]}}\n"), Path::new("/b"));
        let told = found.map_or_else(|found| found.to_string(), |_| String::new());
        assert!(!told.contains(&format!("unknown field `{key}`")), "{told}");
    }
    let found = Manifest::parse("b", "nothing-like-it: 1\n", Path::new("/b")).unwrap_err().to_string();
    let keys = schema["properties"].as_object().unwrap().keys().map(|key| format!("`{key}`"));
    for key in keys {
        assert!(found.contains(&key), "{key} is not in: {found}");
    }
}
