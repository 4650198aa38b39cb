//! However a stream of requests is cut the same are read, and what goes on of each has one reading.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| egress::fuzzing::heads(bytes));
