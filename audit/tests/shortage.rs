//! A journal that is to begin a new file while there are no descriptors: alone in its process, whose limit is lowered.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};

use audit::{Bound, Durability, Journal};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

#[test]
fn no_closed_file_is_lost_where_descriptors_run_out_while_the_next_is_begun() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.jsonl");
    let bound = Bound { segment_bytes: 700, segments: None };
    let (journal, _) = Journal::open_within(&path, bound).unwrap();
    let event = "x".repeat(100);
    let mut appended = 0;
    let (usual, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    for free in (0..16).cycle().take(80) {
        // The next descriptor that is given, and so many more.
        let next = std::os::fd::AsRawFd::as_raw_fd(&File::open("/").unwrap());
        setrlimit(Resource::RLIMIT_NOFILE, u64::try_from(next).unwrap() + free, hard).unwrap();
        appended += u64::from(journal.append(&event, Durability::Synced).is_ok());
        setrlimit(Resource::RLIMIT_NOFILE, usual, hard).unwrap();
    }
    assert!((30..80).contains(&appended), "{appended}");
    drop(journal);
    let files = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    let lines: usize = files.map(|file| fs::read_to_string(file).unwrap().lines().count()).sum();
    assert_eq!(lines as u64, appended);
    let (journal, _) = Journal::open_within(&path, bound).unwrap();
    assert_eq!(journal.head().0, appended);
}
