// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The hypervisor's log: levelled, timestamped lines on the UART and in a RAM ring.
//!
//! The UART is the host's too. EL2 writes whole lines by polling, seldom, and rate-limited where a
//! host or guest could make it talk.

mod ring;
mod uart;

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use gzvm_core::fdt::machine::Uart;
use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::Once;

use crate::arch::lock::Mutex;

pub use ring::RING;
use uart::Port;

struct Console {
    port: Option<Port>,
}

/// The UART again, for who can't have the lock.
static PORT: Once<Port> = Once::new();

static CONSOLE: Mutex<Console> = Mutex::new(Console { port: None });

impl Write for Console {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        if let Some(port) = &self.port {
            for b in s.bytes() {
                let ready = (b != b'\n' || port.send(b'\r')) && port.send(b);
                if !ready {
                    break;
                }
            }
        }
        RING.append(s.as_bytes());
        Ok(())
    }
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let ticks = crate::arch::timer::now();
        let frequency = crate::arch::timer::frequency().max(1);
        let seconds = ticks / frequency;
        let micros = ticks % frequency * 1_000_000 / frequency;
        let level = match record.level() {
            Level::Error => "ERROR",
            Level::Warn => "WARN ",
            Level::Info => "INFO ",
            Level::Debug => "DEBUG",
            Level::Trace => "TRACE",
        };
        let mut console = CONSOLE.lock();
        let _ = writeln!(console, "gzvm [{seconds:4}.{micros:06}] {level} {}", record.args());
    }

    fn flush(&self) {}
}

/// Starts the log on `uart`; without one, lines go to the ring only.
pub fn init(uart: Option<&Uart>) {
    let port = uart.map(Port::new);
    CONSOLE.lock().port = port;
    if let Some(port) = port {
        PORT.call_once(|| port);
    }
    // A second call would fail; there is one.
    let _ = log::set_logger(&Logger);
    log::set_max_level(LevelFilter::Info);
}

/// For crash reports: prints even if the lock is held by the code that crashed.
pub fn print_fatal(args: fmt::Arguments<'_>) {
    /// The lock could not be had, and won't be.
    static STUCK: AtomicBool = AtomicBool::new(false);
    // A CPU that crashes while it holds the console would wait for itself; give others a moment.
    for _ in 0..1_000_000 {
        if STUCK.load(Ordering::Relaxed) {
            break;
        }
        if let Some(mut console) = CONSOLE.try_lock() {
            let _ = console.write_fmt(args);
            return;
        }
        crate::arch::lock::pause();
    }
    STUCK.store(true, Ordering::Relaxed);
    let _ = Console { port: PORT.get().copied() }.write_fmt(args);
}

/// A crash of the code that holds the console.
#[cfg(feature = "crash-test")]
pub fn crash_inside() {
    let _console = CONSOLE.lock();
    panic!("crash test with the console locked");
}

/// Prints without a logger, an allocator, atomics or the MMU: for a CPU that is not at EL2.
pub fn print_early(uart: &Uart, text: &str) {
    let port = Port::new(uart);
    for b in text.bytes() {
        if b == b'\n' {
            let _ = port.send(b'\r');
        }
        let _ = port.send(b);
    }
}
