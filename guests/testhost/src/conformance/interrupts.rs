// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Rows 10, 11 and 0x50 of the hypercall table: the virtual GIC's frames and lines.

use core::sync::atomic::Ordering::SeqCst;

use gzvm_abi::hypercall::{Function, Status};
use gzvm_abi::ioctl::CreateDevice;
use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::hypercall::{Reply, call};
use gzvm_guest_kit::{cases, check, check_eq, timer};

use super::{Bare, answers, leaves_nothing, programs, second_ends, start_second, stop_second};
use crate::guest_runs::{LAST_EXIT, power_off, store};
use crate::host::hypervisor_memory;
use crate::pages;
use crate::programs::RAM;
use crate::vm::Vm;

pub const CASES: &[Case] = cases!["hypercall":
    create_device, irq_line, irq_line_refusals, irq_line_to_a_running_vcpu, irq_line_to_a_sleeping_vcpu,
    vgic_spis,
];

const SPI5: u64 = 5;
const SPURIOUS: u64 = 1023;
const PPI: u64 = 2 << 24;

fn describe(page: u64, dev_type: u32, dev_addr: u64) {
    let device = CreateDevice {
        dev_type,
        id: 0xFFFF_FFFF,
        flags: u64::MAX,
        dev_addr,
        dev_reg_size: 0x2_0000,
        attr_addr: 0,
        attr_size: 0,
    };
    pages::put(page, device);
}

/// Row 11: distributor and redistributors, each once; id and flags mean nothing.
fn create_device() -> Outcome {
    leaves_nothing(|| {
        let page = pages::take(1, 4096);
        let vm = Bare::new()?;
        let create = |dev_type, dev_addr| {
            describe(page, dev_type, dev_addr);
            vm.call(Function::CreateDevice, &[page])
        };
        for dev_type in [2, 3, 0x8000_0000, u32::MAX] {
            let reply = create(dev_type, 0x3FFF_0000);
            answers(reply, Status::NotSupported, format_args!("device {dev_type:#x}"))?;
        }
        for dev_type in [0, 1] {
            for address in [0x3FFF_0001, 0x3FFF_1000, 0x3FFF_8000, 1 << 40, 1 << 52, u64::MAX, !0xFFFF] {
                let reply = create(dev_type, address);
                answers(reply, Status::InvalidArgs, format_args!("device {dev_type} at {address:#x}"))?;
            }
        }
        for address in [hypervisor_memory()?.start, 1 << 47, u64::MAX, !0xFFF] {
            let reply = vm.call(Function::CreateDevice, &[address]);
            answers(reply, Status::Fault, format_args!("described at {address:#x}"))?;
        }
        describe(page, 0, 0x3FFF_0000);
        let nobody = call(Function::CreateDevice, &[0xFFFE, page]);
        answers(nobody, Status::InvalidArgs, format_args!("no such VM"))?;
        // As crosvm: the distributor, then the redistributors with the size of one.
        for (dev_type, address) in [(0, 0x3FFF_0000), (1, 0x3FFB_0000)] {
            answers(create(dev_type, address), Status::Success, format_args!("device {dev_type}"))?;
            answers(create(dev_type, address), Status::InvalidArgs, format_args!("device {dev_type} again"))?;
        }
        Ok(())
    })
}

fn line(vm: &Vm, irq: u64, level: u64) -> Reply {
    call(Function::IrqLine, &[vm.tuple(0), irq, level])
}

fn at(vm: &mut Vm, offset: u64) -> Outcome {
    store(vm, offset, 0, "synchronisation")
}

/// Row 10: SPIs by index. Level 1 is pending once, also while active, and not again after the EOI though
/// the driver never lowers it; level 0 withdraws it. PPIs by INTID, with type 2.
fn irq_line() -> Outcome {
    leaves_nothing(|| {
        let mut vm = Vm::new(programs::polls_lines(), 1)?;
        at(&mut vm, 0x10)?;
        check!(line(&vm, SPI5, 1).ok() && line(&vm, SPI5, 0).ok(), "SPI 5 up and down");
        store(&mut vm, 0x18, SPURIOUS, "pending after the line fell")?;
        at(&mut vm, 0x20)?;
        answers(line(&vm, SPI5, 1), Status::Success, format_args!("SPI 5"))?;
        store(&mut vm, 0x28, 37, "INTID")?;
        answers(line(&vm, SPI5, 1), Status::Success, format_args!("SPI 5 while it is active"))?;
        store(&mut vm, 0x30, 37, "INTID of the second")?;
        store(&mut vm, 0x38, SPURIOUS, "pending after the second EOI")?;
        answers(line(&vm, PPI | 23, 1), Status::Success, format_args!("PPI 23"))?;
        store(&mut vm, 0x40, 23, "INTID of the PPI")?;
        power_off(&mut vm)?;
        vm.destroy().map(drop)
    })
}

fn irq_line_refusals() -> Outcome {
    leaves_nothing(|| {
        let vm = Vm::new(programs::polls_lines(), 1)?;
        for level in [2, 1 << 32, 1 << 32 | 1, u64::MAX] {
            answers(line(&vm, SPI5, level), Status::InvalidArgs, format_args!("level {level:#x}"))?;
        }
        // 988 SPIs is all a GIC can have.
        for irq in [988, 1020, 0xFFFF, 1 << 32, 1 << 32 | 5, u64::MAX] {
            answers(line(&vm, irq, 1), Status::InvalidArgs, format_args!("irq {irq:#x}"))?;
        }
        for intid in [0, 1, 15, 32, 33, 1023, 0xFFFF] {
            answers(line(&vm, PPI | intid, 1), Status::InvalidArgs, format_args!("PPI {intid}"))?;
        }
        for intid in [16, 27, 31] {
            answers(line(&vm, PPI | intid, 0), Status::Success, format_args!("PPI {intid}"))?;
        }
        let ppi = |tuple| call(Function::IrqLine, &[tuple, PPI | 23, 1]);
        for vcpu in [1, 2, 0xFFFF] {
            let reply = ppi(vm.tuple(0) | vcpu);
            answers(reply, Status::InvalidArgs, format_args!("PPI of vCPU {vcpu}"))?;
        }
        for tuple in [0, 0xFFFE_0000, 1 << 32 | vm.tuple(0), u64::MAX] {
            let reply = call(Function::IrqLine, &[tuple, SPI5, 1]);
            answers(reply, Status::InvalidArgs, format_args!("tuple {tuple:#x}"))?;
        }
        // The vCPU part means nothing for an SPI: drivers leave 0 there.
        let reply = call(Function::IrqLine, &[vm.tuple(0) | 7, SPI5, 1]);
        answers(reply, Status::Success, format_args!("SPI with a vCPU"))?;
        // 32 SPIs are what crosvm's device tree has.
        for irq in 0..32 {
            answers(line(&vm, irq, 0), Status::Success, format_args!("SPI {irq}"))?;
        }
        vm.destroy().map(drop)
    })
}

/// The call comes from another CPU, from atomic context: the hypervisor makes the vCPU look by itself.
fn irq_line_to_a_running_vcpu() -> Outcome {
    leaves_nothing(|| {
        let vm = Vm::new(programs::polls_spi(), 1)?;
        check!(vm.map(RAM).ok(), "MAP_GUEST");
        start_second(vm.tuple(0))?;
        let outcome = (|| -> Result<bool, Verdict> {
            // It polls without an exit by now, and nothing ends that but the interrupt.
            let early = second_ends(50);
            check!(!early, "the guest's run ended without an interrupt ({:#x})", LAST_EXIT.load(SeqCst));
            answers(line(&vm, SPI5, 1), Status::Success, format_args!("IRQ_LINE"))?;
            Ok(second_ends(5000))
        })();
        stop_second()?;
        check!(outcome?, "the running vCPU does not see the interrupt");
        check_eq!(LAST_EXIT.load(SeqCst), 0x9292_0001, "its exit");
        check_eq!(pages::read(vm.shared[0] + 16), 37, "INTID it stored");
        vm.destroy().map(drop)
    })
}

/// The driver wakes the thread; RUN then finds the interrupt.
fn irq_line_to_a_sleeping_vcpu() -> Outcome {
    leaves_nothing(|| {
        let mut vm = Vm::new(crate::programs::waits_for_spi(), 1)?;
        for round in 0..3 {
            check_eq!(vm.run(0)?, 0x9292_000B, "exit {round} without an interrupt");
        }
        answers(line(&vm, SPI5, 1), Status::Success, format_args!("IRQ_LINE"))?;
        let start = timer::now();
        store(&mut vm, 0x10, 37, "INTID")?;
        check!(timer::now() - start < 5 * timer::frequency(), "late");
        power_off(&mut vm)?;
        vm.destroy().map(drop)
    })
}

/// 0x50: 32 to 988 SPIs, once there is no vCPU yet as often as one likes; past 256 they cost memory.
fn vgic_spis() -> Outcome {
    leaves_nothing(|| {
        let bare = Bare::new()?;
        let set = |spis| bare.call(Function::VgicSpis, &[spis]);
        let used = || bare.call(Function::GetStatistics, &[0]).values[0];
        let pulse = |irq| call(Function::IrqLine, &[bare.id << 16, irq, 1]);
        for spis in [0, 1, 31, 33, 987, 989, 992, 1020, 1 << 32 | 64, 1 << 63, u64::MAX] {
            answers(set(spis), Status::InvalidArgs, format_args!("{spis:#x} SPIs"))?;
        }
        for id in [0, 0xFFFE, 0xFFFF, 1 << 32 | bare.id, u64::MAX] {
            let reply = call(Function::VgicSpis, &[id, 64]);
            answers(reply, Status::InvalidArgs, format_args!("VM {id:#x}"))?;
        }
        // As it was, and what the calls that failed left: 256.
        let plain = used();
        answers(pulse(255), Status::Success, format_args!("SPI 255"))?;
        answers(pulse(256), Status::InvalidArgs, format_args!("SPI 256"))?;
        for (spis, pages) in [(32, 0), (256, 0), (288, 2), (988, 2), (960, 2), (64, 0), (988, 2)] {
            let reply = set(spis);
            answers(reply, Status::Success, format_args!("{spis} SPIs"))?;
            check_eq!(reply.values, [spis, 0, 0], "results for {spis} SPIs");
            check_eq!(used(), plain + pages * 4096, "bytes with {spis} SPIs");
            answers(pulse(spis - 1), Status::Success, format_args!("the last of {spis}"))?;
            answers(pulse(spis), Status::InvalidArgs, format_args!("past {spis} SPIs"))?;
        }
        drop(bare);
        let mut vm = Vm::with_spis(programs::polls_last_spi(), 988)?;
        answers(vm.call(Function::VgicSpis, &[64]), Status::InvalidArgs, format_args!("with a vCPU"))?;
        // IDbits 9, MBIS, ITLinesNumber 31.
        store(&mut vm, 0x10, 9 << 19 | 1 << 16 | 31, "GICD_TYPER")?;
        answers(line(&vm, 987, 1), Status::Success, format_args!("SPI 987"))?;
        store(&mut vm, 0x18, 1019, "INTID")?;
        store(&mut vm, 0x20, SPURIOUS, "pending after its end")?;
        power_off(&mut vm)?;
        vm.destroy().map(drop)
    })
}
