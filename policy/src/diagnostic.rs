//! What is wrong with a configuration file, and where.

use std::fmt;

/// One finding in a configuration file, displayed as `routes.yaml:5:5: message`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {message}")]
pub struct Diagnostic {
    /// The file's name, for the reader.
    pub file: String,
    /// The line, from 1.
    pub line: u64,
    /// The column in characters, from 1.
    pub column: u64,
    /// What was found and what is allowed.
    pub message: String,
}

/// The text of a configuration file.
///
/// # Errors
/// The place of the first byte that is none.
pub fn text<'b>(file: &str, bytes: &'b [u8]) -> Result<&'b str, Diagnostic> {
    std::str::from_utf8(bytes).map_err(|error| {
        let lines = bytes[..error.valid_up_to()].split(|byte| *byte == b'\n');
        let last = String::from_utf8_lossy(lines.clone().next_back().unwrap_or_default());
        let (line, column) = (lines.count() as u64, last.chars().count() as u64 + 1);
        Diagnostic { file: file.to_owned(), line, column, message: "this is not UTF-8".to_owned() }
    })
}

/// All findings of one parse, never empty, displayed one per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// The findings in the order of the file; `None` when there are none.
    #[must_use]
    pub fn new(mut findings: Vec<Diagnostic>) -> Option<Diagnostics> {
        findings.sort_by_key(|finding| (finding.line, finding.column));
        findings.dedup();
        (!findings.is_empty()).then_some(Diagnostics(findings))
    }

    /// The first finding: what fits in one line of a status.
    #[must_use]
    pub fn first(&self) -> &Diagnostic {
        self.0.first().expect("never empty by construction")
    }

    /// The findings, in the order of the file.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.0.iter()
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(finding: Diagnostic) -> Diagnostics {
        Diagnostics(vec![finding])
    }
}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            finding.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}
