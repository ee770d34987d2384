// SPDX-License-Identifier: Apache-2.0 OR MIT
//! virtio-mmio, version 2 (virtio 1.2, section 4.2): registers in front of a
//! [`VirtioDevice`].
//!
//! ```text
//!  reset ─► ACKNOWLEDGE ─► DRIVER ─► FEATURES_OK ─► (queues set up) ─► DRIVER_OK ─► active
//!    ▲                                  │ refused: bit stays clear        │ bad queue: NEEDS_RESET
//!    └── Status = 0 ◄───────────────────┴─────────────────────────────────┘
//! ```
//!
//! Invariant: queues change only before DRIVER_OK. What the driver writes out of turn is ignored.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::{Activation, Interrupt, ReadyQueue, VirtioDevice};
use crate::bus::MmioDevice;
use crate::exit::EndReason;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "GZRS".
const VENDOR: u32 = 0x5352_5A47;

/// Offset of the notification register, which the hypervisor watches for us.
pub const QUEUE_NOTIFY: u64 = reg::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// The transport's registers, and the device behind them.
pub struct MmioTransport {
    memory: GuestMemoryMmap,
    interrupt: Arc<Interrupt>,
    notify: Vec<Arc<EventFd>>,
    state: Mutex<State>,
}

struct State {
    device: Box<dyn VirtioDevice>,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    /// What the platform adds to the device's features.
    platform: u64,
    queue_sel: u32,
    queues: Vec<Queue>,
}

impl MmioTransport {
    /// Registers for `device`, which will use `memory` and signal `line`.
    ///
    /// # Errors
    /// No file descriptor left, or a queue size that is no power of two.
    ///
    /// `translated`: the guest may not give the device any of its memory, but what its platform makes reachable
    /// (VIRTIO_F_ACCESS_PLATFORM). As crosvm's, the device works too for a driver that knows so without the feature.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        line: EventFd,
        translated: bool,
    ) -> io::Result<Self> {
        let sizes = device.queue_sizes();
        let queues: Result<Vec<Queue>, _> = sizes.iter().map(|&size| Queue::new(size)).collect();
        let queues = queues.map_err(io::Error::other)?;
        let notify: io::Result<Vec<_>> =
            sizes.iter().map(|_| EventFd::new(libc::EFD_CLOEXEC).map(Arc::new)).collect();
        Ok(Self {
            memory,
            interrupt: Arc::new(Interrupt::new(line)),
            notify: notify?,
            state: Mutex::new(State {
                platform: u64::from(translated) << VIRTIO_F_ACCESS_PLATFORM,
                device,
                status: 0,
                device_features_sel: 0,
                driver_features_sel: 0,
                driver_features: 0,
                queue_sel: 0,
                queues,
            }),
        })
    }

    /// What each queue's notification signals, in the order of the queues.
    pub fn notifications(&self) -> &[Arc<EventFd>] {
        &self.notify
    }

    /// Tells the driver that the device's configuration has changed. One that comes later reads it anyway.
    pub fn config_change(&self) {
        let state = self.state();
        if state.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.interrupt.config_change();
        }
    }

    /// Stops the device. For the end of the VM.
    pub fn shut_down(&self) {
        self.state().device.reset();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, offset: u32) -> u32 {
        if offset == reg::VIRTIO_MMIO_INTERRUPT_STATUS {
            // Read at every interrupt: without the lock.
            return self.interrupt.status();
        }
        let state = self.state();
        match offset {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => state.device.device_id(),
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => half(state.offered(), state.device_features_sel),
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => state.queue().map_or(0, |queue| queue.max_size().into()),
            reg::VIRTIO_MMIO_QUEUE_READY => state.queue().is_some_and(QueueT::ready).into(),
            reg::VIRTIO_MMIO_STATUS if self.interrupt.broken() => state.status | VIRTIO_CONFIG_S_NEEDS_RESET,
            reg::VIRTIO_MMIO_STATUS => state.status,
            reg::VIRTIO_MMIO_CONFIG_GENERATION => self.interrupt.generation(),
            // There are no shared memory regions: their length reads as all ones.
            reg::VIRTIO_MMIO_SHM_LEN_LOW
            | reg::VIRTIO_MMIO_SHM_LEN_HIGH
            | reg::VIRTIO_MMIO_SHM_BASE_LOW
            | reg::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&self, offset: u32, value: u32) {
        match offset {
            reg::VIRTIO_MMIO_INTERRUPT_ACK => return self.interrupt.acknowledge(value),
            // Seldom: the hypervisor catches this write itself.
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => return self.notify(value),
            _ => {}
        }
        let mut state = self.state();
        match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => state.device_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => state.driver_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES => state.accept_features(value),
            reg::VIRTIO_MMIO_QUEUE_SEL => state.queue_sel = value,
            reg::VIRTIO_MMIO_STATUS => self.write_status(&mut state, value),
            _ => state.write_queue(offset, value),
        }
    }

    fn notify(&self, queue: u32) {
        let index = usize::try_from(queue).unwrap_or(usize::MAX);
        if let Some(Err(error)) = self.notify.get(index).map(|notify| notify.write(1)) {
            tracing::warn!("virtio notification lost: {error}");
        }
    }

    fn write_status(&self, state: &mut State, value: u32) {
        if value == 0 {
            state.device.reset();
            self.interrupt.clear();
            state.reset();
            return;
        }
        let added = value & !state.status;
        // The driver may not clear bits other than by a reset.
        let mut status = state.status | value;
        if added & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !state.features_acceptable() {
            status &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        if added & VIRTIO_CONFIG_S_FAILED != 0 {
            tracing::warn!("the guest's driver gave up virtio device {}", state.device.device_id());
        }
        state.status = status;
        if added & VIRTIO_CONFIG_S_DRIVER_OK != 0 && status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            self.activate(state);
        }
    }

    fn activate(&self, state: &mut State) {
        let features = state.driver_features;
        let mut queues = Vec::with_capacity(state.queues.len());
        let mut broken = false;
        for (index, (queue, notify)) in (0_u16..).zip(state.queues.iter_mut().zip(&self.notify)) {
            if !queue.ready() {
                continue;
            }
            broken |= !queue.is_valid(&self.memory);
            queue.set_event_idx(features >> VIRTIO_RING_F_EVENT_IDX & 1 != 0);
            // The device's copy has the ring positions; ours only answers QueueReady from now on.
            let Ok(copy) = Queue::try_from(queue.state()) else {
                broken = true;
                continue;
            };
            queues.push(ReadyQueue { index, queue: copy, notify: notify.clone() });
        }
        let memory = self.memory.clone();
        let activation = Activation { memory, features, interrupt: self.interrupt.clone(), queues };
        let result = if broken {
            Err(io::Error::other("the driver placed a queue outside of memory"))
        } else {
            state.device.activate(activation)
        };
        if let Err(error) = result {
            tracing::warn!("virtio device {}: {error}", state.device.device_id());
            self.interrupt.needs_reset();
        }
    }
}

impl State {
    fn offered(&self) -> u64 {
        self.device.features() | self.platform
    }

    fn queue(&self) -> Option<&Queue> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    fn reset(&mut self) {
        self.status = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        self.queues.iter_mut().for_each(QueueT::reset);
    }

    fn accept_features(&mut self, value: u32) {
        let state = self.status & (VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK);
        if state != VIRTIO_CONFIG_S_DRIVER {
            return;
        }
        match self.driver_features_sel {
            0 => self.driver_features = self.driver_features & !0xFFFF_FFFF | u64::from(value),
            1 => self.driver_features = self.driver_features & 0xFFFF_FFFF | u64::from(value) << 32,
            _ => {}
        }
    }

    /// Nothing that was not offered, and no legacy driver.
    fn features_acceptable(&self) -> bool {
        self.driver_features & !self.offered() == 0 && self.driver_features >> VIRTIO_F_VERSION_1 & 1 != 0
    }

    fn write_queue(&mut self, offset: u32, value: u32) {
        let setting_up = VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
        // Drivers that end take their queues back and wait until they have them (virtio 1.2, 4.2.2.2). All queues of a device
        // are served or none: a driver that goes on comes by way of a reset.
        if offset == reg::VIRTIO_MMIO_QUEUE_READY
            && value == 0
            && self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0
        {
            self.device.reset();
            if let Some(queue) = usize::try_from(self.queue_sel).ok().and_then(|n| self.queues.get_mut(n)) {
                queue.set_ready(false);
            }
            return;
        }
        if self.status & (setting_up | VIRTIO_CONFIG_S_DRIVER_OK) != setting_up {
            return;
        }
        let Some(queue) = usize::try_from(self.queue_sel).ok().and_then(|index| self.queues.get_mut(index))
        else {
            return;
        };
        if offset == reg::VIRTIO_MMIO_QUEUE_READY {
            queue.set_ready(value == 1);
            return;
        }
        if queue.ready() {
            return;
        }
        match offset {
            reg::VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }
}

/// Half `select` of a 64-bit set.
fn half(set: u64, select: u32) -> u32 {
    match select {
        0 => (set & 0xFFFF_FFFF) as u32,
        1 => (set >> 32) as u32,
        _ => 0,
    }
}

impl MmioDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(reg::VIRTIO_MMIO_CONFIG.into()) {
            self.state().device.read_config(offset, data);
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(data)
            && let Ok(offset) = u32::try_from(offset)
        {
            *data = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<EndReason> {
        if let Some(offset) = offset.checked_sub(reg::VIRTIO_MMIO_CONFIG.into()) {
            self.state().device.write_config(offset, data);
        } else if let Ok(data) = <[u8; 4]>::try_from(data)
            && let Ok(offset) = u32::try_from(offset)
        {
            self.write_register(offset, u32::from_le_bytes(data));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use vm_memory::GuestAddress;

    const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << 5;

    #[derive(Default)]
    struct Log {
        activated: AtomicUsize,
        resets: AtomicUsize,
    }

    struct Fake(Arc<Log>);

    impl VirtioDevice for Fake {
        fn device_id(&self) -> u32 {
            42
        }

        fn features(&self) -> u64 {
            FEATURES
        }

        fn queue_sizes(&self) -> &[u16] {
            &[16, 8]
        }

        fn read_config(&self, offset: u64, data: &mut [u8]) {
            data.fill(0xC0 | offset.to_le_bytes()[0]);
        }

        fn activate(&mut self, activation: Activation) -> io::Result<()> {
            assert_eq!(activation.features, FEATURES);
            self.0.activated.fetch_add(activation.queues.len(), Ordering::Relaxed);
            Ok(())
        }

        fn reset(&mut self) {
            self.0.resets.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Bench {
        transport: MmioTransport,
        log: Arc<Log>,
        line: EventFd,
    }

    impl Bench {
        fn new() -> Self {
            let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0x1000), 0x10000)]).unwrap();
            let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
            let log = Arc::new(Log::default());
            let transport =
                MmioTransport::new(Box::new(Fake(log.clone())), memory, line.try_clone().unwrap(), false)
                    .unwrap();
            Self { transport, log, line }
        }

        fn get(&self, register: u32) -> u32 {
            let mut data = [0; 4];
            self.transport.read(register.into(), &mut data);
            u32::from_le_bytes(data)
        }

        fn set(&self, register: u32, value: u32) {
            self.transport.write(register.into(), &value.to_le_bytes());
        }

        fn negotiate(&self, features: u64) -> u32 {
            self.set(reg::VIRTIO_MMIO_STATUS, 1);
            self.set(reg::VIRTIO_MMIO_STATUS, 3);
            for select in [0, 1] {
                self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
                self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES, half(features, select));
            }
            self.set(reg::VIRTIO_MMIO_STATUS, 11);
            self.get(reg::VIRTIO_MMIO_STATUS)
        }

        fn queue(&self, index: u32, address: u32) {
            self.set(reg::VIRTIO_MMIO_QUEUE_SEL, index);
            self.set(reg::VIRTIO_MMIO_QUEUE_NUM, 8);
            self.set(reg::VIRTIO_MMIO_QUEUE_DESC_LOW, address);
            self.set(reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, address + 0x400);
            self.set(reg::VIRTIO_MMIO_QUEUE_USED_LOW, address + 0x800);
            self.set(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        }
    }

    #[test]
    fn identification() {
        let bench = Bench::new();
        assert_eq!(bench.get(reg::VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
        assert_eq!(bench.get(reg::VIRTIO_MMIO_VERSION), 2);
        assert_eq!(bench.get(reg::VIRTIO_MMIO_DEVICE_ID), 42);
        assert_eq!(bench.get(reg::VIRTIO_MMIO_DEVICE_FEATURES), 1 << 5);
        bench.set(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
        assert_eq!(bench.get(reg::VIRTIO_MMIO_DEVICE_FEATURES), 1);
        bench.set(reg::VIRTIO_MMIO_QUEUE_SEL, 1);
        assert_eq!(bench.get(reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 8);
        bench.set(reg::VIRTIO_MMIO_QUEUE_SEL, 2);
        assert_eq!(bench.get(reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        let mut byte = [0];
        bench.transport.read(0x103, &mut byte);
        assert_eq!(byte, [0xC3]);
    }

    #[test]
    fn a_driver_comes_up_and_resets() {
        let bench = Bench::new();
        assert_eq!(bench.negotiate(FEATURES), 11);
        bench.queue(0, 0x1000);
        // A queue that is ready keeps its place.
        bench.set(reg::VIRTIO_MMIO_QUEUE_DESC_HIGH, 1);
        bench.set(reg::VIRTIO_MMIO_STATUS, 15);
        assert_eq!(bench.log.activated.load(Ordering::Relaxed), 1);
        assert_eq!(bench.get(reg::VIRTIO_MMIO_QUEUE_READY), 1);
        // DRIVER_OK twice starts the device once.
        bench.set(reg::VIRTIO_MMIO_STATUS, 15);
        assert_eq!(bench.log.activated.load(Ordering::Relaxed), 1);
        // A queue that is taken back is the driver's at once, and not the device's again without a reset.
        bench.set(reg::VIRTIO_MMIO_QUEUE_READY, 0);
        assert_eq!(bench.get(reg::VIRTIO_MMIO_QUEUE_READY), 0);
        assert_eq!(bench.log.resets.load(Ordering::Relaxed), 1);
        bench.queue(0, 0x1000);
        assert_eq!(bench.get(reg::VIRTIO_MMIO_QUEUE_READY), 0);
        bench.set(reg::VIRTIO_MMIO_STATUS, 0);
        assert_eq!(bench.log.resets.load(Ordering::Relaxed), 2);
        assert_eq!(bench.get(reg::VIRTIO_MMIO_STATUS), 0);
        assert_eq!(bench.get(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    }

    #[test]
    fn wrong_features_are_not_ok() {
        assert_eq!(Bench::new().negotiate(FEATURES | 1 << 9), 3, "not offered");
        assert_eq!(Bench::new().negotiate(1 << 5), 3, "legacy");
    }

    #[test]
    fn queues_outside_memory_need_a_reset() {
        let bench = Bench::new();
        bench.negotiate(FEATURES);
        bench.queue(0, 0x10C00);
        bench.set(reg::VIRTIO_MMIO_STATUS, 15);
        assert_eq!(bench.log.activated.load(Ordering::Relaxed), 0);
        assert_eq!(bench.get(reg::VIRTIO_MMIO_STATUS), 15 | VIRTIO_CONFIG_S_NEEDS_RESET);
        assert_eq!(bench.get(reg::VIRTIO_MMIO_INTERRUPT_STATUS), reg::VIRTIO_MMIO_INT_CONFIG);
        assert!(bench.line.read().is_ok());
    }

    #[test]
    fn interrupt_status_and_notification() {
        let bench = Bench::new();
        bench.transport.interrupt.used_buffer();
        assert_eq!(bench.get(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
        bench.set(reg::VIRTIO_MMIO_INTERRUPT_ACK, 1);
        assert_eq!(bench.get(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        bench.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 1);
        assert_eq!(bench.transport.notifications()[1].read().unwrap(), 1);
        bench.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 7);
    }
}
