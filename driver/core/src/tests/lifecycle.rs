// SPDX-License-Identifier: GPL-2.0-only
//! Creation, capabilities, registers, ends; and every step that can fail, failing.

use gzvm_abi::hypercall::{Function, cap, cap::protected};
use gzvm_abi::ioctl::{self, CreateDevice, EnableCap, Ioeventfd, IrqLevel, Irqfd, OneReg};
use gzvm_abi::reg;
use gzvm_abi::run::{Exception, exception, exit};

use super::*;
use crate::counters;
use crate::kernel::print::SeqFile;
use crate::sys::{close, eventfd};

#[test]
fn create_vm_asks_for_its_capabilities() {
    let k = Session::new();
    k.with(|k| k.calls.clear());
    let vm = k.vm();
    let calls = k.with(|k| k.calls.clone());
    let caps: Vec<u64> = calls.iter().filter(|(f, _)| *f == Function::EnableCap).map(|(_, a)| a[1]).collect();
    assert_eq!(calls[0].0, Function::CreateVm);
    assert_eq!(caps, [cap::ENABLE_DEMAND_PAGING, cap::BLOCK_BASED_DEMAND_PAGING, cap::ENABLE_IDLE]);
    close(vm);
    assert_eq!(k.held(), "");
}

#[test]
fn vm_outlives_its_file_by_vcpu_files() {
    let k = Session::new();
    let vm = k.vm();
    let vcpu = k.vcpu(vm, 0);
    close(vm);
    assert_eq!(k.with(|k| k.vms.len()), 1);
    k.exit(|_| exit::SHUTDOWN);
    assert_eq!(k.run(vcpu), 0);
    close(vcpu);
    assert_eq!(k.held(), "");
}

#[test]
fn destroy_goes_on_while_busy() {
    let k = Session::new();
    let vm = k.vm();
    k.with(|k| k.destroy_busy = 1000);
    close(vm);
    assert_eq!(k.count(Function::DestroyVm), 1001);
    assert_eq!(k.held(), "");
}

#[test]
fn refused_destroy_leaks_rather_than_unpins() {
    let mut k = Session::new();
    let vm = k.vm();
    k.map_user(GUEST_MEM, 1 << 21);
    assert_eq!(k.region(vm, 0, RAM, 1 << 21, GUEST_MEM), 0);
    let vcpu = k.vcpu(vm, 0);
    page_fault(&k, RAM);
    k.exit(|_| exit::SHUTDOWN);
    assert_eq!(k.run(vcpu), 0);
    k.with(|k| k.answers.push((Function::DestroyVm, -8_i64 as u64)));
    close(vcpu);
    close(vm);
    assert_eq!(k.with(|k| k.pins.len()), 512);
    assert!(k.with(|k| k.log.iter().any(|l| l.contains("stays pinned"))));
    k.leaks = true;
}

#[test]
fn vcpu_ids() {
    let k = Session::new();
    let vm = k.vm();
    k.vcpu(vm, 7);
    assert_eq!(k.ioctl(vm, ioctl::CREATE_VCPU, 7), EEXIST);
    assert_eq!(k.ioctl(vm, ioctl::CREATE_VCPU, 8), EINVAL);
    assert_eq!(k.ioctl(vm, ioctl::CREATE_VCPU, u64::MAX), EINVAL);
    assert_eq!(k.ioctl(vm, ioctl::CREATE_VCPU, 1 << 32), EINVAL);
}

#[test]
fn a_vm_that_is_asked_has_more_vcpus() {
    let k = Session::new();
    let (vm, other) = (k.vm(), k.vm());
    k.put(ARG, &ioctl::extension::MAX_VCPUS);
    assert_eq!(k.dev_ioctl(ioctl::CHECK_EXTENSION, ARG), 0);
    assert_eq!(k.get::<u64>(ARG), 64);
    assert_eq!(k.ioctl(vm, ioctl::CREATE_VCPU, 8), EINVAL, "the device's answer is about what a VM may ask");
    assert_eq!(k.ioctl_with(vm, ioctl::CHECK_EXTENSION, &ioctl::extension::MAX_VCPUS), 0);
    k.vcpu(vm, 63);
    k.vcpu(vm, 8);
    assert_eq!(k.ioctl(vm, ioctl::CREATE_VCPU, 64), EINVAL);
    assert_eq!(k.ioctl(vm, ioctl::CREATE_VCPU, 63), EEXIST);
    assert_eq!(k.ioctl(other, ioctl::CREATE_VCPU, 8), EINVAL);
}

#[test]
fn unknown_ioctls() {
    let k = Session::new();
    let vm = k.vm();
    let vcpu = k.vcpu(vm, 0);
    assert_eq!(k.dev_ioctl(ioctl::RUN, 0), ENOTTY);
    assert_eq!(k.ioctl(vm, ioctl::RUN, 0), ENOTTY);
    assert_eq!(k.ioctl(vm, 0x9260, 0), ENOTTY);
    assert_eq!(k.ioctl(vm, 0x4018_9240, ARG), ENOTTY);
    assert_eq!(k.ioctl(vcpu, ioctl::CREATE_VCPU, 1), ENOTTY);
}

#[test]
fn foreign_address_space_is_refused() {
    let k = Session::new();
    let vm = k.vm();
    let vcpu = k.vcpu(vm, 0);
    k.with(|k| k.foreign_mm = true);
    assert_eq!(k.ioctl(vm, ioctl::CREATE_VCPU, 1), EIO);
    assert_eq!(k.ioctl(vcpu, ioctl::RUN, RUN), EIO);
}

#[test]
fn check_extension() {
    let k = Session::new();
    let vm = k.vm();
    let ask = |cap: u64| {
        k.put(ARG, &cap);
        let ret = k.dev_ioctl(ioctl::CHECK_EXTENSION, ARG);
        (ret, k.get::<u64>(ARG))
    };
    assert_eq!(ask(cap::PROTECTED_VM), (0, 1));
    assert_eq!(ask(cap::VM_GPA_SIZE), (0, 52));
    assert_eq!(ask(0), (EOPNOTSUPP, 0));
    assert_eq!(ask(0x9201), (EOPNOTSUPP, 0x9201));
    // The number itself as a pointer, as crosvm passes it.
    assert_eq!(k.dev_ioctl(ioctl::CHECK_EXTENSION, 165), EFAULT);
    assert_eq!(k.ioctl_with(vm, ioctl::CHECK_EXTENSION, &cap::PROTECTED_VM), 0);
}

#[test]
fn enable_cap() {
    let k = Session::new();
    let vm = k.vm();
    let enable = |cap, args| k.ioctl_with(vm, ioctl::ENABLE_CAP, &EnableCap { cap, args });
    assert_eq!(enable(cap::PROTECTED_VM, [protected::GET_PVMFW_SIZE, 0, 0, 0, 0]), 0);
    assert_eq!(k.get::<EnableCap>(ARG).args[1], 0x40_0000);
    assert_eq!(enable(cap::PROTECTED_VM, [protected::SET_PVMFW_GPA, 0x7FC0_0000, 0, 0, 0]), 0);
    let (_, args) = k.with(|k| *k.calls.last().unwrap());
    assert_eq!(args[1..4], [cap::PROTECTED_VM, 0, 0x7FC0_0000]);
    assert_eq!(enable(cap::PROTECTED_VM, [3, 0, 0, 0, 0]), EINVAL);
    assert_eq!(enable(cap::ENABLE_DEMAND_PAGING, [0; 5]), EINVAL);
    k.with(|k| k.answers.push((Function::EnableCap, -24_i64 as u64)));
    assert_eq!(enable(cap::PROTECTED_VM, [protected::GET_PVMFW_SIZE, 0, 0, 0, 0]), EINVAL);
    assert_eq!(k.ioctl(vm, ioctl::ENABLE_CAP, 8), EFAULT);
}

#[test]
fn create_device_passes_attributes_by_address() {
    let k = Session::new();
    let vm = k.vm();
    let mut device = CreateDevice {
        dev_type: ioctl::DEVICE_VGIC_V3_DIST,
        id: 0,
        flags: 5,
        dev_addr: 0x3FFF_0000,
        dev_reg_size: 0x1_0000,
        attr_addr: USER + 0x2000,
        attr_size: 16,
    };
    assert_eq!(k.ioctl_with(vm, ioctl::CREATE_DEVICE, &device), 0);
    device.attr_size = 4097;
    assert_eq!(k.ioctl_with(vm, ioctl::CREATE_DEVICE, &device), EINVAL);
    device.attr_size = 4096;
    device.attr_addr = 16;
    assert_eq!(k.ioctl_with(vm, ioctl::CREATE_DEVICE, &device), EFAULT);
    device.attr_size = 0;
    assert_eq!(k.ioctl_with(vm, ioctl::CREATE_DEVICE, &device), 0);
}

#[test]
fn registers() {
    let k = Session::new();
    let vm = k.vm();
    let vcpu = k.vcpu(vm, 0);
    k.put(ARG + 64, &0xAABB_CCDD_1122_3344_u64);
    assert_eq!(k.ioctl_with(vcpu, ioctl::SET_ONE_REG, &OneReg { id: reg::PC, addr: ARG + 64 }), 0);
    let last = k.with(|k| *k.calls.last().unwrap());
    assert_eq!((last.0, last.1[1], last.1[2]), (Function::SetOneReg, reg::PC, 0xAABB_CCDD_1122_3344));
    // 32 bits, zero-extended.
    let fpsr = 0x6020_0000_0010_00D4;
    assert_eq!(k.ioctl_with(vcpu, ioctl::SET_ONE_REG, &OneReg { id: fpsr, addr: ARG + 64 }), 0);
    assert_eq!(k.with(|k| k.calls.last().unwrap().1[2]), 0x1122_3344);
    k.put(ARG + 72, &0x5566_u64);
    assert_eq!(k.ioctl_with(vcpu, ioctl::SET_ONE_REG, &OneReg { id: reg::V0, addr: ARG + 64 }), 0);
    assert_eq!(k.with(|k| k.calls.last().unwrap().1[2..4].to_vec()), [0xAABB_CCDD_1122_3344, 0x5566]);
    let wider = 0x6050_0000_0010_0054;
    assert_eq!(k.ioctl_with(vcpu, ioctl::SET_ONE_REG, &OneReg { id: wider, addr: ARG + 64 }), EINVAL);
    assert_eq!(k.ioctl_with(vcpu, ioctl::GET_ONE_REG, &OneReg { id: wider, addr: ARG + 64 }), EINVAL);
    assert_eq!(k.ioctl_with(vcpu, ioctl::SET_ONE_REG, &OneReg { id: reg::PC, addr: 8 }), EFAULT);

    assert_eq!(k.ioctl_with(vcpu, ioctl::GET_ONE_REG, &OneReg { id: reg::PC, addr: ARG + 64 }), 0);
    assert_eq!(k.get::<[u64; 2]>(ARG + 64), [0x1122_3344_5566_7788, 0x5566]);
    assert_eq!(k.ioctl_with(vcpu, ioctl::GET_ONE_REG, &OneReg { id: reg::V31, addr: ARG + 64 }), 0);
    assert_eq!(k.get::<[u64; 2]>(ARG + 64), [0x1122_3344_5566_7788, 0x99AA_BBCC_DDEE_FF00]);
    k.with(|k| k.answers.push((Function::GetOneReg, -27_i64 as u64)));
    assert_eq!(k.ioctl_with(vcpu, ioctl::GET_ONE_REG, &OneReg { id: reg::PC, addr: ARG + 64 }), EOPNOTSUPP);
    // By the public ABI there are no wider ones.
    k.with(|k| k.extensions = 0);
    assert_eq!(entry::gzr_init(), 0);
    assert_eq!(k.ioctl_with(vcpu, ioctl::SET_ONE_REG, &OneReg { id: reg::V0, addr: ARG + 64 }), EINVAL);
}

#[test]
fn irq_line() {
    let k = Session::new();
    let vm = k.vm();
    assert_eq!(k.ioctl_with(vm, ioctl::IRQ_LINE, &IrqLevel { irq: 0x1203_001B, level: 1 }), 0);
    assert_eq!(k.ioctl_with(vm, ioctl::IRQ_LINE, &IrqLevel { irq: 0x0100_0005, level: 0 }), 0);
    assert_eq!(k.ioctl_with(vm, ioctl::IRQ_LINE, &IrqLevel { irq: 6, level: 1 }), 0);
    assert_eq!(k.with(|k| k.vms[&1].lines.clone()), [(0x103, 0x0200_001B, 1), (0, 5, 0), (0, 6, 1)]);
    k.with(|k| k.answers.push((Function::IrqLine, -8_i64 as u64)));
    assert_eq!(k.ioctl_with(vm, ioctl::IRQ_LINE, &IrqLevel { irq: 9999, level: 1 }), EFAULT);
}

#[test]
fn probe_failures_say_why() {
    let k = Session::new();
    k.with(|k| k.answers.push((Function::Probe, -1_i64 as u64)));
    assert_eq!(entry::gzr_init(), -19);
    assert!(k.with(|k| k.log.last().unwrap().contains("no GenieZone hypervisor")));
    k.with(|k| k.batch = 3);
    assert_eq!(entry::gzr_init(), -14);
    k.with(|k| k.batch = 0);
    assert_eq!(entry::gzr_init(), -14);
}

#[test]
fn counters_are_lines() {
    let k = Session::new();
    let vm = k.vm();
    k.vcpu(vm, 0);
    #[expect(unsafe_code, reason = "plays the kernel")]
    // SAFETY: the fake does not look at it.
    counters::show(&mut unsafe { SeqFile::from_raw(std::ptr::null_mut()) });
    let text = k.with(|k| k.seq.clone());
    assert!(text.starts_with("driver_vms 1\ndriver_vcpus 1\n"), "{text}");
    assert!(text.contains("\nhost_irq 100\nhost_hvc 101\n"), "{text}");
}

/// The hypervisor reports a page fault.
pub fn page_fault(k: &Session, gpa: u64) {
    k.exit(move |shared| {
        shared.put(8, [0_u64; 32]);
        shared.put(8, Exception { exception: exception::PAGE_FAULT, error_code: 0, fault_gpa: gpa });
        exit::EXCEPTION
    });
}

/// All that a VMM does, going on after errors; closes what it got.
fn scenario(k: &Session) {
    let vm = k.dev_ioctl(ioctl::CREATE_VM, 0) as i32;
    if vm < 0 {
        return;
    }
    k.region(vm, 0, RAM, 3 << 21, GUEST_MEM);
    k.region(vm, 1, 0x7FC0_0000, 0x1000, GUEST_MEM + (3 << 21));
    let device = CreateDevice {
        dev_type: 0,
        id: 0,
        flags: 0,
        dev_addr: 0,
        dev_reg_size: 0,
        attr_addr: ARG + 0x200,
        attr_size: 8,
    };
    k.ioctl_with(vm, ioctl::CREATE_DEVICE, &device);
    let vcpus: Vec<i32> =
        (0..2).map(|id| k.ioctl(vm, ioctl::CREATE_VCPU, id) as i32).filter(|fd| *fd > 0).collect();
    let eventfds: Vec<i32> = (0..2).map(|_| eventfd()).collect();
    for (gsi, &fd) in eventfds.iter().enumerate() {
        let irqfd = Irqfd { fd: fd as u32, gsi: gsi as u32, flags: 0, resamplefd: 0, pad: [0; 16] };
        k.ioctl_with(vm, ioctl::IRQFD, &irqfd);
        let addr = 0x1000 * gsi as u64;
        k.ioctl_with(
            vm,
            ioctl::IOEVENTFD,
            &Ioeventfd { datamatch: 0, addr, len: 4, fd, flags: 0, pad: [0; 36] },
        );
    }
    k.ioctl_with(vm, ioctl::SET_DTB_CONFIG, &ioctl::DtbConfig { dtb_addr: RAM, dtb_size: 4096 });
    for vcpu in &vcpus {
        k.put(ARG + 64, &1_u64);
        k.ioctl_with(*vcpu, ioctl::SET_ONE_REG, &OneReg { id: reg::PC, addr: ARG + 64 });
        for page in [0, 700, 5, 1535] {
            page_fault(k, RAM + page * 4096);
        }
        page_fault(k, 0x7FC0_0000);
        for _ in 0..9 {
            k.exit(|_| exit::SHUTDOWN);
        }
        k.run(*vcpu);
        k.with(|k| k.exits.clear());
    }
    if let Some(fd) = eventfds.first() {
        close(*fd);
    }
    close(vm);
    for vcpu in vcpus {
        close(vcpu);
    }
}

fn fail_every_step(prepare: impl Fn(&mut crate::sys::Fake)) {
    let mut at = 1;
    loop {
        let k = Session::new();
        k.map_user(GUEST_MEM, (3 << 21) + 0x1000);
        let before = k.with(|k| {
            prepare(k);
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
    assert!(at > 50, "only {at} calls");
}

#[test]
fn every_failing_step_gives_everything_back() {
    fail_every_step(|_| ());
}

#[test]
fn every_failing_step_gives_everything_back_page_by_page() {
    fail_every_step(|k| k.no_blocks = true);
}

#[test]
fn every_failing_step_gives_everything_back_populating() {
    fail_every_step(|k| k.no_demand_paging = true);
}
