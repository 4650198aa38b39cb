//! Prometheus metrics, off by default, on an address that no bottle reaches.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hudsucker::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::observe::{family, sample};
use crate::proxy::Proxy;

const CONNECTIONS_MAX: usize = 8;
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whether no bottle reaches the address. A bottle has a loopback of its own; any other address of ours could be led to from
/// there, because a Linux host takes what is for one of its addresses on every interface.
pub fn is_out_of_reach(address: SocketAddr) -> bool {
    address.ip().is_loopback()
}

/// Serves `/metrics` until it is dropped.
pub async fn serve(listener: TcpListener, proxy: Arc<Proxy>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let proxy = Arc::clone(&proxy);
        connections.spawn(async move {
            let answer = |request| std::future::ready(Ok::<_, Infallible>(answer(&proxy, &request)));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service_fn(answer));
            // A scrape that breaks off is tried again by who made it.
            let _ = timeout(CONNECTION_TIMEOUT, connection).await;
        });
    }
}

fn answer(proxy: &Proxy, request: &Request<Incoming>) -> Response<Body> {
    if request.method() != Method::GET || request.uri().path() != "/metrics" {
        let mut response = Response::new(Body::from("there is GET /metrics\n"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    let mut response = Response::new(Body::from(text(proxy)));
    let form = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, form);
    response
}

fn text(proxy: &Proxy) -> String {
    let mut text = String::new();
    proxy.recorder.observer().metrics(&mut text);
    let snapshot = proxy.snapshot();
    family(&mut text, "generation", "gauge", "The generation of the routes in force.");
    sample(&mut text, "generation", "", snapshot.generation);
    family(
        &mut text,
        "journal_broken",
        "gauge",
        "1 when the journal cannot be written and requests are refused.",
    );
    sample(&mut text, "journal_broken", "", u64::from(proxy.recorder.is_broken()));
    let readings: Vec<_> =
        snapshot.policy.routes().iter().map(|route| (route, snapshot.gauge(route).read())).collect();
    family(&mut text, "route_requests", "gauge", "Requests in flight, by route.");
    for (route, reading) in &readings {
        sample(
            &mut text,
            "route_requests",
            &format!("{{route=\"{}\"}}", route.id()),
            reading.requests.into(),
        );
    }
    family(&mut text, "route_connections", "gauge", "Connections to upstream, by route.");
    for (route, reading) in &readings {
        let labels = format!("{{route=\"{}\"}}", route.id());
        sample(&mut text, "route_connections", &labels, reading.connections.into());
    }
    text
}
