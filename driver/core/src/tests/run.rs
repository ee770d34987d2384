// SPDX-License-Identifier: GPL-2.0-only
//! The run loop: exits, signals, sleep.

use gzvm_abi::hypercall::Function;
use gzvm_abi::ioctl;
use gzvm_abi::run::{Exception, Hypercall, Mmio, SystemEvent, exit};

use super::*;
use crate::kernel::task::ticks_to_ns_at;
use crate::sys::Shared;

const MIGRATE: usize = 4096 + 152;
const DELAY: usize = 4096 + 144;
const OFFSET: usize = 4096 + 136;

fn mmio(addr: u64, write: bool) -> impl FnOnce(&mut Shared) -> u32 + Send {
    move |shared: &mut Shared| {
        let size = 4;
        shared.put(
            8,
            Mmio {
                phys_addr: addr,
                size,
                is_write: write.into(),
                data: [1, 2, 3, 4, 0, 0, 0, 0],
                ..Mmio::default()
            },
        );
        exit::MMIO
    }
}

fn idle(ticks: u64, migrate: u32) -> impl FnOnce(&mut Shared) -> u32 + Send {
    move |shared: &mut Shared| {
        shared.put(DELAY, ticks);
        shared.put(MIGRATE, migrate);
        exit::IDLE
    }
}

#[test]
fn exits_for_user_space_are_copied_out() {
    let k = Session::new();
    let vcpu = k.vcpu(k.vm(), 0);
    for reason in [exit::UNKNOWN, exit::DEBUG, exit::FAIL_ENTRY, exit::INTERNAL_ERROR, exit::SHUTDOWN] {
        k.exit(move |_| reason);
        assert_eq!(k.run(vcpu), 0);
        assert_eq!(k.get::<u32>(RUN), reason);
    }
    k.exit(|shared| {
        shared.put(8, SystemEvent { type_: 2, ndata: 1, data: [77; 16] });
        exit::SYSTEM_EVENT
    });
    assert_eq!(k.run(vcpu), 0);
    assert_eq!(k.get::<SystemEvent>(RUN + 8).data[15], 77);
}

#[test]
fn mmio_read_is_answered_by_the_next_run() {
    let k = Session::new();
    let vcpu = k.vcpu(k.vm(), 0);
    k.exit(mmio(0x3F8, false));
    assert_eq!(k.run(vcpu), 0);
    assert_eq!(k.get::<Mmio>(RUN + 8).phys_addr, 0x3F8);
    k.put(RUN + 16, &0x55_u64);
    k.exit(|shared| {
        assert_eq!(shared.get::<u64>(16), 0x55);
        exit::SHUTDOWN
    });
    assert_eq!(k.ioctl(vcpu, ioctl::RUN, RUN), 0);
}

#[test]
fn kernel_exits_enter_again() {
    let k = Session::new();
    let vcpu = k.vcpu(k.vm(), 0);
    k.exit(|_| exit::IRQ);
    k.exit(|_| exit::GZ);
    k.exit(|_| exit::IPI);
    k.exit(|_| exit::SHUTDOWN);
    assert_eq!(k.run(vcpu), 0);
    assert_eq!(k.with(|k| k.runs), 4);
}

#[test]
fn unknown_exit_is_a_failed_entry() {
    let k = Session::new();
    let vcpu = k.vcpu(k.vm(), 0);
    k.exit(|_| 0x9292_00FF);
    assert_eq!(k.run(vcpu), 0);
    assert_eq!(k.get::<u32>(RUN), exit::FAIL_ENTRY);
    k.exit(|_| 0);
    assert_eq!(k.run(vcpu), 0);
    assert_eq!(k.get::<u32>(RUN), exit::FAIL_ENTRY);
}

#[test]
fn arguments_of_run() {
    let k = Session::new();
    let vcpu = k.vcpu(k.vm(), 0);
    assert_eq!(k.ioctl(vcpu, ioctl::RUN, 16), EFAULT);
    k.with(|k| k.user(RUN, 264).unwrap().fill(0));
    for byte in 5..8 {
        k.put(RUN + byte, &1_u8);
        assert_eq!(k.ioctl(vcpu, ioctl::RUN, RUN), EINVAL);
        k.put(RUN + byte, &0_u8);
    }
    k.put(RUN + 4, &1_u8);
    assert_eq!(k.ioctl(vcpu, ioctl::RUN, RUN), EINTR);
    assert_eq!(k.with(|k| k.runs), 0);
}

#[test]
fn immediate_exit_of_a_signal_handler_survives_the_copy_out() {
    let k = Session::new();
    let vcpu = k.vcpu(k.vm(), 0);
    k.exit(|_| {
        crate::sys::poke_user(RUN + 4, 1);
        exit::SHUTDOWN
    });
    assert_eq!(k.run(vcpu), 0);
    assert_eq!(k.get::<u8>(RUN + 4), 1);
    assert_eq!(k.ioctl(vcpu, ioctl::RUN, RUN), EINTR);
}

#[test]
fn a_signal_never_costs_an_exit() {
    let k = Session::new();
    let vcpu = k.vcpu(k.vm(), 0);
    // The signal comes while the guest runs to an MMIO exit.
    k.with(|k| k.signal_at_run = Some(1));
    k.exit(mmio(0x1000, false));
    assert_eq!(k.run(vcpu), 0);
    assert_eq!(k.get::<u32>(RUN), exit::MMIO);
    assert_eq!(k.count(Function::InformExit), 0);
    // Then it is reported, before the guest is entered, and the answer stays in the buffer.
    k.put(RUN + 16, &0xABCD_u64);
    assert_eq!(k.ioctl(vcpu, ioctl::RUN, RUN), ERESTARTSYS);
    assert_eq!(k.count(Function::InformExit), 1);
    assert_eq!(k.with(|k| k.runs), 1);
    assert_eq!(k.get::<u64>(RUN + 16), 0xABCD);
}

#[test]
fn a_signal_ends_kernel_exits() {
    let k = Session::new();
    let vcpu = k.vcpu(k.vm(), 0);
    k.with(|k| k.signal_at_run = Some(2));
    k.exit(|_| exit::IRQ);
    k.exit(|_| exit::IRQ);
    assert_eq!(k.run(vcpu), ERESTARTSYS);
    assert_eq!(k.count(Function::InformExit), 1);
}

#[test]
fn idle_sleeps_until_the_timer() {
    let k = Session::new();
    let vcpu = k.vcpu(k.vm(), 0);
    k.exit(idle(1_500_000, 1));
    k.exit(idle(1_500_000, 0));
    k.exit(idle(0, 1));
    k.exit(|_| exit::SHUTDOWN);
    assert_eq!(k.run(vcpu), 0);
    assert_eq!(k.with(|k| k.slept.clone()), [1_500_000], "only the first asks for it");
}

#[test]
fn no_wake_up_is_lost_between_the_exit_and_the_sleep() {
    let k = Session::new();
    let vm = k.vm();
    let vcpu = k.vcpu(vm, 0);
    // The interrupt comes after the hypervisor has decided to report IDLE.
    k.exit(move |shared| {
        crate::sys::as_vmm(vm, ioctl::IRQ_LINE, &ioctl::IrqLevel { irq: 1, level: 1 });
        idle(1000, 1)(shared)
    });
    k.exit(idle(2000, 1));
    k.exit(|_| exit::SHUTDOWN);
    assert_eq!(k.run(vcpu), 0);
    assert_eq!(k.with(|k| k.slept.clone()), [2000]);
}

#[test]
fn ipi_wakes_the_others() {
    let k = Session::new();
    let vm = k.vm();
    let (me, other) = (k.vcpu(vm, 0), k.vcpu(vm, 1));
    k.exit(move |shared| {
        // The other vCPU's thread sends an IPI while this one goes idle.
        crate::sys::nested_exit(|shared| {
            shared.put(8, 0b01_u64);
            exit::IPI
        });
        crate::sys::nested_exit(|_| exit::SHUTDOWN);
        crate::sys::as_vmm_run(other, RUN + 0x400);
        idle(3000, 1)(shared)
    });
    k.exit(|_| exit::SHUTDOWN);
    assert_eq!(k.run(me), 0);
    assert_eq!(k.with(|k| k.slept.clone()), [0_u64; 0]);
}

/// Wake-ups since `before`.
fn woken_since(before: u64) -> u64 {
    crate::counters::WAKE_UPS.get() - before
}

#[test]
fn only_those_named_are_woken() {
    let k = Session::new();
    let vm = k.vm();
    let vcpus: Vec<i32> = (0..4).map(|id| k.vcpu(vm, id)).collect();
    let before = crate::counters::WAKE_UPS.get();
    let raise = ioctl::IrqLevel { irq: 1, level: 1 };
    for (sleepers, count) in [(0, 0), (0b100, 1), (0b1010, 2), (1 << 63, 0), (u64::MAX, 4)] {
        k.with(|k| k.sleepers = sleepers);
        let before = crate::counters::WAKE_UPS.get();
        assert_eq!(k.ioctl_with(vm, ioctl::IRQ_LINE, &raise), 0);
        assert_eq!(woken_since(before), count, "{sleepers:#b}");
    }
    assert_eq!(k.ioctl_with(vm, ioctl::IRQ_LINE, &ioctl::IrqLevel { irq: 1, level: 0 }), 0);
    assert_eq!(woken_since(before), 7, "lowering wakes nobody");

    // vCPU 2 is named, vCPU 1 sleeps on.
    for (sleeper, slept) in [(2, vec![]), (1, vec![3000])] {
        let vm_fd = vm;
        k.with(|k| (k.sleepers, k.slept) = (0b100, vec![]));
        k.exit(move |shared| {
            crate::sys::as_vmm(vm_fd, ioctl::IRQ_LINE, &raise);
            idle(3000, 1)(shared)
        });
        k.exit(|_| exit::SHUTDOWN);
        assert_eq!(k.run(vcpus[sleeper]), 0);
        assert_eq!(k.with(|k| k.slept.clone()), slept, "vCPU {sleeper}");
    }
    // A refusal tells nothing about who sleeps.
    k.with(|k| k.answers.push((Function::IrqLine, -8_i64 as u64)));
    let before = crate::counters::WAKE_UPS.get();
    assert_eq!(k.ioctl_with(vm, ioctl::IRQ_LINE, &raise), EFAULT);
    assert_eq!(woken_since(before), 4);
}

#[test]
fn a_public_hypervisor_names_nobody_so_all_are_woken() {
    let k = Session::new();
    k.with(|k| (k.extensions, k.sleepers) = (0, 0));
    assert_eq!(entry::gzr_init(), 0);
    let vm = k.vm();
    let vcpu = k.vcpu(vm, 0);
    let _other = k.vcpu(vm, 1);
    let before = crate::counters::WAKE_UPS.get();
    assert_eq!(k.ioctl_with(vm, ioctl::IRQ_LINE, &ioctl::IrqLevel { irq: 1, level: 1 }), 0);
    assert_eq!(woken_since(before), 2);
    k.exit(|_| exit::IPI);
    k.exit(|_| exit::SHUTDOWN);
    assert_eq!(k.run(vcpu), 0);
    assert_eq!(woken_since(before), 4);
}

/// Maps the vCPU's run page.
fn map_run_page(k: &Session, vcpu: i32) -> Shared {
    let mut page = std::ptr::null_mut();
    let File::Vcpu(p) = k.with(|k| k.files[&vcpu]) else { panic!("no vCPU") };
    // SAFETY: the private data of an open file.
    #[expect(unsafe_code, reason = "plays the kernel")]
    let ret = unsafe { entry::gzr_vcpu_run_page(p as *mut std::ffi::c_void, &mut page) };
    assert_eq!(ret, 0);
    Shared::at(page)
}

#[test]
fn mapped_run_page() {
    let k = Session::new();
    let vm = k.vm();
    let vcpu = k.vcpu(vm, 0);
    assert_eq!(k.ioctl(vcpu, ioctl::RUN, 0), EFAULT, "not mapped yet");
    assert_eq!(k.dev_ioctl(ioctl::GET_VCPU_MMAP_SIZE, 0), 4096);
    assert_eq!(k.dev_ioctl(ioctl::GET_VCPU_MMAP_SIZE, 1), EINVAL);
    let mut page = map_run_page(&k, vcpu);
    k.exit(mmio(0x3F8, false));
    assert_eq!(k.ioctl(vcpu, ioctl::RUN, 0), 0);
    assert_eq!((page.get::<u32>(0), page.get::<u64>(8)), (exit::MMIO, 0x3F8));
    // The answer goes in, and nothing else does: not the address, not another reason.
    page.put(8, Mmio { phys_addr: 0x666, data: [7; 8], size: 99, reg_nr: 99, is_write: 1, pad: [9; 3] });
    page.put(0, 0xBAD_u32);
    k.exit(|shared| {
        let mmio = shared.get::<Mmio>(8);
        assert_eq!((mmio.data, mmio.phys_addr, mmio.is_write), ([7; 8], 0x3F8, 0));
        assert_eq!(shared.get::<u32>(0), exit::MMIO);
        shared.put(8, Hypercall { args: [0x8400_9999, 1, 2, 3, 4, 5, 6, 7] });
        exit::HYPERCALL
    });
    assert_eq!(k.ioctl(vcpu, ioctl::RUN, 0), 0);
    assert_eq!(page.get::<Hypercall>(8).args[7], 7);
    page.put(8, Hypercall { args: [u64::MAX; 8] });
    k.exit(|shared| {
        assert_eq!(shared.get::<Hypercall>(8).args, [u64::MAX; 8]);
        exit::SHUTDOWN
    });
    assert_eq!(k.ioctl(vcpu, ioctl::RUN, 0), 0);
    assert_eq!(page.get::<u32>(0), exit::SHUTDOWN);

    page.put(5, 1_u8);
    assert_eq!(k.ioctl(vcpu, ioctl::RUN, 0), EINVAL, "padding");
    page.put(5, 0_u8);
    page.put(4, 1_u8);
    assert_eq!(k.ioctl(vcpu, ioctl::RUN, 0), EINTR, "immediate_exit");
    assert_eq!(page.get::<u8>(4), 1, "which is never written");
    page.put(4, 0_u8);
    k.with(|k| k.signal_at_run = Some(4));
    k.exit(|_| exit::IRQ);
    assert_eq!(k.ioctl(vcpu, ioctl::RUN, 0), ERESTARTSYS);
    // The other form stays.
    k.with(|k| k.signal_at_run = None);
    k.exit(mmio(0x500, true));
    assert_eq!(k.run(vcpu), 0);
    assert_eq!(k.get::<Mmio>(RUN + 8).phys_addr, 0x500);
    k.with(|k| k.foreign_mm = true);
    assert_eq!(k.ioctl(vcpu, ioctl::RUN, 0), EIO);
}

#[test]
fn what_user_space_writes_during_a_run_reaches_nobody() {
    let k = Session::new();
    let vm = k.vm();
    let vcpu = k.vcpu(vm, 0);
    k.map_user(GUEST_MEM, 1 << 21);
    assert_eq!(k.region(vm, 0, RAM, 1 << 21, GUEST_MEM), 0);
    let page = map_run_page(&k, vcpu);
    super::lifecycle::page_fault(&k, RAM);
    // Claims that the guest gave a page back which the hypervisor still has: nothing may be unpinned.
    let address = page.address();
    k.exit(move |_| {
        Shared::at(address as *mut std::ffi::c_void).put(0, exit::HYPERCALL);
        Shared::at(address as *mut std::ffi::c_void)
            .put(8, Hypercall { args: [0xC600_0009, RAM, 0, 0, 0, 0, 0, 0] });
        exit::IRQ
    });
    k.exit(|_| exit::SHUTDOWN);
    assert_eq!(k.ioctl(vcpu, ioctl::RUN, 0), 0);
    assert_eq!(k.with(|k| k.pins.len()), 512);
}

#[test]
fn a_running_vcpu_is_not_run_twice() {
    let k = Session::new();
    let vcpu = k.vcpu(k.vm(), 0);
    k.exit(move |_| {
        // The fake's lock does not wait: a signal comes first.
        assert_eq!(crate::sys::as_vmm_run(vcpu, RUN + 0x400), ERESTARTSYS);
        exit::SHUTDOWN
    });
    assert_eq!(k.run(vcpu), 0);
}

#[test]
fn exceptions_that_are_no_page_faults() {
    let k = Session::new();
    let vm = k.vm();
    let vcpu = k.vcpu(vm, 0);
    k.map_user(GUEST_MEM, 4096);
    assert_eq!(k.region(vm, 0, RAM, 4096, GUEST_MEM), 0);
    k.exit(|shared| {
        shared.put(8, Exception { exception: 0, error_code: 3, fault_gpa: RAM });
        exit::EXCEPTION
    });
    assert_eq!(k.run(vcpu), 0);
    assert_eq!(k.get::<u32>(RUN), exit::EXCEPTION);
    // Reserved words that are not zero.
    k.exit(|shared| {
        shared.put(8, Exception { exception: 1, error_code: 0, fault_gpa: RAM });
        shared.put(256, 1_u64);
        exit::EXCEPTION
    });
    assert_eq!(k.run(vcpu), 0);
    assert_eq!(k.get::<u32>(RUN), exit::EXCEPTION);
}

#[test]
fn time_for_the_guest() {
    let k = Session::new();
    let vcpu = k.vcpu(k.vm(), 0);
    // Both counters of a guest begin with its VM.
    for (which, counter) in [(0_u64, 0x10_0000_4000_u64), (1, 0x10_0000_4000)] {
        k.exit(move |shared| {
            shared.put(OFFSET, 0x1000_u64);
            shared.put(8, Hypercall { args: [0x8600_0001, which, 0, 0, 0, 0, 0, 0] });
            exit::HYPERCALL
        });
        k.exit(move |shared| {
            let args = shared.get::<[u64; 4]>(8);
            assert_eq!(args, [0x0123_4567, 0x89AB_CDEF, counter >> 32, counter & 0xFFFF_FFFF]);
            exit::SHUTDOWN
        });
        assert_eq!(k.run(vcpu), 0);
    }
    k.exit(|shared| {
        shared.put(8, Hypercall { args: [0x8600_0001, 9, 0, 0, 0, 0, 0, 0] });
        exit::HYPERCALL
    });
    k.exit(|shared| {
        assert_eq!(shared.get::<u64>(8), u64::MAX);
        exit::SHUTDOWN
    });
    assert_eq!(k.run(vcpu), 0);
}

#[test]
fn other_hypercalls_go_to_user_space() {
    let k = Session::new();
    let vcpu = k.vcpu(k.vm(), 0);
    k.exit(|shared| {
        shared.put(8, Hypercall { args: [0x8400_0050, 1, 2, 3, 4, 5, 6, 7] });
        exit::HYPERCALL
    });
    assert_eq!(k.run(vcpu), 0);
    assert_eq!(k.get::<[u64; 8]>(RUN + 8), [0x8400_0050, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn ticks() {
    assert_eq!(ticks_to_ns_at(0, 62_500_000), 0);
    assert_eq!(ticks_to_ns_at(1, 62_500_000), 16);
    assert_eq!(ticks_to_ns_at(62_500_000 * 3 + 1, 62_500_000), 3_000_000_016);
    assert_eq!(ticks_to_ns_at(u64::MAX, 1), u64::MAX);
    assert_eq!(ticks_to_ns_at(999_999_999, 1_000_000_000), 999_999_999);
    assert_eq!(ticks_to_ns_at(5, 0), 0);
}
