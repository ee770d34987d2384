// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Calls of the hypervisor (SMCCC, by HVC).

use core::arch::asm;

const SYSTEM_OFF: u32 = 0x8400_0008;
const TRNG_RND64: u32 = 0xC400_0053;

/// Calls with one argument: x0 to x3.
pub fn hvc(function: u32, argument: u64) -> [u64; 4] {
    let (mut x0, mut x1, x2, x3) = (u64::from(function), argument, 0_u64, 0_u64);
    let (mut x2, mut x3) = (x2, x3);
    // SAFETY: the calls made here change nothing of the caller's memory but whose it is.
    unsafe {
        asm!("hvc #0", inout("x0") x0, inout("x1") x1, inout("x2") x2, inout("x3") x3,
            out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _, out("x11") _,
            out("x12") _, out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _, options(nostack));
    }
    [x0, x1, x2, x3]
}

/// A call about a page.
pub fn page_call(function: u32, page: u64) -> Result<(), ()> {
    if hvc(function, page)[0] == 0 { Ok(()) } else { Err(()) }
}

/// Random bytes of the hypervisor (TRNG_RND64, Arm DEN0098).
pub fn random() -> Option<[u8; 8]> {
    let [status, _, _, value] = hvc(TRNG_RND64, 64);
    (status == 0).then(|| value.to_le_bytes())
}

/// Ends the VM.
pub fn off() -> ! {
    loop {
        hvc(SYSTEM_OFF, 0);
    }
}
