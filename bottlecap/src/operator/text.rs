//! Text of agents and daemons for a screen of cells: nothing in it moves, hides, reorders or draws.

use std::fmt::Write as _;

use proposal::escaped;
use unicode_width::UnicodeWidthChar;

/// `text` on one line. Beyond what [`escaped`] writes by number: marks that stack on other signs, signs whose width terminals
/// disagree about, and those that frames are drawn with.
#[must_use]
pub(super) fn plain(text: &str) -> String {
    safe(&escaped(text))
}

/// Text of ours that quotes what was escaped before: its lines are kept.
pub(super) fn lines(text: &str) -> Vec<String> {
    text.lines().map(safe).collect()
}

fn safe(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_plain(c) {
            shown.push(c);
        } else {
            write!(shown, "\\u{{{:x}}}", u32::from(c)).expect("a string takes every write");
        }
    }
    shown
}

fn is_plain(c: char) -> bool {
    let draws = ('\u{2500}'..='\u{259f}').contains(&c);
    !draws
        && match c.width() {
            Some(1) => !c.is_control(),
            Some(2) => c.is_alphanumeric(),
            Some(_) | None => false,
        }
}

/// The first `width` cells of `text`; a sign for what was left out.
pub(super) fn cut(text: &str, width: usize) -> String {
    let whole: usize = text.chars().map(|c| c.width().unwrap_or(0)).sum();
    if whole <= width {
        return text.to_owned();
    }
    let (mut shown, mut used) = (String::new(), 0);
    for c in text.chars() {
        let cells = c.width().unwrap_or(0);
        if used + cells + 1 > width {
            break;
        }
        used += cells;
        shown.push(c);
    }
    if width > 0 {
        shown.push('~');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_moves_hides_reorders_or_draws() {
        assert_eq!(plain("a\u{1b}[2J\r\nb"), "a\\u{1b}[2J\\u{d}\\nb");
        assert_eq!(plain("gpj\u{202e}exe"), "gpj\\u{202e}exe");
        assert_eq!(plain("a\u{301}\u{301}"), "a\\u{301}\\u{301}");
        assert_eq!(plain("\u{2502} approved \u{2588}"), "\\u{2502} approved \\u{2588}");
        assert_eq!(plain("\u{1f44d}\u{1f3fd}"), "\\u{1f44d}\\u{1f3fd}");
        assert_eq!(plain("für 日本語"), "für 日本語");
    }

    #[test]
    fn what_is_cut_fits_and_says_so() {
        assert_eq!(cut("日本語", 5), "日本~");
        assert_eq!(cut("日本語", 6), "日本語");
        assert_eq!(cut("abc", 2), "a~");
        assert_eq!(cut("abc", 0), "");
    }
}
