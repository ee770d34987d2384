// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A guest's devices, wired to the bus and the virtual GIC.

use std::sync::Arc;

use anyhow::Context;
use vmm_sys_util::eventfd::EventFd;

use super::guest::Guest;
use crate::bus::Bus;
use crate::cli::RunOptions;
use crate::cli::run::VirtioTransport;
use crate::console::Output;
use crate::control::schema;
use crate::control::server::Resize;
use crate::devices::flash::Flash;
use crate::devices::pl011::Pl011;
use crate::devices::rtc::Pl031;
use crate::devices::serial::{Terminal, Uart};
use crate::devices::testdev::TestDevice;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::{Balloon, Giver, Size, request::PAGE};
use crate::devices::virtio::blk::{Blk, backend::Disk};
use crate::devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY};
use crate::devices::virtio::pci::{Ecam, Function, Window};
use crate::devices::virtio::transport::Transport;
use crate::devices::watchdog::Watchdog;
use crate::hypervisor::{Notification, Vm};
use crate::layout;
use crate::layout::{SerialKind, virt};
use crate::memory::GuestRam;

/// What a guest gets only if it is asked for.
pub struct Extras {
    pub variables: Option<Flash>,
    pub disks: Vec<Disk>,
    pub others: Vec<Box<dyn VirtioDevice>>,
    pub balloon: Option<(Balloon, Arc<Size>)>,
    pub watchdog: Arc<Watchdog>,
    pub output: Output,
}

/// The devices, wired to the bus and the virtual GIC.
pub struct Devices {
    pub bus: Arc<Bus>,
    pub uart: Arc<dyn Terminal>,
    output: Output,
    pub watchdog: Arc<Watchdog>,
    pub virtio: Vec<Arc<Transport>>,
    pub resize: Option<Resize>,
}

impl Devices {
    pub fn new(
        machine: &Arc<dyn Vm>,
        guest: &Guest,
        extras: Extras,
        options: &RunOptions,
    ) -> anyhow::Result<Self> {
        let (vm, map) = (machine.as_ref(), guest.map);
        let Extras { variables, disks, others, balloon, watchdog, output } = extras;
        let mut bus = Bus::new(options.machine.strict_mmio);
        let line = interrupt(vm, map.serial_spi)?;
        let uart: Arc<dyn Terminal> = match map.serial_kind {
            SerialKind::Ns16550 => {
                let uart = Arc::new(Uart::new(line, Box::new(output.clone()))?);
                bus.insert(map.serial, uart.clone())?;
                uart
            }
            SerialKind::Pl011 => {
                let uart = Arc::new(Pl011::new(line, Box::new(output.clone()))?);
                bus.insert(map.serial, uart.clone())?;
                uart
            }
        };
        bus.insert(map.rtc, Arc::new(Pl031::new(interrupt(vm, map.rtc_spi)?)?))?;
        if let Some(flash) = variables {
            bus.insert(virt::VARIABLES, Arc::new(flash))?;
        }
        if !map.has_flash() {
            bus.insert(layout::WATCHDOG, watchdog.clone())?;
            bus.insert(layout::TEST_DEVICE, Arc::new(TestDevice::new(machine.clone())))?;
        }
        let mut virtio = Vec::with_capacity(disks.len());
        let disks = disks.into_iter().map(|disk| Box::new(Blk::new(disk)) as Box<dyn VirtioDevice>);
        // Behind the disks, so that they keep their places.
        let (balloon, size) = balloon.unzip();
        let balloon = balloon.map(|balloon| Box::new(balloon) as Box<dyn VirtioDevice>);
        let mut functions = Vec::new();
        for (index, device) in (0..).zip(disks.chain(others).chain(balloon)) {
            let line = interrupt(vm, map.virtio_spi(index))?;
            let (memory, translated) = (guest.device_memory()?, guest.shared.is_some());
            match options.devices.virtio_transport {
                VirtioTransport::Mmio => {
                    let transport = MmioTransport::new(device, memory, line, translated)?;
                    watch_notifications(vm, map.virtio(index).base + QUEUE_NOTIFY, &transport)?;
                    virtio.push(transport.common().clone());
                    bus.insert(map.virtio(index), Arc::new(transport))?;
                }
                VirtioTransport::Pci => {
                    let transport = Arc::new(Transport::new(device, memory, line, translated)?);
                    virtio.push(transport.clone());
                    functions.push(Arc::new(Function::new(transport, machine.clone(), map.pci_window)));
                }
            }
        }
        if options.devices.virtio_transport == VirtioTransport::Pci {
            bus.insert(map.pci_ecam, Arc::new(Ecam::new(&functions)))?;
            bus.insert(map.pci_window, Arc::new(Window::new(map.pci_window, &functions)))?;
        }
        let ram = guest.ram()?.size();
        let resize = size.zip(virtio.last()).map(|(size, transport)| resize(transport.clone(), size, ram));
        Ok(Self { bus: Arc::new(bus), uart, output, watchdog, virtio, resize })
    }

    pub fn shut_down(&mut self) {
        self.watchdog.shut_down();
        self.virtio.iter().for_each(|device| device.shut_down());
        self.output.finish_line();
    }
}

/// An ioeventfd for each queue's notification.
fn watch_notifications(vm: &dyn Vm, address: u64, transport: &MmioTransport) -> anyhow::Result<()> {
    for (queue, notify) in (0..).zip(transport.notifications()) {
        match vm.register_ioeventfd(notify, Notification::Value32(address, queue)) {
            // The transport signals it then, after an exit.
            Err(error) if queue != 0 => tracing::debug!("queue {queue} at {address:#x}: {error:#}"),
            result => result?,
        }
    }
    Ok(())
}

/// An eventfd that is SPI number `spi`.
fn interrupt(vm: &dyn Vm, spi: u32) -> anyhow::Result<EventFd> {
    let line = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).context("no eventfd for an interrupt")?;
    vm.register_irqfd(&line, spi)?;
    Ok(line)
}

pub fn open_disks(options: &RunOptions, others: usize) -> anyhow::Result<Vec<Disk>> {
    let all = options.devices.disks.len() + others + usize::from(options.devices.balloon.is_some());
    if all > layout::VIRTIO_MAX as usize {
        anyhow::bail!("{all} virtio devices, and there is room for {}", layout::VIRTIO_MAX);
    }
    let disks: Result<Vec<_>, _> = options.devices.disks.iter().map(Disk::open).collect();
    Ok(disks?)
}

/// A balloon's size in pages, for a guest with so many bytes of RAM.
fn balloon_pages(bytes: u64, ram: u64) -> anyhow::Result<u32> {
    if bytes >= ram || !bytes.is_multiple_of(PAGE) {
        anyhow::bail!(
            "a balloon of {}K: must be whole pages, and less than the guest's {}M",
            bytes >> 10,
            ram >> 20
        );
    }
    Ok(u32::try_from(bytes / PAGE)?)
}

/// A balloon that should take `bytes` of the guest's RAM, and how to change that.
pub fn balloon(vm: &Arc<dyn Vm>, ram: &GuestRam, bytes: u64) -> anyhow::Result<(Balloon, Arc<Size>)> {
    let size = Size::new(balloon_pages(bytes, ram.size()).context("--balloon")?);
    if !vm.can_discard() {
        anyhow::bail!("--balloon: this hypervisor or its driver can't take pages back from a guest");
    }
    let (vm, ram) = (vm.clone(), ram.clone());
    let give: Giver = Arc::new(move |run| {
        if !ram.drop_pages(run.address, run.size) {
            tracing::debug!("balloon: {run:x?} is no RAM");
        } else if let Err(error) = vm.discard(run.address, run.size) {
            tracing::warn!("balloon: {error:#}");
        }
    });
    Ok((Balloon::new(size.clone(), give), size))
}

/// What the control socket does to a balloon behind `transport`.
fn resize(transport: Arc<Transport>, size: Arc<Size>, ram: u64) -> Resize {
    Arc::new(move |bytes| {
        if let Some(bytes) = bytes {
            size.set_target(balloon_pages(bytes, ram)?);
            transport.config_change();
        }
        let bytes = |pages: u32| u64::from(pages) * PAGE;
        Ok(schema::Balloon { target: bytes(size.target()), actual: bytes(size.actual()) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balloons_leave_something() {
        assert_eq!(balloon_pages(0, 8 << 20).unwrap(), 0);
        assert_eq!(balloon_pages((8 << 20) - 4096, 8 << 20).unwrap(), 2047);
        for wrong in [8 << 20, u64::MAX, 4095, 1024] {
            assert!(balloon_pages(wrong, 8 << 20).is_err(), "{wrong}");
        }
    }
}
