//! The words of `requests`.

use std::fs;
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use proposal::wire;

use super::{At, form};
use crate::fault::{Attempted, Fault};
use crate::requests::{Approval, Narrowing, Notify};
use crate::routes;

#[derive(Debug, Subcommand)]
pub(super) enum Requests {
    /// List the requests
    List {
        #[command(flatten)]
        at: At,
    },
    /// Show a request, what a yes would change, and the token that stands for it
    Show {
        /// The request
        id: String,
        #[command(flatten)]
        narrow: Narrow,
        #[command(flatten)]
        at: At,
    },
    /// Show what a yes would change, in words and in the file
    Diff {
        /// The request
        id: String,
        #[command(flatten)]
        narrow: Narrow,
        #[command(flatten)]
        at: At,
    },
    /// Say which of the last refusals would pass
    DryRun {
        /// The request
        id: String,
        #[command(flatten)]
        narrow: Narrow,
        #[command(flatten)]
        at: At,
    },
    /// Show the change, ask, write it, and wait until egress has it
    Approve {
        /// The request
        id: String,
        #[command(flatten)]
        narrow: Narrow,
        #[command(flatten)]
        answer: Answer,
        #[command(flatten)]
        at: At,
    },
    /// Change a request in $EDITOR, and grant what it then says
    Edit {
        /// The request
        id: String,
        /// The request as changed, in place of $EDITOR; `-` for standard input
        #[arg(long, value_name = "FILE")]
        set: Option<PathBuf>,
        #[command(flatten)]
        answer: Answer,
        #[command(flatten)]
        at: At,
    },
    /// Take a grant back: out of the routes, and out of force
    Revoke {
        /// The request
        id: String,
        /// What the agent is told
        #[arg(long, value_name = "TEXT", default_value = "revoked by the operator")]
        reason: String,
        #[command(flatten)]
        at: At,
    },
    /// Take no more requests, until `resume`
    Pause {
        #[command(flatten)]
        at: At,
    },
    /// Take requests again
    Resume {
        #[command(flatten)]
        at: At,
    },
    /// Print what waits, and then each request that changes; tell somebody about new ones
    Tail {
        /// Ring the terminal's bell
        #[arg(long)]
        bell: bool,
        /// Tell the desktop, by notify-send
        #[arg(long)]
        desktop: bool,
        /// Run this program for each new request, with the request as JSON on its standard input; split at spaces, no shell
        #[arg(long, value_name = "CMD")]
        command: Option<String>,
        /// Post each new request there, signed
        #[arg(long, value_name = "URL", env = "BOTTLECAP_WEBHOOK", requires = "webhook_secret")]
        webhook: Option<String>,
        /// The file with the secret it is signed with
        #[arg(long, value_name = "FILE", env = "BOTTLECAP_WEBHOOK_SECRET_FILE")]
        webhook_secret: Option<PathBuf>,
        #[command(flatten)]
        at: At,
    },
    /// Say no; the agent is told why
    Reject {
        /// The request
        id: String,
        /// What the agent is told
        #[arg(long, value_name = "TEXT", default_value = "not approved")]
        reason: String,
        #[command(flatten)]
        at: At,
    },
}

/// Less than was asked for.
#[derive(Debug, Args)]
pub(super) struct Narrow {
    /// For how long, instead of as long as was asked
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u32>,
    /// For at most so many requests
    #[arg(long, value_name = "NUMBER")]
    max_uses: Option<NonZeroU32>,
    /// With this method alone (repeatable)
    #[arg(long = "method", value_name = "METHOD")]
    methods: Vec<String>,
    /// On this path alone, `/v1/items` or `/v1/**` (repeatable)
    #[arg(long = "path", value_name = "PATH")]
    paths: Vec<String>,
}

/// An answer without a terminal.
#[derive(Debug, Args)]
pub(super) struct Answer {
    /// Do not ask: the yes is to what `show` printed with this token, and to nothing else
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// With --token, the host, where write access to a new one is granted
    #[arg(long, value_name = "HOST", requires = "token")]
    host: Option<String>,
}

impl Narrow {
    fn narrowing(self) -> Narrowing {
        let Narrow { ttl, max_uses, methods, paths } = self;
        Narrowing { ttl, max_uses, methods, paths }
    }
}

impl Answer {
    fn approval(self) -> Approval {
        match self.token {
            Some(token) => Approval::Token { token, host: self.host },
            None => Approval::Ask,
        }
    }
}

impl Requests {
    pub(super) fn run(self, out: &mut impl Write) -> Result<(), Fault> {
        match self {
            Requests::List { at } => at.desk()?.list(form(at.json), out),
            Requests::Show { id, narrow, at } => {
                at.desk()?.show(&id, &narrow.narrowing(), form(at.json), out)
            }
            Requests::Diff { id, narrow, at } => {
                at.desk()?.diff(&id, &narrow.narrowing(), form(at.json), out)
            }
            Requests::DryRun { id, narrow, at } => {
                at.desk()?.dry_run(&id, &narrow.narrowing(), form(at.json), out)
            }
            Requests::Approve { id, narrow, answer, at } => {
                at.desk()?.approve(&id, &narrow.narrowing(), &answer.approval(), form(at.json), out)
            }
            Requests::Edit { id, set, answer, at } => {
                let desk = at.desk()?;
                let text = match set {
                    Some(path) => edited(&path)?,
                    None => in_editor(&desk.editable(&id)?)?,
                };
                desk.edit(&id, &text, &answer.approval(), form(at.json), out)
            }
            Requests::Revoke { id, reason, at } => at.desk()?.revoke(&id, &reason, form(at.json), out),
            Requests::Pause { at } => at.desk()?.pause(&wire::Request::Pause, form(at.json), out),
            Requests::Resume { at } => at.desk()?.pause(&wire::Request::Resume, form(at.json), out),
            Requests::Tail { bell, desktop, command, webhook, webhook_secret, at } => {
                let webhook = webhook.zip(webhook_secret);
                at.desk()?.tail(form(at.json), &Notify { bell, desktop, command, webhook }, out)
            }
            Requests::Reject { id, reason, at } => at.desk()?.reject(&id, &reason, form(at.json), out),
        }
    }
}

fn edited(path: &Path) -> Result<String, Fault> {
    let read =
        if path.as_os_str() == "-" { io::read_to_string(io::stdin()) } else { fs::read_to_string(path) };
    read.refusing(|| format!("cannot read {}", path.display()))
}

/// `text` as a person leaves it in the editor.
fn in_editor(text: &str) -> Result<String, Fault> {
    let told = || "cannot make a copy to edit".to_owned();
    let mut copy = tempfile::Builder::new().prefix("request-").suffix(".json").tempfile().failing(told)?;
    copy.write_all(text.as_bytes()).and_then(|()| copy.flush()).failing(told)?;
    routes::edit(copy.path())?;
    // Some editors replace the file: it is read by its name.
    edited(copy.path())
}
