//! Which files hold a kernel module and what it needs, in the order to load them.

use std::collections::BTreeMap;

/// What every virtual machine here may need; what the kernel has built in, or has not at all, is passed over.
pub(crate) const USUAL: [&str; 7] =
    ["virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "ext4", "button", "evdev"];

/// The contents of a modules.dep.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Modules(BTreeMap<String, Vec<String>>);

impl Modules {
    /// Reads lines of `FILE: NEEDED NEEDED`, where what is needed last is to be loaded first.
    pub(crate) fn parse(text: &str) -> Self {
        let mut modules = BTreeMap::new();
        for line in text.lines() {
            let Some((file, needed)) = line.split_once(':') else { continue };
            let mut files: Vec<String> = needed.split_whitespace().rev().map(str::to_owned).collect();
            files.push(file.to_owned());
            modules.insert(name(file), files);
        }
        Self(modules)
    }

    /// The files of one module, in the order to load them; none where it is not a module of this kernel.
    pub(crate) fn files(&self, module: &str) -> &[String] {
        self.0.get(&module.replace('-', "_")).map_or(&[], Vec::as_slice)
    }
}

/// kernel/drivers/net/virtio-net.ko.xz is virtio_net.
fn name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split(".ko").next().unwrap_or(base).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/char/hw_random/virtio-rng.ko.xz: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
";

    #[test]
    fn what_is_needed_comes_first() {
        let expected = [
            "kernel/drivers/virtio/virtio.ko",
            "kernel/drivers/virtio/virtio_ring.ko",
            "kernel/drivers/char/hw_random/virtio-rng.ko.xz",
        ];
        let modules = Modules::parse(DEP);
        assert_eq!(modules.files("virtio_rng"), expected);
        assert_eq!(modules.files("virtio-rng"), expected);
        assert_eq!(modules.files("virtio"), ["kernel/drivers/virtio/virtio.ko"]);
    }

    #[test]
    fn a_module_that_is_built_in_has_no_file() {
        assert_eq!(Modules::parse(DEP).files("ext4"), [""; 0]);
        assert_eq!(Modules::parse("nonsense\n\n"), Modules::default());
    }
}
