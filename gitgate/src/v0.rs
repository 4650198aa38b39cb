//! What a reader asks for in protocol v0 and v1, where one git holds the conversation.
//!
//! The beginning is read here, up to the flush packet that ends it, and passed on as it came: git would follow what is named in it to
//! objects that no ref reaches any more.

use tokio::io::AsyncRead;

use crate::pktline::{self, Packet};
use crate::v2::arguments::Arguments;

/// How much the beginning may hold.
const BEGINNING_MAX_BYTES: usize = 64 << 20;
const WANT: &[u8] = b"want ";
const OID_DIGITS: usize = 40;

/// Why the beginning is not passed on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    /// The client went away.
    Hangup,
    /// It is not what this version says.
    Malformed(&'static str),
}

/// How a reader begins, as it came and as it is understood.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Beginning {
    pub(crate) bytes: Vec<u8>,
    pub(crate) arguments: Arguments,
}

/// Reads the beginning to its flush packet, or to the end where nothing comes.
pub(crate) async fn read(client: &mut (impl AsyncRead + Unpin)) -> Result<Beginning, Unread> {
    const MALFORMED: Unread = Unread::Malformed("this is not how a reader begins in this protocol version");
    let mut beginning = Beginning::default();
    loop {
        let packet = match pktline::next(client).await {
            Ok(Some(packet)) => packet,
            Ok(None) if beginning.bytes.is_empty() => return Ok(beginning),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => return Err(MALFORMED),
            Ok(None) | Err(_) => return Err(Unread::Hangup),
        };
        let first = beginning.bytes.is_empty();
        beginning.bytes.extend(packet.bytes());
        if beginning.bytes.len() > BEGINNING_MAX_BYTES {
            return Err(MALFORMED);
        }
        match &packet {
            Packet::Flush => return Ok(beginning),
            Packet::Delimiter | Packet::End => return Err(MALFORMED),
            Packet::Data(_) => {}
        }
        let line = packet.text().unwrap_or_default();
        // Behind the first name stands what the client can do.
        let named = WANT.len() + OID_DIGITS;
        let behind = first && line.starts_with(WANT) && line.get(named) == Some(&b' ');
        let line = if behind { &line[..named] } else { line };
        beginning.arguments.understand(line).map_err(|_| MALFORMED)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "95d09f2b10159347eece71399a7e2e907ea3df4f";
    const B: &str = "2222222222222222222222222222222222222222";

    async fn read_lines(lines: &[String]) -> Result<Beginning, Unread> {
        let lines: Vec<u8> = lines.iter().flat_map(|line| pktline::line(line.as_bytes())).collect();
        let bytes = [&lines[..], b"0000", b"0032have "].concat();
        let mut client = &bytes[..];
        let read = read(&mut client).await;
        assert!(read.is_err() || client == b"0032have ", "what follows is left");
        read
    }

    #[tokio::test]
    async fn a_beginning_is_read_as_git_reads_it() {
        let lines = [
            format!("want {A} multi_ack side-band-64k agent=git/2\n"),
            format!("want {B}\n"),
            format!("shallow {B}\n"),
        ];
        let read = read_lines(&[&lines[..], &["deepen 2147483647\n".to_owned()]].concat()).await;
        let arguments = read.expect("a beginning").arguments;
        assert!(arguments.whole_history && arguments.wants.len() == 2 && arguments.shallows.len() == 1);
        for odd in
            ["deepen 0x7fffffff", "deepen 017777777777", &format!("shallow {B}zz"), "filter sparse:oid=1"]
        {
            let read = read_lines(&[lines[0].clone(), odd.to_owned()]).await;
            assert!(matches!(read, Err(Unread::Malformed(_))), "{odd}");
        }
        assert!(matches!(read_lines(&[format!("want {A}x\n")]).await, Err(Unread::Malformed(_))));
        assert_eq!(super::read(&mut &b""[..]).await, Ok(Beginning::default()));
        assert_eq!(super::read(&mut &b"0032want"[..]).await, Err(Unread::Hangup));
    }
}
