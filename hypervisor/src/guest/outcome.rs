// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What RUN comes back with, and how the driver is told: the exit in the pages that it shares with the vCPU.

use gzvm_abi::counter::Counter;
use gzvm_abi::run::{self as abi, exit};
use zerocopy::IntoBytes;

use super::vcpu::Vcpu;
use super::vm::Vm;
use crate::arch::percpu::PerCpu;

/// Where the payload is in the shared pages.
pub const PAYLOAD: u64 = abi::PAYLOAD_OFFSET as u64;
/// Bytes behind an exception in its payload, which are zero.
const RESERVED: usize = size_of::<[u64; 32]>() - size_of::<abi::Exception>();

/// Why RUN returns to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Device access for user space. For a load, the vCPU remembers where the data goes.
    Mmio(abi::Mmio),
    /// A call for the driver.
    Hypercall([u64; 2]),
    /// An interrupt waits for the host.
    Irq,
    /// A page of a slot is not there yet.
    PageFault(u64),
    /// Nothing to do for so many ticks.
    Idle(u64),
    /// Sleeping vCPUs of the VM (bit n: vCPU n) have something to do.
    Ipi(u64),
    /// The guest has ended resampled interrupts.
    Resampled,
    /// Power-off, reset.
    SystemEvent(u32, [u64; 2]),
    /// The vCPU can't be entered.
    FailEntry(u64),
    /// Nothing: the driver comes again at once.
    Again,
    /// Something watched has happened; the vCPU knows what.
    Watch,
    /// The guest stops sharing a page.
    Unshare(u64),
    /// A call of the guest's concerns the host, or vCPUs of another VM that sleep.
    Bell(abi::Bell),
}

impl Exit {
    /// The exit's number, as in x1 of RUN.
    const fn reason(&self) -> u32 {
        match self {
            Self::Mmio(_) => exit::MMIO,
            Self::Hypercall(_) => exit::HYPERCALL,
            Self::Irq => exit::IRQ,
            Self::PageFault(_) => exit::EXCEPTION,
            Self::Idle(_) => exit::IDLE,
            Self::Ipi(_) => exit::IPI,
            Self::Resampled => exit::RESAMPLED,
            Self::SystemEvent(..) => exit::SYSTEM_EVENT,
            Self::FailEntry(_) => exit::FAIL_ENTRY,
            Self::Again => exit::GZ,
            Self::Watch => exit::WATCH,
            Self::Unshare(_) => exit::UNSHARE,
            Self::Bell(_) => exit::BELL,
        }
    }

    /// Writes the exit into the shared page; the value is x1 of RUN.
    pub fn publish(&self, vcpu: &mut Vcpu, vm: &Vm) -> u32 {
        // The reason at the front; what the driver keeps in the bytes behind it stays.
        let reason = self.reason();
        vcpu.shared.store(0, reason);
        match self {
            // The driver answers these alone: there is no payload.
            Self::Irq | Self::Again => {}
            Self::Ipi(sleepers) => vcpu.shared.store(PAYLOAD, *sleepers),
            Self::Idle(delay) => vcpu.publish(vm.cntvoff(), *delay, 1),
            Self::Mmio(mmio) => vcpu.shared.store(PAYLOAD, *mmio),
            Self::Bell(bell) => vcpu.shared.store(PAYLOAD, *bell),
            Self::PageFault(gpa) => {
                let fault =
                    abi::Exception { exception: abi::exception::PAGE_FAULT, error_code: 0, fault_gpa: *gpa };
                vcpu.shared.store(PAYLOAD, fault);
                vcpu.shared.clear(PAYLOAD.wrapping_add(size_of_val(&fault) as u64), RESERVED);
            }
            other => other.publish_rare(vcpu, vm),
        }
        reason
    }

    /// The same for exits whose payload is long, or has zeroes behind it.
    #[cold]
    fn publish_rare(&self, vcpu: &mut Vcpu, vm: &Vm) {
        let mut run = abi::VcpuRun { exit_reason: 0, immediate_exit: 0, padding1: [0; 3], payload: [0; 32] };
        match self {
            Self::Irq | Self::Again | Self::Ipi(_) | Self::Idle(_) => return,
            Self::Mmio(_) | Self::Bell(_) | Self::PageFault(_) => return,
            Self::Resampled => {
                let mut ended = abi::Resampled { count: vcpu.resampled.len() as u32, ..Default::default() };
                for (to, from) in ended.intids.iter_mut().zip(vcpu.resampled.drain(..)) {
                    *to = from;
                }
                ended.write(&mut run);
            }
            Self::Watch => vcpu.watch.event.write(&mut run),
            Self::Unshare(gpa) => abi::Unshare { gpa: *gpa }.write(&mut run),
            Self::Hypercall([function, argument]) => {
                // The driver answers the time with the counter's offset, which a pause moves.
                vcpu.publish_offset(vm.cntvoff());
                abi::Hypercall { args: [*function, *argument, 0, 0, 0, 0, 0, 0] }.write(&mut run);
            }
            Self::SystemEvent(type_, data) => {
                // Over: no timer is left to be waited for.
                vcpu.publish_offset(vm.cntvoff());
                let mut event = abi::SystemEvent { type_: *type_, ..Default::default() };
                if data[0] != 0 {
                    event.ndata = 2;
                    event.data[..2].copy_from_slice(data);
                }
                event.write(&mut run);
            }
            Self::FailEntry(why) => {
                let cpu = PerCpu::this().index as u32;
                abi::FailEntry { hardware_entry_failure_reason: *why, cpu, pad: 0 }.write(&mut run);
            }
        }
        vcpu.shared.write(PAYLOAD, run.payload.as_bytes());
    }

    pub fn counter(&self) -> Counter {
        match self {
            Self::Mmio(_) => Counter::ExitMmio,
            Self::PageFault(_) => Counter::ExitPageFault,
            Self::Irq => Counter::ExitIrq,
            Self::Idle(_) => Counter::ExitIdle,
            Self::Ipi(_) => Counter::ExitIpi,
            _ => Counter::ExitOther,
        }
    }
}

/// What handling an exit comes to.
pub enum Next {
    /// Back into the guest.
    Resume,
    /// To the host.
    Exit(Exit),
}
