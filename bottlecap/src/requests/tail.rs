//! Watching for requests, and telling a person about them. Nothing here can approve.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use jiff::Timestamp;
use proposal::State;
use proposal::show;
use proposal::wire::{Requests, View};

use super::{Form, client, json, print};
use crate::fault::{Attempted, Fault};

/// How somebody is told.
#[derive(Debug, Clone, Default)]
pub struct Notify {
    /// The terminal's bell.
    pub bell: bool,
    /// The desktop, by `notify-send`.
    pub desktop: bool,
    /// A program in words, without a shell: it gets the request as JSON on its standard input.
    pub command: Option<String>,
}

/// Prints what waits, and then each request that changes, until the daemon ends.
pub(super) fn tail(socket: &Path, form: Form, notify: &Notify, out: &mut impl Write) -> Result<(), Fault> {
    client::tail(socket, |Requests { requests }| {
        for view in &requests {
            match form {
                Form::Json => json(out, view)?,
                Form::Text => print(out, &show::list(std::slice::from_ref(view), Timestamp::now()))?,
            }
        }
        for view in requests.iter().filter(|view| view.state == State::Pending) {
            notify.tell(view, out)?;
        }
        Ok(())
    })
}

impl Notify {
    fn tell(&self, view: &View, out: &mut impl Write) -> Result<(), Fault> {
        if self.bell {
            print(out, "\u{7}")?;
        }
        if self.desktop {
            let summary = format!("bottlecap: an agent asks for {}", view.proposal);
            run(&["notify-send".to_owned(), "--".to_owned(), summary], "")?;
        }
        if let Some(command) = &self.command {
            let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
            let line = serde_json::to_string(view).failing(|| "cannot write JSON".to_owned())?;
            run(&words, &line)?;
        }
        Ok(())
    }
}

/// Runs a program and waits for it. What it prints is dropped, so that it cannot be taken for what we say.
fn run(words: &[String], input: &str) -> Result<(), Fault> {
    let Some((program, arguments)) = words.split_first() else {
        return Err(Fault::refused("the command to notify with is empty"));
    };
    let told = || format!("cannot run {program}");
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .refusing(told)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read is told all the same.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait().failing(told).map(drop)
}
