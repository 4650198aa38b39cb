//! What `attach` and the holder of a bottle say to each other over a stream: a kind, a length, bytes.

use std::io::{self, Read, Write};

/// One thing that is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Bytes of the terminal, either way.
    Bytes(Vec<u8>),
    /// The size of the person's terminal: columns and rows.
    Size(u16, u16),
    /// The command has ended with this code.
    End(i32),
}

const BYTES: u8 = 0;
const SIZE: u8 = 1;
const END: u8 = 2;
/// The most bytes of one frame.
pub(crate) const BYTES_MAX: usize = u16::MAX as usize;

impl Frame {
    /// Writes it.
    pub(crate) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let (kind, bytes) = match self {
            Frame::Bytes(bytes) => (BYTES, bytes.clone()),
            Frame::Size(columns, rows) => (SIZE, [columns.to_le_bytes(), rows.to_le_bytes()].concat()),
            Frame::End(code) => (END, code.to_le_bytes().to_vec()),
        };
        let length = u16::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut whole = vec![kind];
        whole.extend(length.to_le_bytes());
        whole.extend(bytes);
        to.write_all(&whole)
    }

    /// Reads the next; `None` at the end.
    pub(crate) fn read(from: &mut impl Read) -> io::Result<Option<Frame>> {
        let mut head = [0; 3];
        match from.read_exact(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let mut bytes = vec![0; usize::from(u16::from_le_bytes([head[1], head[2]]))];
        from.read_exact(&mut bytes)?;
        let frame = match (head[0], bytes.as_slice()) {
            (BYTES, _) => Frame::Bytes(bytes),
            (SIZE, &[a, b, c, d]) => Frame::Size(u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])),
            (END, &[a, b, c, d]) => Frame::End(i32::from_le_bytes([a, b, c, d])),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        Ok(Some(frame))
    }
}

/// Finds the keys that leave the bottle running among those that are for its command: Ctrl-] and then d. Ctrl-] twice is one
/// for the command.
#[derive(Debug, Default)]
pub(crate) struct Leave {
    begun: bool,
}

const CONTROL_BRACKET: u8 = 0x1d;

impl Leave {
    /// What of `typed` is for the command, and whether the person leaves.
    pub(crate) fn sift(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len());
        for &byte in typed {
            match (std::mem::take(&mut self.begun), byte) {
                (false, CONTROL_BRACKET) => self.begun = true,
                (true, b'd') => return (passed, true),
                (true, CONTROL_BRACKET) => passed.push(CONTROL_BRACKET),
                (true, byte) => passed.extend([CONTROL_BRACKET, byte]),
                (false, byte) => passed.push(byte),
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let frames =
            [Frame::Bytes(vec![0, 255]), Frame::Size(80, 24), Frame::End(-1), Frame::Bytes(Vec::new())];
        let mut stream = Vec::new();
        frames.iter().for_each(|frame| frame.write(&mut stream).unwrap());
        let mut stream = stream.as_slice();
        for frame in frames {
            assert_eq!(Frame::read(&mut stream).unwrap(), Some(frame));
        }
        assert_eq!(Frame::read(&mut stream).unwrap(), None);
    }

    #[test]
    fn an_unknown_kind_or_a_wrong_length_is_an_error() {
        assert!(Frame::read(&mut [7_u8, 0, 0].as_slice()).is_err());
        assert!(Frame::read(&mut [SIZE, 1, 0, 9].as_slice()).is_err());
        assert!(Frame::read(&mut [BYTES, 9, 0, 9].as_slice()).is_err(), "cut off");
    }

    #[test]
    fn two_keys_leave_and_everything_else_is_for_the_command() {
        let mut leave = Leave::default();
        assert_eq!(leave.sift(b"ls\r"), (b"ls\r".to_vec(), false));
        assert_eq!(leave.sift(b"a\x1d"), (b"a".to_vec(), false));
        assert_eq!(leave.sift(b"x\x1d\x1d"), (b"\x1dx\x1d".to_vec(), false));
        assert_eq!(
            leave.sift(b"b\x1ddc"),
            (b"b".to_vec(), true),
            "also when they come apart from each other"
        );
    }
}
