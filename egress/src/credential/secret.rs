use std::fmt;

use zeroize::Zeroizing;

/// A secret value: prints as `Secret(..)`, is wiped when dropped, and is opened in the module `credential` alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Keeps `bytes`, without the line ends at their end.
    pub fn new(bytes: Vec<u8>) -> Secret {
        let mut bytes = Zeroizing::new(bytes);
        while bytes.last().is_some_and(|last| matches!(last, b'\n' | b'\r')) {
            bytes.pop();
        }
        Secret(bytes)
    }

    /// Whether `text` is what is injected: the value, or the password of a pair.
    pub(crate) fn is_injected_as(&self, text: &[u8]) -> bool {
        let before = self.0.strip_suffix(text);
        before.is_some_and(|before| before.is_empty() || before.last() == Some(&b':'))
    }

    pub(super) fn open(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_print_its_value() {
        assert_eq!(format!("{:?}", Secret::new(b"hunter2".to_vec())), "Secret(..)");
    }

    #[test]
    fn a_value_and_the_password_of_a_pair_are_what_is_injected() {
        let secret = Secret::new(b"me:hunter2".to_vec());
        assert!(secret.is_injected_as(b"me:hunter2") && secret.is_injected_as(b"hunter2"));
        assert!(
            !secret.is_injected_as(b"unter2")
                && !secret.is_injected_as(b"me:hunter")
                && !secret.is_injected_as(b"x")
        );
    }

    #[test]
    fn line_ends_at_the_end_are_not_part_of_it() {
        assert_eq!(Secret::new(b"hunter2\r\n".to_vec()).open(), b"hunter2");
    }
}
