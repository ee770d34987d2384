// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Lines on the VM's 16550, which the host reads: no secrets.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Transmitter holding register empty, in the line status register.
const THRE: u8 = 1 << 5;
const LINE_STATUS: u64 = 5;
/// A VMM that never says so does not stop us.
const TRIES: u32 = 10_000;

/// Where its registers are, plus one; 0 for nowhere.
static UART: AtomicU64 = AtomicU64::new(0);

/// A 16550 is at `base`, in the part of the map that is devices'.
pub fn start(base: u64) {
    UART.store(base + 1, Relaxed);
}

struct Uart(u64);

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: registers of a device, mapped as such.
            unsafe {
                let mut tries = 0;
                while ((self.0 + LINE_STATUS) as *const u8).read_volatile() & THRE == 0 && tries < TRIES {
                    tries += 1;
                }
                (self.0 as *mut u8).write_volatile(byte);
            }
        }
        Ok(())
    }
}

/// Prints.
pub fn print(text: fmt::Arguments<'_>) {
    if let Some(base) = UART.load(Relaxed).checked_sub(1) {
        // It can't fail.
        let _ = Uart(base).write_fmt(text);
    }
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => { $crate::console::print(format_args!("{}\r\n", format_args!($($arg)*))) };
}
