use policy::{Host, HostError, HostPattern, PatternError};
use proptest::prelude::*;

fn canonical(text: &str) -> Result<String, HostError> {
    Host::parse(text).map(|host| host.as_str().to_owned())
}

#[test]
fn a_name_is_lower_case_without_its_one_trailing_dot() {
    assert_eq!(canonical("API.Example.COM").unwrap(), "api.example.com");
    assert_eq!(canonical("api.example.com.").unwrap(), "api.example.com");
    assert_eq!(canonical("_dmarc.example.com").unwrap(), "_dmarc.example.com");
    assert_eq!(canonical("localhost").unwrap(), "localhost");
    assert_eq!(canonical("xn--bcher-kva.example").unwrap(), "xn--bcher-kva.example");
}

#[test]
fn what_two_parsers_could_read_differently_is_not_a_host() {
    let long_label = format!("{}.example.com", "a".repeat(64));
    let long_name = format!("{}com", "abcdefg.".repeat(32));
    let cases = [
        ("", HostError::Empty),
        (".", HostError::EmptyLabel),
        ("..", HostError::EmptyLabel),
        ("example.com..", HostError::EmptyLabel),
        (".example.com", HostError::EmptyLabel),
        ("a..example.com", HostError::EmptyLabel),
        ("example.com\0.evil.com", HostError::Character),
        ("example.com%00.evil.com", HostError::Character),
        ("example.com\r\nx", HostError::Character),
        ("example .com", HostError::Character),
        ("example\t.com", HostError::Character),
        ("user@example.com", HostError::Character),
        ("example.com/path", HostError::Character),
        ("example.com?x", HostError::Character),
        ("example.com#x", HostError::Character),
        ("example.com\\x", HostError::Character),
        ("*.example.com", HostError::Character),
        ("ex\u{ff41}mple.com", HostError::NotAscii),
        ("example\u{3002}com", HostError::NotAscii),
        ("example\u{ff0e}com", HostError::NotAscii),
        ("example\u{ff61}com", HostError::NotAscii),
        ("b\u{fc}cher.example", HostError::NotAscii),
        ("\u{202e}example.com", HostError::NotAscii),
        ("-a.example.com", HostError::Hyphen),
        ("a-.example.com", HostError::Hyphen),
        ("xn--.example.com", HostError::Hyphen),
        (&long_label, HostError::LabelTooLong),
        (&long_name, HostError::TooLong),
        ("example.com:443", HostError::Ipv6),
    ];
    for (text, error) in cases {
        assert_eq!(canonical(text), Err(error), "{text:?}");
    }
}

#[test]
fn an_ipv4_address_has_one_spelling() {
    assert_eq!(canonical("93.184.216.34").unwrap(), "93.184.216.34");
    let odd = [
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0X7F.1",
        "127.1",
        "127.0.1",
        "017700000001",
        "0177.0.0.1",
        "127.0.0.01",
        "127.0.0.1.",
        "1.2.3.4.5",
        "256.1.1.1",
        "example.1",
        "example.0x1",
        "example.0x",
        "0",
    ];
    for text in odd {
        assert_eq!(canonical(text), Err(HostError::AmbiguousIpv4), "{text:?}");
    }
    assert_eq!(canonical("1.2.3.4.example.com").unwrap(), "1.2.3.4.example.com");
    assert_eq!(canonical("0x7f.example").unwrap(), "0x7f.example");
}

#[test]
fn an_ipv6_address_has_one_spelling_and_no_zone() {
    assert_eq!(canonical("[2001:DB8:0:0::1]").unwrap(), "2001:db8::1");
    assert_eq!(canonical("2001:db8::1").unwrap(), "2001:db8::1");
    assert_eq!(Host::parse("::1").unwrap().to_string(), "[::1]");
    assert_eq!(canonical("[fe80::1%eth0]"), Err(HostError::ZoneId));
    assert_eq!(canonical("fe80::1%25eth0"), Err(HostError::ZoneId));
    for text in
        ["[::1", "::1]", "[]", "[127.0.0.1]", "[example.com]", "1::2::3", "[::1]:443", "[[::1]]", "::1."]
    {
        assert_eq!(canonical(text), Err(HostError::Ipv6), "{text:?}");
    }
}

#[test]
fn a_wildcard_needs_a_domain_of_two_labels_and_stands_in_front() {
    let cases = [
        ("*", PatternError::Everything),
        ("**", PatternError::Everything),
        ("*.", PatternError::Everything),
        ("*.com", PatternError::TooBroad),
        ("**.com", PatternError::TooBroad),
        ("*.com.", PatternError::TooBroad),
        ("*.*.example.com", PatternError::Misplaced),
        ("***.example.com", PatternError::Misplaced),
        ("api.*.com", PatternError::Misplaced),
        ("*example.com", PatternError::Misplaced),
        ("*.10.0.0.1", PatternError::Address),
        ("*.example..com", PatternError::Host(HostError::EmptyLabel)),
    ];
    for (text, error) in cases {
        assert_eq!(HostPattern::parse(text), Err(error), "{text:?}");
    }
}

#[test]
fn one_star_is_one_label_and_two_are_any_depth() {
    let matches =
        |pattern: &str, name: &str| HostPattern::parse(pattern).unwrap().matches(&super::host(name));
    assert!(matches("*.github.com", "api.github.com"));
    assert!(!matches("*.github.com", "github.com"));
    assert!(!matches("*.github.com", "a.b.github.com"));
    assert!(matches("**.github.com", "a.b.github.com"));
    assert!(matches("**.github.com", "api.github.com"));
    assert!(!matches("**.github.com", "github.com"));
    for evil in ["evilgithub.com", "api.evilgithub.com", "github.com.evil.com", "api-github.com"] {
        assert!(!matches("**.github.com", evil), "{evil}");
        assert!(!matches("*.github.com", evil), "{evil}");
        assert!(!matches("github.com", evil), "{evil}");
    }
}

/// Texts that come near to hosts.
fn nearly_host() -> impl Strategy<Value = String> {
    prop_oneof!["[a-zA-Z0-9._-]{0,40}", "[0-9a-fx.]{0,20}", r"\[?[0-9a-f:.%]{0,30}\]?", ".{0,30}"]
}

proptest! {
    #[test]
    fn a_canonical_host_is_its_own_canonical_form(text in nearly_host()) {
        if let Ok(host) = Host::parse(&text) {
            prop_assert_eq!(Host::parse(host.as_str()), Ok(host.clone()));
            prop_assert_eq!(Host::parse(&host.to_string()), Ok(host.clone()));
            let bytes = host.as_str().bytes();
            prop_assert!(bytes.clone().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()));
        }
    }

    #[test]
    fn a_wildcard_never_matches_past_a_label_border(name in "[a-z.-]{1,12}(github\\.com|ithub\\.com)", any_depth: bool) {
        let pattern = HostPattern::parse(if any_depth { "**.github.com" } else { "*.github.com" }).unwrap();
        if let Ok(host) = Host::parse(&name) {
            let labels: Vec<&str> = host.as_str().split('.').collect();
            let under = labels.len() > 2 && labels[labels.len() - 2..] == ["github", "com"];
            let wanted = under && (any_depth || labels.len() == 3);
            prop_assert_eq!(pattern.matches(&host), wanted);
        }
    }
}
