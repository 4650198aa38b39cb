//! An answer to a DNS query holds what was asked and the one address.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| egress::fuzzing::dns(bytes));
