use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use super::{Bench, HOST, PATIENCE, read_head};

/// An origin that does with its connections what a test tells it.
pub(crate) struct Origin {
    pub(crate) listener: TcpListener,
    pub(crate) bench: Bench,
}

impl Origin {
    pub(crate) async fn new() -> Origin {
        Origin::with("").await
    }

    /// With `more` in its route. It takes little that it does not read.
    pub(crate) async fn with(more: &str) -> Origin {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(16).unwrap();
        let port = listener.local_addr().unwrap().port();
        let bench = Bench::with(|_| {
            format!(
                "routes:\n  - host: {HOST}\n    scheme: http\n    ports: [{port}]\n    allow_private: [127.0.0.0/8]\n    {more}\n"
            )
        })
        .await;
        Origin { listener, bench }
    }

    pub(crate) async fn accept(&self) -> TcpStream {
        timeout(PATIENCE, self.listener.accept()).await.unwrap().unwrap().0
    }

    /// Sends a request to the proxy, answers it on a new connection, and gives that.
    pub(crate) async fn answered(&self, agent: &mut TcpStream, answer: &[u8]) -> TcpStream {
        self.ask(agent, "GET", "").await;
        let mut line = self.accept().await;
        read_head(&mut line).await;
        line.write_all(answer).await.unwrap();
        assert!(read_head(agent).await.starts_with("HTTP/1.1 200"));
        line
    }

    /// Sends a request to the proxy, with `more` after its first lines.
    pub(crate) async fn ask(&self, agent: &mut TcpStream, method: &str, more: &str) {
        let port = self.listener.local_addr().unwrap().port();
        let head = format!("{method} http://{HOST}:{port}/ HTTP/1.1\r\nhost: {HOST}:{port}\r\n{more}\r\n");
        agent.write_all(head.as_bytes()).await.unwrap();
    }
}
