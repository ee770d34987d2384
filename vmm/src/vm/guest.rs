// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is in a guest's memory before it runs.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::devices::Devices;
use crate::cli::RunOptions;
use crate::devices::flash::Flash;
use crate::devices::virtio::balloon::request::PAGE;
use crate::hypervisor::Kind;
use crate::layout::{Map, virt};
use crate::loader::Loaded;
use crate::memory::GuestRam;
use crate::rpc::options::Plan;
use crate::{fdt, hypervisor, layout, loader};

/// What is in the guest's memory before it runs.
pub struct Guest {
    pub map: &'static Map,
    /// RAM first.
    pub memory: Vec<GuestRam>,
    /// Room for a protected VM's firmware.
    pub firmware: Option<GuestRam>,
    /// What such a VM shares with us: first address and length.
    pub shared: Option<(u64, u64)>,
    pub loaded: Loaded,
    /// The firmware's variables, until the bus has them.
    pub variables: Option<Flash>,
}

impl Guest {
    /// Makes the memory, and loads kernel or firmware.
    pub fn load(options: &RunOptions) -> anyhow::Result<Self> {
        if let Some(firmware) = &options.boot.firmware {
            let map = &virt::VIRT;
            let flash = GuestRam::new(virt::FIRMWARE.base, virt::FIRMWARE.size)?;
            loader::load_firmware(&flash, firmware)?;
            let mut memory = vec![ram(options, map.ram_base)?, flash];
            let mut variables = None;
            if let Some(path) = &options.boot.variables {
                let flash = Flash::open(path, virt::VARIABLES.size)
                    .with_context(|| format!("--variables {}", path.display()))?;
                variables = Some(flash);
            } else {
                memory.push(GuestRam::new(virt::VARIABLES.base, virt::VARIABLES.size)?);
            }
            let loaded = Loaded { entry: virt::FIRMWARE.base, size: 0, initrd: None };
            return Ok(Self { map, memory, firmware: None, shared: None, loaded, variables });
        }
        let kernel = options.boot.kernel.as_deref().context("--kernel or --firmware must be given")?;
        let ram = ram(options, layout::CROSVM.ram_base)?;
        let loaded = loader::load(&ram, kernel, options.boot.initrd.as_deref())?;
        let mut guest = Self {
            map: &layout::CROSVM,
            memory: vec![ram],
            firmware: None,
            shared: None,
            loaded,
            variables: None,
        };
        // KVM has no firmware for protected VMs, and its guests choose themselves what they share.
        if options.boot.protected && options.machine.hypervisor == Kind::Gzvm {
            let room = layout::PROTECTED_FIRMWARE;
            let file = guest_memory(options, room.size)?;
            guest.firmware = Some(GuestRam::slot(room.base, room.size, file.as_ref().map(OwnedFd::as_fd))?);
            guest.shared = Some(shared_range(options.boot.shared.0, options.machine.mem.0)?);
        }
        Ok(guest)
    }

    pub fn ram(&self) -> anyhow::Result<&GuestRam> {
        self.memory.first().context("a guest without RAM")
    }

    /// What devices reach of it: of a protected VM, the part that it shares.
    pub fn device_memory(&self) -> anyhow::Result<GuestMemoryMmap> {
        let ram = self.ram()?;
        Ok(match self.shared {
            Some((address, size)) => ram.part(address, size)?,
            None => ram.memory().clone(),
        })
    }

    /// Writes the device tree into RAM; returns where it is: at the end for a kernel, at the start
    /// for firmware, which looks there.
    pub fn place_fdt(
        &self,
        options: &RunOptions,
        devices: &Devices,
        rpc: Option<&Plan>,
    ) -> anyhow::Result<u64> {
        let ram = self.ram()?;
        let blob = fdt::build(&fdt::Config {
            map: self.map,
            flash: options.boot.variables.is_some(),
            vcpus: options.machine.cpus,
            ram_size: ram.size(),
            cmdline: if self.map.has_flash() { "" } else { &options.boot.cmdline },
            initrd: self.loaded.initrd,
            shared: self.shared,
            virtio_devices: u32::try_from(devices.virtio.len()).unwrap_or(0),
            transport: options.devices.virtio_transport,
            rpc: rpc.map_or(&[], |plan| &plan.places),
            seed: seed(options.machine.seed)?,
        })
        .context("--cmdline: can't be put into a device tree")?;
        if blob.len() as u64 > layout::FDT_MAX_SIZE {
            anyhow::bail!("--cmdline: too long for a device tree");
        }
        let address = if self.map.has_flash() { self.map.ram_base } else { layout::fdt_address(ram.size()) };
        ram.memory()
            .write_slice(&blob, GuestAddress(address))
            .context("the device tree does not fit into RAM")?;
        Ok(address)
    }
}

/// What a protected guest shares with us: below the device tree.
fn shared_range(size: u64, ram: u64) -> anyhow::Result<(u64, u64)> {
    let top = layout::fdt_address(ram);
    if size == 0 || !size.is_multiple_of(PAGE) || size > (top - layout::RAM_BASE) / 2 {
        anyhow::bail!("--shared {}K: must be whole pages, and at most half of the RAM", size >> 10);
    }
    Ok((top - size, size))
}

/// From the host's entropy, or repeatable.
fn seed(number: Option<u64>) -> anyhow::Result<[u8; 64]> {
    let mut seed = [0_u8; 64];
    match number {
        // SplitMix64: spreads a small number over all bits.
        Some(mut state) => {
            for word in seed.chunks_exact_mut(8) {
                state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                let mut z = state;
                z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
                word.copy_from_slice(&(z ^ z >> 31).to_le_bytes());
            }
        }
        None => {
            let flags = rustix::rand::GetRandomFlags::empty();
            let count = rustix::rand::getrandom(&mut seed[..], flags).context("no entropy for the guest")?;
            anyhow::ensure!(count == seed.len(), "no entropy for the guest");
        }
    }
    Ok(seed)
}

/// The RAM.
fn ram(options: &RunOptions, base: u64) -> anyhow::Result<GuestRam> {
    let size = options.machine.mem.0;
    Ok(match guest_memory(options, size)? {
        Some(file) => GuestRam::in_file(base, size, &file)?,
        None if options.devices.in_other_programs() => GuestRam::shareable(base, size)?,
        None => GuestRam::new(base, size)?,
    })
}

/// What the memory of a protected guest is a file of, where there are such.
fn guest_memory(options: &RunOptions, size: u64) -> anyhow::Result<Option<OwnedFd>> {
    if options.boot.protected || options.machine.private_memory {
        hypervisor::guest_memory(options.machine.hypervisor, size)
    } else {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_repeat_or_differ() {
        assert_eq!(seed(Some(1)).unwrap(), seed(Some(1)).unwrap());
        assert_ne!(seed(Some(1)).unwrap(), seed(Some(2)).unwrap());
        assert_ne!(seed(None).unwrap(), seed(None).unwrap());
        assert_ne!(seed(Some(0)).unwrap()[..8], [0; 8]);
    }
}
