// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The bodies of the fuzz targets: plain functions of bytes. A panic is a finding.

use dtoolkit::fdt::Fdt;
use gzvm_abi::hypercall::{Function, REGION_BUFFER_SIZE, Tuple};
use gzvm_core::addr::{IntId, Ipa, Pa, VcpuId, VmId};
use gzvm_core::fdt::dma::Dma;
use gzvm_core::fdt::host_tree;
use gzvm_core::fdt::machine::{HostImage, Machine, Region};
use gzvm_core::memory::PaRange;
use gzvm_core::memory::ownership::{Loan, Ownership, Sizes, State, Transition};
use gzvm_core::memory::slots::{RegionBuffer, SetRegion, Slots};
use gzvm_core::vcpu::decode;
use gzvm_core::vcpu::syndrome;
use gzvm_core::vgic::{self, CpuInterface};

/// A target's name and body.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 5] =
    [("hypercall", hypercall), ("ownership", ownership), ("fdt", fdt), ("vgic", vgic), ("decode", decode)];

/// Values out of the bytes; zeros when they are used up.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn more(&self) -> bool {
        !self.0.is_empty()
    }

    fn number(&mut self, bytes: usize) -> u64 {
        let (now, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        let mut word = [0; 8];
        word[..now.len()].copy_from_slice(now);
        u64::from_le_bytes(word)
    }

    fn byte(&mut self) -> u8 {
        self.number(1) as u8
    }
}

/// Function ids and tuples; slots, purposes and region buffers of one VM.
pub fn hypercall(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut slots = Slots::new(40);
    while bytes.more() {
        let fid = bytes.number(4);
        let _ = Function::from_fid(fid).map(|f| (f.fid(), f.extension_bit()));
        match bytes.byte() % 8 {
            0 => drop(slots.announce(Ipa(bytes.number(8)), bytes.number(8), bytes.number(4))),
            1 => drop(slots.pages_of(bytes.byte().into(), bytes.number(6), bytes.number(8))),
            2 => drop(slots.pages_of_any(bytes.number(6), bytes.number(8))),
            3 => drop(slots.remove(bytes.byte().into())),
            4 => drop(slots.find(Ipa(bytes.number(6))).copied()),
            5 => {
                if let Some(tuple) = Tuple::from_reg(bytes.number(8)) {
                    assert_eq!(Tuple::from_reg(tuple.to_reg()), Some(tuple));
                }
            }
            _ => {
                let mut buffer = vec![0; REGION_BUFFER_SIZE as usize];
                let from = bytes.0.len().min(24 + 16 * usize::from(bytes.byte() % 8)).min(bytes.0.len());
                buffer[..from].copy_from_slice(&bytes.0[..from]);
                bytes.number(8);
                region(&mut slots, &buffer);
            }
        }
        let all: Vec<_> = slots.iter().map(|slot| slot.range).collect();
        assert!(
            all.windows(2).all(|pair| pair[0].end() <= pair[1].start()),
            "slots overlap or are out of order"
        );
    }
}

fn region(slots: &mut Slots, buffer: &[u8]) {
    let Ok(parsed) = RegionBuffer::parse(buffer) else { return };
    let Ok(SetRegion::Populate(slot, range)) = slots.set_region(parsed.header()) else { return };
    assert!(slot.range.covers(&range), "what is populated is not in its slot");
    let Ok(runs) = parsed.constituents() else { return };
    let mut at = range.start();
    for (ipa, pa) in runs {
        assert_eq!((ipa.start(), ipa.size()), (at, pa.size()), "runs with gaps");
        assert!(range.covers(&ipa), "a run is not in what is populated");
        at = ipa.end();
    }
}

/// Sequences of transitions over two banks: nothing changes where one is refused, and granules are conserved.
pub fn ownership(data: &[u8]) {
    const PAGE: u64 = 4096;
    let bank = |start, pages: u64| PaRange::new(Pa(start), pages * PAGE).expect("a bank");
    let banks = [bank(0x4010_0000, 700), bank(0x4060_0000, 9)];
    let sizes = Sizes::of(&banks);
    let (mut blocks, mut pages) = (vec![0; sizes.blocks], vec![0xDEAD_BEEF; sizes.pages]);
    let mut table = Ownership::new(&banks, &mut blocks, &mut pages).expect("a table");
    for bank in &banks {
        table.apply(*bank, Transition::HypervisorToHost).expect("all of it");
    }
    let state_of = |table: &Ownership<'_>, range: PaRange| {
        let mut states = vec![];
        let done = table.for_each(range, |part, state| states.push((part.pages(), state)));
        (done, states)
    };
    let mut bytes = Bytes(data);
    while bytes.more() {
        let what = bytes.byte();
        let start = Pa(0x4010_0000 + bytes.number(2) % 1500 * PAGE);
        let Ok(range) = PaRange::new(start, (1 + bytes.number(2) % 600) * PAGE) else { continue };
        let (vm, other) = (VmId(1 + u16::from(what >> 4 & 3)), VmId(1 + u16::from(what >> 6)));
        let loan = Loan { owner: vm, borrower: other, write: what & 1 != 0 };
        let transition = match what & 15 {
            0 => Transition::HostToHypervisor,
            1 => Transition::HypervisorToHost,
            2 | 3 => Transition::DonateToVm(vm),
            4 => Transition::ShareWithVm,
            5 => Transition::UnshareWithVm,
            6 => Transition::VmShare(vm),
            7 => Transition::VmUnshare(vm),
            8 => Transition::VmLend(loan),
            9 => Transition::VmRetrieve(loan),
            10 => Transition::VmRelinquish(loan),
            11 => Transition::VmReclaim(loan),
            _ => {
                if let Ok(dirty) = table.take(range, vm) {
                    assert_eq!(table.state(start), Ok(State::Dirty));
                    let scrubbed = dirty
                        .scrub(1 + u64::from(what >> 6), |_| {})
                        .or_else(|rest| rest.scrub(u64::MAX, |_| {}))
                        .expect("all of it");
                    assert_eq!(table.give_back(scrubbed), Ok(range));
                    assert_eq!(table.state(start), Ok(State::Host));
                }
                continue;
            }
        };
        let before = (state_of(&table, range), table.counts());
        if table.apply(range, transition).is_err() {
            assert_eq!((state_of(&table, range), table.counts()), before, "refused, and changed");
        }
        let counts = table.counts();
        let all = counts.hypervisor + counts.host + counts.host_shared + counts.vm + counts.vm_shared;
        assert_eq!(all + counts.lent + counts.dirty, 709, "granules are lost or made: {counts:?}");
    }
}

/// A device tree from the boot loader.
pub fn fdt(data: &[u8]) {
    // An allocation is aligned, as a tree in memory is; the input may not be.
    let bytes = data.to_vec();
    let Ok(tree) = Fdt::new(&bytes) else { return };
    let machine = Machine::from_fdt(tree);
    let _ = machine.memory_size();
    let dma = Dma::from_fdt(tree);
    let region = Region { base: 0x4000_0000, size: 0x20_0000 };
    let host = HostImage { kernel: region, initrd: Some(region), bootargs: "quiet" };
    let mut copy = vec![0; 2 * bytes.len() + 1024];
    if let Ok(length) = host_tree::write(tree, &mut copy, &host, &[region], &dma) {
        assert!(Fdt::new(&copy[..length]).is_ok(), "the host's tree is none");
    }
}

struct Heap;

impl vgic::Memory for Heap {
    type Box<T> = Box<T>;
}

/// Accesses to the GIC's frames by four vCPUs, with lines, SGIs, and list registers that a guest has written.
pub fn vgic(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut gic = Box::new(vgic::Vgic::<Heap>::new(32, Some(Box::default())));
    (0..4).for_each(|n| drop(gic.add_vcpu(VcpuId(n), 4, Box::default())));
    let mut cpus = vec![CpuInterface::default(); 4];
    while bytes.more() {
        let what = bytes.byte();
        let from = VcpuId(u16::from(what >> 4 & 3));
        let target = VcpuId(u16::from(what >> 6));
        let (offset, size) = (bytes.number(3), 1u8 << (what & 3));
        let cpu = usize::from(from.0);
        match bytes.byte() % 12 {
            0..=1 => drop(gic.dist_read(from, offset, size)),
            2..=3 => drop(gic.dist_write(from, offset, size, bytes.number(8))),
            4 => drop(gic.redist_read(from, target, offset, size)),
            5..=6 => drop(gic.redist_write(from, target, offset, size, bytes.number(8))),
            7 => drop(gic.sgi1r_write(from, bytes.number(8))),
            8 => drop(gic.set_line(IntId(offset as u32 & 127), Some(target), what & 4 != 0)),
            9 => gic.flush(from, &mut cpus[cpu]),
            10 => {
                for lr in cpus[cpu].lr.iter_mut().take(4) {
                    *lr ^= bytes.number(8);
                }
                let _ = gic.sync(from, &cpus[cpu]);
            }
            _ => drop(gic.deactivate(from, IntId(offset as u32 & 127))),
        }
    }
}

/// Instruction words and syndromes of a guest.
pub fn decode(data: &[u8]) {
    for word in data.chunks(4) {
        let mut bytes = [0; 4];
        bytes[..word.len()].copy_from_slice(word);
        let word = u32::from_le_bytes(bytes);
        let _ = decode::decode(word);
        let _ = syndrome::decode(word.into());
    }
}
