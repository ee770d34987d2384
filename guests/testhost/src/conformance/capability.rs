// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The capability table (ABI 1.3), and what a generation F driver wants of it when it is loaded.

use gzvm_abi::counter::Counter;
use gzvm_abi::hypercall::{Function, Status};
use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::hypercall::{self, call};
use gzvm_guest_kit::{cases, check, check_eq};

use super::{Bare, answers, leaves_nothing};
use crate::host::hypervisor_memory;
use crate::pages;

pub const CASES: &[Case] = cases!["capability":
    vm_gpa_size_0xa5, protected_vm_0xffbadab1, block_based_demand_paging_0x9201, enable_demand_paging_0x9202,
    enable_idle_0x9203, query_hyp_batch_pages_0x9204, query_destroy_batch_pages_0x9205, unknown,
];

fn enable(x1: u64, capability: u64, args: &[u64]) -> hypercall::Reply {
    let mut all = [x1, capability, 0, 0, 0, 0, 0];
    all[2..2 + args.len()].copy_from_slice(args);
    call(Function::EnableCap, &all)
}

/// Asked of the driver only; the hypervisor knows no such thing.
fn vm_gpa_size_0xa5() -> Outcome {
    leaves_nothing(|| {
        let vm = Bare::new()?;
        answers(enable(vm.id, 0xA5, &[]), Status::NotSupported, format_args!("of a VM"))?;
        check!(!enable(0, 0xA5, &[]).ok(), "without a VM it is there");
        Ok(())
    })
}

/// Without firmware only (2), and once; the firmware's own sub-commands are not supported yet: the driver makes EINVAL of it
/// for the size.
fn protected_vm_0xffbadab1() -> Outcome {
    leaves_nothing(|| {
        let vm = Bare::new()?;
        // A machine has a firmware or not; this VM has no slot to put it into.
        let size = enable(vm.id, 0xFFBA_DAB1, &[1]);
        let place = if size.ok() {
            check!((1..=4 << 20).contains(&size.values[0]), "{} bytes of firmware", size.values[0]);
            Status::InvalidArgs
        } else {
            answers(size, Status::NotSupported, format_args!("GET_PVMFW_SIZE"))?;
            Status::NotSupported
        };
        answers(enable(vm.id, 0xFFBA_DAB1, &[0, 0x7FC0_0000]), place, format_args!("SET_PVMFW_GPA"))?;
        for sub in [3u64, 1 << 32, u64::MAX] {
            let reply = enable(vm.id, 0xFFBA_DAB1, &[sub, 0x7FC0_0000]);
            answers(reply, Status::NotSupported, format_args!("sub-command {sub:#x}"))?;
        }
        for status in [Status::Success, Status::InvalidArgs] {
            answers(enable(vm.id, 0xFFBA_DAB1, &[2]), status, format_args!("SET_PROTECTED_VM"))?;
        }
        answers(enable(0xFFFE, 0xFFBA_DAB1, &[1]), Status::InvalidArgs, format_args!("no such VM"))
    })
}

fn block_based_demand_paging_0x9201() -> Outcome {
    const CAP: u64 = 0x9201;
    leaves_nothing(|| {
        let mailbox = pages::take(2, 4096);
        let vm = Bare::new()?;
        for size in [0, 1, 4096, 0x10_0000, 0x1F_FFFF, 0x40_0000, 1 << 30, 1 << 32 | 0x20_0000, u64::MAX] {
            let reply = enable(vm.id, CAP, &[size, mailbox]);
            answers(reply, Status::InvalidArgs, format_args!("blocks of {size:#x}"))?;
        }
        for address in [mailbox + 8, mailbox + 0x800, !0xFFF, u64::MAX] {
            let reply = enable(vm.id, CAP, &[0x20_0000, address]);
            answers(reply, Status::InvalidArgs, format_args!("mailbox at {address:#x}"))?;
        }
        for address in [hypervisor_memory()?.start, 1 << 47] {
            let reply = enable(vm.id, CAP, &[0x20_0000, address]);
            answers(reply, Status::Fault, format_args!("mailbox at {address:#x}"))?;
        }
        let shared = hypercall::counter(Counter::PagesShared).unwrap_or(0);
        answers(enable(vm.id, CAP, &[0x20_0000, mailbox]), Status::Success, format_args!("a good one"))?;
        let now = hypercall::counter(Counter::PagesShared).unwrap_or(0);
        check_eq!(now - shared, 1, "pages shared for the mailbox");
        let again = enable(vm.id, CAP, &[0x20_0000, mailbox + 4096]);
        answers(again, Status::InvalidArgs, format_args!("a second one"))?;
        for id in [0, 0xFFFE, 0xFFFF] {
            let reply = enable(id, CAP, &[0x20_0000, mailbox]);
            answers(reply, Status::InvalidArgs, format_args!("VM {id:#x}"))?;
        }
        Ok(())
    })
}

fn plain(capability: u64) -> Outcome {
    leaves_nothing(|| {
        let vm = Bare::new()?;
        for _ in 0..2 {
            answers(enable(vm.id, capability, &[]), Status::Success, format_args!("of a VM"))?;
        }
        for id in [0, 0xFFFE, 0xFFFF, vm.id | 1 << 16, vm.id | 1 << 32] {
            answers(enable(id, capability, &[]), Status::InvalidArgs, format_args!("VM {id:#x}"))?;
        }
        Ok(())
    })
}

/// Success: pages are mapped by fault. The driver fills all slots at once if it is refused.
fn enable_demand_paging_0x9202() -> Outcome {
    plain(0x9202)
}

fn enable_idle_0x9203() -> Outcome {
    plain(0x9203)
}

/// A divisor of 512, not zero; anything else, and some errors, and the public driver does not load.
fn query_hyp_batch_pages_0x9204() -> Outcome {
    let reply = enable(0, 0x9204, &[]);
    answers(reply, Status::Success, format_args!("without a VM"))?;
    let pages = reply.values[0];
    check!(pages != 0 && 512 % pages == 0, "{pages} pages do not divide 512");
    check_eq!(reply.values[1..].iter().sum::<u64>(), 0, "x2 and x3");
    Ok(())
}

/// A power of two; an error, and the public driver does not load.
fn query_destroy_batch_pages_0x9205() -> Outcome {
    let reply = enable(0, 0x9205, &[]);
    answers(reply, Status::Success, format_args!("without a VM"))?;
    check!(reply.values[0].is_power_of_two(), "{} is no power of two", reply.values[0]);
    check_eq!(reply.values[1..].iter().sum::<u64>(), 0, "x2 and x3");
    Ok(())
}

fn unknown() -> Outcome {
    leaves_nothing(|| {
        let vm = Bare::new()?;
        for capability in [0, 1, 0xA4, 0x9200, 0x9206, 0xFFBA_DAB0, 0xFFBA_DAB2, 0x9203 | 1 << 32, u64::MAX] {
            let reply = enable(vm.id, capability, &[]);
            answers(reply, Status::NotSupported, format_args!("capability {capability:#x}"))?;
            check!(!enable(0, capability, &[]).ok(), "capability {capability:#x} is there without a VM");
        }
        Ok(())
    })
}
