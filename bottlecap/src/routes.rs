//! `bottlecap routes`: the table of a bottle that runs, shown, compared and replaced as a whole.
//!
//! A new table is parsed here with the parser that egress uses, before anything is written; what was shown is what is
//! written, in one step; and it counts when egress has acknowledged its digest.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::Command;

use nix::poll::{PollTimeout, poll};
use policy::Policy;
use policy::lines::{List, add_item, remove_item};
use proposal::{Id, Table, digest};
use similar::TextDiff;

use crate::fault::{Attempted, Fault};
use crate::requests::apply::{self, Change};
use crate::requests::ledger::Entry;
use crate::requests::{Confirm, Desk, Form, asked, json, print};
use crate::text;

/// The editor where the environment names none.
const EDITOR: &str = "vi";
/// Where they stand in the file.
const ROUTES: List = List::Needed("routes");
/// How often they are taken out of a file that somebody else changes at the same time.
const ATTEMPTS: usize = 5;
const PAUSE_MS: u16 = 100;

/// A table that may take the place of the present one.
struct Candidate {
    text: String,
    policy: Policy,
}

impl Candidate {
    fn read(file: &Path) -> Result<Candidate, Fault> {
        let text = text::read(file, || format!("cannot read {}", file.display()))?;
        Candidate::parse(&file.display().to_string(), text)
    }

    fn parse(name: &str, text: String) -> Result<Candidate, Fault> {
        let policy = Policy::parse(name, &text)?;
        Ok(Candidate { text, policy })
    }
}

/// What a new table allows more and less than an old one.
#[derive(Debug, PartialEq, Eq)]
struct Difference {
    more: Vec<String>,
    less: Vec<String>,
    unified: String,
}

impl Difference {
    fn between(old: &Candidate, new: &Candidate) -> Difference {
        let (before, after) = (lines(&old.policy), lines(&new.policy));
        Difference {
            more: after.difference(&before).cloned().collect(),
            less: before.difference(&after).cloned().collect(),
            unified: TextDiff::from_lines(&old.text, &new.text)
                .unified_diff()
                .context_radius(2)
                .header("routes.yaml", "routes.yaml as it would be")
                .to_string(),
        }
    }

    fn shown(&self, warnings: &[policy::Diagnostic]) -> String {
        let mut text = String::new();
        for (word, lines) in [("newly says", &self.more), ("no longer says", &self.less)] {
            for line in lines {
                let _ = writeln!(text, "{word}: {line}");
            }
        }
        if self.more.is_empty() && self.less.is_empty() {
            text.push_str("no route says anything else; options, order or remarks may differ\n");
        }
        for warning in warnings {
            let _ = writeln!(text, "warning: {warning}");
        }
        let _ = write!(text, "\n{}", self.unified);
        text
    }
}

/// What a table says, a line for each entry of a route.
fn lines(policy: &Policy) -> BTreeSet<String> {
    let with_grant = |route: &policy::Route| {
        let grant = route.grant().map(|grant| format!(" (grant {grant})")).unwrap_or_default();
        let described = policy::describe(route);
        described.lines().map(|line| format!("{line}{grant}")).collect::<Vec<_>>()
    };
    policy.routes().iter().flat_map(with_grant).collect()
}

impl Desk {
    /// Prints the table that egress was given.
    pub fn show_routes(&self, form: Form, out: &mut impl Write) -> Result<(), Fault> {
        let present = self.present()?;
        match form {
            Form::Text => print(out, &present.text),
            Form::Json => {
                let routes: Vec<String> = lines(&present.policy).into_iter().collect();
                let value = serde_json::json!({
                    "file": self.routes.join("routes.yaml"), "digest": digest(&present.text), "routes": routes,
                });
                json(out, &value)
            }
        }
    }

    /// Prints what `file` in its place would change.
    pub fn diff_routes(&self, file: &Path, form: Form, out: &mut impl Write) -> Result<(), Fault> {
        let (old, new) = (self.present()?, Candidate::read(file)?);
        let difference = Difference::between(&old, &new);
        match form {
            Form::Text if old.text == new.text => print(out, "the same\n"),
            Form::Text => print(out, &difference.shown(new.policy.warnings())),
            Form::Json => json(
                out,
                &serde_json::json!({
                    "from": digest(&old.text), "to": digest(&new.text), "more": difference.more,
                    "less": difference.less, "unified": difference.unified,
                }),
            ),
        }
    }

    /// Puts `file` in its place, and waits until egress has it.
    pub fn apply_routes(
        &self,
        file: &Path,
        confirm: Confirm,
        form: Form,
        out: &mut impl Write,
    ) -> Result<(), Fault> {
        self.replace(&self.present()?, &Candidate::read(file)?, confirm, form, out)
    }

    /// Lets a person change a copy, until it parses, and puts that in place.
    pub fn edit_routes(&self, confirm: Confirm, form: Form, out: &mut impl Write) -> Result<(), Fault> {
        let old = self.present()?;
        let told = || "cannot make a copy to edit".to_owned();
        let mut copy = tempfile::Builder::new().prefix("routes-").suffix(".yaml").tempfile().failing(told)?;
        copy.write_all(old.text.as_bytes()).and_then(|()| copy.flush()).failing(told)?;
        let new = loop {
            edit(copy.path())?;
            // Some editors replace the file: it is read by its name.
            match Candidate::read(copy.path()) {
                Ok(new) => break new,
                Err(fault) => {
                    print(out, &format!("{fault}\n"))?;
                    if !std::io::stdin().is_terminal() || !asked(out, "Edit again? [y/N] ")? {
                        let kept = copy.into_temp_path().keep().failing(told)?;
                        return Err(Fault::refused("the routes are as they were").with_hint(format!(
                            "what you wrote is kept: bottlecap routes apply {}",
                            kept.display()
                        )));
                    }
                }
            }
        };
        self.replace(&old, &new, confirm, form, out)
    }

    /// Adds routes, as the lines of their items, which each say when they end.
    pub(crate) fn invite(&self, items: Vec<Vec<String>>) -> Result<Guests<'_>, Fault> {
        let old = self.present()?;
        let with = |text: String, item: &Vec<String>| add_item(&text, ROUTES, item);
        let Some(text) = items.iter().try_fold(old.text.clone(), with) else {
            return Err(Fault::refused(
                "`routes` is not a block sequence (one `- ` per route): nothing can be added to it",
            ));
        };
        let new = Candidate::parse("routes.yaml", text)?;
        let guests = Guests { desk: self, items };
        self.put(&old, &new)?;
        Ok(guests)
    }

    /// Puts `new` in force in the place of `old`, and notes it; generation and digest as egress acknowledged them.
    fn put(&self, old: &Candidate, new: &Candidate) -> Result<(u64, String), Fault> {
        let change = Change { from: &old.text, to: &new.text, fallback: &old.text };
        let generation = self.apply(Table::Routes, &change)?;
        let (digest, kept, heads) = (digest(&new.text), grants(new), self.heads());
        self.keep(&Entry::Replaced { digest: digest.clone(), generation, grants: kept.clone(), heads })?;
        self.tell_taken_out(grants(old).into_iter().filter(|id| !kept.contains(id)));
        Ok((generation, digest))
    }

    fn present(&self) -> Result<Candidate, Fault> {
        let name = self.routes.join("routes.yaml").display().to_string();
        Candidate::parse(&name, apply::read(&self.place(Table::Routes)?)?)
    }

    fn replace(
        &self,
        old: &Candidate,
        new: &Candidate,
        confirm: Confirm,
        form: Form,
        out: &mut impl Write,
    ) -> Result<(), Fault> {
        if old.text == new.text {
            return match form {
                Form::Text => print(out, "the same; nothing to do\n"),
                Form::Json => json(out, &serde_json::json!({ "changed": false })),
            };
        }
        if form == Form::Text {
            let difference = Difference::between(old, new);
            print(out, &difference.shown(new.policy.warnings()))?;
        }
        if confirm == Confirm::Ask && !asked(out, "\nPut this in force? [y/N] ")? {
            return Err(Fault::NotGranted("the routes are as they were".to_owned()));
        }
        let (generation, digest) = self.put(old, new)?;
        match form {
            Form::Json => {
                json(out, &serde_json::json!({ "changed": true, "generation": generation, "digest": digest }))
            }
            Form::Text => print(out, &format!("egress has it as generation {generation} ({digest})\n")),
        }
    }
}

/// Routes that are in force for a while, on top of what is: taken out when this is dropped, and by themselves when their time is over.
#[derive(Debug)]
pub(crate) struct Guests<'a> {
    desk: &'a Desk,
    items: Vec<Vec<String>>,
}

impl Guests<'_> {
    /// Takes them out; what was changed meanwhile stays.
    pub(crate) fn leave(mut self) -> Result<(), Fault> {
        self.take_out()
    }

    fn take_out(&mut self) -> Result<(), Fault> {
        let mut outcome = Ok(());
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                // Somebody writes the file at this moment. Nothing but time is waited for.
                let _ = poll(&mut [], PollTimeout::from(PAUSE_MS));
            }
            outcome = self.take_out_now();
            if outcome.is_ok() {
                self.items.clear();
                break;
            }
        }
        outcome
    }

    fn take_out_now(&self) -> Result<(), Fault> {
        if self.items.is_empty() {
            return Ok(());
        }
        let old = self.desk.present()?;
        let without = |text: String, item: &Vec<String>| remove_item(&text, ROUTES, item).unwrap_or(text);
        let text = self.items.iter().fold(old.text.clone(), without);
        if text == old.text {
            return Ok(());
        }
        self.desk.put(&old, &Candidate::parse("routes.yaml", text)?).map(drop)
    }
}

impl Drop for Guests<'_> {
    fn drop(&mut self) {
        if let Err(fault) = self.take_out() {
            tracing::warn!(
                "routes that were there for a while could not be taken out, and end by themselves: {fault}"
            );
        }
    }
}

/// The grants of the table, which hold on.
fn grants(table: &Candidate) -> Vec<Id> {
    proposal::grants(&table.text, Table::Routes).into_iter().map(|(id, _)| id).collect()
}

/// Opens `path` in the person's editor and waits for its end. The variable is split at spaces: no shell.
pub(crate) fn edit(path: &Path) -> Result<(), Fault> {
    let named = ["VISUAL", "EDITOR"].into_iter().find_map(env::var_os).filter(|editor| !editor.is_empty());
    let editor = named.unwrap_or_else(|| OsString::from(EDITOR));
    let editor = editor.to_string_lossy().into_owned();
    let mut words = editor.split_whitespace();
    let program = words.next().unwrap_or(EDITOR);
    let status = Command::new(program).args(words).arg(path).status().map_err(|error| {
        Fault::failed(format!("cannot start the editor {program}: {error}"))
            .with_hint("set EDITOR, or use `bottlecap routes show > FILE` and `bottlecap routes apply FILE`")
    })?;
    if status.success() { Ok(()) } else { Err(Fault::refused(format!("the editor ended with {status}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(text: &str) -> Candidate {
        Candidate::parse("routes.yaml", text.to_owned()).expect("valid")
    }

    #[test]
    fn a_difference_is_told_in_words_before_lines() {
        let old = candidate("routes:\n  - host: a.test\n  - host: b.test\n");
        let new = candidate("routes:\n  - host: a.test\n    matches: [{methods: [GET]}]\n  - host: b.test\n");
        insta::assert_snapshot!(Difference::between(&old, &new).shown(&[]), @r"
        newly says: GET https://a.test/**
        no longer says: any method https://a.test/**

        --- routes.yaml
        +++ routes.yaml as it would be
        @@ -1,3 +1,4 @@
         routes:
           - host: a.test
        +    matches: [{methods: [GET]}]
           - host: b.test
        ");
    }

    #[test]
    fn a_remark_alone_is_said_to_change_nothing() {
        let old = candidate("routes: [{host: a.test}]\n");
        let new = candidate("# why\nroutes: [{host: a.test}]\n");
        let shown = Difference::between(&old, &new).shown(&[]);
        assert!(shown.starts_with("no route says anything else"), "{shown}");
    }
}
