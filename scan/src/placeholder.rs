//! Values that stand for a secret in examples and templates.

/// Words that a person writes where a secret would be.
const WORDS: [&str; 22] = [
    "example",
    "xxxx",
    "placeholder",
    "changeme",
    "change_me",
    "change-me",
    "your_",
    "your-",
    "yourapi",
    "yourtoken",
    "redacted",
    "insert",
    "dummy",
    "sample",
    "****",
    "....",
    "foobar",
    "replace_",
    "replace-",
    "notreal",
    "goes_here",
    "not-a-real",
];

/// Runs that nobody draws by chance.
const RUNS: [&str; 4] = ["0123456789", "1234567890", "abcdefghij", "deadbeef"];

const REPEAT_MAX: usize = 7;

/// Whether a value is a stand-in, not a secret.
pub(crate) fn is_placeholder(value: &[u8]) -> bool {
    let lower = value.to_ascii_lowercase();
    let has = |word: &&str| contains(&lower, word.as_bytes());
    WORDS.iter().any(has) || RUNS.iter().any(has) || is_template(value) || repeats(value)
}

/// `${NAME}`, `{{ name }}`, `<name>`, `%s`, `$NAME`, `$(command)`.
fn is_template(value: &[u8]) -> bool {
    const MARKS: [&[u8]; 6] = [b"${", b"{{", b"$(", b"<%", b"%(", b"#{"];
    MARKS.iter().any(|mark| contains(value, mark))
        || matches!(value.first(), Some(b'$' | b'<' | b'{' | b'%'))
        || matches!(value.last(), Some(b'>'))
}

/// The same byte more often in a row than chance gives.
fn repeats(value: &[u8]) -> bool {
    value.chunk_by(|a, b| a == b).any(|run| run.len() > REPEAT_MAX)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stand_ins_are_recognised() {
        for value in
            ["AKIAIOSFODNN7EXAMPLE", "${TOKEN}", "<your token>", "$PASSWORD", "ghp_xxxxxxxx", "aaaaaaaaaaaa"]
        {
            assert!(is_placeholder(value.as_bytes()), "{value}");
        }
        assert!(!is_placeholder(b"q8Zr2LkT0vWc"));
    }
}
