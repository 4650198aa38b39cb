//! The interfaces.

use std::fmt::Write as _;
use std::fs::File;

use super::config::{Address, Config};
use super::lease::{Kept, PATIENCE};
use super::{MachineError, say, step};
use crate::sys::machine as kernel;

/// Who resolves names; where a server says it, a link to a file that can still be written.
const RESOLVERS: &str = "/etc/resolv.conf";
const LENT_RESOLVERS: &str = "/run/resolv.conf";

/// Brings loopback and the configured interfaces up, and says who resolves names.
pub(super) fn bring_up(config: &Config) -> Result<(), MachineError> {
    step(kernel::link_up("lo"), || "bring lo up".to_owned())?;
    for interface in &config.interfaces {
        let name = interface.name.as_str();
        step(kernel::link_up(name), || format!("bring {name} up"))?;
    }
    if !config.resolvers.is_empty() {
        let mut text = String::new();
        for resolver in &config.resolvers {
            let _ = writeln!(text, "nameserver {resolver}");
        }
        step(std::fs::write(RESOLVERS, text), || format!("write {RESOLVERS}"))?;
    }
    // First, as a question must not carry the address of another interface.
    if let Some(name) = config.leased() {
        borrow(name, config)?;
    }
    for interface in &config.interfaces {
        let name = interface.name.as_str();
        let Address::Static { address, prefix, gateway } = interface.address else { continue };
        step(kernel::set_address(name, address, prefix), || format!("give {name} the address {address}"))?;
        if let Some(gateway) = gateway {
            step(kernel::set_gateway(gateway), || format!("use the gateway {gateway}"))?;
        }
        say(&format!("{name} has {address}/{prefix}"));
    }
    Ok(())
}

/// Has an address lent to this interface, and the process started that keeps it.
fn borrow(name: &str, config: &Config) -> Result<(), MachineError> {
    let resolvers = if config.resolvers.is_empty() {
        let link = || {
            let _ = std::fs::remove_file(RESOLVERS);
            std::os::unix::fs::symlink(LENT_RESOLVERS, RESOLVERS)?;
            File::create(LENT_RESOLVERS)
        };
        Some(step(link(), || format!("make {LENT_RESOLVERS}, with {RESOLVERS} as a link to it"))?)
    } else {
        None
    };
    let kept = Kept::acquire(name, resolvers, PATIENCE).map_err(|source| MachineError::Lease {
        interface: name.to_owned(),
        source,
        then: config.on_failure,
    })?;
    step(kept.keep(), || "start the process that keeps the lease".to_owned())
}
