// SPDX-License-Identifier: GPL-2.0-only
//! A VM: its ioctls, and its end.
//!
//! References: the VM's file, each vCPU's file, each irqfd. The last to go destroys it, in this order: vCPUs, the VM (as
//! often as the hypervisor says busy), then pins and pages. If the hypervisor refuses, everything it may still use
//! is leaked.
//!
//! Only the process that created it may use it: ioctls from another address space are EIO, since slots are addresses of the
//! creator.

use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use gzvm_abi::digest;
use gzvm_abi::hypercall::{Function, IRQ_LEVEL_RESAMPLE, Tuple, cap};
use gzvm_abi::ioctl::{
    self, Control, CreateDevice, Discard, DtbConfig, EnableCap, Ioeventfd, IrqLevel, Irqfd, Measurement,
    RpcPolicy, UserspaceMemoryRegion, VgicSpis, Watch, extension,
};
use gzvm_abi::run::Bell;
use gzvm_abi::{MAX_VCPUS, MAX_VCPUS_EXTENDED, control};

use crate::broken::{Mistake, broken};
use crate::channel::Channel;
use crate::counters::{VMS, WAKE_UPS};
use crate::device::{self, BLOCK_PAGES, check_extension, destroy_batch, has_function};
use crate::hypercall::{Reply, call, retry};
use crate::ioeventfd::IoEventFds;
use crate::irqfd::IrqFds;
use crate::kernel::mm::Mm;
use crate::kernel::page::Pages;
use crate::kernel::print::{pr_err, pr_info};
use crate::kernel::sync::{Class, Mutex};
use crate::kernel::{Arc, KBox, KVec, OnceBox, Result, code, file, task, uaccess};
use crate::memory::{Memory, Paging};
use crate::vcpu::Vcpu;

const PAGE_SIZE: u64 = gzvm_abi::PAGE_SIZE;
/// The type in an interrupt number of IRQ_LINE.
const IRQ_TYPE: u32 = 0xF << 24;
const IRQ_TYPE_PPI: u32 = 2 << 24;
/// Tries of a call that must not sleep.
const ATOMIC_TRIES: u32 = 100;
/// Calls of DESTROY_VM in a row before it gets some rest.
const DESTROY_BURST: u32 = 1 << 16;
/// And of CONTROL while a pause is under way.
const CONTROL_BURST: u32 = 64;

/// A VM.
pub struct Vm {
    id: u16,
    mm: Mm,
    /// Taken out only at the end.
    memory: Option<Mutex<Memory>>,
    vcpus: [OnceBox<Vcpu>; MAX_VCPUS_EXTENDED],
    /// Ids below this may be created: more than the public driver's after the client has asked.
    vcpu_limit: AtomicUsize,
    /// Highest id created, plus one.
    vcpu_count: AtomicUsize,
    creating: Mutex<()>,
    ioeventfds: IoEventFds,
    irqfds: IrqFds,
    channels: Mutex<KVec<Arc<Channel>>>,
    /// IRQ_LINE drives levels.
    levels: AtomicBool,
}

/// A vCPU's file: keeps the VM.
pub struct VcpuFile {
    vm: Arc<Vm>,
    index: usize,
}

impl Vm {
    /// CREATE_VM: a new VM's file descriptor.
    pub fn create(vm_type: u64) -> Result<i64> {
        let vm = Arc::new(Self::new(vm_type)?)?;
        file::vm_fd(vm)
    }

    fn new(vm_type: u64) -> Result<Self> {
        let memory = Memory::new()?;
        let mailbox = memory.mailbox_pa();
        let mm = Mm::current()?;
        let creating = Mutex::new(Class::Create, ())?;
        let ioeventfds = IoEventFds::new()?;
        let irqfds = IrqFds::new()?;
        let channels = Mutex::new(Class::Channels, KVec::new())?;
        let memory = Mutex::new(Class::Memory, memory)?;

        let id = call(Function::CreateVm, [vm_type])?.x1 as u16;
        let demand =
            |cap, args: [u64; 2]| call(Function::EnableCap, [id.into(), cap, args[0], args[1]]).is_ok();
        let paging = if !demand(cap::ENABLE_DEMAND_PAGING, [0, 0]) {
            Paging::Eager
        } else if demand(cap::BLOCK_BASED_DEMAND_PAGING, [BLOCK_PAGES * PAGE_SIZE, mailbox]) {
            Paging::Block
        } else {
            Paging::Single
        };
        if !demand(cap::ENABLE_IDLE, [0, 0]) {
            pr_info!("VM {id}: the hypervisor handles idle vCPUs itself");
        }
        memory.lock().start(id, paging);
        VMS.add(1);
        Ok(Self {
            id,
            mm,
            memory: Some(memory),
            vcpus: [const { OnceBox::new() }; MAX_VCPUS_EXTENDED],
            vcpu_limit: AtomicUsize::new(MAX_VCPUS),
            vcpu_count: AtomicUsize::new(0),
            creating,
            ioeventfds,
            irqfds,
            channels,
            levels: AtomicBool::new(false),
        })
    }

    /// An ioctl of the VM's file.
    pub fn ioctl(this: &Arc<Self>, cmd: u32, arg: u64) -> Result<i64> {
        if !this.mm.is_current() {
            return Err(code::EIO);
        }
        let done = |()| 0;
        match cmd {
            ioctl::CHECK_EXTENSION => this.check_extension(arg),
            ioctl::CREATE_VCPU => Self::create_vcpu(this, arg),
            ioctl::SET_USER_MEMORY_REGION => {
                let region = uaccess::read::<UserspaceMemoryRegion>(arg)?;
                this.memory()?.lock_interruptible()?.set_region(&region).map(done)
            }
            ioctl::DISCARD => {
                let range = uaccess::read::<Discard>(arg)?;
                this.memory()?.lock_interruptible()?.discard(&range).map(done)
            }
            ioctl::IRQ_LINE => this.set_line(&uaccess::read::<IrqLevel>(arg)?).map(done),
            ioctl::IRQFD => this.irqfds.set(this, &uaccess::read::<Irqfd>(arg)?).map(done),
            ioctl::IOEVENTFD => this.ioeventfds.set(&uaccess::read::<Ioeventfd>(arg)?).map(done),
            ioctl::ENABLE_CAP => this.enable_cap(arg).map(done),
            ioctl::CREATE_DEVICE => this.create_device(uaccess::read::<CreateDevice>(arg)?).map(done),
            ioctl::CONTROL => this.control(arg).map(done),
            ioctl::SET_WATCH => this.set_watch(&uaccess::read::<Watch>(arg)?).map(done),
            ioctl::VM_FEATURES if has_function(Function::VmFeatures) => {
                let mask = uaccess::read::<u64>(arg)?;
                call(Function::VmFeatures, [this.id.into(), mask]).map(|_| 0)
            }
            ioctl::MEASUREMENT => this.measurement(arg).map(done),
            ioctl::RPC_POLICY => this.set_rpc_policy(&uaccess::read(arg)?).map(done),
            ioctl::RPC_CONNECT if has_function(Function::RpcConnect) => {
                Channel::connect(this, &uaccess::read(arg)?)
            }
            ioctl::VGIC_SPIS => this.set_spis(&uaccess::read::<VgicSpis>(arg)?).map(done),
            ioctl::SET_DTB_CONFIG => {
                let dtb = uaccess::read::<DtbConfig>(arg)?;
                call(Function::SetDtbConfig, [this.id.into(), dtb.dtb_addr, dtb.dtb_size]).map(|_| 0)
            }
            _ => Err(code::ENOTTY),
        }
    }

    /// As on the device; and who asks for levels or for more vCPUs on a VM's file gets them.
    fn check_extension(&self, arg: u64) -> Result<i64> {
        let asked = uaccess::read::<u64>(arg)?;
        let answer = check_extension(arg)?;
        match asked {
            extension::IRQ_LEVEL => self.levels.store(true, Ordering::Relaxed),
            extension::MAX_VCPUS if has_function(Function::ExtInfo) => {
                self.vcpu_limit.store(MAX_VCPUS_EXTENDED, Ordering::Relaxed);
            }
            _ => {}
        }
        Ok(answer)
    }

    fn memory(&self) -> Result<&Mutex<Memory>> {
        self.memory.as_ref().ok_or(code::EIO)
    }

    fn create_vcpu(this: &Arc<Self>, id: u64) -> Result<i64> {
        let index = usize::try_from(id).map_err(|_| code::EINVAL)?;
        let place = this.vcpus.get(index).ok_or(code::EINVAL)?;
        if index >= this.vcpu_limit.load(Ordering::Relaxed) {
            return Err(code::EINVAL);
        }
        let _lock = this.creating.lock_interruptible()?;
        if place.get().is_some() {
            return Err(code::EEXIST);
        }
        let vcpu = Vcpu::create(Tuple { vm: this.id, vcpu: index as u16 })?;
        let fd = file::vcpu_fd(index as u32, KBox::new(VcpuFile { vm: Arc::clone(this), index })?)?;
        // Only after the descriptor, which may fail. Users of the descriptor that are faster wait for the lock.
        let _ = place.set(vcpu);
        this.vcpu_count.fetch_max(index.saturating_add(1), Ordering::Release);
        Ok(fd)
    }

    /// CONTROL. EINVAL: unknown, or the VM is over. A pause is complete when it returns.
    fn control(&self, arg: u64) -> Result {
        let mut request = uaccess::read::<Control>(arg)?;
        if !has_function(Function::Control) {
            return Err(code::ENOTTY);
        }
        if request.reserved != [0; 2] {
            return Err(code::EINVAL);
        }
        let mut calls = 0_u32;
        let pause = || {
            // The last vCPU is on its way out; with a signal pending the caller comes again.
            calls = calls.wrapping_add(1);
            if task::signal_pending() {
                return Err(code::EINTR);
            }
            if calls.is_multiple_of(CONTROL_BURST) {
                task::msleep(1)
            } else {
                task::cond_resched()
            }
            Ok(())
        };
        let control = || call(Function::Control, [self.id.into(), request.what.into()]);
        let reply = retry(u32::MAX, control, pause)?;
        if request.what == control::RESUME {
            self.wake(u64::MAX);
        }
        request.state = reply.x1 as u32;
        request.events = reply.x2;
        uaccess::write(arg, &request)
    }

    /// SET_WATCH. EOPNOTSUPP: a kind that can't be watched; EINVAL: other values, or a vCPU has run.
    fn set_watch(&self, watch: &Watch) -> Result {
        if !has_function(Function::SetWatch) {
            return Err(code::ENOTTY);
        }
        if watch.reserved != [0; 2] {
            return Err(code::EINVAL);
        }
        let args = [self.id.into(), watch.kinds.into(), watch.action.into(), watch.stall_ms];
        call(Function::SetWatch, args).map(drop)
    }

    /// MEASUREMENT. EOPNOTSUPP: the VM is not protected, or has not run; EAGAIN: the guest changes it just now.
    fn measurement(&self, arg: u64) -> Result {
        if !has_function(Function::Measurement) {
            return Err(code::ENOTTY);
        }
        let half = |n| call(Function::Measurement, [self.id.into(), n]);
        let (low, high) = (half(0)?, half(1)?);
        if low.x3 != high.x3 {
            return Err(code::EAGAIN);
        }
        let value = digest::from_words([low.x1, low.x2, high.x1, high.x2]);
        uaccess::write(arg, &Measurement { value, state: low.x3 })
    }

    /// RPC_POLICY. EINVAL: a value, or the VM has run, or has a policy.
    fn set_rpc_policy(&self, policy: &RpcPolicy) -> Result {
        if !has_function(Function::RpcPolicy) {
            return Err(code::ENOTTY);
        }
        if policy.reserved != 0 {
            return Err(code::EINVAL);
        }
        let args = [self.id.into(), policy.spi.into(), policy.with.into(), policy.channels.into()];
        call(Function::RpcPolicy, args).map(drop)
    }

    /// Its id.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// It is at one end of a channel.
    pub fn join(&self, channel: Arc<Channel>) -> Result {
        let mut channels = self.channels.lock();
        channels.reserve_one()?;
        channels.push_within_capacity(channel).map_err(|_| code::ENOMEM)
    }

    /// No longer. What was the last reference goes after the lock.
    pub fn leave(&self, handle: u64) {
        let mut channels = self.channels.lock();
        let place = channels.iter().position(|channel| channel.handle() == handle);
        let channel = place.and_then(|n| channels.swap_remove(n));
        drop(channels);
        drop(channel);
    }

    /// All its channels are over.
    pub fn close_channels(&self) {
        loop {
            let last = self.channels.lock().pop();
            let Some(channel) = last else { return };
            channel.close();
        }
    }

    /// A call of the guest's concerns somebody else.
    pub fn bell(&self, bell: &Bell) {
        let channels = self.channels.lock();
        if bell.handle != 0 {
            let channel = channels.iter().find(|channel| channel.handle() == bell.handle).cloned();
            drop(channels);
            if let Some(channel) = channel {
                channel.rung(bell.what);
            }
            return;
        }
        let mut peers = channels.iter().filter_map(|channel| channel.peer_of(self.id));
        let peer = peers.find(|vm| u32::from(vm.id) == bell.vm).cloned();
        drop(channels);
        if let Some(peer) = peer {
            peer.wake(bell.vcpus);
        }
    }

    /// VGIC_SPIS. EINVAL: no such number, or the VM has a vCPU.
    fn set_spis(&self, request: &VgicSpis) -> Result {
        if !has_function(Function::VgicSpis) {
            return Err(code::ENOTTY);
        }
        if request.reserved != [0; 3] {
            return Err(code::EINVAL);
        }
        call(Function::VgicSpis, [self.id.into(), request.spis.into()]).map(drop)
    }

    /// ENABLE_CAP: only what makes a VM protected. EINVAL for all else.
    fn enable_cap(&self, arg: u64) -> Result {
        let mut request = uaccess::read::<EnableCap>(arg)?;
        let [command, a1, a2, a3, a4] = request.args;
        if request.cap != cap::PROTECTED_VM {
            return Err(code::EINVAL);
        }
        let enable = || call(Function::EnableCap, [self.id.into(), request.cap, command, a1, a2, a3, a4]);
        match command {
            cap::protected::GET_PVMFW_SIZE => {
                let size = enable().map_err(|_| code::EINVAL)?.x1;
                let [_, answer, ..] = &mut request.args;
                *answer = size;
                uaccess::write(arg, &request)
            }
            cap::protected::SET_PVMFW_GPA | cap::protected::SET_PROTECTED_VM => {
                // A protected VM may fault only by blocks: what can't is filled now.
                let mut memory = self.memory()?.lock_interruptible()?;
                if memory.paging() == Paging::Single {
                    memory.populate_all()?;
                }
                enable()?;
                memory.protect();
                Ok(())
            }
            _ => Err(code::EINVAL),
        }
    }

    fn create_device(&self, mut device: CreateDevice) -> Result {
        if device.attr_size > PAGE_SIZE {
            return Err(code::EINVAL);
        }
        let attributes = Pages::<0>::new()?;
        let page = Pages::<0>::new()?;
        if device.attr_size != 0 {
            attributes.fill_from_user(device.attr_addr, device.attr_size as usize)?;
            device.attr_addr = attributes.pa();
        } else {
            device.attr_addr = 0;
        }
        page.store::<CreateDevice, 0>(device);
        call(Function::CreateDevice, [self.id.into(), page.pa()]).map(drop)
    }

    /// IRQ_LINE: a pulse, unless the interrupt is a line by now.
    fn set_line(&self, line: &IrqLevel) -> Result {
        let vcpu = (line.irq >> 16 & 0xFF | (line.irq >> 28) << 8) as u16;
        // The type tells PPIs of a vCPU; every other type means an SPI.
        let ppi = line.irq & IRQ_TYPE == IRQ_TYPE_PPI;
        let number = line.irq & 0xFFFF;
        let irq = (number | if ppi { IRQ_TYPE_PPI } else { 0 }).into();
        let resample = !ppi && self.irqfds.resamples(number);
        if resample || self.levels.load(Ordering::Relaxed) {
            self.irq_level(vcpu, irq, line.level.into(), resample)
        } else {
            self.irq_line(vcpu, irq, line.level.into())
        }
    }

    /// Sets an interrupt line, and wakes who has to look. EFAULT if the hypervisor refuses. Any context.
    pub fn irq_line(&self, vcpu: u16, irq: u64, level: u64) -> Result {
        let tuple = Tuple { vm: self.id, vcpu };
        self.raise(level, || call(Function::IrqLine, [tuple.to_reg(), irq, level]))
    }

    /// Drives an interrupt line until the next call; else as [`irq_line`](Self::irq_line).
    pub fn irq_level(&self, vcpu: u16, irq: u64, level: u64, resample: bool) -> Result {
        let tuple = Tuple { vm: self.id, vcpu };
        let flags = if resample { IRQ_LEVEL_RESAMPLE } else { 0 };
        self.raise(level, || call(Function::IrqLevel, [tuple.to_reg(), irq, level, flags]))
    }

    fn raise(&self, level: u64, line: impl FnMut() -> Result<Reply>) -> Result {
        let result = retry(ATOMIC_TRIES, line, || Ok(()));
        // After the interrupt is latched, so that whoever wakes finds it.
        match &result {
            _ if level == 0 => {}
            Ok(reply) => self.wake(device::sleepers(reply.x1)),
            Err(_) => self.wake(u64::MAX),
        }
        result.map(drop).map_err(|_| code::EFAULT)
    }

    /// Lets the vCPUs of `mask` (bit n: vCPU n) look for interrupts, if they sleep. Any context.
    pub fn wake(&self, mask: u64) {
        let count = self.vcpu_count.load(Ordering::Acquire);
        for (n, place) in self.vcpus.iter().take(count).enumerate() {
            if mask.checked_shr(n as u32).is_none_or(|rest| rest & 1 != 0)
                && let Some(vcpu) = place.get()
            {
                WAKE_UPS.add(1);
                vcpu.wake();
            }
        }
    }

    /// The guest touched a page that is not there.
    pub fn fault(&self, gpa: u64) -> Result {
        self.memory()?.lock_interruptible()?.fault(gpa)
    }

    /// The guest gave a page back.
    pub fn relinquish(&self, gpa: u64) {
        if let Ok(memory) = self.memory() {
            memory.lock().relinquish(gpa);
        }
    }

    /// The guest stops sharing a page with the host.
    pub fn unshare(&self, vcpu: Tuple, gpa: u64) {
        if let Ok(memory) = self.memory() {
            memory.lock().unshare(vcpu, gpa);
        }
    }

    /// Its ioeventfds.
    pub fn ioeventfds(&self) -> &IoEventFds {
        &self.ioeventfds
    }

    /// Its irqfds.
    pub fn irqfds(&self) -> &IrqFds {
        &self.irqfds
    }

    /// The VM's file is closed: vCPU files may go on, eventfds no longer.
    pub fn release(this: Arc<Self>) {
        if !broken(Mistake::KeepIrqfds) {
            this.irqfds.clear();
        }
        this.ioeventfds.clear();
        this.close_channels();
    }
}

impl VcpuFile {
    /// An ioctl of the vCPU's file.
    pub fn ioctl(&self, cmd: u32, arg: u64) -> Result<i64> {
        if !self.vm.mm.is_current() {
            return Err(code::EIO);
        }
        let vcpu = self.vcpu()?;
        match cmd {
            ioctl::RUN => vcpu.run(&self.vm, arg),
            ioctl::SET_ONE_REG => vcpu.set_reg(&uaccess::read(arg)?),
            ioctl::GET_ONE_REG => vcpu.get_reg(&uaccess::read(arg)?),
            _ => Err(code::ENOTTY),
        }
        .map(|()| 0)
    }

    /// The page that user space may map.
    pub fn run_page(&self) -> Result<*mut c_void> {
        if !self.vm.mm.is_current() {
            return Err(code::EIO);
        }
        self.vcpu()?.run_page()
    }

    fn vcpu(&self) -> Result<&Vcpu> {
        let place = self.vm.vcpus.get(self.index).ok_or(code::EIO)?;
        if let Some(vcpu) = place.get() {
            return Ok(vcpu);
        }
        // Being created just now.
        let _lock = self.vm.creating.lock_interruptible()?;
        place.get().ok_or(code::EIO)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // The shared pages must outlive the VM in the hypervisor, should DESTROY_VCPU fail.
        let vcpus = self.vcpus.each_mut().map(OnceBox::take);
        for vcpu in vcpus.iter().flatten() {
            vcpu.destroy();
        }
        let mut calls = 0_u32;
        let result = loop {
            match call(Function::DestroyVm, [self.id.into(), destroy_batch()]) {
                Err(code::EAGAIN) => task::cond_resched(),
                other => break other,
            }
            calls = calls.wrapping_add(1);
            if calls.is_multiple_of(DESTROY_BURST) {
                task::msleep(1);
            }
        };
        if let Err(e) = result {
            pr_err!(
                "VM {}: the hypervisor does not destroy it (error {}). Its memory stays pinned until the machine restarts",
                self.id,
                -e.to_errno()
            );
            core::mem::forget(vcpus);
            core::mem::forget(self.memory.take());
        }
        VMS.sub(1);
    }
}
