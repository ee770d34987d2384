// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Access to system registers by name.
//!
//! The world switch touches some eighty registers whose value it only moves; they are `u64` here.
//! Registers with fields that EL2 decides on have named bits beside their use.

/// Reads a system register.
macro_rules! read {
    ($name:expr) => {{
        let value: u64;
        // SAFETY: reading this register has no side effect on memory or control flow that Rust
        // relies on; the callers name only registers that exist on the CPU at hand.
        unsafe {
            core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack, preserves_flags));
        }
        value
    }};
}

/// Writes a system register.
macro_rules! write {
    ($name:expr, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the callers write only registers of the lower exception levels, or EL2 controls
        // whose effect on EL2 itself (translation, vectors) is set once at boot by `cpu` and `stage1`.
        unsafe {
            core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags));
        }
    }};
}

pub(crate) use read;
pub(crate) use write;
