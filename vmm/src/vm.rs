// SPDX-License-Identifier: Apache-2.0 OR MIT
//! From options to a running guest, and back: the order in which everything is made and unmade.
//!
//! ```text
//!  signals ─► files checked ─► RAM filled ─► VM, vCPUs ─► devices ─► device tree ─► terminal raw
//!     ─► vCPU threads ─► (a reason to end arrives) ─► vCPUs stopped ─► devices stopped ─► terminal
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use anyhow::Context;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::Bus;
use crate::cli::RunOptions;
use crate::devices::rtc::Pl031;
use crate::devices::serial::Uart;
use crate::devices::testdev::TestDevice;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::blk::{Blk, disk::Disk};
use crate::devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY};
use crate::exit::EndReason;
use crate::hypervisor::{self, BootState, Machine, Vm};
use crate::memory::GuestRam;
use crate::terminal::{self, Input, RawMode};
use crate::vcpu::Threads;
use crate::{console, fdt, layout, loader, signals};

/// Runs a guest to its end.
pub fn run(options: &RunOptions) -> EndReason {
    try_run(options).unwrap_or_else(|error| EndReason::VmmError(format!("{error:#}")))
}

fn try_run(options: &RunOptions) -> anyhow::Result<EndReason> {
    let (end, reasons) = mpsc::channel();
    signals::install(end.clone()).context("can't set up signals")?;

    let disks = open_disks(options)?;
    let ram = GuestRam::new(options.mem.0)?;
    let loaded = loader::load(&ram, &options.kernel, options.initrd.as_deref())?;

    let Machine { vm, mut vcpus } =
        hypervisor::create(options.hypervisor, &ram, options.cpus, &options.features)?;
    let mut devices = Devices::new(vm.as_ref(), &ram, disks, options.strict_mmio)?;
    let fdt = place_fdt(options, &ram, loaded.initrd, &devices)?;
    vm.set_fdt(fdt, layout::FDT_MAX_SIZE)?;
    let boot = BootState { entry: loaded.entry, fdt };
    for (id, vcpu) in vcpus.iter_mut().enumerate() {
        vcpu.set_boot_state((id == 0).then_some(boot))?;
    }

    let input = terminal::input();
    let _raw = match input {
        Input::Terminal => Some(RawMode::enter().context("standard input: can't make the terminal raw")?),
        Input::Background | Input::Other => None,
    };
    if input == Input::Background {
        tracing::info!("in the background: the guest's console gets no input");
    } else {
        console::start(devices.uart.clone(), end.clone()).context("can't start the console")?;
    }
    let threads = Threads::start(vcpus, &devices.bus, &end).context("can't start the vCPUs")?;
    // `end` lives, so that there is always a reason to come.
    let reason = reasons.recv().context("nobody is left to end the VM")?;
    tracing::debug!("ending: {reason}");
    threads.stop();
    devices.shut_down();
    Ok(reason)
}

fn open_disks(options: &RunOptions) -> anyhow::Result<Vec<Disk>> {
    if options.disks.len() > layout::VIRTIO_MAX as usize {
        anyhow::bail!("--disk: {} disks, and there is room for {}", options.disks.len(), layout::VIRTIO_MAX);
    }
    let disks: Result<Vec<_>, _> =
        options.disks.iter().map(|disk| Disk::open(&disk.path, disk.read_only)).collect();
    Ok(disks?)
}

/// Writes the device tree into RAM; returns where it is.
fn place_fdt(
    options: &RunOptions,
    ram: &GuestRam,
    initrd: Option<(u64, u64)>,
    devices: &Devices,
) -> anyhow::Result<u64> {
    let blob = fdt::build(&fdt::Config {
        vcpus: options.cpus,
        ram_size: ram.size(),
        cmdline: &options.cmdline,
        initrd,
        virtio_devices: u32::try_from(devices.virtio.len()).unwrap_or(0),
        seed: seed(options.seed)?,
    })
    .context("--cmdline: can't be put into a device tree")?;
    if blob.len() as u64 > layout::FDT_MAX_SIZE {
        anyhow::bail!("--cmdline: too long for a device tree");
    }
    let address = layout::fdt_address(ram.size());
    ram.memory()
        .write_slice(&blob, GuestAddress(address))
        .context("the device tree does not fit into RAM")?;
    Ok(address)
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

/// The devices, wired to the bus and the virtual GIC.
struct Devices {
    bus: Arc<Bus>,
    uart: Arc<Uart>,
    output: ConsoleOutput,
    virtio: Vec<Arc<MmioTransport>>,
}

impl Devices {
    fn new(vm: &dyn Vm, ram: &GuestRam, disks: Vec<Disk>, strict_mmio: bool) -> anyhow::Result<Self> {
        let mut bus = Bus::new(strict_mmio);
        let line = interrupt(vm, layout::SERIAL_SPI)?;
        let output = ConsoleOutput::stdout().context("standard output")?;
        let uart = Arc::new(Uart::new(line, Box::new(output.clone()))?);
        bus.insert(layout::SERIAL, uart.clone())?;
        bus.insert(layout::RTC, Arc::new(Pl031::new()))?;
        bus.insert(layout::TEST_DEVICE, Arc::new(TestDevice))?;
        let mut virtio = Vec::with_capacity(disks.len());
        for (index, disk) in (0..).zip(disks) {
            let device = attach_virtio(vm, ram, index, Box::new(Blk::new(disk)))?;
            bus.insert(layout::virtio(index), device.clone())?;
            virtio.push(device);
        }
        Ok(Self { bus: Arc::new(bus), uart, output, virtio })
    }

    fn shut_down(&mut self) {
        self.virtio.iter().for_each(|device| device.shut_down());
        self.output.finish_line();
    }
}

/// Puts `device` behind virtio-mmio registers: an irqfd for its interrupt, an ioeventfd for each
/// queue's notification.
fn attach_virtio(
    vm: &dyn Vm,
    ram: &GuestRam,
    index: u32,
    device: Box<dyn VirtioDevice>,
) -> anyhow::Result<Arc<MmioTransport>> {
    let line = interrupt(vm, layout::virtio_spi(index))?;
    let transport = Arc::new(MmioTransport::new(device, ram.memory().clone(), line)?);
    let address = layout::virtio(index).base + QUEUE_NOTIFY;
    let notifications = transport.notifications();
    for (queue, notify) in (0..).zip(notifications) {
        // A single queue's notification needs no comparison.
        let value = (notifications.len() > 1).then_some(queue);
        vm.register_ioeventfd(notify, address, value)?;
    }
    Ok(transport)
}

/// An eventfd that is SPI number `spi`.
fn interrupt(vm: &dyn Vm, spi: u32) -> anyhow::Result<EventFd> {
    let line = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).context("no eventfd for an interrupt")?;
    vm.register_irqfd(&line, spi)?;
    Ok(line)
}

/// Standard output without Rust's line buffer (a guest's prompt has no newline), which knows
/// whether it stands at the beginning of a line.
#[derive(Clone)]
struct ConsoleOutput {
    file: Arc<File>,
    mid_line: Arc<AtomicBool>,
}

impl ConsoleOutput {
    fn stdout() -> io::Result<Self> {
        let file = io::stdout().as_fd().try_clone_to_owned()?.into();
        Ok(Self { file: Arc::new(file), mid_line: Arc::default() })
    }

    /// Ends the line that the guest has begun, so that what we say does not stand behind it.
    fn finish_line(&mut self) {
        if self.mid_line.load(Ordering::Relaxed) {
            // A console that has gone away is no matter by now.
            let _ = self.write_all(b"\r\n");
        }
    }
}

impl Write for ConsoleOutput {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = self.file.as_ref().write(data)?;
        if let Some(last) = data.get(..count).and_then(<[u8]>::last) {
            self.mid_line.store(*last != b'\n', Ordering::Relaxed);
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_begun_is_ended() {
        let (mut reader, writer) = io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        let mut output = ConsoleOutput { file: Arc::new(file), mid_line: Arc::default() };
        output.finish_line();
        output.write_all(b"done\n").unwrap();
        output.finish_line();
        output.write_all(b"prompt # ").unwrap();
        output.finish_line();
        output.finish_line();
        drop(output);
        let mut all = String::new();
        io::Read::read_to_string(&mut reader, &mut all).unwrap();
        assert_eq!(all, "done\nprompt # \r\n");
    }

    #[test]
    fn seeds_repeat_or_differ() {
        assert_eq!(seed(Some(1)).unwrap(), seed(Some(1)).unwrap());
        assert_ne!(seed(Some(1)).unwrap(), seed(Some(2)).unwrap());
        assert_ne!(seed(None).unwrap(), seed(None).unwrap());
        assert_ne!(seed(Some(0)).unwrap()[..8], [0; 8]);
    }
}
