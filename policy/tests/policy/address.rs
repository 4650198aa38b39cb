use std::net::IpAddr;

use policy::{AddressClass, PrivateAllow, address};

fn class(ip: &str) -> Option<AddressClass> {
    address::check(ip.parse().unwrap(), 443, &[]).err().map(|denial| denial.class)
}

#[test]
fn what_is_not_the_public_network_is_refused() {
    use AddressClass::{
        Benchmark, Broadcast, LinkLocal, Loopback, Metadata, Multicast, Private, Reserved, SharedCarrier,
        SiteLocal, UniqueLocal, Unspecified,
    };
    let cases = [
        ("127.0.0.1", Loopback),
        ("127.255.255.254", Loopback),
        ("0.0.0.0", Unspecified),
        ("0.1.2.3", Unspecified),
        ("10.1.2.3", Private),
        ("172.16.0.1", Private),
        ("172.31.255.255", Private),
        ("192.168.1.1", Private),
        ("100.64.0.1", SharedCarrier),
        ("100.127.255.255", SharedCarrier),
        ("100.100.100.200", Metadata),
        ("169.254.169.254", Metadata),
        ("169.254.170.2", Metadata),
        ("169.254.1.1", LinkLocal),
        ("168.63.129.16", Metadata),
        ("192.0.0.1", Reserved),
        ("198.18.0.1", Benchmark),
        ("198.19.255.255", Benchmark),
        ("224.0.0.1", Multicast),
        ("239.255.255.255", Multicast),
        ("240.0.0.1", Reserved),
        ("255.255.255.255", Broadcast),
        ("::", Unspecified),
        ("::1", Loopback),
        ("fe80::1", LinkLocal),
        ("febf::1", LinkLocal),
        ("fec0::1", SiteLocal),
        ("fc00::1", UniqueLocal),
        ("fdff::1", UniqueLocal),
        ("fd00:ec2::254", Metadata),
        ("ff02::1", Multicast),
        ("100::1", Reserved),
        ("4000::1", Reserved),
        ("2001:2::1", Benchmark),
    ];
    for (ip, wanted) in cases {
        assert_eq!(class(ip), Some(wanted), "{ip}");
    }
}

#[test]
fn the_public_network_and_documentation_ranges_pass() {
    let public = [
        "1.1.1.1",
        "93.184.216.34",
        "172.15.0.1",
        "172.32.0.1",
        "100.63.0.1",
        "100.128.0.1",
        "198.17.0.1",
        "198.20.0.1",
        "192.0.2.1",
        "198.51.100.7",
        "203.0.113.9",
        "223.255.255.255",
        "2606:4700::1111",
        "2001:db8::1",
        "2a00:1450::1",
    ];
    for ip in public {
        assert_eq!(class(ip), None, "{ip}");
    }
}

#[test]
fn an_ipv4_address_inside_an_ipv6_address_is_judged() {
    let forms: [fn([u8; 4]) -> String; 9] = [
        |[a, b, c, d]| format!("::ffff:{a}.{b}.{c}.{d}"),
        |[a, b, c, d]| format!("::{a}.{b}.{c}.{d}"),
        |[a, b, c, d]| format!("::ffff:0:{a}.{b}.{c}.{d}"),
        |[a, b, c, d]| format!("64:ff9b::{a}.{b}.{c}.{d}"),
        |[a, b, c, d]| format!("64:ff9b:1::{a}.{b}.{c}.{d}"),
        |[a, b, c, d]| format!("64:ff9b:1:{a:02x}{b:02x}:{c:x}:{d:02x}00::"),
        |[a, b, c, d]| format!("2002:{a:02x}{b:02x}:{c:02x}{d:02x}::1"),
        |[a, b, c, d]| format!("2001:0:5db8:d822:0:0:{:02x}{:02x}:{:02x}{:02x}", !a, !b, !c, !d),
        |[a, b, c, d]| format!("2606:4700::5efe:{a}.{b}.{c}.{d}"),
    ];
    for form in forms {
        for private in
            [[127, 0, 0, 1], [10, 1, 2, 3], [169, 254, 169, 254], [192, 168, 0, 1], [100, 64, 0, 1]]
        {
            assert!(class(&form(private)).is_some(), "{}", form(private));
        }
        let public = form([93, 184, 216, 34]);
        assert_eq!(class(&public), None, "{public}");
    }
    assert!(class("2001:0:7f00:1:0:0:a247:27dd").is_some(), "a Teredo server on loopback");
    assert!(class("64:ff9b:1::").is_some(), "nothing inside");
}

#[test]
fn an_address_with_an_ipv4_address_inside_is_judged_by_its_prefix_too() {
    use AddressClass::{
        Benchmark, LinkLocal, Multicast, Private, Reserved, SharedCarrier, SiteLocal, UniqueLocal,
    };
    // ISATAP stands under any prefix.
    let special = [
        ("fd00:", UniqueLocal),
        ("fc00:", UniqueLocal),
        ("fe80:", LinkLocal),
        ("fec0:", SiteLocal),
        ("ff02:", Multicast),
        ("2001:2:", Benchmark),
        ("100:", Reserved),
        ("4000:", Reserved),
        ("1:", Reserved),
    ];
    for (prefix, wanted) in special {
        for id in [":5efe:8.8.8.8", ":200:5efe:8.8.8.8"] {
            assert_eq!(class(&format!("{prefix}{id}")), Some(wanted), "{prefix}{id}");
        }
    }
    // A private address under a prefix that carries a public one; of Teredo, whose client is 155.191.255.254.
    assert_eq!(class("2002:808:808:0:0:5efe:10.0.0.1"), Some(Private));
    assert_eq!(class("2002:808:808:0:200:5efe:8.8.8.8"), None);
    assert_eq!(class("2001:0:5db8:d822:0:5efe:100.64.0.1"), Some(SharedCarrier));
    assert_eq!(class("2001:0:5db8:d822:0:5efe:100.1.0.1"), None);
    assert_eq!(class("2002:a00:1::5efe:8.8.8.8"), Some(Private));
    assert_eq!(class("2606:4700::300:5efe:10.0.0.1"), None, "no interface id of ISATAP");
}

#[test]
fn an_exemption_covers_its_network_on_its_port_alone() {
    let allows = |allow: &str, ip: &str, port| {
        address::check(ip.parse().unwrap(), port, &[PrivateAllow::parse(allow).unwrap()]).is_ok()
    };
    assert!(allows("127.0.0.0/8:8443", "127.3.2.1", 8443));
    assert!(!allows("127.0.0.0/8:8443", "127.3.2.1", 8444));
    assert!(!allows("127.0.0.0/8:8443", "10.0.0.1", 8443));
    assert!(allows("10.1.2.3", "10.1.2.3", 1));
    assert!(!allows("10.1.2.3", "10.1.2.4", 1));
    assert!(allows("[fd00::/8]:443", "fd12::1", 443));
    assert!(!allows("[fd00::/8]:443", "fd12::1", 80));
    assert!(allows("fd00::/8", "fd12::1", 80));
    assert!(allows("::1", "::1", 80));
    assert!(allows("127.0.0.1", "::ffff:127.0.0.1", 80));
    assert!(!allows("10.0.0.0/8", "64:ff9b::10.0.0.1", 80), "a translated address needs its own exemption");
}

#[test]
fn what_is_not_an_exemption_is_refused() {
    for text in [
        "",
        "localhost",
        "10.0.0.0/33",
        "10.0.0.1:0",
        "10.0.0.1:x",
        "10.0.0.1:",
        "[10.0.0.1]:80",
        "[fd00::1",
        "[fd00::1]80",
        "10.0.0.1:+80",
    ] {
        assert!(PrivateAllow::parse(text).is_err(), "{text:?}");
    }
    let shown = ["127.0.0.0/8:8443", "10.1.2.3/32", "[fd00::/8]:443"];
    for text in shown {
        assert_eq!(PrivateAllow::parse(text).unwrap().to_string(), text);
    }
}

#[test]
fn the_refusal_says_what_the_address_is() {
    let denial = address::check(IpAddr::from([10, 0, 0, 1]), 443, &[]).unwrap_err();
    assert_eq!(denial.to_string(), "10.0.0.1 is a private address");
}
