// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Queues that somebody else serves: the host's kernel, or another process. They notify and interrupt without us.

use std::os::fd::AsRawFd;

use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_ACCESS_PLATFORM;
use virtio_queue::QueueT;
use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};
use vmm_sys_util::eventfd::EventFd;

use super::{Interrupt, ReadyQueue};

/// Of what a driver has taken, what a back end is told. To it ACCESS_PLATFORM is an IOMMU of its own, which it would ask for
/// translations; addresses need none.
pub fn features(negotiated: u64) -> u64 {
    negotiated & !(1 << VIRTIO_F_ACCESS_PLATFORM)
}

/// What guest memory is to a back end. One in another process needs it to be files.
pub fn regions(memory: &GuestMemoryMmap) -> Vec<VhostUserMemoryRegionInfo> {
    let region = |region: &GuestRegionMmap| {
        let file = region.file_offset();
        VhostUserMemoryRegionInfo {
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            mmap_offset: file.map_or(0, FileOffset::start),
            mmap_handle: file.map_or(-1, |file| file.file().as_raw_fd()),
        }
    };
    memory.iter().map(region).collect()
}

/// Hands `ready` over: from here on the back end looks there whenever the guest notifies, and interrupts. It wants the
/// rings' addresses as the guest has them, or (`process`) as we have them.
///
/// # Errors
/// The back end refused.
pub fn hand_over(
    backend: &impl VhostBackend,
    process: Option<&GuestMemoryMmap>,
    interrupt: &Interrupt,
    ready: &ReadyQueue,
) -> vhost::Result<()> {
    hand_over_to(backend, process, interrupt.delegate(), ready)
}

/// The same, but the back end signals `call`.
///
/// # Errors
/// The back end refused.
pub fn hand_over_to(
    backend: &impl VhostBackend,
    process: Option<&GuestMemoryMmap>,
    call: &EventFd,
    ready: &ReadyQueue,
) -> vhost::Result<()> {
    let (index, queue) = (usize::from(ready.index), &ready.queue);
    let place = |address| match process {
        None => Ok(address),
        Some(memory) => match memory.get_host_address(GuestAddress(address)) {
            Ok(pointer) => Ok(pointer as u64),
            Err(_) => Err(vhost::Error::InvalidQueue),
        },
    };
    backend.set_vring_num(index, queue.size())?;
    backend.set_vring_base(index, queue.next_avail())?;
    let config = VringConfigData {
        queue_max_size: queue.max_size(),
        queue_size: queue.size(),
        flags: 0,
        desc_table_addr: place(queue.desc_table())?,
        used_ring_addr: place(queue.used_ring())?,
        avail_ring_addr: place(queue.avail_ring())?,
        log_addr: None,
    };
    backend.set_vring_addr(index, &config)?;
    backend.set_vring_call(index, call)?;
    backend.set_vring_kick(index, &ready.notify)
}
