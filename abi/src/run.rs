// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The pages a vCPU shares with the driver: page 0 holds [`VcpuRun`], page 1 [`HwState`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Exit reasons: x1 of RUN, and [`VcpuRun::exit_reason`].
pub mod exit {
    /// Nothing known.
    pub const UNKNOWN: u32 = 0x9292_0000;
    /// Load or store that user space has to answer: [`Mmio`](super::Mmio).
    pub const MMIO: u32 = 0x9292_0001;
    /// A guest's call for the driver: [`Hypercall`](super::Hypercall).
    pub const HYPERCALL: u32 = 0x9292_0002;
    /// A physical interrupt is pending for the host.
    pub const IRQ: u32 = 0x9292_0003;
    /// Stage-2 fault or guest exception: [`Exception`](super::Exception).
    pub const EXCEPTION: u32 = 0x9292_0004;
    /// Debug event.
    pub const DEBUG: u32 = 0x9292_0005;
    /// The vCPU can't be entered: [`FailEntry`](super::FailEntry).
    pub const FAIL_ENTRY: u32 = 0x9292_0006;
    /// The hypervisor can't go on with the vCPU: [`InternalError`](super::InternalError).
    pub const INTERNAL_ERROR: u32 = 0x9292_0007;
    /// Power-off, reset, crash: [`SystemEvent`](super::SystemEvent).
    pub const SYSTEM_EVENT: u32 = 0x9292_0008;
    /// The VM stops.
    pub const SHUTDOWN: u32 = 0x9292_0009;
    /// Come again.
    pub const GZ: u32 = 0x9292_000A;
    /// Nothing to do until an interrupt or [`HwState::vtimer_delay`](super::HwState) ticks.
    pub const IDLE: u32 = 0x9292_000B;
    /// vCPUs that sleep have something to do: wake the VM's vCPUs. Ours: the payload's first word names them
    /// (bit n: vCPU n).
    pub const IPI: u32 = 0x9292_000D;
    /// Ours: the guest has ended resampled interrupts, whose lines are low now: [`Resampled`](super::Resampled). Only for VMs
    /// that have such lines.
    pub const RESAMPLED: u32 = 0x9292_0040;
    /// Ours, for VMs that are watched only: [`Watch`](super::Watch).
    pub const WATCH: u32 = 0x9292_0041;
    /// Ours, after [`ANNOUNCE`](crate::hypercall::host_access::ANNOUNCE) only: the guest stops sharing a page: [`Unshare`](super::Unshare).
    pub const UNSHARE: u32 = 0x9292_0042;
    /// Ours, for VMs that have channels only: who has to be told of a guest's call: [`Bell`](super::Bell).
    pub const BELL: u32 = 0x9292_0044;
}

/// [`SystemEvent::type_`] values.
pub mod system_event {
    /// Power-off.
    pub const SHUTDOWN: u32 = 1;
    /// Reset.
    pub const RESET: u32 = 2;
    /// Crash.
    pub const CRASH: u32 = 3;
    /// Wake-up.
    pub const WAKEUP: u32 = 4;
    /// Suspend to RAM.
    pub const SUSPEND: u32 = 5;
}

/// [`Exception::exception`] values.
pub mod exception {
    /// Something the hypervisor can't classify.
    pub const UNKNOWN: u32 = 0;
    /// A registered page that is not mapped yet.
    pub const PAGE_FAULT: u32 = 1;
}

/// Offset of the exit's payload in [`VcpuRun`].
pub const PAYLOAD_OFFSET: usize = 8;
/// Offset of [`HwState`] in the shared area: the second 4 KiB page.
pub const HWSTATE_OFFSET: u64 = 4096;
/// Bytes of the shared area.
pub const SHARED_AREA_SIZE: u64 = 8192;

/// Page 0: what RUN reports, and what comes back to it. 264 bytes.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Debug)]
#[repr(C)]
pub struct VcpuRun {
    /// One of [`exit`].
    pub exit_reason: u32,
    /// 1: RUN returns EINTR before it enters the guest.
    pub immediate_exit: u8,
    /// Zero on input.
    pub padding1: [u8; 3],
    /// The exit's payload: one of the structures below, by [`exit_reason`](Self::exit_reason).
    pub payload: [u64; 32],
}
const _: () = assert!(size_of::<VcpuRun>() == 264);

macro_rules! payload {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        #[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }

        impl $name {
            /// Reads the payload of `run` as this structure.
            pub fn read(run: &VcpuRun) -> Self {
                match Self::read_from_prefix(run.payload.as_bytes()) {
                    Ok((value, _)) => value,
                    Err(_) => Self::default(),
                }
            }

            /// Makes this structure the payload of `run`, the rest of it zero.
            pub fn write(&self, run: &mut VcpuRun) {
                run.payload = [0; 32];
                let _ = self.write_to_prefix(run.payload.as_mut_bytes());
            }
        }
        const _: () = assert!(size_of::<$name>() <= 256);
    };
}

payload! {
    /// Payload of [`exit::MMIO`].
    Mmio {
        /// Guest physical address.
        phys_addr: u64,
        /// Data, little-endian, [`size`](Self::size) bytes of it; a read is answered here.
        data: [u8; 8],
        /// 1, 2, 4 or 8.
        size: u64,
        /// Transfer register, 31 = zero register. For information.
        reg_nr: u32,
        /// 1 for a store.
        is_write: u8,
        /// Zero.
        pad: [u8; 3],
    }
}
payload! {
    /// Payload of [`exit::FAIL_ENTRY`].
    FailEntry {
        /// Why.
        hardware_entry_failure_reason: u64,
        /// On which physical CPU.
        cpu: u32,
        /// Zero.
        pad: u32,
    }
}
payload! {
    /// Payload of [`exit::EXCEPTION`]; everything behind it must be zero.
    Exception {
        /// One of [`exception`].
        exception: u32,
        /// Free.
        error_code: u32,
        /// Where.
        fault_gpa: u64,
    }
}
payload! {
    /// Payload of [`exit::HYPERCALL`].
    Hypercall {
        /// x0..x7, both ways.
        args: [u64; 8],
    }
}
payload! {
    /// Payload of [`exit::INTERNAL_ERROR`].
    InternalError {
        /// Which.
        suberror: u32,
        /// How many of [`data`](Self::data) count.
        ndata: u32,
        /// More about it.
        data: [u64; 16],
    }
}
payload! {
    /// Payload of [`exit::SYSTEM_EVENT`].
    SystemEvent {
        /// One of [`system_event`].
        type_: u32,
        /// How many of [`data`](Self::data) count.
        ndata: u32,
        /// More about it (PSCI: x0 of the call, reset type).
        data: [u64; 16],
    }
}

payload! {
    /// Payload of [`exit::RESAMPLED`].
    Resampled {
        /// How many of [`intids`](Self::intids) count.
        count: u32,
        /// SPIs that were ended, each once.
        intids: [u32; 16],
        /// Zero.
        pad: u32,
    }
}

payload! {
    /// Payload of [`exit::UNSHARE`].
    Unshare {
        /// Guest physical address of the page.
        gpa: u64,
    }
}

payload! {
    /// Payload of [`exit::BELL`].
    Bell {
        /// Handle of the host's endpoint, where it is the host that has something to look at; else 0.
        handle: u64,
        /// vCPUs to wake (bit n: vCPU n) in VM [`vm`](Self::vm).
        vcpus: u64,
        /// The VM whose vCPUs sleep; else 0.
        vm: u32,
        /// Of [`handle`](Self::handle): [what](crate::rpc::bell) there is.
        what: u32,
    }
}

payload! {
    /// Payload of [`exit::WATCH`].
    Watch {
        /// One of [`kind`](crate::watch::kind).
        kind: u32,
        /// What has been done: one of [`action`](crate::watch::action).
        action: u32,
        /// Events of the VM so far, this one and those that were not reported included.
        count: u64,
        /// The instruction that it is about.
        pc: u64,
        /// PSTATE there.
        pstate: u64,
        /// Its syndrome, 0 for a stall.
        esr: u64,
        /// The address that was accessed, where there is one.
        far: u64,
        /// Stack pointer there.
        sp: u64,
        /// x29.
        fp: u64,
        /// x30.
        lr: u64,
    }
}

/// [`FailEntry::hardware_entry_failure_reason`] and [`InternalError::suberror`] values of ours.
pub mod reason {
    /// The tuple names no vCPU.
    pub const NO_VCPU: u64 = 1;
    /// Another CPU runs this vCPU just now.
    pub const ALREADY_RUNNING: u64 = 2;
    /// The VM is being destroyed.
    pub const DYING: u64 = 3;
    /// A guest access that can't be described to user space.
    pub const UNDECODABLE: u64 = 4;
    /// An exception at EL1/EL0 that the hypervisor does not expect.
    pub const UNEXPECTED_EXIT: u64 = 5;
}

/// Page 1: hardware state, written by the hypervisor.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Debug, Default)]
#[repr(C)]
pub struct HwState {
    /// List registers available. We leave it, and them, zero.
    pub nr_lrs: u32,
    /// Zero.
    pub pad: u32,
    /// List registers.
    pub lr: [u64; 16],
    /// Host counter value at guest counter zero (CNTVOFF_EL2).
    pub vtimer_offset: u64,
    /// Counter ticks until the guest's timer fires.
    pub vtimer_delay: u64,
    /// Non-zero: arm a host timer for [`vtimer_delay`](Self::vtimer_delay) ticks.
    pub vtimer_migrate: u32,
    /// Zero.
    pub pad2: u32,
}
const _: () = assert!(size_of::<HwState>() == 160);
