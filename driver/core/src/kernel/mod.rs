// SPDX-License-Identifier: GPL-2.0-only
//! Safe types over the C shim. Names follow the kernel's own Rust crate where it has them.

pub mod alloc;
pub mod error;
pub mod eventfd;
pub mod file;
pub mod mm;
pub mod page;
pub mod print;
pub mod sync;
pub mod task;
pub mod uaccess;

pub use alloc::{Arc, KBox, KVec, OnceBox};
pub use error::{Error, Result, code};
#[cfg(all(not(test), target_os = "none"))]
pub use print::bug;

use crate::sys;

/// HVC with x0..x7 = `regs` and x8..x17 = 0; `regs` starts with the results x0..x3 afterwards.
pub fn hvc(regs: &mut [u64; 8]) {
    // SAFETY: the shim reads eight registers' worth, and writes four.
    unsafe { sys::gzk_hvc(regs.as_mut_ptr()) }
}

/// Bits in a physical address of this kernel.
pub fn pa_bits() -> u32 {
    // SAFETY: returns a constant.
    unsafe { sys::gzk_pa_bits() }
}
