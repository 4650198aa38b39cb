//! The placeholder is replaced at its positions in a head alone.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| egress::fuzzing::head(text));
