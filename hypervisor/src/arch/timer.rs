// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Generic timer. The host uses the EL1 virtual timer; while a guest has it, the host's deadline
//! lives in the EL2 physical timer, whose interrupt brings the CPU back to the host.

use gzvm_core::platform::timer::earlier;

use super::sysreg::{read, write};

/// CNTx_CTL.ENABLE.
pub const CTL_ENABLE: u64 = 1;
/// CNTx_CTL.IMASK.
pub const CTL_IMASK: u64 = 2;

/// An EL1 virtual timer's registers.
#[derive(Clone, Copy, Default, Debug)]
pub struct VirtualTimer {
    /// CNTV_CTL_EL0.
    pub ctl: u64,
    /// CNTV_CVAL_EL0.
    pub cval: u64,
    /// CNTKCTL_EL1.
    pub kctl: u64,
}

impl VirtualTimer {
    /// Whether it can fire.
    pub const fn armed(&self) -> bool {
        self.ctl & (CTL_ENABLE | CTL_IMASK) == CTL_ENABLE
    }
}

/// The physical count.
pub fn now() -> u64 {
    super::barrier::isb();
    read!("cntpct_el0")
}

/// Ticks per second.
pub fn frequency() -> u64 {
    read!("cntfrq_el0")
}

/// Takes the timer's registers and stops it.
#[inline(always)]
pub fn save(timer: &mut VirtualTimer) {
    timer.ctl = read!("cntv_ctl_el0") & 3;
    timer.cval = read!("cntv_cval_el0");
    timer.kctl = read!("cntkctl_el1");
    write!("cntv_ctl_el0", 0);
}

/// Puts a timer in place with the counter offset it counts by.
#[inline(always)]
pub fn restore(timer: &VirtualTimer, offset: u64) {
    write!("cntvoff_el2", offset);
    write!("cntkctl_el1", timer.kctl);
    write!("cntv_cval_el0", timer.cval);
    super::barrier::isb();
    write!("cntv_ctl_el0", timer.ctl);
}

/// Arms the EL2 timer for the host's deadline (`host` counts with offset 0), or stops it.
#[inline(always)]
pub fn arm_host_deadline(host: &VirtualTimer) {
    if host.armed() {
        write!("cnthp_cval_el2", host.cval);
        write!("cnthp_ctl_el2", CTL_ENABLE);
    } else {
        write!("cnthp_ctl_el2", 0);
    }
}

/// Arms the EL2 timer for the earlier of the host's deadline and EL2's own for a guest (physical count).
pub fn arm_deadlines(host: &VirtualTimer, guest: Option<u64>) {
    match earlier(host.armed().then_some(host.cval), guest) {
        Some(deadline) => {
            write!("cnthp_cval_el2", deadline);
            write!("cnthp_ctl_el2", CTL_ENABLE);
        }
        None => write!("cnthp_ctl_el2", 0),
    }
    super::barrier::isb();
}

/// Stops the EL2 timer.
#[inline(always)]
pub fn disarm_host_deadline() {
    write!("cnthp_ctl_el2", 0);
}
