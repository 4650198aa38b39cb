//! The hostile wire cases, played from inside a bottle that is made for it.
//!
//! `bottlecap-corpus` runs twice: in the bottle, behind every wall, where it opens connections to egress and hands them out; and
//! outside, beside origins of its own, where it speaks on them and sees what arrives. The bottle is made as a manifest says, with
//! routes to those origins and none of the manifest's secrets. Egress of a sandbox reaches origins on the host's loopback; that of
//! a container has a loopback of its own, and there they are.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::backend::Kind;
use crate::backend::docker::compose;
use crate::backend::docker::engine::Engine;
use crate::bundle::programs;
use crate::errand::finish;
use crate::fault::{Attempted, Fault};
use crate::init::Shelf;
use crate::manifest::Manifest;
use crate::owners::BOTTLE_USER;
use crate::requests::{Form, json, print};
use crate::state::{Directories, Record};
use crate::sys::process::{Setup, prepare};

const PLAYER: &str = "bottlecap-corpus";
/// Where origins are on a loopback that has nothing else; as many cases as there are of them are played at once.
const ORIGINS: [u16; 4] = [40_001, 40_002, 40_003, 40_004];
const PATIENCE: Duration = Duration::from_secs(60);
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

/// The bottle that is attacked.
#[derive(Debug, Clone, Copy)]
pub struct Patient<'a> {
    /// As this manifest says.
    pub manifest: &'a Path,
    /// Of what.
    pub backend: Kind,
    /// From this image, where it is one of containers.
    pub image: Option<&'a str>,
}

/// Plays the corpus, or what of it has `only` in its name, from inside a bottle, and prints what came of it.
///
/// # Errors
/// When it cannot be played, or a play failed.
pub fn report(
    patient: Patient<'_>,
    only: Option<&str>,
    form: Form,
    out: &mut impl Write,
) -> Result<(), Fault> {
    let outcome = play(patient, only)?;
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

fn play(patient: Patient<'_>, only: Option<&str>) -> Result<Outcome, Fault> {
    let manifest = Manifest::load(patient.manifest, Shelf::of_process().as_ref())?;
    let stage = Stage::new(patient, &manifest)?;
    let (mut player, _bottle) = match patient.backend {
        Kind::Sandbox => {
            let mut player = Running::start(&mut stage.player(only, ORIGINS.map(|_| 0)))?;
            let ports = player.ports()?;
            (player, stage.bottle(&ports)?)
        }
        Kind::Docker => {
            // Nothing else is on the loopback of the bundle's container, so the ports can be named before it is there.
            stage.prepare()?;
            let bottle = stage.bottle(&ORIGINS)?;
            let mut command = stage.player(only, ORIGINS);
            let network = bundles_network(&bottle)?;
            let setup =
                Setup { descriptors: Vec::new(), on_parent_death: Signal::SIGKILL, close_others: false };
            prepare(&mut command, setup, move || Ok(setns(&network, CloneFlags::CLONE_NEWNET)?));
            let mut player = Running::start(&mut command)?;
            player.ports()?;
            (player, bottle)
        }
    };
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

/// The network of the container in which the bundle of that bottle is.
fn bundles_network(bottle: &Running) -> Result<File, Fault> {
    let told = || "cannot look into the bundle's container".to_owned();
    let bottles = Directories::of_process().list().failing(told)?;
    let own = |record: &Record| u32::try_from(record.pid) == Ok(bottle.child.id());
    let Some((record, _)) = bottles.into_iter().find(|(record, _)| own(record)) else {
        return Err(Fault::failed(told()));
    };
    let container = compose::sidecars(&record.name.parse().failing(told)?);
    let process = Engine::find()?.run(["container", "inspect", "--format", "{{.State.Pid}}", &container])?;
    File::open(Path::new("/proc").join(process).join("ns/net")).failing(told)
}

/// Places for the bottle and for the origins, gone when dropped.
struct Stage<'a> {
    root: TempDir,
    program: PathBuf,
    patient: Patient<'a>,
    manifest: &'a Manifest,
}

impl<'a> Stage<'a> {
    fn new(patient: Patient<'a>, manifest: &'a Manifest) -> Result<Stage<'a>, Fault> {
        let program = programs()?.join(PLAYER);
        let root = tempfile::Builder::new().prefix("bottlecap-doctor-").tempdir().failing(cannot_prepare)?;
        // A bottle that root starts has a user of its own, who passes through here.
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o711)).failing(cannot_prepare)?;
        let stage = Stage { root, program, patient, manifest };
        for directory in [stage.work(), stage.origin()] {
            fs::create_dir(directory).failing(cannot_prepare)?;
        }
        fs::copy(&stage.program, stage.work().join(PLAYER))
            .refusing(|| format!("{} is not there", stage.program.display()))
            .map_err(|fault| {
                fault.with_hint("it is installed beside bottlecap, and built by `cargo build --workspace`")
            })?;
        if patient.backend == Kind::Docker {
            // In a container the agent is whoever owns its directory.
            chown(stage.work(), Some(BOTTLE_USER), Some(BOTTLE_USER)).failing(cannot_prepare)?;
        }
        Ok(stage)
    }

    fn work(&self) -> PathBuf {
        self.root.path().join("work")
    }

    fn origin(&self) -> PathBuf {
        self.root.path().join("origin")
    }

    fn prepare(&self) -> Result<(), Fault> {
        let mut command = Command::new(&self.program);
        command.arg("--prepare").arg("--origin-dir").arg(self.origin());
        finish(command, Vec::new(), PATIENCE)?.or_failed(PLAYER).map(drop)
    }

    fn player(&self, only: Option<&str>, ports: [u16; ORIGINS.len()]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--json").arg("--origin-dir").arg(self.origin());
        command.arg("--through").arg(self.work().join(SOCKET)).arg("--ca").arg(self.work().join("ca.pem"));
        command.args(only.into_iter().flat_map(|text| ["--only", text]));
        for port in ports {
            command.arg("--origin").arg(format!("127.0.0.1:{port}"));
        }
        command.stdin(Stdio::piped());
        command
    }

    /// The bottle, when it lends connections. Its routes lead to origins on these ports.
    fn bottle(&self, ports: &[u16]) -> Result<Running, Fault> {
        let Patient { backend, image, .. } = self.patient;
        let at = |name: &str| self.root.path().join(name);
        fs::write(at("routes.yaml"), routes(ports)).failing(cannot_prepare)?;
        let made = json!({
            "routes": "routes.yaml", "upstream_ca": self.origin().join("origin-ca.pem"), "limits": limits(self.manifest),
            "mounts": self.manifest.mounts.iter().map(|path| json!({ "path": path })).collect::<Vec<_>>(),
            "transparent": self.manifest.transparent == Some(true),
        });
        fs::write(at("bottle.yaml"), made.to_string()).failing(cannot_prepare)?;
        let mut command = Command::new("/proc/self/exe");
        command.args(["run", "--backend", backend.as_str(), "--bottle"]).arg(at("bottle.yaml"));
        command.arg("--mount").arg(self.work());
        command
            .args(image.or(self.manifest.image.as_deref()).into_iter().flat_map(|image| ["--image", image]));
        let lend = format!(
            "cp /etc/bottlecap/ca.pem . && exec ./{PLAYER} --proxy http://egress:9099 --lend {SOCKET}"
        );
        let mut bottle = Running::start(command.args(["--", "sh", "-c", &lend]).stdin(Stdio::null()))?;
        if bottle.line()? != "lending" {
            return Err(Fault::failed("the bottle for the wire corpus did not start"));
        }
        Ok(bottle)
    }
}

fn cannot_prepare() -> String {
    "cannot prepare the wire corpus".to_owned()
}

/// What the corpus asks of every proxy, for origins on these ports.
fn routes(ports: &[u16]) -> String {
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

    /// Where the origins of a player are.
    fn ports(&mut self) -> Result<Vec<u16>, Fault> {
        let said: Value = serde_json::from_str(&self.line()?).failing(cannot_prepare)?;
        let places = said["origins"].as_array().into_iter().flatten();
        Ok(places.filter_map(|place| place.as_str()?.rsplit_once(':')?.1.parse().ok()).collect())
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
        let policy = policy::Policy::parse("routes.yaml", &routes(&[4711, 4712])).expect("valid");
        assert_eq!(policy.routes().len(), 4);
    }
}
