//! A path is its own canonical form, and no part of it can be read as leading elsewhere: neither as it stands nor, where it is
//! the path of a request with `%2F`, with `/` in that place.

#![no_main]

use libfuzzer_sys::fuzz_target;
use policy::CanonicalPath;

fuzz_target!(|raw: &str| {
    let strict = CanonicalPath::parse(raw);
    let Ok(path) = CanonicalPath::of_request(raw) else {
        return assert!(strict.is_err(), "{raw} is not refused");
    };
    assert_eq!(CanonicalPath::of_request(path.as_str()), Ok(path.clone()));
    assert_eq!(path.has_escaped_slash(), path.as_str().contains("%2F"));
    assert_eq!(path.has_escaped_slash(), strict.is_err());
    check(path.as_str());
    check(&path.as_str().replace("%2F", "/"));
});

fn check(text: &str) {
    assert!(text.starts_with('/') && text.is_ascii() && !text.contains("//") && !text.contains('\\'));
    let lower = text.to_ascii_lowercase();
    for escaped in ["%2e", "%5c", "%00", "%0a", "%0d"] {
        assert!(!lower.contains(escaped), "{text} has {escaped}");
    }
    assert!(!text.contains("%2f"), "{text} has an escape in lower case");
    for rest in lower.split("%25").skip(1) {
        let hex = rest.bytes().take(2).filter(u8::is_ascii_hexdigit).count();
        assert!(hex < 2, "{text} is escaped twice");
    }
    for segment in text.split('/') {
        let name = segment.split(';').next().unwrap_or(segment);
        assert!(!matches!(name, "." | ".."), "{text} has a dot segment");
    }
}
