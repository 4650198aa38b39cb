//! The operator's commands: each asks the daemon, or reads a file, and yields what is printed.

mod review;

use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::Context;
use jiff::Timestamp;
use proposal::show;
use proposal::wire::{Request, Requests, Status, View};
use serde::Serialize;
use serde_json::json;

use crate::cli::{Command, DaemonArgs, Places};
use crate::desk::OpenError;
use crate::{client, daemon};

/// Does what `command` says.
///
/// # Errors
/// When it cannot be done; nothing was then changed.
pub fn run(places: &Places, args: &DaemonArgs, command: &Command) -> anyhow::Result<String> {
    let socket = places.socket();
    let reviewer = review::Reviewer { places, args };
    match command {
        Command::List { state, json } => {
            let found: Requests = client::ask(&socket, &Request::List { state: *state })?;
            if *json { as_json(&found) } else { Ok(show::list(&found.requests, Timestamp::now())) }
        }
        Command::Show { id, json } => view(&socket, &Request::Show { id: id.clone() }, *json),
        Command::Diff { id, repos, json } => {
            let view: View = client::ask(&socket, &Request::Show { id: id.clone() })?;
            let shown = reviewer.shown(&view, None, repos)?;
            if *json { as_json(&shown.json) } else { Ok(shown.text) }
        }
        Command::Edit { id, file, host, json } => {
            let scope = review::edited(file)?;
            let asked: View = client::ask(&socket, &Request::Show { id: id.clone() })?;
            let typed = reviewer.typed(&asked, Some(&scope))?;
            review::check_typed(typed.as_deref(), host.as_deref())?;
            let (ttl_seconds, max_uses) = (Some(scope.ttl_seconds()), scope.max_uses());
            let request = Request::Approve { id: id.clone(), ttl_seconds, max_uses, scope: Some(scope) };
            let text = view(&socket, &request, *json)?;
            if *json {
                return Ok(text);
            }
            Ok(format!(
                "{text}\nRecorded. Nothing is in force yet: the host puts it in force with\n  bottlecap requests edit {id}\n"
            ))
        }
        Command::Approve { id, host, ttl, json } => {
            let asked: View = client::ask(&socket, &Request::Show { id: id.clone() })?;
            let typed = reviewer.typed(&asked, None)?;
            review::check_typed(typed.as_deref(), host.as_deref())?;
            let request = Request::Approve { id: id.clone(), ttl_seconds: *ttl, max_uses: None, scope: None };
            let text = view(&socket, &request, *json)?;
            if *json {
                return Ok(text);
            }
            Ok(format!(
                "{text}\nRecorded. Nothing is in force yet: the host puts it in force with\n  bottlecap requests approve {id}\n"
            ))
        }
        Command::Reject { id, reason, json } => {
            view(&socket, &Request::Reject { id: id.clone(), reason: reason.clone() }, *json)
        }
        Command::Revoke { id, reason, json } => {
            let text = view(&socket, &Request::Revoke { id: id.clone(), reason: reason.clone() }, *json)?;
            if *json {
                return Ok(text);
            }
            Ok(format!(
                "{text}\nRecorded. What is in force stays so until the host takes it out with\n  bottlecap requests revoke {id}\n"
            ))
        }
        Command::Pause => status(&socket, &Request::Pause, false),
        Command::Resume => status(&socket, &Request::Resume, false),
        Command::Status { json } => status(&socket, &Request::Status, *json),
        Command::Tail { json } => {
            let json = *json;
            client::tail(&socket, |Requests { requests }| {
                let text = if json {
                    requests.iter().map(as_line).collect::<anyhow::Result<String>>()?
                } else if requests.is_empty() {
                    String::new()
                } else {
                    show::list(&requests, Timestamp::now())
                };
                std::io::stdout().write_all(text.as_bytes()).context("cannot print")
            })?;
            Ok(String::new())
        }
        Command::VerifyLog { path, json } => {
            let path = path.clone().unwrap_or_else(|| places.journal());
            let head = audit::verify(&path)?;
            if *json {
                return as_json(&json!({
                    "records": head.seq, "head": head.hash.to_string(), "unfinished_bytes": head.unfinished_bytes,
                }));
            }
            let unfinished = match head.unfinished_bytes {
                0 => String::new(),
                bytes => format!("\n{bytes} bytes behind it are unfinished"),
            };
            Ok(format!(
                "{}: {} records, the chain holds\nhead {}{unfinished}\n",
                path.display(),
                head.seq,
                head.hash
            ))
        }
    }
}

/// Checks what the daemon would read, without touching it.
///
/// # Errors
/// When the daemon could not start, or could not report the current access.
pub fn check(places: &Places, args: &DaemonArgs) -> anyhow::Result<String> {
    let (_, policy) = daemon::sources(places, args).policy()?;
    let journal = places.journal();
    let records = match audit::verify(&journal) {
        Ok(head) => head.seq,
        Err(audit::Error::Open { source, .. }) if source.kind() == ErrorKind::NotFound => 0,
        Err(error) => return Err(error.into()),
    };
    Ok(format!("ok: {} routes, {records} records in {}\n", policy.routes().len(), journal.display()))
}

/// What the reader of that error can do about it.
#[must_use]
pub fn hint(error: &anyhow::Error) -> Option<&'static str> {
    error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(client::Error::Connect { .. }) => {
            Some("is the bundle running? --run-dir says where its sockets are")
        }
        Some(client::Error::Talk(_) | client::Error::Reply(_) | client::Error::Refused(_)) => None,
        None => match cause.downcast_ref() {
            Some(OpenError::Journal(journal)) => journal_hint(journal),
            Some(OpenError::Story { .. }) => Some(CHANGED),
            None => cause.downcast_ref().and_then(journal_hint),
        },
    })
}

/// Whether the daemon understood what was asked and said no: another id or another word is needed, not another try.
#[must_use]
pub fn is_refused(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(client::Error::Refused(failure)) if failure.code != "journal-unavailable" && failure.code != "internal")
}

const CHANGED: &str = "the journal was changed after it was written: keep it for inspection, and start with an empty --state-dir";

fn journal_hint(error: &audit::Error) -> Option<&'static str> {
    match error {
        audit::Error::InUse { .. } => {
            Some("another supervise has this --state-dir; give each bundle its own")
        }
        audit::Error::Broken { .. } | audit::Error::Decode { .. } => Some(CHANGED),
        audit::Error::Open { .. }
        | audit::Error::Append(_)
        | audit::Error::Encode(_)
        | audit::Error::TooLarge { .. } => None,
    }
}

fn status(socket: &Path, request: &Request, json: bool) -> anyhow::Result<String> {
    let status: Status = client::ask(socket, request)?;
    if json {
        return as_json(&status);
    }
    let Status { paused, pending, watchers, records, head } = status;
    let takes = if paused { "paused: takes no proposals" } else { "takes proposals" };
    let head: String = head.chars().filter(char::is_ascii_alphanumeric).collect();
    Ok(format!(
        "{takes}\n{pending} pending, {watchers} watching\njournal of {records} records, head {head}\n"
    ))
}

fn as_line(view: &View) -> anyhow::Result<String> {
    let mut line = serde_json::to_string(view).context("cannot write JSON")?;
    line.push('\n');
    Ok(line)
}

fn view(socket: &Path, request: &Request, json: bool) -> anyhow::Result<String> {
    let view: View = client::ask(socket, request)?;
    if json { as_json(&view) } else { Ok(show::one(&view)) }
}

fn as_json(value: &impl Serialize) -> anyhow::Result<String> {
    let mut text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
    text.push('\n');
    Ok(text)
}
