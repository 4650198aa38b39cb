//! What is scrubbed is as long as it was, differs only in masks, and shows the secret in no form, however it came.

#![no_main]

use libfuzzer_sys::fuzz_target;
use scan::Scrubber;

mod script;

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let input = script::text(rest);
    let whole = scrubbed(&input, input.len().max(1));
    assert_eq!(scrubbed(&input, usize::from(*first).max(1)), whole);
    assert_eq!(whole.len(), input.len());
    assert!(input.iter().zip(&whole).all(|(before, after)| before == after || *after == b'*'));
    for form in script::cores() {
        assert!(
            !whole.windows(form.len()).any(|window| window == form),
            "{}",
            String::from_utf8_lossy(&form)
        );
    }
    assert_eq!(scrubbed(&whole, whole.len().max(1)), whole);
});

fn scrubbed(input: &[u8], step: usize) -> Vec<u8> {
    let mut scrubber = Scrubber::new(script::known());
    let mut out = Vec::new();
    for piece in input.chunks(step) {
        out.extend(scrubber.feed(piece).unwrap_or_else(|| piece.to_vec()));
        assert!(scrubber.held() <= input.len());
    }
    out.extend(scrubber.finish());
    out
}
