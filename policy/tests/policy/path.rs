use policy::{CanonicalPath, PathError};
use proptest::prelude::*;

fn canonical(raw: &str) -> Result<String, PathError> {
    CanonicalPath::parse(raw).map(|path| path.as_str().to_owned())
}

#[test]
fn unreserved_escapes_are_undone_and_the_rest_is_upper_case() {
    assert_eq!(canonical("/").unwrap(), "/");
    assert_eq!(canonical("/%61dmin/%7euser").unwrap(), "/admin/~user");
    assert_eq!(canonical("/a%c3%a9/%3d").unwrap(), "/a%C3%A9/%3D");
    assert_eq!(canonical("/repos/acme/").unwrap(), "/repos/acme/");
    assert_eq!(canonical("/a|b/[x]").unwrap(), "/a%7Cb/%5Bx%5D");
    assert_eq!(canonical("/v1/users/@me;v=1,2:run!$&'()*+").unwrap(), "/v1/users/@me;v=1,2:run!$&'()*+");
    assert_eq!(canonical("/100%25").unwrap(), "/100%25");
    assert_eq!(canonical("/a...b/.git/..x").unwrap(), "/a...b/.git/..x");
}

#[test]
fn a_path_with_two_readings_is_refused() {
    let cases = [
        ("", PathError::NotAbsolute),
        ("v1", PathError::NotAbsolute),
        ("*", PathError::NotAbsolute),
        ("/a/../b", PathError::DotSegment),
        ("/a/..", PathError::DotSegment),
        ("/..", PathError::DotSegment),
        ("/.", PathError::DotSegment),
        ("/./a", PathError::DotSegment),
        ("/a/%2e%2e/b", PathError::DotSegment),
        ("/a/%2E./b", PathError::DotSegment),
        ("/a/.%2e", PathError::DotSegment),
        ("/a/..;/b", PathError::DotSegment),
        ("/a/..;x=1/b", PathError::DotSegment),
        ("/a/.;/b", PathError::DotSegment),
        ("/a/%2e%2e%3bx/b", PathError::DotSegment),
        ("/a//b", PathError::EmptySegment),
        ("//a", PathError::EmptySegment),
        ("/a//", PathError::EmptySegment),
        ("/a\\b", PathError::Backslash),
        ("/a%5cb", PathError::Backslash),
        ("/a%2fb", PathError::EscapedSlash),
        ("/a%2Fb", PathError::EscapedSlash),
        ("/a%00", PathError::Control),
        ("/a%0d%0aX", PathError::Control),
        ("/a\r\n", PathError::Control),
        ("/a%7f", PathError::Control),
        ("/a%252e%252e", PathError::DoubleEscape),
        ("/a%252fb", PathError::DoubleEscape),
        ("/a%25%32%66", PathError::DoubleEscape),
        ("/a%2541", PathError::DoubleEscape),
        ("/a%", PathError::BadEscape),
        ("/a%2", PathError::BadEscape),
        ("/a%zz", PathError::BadEscape),
        ("/a%+1", PathError::BadEscape),
        ("/a b", PathError::Character),
        ("/a?b", PathError::Character),
        ("/a#b", PathError::Character),
        ("/\u{e9}", PathError::Character),
        ("/\u{2215}", PathError::Character),
        ("/%c0%ae%c0%ae/", PathError::NotUtf8),
        ("/%c0%af", PathError::NotUtf8),
        ("/%e0%80%af", PathError::NotUtf8),
        ("/%ff", PathError::NotUtf8),
    ];
    for (raw, error) in cases {
        assert_eq!(canonical(raw), Err(error), "{raw:?}");
    }
    assert_eq!(canonical(&format!("/{}", "a".repeat(8 * 1024))), Err(PathError::TooLong));
}

#[test]
fn an_escaped_slash_is_kept_for_the_routes_to_judge() {
    let kept =
        |raw: &str| CanonicalPath::of_request(raw).map(|path| (path.to_string(), path.has_escaped_slash()));
    assert_eq!(kept("/@acme%2fcore").unwrap(), ("/@acme%2Fcore".to_owned(), true));
    assert_eq!(kept("/%40acme%2Fcore/%61").unwrap(), ("/%40acme%2Fcore/a".to_owned(), true));
    assert_eq!(kept("/a%2f").unwrap(), ("/a%2F".to_owned(), true));
    assert_eq!(kept("/a/b").unwrap(), ("/a/b".to_owned(), false));
    assert_eq!(canonical("/@acme%2fcore"), Err(PathError::EscapedSlash));
}

#[test]
fn an_escaped_slash_hides_nothing_that_is_refused_without_it() {
    let cases = [
        ("/a/..%2fb", PathError::DotSegment),
        ("/a%2f..%2fb", PathError::DotSegment),
        ("/a%2F%2e%2e/b", PathError::DotSegment),
        ("/a%2f.", PathError::DotSegment),
        ("/a%2f..;x%2fb", PathError::DotSegment),
        ("/a%2f..%3bx", PathError::DotSegment),
        ("/..%2fb", PathError::DotSegment),
        ("/a%2f%2fb", PathError::EmptySegment),
        ("/a/%2fb", PathError::EmptySegment),
        ("/a%2f/b", PathError::EmptySegment),
        ("/%2fa", PathError::EmptySegment),
        ("/%2f", PathError::EmptySegment),
        ("/a%2fb%5cc", PathError::Backslash),
        ("/a%2fb%00", PathError::Control),
        ("/a%2fb%252fc", PathError::DoubleEscape),
        ("/a%25%32%66", PathError::DoubleEscape),
        ("/a%2fb%c0%af", PathError::NotUtf8),
        ("/a%2", PathError::BadEscape),
        ("%2fa", PathError::NotAbsolute),
    ];
    for (raw, error) in cases {
        assert_eq!(CanonicalPath::of_request(raw), Err(error), "{raw:?}");
        assert!(CanonicalPath::parse(raw).is_err(), "{raw:?}");
    }
    assert_eq!(CanonicalPath::of_request(&format!("/{}", "%2fa".repeat(2048))), Err(PathError::TooLong));
}

/// What a careless server could make of a path: unescaped until nothing changes, dots resolved.
fn careless(path: &str) -> String {
    let mut text = path.to_owned();
    for _ in 0..4 {
        let mut bytes = Vec::new();
        let mut rest = text.as_bytes();
        while let Some((&byte, tail)) = rest.split_first() {
            rest = tail;
            let hex = rest.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
            match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(value) if byte == b'%' => {
                    bytes.push(value);
                    rest = &rest[2..];
                }
                _ => bytes.push(byte),
            }
        }
        text = String::from_utf8_lossy(&bytes).replace('\\', "/");
    }
    let mut kept: Vec<&str> = Vec::new();
    for segment in text.split('/').map(|segment| segment.split(';').next().unwrap()) {
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()),
            other => kept.push(other),
        }
    }
    format!("/{}", kept.join("/"))
}

fn nearly_path() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("%2e"),
        Just("%2F"),
        Just("%5c"),
        Just("%25"),
        Just("%"),
        Just("2e"),
        Just("2f"),
        Just("."),
        Just("/"),
        Just(";"),
        Just("%3b"),
        Just("\\"),
        Just("admin"),
        Just("%61"),
        Just("v1"),
        Just("%c0%ae"),
        Just("@"),
        Just("%40"),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
}

proptest! {
    #[test]
    fn a_canonical_path_is_its_own_canonical_form(raw in prop_oneof![nearly_path(), "/.{0,40}".prop_map(String::from)]) {
        if let Ok(path) = CanonicalPath::parse(&raw) {
            let again = CanonicalPath::parse(path.as_str());
            prop_assert_eq!(again, Ok(path));
        }
    }

    #[test]
    fn the_path_of_a_request_is_its_own_canonical_form_and_strict_but_for_escaped_slashes(
        raw in prop_oneof![nearly_path(), "/.{0,40}".prop_map(String::from)],
    ) {
        let strict = CanonicalPath::parse(&raw);
        match CanonicalPath::of_request(&raw) {
            Ok(path) => {
                prop_assert_eq!(CanonicalPath::of_request(path.as_str()), Ok(path.clone()));
                prop_assert_eq!(path.has_escaped_slash(), path.as_str().contains("%2F"));
                let slashed = CanonicalPath::parse(&path.as_str().replace("%2F", "/"));
                prop_assert!(slashed.is_ok(), "{path} cannot be read with slashes: {slashed:?}");
                prop_assert_eq!(strict, if path.has_escaped_slash() { Err(PathError::EscapedSlash) } else { Ok(path) });
            }
            Err(error) => prop_assert_eq!(strict, Err(error)),
        }
    }

    #[test]
    fn no_server_can_read_a_canonical_path_as_leading_elsewhere(raw in nearly_path()) {
        if let Ok(path) = CanonicalPath::of_request(&raw) {
            let elements = |text: &str| text.split('/').filter(|element| !element.is_empty()).count();
            let slashed = path.as_str().replace("%2F", "/");
            // An element that is nothing but parameters vanishes; none is ever climbed out of.
            let parameters = slashed.split('/').filter(|element| {
                element.starts_with(';') || element.starts_with("%3B")
            }).count();
            prop_assert_eq!(elements(&careless(path.as_str())) + parameters, elements(&slashed));
        }
    }
}
