//! Requests for a person's eyes. Everything that an agent or a daemon wrote goes through [`escaped`].

use std::fmt::Write;

use jiff::{SignedDuration, Timestamp};

use crate::escaped;
use crate::wire::View;

/// Two lines for each of them.
#[must_use]
pub fn list(views: &[View], now: Timestamp) -> String {
    if views.is_empty() {
        return "no requests\n".to_owned();
    }
    let mut text = String::new();
    for View { id, state, created_at, proposal, .. } in views {
        let age = age(now.duration_since(*created_at));
        line(&mut text, format_args!("{id}  {:<12}  {age:>4}  {proposal}", state.as_str()));
        if !proposal.reason().is_empty() {
            line(&mut text, format_args!("    \"{}\"", escaped(proposal.reason())));
        }
    }
    text
}

/// One of them, whole.
#[must_use]
pub fn one(view: &View) -> String {
    let View { id, state, created_at, proposal, block_id, decision, applied, error, revoked } = view;
    let mut text = String::new();
    line(&mut text, format_args!("request  {id}"));
    line(&mut text, format_args!("state    {}", state.as_str()));
    line(&mut text, format_args!("came     {created_at}"));
    line(&mut text, format_args!("asks     {proposal}"));
    if let Some(hold) = proposal.held() {
        line(&mut text, format_args!("waits    until {} at the longest", hold.until));
        for place in hold.places() {
            line(&mut text, format_args!("found    {place}"));
        }
    } else {
        line(&mut text, format_args!("reason   \"{}\" (the agent's words)", escaped(proposal.reason())));
    }
    if let Some(block_id) = block_id {
        line(&mut text, format_args!("refusal  {}", escaped(block_id)));
    }
    if let Some(decision) = decision {
        let verdict = if decision.is_approval() { "approved" } else { "rejected" };
        line(&mut text, format_args!("{verdict} {} by {}", decision.at, escaped(&decision.by)));
        if let Some(reason) = &decision.reason {
            line(&mut text, format_args!("because  {}", escaped(reason)));
        }
        if let Some(scope) = &decision.scope {
            line(&mut text, format_args!("granted  {scope}"));
        } else if let Some(ttl) = decision.ttl_seconds.filter(|ttl| *ttl != proposal.ttl_seconds()) {
            line(&mut text, format_args!("granted  as asked, but for {}", term(ttl)));
        }
    }
    if let Some(revoked) = revoked {
        line(&mut text, format_args!("revoked  {} by {}", revoked.at, escaped(&revoked.by)));
        line(&mut text, format_args!("because  {}", escaped(&revoked.reason)));
    }
    if let Some(applied) = applied {
        line(
            &mut text,
            format_args!("in force generation {} until {}", applied.generation, applied.expires_at),
        );
    }
    if let Some(error) = error {
        line(&mut text, format_args!("error    {}", escaped(error)));
    }
    text
}

/// A number of seconds as a person says it.
#[must_use]
pub fn term(seconds: u32) -> String {
    match seconds {
        seconds if seconds % 3600 == 0 => format!("{} h", seconds / 3600),
        seconds if seconds % 60 == 0 => format!("{} min", seconds / 60),
        seconds => format!("{seconds} s"),
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a string takes every write");
    text.push('\n');
}

fn age(duration: SignedDuration) -> String {
    match duration.as_secs().max(0) {
        seconds @ 0..=119 => format!("{seconds}s"),
        seconds @ 120..=7199 => format!("{}m", seconds / 60),
        seconds => format!("{}h", seconds / 3600),
    }
}
