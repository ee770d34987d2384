// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Calls by the SMC Calling Convention, with all eighteen registers.

use core::arch::asm;

/// The instruction that calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conduit {
    /// HVC #0.
    Hvc,
    /// SMC #0.
    Smc,
}

/// SMCCC_VERSION.
pub const VERSION: u32 = 0x8000_0000;
/// SMCCC_ARCH_FEATURES.
pub const ARCH_FEATURES: u32 = 0x8000_0001;
/// NOT_SUPPORTED in x0.
pub const NOT_SUPPORTED: i64 = -1;

macro_rules! call {
    ($insn:literal, $x:ident) => {
        // SAFETY: what the call does to memory is what its arguments say; they are addresses of
        // memory that the caller owns for this purpose, or not memory at all.
        unsafe {
            asm!($insn,
                inout("x0") $x[0], inout("x1") $x[1], inout("x2") $x[2], inout("x3") $x[3],
                inout("x4") $x[4], inout("x5") $x[5], inout("x6") $x[6], inout("x7") $x[7],
                inout("x8") $x[8], inout("x9") $x[9], inout("x10") $x[10], inout("x11") $x[11],
                inout("x12") $x[12], inout("x13") $x[13], inout("x14") $x[14], inout("x15") $x[15],
                inout("x16") $x[16], inout("x17") $x[17], options(nostack))
        }
    };
}

impl Conduit {
    /// Calls with x0..x17 = `x`, and returns them as they come back.
    #[inline(never)]
    pub fn call18(self, mut x: [u64; 18]) -> [u64; 18] {
        match self {
            Self::Hvc => call!("hvc #0", x),
            Self::Smc => call!("smc #0", x),
        }
        x
    }

    /// Calls `function` with `args` in x1...; returns x0..x3.
    pub fn call(self, function: u64, args: &[u64]) -> [u64; 4] {
        let mut x = [0; 18];
        x[0] = function;
        for (register, arg) in x[1..].iter_mut().zip(args) {
            *register = *arg;
        }
        let x = self.call18(x);
        [x[0], x[1], x[2], x[3]]
    }
}
