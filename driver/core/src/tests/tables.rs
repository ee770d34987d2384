// SPDX-License-Identifier: GPL-2.0-only
//! A hypervisor that has no memory left for a VM's tables.

use gzvm_abi::hypercall::Function;
use gzvm_abi::ioctl::{self, extension};
use gzvm_abi::run::exit;

use super::lifecycle::page_fault;
use super::*;
use crate::sys::{MOST_BLOCKS, close};

const BLOCK: u64 = 2 << 20;
const BLOCKS: u64 = 64;

/// A VM with much memory, and a vCPU; none of its tables are paid for.
fn machine(k: &Session) -> (i32, i32) {
    k.with(|k| k.tables = 0);
    let vm = k.vm();
    k.map_user(GUEST_MEM, BLOCKS * BLOCK);
    assert_eq!(k.region(vm, 0, RAM, BLOCKS * BLOCK, GUEST_MEM), 0);
    (vm, k.vcpu(vm, 0))
}

/// A fault in block `n`, then a shutdown. Was the fault handled?
fn fault(k: &Session, vcpu: i32, n: u64) -> bool {
    page_fault(k, RAM + n * BLOCK);
    k.exit(|_| exit::SHUTDOWN);
    let ran = k.run(vcpu) == 0;
    k.with(|k| k.exits.clear());
    ran && k.get::<u32>(RUN) == exit::SHUTDOWN
}

fn frames(k: &Session) -> usize {
    k.with(|k| k.memories.frames.len())
}

#[test]
fn it_is_given_some_and_asked_again() {
    let k = Session::new();
    let (vm, vcpu) = machine(&k);
    for n in 0..7 {
        assert!(fault(&k, vcpu, n), "block {n}");
        assert_eq!(k.count(Function::GiveMemory) as u64, 1 + n / 3, "a block lasts for three");
    }
    assert_eq!(frames(&k), 3 * 512);
    assert_eq!(k.with(|k| k.vms[&1].mapped.len()), 7 * 512);
    close(vcpu);
    close(vm);
    assert_eq!(frames(&k), 0, "it has them back");
}

#[test]
fn it_takes_no_more_than_so_many() {
    let k = Session::new();
    let (_vm, vcpu) = machine(&k);
    let most = MOST_BLOCKS as u64;
    for n in 0..3 * most {
        assert!(fault(&k, vcpu, n), "block {n}");
    }
    let calls = k.count(Function::MapGuestBlock);
    assert!(!fault(&k, vcpu, 3 * most), "more than it takes");
    assert!(k.count(Function::MapGuestBlock) - calls <= 2, "asked for ever");
    assert_eq!(frames(&k) as u64, most * 512, "what it did not take");
}

#[test]
fn there_is_none_here_either() {
    let k = Session::new();
    let (_vm, vcpu) = machine(&k);
    k.with(|k| k.memories.fragmented = true);
    assert!(!fault(&k, vcpu, 0));
    assert_eq!((k.count(Function::GiveMemory), frames(&k)), (0, 0));
    k.with(|k| k.memories.fragmented = false);
    assert!(fault(&k, vcpu, 0));
}

#[test]
fn every_failure_leaves_it_whole() {
    for at in 1..20 {
        let k = Session::new();
        let (_vm, vcpu) = machine(&k);
        k.with(|k| k.fail_at = Some(k.fallible_calls + at));
        let handled = fault(&k, vcpu, 0);
        let failed = k.with(|k| k.fallible_calls >= k.fail_at.take().unwrap());
        assert!(handled || failed, "call {at}");
        assert_eq!(frames(&k), k.with(|k| k.vms[&1].given.len()) * 512, "call {at}");
        assert!(fault(&k, vcpu, 0), "call {at}: afterwards");
        if !failed {
            return;
        }
    }
    panic!("it never ends");
}

#[test]
fn populated_and_by_single_pages() {
    for (no_demand_paging, no_blocks) in [(true, false), (false, true)] {
        let k = Session::new();
        k.with(|k| (k.no_demand_paging, k.no_blocks, k.tables) = (no_demand_paging, no_blocks, 0));
        let vm = k.vm();
        k.map_user(GUEST_MEM, 4 * BLOCK);
        assert_eq!(k.region(vm, 0, RAM, 4 * BLOCK, GUEST_MEM), 0);
        let vcpu = k.vcpu(vm, 0);
        if no_blocks {
            assert!((0..4).all(|n| fault(&k, vcpu, n)));
        }
        let given = k.with(|k| k.vms[&1].given.len());
        assert!(given >= 2, "{given} blocks");
    }
}

#[test]
fn a_vm_that_does_not_go_keeps_them() {
    let mut k = Session::new();
    let (vm, vcpu) = machine(&k);
    assert!(fault(&k, vcpu, 0));
    k.with(|k| k.answers.push((Function::DestroyVm, -8_i64 as u64)));
    close(vcpu);
    close(vm);
    assert_eq!(frames(&k), 512);
    k.leaks = true;
}

#[test]
fn a_hypervisor_without_it() {
    let k = Session::new();
    k.put(ARG, &extension::TABLE_MEMORY);
    assert_eq!((k.dev_ioctl(ioctl::CHECK_EXTENSION, ARG), k.get::<u64>(ARG)), (0, MOST_BLOCKS as u64));
    k.with(|k| k.extensions = 1);
    assert_eq!(crate::entry::gzr_init(), 0);
    k.put(ARG, &extension::TABLE_MEMORY);
    assert_eq!(k.dev_ioctl(ioctl::CHECK_EXTENSION, ARG), EOPNOTSUPP);
    let (_vm, vcpu) = machine(&k);
    assert!(!fault(&k, vcpu, 0));
    assert_eq!(k.count(Function::GiveMemory), 1, "asked for its number only");
}
