//! What a person reads before deciding.

use proposal::{Addition, Review, WouldPass};
use similar::TextDiff;

/// Said before the change when the file holds this grant already.
pub(super) const LEFTOVER: &str = "\nan earlier attempt was interrupted: the grant stands in the file already; a yes writes it anew, as follows\n";

/// The change in words, what it would have changed lately, and as it will stand in the file.
pub(super) fn change(base: &str, review: &Review, would: &WouldPass) -> String {
    format!("\n{}\n{}\n", review.told(would), unified("routes.yaml", base, &review.text))
}

/// The same of what is no route.
pub(super) fn addition(base: &str, addition: &Addition) -> String {
    format!("\n{}\n{}\n", addition.told(), unified(addition.table.file(), base, &addition.text))
}

fn unified(file: &str, base: &str, text: &str) -> String {
    let with = format!("{file} with the grant");
    TextDiff::from_lines(base, text).unified_diff().context_radius(2).header(file, &with).to_string()
}
