// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The EL1 physical timer of a vCPU (CNTP_*), which is emulated: the machine's own is the host's (Arm
//! ARM D12.2).
//!
//! ```text
//!   count - CVAL >= 0, and ENABLE:  ISTATUS = 1        (count: the guest's, from 0 with its VM)
//!   ISTATUS and not IMASK:          the line is high, PPI 14 (INTID 30) is pending
//! ```
//! Values only: EL2 (`hypervisor/src/guest/timer.rs`) reads the counter, drives the line, and has the
//! CPU interrupted at [`Timer::deadline`].
//!
//! # Invariants
//! - `ctl` holds ENABLE and IMASK, nothing else.

/// CNTx_CTL.ENABLE.
pub const ENABLE: u64 = 1;
/// CNTx_CTL.IMASK.
pub const IMASK: u64 = 1 << 1;
/// CNTx_CTL.ISTATUS.
pub const ISTATUS: u64 = 1 << 2;

/// What of the physical counter and timer a guest can name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Register {
    /// CNTPCT_EL0, CNTPCTSS_EL0.
    Count,
    /// CNTP_TVAL_EL0.
    Tval,
    /// CNTP_CTL_EL0.
    Ctl,
    /// CNTP_CVAL_EL0.
    Cval,
}

impl Register {
    /// The register of these (op0, op1, CRn, CRm, op2).
    pub const fn of(key: (u8, u8, u8, u8, u8)) -> Option<Self> {
        Some(match key {
            (3, 3, 14, 0, 1 | 5) => Self::Count,
            (3, 3, 14, 2, 0) => Self::Tval,
            (3, 3, 14, 2, 1) => Self::Ctl,
            (3, 3, 14, 2, 2) => Self::Cval,
            _ => return None,
        })
    }
}

/// A timer's registers. Reset: off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Timer {
    ctl: u64,
    cval: u64,
}

impl Timer {
    /// A timer with what CNTx_CTL and CNTx_CVAL read.
    pub const fn new(ctl: u64, cval: u64) -> Self {
        Self { ctl: ctl & (ENABLE | IMASK), cval }
    }

    /// Whether it counts at all.
    pub const fn enabled(&self) -> bool {
        self.ctl & ENABLE != 0
    }

    /// The timer condition is met: CNTx_CTL.ISTATUS. (UNKNOWN while it is off; zero here.)
    pub const fn status(&self, now: u64) -> bool {
        self.enabled() && now >= self.cval
    }

    /// The interrupt line.
    pub const fn line(&self, now: u64) -> bool {
        self.ctl & IMASK == 0 && self.status(now)
    }

    /// The count at which the line will rise; nothing if it is high, or won't.
    pub const fn deadline(&self, now: u64) -> Option<u64> {
        if self.enabled() && self.ctl & IMASK == 0 && now < self.cval { Some(self.cval) } else { None }
    }

    /// MRS, while the guest's count is `now`.
    pub const fn read(&self, register: Register, now: u64) -> u64 {
        match register {
            Register::Count => now,
            // Signed 32 bits, zero above.
            Register::Tval => self.cval.wrapping_sub(now) & 0xFFFF_FFFF,
            Register::Ctl => self.ctl | if self.status(now) { ISTATUS } else { 0 },
            Register::Cval => self.cval,
        }
    }

    /// MSR; false where there is nothing to write.
    pub const fn write(&mut self, register: Register, value: u64, now: u64) -> bool {
        match register {
            Register::Count => return false,
            Register::Tval => self.cval = now.wrapping_add(value as u32 as i32 as i64 as u64),
            Register::Ctl => self.ctl = value & (ENABLE | IMASK),
            Register::Cval => self.cval = value,
        }
        true
    }
}

/// The earlier of two deadlines.
pub fn earlier(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn control_has_two_bits() {
        let mut t = Timer::default();
        assert!(t.write(Register::Ctl, u64::MAX, 0));
        assert_eq!(t.read(Register::Ctl, 0), 7, "CVAL 0 has come");
        t.write(Register::Cval, 10, 0);
        assert_eq!(t.read(Register::Ctl, 9), 3);
        assert_eq!(t.read(Register::Ctl, 10), 7);
        t.write(Register::Ctl, IMASK, 0);
        assert_eq!(t.read(Register::Ctl, 10), 2, "no status while off");
    }

    #[test]
    fn the_line_is_enabled_met_and_not_masked() {
        for (ctl, met) in (0..4).flat_map(|ctl| [(ctl, false), (ctl, true)]) {
            let t = Timer::new(ctl, 100);
            let now = if met { 100 } else { 99 };
            assert_eq!(t.line(now), ctl == ENABLE && met, "{ctl} {met}");
            assert_eq!(t.deadline(now), (ctl == ENABLE && !met).then_some(100), "{ctl} {met}");
        }
    }

    #[test]
    fn tval_is_signed() {
        let mut t = Timer::default();
        t.write(Register::Tval, 0xFFFF_FFFF, 1000);
        assert_eq!(t.read(Register::Cval, 1000), 999);
        assert_eq!(t.read(Register::Tval, 1000), 0xFFFF_FFFF);
        t.write(Register::Tval, 0xABCD_0000_7FFF_FFFF, 1000);
        assert_eq!(t.read(Register::Cval, 0), 1000 + 0x7FFF_FFFF, "32 bits count");
        assert_eq!(t.read(Register::Tval, 1001), 0x7FFF_FFFE);
        t.write(Register::Tval, 0x8000_0000, 1);
        assert_eq!(t.read(Register::Cval, 0), 1u64.wrapping_sub(0x8000_0000), "wraps as 64 bits do");
        t.write(Register::Ctl, ENABLE, 1);
        assert!(!t.line(1), "and is far off then: the comparison is unsigned");
    }

    #[test]
    fn registers_by_their_encoding() {
        assert_eq!(Register::of((3, 3, 14, 0, 1)), Some(Register::Count));
        assert_eq!(Register::of((3, 3, 14, 0, 5)), Some(Register::Count));
        assert_eq!(Register::of((3, 3, 14, 2, 0)), Some(Register::Tval));
        for key in [(3, 3, 14, 0, 0), (3, 3, 14, 0, 2), (3, 3, 14, 3, 0), (3, 3, 14, 2, 3), (3, 4, 14, 2, 0)]
        {
            assert_eq!(Register::of(key), None, "{key:?}");
        }
    }

    proptest! {
        /// Whatever was written: the line rises exactly at the deadline, and what is read back fits.
        #[test]
        fn line_and_deadline_agree(ctl in 0u64..8, cval: u64, now: u64) {
            let t = Timer::new(ctl, cval);
            match t.deadline(now) {
                Some(at) => {
                    prop_assert!(at > now && !t.line(now) && !t.line(at - 1) && t.line(at));
                }
                None => prop_assert!(t.line(now) || !t.line(u64::MAX)),
            }
            prop_assert_eq!(t.read(Register::Ctl, now) & ISTATUS != 0, t.status(now));
            let mut u = t;
            u.write(Register::Tval, t.read(Register::Tval, now), now);
            let distance = cval.wrapping_sub(now) as i64;
            if i32::try_from(distance).is_ok() {
                prop_assert_eq!(u, t, "TVAL written as read changes nothing");
            }
            prop_assert!(!u.write(Register::Count, 1, now));
        }

        #[test]
        fn the_earlier_deadline(a: Option<u64>, b: Option<u64>) {
            let min = earlier(a, b);
            prop_assert_eq!(min.is_none(), a.is_none() && b.is_none());
            for d in [a, b].into_iter().flatten() {
                prop_assert!(min.is_some_and(|m| m <= d));
            }
        }
    }
}
