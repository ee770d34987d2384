// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the transports have in common (virtio 1.2, sections 2.1 to 2.6 and 3.1): status, features and queues of a
//! [`VirtioDevice`], whatever the registers look like through which a driver reaches them.
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
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::{Activation, Interrupt, ReadyQueue, VirtioDevice};
use crate::broken::{Mistake, broken};

/// A device, and how far its driver is with it.
pub struct Transport {
    memory: GuestMemoryMmap,
    pub(super) interrupt: Arc<Interrupt>,
    notify: Vec<Arc<EventFd>>,
    state: Mutex<State>,
}

/// What registers show and change.
pub(super) struct State {
    pub device: Box<dyn VirtioDevice>,
    status: u32,
    pub device_features_sel: u32,
    pub driver_features_sel: u32,
    driver_features: u64,
    /// What the platform adds to the device's features.
    platform: u64,
    pub queue_sel: u32,
    queues: Vec<Queue>,
}

/// What a driver changes of the queue that it has selected. Addresses come in halves: the low one, the high one.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    Size(u16),
    Ready(bool),
    Descriptors(Option<u32>, Option<u32>),
    Available(Option<u32>, Option<u32>),
    Used(Option<u32>, Option<u32>),
}

impl Transport {
    /// A transport of `device`, which will use `memory` and signal `line`.
    ///
    /// `translated`: the guest may not give the device any of its memory, but what its platform makes reachable
    /// (VIRTIO_F_ACCESS_PLATFORM). As crosvm's, the device works too for a driver that knows so without the feature.
    ///
    /// # Errors
    /// No file descriptor left, or a queue size that is no power of two.
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

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A notification that came as an exit.
    pub(super) fn notify(&self, queue: u32) {
        let index = usize::try_from(queue).unwrap_or(usize::MAX);
        if let Some(Err(error)) = self.notify.get(index).map(|notify| notify.write(1)) {
            tracing::warn!("virtio notification lost: {error}");
        }
    }

    /// The driver's Status; the device's part of it too.
    pub(super) fn status(&self) -> u32 {
        let broken = if self.interrupt.broken() { VIRTIO_CONFIG_S_NEEDS_RESET } else { 0 };
        self.state().status | broken
    }

    /// The driver goes on, or resets the device.
    pub(super) fn set_status(&self, value: u32) {
        let state = &mut *self.state();
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
        let mut misplaced = false;
        for (index, (queue, notify)) in (0_u16..).zip(state.queues.iter_mut().zip(&self.notify)) {
            if !queue.ready() {
                continue;
            }
            misplaced |= !queue.is_valid(&self.memory) && !broken(Mistake::AnyRing);
            queue.set_event_idx(features >> VIRTIO_RING_F_EVENT_IDX & 1 != 0);
            // The device's copy has the ring positions; ours only answers QueueReady from now on.
            let Ok(copy) = Queue::try_from(queue.state()) else {
                misplaced = true;
                continue;
            };
            queues.push(ReadyQueue { index, queue: copy, notify: notify.clone() });
        }
        let memory = self.memory.clone();
        let activation = Activation { memory, features, interrupt: self.interrupt.clone(), queues };
        let result = if misplaced {
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

    /// Half `select` of the features offered.
    pub fn features(&self, select: u32) -> u32 {
        half(self.offered(), select)
    }

    /// The half of the driver's features that is selected.
    pub fn accepted(&self) -> u32 {
        half(self.driver_features, self.driver_features_sel)
    }

    /// The queue that is selected.
    pub fn queue(&self) -> Option<&Queue> {
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

    /// Half of the features that the driver accepts.
    pub fn accept_features(&mut self, value: u32) {
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
        let all_offered = self.driver_features & !self.offered() == 0 || broken(Mistake::AnyFeature);
        all_offered && self.driver_features >> VIRTIO_F_VERSION_1 & 1 != 0
    }

    /// Changes the queue that is selected, if its driver is at that point.
    pub fn change_queue(&mut self, change: Change) {
        let setting_up = VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
        // Drivers that end take their queues back and wait until they have them (virtio 1.2, 4.2.2.2). All queues of a device
        // are served or none: a driver that goes on comes by way of a reset.
        if matches!(change, Change::Ready(false)) && self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
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
        match change {
            Change::Ready(ready) => queue.set_ready(ready),
            _ if queue.ready() => {}
            Change::Size(size) => queue.set_size(size),
            Change::Descriptors(low, high) => queue.set_desc_table_address(low, high),
            Change::Available(low, high) => queue.set_avail_ring_address(low, high),
            Change::Used(low, high) => queue.set_used_ring_address(low, high),
        }
    }
}

/// Half `select` of a 64-bit set.
pub(super) fn half(set: u64, select: u32) -> u32 {
    match select {
        0 => (set & 0xFFFF_FFFF) as u32,
        1 => (set >> 32) as u32,
        _ => 0,
    }
}

/// A device that the transports' tests are made with.
#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    pub const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << 5;

    #[derive(Default)]
    pub struct Log {
        pub activated: AtomicUsize,
        pub features: AtomicU64,
        pub resets: AtomicUsize,
    }

    pub struct Fake(pub Arc<Log>);

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
            self.0.features.store(activation.features, Ordering::Relaxed);
            self.0.activated.fetch_add(activation.queues.len(), Ordering::Relaxed);
            Ok(())
        }

        fn reset(&mut self) {
            self.0.resets.fetch_add(1, Ordering::Relaxed);
        }
    }
}
