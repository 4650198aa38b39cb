//! What a client of the bottle waits while another one attacks, against what it waits in calm; and what it waits while the same attack
//! goes on at another egress beside this one, which is what the machine alone makes of it: with few processors everybody waits when
//! somebody works. They take turns, for the machine changes. The attacker, and the upstream host that it calls, run only where nobody
//! else would (SCHED_IDLE, sched(7)): they stand for machines of their own.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::{Bundle, EchoServer, PATIENCE};

/// How often all attacks have their turn, and the requests of the friendly client in calm, beside an attack and under it.
const TURNS: usize = 9;
const REQUESTS: usize = 300;
/// Connections that one attack holds.
const HELD: usize = 1000;
/// What others may wait, against calm.
const RATIO_MAX: f64 = 3.0;
/// As the only argument: this process is the upstream host that the attacker calls.
const HOST: &str = "host";
/// Bytes of an unfinished head.
const HEAD: usize = 48 * 1024;

/// A tunnel that anybody may have: what is asked in it is refused there.
const CONNECT: &str = "CONNECT silent.example:443 HTTP/1.1\r\nHost: silent.example:443\r\n\r\n";

/// Who attacks, and how.
#[derive(Debug, Clone, Copy)]
enum Attack {
    Calm,
    UnfinishedHeads,
    SilentTunnels,
    Churn,
    Handshakes,
    Refusals,
    Downloads,
    Pipelines,
}

const ATTACKS: [(Attack, &str); 8] = [
    (Attack::Calm, "calm"),
    (Attack::UnfinishedHeads, "1,000 unfinished heads of 48 KiB, held"),
    (Attack::SilentTunnels, "1,000 tunnels without a ClientHello, held"),
    (Attack::Churn, "connections opened and dropped, as fast as one client can"),
    (Attack::Handshakes, "TLS handshakes begun and dropped, as fast as one client can"),
    (Attack::Refusals, "refused requests, as fast as one client can"),
    (Attack::Downloads, "one client downloads without an end"),
    (Attack::Pipelines, "100 requests in each write, no answer read"),
];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    match &arguments[..] {
        [_, attack, proxy, api] => {
            let known = ATTACKS.iter().find(|(_, name)| name == attack);
            let (attack, _) = known.context("no such attack")?;
            until_told(*attack, proxy.parse()?, api.parse()?)
        }
        [_, word] if word == HOST => {
            writeln!(std::io::stdout(), "{}", serve()?)?;
            std::io::stdin().read_to_end(&mut Vec::new())?;
            Ok(())
        }
        _ => measure(),
    }
}

/// This program as a process that gives way to all others, until its input ends.
fn apart(arguments: &[&str]) -> Result<(Child, BufReader<ChildStdout>)> {
    let mut child = Command::new("chrt")
        .args(["--idle", "0"])
        .arg(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let said = child.stdout.take().context("it has an output")?;
    Ok((child, BufReader::new(said)))
}

fn measure() -> Result<()> {
    let api = serve()?;
    // It ends with this process, which has the other end of its input.
    let (_host, mut said) = apart(&[HOST])?;
    let mut called = String::new();
    said.read_line(&mut called)?;
    let called: SocketAddr = called.trim().parse()?;
    let routes: String = [api, called]
        .iter()
        .map(|of| {
            format!(
                "  - host: 127.0.0.1\n    scheme: http\n    ports: [{}]\n    allow_private: [\"{of}\"]\n",
                of.port()
            )
        })
        .collect();
    let routes = format!("routes:\n{routes}");
    let start = || Bundle::builder()?.daemons("egress").routes(&routes)?.start();
    let (bundle, other) = (start()?, start()?);
    let (proxy, beside) = (bundle.address(9099), other.address(9099));
    // The first requests pay for what the later ones find.
    friendly(proxy, api)?;
    let (mut calm, mut rows) = (Vec::new(), ATTACKS.map(|_| (Vec::new(), Vec::new(), 0)));
    for _ in 0..TURNS {
        for ((_, name), (elsewhere, waits, done)) in ATTACKS.iter().zip(&mut rows) {
            calm.extend(friendly(proxy, api)?);
            elsewhere.extend(attacked([name, &beside.to_string(), &called.to_string()], proxy, api)?.0);
            let (waited, did) = attacked([name, &proxy.to_string(), &called.to_string()], proxy, api)?;
            waits.extend(waited);
            *done += did;
        }
    }
    let calm = percentile(calm, 99);
    let mut out = std::io::stdout();
    writeln!(
        out,
        "In calm the p99 is {:.2} ms.\n\n\
         | another client | p50 | p99 | against calm | p99, attack beside | against beside | what it did |\n\
         |---|---:|---:|---:|---:|---:|---:|",
        millis(calm)
    )?;
    let mut held = true;
    for ((attack, name), (elsewhere, waits, done)) in ATTACKS.into_iter().zip(rows) {
        let (p50, p99) = (percentile(waits.clone(), 50), percentile(waits, 99));
        let elsewhere = percentile(elsewhere, 99);
        let against = |other: Duration| p99.as_secs_f64() / other.as_secs_f64();
        let (to_calm, to_elsewhere) = (against(calm), against(elsewhere));
        held &= to_calm <= RATIO_MAX || matches!(attack, Attack::Calm);
        let [p50, p99, elsewhere] = [p50, p99, elsewhere].map(millis);
        writeln!(
            out,
            "| {name} | {p50:.2} ms | {p99:.2} ms | {to_calm:.1} | {elsewhere:.2} ms | {to_elsewhere:.1} | {done} |"
        )?;
    }
    let word = if held { "met" } else { "missed" };
    writeln!(out, "\nOthers wait at most {RATIO_MAX} times as long as in calm (p99): {word}.")?;
    Ok(())
}

fn millis(wait: Duration) -> f64 {
    wait.as_secs_f64() * 1000.0
}

fn percentile(mut waits: Vec<Duration>, percent: usize) -> Duration {
    waits.sort();
    waits[waits.len() * percent / 100]
}

/// What the friendly client of `proxy` waits while somebody attacks, and how often that one did.
fn attacked(attack: [&str; 3], proxy: SocketAddr, api: SocketAddr) -> Result<(Vec<Duration>, u64)> {
    let (mut attacker, mut said) = apart(&attack)?;
    // One byte when what it holds is open.
    said.read_exact(&mut [0])?;
    let waits = friendly(proxy, api);
    drop(attacker.stdin.take());
    let mut done = String::new();
    said.read_to_string(&mut done)?;
    attacker.wait()?;
    Ok((waits?, done.parse()?))
}

/// Attacks until the input ends, and says how often.
fn until_told(attack: Attack, proxy: SocketAddr, api: SocketAddr) -> Result<()> {
    let held = hold(attack, proxy, api)?;
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(held.len() as u64));
    let mut out = std::io::stdout();
    out.write_all(b".")?;
    out.flush()?;
    std::thread::scope(|scope| {
        scope.spawn(|| repeat(attack, proxy, api, &stop, &done));
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        stop.store(true, Ordering::Relaxed);
    });
    write!(out, "{}", done.load(Ordering::Relaxed))?;
    Ok(())
}

/// An API without TLS on loopback, for as long as the program runs.
fn serve() -> Result<SocketAddr> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let server = EchoServer::bind_plain(([127, 0, 0, 1], 0).into()).await?;
            sender.send(server.address()?)?;
            match server.serve().await? {}
        })
    });
    receiver.recv_timeout(PATIENCE).context("the API did not start")
}

fn get(api: SocketAddr, path: &str) -> String {
    format!("GET http://{api}{path} HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\n\r\n")
}

/// How long each request took, every one on a connection of its own.
fn friendly(proxy: SocketAddr, api: SocketAddr) -> Result<Vec<Duration>> {
    let request = get(api, "/");
    let mut waits = Vec::with_capacity(REQUESTS);
    let mut answer = Vec::new();
    for _ in 0..REQUESTS {
        let begun = Instant::now();
        let mut stream = open(proxy)?;
        stream.write_all(request.as_bytes())?;
        answer.clear();
        stream.read_to_end(&mut answer)?;
        waits.push(begun.elapsed());
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "not served: {}", String::from_utf8_lossy(&answer));
    }
    Ok(waits)
}

/// The first that a client says in a TLS handshake.
fn hello() -> Result<Vec<u8>> {
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut said = Vec::new();
    rustls::ClientConnection::new(config.into(), "silent.example".try_into()?)?.write_tls(&mut said)?;
    Ok(said)
}

fn open(proxy: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(proxy)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The connections that an attack opens once and keeps.
fn hold(attack: Attack, proxy: SocketAddr, api: SocketAddr) -> Result<Vec<TcpStream>> {
    let opening = match attack {
        Attack::UnfinishedHeads => format!("GET http://{api}/ HTTP/1.1\r\nX-Long: {}", "a".repeat(HEAD)),
        Attack::SilentTunnels => CONNECT.to_owned(),
        Attack::Calm
        | Attack::Churn
        | Attack::Handshakes
        | Attack::Refusals
        | Attack::Downloads
        | Attack::Pipelines => return Ok(Vec::new()),
    };
    let one = || {
        let mut stream = open(proxy)?;
        stream.write_all(opening.as_bytes())?;
        Ok(stream)
    };
    (0..HELD).map(|_| one()).collect()
}

/// What an attack does again and again until it is told to stop; its errors are egress defending itself.
fn repeat(attack: Attack, proxy: SocketAddr, api: SocketAddr, stop: &AtomicBool, done: &AtomicU64) {
    let hello = hello().unwrap_or_default();
    let once = || -> Result<()> {
        let mut stream = open(proxy)?;
        let mut buffer = vec![0; 64 * 1024];
        match attack {
            Attack::Calm | Attack::UnfinishedHeads | Attack::SilentTunnels | Attack::Churn => {}
            Attack::Handshakes => {
                stream.write_all(CONNECT.as_bytes())?;
                ensure!(stream.read(&mut buffer)? > 0);
                stream.write_all(&hello)?;
                ensure!(stream.read(&mut buffer)? > 0);
            }
            Attack::Refusals => {
                stream.write_all(get(api, "/").replace(&api.to_string(), "refused.example").as_bytes())?;
                while stream.read(&mut buffer)? > 0 {}
            }
            Attack::Downloads => {
                stream.write_all(get(api, "/bytes/1073741824").as_bytes())?;
                while !stop.load(Ordering::Relaxed) && stream.read(&mut buffer)? > 0 {}
            }
            Attack::Pipelines => {
                let request = format!("GET http://{api}/ HTTP/1.1\r\nHost: {api}\r\n\r\n").repeat(100);
                stream.set_write_timeout(Some(Duration::from_secs(1)))?;
                while !stop.load(Ordering::Relaxed) {
                    stream.write_all(request.as_bytes())?;
                }
            }
        }
        Ok(())
    };
    let idle = matches!(attack, Attack::Calm | Attack::UnfinishedHeads | Attack::SilentTunnels);
    while !idle && !stop.load(Ordering::Relaxed) {
        done.fetch_add(1, Ordering::Relaxed);
        drop(once());
    }
}
