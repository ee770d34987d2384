// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A VM as a driver makes it: the calls of gen F in their order, and the run loop.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use gzvm_abi::hypercall::{Function, REGION_BUFFER_SIZE, RegionHeader, Status, Tuple, cap, purpose};
use gzvm_abi::ioctl::{self, CreateDevice};
use gzvm_abi::reg;
use gzvm_abi::run::{Bell, Exception, HWSTATE_OFFSET, HwState, Mmio, VcpuRun, exception, exit};
use gzvm_guest_kit::case::{Outcome, Verdict};
use gzvm_guest_kit::hypercall::{self, Reply};
use gzvm_guest_kit::{arch, fail, smp, timer};

use crate::pages;
use crate::programs::{GICD, RAM};

/// Pages of a VM's memory.
pub const RAM_PAGES: u64 = 512;
const PSTATE_EL1H_MASKED: u64 = 0x3C5;
/// How long a guest may run without saying anything.
const PATIENCE_MS: u64 = 10_000;

/// A VM with one slot of 2 MiB at [`RAM`]. Dropping it destroys it.
pub struct Vm {
    /// Its id.
    pub id: u16,
    /// Host address of its memory.
    pub memory: u64,
    /// Host addresses of the vCPUs' shared pages.
    pub shared: [u64; 2],
    /// The page that MAP_GUEST_BLOCK reads.
    pub mailbox: u64,
    /// Page faults answered so far.
    pub faults: u64,
    /// Every RUN on another CPU than the one before: on CPU 1 and on this one.
    pub wanders: bool,
    /// The last doorbell that an exit told of.
    pub bell: Option<Bell>,
    on_other: core::cell::Cell<bool>,
    destroyed: bool,
}

/// What keeps the host out of a VM.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protection {
    None,
    /// Its memory and registers are its own.
    Private,
    /// And it starts with the hypervisor's firmware, at [`RAM`].
    Firmware,
}

/// The reply of a call that has to succeed.
pub fn must(reply: Reply, what: &str) -> Result<Reply, Verdict> {
    if reply.ok() { Ok(reply) } else { Err(Verdict::fail(format_args!("{what}: x0 = {:#x}", reply.x0))) }
}

/// CREATE_VM. The caller destroys it.
pub fn create_bare() -> Result<u16, Verdict> {
    let reply = must(hypercall::call(Function::CreateVm, &[0]), "CREATE_VM")?;
    Ok(reply.values[0] as u16)
}

/// DESTROY_VM until it is done; how many calls that took.
pub fn destroy(id: u16) -> Result<u32, Verdict> {
    let mut calls = 0;
    let mut last = None;
    let done = timer::wait_ms(PATIENCE_MS, || {
        calls += 1;
        last = hypercall::call(Function::DestroyVm, &[id.into(), 128]).status();
        last != Some(Status::Busy)
    });
    if done && last == Some(Status::Success) {
        Ok(calls)
    } else {
        Err(Verdict::fail(format_args!("DESTROY_VM {id}: {last:?} after {calls} calls")))
    }
}

impl Vm {
    /// A VM with `vcpus` vCPUs whose memory starts with `program`; vCPU 0 starts there.
    pub fn new(program: &[u8], vcpus: u16) -> Result<Self, Verdict> {
        let memory = pages::take(RAM_PAGES, 2 << 20);
        Self::with_memory(program, vcpus, memory)
    }

    /// As [`new`](Self::new), a protected VM.
    pub fn protected(program: &[u8], vcpus: u16) -> Result<Self, Verdict> {
        Self::make(program, vcpus, pages::take(RAM_PAGES, 2 << 20), Protection::Private, None)
    }

    /// A protected VM with the hypervisor's firmware in its memory, which has `content` at first.
    pub fn with_firmware(content: &[u8], vcpus: u16) -> Result<Self, Verdict> {
        Self::make(content, vcpus, pages::take(RAM_PAGES, 2 << 20), Protection::Firmware, None)
    }

    /// As [`new`](Self::new), in memory the caller has.
    pub fn with_memory(program: &[u8], vcpus: u16, memory: u64) -> Result<Self, Verdict> {
        Self::make(program, vcpus, memory, Protection::None, None)
    }

    /// As [`new`](Self::new), with one vCPU and so many SPIs.
    pub fn with_spis(program: &[u8], spis: u64) -> Result<Self, Verdict> {
        let first = Some((Function::VgicSpis, spis));
        Self::make(program, 1, pages::take(RAM_PAGES, 2 << 20), Protection::None, first)
    }

    /// As [`protected`](Self::protected), with one vCPU and these features.
    pub fn protected_with_features(program: &[u8], mask: u64) -> Result<Self, Verdict> {
        let first = Some((Function::VmFeatures, mask));
        Self::make(program, 1, pages::take(RAM_PAGES, 2 << 20), Protection::Private, first)
    }

    fn make(
        program: &[u8],
        vcpus: u16,
        memory: u64,
        protection: Protection,
        first: Option<(Function, u64)>,
    ) -> Result<Self, Verdict> {
        for (i, byte) in program.iter().enumerate() {
            pages::put(memory + i as u64, *byte);
        }
        arch::sync_code(memory as usize, program.len());
        clean(memory, RAM_PAGES * 4096);
        let mut vm = Self {
            id: create_bare()?,
            memory,
            shared: [pages::take(2, 4096), pages::take(2, 4096)],
            mailbox: pages::take(1, 4096),
            faults: 0,
            wanders: false,
            bell: None,
            on_other: core::cell::Cell::new(false),
            destroyed: false,
        };
        vm.set_up(vcpus, protection, first)?;
        Ok(vm)
    }

    /// A call about this VM: x1 is its id, `args` follow.
    pub fn call(&self, function: Function, args: &[u64]) -> Reply {
        let mut all = [0; 7];
        all[0] = self.id.into();
        for (to, from) in all[1..].iter_mut().zip(args) {
            *to = *from;
        }
        hypercall::call(function, &all)
    }

    fn set_up(
        &mut self,
        vcpus: u16,
        protection: Protection,
        first: Option<(Function, u64)>,
    ) -> Result<(), Verdict> {
        if let Some((function, argument)) = first {
            must(self.call(function, &[argument]), "VGIC_SPIS or VM_FEATURES")?;
        }
        must(self.call(Function::EnableCap, &[cap::ENABLE_DEMAND_PAGING]), "ENABLE_CAP demand paging")?;
        let block = self.call(Function::EnableCap, &[cap::BLOCK_BASED_DEMAND_PAGING, 2 << 20, self.mailbox]);
        must(block, "ENABLE_CAP block paging")?;
        must(self.call(Function::EnableCap, &[cap::ENABLE_IDLE]), "ENABLE_CAP idle")?;
        let bytes = RAM_PAGES * 4096;
        let known = self.call(Function::MemregionPurpose, &[RAM, bytes, purpose::GUEST_MEM.into()]);
        must(known, "MEMREGION_PURPOSE")?;
        let buffer = pages::take(2, 4096);
        // The count is not initialised by public drivers.
        let header = RegionHeader { slot: 0, constituent_cnt: 0xDEAD, total_pages: RAM_PAGES, gpa: RAM };
        pages::put(buffer, header);
        must(self.call(Function::SetMemregion, &[REGION_BUFFER_SIZE, buffer]), "SET_MEMREGION")?;
        let page = pages::take(1, 4096);
        let redistributors = 0x2_0000 * u64::from(vcpus);
        for (dev_type, dev_addr, dev_reg_size) in [
            (ioctl::DEVICE_VGIC_V3_DIST, GICD, 0x1_0000),
            (ioctl::DEVICE_VGIC_V3_REDIST, GICD - redistributors, redistributors),
        ] {
            let device = CreateDevice {
                dev_type,
                id: 0,
                flags: 0,
                dev_addr,
                dev_reg_size,
                attr_addr: 0,
                attr_size: 0,
            };
            pages::put(page, device);
            must(self.call(Function::CreateDevice, &[page]), "CREATE_DEVICE")?;
        }
        let command = match protection {
            Protection::None => None,
            Protection::Private => Some(cap::protected::SET_PROTECTED_VM),
            Protection::Firmware => Some(cap::protected::SET_PVMFW_GPA),
        };
        if let Some(command) = command {
            let call = self.call(Function::EnableCap, &[cap::PROTECTED_VM, command, RAM]);
            must(call, "ENABLE_CAP protected")?;
        }
        for vcpu in 0..vcpus {
            let tuple = self.tuple(vcpu);
            let shared = self.shared[vcpu as usize];
            must(hypercall::call(Function::CreateVcpu, &[tuple, shared]), "CREATE_VCPU")?;
            self.set_reg(vcpu, reg::PSTATE, PSTATE_EL1H_MASKED)?;
        }
        if protection == Protection::Firmware || vcpus == 0 {
            return Ok(());
        }
        self.set_reg(0, reg::PC, RAM)
    }

    /// x1 of the calls about a vCPU.
    pub fn tuple(&self, vcpu: u16) -> u64 {
        Tuple { vm: self.id, vcpu }.to_reg()
    }

    /// SET_ONE_REG.
    pub fn set_reg(&self, vcpu: u16, id: u64, value: u64) -> Outcome {
        must(hypercall::call(Function::SetOneReg, &[self.tuple(vcpu), id, value]), "SET_ONE_REG").map(drop)
    }

    /// What RUN reported.
    pub fn report(&self, vcpu: u16) -> VcpuRun {
        pages::get(self.shared[vcpu as usize])
    }

    /// The hardware state page.
    pub fn hwstate(&self, vcpu: u16) -> HwState {
        pages::get(self.shared[vcpu as usize] + HWSTATE_OFFSET)
    }

    /// RUN once; the exit reason.
    pub fn run_once(&self, vcpu: u16) -> u32 {
        if self.wanders && !self.on_other.replace(!self.on_other.get()) {
            return run_on_second(self.tuple(vcpu));
        }
        hypercall::call(Function::Run, &[self.tuple(vcpu)]).values[0] as u32
    }

    /// MAP_GUEST of the page at `gpa` to where its content is.
    pub fn map(&self, gpa: u64) -> Reply {
        let pfn = (self.memory + (gpa - RAM)) >> 12;
        self.call(Function::MapGuest, &[0, pfn, gpa >> 12, 1])
    }

    /// Runs until there is an exit that is not the driver's own business.
    pub fn run(&mut self, vcpu: u16) -> Result<u32, Verdict> {
        let start = timer::now();
        loop {
            let reason = self.run_once(vcpu);
            let report = self.report(vcpu);
            if report.exit_reason != reason {
                fail!("exit reason {reason:#x} in x1, {:#x} in the page", report.exit_reason);
            }
            match reason {
                exit::GZ | exit::IPI => {}
                exit::BELL => self.bell = Some(Bell::read(&report)),
                exit::IRQ => {
                    // A host takes its interrupts now.
                    arch::irq_enable();
                    arch::isb();
                    arch::irq_disable();
                }
                exit::EXCEPTION => {
                    let fault = Exception::read(&report);
                    let inside = (RAM..RAM + RAM_PAGES * 4096).contains(&fault.fault_gpa);
                    if fault.exception != exception::PAGE_FAULT || !inside {
                        return Ok(reason);
                    }
                    if report.payload[2..].iter().any(|w| *w != 0) {
                        fail!("reserved words of the page fault are not zero");
                    }
                    must(self.map(fault.fault_gpa & !0xFFF), "MAP_GUEST")?;
                    self.faults += 1;
                }
                _ => return Ok(reason),
            }
            if timer::now() - start > timer::frequency() / 1000 * PATIENCE_MS {
                fail!("the guest runs on (last exit {reason:#x})");
            }
        }
    }

    /// Runs until the guest stores to the device; offset in it and value.
    pub fn run_to_store(&mut self, vcpu: u16) -> Result<(u64, u64), Verdict> {
        let reason = self.run(vcpu)?;
        self.stored(vcpu, reason)
    }

    /// What the guest stored to the device, by which its run ended.
    pub fn stored(&self, vcpu: u16, reason: u32) -> Result<(u64, u64), Verdict> {
        let mmio = Mmio::read(&self.report(vcpu));
        if reason != exit::MMIO || mmio.is_write == 0 {
            fail!("exit {reason:#x} (write {}), not a store", mmio.is_write);
        }
        let mut bytes = [0; 8];
        let size = (mmio.size as usize).min(8);
        bytes[..size].copy_from_slice(&mmio.data[..size]);
        Ok((mmio.phys_addr - crate::programs::DEVICE, u64::from_le_bytes(bytes)))
    }

    /// Answers the load that RUN reported.
    pub fn answer(&self, vcpu: u16, value: u64) {
        let mut report = self.report(vcpu);
        let mut mmio = Mmio::read(&report);
        mmio.data = value.to_le_bytes();
        mmio.write(&mut report);
        pages::put(self.shared[vcpu as usize], report);
    }

    /// Destroys the VM; how many calls that took.
    pub fn destroy(mut self) -> Result<u32, Verdict> {
        self.destroyed = true;
        destroy(self.id)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if !self.destroyed {
            let _ = destroy(self.id);
        }
    }
}

/// RUN on CPU 1, which is off before and afterwards; 0 if that fails.
fn run_on_second(tuple: u64) -> u32 {
    static TUPLE: AtomicU64 = AtomicU64::new(0);
    static REASON: AtomicU32 = AtomicU32::new(0);
    TUPLE.store(tuple, SeqCst);
    REASON.store(0, SeqCst);
    let started = smp::start(1, || {
        REASON.store(hypercall::call(Function::Run, &[TUPLE.load(SeqCst)]).values[0] as u32, SeqCst);
    });
    if started.is_err() || smp::join(1).is_err() {
        return 0;
    }
    REASON.load(SeqCst)
}

/// Cleans memory to where a guest with its MMU off looks.
pub fn clean(start: u64, bytes: u64) {
    for line in (start..start + bytes).step_by(16) {
        // SAFETY: cleaning keeps the content.
        unsafe { core::arch::asm!("dc civac, {}", in(reg) line, options(nostack)) };
    }
    arch::dsb();
}
