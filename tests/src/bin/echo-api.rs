//! The stand-in for an API of the outside world, as a program: answers every request with what it received.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;
use tests::EchoServer;

/// Answers every HTTPS request with what it received, as JSON. A path that ends in `/bytes/N` is answered with N bytes.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example: echo-api --listen 127.0.0.1:8443 --name api.example.test --ca-out ca.pem"
)]
struct Options {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// A name or address that the certificate is for, repeatable.
    #[arg(long = "name", default_values_t = ["localhost".to_owned(), "127.0.0.1".to_owned()])]
    names: Vec<String>,
    /// The file that receives the certificate authority for clients to trust.
    #[arg(long)]
    ca_out: Option<PathBuf>,
    /// Says whether this bearer token was sent, instead of echoing the Authorization, and prints a line for each request.
    #[arg(long)]
    token: Option<String>,
    /// Without TLS.
    #[arg(long, conflicts_with = "ca_out")]
    plain: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let server = if options.plain {
        EchoServer::bind_plain(options.listen).await?
    } else {
        EchoServer::bind(options.listen, &options.names).await?
    };
    let server = match options.token {
        Some(token) => server.with_token(token),
        None => server,
    };
    if let Some(path) = &options.ca_out {
        std::fs::write(path, server.ca_pem()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening {}", server.address()?)?;
    stdout.flush()?;
    match server.serve().await? {}
}
