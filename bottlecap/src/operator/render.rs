//! The screen, drawn from its state. Meaning is carried by words and signs; colours, told apart by everybody, only help.

use jiff::{SignedDuration, Timestamp};
use proposal::wire::View;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph};

use super::facts::{Daemon, GitLine, Passage};
use super::state::{Mode, Purpose, Said, Screen, Tab, waits};
use super::text::{cut, lines, plain};

/// Whether colours are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Palette {
    /// Blue, yellow and cyan: told apart with every kind of colour blindness.
    Colours,
    /// Bold, dim and reverse.
    Plain,
}

impl Palette {
    fn style(self, colour: Color, modifier: Modifier) -> Style {
        match self {
            Palette::Colours => Style::new().fg(colour).add_modifier(modifier),
            Palette::Plain => Style::new().add_modifier(modifier),
        }
    }

    fn good(self) -> Style {
        self.style(Color::LightBlue, Modifier::empty())
    }

    fn bad(self) -> Style {
        self.style(Color::Yellow, Modifier::BOLD)
    }

    fn quiet(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    fn title(self) -> Style {
        self.style(Color::Cyan, Modifier::BOLD)
    }
}

const MARKED: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Draws `screen` as it is at `now`.
pub fn draw(frame: &mut Frame<'_>, screen: &mut Screen, palette: Palette, now: Timestamp) {
    let [head, tabs, body, said, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(3),
        Constraint::Length(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let width = usize::from(frame.area().width);
    frame.render_widget(head_line(screen, palette, width, now), head);
    frame.render_widget(tab_line(screen, palette), tabs);
    screen.page = usize::from(body.height.saturating_sub(2)).max(1);
    let mut length = None;
    match &screen.mode {
        Mode::Help => framed(frame, body, "Keys", HELP.iter().map(|line| Line::raw(*line)).collect()),
        Mode::Review { look, scroll, .. } => {
            length = Some(review(frame, body, &look.id, &look.text, *scroll, palette));
        }
        Mode::Write { purpose: Purpose::Host(look, _) | Purpose::Narrow(look, _), .. } => {
            review(frame, body, &look.id, &look.text, 0, palette);
        }
        Mode::Write { purpose: Purpose::Reject(_) | Purpose::Revoke(_), .. } | Mode::Browse => {
            list(frame, body, screen, palette, now);
        }
    }
    screen.lines = length.unwrap_or(0);
    frame.render_widget(said_line(screen, palette, width), said);
    // While a line is written, what was wrong with it stands below it.
    let below = match (&screen.mode, &screen.said) {
        (Mode::Write { .. }, Said::Failed(text)) => {
            Line::styled(cut(&format!(" ! {}", plain(text)), width), palette.bad())
        }
        _ => Line::styled(cut(key_line(screen), width), palette.quiet()),
    };
    frame.render_widget(below, keys);
}

fn head_line(screen: &Screen, palette: Palette, width: usize, now: Timestamp) -> Line<'static> {
    let bottle = screen.chosen.as_deref().map_or("no bottle".to_owned(), plain);
    let listed = screen.bottles.iter().find(|listed| Some(&listed.name) == screen.chosen.as_ref());
    let state = listed.map_or(String::new(), |listed| format!("  {}", plain(&listed.state)));
    let paused = screen.facts.desk.as_ref().is_some_and(|desk| desk.paused);
    let paused = if paused { "  PAUSED: no requests are taken" } else { "" };
    let time = now.strftime("%H:%M:%SZ").to_string();
    let left = cut(&format!(" bottlecap  {bottle}{state}{paused}"), width.saturating_sub(time.len() + 1));
    let gap = width.saturating_sub(left.chars().count() + time.len() + 1);
    Line::from(vec![
        Span::styled(left, palette.title()),
        Span::raw(" ".repeat(gap)),
        Span::styled(time, palette.quiet()),
    ])
}

fn tab_line(screen: &Screen, palette: Palette) -> Line<'static> {
    let waiting = screen.facts.requests.iter().filter(|view| waits(view.state)).count();
    let held = screen.held_pushes().len();
    let mut spans = vec![Span::raw(" ")];
    for (place, tab) in Tab::ALL.into_iter().enumerate() {
        let count = match tab {
            Tab::Requests if waiting > 0 => format!("({waiting})"),
            Tab::Grants if !screen.grants().is_empty() => format!("({})", screen.grants().len()),
            Tab::Git if held > 0 => format!("({held})"),
            _ => String::new(),
        };
        let style = match tab {
            tab if tab == screen.tab => MARKED,
            Tab::Requests if waiting > 0 => palette.bad(),
            Tab::Git if held > 0 => palette.bad(),
            _ => Style::new(),
        };
        spans.push(Span::styled(format!("{} {}{count}", place + 1, tab.name()), style));
        spans.push(Span::raw("  "));
    }
    Line::from(spans)
}

fn framed(frame: &mut Frame<'_>, area: Rect, title: &str, text: Vec<Line<'_>>) {
    let block = Block::new().borders(Borders::TOP | Borders::BOTTOM).title(format!(" {title} "));
    frame.render_widget(Paragraph::new(text).block(block), area);
}

/// How far it can be scrolled.
fn review(frame: &mut Frame<'_>, area: Rect, id: &str, text: &str, scroll: usize, palette: Palette) -> usize {
    let width = usize::from(area.width);
    let wrapped: Vec<String> = lines(text).iter().flat_map(|line| wrap(line, width)).collect();
    let most = wrapped.len().saturating_sub(usize::from(area.height.saturating_sub(2)));
    let scroll = scroll.min(most);
    let shown: Vec<Line<'_>> = wrapped
        .iter()
        .skip(scroll)
        .take(usize::from(area.height.saturating_sub(2)))
        .map(|line| Line::styled(line.clone(), change_style(line, palette)))
        .collect();
    let more = if scroll < most { " (more below)" } else { "" };
    framed(frame, area, &format!("Request {}{more}", plain(id)), shown);
    most + 1
}

fn change_style(line: &str, palette: Palette) -> Style {
    match line.as_bytes().first() {
        Some(b'+') => palette.good(),
        Some(b'-') => palette.bad(),
        Some(_) | None if line.starts_with("this newly allows") || line.starts_with("warning") => {
            palette.bad()
        }
        Some(_) | None => Style::new(),
    }
}

/// `line` in pieces of at most `width` cells, nothing left out.
fn wrap(line: &str, width: usize) -> Vec<String> {
    use unicode_width::UnicodeWidthChar;
    let (mut pieces, mut piece, mut used) = (Vec::new(), String::new(), 0);
    for c in line.chars() {
        let cells = c.width().unwrap_or(0);
        if used + cells > width && !piece.is_empty() {
            pieces.push(std::mem::take(&mut piece));
            used = 0;
        }
        piece.push(c);
        used += cells;
    }
    pieces.push(piece);
    pieces
}

fn list(frame: &mut Frame<'_>, area: Rect, screen: &Screen, palette: Palette, now: Timestamp) {
    let width = usize::from(area.width);
    let height = usize::from(area.height.saturating_sub(2));
    let (title, rows): (String, Vec<(String, Style)>) = match screen.tab {
        Tab::Requests => ("state         age  asks".to_owned(), requests(screen, palette, now)),
        Tab::Grants => ("left       request           grants".to_owned(), grants(screen, palette, now)),
        Tab::Traffic => (traffic_title(screen), traffic(screen, palette, height)),
        Tab::Git => (git_title(screen), git(screen, palette, now)),
        Tab::Health => ("daemon      state      restarts  generation".to_owned(), health(screen, palette)),
        Tab::Bottles => ("bottle                    state".to_owned(), bottles(screen, palette)),
    };
    let marks = !matches!(screen.tab, Tab::Traffic | Tab::Health);
    let first = if marks { screen.at.saturating_sub(height.saturating_sub(1)) } else { screen.at };
    let first = if matches!(screen.tab, Tab::Traffic) { 0 } else { first };
    let mut text: Vec<Line<'_>> = rows
        .into_iter()
        .enumerate()
        .skip(first)
        .take(height)
        .map(|(place, (row, style))| {
            let style = if marks && place == screen.at { style.patch(MARKED) } else { style };
            Line::styled(cut(&row, width), style)
        })
        .collect();
    if text.is_empty() {
        text.push(Line::styled(nothing(screen), palette.quiet()));
    }
    framed(frame, area, &cut(&title, width.saturating_sub(2)), text);
}

fn nothing(screen: &Screen) -> String {
    if screen.chosen.is_none() {
        return " no bottle yet: bottlecap run --bottle NAME".to_owned();
    }
    if let Some(problem) = screen.facts.problems.first() {
        return format!(" {}", plain(problem));
    }
    match screen.tab {
        Tab::Requests => " the agent has asked for nothing",
        Tab::Traffic => " nothing has passed since this screen was opened, and nothing was refused",
        Tab::Grants => " nothing is granted beyond the routes",
        Tab::Git => " nothing was read or pushed",
        Tab::Health => " the bottle does not run",
        Tab::Bottles => " no bottles",
    }
    .to_owned()
}

fn requests(screen: &Screen, palette: Palette, now: Timestamp) -> Vec<(String, Style)> {
    let row = |view: &View| {
        let style = if waits(view.state) { palette.bad() } else { Style::new() };
        let sign = if waits(view.state) { '?' } else { ' ' };
        let age = span(now.duration_since(view.created_at));
        let ask = plain(&view.proposal.to_string());
        let reason = match view.proposal.reason() {
            "" => String::new(),
            reason => format!("  \"{}\"", plain(reason)),
        };
        (format!("{sign} {:<11} {age:>4}  {ask}{reason}", view.state.as_str()), style)
    };
    screen.requests().into_iter().map(row).collect()
}

fn grants(screen: &Screen, palette: Palette, now: Timestamp) -> Vec<(String, Style)> {
    let row = |view: &View| {
        let until = view.applied.as_ref().map(|applied| applied.expires_at);
        let left = until.map(|until| now.duration_until(until));
        let soon = left.is_some_and(|left| left.as_secs() < 60);
        let left = left.map_or("?".to_owned(), |left| format!("{} left", span(left)));
        let scope = view.decision.as_ref().and_then(|decision| decision.scope.as_ref());
        let what = scope.map_or_else(|| view.proposal.to_string(), ToString::to_string);
        let style = if soon { palette.bad() } else { palette.good() };
        (format!("{left:<10} {}  {}", view.id, plain(&what)), style)
    };
    screen.grants().into_iter().map(row).collect()
}

fn traffic_title(screen: &Screen) -> String {
    let only = if screen.refused_only { ", refused only" } else { "" };
    let missed = match screen.traffic.missed {
        0 => String::new(),
        missed => format!(", {missed} missed"),
    };
    format!("newest first{only}{missed}")
}

fn traffic(screen: &Screen, palette: Palette, height: usize) -> Vec<(String, Style)> {
    let row = |line: &Passage| {
        let allowed = line.decision == "allow";
        let sign = if allowed { "+ passed " } else { "x REFUSED" };
        let why = match (&line.code, line.status) {
            (Some(code), _) => plain(code),
            (None, Some(status)) => status.to_string(),
            (None, None) => "-".to_owned(),
        };
        let time = line.at.strftime("%H:%M:%S");
        let style = if allowed { palette.good() } else { palette.bad() };
        (format!("{time} {sign} {:<6} {}  {why}", plain(&line.method), plain(&line.url())), style)
    };
    screen.passages().rev().skip(screen.at).take(height).map(row).collect()
}

fn git_title(screen: &Screen) -> String {
    match &screen.facts.git {
        None => "git".to_owned(),
        Some(git) => format!(
            "pushes {} refused {} secrets {}  reads {} refused {}",
            git.pushes, git.pushes_refused, git.findings, git.reads, git.reads_refused
        ),
    }
}

fn git(screen: &Screen, palette: Palette, now: Timestamp) -> Vec<(String, Style)> {
    let held = |view: &View| {
        let age = span(now.duration_since(view.created_at));
        (format!("? held {age:>4}  {}", plain(&view.proposal.to_string())), palette.bad())
    };
    let row = |line: &GitLine| {
        let good = matches!(line.outcome.as_str(), "served" | "forwarded");
        let style = if good { palette.good() } else { palette.bad() };
        let time = line.at.strftime("%H:%M:%S");
        let sign = if good { '+' } else { 'x' };
        let (repo, outcome, about) = (plain(&line.repo), plain(&line.outcome), plain(&line.about));
        (format!("{time} {sign} {:<7} {repo:<16} {outcome}  {about}", line.what), style)
    };
    let repositories = screen.facts.git.iter().flat_map(|git| &git.repos).map(|repo| {
        let error = repo.error.as_deref().map(|error| format!("  cannot be read: {}", plain(error)));
        let style = if error.is_some() { palette.bad() } else { Style::new() };
        (format!("{:<16} {}{}", plain(&repo.name), plain(&repo.upstream), error.unwrap_or_default()), style)
    });
    let held = screen.held_pushes().into_iter().map(held);
    held.chain(repositories).chain(screen.facts.git_log.iter().rev().map(row)).collect()
}

fn health(screen: &Screen, palette: Palette) -> Vec<(String, Style)> {
    let mut rows = Vec::new();
    for Daemon { name, state, restarts, generation, reload_error, last_exit, walls, .. } in
        &screen.facts.daemons
    {
        let style = if state == "ready" { palette.good() } else { palette.bad() };
        let generation = generation.map_or("-".to_owned(), |generation| generation.to_string());
        rows.push((format!("{:<11} {:<10} {restarts:<9} {generation}", plain(name), plain(state)), style));
        let told =
            [("walls", (!walls.is_empty()).then(|| walls.join(", "))), ("last end", last_exit.clone())];
        for (what, text) in told {
            rows.extend(text.map(|text| (format!("    {what}: {}", plain(&text)), palette.quiet())));
        }
        let error = reload_error.as_ref();
        rows.extend(error.map(|error| (format!("    reload refused: {}", plain(error)), palette.bad())));
    }
    if let Some(egress) = &screen.facts.egress {
        let requests = &egress["requests"];
        rows.push((
            format!(
                "requests    passed {}  refused {}  journal {}",
                requests["allowed"],
                requests["refused"],
                plain(egress["journal"].as_str().unwrap_or("?"))
            ),
            Style::new(),
        ));
    }
    rows.extend(screen.facts.problems.iter().map(|problem| (plain(problem), palette.bad())));
    rows
}

fn bottles(screen: &Screen, palette: Palette) -> Vec<(String, Style)> {
    let row = |listed: &super::facts::Listed| {
        let style = if listed.running { palette.good() } else { palette.quiet() };
        let (name, state) = (plain(&listed.name), plain(&listed.state));
        let here = if Some(&listed.name) == screen.chosen.as_ref() { '*' } else { ' ' };
        (format!("{here} {name:<24} {state:<24} since {}", listed.started.strftime("%F %TZ")), style)
    };
    screen.bottles.iter().map(row).collect()
}

fn said_line(screen: &Screen, palette: Palette, width: usize) -> Line<'static> {
    let question = match &screen.mode {
        Mode::Write { purpose, text } => {
            let asked = match purpose {
                Purpose::Host(..) => "Write access to a new host. Type its name to approve: ",
                Purpose::Narrow(..) => "Narrow (ttl=600 uses=5 method=GET path=/v1/**): ",
                Purpose::Reject(_) => "Why not? The agent is told: ",
                Purpose::Revoke(_) => "Take it back. Why? The agent is told: ",
            };
            let room = width.saturating_sub(asked.len() + 2);
            let shown: String = text.chars().rev().take(room).collect::<Vec<_>>().into_iter().rev().collect();
            return Line::from(vec![
                Span::styled(format!(" {asked}"), palette.bad()),
                Span::raw(shown),
                Span::styled(" ", MARKED),
            ]);
        }
        Mode::Review { look, .. } if look.token.is_some() => {
            Some("Approve this, and nothing else?  y / n / r")
        }
        Mode::Review { .. } | Mode::Browse | Mode::Help => None,
    };
    if screen.busy {
        return Line::styled(" working ...", palette.quiet());
    }
    match (&screen.said, question) {
        (Said::Failed(text), _) => Line::styled(cut(&format!(" ! {}", plain(text)), width), palette.bad()),
        (_, Some(question)) => Line::styled(format!(" {question}"), palette.bad()),
        (Said::Done(text), None) => {
            Line::styled(cut(&format!(" {}", plain(text.trim())), width), palette.good())
        }
        (Said::Nothing, None) => Line::raw(""),
    }
}

fn key_line(screen: &Screen) -> &'static str {
    match &screen.mode {
        Mode::Help => " any key: back",
        Mode::Write { .. } => " Enter: send   Esc: back",
        Mode::Review { look, .. } if look.token.is_some() => {
            " y approve  n narrow  r reject  j/k scroll  Esc back: it goes on waiting"
        }
        Mode::Review { .. } => " j/k scroll  x revoke  Esc back",
        Mode::Browse => match screen.tab {
            Tab::Requests => {
                " Enter decide  r reject  x revoke  p pause  Tab next  [ ] bottle  ? keys  q quit"
            }
            Tab::Traffic => " f refused only  j/k scroll  Tab next  [ ] bottle  ? keys  q quit",
            Tab::Grants => " Enter look  x revoke  Tab next  [ ] bottle  ? keys  q quit",
            Tab::Git if !screen.held_pushes().is_empty() => {
                " Enter decide a held push  r reject  j/k  Tab next  [ ] bottle  ? keys  q quit"
            }
            Tab::Git | Tab::Health => " j/k scroll  Tab next  [ ] bottle  ? keys  q quit",
            Tab::Bottles => " Enter choose  Tab next  ? keys  q quit",
        },
    }
}

const HELP: [&str; 16] = [
    " 1-6, Tab, h l     another part of the screen",
    " j k, arrows       down, up; Space, PgDn, PgUp by pages; g G first, last",
    " [ ]               another bottle",
    "",
    " Requests",
    "   Enter, a        what a yes would change; then y approves exactly that",
    "   n               narrow: shorter, fewer uses, some methods or paths",
    "   r               reject, with a reason that the agent is told",
    "   x               take a grant back",
    "   p               take no more requests; again: take them",
    " Traffic         f: refusals only",
    " Git             a push that is held: Enter, r, as with requests",
    "",
    " The same by commands: bottlecap requests, traffic, routes, list, info;",
    " bottlecap operator --json prints all of this once.",
    " q, Ctrl-C         leave; nothing is decided by leaving",
];

/// A length of time in four signs.
fn span(duration: SignedDuration) -> String {
    match duration.as_secs().max(0) {
        seconds @ 0..=119 => format!("{seconds}s"),
        seconds @ 120..=7199 => format!("{}m", seconds / 60),
        seconds @ 7200..=172_799 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}
