//! The hostile wire cases against egress, with a route that allows everything on their origin.
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;

use tests::{Binaries, Bundle, Run};

#[test]
fn egress_refuses_every_case_of_the_wire_corpus() {
    // The routes must name the origin's port before the runner listens on it.
    let origin = TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap();
    let port = origin.port();
    let allow = |scheme: &str| {
        format!(
            "  - host: 127.0.0.2\n    scheme: {scheme}\n    ports: [{port}]\n    allow_private: [\"127.0.0.2:{port}\"]\n"
        )
    };
    let routes = format!("routes:\n{}{}", allow("http"), allow("https"));
    let bundle = Bundle::builder().unwrap().daemons("egress").routes(&routes).unwrap().start().unwrap();

    let outcome = Run::new(Binaries::find().unwrap().program("bottlecap-corpus"))
        .args(["--proxy", &bundle.proxy(), "--origin", &origin.to_string()])
        .finish()
        .unwrap();

    assert_eq!(outcome.code, 0, "{}{}", outcome.stdout, outcome.stderr);
    assert!(outcome.stdout.trim_end().ends_with(" passed, 0 failed"), "{}", outcome.stdout);
}
