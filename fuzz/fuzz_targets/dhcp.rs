//! A message of a DHCP server is read or passed over, and what stands behind its end changes nothing.

#![no_main]

use libfuzzer_sys::fuzz_target;

// The supervisor is a program alone; this file of it needs nothing else.
#[allow(dead_code)]
#[path = "../../supervisor/src/machine/dhcp/message.rs"]
mod message;

fuzz_target!(|bytes: &[u8]| {
    let Some(answer) = message::Answer::decode(bytes) else { return };
    let longer = [bytes, &[0]].concat();
    if longer.len() <= message::LONGEST {
        assert_eq!(message::Answer::decode(&longer), Some(answer));
    }
});
