//! The placeholder in the agent's text messages: the secret takes its place, in a frame that is written anew.

use super::{CONTROL, FIN, Head, MASKED, OPCODE, toggle};
use crate::credential::rewrite::Rewriter;
use crate::inspect::Objection;
use crate::tls::random;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;

/// The agent's frames, in which the placeholder is replaced.
pub(super) struct Replaced {
    rewriter: Rewriter,
    /// What the message is whose frames come.
    message: Message,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    /// The next frame begins one.
    None,
    Text,
    /// Goes out as it is.
    Other,
}

impl Replaced {
    pub(super) fn new(rewriter: Rewriter) -> Replaced {
        Replaced { rewriter, message: Message::None }
    }

    /// Passes a frame with its content, which is not masked here.
    pub(super) fn pass(
        &mut self,
        head: &Head,
        frame: &[u8],
        content: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Objection> {
        if head.first & CONTROL != 0 {
            out.extend_from_slice(frame);
            return Ok(());
        }
        let message = match (head.first & OPCODE, self.message) {
            // Upstream may take what begins here for another message than we would.
            (CONTINUATION, Message::None) => return Err(Objection::Disordered),
            (CONTINUATION, message) => message,
            (_, Message::Text | Message::Other) => return Err(Objection::Disordered),
            (TEXT, Message::None) => {
                self.rewriter.restart();
                Message::Text
            }
            (_, Message::None) => Message::Other,
        };
        let ends = head.first & FIN != 0;
        self.message = if ends { Message::None } else { message };
        if message == Message::Other {
            out.extend_from_slice(frame);
            return Ok(());
        }
        let mut rewritten = self.rewriter.feed(content);
        if ends {
            rewritten.append(&mut self.rewriter.finish());
        }
        if rewritten == content {
            out.extend_from_slice(frame);
        } else {
            write(head, rewritten, out);
        }
        Ok(())
    }
}

/// Writes a frame like the one that `head` began, with other content under a mask of its own.
fn write(head: &Head, mut content: Vec<u8>, out: &mut Vec<u8>) {
    let masked = if head.mask.is_some() { MASKED } else { 0 };
    let length = content.len();
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..126), _) => out.extend([head.first, masked | short]),
        (_, Ok(middle)) => {
            out.extend([head.first, masked | 126]);
            out.extend(middle.to_be_bytes());
        }
        (_, Err(_)) => {
            out.extend([head.first, masked | 127]);
            out.extend((length as u64).to_be_bytes());
        }
    }
    let mask = head.mask.map(|_| random::<4>());
    out.extend(mask.into_iter().flatten());
    toggle(mask, &mut content);
    out.append(&mut content);
}
