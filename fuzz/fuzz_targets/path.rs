//! A path is its own canonical form, and no part of it can be read as leading elsewhere.

#![no_main]

use libfuzzer_sys::fuzz_target;
use policy::CanonicalPath;

fuzz_target!(|raw: &str| {
    let Ok(path) = CanonicalPath::parse(raw) else { return };
    assert_eq!(CanonicalPath::parse(path.as_str()), Ok(path.clone()));
    let text = path.as_str();
    assert!(text.starts_with('/') && text.is_ascii() && !text.contains("//") && !text.contains('\\'));
    let lower = text.to_ascii_lowercase();
    for escaped in ["%2e", "%2f", "%5c", "%00", "%0a", "%0d"] {
        assert!(!lower.contains(escaped), "{text} has {escaped}");
    }
    for rest in lower.split("%25").skip(1) {
        let hex = rest.bytes().take(2).filter(u8::is_ascii_hexdigit).count();
        assert!(hex < 2, "{text} is escaped twice");
    }
    for segment in text.split('/') {
        let name = segment.split(';').next().unwrap_or(segment);
        assert!(!matches!(name, "." | ".."), "{text} has a dot segment");
    }
});
