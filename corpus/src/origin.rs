//! The runner's own origin: takes down every byte it is sent, in TLS or not, and answers each request.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::request::{Request, requests};

/// What is kept of one connection.
const KEPT: usize = 1 << 20;
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(60);
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 8\r\n\r\narrived\n";

/// The bytes of each connection so far.
#[derive(Debug, Default)]
struct Ledger {
    connections: Mutex<Vec<Vec<u8>>>,
    changed: Condvar,
}

/// A place in the ledger: what came before it belongs to earlier cases.
#[derive(Debug)]
pub(crate) struct Mark(Vec<usize>);

/// A running origin. Its threads end with the program.
#[derive(Debug)]
pub(crate) struct Origin {
    ledger: Arc<Ledger>,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Origin {
    pub(crate) fn listen(address: SocketAddr, tls: &Arc<ServerConfig>) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let ledger = Arc::new(Ledger::default());
        let (shared, tls) = (Arc::clone(&ledger), Arc::clone(tls));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (ledger, tls) = (Arc::clone(&shared), Arc::clone(&tls));
                let place = ledger.open();
                // A client that hangs up has been counted; that is all that is wanted of it.
                std::thread::spawn(move || drop(serve(&ledger, place, stream, tls)));
            }
        });
        Ok(Self { ledger, address })
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark(self.ledger.lock().iter().map(Vec::len).collect())
    }

    /// New connections, and requests that began since the mark.
    pub(crate) fn since(&self, mark: &Mark) -> (usize, Vec<Request>) {
        let connections = self.ledger.lock();
        let old = mark.0.iter().copied().chain(std::iter::repeat(0));
        let new = |(bytes, seen): (&Vec<u8>, usize)| {
            requests(bytes).into_iter().filter(move |(at, _)| *at >= seen).map(|(_, request)| request)
        };
        let found = connections.iter().zip(old).flat_map(new).collect();
        (connections.len() - mark.0.len(), found)
    }

    /// Returns once nothing has come for `quiet`.
    pub(crate) fn settle(&self, quiet: Duration) {
        let mut guard = self.ledger.lock();
        loop {
            let (next, timeout) =
                self.ledger.changed.wait_timeout(guard, quiet).unwrap_or_else(PoisonError::into_inner);
            if timeout.timed_out() {
                return;
            }
            guard = next;
        }
    }
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> usize {
        let mut connections = self.lock();
        connections.push(Vec::new());
        self.changed.notify_all();
        connections.len() - 1
    }

    /// Takes the bytes down; how many whole requests there are on the connection now.
    fn write(&self, place: usize, bytes: &[u8]) -> usize {
        let mut connections = self.lock();
        let kept = &mut connections[place];
        let room = KEPT.saturating_sub(kept.len());
        kept.extend(&bytes[..bytes.len().min(room)]);
        let count = requests(kept).len();
        self.changed.notify_all();
        count
    }
}

fn serve(ledger: &Ledger, place: usize, stream: TcpStream, tls: Arc<ServerConfig>) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let mut first = [0];
    if stream.peek(&mut first)? == 1 && first[0] == 0x16 {
        let connection = ServerConnection::new(tls).map_err(io::Error::other)?;
        answer(ledger, place, StreamOwned::new(connection, stream))
    } else {
        answer(ledger, place, stream)
    }
}

/// One answer for each request that began, so that nobody waits.
fn answer(ledger: &Ledger, place: usize, mut stream: impl Read + Write) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    let mut answered = 0;
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        let begun = ledger.write(place, &buffer[..count]);
        while answered < begun {
            stream.write_all(ANSWER)?;
            answered += 1;
        }
        stream.flush()?;
    }
}
