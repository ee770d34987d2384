// SPDX-License-Identifier: Apache-2.0 OR MIT
//! HOST_ACCESS: what a driver asks before it shows user space a page of a protected VM, and how it is told that one goes.

use gzvm_abi::hypercall::{Function, Status, host_access};
use gzvm_abi::run::{Unshare, exit};
use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::exception;
use gzvm_guest_kit::hypercall::{Reply, call};
use gzvm_guest_kit::{cases, check, check_eq, fail};

use crate::pages;
use crate::programs::{self, RAM};
use crate::vm::Vm;

pub const CASES: &[Case] = cases!["host_access":
    the_state_of_pages, a_page_goes_when_the_driver_is_ready, a_driver_that_did_not_ask_is_not_told, arguments,
];

fn ask(what: u64, x2: u64, x3: u64) -> Reply {
    call(Function::HostAccess, &[what, x2, x3])
}

/// Masks of visible and own pages.
fn query(address: u64, pages: u64) -> Result<(u64, u64), Verdict> {
    let reply = ask(host_access::QUERY, address / 4096, pages);
    check_eq!(reply.status(), Some(Status::Success), "QUERY");
    Ok((reply.values[0], reply.values[1]))
}

fn reachable(address: u64) -> bool {
    exception::expect(|| pages::read(address)).is_ok()
}

/// Runs to the guest's next store, which has to be at this offset of its device; its value.
fn told(vm: &mut Vm, offset: u64) -> Result<u64, Verdict> {
    let (at, value) = vm.run_to_store(0)?;
    check_eq!(at, offset, "told at");
    Ok(value)
}

/// A VM whose guest has shared its second page.
fn sharing() -> Result<(Vm, u64), Verdict> {
    let mut vm = Vm::protected(programs::private(), 1)?;
    told(&mut vm, 0x10)?;
    check_eq!(told(&mut vm, 0x18)?, 0, "MEM_SHARE");
    let page = vm.memory + 0x1000;
    Ok((vm, page))
}

fn to_the_unshare(vm: &mut Vm) -> Outcome {
    told(vm, 0x20)?;
    told(vm, 0x28)?;
    check_eq!(vm.run(0)?, exit::UNSHARE, "exit of MEM_UNSHARE");
    check_eq!(Unshare::read(&vm.report(0)).gpa, RAM + 0x1000, "of which page");
    Ok(())
}

fn the_state_of_pages() -> Outcome {
    let mut vm = Vm::protected(programs::private(), 1)?;
    let memory = vm.memory;
    check_eq!(query(memory, 4)?, (0b1111, 0b1111), "before anything is given");
    told(&mut vm, 0x10)?;
    check_eq!(query(memory, 4)?, (0b1100, 0b1100), "two are the guest's");
    told(&mut vm, 0x18)?;
    check_eq!(query(memory, 4)?, (0b1110, 0b1100), "one of them is shared");
    check_eq!(query(vm.shared[0], 2)?, (0b11, 0), "what the host shares itself");
    vm.destroy()?;
    check_eq!(query(memory, 4)?, (0b1111, 0b1111), "afterwards");
    pages::reset();
    Ok(())
}

fn a_page_goes_when_the_driver_is_ready() -> Outcome {
    for completed in [true, false] {
        let (mut vm, page) = sharing()?;
        check!(ask(host_access::ANNOUNCE, vm.id.into(), 0).ok(), "ANNOUNCE");
        check_eq!(ask(host_access::UNSHARE, vm.tuple(0), 0).status(), Some(Status::InvalidArgs), "too early");
        to_the_unshare(&mut vm)?;
        check!(reachable(page) && query(page, 1)? == (1, 0), "the page went before the driver knew");
        if completed {
            check!(ask(host_access::UNSHARE, vm.tuple(0), 0).ok(), "UNSHARE");
            check!(!reachable(page) && query(page, 1)? == (0, 0), "the page is still there");
            check_eq!(ask(host_access::UNSHARE, vm.tuple(0), 0).status(), Some(Status::InvalidArgs), "twice");
        }
        check_eq!(told(&mut vm, 0x30)?, 0, "MEM_UNSHARE");
        check!(!reachable(page), "the page stays, completed by the driver: {completed}");
        vm.destroy()?;
        pages::reset();
    }
    Ok(())
}

fn a_driver_that_did_not_ask_is_not_told() -> Outcome {
    let (mut vm, page) = sharing()?;
    told(&mut vm, 0x20)?;
    told(&mut vm, 0x28)?;
    check_eq!(told(&mut vm, 0x30)?, 0, "MEM_UNSHARE");
    check!(!reachable(page), "the page");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn arguments() -> Outcome {
    let page = pages::take(1, 4096) / 4096;
    for (what, x2, x3) in [
        (host_access::QUERY, page, 0),
        (host_access::QUERY, page, host_access::MOST + 1),
        (host_access::QUERY, page, u64::MAX),
        (host_access::QUERY, 0, 1),
        (host_access::QUERY, u64::MAX, 1),
        (host_access::QUERY, u64::MAX / 4096, 2),
        (host_access::ANNOUNCE, 0, 0),
        (host_access::ANNOUNCE, u64::MAX, 0),
        (host_access::UNSHARE, 0, 0),
        (host_access::UNSHARE, u64::MAX, 0),
        (3, page, 1),
        (u64::MAX, page, 1),
    ] {
        let status = ask(what, x2, x3).status();
        if status != Some(Status::InvalidArgs) {
            fail!("{what:#x}, {x2:#x}, {x3:#x}: {status:?}");
        }
    }
    pages::reset();
    Ok(())
}
