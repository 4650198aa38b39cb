//! A verifier in another language, written from the description alone, comes to the same.
//!
//! Apart from the other tests: a process that is started holds the locks of this one's journals until it runs.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use audit::{Bound, Durability, Journal, verify};
use serde_json::json;
use tempfile::TempDir;

fn journal(records: u64, bound: Bound) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit/journal.jsonl");
    let (journal, _) = Journal::open_within(&path, bound).unwrap();
    for number in 0..records {
        let event = json!({"number": number, "text": "a \"quoted\" ,\"hash\":\" wörd"});
        journal.append(&event, Durability::Buffered).unwrap();
    }
    (directory, path)
}

fn by_python(path: &Path, more: &[String]) -> Result<String, String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/verify_journal.py");
    let output = Command::new("python3").arg(script).arg(path).args(more).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[test]
fn it_agrees_about_a_journal_that_holds_and_one_that_was_changed() {
    let (_directory, path) = journal(20, Bound::KEEP_ALL);
    let head = verify(&path).unwrap();
    assert_eq!(by_python(&path, &[]).unwrap(), format!("{} {}", head.seq, head.hash));
    let text = fs::read_to_string(&path).unwrap().replacen("\"number\":7", "\"number\":8", 1);
    fs::write(&path, text).unwrap();
    assert_eq!(by_python(&path, &[]).unwrap_err(), "line 8: hash");
}

#[test]
fn it_agrees_about_many_files_and_about_a_missing_one() {
    let (_directory, path) = journal(30, Bound { segment_bytes: 1000, segments: None });
    let head = verify(&path).unwrap();
    assert_eq!(by_python(&path, &[]).unwrap(), format!("30 {}", head.hash));
    let first =
        fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()).min().unwrap();
    fs::remove_file(first).unwrap();
    assert_eq!(by_python(&path, &[]).unwrap_err(), "line 1: link");
}

#[test]
fn it_agrees_about_a_beginning_that_was_dropped() {
    let (_directory, path) = journal(60, Bound { segment_bytes: 1000, segments: Some(3) });
    let head = verify(&path).unwrap();
    assert!(head.dropped > 0);
    assert_eq!(by_python(&path, &[]).unwrap(), format!("{} {}", head.seq, head.hash));
}

#[test]
fn a_tail_that_was_cut_off_shows_against_an_anchor() {
    let (_directory, path) = journal(20, Bound::KEEP_ALL);
    let head = verify(&path).unwrap();
    let anchor = ["--anchor".to_owned(), format!("{}:{}", head.seq, head.hash)];
    assert!(by_python(&path, &anchor).is_ok());
    let text = fs::read_to_string(&path).unwrap();
    let kept: String = text.lines().take(19).map(|line| format!("{line}\n")).collect();
    fs::write(&path, kept).unwrap();
    assert!(by_python(&path, &[]).is_ok(), "the chain alone does not show it");
    assert_eq!(by_python(&path, &anchor).unwrap_err(), "record 20: not the one that was anchored");
}
