//! What is refused whatever a route matches: the same steps for a request and for a question about one.

use http::{Method, Version, request};
use policy::Route;

use super::upgrade::WEBSOCKET;
use crate::headers;
use crate::refusal::{Code, Refusal};

/// The longest name of a method; the longest in use, of WebDAV, has 17 bytes.
const METHOD_MAX: usize = 64;
/// Methods whose answer is the request as upstream got it.
const ECHOING: [&str; 2] = ["TRACE", "TRACK"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upgrade {
    None,
    WebSocket,
}

/// Refuses a tunnel in a tunnel.
pub(crate) fn nested(method: &Method) -> Result<(), Refusal> {
    if method == Method::CONNECT {
        return Err(Refusal::new(Code::NestedConnect, "a tunnel inside a tunnel is not opened"));
    }
    Ok(())
}

/// Leaves the headers that will go out, which are what is judged, and gives the protocol that an upgrade is wanted to.
pub(crate) fn prepare(parts: &mut request::Parts) -> Result<Option<String>, Refusal> {
    if parts.method.as_str().len() > METHOD_MAX {
        let hint = format!("a method has at most {METHOD_MAX} bytes");
        return Err(Refusal::new(Code::MalformedTarget, hint));
    }
    if let Some(name) = headers::override_of(&parts.headers) {
        let hint = format!(
            "`{name}` asks upstream to take the request for another than the one that is judged: leave it out"
        );
        return Err(Refusal::new(Code::OverrideRefused, hint));
    }
    if !headers::is_chunked_at_most(&parts.headers) {
        // It ends at this hop without being undone: the coded bytes would go out as if they were the content.
        let hint = "the body is in a transfer coding other than `chunked`: leave the coding out";
        return Err(Refusal::new(Code::ContentUninspectable, hint));
    }
    let wanted = headers::upgrade(&parts.headers);
    headers::towards_upstream(&mut parts.headers);
    Ok(wanted)
}

/// What an upgrade that is `wanted` comes to. `h2c` is refused too: what a client sends once it believes to speak HTTP/2 would
/// not be judged.
pub(crate) fn upgrade(
    wanted: Option<&str>,
    parts: &request::Parts,
    has_body: bool,
) -> Result<Upgrade, Refusal> {
    match wanted {
        None => Ok(Upgrade::None),
        Some(WEBSOCKET) if parts.version == Version::HTTP_11 && parts.method == Method::GET && !has_body => {
            Ok(Upgrade::WebSocket)
        }
        Some(_) => Err(Refusal::new(
            Code::UpgradeNotSupported,
            "a connection can be upgraded to websocket only, by GET without a body",
        )),
    }
}

/// Refuses a body that says to be larger than it may be.
pub(crate) fn length(least: u64, most: Option<u64>) -> Result<(), Refusal> {
    match most {
        Some(most) if least > most => Err(too_large(most)),
        Some(_) | None => Ok(()),
    }
}

pub(crate) fn too_large(most: u64) -> Refusal {
    Refusal::new(Code::BodyTooLarge, format!("this route allows bodies of at most {most} bytes"))
}

/// Refuses a method by which the credential of `route` would come back.
pub(crate) fn echo(route: &Route, method: &Method) -> Result<(), Refusal> {
    let echoes = || ECHOING.iter().any(|echoing| method.as_str().eq_ignore_ascii_case(echoing));
    if route.credential().is_some() && echoes() {
        let hint = "this method has upstream send back what it got, which here includes a credential";
        return Err(Refusal::new(Code::Policy(policy::Code::MethodNotAllowed), hint));
    }
    Ok(())
}
