use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hudsucker::Body;

use crate::support::{Bench, PLACEHOLDER, Transport, get, request};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

#[tokio::test]
async fn upstream_sees_our_credential_and_never_the_agents() {
    let bench = Bench::allowing("auth_scheme: bearer\ntoken_env: TOKEN").await;
    for transport in Transport::ALL {
        let headers =
            [("authorization", "Bearer agents-own"), ("x-api-key", "agents-own"), ("cookie", "a=b")];
        let path = "/v1/models?page=2&access_token=agents-own";
        let answer = bench.agent().send(transport, request(Method::GET, path, &headers)).await;
        assert_eq!(answer.status, 200);
        let seen = bench.upstream.last();
        assert_eq!(seen.headers["authorization"], "Bearer real-token", "{transport:?}");
        assert_eq!(seen.headers.get_all("authorization").iter().count(), 1);
        assert_eq!(seen.target, "/v1/models?page=2");
        assert_eq!(seen.headers["cookie"], "a=b");
        assert!(!format!("{seen:?}").contains("agents-own"), "{seen:?}");
    }
    let journal = std::fs::read_to_string(&bench.journal).unwrap();
    assert!(!journal.contains("real-token") && !journal.contains("agents-own"));
}

#[tokio::test]
async fn the_agents_authorization_does_not_go_out_where_nothing_is_injected_either() {
    let bench = Bench::allowing("deny: false").await;
    for transport in Transport::ALL {
        let headers = [("authorization", "Bearer agents-own"), ("proxy-authorization", "Basic agents-own")];
        bench.agent().send(transport, request(Method::GET, "/v1/models", &headers)).await;
        assert!(!format!("{:?}", bench.upstream.last()).contains("agents-own"), "{transport:?}");
    }
}

#[tokio::test]
async fn the_agents_own_credentials_go_out_only_where_the_route_says_so_and_injects_nothing() {
    let headers = [("authorization", "Bearer agents-own"), ("x-api-key", "agents-own")];
    let sent = || request(Method::GET, "/v1/models?key=agents-own", &headers);
    for (rules, authorization, others) in [
        ("own_credential_only: false", Some("Bearer agents-own"), true),
        ("own_credential_only: true", None, false),
        (
            "own_credential_only: false\nauth_scheme: bearer\ntoken_env: TOKEN",
            Some("Bearer real-token"),
            true,
        ),
    ] {
        let bench = Bench::allowing(rules).await;
        bench.agent().send(Transport::TunnelHttp1, sent()).await;
        let seen = bench.upstream.last();
        let authorizations = seen.headers.get_all("authorization").iter().collect::<Vec<_>>();
        assert_eq!(authorizations, authorization.into_iter().collect::<Vec<_>>(), "{rules}");
        assert_eq!(seen.headers.contains_key("x-api-key"), others, "{rules}");
        assert_eq!(seen.target.contains("key=agents-own"), others, "{rules}");
    }
}

#[tokio::test]
async fn a_method_that_echoes_the_request_gets_no_credential() {
    let bench = Bench::allowing("auth_scheme: bearer\ntoken_env: TOKEN").await;
    for transport in Transport::ALL {
        for method in ["TRACE", "TRACK", "trace"] {
            let request = request(method.parse().unwrap(), "/v1/models", &[]);
            let answer = bench.agent().send(transport, request).await;
            assert_eq!(answer.refusal(), "method-not-allowed", "{transport:?} {method}");
        }
    }
    assert!(bench.upstream.requests().is_empty());
}

#[tokio::test]
async fn trailers_of_a_request_which_no_one_judged_do_not_go_out() {
    let bench = Bench::allowing("auth_scheme: bearer\ntoken_env: TOKEN").await;
    for transport in Transport::ALL {
        let trailers = HeaderMap::from_iter([(X_API_KEY, HeaderValue::from_static("agents-own"))]);
        let body = Full::new(Bytes::from("12345")).with_trailers(async { Some(Ok(trailers)) });
        let request = Request::post("/v1/upload").header("trailer", "x-api-key");
        let request = request.body(Body::from(BoxBody::new(body.map_err(|never| match never {})))).unwrap();
        assert_eq!(bench.agent().send(transport, request).await.text(), "5", "{transport:?}");
        assert_eq!(bench.upstream.memory.trailers.get(), 0, "{transport:?}");
    }
}

#[tokio::test]
async fn a_missing_secret_refuses_its_route_and_nothing_else() {
    let bench = Bench::with(|upstream| {
        let missing = upstream.routes("auth_scheme: bearer\ntoken_file: absent");
        let present = upstream.routes("deny: false").replace("host: api.test", "host: other.test");
        format!("{missing}{}", present.trim_start_matches("routes:\n"))
    })
    .await;
    let agent = bench.agent();
    let answer = agent.send(Transport::TunnelHttp1, get("/v1/models")).await;
    assert_eq!(answer.refusal(), "credential-unavailable");
    assert!(answer.text().contains("`absent`"));
    assert_eq!(bench.upstream.memory.connections.get(), 0);
    assert_eq!(agent.send_to(Transport::TunnelHttp1, "other.test", get("/v1/models")).await.status, 200);
}

#[tokio::test]
async fn a_secret_file_is_read_and_trimmed() {
    let bench = Bench::allowing("auth_scheme: basic\ntoken_file: pair").await;
    std::fs::write(bench.secrets.join("pair"), "me:s3\n").unwrap();
    assert_eq!(bench.agent().send(Transport::Plain, get("/v1/models")).await.status, 200);
    assert_eq!(bench.upstream.last().headers["authorization"], "Basic bWU6czM=");
}

#[tokio::test]
async fn a_query_credential_replaces_the_agents_and_is_not_recorded() {
    let bench = Bench::allowing("auth_scheme: 'query:key'\ntoken_env: TOKEN").await;
    for transport in Transport::ALL {
        bench.agent().send(transport, get("/v1/models?key=agents-own&page=2")).await;
        assert_eq!(bench.upstream.last().target, "/v1/models?page=2&key=real-token", "{transport:?}");
    }
    let events = serde_json::to_string(&bench.events().await).unwrap();
    assert!(!events.contains("real-token") && !events.contains("agents-own"), "{events}");
}

fn filled(text: &str) -> String {
    text.replace('@', PLACEHOLDER)
}

#[tokio::test]
async fn the_placeholder_is_replaced_at_its_positions_and_goes_out_unchanged_anywhere_else() {
    let rules = "token_env: TOKEN\nplaceholder_in: [header:authorization, query:key, basic:password, header:x-api-key]";
    let bench = Bench::allowing(rules).await;
    let sent = async |transport, path: &str, headers: &[(&str, &str)]| {
        let headers: Vec<(&str, String)> =
            headers.iter().map(|(name, value)| (*name, filled(value))).collect();
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(
            bench.agent().send(transport, request(Method::GET, &filled(path), &headers)).await.status,
            200
        );
        bench.upstream.last()
    };
    for transport in Transport::ALL {
        let seen =
            sent(transport, "/v1/x?a=@&key=@&b", &[("authorization", "Bearer @"), ("x-note", "@")]).await;
        assert_eq!(seen.headers["authorization"], "Bearer real-token", "{transport:?}");
        assert_eq!(seen.headers["x-note"], PLACEHOLDER);
        assert_eq!(seen.target, filled("/v1/x?a=@&b&key=real-token"));
        // Not the whole value: to the agent's own list of credentials, it is one of the agent's.
        let seen =
            sent(transport, "/v1/@?key=x@&q=@", &[("x-api-key", "@@"), ("authorization", "Bearer x@")]).await;
        assert_eq!(seen.target, filled("/v1/@?q=@"));
        assert!(!format!("{seen:?}").contains("real-token"), "{seen:?}");
        assert!(!seen.headers.contains_key("x-api-key") && !seen.headers.contains_key("authorization"));
        let pair = |text: &str| format!("Basic {}", base64(text));
        let seen = sent(transport, "/v1/x", &[("authorization", &pair(&filled("me:@")))]).await;
        assert_eq!(seen.headers["authorization"], pair("me:real-token"));
        let seen = sent(transport, "/v1/x", &[("authorization", &pair(&filled("@:me")))]).await;
        assert!(!seen.headers.contains_key("authorization"));
    }
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.encode(text)
}

#[tokio::test]
async fn the_placeholder_is_replaced_in_a_body_of_the_right_kind_whatever_its_length() {
    let rules = "token_env: TOKEN\nplaceholder_in: ['json:/auth/token', 'form:client_secret']";
    let bench = Bench::allowing(rules).await;
    let long = "x".repeat(300 * 1024);
    for transport in Transport::ALL {
        for (kind, body, expected) in [
            ("application/json", format!("{{\"text\":\"@{long}\",\"auth\":{{\"token\":\"@\"}}}}"), 1),
            ("application/json", "{\"text\":\"@\",\"auth\":{\"token\":\"@\"}}".to_owned(), 1),
            ("application/x-www-form-urlencoded", "text=@&client_secret=@".to_owned(), 1),
            ("text/plain", "{\"auth\":{\"token\":\"@\"}}".to_owned(), 0),
            ("application/json; charset=utf-8", "{\"auth\":{\"token\":\"@\"}}".to_owned(), 1),
            ("application/json; charset=utf-7", "{\"auth\":{\"token\":\"@\"}}".to_owned(), 0),
            ("application/x-www-form-urlencoded; charset=hz", "client_secret=@".to_owned(), 0),
        ] {
            let body = filled(&body);
            let sent = Request::post("/v1/echo")
                .header("content-type", kind)
                .body(Body::from(body.clone()))
                .unwrap();
            let answer = bench.agent().send(transport, sent).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.text().matches("real-token").count(), expected, "{transport:?} {kind}");
            assert_eq!(
                answer.text().matches(PLACEHOLDER).count(),
                body.matches(PLACEHOLDER).count() - expected
            );
        }
    }
}

#[tokio::test]
async fn with_a_scheme_the_credential_is_always_put_in_and_without_one_only_for_the_placeholder() {
    let bench = Bench::allowing("token_env: TOKEN\nplaceholder_in: [header:x-api-key]").await;
    bench.agent().send(Transport::Plain, get("/v1/x")).await;
    assert!(!format!("{:?}", bench.upstream.last()).contains("real-token"));
    let both = "auth_scheme: bearer\ntoken_env: TOKEN\nplaceholder_in: [header:x-api-key]";
    bench.proxy.reload(&bench.upstream.routes(both)).await.unwrap();
    let headers = [("x-api-key", PLACEHOLDER)];
    bench.agent().send(Transport::Plain, request(Method::GET, "/v1/x", &headers)).await;
    let seen = bench.upstream.last();
    assert_eq!(
        (&seen.headers["authorization"], &seen.headers["x-api-key"]),
        (&HeaderValue::from_static("Bearer real-token"), &HeaderValue::from_static("real-token"))
    );
}
