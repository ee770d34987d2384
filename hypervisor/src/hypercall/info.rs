// SPDX-License-Identifier: Apache-2.0 OR MIT
//! PROBE, and our extensions EXT_INFO and EXT_COUNTER.

use core::sync::atomic::Ordering;

use gzvm_abi::counter::{self, Counter};
use gzvm_abi::hypercall::{EXT_MAGIC, EXT_VERSION, Function, PROBE_VERSION};

use super::{Args, Error, Results};
use crate::guest::registry;
use crate::guest::run::WAKES_AFTERWARDS;
use crate::host::dma;
use crate::mem::pool;
use crate::platform;

/// The mask of EXT_INFO.
const EXTENSIONS: u64 = Function::ExtInfo.extension_bit()
    | Function::ExtCounter.extension_bit()
    | Function::UnmapGuest.extension_bit()
    | Function::RemoveMemregion.extension_bit()
    | Function::IrqLevel.extension_bit()
    | Function::Control.extension_bit()
    | Function::SetWatch.extension_bit()
    | Function::HostAccess.extension_bit()
    | Function::Measurement.extension_bit()
    | Function::VmFeatures.extension_bit()
    | Function::VgicSpis.extension_bit()
    | Function::RpcPolicy.extension_bit()
    | Function::RpcConnect.extension_bit()
    | Function::RpcMessage.extension_bit()
    | Function::RpcClose.extension_bit()
    | Function::GiveMemory.extension_bit();

/// PROBE: x1..x3 = the driver's version, which may be any: generations before F send zeros. A driver begins with it, so what an
/// earlier one knew is forgotten.
pub fn probe(_: Args) -> Result<Results, Error> {
    WAKES_AFTERWARDS.store(false, Ordering::Relaxed);
    Ok([PROBE_VERSION.0, PROBE_VERSION.1, PROBE_VERSION.2])
}

/// EXT_INFO. A driver that asks knows our protocol: see [`WAKES_AFTERWARDS`].
pub fn extensions(_: Args) -> Result<Results, Error> {
    WAKES_AFTERWARDS.store(true, Ordering::Relaxed);
    Ok([EXT_MAGIC, EXT_VERSION, EXTENSIONS])
}

/// EXT_COUNTER: x1 = index.
pub fn counter([index, ..]: Args) -> Result<Results, Error> {
    let index = usize::try_from(index).ok().filter(|i| *i < counter::COUNT).ok_or(Error::Invalid)?;
    let is = |c: Counter| c.index() == index;
    let value = if is(Counter::Vms) {
        registry::VMS.load(Ordering::Relaxed)
    } else if is(Counter::Vcpus) {
        registry::VCPUS.load(Ordering::Relaxed)
    } else if is(Counter::PoolUsed) {
        pool::usage().0
    } else if is(Counter::PoolTotal) {
        pool::usage().1
    } else if is(Counter::PagesShared) {
        platform::ownership().lock().counts().host_shared
    } else if is(Counter::PagesPrivate) {
        let counts = platform::ownership().lock().counts();
        counts.vm.saturating_add(counts.vm_shared).saturating_add(counts.lent)
    } else if is(Counter::PagesHypervisor) {
        let counts = platform::ownership().lock().counts();
        counts.hypervisor.saturating_add(counts.dirty)
    } else if is(Counter::DmaFaults) {
        dma::faults()
    } else {
        platform::get().cpus.iter().fold(0, |sum, cpu| cpu.counter(index).wrapping_add(sum))
    };
    Ok([value, 0, 0])
}
