// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A host that tries to start a protected VM otherwise than by the hypervisor's firmware (`threats.md` 14).

use gzvm_abi::hypercall::{Function, Status, Tuple, cap};
use gzvm_abi::reg;
use gzvm_abi::run::{SystemEvent, exit, system_event};
use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::hypercall::call;
use gzvm_guest_kit::{cases, check, check_eq, exception};

use crate::pages;
use crate::programs::RAM;
use crate::protected::out_of_reach;
use crate::tree::Tree;
use crate::vm::{self, RAM_PAGES, Vm};

pub const CASES: &[Case] = cases!["firmware":
    runs_whatever_the_host_put_there, starts_where_the_hypervisor_says, place_is_checked, no_vcpu_comes_later,
    tree_is_checked,
];

/// What tells at once that it is run, wherever it is entered.
const JUNK: [u8; 4096] = {
    // movz x1, #9, lsl #16; str xzr, [x1]: the device; b .-4.
    let code = [0xD2A0_0121u32, 0xF900_003F, 0x17FF_FFFF];
    let mut junk = [0; 4096];
    let mut n = 0;
    while n < junk.len() {
        junk[n] = code[n / 4 % 3].to_le_bytes()[n % 4];
        n += 1;
    }
    junk
};

fn size() -> Result<u64, Verdict> {
    let vm = vm::create_bare()?;
    let reply = call(Function::EnableCap, &[vm.into(), cap::PROTECTED_VM, cap::protected::GET_PVMFW_SIZE]);
    vm::destroy(vm)?;
    Ok(vm::must(reply, "GET_PVMFW_SIZE")?.values[0])
}

fn runs_whatever_the_host_put_there() -> Outcome {
    let bytes = size()?;
    check!(bytes != 0 && bytes <= 2 << 20 && bytes.is_multiple_of(4096), "{bytes} bytes of firmware");
    let mut vm = Vm::with_firmware(&JUNK, 1)?;
    // It finds no device tree at 0, and ends the VM.
    check_eq!(vm.run(0)?, exit::SYSTEM_EVENT, "exit");
    check_eq!(SystemEvent::read(&vm.report(0)).type_, system_event::SHUTDOWN, "event");
    check!(vm.faults > 8, "{} pages of firmware were asked for", vm.faults);
    let memory = vm.memory;
    check!(exception::expect(|| pages::read(memory)).is_err(), "the host reaches the firmware");
    vm.destroy()?;
    for at in (0..RAM_PAGES * 4096).step_by(8) {
        check_eq!(pages::read(memory + at), 0, "what the host finds at {at:#x} of the firmware's memory");
    }
    pages::reset();
    Ok(())
}

fn starts_where_the_hypervisor_says() -> Outcome {
    let vm = Vm::with_firmware(&JUNK, 2)?;
    let set = |n: u16, id, value| call(Function::SetOneReg, &[vm.tuple(n), id, value]).status();
    for n in 0..2 {
        for (id, value) in [(reg::PC, RAM + 0x1000), (reg::PC, RAM), (reg::PSTATE, 0x3C4), (reg::PSTATE, 0)] {
            check_eq!(
                set(n, id, value),
                Some(Status::InvalidArgs),
                "vCPU {n}: register {id:#x} = {value:#x}"
            );
        }
        check_eq!(set(n, reg::SP_EL1, RAM), Some(Status::NotSupported), "vCPU {n}: SP_EL1");
        check_eq!(set(n, reg::X0, 0), Some(Status::Success), "vCPU {n}: an argument");
        check_eq!(set(n, reg::PSTATE, 0x3C5), Some(Status::Success), "vCPU {n}: PSTATE");
    }
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn place_is_checked() -> Outcome {
    let set = |vm: &Vm, gpa: u64| {
        vm.call(Function::EnableCap, &[cap::PROTECTED_VM, cap::protected::SET_PVMFW_GPA, gpa]).status()
    };
    // No vCPU, no content: what is refused is the place.
    let vm = Vm::new(&[], 0)?;
    let last = RAM + RAM_PAGES * 4096 - size()?;
    for gpa in [0, 8, RAM + 8, RAM - 4096, last + 4096, 1 << 40, u64::MAX, u64::MAX - 4095, 1 << 63] {
        check_eq!(set(&vm, gpa), Some(Status::InvalidArgs), "firmware at {gpa:#x}");
    }
    check_eq!(set(&vm, last), Some(Status::Success), "firmware at the end of a slot");
    check_eq!(set(&vm, last), Some(Status::InvalidArgs), "a second time");
    vm.destroy()?;
    let vm = Vm::new(&JUNK, 1)?;
    check_eq!(set(&vm, RAM), Some(Status::InvalidArgs), "a VM with a vCPU");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn no_vcpu_comes_later() -> Outcome {
    let vm = Vm::with_firmware(&JUNK, 1)?;
    let area = pages::take(2, 4096);
    let create =
        |vm: &Vm, vcpu| call(Function::CreateVcpu, &[Tuple { vm: vm.id, vcpu }.to_reg(), area]).status();
    check_eq!(vm.run_once(0), exit::EXCEPTION, "first exit: a page is missing");
    check_eq!(create(&vm, 1), Some(Status::InvalidArgs), "a second vCPU, once it runs");
    check_eq!(call(Function::DestroyVcpu, &[vm.tuple(0)]).status(), Some(Status::Success), "DESTROY_VCPU");
    check_eq!(create(&vm, 0), Some(Status::InvalidArgs), "the first one, anew");
    check_eq!(vm.run_once(0), exit::FAIL_ENTRY, "RUN of no vCPU");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

/// A device tree for the firmware: memory, PSCI, a device, boot arguments.
#[derive(Clone, Copy)]
struct Told {
    conduit: &'static str,
    memory: u64,
    chosen: &'static str,
    device: (&'static str, u64),
}

/// Where kernel and device tree are; memory, which the firmware is not in, starts with the latter.
const TREE: u64 = 1 << 20;
const KERNEL: u64 = TREE + 0x1_0000;

impl Told {
    /// Starts a VM with that; whether the firmware has got so far as to look at the kernel.
    fn passes(self) -> Result<bool, Verdict> {
        let mut vm = Vm::with_firmware(&[], 1)?;
        let mut tree = Tree::new();
        tree.cells("#address-cells", &[2]).cells("#size-cells", &[2]);
        tree.begin("chosen").text(self.chosen, "quiet").end();
        tree.begin("psci").text("compatible", "arm,psci-0.2").text("method", self.conduit).end();
        tree.begin("memory").text("device_type", "memory").range(RAM + TREE, self.memory).end();
        tree.begin("device").text("compatible", self.device.0).range(self.device.1, 0x200).end();
        for (at, byte) in (vm.memory + TREE..).zip(tree.finish()) {
            pages::put(at, byte);
        }
        vm::clean(vm.memory, RAM_PAGES * 4096);
        for (register, value) in [(reg::X0, RAM + TREE), (reg::X0 + 2, RAM + KERNEL), (reg::X0 + 4, 4096)] {
            vm.set_reg(0, register, value)?;
        }
        check_eq!(vm.run(0)?, exit::SYSTEM_EVENT, "exit");
        let passes = out_of_reach(vm.memory + KERNEL)?;
        check!(out_of_reach(vm.memory + TREE)?, "the firmware has not looked at the device tree");
        vm.destroy()?;
        pages::reset();
        Ok(passes)
    }
}

/// What is wrong with a device tree ends the VM before anything else is looked at.
fn tree_is_checked() -> Outcome {
    let good =
        Told { conduit: "hvc", memory: 1 << 20, chosen: "bootargs", device: ("virtio,mmio", 0xA00_0000) };
    check!(good.passes()?, "a good device tree is refused");
    for (what, told) in [
        ("an unknown device", Told { device: ("unknown,device", 0xA00_0000), ..good }),
        ("a device in memory", Told { device: ("virtio,mmio", RAM + TREE), ..good }),
        ("an unknown property of /chosen", Told { chosen: "unknown", ..good }),
        ("a kernel outside of memory", Told { memory: 0x1_0000, ..good }),
        ("PSCI by SMC", Told { conduit: "smc", ..good }),
    ] {
        check!(!told.passes()?, "{what} is not refused");
    }
    Ok(())
}
