//! A host is its own canonical form, and a wildcard never reaches past a label border.

#![no_main]

use libfuzzer_sys::fuzz_target;
use policy::{Host, HostPattern};

fuzz_target!(|text: &str| {
    if let Ok(pattern) = HostPattern::parse(text) {
        assert_eq!(HostPattern::parse(&pattern.to_string()), Ok(pattern));
    }
    let Ok(host) = Host::parse(text) else { return };
    assert_eq!(Host::parse(host.as_str()), Ok(host.clone()));
    assert_eq!(Host::parse(&host.to_string()), Ok(host.clone()));
    assert!(host.as_str().bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()));
    let wildcard = HostPattern::parse("**.github.com").expect("a valid pattern");
    let under = host.ip().is_none() && host.as_str().ends_with(".github.com");
    assert_eq!(wildcard.matches(&host), under);
});
