//! What reached the origin, read with suspicion: requests, and what is wrong with them.

use std::collections::BTreeSet;

/// A request as the origin received it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// Why two readers could disagree about it.
    pub(crate) flaws: Vec<&'static str>,
}

impl Request {
    pub(crate) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// The requests in the bytes of one connection, in their order, each with the place where it begins.
pub(crate) fn requests(bytes: &[u8]) -> Vec<(usize, Request)> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let (request, used) = request(&bytes[at..]);
        let unreadable = !request.flaws.is_empty();
        found.push((at, request));
        // Past a flaw there is no telling where the next message begins.
        if unreadable || used == 0 {
            break;
        }
        at += used;
    }
    found
}

/// One request, and how many bytes it takes.
fn request(bytes: &[u8]) -> (Request, usize) {
    let mut request = Request::default();
    let Some(end) = find(bytes, b"\r\n\r\n") else {
        request.flaws.push(if find(bytes, b"\n\n").is_some() { "bare line feeds" } else { "no whole head" });
        request.target = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        return (request, bytes.len());
    };
    let head = &bytes[..end];
    if head.iter().enumerate().any(|(at, byte)| match byte {
        b'\n' => at == 0 || head[at - 1] != b'\r',
        b'\r' => head.get(at + 1) != Some(&b'\n'),
        0 => true,
        _ => false,
    }) {
        request.flaws.push("a bare CR, LF or NUL in the head");
    }
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    match first.split(' ').collect::<Vec<_>>()[..] {
        [method, target, "HTTP/1.1" | "HTTP/1.0"] if !method.is_empty() => {
            method.clone_into(&mut request.method);
            target.clone_into(&mut request.target);
        }
        _ => {
            request.flaws.push("not a request line of HTTP/1");
            first.clone_into(&mut request.target);
        }
    }
    for line in lines {
        if line.starts_with([' ', '\t']) {
            request.flaws.push("a folded header");
            continue;
        }
        match line.split_once(':') {
            Some((name, value)) if !name.is_empty() && name.bytes().all(is_token) => {
                request.headers.push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()));
            }
            _ => request.flaws.push("a line that is no header"),
        }
    }
    let body = &bytes[end + 4..];
    let used = end + 4 + body_length(&mut request, body);
    (request, used)
}

fn body_length(request: &mut Request, body: &[u8]) -> usize {
    let lengths: Vec<_> = request.values("content-length").map(str::to_owned).collect();
    let codings: Vec<_> = request.values("transfer-encoding").map(str::to_ascii_lowercase).collect();
    match (&lengths[..], &codings[..]) {
        ([], []) => 0,
        ([length], []) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
            length.parse().unwrap_or_else(|_| {
                request.flaws.push("a length that overflows");
                0
            })
        }
        ([], [coding]) if coding == "chunked" => match chunked(body) {
            Ok(used) => used,
            Err(flaw) => {
                request.flaws.push(flaw);
                body.len()
            }
        },
        (lengths, []) => {
            request.flaws.push(if lengths.len() > 1 { "two lengths" } else { "a length that is no number" });
            0
        }
        ([], _) => {
            request.flaws.push("a transfer coding other than chunked alone");
            0
        }
        _ => {
            request.flaws.push("both a length and a transfer coding");
            0
        }
    }
}

/// How many bytes a chunked body takes; all of them when it is not whole yet.
fn chunked(body: &[u8]) -> Result<usize, &'static str> {
    let mut at = 0;
    loop {
        let Some(line) = find(&body[at..], b"\r\n") else {
            return if body[at..].contains(&b'\n') {
                Err("a chunk size with a bare line feed")
            } else {
                Ok(body.len())
            };
        };
        let head = &body[at..at + line];
        if head.contains(&b'\n') {
            return Err("a chunk size with a bare line feed");
        }
        let digits = head.split(|byte| *byte == b';').next().unwrap_or_default();
        let size = std::str::from_utf8(digits)
            .ok()
            .filter(|digits| {
                !digits.is_empty() && digits.len() <= 15 && digits.bytes().all(|b| b.is_ascii_hexdigit())
            })
            .and_then(|digits| usize::from_str_radix(digits, 16).ok())
            .ok_or("a chunk size that is no number")?;
        at += line + 2;
        if size == 0 {
            return Ok(match find(&body[at..], b"\r\n") {
                Some(0) => at + 2,
                Some(_) => find(&body[at..], b"\r\n\r\n").map_or(body.len(), |end| at + end + 4),
                None => body.len(),
            });
        }
        let Some(end) = body.get(at + size..at + size + 2) else { return Ok(body.len()) };
        if end != b"\r\n" {
            return Err("a chunk that does not end where it says");
        }
        at += size + 2;
    }
}

/// Every path that some server makes of this target.
pub(crate) fn readings(target: &str) -> BTreeSet<String> {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let once = decoded(path);
    let twice = decoded(&once);
    let mut all = BTreeSet::new();
    for form in [path, &once, &twice] {
        all.insert(walked(form, false));
        all.insert(walked(&form.replace('\\', "/"), true));
    }
    all
}

fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let pair = bytes.get(at + 1..at + 3).and_then(|pair| std::str::from_utf8(pair).ok());
        match pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Dot segments taken out; with `loose` also path parameters, control characters and empty segments.
fn walked(path: &str, loose: bool) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for (index, part) in path.split('/').enumerate() {
        let part = if loose { part.split([';', '\0']).next().unwrap_or_default().trim() } else { part };
        match part {
            ".." => {
                kept.truncate(kept.len().saturating_sub(1).max(1));
            }
            "." => {}
            "" if loose && index > 0 => {}
            part => kept.push(part),
        }
    }
    kept.join("/")
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flaws(text: &str) -> Vec<&'static str> {
        requests(text.as_bytes()).into_iter().flat_map(|(_, request)| request.flaws).collect()
    }

    #[test]
    fn requests_on_one_connection_are_told_apart_by_their_framing() {
        let text = "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nGET\r\n0\r\n\r\n\
                    POST /b HTTP/1.1\r\nContent-Length: 4\r\n\r\nGET GET /c HTTP/1.1\r\n\r\n";
        let targets: Vec<_> =
            requests(text.as_bytes()).into_iter().map(|(_, request)| request.target).collect();
        assert_eq!(targets, ["/a", "/b", "/c"]);
        assert_eq!(flaws(text), [""; 0]);
    }

    #[test]
    fn each_ambiguity_is_a_flaw() {
        for head in [
            "Content-Length: 1\r\nContent-Length: 2",
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Content-Length: +1",
            "Content-Length : 1",
            "A: b\r\n folded",
            "A: b\nC: d",
            "A: b\rC: d",
            "nothing",
        ] {
            assert_eq!(flaws(&format!("GET / HTTP/1.1\r\n{head}\r\n\r\n")).len(), 1, "{head:?}");
        }
        assert_eq!(flaws("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), ["not a request line of HTTP/1"]);
        assert_eq!(flaws("\u{16}\u{3}\u{1}"), ["no whole head"]);
        for chunk in ["0x3\r\nabc\r\n0\r\n\r\n", "3\r\nabcd\r\n0\r\n\r\n", "3\nabc\r\n0\r\n\r\n"] {
            let text = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}");
            assert_eq!(flaws(&text).len(), 1, "{chunk:?}");
        }
    }

    #[test]
    fn a_path_that_some_server_reads_as_another_has_that_reading() {
        for target in [
            "/allowed/../secret",
            "/allowed/%2e%2e/secret",
            "/allowed/%252e%252e/secret",
            "/allowed/..%2fsecret",
            "/allowed/..\\secret",
            "/allowed/..;x/secret",
            "/allowed/%2e%2e%5csecret",
            "/allowed/a/..//../secret",
        ] {
            assert!(readings(target).contains("/secret"), "{target}: {:?}", readings(target));
        }
        assert_eq!(readings("/allowed/a?x=/../y"), BTreeSet::from(["/allowed/a".to_owned()]));
    }
}
