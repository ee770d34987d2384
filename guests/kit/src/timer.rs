// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The generic timer: counter and EL1 virtual timer.

use crate::arch;
use crate::{read_sysreg, write_sysreg};

const CTL_ENABLE: u64 = 1;
const CTL_IMASK: u64 = 2;
const CTL_ISTATUS: u64 = 4;

/// Ticks per second.
pub fn frequency() -> u64 {
    read_sysreg!("cntfrq_el0").max(1)
}

/// The virtual counter, not read early.
#[inline(always)]
pub fn now() -> u64 {
    arch::isb();
    read_sysreg!("cntvct_el0")
}

/// Spins until `f` is true; false after `ms` milliseconds.
pub fn wait_ms(ms: u64, mut f: impl FnMut() -> bool) -> bool {
    let start = now();
    let limit = frequency() / 1000 * ms;
    loop {
        if f() {
            return true;
        }
        if now() - start > limit {
            return f();
        }
        arch::cpu_relax();
    }
}

/// Arms the virtual timer for the counter value `deadline`.
#[inline(always)]
pub fn arm_at(deadline: u64) {
    // Off first, as in `arm_in`.
    write_sysreg!("cntv_ctl_el0", CTL_IMASK);
    write_sysreg!("cntv_cval_el0", deadline);
    write_sysreg!("cntv_ctl_el0", CTL_ENABLE);
    arch::isb();
}

/// Arms the virtual timer, `ticks` from now (TVAL: 31 bits).
pub fn arm_in(ticks: u32) {
    // Off first: an interrupt between the two writes would be taken, and raised again by the second.
    write_sysreg!("cntv_ctl_el0", CTL_IMASK);
    write_sysreg!("cntv_tval_el0", u64::from(ticks));
    write_sysreg!("cntv_ctl_el0", CTL_ENABLE);
    arch::isb();
}

/// Turns the virtual timer off.
#[inline(always)]
pub fn disarm() {
    write_sysreg!("cntv_ctl_el0", CTL_IMASK);
    arch::isb();
}

/// Whether the condition of the enabled timer is met.
pub fn fired() -> bool {
    read_sysreg!("cntv_ctl_el0") & CTL_ISTATUS != 0
}
