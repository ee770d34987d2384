// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The structures that host and hypervisor share (ABI 1.4, 1.5, 3.3, 3.5), byte by byte: where each field
//! is, what the hypervisor writes, and what it leaves alone.

use gzvm_abi::hypercall::{Function, Status};
use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::hypercall::call;
use gzvm_guest_kit::{cases, check, check_eq, timer};

use super::{Bare, answers, leaves_nothing, programs};
use crate::guest_runs::{power_off, store};
use crate::host::hypervisor_memory;
use crate::pages;
use crate::programs::RAM;
use crate::vm::{self, Vm};

pub const CASES: &[Case] = cases!["struct":
    run_layout, hwstate, region_buffer, mailbox, create_device, tuple,
];

const PATTERN: u8 = 0xA5;

fn paint(start: u64, bytes: core::ops::Range<u64>) {
    for at in bytes {
        pages::put(start + at, PATTERN);
    }
}

fn painted(start: u64, bytes: core::ops::Range<u64>, what: &str) -> Outcome {
    for at in bytes {
        check_eq!(pages::get::<u8>(start + at), PATTERN, "{what}: byte {at}");
    }
    Ok(())
}

/// 264 bytes: exit_reason @0, immediate_exit @4, padding @5, union @8. Bytes 4 to 7 are the driver's, and what an exit
/// has no use for stays.
fn run_layout() -> Outcome {
    leaves_nothing(|| {
        let vm = Vm::new(programs::accesses(), 1)?;
        check!(vm.map(RAM).ok(), "MAP_GUEST");
        let page = vm.shared[0];
        for exit in 0..5 {
            paint(page, 0..4096);
            check_eq!(vm.run_once(0), 0x9292_0001, "exit {exit}");
            check_eq!(pages::get::<u32>(page), 0x9292_0001, "exit_reason @0");
            painted(page, 4..8, "immediate_exit and padding")?;
            check_eq!(pages::get::<u64>(page + 8) >> 8, 0x900, "union @8");
            // Of the union, the exit's own structure is written: 32 bytes.
            painted(page, 40..264, "the union behind the access")?;
            painted(page, 264..4096, "behind the structure")?;
        }
        vm.destroy().map(drop)
    })
}

/// Second page: nr_lrs @0, lr[16] @8 (both left zero), vtimer_offset @136, vtimer_delay @144, vtimer_migrate @152.
fn hwstate() -> Outcome {
    leaves_nothing(|| {
        let id = vm::create_bare()?;
        vm::destroy(id)?;
        let before = timer::now();
        let vm = Vm::new(programs::waits(), 1)?;
        let after = timer::now();
        let state = vm.shared[0] + 4096;
        let offset: u64 = pages::get(state + 136);
        check!((before..=after).contains(&offset), "vtimer_offset {offset}, made from {before} to {after}");
        check!(vm.map(RAM).ok(), "MAP_GUEST");
        paint(state, 0..4096);
        check_eq!(vm.run_once(0), 0x9292_000B, "exit");
        for at in (0..136).step_by(8) {
            check_eq!(pages::get::<u64>(state + at), 0, "nr_lrs and lr: bytes at {at}");
        }
        check_eq!(pages::get::<u64>(state + 136), offset, "vtimer_offset @136");
        let delay: u64 = pages::get(state + 144);
        check!(delay > 0 && delay <= 30 * timer::frequency(), "vtimer_delay @144: {delay:#x}");
        check!(pages::get::<u32>(state + 152) != 0, "vtimer_migrate @152");
        painted(state, 160..4096, "behind the structure")?;
        vm.destroy().map(drop)
    })
}

/// slot @0, constituent_cnt @4, total_pages @8, gpa @16, entries of 16 bytes @24: address @0, pg_cnt @8.
fn region_buffer() -> Outcome {
    leaves_nothing(|| {
        let buffer = pages::take(2, 4096);
        let memory = pages::take(512, 4096);
        let vm = Bare::new()?;
        let set = || vm.call(Function::SetMemregion, &[8192, buffer]);
        paint(buffer, 0..8192);
        let header = |slot: u32, count: u32, total: u64, gpa: u64| {
            pages::put(buffer, slot);
            pages::put(buffer + 4, count);
            pages::put(buffer + 8, total);
            pages::put(buffer + 16, gpa);
        };
        // Not initialised by the public driver: the count, and all that follows.
        for (slot, count) in [(3, 0), (4, 1), (5, 510), (6, 511), (7, u32::MAX)] {
            header(slot, count, 512, RAM + u64::from(slot) * 0x20_0000);
            answers(set(), Status::Success, format_args!("registration with a count of {count:#x}"))?;
        }
        painted(buffer, 24..8192, "the buffer is only read")?;
        // The last entry's last byte is at 24 + 16 * 510 = 8184.
        header(3, 510, 510, RAM + 3 * 0x20_0000);
        for n in 0..510u64 {
            pages::put(buffer + 24 + 16 * n, memory + n * 4096);
            pages::put(buffer + 24 + 16 * n + 8, 1u32);
            pages::put(buffer + 24 + 16 * n + 12, 0xFFFF_FFFFu32);
        }
        answers(set(), Status::Success, format_args!("510 entries"))?;
        // So that is where each page went: the same again is fine, another is not.
        for n in [0u64, 1, 255, 509] {
            let gfn = (RAM >> 12) + 3 * 512 + n;
            let map = |pfn| vm.call(Function::MapGuest, &[3, pfn, gfn, 1]);
            answers(map((memory >> 12) + n), Status::Success, format_args!("page {n} again"))?;
            answers(map((memory >> 12) + n + 1), Status::InvalidArgs, format_args!("another page {n}"))?;
        }
        // No alignment is asked for; all of it must be the host's.
        header(8, 0, 1, RAM + 8 * 0x20_0000);
        let at_the_edge = hypervisor_memory()?.start - 4096;
        let reply = vm.call(Function::SetMemregion, &[8192, at_the_edge]);
        answers(reply, Status::Fault, format_args!("a buffer that reaches into the hypervisor"))
    })
}

/// 512 x u64; only as many are read as the call says.
fn mailbox() -> Outcome {
    leaves_nothing(|| {
        let vm = Vm::new(programs::waits(), 1)?;
        paint(vm.mailbox, 0..4096);
        let (pfn, gfn) = (vm.memory >> 12, RAM >> 12);
        for n in 0..3 {
            pages::put(vm.mailbox + 8 * n, pfn + 7 * n);
        }
        let block = vm.call(Function::MapGuestBlock, &[0, gfn + 100, 3]);
        answers(block, Status::Success, format_args!("three pages"))?;
        painted(vm.mailbox, 24..4096, "the mailbox is only read")?;
        for n in 0..3 {
            let reply = vm.call(Function::MapGuest, &[0, pfn + 7 * n, gfn + 100 + n, 1]);
            answers(reply, Status::Success, format_args!("entry {n} again"))?;
        }
        pages::put(vm.mailbox + 8 * 511, pfn + 511);
        for n in 0..511 {
            pages::put(vm.mailbox + 8 * n, pfn + n);
        }
        let clash = vm.call(Function::MapGuestBlock, &[0, gfn, 512]);
        answers(clash, Status::InvalidArgs, format_args!("a block over other pages"))?;
        vm.destroy().map(drop)
    })
}

/// 48 bytes: dev_type @0, id @4, flags @8, dev_addr @16, dev_reg_size @24, attr_addr @32, attr_size @40.
fn create_device() -> Outcome {
    leaves_nothing(|| {
        let page = pages::take(1, 4096);
        let mut vm = Bare::new()?;
        paint(page, 0..4096);
        for (dev_type, address) in [(0u32, 0x3FFF_0000u64), (1, 0x3FFD_0000)] {
            pages::put(page, dev_type);
            pages::put(page + 16, address);
            let reply = vm.call(Function::CreateDevice, &[page]);
            answers(reply, Status::Success, format_args!("device {dev_type} among patterns"))?;
        }
        painted(page, 24..4096, "the page is only read")?;
        // The structure may end with the page, but not go beyond what is the host's.
        drop(core::mem::replace(&mut vm, Bare::new()?));
        pages::put(page + 4048, 0u32);
        pages::put(page + 4048 + 16, 0x3FFF_0000u64);
        let reply = vm.call(Function::CreateDevice, &[page + 4048]);
        answers(reply, Status::Success, format_args!("at the end of a page"))?;
        let reply = vm.call(Function::CreateDevice, &[hypervisor_memory()?.start - 47]);
        answers(reply, Status::Fault, format_args!("into the hypervisor by a byte"))
    })
}

/// `vm << 16 | vcpu`: vCPUs of one VM are not those of another.
fn tuple() -> Outcome {
    leaves_nothing(|| {
        let mut vms = [Vm::new(crate::programs::reads_one(), 1)?, Vm::new(crate::programs::reads_one(), 1)?];
        for (n, vm) in vms.iter().enumerate() {
            pages::write(vm.memory + 0x1000, 0x100 + n as u64);
            let reply = call(Function::SetOneReg, &[u64::from(vm.id) << 16, 0x6030_0000_0010_0000, n as u64]);
            answers(reply, Status::Success, format_args!("vCPU 0 of VM {}", vm.id))?;
        }
        crate::vm::clean(vms[0].memory + 0x1000, 8);
        crate::vm::clean(vms[1].memory + 0x1000, 8);
        for (n, vm) in vms.iter_mut().enumerate() {
            let swapped = call(Function::Run, &[u64::from(vm.id)]).values[0];
            check_eq!(swapped, 0x9292_0006, "exit of RUN with the parts swapped");
            store(vm, 0x10, 0x100 + n as u64, "each its own memory")?;
            power_off(vm)?;
        }
        let [a, b] = vms;
        a.destroy()?;
        b.destroy().map(drop)
    })
}
