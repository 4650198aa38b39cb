//! Secrets, from where a manifest says that they are: read on the host, held in memory that is wiped, and shown to nobody.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use zeroize::Zeroizing;

use crate::bundle::Secret;
use crate::fault::{Attempted, Fault};
use crate::manifest::SecretSource;

const SECRET_MAX: u64 = 256 * 1024;
/// The program that reads a desktop's keyring.
const SECRET_TOOL: &str = "secret-tool";

/// Reads all of them, in the order of their names.
///
/// # Errors
/// The first that cannot be read, and why; never what it is.
pub fn resolve(sources: &BTreeMap<String, SecretSource>) -> Result<Vec<(String, Secret)>, Fault> {
    sources.iter().map(|(name, source)| Ok((name.clone(), read(name, source)?))).collect()
}

fn read(name: &str, source: &SecretSource) -> Result<Secret, Fault> {
    match source {
        SecretSource::Variable(variable) => match env::var_os(variable) {
            Some(value) if !value.is_empty() => Ok(Secret::new(value.as_bytes().to_vec())),
            Some(_) | None => Err(Fault::refused(format!(
                "the secret `{name}` is to come from {variable}, which is not set"
            ))
            .with_hint(format!("set it for this command: {variable}=… bottlecap run …"))),
        },
        SecretSource::File(path) => file(path),
        SecretSource::Command(words) => printed(name, words),
        SecretSource::Keyring(entry) => {
            let attributes = entry.iter().flat_map(|(name, value)| [name.clone(), value.clone()]);
            let words: Vec<String> =
                [SECRET_TOOL.to_owned(), "lookup".to_owned()].into_iter().chain(attributes).collect();
            printed(name, &words)
        }
    }
}

fn file(path: &Path) -> Result<Secret, Fault> {
    let told = || format!("cannot read the secret {}", path.display());
    if fs::metadata(path).refusing(told)?.len() > SECRET_MAX {
        return Err(too_large(&path.display().to_string()));
    }
    Ok(Secret::new(without_line_end(fs::read(path).refusing(told)?)))
}

fn too_large(what: &str) -> Fault {
    Fault::refused(format!("the secret {what} is larger than {} KiB", SECRET_MAX / 1024))
}

/// What `words` prints. The program speaks to the person by the terminal itself, and stands nowhere: a file of the working
/// directory cannot be taken for it.
fn printed(name: &str, words: &[String]) -> Result<Secret, Fault> {
    let Some((program, arguments)) = words.split_first() else {
        return Err(Fault::refused(format!("the secret `{name}` has an empty command")));
    };
    let told = || format!("cannot run {program} for the secret `{name}`");
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .refusing(told)
        .map_err(|fault| match (fault, program.as_str()) {
            (fault, SECRET_TOOL) => {
                fault.with_hint("the keyring is read with secret-tool: install libsecret-tools")
            }
            (fault, _) => fault.with_hint(format!("is {program} installed, and in PATH?")),
        })?;
    // Its whole size at once: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_MAX as usize + 1));
    let output = child.stdout.take();
    let read = output.map(|output| output.take(SECRET_MAX + 1).read_to_end(&mut bytes));
    if bytes.len() as u64 > SECRET_MAX {
        // It may have ended by itself.
        let _ = child.kill();
    }
    let status = child.wait().failing(told)?;
    read.transpose().failing(told)?;
    if bytes.len() as u64 > SECRET_MAX {
        return Err(too_large(&format!("`{name}`")));
    }
    if !status.success() {
        return Err(Fault::refused(format!("{program} did not give the secret `{name}`: {status}"))
            .with_hint(format!("run it yourself to see why: {}", words.join(" "))));
    }
    let bytes = without_line_end(std::mem::take(&mut *bytes));
    if bytes.is_empty() {
        return Err(Fault::refused(format!("{program} gave nothing for the secret `{name}`")));
    }
    Ok(Secret::new(bytes))
}

/// Without the line end that an editor or a program adds.
fn without_line_end(mut bytes: Vec<u8>) -> Vec<u8> {
    while matches!(bytes.last(), Some(b'\n' | b'\r')) {
        bytes.pop();
    }
    bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Result<usize, String> {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        read("T", &SecretSource::Command(words))
            .map(|secret| secret.expose().len())
            .map_err(|fault| fault.to_string())
    }

    #[test]
    fn a_program_gives_a_secret_without_its_line_end() {
        assert_eq!(of(&["printf", "one two\\n"]), Ok(7));
        assert_eq!(of(&["echo", "$(id); `id`"]), Ok(11), "no shell reads it");
    }

    #[test]
    fn a_program_that_fails_gives_nothing_and_its_output_is_not_told() {
        let told = of(&["sh", "-c", "echo hunter2; exit 3"]).unwrap_err();
        assert_eq!(told, "sh did not give the secret `T`: exit status: 3");
        assert_eq!(of(&["true"]), Err("true gave nothing for the secret `T`".to_owned()));
        assert!(
            of(&["/nonexistent/op"])
                .unwrap_err()
                .starts_with("cannot run /nonexistent/op for the secret `T`")
        );
    }

    #[test]
    fn a_program_that_prints_without_end_is_ended() {
        assert_eq!(of(&["yes"]), Err("the secret `T` is larger than 256 KiB".to_owned()));
    }
}
