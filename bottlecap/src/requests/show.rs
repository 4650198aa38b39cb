//! What a person reads before deciding.

use proposal::Review;
use similar::TextDiff;

/// Said before the change when the file holds this grant already.
pub(super) const LEFTOVER: &str = "\nan earlier attempt was interrupted: the grant stands in the file already; a yes writes it anew, as follows\n";

/// The change in words, and as it will stand in the file.
pub(super) fn change(base: &str, review: &Review) -> String {
    let diff = TextDiff::from_lines(base, &review.text);
    let unified =
        diff.unified_diff().context_radius(2).header("routes.yaml", "routes.yaml with the grant").to_string();
    format!("\n{}\n\n{unified}\n", review.difference)
}
