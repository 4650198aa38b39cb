//! WebSocket frames go on whole, as they came, and never with the secret.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| egress::fuzzing::frames(bytes));
