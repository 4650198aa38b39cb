//! The files of a journal: those that were closed, oldest first, and the one that is written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::chain::Link;
use crate::read::Source;

const DIGITS: usize = 12;
/// What the last line of a file lies in.
const TAIL: u64 = 2 << 20;

/// What the journal at `path` is called when it is closed with the record `seq`.
pub(crate) fn name(path: &Path, seq: u64) -> PathBuf {
    path.with_extension(format!("{seq:0DIGITS$}.jsonl"))
}

/// The closed files of the journal at `path` and the record each ends with, oldest first.
pub(crate) fn closed(path: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix(stem)?.strip_prefix('.')?.strip_suffix(".jsonl"))
            .filter(|number| number.len() == DIGITS);
        if let Some(seq) = number.and_then(|number| number.parse().ok()) {
            found.push((seq, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// The last record of a closed file.
pub(crate) fn end(path: &Path) -> Option<Link> {
    let tail = tail(path)?;
    let line = tail.strip_suffix(b"\n")?.rsplit(|byte| *byte == b'\n').next()?;
    Link::at(line)
}

/// The last whole record of the journal at `path`.
pub(crate) fn last(path: &Path) -> Option<Link> {
    let present = tail(path)?;
    let whole = present.iter().rposition(|byte| *byte == b'\n').map(|at| &present[..at]);
    match whole {
        Some(lines) => Link::at(lines.rsplit(|byte| *byte == b'\n').next()?),
        None => end(&closed(path).ok()?.pop()?.1),
    }
}

fn tail(path: &Path) -> Option<Vec<u8>> {
    let mut file = open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).ok()?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail).ok()?;
    Some(tail)
}

/// A daemon owns the directory, and the host reads it: nothing is followed, and nothing waited for.
fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
}

/// All files of a journal as one.
pub(crate) struct Files {
    present: BufReader<File>,
    next: std::vec::IntoIter<File>,
    /// What was read before the present file.
    before: u64,
    read: u64,
}

impl Files {
    pub(crate) fn open(path: &Path) -> io::Result<Files> {
        let mut files = Vec::new();
        for (_, path) in closed(path)? {
            files.push(open(&path)?);
        }
        files.push(open(path)?);
        let mut next = files.into_iter();
        let first = next.next().ok_or(io::ErrorKind::NotFound)?;
        Ok(Files { present: BufReader::new(first), next, before: 0, read: 0 })
    }
}

impl Read for Files {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for Files {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.present.fill_buf()?.is_empty() {
            let Some(file) = self.next.next() else { break };
            self.present = BufReader::new(file);
            self.before = self.read;
        }
        self.present.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.read += amount as u64;
        self.present.consume(amount);
    }
}

impl Source for Files {
    fn last_bytes(&self, all: u64) -> u64 {
        all.saturating_sub(self.before)
    }
}

impl Source for &[u8] {
    fn last_bytes(&self, all: u64) -> u64 {
        all
    }
}
