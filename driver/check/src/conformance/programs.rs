// SPDX-License-Identifier: GPL-2.0-only
//! Guests of the conformance checks: position independent, MMU off. x19 is the device.

/// PSCI SYSTEM_OFF.
///
/// `movz w0, #8; movk w0, #0x8400, lsl #16; hvc #0; b .`
pub const OFF: &[u32] = &[0x5280_0100, 0x72B0_8000, 0xD400_0002, 0x1400_0000];

/// PSCI SYSTEM_RESET.
///
/// `movz w0, #9; movk w0, #0x8400, lsl #16; hvc #0; b .`
pub const RESET: &[u32] = &[0x5280_0120, 0x72B0_8000, 0xD400_0002, 0x1400_0000];

/// Stores of w2/x2 at x19 + 0x11, 0x12, 0x14, 0x18 (1, 2, 4, 8 bytes); loads from x19 + 0x21, 0x22, 0x24, 0x28, each stored at x19 + 0x40; again.
///
/// `strb; strh; str w; str x; 4 x (ldrb, ldrsh, ldrsw, ldr; str x3); b`
pub const ACCESS: &[u32] = &[
    0x3900_4662,
    0x7900_2662,
    0xB900_1662,
    0xF900_0E62,
    0x3940_8663,
    0xF900_2263,
    0x7980_4663,
    0xF900_2263,
    0xB980_2663,
    0xF900_2263,
    0xF940_1663,
    0xF900_2263,
    0x17FF_FFF4,
];

/// Tells the word at x20, gives its page back, tells the answer and the word again (x19, + 8, + 16); again.
///
/// `ldr; str; MEM_RELINQUISH; str; ldr; str; b`
pub const RELINQUISH: &[u32] = &[
    0xF940_0285,
    0xF900_0265,
    0x5280_0120,
    0x72B8_C000,
    0xAA14_03E1,
    0xD400_0002,
    0xF900_0660,
    0xF940_0285,
    0xF900_0A65,
    0x17FF_FFF7,
];

/// Asks for the time by counter x20, tells x0 to x3, then CNTVCT before and after, CNTPCT before and after (x19 + 8 n); again with x20 + 1.
///
/// `mrs; mrs; PTP; isb; mrs; mrs; 8 x str; add; b`
pub const PTP: &[u32] = &[
    0xD53B_E046,
    0xD53B_E028,
    0x5280_0020,
    0x72B0_C000,
    0xAA14_03E1,
    0xD400_0002,
    0xD503_3FDF,
    0xD53B_E047,
    0xD53B_E029,
    0xF900_0260,
    0xF900_0661,
    0xF900_0A62,
    0xF900_0E63,
    0xF900_1266,
    0xF900_1667,
    0xF900_1A68,
    0xF900_1E69,
    0x9100_0694,
    0x17FF_FFEE,
];

/// Sets up the GIC of vCPU 0, SPI 5 and PPI 23; stores at x19; then tells each INTID at x19 + 8, sleeping in between.
///
/// `GIC; str xzr; 1: HPPIR1; wfi; b 1b; IAR1; EOIR1; str; b 1b`
pub const LINES: &[u32] = &[
    0xD2A7_FFEA,
    0x5280_024B,
    0xB900_014B,
    0x1280_000B,
    0xB900_854B,
    0xD2A7_FF6C,
    0xB940_158B,
    0x121E_796B,
    0xB900_158B,
    0x9140_418C,
    0x1280_000B,
    0xB900_818B,
    0xD280_002B,
    0xD518_CCAB,
    0xD503_3FDF,
    0xD280_1FEB,
    0xD518_460B,
    0xD280_002B,
    0xD518_CCEB,
    0xD503_3FDF,
    0x5280_040B,
    0xB901_054B,
    0x52A0_100B,
    0xB901_018B,
    0xF900_027F,
    0xD538_CC44,
    0x710F_FC9F,
    0x5400_0061,
    0xD503_207F,
    0x17FF_FFFC,
    0xD538_CC04,
    0xD518_CC24,
    0xD503_3FDF,
    0xF900_0664,
    0x17FF_FFF7,
];

/// Turns vCPU 1 on, tells the answer at x19, loads from x19 + 8, sends SGI 3 to vCPU 1, sleeps. vCPU 1 sleeps until SGI 3, and tells it at 0x1000_0010.
///
/// `CPU_ON; str; GIC; ldr; SGI1R; wfi ...`
pub const SGI: &[u32] = &[
    0x5280_0060,
    0x72B8_8000,
    0xD280_0021,
    0x1000_03E2,
    0xD280_0EE3,
    0xD400_0002,
    0xF900_0260,
    0xD2A7_FFEA,
    0x5280_024B,
    0xB900_014B,
    0x1280_000B,
    0xB900_854B,
    0xD2A7_FF6C,
    0xB940_158B,
    0x121E_796B,
    0xB900_158B,
    0x9140_418C,
    0x1280_000B,
    0xB900_818B,
    0xD280_002B,
    0xD518_CCAB,
    0xD503_3FDF,
    0xD280_1FEB,
    0xD518_460B,
    0xD280_002B,
    0xD518_CCEB,
    0xD503_3FDF,
    0xB940_0A66,
    0xD280_0044,
    0xF2A0_6004,
    0xD518_CBA4,
    0xD503_3FDF,
    0xD503_207F,
    0x17FF_FFFF,
    0xD2A2_0013,
    0xD2A7_FFEA,
    0x5280_024B,
    0xB900_014B,
    0x1280_000B,
    0xB900_854B,
    0xD2A7_FFAC,
    0xB940_158B,
    0x121E_796B,
    0xB900_158B,
    0x9140_418C,
    0x1280_000B,
    0xB900_818B,
    0xD280_002B,
    0xD518_CCAB,
    0xD503_3FDF,
    0xD280_1FEB,
    0xD518_460B,
    0xD280_002B,
    0xD518_CCEB,
    0xD503_3FDF,
    0x5280_010B,
    0xB901_018B,
    0xD538_CC44,
    0x7100_0C9F,
    0x5400_0060,
    0xD503_207F,
    0x17FF_FFFC,
    0xD538_CC04,
    0xF900_0A64,
    0x1400_0000,
];
