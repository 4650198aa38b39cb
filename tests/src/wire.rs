//! Egress with the routes that the wire corpus asks of every proxy, and the corpus to play against it.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::{Binaries, Bundle, Finished, Run};

/// So many cases are played at once.
const ORIGINS: usize = 4;

/// A bundle of egress alone that allows GET and POST below /allowed/ on the corpus's origins.
#[derive(Debug)]
pub struct Wire {
    /// The bundle.
    pub bundle: Bundle,
    origins: Vec<SocketAddr>,
    identity: TempDir,
}

impl Wire {
    /// Starts it. The origins exist only while [`Wire::play`] runs.
    pub fn start() -> Result<Self> {
        // The routes must name the origins' ports before anything listens on them.
        let held =
            (0..ORIGINS).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<Vec<_>>>()?;
        let origins = held.iter().map(TcpListener::local_addr).collect::<std::io::Result<Vec<_>>>()?;
        let mut routes = "routes:\n".to_owned();
        for scheme in ["http", "https"] {
            for port in origins.iter().map(SocketAddr::port) {
                write!(
                    routes,
                    "  - host: localhost\n    scheme: {scheme}\n    ports: [{port}]\n    matches:\n      - paths: [{{type: prefix, value: /allowed/}}]\n        methods: [GET, POST]\n    allow_private: [\"127.0.0.1:{port}\", \"[::1]:{port}\"]\n"
                )?;
            }
        }
        let identity = tempfile::tempdir()?;
        corpus(&identity)?.args(["--prepare"]).ok().context("cannot make the origin's authority")?;
        let bundle = Bundle::builder()?
            .daemons("egress")
            .routes(&routes)?
            .upstream_ca(&identity.path().join("origin-ca.pem"))
            .start()?;
        Ok(Self { bundle, origins, identity })
    }

    /// Plays the cases, all or those that `--only` names.
    pub fn play(&self, args: &[&str]) -> Result<Finished> {
        let mut run = corpus(&self.identity)?.args(["--proxy", &self.bundle.proxy()]);
        run = run.args(["--ca".as_ref(), self.bundle.ca().as_os_str()]);
        for origin in &self.origins {
            run = run.args(["--origin", &origin.to_string()]);
        }
        run.args(args).finish()
    }
}

fn corpus(identity: &TempDir) -> Result<Run> {
    let program = Binaries::find()?.program("bottlecap-corpus");
    Ok(Run::new(program).args(["--origin-dir".as_ref(), identity.path().as_os_str()]))
}
