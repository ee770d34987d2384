// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Transmit side of PL011 and 8250/16550 UARTs, set up by whoever ran before us.

use gzvm_core::fdt::machine::{Uart, UartKind};

use crate::arch::mmio::Frame;
use crate::mem;

/// PL011: data, flags (TXFF).
const PL011_DR: u64 = 0;
const PL011_FR: u64 = 0x18;
const PL011_FR_TXFF: u32 = 1 << 5;
/// 16550: transmit holding register, line status (THRE).
const THR: u64 = 0;
const LSR: u64 = 5;
const LSR_THRE: u32 = 1 << 5;
/// A UART that never drains must not hang EL2.
const PATIENCE: u32 = 10_000;

/// A UART to write to.
#[derive(Clone, Copy)]
pub struct Port {
    kind: UartKind,
    frame: Frame,
}

impl Port {
    /// The UART of the device tree.
    pub fn new(uart: &Uart) -> Self {
        Self { kind: uart.kind, frame: mem::device_frame(&uart.region) }
    }

    /// Sends one byte. False: the UART stays full (the host may have switched it off), and the byte is
    /// dropped.
    pub fn send(&self, byte: u8) -> bool {
        match self.kind {
            UartKind::Pl011 => {
                let ready = (0..PATIENCE).any(|_| self.frame.read32(PL011_FR) & PL011_FR_TXFF == 0);
                if ready {
                    self.frame.write32(PL011_DR, u32::from(byte));
                }
                ready
            }
            UartKind::Ns16550 { shift, width } => {
                let read = |r: u64| match width {
                    4 => self.frame.read32(r << shift),
                    _ => u32::from(self.frame.read8(r << shift)),
                };
                let ready = (0..PATIENCE).any(|_| read(LSR) & LSR_THRE != 0);
                match width {
                    _ if !ready => {}
                    4 => self.frame.write32(THR << shift, u32::from(byte)),
                    _ => self.frame.write8(THR << shift, byte),
                }
                ready
            }
        }
    }
}
