//! A bottle is made as the manifest says, with routes to origins of the doctor's own, and none of the manifest's secrets.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::player::{Cast, LENDING, Running, place};
use super::{AUTHORITY, ORIGINS, Outcome, PLAYER, Patient, Seen, cannot_prepare, program, routes};
use crate::backend::Kind;
use crate::backend::docker::compose;
use crate::backend::docker::engine::Engine;
use crate::errand::finish;
use crate::fault::{Attempted, Fault};
use crate::init::Shelf;
use crate::manifest::Manifest;
use crate::owners::BOTTLE_USER;
use crate::state::{Directories, Record};
use crate::sys::namespaces::Network;

const PATIENCE: Duration = Duration::from_secs(60);
/// In the working directory.
const SOCKET: &str = "dial.sock";

/// Plays the corpus from inside it.
pub(super) fn play(patient: Patient<'_>, only: Option<&str>) -> Result<Outcome, Fault> {
    let manifest = Manifest::load(patient.manifest, Shelf::of_process().as_ref())?;
    let stage = Stage::new(patient, &manifest)?;
    let (mut player, _bottle) = match stage.backend {
        Kind::Sandbox => {
            let mut player = Running::start(&mut stage.cast().player(only, ORIGINS.map(|_| 0)))?;
            let ports = player.ports(None)?;
            (player, stage.bottle(&ports)?)
        }
        Kind::Docker => {
            // Nothing else is on the loopback of the bundle's container, so the ports can be named before it is there.
            stage.prepare()?;
            let bottle = stage.bottle(&ORIGINS)?;
            let mut command = stage.cast().player(only, ORIGINS);
            place(&mut command, Some(bundles_network(&bottle)?));
            let mut player = Running::start(&mut command)?;
            player.ports(None)?;
            (player, bottle)
        }
    };
    let mut outcome = Outcome::of(Seen { name: None, backend: stage.backend });
    player.play(&mut outcome, None)?;
    Ok(outcome)
}

/// The network of the container in which the bundle of that bottle is.
fn bundles_network(bottle: &Running) -> Result<Network, Fault> {
    let told = || "cannot look into the bundle's container".to_owned();
    let bottles = Directories::of_process().list().failing(told)?;
    let own = |record: &Record| u32::try_from(record.pid) == Ok(bottle.id());
    let Some((record, _)) = bottles.into_iter().find(|(record, _)| own(record)) else {
        return Err(Fault::failed(told()));
    };
    let container = compose::sidecars(&record.name.parse().failing(told)?);
    let process = Engine::find()?.run(["container", "inspect", "--format", "{{.State.Pid}}", &container])?;
    Network::of(process.parse().failing(told)?).failing(told)
}

/// Places for the bottle and for the origins, gone when dropped.
struct Stage<'a> {
    root: TempDir,
    program: PathBuf,
    backend: Kind,
    patient: Patient<'a>,
    manifest: &'a Manifest,
}

impl<'a> Stage<'a> {
    fn new(patient: Patient<'a>, manifest: &'a Manifest) -> Result<Stage<'a>, Fault> {
        let (program, backend) = (program()?, patient.backend.unwrap_or_default());
        let root = tempfile::Builder::new().prefix("bottlecap-doctor-").tempdir().failing(cannot_prepare)?;
        // A bottle that root starts has a user of its own, who passes through here.
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o711)).failing(cannot_prepare)?;
        let stage = Stage { root, program, backend, patient, manifest };
        for directory in [stage.work(), stage.origin()] {
            fs::create_dir(directory).failing(cannot_prepare)?;
        }
        fs::copy(&stage.program, stage.work().join(PLAYER))
            .refusing(|| format!("{} is not there", stage.program.display()))
            .map_err(|fault| {
                fault.with_hint("it is installed beside bottlecap, and built by `cargo build --workspace`")
            })?;
        if backend == Kind::Docker {
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

    fn cast(&self) -> Cast {
        let work = self.work();
        Cast {
            program: self.program.clone(),
            origin: self.origin(),
            socket: work.join(SOCKET),
            ca: work.join("ca.pem"),
        }
    }

    /// The bottle, when it lends connections. Its routes lead to origins on these ports.
    fn bottle(&self, ports: &[u16]) -> Result<Running, Fault> {
        let (backend, image) = (self.backend, self.patient.image);
        let at = |name: &str| self.root.path().join(name);
        fs::write(at("routes.yaml"), routes(ports)).failing(cannot_prepare)?;
        let made = json!({
            "routes": "routes.yaml", "upstream_ca": self.origin().join(AUTHORITY), "limits": limits(self.manifest),
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
        if bottle.line(None)? != LENDING {
            return Err(Fault::failed("the bottle for the wire corpus did not start"));
        }
        Ok(bottle)
    }
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
