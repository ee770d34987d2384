// SPDX-License-Identifier: Apache-2.0 OR MIT
//! virtio-mmio, version 2 (virtio 1.2, section 4.2): registers in front of a [`Transport`].

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_mmio as reg;
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::VirtioDevice;
use super::transport::{Change, Transport};
use crate::bus::MmioDevice;
use crate::exit::EndReason;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "GZRS".
const VENDOR: u32 = 0x5352_5A47;

/// Offset of the notification register, which the hypervisor watches for us.
pub const QUEUE_NOTIFY: u64 = reg::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// The registers, and the device behind them.
pub struct MmioTransport(Arc<Transport>);

impl MmioTransport {
    /// Registers for `device`: see [`Transport::new`].
    ///
    /// # Errors
    /// No file descriptor left, or a queue size that is no power of two.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        line: EventFd,
        translated: bool,
    ) -> io::Result<Self> {
        Ok(Self(Arc::new(Transport::new(device, memory, line, translated)?)))
    }

    /// What is behind the registers.
    pub fn common(&self) -> &Arc<Transport> {
        &self.0
    }

    /// What each queue's notification signals, in the order of the queues.
    pub fn notifications(&self) -> &[Arc<EventFd>] {
        self.0.notifications()
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            // Read at every interrupt: without the lock.
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => return self.0.interrupt.status(),
            reg::VIRTIO_MMIO_STATUS => return self.0.status(),
            _ => {}
        }
        let state = self.0.state();
        match offset {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => state.device.device_id(),
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => state.features(state.device_features_sel),
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => state.queue().map_or(0, |queue| queue.max_size().into()),
            reg::VIRTIO_MMIO_QUEUE_READY => state.queue().is_some_and(QueueT::ready).into(),
            reg::VIRTIO_MMIO_CONFIG_GENERATION => self.0.interrupt.generation(),
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
            reg::VIRTIO_MMIO_INTERRUPT_ACK => return self.0.interrupt.acknowledge(value),
            // Seldom: the hypervisor catches this write itself.
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => return self.0.notify(value),
            reg::VIRTIO_MMIO_STATUS => return self.0.set_status(value),
            _ => {}
        }
        let mut state = self.0.state();
        let change = match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => return state.device_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => return state.driver_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES => return state.accept_features(value),
            reg::VIRTIO_MMIO_QUEUE_SEL => return state.queue_sel = value,
            reg::VIRTIO_MMIO_QUEUE_READY => Change::Ready(value == 1),
            reg::VIRTIO_MMIO_QUEUE_NUM => Change::Size(u16::try_from(value).unwrap_or(0)),
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => Change::Descriptors(Some(value), None),
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => Change::Descriptors(None, Some(value)),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => Change::Available(Some(value), None),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => Change::Available(None, Some(value)),
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => Change::Used(Some(value), None),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => Change::Used(None, Some(value)),
            _ => return,
        };
        state.change_queue(change);
    }
}

impl MmioDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(reg::VIRTIO_MMIO_CONFIG.into()) {
            self.0.state().device.read_config(offset, data);
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(data)
            && let Ok(offset) = u32::try_from(offset)
        {
            *data = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<EndReason> {
        if let Some(offset) = offset.checked_sub(reg::VIRTIO_MMIO_CONFIG.into()) {
            self.0.state().device.write_config(offset, data);
        } else if let Ok(data) = <[u8; 4]>::try_from(data)
            && let Ok(offset) = u32::try_from(offset)
        {
            self.write_register(offset, u32::from_le_bytes(data));
        }
        None
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::devices::virtio::transport::half;
    use crate::devices::virtio::transport::tests::{FEATURES, Fake, Log};
    use std::sync::atomic::Ordering;
    use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
    use vm_memory::GuestAddress;

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
        assert_eq!(bench.log.features.load(Ordering::Relaxed), FEATURES);
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
    pub(crate) fn wrong_features_are_not_ok() {
        assert_eq!(Bench::new().negotiate(FEATURES | 1 << 9), 3, "not offered");
        assert_eq!(Bench::new().negotiate(1 << 5), 3, "legacy");
    }

    #[test]
    pub(crate) fn queues_outside_memory_need_a_reset() {
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
        bench.transport.0.interrupt.used_buffer();
        assert_eq!(bench.get(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
        bench.set(reg::VIRTIO_MMIO_INTERRUPT_ACK, 1);
        assert_eq!(bench.get(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        bench.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 1);
        assert_eq!(bench.transport.notifications()[1].read().unwrap(), 1);
        bench.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 7);
    }
}
