//! What the proxy costs, beside what others cost for the same work, as a Markdown table.
//!
//! The figure is the processor time of the proxy's process, by its own clock: the machine may be noisy, and client and
//! origin run beside it. `EGRESS_BENCH_HUDSUCKER` names a program built from benches/peers/hudsucker,
//! `EGRESS_BENCH_MITMDUMP` a mitmdump; a peer that is not named is left out. `EGRESS_BENCH_EGRESS` may name another egress. Arguments choose scenarios by name.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod client;
mod origin;
mod subject;

use std::time::Duration;

use client::Client;
use origin::Origin;
use subject::{Kind, Subject};

const GIB: u64 = 1 << 30;

/// How much of each scenario is done, by how fast the subject is: so much that all of it ends within minutes on a busy
/// machine. What is less than a gibibyte is extrapolated to one.
struct Load {
    requests: u64,
    connections: u64,
    bytes: u64,
    repetitions: usize,
}

impl Load {
    fn of(kind: Kind) -> Load {
        match kind {
            Kind::Egress | Kind::Hudsucker => {
                Load { requests: 2000, connections: 300, bytes: GIB / 4, repetitions: 3 }
            }
            Kind::Mitmdump => Load { requests: 300, connections: 50, bytes: GIB / 32, repetitions: 1 },
        }
    }
}

/// One row of the table: what is measured, and by which measure.
struct Row {
    name: &'static str,
    unit: &'static str,
    measure: fn(&tokio::runtime::Runtime, &Subject, &Origin) -> f64,
}

const ROWS: &[Row] = &[
    Row {
        name: "keep-alive request, HTTP/1.1 both sides",
        unit: "µs",
        measure: |r, s, o| keep_alive(r, s, o.http1),
    },
    Row {
        name: "keep-alive request, HTTP/2 to the origin",
        unit: "µs",
        measure: |r, s, o| keep_alive(r, s, o.http2),
    },
    Row { name: "new connection and one request", unit: "µs", measure: new_connections },
    Row { name: "1 GiB down", unit: "ms", measure: |r, s, o| transfer(r, s, o, Client::download) },
    Row { name: "1 GiB up", unit: "ms", measure: |r, s, o| transfer(r, s, o, Client::upload) },
];

fn main() {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str()));
    subject::raise_descriptors();
    let origin = Origin::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();

    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| kind.program().is_some()).collect();
    println!(
        "| processor time of the proxy per | {} |",
        kinds.iter().map(|k| k.name()).collect::<Vec<_>>().join(" | ")
    );
    println!("|---|{}", "---:|".repeat(kinds.len()));
    for row in ROWS.iter().filter(|row| is_wanted(row.name)) {
        let mut cells = Vec::new();
        let mut ours = None;
        for &kind in &kinds {
            let subject = Subject::start(kind, &origin);
            let value =
                median((0..Load::of(kind).repetitions).map(|_| (row.measure)(&runtime, &subject, &origin)));
            let first = *ours.get_or_insert(value);
            let ratio =
                if kind == Kind::Egress { String::new() } else { format!(" ({:.2}×)", value / first) };
            cells.push(format!("{value:.1} {}{ratio}", row.unit));
        }
        println!("| {} | {} |", row.name, cells.join(" | "));
    }
    if is_wanted("events") {
        events(&runtime, &origin);
    }
    if is_wanted("idle") {
        idle(&runtime, &origin);
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn keep_alive(runtime: &tokio::runtime::Runtime, subject: &Subject, port: u16) -> f64 {
    let count = Load::of(subject.kind).requests;
    runtime.block_on(async {
        let mut client = Client::connect(subject, port).await;
        for _ in 0..count / 20 {
            client.small().await;
        }
        let before = subject.processor_time();
        for _ in 0..count {
            client.small().await;
        }
        micros(subject.processor_time() - before) / count as f64
    })
}

fn new_connections(runtime: &tokio::runtime::Runtime, subject: &Subject, origin: &Origin) -> f64 {
    let count = Load::of(subject.kind).connections;
    runtime.block_on(async {
        Client::connect(subject, origin.http1).await.small().await;
        let before = subject.processor_time();
        for _ in 0..count {
            Client::connect(subject, origin.http1).await.small().await;
        }
        micros(subject.processor_time() - before) / count as f64
    })
}

fn transfer(
    runtime: &tokio::runtime::Runtime,
    subject: &Subject,
    origin: &Origin,
    pass: impl AsyncFn(&mut Client, u64),
) -> f64 {
    let bytes = Load::of(subject.kind).bytes;
    runtime.block_on(async {
        let mut client = Client::connect(subject, origin.http1).await;
        client.small().await;
        let before = subject.processor_time();
        pass(&mut client, bytes).await;
        micros(subject.processor_time() - before) / 1000.0 * (GIB / bytes) as f64
    })
}

/// What the proxy adds to the way of an event.
fn events(runtime: &tokio::runtime::Runtime, origin: &Origin) {
    let subject = Subject::start(Kind::Egress, origin);
    let direct =
        runtime.block_on(async { Client::direct(&subject, origin.http1).await.events(origin).await });
    let through =
        runtime.block_on(async { Client::connect(&subject, origin.http1).await.events(origin).await });
    println!("\n| one event of a stream, 1000 a second | direct | through egress |\n|---|---:|---:|");
    for (name, part) in [("p50", 0.50), ("p99", 0.99)] {
        let at = |delays: &[Duration]| delays[(delays.len() as f64 * part) as usize].as_secs_f64() * 1000.0;
        println!("| {name} | {:.3} ms | {:.3} ms |", at(&direct), at(&through));
    }
}

/// What idle tunnels hold.
fn idle(runtime: &tokio::runtime::Runtime, origin: &Origin) {
    const MANY: usize = 10_000;
    const SOME: usize = 200;
    let subject = Subject::start(Kind::Egress, origin);
    let started = subject.resident();
    let (some, many) = runtime.block_on(async {
        let mut clients = Client::connect_many(&subject, origin.http1, SOME).await;
        let some = subject.resident();
        clients.extend(Client::connect_many(&subject, origin.http1, MANY).await);
        let many = subject.resident();
        for client in clients.iter_mut().rev().take(SOME) {
            client.small().await;
        }
        (some, many)
    });
    println!("\n| memory of egress | resident |\n|---|---:|");
    println!("| idle, after start | {:.1} MB |", started as f64 / 1e6);
    println!("| with {MANY} idle tunnels, each after one request | {:.1} MB |", many as f64 / 1e6);
    println!("| for each idle tunnel | {:.1} KiB |", (many - some) as f64 / MANY as f64 / 1024.0);
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
