// SPDX-License-Identifier: Apache-2.0 OR MIT
//! From options to a running guest, and back: the order in which everything is made and unmade.
//!
//! ```text
//!  signals, control socket ─► files checked ─► RAM filled ─► VM, vCPUs ─► devices ─► device tree ─► terminal raw
//!     ─► vCPU threads ─► (a reason to end arrives) ─► vCPUs stopped ─► devices stopped ─► terminal
//! ```
//! With `--on-reset restart` a reset goes back to "files checked": memory, VM, vCPUs and devices are made anew, so that
//! nothing of one life is seen in the next.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

use anyhow::Context;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::Bus;
use crate::cli::{OnReset, RunOptions};
use crate::devices::flash::Flash;
use crate::devices::pl011::Pl011;
use crate::devices::rtc::Pl031;
use crate::devices::serial::{Terminal, Uart};
use crate::devices::testdev::TestDevice;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::{Balloon, Giver, Size, request::PAGE};
use crate::devices::virtio::blk::{Blk, disk::Disk};
use crate::devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY};
use crate::devices::watchdog::Watchdog;
use crate::exit::EndReason;
use crate::hypervisor::{self, BootState, Kind, Machine, Parts, Vm};
use crate::layout::{Map, SerialKind, virt};
use crate::loader::Loaded;
use crate::memory::GuestRam;
use crate::terminal::{self, Input, RawMode};
use crate::vcpu::Threads;
use crate::{console, control, fdt, layout, loader, signals};

/// Runs a guest to its end.
pub fn run(options: &RunOptions) -> EndReason {
    try_run(options).unwrap_or_else(|error| EndReason::VmmError(format!("{error:#}")))
}

/// What stays through the resets of a guest.
struct Session {
    end: Sender<EndReason>,
    reasons: Receiver<EndReason>,
    control: Option<control::Server>,
    console: console::Current,
    /// The console thread has been started, if there is to be one.
    console_runs: Cell<bool>,
}

fn try_run(options: &RunOptions) -> anyhow::Result<EndReason> {
    let (end, reasons) = mpsc::channel();
    signals::install(end.clone()).context("can't set up signals")?;
    let control = match &options.control {
        Some(path) => Some(control::Server::start(path, end.clone())?),
        None => None,
    };
    let session = Session {
        end,
        reasons,
        control,
        console: console::Current::default(),
        console_runs: Cell::new(false),
    };
    loop {
        let reason = live(options, &session)?;
        // Threads that were told of the same end say it again; who wants the run to end is heard.
        let said_since = session.reasons.try_iter().find(|r| !matches!(r, EndReason::Reset));
        match (reason, options.on_reset, said_since) {
            (EndReason::Reset, OnReset::Restart, None) => tracing::info!("the guest starts again"),
            (EndReason::Reset, OnReset::Restart, Some(reason)) | (reason, _, _) => return Ok(reason),
        }
    }
}

/// One life of the guest: nothing of it is left but the disks' contents.
fn live(options: &RunOptions, session: &Session) -> anyhow::Result<EndReason> {
    let end = &session.end;
    let disks = open_disks(options)?;
    let mut guest = Guest::load(options)?;
    let variables = guest.variables.take();
    let parts = Parts {
        map: guest.map,
        memory: &guest.memory,
        vcpus: options.cpus,
        features: &options.features,
        spis: options.spis,
        protected: options.protected,
        firmware: guest.firmware.as_ref(),
    };
    let Machine { vm, mut vcpus } = hypervisor::create(options.hypervisor, parts)?;
    if let Some(watch) = options.watch {
        vm.set_watch(watch, options.on_exception)?;
    }
    let balloon = options.balloon.map(|size| balloon(&vm, guest.ram()?, size.0)).transpose()?;
    let watchdog = Watchdog::start(options.cpus, end.clone()).context("can't start the watchdog")?;
    let extras = Extras { variables, disks, balloon, watchdog };
    let mut devices = Devices::new(vm.as_ref(), &guest, extras, options.strict_mmio)?;
    let fdt = guest.place_fdt(options, &devices)?;
    vm.set_fdt(fdt, layout::FDT_MAX_SIZE)?;
    let boot = BootState { entry: guest.loaded.entry, fdt, size: guest.loaded.size };
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
        session.console.set(Some(devices.uart.clone()));
        if !session.console_runs.replace(true) {
            console::start(session.console.clone(), end.clone()).context("can't start the console")?;
        }
    }
    let threads =
        Threads::start(vcpus, &devices.bus, end, Some(&devices.watchdog)).context("can't start the vCPUs")?;
    if let Some(control) = &session.control {
        control.set(Some(control::Subject { vm: vm.clone(), balloon: devices.resize.clone() }));
    }
    // `end` lives, so that there is always a reason to come.
    let reason = session.reasons.recv().context("nobody is left to end the VM")?;
    tracing::debug!("ending: {reason}");
    if let Some(control) = &session.control {
        control.set(None);
    }
    session.console.set(None);
    threads.stop();
    devices.shut_down();
    Ok(reason)
}

fn open_disks(options: &RunOptions) -> anyhow::Result<Vec<Disk>> {
    let room = layout::VIRTIO_MAX as usize - usize::from(options.balloon.is_some());
    if options.disks.len() > room {
        anyhow::bail!("--disk: {} disks, and there is room for {room}", options.disks.len());
    }
    let disks: Result<Vec<_>, _> =
        options.disks.iter().map(|disk| Disk::open(&disk.path, disk.read_only)).collect();
    Ok(disks?)
}

/// What the memory of a protected guest is a file of, where there are such.
fn guest_memory(options: &RunOptions, size: u64) -> anyhow::Result<Option<OwnedFd>> {
    if options.protected || options.private_memory {
        hypervisor::guest_memory(options.hypervisor, size)
    } else {
        Ok(None)
    }
}

/// A balloon's size in pages, for a guest with so many bytes of RAM.
fn balloon_pages(bytes: u64, ram: u64) -> anyhow::Result<u32> {
    if bytes >= ram || !bytes.is_multiple_of(PAGE) {
        anyhow::bail!(
            "a balloon of {}K: must be whole pages, and less than the guest's {}M",
            bytes >> 10,
            ram >> 20
        );
    }
    Ok(u32::try_from(bytes / PAGE)?)
}

/// A balloon that should take `bytes` of the guest's RAM, and how to change that.
fn balloon(vm: &Arc<dyn Vm>, ram: &GuestRam, bytes: u64) -> anyhow::Result<(Balloon, Arc<Size>)> {
    let size = Size::new(balloon_pages(bytes, ram.size()).context("--balloon")?);
    if !vm.can_discard() {
        anyhow::bail!("--balloon: this hypervisor or its driver can't take pages back from a guest");
    }
    let (vm, ram) = (vm.clone(), ram.clone());
    let give: Giver = Arc::new(move |run| {
        if !ram.drop_pages(run.address, run.size) {
            tracing::debug!("balloon: {run:x?} is no RAM");
        } else if let Err(error) = vm.discard(run.address, run.size) {
            tracing::warn!("balloon: {error:#}");
        }
    });
    Ok((Balloon::new(size.clone(), give), size))
}

/// What the control socket does to a balloon behind `transport`.
fn resize(transport: Arc<MmioTransport>, size: Arc<Size>, ram: u64) -> control::Resize {
    Arc::new(move |bytes| {
        if let Some(bytes) = bytes {
            size.set_target(balloon_pages(bytes, ram)?);
            transport.config_change();
        }
        let kib = |pages: u32| u64::from(pages) * (PAGE >> 10);
        Ok(format!("target {}K, actual {}K", kib(size.target()), kib(size.actual())))
    })
}

/// What is in the guest's memory before it runs.
struct Guest {
    map: &'static Map,
    /// RAM first.
    memory: Vec<GuestRam>,
    /// Room for a protected VM's firmware.
    firmware: Option<GuestRam>,
    /// What such a VM shares with us: first address and length.
    shared: Option<(u64, u64)>,
    loaded: Loaded,
    /// The firmware's variables, until the bus has them.
    variables: Option<Flash>,
}

impl Guest {
    /// Makes the memory, and loads kernel or firmware.
    fn load(options: &RunOptions) -> anyhow::Result<Self> {
        if let Some(firmware) = &options.firmware {
            let map = &virt::VIRT;
            let flash = GuestRam::new(virt::FIRMWARE.base, virt::FIRMWARE.size)?;
            loader::load_firmware(&flash, firmware)?;
            let mut memory = vec![GuestRam::new(map.ram_base, options.mem.0)?, flash];
            let mut variables = None;
            if let Some(path) = &options.variables {
                let flash = Flash::open(path, virt::VARIABLES.size)
                    .with_context(|| format!("--variables {}", path.display()))?;
                variables = Some(flash);
            } else {
                memory.push(GuestRam::new(virt::VARIABLES.base, virt::VARIABLES.size)?);
            }
            let loaded = Loaded { entry: virt::FIRMWARE.base, size: 0, initrd: None };
            return Ok(Self { map, memory, firmware: None, shared: None, loaded, variables });
        }
        let kernel = options.kernel.as_deref().context("--kernel or --firmware must be given")?;
        let ram = match guest_memory(options, options.mem.0)? {
            Some(file) => GuestRam::in_file(layout::CROSVM.ram_base, options.mem.0, &file)?,
            None => GuestRam::new(layout::CROSVM.ram_base, options.mem.0)?,
        };
        let loaded = loader::load(&ram, kernel, options.initrd.as_deref())?;
        let mut guest = Self {
            map: &layout::CROSVM,
            memory: vec![ram],
            firmware: None,
            shared: None,
            loaded,
            variables: None,
        };
        // KVM has no firmware for protected VMs, and its guests choose themselves what they share.
        if options.protected && options.hypervisor == Kind::Gzvm {
            let room = layout::PROTECTED_FIRMWARE;
            let file = guest_memory(options, room.size)?;
            guest.firmware = Some(GuestRam::slot(room.base, room.size, file.as_ref().map(OwnedFd::as_fd))?);
            guest.shared = Some(shared_range(options.shared.0, options.mem.0)?);
        }
        Ok(guest)
    }

    fn ram(&self) -> anyhow::Result<&GuestRam> {
        self.memory.first().context("a guest without RAM")
    }

    /// Writes the device tree into RAM; returns where it is: at the end for a kernel, at the start
    /// for firmware, which looks there.
    fn place_fdt(&self, options: &RunOptions, devices: &Devices) -> anyhow::Result<u64> {
        let ram = self.ram()?;
        let blob = fdt::build(&fdt::Config {
            map: self.map,
            flash: options.variables.is_some(),
            vcpus: options.cpus,
            ram_size: ram.size(),
            cmdline: if self.map.has_flash() { "" } else { &options.cmdline },
            initrd: self.loaded.initrd,
            shared: self.shared,
            virtio_devices: u32::try_from(devices.virtio.len()).unwrap_or(0),
            seed: seed(options.seed)?,
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

/// What a guest gets only if it is asked for.
struct Extras {
    variables: Option<Flash>,
    disks: Vec<Disk>,
    balloon: Option<(Balloon, Arc<Size>)>,
    watchdog: Arc<Watchdog>,
}

/// The devices, wired to the bus and the virtual GIC.
struct Devices {
    bus: Arc<Bus>,
    uart: Arc<dyn Terminal>,
    output: ConsoleOutput,
    watchdog: Arc<Watchdog>,
    virtio: Vec<Arc<MmioTransport>>,
    resize: Option<control::Resize>,
}

impl Devices {
    fn new(vm: &dyn Vm, guest: &Guest, extras: Extras, strict_mmio: bool) -> anyhow::Result<Self> {
        let map = guest.map;
        let Extras { variables, disks, balloon, watchdog } = extras;
        let mut bus = Bus::new(strict_mmio);
        let line = interrupt(vm, map.serial_spi)?;
        let output = ConsoleOutput::stdout().context("standard output")?;
        let uart: Arc<dyn Terminal> = match map.serial_kind {
            SerialKind::Ns16550 => {
                let uart = Arc::new(Uart::new(line, Box::new(output.clone()))?);
                bus.insert(map.serial, uart.clone())?;
                uart
            }
            SerialKind::Pl011 => {
                let uart = Arc::new(Pl011::new(line, Box::new(output.clone()))?);
                bus.insert(map.serial, uart.clone())?;
                uart
            }
        };
        bus.insert(map.rtc, Arc::new(Pl031::new(interrupt(vm, map.rtc_spi)?)?))?;
        if let Some(flash) = variables {
            bus.insert(virt::VARIABLES, Arc::new(flash))?;
        }
        if !map.has_flash() {
            bus.insert(layout::WATCHDOG, watchdog.clone())?;
            bus.insert(layout::TEST_DEVICE, Arc::new(TestDevice))?;
        }
        let mut virtio = Vec::with_capacity(disks.len());
        let disks = disks.into_iter().map(|disk| Box::new(Blk::new(disk)) as Box<dyn VirtioDevice>);
        // Behind the disks, so that they keep their places.
        let (balloon, size) = balloon.unzip();
        let balloon = balloon.map(|balloon| Box::new(balloon) as Box<dyn VirtioDevice>);
        for (index, device) in (0..).zip(disks.chain(balloon)) {
            let device = attach_virtio(vm, guest, index, device)?;
            bus.insert(map.virtio(index), device.clone())?;
            virtio.push(device);
        }
        let ram = guest.ram()?.size();
        let resize = size.zip(virtio.last()).map(|(size, transport)| resize(transport.clone(), size, ram));
        Ok(Self { bus: Arc::new(bus), uart, output, watchdog, virtio, resize })
    }

    fn shut_down(&mut self) {
        self.watchdog.shut_down();
        self.virtio.iter().for_each(|device| device.shut_down());
        self.output.finish_line();
    }
}

/// Puts `device` behind virtio-mmio registers: an irqfd for its interrupt, an ioeventfd for the
/// notification of a single queue.
fn attach_virtio(
    vm: &dyn Vm,
    guest: &Guest,
    index: u32,
    device: Box<dyn VirtioDevice>,
) -> anyhow::Result<Arc<MmioTransport>> {
    let line = interrupt(vm, guest.map.virtio_spi(index))?;
    let transport =
        Arc::new(MmioTransport::new(device, guest.ram()?.memory().clone(), line, guest.shared.is_some())?);
    let address = guest.map.virtio(index).base + QUEUE_NOTIFY;
    // gzvm knows one eventfd an address, whatever the value. The queues of a device that has several are told
    // by the transport, after an exit: only devices off the hot path have.
    if let [notify] = transport.notifications() {
        vm.register_ioeventfd(notify, address, None)?;
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
    fn balloons_leave_something() {
        assert_eq!(balloon_pages(0, 8 << 20).unwrap(), 0);
        assert_eq!(balloon_pages((8 << 20) - 4096, 8 << 20).unwrap(), 2047);
        for wrong in [8 << 20, u64::MAX, 4095, 1024] {
            assert!(balloon_pages(wrong, 8 << 20).is_err(), "{wrong}");
        }
    }

    #[test]
    fn seeds_repeat_or_differ() {
        assert_eq!(seed(Some(1)).unwrap(), seed(Some(1)).unwrap());
        assert_ne!(seed(Some(1)).unwrap(), seed(Some(2)).unwrap());
        assert_ne!(seed(None).unwrap(), seed(None).unwrap());
        assert_ne!(seed(Some(0)).unwrap()[..8], [0; 8]);
    }
}
