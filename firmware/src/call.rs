// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Calls of the hypervisor (SMCCC, by HVC).

use core::arch::asm;

use gzvm_abi::digest::{Digest, words};
use gzvm_abi::guest;
use gzvm_firmware_verify::tree::PAGE;

const SYSTEM_OFF: u32 = 0x8400_0008;
const TRNG_RND64: u32 = 0xC400_0053;

/// Calls with one argument: x0 to x3.
pub fn hvc(function: u32, argument: u64) -> [u64; 4] {
    hvc4(function, [argument, 0, 0, 0])
}

/// Calls with four arguments: x0 to x3.
pub fn hvc4(function: u32, [mut x1, mut x2, mut x3, x4]: [u64; 4]) -> [u64; 4] {
    let mut x0 = u64::from(function);
    // SAFETY: the calls made here change nothing of the caller's memory but whose it is.
    unsafe {
        asm!("hvc #0", inout("x0") x0, inout("x1") x1, inout("x2") x2, inout("x3") x3,
            inout("x4") x4 => _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _, out("x11") _,
            out("x12") _, out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _, options(nostack));
    }
    [x0, x1, x2, x3]
}

/// A call about a page.
pub fn page_call(function: u32, page: u64) -> Result<(), ()> {
    if hvc(function, page)[0] == 0 { Ok(()) } else { Err(()) }
}

/// Lets the host see all these pages, by as few calls as stage 2 has blocks there.
pub fn share(mut page: u64, end: u64) -> Result<(), ()> {
    while page < end {
        let [status, pages, ..] = hvc4(guest::MEM_SHARE_RUN, [page, (end - page) / PAGE, 0, 0]);
        if status != 0 || pages == 0 {
            return Err(());
        }
        page = pages.checked_mul(PAGE).and_then(|bytes| page.checked_add(bytes)).ok_or(())?;
    }
    Ok(())
}

/// Extends this VM's measurement.
pub fn extend(digest: &Digest) -> Result<(), ()> {
    if hvc4(guest::MEASUREMENT_EXTEND, words(digest))[0] == 0 { Ok(()) } else { Err(()) }
}

/// Ends that.
pub fn seal() -> Result<(), ()> {
    page_call(guest::MEASUREMENT_SEAL, 0)
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
