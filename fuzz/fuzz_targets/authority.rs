//! A head that is accepted names one host in every place.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| egress::fuzzing::authority(text));
