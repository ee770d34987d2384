// SPDX-License-Identifier: GPL-2.0-only
//! A vCPU's thread: registers, the barrier, RUN, and what becomes of each exit.
//!
//! A kick is SIGRTMIN to the thread: the handler sets `immediate_exit` in the run buffer and restarts system calls, so that RUN
//! ends with EINTR whether the signal came before it or in it. The loop clears the byte and looks at its orders.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};

use gzvm_abi::ioctl;
use gzvm_abi::reg;
use gzvm_abi::run::{Mmio, SystemEvent, VcpuRun, exit, system_event};
use libc::{EAGAIN, EINTR};
use zerocopy::{FromZeros, IntoBytes};

use super::pci::{self, Console};
use super::uart::{self, Uart};
use crate::machine::set_register;
use crate::sys::{self, Mapping};

/// D, A, I and F masked, EL1h.
const PSTATE: u64 = 0x3C5;
/// Where `immediate_exit` is in the run structure.
const IMMEDIATE_EXIT: usize = 4;
/// Where its payload begins.
const PAYLOAD: usize = 8;

/// Why a vCPU's loop ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    Stop,
    Reset,
    Crash,
    GuestPanic,
}

/// What guest addresses lead to.
pub struct Bus {
    pub uart: Uart,
    pub console: Console,
}

impl Bus {
    fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = address.checked_sub(uart::BASE).filter(|offset| *offset < 8) {
            data[0] = self.uart.read(offset);
        } else {
            pci::read(&self.console, address, data);
        }
    }

    fn write(&self, address: u64, data: &[u8]) {
        if let Some(offset) = address.checked_sub(uart::BASE).filter(|offset| *offset < 8) {
            self.uart.write(offset, data[0]);
        } else {
            pci::write(&self.console, address, data);
        }
    }
}

/// A vCPU that does not run yet.
pub struct Vcpu {
    file: OwnedFd,
    id: usize,
    bus: Arc<Bus>,
    entry: u64,
    fdt: u64,
    /// Anonymous memory of its own, of which 264 bytes are used.
    run: Mapping,
}

/// A running one.
pub struct Thread {
    handle: JoinHandle<()>,
    id: sys::Thread,
}

impl Vcpu {
    pub fn new(file: OwnedFd, id: usize, bus: Arc<Bus>, (entry, fdt): (u64, u64)) -> Self {
        Self { file, id, bus, entry, fdt, run: Mapping::new(4096, true) }
    }

    /// Starts its thread, which tells `ends` how it ended unless it was stopped.
    pub fn start(self, barrier: Arc<Barrier>, stop: Arc<AtomicBool>, ends: Sender<End>) -> Thread {
        let (sender, receiver): (_, Receiver<sys::Thread>) = channel();
        let handle = thread::spawn(move || {
            let _ = sender.send(sys::Thread::current());
            let ready = self.set_registers();
            // Signals before this find no buffer, and the loop's order is there anyway.
            barrier.wait();
            let end = match ready {
                Ok(()) => {
                    sys::kicks_set(Some((&self.run, IMMEDIATE_EXIT)));
                    let end = self.run_loop(&stop);
                    sys::kicks_set(None);
                    end
                }
                Err(error) => {
                    println!("crosvm: vCPU {}: {error}", self.id);
                    Some(End::Crash)
                }
            };
            if let Some(end) = end {
                let _ = ends.send(end);
            }
        });
        let id = receiver.recv().expect("the thread sends before anything else");
        Thread { handle, id }
    }

    /// Boot vCPU: X0, PC, PSTATE. The others learn PSTATE alone; nobody says that they are off.
    fn set_registers(&self) -> std::io::Result<()> {
        if self.id == 0 {
            set_register(&self.file, reg::X0, self.fdt)?;
            set_register(&self.file, reg::PC, self.entry)?;
        }
        set_register(&self.file, reg::PSTATE, PSTATE).map(drop)
    }

    fn run_loop(&self, stop: &AtomicBool) -> Option<End> {
        loop {
            match sys::ioctl(&self.file, ioctl::RUN, self.run.address()) {
                Ok(_) => {
                    if let Some(end) = self.exit() {
                        return Some(end);
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(EINTR) => {
                        if stop.load(Ordering::SeqCst) {
                            return None;
                        }
                        self.run.write(IMMEDIATE_EXIT, &[0]);
                    }
                    Some(EAGAIN) => {}
                    _ => {
                        println!("crosvm: vCPU {}: {error}", self.id);
                        return Some(End::Crash);
                    }
                },
            }
        }
    }

    /// What RUN came back for. What is no end goes on.
    fn exit(&self) -> Option<End> {
        let mut run = VcpuRun::new_zeroed();
        self.run.read(0, run.as_mut_bytes());
        match run.exit_reason {
            exit::MMIO => {
                self.mmio(&mut run);
                None
            }
            exit::IRQ => None,
            exit::HYPERCALL => {
                println!("crosvm: failed to handle hypercall: not implemented");
                None
            }
            exit::INTERNAL_ERROR => {
                println!("crosvm: unexpected vcpu exit: internal error");
                None
            }
            exit::SHUTDOWN => Some(End::Stop),
            exit::SYSTEM_EVENT => match SystemEvent::read(&run).type_ {
                system_event::SHUTDOWN => Some(End::Stop),
                system_event::RESET => Some(End::Reset),
                system_event::CRASH => Some(End::GuestPanic),
                _ => Some(End::Crash),
            },
            exit::EXCEPTION | exit::FAIL_ENTRY | exit::DEBUG => {
                println!("crosvm: vCPU {}: exit {:#x}, {:x?}", self.id, run.exit_reason, &run.payload[..3]);
                Some(End::Crash)
            }
            other => panic!("unknown exit reason {other:#x}"),
        }
    }

    /// Data is read and answered in place, in the buffer that the next RUN takes.
    fn mmio(&self, run: &mut VcpuRun) {
        let mut mmio = Mmio::read(run);
        let data = &mut mmio.data[..mmio.size as usize];
        if mmio.is_write != 0 {
            self.bus.write(mmio.phys_addr, data);
        } else {
            self.bus.read(mmio.phys_addr, data);
            self.run.write(PAYLOAD + 8, &mmio.data);
        }
    }
}

impl Thread {
    pub fn kick(&self) {
        self.id.kick();
    }

    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Whether it ended well.
    pub fn join(self) -> bool {
        self.handle.join().is_ok()
    }
}
