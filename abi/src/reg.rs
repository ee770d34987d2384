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

/// The id of Xn, n < 31.
pub const fn x(n: u8) -> Option<u64> {
    if n < 31 { Some(X0 + 2 * n as u64) } else { None }
}

/// Bytes in the register that `id` names.
pub const fn size(id: u64) -> u64 {
    1 << (id >> SIZE_SHIFT & 0xF)
}

const _: () = assert!(PC == 0x6030_0000_0010_0040 && PSTATE == 0x6030_0000_0010_0042);
const _: () = assert!(X0 == 0x6030_0000_0010_0000 && SP_EL0 == 0x6030_0000_0010_003E);
