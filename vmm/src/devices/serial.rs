// SPDX-License-Identifier: Apache-2.0 OR MIT
//! 16550 UART over vm-superio's model. What the guest sends goes to a writer, byte by byte as on
//! a wire; what the console sends is queued as far as the receive FIFO has room.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::MmioDevice;
use crate::exit::EndReason;

/// Interrupt enable register: received data available.
const IER_RECEIVED_DATA: u8 = 1;

/// The UART's interrupt line.
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells the console when the guest has read all there was.
struct Drained(Arc<EventFd>);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        // The counter can't overflow: the console reads it back to zero.
        let _ = self.0.write(1);
    }
}

/// Where the guest's output goes.
pub type Output = Box<dyn Write + Send>;

/// A UART as the console sees it, whichever it is.
pub trait Terminal: Send + Sync {
    /// Queues as much of `input` as there is room for; returns how much that is. Nothing, while the
    /// guest does not listen.
    fn receive(&self, input: &[u8]) -> usize;

    /// Signalled when the guest has emptied the receive FIFO.
    fn drained(&self) -> &EventFd;
}

/// The UART.
pub struct Uart {
    model: Mutex<Serial<Line, Drained, Output>>,
    drained: Arc<EventFd>,
}

impl Uart {
    /// A UART that signals `interrupt` and sends to `output`.
    ///
    /// # Errors
    /// No file descriptor left.
    pub fn new(interrupt: EventFd, output: Output) -> io::Result<Self> {
        let drained = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let model = Serial::with_events(Line(interrupt), Drained(drained.clone()), output);
        Ok(Self { model: Mutex::new(model), drained })
    }

    fn model(&self) -> MutexGuard<'_, Serial<Line, Drained, Output>> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Terminal for Uart {
    /// Nothing is queued while the guest has receive interrupts off: a driver that probes or opens
    /// the port throws away what it finds, and input that was piped in would lose its start.
    fn receive(&self, input: &[u8]) -> usize {
        let mut model = self.model();
        if model.state().interrupt_enable & IER_RECEIVED_DATA == 0 {
            return 0;
        }
        let room = model.fifo_capacity().min(input.len());
        let Some(input) = input.get(..room) else { return 0 };
        model.enqueue_raw_bytes(input).unwrap_or_else(|error| {
            tracing::warn!("serial input lost: {error:?}");
            input.len()
        })
    }

    fn drained(&self) -> &EventFd {
        &self.drained
    }
}

impl MmioDevice for Uart {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (Ok(offset), [byte]) = (u8::try_from(offset), data) {
            *byte = self.model().read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<EndReason> {
        if let (Ok(offset), [byte]) = (u8::try_from(offset), data)
            && let Err(error) = self.model().write(offset, *byte)
        {
            // A console that has gone away (closed pipe) is no reason to stop the guest.
            tracing::debug!("serial output lost: {error:?}");
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const LINE_STATUS: u64 = 5;

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

    fn uart() -> (Uart, Shared, EventFd) {
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let output = Shared::default();
        (Uart::new(line.try_clone().unwrap(), Box::new(output.clone())).unwrap(), output, line)
    }

    fn read(uart: &Uart, offset: u64) -> u8 {
        let mut data = [0];
        uart.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn output_reaches_the_writer() {
        let (uart, output, _) = uart();
        for byte in b"hello" {
            uart.write(DATA, &[*byte]);
        }
        assert_eq!(*output.0.lock().unwrap(), b"hello");
    }

    #[test]
    fn input_is_queued_up_to_the_fifo_and_signalled() {
        let (uart, _, line) = uart();
        assert_eq!(uart.receive(b"early"), 0, "nobody listens");
        uart.write(INTERRUPT_ENABLE, &[1]);
        let sent = uart.receive(&[b'x'; 1000]);
        assert!(sent > 0 && sent < 1000, "{sent}");
        assert_eq!(uart.receive(b"y"), 0, "full");
        assert!(line.read().is_ok());
        assert!(uart.drained().read().is_err());
        for _ in 0..sent {
            assert_eq!(read(&uart, LINE_STATUS) & 1, 1);
            assert_eq!(read(&uart, DATA), b'x');
        }
        assert_eq!(read(&uart, LINE_STATUS) & 1, 0);
        assert!(uart.drained().read().is_ok());
        assert_eq!(uart.receive(b"y"), 1);
    }

    #[test]
    fn wide_accesses_do_nothing() {
        let (uart, output, _) = uart();
        uart.write(DATA, b"wide");
        let mut data = [0; 4];
        uart.read(LINE_STATUS, &mut data);
        assert_eq!((data, output.0.lock().unwrap().len()), ([0; 4], 0));
    }
}
