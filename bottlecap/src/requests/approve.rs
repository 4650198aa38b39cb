//! A yes: to what exactly, by whom, and put in force.

use std::io::{self, BufRead, IsTerminal, Write};
use std::num::NonZeroU32;

use jiff::Timestamp;
use proposal::wire::{Request, TEXT_MAX_CHARS, View};
use proposal::{Addition, Ask, Id, Proposal, Review, TTL_MAX, TTL_MIN, Table, Wish, addition, review};
use serde_json::{Value, json};

use super::ledger::{self, Entry};
use super::{Base, Desk, Form, apply, is_open, json as print_json, print};
use crate::fault::{Attempted, Fault};

/// What of a request is granted, where it is not all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Narrowing {
    /// For how long, in seconds.
    pub ttl: Option<u32>,
    /// For how many requests.
    pub max_uses: Option<NonZeroU32>,
    /// With these methods alone.
    pub methods: Vec<String>,
    /// On these paths alone: `/v1/items`, or `/v1/**` with what lies below.
    pub paths: Vec<String>,
}

/// How an answer is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Approval {
    /// A person is asked.
    Ask,
    /// The answer was worked out before, from what `show` printed: it names that by its token.
    Token {
        /// As `show` printed it.
        token: String,
        /// The host, where it has to be typed.
        host: Option<String>,
    },
}

impl Narrowing {
    /// For how long and how often what is no route is granted.
    fn terms(&self, view: &View) -> Result<(u32, Option<NonZeroU32>), Fault> {
        if !self.methods.is_empty() || !self.paths.is_empty() {
            return Err(Fault::refused("only a route has methods and paths"));
        }
        let decided = view.decision.as_ref().filter(|decision| decision.is_approval());
        let ttl = self.ttl.or(decided.and_then(|decision| decision.ttl_seconds));
        let ttl = ttl.unwrap_or(view.proposal.ttl_seconds());
        check_ttl(ttl)?;
        let uses = self.max_uses.or(decided.and_then(|decision| decision.max_uses));
        if uses.is_some() && !is_counted(&view.proposal) {
            return Err(Fault::refused("the uses of that are not counted: give it a term with --ttl"));
        }
        Ok((ttl, uses))
    }

    /// The part of `view` that is granted.
    pub(super) fn of(&self, view: &View, asked: &Proposal) -> Result<Proposal, Fault> {
        let decided = view.decision.as_ref().filter(|decision| decision.is_approval());
        let mut value = Value::from(asked.clone());
        if !self.methods.is_empty() {
            value["methods"] = json!(self.methods);
        }
        if !self.paths.is_empty() {
            let rule = |path: &String| match path.strip_suffix("/**") {
                Some("") => json!({"type": "prefix", "value": "/"}),
                Some(prefix) => json!({"type": "prefix", "value": prefix}),
                None => json!({"type": "exact", "value": path}),
            };
            value["paths"] = self.paths.iter().map(rule).collect();
        }
        let scope = Proposal::parse(&value).refusing(|| "that cannot be granted".to_owned())?;
        let scope = match decided.and_then(|decision| decision.scope.clone()) {
            // What was decided before holds on, unless it is said anew.
            Some(scope) if self.methods.is_empty() && self.paths.is_empty() => scope,
            Some(_) | None => scope,
        };
        let ttl =
            self.ttl.or(decided.and_then(|decision| decision.ttl_seconds)).unwrap_or(scope.ttl_seconds());
        check_ttl(ttl)?;
        let uses = self.max_uses.or(decided.and_then(|decision| decision.max_uses)).or(scope.max_uses());
        let scope = scope.limited(ttl, uses);
        // A longer term is the person's to give, and is shown; another place, method or path is an edit.
        if asked.clone().limited(TTL_MAX, None).covers(&scope) {
            Ok(scope)
        } else {
            Err(Fault::refused("that is more than was asked for")
                .with_hint("to grant something else, use `bottlecap requests edit ID`"))
        }
    }
}

fn check_ttl(ttl: u32) -> Result<(), Fault> {
    if (TTL_MIN..=TTL_MAX).contains(&ttl) {
        return Ok(());
    }
    Err(Fault::refused(format!("a grant lasts from {TTL_MIN} to {TTL_MAX} seconds, not {ttl}")))
}

/// A change of a file that a person is shown, and says yes to.
pub(super) struct Offer {
    pub(super) view: View,
    pub(super) base: Base,
    pub(super) what: What,
}

/// What is granted, and what that changes.
pub(super) enum What {
    Route { scope: Box<Proposal>, review: Box<Review> },
    Addition(Box<Addition>),
}

impl Offer {
    pub(super) fn token(&self) -> &str {
        match &self.what {
            What::Route { review, .. } => &review.token,
            What::Addition(addition) => &addition.token,
        }
    }

    fn text(&self) -> &str {
        match &self.what {
            What::Route { review, .. } => &review.text,
            What::Addition(addition) => &addition.text,
        }
    }

    fn digests(&self) -> (String, String) {
        match &self.what {
            What::Route { review, .. } => (review.base_digest().to_owned(), review.digest()),
            What::Addition(addition) => (addition.base_digest().to_owned(), addition.digest()),
        }
    }

    fn expires_at(&self) -> Timestamp {
        match &self.what {
            What::Route { review, .. } => review.grant.expires_at,
            What::Addition(addition) => addition.expires_at,
        }
    }

    /// The host that has to be typed.
    pub(super) fn typed(&self) -> Option<&str> {
        match &self.what {
            What::Route { scope, review } => review.needs_typing.then(|| scope.host().as_str()),
            What::Addition(_) => None,
        }
    }

    /// For how long, for how many uses, and what in place of what was asked.
    fn terms(&self) -> (u32, Option<NonZeroU32>, Option<Proposal>) {
        match &self.what {
            What::Route { scope, .. } => {
                let is_as_asked = self.view.proposal.route().is_some_and(|asked| {
                    asked.clone().limited(scope.ttl_seconds(), scope.max_uses()).is_same_as(scope)
                });
                let other = (!is_as_asked).then(|| (**scope).clone());
                (scope.ttl_seconds(), scope.max_uses(), other)
            }
            What::Addition(addition) => (addition.ttl_seconds, addition.max_uses, None),
        }
    }

    /// What the ledger remembers.
    fn scope(&self) -> Ask {
        match &self.what {
            What::Route { scope, .. } => Ask::Route((**scope).clone()),
            What::Addition(_) => self.view.proposal.clone(),
        }
    }
}

impl Desk {
    /// What granting the request, or that part of it, would change.
    pub(super) fn offer(&self, view: View, narrowing: &Narrowing) -> Result<Offer, Fault> {
        if let Ask::Route(asked) = &view.proposal {
            let scope = narrowing.of(&view, asked)?;
            return self.offer_of(view, scope);
        }
        let table = view.proposal.table().ok_or_else(|| by_hand(&view.id))?;
        let terms = narrowing.terms(&view)?;
        let base = self.base(&view.id, table)?;
        let in_force = apply::in_force(table, &self.run_dir);
        let addition = addition(&base.without, &view.id, &view.proposal, terms, &in_force, Timestamp::now())
            .refusing(|| format!("the request {} cannot be granted", view.id))?;
        Ok(Offer { view, base, what: What::Addition(Box::new(addition)) })
    }

    pub(super) fn offer_of(&self, view: View, scope: Proposal) -> Result<Offer, Fault> {
        let base = self.base(&view.id, Table::Routes)?;
        let in_force = apply::in_force(Table::Routes, &self.run_dir);
        let review = review(&base.without, &view.id, &scope, &in_force, Timestamp::now())
            .refusing(|| format!("the request {} cannot be granted", view.id))?;
        Ok(Offer { view, base, what: What::Route { scope: Box::new(scope), review: Box::new(review) } })
    }

    /// Shows the change, asks, records the yes, writes exactly what was shown, and waits until egress has it.
    pub fn approve(
        &self,
        id: &str,
        narrowing: &Narrowing,
        confirm: &Approval,
        form: Form,
        out: &mut impl Write,
    ) -> Result<(), Fault> {
        let offer = self.offer(self.open_view(id)?, narrowing)?;
        self.settle(&offer, confirm, form, out)
    }

    /// The request, to which a yes can follow.
    fn open_view(&self, id: &str) -> Result<View, Fault> {
        let view = self.view(id)?;
        if is_open(view.state) {
            Ok(view)
        } else {
            Err(Fault::refused(format!("the request {} is {}", view.id, view.state.as_str())))
        }
    }

    /// Grants what a person wrote in place of what was asked for.
    pub fn edit(
        &self,
        id: &str,
        text: &str,
        confirm: &Approval,
        form: Form,
        out: &mut impl Write,
    ) -> Result<(), Fault> {
        let view = self.open_view(id)?;
        if view.proposal.route().is_none() {
            return Err(by_hand(&view.id));
        }
        let value: Value =
            serde_json::from_str(text).refusing(|| "the edited request is no JSON".to_owned())?;
        let scope = Proposal::parse(&value).refusing(|| "the edited request cannot be granted".to_owned())?;
        self.settle(&self.offer_of(view, scope)?, confirm, form, out)
    }

    /// The request as JSON, to be edited.
    pub fn editable(&self, id: &str) -> Result<String, Fault> {
        let view = self.view(id)?;
        let Ask::Route(asked) = view.proposal else { return Err(by_hand(&view.id)) };
        serde_json::to_string_pretty(&Value::from(asked)).failing(|| "cannot write JSON".to_owned())
    }

    fn settle(
        &self,
        offer: &Offer,
        confirm: &Approval,
        form: Form,
        out: &mut impl Write,
    ) -> Result<(), Fault> {
        if form == Form::Text {
            print(out, &proposal::show::one(&offer.view))?;
            print(out, &self.shown(offer))?;
        }
        confirmed(offer, confirm, out)?;
        let Offer { view, base, .. } = offer;
        let id = &view.id;
        let table = base.place.table;
        let (ttl_seconds, max_uses, scope) = offer.terms();
        let (base_digest, digest) = offer.digests();
        // Also of what was approved before: in between, somebody else may have decided otherwise.
        let _: View =
            self.ask(&Request::Approve { id: id.clone(), ttl_seconds: Some(ttl_seconds), max_uses, scope })?;
        self.keep(&Entry::Decided {
            id: id.clone(),
            by: ledger::by(),
            scope: Box::new(offer.scope()),
            max_uses,
            expires_at: offer.expires_at(),
            base: base_digest,
            digest: digest.clone(),
            token: offer.token().to_owned(),
            heads: self.heads(),
        })?;
        let _: View = self.ask(&Request::Applying { id: id.clone(), digest: digest.clone() })?;
        let change = apply::Change { from: &base.present, to: offer.text(), fallback: &base.without };
        match self.apply(table, &change) {
            Ok(generation) => {
                let (until, daemon) = (offer.expires_at(), table.daemon());
                let applied = self.keep_applied(id, generation, digest, until).map_err(|fault| {
                    Fault::failed(format!(
                        "{daemon} has the grant until {until}, but that could not be recorded: {fault}"
                    ))
                })?;
                match form {
                    Form::Json => print_json(out, &applied),
                    Form::Text => print(
                        out,
                        &format!("approved; {daemon} has it as generation {generation}, until {until}\n"),
                    ),
                }
            }
            Err(fault) => Err(match self.keep_failed(id, &fault.to_string()) {
                Ok(()) => fault,
                Err(other) => Fault::failed(format!("{fault}; and that could not be recorded: {other}")),
            }),
        }
    }

    fn keep_applied(
        &self,
        id: &Id,
        generation: u64,
        digest: String,
        until: Timestamp,
    ) -> Result<View, Fault> {
        self.keep(&Entry::Applied { id: id.clone(), digest: digest.clone(), generation })?;
        self.ask(&Request::Applied { id: id.clone(), generation, digest, expires_at: Some(until) })
    }

    fn keep_failed(&self, id: &Id, error: &str) -> Result<(), Fault> {
        self.keep(&Entry::Failed { id: id.clone(), error: error.to_owned() })?;
        let error = error.chars().take(TEXT_MAX_CHARS).collect();
        self.ask(&Request::ApplyFailed { id: id.clone(), error }).map(|_: View| ())
    }
}

fn is_counted(ask: &Ask) -> bool {
    match ask {
        Ask::Route(_) | Ask::Held(_) => true,
        Ask::Capability(capability) => match capability.wish() {
            Wish::GitRef { .. } | Wish::DlpException { .. } => true,
            Wish::GitRepo { .. } | Wish::EgressLimit { .. } | Wish::Other { .. } => false,
        },
    }
}

fn by_hand(id: &Id) -> Fault {
    Fault::refused(format!("request {id} is for something that no program can grant")).with_hint(
        "make the change by hand, and tell the agent with `supervise approve` or `bottlecap requests reject`",
    )
}

/// Whether the answer is a yes to exactly this.
fn confirmed(offer: &Offer, confirm: &Approval, out: &mut impl Write) -> Result<(), Fault> {
    match confirm {
        Approval::Token { token, host: typed } => {
            if token != offer.token() {
                return Err(Fault::NotGranted(
                    "the token is of something else: the request, the routes or what is in force changed since it was shown; look at it again".to_owned(),
                ));
            }
            if let Some(host) = offer.typed()
                && typed.as_deref() != Some(host)
            {
                return Err(Fault::refused("this gives write access to a host that no route leads to yet")
                    .with_hint(format!("name the host as well: --host {host}")));
            }
            Ok(())
        }
        Approval::Ask => {
            if !io::stdin().is_terminal() {
                return Err(Fault::refused("nobody can be asked: standard input is no terminal").with_hint(
                    "look at the change with `bottlecap requests show ID`, then add --token with the token that it prints",
                ));
            }
            let yes = match offer.typed() {
                Some(host) => {
                    answer(out, "This gives write access to a new host. Type its name to approve: ")? == host
                }
                None => matches!(answer(out, "Approve this? [y/N] ")?.as_str(), "y" | "Y" | "yes"),
            };
            if yes { Ok(()) } else { Err(Fault::NotGranted("not approved; the request waits".to_owned())) }
        }
    }
}

/// A line from the terminal. Silence is none.
fn answer(out: &mut impl Write, question: &str) -> Result<String, Fault> {
    print(out, question)?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).failing(|| "cannot read the answer".to_owned())?;
    Ok(line.trim().to_owned())
}
