// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A device for bare-metal guests: benchmarks and tests.
//!
//! | offset | access | meaning |
//! |---|---|---|
//! | 0x00 | read, any size | 0x47 (`G`): the cheapest load that the VMM answers, for measuring an exit |
//! | 0x08 | write, any size | ends the VM; `gz` exits with code 64 + (low byte & 0x3F) |
//! | 0x10 | write, any size | asks for the next two registers |
//! | 0x10 | read, any size | the number of the SPI below once they are there, and 0 before |
//! | 0x14 | write of 1, 4 bytes | signals an eventfd that nobody reads: an ioeventfd's part of a notification |
//! | 0x18 | write of 1, 4 bytes | signals an eventfd that is an irqfd too: a pulse of that SPI, without the VMM |
//!
//! The eventfds are made only when they are asked for, so that no other guest pays for them. Reading takes no lock.

use std::sync::{Arc, OnceLock};

use anyhow::Context;
use vmm_sys_util::eventfd::EventFd;

use crate::bus::MmioDevice;
use crate::exit::EndReason;
use crate::hypervisor::{Notification, Vm};
use crate::layout;

const REG_READ: u64 = 0x00;
const REG_EXIT: u64 = 0x08;
const REG_EVENTS: u64 = 0x10;
const REG_NOTIFY: u64 = 0x14;
const REG_INTERRUPT: u64 = 0x18;
/// What [`REG_READ`] reads as.
pub const READ_VALUE: u8 = 0x47;
/// What has to be written for a signal.
const SIGNAL: u32 = 1;

/// The device.
pub struct TestDevice {
    vm: Arc<dyn Vm>,
    events: OnceLock<Events>,
}

/// The eventfds, which the hypervisor's driver watches and signals.
struct Events {
    _notify: EventFd,
    _interrupt: EventFd,
}

impl Events {
    fn new(vm: &dyn Vm) -> anyhow::Result<Self> {
        let eventfd = || EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).context("no eventfd");
        let (notify, interrupt) = (eventfd()?, eventfd()?);
        vm.register_irqfd(&interrupt, layout::TEST_SPI)?;
        for (register, eventfd) in [(REG_NOTIFY, &notify), (REG_INTERRUPT, &interrupt)] {
            vm.register_ioeventfd(
                eventfd,
                Notification::Value32(layout::TEST_DEVICE.base + register, SIGNAL),
            )?;
        }
        Ok(Self { _notify: notify, _interrupt: interrupt })
    }
}

impl TestDevice {
    /// The device of `vm`.
    pub fn new(vm: Arc<dyn Vm>) -> Self {
        Self { vm, events: OnceLock::new() }
    }

    fn ask(&self) {
        if self.events.get().is_some() {
            return;
        }
        match Events::new(self.vm.as_ref()) {
            // If another vCPU was faster, these are refused by the hypervisor or dropped here.
            Ok(events) => drop(self.events.set(events)),
            Err(error) => tracing::warn!("test device: {error:#}"),
        }
    }
}

impl MmioDevice for TestDevice {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let Some(first) = data.first_mut() else { return };
        match offset {
            REG_READ => *first = READ_VALUE,
            REG_EVENTS if self.events.get().is_some() => *first = layout::TEST_SPI as u8,
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<EndReason> {
        match (offset, data.first()) {
            (REG_EXIT, Some(&code)) => return Some(EndReason::TestDevice(code)),
            (REG_EVENTS, _) => self.ask(),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A VM that keeps what was registered; it refuses interrupts if it is told to.
    #[derive(Default)]
    pub struct FakeVm {
        no_irqfd: bool,
        registered: Mutex<Vec<Notification>>,
    }

    impl Vm for FakeVm {
        fn register_irqfd(&self, _: &EventFd, spi: u32) -> anyhow::Result<()> {
            anyhow::ensure!(!self.no_irqfd, "none");
            self.registered.lock().unwrap().push(Notification::Value32(0, spi));
            Ok(())
        }

        fn register_ioeventfd(&self, _: &EventFd, notification: Notification) -> anyhow::Result<()> {
            self.registered.lock().unwrap().push(notification);
            Ok(())
        }

        fn unregister_ioeventfd(&self, _: &EventFd, _: Notification) -> anyhow::Result<()> {
            anyhow::bail!("it stays")
        }

        fn discard(&self, _: u64, _: u64) -> anyhow::Result<()> {
            Ok(())
        }

        fn can_discard(&self) -> bool {
            false
        }

        fn set_fdt(&self, _: u64, _: u64) -> anyhow::Result<()> {
            Ok(())
        }
    }

    fn read(device: &TestDevice, offset: u64) -> u32 {
        let mut data = [0; 4];
        device.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn registers() {
        let device = TestDevice::new(Arc::new(FakeVm::default()));
        assert_eq!(read(&device, 0), 0x47);
        assert_eq!(read(&device, 8), 0);
        assert_eq!(device.write(8, &[3, 0, 0, 0]), Some(EndReason::TestDevice(3)));
        assert_eq!(device.write(0, &[3]), None);
    }

    #[test]
    fn eventfds_are_there_once_they_are_asked_for() {
        let vm = Arc::new(FakeVm::default());
        let device = TestDevice::new(vm.clone());
        assert_eq!(device.write(0x14, &[1, 0, 0, 0]), None);
        assert_eq!((read(&device, 0x10), vm.registered.lock().unwrap().len()), (0, 0));
        for _ in 0..2 {
            assert_eq!(device.write(0x10, &[1]), None);
        }
        assert_eq!(read(&device, 0x10), layout::TEST_SPI);
        let expected = [(0, layout::TEST_SPI), (0x9_0014, 1), (0x9_0018, 1)]
            .map(|(address, value)| Notification::Value32(address, value));
        assert_eq!(*vm.registered.lock().unwrap(), expected);
    }

    #[test]
    fn a_refusal_is_seen_by_the_guest() {
        let device = TestDevice::new(Arc::new(FakeVm { no_irqfd: true, ..FakeVm::default() }));
        assert_eq!(device.write(0x10, &[1]), None);
        assert_eq!(read(&device, 0x10), 0);
    }
}
