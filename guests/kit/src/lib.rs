// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the bare-metal guests share.
//!
//! A guest is an arm64 Image: whatever starts Linux starts it (QEMU's `-kernel`, its guest-loader
//! under our hypervisor, `gz run --kernel`). [`boot`] is its entry: it relocates the image, turns
//! the MMU on with an identity map and calls the guest's `main` (see [`entry!`]) on the boot CPU.
//! Everything about the machine comes from the device tree ([`machine`]).
//!
//! - [`case`]: the list of test cases and their result lines.
//! - [`exception`]: vectors; [`exception::expect`] runs code that may take an exception.
//! - [`gic`], [`timer`]: GICv3 and generic timer. [`smp`]: closures on other CPUs.
//! - [`smccc`], [`psci`], [`hypercall`]: calls by HVC or SMC. [`mmio`]: loads and stores of one
//!   width. `bounce` (feature `virtio`): virtio in a protected VM. [`console`]: `println!`. [`measurement`]: who a protected VM is. [`rpc`]: calls to other VMs and the host, and theirs. [`trng`]: random numbers of the platform. [`user`]: code at EL0. [`stage1`]: pages of 16 and 64 KiB.
//!
//! Invariants: at most [`MAX_CPUS`] CPUs; TPIDR_EL1 holds the CPU's index; everything runs at EL1
//! with SP_EL1; addresses are virtual = physical, the lowest GiB as device memory, the rest up to
//! 512 GiB as normal cacheable memory.

#![cfg(target_os = "none")]
#![no_std]
// A failure carries its text: there is no heap, and failures are rare.
#![allow(clippy::result_large_err)]

pub mod arch;
pub mod boot;
#[cfg(feature = "virtio")]
pub mod bounce;
pub mod case;
pub mod console;
pub mod exception;
pub mod gic;
pub mod hypercall;
pub mod machine;
pub mod measurement;
pub mod mmio;
pub mod psci;
pub mod random;
pub mod rpc;
pub mod smccc;
pub mod smp;
pub mod stage1;
pub mod timer;
pub mod trng;
pub mod user;

pub use arrayvec::{ArrayString, ArrayVec};
pub use spin;

/// Most CPUs a guest uses.
pub const MAX_CPUS: usize = 64;

/// Names the function that the entry code calls on the boot CPU when console, vectors and
/// [`machine`] are ready. When it returns, the guest powers off.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        // SAFETY: the name is taken by nothing else; the kit calls it with this signature.
        #[unsafe(no_mangle)]
        extern "Rust" fn gzvm_guest_main() {
            $main()
        }
    };
}
