// SPDX-License-Identifier: GPL-2.0-only
//! Memory of the kernel and of user space.

use std::ffi::c_void;

use super::{EFAULT, ENOMEM, PFN_BASE, fake};

pub unsafe fn gzk_alloc(size: usize) -> *mut c_void {
    fake(|k| {
        if k.fails() {
            return std::ptr::null_mut();
        }
        let mut memory = vec![0_u64; size.div_ceil(8)];
        let p = memory.as_mut_ptr();
        k.allocations.insert(p.addr(), memory);
        p.cast()
    })
}

pub unsafe fn gzk_free(p: *mut c_void) {
    fake(|k| k.allocations.remove(&p.addr()).expect("freed what is not allocated"));
}

pub unsafe fn gzk_pages_alloc(order: u32, pa: *mut u64) -> *mut c_void {
    fake(|k| {
        if k.fails() {
            return std::ptr::null_mut();
        }
        let layout = std::alloc::Layout::from_size_align(4096 << order, 4096).unwrap();
        // SAFETY: the size is not zero.
        let p = unsafe { std::alloc::alloc_zeroed(layout) };
        k.pages.insert(p.addr(), order);
        // SAFETY: as promised by the caller.
        unsafe { *pa = p.expose_provenance() as u64 };
        p.cast()
    })
}

pub unsafe fn gzk_pages_free(p: *mut c_void, order: u32) {
    fake(|k| {
        assert_eq!(k.pages.remove(&p.addr()), Some(order));
        for vm in k.vms.values() {
            assert!(vm.mailbox != p.addr() as u64, "mailbox freed under the hypervisor");
            assert!(
                !vm.vcpus.values().any(|&pa| pa == p.addr() as u64),
                "vCPU pages freed under the hypervisor"
            );
        }
    });
    let layout = std::alloc::Layout::from_size_align(4096 << order, 4096).unwrap();
    // SAFETY: allocated with this layout.
    unsafe { std::alloc::dealloc(p.cast(), layout) }
}

pub unsafe fn gzk_user_read(to: *mut c_void, from: u64, len: usize) -> i32 {
    fake(|k| {
        if k.fails() {
            return EFAULT;
        }
        let Some(bytes) = k.user(from, len) else { return EFAULT };
        // SAFETY: as promised by the caller.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast(), len) };
        0
    })
}

pub unsafe fn gzk_user_write(to: u64, from: *const c_void, len: usize) -> i32 {
    fake(|k| {
        if k.fails() {
            return EFAULT;
        }
        let Some(bytes) = k.user(to, len) else { return EFAULT };
        // SAFETY: as promised by the caller.
        unsafe { std::ptr::copy_nonoverlapping(from.cast(), bytes.as_mut_ptr(), len) };
        0
    })
}

pub unsafe fn gzk_mm_grab() -> *mut c_void {
    fake(|k| {
        if k.fails() {
            return std::ptr::null_mut();
        }
        k.mm_refs += 1;
        std::ptr::without_provenance_mut(0x100)
    })
}

pub unsafe fn gzk_mm_is_current(mm: *const c_void) -> i32 {
    assert_eq!(mm.addr(), 0x100);
    fake(|k| i32::from(!k.foreign_mm))
}

pub unsafe fn gzk_mm_drop(_mm: *mut c_void) {
    fake(|k| k.mm_refs -= 1);
}

pub unsafe fn gzk_pin(addr: u64, n: usize, pfns: *mut u64) -> isize {
    fake(|k| {
        if k.fails() {
            return ENOMEM as isize;
        }
        let mut got = 0;
        while got < n {
            let at = addr + 4096 * got as u64;
            if k.unpinnable.contains(&at) || !k.mapped.iter().any(|(a, b)| (*a..*b).contains(&at)) {
                break;
            }
            let pfn = PFN_BASE + at / 4096;
            *k.pins.entry(pfn).or_default() += 1;
            // SAFETY: got < n.
            unsafe { pfns.add(got).write(pfn) };
            got += 1;
        }
        if got == 0 { EFAULT as isize } else { got as isize }
    })
}

pub unsafe fn gzk_pin_block(addr: u64, pfn: *mut u64) -> i32 {
    assert!(addr.is_multiple_of(512 * 4096));
    fake(|k| {
        let pages = (addr..).step_by(4096).take(512);
        if !k.huge.contains(&addr) || pages.clone().any(|at| k.unpinnable.contains(&at)) {
            return 0;
        }
        let first = PFN_BASE + addr / 4096;
        for (page, _) in (first..).zip(pages) {
            *k.pins.entry(page).or_default() += 1;
        }
        // SAFETY: the caller's variable.
        unsafe { pfn.write(first) };
        1
    })
}

pub unsafe fn gzk_unpin_block(pfn: u64) {
    let mut pfns: Vec<u64> = (pfn..pfn + 512).collect();
    // SAFETY: pointer and length are those of the vector.
    unsafe { gzk_unpin(pfns.as_mut_ptr(), pfns.len()) }
}

pub unsafe fn gzk_unpin(pfns: *mut u64, n: usize) {
    fake(|k| {
        for i in 0..n {
            // SAFETY: i < n.
            let pfn = unsafe { pfns.add(i).read() };
            let count = k.pins.get_mut(&pfn).expect("not pinned");
            *count -= 1;
            if *count == 0 {
                k.pins.remove(&pfn);
                let mapped = k.vms.values().any(|vm| vm.mapped.values().any(|&p| p == pfn));
                assert!(!mapped, "unpinned under the hypervisor");
            }
        }
    });
}
