// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A host that reaches for what is not its own through a device (`threats.md` 11). Needs a machine with an SMMUv3 and QEMU's `edu`.

use gzvm_abi::counter::Counter;
use gzvm_abi::hypercall::Function;
use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::{cases, check, check_eq, exception, fail, machine, mmio, skip, smp};

use crate::edu::{self, Edu};
use crate::protected::{OK, SECRET, counter, told};
use crate::vm::{self, Vm};
use crate::{host, pages, programs};

pub const CASES: &[Case] = cases!["dma":
    own_memory, hypervisor_memory, a_protected_vms_pages, pages_come_back, a_split_block, memory_for_tables,
    smmu_is_not_the_hosts, gic_has_no_tables, blocked_altogether,
];

const JUNK: u64 = 0x0BAD_0BAD_0BAD_0BAD;
const PATTERN: u64 = 0x600D_DA7A;

fn device() -> Result<Edu, Verdict> {
    match Edu::find() {
        Some(edu) => Ok(edu),
        None => skip!("no edu device"),
    }
}

/// Most events of one access of 8 bytes that is denied: QEMU tries each half.
const EVENTS: u64 = 2;

/// Whether a device reaches a word: by what its buffer gets, and by what is counted. `page` is ours, for the way.
fn loads(edu: &Edu, address: u64, expected: u64, page: u64) -> Result<bool, Verdict> {
    check!(edu.fill(page, JUNK), "the device does not end");
    let before = counter(Counter::DmaFaults)?;
    check!(edu.load(address), "the device does not end");
    let denied = counter(Counter::DmaFaults)? - before;
    let Some(seen) = edu.buffer(page) else { fail!("the device does not end") };
    match denied {
        0 => check_eq!(seen, expected, "what the device loaded from {address:#x}"),
        1..=EVENTS => {
            check!(seen != expected, "a load from {address:#x} was denied, but the device has the content")
        }
        n => fail!("one load from {address:#x}, {n} faults"),
    }
    Ok(denied == 0)
}

/// As [`loads`], a store of [`JUNK`].
fn stores(edu: &Edu, address: u64, page: u64) -> Result<bool, Verdict> {
    check!(edu.fill(page, JUNK), "the device does not end");
    let before = counter(Counter::DmaFaults)?;
    check!(edu.store(address), "the device does not end");
    match counter(Counter::DmaFaults)? - before {
        0 => Ok(true),
        1..=EVENTS => Ok(false),
        n => fail!("one store to {address:#x}, {n} faults"),
    }
}

fn put(address: u64, value: u64) {
    pages::write(address, value);
    vm::clean(address, 8);
}

fn own_memory() -> Outcome {
    let edu = device()?;
    let (page, other) = (pages::take(1, 4096), pages::take(1, 4096));
    put(other + 0xFF8, PATTERN);
    check!(loads(&edu, other + 0xFF8, PATTERN, page)?, "a load from the host's page");
    check!(stores(&edu, other, page)?, "a store to the host's page");
    vm::clean(other, 8);
    check_eq!(pages::read(other), JUNK, "what the device stored");
    pages::reset();
    Ok(())
}

fn hypervisor_memory() -> Outcome {
    let edu = device()?;
    let page = pages::take(1, 4096);
    for range in host::hypervisor_ranges()? {
        for address in [range.start, range.start + 0x38, range.end() - 8] {
            // Whatever it is: the image's magic number is at 0x38, and not to be seen.
            check!(!loads(&edu, address, 0x0000_0040_644D_5241, page)?, "a load from EL2's {address:#x}");
        }
        check!(!stores(&edu, range.end() - 8, page)?, "a store to EL2's memory");
    }
    pages::reset();
    Ok(())
}

fn a_protected_vms_pages() -> Outcome {
    let edu = device()?;
    let own = pages::take(1, 4096);
    let mut vm = Vm::protected(programs::private(), 1)?;
    let page = vm.memory + 0x1000;
    // While it is the host's, so that the SMMU knows the way.
    put(page, PATTERN);
    check!(loads(&edu, page, PATTERN, own)?, "a load before it is given");
    check!(stores(&edu, page, own)?, "a store before it is given");
    told(&mut vm, 0x10, "written")?;
    for _ in 0..2 {
        check!(!stores(&edu, page, own)?, "a store to the VM's page");
        check!(!loads(&edu, page, SECRET, own)?, "a load from the VM's page");
    }
    check!(loads(&edu, page + 0x1000, 0, own)?, "a load from the page behind");
    check_eq!(told(&mut vm, 0x18, "MEM_SHARE")?, OK, "MEM_SHARE");
    vm::clean(page, 8);
    check_eq!(pages::read(page), SECRET, "the VM's page after the stores");
    check!(loads(&edu, page, SECRET, own)?, "a load from a shared page");
    put(page, 0x1234);
    check_eq!(told(&mut vm, 0x20, "MEM_SHARE again")?, -3i64 as u64, "MEM_SHARE again");
    check_eq!(told(&mut vm, 0x28, "content")?, 0x1234, "what the host wrote");
    check_eq!(told(&mut vm, 0x30, "MEM_UNSHARE")?, OK, "MEM_UNSHARE");
    check!(!loads(&edu, page, 0x1234, own)?, "a load from the page that was taken back");
    check!(!stores(&edu, page, own)?, "a store to the page that was taken back");
    check_eq!(told(&mut vm, 0x38, "content")?, 0x1234, "the content after the device's attempts");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn pages_come_back() -> Outcome {
    let edu = device()?;
    let own = pages::take(1, 4096);
    let mut vm = Vm::protected(programs::private(), 1)?;
    let page = vm.memory + 0x1000;
    told(&mut vm, 0x10, "written")?;
    check!(!loads(&edu, page, SECRET, own)?, "a load from the VM's page");
    vm.destroy()?;
    check!(loads(&edu, page, 0, own)?, "a load from a page that came back");
    check!(stores(&edu, page, own)?, "a store to a page that came back");
    vm::clean(page, 8);
    check_eq!(pages::read(page), JUNK, "what the device stored");
    pages::reset();
    Ok(())
}

/// What an SMMU knows of a block must go when it is split, also if the device never asked for the page that is given.
fn a_split_block() -> Outcome {
    let edu = device()?;
    let own = pages::take(1, 4096);
    for _ in 0..2 {
        let vm = Vm::protected(programs::spins(), 1)?;
        let (page, neighbour) = (vm.memory, vm.memory + 0x8000);
        let content = pages::read(page);
        put(neighbour, PATTERN);
        check!(loads(&edu, neighbour, PATTERN, own)?, "a load from the neighbour");
        check!(vm.map(programs::RAM).ok(), "MAP_GUEST");
        check!(!loads(&edu, page, content, own)?, "a load from the VM's page");
        check!(loads(&edu, neighbour, PATTERN, own)?, "a load from the neighbour, afterwards");
        vm.destroy()?;
        check!(loads(&edu, page, 0, own)?, "a load from a page that came back");
    }
    pages::reset();
    Ok(())
}

/// What the host gave for a VM's tables is the hypervisor's, for devices too.
fn memory_for_tables() -> Outcome {
    let edu = device()?;
    let own = pages::take(1, 4096);
    let vm = Vm::new(programs::spins(), 1)?;
    let block = pages::take(512, 2 << 20);
    let words = [block, block + 0x10_0000, block + 0x1F_FFF8];
    for word in words {
        put(word, PATTERN);
        check!(loads(&edu, word, PATTERN, own)?, "a load from {word:#x} before it is given");
    }
    check!(vm.call(Function::GiveMemory, &[block >> 12]).ok(), "GIVE_MEMORY");
    for word in words {
        check!(!loads(&edu, word, PATTERN, own)?, "a load from {word:#x}");
        check!(!stores(&edu, word, own)?, "a store to {word:#x}");
    }
    vm.destroy()?;
    for word in words {
        check!(loads(&edu, word, 0, own)?, "a load from {word:#x}, which came back");
    }
    pages::reset();
    Ok(())
}

/// Neither the SMMU's registers nor those of bus masters behind none: fw_cfg and virtio-mmio of QEMU's `virt`.
fn smmu_is_not_the_hosts() -> Outcome {
    use dtoolkit::Node;
    use dtoolkit::standard::NodeStandard;
    device()?;
    let Some(fdt) = machine::get().fdt else { fail!("no device tree") };
    for node in fdt.root().children() {
        check!(!node.is_compatible("arm,smmu-v3"), "{} is in the host's tree", node.name());
        for name in ["iommu-map", "iommus", "msi-map"] {
            check!(node.property(name).is_none(), "{} has {name}", node.name());
        }
        for part in node.children() {
            check!(!part.is_compatible("arm,gic-v3-its"), "{} is in the host's tree", part.name());
        }
        let withheld = node.is_compatible("qemu,fw-cfg-mmio") || node.is_compatible("virtio,mmio");
        check!(!withheld, "{} is in the host's tree", node.name());
    }
    for address in
        [0x905_0000, 0x906_0000, 0x906_FFFC, 0x902_0010, 0xA00_0000, 0xA00_3E00, 0x808_0000, 0x809_0040]
    {
        let aborts = counter(Counter::HostAbort)?;
        check!(exception::expect(|| edu::touch(address)).is_err(), "the host reaches {address:#x}");
        check_eq!(counter(Counter::HostAbort)?, aborts + 1, "aborts counted");
    }
    Ok(())
}

/// GICR_PROPBASER and GICR_PENDBASER point where the GIC reads and writes: the host can't set them, nor enable LPIs.
fn gic_has_no_tables() -> Outcome {
    device()?;
    let Some(gic) = machine::get().gic else { fail!("no GIC") };
    let target = host::hypervisor_memory()?.start;
    for cpu in 0..smp::count() as u64 {
        // SAFETY: a redistributor's registers, by the device tree.
        let rd = unsafe { mmio::Region::new(gic.redistributors.start + cpu * 0x2_0000, 0x1000) };
        check_eq!(rd.read64(0x08) & 0xF, 0, "GICR_TYPER: LPI features");
        check_eq!(rd.read32(0x08) & 0xF, 0, "GICR_TYPER, lower half");
        check_eq!(u64::from(rd.read32(0x0C)), rd.read64(0x08) >> 32, "GICR_TYPER, upper half");
        for register in [0x70, 0x78] {
            let before = rd.read64(register);
            rd.write64(register, target | 0xF);
            check_eq!(rd.read64(register), before, "register {register:#x}");
            rd.write32(register, target as u32);
            rd.write32(register + 4, 0);
            check_eq!(rd.read64(register), before, "register {register:#x} by halves");
        }
        let control = rd.read32(0);
        rd.write32(0, control | 1);
        check_eq!(rd.read32(0) & 1, 0, "GICR_CTLR.EnableLPIs");
        let aborts = counter(Counter::HostAbort)?;
        check!(exception::expect(|| rd.read8(0x14)).is_err(), "a load of one byte");
        check_eq!(counter(Counter::HostAbort)?, aborts + 1, "aborts counted");
        if cpu == 0 {
            check_eq!(rd.read32(0x14) & 6, 0, "GICR_WAKER of a CPU that is awake");
        }
    }
    Ok(())
}

/// Where the SMMU can't be driven (boot argument `smmu=blocked`), a device reaches nothing.
fn blocked_altogether() -> Outcome {
    if machine::get().arg("smmu") != Some("blocked") {
        skip!("the SMMU is not blocked");
    }
    let edu = device()?;
    let page = pages::take(1, 4096);
    put(page, JUNK);
    check!(edu.load(page), "the device does not end");
    put(page, PATTERN);
    check!(edu.store(page), "the device does not end");
    vm::clean(page, 8);
    check_eq!(pages::read(page), PATTERN, "the page after a store");
    pages::reset();
    Ok(())
}
