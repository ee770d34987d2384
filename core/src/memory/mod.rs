// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory: who owns each granule, and what each VM's stage-2 tables say.
//!
//! | module | what |
//! |---|---|
//! | [`given`] | pages for a VM's tables that the host gave for this VM |
//! | [`range`] | runs of pages, checked once |
//! | [`loans`] | what a protected VM lends to others, and has borrowed |
//! | [`ownership`] | who owns RAM, and what may become of it |
//! | [`pool`] | the hypervisor's own pages, and who is charged for them |
//! | [`slots`] | which addresses of a VM are memory, and the region buffer |
//! | [`stage2`] | a VM's stage-2 translation tables |
//!
//! Ownership decides, stage 2 follows: a mapping is only made for memory that the VM may reach.
//! Lock order for all of it: vCPU, then VM, then loans, then the host's stage 2, then ownership, then the pool.

pub mod given;
mod granule;
pub mod loans;
pub mod ownership;
pub mod pool;
pub mod range;
pub mod slots;
pub mod stage2;

pub use range::{IpaRange, PaRange, RangeError};

/// The 512 entries of a table from `from` outward, both ways by turns: what is worked through in some order, or with gaps, differs
/// near where it was changed last.
fn outward(from: u64) -> impl Iterator<Item = u64> {
    (0..512u64).map(move |k| {
        let distance = k.wrapping_add(1).wrapping_shr(1);
        let at = if k & 1 == 0 { from.wrapping_add(distance) } else { from.wrapping_sub(distance) };
        at & 511
    })
}
