//! `bottlecap operator`: everything that a person decides about bottles, in one screen of a terminal.
//!
//! [`state`] says what a key makes of what is known, [`render`] draws it; here are the terminal, the sockets and the threads.
//! What is decided goes the way of `bottlecap requests`.

pub mod facts;
mod feed;
pub mod render;
pub mod state;
mod text;

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use nix::poll::{PollTimeout, poll};
use ratatui::crossterm::event::{self, Event as Input, KeyCode, KeyEventKind, KeyModifiers};
use serde_json::json;

use crate::fault::{Attempted, Fault};
use crate::manifest::Name;
use crate::requests::{self, Approval, Desk, Form, Selection};
use crate::state::Directories;
use facts::{Passage, Passages};
use feed::Feed;
use render::Palette;
use state::{Action, Event, Key, Screen};

/// How often the sockets are asked.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const RETRY_INTERVAL_MS: u16 = 1000;

/// What moves the screen.
enum Moved {
    By(Event),
    /// The terminal has another size.
    Resized,
    /// The terminal is gone.
    Gone,
}

/// Shows the screen until the person leaves it.
pub fn operate(chosen: Option<Name>, directories: &Directories) -> Result<(), Fault> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(Fault::refused("this is no terminal").with_hint(
            "`bottlecap operator --json` prints the same once; `bottlecap requests` and `bottlecap traffic` are the plain commands",
        ));
    }
    let palette = if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        Palette::Plain
    } else {
        Palette::Colours
    };
    let (sender, receiver) = mpsc::channel();
    let watcher = Watcher::start(directories.clone(), chosen.clone(), &sender)?;
    let mut screen = Screen::new(chosen.map(|name| name.to_string()));
    let told = || "cannot use the terminal".to_owned();
    let mut terminal = ratatui::try_init().failing(told)?;
    read_keys(sender.clone()).failing(told)?;
    let outcome = attend(&mut terminal, &mut screen, palette, &receiver, &watcher, &sender);
    // What is left to do about a terminal that is gone is nothing.
    let restored = ratatui::try_restore();
    outcome.failing(told)?;
    restored.failing(told)
}

fn attend(
    terminal: &mut ratatui::DefaultTerminal,
    screen: &mut Screen,
    palette: Palette,
    receiver: &Receiver<Moved>,
    watcher: &Watcher,
    sender: &Sender<Moved>,
) -> io::Result<()> {
    loop {
        terminal.draw(|frame| render::draw(frame, screen, palette, Timestamp::now()))?;
        // The clock and the time that is left move by themselves.
        let first = match receiver.recv_timeout(LOOK_INTERVAL) {
            Ok(moved) => Some(moved),
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
        };
        // What came together is drawn together.
        for moved in answerable(first.into_iter().chain(receiver.try_iter())) {
            let event = match moved {
                Moved::By(event) => event,
                Moved::Resized => continue,
                Moved::Gone => return Ok(()),
            };
            for action in screen.on(event) {
                match action {
                    Action::Quit => return Ok(()),
                    Action::Choose(name) => watcher.choose(name),
                    other => watcher.decide(other, sender.clone())?,
                }
            }
        }
    }
}

/// Without the keys behind a review that is not drawn yet: they were typed at something else. One may leave at any time.
fn answerable(batch: impl Iterator<Item = Moved>) -> impl Iterator<Item = Moved> {
    let mut undrawn = false;
    batch.filter(move |moved| match moved {
        Moved::By(Event::Looked(..)) => {
            undrawn = true;
            true
        }
        Moved::By(Event::Key(key)) => !undrawn || *key == Key::Interrupt,
        Moved::By(_) | Moved::Resized | Moved::Gone => true,
    })
}

/// Reads keys until the terminal is gone. The thread is left behind at the end: it waits for somebody to type.
fn read_keys(sender: Sender<Moved>) -> io::Result<()> {
    thread::Builder::new().name("keys".into()).spawn(move || {
        loop {
            let moved = match event::read() {
                Ok(Input::Key(key)) if key.kind != KeyEventKind::Release => {
                    match meaning(key.code, key.modifiers) {
                        Some(key) => Moved::By(Event::Key(key)),
                        None => continue,
                    }
                }
                Ok(Input::Resize(..)) => Moved::Resized,
                Ok(_) => continue,
                Err(_) => Moved::Gone,
            };
            let gone = matches!(moved, Moved::Gone);
            if sender.send(moved).is_err() || gone {
                return;
            }
        }
    })?;
    Ok(())
}

fn meaning(code: KeyCode, modifiers: KeyModifiers) -> Option<Key> {
    match code {
        KeyCode::Char('c' | 'd') if modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Interrupt),
        KeyCode::Char(_) if modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) => None,
        KeyCode::Char(c) => Some(Key::Char(c)),
        KeyCode::Enter => Some(Key::Enter),
        KeyCode::Esc => Some(Key::Escape),
        KeyCode::Backspace => Some(Key::Backspace),
        KeyCode::Up => Some(Key::Up),
        KeyCode::Down => Some(Key::Down),
        KeyCode::PageUp => Some(Key::PageUp),
        KeyCode::PageDown => Some(Key::PageDown),
        KeyCode::Tab | KeyCode::Right => Some(Key::Tab),
        KeyCode::BackTab | KeyCode::Left => Some(Key::BackTab),
        _ => None,
    }
}

/// What looks at the bottles while the screen is open.
struct Watcher {
    directories: Directories,
    chosen: Arc<Mutex<Option<String>>>,
    look: Sender<()>,
    moved: Sender<Moved>,
}

impl Watcher {
    fn start(
        directories: Directories,
        chosen: Option<Name>,
        moved: &Sender<Moved>,
    ) -> Result<Watcher, Fault> {
        let (look, looks) = mpsc::channel();
        let name = chosen.map(|name| name.to_string());
        let watcher =
            Watcher { chosen: Arc::new(Mutex::new(name.clone())), look, moved: moved.clone(), directories };
        let (chosen, moved) = (Arc::clone(&watcher.chosen), moved.clone());
        let mut feed = Feed::new(watcher.directories.clone());
        let told = || "cannot start a thread".to_owned();
        let looking = move || {
            loop {
                if let Ok(bottles) = feed.bottles()
                    && moved.send(Moved::By(Event::Bottles(bottles))).is_err()
                {
                    return;
                }
                if let Some(name) = held(&chosen) {
                    let facts = Box::new(feed.facts(&name));
                    if moved.send(Moved::By(Event::Facts(name, facts))).is_err() {
                        return;
                    }
                }
                if matches!(looks.recv_timeout(LOOK_INTERVAL), Err(mpsc::RecvTimeoutError::Disconnected)) {
                    return;
                }
            }
        };
        thread::Builder::new().name("facts".into()).spawn(looking).failing(told)?;
        if let Some(name) = name {
            watcher.follow(name);
        }
        Ok(watcher)
    }

    fn choose(&self, name: String) {
        *self.chosen.lock().unwrap_or_else(PoisonError::into_inner) = Some(name.clone());
        self.look_now();
        self.follow(name);
    }

    fn look_now(&self) {
        // Nobody looks any more only when the screen is closed.
        let _ = self.look.send(());
    }

    /// Follows what passes in that bottle, as long as it is the chosen one; again when its egress was started again.
    fn follow(&self, name: String) {
        let (feed, chosen, moved) =
            (Feed::new(self.directories.clone()), Arc::clone(&self.chosen), self.moved.clone());
        let following = move || {
            let is_chosen = || held(&chosen).as_ref() == Some(&name);
            while is_chosen() {
                let each = |passages: Passages| {
                    let event = Event::Traffic(name.clone(), passages);
                    if is_chosen() && moved.send(Moved::By(event)).is_ok() {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                };
                // Why egress does not answer is among the facts.
                let _ = feed.traffic(&name, each);
                // Waits for nothing but time, before it looks for the bottle again.
                let _ = poll(&mut [], PollTimeout::from(RETRY_INTERVAL_MS));
            }
        };
        // Without the thread there is no traffic to see; everything else goes on.
        let _ = thread::Builder::new().name("traffic".into()).spawn(following);
    }

    /// Does what was decided, beside the screen: a reload is waited for.
    fn decide(&self, action: Action, sender: Sender<Moved>) -> io::Result<()> {
        let (directories, bottle) = (self.directories.clone(), held(&self.chosen));
        let look = self.look.clone();
        thread::Builder::new().name("decision".into()).spawn(move || {
            let event = done(action, bottle, &directories);
            // Seen at once, not at the next look.
            let _ = look.send(());
            let _ = sender.send(Moved::By(event));
        })?;
        Ok(())
    }
}

fn held(chosen: &Mutex<Option<String>>) -> Option<String> {
    chosen.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn done(action: Action, bottle: Option<String>, directories: &Directories) -> Event {
    let desk = || {
        let bottle = bottle.as_deref().and_then(|name| name.parse().ok());
        Desk::find(&Selection { bottle, ..Selection::default() }, directories)
    };
    let mut out = Vec::new();
    let outcome = match action {
        Action::Look(id, narrowing) => {
            let looked = desk().and_then(|desk| desk.look(&id, &narrowing));
            return Event::Looked(narrowing, looked.map(Box::new).map_err(|fault| fault.to_string()));
        }
        Action::Approve { id, narrowing, token, host } => desk().and_then(|desk| {
            let approval = Approval::Token { token, host };
            desk.approve(&id, &narrowing, &approval, Form::Json, &mut out)?;
            Ok(format!("approved {id}; it is in force"))
        }),
        Action::Reject(id, reason) => desk()
            .and_then(|desk| desk.reject(&id, &reason, Form::Text, &mut out))
            .map(|()| format!("rejected {id}")),
        Action::Revoke(id, reason) => desk()
            .and_then(|desk| desk.revoke(&id, &reason, Form::Text, &mut out))
            .map(|()| String::from_utf8_lossy(&out).into_owned()),
        Action::Pause(pause) => {
            let request =
                if pause { proposal::wire::Request::Pause } else { proposal::wire::Request::Resume };
            desk()
                .and_then(|desk| desk.pause(&request, Form::Text, &mut out))
                .map(|()| String::from_utf8_lossy(&out).into_owned())
        }
        Action::Quit | Action::Choose(_) => Ok(String::new()),
    };
    Event::Done(outcome.map_err(|fault| fault.to_string()))
}

/// Prints what the screen shows of all bottles that run, once, for programs.
pub fn print_once(directories: &Directories, out: &mut impl Write) -> Result<(), Fault> {
    let mut feed = Feed::new(directories.clone());
    let mut bottles = Vec::new();
    for listed in feed.bottles()? {
        let (facts, traffic) = if listed.running {
            (Some(feed.facts(&listed.name)), feed.passed(&listed.name).ok())
        } else {
            (None, None)
        };
        bottles.push(json!({ "bottle": listed, "facts": facts, "traffic": traffic }));
    }
    requests::json(out, &json!({ "at": Timestamp::now(), "bottles": bottles }))
}

/// Prints what was refused lately in a bottle, and with `follow` what passes and is refused from then on.
pub fn print_traffic(
    name: &str,
    follow: bool,
    form: Form,
    directories: &Directories,
    out: &mut impl Write,
) -> Result<(), Fault> {
    let feed = Feed::new(directories.clone());
    if !follow {
        return print_passages(&feed.passed(name)?, form, out);
    }
    let mut outcome = Ok(());
    feed.traffic(name, |passages| {
        outcome = print_passages(&passages, form, out);
        if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    outcome
}

fn print_passages(passages: &Passages, form: Form, out: &mut impl Write) -> Result<(), Fault> {
    if passages.missed > 0 && form == Form::Text {
        requests::print(out, &format!("{} missed\n", passages.missed))?;
    }
    for passage in &passages.requests {
        match form {
            Form::Json => requests::json(out, passage)?,
            Form::Text => requests::print(out, &line(passage))?,
        }
    }
    Ok(())
}

fn line(passage: &Passage) -> String {
    let word = if passage.decision == "allow" { "passed " } else { "REFUSED" };
    let why = passage.code.clone().or(passage.status.map(|status| status.to_string()));
    let time = passage.at.strftime("%H:%M:%S");
    let (method, url) = (text::plain(&passage.method), text::plain(&passage.url()));
    format!("{time} {word} {method} {url}  {}\n", text::plain(&why.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests::Narrowing;

    #[test]
    fn keys_that_came_with_a_review_are_no_answer_to_it() {
        let key = |key| Moved::By(Event::Key(key));
        let looked = Moved::By(Event::Looked(Narrowing::default(), Err("not there".to_owned())));
        let batch = [key(Key::Down), looked, key(Key::Char('y')), Moved::Resized, key(Key::Interrupt)];
        let left: Vec<String> = answerable(batch.into_iter())
            .map(|moved| match moved {
                Moved::By(Event::Key(key)) => format!("{key:?}"),
                Moved::By(Event::Looked(..)) => "looked".to_owned(),
                Moved::By(_) => "other".to_owned(),
                Moved::Resized => "resized".to_owned(),
                Moved::Gone => "gone".to_owned(),
            })
            .collect();
        assert_eq!(left, ["Down", "looked", "resized", "Interrupt"]);
        let next = answerable([key(Key::Char('y'))].into_iter());
        assert_eq!(next.count(), 1, "what is typed after it was drawn");
    }
}
