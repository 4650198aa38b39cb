//! The hostile wire cases, played from inside a bottle that is made for it.
//!
//! `bottlecap-corpus` runs twice: in the bottle, behind every wall, where it opens connections to egress and hands them out; and
//! outside, beside origins of its own, where it speaks on them and sees what arrives. The bottle is made as a manifest says, with
//! routes to those origins and none of the manifest's secrets.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::bundle::programs;
use crate::fault::{Attempted, Fault};
use crate::init::Shelf;
use crate::manifest::Manifest;
use crate::requests::{Form, json, print};

const PLAYER: &str = "bottlecap-corpus";
/// So many cases are played at once.
const ORIGINS: usize = 4;
/// In the working directory.
const SOCKET: &str = "dial.sock";

/// What came of it.
#[derive(Debug, Default, Serialize)]
pub(super) struct Outcome {
    plays: usize,
    passed: usize,
    /// Plays, and how many passed, by class.
    classes: BTreeMap<String, (usize, usize)>,
    failures: Vec<Play>,
}

/// One play.
#[derive(Debug, Serialize, Deserialize)]
struct Play {
    id: String,
    class: String,
    over: String,
    passed: bool,
    seen: String,
    reference: String,
}

/// Plays the corpus, or what of it has `only` in its name, in a bottle as `manifest` says, and prints what came of it.
///
/// # Errors
/// When it cannot be played, or a play failed.
pub fn report(manifest: &Path, only: Option<&str>, form: Form, out: &mut impl Write) -> Result<(), Fault> {
    let manifest = Manifest::load(manifest, Shelf::of_process().as_ref())?;
    let outcome = play(&manifest, only)?;
    match form {
        Form::Json => json(out, &outcome)?,
        Form::Text => print(out, &outcome.in_words())?,
    }
    match outcome.failures.len() {
        0 => Ok(()),
        failed => Err(Fault::failed(format!("{failed} of the plays were not withstood"))),
    }
}

impl Outcome {
    fn add(&mut self, play: Play) {
        self.plays += 1;
        self.passed += usize::from(play.passed);
        let (plays, passed) = self.classes.entry(play.class.clone()).or_default();
        *plays += 1;
        *passed += usize::from(play.passed);
        if !play.passed {
            self.failures.push(play);
        }
    }

    fn in_words(&self) -> String {
        let mut text = String::new();
        for (class, (plays, passed)) in &self.classes {
            let word = if plays == passed { "ok" } else { "FAILED" };
            text.push_str(&format!("{word:<8} {class:<28} {passed} of {plays}\n"));
            for play in self.failures.iter().filter(|play| play.class == *class) {
                let (id, over) = (proposal::escaped(&play.id), proposal::escaped(&play.over));
                text.push_str(&format!(
                    "         {id} over {over}: {} [{}]\n",
                    proposal::escaped(&play.seen),
                    proposal::escaped(&play.reference)
                ));
            }
        }
        text.push_str(&format!(
            "{} of {} plays from inside the bottle were withstood\n",
            self.passed, self.plays
        ));
        text
    }
}

fn play(manifest: &Manifest, only: Option<&str>) -> Result<Outcome, Fault> {
    let told = || "cannot prepare the wire corpus".to_owned();
    let program = programs()?.join(PLAYER);
    let stage = tempfile::Builder::new().prefix("bottlecap-doctor-").tempdir().failing(told)?;
    // A bottle that root starts has a user of its own, who passes through here.
    fs::set_permissions(stage.path(), fs::Permissions::from_mode(0o711)).failing(told)?;
    let (work, origin) = (stage.path().join("work"), stage.path().join("origin"));
    for directory in [&work, &origin] {
        fs::create_dir(directory).failing(told)?;
    }
    fs::copy(&program, work.join(PLAYER))
        .refusing(|| format!("{} is not there", program.display()))
        .map_err(|fault| {
            fault.with_hint("it is installed beside bottlecap, and built by `cargo build --workspace`")
        })?;

    let mut command = Command::new(&program);
    command.arg("--json").arg("--origin-dir").arg(&origin).arg("--through").arg(work.join(SOCKET));
    command.arg("--ca").arg(work.join("ca.pem"));
    command.args(only.into_iter().flat_map(|text| ["--only", text]));
    for _ in 0..ORIGINS {
        command.args(["--origin", "127.0.0.1:0"]);
    }
    let mut player = Running::start(command.stdin(Stdio::piped()))?;
    let origins: Value = serde_json::from_str(&player.line()?).failing(told)?;
    let ports = origins["origins"].as_array().into_iter().flatten();
    let ports = ports.filter_map(|place| place.as_str()?.rsplit_once(':')?.1.parse().ok());
    fs::write(stage.path().join("routes.yaml"), routes(ports)).failing(told)?;
    let made = json!({
        "routes": "routes.yaml", "upstream_ca": origin.join("origin-ca.pem"), "limits": limits(manifest),
        "mounts": manifest.mounts.iter().map(|path| json!({ "path": path })).collect::<Vec<_>>(),
        "transparent": manifest.transparent == Some(true),
    });
    fs::write(stage.path().join("bottle.yaml"), made.to_string()).failing(told)?;

    let mut command = Command::new("/proc/self/exe");
    command.args(["run", "--bottle"]).arg(stage.path().join("bottle.yaml")).arg("--mount").arg(&work);
    let lend =
        format!("cp /etc/bottlecap/ca.pem . && exec ./{PLAYER} --proxy http://egress:9099 --lend {SOCKET}");
    command.args(["--", "sh", "-c", &lend]).stdin(Stdio::null()).env_remove("BOTTLECAP_BACKEND");
    let mut bottle = Running::start(&mut command)?;
    if bottle.line()? != "lending" {
        return Err(Fault::failed("the bottle for the wire corpus did not start"));
    }
    player.begin()?;
    let mut outcome = Outcome::default();
    while let Some(line) = player.next()? {
        outcome.add(serde_json::from_str(&line).failing(|| format!("{PLAYER} said what it does not say"))?);
    }
    if outcome.plays == 0 {
        return Err(Fault::failed("nothing was played"));
    }
    Ok(outcome)
}

/// What the corpus asks of every proxy, for origins on these ports.
fn routes(ports: impl Iterator<Item = u16>) -> String {
    let ports: Vec<u16> = ports.collect();
    let route = |scheme: &str, port: u16| {
        format!(
            "  - host: localhost\n    scheme: {scheme}\n    ports: [{port}]\n    matches:\n      - paths: [{{type: prefix, value: /allowed/}}]\n        \
             methods: [GET, POST]\n    allow_private: [\"127.0.0.1:{port}\", \"[::1]:{port}\"]\n"
        )
    };
    let both = ["http", "https"].into_iter().flat_map(|scheme| ports.iter().map(move |port| (scheme, *port)));
    format!("routes:\n{}", both.map(|(scheme, port)| route(scheme, port)).collect::<String>())
}

fn limits(manifest: &Manifest) -> Value {
    let limits = &manifest.limits;
    let mut value = serde_json::Map::new();
    value.extend(
        limits.memory.map(|bytes| ("memory".to_owned(), json!(format!("{}KiB", bytes.div_ceil(1024))))),
    );
    value.extend(limits.processes.map(|count| ("processes".to_owned(), json!(count))));
    value.extend(limits.cpu_thousandths.map(|part| ("cpus".to_owned(), json!(f64::from(part) / 1000.0))));
    Value::Object(value)
}

/// A program of ours, ended when dropped.
struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Running {
    fn start(command: &mut Command) -> Result<Running, Fault> {
        let told = || "cannot start the wire corpus".to_owned();
        let mut child = command.stdout(Stdio::piped()).spawn().failing(told)?;
        let Some(output) = child.stdout.take() else { return Err(Fault::failed(told())) };
        Ok(Running { child, lines: BufReader::new(output) })
    }

    fn next(&mut self) -> Result<Option<String>, Fault> {
        let mut line = String::new();
        let length = self.lines.read_line(&mut line).failing(|| "cannot read what is played".to_owned())?;
        Ok((length > 0).then(|| line.trim_end().to_owned()))
    }

    fn line(&mut self) -> Result<String, Fault> {
        // What went wrong is on standard error already.
        self.next()?.ok_or_else(|| Fault::failed("the wire corpus could not be played"))
    }

    fn begin(&mut self) -> Result<(), Fault> {
        let told = || "cannot begin to play".to_owned();
        self.child.stdin.take().map_or(Ok(()), |mut input| input.write_all(b"\n")).failing(told)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Asked to end, a bottle takes everything down first. It may have ended by itself.
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_told_where_it_belongs() {
        let play = |id: &str, class: &str, passed| Play {
            id: id.to_owned(),
            class: class.to_owned(),
            over: "tunnel".to_owned(),
            passed,
            seen: "a request\u{1b} arrived".to_owned(),
            reference: "RFC 9112 6.1".to_owned(),
        };
        let mut outcome = Outcome::default();
        for play in [play("a", "path", true), play("b", "path", false), play("c", "flood", true)] {
            outcome.add(play);
        }
        insta::assert_snapshot!(outcome.in_words(), @r"
        ok       flood                        1 of 1
        FAILED   path                         1 of 2
                 b over tunnel: a request\u{1b} arrived [RFC 9112 6.1]
        2 of 3 plays from inside the bottle were withstood
        ");
    }

    #[test]
    fn the_routes_are_those_that_the_corpus_asks_for() {
        let policy = policy::Policy::parse("routes.yaml", &routes([4711, 4712].into_iter())).expect("valid");
        assert_eq!(policy.routes().len(), 4);
    }
}
