//! The compose project of a bottle, as a value: two services, two networks, and nothing that is secret.
//!
//! It is written as JSON, which every reader of YAML takes, and which leaves nothing to guess about strings.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use policy::{Diagnostic, Diagnostics};
use serde_json::{Map, Value, json};

use super::engine::Limits;
use crate::fault::Fault;
use crate::layout::{HOME, OURS};
use crate::manifest::{self, Name};

/// The label with the bottle's name.
pub const BOTTLE: &str = "bottlecap.bottle";
/// The label with the directory of the bottle's state, which says whose bottle it is.
pub const STATE: &str = "bottlecap.state";
/// The label with what an object is for.
pub const ROLE: &str = "bottlecap.role";
/// The label with the version that made it.
pub const VERSION: &str = "bottlecap.version";

/// What the bundle waits at for its secrets, among its sockets: a pipe, so that they are in no file.
pub const SECRETS_PIPE: &str = "secrets.pipe";
/// Its sockets, as it sees them.
const SOCKETS: &str = "/run/sidecars";
/// Where this program is in the agent's container.
pub const PROGRAM: &str = "/etc/bottlecap/bin/bottlecap";

const AGENT_MEMORY: u64 = 8 << 30;
const BUNDLE_MEMORY: u64 = 2 << 30;
const AGENT_PROCESSES: u32 = 4096;
const BUNDLE_PROCESSES: u32 = 1024;

/// Everything that the project depends on.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The bottle.
    pub name: &'a Name,
    /// Its state.
    pub state: &'a Path,
    /// Its sockets.
    pub run_dir: &'a Path,
    /// What is seen as our own directory inside.
    pub provisions: &'a Path,
    /// The image of the agent.
    pub image: &'a str,
    /// The image of the bundle.
    pub sidecars: &'a str,
    /// The sealed network.
    pub network: Subnet,
    /// The agent's user and group.
    pub user: (u32, u32),
    /// Its working directory.
    pub workdir: &'a Path,
    /// Directories, and files in them, that are seen at their own path.
    pub binds: &'a [Bind],
    /// Its environment.
    pub environment: &'a BTreeMap<String, String>,
    /// The bundle's environment.
    pub bundle_environment: &'a BTreeMap<String, String>,
    /// What both may use of the machine.
    pub limits: &'a Bounds,
}

/// What the containers may use of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    engine: Limits,
    memory: u64,
    processes: u32,
    cpu_thousandths: Option<u32>,
}

impl Bounds {
    /// The manifest's, and ours where it says nothing.
    ///
    /// # Errors
    /// When the manifest says what the engine cannot keep.
    pub fn of(wanted: &manifest::Limits, engine: Limits) -> Result<Bounds, Fault> {
        let kept =
            (wanted.memory.is_none() || engine.memory) && (wanted.processes.is_none() || engine.processes);
        if let (false, Some((file, line, column))) = (kept, wanted.place.clone()) {
            let message =
                "this host's control groups cannot keep these limits: `docker info` says which are missing";
            return Err(
                Diagnostics::from(Diagnostic { file, line, column, message: message.to_owned() }).into()
            );
        }
        Ok(Bounds {
            engine,
            memory: wanted.memory.unwrap_or(AGENT_MEMORY),
            processes: wanted.processes.unwrap_or(AGENT_PROCESSES),
            cpu_thousandths: wanted.cpu_thousandths,
        })
    }
}

/// Something of the host in the agent's container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Where it is on the host.
    pub source: PathBuf,
    /// Where it is seen.
    pub target: PathBuf,
    /// Whether it can be written.
    pub access: Access,
}

/// What may be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read.
    ReadOnly,
    /// Read and written.
    Writable,
}

/// Sixteen addresses: one for the bundle, one for the agent, and none for the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet(Ipv4Addr);

/// How many of them there are.
pub const SUBNETS: u32 = 4096;
const SUBNET_BITS: u32 = 28;
const FIRST_SUBNET: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 0);

impl Subnet {
    /// The one with that number, counted round.
    #[must_use]
    pub fn numbered(number: u32) -> Subnet {
        Subnet(Ipv4Addr::from(u32::from(FIRST_SUBNET) + (number % SUBNETS) * 16))
    }

    /// The bundle's address.
    #[must_use]
    pub fn bundle(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.0) + 2)
    }

    /// Whether the address is one of them.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) >> (32 - SUBNET_BITS) == u32::from(self.0) >> (32 - SUBNET_BITS)
    }

    /// Whether a route of this host, as /proc/net/route has them, leads to some of it.
    #[must_use]
    pub fn is_routed(self, table: &str) -> bool {
        let own = u32::from(self.0);
        let own_mask = u32::MAX << (32 - SUBNET_BITS);
        table.lines().skip(1).any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let number = |index: usize| {
                let digits = fields.get(index)?;
                u32::from_str_radix(digits, 16).ok().map(u32::from_be)
            };
            match (number(1), number(7)) {
                (_, Some(0)) | (None, _) | (_, None) => false,
                (Some(route), Some(mask)) => route & mask & own_mask == own & mask & own_mask,
            }
        })
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{SUBNET_BITS}", self.0)
    }
}

/// The name of the agent's container.
#[must_use]
pub fn agent(name: &Name) -> String {
    format!("bottlecap-{name}")
}

/// The name of the bundle's container.
#[must_use]
pub fn sidecars(name: &Name) -> String {
    format!("bottlecap-sidecars-{name}")
}

/// The name of the network that is the agent's only one.
#[must_use]
pub fn sealed(name: &Name) -> String {
    format!("bottlecap-{name}-sealed")
}

/// The name of the project.
#[must_use]
pub fn project(name: &Name) -> String {
    format!("bottlecap-{name}")
}

/// The project as text.
#[must_use]
pub fn render(inputs: &Inputs<'_>) -> String {
    let name = inputs.name;
    let labels = |role: &str| {
        json!({
            BOTTLE: name.as_str(), STATE: inputs.state.to_string_lossy(), ROLE: role,
            VERSION: env!("CARGO_PKG_VERSION"),
        })
    };
    let mut project = json!({
        "version": "3.8",
        "services": { "sidecars": bundle(inputs, &labels("sidecars")), "agent": bottle(inputs, &labels("agent")) },
        "networks": {
            "bottle": {
                // The engine takes the gateway of a container on two networks from the one whose name comes first: not this one.
                "name": sealed(name),
                "labels": labels("bottle-network"),
                "driver": "bridge",
                "internal": true,
                "enable_ipv6": false,
                // `internal` alone leaves the host's services reachable on the bridge's own address.
                "driver_opts": { "com.docker.network.bridge.inhibit_ipv4": "true" },
                "ipam": { "config": [{ "subnet": inputs.network.to_string() }] },
            },
            "outside": {
                "name": format!("bottlecap-{name}-outside"),
                "labels": labels("outside-network"),
                "driver": "bridge",
            },
        },
    });
    escape(&mut project);
    format!("{project:#}\n")
}

fn bundle(inputs: &Inputs<'_>, labels: &Value) -> Value {
    let root = inputs.state.join("root");
    let own =
        |path: &str, access| Bind { source: root.join(path), target: Path::new("/").join(path), access };
    let mut volumes = vec![
        own("etc/egress", Access::ReadOnly),
        own("etc/git-gate", Access::ReadOnly),
        own("var/lib/sidecars", Access::Writable),
        own("git", Access::Writable),
    ];
    volumes.push(Bind {
        source: inputs.run_dir.to_path_buf(),
        target: SOCKETS.into(),
        access: Access::Writable,
    });
    let address = inputs.network.bundle().to_string();
    let mut environment = inputs.bundle_environment.clone();
    environment.insert("BOTTLECAP_BOTTLE_ADDR".into(), address.clone());
    environment.insert("BOTTLECAP_CA_INIT".into(), "0".into());
    // Waits for a writer, then hands the reading side on: PID 1 is the supervisor from then on.
    let wait = format!("exec /usr/local/bin/supervisor --secrets-fd 3 3<{SOCKETS}/{SECRETS_PIPE}");
    let mut service = json!({
        "container_name": sidecars(inputs.name),
        "image": inputs.sidecars,
        "labels": labels,
        "entrypoint": ["/bin/sh", "-c", wait],
        "environment": environment,
        "volumes": volumes.iter().map(volume).collect::<Vec<_>>(),
        "tmpfs": ["/run:mode=0755,uid=0,gid=0,size=16m", "/git-gate/creds:mode=0700,uid=64102,gid=64102,size=1m"],
        "networks": { "bottle": { "ipv4_address": address }, "outside": {} },
        "read_only": true,
        "cap_drop": ["ALL"],
        "cap_add": ["SETUID", "SETGID", "KILL"],
        "security_opt": ["no-new-privileges:true"],
        "sysctls": sysctls(),
        "restart": "no",
        "stop_grace_period": "12s",
        "healthcheck": { "test": ["CMD", "/usr/local/bin/supervisor", "health"], "interval": "5s", "timeout": "3s", "retries": 3 },
        "logging": { "driver": "json-file", "options": { "max-size": "16m", "max-file": "2" } },
    });
    bound(&mut service, inputs.limits.engine, BUNDLE_MEMORY, BUNDLE_PROCESSES);
    service
}

fn bottle(inputs: &Inputs<'_>, labels: &Value) -> Value {
    let address = inputs.network.bundle();
    let (user, group) = inputs.user;
    let ours =
        Bind { source: inputs.provisions.to_path_buf(), target: OURS.into(), access: Access::ReadOnly };
    // What reads the system's own place and no variable.
    let system = Bind {
        source: inputs.provisions.join("system"),
        target: "/etc/ssl/certs".into(),
        access: Access::ReadOnly,
    };
    let memory = |path: &str, size: &str| {
        format!("{path}:mode=0755,uid={user},gid={group},size={size},exec,nosuid,nodev")
    };
    let hosts = ["egress", "git-gate", "supervise"].map(|host| format!("{host}:{address}"));
    let volumes: Vec<Value> = [&ours, &system].into_iter().chain(inputs.binds).map(volume).collect();
    let mut service = json!({
        "container_name": agent(inputs.name),
        "hostname": "bottle",
        "image": inputs.image,
        "labels": labels,
        "entrypoint": [PROGRAM, "__stay"],
        "command": [],
        "user": format!("{user}:{group}"),
        "working_dir": inputs.workdir.to_string_lossy(),
        "environment": inputs.environment,
        "volumes": volumes,
        "tmpfs": [
            memory(HOME, "1g"),
            memory("/run", "64m"),
            "/tmp:mode=1777,size=1g,exec,nosuid,nodev",
            "/var/tmp:mode=1777,size=512m,exec,nosuid,nodev",
        ],
        "shm_size": "256m",
        "networks": ["bottle"],
        // Three names and no resolver: a question is a way out like any other.
        "extra_hosts": hosts,
        "dns": [address.to_string()],
        "dns_search": ["."],
        "read_only": true,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "sysctls": sysctls(),
        "depends_on": ["sidecars"],
        "restart": "no",
        "healthcheck": { "disable": true },
        "logging": { "driver": "none" },
    });
    let Bounds { engine, memory, processes, cpu_thousandths } = *inputs.limits;
    bound(&mut service, engine, memory, processes);
    if let Some(thousandths) = cpu_thousandths {
        service["cpus"] = (f64::from(thousandths) / 1000.0).into();
    }
    service
}

/// A bridge has a link-local address on the host whatever its options say; and what stands on two networks is no router.
fn sysctls() -> Value {
    json!({ "net.ipv6.conf.all.disable_ipv6": "1", "net.ipv4.ip_forward": "0" })
}

fn bound(service: &mut Value, limits: Limits, memory: u64, processes: u32) {
    if limits.memory {
        // In bytes, and no more of it in swap.
        service["mem_limit"] = memory.to_string().into();
        service["memswap_limit"] = memory.to_string().into();
    }
    if limits.processes {
        service["pids_limit"] = processes.into();
    }
}

/// In the long form: a path may have a colon in it. A source that is missing is an error, not a new directory.
fn volume(bind: &Bind) -> Value {
    json!({
        "type": "bind",
        "source": bind.source.to_string_lossy(),
        "target": bind.target.to_string_lossy(),
        "read_only": bind.access == Access::ReadOnly,
    })
}

/// Compose reads `$` as the beginning of a variable of the caller's.
fn escape(value: &mut Value) {
    match value {
        Value::String(text) => *text = text.replace('$', "$$"),
        Value::Array(values) => values.iter_mut().for_each(escape),
        Value::Object(fields) => {
            let entries: Map<String, Value> = std::mem::take(fields);
            fields.extend(entries.into_iter().map(|(key, mut value)| {
                escape(&mut value);
                (key, value)
            }));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered() -> Value {
        let bind = |path: &str, access| Bind { source: path.into(), target: path.into(), access };
        let text = render(&Inputs {
            name: &"web".parse().expect("a name"),
            state: Path::new("/state/web"),
            run_dir: Path::new("/run/bottlecap/web"),
            provisions: Path::new("/state/web/agent"),
            image: "an-image",
            sidecars: "bottlecap-sidecars",
            network: Subnet::numbered(7),
            user: (1234, 1235),
            workdir: Path::new("/src/a:b $HOME"),
            binds: &[bind("/src/a:b $HOME", Access::Writable), bind("/opt/tools", Access::ReadOnly)],
            environment: &BTreeMap::from([("PRICE".to_owned(), "$5".to_owned())]),
            bundle_environment: &BTreeMap::new(),
            limits: &Bounds::of(&manifest::Limits::default(), Limits { memory: true, processes: true })
                .expect("nothing is asked for"),
        });
        serde_json::from_str(&text).expect("JSON")
    }

    #[test]
    fn the_agent_has_one_sealed_network_and_no_privilege() {
        let project = rendered();
        let agent = &project["services"]["agent"];
        assert_eq!(agent["networks"], json!(["bottle"]));
        assert_eq!(agent["user"], "1234:1235");
        assert_eq!(agent["cap_drop"], json!(["ALL"]));
        assert_eq!(agent["read_only"], true);
        assert_eq!(agent["security_opt"], json!(["no-new-privileges:true"]));
        assert_eq!(agent["dns"], json!(["10.213.0.114"]));
        assert_eq!(
            agent["extra_hosts"],
            json!(["egress:10.213.0.114", "git-gate:10.213.0.114", "supervise:10.213.0.114"])
        );
        for absent in ["cap_add", "privileged", "devices", "network_mode", "pid", "ipc", "ports"] {
            assert!(agent.get(absent).is_none(), "{absent}");
        }
        let sealed = &project["networks"]["bottle"];
        assert_eq!((&sealed["internal"], &sealed["enable_ipv6"]), (&json!(true), &json!(false)));
        assert_eq!(sealed["driver_opts"]["com.docker.network.bridge.inhibit_ipv4"], "true");
    }

    #[test]
    fn limits_that_cannot_be_kept_are_refused_where_they_stand() {
        let place = Some(("bottle.yaml".to_owned(), 3, 5));
        let wanted = manifest::Limits { memory: Some(1 << 30), place, ..manifest::Limits::default() };
        let refused = Bounds::of(&wanted, Limits { memory: false, processes: true }).expect_err("refused");
        assert!(refused.to_string().starts_with("bottle.yaml:3:5: "), "{refused}");
        assert!(Bounds::of(&wanted, Limits { memory: true, processes: false }).is_ok());
    }

    #[test]
    fn nothing_in_a_value_is_read_as_a_variable_of_the_caller() {
        let project = rendered();
        assert_eq!(project["services"]["agent"]["environment"]["PRICE"], "$$5");
        assert_eq!(project["services"]["agent"]["volumes"][2]["source"], "/src/a:b $$HOME");
    }

    #[test]
    fn a_network_that_this_host_routes_to_is_not_taken() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     tun0\t0000D50A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert!(Subnet::numbered(15).is_routed(table), "10.213.0.240 is in 10.213.0.0/24");
        assert!(!Subnet::numbered(16).is_routed(table), "10.213.1.0 is not");
    }
}
