// SPDX-License-Identifier: GPL-2.0-only
//! Files of guest memory, their mappings in user space, and their page frames.
//!
//! The checks: a page is in no mapping when the hypervisor takes it from the host, and in no VM when it is freed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_void;

use super::{EINVAL, EMFILE, ENOMEM, Fake, File, fake};

/// An open file of guest memory.
struct Open {
    object: usize,
    refs: u32,
}

/// Where user space has mapped a file.
struct Mapping {
    start: u64,
    end: u64,
    file: usize,
    page: u64,
}

#[derive(Default)]
pub struct Memories {
    open: BTreeMap<usize, Open>,
    mappings: Vec<Mapping>,
    /// File and page, and the PFN that user space has there.
    ptes: BTreeMap<(usize, u64), u64>,
    pub frames: BTreeSet<u64>,
    /// What was allocated in one piece and is not split: its first one, and its order.
    pieces: BTreeMap<u64, u32>,
    /// Of them, those that readers of the kernel's own map pass over.
    hidden: BTreeSet<u64>,
    hiding: bool,
    /// The kernel has no two pages in one piece.
    pub fragmented: bool,
    next_frame: u64,
}

impl Memories {
    /// May user space reach this page?
    pub fn is_mapped(&self, pfn: u64) -> bool {
        self.ptes.values().any(|p| *p == pfn)
    }

    /// May the kernel itself touch this page on its own account? Only what is no frame of such a file is beyond us.
    pub fn is_exposed(&self, pfn: u64) -> bool {
        self.frames.contains(&pfn) && !self.hidden.contains(&pfn)
    }

    /// Are frames being hidden just now?
    pub fn hiding(&self) -> bool {
        self.hiding
    }

    /// Files that are open.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// File and page at an address of user space, and how far that goes on.
    pub fn at(&self, address: u64) -> Option<(usize, u64, u64)> {
        let mapping = self.mappings.iter().find(|m| (m.start..m.end).contains(&address))?;
        Some((mapping.file, mapping.page + (address - mapping.start) / 4096, mapping.end))
    }
}

impl Fake {
    /// Is the page in no state in which the host aborts?
    pub fn host_may_access(&self, pfn: u64) -> bool {
        !self.is_given(pfn)
            && self.vms.values().all(|vm| {
                !vm.protected || vm.shared.contains(&pfn) || !vm.mapped.values().any(|mapped| *mapped == pfn)
            })
    }

    /// Is it no VM's at all?
    pub fn is_hosts_own(&self, pfn: u64) -> bool {
        !self.is_given(pfn) && self.vms.values().all(|vm| !vm.mapped.values().any(|mapped| *mapped == pfn))
    }

    /// Is it in a block that is for a VM's tables?
    fn is_given(&self, pfn: u64) -> bool {
        self.vms.values().flat_map(|vm| &vm.given).any(|first| (*first..*first + 512).contains(&pfn))
    }
}

/// mmap of `pages` pages of an open file, from `page` on: 0, or the error.
pub fn map_file(fd: i32, start: u64, page: u64, pages: u64) -> i64 {
    let (file, object) = fake(|k| {
        let File::Memory(file) = k.files[&fd] else { panic!("no memory") };
        (file, k.memories.open[&file].object)
    });
    // SAFETY: the private data of an open file.
    let ret = unsafe { crate::entry::gzr_memory_map(object as *mut c_void, page, pages) };
    if ret == 0 {
        fake(|k| {
            k.memories.open.get_mut(&file).unwrap().refs += 1;
            k.memories.mappings.push(Mapping { start, end: start + pages * 4096, file, page });
        });
    }
    ret.into()
}

/// munmap of what was mapped at `start`.
pub fn unmap_file(start: u64) {
    let file = fake(|k| {
        let at = k.memories.mappings.iter().position(|m| m.start == start).expect("not mapped");
        let gone = k.memories.mappings.remove(at);
        let pages = gone.page..gone.page + (gone.end - gone.start) / 4096;
        k.memories.ptes.retain(|(file, page), _| *file != gone.file || !pages.contains(page));
        gone.file
    });
    // SAFETY: the mapping's reference.
    unsafe { gzk_memory_put(file as *mut c_void) }
}

/// munmap of everything.
pub fn unmap_all() {
    while let Some(start) = fake(|k| k.memories.mappings.first().map(|m| m.start)) {
        unmap_file(start);
    }
}

/// User space touches an address of a file: the PFN it got, nothing for SIGBUS.
pub fn touch(address: u64) -> Option<u64> {
    let (mut key, object) = fake(|k| {
        let (file, page, _) = k.memories.at(address).expect("not mapped");
        ((file, page), k.memories.open[&file].object)
    });
    if fake(|k| !k.memories.ptes.contains_key(&key)) {
        let fault = (&raw mut key).cast::<c_void>();
        // SAFETY: the private data of an open file; gzk_memory_insert takes such a fault.
        let ret = unsafe { crate::entry::gzr_memory_fault(object as *mut c_void, key.1, fault) };
        if ret != 0 {
            return None;
        }
    }
    fake(|k| {
        let pfn = k.memories.ptes[&key];
        assert!(k.memories.frames.contains(&pfn), "use after free");
        assert!(k.host_may_access(pfn), "external abort {:?}", &k.calls[k.calls.len().saturating_sub(6)..]);
        Some(pfn)
    })
}

pub unsafe fn gzk_frames_alloc(order: u32, pfn: *mut u64) -> i32 {
    fake(|k| {
        if k.fails() || (order > 0 && k.memories.fragmented) {
            return ENOMEM;
        }
        let first = 0x20_0000 + k.memories.next_frame.next_multiple_of(1 << order);
        k.memories.next_frame = first - 0x20_0000 + (1 << order);
        k.memories.frames.extend(first..first + (1 << order));
        k.memories.pieces.insert(first, order);
        // SAFETY: as promised by the caller.
        unsafe { *pfn = first };
        0
    })
}

pub unsafe fn gzk_frames_hide_begin() {
    fake(|k| assert!(!std::mem::replace(&mut k.memories.hiding, true), "deadlock"));
}

pub unsafe fn gzk_frames_hide(first: u64, count: u64) {
    fake(|k| {
        for pfn in first..first + count {
            assert!(k.memories.hiding && k.memories.frames.contains(&pfn));
            assert!(k.memories.hidden.insert(pfn), "hidden twice");
        }
    });
}

pub unsafe fn gzk_frames_hide_end() {
    fake(|k| assert!(std::mem::take(&mut k.memories.hiding)));
}

pub unsafe fn gzk_frames_split(first: u64, order: u32) {
    fake(|k| {
        assert_eq!(k.memories.pieces.remove(&first), Some(order), "no such piece");
        k.memories.pieces.extend((first..first + (1 << order)).map(|pfn| (pfn, 0)));
    });
}

pub unsafe fn gzk_frames_free(first: u64, order: u32) {
    fake(|k| {
        assert_eq!(k.memories.pieces.remove(&first), Some(order), "freed what is not allocated, or not so");
        for pfn in first..first + (1 << order) {
            k.memories.hidden.remove(&pfn);
            assert!(k.memories.frames.remove(&pfn), "freed what is not allocated");
            assert!(k.is_hosts_own(pfn), "freed under the hypervisor");
            assert!(!k.memories.is_mapped(pfn), "freed under user space");
        }
    });
}

pub unsafe fn gzk_memory_insert(fault: *mut c_void, pfn: u64) -> i32 {
    // SAFETY: `touch` made it.
    let key = unsafe { *fault.cast::<(usize, u64)>() };
    fake(|k| {
        if k.fails() {
            return ENOMEM;
        }
        k.memories.ptes.insert(key, pfn);
        0
    })
}

pub unsafe fn gzk_memory_fd(memory: *mut c_void) -> i32 {
    fake(|k| {
        if k.fails() {
            return EMFILE;
        }
        let file = k.handle();
        k.memories.open.insert(file, Open { object: memory.expose_provenance(), refs: 1 });
        k.new_fd(File::Memory(file))
    })
}

pub unsafe fn gzk_memory_of(file: *mut c_void) -> *mut c_void {
    fake(|k| k.memories.open[&file.addr()].object as *mut c_void)
}

pub unsafe fn gzk_memory_put(file: *mut c_void) {
    let last = fake(|k| {
        let open = k.memories.open.get_mut(&file.addr()).expect("no file");
        open.refs -= 1;
        let last = (open.refs == 0).then_some(open.object);
        if last.is_some() {
            k.memories.open.remove(&file.addr());
        }
        last
    });
    if let Some(object) = last {
        // SAFETY: the file's private data, used for the last time.
        unsafe { crate::entry::gzr_memory_release(object as *mut c_void) }
    }
}

pub unsafe fn gzk_memory_unmap(file: *mut c_void, page: u64, pages: u64) {
    fake(|k| k.memories.ptes.retain(|(f, p), _| *f != file.addr() || !(page..page + pages).contains(p)));
}

pub unsafe fn gzk_user_range_check(start: u64, size: u64, memory: *mut *mut c_void, page: *mut u64) -> i32 {
    fake(|k| {
        let mut at = start;
        let first = k.memories.at(start);
        while at < start + size {
            let here = k.memories.at(at);
            let anonymous = k.mapped.iter().find(|(a, b)| (*a..*b).contains(&at)).map(|(_, end)| *end);
            let Some(end) = here.map(|(_, _, end)| end).or(anonymous) else {
                return if at == start { super::EFAULT } else { EINVAL };
            };
            let place = |f: (usize, u64, u64), at: u64| (f.0, f.1.wrapping_sub((at - start) / 4096));
            if here.map(|f| place(f, at)) != first.map(|f| place(f, start)) {
                return EINVAL;
            }
            at = end;
        }
        if let Some((file, first, _)) = first {
            k.memories.open.get_mut(&file).unwrap().refs += 1;
            // SAFETY: as promised by the caller.
            unsafe {
                *memory = std::ptr::without_provenance_mut(file);
                *page = first;
            }
        }
        0
    })
}
