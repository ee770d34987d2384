// SPDX-License-Identifier: GPL-2.0-only
//! Slots, faults, pages given back.

use gzvm_abi::hypercall::{Function, cap, cap::protected};
use gzvm_abi::ioctl::{self, EnableCap, extension};
use gzvm_abi::run::{Hypercall, exit};

use super::lifecycle::page_fault;
use super::*;
use crate::sys::{PFN_BASE, close};

const MIB: u64 = 1 << 20;

/// A VM with `size` bytes of RAM at `gpa`, and a vCPU.
fn machine(k: &Session, gpa: u64, size: u64) -> (i32, i32) {
    let vm = k.vm();
    k.map_user(GUEST_MEM, size);
    assert_eq!(k.region(vm, 0, gpa, size, GUEST_MEM), 0);
    (vm, k.vcpu(vm, 0))
}

/// One fault, then a shutdown. Was the fault handled?
fn fault(k: &Session, vcpu: i32, gpa: u64) -> bool {
    page_fault(k, gpa);
    k.exit(|_| exit::SHUTDOWN);
    assert_eq!(k.run(vcpu), 0);
    let handled = k.get::<u32>(RUN) == exit::SHUTDOWN;
    k.with(|k| k.exits.clear());
    handled
}

fn mapped(k: &Session) -> Vec<u64> {
    k.with(|k| k.vms[&1].mapped.keys().copied().collect())
}

#[test]
fn slot_arguments() {
    let k = Session::new();
    let vm = k.vm();
    k.map_user(GUEST_MEM, 4 * MIB);
    assert_eq!(k.region(vm, 64, RAM, MIB, GUEST_MEM), EINVAL);
    assert_eq!(k.region(vm, 0, RAM + 1, MIB, GUEST_MEM), EINVAL);
    assert_eq!(k.region(vm, 0, RAM, MIB + 1, GUEST_MEM), EINVAL);
    assert_eq!(k.region(vm, 0, RAM, MIB, GUEST_MEM + 8), EINVAL);
    assert_eq!(k.region(vm, 0, u64::MAX - 0xFFF, 0x2000, GUEST_MEM), EINVAL);
    assert_eq!(k.region(vm, 0, 0, (1 << 31) * 4096, GUEST_MEM), EINVAL);
    assert_eq!(k.region(vm, 0, RAM, 8 * MIB, GUEST_MEM), EINVAL, "a hole behind");
    assert_eq!(k.region(vm, 0, RAM, 0, 0), EINVAL, "no such slot");
    assert_eq!(k.region(vm, 0, RAM, MIB, 0x5000_0000), EFAULT);
    assert_eq!(k.count(Function::SetMemregion), 0);
    assert_eq!(k.region(vm, 0, RAM, MIB, GUEST_MEM), 0);
    assert_eq!(k.region(vm, 0, RAM + 16 * MIB, MIB, GUEST_MEM), EEXIST, "slot in use");
    assert_eq!(k.region(vm, 1, RAM + MIB - 4096, MIB, GUEST_MEM), EEXIST, "overlap");
    assert_eq!(k.region(vm, 1, RAM - MIB + 4096, MIB, GUEST_MEM), EEXIST, "overlap from below");
    assert_eq!(k.region(vm, 1, RAM, MIB, GUEST_MEM), EEXIST, "the same");
    assert_eq!(k.region(vm, 1, RAM - MIB, 3 * MIB, GUEST_MEM), EEXIST, "around");
    assert_eq!(k.region(vm, 1, RAM + MIB, MIB, GUEST_MEM + MIB), 0);
    assert_eq!(k.region(vm, 2, RAM - MIB, MIB, GUEST_MEM + MIB), 0);
}

#[test]
fn refused_slot_is_free_again() {
    let k = Session::new();
    let vm = k.vm();
    k.map_user(GUEST_MEM, MIB);
    k.with(|k| k.answers.push((Function::MemregionPurpose, -8_i64 as u64)));
    assert_eq!(k.region(vm, 0, RAM, MIB, GUEST_MEM), EFAULT);
    k.with(|k| k.answers.push((Function::SetMemregion, -5_i64 as u64)));
    assert_eq!(k.region(vm, 0, RAM, MIB, GUEST_MEM), ENOMEM);
    assert_eq!(k.region(vm, 0, RAM, MIB, GUEST_MEM), 0);
}

#[test]
fn a_fault_brings_in_the_block_around_it() {
    let k = Session::new();
    let (_, vcpu) = machine(&k, RAM, 6 * MIB);
    assert!(fault(&k, vcpu, RAM + 2 * MIB + 0x5678));
    let first = (RAM + 2 * MIB) / 4096;
    assert_eq!(mapped(&k), (first..first + 512).collect::<Vec<_>>());
    let pfn = k.with(|k| k.vms[&1].mapped[&first]);
    assert_eq!(pfn, PFN_BASE + (GUEST_MEM + 2 * MIB) / 4096);
    assert_eq!(k.count(Function::MapGuestBlock), 1);
}

#[test]
fn windows_are_clipped_to_the_slot() {
    let k = Session::new();
    // From 1 MiB + 4 KiB before a block's end to 8 KiB into the next but one.
    let gpa = RAM + MIB - 4096;
    let (_, vcpu) = machine(&k, gpa, MIB + 4096 + 2 * MIB + 8192);
    // What lies behind the slot in the VMM is not the guest's.
    k.map_user(GUEST_MEM + 3 * MIB, 2 * MIB);
    assert!(fault(&k, vcpu, gpa));
    assert_eq!(mapped(&k).len(), 257);
    assert!(fault(&k, vcpu, RAM + 4 * MIB + 4096));
    assert_eq!(mapped(&k).len(), 259);
    assert!(!fault(&k, vcpu, RAM + 4 * MIB + 8192), "behind the slot");
    assert!(!fault(&k, vcpu, gpa - 1), "before the slot");
    assert!(!fault(&k, vcpu, u64::MAX), "nowhere");
}

#[test]
fn batches() {
    let k = Session::new();
    k.with(|k| k.batch = 64);
    assert_eq!(entry::gzr_init(), 0);
    let (_, vcpu) = machine(&k, RAM, 2 * MIB);
    assert!(fault(&k, vcpu, RAM));
    assert_eq!(k.count(Function::MapGuestBlock), 8);
    assert_eq!(mapped(&k).len(), 512);
}

#[test]
fn a_second_fault_on_a_mapped_page_maps_it_alike() {
    let k = Session::new();
    let (_, vcpu) = machine(&k, RAM, 2 * MIB);
    assert!(fault(&k, vcpu, RAM));
    assert!(fault(&k, vcpu, RAM + 4096));
    assert_eq!(k.with(|k| k.calls.last().unwrap().1[..4].to_vec()), [1, 0, RAM / 4096 + 1, 1]);
    assert!(k.with(|k| k.pins.values().all(|&n| n == 1)));
}

#[test]
fn neighbours_that_cannot_be_pinned_are_left_out() {
    let k = Session::new();
    let (_, vcpu) = machine(&k, RAM, 2 * MIB);
    k.with(|k| k.unpinnable.insert(GUEST_MEM + 100 * 4096));
    assert!(fault(&k, vcpu, RAM + 300 * 4096));
    let gfn = RAM / 4096;
    assert_eq!(mapped(&k), (gfn..gfn + 100).chain([gfn + 300]).collect::<Vec<_>>());
    assert!(!fault(&k, vcpu, RAM + 100 * 4096), "the page itself");
    assert!(fault(&k, vcpu, RAM + 101 * 4096));
}

#[test]
fn refused_map_goes_to_user_space() {
    let k = Session::new();
    let (_, vcpu) = machine(&k, RAM, 2 * MIB);
    k.with(|k| k.answers.push((Function::MapGuestBlock, -40_i64 as u64)));
    assert!(!fault(&k, vcpu, RAM));
    assert!(fault(&k, vcpu, RAM), "works the next time");
}

#[test]
fn busy_map_is_tried_again() {
    let k = Session::new();
    let (_, vcpu) = machine(&k, RAM, 2 * MIB);
    k.with(|k| k.answers.extend([(Function::MapGuestBlock, -33_i64 as u64); 50]));
    assert!(fault(&k, vcpu, RAM));
    assert_eq!(k.count(Function::MapGuestBlock), 51);
}

#[test]
fn single_pages() {
    let k = Session::new();
    k.with(|k| k.no_blocks = true);
    let (_, vcpu) = machine(&k, RAM, 2 * MIB);
    assert!(fault(&k, vcpu, RAM + 0x1008));
    assert_eq!(mapped(&k), [RAM / 4096 + 1]);
    assert_eq!(k.count(Function::MapGuest), 1);
}

#[test]
fn eager_population() {
    let k = Session::new();
    k.with(|k| k.no_demand_paging = true);
    let (_, vcpu) = machine(&k, RAM + MIB, 3 * MIB);
    let first = (RAM + MIB) / 4096;
    assert_eq!(mapped(&k), (first..first + 768).collect::<Vec<_>>());
    assert!(!fault(&k, vcpu, RAM + MIB));
}

#[test]
fn protecting_a_single_page_vm_populates_it() {
    let k = Session::new();
    k.with(|k| k.no_blocks = true);
    let (vm, vcpu) = machine(&k, RAM, 2 * MIB);
    assert!(fault(&k, vcpu, RAM + 7 * 4096));
    let protect = EnableCap { cap: cap::PROTECTED_VM, args: [protected::SET_PROTECTED_VM, 0, 0, 0, 0] };
    assert_eq!(k.ioctl_with(vm, ioctl::ENABLE_CAP, &protect), 0);
    assert_eq!(mapped(&k).len(), 512);
    assert!(k.with(|k| k.pins.values().all(|&n| n == 1)));
}

fn relinquish(k: &Session, vcpu: i32, gpa: u64) {
    k.with(|k| k.vms.get_mut(&1).unwrap().mapped.remove(&(gpa / 4096)));
    k.exit(move |shared| {
        shared.put(8, Hypercall { args: [0xC600_0009, gpa, 0, 0, 0, 0, 0, 0] });
        exit::HYPERCALL
    });
    k.exit(|_| exit::SHUTDOWN);
    assert_eq!(k.run(vcpu), 0);
    assert_eq!(k.get::<u32>(RUN), exit::SHUTDOWN);
}

#[test]
fn relinquished_pages_are_unpinned_and_come_back_alone() {
    let k = Session::new();
    let (vm, vcpu) = machine(&k, RAM, 2 * MIB);
    assert!(fault(&k, vcpu, RAM));
    relinquish(&k, vcpu, RAM + 3 * 4096);
    relinquish(&k, vcpu, RAM + 4 * 4096);
    relinquish(&k, vcpu, RAM + 4 * 4096);
    relinquish(&k, vcpu, 0x1000);
    assert_eq!(k.with(|k| k.pins.len()), 510);
    assert!(fault(&k, vcpu, RAM + 3 * 4096));
    assert_eq!(k.with(|k| k.pins.len()), 511);
    assert!(!mapped(&k).contains(&(RAM / 4096 + 4)));
    close(vm);
}

#[test]
fn a_huge_page_is_one_run() {
    let k = Session::new();
    k.with(|k| k.huge.extend([GUEST_MEM, GUEST_MEM + 2 * MIB]));
    let (vm, vcpu) = machine(&k, RAM, 6 * MIB);
    assert!(fault(&k, vcpu, RAM + 5 * 4096) && fault(&k, vcpu, RAM + 2 * MIB));
    assert_eq!((k.count(Function::MapGuest), k.count(Function::MapGuestBlock)), (2, 0));
    assert_eq!(mapped(&k).len(), 1024);
    assert!(fault(&k, vcpu, RAM + 4 * MIB), "small pages");
    assert_eq!(k.count(Function::MapGuestBlock), 1);
    // A second vCPU's fault from before finds the same page.
    assert!(fault(&k, vcpu, RAM + 7 * 4096));
    assert_eq!(k.with(|k| k.pins.len()), 1536);
    // What is left of a huge page holds all of it; a page that comes again is held for itself.
    relinquish(&k, vcpu, RAM);
    assert_eq!(discard(&k, vm, RAM + 2 * 4096, 4096), 0);
    assert!(fault(&k, vcpu, RAM));
    let held = |k: &Session| k.with(|k| (k.pins.len(), k.pins[&(PFN_BASE + GUEST_MEM / 4096)]));
    assert_eq!(held(&k), (1536, 2));
    assert_eq!(discard(&k, vm, RAM + 4096, 2 * MIB - 4096), 0);
    assert_eq!(k.with(|k| k.pins.len()), 1025, "the last page of the run takes its pin along");
    assert_eq!(mapped(&k).len(), 1025);
    assert_eq!(discard(&k, vm, RAM, 4 * MIB), 0);
    assert_eq!(k.with(|k| k.pins.len()), 512);
    assert!(fault(&k, vcpu, RAM), "whole again");
    assert_eq!((k.count(Function::MapGuest), k.count(Function::MapGuestBlock)), (3, 3));
    assert_eq!(k.with(|k| k.pins.len()), 1024);
}

#[test]
fn a_run_that_cannot_be_parted_stays_whole() {
    let k = Session::new();
    k.with(|k| k.huge.insert(GUEST_MEM));
    let (vm, vcpu) = machine(&k, RAM, 2 * MIB);
    assert!(fault(&k, vcpu, RAM));
    // The first call that may fail is the read of the argument.
    k.with(|k| k.fail_at = Some(k.fallible_calls + 2));
    assert_eq!(discard(&k, vm, RAM, 4096), ENOMEM);
    assert_eq!(k.with(|k| k.pins.len()), 512);
    assert!(fault(&k, vcpu, RAM), "its old page");
    assert_eq!(mapped(&k).len(), 512);
    assert_eq!(discard(&k, vm, RAM, 2 * MIB), 0);
    assert_eq!(k.with(|k| k.pins.len()), 0);
}

#[test]
fn runs_need_their_alignment_and_our_hypervisor() {
    let k = Session::new();
    k.with(|k| k.huge.extend([GUEST_MEM, GUEST_MEM + 2 * MIB]));
    let (_, vcpu) = machine(&k, RAM + MIB, 4 * MIB);
    assert!(fault(&k, vcpu, RAM + 2 * MIB), "a block of the guest's is half of two of user space");
    assert_eq!((k.count(Function::MapGuest), k.count(Function::MapGuestBlock)), (0, 1));
    drop(k);
    let k = Session::new();
    k.with(|k| (k.extensions, _) = (0, k.huge.insert(GUEST_MEM)));
    assert_eq!(entry::gzr_init(), 0);
    let (_, vcpu) = machine(&k, RAM, 2 * MIB);
    assert!(fault(&k, vcpu, RAM));
    assert_eq!((k.count(Function::MapGuest), k.count(Function::MapGuestBlock)), (0, 1));
}

fn ask(k: &Session, capability: u64) -> (i64, u64) {
    k.put(ARG, &capability);
    (k.dev_ioctl(ioctl::CHECK_EXTENSION, ARG), k.get(ARG))
}

#[test]
fn what_a_public_hypervisor_lacks_is_not_offered() {
    let k = Session::new();
    assert_eq!(ask(&k, extension::NR_MEMSLOTS), (0, 64));
    assert_eq!(ask(&k, extension::REMOVE_SLOT), (0, 1));
    assert_eq!(ask(&k, extension::DISCARD), (0, 1));
    k.with(|k| k.extensions = 0);
    assert_eq!(entry::gzr_init(), 0);
    assert_eq!(ask(&k, extension::NR_MEMSLOTS), (0, 10));
    assert_eq!(ask(&k, extension::REMOVE_SLOT).0, EOPNOTSUPP);
    assert_eq!(ask(&k, extension::DISCARD).0, EOPNOTSUPP);
    let (vm, _) = machine(&k, RAM, 2 * MIB);
    assert_eq!(k.region(vm, 10, RAM, MIB, GUEST_MEM), EINVAL);
    assert_eq!(k.region(vm, 0, RAM, 0, 0), EFAULT, "removal, as the public driver answers it");
    assert_eq!(k.region(vm, 0, RAM, 0, GUEST_MEM), EINVAL);
    assert_eq!(discard(&k, vm, RAM, 4096), EOPNOTSUPP);
}

#[test]
fn many_slots() {
    let k = Session::new();
    let vm = k.vm();
    k.map_user(GUEST_MEM, 64 * MIB);
    for n in (0..64).rev() {
        let at = u64::from(n) * MIB;
        assert_eq!(k.region(vm, n, RAM + 2 * at, MIB, GUEST_MEM + at), 0, "{n}");
    }
    let vcpu = k.vcpu(vm, 0);
    for n in [0, 1, 31, 62, 63] {
        assert!(fault(&k, vcpu, RAM + 2 * n * MIB + MIB - 1), "{n}");
        assert_eq!(mapped(&k).len(), 256);
        assert_eq!(k.region(vm, n as u32, 0, 0, 0), 0);
    }
}

#[test]
fn removing_a_slot_gives_its_pages_back() {
    let k = Session::new();
    let (vm, vcpu) = machine(&k, RAM, 4 * MIB);
    k.map_user(GUEST_MEM + 4 * MIB, MIB);
    assert_eq!(k.region(vm, 1, RAM + 8 * MIB, MIB, GUEST_MEM + 4 * MIB), 0);
    assert!(fault(&k, vcpu, RAM) && fault(&k, vcpu, RAM + 2 * MIB) && fault(&k, vcpu, RAM + 8 * MIB));
    assert_eq!(k.region(vm, 0, RAM, 0, 0), 0);
    assert_eq!(k.count(Function::RemoveMemregion), 4, "1024 pages, 300 at a time");
    assert_eq!(k.with(|k| k.pins.values().sum::<u32>()), 256);
    assert_eq!(mapped(&k).len(), 256);
    // A fault from before the removal is nobody's mistake: the guest looks again.
    assert!(fault(&k, vcpu, RAM));
    assert_eq!(mapped(&k).len(), 256);
    assert_eq!(k.region(vm, 0, RAM, 0, 0), EINVAL, "not twice");
    assert_eq!(k.region(vm, 0, RAM, 2 * MIB, GUEST_MEM), 0);
    assert!(fault(&k, vcpu, RAM));
}

#[test]
fn a_removal_that_a_signal_interrupts_goes_on() {
    let k = Session::new();
    let (vm, vcpu) = machine(&k, RAM, 2 * MIB);
    assert!(fault(&k, vcpu, RAM));
    k.with(|k| k.signal = true);
    assert_eq!(k.region(vm, 0, RAM, 0, 0), ERESTARTSYS);
    k.with(|k| k.signal = false);
    assert_eq!(mapped(&k).len(), 212);
    assert_eq!(k.with(|k| k.pins.len()), 512, "what the hypervisor may hold stays pinned");
    assert!(fault(&k, vcpu, RAM), "the slot is still there");
    assert_eq!(k.region(vm, 0, RAM, 0, 0), 0);
    assert_eq!(k.with(|k| k.pins.len()), 0);
}

#[test]
fn a_refused_removal_keeps_the_slot() {
    let k = Session::new();
    let (vm, vcpu) = machine(&k, RAM, 2 * MIB);
    assert!(fault(&k, vcpu, RAM));
    k.with(|k| k.answers.push((Function::RemoveMemregion, -5_i64 as u64)));
    assert_eq!(k.region(vm, 0, RAM, 0, 0), ENOMEM);
    assert_eq!(k.with(|k| k.pins.len()), 512);
    assert!(fault(&k, vcpu, RAM + 4096));
}

fn discard(k: &Session, vm: i32, gpa: u64, size: u64) -> i64 {
    k.ioctl_with(vm, ioctl::DISCARD, &ioctl::Discard { guest_phys_addr: gpa, size })
}

#[test]
fn discarded_pages_go_back_and_come_again() {
    let k = Session::new();
    let (vm, vcpu) = machine(&k, RAM, 6 * MIB);
    assert!(fault(&k, vcpu, RAM) && fault(&k, vcpu, RAM + 2 * MIB));
    assert_eq!(discard(&k, vm, RAM + MIB, 2 * MIB), 0);
    assert_eq!(k.with(|k| k.pins.len()), 512);
    assert_eq!(mapped(&k).len(), 512);
    // A page of a block of which something is left comes alone, one of an emptied block with its neighbours.
    assert!(fault(&k, vcpu, RAM + MIB));
    assert_eq!(mapped(&k).len(), 513);
    assert_eq!(discard(&k, vm, RAM, 6 * MIB), 0, "also where nothing is");
    assert_eq!(k.with(|k| k.pins.len()), 0);
    assert!(fault(&k, vcpu, RAM + MIB));
    assert_eq!(mapped(&k).len(), 512);
}

/// A guest that takes back page by page what it gave: few faults; what it leaves alone stays away.
#[test]
fn faults_that_follow_one_another_bring_in_more() {
    let k = Session::new();
    let (vm, vcpu) = machine(&k, RAM, 4 * MIB);
    assert!(fault(&k, vcpu, RAM));
    assert_eq!(discard(&k, vm, RAM + 100 * 4096, 400 * 4096), 0);
    let first = RAM / 4096 + 100;
    let mut faults = 0;
    let mut take = |pages: std::ops::Range<u64>| {
        for page in pages {
            if !mapped(&k).contains(&(first + page)) {
                assert!(fault(&k, vcpu, (first + page) * 4096));
                faults += 1;
            }
        }
    };
    // Two at once: 1, 2, 4, ... 64, 64 pages each.
    for page in 0..150 {
        take(page..page + 1);
        take(200 + page..201 + page);
    }
    assert_eq!(faults, 2 * 8);
    assert_eq!(
        mapped(&k).len(),
        112 + 2 * 191,
        "0 to 190, and 200 to the end of what was given back but for 9"
    );
    assert!(fault(&k, vcpu, (first + 195) * 4096));
    assert_eq!(mapped(&k).len(), 112 + 2 * 191 + 1, "a page alone");
    assert!(k.with(|k| k.pins.values().all(|&n| n == 1)));
}

#[test]
fn discard_arguments() {
    let k = Session::new();
    let (vm, vcpu) = machine(&k, RAM, 2 * MIB);
    assert_eq!(k.region(vm, 1, RAM + 2 * MIB, MIB, GUEST_MEM), 0);
    assert!(fault(&k, vcpu, RAM));
    for (gpa, size) in [
        (RAM, 0),
        (RAM + 1, 4096),
        (RAM, 4097),
        (RAM - 4096, 4096),
        (RAM - 4096, 8192),
        (RAM + MIB, 2 * MIB),
        (RAM + 3 * MIB, 4096),
        (RAM, u64::MAX - 0xFFF),
        (u64::MAX - 0xFFF, 4096),
    ] {
        assert_eq!(discard(&k, vm, gpa, size), EINVAL, "{gpa:#x} {size:#x}");
    }
    assert_eq!(k.ioctl(vm, ioctl::DISCARD, 8), EFAULT);
    assert_eq!(k.count(Function::UnmapGuest), 0);
    k.with(|k| k.answers.push((Function::UnmapGuest, -5_i64 as u64)));
    assert_eq!(discard(&k, vm, RAM, 4096), ENOMEM);
    assert_eq!(k.with(|k| k.pins.len()), 512);
}

#[test]
fn a_vm_that_must_not_fault_discards_nothing() {
    let k = Session::new();
    k.with(|k| k.no_demand_paging = true);
    let (vm, _) = machine(&k, RAM, 2 * MIB);
    assert_eq!(discard(&k, vm, RAM, 4096), EOPNOTSUPP);
    assert_eq!(k.region(vm, 0, RAM, 0, 0), 0, "but it can lose a slot");
    assert_eq!(k.with(|k| k.pins.len()), 0);
}
