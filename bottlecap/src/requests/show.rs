//! What a person reads before deciding. Everything that an agent wrote is escaped.

use std::fmt::Write;

use jiff::Timestamp;
use proposal::wire::View;
use proposal::{Review, escaped};
use similar::TextDiff;

/// Said before the change when the file holds this grant already.
pub(super) const LEFTOVER: &str = "\nan earlier attempt was interrupted: the grant stands in the file already; a yes writes it anew, as follows\n";

pub(super) fn list(views: &[View], now: Timestamp) -> String {
    if views.is_empty() {
        return "no requests\n".to_owned();
    }
    let mut text = String::new();
    for view in views {
        let minutes = now.duration_since(view.created_at).as_secs().max(0) / 60;
        line(
            &mut text,
            format_args!("{}  {:<12} {minutes:>4} min  {}", view.id, view.state.as_str(), view.proposal),
        );
        line(&mut text, format_args!("    \"{}\"", escaped(view.proposal.reason())));
    }
    text
}

pub(super) fn one(view: &View) -> String {
    let mut text = String::new();
    line(&mut text, format_args!("request  {}", view.id));
    line(&mut text, format_args!("state    {}", view.state.as_str()));
    line(&mut text, format_args!("came     {}", view.created_at));
    line(&mut text, format_args!("asks     {}", view.proposal));
    line(&mut text, format_args!("reason   \"{}\" (the agent's words)", escaped(view.proposal.reason())));
    if let Some(error) = &view.error {
        line(&mut text, format_args!("error    {}", escaped(error)));
    }
    text
}

/// The change in words, and as it will stand in the file.
pub(super) fn change(base: &str, review: &Review) -> String {
    let diff = TextDiff::from_lines(base, &review.text);
    let unified =
        diff.unified_diff().context_radius(2).header("routes.yaml", "routes.yaml with the grant").to_string();
    format!("\n{}\n\n{unified}\n", review.difference)
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a string takes every write");
    text.push('\n');
}
