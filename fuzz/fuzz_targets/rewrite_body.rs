//! The placeholder is replaced at its positions in a body alone, however the body is cut.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| egress::fuzzing::body(bytes));
