//! The first bytes of a tunnel, read until the ClientHello is whole however it was cut.

use std::io;
use std::time::Duration;

use rustls::server::{Accepted, Acceptor};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

/// How long the client may take for its ClientHello.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// How large a ClientHello may be, with everything that follows in the same reads.
const SIZE_LIMIT: usize = 64 * 1024;
const CHUNK: usize = 4 * 1024;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// Encrypted Client Hello, RFC 9849.
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

/// A whole ClientHello.
pub(crate) struct ClientHello {
    /// Everything read so far; the ClientHello is at its beginning.
    pub(crate) bytes: Vec<u8>,
    /// The handshake that it began, with all of `bytes` but what is left over.
    pub(crate) accepted: Accepted,
    /// How much of `bytes` the handshake has not taken yet.
    pub(crate) left_over: usize,
    /// The name it asks for.
    pub(crate) server_name: Option<String>,
    /// Whether it may ask for another name in secret.
    pub(crate) encrypted: EncryptedHello,
}

/// Whether the ClientHello carries an encrypted one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EncryptedHello {
    /// It does not.
    Absent,
    /// It does, or that cannot be told.
    Present,
}

/// Why there is no ClientHello.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the client does not speak TLS")]
    NotTls,
    #[error("the client's TLS cannot be understood")]
    Malformed {
        /// What TLS has us answer, where it has.
        alert: Vec<u8>,
    },
    #[error("the client closed the tunnel before its ClientHello was whole")]
    Closed,
    #[error("the ClientHello is larger than {SIZE_LIMIT} bytes")]
    TooLarge,
    #[error("the client did not finish its ClientHello within {} s", TIME_LIMIT.as_secs())]
    TooSlow,
    #[error("cannot read from the client")]
    Read(#[from] io::Error),
}

/// Reads from `stream`, after what was read already, until the ClientHello is whole. Nothing is written.
pub(crate) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    already: Vec<u8>,
) -> Result<ClientHello, Error> {
    timeout(TIME_LIMIT, read_whole(stream, already)).await.unwrap_or(Err(Error::TooSlow))
}

async fn read_whole(stream: &mut (impl AsyncRead + Unpin), already: Vec<u8>) -> Result<ClientHello, Error> {
    let mut acceptor = Acceptor::default();
    let mut bytes = already;
    let mut fed = 0;
    loop {
        if bytes.first().is_some_and(|first| *first != HANDSHAKE) {
            return Err(Error::NotTls);
        }
        while fed < bytes.len() {
            let mut rest = &bytes[fed..];
            let took = acceptor.read_tls(&mut rest).map_err(|_| Error::TooLarge)?;
            if took == 0 {
                break;
            }
            fed += took;
            match acceptor.accept() {
                Ok(Some(accepted)) => {
                    let server_name = accepted.client_hello().server_name().map(str::to_owned);
                    let encrypted = encrypted_hello(&bytes);
                    let left_over = bytes.len() - fed;
                    return Ok(ClientHello { bytes, accepted, left_over, server_name, encrypted });
                }
                Ok(None) => {}
                Err((_, mut alert)) => {
                    let mut answer = Vec::new();
                    alert.write_all(&mut answer)?;
                    return Err(Error::Malformed { alert: answer });
                }
            }
        }
        if bytes.len() >= SIZE_LIMIT {
            return Err(Error::TooLarge);
        }
        let length = bytes.len();
        bytes.reserve(CHUNK);
        if (&mut *stream).take(CHUNK as u64).read_buf(&mut bytes).await? == 0 || bytes.len() == length {
            return Err(Error::Closed);
        }
    }
}

fn encrypted_hello(records: &[u8]) -> EncryptedHello {
    match extension_types(&handshake(records)) {
        Some(types) if !types.contains(&ENCRYPTED_CLIENT_HELLO) => EncryptedHello::Absent,
        Some(_) | None => EncryptedHello::Present,
    }
}

/// The handshake bytes of the records, put together.
fn handshake(mut records: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    while let [HANDSHAKE, _, _, high, low, rest @ ..] = records {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some((fragment, rest)) = rest.split_at_checked(length) else { break };
        message.extend_from_slice(fragment);
        records = rest;
    }
    message
}

/// The types of the ClientHello's extensions, in order; nothing when it cannot be followed.
fn extension_types(message: &[u8]) -> Option<Vec<u16>> {
    let mut reader = Reader(message);
    (reader.take(1)? == [CLIENT_HELLO]).then_some(())?;
    let length = reader.number(3)?;
    let mut hello = Reader(reader.take(length)?);
    hello.take(2 + 32)?;
    hello.prefixed(1)?;
    hello.prefixed(2)?;
    hello.prefixed(1)?;
    if hello.0.is_empty() {
        return Some(Vec::new());
    }
    let mut extensions = Reader(hello.prefixed(2)?);
    let mut types = Vec::new();
    while !extensions.0.is_empty() {
        types.push(u16::try_from(extensions.number(2)?).ok()?);
        extensions.prefixed(2)?;
    }
    Some(types)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, width: usize) -> Option<usize> {
        Some(self.take(width)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    fn prefixed(&mut self, width: usize) -> Option<&'a [u8]> {
        let length = self.number(width)?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::tls::provider;

    fn client_hello(name: &str) -> Vec<u8> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let mut client =
            ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same handshake message in records of `size` bytes.
    fn in_records_of(size: usize, hello: &[u8]) -> Vec<u8> {
        let mut records = Vec::new();
        for fragment in handshake(hello).chunks(size) {
            records.extend([HANDSHAKE, 3, 1]);
            records.extend(u16::try_from(fragment.len()).unwrap().to_be_bytes());
            records.extend(fragment);
        }
        records
    }

    async fn read_from(bytes: &[u8], already: usize) -> Result<ClientHello, Error> {
        let (mut ours, mut theirs) = tokio::io::duplex(1);
        let (already, rest) = bytes.split_at(already);
        let rest = rest.to_vec();
        let already = already.to_vec();
        let send = async move {
            let _ = theirs.write_all(&rest).await;
        };
        let (hello, ()) = tokio::join!(
            async {
                let hello = read(&mut ours, already).await;
                drop(ours);
                hello
            },
            send
        );
        hello
    }

    #[tokio::test]
    async fn a_hello_is_read_whole_from_any_fragmentation() {
        let whole = client_hello("api.example.com");
        for bytes in [whole.clone(), in_records_of(1, &whole), in_records_of(97, &whole)] {
            for already in [0, 1, 5, bytes.len()] {
                let hello = read_from(&bytes, already).await.unwrap();
                assert_eq!(hello.server_name.as_deref(), Some("api.example.com"));
                assert_eq!(hello.encrypted, EncryptedHello::Absent);
                assert_eq!(hello.bytes, bytes);
            }
        }
    }

    #[tokio::test]
    async fn bytes_that_are_not_tls_are_told_at_the_first_of_them() {
        for bytes in [&b"SSH-2.0-OpenSSH_9.2\r\n"[..], b"GET / HTTP/1.1\r\n", b"\x05\x01\x00", b"\x00"] {
            assert!(matches!(read_from(bytes, 0).await, Err(Error::NotTls)));
        }
    }

    #[tokio::test]
    async fn a_hello_that_ends_early_is_not_a_hello() {
        let whole = client_hello("api.example.com");
        assert!(matches!(read_from(&whole[..whole.len() - 1], 0).await, Err(Error::Closed)));
        assert!(matches!(read_from(&[], 0).await, Err(Error::Closed)));
    }

    #[tokio::test]
    async fn a_record_that_only_looks_like_tls_is_refused() {
        let error = read_from(b"\x16\x03\x01\x00\x05hello there", 0).await;
        assert!(matches!(error, Err(Error::Malformed { .. })));
    }

    #[test]
    fn an_encrypted_hello_is_seen_and_a_confused_one_counts_as_such() {
        let mut hello = handshake(&client_hello("api.example.com"));
        let appended = [0xfe, 0x0d, 0, 1, 0];
        let reader = &mut Reader(&hello[4 + 34..]);
        for width in [1, 2, 1] {
            reader.prefixed(width).unwrap();
        }
        let at = hello.len() - reader.0.len();
        let total = u16::from_be_bytes([hello[at], hello[at + 1]]) + 5;
        hello[at..at + 2].copy_from_slice(&total.to_be_bytes());
        hello.extend(appended);
        let length = u32::try_from(hello.len() - 4).unwrap().to_be_bytes();
        hello[1..4].copy_from_slice(&length[1..]);
        let mut record = vec![HANDSHAKE, 3, 1];
        record.extend(u16::try_from(hello.len()).unwrap().to_be_bytes());
        record.extend(&hello);
        assert_eq!(encrypted_hello(&record), EncryptedHello::Present);
        assert_eq!(encrypted_hello(&record[..20]), EncryptedHello::Present);
    }
}
