//! The interfaces.

use std::fmt::Write as _;
use std::path::Path;

use super::config::{Address, Config};
use super::{MachineError, say, step};
use crate::sys::machine as kernel;

/// Brings loopback and the configured interfaces up, and says who resolves names.
pub(super) fn bring_up(config: &Config) -> Result<(), MachineError> {
    step(kernel::link_up("lo"), || "bring lo up".to_owned())?;
    for interface in &config.interfaces {
        let name = interface.name.as_str();
        step(kernel::link_up(name), || format!("bring {name} up"))?;
        let Address::Static { address, prefix, gateway } = interface.address;
        step(kernel::set_address(name, address, prefix), || format!("give {name} the address {address}"))?;
        if let Some(gateway) = gateway {
            step(kernel::set_gateway(gateway), || format!("use the gateway {gateway}"))?;
        }
        say(&format!("{name} has {address}/{prefix}"));
    }
    if !config.resolvers.is_empty() {
        let mut text = String::new();
        for resolver in &config.resolvers {
            let _ = writeln!(text, "nameserver {resolver}");
        }
        step(std::fs::write(Path::new("/etc/resolv.conf"), text), || "write /etc/resolv.conf".to_owned())?;
    }
    Ok(())
}
