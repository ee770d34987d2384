// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The host VM's environment: exception level, device tree, memory, firmware, interrupts.

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use crate::pages;
use gzvm_abi::counter::Counter;
use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::exception::{self, ec};
use gzvm_guest_kit::hypercall;
use gzvm_guest_kit::machine::Range;
use gzvm_guest_kit::mmio;
use gzvm_guest_kit::psci::{self, error};
use gzvm_guest_kit::smccc::{Conduit, VERSION};
use gzvm_guest_kit::{
    ArrayVec, arch, boot, cases, check, check_eq, fail, gic, machine, read_sysreg, smp, timer,
};

pub const CASES: &[Case] = cases!["host":
    starts_at_el1, device_tree_has_the_hypervisor_node, hypervisor_memory_is_reserved,
    hypervisor_memory_load_aborts, hypervisor_memory_store_aborts, hypervisor_memory_fetch_aborts,
    own_memory_is_all_there, no_memory_beyond, cpus_come_up_at_el1, cpus_go_off_and_on, psci_calls,
    cpu_on_cannot_pass_the_hypervisor, smc_is_denied_by_default, ff_a_is_refused, hvc_of_nobody, el2_is_out_of_reach,
    interrupts_bypass_the_hypervisor,
];

fn starts_at_el1() -> Outcome {
    check_eq!(read_sysreg!("CurrentEL"), 4, "CurrentEL");
    Ok(())
}

fn device_tree_has_the_hypervisor_node() -> Outcome {
    use dtoolkit::Node;
    use dtoolkit::standard::NodeStandard;
    let Some(fdt) = machine::get().fdt else { fail!("no device tree") };
    let mut children = fdt.root().children();
    check!(children.any(|n| n.is_compatible("mediatek,geniezone")), "no node mediatek,geniezone");
    Ok(())
}

/// The hypervisor's memory, as the device tree tells it: all ranges.
pub fn hypervisor_ranges() -> Result<ArrayVec<Range, 8>, Verdict> {
    use dtoolkit::{Node, Property};
    let none = || Verdict::fail(format_args!("no /reserved-memory/gzvm@..."));
    let root = machine::get().fdt.ok_or_else(none)?.root();
    let reserved = root.children().find(|n| n.name() == "reserved-memory").ok_or_else(none)?;
    let mut ranges = ArrayVec::new();
    for node in reserved.children().filter(|n| n.name().starts_with("gzvm")) {
        let reg = node.reg().ok().flatten().and_then(|mut r| r.next()).ok_or_else(none)?;
        let start = reg.address::<u64>().map_err(|_| none())?;
        let size = reg.size::<u64>().map_err(|_| none())?;
        check!(node.properties().any(|p| p.name() == "no-map"), "{} has no no-map", node.name());
        check!(ranges.try_push(Range { start, size }).is_ok(), "too many ranges");
    }
    Ok(ranges)
}

/// The largest range of the hypervisor's memory.
pub fn hypervisor_memory() -> Result<Range, Verdict> {
    let none = || Verdict::fail(format_args!("no /reserved-memory/gzvm@..."));
    hypervisor_ranges()?.into_iter().max_by_key(|r| r.size).ok_or_else(none)
}

fn hypervisor_memory_is_reserved() -> Outcome {
    let range = hypervisor_memory()?;
    check!(range.size >= 1 << 20, "only {:#x} bytes", range.size);
    let (start, end) = boot::image_range();
    let image = Range { start, size: end - start };
    for range in hypervisor_ranges()? {
        check_eq!(range.start % 4096, 0, "alignment of {:#x}", range.start);
        check!(!range.overlaps(&image), "the host's image lies in {:#x}", range.start);
    }
    Ok(())
}

/// Addresses in the hypervisor's memory.
fn samples() -> Result<impl Iterator<Item = u64>, Verdict> {
    Ok(hypervisor_ranges()?.into_iter().flat_map(|range| {
        let step = (range.size / 64).max(4096) as usize;
        (range.start..range.end()).step_by(step).chain([range.end() - 8])
    }))
}

fn check_abort(result: Result<(), exception::Exception>, class: u32, what: &str, address: u64) -> Outcome {
    match result {
        Err(e) if e.class() == class || e.class() == ec::SERROR => Ok(()),
        Err(e) => fail!("{what} at {address:#x}: {e}"),
        Ok(()) => fail!("{what} at {address:#x} went through"),
    }
}

fn hypervisor_memory_load_aborts() -> Outcome {
    for address in samples()? {
        // SAFETY: must abort; and if not, a load changes nothing.
        let result = exception::expect(|| _ = unsafe { mmio::load64(address) });
        check_abort(result, ec::DATA_ABORT, "load", address)?;
    }
    Ok(())
}

fn hypervisor_memory_store_aborts() -> Outcome {
    for address in samples()? {
        // SAFETY: must abort; if not, the hypervisor is broken and this shows it.
        let result = exception::expect(|| unsafe { mmio::store64(address, 0) });
        check_abort(result, ec::DATA_ABORT, "store", address)?;
        // SAFETY: as above: DC ZVA is a store.
        let result = exception::expect(|| unsafe { core::arch::asm!("dc zva, {}", in(reg) address) });
        check_abort(result, ec::DATA_ABORT, "DC ZVA", address)?;
    }
    // Still there.
    check!(hypercall::counter(Counter::HostHvc).is_some(), "the hypervisor does not answer");
    Ok(())
}

fn hypervisor_memory_fetch_aborts() -> Outcome {
    for address in samples()?.take(4) {
        // SAFETY: must abort.
        let f: extern "C" fn() = unsafe { core::mem::transmute(address as usize) };
        check_abort(exception::expect(|| f()), ec::INSTRUCTION_ABORT, "fetch", address)?;
    }
    Ok(())
}

fn own_memory_is_all_there() -> Outcome {
    let hypervisor = hypervisor_ranges()?;
    let mut pages = 0u64;
    for bank in &machine::get().memory {
        for address in (bank.start..bank.end()).step_by(64 * 4096) {
            if hypervisor.iter().any(|r| r.overlaps(&Range { start: address, size: 4096 })) {
                continue;
            }
            // SAFETY: memory; a load changes nothing.
            if let Err(e) = exception::expect(|| _ = unsafe { mmio::load64(address) }) {
                fail!("load at {address:#x}: {e}");
            }
            pages += 1;
        }
    }
    check!(pages > 100, "{pages} pages only");
    Ok(())
}

fn no_memory_beyond() -> Outcome {
    let Some(end) = machine::get().memory.iter().map(|m| m.end()).max() else { fail!("no memory") };
    for address in [end, end + (64 << 20), (511 << 30) + 0x1000] {
        // SAFETY: there is nothing.
        let _ = exception::expect(|| _ = unsafe { mmio::load64(address) });
    }
    Ok(())
}

static LEVEL: AtomicU32 = AtomicU32::new(0);

/// The kit's secondary entry would hang at any other level; this says so.
fn cpus_come_up_at_el1() -> Outcome {
    for cpu in 1..smp::count() {
        LEVEL.store(0, SeqCst);
        if let Err(code) = smp::start(cpu, || LEVEL.store(read_sysreg!("CurrentEL") as u32, SeqCst)) {
            fail!("CPU {cpu} does not start: {code}");
        }
        if let Err(code) = smp::join(cpu) {
            fail!("CPU {cpu} does not turn off: {code}");
        }
        check_eq!(LEVEL.load(SeqCst), 4, "CurrentEL of CPU {cpu}");
    }
    Ok(())
}

fn cpus_go_off_and_on() -> Outcome {
    for round in 0..20 {
        for cpu in 1..smp::count() {
            if let Err(code) = smp::start(cpu, || {}) {
                fail!("CPU {cpu} does not start in round {round}: {code}");
            }
        }
        for cpu in 1..smp::count() {
            if let Err(code) = smp::join(cpu) {
                fail!("CPU {cpu} does not turn off in round {round}: {code}");
            }
        }
    }
    Ok(())
}

fn psci_calls() -> Outcome {
    let version = psci::call(psci::function::VERSION, &[]);
    check!(version >= 2, "PSCI_VERSION {version:#x}");
    check_eq!(psci::affinity_info(arch::mpidr()), 0, "AFFINITY_INFO of this CPU");
    check_eq!(
        psci::cpu_on(arch::mpidr(), boot::secondary_entry(), 0),
        error::ALREADY_ON,
        "CPU_ON of this CPU"
    );
    let nobody = psci::cpu_on(0x7F_0000, boot::secondary_entry(), 0);
    check_eq!(nobody, error::INVALID_PARAMETERS, "CPU_ON of nobody");
    Ok(())
}

/// An entry point in the hypervisor's memory: refused, or the CPU aborts at EL1; EL2 lives on.
fn cpu_on_cannot_pass_the_hypervisor() -> Outcome {
    if smp::count() < 2 {
        return Ok(());
    }
    let target = machine::get().cpus[smp::count() - 1];
    let entry = hypervisor_memory()?.start;
    let aborts = || hypercall::counter(Counter::HostAbort).unwrap_or(0);
    let before = aborts();
    let answer = psci::cpu_on(target, entry, 0);
    if answer != error::INVALID_ADDRESS {
        // It faults there for ever, and EL2 logs the first few: not into the middle of what is said here.
        timer::wait_ms(2000, || aborts() > before + 100);
    }
    check_eq!(answer, error::INVALID_ADDRESS, "CPU_ON into the hypervisor's memory");
    check!(hypercall::counter(Counter::HostHvc).is_some(), "the hypervisor does not answer");
    Ok(())
}

fn smc_is_denied_by_default() -> Outcome {
    let before = hypercall::counter(Counter::HostSmcDenied).unwrap_or(0);
    let mut denied = 0;
    // SiP, OEM, standard secure (SDEI, FF-A), hypervisor owners, trusted applications and OSes,
    // and PSCI's gaps.
    let owners = [1u64, 2, 3, 5, 6, 7, 30, 48, 49, 50, 59, 63];
    let many = owners.iter().flat_map(|o| [0x8000_0000, 0xC000_0000, 0, 0x4000_0000].map(|b| b | o << 24));
    for function in
        many.flat_map(|f| [f, f + 1, f + 0x20, f + 0xFF01]).chain([0x8400_0060, 0xC400_0020, 0x8400_00FF])
    {
        let x0 = match exception::expect(|| Conduit::Smc.call(function, &[1, 2, 3])) {
            Ok(x) => x[0],
            Err(e) => fail!("SMC {function:#x}: {e}"),
        };
        check!(x0 as i32 == -1, "SMC {function:#x} gives {x0:#x}");
        denied += 1;
    }
    let after = hypercall::counter(Counter::HostSmcDenied).unwrap_or(0);
    check!(after - before >= denied, "{denied} denied, counter says {}", after - before);
    let version = Conduit::Smc.call(u64::from(VERSION) | 0xDEAD_BEEF_0000_0000, &[])[0] as i32;
    // QEMU's firmware may not know the function, but nothing else may come of the upper half.
    check!(version == -1 || version >= 0x1_0000, "SMCCC_VERSION {version:#x}");
    Ok(())
}

/// All of FF-A (Arm DEN0077A), by which a host shares memory with the secure world.
fn ff_a_is_refused() -> Outcome {
    let page = pages::take(1, 4096);
    let before = hypercall::counter(Counter::HostSmcDenied).unwrap_or(0);
    let mut denied = 0;
    for function in (0x60..=0xEFu64).flat_map(|n| [0x8400_0000 | n, 0xC400_0000 | n]) {
        // FFA_MEM_SHARE and its like take lengths and the address of a descriptor.
        for args in [[0; 4], [64, 64, page, 1], [4096, 4096, 0, 0]] {
            let x0 = match exception::expect(|| Conduit::Smc.call(function, &args)) {
                Ok(x) => x[0],
                Err(e) => fail!("SMC {function:#x}: {e}"),
            };
            check_eq!(x0, u64::MAX, "SMC {function:#x}");
            denied += 1;
        }
    }
    let after = hypercall::counter(Counter::HostSmcDenied).unwrap_or(0);
    check_eq!(after - before, denied, "SMCs denied");
    pages::reset();
    Ok(())
}

fn hvc_of_nobody() -> Outcome {
    for owner in 0..64u64 {
        for base in [0x8000_0000, 0xC000_0000, 0, 0x4000_0000] {
            let function = base | owner << 24 | 0xFFE1;
            match exception::expect(|| Conduit::Hvc.call(function, &[1, 2, 3])) {
                Ok(x) => check!((x[0] as i32) < 0, "HVC {function:#x} gives {:#x}", x[0]),
                Err(e) => check_eq!(e.class(), ec::UNDEFINED, "HVC {function:#x}: class"),
            }
        }
    }
    Ok(())
}

fn el2_is_out_of_reach() -> Outcome {
    macro_rules! undefined {
        ($($name:literal),*) => {
            $(match exception::expect(|| read_sysreg!($name)) {
                Err(e) => check_eq!(e.class(), ec::UNDEFINED, "{}: class", $name),
                Ok(v) => fail!("{} reads as {v:#x}", $name),
            })*
        };
    }
    // HCR_EL2, VTTBR_EL2, ICH_HCR_EL2.
    undefined!["S3_4_C1_C1_0", "S3_4_C2_C1_0", "S3_4_C12_C11_0"];
    Ok(())
}

/// Timer interrupts and SGIs do not enter EL2 while no guest runs.
fn interrupts_bypass_the_hypervisor() -> Outcome {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    const ROUNDS: u32 = 200;
    TAKEN.store(0, SeqCst);
    gic::set_handler(|intid| {
        if intid == machine::get().timer_intid {
            timer::disarm();
        }
        TAKEN.fetch_add(1, SeqCst);
    });
    gic::enable(machine::get().timer_intid);
    let before = hypercall::counter(Counter::HostIrq);
    arch::irq_enable();
    for round in 0..ROUNDS {
        timer::arm_in((timer::frequency() / 20_000) as u32);
        if !timer::wait_ms(2000, || TAKEN.load(SeqCst) > 2 * round) {
            arch::irq_disable();
            fail!("no timer interrupt in round {round}");
        }
        gic::send_sgi(arch::mpidr(), 1);
        if !timer::wait_ms(2000, || TAKEN.load(SeqCst) > 2 * round + 1) {
            arch::irq_disable();
            fail!("no SGI in round {round}");
        }
    }
    arch::irq_disable();
    let after = hypercall::counter(Counter::HostIrq);
    check!(before.is_some(), "no counters");
    check_eq!(after, before, "interrupts that entered EL2");
    Ok(())
}
