//! What a journal promises: nothing acknowledged is lost, nothing changed goes unseen.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use audit::{
    Bound, Decision, Durability, Error, Event, Fault, FetchEvent, Journal, PushEvent, Recovery, RefUpdate,
    RequestEvent, replay, verify,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

fn journal_in(directory: &TempDir) -> PathBuf {
    directory.path().join("audit/journal.jsonl")
}

/// A journal of `count` records at a path of its own.
fn written(count: u64) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = journal_in(&directory);
    let (journal, recovery) = Journal::open(&path).unwrap();
    assert_eq!(recovery, Recovery::Clean);
    for number in 0..count {
        journal
            .append(
                &json!({"number": number, "text": "a \"quoted\" ,\"hash\":\" wörd"}),
                Durability::Buffered,
            )
            .unwrap();
    }
    (directory, path)
}

fn numbers(path: &Path) -> Vec<u64> {
    replay::<Value>(path).unwrap().map(|record| record.unwrap().event["number"].as_u64().unwrap()).collect()
}

#[test]
fn a_journal_is_private_to_its_daemon() {
    let (_directory, path) = written(1);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
}

#[test]
fn a_second_writer_is_refused() {
    let (_directory, path) = written(1);
    let _journal = Journal::open(&path).unwrap();
    assert!(matches!(Journal::open(&path), Err(Error::InUse { .. })));
}

#[test]
fn appending_goes_on_where_the_last_writer_stopped() {
    let (_directory, path) = written(3);
    let (journal, recovery) = Journal::open(&path).unwrap();
    assert_eq!(recovery, Recovery::Clean);
    let record = journal.append(&json!({"number": 3}), Durability::Synced).unwrap();
    assert_eq!((record.seq, record.hash), journal.head());
    let head = verify(&path).unwrap();
    assert_eq!((head.seq, head.hash, head.unfinished_bytes), (4, record.hash, 0));
    assert_eq!(numbers(&path), [0, 1, 2, 3]);
}

#[test]
fn the_last_record_is_told_without_reading_the_others() {
    let (_directory, path) = written(3);
    let head = verify(&path).unwrap();
    assert_eq!(audit::last(&path), Some((head.seq, head.hash)));
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..], b"{\"seq\":4,"].concat()).unwrap();
    assert_eq!(audit::last(&path), Some((head.seq, head.hash)), "what is not whole is no record");
    fs::write(&path, "").unwrap();
    assert_eq!(audit::last(&path), None);
    assert_eq!(audit::last(path.with_file_name("none")), None);
}

#[test]
fn a_journal_cut_at_any_byte_of_its_last_three_records_recovers() {
    let (_directory, path) = written(6);
    let whole = fs::read(&path).unwrap();
    let ends: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == b'\n').map(|at| at + 1).collect();
    let other = path.with_file_name("cut.jsonl");
    for cut in ends[2]..=whole.len() {
        fs::write(&other, &whole[..cut]).unwrap();
        let kept = ends.iter().filter(|end| **end <= cut).count() as u64;
        let torn = cut - ends[kept as usize - 1];
        let (journal, recovery) = Journal::open(&other).unwrap();
        let recovered = match torn {
            0 => Recovery::Clean,
            torn => Recovery::TornTail { dropped_bytes: torn as u64 },
        };
        assert_eq!(recovery, recovered, "cut at {cut}");
        journal.append(&json!({"number": 99}), Durability::Buffered).unwrap();
        let mut expected: Vec<u64> = (0..kept).collect();
        expected.push(99);
        assert_eq!(numbers(&other), expected, "cut at {cut}");
        assert_eq!(verify(&other).unwrap().seq, kept + u64::from(torn > 0) + 1);
    }
}

#[test]
fn any_flipped_bit_before_the_last_record_is_named_by_its_line() {
    let (_directory, path) = written(4);
    let whole = fs::read(&path).unwrap();
    let last = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    for at in 0..last {
        let line = 1 + whole[..at].iter().filter(|byte| **byte == b'\n').count() as u64;
        for bit in 0..8 {
            file.write_all_at(&[whole[at] ^ (1 << bit)], at as u64).unwrap();
            match verify(&path) {
                Err(Error::Broken { broken, .. }) => {
                    assert_eq!((broken.line, broken.seq), (line, line), "byte {at} bit {bit}")
                }
                other => panic!("byte {at} bit {bit}: {other:?}"),
            }
        }
        file.write_all_at(&[whole[at]], at as u64).unwrap();
    }
    assert_eq!(verify(&path).unwrap().seq, 4);
    file.write_all_at(&[whole[0] ^ 1], 0).unwrap();
    assert!(matches!(Journal::open(&path), Err(Error::Broken { .. })), "a broken journal is not written to");
}

#[test]
fn a_record_that_was_taken_out_swapped_or_doubled_is_named() {
    let (_directory, path) = written(5);
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let mut cases = Vec::new();
    for order in [[0, 2, 3, 4].as_slice(), &[0, 2, 1, 3, 4], &[0, 1, 1, 2, 3], &[1, 2, 3, 4]] {
        let text: String = order.iter().map(|at| format!("{}\n", lines[*at])).collect();
        let other = path.with_file_name("other.jsonl");
        fs::write(&other, text).unwrap();
        match verify(&other) {
            Err(Error::Broken { broken, .. }) => cases.push((broken.line, broken.fault)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(cases, [(2, Fault::Link), (2, Fault::Link), (3, Fault::Link), (1, Fault::Link)]);
}

#[test]
fn a_message_about_a_broken_journal_says_where() {
    let (_directory, path) = written(3);
    let text = fs::read_to_string(&path).unwrap().replacen("\"number\":1", "\"number\":7", 1);
    fs::write(&path, text).unwrap();
    let message = verify(&path).unwrap_err().to_string();
    assert!(message.ends_with("is broken: line 2, seq 2: the hash does not match the record"), "{message}");
}

#[test]
fn an_event_larger_than_a_record_is_refused_and_the_journal_goes_on() {
    let (_directory, path) = written(0);
    let (journal, _) = Journal::open(&path).unwrap();
    assert!(matches!(
        journal.append(&"x".repeat(2 << 20), Durability::Buffered),
        Err(Error::TooLarge { .. })
    ));
    assert_eq!(journal.append(&json!({"number": 0}), Durability::Buffered).unwrap().seq, 1);
    assert_eq!(numbers(&path), [0]);
}

#[test]
fn typed_events_come_back_as_they_were_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = journal_in(&directory);
    let request = RequestEvent {
        decision: Decision::Deny,
        code: Some("path-not-allowed".to_owned()),
        block_id: Some("b1".to_owned()),
        host: "api.example.com".to_owned(),
        port: 443,
        scheme: "https".into(),
        method: "GET".to_owned(),
        path: "/private".to_owned(),
        route: None,
        grant: None,
        generation: 3,
        digest: "sha256:00".into(),
        status: Some(403),
        bytes_up: 0,
        bytes_down: 120,
        millis: 1,
        answered_millis: None,
        late: false,
        sent: false,
    };
    let push = PushEvent {
        repo: "acme-web".to_owned(),
        refs: vec![RefUpdate {
            name: "refs/heads/main".to_owned(),
            old: "0".repeat(40),
            new: "1".repeat(40),
        }],
        outcome: "refused".to_owned(),
        objects: 3,
        bytes_up: 9,
        grants: Vec::new(),
        findings: vec![audit::Finding {
            rule: "private-key".to_owned(),
            commit: None,
            path: "id_rsa".to_owned(),
            line: 1,
        }],
        upstream_answer: None,
        millis: 40,
    };
    let fetch = FetchEvent {
        repo: "acme-web".to_owned(),
        outcome: "served".to_owned(),
        stale_seconds: None,
        bytes_down: 9,
        millis: 2,
    };
    {
        let (journal, _) = Journal::open(&path).unwrap();
        journal.append(&request, Durability::Buffered).unwrap();
        journal.append(&push, Durability::Buffered).unwrap();
        journal.append(&fetch, Durability::Synced).unwrap();
    }
    let events: Vec<Event> = replay(&path).unwrap().map(|record| record.unwrap().event).collect();
    assert_eq!(events, [Event::Request(request), Event::Push(push), Event::Fetch(fetch)]);
}

/// A journal whose files hold a few records each, and of which `kept` closed ones are kept.
fn in_segments(records: u64, kept: Option<usize>) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = journal_in(&directory);
    let bound = Bound { segment_bytes: 1000, segments: kept };
    let (journal, _) = Journal::open_within(&path, bound).unwrap();
    for number in 0..records {
        journal.append(&json!({"number": number}), Durability::Buffered).unwrap();
    }
    (directory, path)
}

fn files(path: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn the_chain_runs_through_all_files_and_goes_on_after_a_restart() {
    let (_directory, path) = in_segments(30, None);
    assert!(files(&path).len() > 5, "{:?}", files(&path));
    assert_eq!(numbers(&path), (0..30).collect::<Vec<_>>());
    let head = verify(&path).unwrap();
    assert_eq!((head.seq, head.dropped), (30, 0));
    assert_eq!(head.last_bytes, fs::metadata(&path).unwrap().len());
    let (journal, recovery) = Journal::open(&path).unwrap();
    assert_eq!(recovery, Recovery::Clean);
    assert_eq!(journal.append(&json!({"number": 30}), Durability::Synced).unwrap().seq, 31);
    assert_eq!(verify(&path).unwrap().seq, 31);
}

#[test]
fn a_file_that_is_missing_or_changed_is_named_and_a_torn_end_recovers() {
    let (_directory, path) = in_segments(30, None);
    let all = files(&path);
    let (first, second) = (fs::read(&all[0]).unwrap(), fs::read(&all[1]).unwrap());
    fs::remove_file(&all[0]).unwrap();
    let error = verify(&path).unwrap_err().to_string();
    assert!(error.ends_with("line 1, seq 1: the record does not follow the one before it"), "{error}");
    fs::write(&all[0], &first).unwrap();
    fs::remove_file(&all[1]).unwrap();
    assert!(matches!(verify(&path), Err(Error::Broken { .. })));
    let mut changed = second.clone();
    changed[30] ^= 1;
    fs::write(&all[1], changed).unwrap();
    let lines = first.iter().filter(|byte| **byte == b'\n').count();
    let error = verify(&path).unwrap_err().to_string();
    assert!(error.contains(&format!("seq {}: the hash", lines + 1)), "{error}");
    fs::write(&all[1], second).unwrap();
    let length = fs::metadata(&path).unwrap().len();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 3).unwrap();
    let (_, recovery) = Journal::open(&path).unwrap();
    assert!(matches!(recovery, Recovery::TornTail { .. }));
    assert_eq!(verify(&path).unwrap().seq, 30);
}

#[test]
fn what_is_dropped_at_the_beginning_is_said_so_by_the_journal_itself() {
    let (_directory, path) = in_segments(60, Some(3));
    assert_eq!(files(&path).len(), 4);
    let total: u64 = files(&path).iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    assert!(total < 5000, "{total}");
    let head = verify(&path).unwrap();
    assert!(head.dropped > 0 && numbers(&path).last() == Some(&59));
    let (journal, _) = Journal::open_within(&path, Bound { segment_bytes: 1000, segments: Some(3) }).unwrap();
    journal.append(&json!({"number": 60}), Durability::Synced).unwrap();
    drop(journal);
    // One more file gone than the journal says.
    fs::remove_file(&files(&path)[0]).unwrap();
    assert!(matches!(verify(&path), Err(Error::Broken { .. })));
}

#[test]
fn a_change_in_a_journal_whose_beginning_is_gone_is_named_by_its_number() {
    let (_directory, path) = in_segments(60, Some(3));
    let head = verify(&path).unwrap();
    let oldest = &files(&path)[0];
    let text = fs::read_to_string(oldest).unwrap();
    let second = text.lines().nth(1).unwrap();
    let wanted: Value = serde_json::from_str(second).unwrap();
    let number = wanted["event"]["number"].as_u64().unwrap();
    fs::write(
        oldest,
        text.replace(&format!("\"number\":{number}}}"), &format!("\"number\":{}}}", number + 1)),
    )
    .unwrap();
    let error = verify(&path).unwrap_err().to_string();
    assert!(error.contains(&format!("line 2, seq {}: the hash", head.dropped + 2)), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_appended_is_replayed(events in prop::collection::vec(any::<(u64, String)>(), 0..20), reopen in any::<bool>()) {
        let directory = tempfile::tempdir().unwrap();
        let path = journal_in(&directory);
        let (mut journal, _) = Journal::open(&path).unwrap();
        for event in &events {
            journal.append(event, Durability::Buffered).unwrap();
            if reopen {
                drop(journal);
                journal = Journal::open(&path).unwrap().0;
            }
        }
        let replayed: Vec<(u64, String)> = replay(&path).unwrap().map(|record| record.unwrap().event).collect();
        prop_assert_eq!(replayed, events);
    }

    #[test]
    fn a_journal_of_any_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.jsonl");
        fs::write(&path, &bytes).unwrap();
        let _ = verify(&path);
        let _ = Journal::open(&path);
    }
}
