//! What the person at the screen sees and does: a state, and what a key makes of it. No terminal, no socket, no clock.

use std::num::NonZeroU32;

use proposal::State;
use proposal::peer::Held;
use proposal::wire::View;

use super::facts::{Facts, Listed, Passages, Traffic};
use crate::requests::{Look, Narrowing};

/// A part of the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tab {
    /// What waits for an answer, and what was answered.
    Requests,
    /// What passes, and what does not.
    Traffic,
    /// What is granted, and for how long.
    Grants,
    /// Reads and pushes.
    Git,
    /// The daemons.
    Health,
    /// The bottles.
    Bottles,
}

impl Tab {
    /// All, in their order.
    pub const ALL: [Tab; 6] = [Tab::Requests, Tab::Traffic, Tab::Grants, Tab::Git, Tab::Health, Tab::Bottles];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Tab::Requests => "Requests",
            Tab::Traffic => "Traffic",
            Tab::Grants => "Grants",
            Tab::Git => "Git",
            Tab::Health => "Health",
            Tab::Bottles => "Bottles",
        }
    }

    fn beside(self, step: isize) -> Tab {
        let place = Tab::ALL.iter().position(|tab| *tab == self).unwrap_or(0);
        let count = Tab::ALL.len() as isize;
        Tab::ALL[(place as isize + step).rem_euclid(count) as usize]
    }
}

/// What a person is in the middle of.
#[derive(Debug, Clone, PartialEq)]
pub enum Mode {
    /// Looking around.
    Browse,
    /// Reading what a yes would change.
    Review {
        /// What was shown; a yes is to this and nothing else.
        look: Box<Look>,
        /// How it was narrowed.
        narrowing: Narrowing,
        /// The first line on the screen.
        scroll: usize,
    },
    /// Writing a line.
    Write {
        /// What for.
        purpose: Purpose,
        /// What is written so far.
        text: String,
    },
    /// Reading the keys.
    Help,
}

/// What a line is written for.
#[derive(Debug, Clone, PartialEq)]
pub enum Purpose {
    /// The host, to approve write access to it.
    Host(Box<Look>, Narrowing),
    /// How to narrow what was narrowed so before.
    Narrow(Box<Look>, Narrowing),
    /// Why not.
    Reject(String),
    /// Why no longer.
    Revoke(String),
}

/// A key, as far as it means something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// A sign.
    Char(char),
    /// Go on.
    Enter,
    /// Back.
    Escape,
    /// Take the last sign back.
    Backspace,
    /// Up.
    Up,
    /// Down.
    Down,
    /// A page up.
    PageUp,
    /// A page down.
    PageDown,
    /// The next part.
    Tab,
    /// The part before.
    BackTab,
    /// Away from here.
    Interrupt,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Leave.
    Quit,
    /// Look at another bottle.
    Choose(String),
    /// Work out what a yes would change.
    Look(String, Narrowing),
    /// Say yes to what was shown.
    Approve {
        /// The request.
        id: String,
        /// How it was narrowed.
        narrowing: Narrowing,
        /// What stands for what was shown.
        token: String,
        /// The host, where it was typed.
        host: Option<String>,
    },
    /// Say no.
    Reject(String, String),
    /// Take a grant back.
    Revoke(String, String),
    /// Take no more requests, or take them again.
    Pause(bool),
}

/// What comes from outside.
#[derive(Debug)]
pub enum Event {
    /// The person.
    Key(Key),
    /// The bottles.
    Bottles(Vec<Listed>),
    /// The chosen one.
    Facts(String, Box<Facts>),
    /// What passed in it.
    Traffic(String, Passages),
    /// What a yes would change.
    Looked(Narrowing, Result<Box<Look>, String>),
    /// How something that was to be done went.
    Done(Result<String, String>),
}

/// The screen.
#[derive(Debug)]
pub struct Screen {
    pub(super) bottles: Vec<Listed>,
    pub(super) chosen: Option<String>,
    pub(super) facts: Facts,
    pub(super) traffic: Traffic,
    pub(super) tab: Tab,
    pub(super) at: usize,
    /// Whether only refusals are shown.
    pub(super) refused_only: bool,
    pub(super) mode: Mode,
    pub(super) said: Said,
    /// Whether something is being done.
    pub(super) busy: bool,
    /// How many lines a page has; the renderer knows.
    pub(super) page: usize,
    /// How many lines what is read can be scrolled over; the renderer knows.
    pub(super) lines: usize,
}

/// The last thing that was said to the person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    Nothing,
    Done(String),
    Failed(String),
}

impl Screen {
    /// An empty one; `chosen` is the bottle that it begins with.
    #[must_use]
    pub fn new(chosen: Option<String>) -> Screen {
        Screen {
            bottles: Vec::new(),
            chosen,
            facts: Facts::default(),
            traffic: Traffic::default(),
            tab: Tab::Requests,
            at: 0,
            refused_only: false,
            mode: Mode::Browse,
            said: Said::Nothing,
            busy: false,
            page: 10,
            lines: 0,
        }
    }

    /// Takes an event in; what is to be done.
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Key(key) => self.key(key),
            Event::Bottles(bottles) => self.bottles(bottles),
            Event::Facts(name, facts) => {
                if self.chosen.as_deref() == Some(name.as_str()) {
                    self.facts = *facts;
                    self.keep_in_list();
                }
                Vec::new()
            }
            Event::Traffic(name, said) => {
                if self.chosen.as_deref() == Some(name.as_str()) {
                    self.traffic.add(said);
                }
                Vec::new()
            }
            Event::Looked(narrowing, looked) => {
                self.busy = false;
                match looked {
                    // Keys that are meant for a line would be an answer to what came under them.
                    Ok(_) if self.mode != Mode::Browse => {
                        let text = "the review came while you were writing; ask for it again";
                        self.said = Said::Failed(text.to_owned());
                    }
                    Ok(look) => {
                        self.said = Said::Nothing;
                        self.mode = Mode::Review { look, narrowing, scroll: 0 };
                    }
                    Err(problem) => self.said = Said::Failed(problem),
                }
                Vec::new()
            }
            Event::Done(outcome) => {
                self.busy = false;
                self.said = match outcome {
                    Ok(text) => Said::Done(text),
                    Err(text) => Said::Failed(text),
                };
                Vec::new()
            }
        }
    }

    fn bottles(&mut self, bottles: Vec<Listed>) -> Vec<Action> {
        self.bottles = bottles;
        self.keep_in_list();
        if self.chosen.is_some() {
            return Vec::new();
        }
        let first = self.bottles.iter().find(|bottle| bottle.running).or(self.bottles.first());
        match first.map(|bottle| bottle.name.clone()) {
            Some(name) => self.choose(name),
            None => Vec::new(),
        }
    }

    fn choose(&mut self, name: String) -> Vec<Action> {
        self.facts = Facts::default();
        self.traffic = Traffic::default();
        self.at = 0;
        self.chosen = Some(name.clone());
        vec![Action::Choose(name)]
    }

    /// The requests of the list: those that wait first, then the newest.
    pub(super) fn requests(&self) -> Vec<&View> {
        let mut views: Vec<&View> = self.facts.requests.iter().rev().collect();
        views.sort_by_key(|view| !waits(view.state));
        views
    }

    /// The grants in force, the one that ends first first.
    pub(super) fn grants(&self) -> Vec<&View> {
        let mut views: Vec<&View> =
            self.facts.requests.iter().filter(|view| view.state == State::Active).collect();
        views.sort_by_key(|view| view.applied.as_ref().map(|applied| applied.expires_at));
        views
    }

    /// The pushes that wait for a person, the one that came first first.
    pub(super) fn held_pushes(&self) -> Vec<&View> {
        let is_push = |view: &&View| {
            let held = view.proposal.held().map(|hold| &hold.what);
            waits(view.state) && matches!(held, Some(Held::Push { .. }))
        };
        self.facts.requests.iter().filter(is_push).collect()
    }

    fn git_lines(&self) -> usize {
        let repositories = self.facts.git.as_ref().map_or(0, |git| git.repos.len());
        self.held_pushes().len() + repositories + self.facts.git_log.len()
    }

    pub(super) fn passages(&self) -> impl DoubleEndedIterator<Item = &super::facts::Passage> {
        let refused_only = self.refused_only;
        self.traffic.lines.iter().filter(move |line| !refused_only || line.decision != "allow")
    }

    fn length(&self) -> usize {
        match self.tab {
            Tab::Requests => self.facts.requests.len(),
            Tab::Traffic => self.passages().count(),
            Tab::Grants => self.grants().len(),
            Tab::Git => self.git_lines(),
            Tab::Health => self.facts.daemons.len(),
            Tab::Bottles => self.bottles.len(),
        }
    }

    fn keep_in_list(&mut self) {
        self.at = self.at.min(self.length().saturating_sub(1));
    }

    fn key(&mut self, key: Key) -> Vec<Action> {
        if key == Key::Interrupt {
            return vec![Action::Quit];
        }
        match std::mem::replace(&mut self.mode, Mode::Browse) {
            Mode::Browse => self.browse(key),
            Mode::Help => Vec::new(),
            Mode::Review { look, narrowing, scroll } => self.review(key, look, narrowing, scroll),
            Mode::Write { purpose, text } => self.write(key, purpose, text),
        }
    }

    fn browse(&mut self, key: Key) -> Vec<Action> {
        match key {
            Key::Char('q') => return vec![Action::Quit],
            Key::Char('?') => self.mode = Mode::Help,
            Key::Tab | Key::Char('l') => self.turn(self.tab.beside(1)),
            Key::BackTab | Key::Char('h') => self.turn(self.tab.beside(-1)),
            Key::Char(digit @ '1'..='6') => self.turn(Tab::ALL[digit as usize - '1' as usize]),
            Key::Char(']') => return self.other_bottle(1),
            Key::Char('[') => return self.other_bottle(-1),
            Key::Char('p') => {
                let paused = self.facts.desk.as_ref().is_some_and(|desk| desk.paused);
                return self.doing(Action::Pause(!paused));
            }
            Key::Char('f') if self.tab == Tab::Traffic => {
                self.refused_only = !self.refused_only;
                self.keep_in_list();
            }
            Key::Enter | Key::Char('a' | 'n')
                if matches!(self.tab, Tab::Requests | Tab::Grants | Tab::Git) =>
            {
                if let Some(id) = self.marked() {
                    return self.doing(Action::Look(id, Narrowing::default()));
                }
            }
            Key::Char('r') if matches!(self.tab, Tab::Requests | Tab::Git) => {
                if let Some(id) = self.marked() {
                    self.mode = Mode::Write { purpose: Purpose::Reject(id), text: String::new() };
                }
            }
            Key::Char('x') if matches!(self.tab, Tab::Requests | Tab::Grants) => {
                if let Some(id) = self.marked() {
                    self.mode = Mode::Write { purpose: Purpose::Revoke(id), text: String::new() };
                }
            }
            Key::Enter if self.tab == Tab::Bottles => {
                if let Some(bottle) = self.bottles.get(self.at) {
                    let name = bottle.name.clone();
                    self.tab = Tab::Requests;
                    return self.choose(name);
                }
            }
            key => self.at = moved(self.at, key, self.page, self.length()),
        }
        Vec::new()
    }

    fn turn(&mut self, tab: Tab) {
        self.tab = tab;
        self.at = 0;
    }

    fn other_bottle(&mut self, step: isize) -> Vec<Action> {
        let here = self.bottles.iter().position(|bottle| Some(&bottle.name) == self.chosen.as_ref());
        let count = self.bottles.len() as isize;
        if count == 0 {
            return Vec::new();
        }
        let next = here.map_or(0, |here| (here as isize + step).rem_euclid(count));
        let name = self.bottles[next as usize].name.clone();
        self.choose(name)
    }

    fn marked(&self) -> Option<String> {
        let views = match self.tab {
            Tab::Grants => self.grants(),
            Tab::Git => self.held_pushes(),
            Tab::Requests | Tab::Traffic | Tab::Health | Tab::Bottles => self.requests(),
        };
        views.get(self.at).map(|view| view.id.to_string())
    }

    /// One thing at a time: what is shown belongs to the answer that is awaited.
    fn doing(&mut self, action: Action) -> Vec<Action> {
        if self.busy {
            self.said = Said::Failed("still busy with the last one".to_owned());
            return Vec::new();
        }
        self.busy = true;
        self.said = Said::Nothing;
        vec![action]
    }

    fn review(&mut self, key: Key, look: Box<Look>, narrowing: Narrowing, scroll: usize) -> Vec<Action> {
        match key {
            Key::Escape | Key::Char('q') => {}
            Key::Char('y') if look.token.is_some() => {
                if look.type_host {
                    let purpose = Purpose::Host(look, narrowing);
                    self.mode = Mode::Write { purpose, text: String::new() };
                } else {
                    return self.approve(&look, narrowing, None);
                }
            }
            Key::Char('n') if look.token.is_some() => {
                self.mode = Mode::Write { purpose: Purpose::Narrow(look, narrowing), text: String::new() };
            }
            Key::Char('r') if look.token.is_some() => {
                self.mode = Mode::Write { purpose: Purpose::Reject(look.id), text: String::new() };
            }
            Key::Char('x') => {
                self.mode = Mode::Write { purpose: Purpose::Revoke(look.id), text: String::new() };
            }
            key => {
                let scroll = moved(scroll, key, self.page, self.lines);
                self.mode = Mode::Review { look, narrowing, scroll };
            }
        }
        Vec::new()
    }

    fn approve(&mut self, look: &Look, narrowing: Narrowing, host: Option<String>) -> Vec<Action> {
        match &look.token {
            Some(token) => {
                let (id, token) = (look.id.clone(), token.clone());
                self.doing(Action::Approve { id, narrowing, token, host })
            }
            None => Vec::new(),
        }
    }

    fn write(&mut self, key: Key, purpose: Purpose, mut text: String) -> Vec<Action> {
        match key {
            Key::Escape => {
                match purpose {
                    Purpose::Host(look, narrowing) | Purpose::Narrow(look, narrowing) => {
                        self.mode = Mode::Review { look, narrowing, scroll: 0 };
                    }
                    Purpose::Reject(_) | Purpose::Revoke(_) => {}
                }
                return Vec::new();
            }
            Key::Enter => return self.written(purpose, &text),
            Key::Backspace => {
                text.pop();
            }
            Key::Char(c) if !c.is_control() && text.len() < LINE_MAX => text.push(c),
            _ => {}
        }
        self.mode = Mode::Write { purpose, text };
        Vec::new()
    }

    fn written(&mut self, purpose: Purpose, text: &str) -> Vec<Action> {
        let reason = |default: &str| {
            let text = text.trim();
            if text.is_empty() { default.to_owned() } else { text.to_owned() }
        };
        match purpose {
            Purpose::Host(look, narrowing) => {
                if text.trim() == look.host {
                    return self.approve(&look, narrowing, Some(text.trim().to_owned()));
                }
                self.said = Said::Failed("that is not the host; nothing was approved".to_owned());
                self.mode = Mode::Review { look, narrowing, scroll: 0 };
                Vec::new()
            }
            Purpose::Narrow(look, before) => match narrowing(text) {
                Ok(narrowing) => self.doing(Action::Look(look.id.clone(), narrowing)),
                Err(problem) => {
                    self.said = Said::Failed(problem);
                    self.mode = Mode::Write { purpose: Purpose::Narrow(look, before), text: text.to_owned() };
                    Vec::new()
                }
            },
            Purpose::Reject(id) => self.doing(Action::Reject(id, reason("not approved"))),
            Purpose::Revoke(id) => self.doing(Action::Revoke(id, reason("revoked by the operator"))),
        }
    }
}

const LINE_MAX: usize = 500;

/// Whether a person is waited for.
pub(super) fn waits(state: State) -> bool {
    matches!(state, State::Pending | State::Approved | State::Applying | State::ApplyFailed)
}

fn moved(at: usize, key: Key, page: usize, length: usize) -> usize {
    let last = length.saturating_sub(1);
    match key {
        Key::Up | Key::Char('k') => at.saturating_sub(1),
        Key::Down | Key::Char('j') => (at + 1).min(last),
        Key::PageUp => at.saturating_sub(page),
        Key::PageDown | Key::Char(' ') => (at + page).min(last),
        Key::Char('g') => 0,
        Key::Char('G') => last,
        _ => at,
    }
}

/// `ttl=600 uses=5 method=GET path=/v1/**`, in any order; methods and paths may be repeated.
pub(super) fn narrowing(text: &str) -> Result<Narrowing, String> {
    let mut narrowing = Narrowing::default();
    for word in text.split_whitespace() {
        let (key, value) = word.split_once('=').ok_or_else(|| format!("`{word}`: write KEY=VALUE"))?;
        let number = || value.parse::<u32>().map_err(|_| format!("`{word}`: not a number"));
        match key {
            "ttl" => narrowing.ttl = Some(number()?),
            "uses" => {
                let uses = NonZeroU32::new(number()?).ok_or_else(|| format!("`{word}`: at least 1"))?;
                narrowing.max_uses = Some(uses);
            }
            "method" => narrowing.methods.push(value.to_owned()),
            "path" => narrowing.paths.push(value.to_owned()),
            _ => return Err(format!("`{key}`: one of ttl, uses, method and path")),
        }
    }
    Ok(narrowing)
}
