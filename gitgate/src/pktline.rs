//! Git's framing: four hex digits of length, then the payload.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::timeout;

/// The longest request line; git itself writes a few hundred bytes.
const LINE_MAX_BYTES: usize = 4096;

/// How long a client may take for its request line.
const LINE_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest packet there is, its head included.
const PACKET_MAX_BYTES: usize = 65_520;
const HEAD_BYTES: usize = 4;

/// One packet of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Packet {
    /// `0000`
    Flush,
    /// `0001`
    Delimiter,
    /// `0002`
    End,
    /// Anything else.
    Data(Vec<u8>),
}

impl Packet {
    /// The packet as it goes over the wire.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Flush => b"0000".to_vec(),
            Self::Delimiter => b"0001".to_vec(),
            Self::End => b"0002".to_vec(),
            Self::Data(payload) => line(payload),
        }
    }

    /// The payload as a line.
    pub(crate) fn text(&self) -> Option<&[u8]> {
        match self {
            Self::Data(payload) => Some(payload.strip_suffix(b"\n").unwrap_or(payload)),
            Self::Flush | Self::Delimiter | Self::End => None,
        }
    }
}

/// The next packet; none where the stream ends in front of one.
pub(crate) async fn next(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Packet>> {
    let mut head = [0; HEAD_BYTES];
    let first = stream.read(&mut head).await?;
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut head[first..]).await?;
    let length = match number(head) {
        Some(0) => return Ok(Some(Packet::Flush)),
        Some(1) => return Ok(Some(Packet::Delimiter)),
        Some(2) => return Ok(Some(Packet::End)),
        Some(length @ HEAD_BYTES..=PACKET_MAX_BYTES) => length - HEAD_BYTES,
        Some(_) | None => return Err(io::Error::new(io::ErrorKind::InvalidData, "this is not a packet")),
    };
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    Ok(Some(Packet::Data(payload)))
}

/// The first packet of these bytes, and what follows it; none where there is no whole one.
pub(crate) fn split(bytes: &[u8]) -> Option<(Packet, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
    let packet = match number(*head)? {
        0 => Packet::Flush,
        1 => Packet::Delimiter,
        2 => Packet::End,
        length @ HEAD_BYTES..=PACKET_MAX_BYTES => {
            let (payload, rest) = rest.split_at_checked(length - HEAD_BYTES)?;
            return Some((Packet::Data(payload.to_vec()), rest));
        }
        _ => return None,
    };
    Some((packet, rest))
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum PktError {
    #[error("the request line did not come in time")]
    Timeout,
    #[error("the request line is not a pkt-line of at most {LINE_MAX_BYTES} bytes")]
    Frame,
    #[error("the client hung up")]
    Io(#[from] io::Error),
}

/// Reads one line, bounded in length and time.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, PktError> {
    timeout(LINE_TIMEOUT, read_line(stream)).await.map_err(|_| PktError::Timeout)?
}

/// The line that makes a client say `fatal: remote error: MESSAGE`.
pub(crate) fn error(message: &str) -> Vec<u8> {
    const MESSAGE_MAX_BYTES: usize = 3000;
    let mut end = message.len().min(MESSAGE_MAX_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    line(format!("ERR {}\n", &message[..end]).as_bytes())
}

/// A short payload in its frame.
pub(crate) fn line(payload: &[u8]) -> Vec<u8> {
    let mut line = format!("{:04x}", payload.len() + 4).into_bytes();
    line.extend_from_slice(payload);
    line
}

async fn read_line(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, PktError> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let length = length(head).ok_or(PktError::Frame)?;
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    Ok(payload)
}

fn length(head: [u8; HEAD_BYTES]) -> Option<usize> {
    let whole = number(head)?;
    (5..=LINE_MAX_BYTES).contains(&whole).then(|| whole - HEAD_BYTES)
}

fn number(head: [u8; HEAD_BYTES]) -> Option<usize> {
    if !head.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    usize::from_str_radix(std::str::from_utf8(&head).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_line_counts_itself() {
        assert_eq!(error("no"), b"000bERR no\n");
    }

    #[test]
    fn a_long_error_is_cut_at_a_character() {
        let line = error(&"ä".repeat(4000));
        let text = String::from_utf8(line).expect("cut at a character");
        assert_eq!(usize::from_str_radix(&text[..4], 16), Ok(text.len()));
    }

    #[tokio::test]
    async fn a_line_is_read_whole_and_bounded() {
        assert_eq!(read(&mut &b"0009helloX"[..]).await.expect("a line"), b"hello");
        for bytes in [&b"0000"[..], b"0004", b"+009hello", b"1001", b"GET / HTTP"] {
            assert!(matches!(read(&mut &bytes[..]).await, Err(PktError::Frame)), "{bytes:?}");
        }
        assert!(matches!(read(&mut &b"0009hel"[..]).await, Err(PktError::Io(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_given_up() {
        let (mut ours, _theirs) = tokio::io::duplex(8);
        assert!(matches!(read(&mut ours).await, Err(PktError::Timeout)));
    }
}
