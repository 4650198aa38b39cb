//! Messages of a stream under search: each by itself, and what only several of them together hold.

use std::sync::Arc;

use scan::{Encoding, Scanner, Uninspectable};

use super::{Inspection, Joint, Objection};

/// The messages of one stream in one direction.
pub(crate) struct Messages {
    inspection: Inspection,
    current: Option<Box<Scanner<'static>>>,
    across: Across,
    /// The message on its way, put to what went before it in any stream or request.
    joint: Option<Joint>,
}

impl Messages {
    pub(crate) fn new(inspection: Inspection) -> Messages {
        Messages { across: Across::new(inspection.clone()), joint: None, inspection, current: None }
    }

    /// Takes a part of the message that is on its way, which is in this encoding.
    pub(crate) fn feed(&mut self, part: &[u8], encoding: Option<Encoding>) -> Result<(), Objection> {
        self.catch_up();
        let current = self.current.get_or_insert_with(|| {
            let scanner = self.inspection.body_scanner();
            Box::new(match encoding {
                Some(encoding) => scanner.encoded(encoding),
                None => scanner,
            })
        });
        current.feed(part);
        judge(&self.inspection, current)?;
        self.across.feed(part)?;
        if encoding.is_none() && self.joint.is_none() {
            self.joint = Joint::of(&self.inspection);
        }
        match &mut self.joint {
            Some(joint) if encoding.is_none() => joint.feed(part),
            Some(_) | None => Ok(()),
        }
    }

    /// Looks for what became known since the stream began, too.
    fn catch_up(&mut self) {
        if let Some(known) = self.inspection.renewed() {
            if let Some(current) = &mut self.current {
                current.look_for(Arc::clone(&known));
            }
            if let Some(joint) = &mut self.joint {
                joint.look_for(&self.inspection, known);
            }
        }
    }

    /// The message ends here.
    pub(crate) fn end_message(&mut self) -> Result<(), Objection> {
        self.catch_up();
        if let Some(mut current) = self.current.take() {
            current.end();
            judge(&self.inspection, &current)?;
        }
        self.joint.take().map_or(Ok(()), |mut joint| joint.end())
    }

    /// How much of the message on its way may be a secret that is not yet whole.
    pub(crate) fn held(&self) -> u64 {
        self.current
            .as_ref()
            .map_or(0, |current| current.held())
            .max(self.joint.as_ref().map_or(0, Joint::held))
    }
}

/// What is sent in parts, over the borders of all of them, as the text stands there.
pub(crate) struct Across {
    inspection: Inspection,
    scanner: Box<Scanner<'static>>,
}

impl Across {
    pub(crate) fn new(inspection: Inspection) -> Across {
        Across { scanner: Box::new(inspection.plain()), inspection }
    }

    /// Takes the next part.
    pub(crate) fn feed(&mut self, part: &[u8]) -> Result<(), Objection> {
        if let Some(known) = self.inspection.renewed() {
            self.scanner.look_for(known);
        }
        self.scanner.feed(part);
        judge(&self.inspection, &self.scanner)
    }

    /// All has come. What comes after all belongs to nothing before.
    pub(crate) fn end(&mut self) -> Result<(), Objection> {
        let mut ended = std::mem::replace(&mut self.scanner, Box::new(self.inspection.plain()));
        ended.end();
        judge(&self.inspection, &ended)
    }
}

fn judge(inspection: &Inspection, scanner: &Scanner<'_>) -> Result<(), Objection> {
    match scanner.found() {
        Some(rule) => Err(Objection::Secret(rule, scanner.found_mark())),
        None => inspection.readable(scanner.uninspectable()),
    }
}

/// The frames that gRPC puts its messages in.
pub(super) struct GrpcFrames {
    encoding: Option<Encoding>,
    header: Vec<u8>,
    left: u64,
    compressed: bool,
}

impl GrpcFrames {
    const HEADER_BYTES: usize = 5;

    pub(super) fn new(encoding: Option<Encoding>) -> GrpcFrames {
        GrpcFrames { encoding, header: Vec::with_capacity(Self::HEADER_BYTES), left: 0, compressed: false }
    }

    /// Whether the last message is whole, and nothing of the next has come.
    pub(super) fn is_between(&self) -> bool {
        self.left == 0 && self.header.is_empty()
    }

    /// The stream ends here: an objection where that is in the middle of a message.
    pub(super) fn end(&self, inspection: &Inspection) -> Result<(), Objection> {
        inspection.readable(if self.is_between() { None } else { Some(Uninspectable::Damaged) })
    }

    pub(super) fn feed(&mut self, mut bytes: &[u8], messages: &mut Messages) -> Result<(), Objection> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                let (part, rest) = bytes.split_at(length);
                messages.feed(part, self.encoding.filter(|_| self.compressed))?;
                self.left -= length as u64;
                bytes = rest;
                if self.left == 0 {
                    messages.end_message()?;
                }
                continue;
            }
            self.header.push(bytes[0]);
            bytes = &bytes[1..];
            if let [flag, a, b, c, d] = self.header[..] {
                self.header.clear();
                self.left = u64::from(u32::from_be_bytes([a, b, c, d]));
                self.compressed = match flag {
                    0 => false,
                    1 if self.encoding.is_some() => true,
                    _ => {
                        messages.inspection.readable(Some(Uninspectable::Encoding))?;
                        false
                    }
                };
            }
        }
        Ok(())
    }
}
