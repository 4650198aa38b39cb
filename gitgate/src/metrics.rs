//! Prometheus metrics, for whoever asked for them by address.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tracing::warn;

use crate::front::Front;

const CONNECTIONS_MAX: usize = 16;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Answers `GET /metrics`.
pub(crate) async fn serve(listener: TcpListener, front: Arc<Front>) {
    let mut connections = JoinSet::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "cannot accept on the metrics socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS_MAX {
            continue;
        }
        let front = front.clone();
        connections.spawn(async move {
            let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
                let found = request.uri().path() == "/metrics";
                let text = if found { render(&front) } else { String::new() };
                let status = if found { StatusCode::OK } else { StatusCode::NOT_FOUND };
                let response = Response::builder()
                    .status(status)
                    .header(header::CONTENT_TYPE, "text/plain; version=0.0.4")
                    .body(Full::new(Bytes::from(text)));
                async move { Ok::<_, Infallible>(response.unwrap_or_default()) }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).keep_alive(false);
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn render(front: &Front) -> String {
    let counts = &front.counts;
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, values: &[(String, f64)]| {
        let _ = writeln!(text, "# HELP git_gate_{name} {help}\n# TYPE git_gate_{name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(text, "git_gate_{name}{labels} {value}");
        }
    };
    let one = |value: f64| [(String::new(), value)];
    for (name, help, value) in [
        ("reads_total", "Reads served.", &counts.reads),
        ("reads_refused_total", "Reads refused.", &counts.reads_refused),
        ("bytes_down_total", "Bytes towards agents.", &counts.bytes_down),
        ("pushes_total", "Pushes that upstream took.", &counts.pushes),
        ("pushes_refused_total", "Pushes refused, by the gate or by upstream.", &counts.pushes_refused),
        ("findings_total", "Secrets found in pushes.", &counts.findings),
    ] {
        family(name, "counter", help, &one(value.load(Relaxed) as f64));
    }
    family("sessions", "gauge", "Sessions under way.", &one(front.sessions() as f64));
    family("upstream_sessions", "gauge", "Upstream sessions kept.", &one(front.state.warm.count() as f64));
    let all = front.state.all();
    let each = |value: &dyn Fn(&crate::mirror::Record) -> Option<f64>| -> Vec<(String, f64)> {
        let values = all.iter().filter_map(|served| {
            let value = value(&served.mirror.record())?;
            Some((format!("{{repo=\"{}\"}}", served.repo.name), value))
        });
        values.collect()
    };
    family("refreshes_total", "counter", "Refreshes.", &each(&|r| Some(r.refreshes as f64)));
    family(
        "refresh_failures_total",
        "counter",
        "Refreshes that failed.",
        &each(&|r| Some(r.failures as f64)),
    );
    let seconds = each(&|r| r.seen.map(|(.., took)| took.as_secs_f64()));
    family("refresh_seconds", "gauge", "How long the last good refresh took.", &seconds);
    let age = each(&|r| r.seen.map(|(seen, ..)| seen.elapsed().as_secs_f64()));
    family("refresh_age_seconds", "gauge", "How long ago upstream was last seen.", &age);
    text
}
