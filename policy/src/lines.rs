//! Lists of a YAML file edited as text, so that everything else stays as a person wrote it.

/// A top-level list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// It has to be there, if only empty.
    Needed(&'static str),
    /// It is there when it has something in it.
    Optional(&'static str),
}

impl List {
    fn key(self) -> &'static str {
        match self {
            List::Needed(key) | List::Optional(key) => key,
        }
    }
}

/// The text with `item` as the last one of the list; its first line has no `- ` yet. `None` when the list is not a block that lines
/// can be added to.
#[must_use]
pub fn add_item(text: &str, list: List, item: &[String]) -> Option<String> {
    let key = list.key();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let Some(place) = place(&lines, key) else {
        if list == List::Needed(key) {
            return None;
        }
        let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        return Some(format!("{text}{newline}{key}:\n{}", block(item, 2)));
    };
    let value = lines[place][key.len() + 1..].trim();
    let (opening, end, indent) = if is_empty_sequence(value) {
        let comment = value.find('#').map(|start| format!(" {}", &value[start..]));
        (format!("{key}:{}", comment.unwrap_or_default()), place + 1, 2)
    } else if value.is_empty() || value.starts_with('#') {
        let (end, indent) = block_end(&lines, place + 1)?;
        (lines[place..end].concat(), end, indent)
    } else {
        return None;
    };
    let newline = if opening.ends_with('\n') { "" } else { "\n" };
    let before = lines[..place].concat();
    let after = lines[end..].concat();
    Some(format!("{before}{opening}{newline}{}{after}", block(item, indent)))
}

/// The text without the item that [`add_item`] wrote; a list with nothing left in it is gone, or empty where it has to be there.
#[must_use]
pub fn remove_item(text: &str, list: List, item: &[String]) -> Option<String> {
    let key = list.key();
    let (start, length) = (0..=INDENT_MAX).find_map(|indent| {
        let block = block(item, indent);
        find_lines(text, &block).map(|start| (start, block.len()))
    })?;
    let removed = format!("{}{}", &text[..start], &text[start + length..]);
    let lines: Vec<&str> = removed.split_inclusive('\n').collect();
    let place = place(&lines, key)?;
    let bare = lines[place][key.len() + 1..].split('#').next().unwrap_or_default();
    if !bare.trim().is_empty() || block_end(&lines, place + 1).is_some() {
        return Some(removed);
    }
    let (before, after) = (lines[..place].concat(), lines[place + 1..].concat());
    let rest = &lines[place][key.len() + 1..];
    Some(match list {
        List::Needed(_) => format!("{before}{key}: []{rest}{after}"),
        List::Optional(_) => format!("{before}{after}"),
    })
}

/// A YAML scalar in double quotes that reads back as `text`.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            control if control.is_control() => quoted.push_str(&format!("\\U{:08X}", u32::from(control))),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

const INDENT_MAX: usize = 16;

/// The line on which the list begins.
fn place(lines: &[&str], key: &str) -> Option<usize> {
    lines.iter().position(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')))
}

fn block(item: &[String], indent: usize) -> String {
    let margin = " ".repeat(indent);
    let line = |(index, field): (usize, &String)| {
        format!("{margin}{}{field}\n", if index == 0 { "- " } else { "  " })
    };
    item.iter().enumerate().map(line).collect()
}

/// Behind the last line of the block sequence that starts at or after `start`, and its indentation.
/// Comments after the last item stay behind what is inserted.
fn block_end(lines: &[&str], start: usize) -> Option<(usize, usize)> {
    let content = |line: &&str| !is_blank(line);
    let first = lines[start..].iter().find(|line| content(line))?;
    let indent = depth(first);
    if !is_item(first) {
        return None;
    }
    let inside = |line: &&str| depth(line) > indent || depth(line) == indent && is_item(line);
    let mut end = start;
    for (index, line) in lines.iter().enumerate().skip(start).filter(|(_, line)| content(line)) {
        if !inside(line) {
            break;
        }
        end = index + 1;
    }
    Some((end, indent))
}

fn depth(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

fn is_item(line: &str) -> bool {
    let item = line.trim_start_matches(' ').strip_prefix('-');
    item.is_some_and(|rest| rest.trim_end().is_empty() || rest.starts_with(' '))
}

fn is_empty_sequence(value: &str) -> bool {
    let bare = value.split('#').next().unwrap_or(value).trim();
    bare.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|inner| inner.trim().is_empty())
}

/// Only white space, or a comment.
fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}

/// Where `block` stands in the text as whole lines.
fn find_lines(text: &str, block: &str) -> Option<usize> {
    text.match_indices(block)
        .map(|(start, _)| start)
        .find(|&start| start == 0 || text.as_bytes()[start - 1] == b'\n')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn item(text: &str) -> Vec<String> {
        vec![text.to_owned()]
    }

    #[test]
    fn what_is_added_can_be_taken_out_and_nothing_else_changes() {
        let list = List::Optional("releases");
        for (text, with) in [
            ("routes: []\n", "routes: []\nreleases:\n  - {a: 1}\n"),
            ("releases:\n- {b: 1}\n# end\n", "releases:\n- {b: 1}\n- {a: 1}\n# end\n"),
            (
                "releases:\n    - b: 1\n      c: 2\nlog: 1\n",
                "releases:\n    - b: 1\n      c: 2\n    - {a: 1}\nlog: 1\n",
            ),
        ] {
            let added = add_item(text, list, &item("{a: 1}")).unwrap();
            assert_eq!(added, with);
            assert_eq!(remove_item(&added, list, &item("{a: 1}")).unwrap(), text);
        }
        assert_eq!(add_item("releases: [{b: 1}]\n", list, &item("{a: 1}")), None);
        let needed = List::Needed("repos");
        let added = add_item("repos: [] # none\n", needed, &item("{a: 1}")).unwrap();
        assert_eq!(added, "repos: # none\n  - {a: 1}\n");
        assert_eq!(remove_item(&added, needed, &item("{a: 1}")).unwrap(), "repos: [] # none\n");
        assert_eq!(remove_item("repos: []\n", needed, &item("{a: 1}")), None);
        assert_eq!(add_item("log: 1\n", needed, &item("{a: 1}")), None);
    }
}
