// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A device on the bus, as its driver uses it.

use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use anyhow::Context;
use proptest::prelude::*;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::config::BAR_SIZE;
use super::*;
use crate::devices::virtio::transport::Transport;
use crate::devices::virtio::transport::tests::{FEATURES, Fake, Log};
use crate::hypervisor::{Notification, Power, Status, Vm};

const WINDOW: DeviceRange = DeviceRange { base: 0x1010_0000, size: 1 << 20 };
const CONFIG: u64 = 1 << SLOT_SHIFT;

/// Knows where notifications are watched for.
#[derive(Default)]
struct Watcher(Mutex<Vec<(i32, Notification)>>);

impl Vm for Watcher {
    fn register_irqfd(&self, _: &EventFd, _: u32) -> anyhow::Result<()> {
        Ok(())
    }
    fn register_ioeventfd(&self, fd: &EventFd, notification: Notification) -> anyhow::Result<()> {
        let mut all = self.0.lock().unwrap();
        anyhow::ensure!(all.iter().all(|(_, other)| *other != notification), "it is watched for already");
        all.push((fd.as_raw_fd(), notification));
        Ok(())
    }
    fn unregister_ioeventfd(&self, fd: &EventFd, notification: Notification) -> anyhow::Result<()> {
        let mut all = self.0.lock().unwrap();
        let at = all.iter().position(|other| *other == (fd.as_raw_fd(), notification));
        all.remove(at.context("there is none such")?);
        Ok(())
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
    fn status(&self) -> anyhow::Result<Status> {
        Ok(Status { power: Power::Running, events: 0 })
    }
}

struct Bench {
    ecam: Ecam,
    window: Window,
    watcher: Arc<Watcher>,
    functions: Functions,
    log: Arc<Log>,
}

impl Bench {
    /// Two functions; the first one's BAR is at the window's start.
    fn new() -> Self {
        let (watcher, log) = (Arc::new(Watcher::default()), Arc::new(Log::default()));
        let function = |_| {
            let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0x1000), 0x10000)]).unwrap();
            let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
            let transport = Transport::new(Box::new(Fake(log.clone())), memory, line, false).unwrap();
            Arc::new(Function::new(Arc::new(transport), watcher.clone(), WINDOW))
        };
        let functions: Functions = (0..2).map(function).collect();
        let (ecam, window) = (Ecam::new(&functions), Window::new(WINDOW, &functions));
        let bench = Self { ecam, window, watcher, functions, log };
        bench.place(0, WINDOW.base as u32);
        bench
    }

    /// Puts a function's BAR to `base`, and lets it answer.
    fn place(&self, index: u64, base: u32) {
        let config = CONFIG + (index << SLOT_SHIFT);
        self.ecam.write(config + 0x10, &base.to_le_bytes());
        self.ecam.write(config + 4, &[6, 0]);
    }

    fn get<const N: usize>(&self, offset: u64) -> u64 {
        let mut data = [0; N];
        self.window.read(offset, &mut data);
        let mut all = [0; 8];
        all[..N].copy_from_slice(&data);
        u64::from_le_bytes(all)
    }

    fn set<const N: usize>(&self, offset: u64, value: u64) {
        self.window.write(offset, &value.to_le_bytes()[..N]);
    }

    fn negotiate(&self) {
        self.set::<1>(0x14, 1);
        self.set::<1>(0x14, 3);
        for select in [0, 1] {
            self.set::<4>(0x08, select);
            self.set::<4>(0x0C, FEATURES >> (32 * select));
            assert_eq!(self.get::<4>(0x0C), FEATURES >> (32 * select) & 0xFFFF_FFFF);
        }
        self.set::<1>(0x14, 11);
        assert_eq!(self.get::<1>(0x14), 11);
    }

    fn queue(&self, index: u64, address: u64) {
        self.set::<2>(0x16, index);
        self.set::<2>(0x18, 8);
        self.set::<8>(0x20, address);
        self.set::<4>(0x28, address + 0x400);
        self.set::<4>(0x2C, 0);
        self.set::<8>(0x30, address + 0x800);
        self.set::<2>(0x1C, 1);
    }
}

#[test]
fn slots_without_a_device_are_empty() {
    let bench = Bench::new();
    let id = |slot: u64, function: u64| {
        let mut data = [0; 4];
        bench.ecam.read(slot << SLOT_SHIFT | function << FUNCTION_SHIFT, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!([id(1, 0), id(2, 0)], [0x106A_1AF4; 2]);
    for (slot, function) in [(0, 0), (3, 0), (31, 0), (1, 1), (2, 7)] {
        assert_eq!(id(slot, function), u32::MAX);
        assert_eq!(bench.ecam.write(slot << SLOT_SHIFT | function << FUNCTION_SHIFT, &[1]), None);
    }
}

#[test]
fn a_driver_comes_up_and_resets() {
    let bench = Bench::new();
    assert_eq!(bench.get::<2>(0x12), 2, "queues");
    assert_eq!((bench.get::<4>(0x00), bench.get::<4>(0x04)), (0, 1 << 5));
    assert_eq!((bench.get::<2>(0x10), bench.get::<2>(0x1A)), (0xFFFF, 0xFFFF), "no vectors");
    bench.set::<2>(0x16, 1);
    assert_eq!((bench.get::<2>(0x18), bench.get::<2>(0x1E)), (8, 1));
    bench.set::<2>(0x16, 2);
    assert_eq!((bench.get::<2>(0x18), bench.get::<2>(0x1E)), (0, 0));
    bench.negotiate();
    bench.queue(0, 0x1000);
    assert_eq!((bench.get::<8>(0x20), bench.get::<4>(0x30), bench.get::<4>(0x34)), (0x1000, 0x1800, 0));
    // A queue that is ready keeps its place, and is not taken back without a reset.
    bench.set::<8>(0x20, 0x2000);
    bench.set::<2>(0x1C, 0);
    assert_eq!((bench.get::<8>(0x20), bench.get::<2>(0x1C)), (0x1000, 1));
    bench.set::<1>(0x14, 15);
    assert_eq!(bench.log.activated.load(Ordering::Relaxed), 1);
    assert_eq!(bench.log.features.load(Ordering::Relaxed), FEATURES);
    bench.set::<2>(0x1C, 0);
    assert_eq!(bench.log.resets.load(Ordering::Relaxed), 0);
    bench.set::<1>(0x14, 0);
    assert_eq!(bench.log.resets.load(Ordering::Relaxed), 1);
    assert_eq!((bench.get::<1>(0x14), bench.get::<2>(0x1C)), (0, 0));
    // Its configuration.
    assert_eq!(bench.get::<1>(0x2003), 0xC3);
}

#[test]
fn a_queue_outside_memory_needs_a_reset() {
    let bench = Bench::new();
    bench.negotiate();
    bench.queue(0, 0x10C00);
    bench.set::<1>(0x14, 15);
    assert_eq!(bench.get::<1>(0x14), u64::from(15 | VIRTIO_CONFIG_S_NEEDS_RESET));
    assert_eq!(bench.get::<1>(0x1000), 2, "the configuration has changed");
    assert_eq!(bench.get::<1>(0x1000), 0, "reading acknowledges");
}

#[test]
fn notifications_follow_the_bar() {
    let bench = Bench::new();
    let watched = |base: u64| [0, 1].map(|queue| Notification::Any16(base + 0x3000 + 4 * queue)).to_vec();
    let all = || bench.watcher.0.lock().unwrap().iter().map(|(_, watched)| *watched).collect::<Vec<_>>();
    assert_eq!(all(), watched(WINDOW.base));
    // One that comes as an exit.
    bench.set::<2>(0x3004, 1);
    assert_eq!(bench.functions[0].common().notifications()[1].read().unwrap(), 1);
    bench.set::<2>(0x3FFC, 1);
    bench.place(0, WINDOW.base as u32 + 2 * BAR_SIZE);
    assert_eq!(all(), watched(WINDOW.base + u64::from(2 * BAR_SIZE)));
    assert_eq!(bench.get::<2>(0x12), 0xFFFF, "nobody is there any more");
    assert_eq!(bench.get::<2>(u64::from(2 * BAR_SIZE) + 0x12), 2);
    // Off, and outside of the window.
    bench.ecam.write(CONFIG + 4, &[0, 0]);
    assert_eq!(all(), []);
    for base in [0, WINDOW.base as u32 - BAR_SIZE, WINDOW.range().end as u32, !(BAR_SIZE - 1)] {
        bench.place(0, base);
        assert_eq!(all(), [], "{base:#x}");
    }
    bench.place(0, WINDOW.range().end as u32 - BAR_SIZE);
    assert_eq!(bench.get::<2>(WINDOW.size - u64::from(BAR_SIZE) + 0x12), 2);
    // On top of another: the first one answers, and nothing is watched for twice.
    bench.place(1, WINDOW.range().end as u32 - BAR_SIZE);
    assert_eq!(all().len(), 2);
    bench.place(1, WINDOW.base as u32);
    assert_eq!(all().len(), 4, "the first one's stay");
}

#[test]
fn configuration_space_reaches_the_bar() {
    let bench = Bench::new();
    let capability = CONFIG + 0x84;
    let mut kind = [0];
    bench.ecam.read(capability + 3, &mut kind);
    assert_eq!(kind, [5]);
    bench.ecam.write(capability + 8, &0x16_u32.to_le_bytes());
    bench.ecam.write(capability + 12, &2_u32.to_le_bytes());
    bench.ecam.write(capability + 16, &[1, 0]);
    assert_eq!(bench.get::<2>(0x16), 1);
    let mut data = [0; 2];
    bench.ecam.read(capability + 16, &mut data);
    assert_eq!(data, [1, 0]);
}

/// Where accesses go: the registers of either function, and those of their BARs at the places that they are put to.
fn place() -> impl Strategy<Value = (bool, u64)> {
    let config = (1..3_u64, prop_oneof![Just(4), Just(0x10), 0x40..0xA0_u64, 0..0x1000_u64])
        .prop_map(|(slot, register)| (true, slot << SLOT_SHIFT | register));
    let bar = (0..2_u64, prop_oneof![0..0x40_u64, Just(0x1000), 0x2000..0x2010_u64, 0x3000..0x3010_u64])
        .prop_map(|(index, register)| (false, index * u64::from(BAR_SIZE) + register));
    prop_oneof![2 => config, 4 => bar, 1 => (any::<bool>(), 0..WINDOW.size - 8)]
}

proptest! {
    /// Whatever is written where: no panic, each notification is watched for where its BAR is, and the status is one that a driver
    /// can have led to.
    #[test]
    fn no_access_harms(
        steps in prop::collection::vec(
            (place(), any::<bool>(), 0..4_u32, prop_oneof![Just(0x1010_0000), Just(0x1010_4000), 0..16_u64, any::<u64>()]),
            1..200,
        )
    ) {
        let bench = Bench::new();
        for ((config, offset), write, shift, value) in steps {
            let mut data = value.to_le_bytes();
            let data = &mut data[..1 << shift];
            match (config, write) {
                (true, true) => prop_assert_eq!(bench.ecam.write(offset, data), None),
                (true, false) => bench.ecam.read(offset, data),
                (false, true) => prop_assert_eq!(bench.window.write(offset, data), None),
                (false, false) => bench.window.read(offset, data),
            }
            for (fd, Notification::Any16(at) | Notification::Value32(at, _)) in &*bench.watcher.0.lock().unwrap() {
                prop_assert!(WINDOW.range().contains(at));
                let owner = bench.functions.iter().find(|f| {
                    f.common().notifications().iter().any(|notify| notify.as_raw_fd() == *fd)
                });
                prop_assert!(owner.is_some_and(|f| matches!(f.offset(*at), Some(0x3000 | 0x3004))));
            }
        }
    }
}
