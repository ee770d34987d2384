// SPDX-License-Identifier: GPL-2.0-only
//! Plays crosvm against `/dev/gzvm`: the same ioctls with the same arguments in the same order, and around them as much of its
//! machine as a stock Linux needs.
//!
//! ```text
//! open ─► CREATE_VM ─► memory regions by rising address ─► capabilities ─► GIC ─► vCPUs ─► irqfds ─► SET_DTB_CONFIG
//!   ─► a thread a vCPU: registers, barrier, RUN of all ─► ioeventfds when the guest starts its device ─► a region comes and goes
//!   ─► first vCPU that ends: kick of all, threads joined, files closed: vCPUs, eventfds, VM, device
//! ```
//!
//! What stands for crosvm here knows nothing of our extensions: no capability but the public ones is asked for.

mod fdt;
mod pci;
mod uart;
mod vcpu;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::Duration;

use gzvm_abi::hypercall::{cap, purpose};
use gzvm_abi::ioctl::{
    self, CreateDevice, DtbConfig, EnableCap, IRQFD_DEASSIGN, IRQFD_RESAMPLE, Irqfd, UserspaceMemoryRegion,
};
use libc::{EFAULT, EINVAL, EOPNOTSUPP};

use crate::sys::{self, Mapping, errno, eventfd};
use crate::{Check, ensure};
use vcpu::End;

/// Guest address of RAM.
const RAM: u64 = 0x8000_0000;
/// Bytes of RAM.
const RAM_SIZE: u64 = 256 << 20;
/// Bytes kept for the device tree, and what SET_DTB_CONFIG is told.
const FDT_SIZE: u64 = 2 << 20;
const INITRD_ALIGN: u64 = 16 << 20;
const GIC_DIST: u64 = 0x3FFF_0000;
const GIC_DIST_SIZE: u64 = 0x1_0000;
const GIC_REDIST_SIZE: u64 = 0x2_0000;
/// Where the platform's devices begin that come at run time: 1 GiB behind RAM is for something else.
const HIGH: u64 = RAM + RAM_SIZE + 0x4000_0000;
/// The protected firmware's region.
const PVMFW: u64 = 0x7FC0_0000;
const PVMFW_SIZE: u64 = 4 << 20;

/// SPI numbers.
const SERIAL_1_3: u32 = 0;
const RTC: u32 = 1;
const SERIAL_2_4: u32 = 2;
const PCI_INTA: u32 = 4;
const WATCHDOG: u32 = 15;

/// The files of a VM, in the order in which they are closed.
struct Vm {
    fd: OwnedFd,
    // Closed last, as crosvm's hypervisor object is.
    device: File,
}

impl Vm {
    /// CREATE_VM, and a region a piece of memory.
    fn new(regions: &[(u64, &Mapping, u32)]) -> io::Result<Self> {
        let device = sys::device()?;
        let fd = sys::owned(sys::ioctl(&device, ioctl::CREATE_VM, 0)?);
        let vm = Self { fd, device };
        for (slot, (address, memory, flags)) in (0..).zip(regions) {
            vm.region(slot, *flags, *address, memory.len() as u64, memory.address())?;
        }
        Ok(vm)
    }

    fn region(&self, slot: u32, flags: u32, gpa: u64, size: u64, address: u64) -> io::Result<()> {
        let mut region = UserspaceMemoryRegion {
            slot,
            flags,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: address,
        };
        sys::ioctl_with(&self.fd, ioctl::SET_USER_MEMORY_REGION, &mut region).map(drop)
    }

    /// A capability whose answer is in place; what the ioctl returns is not looked at.
    fn has(&self, capability: u64) -> bool {
        let mut value = capability;
        let _ = sys::ioctl_with(&self.fd, ioctl::CHECK_EXTENSION, &mut value);
        value == 1
    }

    /// The number of address bits is asked for with a number where a pointer belongs: 40 bits it is, then.
    fn address_bits(&self) -> Result<u32, String> {
        let error = errno(&sys::ioctl(&self.device, ioctl::CHECK_EXTENSION, cap::VM_GPA_SIZE));
        ensure!(error == EFAULT, "address bits: errno {error}");
        Ok(40)
    }

    fn gic(&self, vcpus: u64) -> io::Result<()> {
        let redistributors = GIC_DIST - GIC_REDIST_SIZE * vcpus;
        // The size is one redistributor's, however many there are.
        for (dev_type, dev_addr, dev_reg_size) in [
            (ioctl::DEVICE_VGIC_V3_DIST, GIC_DIST, GIC_DIST_SIZE),
            (ioctl::DEVICE_VGIC_V3_REDIST, redistributors, GIC_REDIST_SIZE),
        ] {
            let mut device = CreateDevice {
                dev_type,
                id: 0,
                flags: 0,
                dev_addr,
                dev_reg_size,
                attr_addr: 0,
                attr_size: 0,
            };
            sys::ioctl_with(&self.fd, ioctl::CREATE_DEVICE, &mut device)?;
        }
        Ok(())
    }

    fn irqfd(&self, gsi: u32, event: &File, resample: Option<&File>) -> io::Result<()> {
        let flags = if resample.is_some() { IRQFD_RESAMPLE } else { 0 };
        let resamplefd = resample.map_or(0, |file| file.as_raw_fd() as u32);
        let mut args = Irqfd { fd: event.as_raw_fd() as u32, gsi, flags, resamplefd, pad: [0; 16] };
        sys::ioctl_with(&self.fd, ioctl::IRQFD, &mut args).map(drop)
    }

    fn no_irqfd(&self, gsi: u32, event: &File) -> io::Result<()> {
        let fd = event.as_raw_fd() as u32;
        let mut args = Irqfd { fd, gsi, flags: IRQFD_DEASSIGN, resamplefd: 0, pad: [0; 16] };
        sys::ioctl_with(&self.fd, ioctl::IRQFD, &mut args).map(drop)
    }

    fn protected(&self, args: [u64; 5]) -> io::Result<EnableCap> {
        let mut request = EnableCap { cap: cap::PROTECTED_VM, args };
        sys::ioctl_with(&self.fd, ioctl::ENABLE_CAP, &mut request).map(|_| request)
    }
}

/// `gzvm-check crosvm VCPUS KERNEL INITRD COMMAND...`: boots it, types a command at each prompt of its shell.
pub fn main(mut args: impl Iterator<Item = String>) -> ExitCode {
    let result = match (args.next(), args.next(), args.next()) {
        (Some(vcpus), Some(kernel), Some(initrd)) => match vcpus.parse() {
            Ok(vcpus) => boot(vcpus, &kernel, &initrd, args.collect()),
            Err(_) => Err(format!("not a number: {vcpus}")),
        },
        _ => Err("crosvm VCPUS KERNEL INITRD COMMAND...".to_owned()),
    };
    match result {
        Ok(End::Stop) => ExitCode::SUCCESS,
        Ok(End::Reset) => ExitCode::from(32),
        Ok(End::Crash) => ExitCode::from(33),
        Ok(End::GuestPanic) => ExitCode::from(34),
        Err(reason) => {
            println!("crosvm: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn boot(vcpus: u64, kernel: &str, initrd: &str, commands: Vec<String>) -> Result<End, String> {
    let read = |path: &str| std::fs::read(path).map_err(|e| format!("{path}: {e}"));
    let (kernel, initrd) = (read(kernel)?, read(initrd)?);
    let ram = Arc::new(Mapping::new(RAM_SIZE as usize, true));

    let vm = Vm::new(&[(RAM, &ram, purpose::GUEST_MEM)]).map_err(|e| format!("VM: {e}"))?;
    if !vm.has(cap::PROTECTED_VM) {
        return Err("protected VMs: not even known".to_owned());
    }
    vm.address_bits()?;
    vm.gic(vcpus).map_err(|e| format!("GIC: {e}"))?;
    let files: io::Result<Vec<OwnedFd>> =
        (0..vcpus).map(|id| sys::ioctl(&vm.fd, ioctl::CREATE_VCPU, id).map(sys::owned)).collect();
    let files = files.map_err(|e| format!("vCPU: {e}"))?;

    let vm = Arc::new(vm);
    let devices = Devices::new(&vm, &ram, commands).map_err(|e| format!("devices: {e}"))?;
    let fdt = RAM + RAM_SIZE - FDT_SIZE;
    let (entry, initrd) = load(&ram, &kernel, &initrd)?;
    let tree = fdt::build(vcpus as u32, initrd).map_err(|e| format!("device tree: {e}"))?;
    ram.write((fdt - RAM) as usize, &tree);
    let mut config = DtbConfig { dtb_addr: fdt, dtb_size: FDT_SIZE };
    sys::ioctl_with(&vm.fd, ioctl::SET_DTB_CONFIG, &mut config)
        .map_err(|e| format!("SET_DTB_CONFIG: {e}"))?;

    sys::handle_kicks();
    let (barrier, stop) = (Arc::new(Barrier::new(vcpus as usize)), Arc::new(AtomicBool::new(false)));
    let (sender, ends) = mpsc::channel();
    let mut threads = Vec::new();
    for (id, file) in files.into_iter().enumerate() {
        let vcpu = vcpu::Vcpu::new(file, id, devices.bus(), (entry, fdt));
        threads.push(vcpu.start(Arc::clone(&barrier), Arc::clone(&stop), sender.clone()));
    }
    // At run time: memory for a device of its own comes and goes, and the control socket kicks everybody.
    hotplug(&vm)?;
    let mut kicks = 0;
    let end = loop {
        if let Ok(end) = ends.recv_timeout(Duration::from_millis(250)) {
            break end;
        }
        kicks += 1;
        threads.iter().for_each(|thread| thread.kick());
    };
    stop.store(true, Ordering::SeqCst);
    while threads.iter().any(|thread| !thread.is_finished()) {
        threads.iter().for_each(|thread| thread.kick());
        thread::sleep(Duration::from_millis(10));
    }
    let clean = threads.into_iter().all(vcpu::Thread::join);
    let report = devices.shut_down(&vm).map_err(|e| format!("end of the devices: {e}"))?;
    let vm = Arc::into_inner(vm).ok_or("somebody still has the VM")?;
    drop(vm);
    drop(ram);
    println!("\ncrosvm: {end:?}, {kicks} kicks, {report}");
    if clean { Ok(end) } else { Err("a vCPU's thread panicked".to_owned()) }
}

/// Kernel at the start of RAM, initrd at the next 16 MiB: entry, and where the initrd lies.
fn load(ram: &Mapping, kernel: &[u8], initrd: &[u8]) -> Result<(u64, (u64, u64)), String> {
    let word =
        |at: usize| -> Option<u64> { Some(u64::from_le_bytes(kernel.get(at..at + 8)?.try_into().ok()?)) };
    let (Some(offset), Some(size), Some(b"ARM\x64")) = (word(8), word(16), kernel.get(56..60)) else {
        return Err("not an arm64 Image".to_owned());
    };
    let start = (offset + size.max(kernel.len() as u64)).next_multiple_of(INITRD_ALIGN);
    ensure!(start + (initrd.len() as u64) < RAM_SIZE - FDT_SIZE, "RAM is too small");
    ram.write(offset as usize, kernel);
    ram.write(start as usize, initrd);
    Ok((RAM + offset, (RAM + start, RAM + start + initrd.len() as u64)))
}

/// A region without a purpose, behind everything else. Its removal is what the reference driver refuses with EFAULT.
fn hotplug(vm: &Vm) -> Check {
    let memory = Mapping::new(2 << 20, true);
    vm.region(1, 0, HIGH, 2 << 20, memory.address()).map_err(|e| format!("a region more: {e}"))?;
    let error = errno(&vm.region(1, 0, 0, 0, 0));
    ensure!(error == EFAULT || error == 0, "a region less: errno {error}");
    Ok(())
}

/// The platform: eventfds of all lines, the serial port, PCI with a virtio console.
struct Devices {
    bus: Arc<vcpu::Bus>,
    edges: Vec<(u32, File)>,
    levels: Vec<(u32, File, File)>,
}

impl Devices {
    fn new(vm: &Arc<Vm>, ram: &Arc<Mapping>, commands: Vec<String>) -> io::Result<Self> {
        let serial = eventfd();
        vm.irqfd(SERIAL_1_3, &serial, None)?;
        let edges = vec![(SERIAL_2_4, eventfd()), (WATCHDOG, eventfd())];
        for (gsi, event) in &edges {
            vm.irqfd(*gsi, event, None)?;
        }
        let levels = vec![(RTC, eventfd(), eventfd())];
        for (gsi, event, resample) in &levels {
            vm.irqfd(*gsi, event, Some(resample))?;
        }
        let console = pci::Console::start(vm, ram)?;
        let uart = uart::Uart::new(serial, commands);
        Ok(Self { bus: Arc::new(vcpu::Bus { uart, console }), edges, levels })
    }

    fn bus(&self) -> Arc<vcpu::Bus> {
        Arc::clone(&self.bus)
    }

    /// Takes all lines back, edge and level.
    fn shut_down(self, vm: &Vm) -> Result<String, String> {
        let bus = Arc::into_inner(self.bus).ok_or("a vCPU still has the devices")?;
        for (gsi, event) in self.edges.iter().chain([&(SERIAL_1_3, bus.uart.into_line())]) {
            vm.no_irqfd(*gsi, event).map_err(|e| format!("line {gsi}: {e}"))?;
        }
        for (gsi, event, _) in &self.levels {
            vm.no_irqfd(*gsi, event).map_err(|e| format!("line {gsi}: {e}"))?;
        }
        bus.console.stop()
    }
}

/// A protected VM's calls, as far as the hypervisor goes along: what it refuses ends in EINVAL or EOPNOTSUPP and nothing else.
pub fn protected_sequence() -> Check {
    let firmware = Mapping::new(PVMFW_SIZE as usize, true);
    let ram = Mapping::new(64 << 20, true);
    let bounce = Mapping::new(16 << 20, true);
    let behind = RAM + ram.len() as u64;
    let vm = Vm::new(&[
        (PVMFW, &firmware, purpose::PROTECTED_FW),
        (RAM, &ram, purpose::GUEST_MEM),
        (behind, &bounce, purpose::STATIC_SWIOTLB),
    ])
    .map_err(|e| format!("VM: {e}"))?;
    ensure!(vm.has(cap::PROTECTED_VM), "CHECK_EXTENSION says no");
    vm.address_bits()?;
    vm.gic(1).map_err(|e| format!("GIC: {e}"))?;
    match vm.protected([cap::protected::GET_PVMFW_SIZE, 0, 0, 0, 0]) {
        Ok(answer) => {
            let size = answer.args[1];
            ensure!((1..=PVMFW_SIZE).contains(&size), "firmware of {size} bytes");
            vm.protected([cap::protected::SET_PVMFW_GPA, PVMFW, 0, 0, 0])
                .map_err(|e| format!("SET_PVMFW_GPA after a size of {size}: {e}"))?;
        }
        refused => {
            let error = errno(&refused);
            ensure!(error == EINVAL, "GET_PVMFW_SIZE: errno {error}");
            let error = errno(&vm.protected([cap::protected::SET_PVMFW_GPA, PVMFW, 0, 0, 0]));
            ensure!([EINVAL, EOPNOTSUPP].contains(&error), "SET_PVMFW_GPA: errno {error}");
            // crosvm does not go on here. Without firmware a VM can be protected, though.
            vm.protected([cap::protected::SET_PROTECTED_VM, 0, 0, 0, 0])
                .map_err(|e| format!("SET_PROTECTED_VM: {e}"))?;
        }
    }
    ensure!(errno(&vm.protected([3, 0, 0, 0, 0])) == EINVAL, "sub-command 3");
    // crosvm asks for memory tagging by capability 0.
    let mut mte = EnableCap { cap: 0, args: [0; 5] };
    ensure!(errno(&sys::ioctl_with(&vm.fd, ioctl::ENABLE_CAP, &mut mte)) == EINVAL, "MTE");
    let vcpu = sys::ioctl(&vm.fd, ioctl::CREATE_VCPU, 0).map(sys::owned);
    drop(vcpu.map_err(|e| format!("vCPU: {e}"))?);
    Ok(())
}
