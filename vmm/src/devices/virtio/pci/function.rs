// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A virtio device as a PCI function: the structures in its BAR, and its move when a guest puts the BAR elsewhere.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_queue::QueueT;

use super::config::{BAR_SIZE, COMMON, Config, DEVICE, ISR, NOTIFY, NOTIFY_MULTIPLIER};
use crate::devices::virtio::transport::{Change, State, Transport};
use crate::hypervisor::{Notification, Vm};
use crate::layout::DeviceRange;

// Registers of the common configuration (virtio 1.2, 4.1.4.3).
const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0C;
const CONFIG_MSIX_VECTOR: u64 = 0x10;
const NUM_QUEUES: u64 = 0x12;
const DEVICE_STATUS: u64 = 0x14;
const CONFIG_GENERATION: u64 = 0x15;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_MSIX_VECTOR: u64 = 0x1A;
const QUEUE_ENABLE: u64 = 0x1C;
const QUEUE_NOTIFY_OFF: u64 = 0x1E;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;
/// A vector that is none.
const NO_VECTOR: u32 = 0xFFFF;

/// No BAR is here.
const NOWHERE: u64 = u64::MAX;

/// A device at a slot.
pub struct Function {
    common: Arc<Transport>,
    vm: Arc<dyn Vm>,
    /// Where BARs can be.
    window: DeviceRange,
    config: Mutex<Config>,
    /// Where this one is, or [`NOWHERE`]; changed under `config`'s lock.
    base: AtomicU64,
}

impl Function {
    /// The device behind `common`, whose BAR will be somewhere in `window`.
    pub fn new(common: Arc<Transport>, vm: Arc<dyn Vm>, window: DeviceRange) -> Self {
        let config = Mutex::new(Config::new(common.state().device.device_id()));
        Self { common, vm, window, config, base: AtomicU64::new(NOWHERE) }
    }

    /// What is behind the registers.
    pub fn common(&self) -> &Arc<Transport> {
        &self.common
    }

    /// What `address` is in its BAR.
    pub fn offset(&self, address: u64) -> Option<u64> {
        address.checked_sub(self.base.load(Ordering::Acquire)).filter(|offset| *offset < BAR_SIZE.into())
    }

    /// Configuration space.
    pub fn read_config(&self, register: usize, data: &mut [u8]) {
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        match config.window(register, data.len()) {
            Some(offset) => self.read(offset, data),
            None => config.read(register, data),
        }
    }

    /// Configuration space.
    pub fn write_config(&self, register: usize, data: &[u8]) {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(offset) = config.window(register, data.len()) {
            return self.write(offset, data);
        }
        config.write(register, data);
        let inside = |base: &u64| {
            let end = base.checked_add(BAR_SIZE.into());
            *base >= self.window.base && end.is_some_and(|end| end <= self.window.range().end)
        };
        self.place(config.bar().filter(inside).unwrap_or(NOWHERE));
    }

    /// Answers at `base` from here on, and is told there of notifications.
    fn place(&self, base: u64) {
        let old = self.base.swap(base, Ordering::AcqRel);
        if old == base {
            return;
        }
        for (queue, notify) in (0..).zip(self.common.notifications()) {
            let at = |base: u64| Notification::Any16(base + notification(queue));
            if old != NOWHERE
                && let Err(error) = self.vm.unregister_ioeventfd(notify, at(old))
            {
                tracing::debug!("queue {queue} at {old:#x}: {error:#}");
            }
            // Without one the notification comes as an exit, to the same end.
            if base != NOWHERE
                && let Err(error) = self.vm.register_ioeventfd(notify, at(base))
            {
                tracing::debug!("queue {queue} at {base:#x}: {error:#}");
            }
        }
    }

    /// A load from the BAR.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = within(offset, DEVICE) {
            self.common.state().device.read_config(offset, data);
        } else if within(offset, ISR).is_some() {
            // Reading acknowledges.
            let status = self.common.interrupt.take();
            data.iter_mut().zip(status.to_le_bytes()).for_each(|(to, from)| *to = from);
        } else if let Some(offset) = within(offset, COMMON) {
            let value = self.read_common(offset);
            data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
        }
    }

    /// A store to the BAR.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = within(offset, DEVICE) {
            self.common.state().device.write_config(offset, data);
        } else if let Some(offset) = within(offset, NOTIFY) {
            // Seldom: the hypervisor catches this write itself.
            self.common.notify((offset / u64::from(NOTIFY_MULTIPLIER)) as u32);
        } else if let Some(offset) = within(offset, COMMON) {
            let mut value = [0; 8];
            value.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
            let value = u64::from_le_bytes(value);
            self.write_common(offset, value as u32);
            // Addresses may be written whole.
            if data.len() == 8 {
                self.write_common(offset + 4, (value >> 32) as u32);
            }
        }
    }

    fn read_common(&self, register: u64) -> u64 {
        match register {
            DEVICE_STATUS => return self.common.status().into(),
            CONFIG_GENERATION => return self.common.interrupt.generation().into(),
            NUM_QUEUES => return self.common.notifications().len() as u64,
            _ => {}
        }
        let state = self.common.state();
        let queue = state.queue();
        let address = |of: fn(&virtio_queue::Queue) -> u64| queue.map_or(0, of);
        let word = match register {
            DEVICE_FEATURE_SELECT => state.device_features_sel,
            DEVICE_FEATURE => state.features(state.device_features_sel),
            DRIVER_FEATURE_SELECT => state.driver_features_sel,
            DRIVER_FEATURE => state.accepted(),
            CONFIG_MSIX_VECTOR | QUEUE_MSIX_VECTOR => NO_VECTOR,
            QUEUE_SELECT => state.queue_sel,
            QUEUE_SIZE => queue.map_or(0, |queue| queue.size().into()),
            QUEUE_ENABLE => queue.is_some_and(QueueT::ready).into(),
            QUEUE_NOTIFY_OFF => queue.map_or(0, |_| state.queue_sel),
            QUEUE_DESC => return address(virtio_queue::Queue::desc_table),
            QUEUE_DRIVER => return address(virtio_queue::Queue::avail_ring),
            QUEUE_DEVICE => return address(virtio_queue::Queue::used_ring),
            _ => return high(register).map_or(0, |low| self.read_high(&state, low)),
        };
        word.into()
    }

    /// The high half of the address at `register`.
    fn read_high(&self, state: &State, register: u64) -> u64 {
        let Some(queue) = state.queue() else { return 0 };
        let address = match register {
            QUEUE_DESC => queue.desc_table(),
            QUEUE_DRIVER => queue.avail_ring(),
            _ => queue.used_ring(),
        };
        address >> 32
    }

    fn write_common(&self, register: u64, value: u32) {
        if register == DEVICE_STATUS {
            return self.common.set_status(value & 0xFF);
        }
        let mut state = self.common.state();
        let change = match register {
            DEVICE_FEATURE_SELECT => return state.device_features_sel = value,
            DRIVER_FEATURE_SELECT => return state.driver_features_sel = value,
            DRIVER_FEATURE => return state.accept_features(value),
            QUEUE_SELECT => return state.queue_sel = value & 0xFFFF,
            QUEUE_SIZE => Change::Size(value as u16),
            // A queue ends with a reset of the device only.
            QUEUE_ENABLE if value == 1 => Change::Ready(true),
            QUEUE_DESC => Change::Descriptors(Some(value), None),
            QUEUE_DRIVER => Change::Available(Some(value), None),
            QUEUE_DEVICE => Change::Used(Some(value), None),
            _ => match high(register) {
                Some(QUEUE_DESC) => Change::Descriptors(None, Some(value)),
                Some(QUEUE_DRIVER) => Change::Available(None, Some(value)),
                Some(_) => Change::Used(None, Some(value)),
                None => return,
            },
        };
        state.change_queue(change);
    }
}

/// The address register whose high half is at `register`.
const fn high(register: u64) -> Option<u64> {
    match register.wrapping_sub(4) {
        low @ (QUEUE_DESC | QUEUE_DRIVER | QUEUE_DEVICE) => Some(low),
        _ => None,
    }
}

/// Offset of a queue's notification.
const fn notification(queue: u32) -> u64 {
    NOTIFY.0 as u64 + queue as u64 * NOTIFY_MULTIPLIER as u64
}

/// `offset` from the start of a structure, inside of it.
fn within(offset: u64, (start, length): (u32, u32)) -> Option<u64> {
    offset.checked_sub(start.into()).filter(|offset| *offset < length.into())
}
