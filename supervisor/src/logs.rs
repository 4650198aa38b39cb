//! Log lines: kept whole, marked with who said them, forwarded, and kept in bounded rings.

use std::collections::VecDeque;
use std::fmt::Write as _;

use crate::cli::LogFormat;
use crate::daemon::Daemon;
use crate::plan::Level;

/// Longest line; the rest of a longer one is forwarded as lines of its own.
const LINE_LIMIT: usize = 16 * 1024;
/// Bytes kept of each source for `supervisor logs`.
const RING_LIMIT: usize = 128 * 1024;
/// Bytes that wait for our own output; more is dropped and counted.
const QUEUE_LIMIT: usize = 512 * 1024;

/// Who said a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The supervisor itself.
    Supervisor,
    /// One of its daemons.
    Daemon(Daemon),
}

impl Source {
    /// The name shown in brackets.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Supervisor => "supervisor",
            Self::Daemon(daemon) => daemon.name(),
        }
    }

    /// The source of that name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        if name == Self::Supervisor.name() {
            return Some(Self::Supervisor);
        }
        Daemon::parse(name).ok().map(Self::Daemon)
    }
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Takes bytes and hands out each line that is complete, cleaned for a terminal.
    pub(crate) fn push(&mut self, bytes: &[u8], mut each: impl FnMut(String)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, complete) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            self.partial.extend_from_slice(text);
            while self.partial.len() > LINE_LIMIT {
                let rest = self.partial.split_off(LINE_LIMIT);
                each(clean(&self.partial));
                self.partial = rest;
            }
            if complete {
                each(clean(&self.partial));
                self.partial.clear();
            }
        }
    }

    /// The last line, when the stream ended without a line break.
    pub(crate) fn finish(&mut self) -> Option<String> {
        let partial = std::mem::take(&mut self.partial);
        (!partial.is_empty()).then(|| clean(&partial))
    }
}

/// Text without control characters: what a daemon logs may come from the bottle.
fn clean(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.strip_suffix('\r').unwrap_or(&text);
    let mut cleaned = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() && letter != '\t' {
            let _ = write!(cleaned, "{}", letter.escape_unicode());
        } else {
            cleaned.push(letter);
        }
    }
    cleaned
}

/// One kept line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Increases over all sources.
    pub(crate) number: u64,
    /// Who said it.
    pub(crate) source: Source,
    /// What was said.
    pub(crate) text: String,
}

#[derive(Debug, Default)]
struct Ring {
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Ring {
    fn push(&mut self, entry: Entry) {
        self.bytes += entry.text.len() + size_of::<Entry>();
        self.entries.push_back(entry);
        while self.bytes > RING_LIMIT {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.bytes -= oldest.text.len() + size_of::<Entry>();
        }
    }
}

/// All log lines: a ring per source, so that a chatty daemon cannot push out what another said, and our output queue.
#[derive(Debug)]
pub(crate) struct Logs {
    format: LogFormat,
    rings: [Ring; 4],
    next: u64,
    queue: VecDeque<u8>,
    dropped: u64,
}

impl Logs {
    /// Empty logs that are written out in this format.
    pub(crate) fn new(format: LogFormat) -> Self {
        Self { format, rings: Default::default(), next: 0, queue: VecDeque::new(), dropped: 0 }
    }

    /// A line of a daemon.
    pub(crate) fn forward(&mut self, daemon: Daemon, text: String) {
        self.add(Source::Daemon(daemon), Level::Info, text);
    }

    /// A line of our own.
    pub(crate) fn say(&mut self, level: Level, text: impl Into<String>) {
        self.add(Source::Supervisor, level, text.into());
    }

    fn add(&mut self, source: Source, level: Level, text: String) {
        let line = render(self.format, source, level, &text);
        self.enqueue(&line);
        let entry = Entry { number: self.next, source, text };
        self.next += 1;
        self.rings[ring(source)].push(entry);
    }

    fn enqueue(&mut self, line: &str) {
        if self.queue.len() + line.len() > QUEUE_LIMIT {
            self.dropped += 1;
            return;
        }
        if self.dropped > 0 {
            let text = format!("{} log lines were dropped: the output is not read fast enough", self.dropped);
            self.dropped = 0;
            let note = render(self.format, Source::Supervisor, Level::Warn, &text);
            self.queue.extend(note.as_bytes());
        }
        self.queue.extend(line.as_bytes());
    }

    /// Bytes that wait to be written.
    pub(crate) fn queued(&self) -> &[u8] {
        self.queue.as_slices().0
    }

    /// So many bytes were written.
    pub(crate) fn written(&mut self, count: usize) {
        self.queue.drain(..count);
        if self.queue.is_empty() {
            self.queue.shrink_to(4096);
        }
    }

    /// The number that the next line will have.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Up to `limit` kept lines numbered `from` or later, of one source or of all, in order.
    pub(crate) fn since(&self, from: u64, source: Option<Source>, limit: usize) -> Vec<Entry> {
        let wanted = |index: usize| source.is_none_or(|source| ring(source) == index);
        let mut found: Vec<&Entry> = (0..self.rings.len())
            .filter(|index| wanted(*index))
            .flat_map(|index| {
                let entries = &self.rings[index].entries;
                let start = entries.partition_point(|entry| entry.number < from);
                entries.range(start..).take(limit)
            })
            .collect();
        found.sort_unstable_by_key(|entry| entry.number);
        found.into_iter().take(limit).cloned().collect()
    }

    /// The last lines of a daemon that are numbered `from` or later.
    pub(crate) fn tail(&self, daemon: Daemon, from: u64, count: usize) -> Vec<String> {
        let entries = &self.rings[ring(Source::Daemon(daemon))].entries;
        let recent = entries.iter().rev().take(count).take_while(|entry| entry.number >= from);
        let mut lines: Vec<String> = recent.map(|entry| entry.text.clone()).collect();
        lines.reverse();
        lines
    }
}

const fn ring(source: Source) -> usize {
    match source {
        Source::Supervisor => 0,
        Source::Daemon(Daemon::Egress) => 1,
        Source::Daemon(Daemon::GitGate) => 2,
        Source::Daemon(Daemon::Supervise) => 3,
    }
}

/// One line of output, with its line break.
fn render(format: LogFormat, source: Source, level: Level, text: &str) -> String {
    let name = source.name();
    match format {
        LogFormat::Text => format!("[{name}] {text}\n"),
        LogFormat::Json => {
            let quoted = serde_json::Value::from(text);
            match source {
                Source::Supervisor => {
                    format!("{{\"daemon\":\"{name}\",\"level\":\"{}\",\"line\":{quoted}}}\n", level.as_str())
                }
                Source::Daemon(_) if is_object(text) => {
                    format!("{{\"daemon\":\"{name}\",\"event\":{text}}}\n")
                }
                Source::Daemon(_) => format!("{{\"daemon\":\"{name}\",\"line\":{quoted}}}\n"),
            }
        }
    }
}

fn is_object(text: &str) -> bool {
    text.starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(pieces: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::default();
        let mut out = Vec::new();
        for piece in pieces {
            lines.push(piece, |line| out.push(line));
        }
        out.extend(lines.finish());
        out
    }

    fn output(logs: &mut Logs) -> String {
        let bytes: Vec<u8> = logs.queue.drain(..).collect();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn lines_are_whole_however_the_bytes_arrive() {
        assert_eq!(cut(&[b"he", b"llo\nwor", b"ld\r\n", b"last"]), ["hello", "world", "last"]);
    }

    #[test]
    fn a_line_without_end_is_cut_and_bounded() {
        let long = vec![b'a'; 2 * LINE_LIMIT + 5];
        let lengths: Vec<usize> = cut(&[&long, b"\n"]).iter().map(String::len).collect();
        assert_eq!(lengths, [LINE_LIMIT, LINE_LIMIT, 5]);
    }

    #[test]
    fn terminal_escapes_and_broken_text_are_made_harmless() {
        assert_eq!(cut(&[b"\x1b[2Jhi\tthere\xff\n"]), ["\\u{1b}[2Jhi\tthere\u{fffd}"]);
    }

    #[test]
    fn text_lines_carry_their_source() {
        let mut logs = Logs::new(LogFormat::Text);
        logs.forward(Daemon::GitGate, "listening".to_owned());
        logs.say(Level::Info, "all ready");
        assert_eq!(output(&mut logs), "[git-gate] listening\n[supervisor] all ready\n");
    }

    #[test]
    fn json_lines_embed_what_is_json_already() {
        let mut logs = Logs::new(LogFormat::Json);
        logs.forward(Daemon::Egress, "{\"level\":\"info\"}".to_owned());
        logs.forward(Daemon::Egress, "{broken \"text\"".to_owned());
        logs.say(Level::Warn, "slow");
        assert_eq!(
            output(&mut logs),
            "{\"daemon\":\"egress\",\"event\":{\"level\":\"info\"}}\n\
             {\"daemon\":\"egress\",\"line\":\"{broken \\\"text\\\"\"}\n\
             {\"daemon\":\"supervisor\",\"level\":\"warn\",\"line\":\"slow\"}\n"
        );
    }

    #[test]
    fn a_chatty_daemon_does_not_push_out_what_another_said() {
        let mut logs = Logs::new(LogFormat::Text);
        logs.forward(Daemon::Supervise, "rare".to_owned());
        for _ in 0..10_000 {
            logs.forward(Daemon::Egress, "x".repeat(100));
        }
        assert_eq!(logs.tail(Daemon::Supervise, 0, 10), ["rare"]);
        assert!(logs.rings[1].bytes <= RING_LIMIT);
        assert!(logs.queue.len() <= QUEUE_LIMIT);
    }

    #[test]
    fn dropped_lines_are_counted_in_the_output() {
        let mut logs = Logs::new(LogFormat::Text);
        while logs.dropped < 3 {
            logs.forward(Daemon::Egress, "x".repeat(1000));
        }
        output(&mut logs);
        logs.say(Level::Info, "on we go");
        assert_eq!(
            output(&mut logs),
            "[supervisor] 3 log lines were dropped: the output is not read fast enough\n[supervisor] on we go\n"
        );
    }

    #[test]
    fn kept_lines_come_back_in_order_across_sources() {
        let mut logs = Logs::new(LogFormat::Text);
        logs.forward(Daemon::Egress, "one".to_owned());
        logs.forward(Daemon::GitGate, "two".to_owned());
        logs.forward(Daemon::Egress, "three".to_owned());
        let texts = |from, source, limit| {
            logs.since(from, source, limit).into_iter().map(|entry| entry.text).collect::<Vec<_>>()
        };
        assert_eq!(texts(0, None, 10), ["one", "two", "three"]);
        assert_eq!(texts(0, None, 2), ["one", "two"]);
        assert_eq!(texts(1, Some(Source::Daemon(Daemon::Egress)), 10), ["three"]);
    }
}
