// SPDX-License-Identifier: Apache-2.0 OR MIT
//! ESR_EL2 decoded (Arm ARM D19.2.37).

use crate::addr::Ipa;

/// Why a synchronous exception came to EL2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// WFI or WFE (EC 0x01).
    Wait {
        /// WFE rather than WFI.
        wfe: bool,
    },
    /// FP, SIMD, SVE or SME use while trapped (EC 0x07, 0x19, 0x1D).
    Fp,
    /// HVC from AArch64 (EC 0x16).
    Hvc {
        /// The instruction's immediate.
        imm: u16,
    },
    /// SMC from AArch64 (EC 0x17).
    Smc {
        /// The instruction's immediate.
        imm: u16,
    },
    /// MSR, MRS or system instruction (EC 0x18).
    Sysreg(SysregAccess),
    /// Instruction abort from a lower EL (EC 0x20).
    InstructionAbort(Abort),
    /// Data abort from a lower EL (EC 0x24).
    DataAbort(Abort, Option<DataAccess>),
    /// Anything else, with its exception class.
    Other(u8),
}

/// A trapped system register access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SysregAccess {
    /// op0..op2 as in the instruction.
    pub op0: u8,
    /// See [`op0`](Self::op0).
    pub op1: u8,
    /// See [`op0`](Self::op0).
    pub crn: u8,
    /// See [`op0`](Self::op0).
    pub crm: u8,
    /// See [`op0`](Self::op0).
    pub op2: u8,
    /// Transfer register, 31 = XZR.
    pub rt: u8,
    /// MRS rather than MSR.
    pub read: bool,
}

impl SysregAccess {
    /// (op0, op1, CRn, CRm, op2), to match on.
    pub const fn key(&self) -> (u8, u8, u8, u8, u8) {
        (self.op0, self.op1, self.crn, self.crm, self.op2)
    }
}

/// What went wrong with a translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// Nothing mapped.
    Translation,
    /// Mapped without the right.
    Permission,
    /// Access flag.
    AccessFlag,
    /// Address beyond the IPA or PA size.
    AddressSize,
    /// An external abort on the access itself.
    External,
    /// Alignment, TLB conflict and the rest.
    Other(u8),
}

/// A stage-2 abort.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abort {
    /// What.
    pub kind: FaultKind,
    /// It happened on a stage-1 table walk.
    pub s1ptw: bool,
    /// A write (data aborts that are no cache maintenance).
    pub write: bool,
    /// Cache maintenance or address translation instruction.
    pub cm: bool,
}

/// A data access with a valid instruction syndrome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DataAccess {
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// Sign-extend a load.
    pub sign_extend: bool,
    /// 64-bit transfer register.
    pub sixty_four: bool,
    /// Transfer register, 31 = zero register.
    pub rt: u8,
    /// A store.
    pub write: bool,
}

const fn bit(esr: u64, n: u32) -> bool {
    esr >> n & 1 != 0
}

/// ESR_EL2 of HVC #0.
pub const ESR_HVC_0: u64 = 0x16 << 26 | IL;

/// Whether it is sure not to be the data abort of a load: ISS.WnR of an abort; of other exceptions, whatever that bit is. In one
/// instruction, for the way from the vector.
#[inline]
pub const fn is_no_load(esr: u64) -> bool {
    bit(esr, 6)
}

/// ESR_ELx.IL: the instruction has 32 bits.
const IL: u64 = 1 << 25;

/// ESR_EL2 of a write to the system register of these (op0, op1, CRn, CRm, op2), [`without_rt`].
pub const fn esr_of_write((op0, op1, crn, crm, op2): (u8, u8, u8, u8, u8)) -> u64 {
    let names =
        (op0 as u64) << 20 | (op2 as u64) << 17 | (op1 as u64) << 14 | (crn as u64) << 10 | (crm as u64) << 1;
    0x18 << 26 | IL | names
}

/// ESR_EL2 of a trapped system register access but for its transfer register.
pub const fn without_rt(esr: u64) -> u64 {
    esr & !(0x1F << 5)
}

/// The transfer register of a trapped system register access.
pub const fn rt(esr: u64) -> u8 {
    (esr >> 5 & 0x1F) as u8
}

/// Decodes ESR_EL2.
#[inline(always)]
pub const fn decode(esr: u64) -> Cause {
    let class = (esr >> 26 & 0x3F) as u8;
    match class {
        0x01 => Cause::Wait { wfe: bit(esr, 0) },
        0x07 | 0x19 | 0x1D => Cause::Fp,
        0x16 => Cause::Hvc { imm: esr as u16 },
        0x17 => Cause::Smc { imm: esr as u16 },
        0x18 => Cause::Sysreg(SysregAccess {
            op0: (esr >> 20 & 3) as u8,
            op2: (esr >> 17 & 7) as u8,
            op1: (esr >> 14 & 7) as u8,
            crn: (esr >> 10 & 0xF) as u8,
            rt: rt(esr),
            crm: (esr >> 1 & 0xF) as u8,
            read: bit(esr, 0),
        }),
        0x20 => Cause::InstructionAbort(abort(esr)),
        0x24 => Cause::DataAbort(abort(esr), access(esr)),
        _ => Cause::Other(class),
    }
}

#[inline]
const fn abort(esr: u64) -> Abort {
    let fsc = (esr & 0x3F) as u8;
    let kind = match fsc {
        0x00..=0x03 => FaultKind::AddressSize,
        0x04..=0x07 => FaultKind::Translation,
        0x08..=0x0B => FaultKind::AccessFlag,
        0x0C..=0x0F => FaultKind::Permission,
        0x10 | 0x13..=0x17 => FaultKind::External,
        other => FaultKind::Other(other),
    };
    let cm = bit(esr, 8);
    Abort { kind, s1ptw: bit(esr, 7), write: bit(esr, 6) && !cm, cm }
}

#[inline]
const fn access(esr: u64) -> Option<DataAccess> {
    if !bit(esr, 24) {
        return None;
    }
    Some(DataAccess {
        size: 1 << (esr >> 22 & 3),
        sign_extend: bit(esr, 21),
        rt: (esr >> 16 & 0x1F) as u8,
        sixty_four: bit(esr, 15),
        write: bit(esr, 6),
    })
}

/// The faulting IPA: HPFAR gives the page, FAR the offset in it.
pub const fn fault_ipa(page: u64, far: u64) -> Ipa {
    Ipa(page | far & 0xFFF)
}

/// ESR_EL1 of an Undefined Instruction exception.
pub const ESR_UNDEFINED: u64 = 1 << 25;

/// ESR_EL1 of a synchronous external abort: instruction or data, from EL0 or EL1.
pub const fn esr_external_abort(instruction: bool, from_el0: bool, write: bool) -> u64 {
    let class = match (instruction, from_el0) {
        (true, true) => 0x20,
        (true, false) => 0x21,
        (false, true) => 0x24,
        (false, false) => 0x25,
    };
    let wnr = if write && !instruction { 1 << 6 } else { 0 };
    class << 26 | 1 << 25 | wnr | 0x10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_of_a_device_register() {
        // EC 0x24, IL, ISV, SAS word, SRT 3, SF, translation fault level 3.
        let esr = 0x24 << 26 | 1 << 25 | 1 << 24 | 2 << 22 | 3 << 16 | 1 << 15 | 7;
        let Cause::DataAbort(abort, Some(access)) = decode(esr) else { panic!() };
        assert_eq!(abort.kind, FaultKind::Translation);
        assert!(!abort.write && !abort.s1ptw);
        assert_eq!(access, DataAccess { size: 4, sign_extend: false, sixty_four: true, rt: 3, write: false });
    }

    #[test]
    fn a_store_pair_has_no_syndrome() {
        let esr = 0x24 << 26 | 1 << 25 | 1 << 6 | 7;
        assert!(matches!(decode(esr), Cause::DataAbort(Abort { write: true, .. }, None)));
    }

    #[test]
    fn a_write_of_icc_sgi1r() {
        // S3_0_C12_C11_5, Rt 9, write.
        let esr = 0x18 << 26 | 1 << 25 | 3 << 20 | 5 << 17 | 12 << 10 | 9 << 5 | 11 << 1;
        let Cause::Sysreg(s) = decode(esr) else { panic!() };
        assert_eq!(s.key(), (3, 0, 12, 11, 5));
        assert!(!s.read && s.rt == 9);
        assert_eq!((without_rt(esr), rt(esr)), (esr_of_write(s.key()), 9));
        assert_ne!(without_rt(esr | 1), esr_of_write(s.key()), "a read");
        assert_eq!(decode(ESR_HVC_0), Cause::Hvc { imm: 0 });
        assert!(is_no_load(0x24 << 26 | 1 << 6) && !is_no_load(0x24 << 26));
    }

    #[test]
    fn aborts_name_the_level_they_came_from() {
        assert_eq!(esr_external_abort(false, true, true), 0x24 << 26 | 1 << 25 | 1 << 6 | 0x10);
        assert_eq!(esr_external_abort(true, false, true), 0x21 << 26 | 1 << 25 | 0x10);
    }
}
