//! Any bytes can be scanned, and a finding lies inside them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use scan::Rules;

fuzz_target!(|bytes: &[u8]| {
    let lines = bytes.iter().filter(|&&byte| byte == b'\n').count() + 1;
    for finding in Rules::builtin().scan(bytes) {
        assert!(finding.offset < bytes.len());
        assert!(finding.line >= 1 && finding.line <= finding.line_end && finding.column >= 1);
        assert!(finding.line_end as usize <= lines);
    }
});
