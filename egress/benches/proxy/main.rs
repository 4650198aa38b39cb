//! What the proxy costs, beside what others cost for the same work, as Markdown tables, and which goals are met.
//!
//! The figure is the processor time of the proxy's process, by its own clock: the machine may be noisy, and client and
//! origin run beside it. The programs take many short turns, so that what disturbs one disturbs the others as much: a part of
//! another's time is the median of the parts in each turn, and the times themselves are medians too.
//! `EGRESS_BENCH_HUDSUCKER` names a program built from benches/peers/hudsucker, `EGRESS_BENCH_MITMDUMP` a mitmdump; a peer
//! that is not named is left out. A relay, which is this program again, shows what the machine itself takes.
//! `EGRESS_BENCH_EGRESS` may name another egress, `EGRESS_BENCH_BEFORE` one to compare with. Arguments choose scenarios by name.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod client;
mod goals;
mod origin;
mod relay;
mod subject;

use std::collections::HashMap;
use std::time::Duration;

use client::Client;
use futures_util::future::join_all;
use goals::Goals;
use origin::Origin;
use subject::{Kind, Subject};
use tokio::runtime::Runtime;

const GIB: u64 = 1 << 30;
/// How many connections are busy at once, where more than one is.
const AT_ONCE: usize = 32;

/// How much of each scenario is done in one turn, by how fast the subject is: so much that all of it ends within minutes on a
/// busy machine. What is less than a gibibyte is extrapolated to one.
struct Load {
    requests: u64,
    connections: u64,
    bytes: u64,
    turns: usize,
}

impl Load {
    fn of(kind: Kind) -> Load {
        match kind {
            Kind::Mitmdump => Load { requests: 100, connections: 15, bytes: GIB / 128, turns: 3 },
            _ => Load { requests: 300, connections: 40, bytes: GIB / 32, turns: 25 },
        }
    }
}

/// One row of a table: what is measured, and by which measure.
struct Row {
    name: &'static str,
    unit: &'static str,
    /// The most that it may be of hudsucker's, and the least that mitmdump's may be of it.
    goals: (Option<f64>, Option<f64>),
    measure: fn(&Runtime, &Subject, &Origin) -> f64,
    /// Those that cannot take part: the client speaks HTTP/1.1, and what it speaks is all that they speak to the origin.
    without: &'static [Kind],
}

const ROWS: &[Row] = &[
    Row {
        name: "keep-alive request, HTTP/1.1 both sides",
        unit: "µs",
        goals: (Some(1.0), Some(60.0)),
        measure: |r, s, o| keep_alive(r, s, o.http1),
        without: &[],
    },
    Row {
        name: "keep-alive request, 32 connections at once",
        unit: "µs",
        goals: (Some(1.0), Some(60.0)),
        measure: keep_alive_at_once,
        without: &[],
    },
    Row {
        name: "keep-alive request, HTTP/2 to the origin",
        unit: "µs",
        goals: (None, None),
        measure: |r, s, o| keep_alive(r, s, o.http2),
        without: &[Kind::Mitmdump, Kind::Relay],
    },
    Row {
        name: "new connection and one request",
        unit: "µs",
        goals: (Some(0.8), Some(20.0)),
        measure: new_connections,
        without: &[],
    },
    Row {
        name: "1 GiB down",
        unit: "ms",
        goals: (Some(0.9), None),
        measure: |r, s, o| transfer(r, s, o, Client::download),
        without: &[],
    },
    Row {
        name: "1 GiB up",
        unit: "ms",
        goals: (Some(0.9), None),
        measure: |r, s, o| transfer(r, s, o, Client::upload),
        without: &[],
    },
];

fn main() {
    if let Some(address) = std::env::var_os(relay::ADDRESS) {
        return relay::run(&address);
    }
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str()));
    subject::raise_descriptors();
    let origin = Origin::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut goals = Goals::default();

    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| kind.program().is_some()).collect();
    let rows: Vec<&Row> = ROWS.iter().filter(|row| is_wanted(row.name)).collect();
    if !rows.is_empty() {
        println!(
            "| processor time of the proxy per | {} |",
            kinds.iter().map(|k| k.name()).collect::<Vec<_>>().join(" | ")
        );
        println!("|---|{}", "---:|".repeat(kinds.len()));
    }
    for row in rows {
        let taking_part: Vec<Kind> =
            kinds.iter().copied().filter(|kind| !row.without.contains(kind)).collect();
        let values: HashMap<Kind, Vec<f64>> =
            taking_part.iter().copied().zip(by_turns(&runtime, &origin, &taking_part, row.measure)).collect();
        let ours = &values[&Kind::Egress];
        let cell = |kind: &Kind| match (kind, values.get(kind)) {
            (_, None) => "–".to_owned(),
            (Kind::Egress, Some(value)) => format!("{:.1} {}", median(value), row.unit),
            (_, Some(value)) => format!("{:.1} {} ({:.2}×)", median(value), row.unit, part(value, ours)),
        };
        println!("| {} | {} |", row.name, kinds.iter().map(cell).collect::<Vec<_>>().join(" | "));
        let (most, least) = row.goals;
        if let (Some(most), Some(theirs)) = (most, values.get(&Kind::Hudsucker)) {
            goals.at_most(&format!("{}: part of hudsucker's time", row.name), part(ours, theirs), most, "");
        }
        if let (Some(least), Some(theirs)) = (least, values.get(&Kind::Mitmdump)) {
            goals.at_least(&format!("{}: mitmdump's time", row.name), part(theirs, ours), least, "×");
        }
    }
    if is_wanted("inspection") {
        inspection(&runtime, &origin, &mut goals);
    }
    if is_wanted("events") {
        events(&runtime, &origin, &mut goals);
    }
    if is_wanted("idle") {
        idle(&runtime, &origin, &mut goals);
    }
    goals.print();
}

/// What each kind took in each of its turns; the first is thrown away.
fn by_turns(
    runtime: &Runtime,
    origin: &Origin,
    kinds: &[Kind],
    measure: fn(&Runtime, &Subject, &Origin) -> f64,
) -> Vec<Vec<f64>> {
    let subjects: Vec<Subject> = kinds.iter().map(|kind| Subject::start(*kind, origin)).collect();
    let mut values = vec![Vec::new(); subjects.len()];
    let turns = kinds.iter().map(|kind| Load::of(*kind).turns).max().unwrap_or(0);
    for turn in 0..=turns {
        for (subject, values) in subjects.iter().zip(&mut values) {
            if turn <= Load::of(subject.kind).turns {
                let value = measure(runtime, subject, origin);
                if turn > 0 {
                    values.push(value);
                }
            }
        }
    }
    values
}

/// The median of what `one` is of `other` in the turns that both had.
fn part(one: &[f64], other: &[f64]) -> f64 {
    median(&one.iter().zip(other).map(|(one, other)| one / other).collect::<Vec<_>>())
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn keep_alive(runtime: &Runtime, subject: &Subject, port: u16) -> f64 {
    let count = Load::of(subject.kind).requests;
    runtime.block_on(async {
        let mut client = Client::connect(subject, port).await;
        client.small().await;
        let before = subject.processor_time();
        for _ in 0..count {
            client.small().await;
        }
        micros(subject.processor_time() - before) / count as f64
    })
}

/// As many agents at once, each with one request after the other.
fn keep_alive_at_once(runtime: &Runtime, subject: &Subject, origin: &Origin) -> f64 {
    let each = Load::of(subject.kind).requests * 4 / AT_ONCE as u64;
    runtime.block_on(async {
        let mut clients = Client::connect_many(subject, origin.http1, AT_ONCE).await;
        let before = subject.processor_time();
        let busy = clients.iter_mut().map(async |client| {
            for _ in 0..each {
                client.small().await;
            }
        });
        join_all(busy).await;
        micros(subject.processor_time() - before) / (each * AT_ONCE as u64) as f64
    })
}

fn new_connections(runtime: &Runtime, subject: &Subject, origin: &Origin) -> f64 {
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
    runtime: &Runtime,
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

/// What it costs that what leaves is searched, and answers are scrubbed.
fn inspection(runtime: &Runtime, origin: &Origin, goals: &mut Goals) {
    let kinds = [Kind::Egress, Kind::Inspecting];
    let small = by_turns(runtime, origin, &kinds, |r, s, o| keep_alive(r, s, o.http1));
    let messages = by_turns(runtime, origin, &kinds, messages);
    let upload = by_turns(runtime, origin, &kinds, |r, s, o| transfer(r, s, o, Client::upload_text));
    let first = by_turns(runtime, origin, &kinds, first_byte);
    println!("\n| what leaves is searched, answers are scrubbed | off | on | |\n|---|---:|---:|---:|");
    let rows = [
        ("a small GET", &small, "µs"),
        ("a POST of 4 KiB of JSON", &messages, "µs"),
        ("1 GiB of text up", &upload, "ms"),
    ];
    for (name, values, unit) in rows {
        let (off, on) = (median(&values[0]), median(&values[1]));
        println!(
            "| processor time of {name} | {off:.1} {unit} | {on:.1} {unit} | {:.2}× |",
            part(&values[1], &values[0])
        );
    }
    let (direct, searched) = (median(&first[0]), median(&first[1]));
    println!(
        "| from a request of 256 KiB until the origin has its first byte | {direct:.3} ms | {searched:.3} ms | |"
    );
    goals.at_most("inspection on, a small GET: part of off", part(&small[1], &small[0]), 1.25, "");
    goals.at_most("inspection on, a POST of 4 KiB: part of off", part(&messages[1], &messages[0]), 1.25, "");
    let longer: Vec<f64> = upload[1].iter().zip(&upload[0]).map(|(on, off)| on - off).collect();
    let rate = GIB as f64 / 1e6 / (median(&longer) / 1000.0);
    goals.at_least("clean text searched on its way, by one core", rate, 250.0, " MB/s");
    goals.at_most("inspection on, first byte later by", searched - direct, 1.0, " ms");
}

fn messages(runtime: &Runtime, subject: &Subject, origin: &Origin) -> f64 {
    let count = Load::of(subject.kind).requests / 2;
    runtime.block_on(async {
        let mut client = Client::connect(subject, origin.http1).await;
        client.message().await;
        let before = subject.processor_time();
        for _ in 0..count {
            client.message().await;
        }
        micros(subject.processor_time() - before) / count as f64
    })
}

/// How long a request is on its way until the origin sees its body begin, in milliseconds.
fn first_byte(runtime: &Runtime, subject: &Subject, origin: &Origin) -> f64 {
    runtime.block_on(async {
        let mut client = Client::connect(subject, origin.http1).await;
        client.small().await;
        let mut times = Vec::new();
        for _ in 0..50 {
            times.push(client.first_byte(origin).await.as_secs_f64() * 1000.0);
        }
        median(&times)
    })
}

/// What the proxy adds to the way of an event.
fn events(runtime: &Runtime, origin: &Origin, goals: &mut Goals) {
    let subject = Subject::start(Kind::Egress, origin);
    let direct =
        runtime.block_on(async { Client::direct(&subject, origin.http1).await.events(origin).await });
    let through =
        runtime.block_on(async { Client::connect(&subject, origin.http1).await.events(origin).await });
    println!("\n| one event of a stream, 1000 a second | direct | through egress |\n|---|---:|---:|");
    let at =
        |delays: &[Duration], part: f64| delays[(delays.len() as f64 * part) as usize].as_secs_f64() * 1000.0;
    for (name, part) in [("p50", 0.50), ("p99", 0.99)] {
        println!("| {name} | {:.3} ms | {:.3} ms |", at(&direct, part), at(&through, part));
    }
    goals.at_most("an event later by, p99", at(&through, 0.99) - at(&direct, 0.99), 0.5, " ms");
}

/// What idle tunnels hold.
fn idle(runtime: &Runtime, origin: &Origin, goals: &mut Goals) {
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
    let each = (many - some) as f64 / MANY as f64 / 1024.0;
    println!("\n| memory of egress | resident |\n|---|---:|");
    println!("| idle, after start | {:.1} MB |", started as f64 / 1e6);
    println!("| with {MANY} idle tunnels, each after one request | {:.1} MB |", many as f64 / 1e6);
    println!("| for each idle tunnel | {each:.1} KiB |");
    goals.at_most("idle, after start", started as f64 / 1e6, 15.0, " MB");
    goals.at_most("an idle tunnel", each, 24.0, " KiB");
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
