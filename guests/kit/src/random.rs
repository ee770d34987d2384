// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Numbers that repeat.

/// A small pseudo-random generator (xorshift64*), so that runs repeat. Its state is not 0.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}
