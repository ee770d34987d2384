// SPDX-License-Identifier: Apache-2.0 OR MIT
//! KVM on arm64: the peer that every figure is compared with, and the way for hosts without
//! GenieZone.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use gzvm_abi::reg;
use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR,
    KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, kvm_userspace_memory_region, kvm_vcpu_init,
};
use kvm_ioctls::{DeviceFd, IoEventAddress, Kvm, NoDatamatch, VcpuExit, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::{
    BOOT_PSTATE, BootState, Exit, Kick, Kind, Machine, Notification, Parts, Power, Status, Vcpu, Vm,
    open_error, system_event,
};
use crate::exit::EndReason;
use crate::layout;
use crate::memory::GuestRam;

/// KVM_VM_TYPE_ARM_PROTECTED, which the bindings don't have yet.
const TYPE_PROTECTED: u64 = 1 << 31;
const MISSING: &str = "the host kernel must have KVM and start at EL2 (`dmesg | grep kvm` says more)";

/// See [`super::create`].
///
/// # Errors
/// No KVM, or a call that failed.
pub fn create(parts: Parts) -> anyhow::Result<Machine> {
    let Parts { memory, vcpus, protected, .. } = parts;
    let kvm = Kvm::new().map_err(|error| open_error(Kind::Kvm.device(), error.errno(), MISSING))?;
    let vm = create_vm(&kvm, memory, protected)?;
    for (slot, ram) in (0..).zip(memory) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: ram.base(),
            memory_size: ram.size(),
            userspace_addr: ram.host_address(),
        };
        // SAFETY: `GuestVm` and every `GuestVcpu` own a share of the mapping, and guest memory is only
        // reached through vm-memory's volatile accesses.
        unsafe { vm.set_user_memory_region(region) }.context("kvm: can't give the VM its RAM")?;
    }

    let mut preferred = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut preferred).context("kvm: no CPU type")?;
    let mut machine = Vec::with_capacity(vcpus.into());
    for id in 0..vcpus {
        let vcpu = create_vcpu(&vm, id, preferred, memory)
            .with_context(|| format!("kvm: can't create vCPU {id}"))?;
        machine.push(Box::new(vcpu) as Box<dyn Vcpu>);
    }
    // The GIC wants to know all vCPUs before it is initialised.
    let gic = create_gic(&vm, parts).context("kvm: can't create a GICv3")?;
    Ok(Machine { vm: Arc::new(GuestVm { fd: vm, _gic: gic, _memory: memory.to_vec() }), vcpus: machine })
}

/// 40 bits of guest physical address space as on gzvm, or what a smaller host has.
fn create_vm(kvm: &Kvm, memory: &[GuestRam], protected: bool) -> anyhow::Result<VmFd> {
    let limit = u32::try_from(kvm.get_host_ipa_limit()).unwrap_or(0);
    let bits = if limit == 0 { 40 } else { limit.min(40) };
    let end = memory.iter().map(|ram| ram.base().saturating_add(ram.size())).max().unwrap_or(0);
    if end > 1 << bits {
        anyhow::bail!("--mem: this host's guests have {bits} bits of address space; ask for less");
    }
    // 0 stands for 40 bits, and is all that a host without a choice takes.
    let size = if limit == 0 { 0 } else { bits.into() };
    if protected {
        let vm = kvm.create_vm_with_type(TYPE_PROTECTED | size);
        return vm.context(
            "--protected: this host's KVM has none: it needs Linux 7.3, and kvm-arm.mode=protected",
        );
    }
    kvm.create_vm_with_type(size).context("kvm: can't create a VM")
}

fn create_vcpu(vm: &VmFd, id: u8, mut init: kvm_vcpu_init, memory: &[GuestRam]) -> anyhow::Result<GuestVcpu> {
    let mut fd = vm.create_vcpu(id.into())?;
    let mut features = 1 << KVM_ARM_VCPU_PSCI_0_2;
    if id != 0 {
        features |= 1 << KVM_ARM_VCPU_POWER_OFF;
    }
    if let Some(word) = init.features.first_mut() {
        *word |= features;
    }
    fd.vcpu_init(&init)?;
    let byte = NonNull::from(&mut fd.get_kvm_run().immediate_exit).cast();
    let immediate_exit = Arc::new(ImmediateExit(Mutex::new(Some(byte))));
    Ok(GuestVcpu { immediate_exit, fd, id, _memory: memory.to_vec() })
}

fn create_gic(vm: &VmFd, Parts { map, vcpus, spis, .. }: Parts) -> anyhow::Result<DeviceFd> {
    let interrupts = spis.map_or(layout::GIC_INTERRUPTS, |spis| u32::from(spis) + layout::GIC_PRIVATE);
    if !interrupts.is_multiple_of(32) {
        anyhow::bail!("--spis {}: KVM counts in steps of 32", interrupts - layout::GIC_PRIVATE);
    }
    let mut request = kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, fd: 0, flags: 0 };
    let gic = vm.create_device(&mut request)?;
    let set = |group: u32, attr: u32, value: u64| {
        let addr = (&raw const value).expose_provenance() as u64;
        let attr = kvm_device_attr { group, attr: attr.into(), addr, flags: 0 };
        gic.set_device_attr(&attr)
    };
    set(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, map.gic_distributor.base)?;
    set(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST, map.gic_redistributors(vcpus).base)?;
    // Read as 32 bits; little-endian, so the low half of `value`.
    set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, interrupts.into())?;
    set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, 0)?;
    Ok(gic)
}

struct GuestVm {
    fd: VmFd,
    _gic: DeviceFd,
    // Keeps the RAM mapped as long as the VM lives.
    _memory: Vec<GuestRam>,
}

impl Vm for GuestVm {
    fn register_irqfd(&self, fd: &EventFd, spi: u32) -> anyhow::Result<()> {
        // The default routing: GSI n is SPI n.
        self.fd.register_irqfd(fd, spi).with_context(|| format!("kvm: no irqfd for SPI {spi}"))
    }

    fn register_ioeventfd(&self, fd: &EventFd, notification: Notification) -> anyhow::Result<()> {
        match notification {
            Notification::Value32(address, value) => {
                self.fd.register_ioevent(fd, &IoEventAddress::Mmio(address), value)
            }
            // Of any size.
            Notification::Any16(address) => {
                self.fd.register_ioevent(fd, &IoEventAddress::Mmio(address), NoDatamatch)
            }
        }
        .with_context(|| format!("kvm: no ioeventfd for {notification:x?}"))
    }

    fn unregister_ioeventfd(&self, fd: &EventFd, notification: Notification) -> anyhow::Result<()> {
        match notification {
            Notification::Value32(address, value) => {
                self.fd.unregister_ioevent(fd, &IoEventAddress::Mmio(address), value)
            }
            Notification::Any16(address) => {
                self.fd.unregister_ioevent(fd, &IoEventAddress::Mmio(address), NoDatamatch)
            }
        }
        .with_context(|| format!("kvm: the ioeventfd of {notification:x?} stays"))
    }

    fn discard(&self, _address: u64, _size: u64) -> anyhow::Result<()> {
        Ok(())
    }

    fn can_discard(&self) -> bool {
        true
    }

    fn set_fdt(&self, _address: u64, _size: u64) -> anyhow::Result<()> {
        Ok(())
    }

    fn status(&self) -> anyhow::Result<Status> {
        // It can't be paused, and does not suspend.
        Ok(Status { power: Power::Running, events: 0 })
    }
}

/// The vCPU's `immediate_exit` byte, until the vCPU is gone. The lock is never taken while the
/// guest runs.
struct ImmediateExit(Mutex<Option<NonNull<AtomicU8>>>);

// SAFETY: the pointer is only used for atomic stores, under the lock, and only while it is valid.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

impl Kick for ImmediateExit {
    fn kick(&self) {
        if let Some(byte) = *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            // SAFETY: `Drop` of the vCPU clears the pointer under this lock before it unmaps the
            // page. Beside us, only the kernel looks at this byte once the vCPU runs.
            unsafe { byte.as_ref() }.store(1, Ordering::Release);
        }
    }
}

struct GuestVcpu {
    immediate_exit: Arc<ImmediateExit>,
    fd: VcpuFd,
    id: u8,
    // Keeps the RAM mapped as long as the vCPU can run.
    _memory: Vec<GuestRam>,
}

impl Drop for GuestVcpu {
    fn drop(&mut self) {
        *self.immediate_exit.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Vcpu for GuestVcpu {
    fn set_boot_state(&mut self, boot: Option<BootState>) -> anyhow::Result<()> {
        let Some(BootState { entry, fdt, .. }) = boot else {
            // KVM resets a vCPU to this state when PSCI turns it on.
            return Ok(());
        };
        for (register, value) in [(reg::X0, fdt), (reg::PC, entry), (reg::PSTATE, BOOT_PSTATE)] {
            self.fd
                .set_one_reg(register, &value.to_le_bytes())
                .with_context(|| format!("kvm: can't set register {register:#x} of vCPU {}", self.id))?;
        }
        Ok(())
    }

    fn run(&mut self) -> Exit<'_> {
        let id = self.id;
        let failure = match self.fd.run() {
            Ok(VcpuExit::MmioRead(address, data)) => return Exit::MmioRead { address, data },
            Ok(VcpuExit::MmioWrite(address, data)) => return Exit::MmioWrite { address, data },
            Ok(VcpuExit::SystemEvent(kind, data)) => return system_event(id, kind, data),
            Ok(VcpuExit::Intr) => return Exit::Again,
            Ok(VcpuExit::Shutdown) => return Exit::End(EndReason::PowerOff),
            Ok(other) => format!("{other:x?}"),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Exit::Again,
            Err(error) if error.errno() == libc::ENOSYS => {
                "an access to no memory that can't be decoded".into()
            }
            Err(error) => {
                return Exit::End(EndReason::VmmError(format!("kvm: can't run vCPU {id}: {error}")));
            }
        };
        Exit::End(EndReason::Crash(format!("vCPU {id}: {failure}")))
    }

    fn register(&self, id: u64) -> Option<u64> {
        let mut value = [0; 8];
        self.fd.get_one_reg(id, &mut value).ok().map(|_| u64::from_le_bytes(value))
    }

    fn kick(&self) -> Arc<dyn Kick> {
        self.immediate_exit.clone()
    }
}
