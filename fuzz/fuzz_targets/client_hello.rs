//! A ClientHello is the same ClientHello however it is cut.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| egress::fuzzing::client_hello(bytes));
