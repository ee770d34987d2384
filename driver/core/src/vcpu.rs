// SPDX-License-Identifier: GPL-2.0-only
//! A vCPU: its shared pages, its run loop, its registers.
//!
//! Each exit is a value, [`Next`], and [`Vcpu::enter`] is the one loop over them:
//!
//! ```text
//!            +--- signal pending ---> INFORM_EXIT, ERESTARTSYS
//!            |
//!  RUN --> [ check signal, clear waiter, hypercall RUN ] <--+
//!                        | exit                             |
//!                        +-- Again --- cond_resched --------+
//!                        +-- Sleep --- waiter.sleep --------+
//!                        +-- User ---> copy out, return 0
//! ```
//!
//! Run structures come in two ways: copied from and to the argument, or in a page that user space has mapped. That
//! page is not the one the hypervisor sees: user space may write it at any time, so it is read once before the loop
//! (no more than the answer to the last exit) and written after it.
//!
//! An exit that user space has to see is returned before any signal is looked at, so none is lost. The waiter is cleared before
//! the hypervisor looks for interrupts, and woken after one is latched there, so no wake-up is lost either.

use core::ffi::c_void;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, Ordering};

use gzvm_abi::guest::{MEM_RELINQUISH, PTP};
use gzvm_abi::hypercall::{Function, Tuple};
use gzvm_abi::ioctl::OneReg;
use gzvm_abi::reg;
use gzvm_abi::run::{
    Bell, Exception, FailEntry, HWSTATE_OFFSET, HwState, Hypercall, Mmio, PAYLOAD_OFFSET, Resampled, Unshare,
    VcpuRun, exception, exit, reason,
};

use crate::counters::{FAULTS, IOEVENTS, VCPUS};
use crate::device;
use crate::hypercall::{self, call};
use crate::kernel::page::Pages;
use crate::kernel::print::pr_warn;
use crate::kernel::sync::{Class, Mutex, Waiter};
use crate::kernel::{KBox, OnceBox, Result, code, task, uaccess};
use crate::vm::Vm;

/// Bytes of the run structure in user space.
const RUN_SIZE: usize = size_of::<VcpuRun>();
/// Where user space asks RUN to return at once; never written by us, since a signal handler may write it at any time.
const IMMEDIATE_EXIT: usize = offset_of!(VcpuRun, immediate_exit);
const IMMEDIATE_EXIT_END: usize = offset_of!(VcpuRun, payload);
const PAYLOAD: usize = PAYLOAD_OFFSET;
const PAYLOAD_END: usize = PAYLOAD + size_of::<[u64; 32]>();
/// Behind an exception in its payload.
const RESERVED: usize = PAYLOAD + size_of::<Exception>();
const MMIO_DATA: usize = PAYLOAD + offset_of!(Mmio, data);
const HWSTATE: usize = HWSTATE_OFFSET as usize;
/// INTID of the SPI that user space numbers 0.
const FIRST_SPI: u32 = 32;
/// Where SMCCC callers see "not supported".
const SMCCC_NOT_SUPPORTED: u64 = -1_i64 as u64;

/// What to do after an exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    /// Enter the guest again.
    Again,
    /// Sleep for at most so many ns, then enter again.
    Sleep(u64),
    /// Return to user space with the exit.
    User,
}

/// Why the loop ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// An exit for user space.
    Exit,
    /// A signal.
    Signal,
}

/// A vCPU. Exists in the hypervisor from [`create`](Vcpu::create) until dropped.
pub struct Vcpu {
    tuple: Tuple,
    /// Page 0: [`VcpuRun`], page 1: [`HwState`]. The run lock guards them.
    shared: Pages<1>,
    /// The page that user space maps, from its first mapping on.
    mapped: OnceBox<Pages<0>>,
    run: Mutex<()>,
    waiter: Waiter,
    exists: AtomicBool,
}

impl Vcpu {
    /// Creates it in the hypervisor.
    pub fn create(tuple: Tuple) -> Result<KBox<Self>> {
        let shared = Pages::new()?;
        let run = Mutex::new(Class::Vcpu, ())?;
        let waiter = Waiter::new()?;
        let vcpu = KBox::new(Self {
            tuple,
            shared,
            mapped: OnceBox::new(),
            run,
            waiter,
            exists: AtomicBool::new(false),
        })?;
        call(Function::CreateVcpu, [tuple.to_reg(), vcpu.shared.pa()])?;
        vcpu.exists.store(true, Ordering::Relaxed);
        VCPUS.add(1);
        Ok(vcpu)
    }

    /// Destroys it in the hypervisor, once.
    pub fn destroy(&self) {
        if self.exists.swap(false, Ordering::Relaxed) {
            // Fails only if the VM is gone already; then so is this.
            let _ = call(Function::DestroyVcpu, [self.tuple.to_reg()]);
            VCPUS.sub(1);
        }
    }

    /// Makes it look again for interrupts, if it sleeps. Any context.
    pub fn wake(&self) {
        self.waiter.wake();
    }

    /// RUN; `arg` is the address of user space's run structure, or 0 for the mapped one.
    pub fn run(&self, vm: &Vm, arg: u64) -> Result {
        let _lock = self.run.lock_interruptible()?;
        match self.mapped.get() {
            Some(page) if arg == 0 => self.run_mapped(vm, page),
            _ => self.run_copied(vm, arg),
        }
    }

    /// The page for user space to map.
    pub fn run_page(&self) -> Result<*mut c_void> {
        if self.mapped.get().is_none() {
            // If another thread is faster, its page is it.
            let _ = self.mapped.set(KBox::new(Pages::new()?)?);
        }
        self.mapped.get().map(Pages::as_ptr).ok_or(code::ENOMEM)
    }

    fn run_mapped(&self, vm: &Vm, page: &Pages<0>) -> Result {
        may_run(page.load::<[u8; 4], IMMEDIATE_EXIT>())?;
        match self.shared.load::<u32, 0>() {
            exit::MMIO => self.shared.store::<u64, MMIO_DATA>(page.load::<u64, MMIO_DATA>()),
            exit::HYPERCALL => self.shared.store::<Hypercall, PAYLOAD>(page.load::<Hypercall, PAYLOAD>()),
            _ => {}
        }
        match self.enter(vm) {
            End::Exit => {
                let reason = self.shared.load::<u32, 0>();
                match reason {
                    exit::MMIO => page.store::<Mmio, PAYLOAD>(self.shared.load::<Mmio, PAYLOAD>()),
                    _ => page.store::<[u64; 32], PAYLOAD>(self.shared.load::<[u64; 32], PAYLOAD>()),
                }
                page.store::<u32, 0>(reason);
                Ok(())
            }
            End::Signal => {
                let _ = call(Function::InformExit, [self.tuple.vm.into()]);
                Err(code::ERESTARTSYS)
            }
        }
    }

    fn run_copied(&self, vm: &Vm, arg: u64) -> Result {
        self.shared.copy_from_user::<0, RUN_SIZE>(arg)?;
        may_run(self.shared.load::<[u8; 4], IMMEDIATE_EXIT>())?;
        let end = self.enter(vm);
        let copied = self.copy_out(arg);
        match end {
            End::Exit => copied,
            End::Signal => {
                let _ = call(Function::InformExit, [self.tuple.vm.into()]);
                copied?;
                Err(code::ERESTARTSYS)
            }
        }
    }

    fn copy_out(&self, arg: u64) -> Result {
        self.shared.copy_to_user::<0, IMMEDIATE_EXIT>(arg)?;
        let payload = arg.checked_add(PAYLOAD as u64).ok_or(code::EFAULT)?;
        self.shared.copy_to_user::<PAYLOAD, { RUN_SIZE - PAYLOAD }>(payload)
    }

    fn enter(&self, vm: &Vm) -> End {
        loop {
            if task::signal_pending() {
                return End::Signal;
            }
            self.waiter.clear();
            let (status, exit) = hypercall::run(self.tuple);
            match self.handle(vm, status, exit) {
                Next::Again => task::cond_resched(),
                Next::Sleep(ns) => self.waiter.sleep(ns),
                Next::User => return End::Exit,
            }
        }
    }

    fn handle(&self, vm: &Vm, status: Result, reason: u32) -> Next {
        match reason {
            exit::IRQ | exit::GZ => Next::Again,
            exit::MMIO => self.mmio(vm),
            exit::IDLE => self.idle(),
            exit::IPI => {
                vm.wake(device::sleepers(self.shared.load::<u64, PAYLOAD>()));
                Next::Again
            }
            exit::RESAMPLED => {
                let ended = self.shared.load::<Resampled, PAYLOAD>();
                for intid in ended.intids.iter().take(ended.count as usize) {
                    vm.irqfds().resampled(intid.saturating_sub(FIRST_SPI));
                }
                Next::Again
            }
            exit::UNSHARE => {
                vm.unshare(self.tuple, self.shared.load::<Unshare, PAYLOAD>().gpa);
                Next::Again
            }
            exit::BELL => {
                vm.bell(&self.shared.load::<Bell, PAYLOAD>());
                Next::Again
            }
            exit::EXCEPTION => self.exception(vm),
            exit::HYPERCALL => self.hypercall(vm),
            exit::SYSTEM_EVENT => {
                // The VM is over for the others too: those that sleep are told the same.
                vm.wake(u64::MAX);
                vm.close_channels();
                Next::User
            }
            exit::UNKNOWN
            | exit::DEBUG
            | exit::FAIL_ENTRY
            | exit::INTERNAL_ERROR
            | exit::SHUTDOWN
            | exit::WATCH => Next::User,
            other => {
                pr_warn!(
                    "vCPU {}.{}: exit {other:#x} is unknown ({status:?})",
                    self.tuple.vm,
                    self.tuple.vcpu
                );
                // The page still tells of the exit before: user space must not take it for this one.
                let fail = FailEntry {
                    hardware_entry_failure_reason: reason::UNEXPECTED_EXIT,
                    ..FailEntry::default()
                };
                self.shared.store::<FailEntry, PAYLOAD>(fail);
                self.shared.store::<u32, 0>(exit::FAIL_ENTRY);
                Next::User
            }
        }
    }

    fn mmio(&self, vm: &Vm) -> Next {
        let mmio = self.shared.load::<Mmio, PAYLOAD>();
        if mmio.is_write != 0 && vm.ioeventfds().signal(mmio.phys_addr, mmio.size, mmio.data) {
            IOEVENTS.add(1);
            return Next::Again;
        }
        Next::User
    }

    fn idle(&self) -> Next {
        let state = self.shared.load::<HwState, HWSTATE>();
        let ns = task::ticks_to_ns(state.vtimer_delay);
        if state.vtimer_migrate == 0 || ns == 0 { Next::Again } else { Next::Sleep(ns) }
    }

    fn exception(&self, vm: &Vm) -> Next {
        let about = self.shared.load::<Exception, PAYLOAD>();
        if about.exception != exception::PAGE_FAULT || !self.shared.is_zero::<RESERVED, PAYLOAD_END>() {
            return Next::User;
        }
        match vm.fault(about.fault_gpa) {
            Ok(()) => {
                FAULTS.add(1);
                Next::Again
            }
            // The guest faults again after the signal.
            Err(code::ERESTARTSYS | code::EINTR) if task::signal_pending() => Next::Again,
            Err(_) => Next::User,
        }
    }

    fn hypercall(&self, vm: &Vm) -> Next {
        let mut regs = self.shared.load::<Hypercall, PAYLOAD>();
        let [function, argument, ..] = regs.args;
        match u32::try_from(function) {
            Ok(MEM_RELINQUISH) => vm.relinquish(argument),
            Ok(PTP) => {
                let [x0, x1, x2, x3, ..] = &mut regs.args;
                let offset = self.shared.load::<HwState, HWSTATE>().vtimer_offset;
                let halves = |value: u64| (value >> 32, value & 0xFFFF_FFFF);
                match (task::clock_snapshot(), argument) {
                    (Ok((wall, counter)), 0 | 1) => {
                        // Our hypervisor shows guests both counters from the VM's zero on.
                        let shifted = argument == 0 || device::has_function(Function::ExtInfo);
                        let counter = if shifted { counter.wrapping_sub(offset) } else { counter };
                        (*x0, *x1) = halves(wall);
                        (*x2, *x3) = halves(counter);
                    }
                    _ => *x0 = SMCCC_NOT_SUPPORTED,
                }
                self.shared.store::<Hypercall, PAYLOAD>(regs);
            }
            _ => return Next::User,
        }
        Next::Again
    }

    /// SET_ONE_REG. EINVAL: no such register or value, or an odd size.
    pub fn set_reg(&self, args: &OneReg) -> Result {
        let mut value = [0; 16];
        let bytes = value.get_mut(..reg_size(args.id)?).ok_or(code::EINVAL)?;
        uaccess::read_bytes(args.addr, bytes)?;
        let value = u128::from_le_bytes(value);
        let _lock = self.run.lock_interruptible()?;
        call(Function::SetOneReg, [self.tuple.to_reg(), args.id, value as u64, (value >> 64) as u64])
            .map(drop)
    }

    /// GET_ONE_REG. EINVAL: no such register, or an odd size. EOPNOTSUPP: the hypervisor keeps it to itself.
    pub fn get_reg(&self, args: &OneReg) -> Result {
        let size = reg_size(args.id)?;
        let value = {
            let _lock = self.run.lock_interruptible()?;
            let reply = call(Function::GetOneReg, [self.tuple.to_reg(), args.id])?;
            u128::from(reply.x2) << 64 | u128::from(reply.x1)
        };
        uaccess::write_bytes(args.addr, value.to_le_bytes().get(..size).ok_or(code::EINVAL)?)
    }
}

/// `immediate_exit` and the padding behind it. EINVAL: the padding is not zero. EINTR: not now.
fn may_run([immediate_exit, padding @ ..]: [u8; 4]) -> Result {
    if padding != [0; 3] {
        return Err(code::EINVAL);
    }
    if immediate_exit == 1 { Err(code::EINTR) } else { Ok(()) }
}

/// Bytes of a register: up to 8 by the public ABI, and 16 for the vectors where the hypervisor takes them.
fn reg_size(id: u64) -> Result<usize> {
    match reg::size(id) {
        size @ (1 | 2 | 4 | 8) => Ok(size as usize),
        16 if device::knows_registers() => Ok(16),
        _ => Err(code::EINVAL),
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.destroy();
    }
}

const _: () = assert!(IMMEDIATE_EXIT == 4 && IMMEDIATE_EXIT_END == 8 && RUN_SIZE == 264);
