// SPDX-License-Identifier: Apache-2.0 OR MIT
//! GenieZone: the sequence of ioctls that crosvm uses, so that any driver that serves crosvm serves
//! us.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use anyhow::Context;
use gzvm_abi::guest::measurement;
use gzvm_abi::hypercall::{cap, purpose, vm_feature};
use gzvm_abi::ioctl::{UserspaceMemoryRegion, extension};
use gzvm_abi::run::{exception, reason};
use gzvm_abi::watch::action;
use gzvm_abi::{MAX_VCPUS, control, reg};
use gzvm_ioctls::{DEVICE_PATH, Gzvm, ImmediateExit, IrqChipDevice, VcpuExit, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::{
    BOOT_PSTATE, BootState, Exit, Kick, Machine, Measurement, NO_CONTROL, NO_RPC, Notification, Parts, Power,
    Status, Vcpu, Vm, open_error, system_event,
};
use crate::cli::run::Feature;
use crate::exit::EndReason;
use crate::layout;
use crate::memory::GuestRam;
use crate::watch::{self, OnException, Watch};

const MISSING: &str = "the host must run under the GenieZone hypervisor with gzvm.ko loaded \
    (`dmesg | grep gzvm` says why the driver did not start); `--hypervisor kvm` uses KVM instead";

/// What a guest gets as x0 of a call that nobody knows: SMCCC's NOT_SUPPORTED.
const SMCCC_NOT_SUPPORTED: u64 = u64::MAX;

/// See [`super::create`].
///
/// # Errors
/// No driver, or a call that failed.
pub fn create(parts: Parts) -> anyhow::Result<Machine> {
    let Parts { map, memory, vcpus, features, spis, rpc, protected, firmware } = parts;
    let gzvm = Gzvm::new().map_err(|error| open_error(DEVICE_PATH, error.errno(), MISSING))?;
    let vm = gzvm.create_vm(0).context("gzvm: can't create a VM")?;
    let mask = features.iter().fold(0, |mask, feature| match feature {
        Feature::Sve => mask | vm_feature::SVE,
    });
    if mask != 0 {
        vm.give_features(mask).context("gzvm: --features: this CPU, or this hypervisor, lacks one")?;
    }
    if usize::from(vcpus) > MAX_VCPUS {
        // Asking is what raises the limit.
        let limit =
            vm.check_extension(extension::MAX_VCPUS).context("gzvm: can't ask for the number of vCPUs")?;
        let limit = limit.unwrap_or(MAX_VCPUS as u64);
        if u64::from(vcpus) > limit {
            anyhow::bail!("--cpus {vcpus}: this driver's limit is {limit}");
        }
    }
    if let Some(spis) = spis {
        let known = vm.check_extension(extension::VGIC_SPIS).context("gzvm: can't ask for SPIs")?;
        if known.is_none() {
            anyhow::bail!("--spis {spis}: this driver or hypervisor has a fixed number");
        }
        vm.set_spis(spis.into()).with_context(|| format!("gzvm: can't give the VM {spis} SPIs"))?;
    }
    if let Some(policy) = rpc {
        let known = vm.check_extension(extension::RPC).context("gzvm: can't ask for channels")?;
        anyhow::ensure!(known.is_some(), "{NO_RPC}");
        vm.set_rpc_policy(policy.with, policy.channels, map.rpc_spi).context("gzvm: --rpc")?;
    }
    let ram = memory.iter().map(|ram| (ram, purpose::GUEST_MEM));
    let slots = ram.chain(firmware.map(|firmware| (firmware, purpose::PROTECTED_FW)));
    for (slot, (ram, flags)) in (0..).zip(slots) {
        let region = UserspaceMemoryRegion {
            slot,
            flags,
            guest_phys_addr: ram.base(),
            memory_size: ram.size(),
            userspace_addr: ram.host_address(),
        };
        // SAFETY: `GuestVm` and every `GuestVcpu` own a share of the mapping, and guest memory is only
        // reached through vm-memory's volatile accesses.
        unsafe { vm.set_user_memory_region(region) }.context("gzvm: can't give the VM its RAM")?;
    }

    let (distributor, redistributors) = (map.gic_distributor, map.gic_redistributors(vcpus));
    vm.create_device(IrqChipDevice::VgicV3Distributor, distributor.base, distributor.size)
        .context("gzvm: can't create the GIC's distributor")?;
    // As crosvm: the base of all, the size of one. The hypervisor knows the number of vCPUs.
    vm.create_device(IrqChipDevice::VgicV3Redistributor, redistributors.base, layout::GIC_REDISTRIBUTOR_SIZE)
        .context("gzvm: can't create the GIC's redistributors")?;

    if let Some(firmware) = firmware {
        protect(&vm, firmware)?;
    }
    let memory: Vec<_> = memory.iter().chain(firmware).cloned().collect();
    let mut machine = Vec::with_capacity(vcpus.into());
    for id in 0..vcpus {
        let fd = vm.create_vcpu(id).with_context(|| format!("gzvm: can't create vCPU {id}"))?;
        machine.push(Box::new(GuestVcpu { fd, id, protected, _memory: memory.clone() }) as Box<dyn Vcpu>);
    }
    Ok(Machine { vm: Arc::new(GuestVm { fd: vm, _memory: memory }), vcpus: machine })
}

/// Address, size and value of an ioeventfd.
const fn ioevent(notification: Notification) -> (u64, u32, Option<u64>) {
    match notification {
        Notification::Value32(address, value) => (address, 4, Some(value as u64)),
        Notification::Any16(address) => (address, 2, None),
    }
}

/// Makes the VM protected, with the hypervisor's firmware in its slot. As crosvm: before the first vCPU.
fn protect(vm: &VmFd, slot: &GuestRam) -> anyhow::Result<()> {
    const MISSING: &str = "--protected: the hypervisor was started without a firmware for protected VMs";
    let mut size = [cap::protected::GET_PVMFW_SIZE, 0, 0, 0, 0];
    vm.enable_cap(cap::PROTECTED_VM, &mut size).context(MISSING)?;
    let [_, size, ..] = size;
    if !(1..=slot.size()).contains(&size) {
        anyhow::bail!("--protected: a firmware of {size} bytes has no room in {}M", slot.size() >> 20);
    }
    vm.enable_cap(cap::PROTECTED_VM, &mut [cap::protected::SET_PVMFW_GPA, slot.base(), 0, 0, 0])
        .context("--protected: the hypervisor refused")
}

/// Memory for a protected VM, which leaves us page by page as the guest gets it. None where driver or hypervisor have no such.
///
/// # Errors
/// No driver, or a call that failed.
pub fn guest_memory(size: u64) -> anyhow::Result<Option<OwnedFd>> {
    let gzvm = Gzvm::new().map_err(|error| open_error(DEVICE_PATH, error.errno(), MISSING))?;
    let known = gzvm.check_extension(extension::GUEST_MEMORY).context("gzvm: can't ask for guest memory")?;
    if known != Some(1) {
        return Ok(None);
    }
    gzvm.create_guest_memory(size).context("gzvm: can't make guest memory").map(Some)
}

struct GuestVm {
    fd: VmFd,
    // Keeps the RAM mapped as long as the VM lives.
    _memory: Vec<GuestRam>,
}

impl GuestVm {
    fn control(&self, what: u32, name: &str) -> anyhow::Result<Status> {
        if !matches!(self.fd.check_extension(cap::CONTROL), Ok(Some(1))) {
            anyhow::bail!("{NO_CONTROL}");
        }
        let answer = self.fd.control(what).map_err(|error| match error.errno() {
            libc::EINVAL => anyhow::anyhow!("{name}: the VM is over"),
            _ => anyhow::anyhow!("{name}: {error}"),
        })?;
        let power = match answer.state {
            control::state::CREATED => Power::Created,
            control::state::RUNNING => Power::Running,
            control::state::PAUSED => Power::Paused,
            control::state::SUSPENDED => Power::Suspended,
            _ => Power::Over,
        };
        Ok(Status { power, events: answer.events })
    }
}

impl Vm for GuestVm {
    fn register_irqfd(&self, fd: &EventFd, spi: u32) -> anyhow::Result<()> {
        self.fd.register_irqfd(fd, spi).with_context(|| format!("gzvm: no irqfd for SPI {spi}"))
    }

    fn register_ioeventfd(&self, fd: &EventFd, notification: Notification) -> anyhow::Result<()> {
        let (address, len, value) = ioevent(notification);
        self.fd
            .register_ioevent(fd, address, len, value)
            .with_context(|| format!("gzvm: no ioeventfd at {address:#x}"))
    }

    fn unregister_ioeventfd(&self, fd: &EventFd, notification: Notification) -> anyhow::Result<()> {
        let (address, len, value) = ioevent(notification);
        self.fd
            .unregister_ioevent(fd, address, len, value)
            .with_context(|| format!("gzvm: the ioeventfd at {address:#x} stays"))
    }

    fn discard(&self, address: u64, size: u64) -> anyhow::Result<()> {
        loop {
            match self.fd.discard(address, size) {
                Err(error) if error.errno() == libc::EINTR => {}
                other => return other.context("gzvm: can't take pages back"),
            }
        }
    }

    fn can_discard(&self) -> bool {
        matches!(self.fd.check_extension(extension::DISCARD), Ok(Some(1)))
    }

    fn set_fdt(&self, address: u64, size: u64) -> anyhow::Result<()> {
        self.fd.set_dtb_config(address, size).context("gzvm: the device tree's place was refused")
    }

    fn set_watch(&self, watch: Watch, action: OnException) -> anyhow::Result<()> {
        let known = self.fd.check_extension(cap::WATCH).ok().flatten().unwrap_or(0);
        if u64::from(watch.kinds) & !known != 0 {
            anyhow::bail!("--watch: this hypervisor, driver or CPU can't watch all of these");
        }
        self.fd.set_watch(watch.kinds, action.action(), watch.stall_ms).context("--watch")
    }

    fn pause(&self) -> anyhow::Result<Status> {
        self.control(control::PAUSE, "pause")
    }

    fn resume(&self) -> anyhow::Result<Status> {
        self.control(control::RESUME, "resume")
    }

    fn status(&self) -> anyhow::Result<Status> {
        self.control(control::STATUS, "status")
    }

    fn connect(&self, port: u32, other: Option<(BorrowedFd<'_>, u32)>) -> anyhow::Result<Option<OwnedFd>> {
        match self.fd.connect(port, other) {
            Ok(channel) => Ok(Some(channel.into())),
            Err(error) if error.errno() == libc::EINVAL => Ok(None),
            Err(error) => Err(error).context("gzvm: no channel"),
        }
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn measurement(&self) -> Option<Measurement> {
        let answer = self.fd.measurement().ok()?;
        Some(Measurement { value: answer.value, sealed: answer.state & measurement::SEALED != 0 })
    }
}

struct GuestVcpu {
    fd: VcpuFd,
    id: u8,
    protected: bool,
    // Keeps the RAM mapped as long as the vCPU can run.
    _memory: Vec<GuestRam>,
}

impl Kick for ImmediateExit {
    fn kick(&self) {
        self.set(true);
    }
}

impl Vcpu for GuestVcpu {
    fn set_boot_state(&mut self, boot: Option<BootState>) -> anyhow::Result<()> {
        // crosvm's order: X0, PC, PSTATE.
        let mut registers = Vec::with_capacity(4);
        match boot {
            // The firmware starts where the hypervisor says.
            Some(BootState { entry, fdt, size }) if self.protected => {
                registers.extend([(reg::X0, fdt), (reg::X0 + 2, entry), (reg::X0 + 4, size)]);
            }
            Some(BootState { entry, fdt, .. }) => registers.extend([(reg::X0, fdt), (reg::PC, entry)]),
            None => {}
        }
        registers.push((reg::PSTATE, BOOT_PSTATE));
        for (register, value) in registers {
            self.fd
                .set_one_reg(register, value)
                .with_context(|| format!("gzvm: can't set register {register:#x} of vCPU {}", self.id))?;
        }
        Ok(())
    }

    fn run(&mut self) -> Exit<'_> {
        let id = self.id;
        match self.fd.run() {
            Ok(VcpuExit::MmioRead(address, data)) => Exit::MmioRead { address, data },
            Ok(VcpuExit::MmioWrite(address, data)) => Exit::MmioWrite { address, data },
            Ok(VcpuExit::Again(_)) => Exit::Again,
            Ok(other) => seldom(id, other),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Exit::Again,
            Err(error) => Exit::End(EndReason::VmmError(format!("gzvm: can't run vCPU {id}: {error}"))),
        }
    }

    fn register(&self, id: u64) -> Option<u64> {
        self.fd.get_one_reg(id).ok()
    }

    fn kick(&self) -> Arc<dyn Kick> {
        Arc::new(self.fd.immediate_exit())
    }
}

/// Exits off the hot path: events, calls and crashes.
#[cold]
fn seldom(id: u8, exit: VcpuExit) -> Exit<'static> {
    let crash = |text: String| Exit::End(EndReason::Crash(text));
    match exit {
        VcpuExit::SystemEvent(event) => {
            let count = usize::try_from(event.ndata).unwrap_or(usize::MAX).min(event.data.len());
            system_event(id, event.type_, event.data.get(..count).unwrap_or_default())
        }
        VcpuExit::Shutdown => Exit::End(EndReason::PowerOff),
        VcpuExit::Watch(event) => {
            let report = watch::describe(id, &event);
            if event.action == action::KILL {
                return Exit::End(EndReason::Watched(report));
            }
            tracing::warn!("{report}{}", if event.action == action::PAUSE { "; paused" } else { "" });
            Exit::Again
        }
        VcpuExit::Hypercall(args) => {
            tracing::debug!("vCPU {id}: hypercall {args:x?} is nobody's");
            if let Some(x0) = args.first_mut() {
                *x0 = SMCCC_NOT_SUPPORTED;
            }
            Exit::Again
        }
        VcpuExit::Exception(e) => {
            let kind = match e.exception {
                exception::PAGE_FAULT => "page fault that the host could not serve (is it out of memory?)",
                _ => "exception",
            };
            let (number, code, address) = (e.exception, e.error_code, e.fault_gpa);
            crash(format!("vCPU {id}: {kind} {number}, error code {code:#x}, guest address {address:#x}"))
        }
        VcpuExit::FailEntry(fail) => crash(format!(
            "vCPU {id} can't be entered on CPU {}: reason {}{}",
            fail.cpu,
            fail.hardware_entry_failure_reason,
            name_reason(fail.hardware_entry_failure_reason)
        )),
        VcpuExit::InternalError(error) => {
            let count = usize::try_from(error.ndata).unwrap_or(usize::MAX).min(error.data.len());
            let data = error.data.get(..count).unwrap_or_default();
            let name = name_reason(error.suberror.into());
            crash(format!(
                "vCPU {id}: the hypervisor can't go on: error {}{name}, data {data:x?}",
                error.suberror
            ))
        }
        VcpuExit::Debug => crash(format!("vCPU {id}: debug event without a debugger")),
        VcpuExit::BadMmio(mmio) => crash(format!(
            "vCPU {id}: {} of {} bytes at {:#x}, a size that no access has",
            if mmio.is_write == 0 { "load" } else { "store" },
            mmio.size,
            mmio.phys_addr
        )),
        other @ (VcpuExit::Unknown(_)
        | VcpuExit::Again(_)
        | VcpuExit::MmioRead(..)
        | VcpuExit::MmioWrite(..)) => {
            Exit::End(EndReason::VmmError(format!("gzvm: vCPU {id}: exit {other:x?} is unknown")))
        }
    }
}

/// Our hypervisor's reasons; others count their own way.
fn name_reason(number: u64) -> &'static str {
    match number {
        reason::NO_VCPU => " (no such vCPU)",
        reason::ALREADY_RUNNING => " (it runs already)",
        reason::DYING => " (the VM is being destroyed)",
        reason::UNDECODABLE => " (an access to a device, or to no memory, that can't be decoded)",
        reason::UNEXPECTED_EXIT => " (an unexpected exception)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gzvm_abi::run::{Exception, InternalError, SystemEvent};

    fn crash_text(exit: VcpuExit) -> String {
        match seldom(3, exit) {
            Exit::End(EndReason::Crash(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn crashes_tell_all_there_is() {
        let exception = Exception { exception: 1, error_code: 0x77, fault_gpa: 0xDEAD_0000 };
        let text = crash_text(VcpuExit::Exception(exception));
        assert!(text.contains("vCPU 3") && text.contains("0x77") && text.contains("0xdead0000"), "{text}");
        let mut data = [0; 16];
        data[1] = 0xAB;
        let text = crash_text(VcpuExit::InternalError(InternalError { suberror: 4, ndata: 2, data }));
        assert!(text.contains("error 4") && text.contains("[0, ab]"), "{text}");
        // A count from the other side that is too large does no harm.
        crash_text(VcpuExit::InternalError(InternalError { suberror: 4, ndata: u32::MAX, data }));
    }

    #[test]
    fn unknown_hypercalls_are_not_supported() {
        let mut args = [0xC600_0001, 2, 3, 4, 5, 6, 7, 8];
        assert!(matches!(seldom(0, VcpuExit::Hypercall(&mut args)), Exit::Again));
        assert_eq!(args[0], u64::MAX);
    }

    #[test]
    fn power_events() {
        let event = SystemEvent { type_: 1, ndata: u32::MAX, data: [0; 16] };
        assert!(matches!(seldom(0, VcpuExit::SystemEvent(event)), Exit::End(EndReason::PowerOff)));
        assert!(matches!(seldom(0, VcpuExit::Shutdown), Exit::End(EndReason::PowerOff)));
    }
}
