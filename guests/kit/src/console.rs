// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The console: PL011 or 16550, output only, polled. Silent without either.

use core::fmt::{self, Write};

use spin::Mutex;

use crate::machine::{Machine, UartKind};
use crate::mmio::Region;

struct Uart {
    kind: UartKind,
    region: Region,
}

static UART: Mutex<Option<Uart>> = Mutex::new(None);

const PL011_DR: usize = 0x00;
const PL011_FR: usize = 0x18;
const PL011_FR_TXFF: u32 = 1 << 5;
const NS16550_THR: usize = 0;
const NS16550_LSR: usize = 5;
const NS16550_LSR_THRE: u8 = 1 << 5;

impl Uart {
    fn byte(&self, byte: u8) {
        match self.kind {
            UartKind::Pl011 => {
                while self.region.read32(PL011_FR) & PL011_FR_TXFF != 0 {}
                self.region.write32(PL011_DR, byte.into());
            }
            UartKind::Ns16550 { shift } => {
                while self.region.read8(NS16550_LSR << shift) & NS16550_LSR_THRE == 0 {}
                self.region.write8(NS16550_THR << shift, byte);
            }
        }
    }
}

impl Write for Uart {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            if byte == b'\n' {
                self.byte(b'\r');
            }
            self.byte(byte);
        }
        Ok(())
    }
}

pub(crate) fn init(machine: &Machine) {
    if let Some((kind, base)) = machine.uart {
        // SAFETY: the device tree says that a UART is there; the lowest GiB is device memory.
        let region = unsafe { Region::new(base, 0x1000) };
        *UART.lock() = Some(Uart { kind, region });
    }
}

/// For a guest that ends: the lock's owner may be the one that failed.
pub(crate) fn break_lock() {
    // SAFETY: the guest is about to power off; a mixed line is better than none.
    unsafe { UART.force_unlock() };
}

/// Writes to the console.
pub fn print(args: fmt::Arguments) {
    if let Some(uart) = UART.lock().as_mut() {
        // Writing to a UART can't fail.
        let _ = uart.write_fmt(args);
    }
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    () => { $crate::console::print(format_args!("\n")) };
    ($($arg:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($arg)*))) };
}
