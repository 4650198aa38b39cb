//! What the person or agent who pushed reads. Git puts `remote: ` before each line.

use std::fmt::Write as _;

use crate::git::printable;
use crate::wire::Place;

const SHOWN_MAX: usize = 20;
const SHORT_ID: usize = 10;

/// A push refused for secrets.
pub(crate) fn secrets(places: &[Place]) -> String {
    let head = "git-gate: push refused: secrets in new objects; upstream was not contacted\n";
    listed(head, places)
        + &asking(places)
        + "git-gate: Deleting the secret in a later commit is not enough: it must not be in any commit that is pushed.\n\
           git-gate: Amend the last commit (git commit --amend) or rewrite the named one (git rebase -i), then push again.\n"
}

/// How to ask for an exception, where one can be.
fn asking(places: &[Place]) -> String {
    let Some(fingerprint) = places.iter().find_map(|place| place.fingerprint.as_ref()) else {
        return String::new();
    };
    format!(
        "git-gate: If it is no secret, ask: mcp tool propose_capability {{\"capability\":\"dlp_exception\",\"fingerprint\":\"{fingerprint}\",\"reason\":\"…\"}}\n"
    )
}

/// A push with secrets that the operator did not let pass.
pub(crate) fn unreleased(places: &[Place], reasons: &[String]) -> String {
    let mut text = secrets(places);
    for reason in reasons.iter().take(SHOWN_MAX) {
        let _ = writeln!(text, "git-gate: {}", printable(reason));
    }
    text
}

/// A push with secrets that waits for the operator.
pub(crate) fn held(places: &[Place], minutes: u64) -> String {
    let head = "git-gate: secrets in new objects; this push waits for the operator\n";
    listed(head, places)
        + &format!(
            "git-gate: It goes on when the operator lets it pass, and is refused after {minutes} minutes. Ctrl-C gives up.\n"
        )
}

fn listed(head: &str, places: &[Place]) -> String {
    let mut text = String::from(head);
    for place in places.iter().take(SHOWN_MAX) {
        let name = place.fingerprint.as_ref().map_or_else(String::new, |name| format!(" [{name}]"));
        let _ = writeln!(text, "git-gate:   {}{name}", line(place));
    }
    if let Some(more @ 1..) = places.len().checked_sub(SHOWN_MAX) {
        let _ = writeln!(text, "git-gate:   and {more} more");
    }
    text
}

/// The same in the few words that git shows beside each ref.
pub(crate) fn brief(places: &[Place]) -> String {
    match places {
        [] => String::new(),
        [place] => line(place),
        [place, more @ ..] => format!("{}, and {} more", line(place), more.len()),
    }
}

/// A push refused by the rules of the repository.
pub(crate) fn denied(reasons: &[String]) -> String {
    let mut text = String::from("git-gate: push refused; upstream was not contacted\n");
    for reason in reasons.iter().take(SHOWN_MAX) {
        let _ = writeln!(text, "git-gate:   {}", printable(reason));
    }
    text
}

/// A push that upstream took nothing of.
pub(crate) fn refused(words: &str) -> String {
    format!("{words}git-gate: push refused by upstream; nothing was changed\n")
}

/// A push of which it is not known whether upstream took it.
pub(crate) fn unanswered(words: &str) -> String {
    format!(
        "{words}git-gate: upstream's answer to the push did not come; git ls-remote shows what it has now\n"
    )
}

/// A push refused because its objects cannot be judged.
pub(crate) fn unjudged(reason: &str) -> String {
    denied(&[reason.to_owned()])
}

/// `private-key in commit 1a2b3c4d5e, src/config.py:12`
fn line(place: &Place) -> String {
    let file = printable(&place.file).replace(['\n', '\t'], " ");
    match &place.commit {
        Some(commit) => {
            format!(
                "{} in commit {}, {file}:{}",
                place.rule,
                &commit[..commit.len().min(SHORT_ID)],
                place.line
            )
        }
        None => format!("{} in {file}:{}", place.rule, place.line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(file: &str) -> Place {
        Place {
            rule: "private-key".into(),
            commit: Some("1a2b3c4d5e6f708192a3b4c5d6e7f80912345678".into()),
            object: None,
            file: file.into(),
            line: 12,
            line_end: 20,
            column: 1,
            fingerprint: None,
        }
    }

    #[test]
    fn a_refusal_names_rule_commit_file_and_line_and_what_to_do() {
        insta::assert_snapshot!(secrets(&[place("src/config.py"), place("(commit message)")]), @r"
        git-gate: push refused: secrets in new objects; upstream was not contacted
        git-gate:   private-key in commit 1a2b3c4d5e, src/config.py:12
        git-gate:   private-key in commit 1a2b3c4d5e, (commit message):12
        git-gate: Deleting the secret in a later commit is not enough: it must not be in any commit that is pushed.
        git-gate: Amend the last commit (git commit --amend) or rewrite the named one (git rebase -i), then push again.
        ");
    }

    #[test]
    fn a_file_name_cannot_write_to_the_terminal() {
        assert!(!secrets(&[place("a\x1b[2J\nremote: all fine")]).contains('\x1b'));
        let lines = |file: &str| secrets(&[place(file)]).lines().count();
        assert_eq!(lines("a\nb"), lines("a"));
    }

    #[test]
    fn a_long_list_is_cut_and_counted() {
        assert!(secrets(&vec![place("a"); 25]).contains("and 5 more"));
        assert!(!secrets(&vec![place("a"); 20]).contains("more\n"));
    }
}
