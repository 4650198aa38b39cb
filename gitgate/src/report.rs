//! What the person or agent who pushed reads. Git puts `remote: ` before each line.

use std::fmt::Write as _;

use crate::git::printable;
use crate::wire::{OnSecret, Place};

const SHOWN_MAX: usize = 20;
const SHORT_ID: usize = 10;

/// A push refused for secrets.
pub(crate) fn secrets(places: &[Place], on_secret: OnSecret) -> String {
    let mut text =
        String::from("git-gate: push refused: secrets in new objects; upstream was not contacted\n");
    for place in places.iter().take(SHOWN_MAX) {
        let _ = writeln!(text, "git-gate:   {}", line(place));
    }
    if let Some(more @ 1..) = places.len().checked_sub(SHOWN_MAX) {
        let _ = writeln!(text, "git-gate:   and {more} more");
    }
    text.push_str(
        "git-gate: Deleting the secret in a later commit is not enough: it must not be in any commit that is pushed.\n\
         git-gate: Amend the last commit (git commit --amend) or rewrite the named one (git rebase -i), then push again.\n",
    );
    if on_secret == OnSecret::Supervise {
        text.push_str(
            "git-gate: The operator cannot be asked about a push by this version; such pushes are refused.\n",
        );
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
        }
    }

    #[test]
    fn a_refusal_names_rule_commit_file_and_line_and_what_to_do() {
        insta::assert_snapshot!(secrets(&[place("src/config.py"), place("(commit message)")], OnSecret::Block), @r"
        git-gate: push refused: secrets in new objects; upstream was not contacted
        git-gate:   private-key in commit 1a2b3c4d5e, src/config.py:12
        git-gate:   private-key in commit 1a2b3c4d5e, (commit message):12
        git-gate: Deleting the secret in a later commit is not enough: it must not be in any commit that is pushed.
        git-gate: Amend the last commit (git commit --amend) or rewrite the named one (git rebase -i), then push again.
        ");
    }

    #[test]
    fn a_file_name_cannot_write_to_the_terminal() {
        assert!(!secrets(&[place("a\x1b[2J\nremote: all fine")], OnSecret::Block).contains('\x1b'));
        let lines = |file: &str| secrets(&[place(file)], OnSecret::Block).lines().count();
        assert_eq!(lines("a\nb"), lines("a"));
    }

    #[test]
    fn a_long_list_is_cut_and_counted() {
        assert!(secrets(&vec![place("a"); 25], OnSecret::Block).contains("and 5 more"));
        assert!(!secrets(&vec![place("a"); 20], OnSecret::Block).contains("more\n"));
    }
}
