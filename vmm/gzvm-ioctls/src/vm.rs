// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A VM's file descriptor.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use gzvm_abi::ioctl::{
    self, Control, CreateDevice, Discard, DtbConfig, EnableCap, Ioeventfd, IrqLevel, Irqfd, Measurement,
    RpcConnect, RpcPolicy, UserspaceMemoryRegion, VgicSpis, Watch, extension,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

use crate::{ChannelFd, Result, VcpuFd, check, check_extension};

/// The interrupt controller's parts, as [`VmFd::create_device`] makes them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IrqChipDevice {
    /// GICv3 distributor.
    VgicV3Distributor,
    /// GICv3 redistributors: those of all vCPUs, in one run of 128 KiB frames.
    VgicV3Redistributor,
}

/// A VM. It lives until this and every [`VcpuFd`] made from it are closed.
#[derive(Debug)]
pub struct VmFd {
    vm: File,
}

impl VmFd {
    pub(crate) fn new(vm: File) -> Self {
        Self { vm }
    }

    /// Asks for a capability of this VM: `None` where the driver does not know it.
    ///
    /// # Errors
    /// Any errno but EOPNOTSUPP and EINVAL.
    pub fn check_extension(&self, capability: u64) -> Result<Option<u64>> {
        check_extension(&self.vm, capability)
    }

    /// Switches a capability on. Some answer in `args`.
    ///
    /// # Errors
    /// EINVAL: unknown to driver or hypervisor.
    pub fn enable_cap(&self, capability: u64, args: &mut [u64; 5]) -> Result<()> {
        let mut request = EnableCap { cap: capability, args: *args };
        // SAFETY: ENABLE_CAP reads, and may write back, exactly one `EnableCap`.
        check(unsafe { ioctl_with_mut_ref(&self.vm, ioctl::ENABLE_CAP.into(), &mut request) })?;
        *args = request.args;
        Ok(())
    }

    /// Gives the VM features ([`vm_feature`](gzvm_abi::hypercall::vm_feature)), before its first vCPU. Which there
    /// are, [`cap::VM_FEATURES`](gzvm_abi::hypercall::cap::VM_FEATURES) tells.
    ///
    /// # Errors
    /// EINVAL: unknown, or there is a vCPU; EOPNOTSUPP: the machine lacks one; ENOTTY: an older driver or hypervisor.
    pub fn give_features(&self, mask: u64) -> Result<()> {
        // SAFETY: VM_FEATURES reads exactly one `u64`.
        check(unsafe { ioctl_with_ref(&self.vm, ioctl::VM_FEATURES.into(), &mask) })?;
        Ok(())
    }

    /// Who a protected VM is. Only where [`extension::MEASUREMENT`] is 1.
    ///
    /// # Errors
    /// EOPNOTSUPP: the VM is plain, or has not run; EAGAIN: its guest changes it just now; ENOTTY: an older driver or hypervisor.
    pub fn measurement(&self) -> Result<Measurement> {
        let mut answer = Measurement { value: [0; 32], state: 0 };
        // SAFETY: MEASUREMENT writes exactly one `Measurement`.
        check(unsafe { ioctl_with_mut_ref(&self.vm, ioctl::MEASUREMENT.into(), &mut answer) })?;
        Ok(answer)
    }

    /// Gives the VM so many SPIs, before its first vCPU
    /// ([`extension::VGIC_SPIS`](gzvm_abi::ioctl::extension::VGIC_SPIS)).
    ///
    /// # Errors
    /// EINVAL: not 32 to 988 in steps of 32, nor 988, or there is a vCPU; ENOTTY: no such thing here; ENOMEM.
    pub fn set_spis(&self, spis: u32) -> Result<()> {
        let request = VgicSpis { spis, reserved: [0; 3] };
        // SAFETY: VGIC_SPIS reads one structure.
        check(unsafe { ioctl_with_ref(&self.vm, ioctl::VGIC_SPIS.into(), &request) })?;
        Ok(())
    }

    /// Says with whom the VM may have channels ([`with`](gzvm_abi::rpc::with)), how many, and which SPI is their doorbell; once, before it
    /// runs. Only where [`extension::RPC`] is there.
    ///
    /// # Errors
    /// EINVAL: a value, too late, or a second time; ENOTTY: no such thing here.
    pub fn set_rpc_policy(&self, with: u32, channels: u32, spi: u32) -> Result<()> {
        let request = RpcPolicy { with, channels, spi, reserved: 0 };
        // SAFETY: RPC_POLICY reads one structure.
        check(unsafe { ioctl_with_ref(&self.vm, ioctl::RPC_POLICY.into(), &request) }).map(drop)
    }

    /// Makes a channel: between this VM, which finds it at `port`, and another, by its file, with a port of its own; or the host.
    ///
    /// # Errors
    /// EINVAL: a policy is against it, a VM has no vCPU yet or is over, or the port is in use; ENOMEM: too many; ENOTTY.
    pub fn connect(&self, port: u32, other: Option<(BorrowedFd<'_>, u32)>) -> Result<ChannelFd> {
        let (peer, peer_port) = other.map_or((-1, 0), |(vm, port)| (vm.as_raw_fd(), port));
        let request = RpcConnect { port, peer, peer_port, reserved: 0 };
        // SAFETY: RPC_CONNECT reads one structure.
        let fd = check(unsafe { ioctl_with_ref(&self.vm, ioctl::RPC_CONNECT.into(), &request) })?;
        // SAFETY: the driver has just returned this descriptor to us, so nobody else owns it.
        Ok(ChannelFd::from(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Gives the VM a memory slot; with `memory_size` 0, takes the slot back
    /// ([`extension::REMOVE_SLOT`](gzvm_abi::ioctl::extension::REMOVE_SLOT)).
    ///
    /// `region.memory_size` must equal the size of the whole mapping (VMA) that holds
    /// `region.userspace_addr`.
    ///
    /// # Errors
    /// EINVAL: slot, alignment or size; EFAULT: the hypervisor refused; ENOMEM.
    ///
    /// # Safety
    /// The guest reads and writes that memory for as long as the VM lives: it must stay mapped, and
    /// must hold nothing that Rust references point to.
    pub unsafe fn set_user_memory_region(&self, region: UserspaceMemoryRegion) -> Result<()> {
        // SAFETY: the call reads one structure; what it sets in motion is the caller's promise.
        check(unsafe { ioctl_with_ref(&self.vm, ioctl::SET_USER_MEMORY_REGION.into(), &region) })?;
        Ok(())
    }

    /// Takes pages back from the guest; where it touches them again, it gets what is mapped there by then
    /// ([`extension::DISCARD`](gzvm_abi::ioctl::extension::DISCARD)). To free memory, first drop it from
    /// our own mapping, then call this: a page that the guest touches in between goes as well.
    ///
    /// # Errors
    /// EINVAL: no whole pages of one slot; EOPNOTSUPP, ENOTTY: no such thing here.
    pub fn discard(&self, address: u64, size: u64) -> Result<()> {
        let range = Discard { guest_phys_addr: address, size };
        // SAFETY: DISCARD reads exactly one `Discard`; the pages stay mapped in our address space.
        check(unsafe { ioctl_with_ref(&self.vm, ioctl::DISCARD.into(), &range) })?;
        Ok(())
    }

    /// Tells or changes the VM's power: `what` is one of [`gzvm_abi::control`]. A pause is complete when this
    /// returns. Only where [`cap::CONTROL`](gzvm_abi::hypercall::cap::CONTROL) is 1.
    ///
    /// # Errors
    /// EINVAL: the VM is over; EINTR; ENOTTY: not this driver.
    pub fn control(&self, what: u32) -> Result<Control> {
        let mut request = Control { what, state: 0, events: 0, reserved: [0; 2] };
        // SAFETY: CONTROL reads and writes exactly one `Control`.
        check(unsafe { ioctl_with_mut_ref(&self.vm, ioctl::CONTROL.into(), &mut request) })?;
        Ok(request)
    }

    /// Watches exceptions of the guest (see [`gzvm_abi::watch`]); before any vCPU runs. `stall_ms` is 0 without
    /// [`STALL`](gzvm_abi::watch::kind::STALL). [`cap::WATCH`](gzvm_abi::hypercall::cap::WATCH) tells the kinds there are.
    ///
    /// # Errors
    /// EOPNOTSUPP: a kind that can't be watched; EINVAL: other values, or a vCPU has run; ENOTTY: not this driver.
    pub fn set_watch(&self, kinds: u32, action: u32, stall_ms: u64) -> Result<()> {
        let watch = Watch { kinds, action, stall_ms, reserved: [0; 2] };
        // SAFETY: SET_WATCH reads exactly one `Watch`.
        check(unsafe { ioctl_with_ref(&self.vm, ioctl::SET_WATCH.into(), &watch) })?;
        Ok(())
    }

    /// Sets the level of SPI number `spi` (INTID - 32).
    ///
    /// # Errors
    /// EFAULT: the hypervisor refused.
    pub fn set_irq_line(&self, spi: u32, active: bool) -> Result<()> {
        let line = IrqLevel { irq: spi, level: active.into() };
        // SAFETY: IRQ_LINE reads exactly one `IrqLevel`.
        check(unsafe { ioctl_with_ref(&self.vm, ioctl::IRQ_LINE.into(), &line) })?;
        Ok(())
    }

    /// Each signal of `fd` makes SPI number `spi` pending once.
    ///
    /// # Errors
    /// EBUSY: `fd` is tied already; EBADF, ENOMEM.
    pub fn register_irqfd(&self, fd: &EventFd, spi: u32) -> Result<()> {
        self.irqfd(fd, spi, 0)
    }

    /// Undoes [`register_irqfd`](Self::register_irqfd).
    ///
    /// # Errors
    /// EBADF.
    pub fn unregister_irqfd(&self, fd: &EventFd, spi: u32) -> Result<()> {
        self.irqfd(fd, spi, ioctl::IRQFD_DEASSIGN)
    }

    fn irqfd(&self, fd: &EventFd, gsi: u32, flags: u32) -> Result<()> {
        let fd = fd.as_raw_fd().cast_unsigned();
        let request = Irqfd { fd, gsi, flags, resamplefd: 0, pad: [0; 16] };
        // SAFETY: IRQFD reads exactly one `Irqfd`, and takes its own reference to the eventfd.
        check(unsafe { ioctl_with_ref(&self.vm, ioctl::IRQFD.into(), &request) })?;
        Ok(())
    }

    /// Guest writes of `len` bytes (0: any size) to `address` signal `fd` instead of leaving RUN;
    /// with `datamatch`, only writes of that value.
    ///
    /// # Errors
    /// EEXIST: overlaps another; EINVAL, EBADF.
    pub fn register_ioevent(
        &self,
        fd: &EventFd,
        address: u64,
        len: u32,
        datamatch: Option<u64>,
    ) -> Result<()> {
        self.ioevent(fd, address, len, datamatch, 0)
    }

    /// Undoes [`register_ioevent`](Self::register_ioevent) with the same arguments.
    ///
    /// # Errors
    /// ENOENT: there is none such.
    pub fn unregister_ioevent(
        &self,
        fd: &EventFd,
        address: u64,
        len: u32,
        datamatch: Option<u64>,
    ) -> Result<()> {
        self.ioevent(fd, address, len, datamatch, ioctl::IOEVENTFD_DEASSIGN)
    }

    fn ioevent(&self, fd: &EventFd, addr: u64, len: u32, datamatch: Option<u64>, flags: u32) -> Result<()> {
        let matching = if datamatch.is_some() { ioctl::IOEVENTFD_DATAMATCH } else { 0 };
        let request = Ioeventfd {
            datamatch: datamatch.unwrap_or(0),
            addr,
            len,
            fd: fd.as_raw_fd(),
            flags: flags | matching,
            pad: [0; 36],
        };
        // SAFETY: IOEVENTFD reads exactly one `Ioeventfd`, and takes its own reference to the
        // eventfd.
        check(unsafe { ioctl_with_ref(&self.vm, ioctl::IOEVENTFD.into(), &request) })?;
        Ok(())
    }

    /// Makes a part of the interrupt controller at guest physical `address`.
    ///
    /// # Errors
    /// ENOMEM, EFAULT, EINVAL.
    pub fn create_device(&self, device: IrqChipDevice, address: u64, size: u64) -> Result<()> {
        let dev_type = match device {
            IrqChipDevice::VgicV3Distributor => ioctl::DEVICE_VGIC_V3_DIST,
            IrqChipDevice::VgicV3Redistributor => ioctl::DEVICE_VGIC_V3_REDIST,
        };
        let mut request = CreateDevice {
            dev_type,
            id: 0,
            flags: 0,
            dev_addr: address,
            dev_reg_size: size,
            attr_addr: 0,
            attr_size: 0,
        };
        // SAFETY: CREATE_DEVICE reads and writes exactly one `CreateDevice`; with a zero attr_size
        // it follows no pointer.
        check(unsafe { ioctl_with_mut_ref(&self.vm, ioctl::CREATE_DEVICE.into(), &mut request) })?;
        Ok(())
    }

    /// Tells the hypervisor where the guest's device tree is.
    ///
    /// # Errors
    /// What the hypervisor's refusal maps to.
    pub fn set_dtb_config(&self, address: u64, size: u64) -> Result<()> {
        let config = DtbConfig { dtb_addr: address, dtb_size: size };
        // SAFETY: SET_DTB_CONFIG reads exactly one `DtbConfig`.
        check(unsafe { ioctl_with_ref(&self.vm, ioctl::SET_DTB_CONFIG.into(), &config) })?;
        Ok(())
    }

    /// Makes vCPU `id`. All but vCPU 0 stay off until the guest turns them on through PSCI.
    ///
    /// # Errors
    /// EINVAL: `id` is 8 or more; ENOMEM.
    pub fn create_vcpu(&self, id: u8) -> Result<VcpuFd> {
        // SAFETY: CREATE_VCPU takes a plain value and touches no memory of ours.
        let fd = check(unsafe { ioctl_with_val(&self.vm, ioctl::CREATE_VCPU.into(), id.into()) })?;
        // SAFETY: the driver has just returned this descriptor to us, so nobody else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        let mapped = matches!(self.check_extension(extension::RUN_MMAP), Ok(Some(1)));
        Ok(if mapped { VcpuFd::with_mapping(file) } else { VcpuFd::new(file) })
    }
}

impl AsFd for VmFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.vm.as_fd()
    }
}

impl AsRawFd for VmFd {
    fn as_raw_fd(&self) -> RawFd {
        self.vm.as_raw_fd()
    }
}
