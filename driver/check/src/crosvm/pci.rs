// SPDX-License-Identifier: GPL-2.0-only
//! PCI with a host bridge and one virtio console, as crosvm makes virtio devices: capabilities in BAR 0, notifications by
//! ioeventfds of any length from the moment the driver is ready, INTx as an irqfd with a resample eventfd. No MSI-X: there is no ITS.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use gzvm_abi::ioctl::{self, IOEVENTFD_DEASSIGN, Ioeventfd};

use super::{PCI_INTA, RAM, Vm};
use crate::sys::{self, Mapping, eventfd, signal, take};

/// Configuration space, bus 0 in it: device in bits 15:11, register in bits 7:0.
pub const CONFIG: u64 = 0x1_0000;
pub const CONFIG_SIZE: u64 = 0x100_0000;
/// Window of 32-bit BARs; the console's is its first.
pub const WINDOW: u64 = 0x200_0000;
pub const WINDOW_SIZE: u64 = 0x200_0000;
const BAR: u64 = WINDOW;
const BAR_SIZE: u64 = 0x8000;
/// The console's device number.
pub const DEVICE: u32 = 1;

// What is where in the BAR.
const ISR: u64 = 0x1000;
const DEVICE_CONFIG: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const NOTIFY_STEP: u64 = 4;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUES: usize = 2;
const QUEUE_SIZE: u16 = 64;
const DRIVER_OK: u8 = 4;
/// VIRTIO_F_VERSION_1, in the upper word of the features.
const VERSION_1: u32 = 1;
const NO_VECTOR: u16 = 0xFFFF;

#[derive(Clone, Copy, Default)]
struct Queue {
    size: u16,
    enabled: bool,
    /// Descriptors, driver's ring, device's ring.
    areas: [u64; 3],
    /// Next entry of the driver's ring, and of ours.
    next: u16,
}

struct State {
    config: [u8; 256],
    feature_select: u32,
    status: u8,
    queue_select: u16,
    queues: [Queue; QUEUES],
    /// ioeventfds are registered.
    ready: bool,
    line: Vec<u8>,
}

/// What the device's thread and the vCPUs share.
struct Shared {
    vm: Arc<Vm>,
    ram: Arc<Mapping>,
    state: Mutex<State>,
    isr: AtomicU8,
    interrupt: File,
    resample: File,
    notify: [File; QUEUES],
    stop: AtomicBool,
    interrupts: AtomicU32,
    notified: AtomicU32,
    resampled: AtomicU32,
}

pub struct Console {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

/// The host bridge: an Intel 440FX by its numbers.
fn bridge(register: usize) -> u8 {
    let bytes: [u8; 12] = [0x86, 0x80, 0x37, 0x12, 0, 0, 0, 0, 0, 0, 0, 6];
    bytes.get(register).copied().unwrap_or(0)
}

fn console_config() -> [u8; 256] {
    let mut config = [0_u8; 256];
    config[..12].copy_from_slice(&[0xF4, 0x1A, 0x43, 0x10, 0, 0, 0x10, 0, 1, 0, 0x80, 7]);
    config[0x10..0x14].copy_from_slice(&(BAR as u32 | 4).to_le_bytes());
    config[0x2C..0x30].copy_from_slice(&[0xF4, 0x1A, 0x43, 0x10]);
    config[0x34] = 0x40;
    config[0x3C..0x3E].copy_from_slice(&[PCI_INTA as u8, 1]);
    // Type, offset, length: common, ISR, device, notify.
    let capabilities = [(1, 0, 0x38), (3, ISR, 1), (4, DEVICE_CONFIG, 0x1000), (2, NOTIFY, 0x1000)];
    for (n, (kind, offset, length)) in capabilities.into_iter().enumerate() {
        let at = 0x40 + 0x14 * n;
        let next = if n + 1 < capabilities.len() { at + 0x14 } else { 0 };
        let size = if kind == 2 { 20 } else { 16 };
        config[at..at + 4].copy_from_slice(&[9, next as u8, size, kind]);
        config[at + 8..at + 12].copy_from_slice(&(offset as u32).to_le_bytes());
        config[at + 12..at + 16].copy_from_slice(&(length as u32).to_le_bytes());
        if kind == 2 {
            config[at + 16..at + 20].copy_from_slice(&(NOTIFY_STEP as u32).to_le_bytes());
        }
    }
    config
}

/// A guest's load. Unknown addresses leave what is there.
pub fn read(console: &Console, address: u64, data: &mut [u8]) {
    let shared = &console.shared;
    if let Some(offset) = address.checked_sub(CONFIG).filter(|offset| *offset < CONFIG_SIZE) {
        let (device, register) = (offset >> 8, (offset & 0xFF) as usize);
        let state = shared.state();
        for (n, byte) in data.iter_mut().enumerate() {
            *byte = match device {
                0 => bridge(register + n),
                8 => state.config.get(register + n).copied().unwrap_or(0xFF),
                _ => 0xFF,
            };
        }
    } else if let Some(offset) = address.checked_sub(BAR).filter(|offset| *offset < BAR_SIZE) {
        let value = match offset {
            // Reading it takes the interrupt back.
            ISR => shared.isr.swap(0, Ordering::SeqCst).into(),
            0..0x38 => shared.state().common(offset),
            _ => 0,
        };
        data.copy_from_slice(&u64::to_le_bytes(value)[..data.len()]);
    }
}

/// A guest's store.
pub fn write(console: &Console, address: u64, data: &[u8]) {
    let shared = &console.shared;
    if let Some(offset) = address.checked_sub(CONFIG).filter(|offset| *offset < CONFIG_SIZE) {
        if offset >> 8 == u64::from(DEVICE) << 3 {
            shared.state().configure((offset & 0xFF) as usize, data);
        }
    } else if let Some(offset) = address.checked_sub(BAR).filter(|offset| *offset < BAR_SIZE) {
        let mut bytes = [0; 8];
        bytes[..data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        if offset == 20 {
            shared.set_status(value as u8);
        } else if offset < 0x38 {
            shared.state().set_common(offset, value, data.len());
        }
    }
}

impl State {
    fn configure(&mut self, register: usize, data: &[u8]) {
        for (at, byte) in (register..).zip(data) {
            match at {
                // Command, BAR 0 (its size shows in what can't be written), interrupt line.
                4 | 5 | 0x12..0x18 | 0x3C => self.config[at] = *byte,
                0x11 => self.config[at] = byte & 0x80,
                _ => {}
            }
        }
    }

    fn queue(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(usize::from(self.queue_select))
    }

    fn common(&mut self, offset: u64) -> u64 {
        let (select, status, notify) = (self.feature_select, self.status, self.queue_select);
        let queue = self.queue().map_or(Queue::default(), |queue| *queue);
        match offset {
            0 => select.into(),
            4 => u64::from(if select == 1 { VERSION_1 } else { 0 }),
            16 | 26 => NO_VECTOR.into(),
            18 => QUEUES as u64,
            20 => status.into(),
            22 => notify.into(),
            24 => queue.size.into(),
            28 => queue.enabled.into(),
            30 => notify.into(),
            32..56 => queue.areas[(offset as usize - 32) / 8] >> (offset % 8 * 8),
            _ => 0,
        }
    }

    fn set_common(&mut self, offset: u64, value: u64, len: usize) {
        match offset {
            0 => self.feature_select = value as u32,
            22 => self.queue_select = value as u16,
            24 | 28 | 32..56 => {
                let Some(queue) = self.queue() else { return };
                match offset {
                    24 => queue.size = value as u16,
                    28 => queue.enabled = value & 1 != 0,
                    _ => {
                        let area = &mut queue.areas[(offset as usize - 32) / 8];
                        let shift = offset % 8 * 8;
                        let mask = if len == 8 { u64::MAX } else { 0xFFFF_FFFF << shift };
                        *area = *area & !mask | value << shift;
                    }
                }
            }
            _ => {}
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The driver is ready: notifications go to the eventfds. It starts over: they don't.
    fn set_status(&self, status: u8) {
        let mut state = self.state();
        state.status = status;
        let ready = status & DRIVER_OK != 0;
        if ready != state.ready {
            for (queue, event) in self.notify.iter().enumerate() {
                let flags = if ready { 0 } else { IOEVENTFD_DEASSIGN };
                let addr = BAR + NOTIFY + NOTIFY_STEP * queue as u64;
                let mut args =
                    Ioeventfd { datamatch: 0, addr, len: 0, fd: event.as_raw_fd(), flags, pad: [0; 36] };
                if let Err(error) = sys::ioctl_with(&self.vm.fd, ioctl::IOEVENTFD, &mut args) {
                    println!("crosvm: ioeventfd of queue {queue}: {error}");
                }
            }
            state.ready = ready;
        }
        if status == 0 {
            state.queues = [Queue { size: QUEUE_SIZE, ..Queue::default() }; QUEUES];
            self.isr.store(0, Ordering::SeqCst);
        }
    }

    fn raise(&self) {
        self.isr.fetch_or(1, Ordering::SeqCst);
        self.interrupts.fetch_add(1, Ordering::Relaxed);
        signal(&self.interrupt);
    }

    fn get(&self, address: u64, bytes: usize) -> u64 {
        let mut value = [0; 8];
        let offset = address.wrapping_sub(RAM);
        if offset < (self.ram.len() - 8) as u64 {
            self.ram.read(offset as usize, &mut value[..bytes]);
        }
        u64::from_le_bytes(value)
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        let offset = address.wrapping_sub(RAM);
        if offset < (self.ram.len() - 8) as u64 {
            self.ram.write(offset as usize, bytes);
        }
    }

    /// What the guest sent becomes lines of our output.
    fn transmit(&self) {
        let mut state = self.state();
        let mut queue = state.queues[TRANSMIT];
        let [descriptors, driver, device] = queue.areas;
        if !state.ready || !queue.enabled || queue.size == 0 {
            return;
        }
        let begin = queue.next;
        while queue.next != self.get(driver + 2, 2) as u16 {
            fence(Ordering::SeqCst);
            let slot = u64::from(queue.next % queue.size);
            let head = self.get(driver + 4 + 2 * slot, 2);
            let mut index = head;
            // A chain can't be longer than the queue.
            for _ in 0..queue.size {
                let at = descriptors + 16 * index;
                let (address, len, flags) = (self.get(at, 8), self.get(at + 8, 4), self.get(at + 12, 2));
                state.line.extend((0..len.min(4096)).map(|n| self.get(address + n, 1) as u8));
                if flags & 1 == 0 {
                    break;
                }
                index = self.get(at + 14, 2);
            }
            self.put(device + 4 + 8 * slot, &head.to_le_bytes());
            queue.next = queue.next.wrapping_add(1);
            fence(Ordering::SeqCst);
            self.put(device + 2, &queue.next.to_le_bytes());
        }
        state.queues[TRANSMIT].next = queue.next;
        while let Some(end) = state.line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = state.line.drain(..=end).collect();
            println!("hvc0: {}", String::from_utf8_lossy(&line).trim_end());
        }
        drop(state);
        fence(Ordering::SeqCst);
        if begin != queue.next && self.get(driver, 2) & 1 == 0 {
            self.raise();
        }
    }

    fn serve(&self) {
        while !self.stop.load(Ordering::SeqCst) {
            sys::wait(&[&self.notify[RECEIVE], &self.notify[TRANSMIT], &self.resample], 200);
            self.notified.fetch_add(take(&self.notify[RECEIVE]) as u32, Ordering::Relaxed);
            let sent = take(&self.notify[TRANSMIT]) as u32;
            if sent != 0 {
                self.notified.fetch_add(sent, Ordering::Relaxed);
                self.transmit();
            }
            // The guest is done with the interrupt: it comes again if there is still reason for it.
            if take(&self.resample) != 0 {
                self.resampled.fetch_add(1, Ordering::Relaxed);
                if self.isr.load(Ordering::SeqCst) != 0 {
                    signal(&self.interrupt);
                }
            }
        }
    }
}

impl Console {
    /// Its line, its thread.
    pub fn start(vm: &Arc<Vm>, ram: &Arc<Mapping>) -> io::Result<Self> {
        let queues = [Queue { size: QUEUE_SIZE, ..Queue::default() }; QUEUES];
        let state = State {
            config: console_config(),
            feature_select: 0,
            status: 0,
            queue_select: 0,
            queues,
            ready: false,
            line: Vec::new(),
        };
        let shared = Arc::new(Shared {
            vm: Arc::clone(vm),
            ram: Arc::clone(ram),
            state: Mutex::new(state),
            isr: AtomicU8::new(0),
            interrupt: eventfd(),
            resample: eventfd(),
            notify: [eventfd(), eventfd()],
            stop: AtomicBool::new(false),
            interrupts: AtomicU32::new(0),
            notified: AtomicU32::new(0),
            resampled: AtomicU32::new(0),
        });
        vm.irqfd(PCI_INTA, &shared.interrupt, Some(&shared.resample))?;
        let served = Arc::clone(&shared);
        Ok(Self { shared, thread: thread::spawn(move || served.serve()) })
    }

    /// Ends the thread and takes the line back; what happened.
    pub fn stop(self) -> Result<String, String> {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| "the console's thread panicked")?;
        self.shared.set_status(0);
        let shared = Arc::into_inner(self.shared).ok_or("somebody still has the console")?;
        shared.vm.no_irqfd(PCI_INTA, &shared.interrupt).map_err(|e| format!("line of PCI: {e}"))?;
        Ok(format!(
            "virtio: {} notified, {} interrupts, {} resampled",
            shared.notified.load(Ordering::Relaxed),
            shared.interrupts.load(Ordering::Relaxed),
            shared.resampled.load(Ordering::Relaxed)
        ))
    }
}
