// SPDX-License-Identifier: GPL-2.0-only
//! Guest memory that is a file: what user space reaches of it, and when. The fake fails a test itself where user space has a page
//! that the hypervisor took from the host, or a page is freed too early.

use gzvm_abi::hypercall::{Function, cap, cap::protected};
use gzvm_abi::ioctl::{self, EnableCap, GuestMemory, extension};
use gzvm_abi::run::{Hypercall, exit};

use super::lifecycle::page_fault;
use super::*;
use crate::counters::{GUEST_MEMORY_PAGES, PRIVATE_FAULTS, PRIVATE_PAGES};
use crate::sys::{close, map_file, shares, stops_sharing, touch, unmap_file};

const PAGE: u64 = 4096;
const BLOCK: u64 = 2 << 20;

fn create(k: &Session, size: u64, flags: u64) -> i64 {
    k.put(ARG, &GuestMemory { size, flags });
    k.dev_ioctl(ioctl::CREATE_GUEST_MEMORY, ARG)
}

fn protect(k: &Session, vm: i32) -> i64 {
    let request = EnableCap { cap: cap::PROTECTED_VM, args: [protected::SET_PROTECTED_VM, 0, 0, 0, 0] };
    k.ioctl_with(vm, ioctl::ENABLE_CAP, &request)
}

/// A protected VM with two blocks of RAM in a file that is mapped, and a vCPU: all three descriptors.
fn machine(k: &Session) -> (i32, i32, i32) {
    let vm = k.vm();
    let file = create(k, 2 * BLOCK, 0) as i32;
    assert_eq!(map_file(file, GUEST_MEM, 0, 1024), 0);
    assert_eq!(k.region(vm, 0, RAM, 2 * BLOCK, GUEST_MEM), 0);
    assert_eq!(protect(k, vm), 0);
    (vm, k.vcpu(vm, 0), file)
}

/// One fault, then a shutdown. Was the fault handled?
fn fault(k: &Session, vcpu: i32, gpa: u64) -> bool {
    page_fault(k, gpa);
    run(k, vcpu)
}

/// Runs to a shutdown; false if something else ended it.
fn run(k: &Session, vcpu: i32) -> bool {
    k.exit(|_| exit::SHUTDOWN);
    let ended = k.run(vcpu);
    k.with(|k| k.exits.clear());
    ended == 0 && k.get::<u32>(RUN) == exit::SHUTDOWN
}

fn relinquish(k: &Session, gpa: u64, comes_again: bool) {
    k.exit(move |shared| {
        shared.put(8, Hypercall { args: [0xC600_0009, gpa, 0, 0, 0, 0, 0, 0] });
        exit::HYPERCALL
    });
    if !comes_again {
        k.with(|k| {
            let vm = k.vms.get_mut(&1).unwrap();
            let pfn = vm.mapped.remove(&(gpa / PAGE)).unwrap();
            vm.shared.remove(&pfn);
        });
    }
}

#[test]
fn arguments() {
    let k = Session::new();
    for (size, flags) in [(0, 0), (1, 0), (PAGE + 1, 0), (PAGE, 1), (1 << 43, 0), (u64::MAX - 0xFFF, 0)] {
        assert_eq!(create(&k, size, flags), EINVAL, "{size:#x} {flags}");
    }
    assert_eq!(k.dev_ioctl(ioctl::CREATE_GUEST_MEMORY, 8), EFAULT);
    let file = create(&k, 3 * PAGE, 0) as i32;
    for (page, pages) in [(0, 4), (3, 1), (1, 3), (u64::MAX, 2), (0, u64::MAX)] {
        assert_eq!(map_file(file, GUEST_MEM, page, pages), EINVAL, "{page} {pages}");
    }
    assert_eq!(map_file(file, GUEST_MEM, 1, 2), 0);
    assert!(touch(GUEST_MEM + PAGE).is_some());
    k.put(ARG, &extension::GUEST_MEMORY);
    assert_eq!((k.dev_ioctl(ioctl::CHECK_EXTENSION, ARG), k.get::<u64>(ARG)), (0, 1));
    k.with(|k| k.extensions = 0);
    assert_eq!(entry::gzr_init(), 0);
    k.put(ARG, &extension::GUEST_MEMORY);
    assert_eq!(k.dev_ioctl(ioctl::CHECK_EXTENSION, ARG), EOPNOTSUPP);
    assert_eq!(create(&k, PAGE, 0), ENOTTY);
}

#[test]
fn ordinary_memory_until_someone_is_given_it() {
    let k = Session::new();
    let file = create(&k, BLOCK + 2 * PAGE, 0) as i32;
    assert_eq!(map_file(file, GUEST_MEM, 0, 514), 0);
    assert_eq!(map_file(file, GUEST_MEM + 2 * BLOCK, 0, 514), 0);
    let pfn = touch(GUEST_MEM + 5 * PAGE);
    assert_eq!(GUEST_MEMORY_PAGES.get(), 512, "a block at once");
    assert_eq!(touch(GUEST_MEM + 2 * BLOCK + 5 * PAGE), pfn, "the same by the other mapping");
    assert!(touch(GUEST_MEM + BLOCK).is_some());
    assert_eq!(GUEST_MEMORY_PAGES.get(), 513, "no whole block in the file");
    close(file);
    unmap_file(GUEST_MEM);
    assert_eq!(touch(GUEST_MEM + 2 * BLOCK + 5 * PAGE), pfn, "a mapping keeps it");
    unmap_file(GUEST_MEM + 2 * BLOCK);
    assert_eq!(GUEST_MEMORY_PAGES.get(), 0);
}

#[test]
fn plain_vms_share_it() {
    let k = Session::new();
    let vm = k.vm();
    let file = create(&k, BLOCK, 0) as i32;
    map_file(file, GUEST_MEM, 0, 512);
    assert_eq!(k.region(vm, 0, RAM, BLOCK, GUEST_MEM), 0);
    let vcpu = k.vcpu(vm, 0);
    let pfn = touch(GUEST_MEM);
    assert!(fault(&k, vcpu, RAM));
    assert_eq!(k.with(|k| k.vms[&1].mapped.get(&(RAM / PAGE)).copied()), pfn);
    assert_eq!(touch(GUEST_MEM), pfn);
    assert_eq!((PRIVATE_PAGES.get(), k.with(|k| k.pins.len())), (0, 0));
    relinquish(&k, RAM, false);
    assert!(run(&k, vcpu));
    assert_eq!(touch(GUEST_MEM), pfn, "a plain VM's page stays in the file");
    let discard = ioctl::Discard { guest_phys_addr: RAM, size: BLOCK };
    assert_eq!(k.ioctl_with(vm, ioctl::DISCARD, &discard), 0);
    assert_eq!(k.region(vm, 0, RAM, 0, 0), 0);
}

#[test]
fn what_a_protected_vm_is_given_leaves_user_space() {
    let k = Session::new();
    let (_, vcpu, file) = machine(&k);
    map_file(file, GUEST_MEM + 8 * BLOCK, 0, 1024);
    assert!(touch(GUEST_MEM).is_some() && touch(GUEST_MEM + BLOCK).is_some());
    assert!(touch(GUEST_MEM + 8 * BLOCK + PAGE).is_some());
    let refused = PRIVATE_FAULTS.get();
    assert!(fault(&k, vcpu, RAM + 7 * PAGE));
    assert_eq!(k.count(Function::MapGuest), 1, "in one go");
    assert_eq!(PRIVATE_PAGES.get(), 512);
    for offset in [0, PAGE, 511 * PAGE, 8 * BLOCK, 8 * BLOCK + PAGE] {
        assert_eq!(touch(GUEST_MEM + offset), None, "{offset:#x}");
    }
    assert_eq!(PRIVATE_FAULTS.get(), refused + 5);
    assert!(touch(GUEST_MEM + BLOCK).is_some(), "not given yet");
    // A second vCPU's fault on what is there.
    assert!(fault(&k, vcpu, RAM + 7 * PAGE));
    assert_eq!(touch(GUEST_MEM + 7 * PAGE), None);
}

#[test]
fn without_blocks() {
    for (fragmented, batch) in [(true, 512), (false, 64), (true, 1)] {
        let k = Session::new();
        k.with(|k| (k.memories.fragmented, k.batch) = (fragmented, batch));
        assert_eq!(entry::gzr_init(), 0);
        let (_, vcpu, _) = machine(&k);
        assert!(touch(GUEST_MEM).is_some());
        assert!(fault(&k, vcpu, RAM));
        assert_eq!((touch(GUEST_MEM), touch(GUEST_MEM + 511 * PAGE)), (None, None));
        assert_eq!(PRIVATE_PAGES.get(), 512);
    }
}

#[test]
fn a_vm_without_demand_paging_is_given_all_of_it() {
    let k = Session::new();
    k.with(|k| k.no_demand_paging = true);
    let vm = k.vm();
    assert_eq!(protect(&k, vm), 0);
    let file = create(&k, BLOCK, 0) as i32;
    map_file(file, GUEST_MEM, 0, 512);
    assert!(touch(GUEST_MEM).is_some());
    assert_eq!(k.region(vm, 0, RAM, BLOCK, GUEST_MEM), 0);
    assert_eq!(touch(GUEST_MEM), None);
}

#[test]
fn a_refused_gift_is_the_hosts() {
    let k = Session::new();
    let (_, vcpu, _) = machine(&k);
    let pfn = touch(GUEST_MEM);
    k.with(|k| k.answers.push((Function::MapGuest, -40_i64 as u64)));
    assert!(!fault(&k, vcpu, RAM));
    assert_eq!(touch(GUEST_MEM), pfn, "the hypervisor did not take it");
    assert!(fault(&k, vcpu, RAM), "works the next time");
    assert_eq!(touch(GUEST_MEM), None, "user space had it in between");
}

#[test]
fn shared_pages_come_and_go() {
    let k = Session::new();
    let (_, vcpu, _) = machine(&k);
    let pfn = touch(GUEST_MEM + PAGE);
    assert!(fault(&k, vcpu, RAM));
    let gfn = RAM / PAGE + 1;
    for _ in 0..2 {
        shares(gfn);
        assert_eq!(touch(GUEST_MEM + PAGE), pfn);
        assert_eq!(touch(GUEST_MEM), None, "its neighbour");
        k.with(|k| k.exits.push_back(stops_sharing(gfn)));
        assert!(run(&k, vcpu));
        assert_eq!(touch(GUEST_MEM + PAGE), None);
    }
    // Of what is no page of a slot, or not there, the driver has nothing to take.
    for gfn in [0x1000, (RAM + BLOCK) / PAGE] {
        k.with(|k| k.exits.push_back(stops_sharing(gfn)));
        assert!(run(&k, vcpu));
    }
    assert!(k.with(|k| k.vms[&1].announces));
}

#[test]
fn a_refused_unshare_is_told_in_the_log() {
    let k = Session::new();
    let (_, vcpu, _) = machine(&k);
    assert!(fault(&k, vcpu, RAM));
    shares(RAM / PAGE);
    assert!(touch(GUEST_MEM).is_some());
    k.with(|k| {
        k.answers.extend([(Function::HostAccess, -33_i64 as u64); 3]);
        k.answers.push((Function::HostAccess, -8_i64 as u64));
        k.exits.push_back(stops_sharing(RAM / PAGE));
    });
    assert!(run(&k, vcpu));
    assert_eq!(touch(GUEST_MEM), None, "gone with the next RUN");
    assert!(k.with(|k| k.log.iter().any(|l| l.contains("is not taken from the host"))));
}

#[test]
fn pages_of_a_vm_that_is_gone_are_fresh() {
    let k = Session::new();
    let (vm, vcpu, _) = machine(&k);
    let before = touch(GUEST_MEM + BLOCK);
    assert!(fault(&k, vcpu, RAM));
    shares(RAM / PAGE + 1);
    assert!(touch(GUEST_MEM + PAGE).is_some());
    close(vcpu);
    close(vm);
    assert_eq!((PRIVATE_PAGES.get(), GUEST_MEMORY_PAGES.get()), (0, 512));
    assert!(touch(GUEST_MEM).is_some() && touch(GUEST_MEM + PAGE).is_some());
    assert_eq!(touch(GUEST_MEM + BLOCK), before, "what was never given stays");
    assert_eq!(GUEST_MEMORY_PAGES.get(), 1024, "a block again");
}

#[test]
fn the_slot_keeps_the_file() {
    let k = Session::new();
    let (_, vcpu, file) = machine(&k);
    unmap_file(GUEST_MEM);
    close(file);
    assert!(fault(&k, vcpu, RAM) && fault(&k, vcpu, RAM + BLOCK));
    assert_eq!(PRIVATE_PAGES.get(), 1024);
}

#[test]
fn nothing_is_freed_if_the_hypervisor_does_not_let_go() {
    let mut k = Session::new();
    k.leaks = true;
    let (vm, vcpu, file) = machine(&k);
    assert!(fault(&k, vcpu, RAM));
    k.with(|k| k.answers.push((Function::DestroyVm, -8_i64 as u64)));
    close(vcpu);
    close(vm);
    close(file);
    assert_eq!(touch(GUEST_MEM), None, "still the guest's");
    unmap_file(GUEST_MEM);
    assert_eq!(k.with(|k| k.memories.frames.len()), 512);
}

#[test]
fn a_page_that_the_guest_gives_back_is_freed() {
    let k = Session::new();
    let (_, vcpu, _) = machine(&k);
    assert!(fault(&k, vcpu, RAM));
    shares(RAM / PAGE);
    assert!(touch(GUEST_MEM).is_some());
    relinquish(&k, RAM, false);
    assert!(run(&k, vcpu));
    assert_eq!((PRIVATE_PAGES.get(), GUEST_MEMORY_PAGES.get()), (511, 511));
    assert!(touch(GUEST_MEM).is_some(), "a fresh one");
    assert_eq!(touch(GUEST_MEM + PAGE), None);
    assert!(fault(&k, vcpu, RAM));
    assert_eq!(touch(GUEST_MEM), None);
}

/// One vCPU gives a page back; another touches it before the driver comes to it, so that it is the guest's again.
#[test]
fn a_page_that_the_guest_took_again_stays() {
    let k = Session::new();
    let (_, vcpu, _) = machine(&k);
    assert!(fault(&k, vcpu, RAM));
    for shared in [false, true] {
        if shared {
            shares(RAM / PAGE);
        }
        relinquish(&k, RAM, true);
        assert!(run(&k, vcpu));
        assert_eq!(GUEST_MEMORY_PAGES.get(), 512);
    }
    // The same of pinned pages, in a plain VM.
    let vm = k.vm();
    k.map_user(GUEST_MEM + 16 * BLOCK, BLOCK);
    assert_eq!(k.region(vm, 0, RAM, BLOCK, GUEST_MEM + 16 * BLOCK), 0);
    let vcpu = k.vcpu(vm, 0);
    assert!(fault(&k, vcpu, RAM));
    relinquish(&k, RAM, true);
    assert!(run(&k, vcpu));
    assert_eq!(k.with(|k| k.pins.len()), 512);
}

/// Two protected VMs, each with its vCPU, whose slots hold one block of a file. The first has it; the other was refused.
fn two_of_one_file(k: &Session) -> [(i32, i32); 2] {
    let (vm, vcpu, _) = machine(k);
    let other = k.vm();
    assert_eq!(k.region(other, 0, RAM, BLOCK, GUEST_MEM), 0);
    assert_eq!(protect(k, other), 0);
    let other_vcpu = k.vcpu(other, 0);
    assert!(fault(k, vcpu, RAM));
    k.with(|k| k.answers.push((Function::MapGuest, -40_i64 as u64)));
    assert!(!fault(k, other_vcpu, RAM), "the first one's");
    [(vm, vcpu), (other, other_vcpu)]
}

#[test]
fn two_vms_have_one_file() {
    let k = Session::new();
    let [(vm, vcpu), (_, other_vcpu)] = two_of_one_file(&k);
    assert_eq!(touch(GUEST_MEM), None);
    close(vcpu);
    close(vm);
    assert!(touch(GUEST_MEM).is_some(), "the host's until the other gets it");
    assert_eq!(GUEST_MEMORY_PAGES.get(), 512, "not freed: the other may have it");
    assert!(fault(&k, other_vcpu, RAM));
    assert_eq!(touch(GUEST_MEM), None);
}

/// A block that two VMs hold as one is told apart by a page that one of them gives back.
#[test]
fn two_vms_have_a_block_and_one_gives_a_page_back() {
    let k = Session::new();
    let [(vm, vcpu), (other, other_vcpu)] = two_of_one_file(&k);
    shares(RAM / PAGE);
    relinquish(&k, RAM, false);
    assert!(run(&k, vcpu));
    assert_eq!((PRIVATE_PAGES.get(), GUEST_MEMORY_PAGES.get()), (512, 512), "the other may have it");
    close(vcpu);
    close(vm);
    assert_eq!(GUEST_MEMORY_PAGES.get(), 512);
    close(other_vcpu);
    close(other);
    assert_eq!((PRIVATE_PAGES.get(), GUEST_MEMORY_PAGES.get()), (0, 0), "nobody has it now");
}

#[test]
fn a_slot_is_all_of_one_file_in_its_order() {
    let k = Session::new();
    let vm = k.vm();
    let (file, other) = (create(&k, 2 * BLOCK, 0) as i32, create(&k, 2 * BLOCK, 0) as i32);
    let at = |n: u64| GUEST_MEM + n * BLOCK;
    // Two mappings in order; then another file, out of order, and anonymous memory.
    map_file(file, at(0), 0, 512);
    map_file(file, at(1), 512, 512);
    map_file(other, at(2), 0, 512);
    map_file(other, at(3), 0, 512);
    k.map_user(at(4), BLOCK);
    map_file(other, at(5), 0, 512);
    for n in [1, 2, 3, 4] {
        assert_eq!(k.region(vm, 0, RAM, 2 * BLOCK, at(n)), EINVAL, "{n}");
    }
    assert_eq!(k.region(vm, 0, RAM, 2 * BLOCK, at(0)), 0);
    assert_eq!(protect(&k, vm), 0);
    let vcpu = k.vcpu(vm, 0);
    let pfn = touch(at(1) + 3 * PAGE);
    assert!(fault(&k, vcpu, RAM + BLOCK + 3 * PAGE));
    assert_eq!(k.with(|k| k.vms[&1].mapped.get(&((RAM + BLOCK) / PAGE + 3)).copied()), pfn);
    k.with(|k| k.answers.push((Function::HostAccess, -24_i64 as u64)));
    assert_eq!(k.region(vm, 1, RAM + 4 * BLOCK, BLOCK, at(2)), EOPNOTSUPP);
}

/// A slot that starts in the middle of a block of the guest, and one of the file.
#[test]
fn blocks_that_do_not_coincide() {
    let k = Session::new();
    let vm = k.vm();
    let file = create(&k, 4 * BLOCK, 0) as i32;
    map_file(file, GUEST_MEM, 0, 2048);
    let base = RAM + 100 * PAGE;
    assert_eq!(k.region(vm, 0, base, 2 * BLOCK, GUEST_MEM + 300 * PAGE), 0);
    assert_eq!(protect(&k, vm), 0);
    let vcpu = k.vcpu(vm, 0);
    for n in [0, 411, 412, 1023] {
        let user = GUEST_MEM + (300 + n) * PAGE;
        let pfn = touch(user);
        assert!(pfn.is_some() || n == 411, "{n}");
        assert!(fault(&k, vcpu, base + n * PAGE), "{n}");
        assert_eq!(touch(user), None, "{n}");
        let mapped = k.with(|k| k.vms[&1].mapped[&(base / PAGE + n)]);
        assert!(pfn.is_none_or(|pfn| pfn == mapped), "{n}");
    }
    assert!(touch(GUEST_MEM + 299 * PAGE).is_some() && touch(GUEST_MEM + 1324 * PAGE).is_some());
}

/// All that a VMM does with such a file, going on after errors; closes what it got.
fn scenario(k: &Session) {
    let vm = k.dev_ioctl(ioctl::CREATE_VM, 0) as i32;
    if vm < 0 {
        return;
    }
    let file = create(k, 2 * BLOCK, 0) as i32;
    if file > 0 {
        map_file(file, GUEST_MEM, 0, 1024);
        let slot = k.region(vm, 0, RAM, 2 * BLOCK, GUEST_MEM) == 0;
        protect(k, vm);
        let vcpu = k.ioctl(vm, ioctl::CREATE_VCPU, 0) as i32;
        touch(GUEST_MEM + 3 * PAGE);
        if vcpu > 0 && slot {
            for page in [0, 700, 5] {
                page_fault(k, RAM + page * PAGE);
                run(k, vcpu);
                touch(GUEST_MEM + page * PAGE);
            }
            let gfn = RAM / PAGE + 5;
            if k.with(|k| k.vms[&1].protected && k.vms[&1].mapped.contains_key(&gfn)) {
                shares(gfn);
                touch(GUEST_MEM + 5 * PAGE);
                k.with(|k| k.exits.push_back(stops_sharing(gfn)));
                run(k, vcpu);
                touch(GUEST_MEM + 5 * PAGE);
                relinquish(k, gfn * PAGE, false);
                run(k, vcpu);
                touch(GUEST_MEM + 5 * PAGE);
            }
        }
        close(file);
        if vcpu > 0 {
            close(vcpu);
        }
    }
    close(vm);
    if file > 0 {
        touch(GUEST_MEM);
        unmap_file(GUEST_MEM);
    }
}

#[test]
fn every_failing_step_gives_everything_back() {
    for fragmented in [false, true] {
        let mut at = 1;
        loop {
            let k = Session::new();
            let before = k.with(|k| {
                k.memories.fragmented = fragmented;
                k.fail_at = Some(k.fallible_calls + at);
                k.fallible_calls
            });
            scenario(&k);
            assert_eq!(k.held(), "", "after failure of call {at}");
            if k.with(|k| k.fallible_calls) < before + at {
                break;
            }
            at += 1;
        }
        assert!(at > 40, "only {at} calls");
    }
}
