//! What a person reads before deciding.

use proposal::{Review, WouldPass};
use similar::TextDiff;

/// Said before the change when the file holds this grant already.
pub(super) const LEFTOVER: &str = "\nan earlier attempt was interrupted: the grant stands in the file already; a yes writes it anew, as follows\n";

/// The change in words, what it would have changed lately, and as it will stand in the file.
pub(super) fn change(base: &str, review: &Review, would: &WouldPass) -> String {
    let mut words = format!("\n{}\n", review.difference);
    if would.of > 0 {
        words.push_str(&format!("{} of the last {} refusals would pass\n", would.passing.len(), would.of));
    }
    words.push_str(&format!("breadth  {}\n", review.breadth));
    for flag in &review.flags {
        words.push_str(&format!("careful  {flag}\n"));
    }
    let diff = TextDiff::from_lines(base, &review.text);
    let unified =
        diff.unified_diff().context_radius(2).header("routes.yaml", "routes.yaml with the grant").to_string();
    format!("{words}\n{unified}\n")
}
