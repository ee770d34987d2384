// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest's RAM in our address space.
//!
//! ```text
//!   PROT_NONE guard | RAM, 2 MiB aligned, one mapping (VMA) | PROT_NONE guard
//! ```
//!
//! Invariant: the RAM is exactly one VMA for as long as [`GuestRam`] lives. gzvm demands that a
//! slot's size equals its VMA's; the guards keep the kernel from merging it with a neighbour.
//!
//! Anonymous private memory, advised to be huge: shmem (memfd) gets huge pages only where the
//! administrator switched them on, and blocks of 2 MiB make a fault in 512 of what pages make. It is a
//! memfd only where a program of its own serves a device (vhost-user). Pages that the guest has
//! touched stay pinned by gzvm until the guest gives them back or the VM ends; nothing is
//! allocated before that.
//!
//! A protected VM's memory is a file of gzvm's where it has such: a system call of ours into a page that is the guest's by now
//! then fails, where it would take the kernel with it otherwise.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::mm::{self, Advice, MapFlags, ProtFlags};
use thiserror::Error;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::layout;

/// Why there is no RAM.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// Outside the address map.
    #[error("--mem {}M: a guest needs {}M to {}M, in steps of 2M",
        .0 >> 20, layout::RAM_MIN >> 20, layout::RAM_MAX >> 20)]
    Size(u64),
    /// The host has less.
    #[error(
        "--mem {}M: the host has {}M of memory in all ({}M free); ask for less",
        .wanted >> 20, .total >> 20, .available >> 20
    )]
    TooLarge {
        /// Asked for, in bytes.
        wanted: u64,
        /// The host's RAM, in bytes.
        total: u64,
        /// The host's free RAM, in bytes.
        available: u64,
    },
    /// The kernel refused.
    #[error("--mem {}M: the host kernel gives no such mapping: {error}; ask for less, or check `ulimit -v`", .size >> 20)]
    Map {
        /// Asked for, in bytes.
        size: u64,
        /// What the kernel said.
        error: rustix::io::Errno,
    },
    /// vm-memory refused the mapping.
    #[error("--mem: {0}")]
    Region(String),
}

/// The mapping. Unmapped when the last user is gone.
#[derive(Debug)]
struct Mapping {
    /// Of the reservation, guards included.
    start: usize,
    len: usize,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start..start + len` is the reservation that `GuestRam::new` made and nobody else
        // unmaps; `Mapping` is dropped with the last `GuestRam`, after every view of the memory.
        if let Err(error) = unsafe { mm::munmap(std::ptr::with_exposed_provenance_mut(self.start), self.len) }
        {
            tracing::warn!("can't unmap guest memory: {error}");
        }
    }
}

/// A slot of the guest's memory, filled with RAM.
#[derive(Clone, Debug)]
pub struct GuestRam {
    // Before `_mapping`, so that the view is dropped first.
    memory: GuestMemoryMmap,
    host_address: u64,
    base: u64,
    size: u64,
    _mapping: Arc<Mapping>,
}

/// Alignment of the RAM in our address space: that of a huge page, so that guest and host blocks
/// coincide.
const HUGE: usize = 2 << 20;

impl GuestRam {
    /// Reserves `size` bytes, which the guest finds at `base`.
    ///
    /// # Errors
    /// A size outside the address map, larger than the host's memory, or refused by the kernel.
    pub fn new(base: u64, size: u64) -> Result<Self, MemoryError> {
        check_size(base, size)?;
        Self::slot(base, size, None)
    }

    /// As [`new`](Self::new), in a file of `size` bytes that gzvm made: what of it a protected VM gets is not there for us any more.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn in_file(base: u64, size: u64, file: &impl AsFd) -> Result<Self, MemoryError> {
        check_size(base, size)?;
        Self::slot(base, size, Some(file.as_fd()))
    }

    /// As [`new`](Self::new), in an anonymous file, which a program that serves devices can map.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn shareable(base: u64, size: u64) -> Result<Self, MemoryError> {
        check_size(base, size)?;
        let file = rustix::fs::memfd_create("gz-ram", rustix::fs::MemfdFlags::CLOEXEC)
            .and_then(|file| rustix::fs::ftruncate(&file, size).map(|()| file))
            .map_err(|error| MemoryError::Map { size, error })?;
        Self::slot(base, size, Some(file.as_fd()))
    }

    /// Memory that is not the guest's RAM: of any whole number of blocks, in a file or not.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn slot(base: u64, size: u64, file: Option<BorrowedFd<'_>>) -> Result<Self, MemoryError> {
        let (total, available) = host_memory();
        if size > total {
            return Err(MemoryError::TooLarge { wanted: size, total, available });
        }
        if size > available {
            tracing::warn!(
                "--mem {}M is more than the {}M that the host has free now",
                size >> 20,
                available >> 20
            );
        }
        let (mapping, ram) = map(usize::try_from(size).map_err(|_| MemoryError::Size(size))?, file)?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let flags = file.map_or(private, |_| libc::MAP_SHARED);
        let builder = MmapRegionBuilder::new(size as usize).with_mmap_prot(prot).with_mmap_flags(flags);
        // SAFETY: `map` has mapped `size` bytes at `ram`, readable and writable, for nobody else;
        // they stay mapped until `_mapping` is dropped, after this region.
        let mut builder = unsafe { builder.with_raw_mmap_pointer(ram.cast()) };
        if let Some(file) = file {
            let file = file.try_clone_to_owned().map_err(|error| MemoryError::Region(error.to_string()))?;
            builder = builder.with_file_offset(FileOffset::new(file.into(), 0));
        }
        let region = builder.build();
        let memory = view(region, base)?;
        let host_address = ram.expose_provenance() as u64;
        Ok(Self { memory, host_address, base, size, _mapping: Arc::new(mapping) })
    }

    /// Drops the content of guest pages from our memory, which the host can use then; they read as zero from here on.
    /// False where they are no whole pages of RAM.
    pub fn drop_pages(&self, address: u64, size: u64) -> bool {
        let inside = address.checked_sub(self.base).filter(|offset| {
            (offset | size).is_multiple_of(4096)
                && offset.checked_add(size).is_some_and(|end| end <= self.size)
        });
        let Some(offset) = inside.filter(|_| size != 0) else { return false };
        let (Ok(start), Ok(size)) = (usize::try_from(self.host_address + offset), usize::try_from(size))
        else {
            return false;
        };
        // SAFETY: inside our own mapping, as just checked; guest memory is only reached through volatile
        // accesses, for which any content will do.
        let dropped =
            unsafe { mm::madvise(std::ptr::with_exposed_provenance_mut(start), size, Advice::LinuxDontNeed) };
        if let Err(error) = dropped {
            tracing::warn!("{} KiB of guest memory can't be given back: {error}", size >> 10);
        }
        dropped.is_ok()
    }

    /// A part of the memory, for devices that shall see no more. Must not outlive this value.
    ///
    /// # Errors
    /// It is not in there.
    pub fn part(&self, address: u64, size: u64) -> Result<GuestMemoryMmap, MemoryError> {
        let slice = self
            .memory
            .get_slice(GuestAddress(address), usize::try_from(size).map_err(|_| MemoryError::Size(size))?)
            .map_err(|error| MemoryError::Region(error.to_string()))?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let builder =
            MmapRegionBuilder::new(slice.len()).with_mmap_prot(prot).with_mmap_flags(libc::MAP_SHARED);
        // SAFETY: the bytes are a part of our mapping, which outlives this view.
        let mut builder = unsafe { builder.with_raw_mmap_pointer(slice.ptr_guard_mut().as_ptr()) };
        // Of the file, a program that serves a device is told this part only.
        if let Some(file) = self.memory.iter().next().and_then(|region| region.file_offset()) {
            let start = address.saturating_sub(self.base);
            builder =
                builder.with_file_offset(FileOffset::from_arc(file.arc().clone(), file.start() + start));
        }
        view(builder.build(), address)
    }

    /// The memory as devices see it.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Guest physical address of the first byte.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where [`base`](Self::base) is in our address space.
    pub fn host_address(&self) -> u64 {
        self.host_address
    }
}

/// Memory that the guest finds at `base`.
fn view<E: std::fmt::Display>(
    region: Result<MmapRegion, E>,
    base: u64,
) -> Result<GuestMemoryMmap, MemoryError> {
    let region = region.map_err(|error| MemoryError::Region(error.to_string()))?;
    let region = GuestRegionMmap::new(region, GuestAddress(base))
        .ok_or_else(|| MemoryError::Region("RAM wraps around the address space".into()))?;
    GuestMemoryMmap::from_regions(vec![region]).map_err(|error| MemoryError::Region(error.to_string()))
}

/// Whether RAM of this size at `base` fits the address map.
fn check_size(base: u64, size: u64) -> Result<(), MemoryError> {
    let most = layout::RAM_MAX.min(layout::ADDRESS_LIMIT.saturating_sub(base));
    if !(layout::RAM_MIN..=most).contains(&size) || !size.is_multiple_of(layout::RAM_ALIGN) {
        return Err(MemoryError::Size(size));
    }
    Ok(())
}

/// Reserves address space with guards, and makes its aligned middle of `size` bytes RAM.
fn map(size: usize, file: Option<BorrowedFd<'_>>) -> Result<(Mapping, *mut libc::c_void), MemoryError> {
    let failed = |error| MemoryError::Map { size: size as u64, error };
    // One huge page to align with, and one to be sure that a guard is left on either side.
    let len = size.checked_add(2 * HUGE).ok_or(MemoryError::Size(size as u64))?;
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let start = unsafe {
        mm::mmap_anonymous(
            std::ptr::null_mut(),
            len,
            ProtFlags::empty(),
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )
    }
    .map_err(failed)?;
    let mapping = Mapping { start: start.expose_provenance(), len };
    // Rounding start + 1 page up leaves at least one page before and, as the reservation is two
    // huge pages longer, behind.
    let aligned = (mapping.start + 4096).next_multiple_of(HUGE);
    let target = std::ptr::with_exposed_provenance_mut(aligned);
    // SAFETY: `aligned..aligned + size` lies inside the reservation just made, which is ours alone.
    let ram = unsafe {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        match file {
            Some(file) => mm::mmap(target, size, access, MapFlags::SHARED | MapFlags::FIXED, file, 0),
            None => {
                let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
                mm::mmap_anonymous(target, size, access, flags)
            }
        }
    }
    .map_err(failed)?;
    for advice in [Advice::LinuxHugepage, Advice::LinuxDontFork, Advice::LinuxDontDump] {
        // SAFETY: advice on the whole of our own mapping; none of these changes its content.
        if let Err(error) = unsafe { mm::madvise(ram, size, advice) } {
            tracing::debug!("madvise({advice:?}) on guest memory: {error}");
        }
    }
    Ok((mapping, ram))
}

/// The host's memory in bytes: all, and what is free. Where `/proc` is missing nothing is known,
/// and the kernel has the last word.
fn host_memory() -> (u64, u64) {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
    };
    (field("MemTotal:").unwrap_or(u64::MAX), field("MemAvailable:").unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use vm_memory::{Bytes, GuestMemoryRegion};

    /// (start, end, permissions) of the mapping that holds `address`.
    fn vma_of(address: u64) -> (u64, u64, String) {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines()
            .find_map(|line| {
                let mut words = line.split_ascii_whitespace();
                let (start, end) = words.next()?.split_once('-')?;
                let start = u64::from_str_radix(start, 16).ok()?;
                let end = u64::from_str_radix(end, 16).ok()?;
                (start..end).contains(&address).then(|| (start, end, words.next().unwrap_or("").to_owned()))
            })
            .unwrap()
    }

    #[test]
    fn ram_is_one_whole_vma_between_guards() {
        // Two of the same kind, so that a missing guard would let them merge.
        let rams = [
            GuestRam::new(layout::RAM_BASE, 16 << 20).unwrap(),
            GuestRam::new(layout::RAM_BASE, 16 << 20).unwrap(),
        ];
        for ram in &rams {
            let (start, end, permissions) = vma_of(ram.host_address());
            assert_eq!((start, end - start), (ram.host_address(), ram.size()));
            assert_eq!(permissions, "rw-p");
            assert_eq!(start % HUGE as u64, 0);
            assert_eq!(vma_of(start - 1).2, "---p");
            assert_eq!(vma_of(end).2, "---p");
        }
    }

    #[test]
    fn ram_in_a_file_is_shared_with_it() {
        let file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
        file.set_len(16 << 20).unwrap();
        let ram = GuestRam::in_file(layout::RAM_BASE, 16 << 20, &file).unwrap();
        let again = GuestRam::in_file(layout::RAM_BASE, 16 << 20, &file).unwrap();
        ram.memory().write_obj(0x77_u8, GuestAddress(layout::RAM_BASE)).unwrap();
        assert_eq!(again.memory().read_obj::<u8>(GuestAddress(layout::RAM_BASE)).unwrap(), 0x77);
        let (start, end, permissions) = vma_of(ram.host_address());
        assert_eq!((start, end - start, permissions.as_str()), (ram.host_address(), ram.size(), "rw-s"));
    }

    #[test]
    fn ram_is_readable_and_writable_and_freed() {
        let ram = GuestRam::new(layout::RAM_BASE, 16 << 20).unwrap();
        let last = GuestAddress(layout::RAM_BASE + ram.size() - 8);
        ram.memory().write_obj(0x1122_3344_5566_7788_u64, last).unwrap();
        assert_eq!(ram.memory().read_obj::<u64>(last).unwrap(), 0x1122_3344_5566_7788);
        assert!(ram.memory().write_obj(0_u8, GuestAddress(layout::RAM_BASE + ram.size())).is_err());
        let address = ram.host_address();
        drop(ram);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(!maps.contains(&format!("{address:x}-")));
    }

    #[test]
    fn a_part_is_all_that_its_users_see() {
        let ram = GuestRam::new(layout::RAM_BASE, 16 << 20).unwrap();
        let start = layout::RAM_BASE + 0x10_0000;
        let part = ram.part(start, 0x2000).unwrap();
        part.write_obj(0x5A_u8, GuestAddress(start)).unwrap();
        assert_eq!(ram.memory().read_obj::<u8>(GuestAddress(start)).unwrap(), 0x5A);
        for address in [start - 1, start + 0x2000] {
            assert!(part.read_obj::<u8>(GuestAddress(address)).is_err(), "{address:#x}");
        }
        assert!(ram.part(layout::RAM_BASE + ram.size() - 0x1000, 0x2000).is_err());
        assert!(part.iter().all(|region| region.file_offset().is_none()));
    }

    #[test]
    fn a_part_of_a_file_is_told_as_such() {
        let ram = GuestRam::shareable(layout::RAM_BASE, 16 << 20).unwrap();
        let part = ram.part(layout::RAM_BASE + 0x10_0000, 0x2000).unwrap();
        let region = part.iter().next().unwrap();
        let file = region.file_offset().unwrap();
        assert_eq!((file.start(), region.len()), (0x10_0000, 0x2000));
        part.write_obj(0x5A_u8, GuestAddress(layout::RAM_BASE + 0x10_0000)).unwrap();
        let mut byte = [0];
        file.file().read_exact_at(&mut byte, file.start()).unwrap();
        assert_eq!(byte, [0x5A]);
    }

    #[test]
    fn dropped_pages_read_as_zero() {
        let ram = GuestRam::new(layout::RAM_BASE, 16 << 20).unwrap();
        let at = |page: u64| GuestAddress(layout::RAM_BASE + page * 4096);
        for page in 0..4 {
            ram.memory().write_obj(page + 1, at(page)).unwrap();
        }
        assert!(ram.drop_pages(layout::RAM_BASE + 4096, 8192));
        let read = |page| ram.memory().read_obj::<u64>(at(page)).unwrap();
        assert_eq!([0, 1, 2, 3].map(read), [1, 0, 0, 4]);
        let end = layout::RAM_BASE + ram.size();
        for (address, size) in [
            (layout::RAM_BASE, 0),
            (layout::RAM_BASE, 4095),
            (layout::RAM_BASE + 1, 4096),
            (layout::RAM_BASE - 4096, 4096),
            (end - 4096, 8192),
            (end, 4096),
            (layout::RAM_BASE, u64::MAX - 4095),
            (0, 4096),
        ] {
            assert!(!ram.drop_pages(address, size), "{address:#x} {size:#x}");
        }
    }

    #[test]
    fn sizes_are_checked() {
        for size in [0, 4 << 20, (16 << 20) + 4096, layout::RAM_MAX + layout::RAM_ALIGN] {
            assert!(
                matches!(GuestRam::new(layout::RAM_BASE, size), Err(MemoryError::Size(s)) if s == size),
                "{size:#x}"
            );
        }
        let (total, _) = host_memory();
        let too_large = (total + layout::RAM_ALIGN) / layout::RAM_ALIGN * layout::RAM_ALIGN;
        assert!(matches!(GuestRam::new(layout::RAM_BASE, too_large), Err(MemoryError::TooLarge { .. })));
    }
}
