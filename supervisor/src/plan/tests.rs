//! Stories of single events, and properties over all orders of events.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn everyone() -> Plan {
    Plan::new(Daemon::ALL.map(|daemon| (daemon, Role::Essential)), 1)
}

/// What a real machine would do with the actions: processes that run, and what happened to them.
struct World {
    plan: Plan,
    now: Duration,
    live: BTreeMap<Daemon, Process>,
    hangups: BTreeMap<Daemon, u32>,
    answers: Vec<(Ticket, Vec<(Daemon, Outcome)>)>,
    stop_seen: bool,
    exit: Option<u8>,
    next_pid: i32,
    next_ticket: u64,
    spawn_fails: bool,
    /// Whether a process leaves when it is asked to.
    polite: bool,
    log: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Process {
    ready: bool,
    hung_up: Option<Duration>,
    terminated: bool,
    killed: bool,
    /// It is dead, and nobody has waited for it yet.
    zombie: Option<i32>,
}

impl World {
    fn new(plan: Plan) -> Self {
        Self {
            plan,
            now: Duration::ZERO,
            live: BTreeMap::new(),
            hangups: BTreeMap::new(),
            answers: Vec::new(),
            stop_seen: false,
            exit: None,
            next_pid: 100,
            next_ticket: 0,
            spawn_fails: false,
            polite: true,
            log: Vec::new(),
        }
    }

    fn started() -> Self {
        let mut world = Self::new(everyone());
        world.feed(Event::Start);
        world.settle();
        assert!(world.plan.is_healthy());
        world
    }

    fn feed(&mut self, event: Event) {
        let mut queue = std::collections::VecDeque::from([event]);
        while let Some(event) = queue.pop_front() {
            for action in self.plan.on(self.now, event) {
                self.perform(action, &mut queue);
            }
            if let Some(due) = self.plan.deadline(self.now) {
                assert!(due > self.now, "a deadline in the past would spin");
            }
        }
    }

    fn perform(&mut self, action: Action, queue: &mut std::collections::VecDeque<Event>) {
        assert_eq!(self.exit, None, "nothing follows the exit");
        match action {
            Action::Spawn(daemon) => {
                assert!(!self.stop_seen, "no start after a stop began");
                assert!(!self.live.contains_key(&daemon), "one process per daemon");
                if self.spawn_fails {
                    queue.push_front(Event::SpawnFailed(daemon, "exec failed".to_owned()));
                } else {
                    self.live.insert(daemon, Process::default());
                    self.next_pid += 1;
                    queue.push_front(Event::Spawned(daemon, self.next_pid));
                }
            }
            Action::Hangup(daemon) => {
                let process = self.live.get_mut(&daemon).expect("a reload goes to a process");
                assert!(process.ready, "a reload is never sent before ready");
                let overdue = process.hung_up.is_none_or(|sent| sent + RELOAD_TIMEOUT <= self.now);
                assert!(overdue, "one reload at a time");
                assert!(daemon.reloads());
                process.hung_up = Some(self.now);
                *self.hangups.entry(daemon).or_default() += 1;
            }
            Action::Terminate(daemon) => {
                let process = self.live.get_mut(&daemon).expect("SIGTERM goes to a process");
                process.terminated = true;
                self.log.push(format!("term {daemon}"));
            }
            Action::Kill(daemon) => {
                let process = self.live.get_mut(&daemon).expect("SIGKILL goes to a process");
                process.killed = true;
                self.log.push(format!("kill {daemon}"));
            }
            Action::Answer(ticket, outcomes) => {
                assert!(self.answers.iter().all(|(other, _)| *other != ticket), "one answer per request");
                self.answers.push((ticket, outcomes));
            }
            Action::Say(_) => {}
            Action::TellReady => self.log.push("ready".to_owned()),
            Action::TellStopping => {
                assert!(!std::mem::replace(&mut self.stop_seen, true));
            }
            Action::Exit(code) => {
                assert!(self.live.is_empty(), "a live child at exit: {:?}", self.live);
                self.exit = Some(code);
            }
        }
    }

    fn exits(&mut self, daemon: Daemon, exit: Exit) {
        if self.live.remove(&daemon).is_some() {
            self.log.push(format!("gone {daemon}"));
            self.feed(Event::Exited(daemon, exit));
        }
    }

    fn is_ready(&mut self, daemon: Daemon) {
        if let Some(process) = self.live.get_mut(&daemon).filter(|process| process.zombie.is_none()) {
            process.ready = true;
            process.hung_up = None;
            self.feed(Event::Ready(daemon, Report::default()));
        }
    }

    fn advance(&mut self, by: Duration) {
        self.now += by;
        self.feed(Event::Tick);
        self.bury();
    }

    /// SIGKILL takes a moment at most.
    fn bury(&mut self) {
        let killed = |(daemon, process): (&Daemon, &Process)| process.killed.then_some(*daemon);
        while let Some(daemon) = self.live.iter().find_map(killed) {
            self.exits(daemon, Exit::Signal(9));
        }
    }

    /// The process dies; the plan hears of it when it is waited for.
    fn dies(&mut self, daemon: Daemon, code: i32) {
        if let Some(process) = self.live.get_mut(&daemon) {
            process.zombie.get_or_insert(code);
        }
    }

    /// Waits for one process that died.
    fn reap(&mut self, daemon: Daemon) {
        if let Some(code) = self.live.get(&daemon).and_then(|process| process.zombie) {
            self.exits(daemon, Exit::Code(code));
        }
    }

    /// Lets well-behaved processes do what they should, until nothing more happens without new events.
    fn settle(&mut self) {
        self.spawn_fails = false;
        for _ in 0..1000 {
            if self.exit.is_some() {
                return;
            }
            let next = self.live.iter().map(|(daemon, process)| (*daemon, *process)).find(|(_, process)| {
                process.killed
                    || process.zombie.is_some()
                    || (process.terminated && self.polite)
                    || !process.ready
                    || process.hung_up.is_some()
            });
            match next {
                Some((daemon, process)) if process.killed => self.exits(daemon, Exit::Signal(9)),
                Some((daemon, process)) if process.zombie.is_some() => self.reap(daemon),
                Some((daemon, process)) if process.terminated && self.polite => {
                    self.exits(daemon, Exit::Code(0))
                }
                Some((daemon, process)) if process.hung_up.is_some() => {
                    self.feed(Event::Reloading(daemon, Some(self.now)));
                    self.is_ready(daemon);
                }
                Some((daemon, process)) if !process.terminated => self.is_ready(daemon),
                Some(_) | None => match self.plan.deadline(self.now) {
                    Some(due) => self.advance(due - self.now),
                    None => return,
                },
            }
        }
        panic!("the plan never comes to rest: {:?}", self.plan);
    }
}

#[test]
fn start_up_is_complete_when_the_last_daemon_is_ready() {
    let mut world = World::new(everyone());
    world.feed(Event::Start);
    world.is_ready(Daemon::Supervise);
    world.is_ready(Daemon::Egress);
    assert!(world.log.is_empty());
    world.is_ready(Daemon::GitGate);
    assert_eq!(world.log, ["ready"]);
}

#[test]
fn a_stop_asks_in_reverse_order_and_ends_with_the_last_child() {
    let mut world = World::started();
    world.log.clear();
    world.feed(Event::Stop(StopCause::Signal(15)));
    world.settle();
    assert_eq!(
        world.log,
        ["term supervise", "gone supervise", "term git-gate", "gone git-gate", "term egress", "gone egress"]
    );
    assert_eq!((world.exit, world.now), (Some(0), Duration::ZERO));
}

#[test]
fn a_daemon_that_hangs_delays_the_others_for_a_step_only_and_is_killed_after_the_grace() {
    let mut world = World::started();
    world.polite = false;
    world.log.clear();
    world.feed(Event::Stop(StopCause::Request));
    world.advance(STOP_STEP);
    assert_eq!(world.log, ["term supervise", "term git-gate"]);
    world.settle();
    assert_eq!((world.exit, world.now), (Some(0), STOP_GRACE));
}

#[test]
fn a_stop_signal_during_start_up_is_the_exit_code() {
    let mut world = World::new(everyone());
    world.feed(Event::Start);
    world.is_ready(Daemon::Egress);
    world.feed(Event::Stop(StopCause::Signal(2)));
    world.settle();
    assert_eq!(world.exit, Some(130));
}

#[test]
fn a_process_that_cannot_be_killed_does_not_hold_the_stop_for_ever() {
    let mut plan = Plan::new([(Daemon::Egress, Role::Essential)], 1);
    plan.on(Duration::ZERO, Event::Start);
    plan.on(Duration::ZERO, Event::Spawned(Daemon::Egress, 1));
    plan.on(Duration::ZERO, Event::Stop(StopCause::Request));
    let kill = plan.on(STOP_GRACE + ABANDON_AFTER, Event::Tick);
    assert_eq!(kill.last(), Some(&Action::Kill(Daemon::Egress)));
    let end = plan.on(STOP_GRACE + 2 * ABANDON_AFTER, Event::Tick);
    assert_eq!(end.last(), Some(&Action::Exit(0)));
}

#[test]
fn a_crash_is_followed_by_restarts_that_wait_longer_each_time() {
    let mut world = World::started();
    let mut delays = Vec::new();
    for _ in 0..FAILURE_BUDGET {
        world.exits(Daemon::GitGate, Exit::Signal(11));
        let due = world.plan.deadline(world.now).expect("a restart is due");
        delays.push((due - world.now).as_millis());
        world.advance(due - world.now);
        world.is_ready(Daemon::GitGate);
    }
    for (delay, longest) in delays.into_iter().zip([100, 200, 400, 800, 1600]) {
        assert!((longest * 3 / 4..=longest).contains(&delay), "{delay} of {longest} ms");
    }
    world.exits(Daemon::GitGate, Exit::Signal(11));
    world.settle();
    assert_eq!(world.exit, Some(70));
}

#[test]
fn old_failures_are_forgiven() {
    let mut world = World::started();
    for _ in 0..3 * FAILURE_BUDGET {
        world.exits(Daemon::Egress, Exit::Code(1));
        world.settle();
        world.advance(FAILURE_WINDOW / 3);
    }
    assert!(world.plan.is_healthy());
    assert_eq!(world.plan.views(world.now)[0].restarts, 15);
}

#[test]
fn a_daemon_that_refuses_its_configuration_at_start_ends_the_bundle_with_64() {
    let mut world = World::new(everyone());
    world.feed(Event::Start);
    world.exits(Daemon::Egress, Exit::Code(64));
    world.settle();
    assert_eq!(world.exit, Some(64));
}

#[test]
fn an_optional_daemon_that_failed_stays_down_until_the_unhealthy_are_restarted() {
    let mut world =
        World::new(Plan::new([(Daemon::Egress, Role::Essential), (Daemon::Supervise, Role::Optional)], 1));
    world.feed(Event::Start);
    world.is_ready(Daemon::Egress);
    for _ in 0..=FAILURE_BUDGET {
        world.exits(Daemon::Supervise, Exit::Code(1));
        if let Some(due) = world.plan.deadline(world.now) {
            world.advance(due - world.now);
        }
    }
    assert_eq!(world.plan.views(world.now)[1].state, State::Failed);
    assert_eq!(world.plan.views(world.now)[0].state, State::Ready);
    assert!(world.plan.has_started() && !world.plan.is_healthy());
    world.feed(Event::Unhealthy);
    world.is_ready(Daemon::Supervise);
    assert!(world.plan.is_healthy());
    assert_eq!(world.plan.views(world.now)[0].restarts, 0);
}

#[test]
fn a_daemon_that_is_never_ready_is_killed_and_tried_again() {
    let mut world = World::new(Plan::new([(Daemon::Egress, Role::Essential)], 1));
    world.feed(Event::Start);
    world.advance(START_TIMEOUT);
    assert_eq!(world.log, ["kill egress", "gone egress"]);
    assert_eq!(world.plan.views(world.now)[0].state, State::Backoff);
    world.settle();
    assert!(world.plan.is_healthy());
}

#[test]
fn a_daemon_that_gave_signs_of_life_and_gives_no_more_is_killed_and_restarted() {
    let mut world = World::started();
    world.feed(Event::Alive(Daemon::Egress));
    for _ in 0..3 {
        world.advance(ALIVE_TIMEOUT - Duration::from_secs(1));
        world.feed(Event::Alive(Daemon::Egress));
    }
    assert_eq!(world.plan.views(world.now)[0].restarts, 0);
    world.log.clear();
    world.advance(ALIVE_TIMEOUT);
    assert_eq!(world.log, ["kill egress", "gone egress"]);
    world.settle();
    assert!(world.plan.is_healthy());
    // The others never gave any, and neither did the new process: nobody is watched.
    world.advance(10 * ALIVE_TIMEOUT);
    assert!(world.plan.is_healthy());
}

#[test]
fn signs_of_life_that_are_overdue_because_we_did_not_run_ourselves_kill_nobody() {
    let mut world = World::started();
    world.feed(Event::Alive(Daemon::Egress));
    world.log.clear();
    world.advance(20 * ALIVE_TIMEOUT);
    assert_eq!(world.log, [""; 0]);
    world.advance(ALIVE_TIMEOUT - Duration::from_secs(1));
    assert!(world.plan.is_healthy());
    world.advance(Duration::from_secs(1));
    assert_eq!(world.log, ["kill egress", "gone egress"]);
}

#[test]
fn a_reload_before_ready_is_held_and_sent_once() {
    let mut world = World::new(everyone());
    world.feed(Event::Start);
    world.feed(Event::Hangup);
    world.feed(Event::Hangup);
    world.feed(Event::Reload(Ticket(1), None));
    assert!(world.hangups.is_empty());
    world.settle();
    assert_eq!(world.hangups, BTreeMap::from([(Daemon::Egress, 1), (Daemon::GitGate, 1)]));
    let applied = |daemon| (daemon, Outcome::Applied(Report::default()));
    assert_eq!(world.answers, [(Ticket(1), vec![applied(Daemon::Egress), applied(Daemon::GitGate)])]);
}

#[test]
fn a_reload_during_a_reload_is_sent_after_the_answer() {
    let mut world = World::started();
    world.feed(Event::Reload(Ticket(1), Some(Daemon::Egress)));
    world.feed(Event::Reload(Ticket(2), Some(Daemon::Egress)));
    assert_eq!(world.hangups[&Daemon::Egress], 1);
    world.feed(Event::Reloading(Daemon::Egress, None));
    world.is_ready(Daemon::Egress);
    assert_eq!((world.hangups[&Daemon::Egress], world.answers.len()), (2, 1));
    world.settle();
    assert_eq!((world.hangups[&Daemon::Egress], world.answers.len()), (2, 2));
}

#[test]
fn a_ready_that_was_under_way_before_the_reload_is_not_its_answer() {
    let mut world = World::started();
    world.feed(Event::Reload(Ticket(1), Some(Daemon::Egress)));
    world.feed(Event::Ready(Daemon::Egress, Report { generation: Some(1), ..Report::default() }));
    assert!(world.answers.is_empty());
    world.feed(Event::Reloading(Daemon::Egress, None));
    let refused =
        Report { generation: Some(1), digest: None, reload_error: Some("routes.yaml:5:5: no".to_owned()) };
    world.feed(Event::Ready(Daemon::Egress, refused.clone()));
    let outcome = Outcome::Refused("routes.yaml:5:5: no".to_owned());
    assert_eq!(world.answers, [(Ticket(1), vec![(Daemon::Egress, outcome)])]);
    assert_eq!(world.plan.views(world.now)[0].report, refused);
}

#[test]
fn a_reload_that_began_before_we_asked_is_not_the_answer() {
    let mut world = World::started();
    world.advance(Duration::from_secs(5));
    // Someone signals the daemon itself; it has begun to read when our request comes.
    let began = world.now;
    world.advance(Duration::from_millis(1));
    world.feed(Event::Reload(Ticket(1), Some(Daemon::Egress)));
    let report = |generation| Report { generation: Some(generation), ..Report::default() };
    world.feed(Event::Reloading(Daemon::Egress, Some(began)));
    world.feed(Event::Ready(Daemon::Egress, report(2)));
    assert!(world.answers.is_empty());
    world.feed(Event::Reloading(Daemon::Egress, Some(world.now)));
    world.feed(Event::Ready(Daemon::Egress, report(3)));
    assert_eq!(world.answers, [(Ticket(1), vec![(Daemon::Egress, Outcome::Applied(report(3)))])]);
}

#[test]
fn a_reload_of_one_daemon_leaves_the_others_alone() {
    let mut world = World::started();
    world.feed(Event::Reload(Ticket(1), Some(Daemon::GitGate)));
    world.settle();
    assert_eq!(world.hangups, BTreeMap::from([(Daemon::GitGate, 1)]));
    assert_eq!(world.answers.len(), 1);
    world.feed(Event::Reload(Ticket(2), Some(Daemon::Supervise)));
    assert_eq!(world.answers[1], (Ticket(2), Vec::new()));
}

#[test]
fn a_reload_without_an_answer_ends_after_its_time() {
    let mut world = World::started();
    world.feed(Event::Reload(Ticket(1), Some(Daemon::Egress)));
    world.advance(RELOAD_TIMEOUT);
    assert_eq!(world.answers, [(Ticket(1), vec![(Daemon::Egress, Outcome::Unanswered)])]);
    assert_eq!(world.plan.views(world.now)[0].state, State::Ready);
}

#[test]
fn a_crash_during_a_reload_answers_it() {
    let mut world = World::started();
    world.feed(Event::Reload(Ticket(1), Some(Daemon::Egress)));
    world.exits(Daemon::Egress, Exit::Signal(6));
    assert_eq!(world.answers, [(Ticket(1), vec![(Daemon::Egress, Outcome::Gone)])]);
}

#[test]
fn restarts_of_a_restarting_daemon_coalesce() {
    let mut world = World::started();
    for _ in 0..5 {
        world.feed(Event::Restart(Daemon::GitGate));
    }
    world.settle();
    assert_eq!(world.plan.views(world.now)[1].restarts, 1);
    assert_eq!(world.plan.views(world.now)[0].restarts, 0);
}

#[derive(Clone, Debug)]
enum Step {
    Dies(Daemon, i32),
    Reap(Daemon),
    Ready(Daemon),
    Reloading(Daemon),
    Alive(Daemon),
    Hangup,
    Reload,
    Unhealthy,
    Restart(Daemon),
    Advance(u64),
    SpawnFails(bool),
}

fn daemon() -> impl Strategy<Value = Daemon> {
    prop::sample::select(&Daemon::ALL[..])
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (daemon(), 0..3_i32).prop_map(|(daemon, code)| Step::Dies(daemon, code)),
        3 => daemon().prop_map(Step::Reap),
        4 => daemon().prop_map(Step::Ready),
        1 => daemon().prop_map(Step::Reloading),
        1 => daemon().prop_map(Step::Alive),
        2 => Just(Step::Hangup),
        1 => Just(Step::Reload),
        1 => Just(Step::Unhealthy),
        1 => daemon().prop_map(Step::Restart),
        2 => (0..40_000_u64).prop_map(Step::Advance),
        1 => any::<bool>().prop_map(Step::SpawnFails),
    ];
    prop::collection::vec(step, 0..60)
}

fn play(world: &mut World, steps: &[Step]) {
    for step in steps {
        if world.exit.is_some() {
            return;
        }
        match step {
            Step::Dies(daemon, code) => world.dies(*daemon, *code),
            Step::Reap(daemon) => world.reap(*daemon),
            Step::Ready(daemon) => world.is_ready(*daemon),
            Step::Reloading(daemon) if world.live.contains_key(daemon) => {
                world.feed(Event::Reloading(*daemon, None))
            }
            Step::Reloading(_) => {}
            Step::Alive(daemon) => world.feed(Event::Alive(*daemon)),
            Step::Hangup => world.feed(Event::Hangup),
            Step::Reload => {
                world.next_ticket += 1;
                world.feed(Event::Reload(Ticket(world.next_ticket), None));
            }
            Step::Unhealthy => world.feed(Event::Unhealthy),
            Step::Restart(daemon) => world.feed(Event::Restart(*daemon)),
            Step::Advance(by) => world.advance(Duration::from_millis(*by)),
            Step::SpawnFails(fails) => world.spawn_fails = *fails,
        }
    }
}

fn world(role: Role) -> World {
    let seed = 1;
    let mut world = World::new(Plan::new(Daemon::ALL.map(|daemon| (daemon, role)), seed));
    world.feed(Event::Start);
    world
}

proptest! {
    #[test]
    fn stopping_always_ends_with_no_child_left(steps in steps(), polite: bool, optional: bool, number in 1..32_i32) {
        let mut world = world(if optional { Role::Optional } else { Role::Essential });
        play(&mut world, &steps);
        let before = world.now;
        world.polite = polite;
        if world.exit.is_none() {
            world.feed(Event::Stop(StopCause::Signal(number)));
            world.settle();
        }
        prop_assert!(world.exit.is_some());
        prop_assert!(world.live.is_empty());
        prop_assert!(world.now <= before + STOP_GRACE);
    }

    #[test]
    fn events_after_a_stop_began_change_nothing(early in steps(), late in steps()) {
        let mut world = world(Role::Essential);
        play(&mut world, &early);
        if world.exit.is_none() {
            world.feed(Event::Stop(StopCause::Request));
        }
        // `World` itself asserts that nothing is started and that no child is left.
        play(&mut world, &late);
        if world.exit.is_none() {
            world.settle();
        }
        prop_assert!(world.exit.is_some());
    }

    #[test]
    fn a_requested_reload_is_delivered_exactly_once_after_ready(steps in steps()) {
        let mut world = world(Role::Optional);
        play(&mut world, &steps);
        let sent = |world: &World| Daemon::ALL.map(|daemon| world.hangups.get(&daemon).copied().unwrap_or(0));
        let before = sent(&world);
        world.feed(Event::Hangup);
        world.settle();
        for ((view, before), after) in world.plan.views(world.now).iter().zip(before).zip(sent(&world)) {
            match (view.daemon.reloads(), view.state) {
                // One that failed for good meanwhile may have had it before.
                (true, State::Failed) => prop_assert!(after - before <= 1, "{view:?}"),
                (true, state) => prop_assert_eq!((after - before, state), (1, State::Ready)),
                (false, _) => prop_assert_eq!(after, before),
            }
        }
    }

    #[test]
    fn every_request_for_a_reload_is_answered(steps in steps()) {
        let mut world = world(Role::Optional);
        play(&mut world, &steps);
        world.feed(Event::Reload(Ticket(u64::MAX), None));
        world.settle();
        let requests = steps.iter().filter(|step| matches!(step, Step::Reload)).count() + 1;
        prop_assert_eq!(world.answers.len(), requests);
    }

    #[test]
    fn a_bundle_of_good_daemons_comes_up_whatever_happened_before(steps in steps()) {
        let mut world = world(Role::Optional);
        play(&mut world, &steps);
        world.spawn_fails = false;
        world.feed(Event::Unhealthy);
        world.settle();
        prop_assert!(world.plan.is_healthy(), "{:?}", world.plan);
    }
}
