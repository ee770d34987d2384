// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Register identifiers of GET/SET_ONE_REG, in KVM's encoding.

const ARM64: u64 = 0x6000_0000_0000_0000;
const U64: u64 = 0x0030_0000_0000_0000;
const CORE: u64 = 0x0010_0000;

/// Bit position of the log2 of the size in bytes.
pub const SIZE_SHIFT: u32 = 52;

/// The id of a core register at `offset` bytes in KVM's register structure, 64 bits wide.
const fn core64(offset: u64) -> u64 {
    ARM64 | U64 | CORE | (offset / 4)
}

/// X0. Xn is `X0 + 2 * n`, up to X30.
pub const X0: u64 = core64(0);
/// X30.
pub const X30: u64 = core64(240);
/// SP_EL0.
pub const SP_EL0: u64 = core64(248);
/// PC.
pub const PC: u64 = core64(256);
/// PSTATE.
pub const PSTATE: u64 = core64(264);
/// SP_EL1.
pub const SP_EL1: u64 = core64(272);
/// ELR_EL1.
pub const ELR_EL1: u64 = core64(280);
/// SPSR_EL1.
pub const SPSR_EL1: u64 = core64(288);

const U32: u64 = 0x0020_0000_0000_0000;
const U128: u64 = 0x0040_0000_0000_0000;
const SYSREG: u64 = 0x0013_0000;

/// V0, 128 bits wide. Vn is `V0 + 4 * n`, up to V31.
pub const V0: u64 = ARM64 | U128 | CORE | (336 / 4);
/// V31.
pub const V31: u64 = V0 + 4 * 31;
/// FPSR, 32 bits wide.
pub const FPSR: u64 = ARM64 | U32 | CORE | (848 / 4);
/// FPCR, 32 bits wide.
pub const FPCR: u64 = ARM64 | U32 | CORE | (852 / 4);

/// The id of a system register by its encoding.
pub const fn sysreg(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    ARM64 | U64 | SYSREG | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

macro_rules! system_registers {
    ($($name:ident = $op0:literal $op1:literal $crn:literal $crm:literal $op2:literal,)*) => {
        $(#[doc = concat!(stringify!($name), ".")]
        pub const $name: u64 = sysreg($op0, $op1, $crn, $crm, $op2);)*
        /// The system registers that GET_ONE_REG knows.
        pub const SYSTEM: &[u64] = &[$($name,)*];
    };
}

system_registers! {
    SCTLR_EL1 = 3 0 1 0 0,
    CPACR_EL1 = 3 0 1 0 2,
    TTBR0_EL1 = 3 0 2 0 0,
    TTBR1_EL1 = 3 0 2 0 1,
    TCR_EL1 = 3 0 2 0 2,
    AFSR0_EL1 = 3 0 5 1 0,
    AFSR1_EL1 = 3 0 5 1 1,
    ESR_EL1 = 3 0 5 2 0,
    FAR_EL1 = 3 0 6 0 0,
    PAR_EL1 = 3 0 7 4 0,
    MAIR_EL1 = 3 0 10 2 0,
    AMAIR_EL1 = 3 0 10 3 0,
    VBAR_EL1 = 3 0 12 0 0,
    CONTEXTIDR_EL1 = 3 0 13 0 1,
    TPIDR_EL1 = 3 0 13 0 4,
    TPIDR_EL0 = 3 3 13 0 2,
    TPIDRRO_EL0 = 3 3 13 0 3,
    CNTKCTL_EL1 = 3 0 14 1 0,
    CSSELR_EL1 = 3 2 0 0 0,
    MPIDR_EL1 = 3 0 0 0 5,
    MDSCR_EL1 = 2 0 0 2 2,
    CNTV_CTL_EL0 = 3 3 14 3 1,
    // KVM's number for it is that of the counter, CNTVCT_EL0.
    CNTV_CVAL_EL0 = 3 3 14 0 2,
}

/// The id of Xn, n < 31.
pub const fn x(n: u8) -> Option<u64> {
    if n < 31 { Some(X0 + 2 * n as u64) } else { None }
}

/// Bytes in the register that `id` names.
pub const fn size(id: u64) -> u64 {
    1 << (id >> SIZE_SHIFT & 0xF)
}

const _: () = assert!(PC == 0x6030_0000_0010_0040 && PSTATE == 0x6030_0000_0010_0042);
const _: () = assert!(V0 == 0x6040_0000_0010_0054 && FPSR == 0x6020_0000_0010_00D4);
const _: () = assert!(FPCR == 0x6020_0000_0010_00D5 && SCTLR_EL1 == 0x6030_0000_0013_C080);
const _: () = assert!(X0 == 0x6030_0000_0010_0000 && SP_EL0 == 0x6030_0000_0010_003E);
