// SPDX-License-Identifier: Apache-2.0 OR MIT
//! PL011 UART (Arm DDI 0183): what firmware for QEMU's `virt` machine talks to.
//!
//! What the guest sends goes to a writer at once, so the transmit FIFO is always empty. The interrupt
//! line is an irqfd that only says "now": it is signalled whenever the masked status goes from zero
//! to something, or gains a bit.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::serial::{Output, Terminal};
use crate::bus::MmioDevice;
use crate::exit::EndReason;

const UARTDR: u64 = 0x00;
const UARTFR: u64 = 0x18;
const UARTIBRD: u64 = 0x24;
const UARTFBRD: u64 = 0x28;
const UARTLCR_H: u64 = 0x2C;
const UARTCR: u64 = 0x30;
const UARTIFLS: u64 = 0x34;
const UARTIMSC: u64 = 0x38;
const UARTRIS: u64 = 0x3C;
const UARTMIS: u64 = 0x40;
const UARTICR: u64 = 0x44;
/// Peripheral and PrimeCell identification: one byte in each word.
const ID_REGISTERS: u64 = 0xFE0;
const IDS: [u8; 8] = [0x11, 0x10, 0x14, 0x00, 0x0D, 0xF0, 0x05, 0xB1];

const FR_RXFE: u32 = 1 << 4;
const FR_RXFF: u32 = 1 << 6;
const FR_TXFE: u32 = 1 << 7;
const CR_UARTEN: u32 = 1;
/// Reset value: receiver and transmitter on, the UART itself off.
const CR_RESET: u32 = 0x300;
const IFLS_RESET: u32 = 0x12;
/// Interrupts: receive, transmit, receive timeout; and all that exist.
const INT_RX: u32 = 1 << 4;
const INT_TX: u32 = 1 << 5;
const INT_RT: u32 = 1 << 6;
const INT_ALL: u32 = 0x7FF;

const FIFO: usize = 32;

struct Registers {
    fifo: VecDeque<u8>,
    baud: [u32; 2],
    line_control: u32,
    control: u32,
    fifo_levels: u32,
    mask: u32,
    raised: u32,
    output: Output,
}

/// The UART.
pub struct Pl011 {
    registers: Mutex<Registers>,
    line: EventFd,
    drained: EventFd,
}

impl Pl011 {
    /// A UART that signals `line` and sends to `output`.
    ///
    /// # Errors
    /// No file descriptor left.
    pub fn new(line: EventFd, output: Output) -> io::Result<Self> {
        let registers = Mutex::new(Registers {
            fifo: VecDeque::with_capacity(FIFO),
            baud: [0; 2],
            line_control: 0,
            control: CR_RESET,
            fifo_levels: IFLS_RESET,
            mask: 0,
            raised: 0,
            output,
        });
        let drained = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self { registers, line, drained })
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `change` change the registers, and signals the line if an interrupt came up by that.
    fn update<R>(&self, change: impl FnOnce(&mut Registers) -> R) -> R {
        let mut registers = self.lock();
        let before = registers.raised & registers.mask;
        let result = change(&mut registers);
        if registers.raised & registers.mask & !before != 0
            && let Err(error) = self.line.write(1)
        {
            tracing::warn!("UART interrupt lost: {error}");
        }
        result
    }

    fn receive_data(&self) -> u32 {
        let (byte, empty) = self.update(|registers| {
            let byte = registers.fifo.pop_front();
            if registers.fifo.is_empty() {
                registers.raised &= !(INT_RX | INT_RT);
            }
            (byte, registers.fifo.is_empty())
        });
        if empty && byte.is_some() {
            // The counter can't overflow: the console reads it back to zero.
            let _ = self.drained.write(1);
        }
        byte.unwrap_or(0).into()
    }
}

impl Terminal for Pl011 {
    /// Nothing is queued while the UART is off; firmware polls, so its interrupts tell nothing.
    fn receive(&self, input: &[u8]) -> usize {
        self.update(|registers| {
            if registers.control & CR_UARTEN == 0 {
                return 0;
            }
            let room = FIFO.saturating_sub(registers.fifo.len()).min(input.len());
            registers.fifo.extend(input.iter().take(room));
            if room > 0 {
                // As if the line had been idle ever since: a driver need not wait for a full FIFO.
                registers.raised |= INT_RX | INT_RT;
            }
            room
        })
    }

    fn drained(&self) -> &EventFd {
        &self.drained
    }
}

impl MmioDevice for Pl011 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset == UARTDR {
            let value = self.receive_data();
            if let Some(first) = data.first_mut() {
                *first = value.to_le_bytes()[0];
            }
            return;
        }
        let registers = self.lock();
        let id = offset.checked_sub(ID_REGISTERS).and_then(|offset| usize::try_from(offset / 4).ok());
        let value = match offset {
            UARTFR => {
                let empty = if registers.fifo.is_empty() { FR_RXFE } else { 0 };
                let full = if registers.fifo.len() >= FIFO { FR_RXFF } else { 0 };
                FR_TXFE | empty | full
            }
            UARTIBRD => registers.baud[0],
            UARTFBRD => registers.baud[1],
            UARTLCR_H => registers.line_control,
            UARTCR => registers.control,
            UARTIFLS => registers.fifo_levels,
            UARTIMSC => registers.mask,
            UARTRIS => registers.raised,
            UARTMIS => registers.raised & registers.mask,
            _ => id.and_then(|index| IDS.get(index)).map_or(0, |&id| id.into()),
        };
        // Registers may be read as bytes, halves or words.
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<EndReason> {
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let value = u32::from_le_bytes(bytes);
        self.update(|registers| match offset {
            UARTDR => {
                if let Err(error) = registers.output.write_all(&bytes[..1]) {
                    // A console that has gone away (closed pipe) is no reason to stop the guest.
                    tracing::debug!("UART output lost: {error}");
                }
                // Sent at once.
                registers.raised |= INT_TX;
            }
            UARTIBRD => registers.baud[0] = value & 0xFFFF,
            UARTFBRD => registers.baud[1] = value & 0x3F,
            UARTLCR_H => registers.line_control = value & 0xFF,
            UARTCR => registers.control = value & 0xFFFF,
            UARTIFLS => registers.fifo_levels = value & 0x3F,
            UARTIMSC => registers.mask = value & INT_ALL,
            UARTICR => registers.raised &= !value,
            _ => {}
        });
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(data);
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn uart() -> (Pl011, Shared, EventFd) {
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let output = Shared::default();
        (Pl011::new(line.try_clone().unwrap(), Box::new(output.clone())).unwrap(), output, line)
    }

    fn read(uart: &Pl011, offset: u64) -> u32 {
        let mut data = [0; 4];
        uart.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(uart: &Pl011, offset: u64, value: u32) {
        assert_eq!(uart.write(offset, &value.to_le_bytes()), None);
    }

    #[test]
    fn output_reaches_the_writer_at_any_width() {
        let (uart, output, _) = uart();
        uart.write(UARTDR, b"h");
        write(&uart, UARTDR, b'i'.into());
        assert_eq!(*output.0.lock().unwrap(), b"hi");
        assert_eq!(read(&uart, UARTFR), FR_TXFE | FR_RXFE);
    }

    #[test]
    fn input_is_queued_once_the_uart_is_on_and_signalled() {
        let (uart, _, line) = uart();
        assert_eq!(uart.receive(b"early"), 0, "off");
        write(&uart, UARTCR, CR_RESET | CR_UARTEN);
        write(&uart, UARTIMSC, INT_RX | INT_RT);
        assert_eq!(uart.receive(&[b'x'; 100]), FIFO);
        assert_eq!(uart.receive(b"y"), 0, "full");
        assert_eq!((line.read().unwrap(), read(&uart, UARTMIS)), (1, INT_RX | INT_RT));
        assert_eq!(read(&uart, UARTFR) & (FR_RXFE | FR_RXFF), FR_RXFF);
        for _ in 0..FIFO {
            assert!(uart.drained().read().is_err());
            assert_eq!(read(&uart, UARTDR), u32::from(b'x'));
        }
        assert!(uart.drained().read().is_ok());
        assert_eq!(read(&uart, UARTRIS) & INT_RX, 0);
        assert_eq!(read(&uart, UARTFR) & FR_RXFE, FR_RXFE);
    }

    #[test]
    fn sending_interrupts_each_time_it_was_cleared() {
        let (uart, _, line) = uart();
        write(&uart, UARTIMSC, INT_TX);
        for _ in 0..2 {
            write(&uart, UARTDR, 1);
            assert_eq!(line.read().unwrap(), 1);
            write(&uart, UARTICR, INT_TX);
            assert_eq!(read(&uart, UARTRIS), 0);
        }
    }

    #[test]
    fn identification() {
        let (uart, ..) = uart();
        let ids: Vec<_> = (0..8).map(|index| read(&uart, ID_REGISTERS + 4 * index)).collect();
        assert_eq!(ids, [0x11, 0x10, 0x14, 0, 0xD, 0xF0, 5, 0xB1]);
    }
}
