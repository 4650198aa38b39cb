//! WebSocket frames on their way: the agent's messages are searched and its placeholder replaced, upstream's are freed of secrets.

mod closing;
mod replaced;

use std::collections::VecDeque;
use std::mem;

use bytes::Bytes;
use scan::Uninspectable;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};

use crate::body::Limits;
use crate::credential::rewrite::Rewriter;
use crate::inspect::{Across, Inspection, Messages, Objection};
use crate::scrub::{Cleaner, Scrub};
use crate::splice::{Ended, Spliced};
pub(crate) use closing::{Agent, CloseCode};
use closing::{CLOSE, CODE_BYTES};
use replaced::Replaced;

/// The largest frame, and the most that is held back of a message.
const FRAME_MAX_BYTES: usize = 4 * 1024 * 1024;
const READ_BYTES: usize = 16 * 1024;
const FIN: u8 = 0x80;
const OPCODE: u8 = 0x0f;
const RESERVED: u8 = 0x70;
const CONTROL: u8 = 0x08;
const MASKED: u8 = 0x80;

/// What happens to the frames of a WebSocket.
#[derive(Default)]
pub(crate) struct Looks {
    pub(crate) inspection: Option<Inspection>,
    /// What replaces the placeholder in the agent's messages, after they were searched.
    pub(crate) placeholder: Option<Rewriter>,
    pub(crate) scrub: Option<Scrub>,
}

impl Looks {
    /// Whether frames have to be read, and so may not be compressed.
    pub(crate) fn are_any(&self) -> bool {
        self.inspection.is_some() || self.placeholder.is_some() || self.scrub.is_some()
    }
}

/// Passes frames both ways until both sides have closed, one fails, a limit is reached, or something may not go on.
pub(crate) async fn splice(
    agent: impl AsyncRead + AsyncWrite + Unpin,
    upstream: impl AsyncRead + AsyncWrite + Unpin,
    spliced: &Spliced,
    limits: &Limits,
    looks: Looks,
) -> Result<Ended, Objection> {
    let Looks { inspection, placeholder, scrub } = looks;
    let (mut agent_read, mut agent_write) = split(agent);
    let (mut upstream_read, mut upstream_write) = split(upstream);
    let searched = inspection.map(Filter::searched);
    let replaced = placeholder.map(Filter::replaced);
    let mut up: Vec<Filter> = searched.into_iter().chain(replaced).collect();
    let mut down: Vec<Filter> = scrub.as_ref().map(Filter::scrubbed).into_iter().collect();
    let both = async {
        tokio::try_join!(
            pump(&mut agent_read, &mut upstream_write, &mut up, |bytes| {
                spliced.up.note(bytes);
                true
            }),
            pump(&mut upstream_read, &mut agent_write, &mut down, |bytes| {
                spliced.down.note(bytes);
                limits.lease.unsearched().is_ok()
            }),
        )
    };
    tokio::select! {
        ended = both => match ended {
            Ok(_) | Err(None) => {
                Ok(limits.lease.unsearched().map_or_else(Ended::Revoked, |()| Ended::ByThem))
            }
            Err(Some(objection)) => Err(objection),
        },
        ended = spliced.limit(limits) => Ok(ended),
    }
}

/// Passes frames one way, for as long as what `note` is told of may go on.
async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    filters: &mut [Filter],
    note: impl Fn(usize) -> bool,
) -> Result<(), Option<Objection>> {
    let mut buffer = vec![0; READ_BYTES];
    let (mut passing, mut out) = (Vec::new(), Vec::new());
    loop {
        let length = from.read(&mut buffer).await.map_err(|_| None)?;
        if length == 0 {
            return to.shutdown().await.map_err(|_| None);
        }
        if !note(length) {
            return Err(None);
        }
        passing.extend_from_slice(&buffer[..length]);
        for filter in &mut *filters {
            filter.feed(&passing, &mut out).map_err(Some)?;
            passing.clear();
            mem::swap(&mut passing, &mut out);
        }
        to.write_all(&passing).await.map_err(|_| None)?;
        to.flush().await.map_err(|_| None)?;
        passing.clear();
    }
}

/// What happens to the frames of one direction.
enum Direction {
    /// Messages are searched, and control frames as messages of their own.
    Searched { messages: Box<Messages>, control: Box<Control>, waiting: Vec<u8> },
    /// Secrets are masked. A frame waits until all of its content is known to be good.
    Scrubbed { cleaner: Box<Cleaner>, waiting: VecDeque<Waiting>, clean: VecDeque<u8> },
    /// The placeholder is replaced.
    Replaced(Box<Replaced>),
}

/// Control frames under search.
struct Control {
    as_they_stand: Messages,
    /// Put together without the code of a Close, which is not part of what is said.
    texts: Across,
}

/// A frame whose content is not all there.
struct Waiting {
    head: Vec<u8>,
    mask: Option<[u8; 4]>,
    length: usize,
}

impl Direction {
    fn searched(inspection: Inspection) -> Direction {
        Direction::Searched {
            messages: Box::new(Messages::new(inspection.clone())),
            control: Box::new(Control {
                texts: Across::new(inspection.clone()),
                as_they_stand: Messages::new(inspection),
            }),
            waiting: Vec::new(),
        }
    }

    fn scrubbed(scrub: &Scrub) -> Direction {
        Direction::Scrubbed {
            cleaner: Box::new(scrub.cleaner()),
            waiting: VecDeque::new(),
            clean: VecDeque::new(),
        }
    }
}

pub(crate) struct Filter {
    direction: Direction,
    bytes: Vec<u8>,
}

/// The beginning of a frame.
struct Head {
    first: u8,
    mask: Option<[u8; 4]>,
    /// Where the content begins and ends.
    content: usize,
    end: usize,
}

impl Head {
    /// Reads a head; nothing when it is not all there.
    fn read(bytes: &[u8]) -> Option<Head> {
        let [first, second, rest @ ..] = bytes else { return None };
        let (length, extended) = match second & !MASKED {
            126 => (u64::from(u16::from_be_bytes(*rest.first_chunk::<2>()?)), 2),
            127 => (u64::from_be_bytes(*rest.first_chunk::<8>()?), 8),
            length => (u64::from(length), 0),
        };
        let mut content = 2 + extended;
        let mut mask = None;
        if second & MASKED != 0 {
            mask = Some(*bytes.get(content..)?.first_chunk::<4>()?);
            content += 4;
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        Some(Head { first: *first, mask, content, end: content.saturating_add(length) })
    }

    /// How much of the content stands before the text of a Close frame.
    fn code_bytes(&self) -> usize {
        if self.first & OPCODE == CLOSE { CODE_BYTES.min(self.end - self.content) } else { 0 }
    }
}

fn toggle(mask: Option<[u8; 4]>, content: &mut [u8]) {
    if let Some(mask) = mask {
        content.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
    }
}

impl Filter {
    fn new(direction: Direction) -> Filter {
        Filter { direction, bytes: Vec::new() }
    }

    /// Puts the secret in place of the placeholder.
    pub(crate) fn replaced(rewriter: Rewriter) -> Filter {
        Filter::new(Direction::Replaced(Box::new(Replaced::new(rewriter))))
    }

    /// Searches what the agent sends.
    pub(crate) fn searched(inspection: Inspection) -> Filter {
        Filter::new(Direction::searched(inspection))
    }

    /// Masks what upstream sends.
    pub(crate) fn scrubbed(scrub: &Scrub) -> Filter {
        Filter::new(Direction::scrubbed(scrub))
    }

    /// Takes some bytes of the stream, and gives what may go on.
    pub(crate) fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Objection> {
        self.bytes.extend_from_slice(bytes);
        let mut taken = 0;
        while let Some(head) = Head::read(&self.bytes[taken..]) {
            if head.end - head.content > FRAME_MAX_BYTES {
                return Err(Objection::TooBig);
            }
            let Some(frame) = self.bytes.get(taken..taken + head.end) else { break };
            if head.first & RESERVED != 0 {
                // An extension that was not agreed on.
                return Err(Objection::Uninspectable(Uninspectable::Encoding));
            }
            self.direction.pass(&head, frame, out)?;
            taken += head.end;
        }
        self.bytes.drain(..taken);
        Ok(())
    }
}

impl Direction {
    fn pass(&mut self, head: &Head, frame: &[u8], out: &mut Vec<u8>) -> Result<(), Objection> {
        let mut content = frame[head.content..].to_vec();
        toggle(head.mask, &mut content);
        let is_control = head.first & CONTROL != 0;
        let ends = head.first & FIN != 0;
        match self {
            Direction::Replaced(replaced) => replaced.pass(head, frame, &content, out)?,
            Direction::Searched { control, .. } if is_control => {
                control.as_they_stand.feed(&content, None)?;
                control.as_they_stand.end_message()?;
                let code = head.code_bytes();
                control.texts.feed(&content[code..])?;
                if code > 0 {
                    control.texts.end()?;
                }
                out.extend_from_slice(frame);
            }
            Direction::Searched { messages, waiting, .. } => {
                messages.feed(&content, None)?;
                if ends {
                    messages.end_message()?;
                }
                waiting.extend_from_slice(frame);
                if messages.held() == 0 {
                    out.append(waiting);
                } else if waiting.len() > FRAME_MAX_BYTES {
                    return Err(Objection::Held);
                }
            }
            Direction::Scrubbed { cleaner, waiting, clean } => {
                if is_control {
                    let mut masked = cleaner.aside(content, head.code_bytes())?;
                    toggle(head.mask, &mut masked);
                    out.extend_from_slice(&frame[..head.content]);
                    out.extend_from_slice(&masked);
                } else {
                    let length = content.len();
                    clean.extend(cleaner.feed(Bytes::from(content))?);
                    if ends {
                        clean.extend(cleaner.end_message()?);
                    }
                    let head = Waiting { head: frame[..head.content].to_vec(), mask: head.mask, length };
                    waiting.push_back(head);
                    while waiting.front().is_some_and(|first| first.length <= clean.len()) {
                        let Some(first) = waiting.pop_front() else { break };
                        let mut content: Vec<u8> = clean.drain(..first.length).collect();
                        toggle(first.mask, &mut content);
                        out.extend(first.head);
                        out.extend(content);
                    }
                    if waiting.len() > FRAME_MAX_BYTES / 16 || clean.len() > FRAME_MAX_BYTES {
                        return Err(Objection::Held);
                    }
                }
            }
        }
        Ok(())
    }
}
