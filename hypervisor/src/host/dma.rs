// SPDX-License-Identifier: Apache-2.0 OR MIT
//! DMA of the host's devices: behind an SMMU, a device sees what the host sees, by the host's own stage-2 tables.
//!
//! So memory that leaves the host's sight leaves its devices' in the same step, given that the SMMU forgets it too:
//! [`HostTlb`] is what the host's tables are changed with. An SMMU that does not confirm that fails the change
//! ([`HostTlb::finish`]); its devices are blocked, and no page that was a table is used again
//! ([`STALE_WALKS`](crate::mem::tables::STALE_WALKS)).
//!
//! Lock order: the host's stage 2, ownership, SMMUs, pool.

use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use gzvm_core::broken::{Mistake, broken};
use gzvm_core::fdt::dma::{Dma, MAX_SMMUS, SmmuNode};
use gzvm_core::memory::IpaRange;
use gzvm_core::memory::stage2::Tlb;
use gzvm_core::smmu::Unfit;
use gzvm_core::smmu::command::{Command, invalidation};
use gzvm_core::smmu::stream_table::{Stage2Config, StreamTable};
use log::{info, warn};

use crate::arch::lock::Mutex;
use crate::arch::smmu::{self, Silent, Smmu, TablePages};
use crate::mem::tables::{STALE_WALKS, VmTlb};
use crate::mem::{self};

/// The host's VMID in the SMMUs, where there is no other.
pub const VMID: u16 = 1;
/// Events that are logged.
const LOGGED: u64 = 8;

static SMMUS: Mutex<ArrayVec<Smmu, MAX_SMMUS>> = Mutex::new(ArrayVec::new_const());
static FAULTS: AtomicU64 = AtomicU64::new(0);

/// Takes the machine's SMMUs. `stage2` has the host's tables for an SMMU with so many bits of address.
///
/// # Errors
/// An SMMU can't even be told to block its devices: its address.
pub fn init(dma: &Dma, stage2: impl Fn(u8) -> Result<Stage2Config, Unfit>) -> Result<(), u64> {
    if dma.smmus.is_empty() {
        warn!("no SMMUv3: DMA of host devices is not isolated");
    }
    for node in &dma.smmus {
        let base = node.region.base;
        smmu::block(&mem::device_frame(&node.region)).map_err(|Silent| base)?;
        match start(node, &stage2) {
            Ok(()) => info!("SMMUv3 at {base:#x}: DMA of {} streams is isolated", node.streams.count()),
            Err(why) => warn!("SMMUv3 at {base:#x}: {why}: DMA of its devices is blocked"),
        }
    }
    for pages in dma.unguarded.iter().filter(|_| !dma.smmus.is_empty()) {
        info!("bus masters at {:#x} behind no SMMU: not given to the host", pages.base);
    }
    Ok(())
}

fn start(node: &SmmuNode, stage2: impl Fn(u8) -> Result<Stage2Config, Unfit>) -> Result<(), Unfit> {
    let frame = mem::device_frame(&node.region);
    let features = smmu::features(&frame)?;
    let config = stage2(features.address_bits)?;
    let mut pages = TablePages(ArrayVec::new());
    let table = StreamTable::build(&mut pages, &features, &node.streams, &config)?;
    let smmu = Smmu::start(frame, &features, table).inspect_err(|_| {
        if smmu::block(&frame).is_err() {
            warn!("SMMUv3: it can't be switched off again")
        }
    })?;
    SMMUS.lock().try_push(smmu).map_err(|_| Unfit::NoMemory)
}

/// Accesses of devices that were aborted, as far as an SMMU told.
pub fn faults() -> u64 {
    for smmu in SMMUS.lock().iter_mut() {
        for _ in 0..smmu.event_queue() {
            let Some(event) = smmu.next_event() else { break };
            // A host could have its devices flood the console.
            if FAULTS.fetch_add(1, Ordering::Relaxed) < LOGGED {
                warn!("DMA denied: {event}");
            }
        }
    }
    FAULTS.load(Ordering::Relaxed)
}

/// TLB maintenance for the host's tables: its CPUs' and its devices'.
pub struct HostTlb {
    cpus: VmTlb,
    devices: Result<(), Silent>,
}

impl HostTlb {
    /// For the tables of a [`VmTlb`].
    pub const fn new(cpus: VmTlb) -> Self {
        Self { cpus, devices: Ok(()) }
    }

    /// Whether everything was forgotten.
    pub const fn finish(self) -> Result<(), Silent> {
        self.devices
    }

    fn tell(&mut self, commands: impl Iterator<Item = Command> + Clone) {
        for smmu in SMMUS.lock().iter_mut().filter(|_| !broken(Mistake::NoSmmuFlush)) {
            if let Err(silent) = smmu.run(commands.clone()) {
                self.devices = Err(silent);
                STALE_WALKS.store(true, Ordering::SeqCst);
            }
        }
    }
}

impl Tlb for HostTlb {
    fn invalidate(&mut self, vmid: u16, range: IpaRange, last_level_only: bool) {
        self.cpus.invalidate(vmid, range, last_level_only);
        self.tell(invalidation(VMID, range, last_level_only));
    }

    fn invalidate_all(&mut self, vmid: u16) {
        self.cpus.invalidate_all(vmid);
        self.tell([Command::ForgetVm(VMID)].into_iter());
    }
}
