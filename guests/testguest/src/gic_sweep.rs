// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Every byte offset of the GIC's frames, in every width and both directions, from the vCPU itself and from
//! another one. Under gzvm the outcome is what [`WORDS`] says; elsewhere it only must not hang.
//!
//! Words are the rule (IHI 0069, 12.1.3): bytes for priorities, double words for 64-bit registers; every other
//! width reads as zero and writes nothing. Unaligned accesses are the guest's own alignment faults, for
//! the frames are device memory.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::exception::{self, ec};
use gzvm_guest_kit::mmio::Region;
use gzvm_guest_kit::{arch, cases, check, check_eq, fail, gic, machine, skip, smp};

use crate::util::{Below, below, join_second, start_second};

pub const CASES: &[Case] = cases!["gic":
    every_distributor_read, every_redistributor_read, every_unaligned_access, every_distributor_write,
    every_redistributor_write, every_access_from_another_cpu, works_after_all_that,
];

/// A frame of 64 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Frame {
    Distributor,
    /// RD_base.
    Control,
    /// SGI_base.
    Private,
}

/// What a word of registers does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Always reads as this.
    Constant(u32),
    /// Has a value of its own that writes don't change.
    ReadOnly,
    /// GICD_CTLR.
    Control,
    /// GICR_WAKER.
    Waker,
    /// Bits that hold what is written.
    Holds(u32),
    /// Bits that writes of one set, or clear at the same place of the second register; reads as what is set.
    Sets,
    /// See [`Sets`](Self::Sets).
    Clears,
    /// As these two, with bits that come and go by themselves.
    Status,
    /// The low half of a GICD_IROUTER.
    Route,
}

/// A run of registers of one kind. `per_byte`: INTIDs a byte holds; words without any are reserved.
struct Words(Frame, Range<usize>, Kind, usize);

/// IHI 0069, 12.8 to 12.11; no LPIs, no message-based or extended SPIs, one security state. What is not here is
/// reserved: zero.
const WORDS: &[Words] = &[
    Words(Frame::Distributor, 0x0000..0x0004, Kind::Control, 0),
    Words(Frame::Distributor, 0x0004..0x000C, Kind::ReadOnly, 0), // TYPER, IIDR
    Words(Frame::Distributor, 0x0080..0x0100, Kind::Holds(!0), 8), // IGROUPR
    Words(Frame::Distributor, 0x0100..0x0180, Kind::Sets, 8),
    Words(Frame::Distributor, 0x0180..0x0200, Kind::Clears, 8),
    Words(Frame::Distributor, 0x0200..0x0400, Kind::Status, 8),
    Words(Frame::Distributor, 0x0400..0x0800, Kind::Holds(0xF8F8_F8F8), 1), // IPRIORITYR
    Words(Frame::Distributor, 0x0C00..0x0D00, Kind::Holds(0xAAAA_AAAA), 4), // ICFGR
    Words(Frame::Distributor, 0x6100..0x8000, Kind::Route, 0),
    Words(Frame::Control, 0x0004..0x0010, Kind::ReadOnly, 0), // IIDR, TYPER
    Words(Frame::Control, 0x0014..0x0018, Kind::Waker, 0),
    Words(Frame::Private, 0x0080..0x0084, Kind::Holds(!0), 0),
    Words(Frame::Private, 0x0100..0x0104, Kind::Sets, 0),
    Words(Frame::Private, 0x0180..0x0184, Kind::Clears, 0),
    Words(Frame::Private, 0x0200..0x0204, Kind::Status, 0),
    Words(Frame::Private, 0x0280..0x0284, Kind::Status, 0),
    Words(Frame::Private, 0x0300..0x0304, Kind::Status, 0),
    Words(Frame::Private, 0x0380..0x0384, Kind::Status, 0),
    Words(Frame::Private, 0x0400..0x0420, Kind::Holds(0xF8F8_F8F8), 0),
    Words(Frame::Private, 0x0C00..0x0C04, Kind::Constant(0xAAAA_AAAA), 0), // SGIs are edge-triggered
    Words(Frame::Private, 0x0C04..0x0C08, Kind::Holds(0xAAAA_AAAA), 0),
    Words(Frame::Distributor, 0xFFE8..0xFFEC, Kind::Constant(0x3B), 0), // PIDR2
    Words(Frame::Distributor, 0xFFF0..0xFFF4, Kind::Constant(0x0D), 0), // CIDR0..3
    Words(Frame::Distributor, 0xFFF4..0xFFF8, Kind::Constant(0xF0), 0),
    Words(Frame::Distributor, 0xFFF8..0xFFFC, Kind::Constant(0x05), 0),
    Words(Frame::Distributor, 0xFFFC..0x1_0000, Kind::Constant(0xB1), 0),
    Words(Frame::Control, 0xFFE8..0xFFEC, Kind::Constant(0x3B), 0),
    Words(Frame::Control, 0xFFF0..0xFFF4, Kind::Constant(0x0D), 0),
    Words(Frame::Control, 0xFFF4..0xFFF8, Kind::Constant(0xF0), 0),
    Words(Frame::Control, 0xFFF8..0xFFFC, Kind::Constant(0x05), 0),
    Words(Frame::Control, 0xFFFC..0x1_0000, Kind::Constant(0xB1), 0),
];

/// What the word at `offset` is; SPIs end at `limit`.
fn kind(frame: Frame, offset: usize, limit: usize) -> Kind {
    let Some(Words(_, range, kind, per_byte)) = WORDS.iter().find(|w| w.0 == frame && w.1.contains(&offset))
    else {
        return Kind::Constant(0);
    };
    if *kind == Kind::Route {
        let intid = (offset - 0x6000) / 8;
        return if intid < limit && offset % 8 == 0 { Kind::Route } else { Kind::Constant(0) };
    }
    if *per_byte == 0 {
        return *kind;
    }
    // SGIs and PPIs are in the redistributor. The two halves of a set/clear run count alike.
    let in_run = if *kind == Kind::Status { (offset - range.start) % 0x80 } else { offset - range.start };
    let first = in_run * per_byte;
    if (32..limit).contains(&first) { *kind } else { Kind::Constant(0) }
}

fn is_priority(frame: Frame, offset: usize) -> bool {
    frame != Frame::Control && (0x400..0x800).contains(&offset)
}

/// 64-bit registers: GICD_IROUTER, GICR_TYPER.
fn is_double(frame: Frame, offset: usize) -> bool {
    frame == Frame::Distributor && (0x6100..0x8000).contains(&offset)
        || frame == Frame::Control && offset == 8
}

/// One access, whose abort is fine where we don't know what is below.
fn access<T>(
    f: impl FnOnce() -> T,
    what: &str,
    offset: usize,
) -> Result<Option<T>, gzvm_guest_kit::case::Verdict> {
    match exception::expect(f) {
        Ok(value) => Ok(Some(value)),
        Err(e) if below() != Below::Gzvm && matches!(e.class(), ec::DATA_ABORT | ec::SERROR) => Ok(None),
        Err(e) => fail!("{what} at {offset:#x}: {e}"),
    }
}

/// Offsets of a frame's words. Of a GIC that is not ours some of the reserved ones do.
fn words(ours: bool) -> impl Iterator<Item = usize> {
    (0..0x1_0000).step_by(4).filter(move |offset| {
        ours || *offset < 0x1000
            || (0x6000..0x6400).contains(offset)
            || *offset >= 0xFF00
            || offset % 0x80 == 0x44
    })
}

/// Every read of a frame at `base` of `region`.
fn read_frame(region: Region, base: usize, frame: Frame) -> Outcome {
    let limit = gic::spi_limit() as usize;
    let ours = below() == Below::Gzvm;
    for offset in words(ours) {
        let at = base + offset;
        let word = access(|| region.read32(at), "word", offset)?.unwrap_or(0);
        let bytes = [0, 1, 2, 3].map(|i| exception::expect(|| region.read8(at + i)));
        let halves = [0, 2].map(|i| exception::expect(|| region.read16(at + i)));
        let double = if offset % 8 == 0 { exception::expect(|| region.read64(at)) } else { Ok(0) };
        if !ours {
            continue;
        }
        let kind = kind(frame, offset, limit);
        match kind {
            Kind::Constant(value) => check_eq!(word, value, "{frame:?}+{offset:#x}"),
            Kind::Holds(mask) => check_eq!(word & !mask, 0, "{frame:?}+{offset:#x}"),
            Kind::Route => check_eq!(word & 0x7F00_0000, 0, "{frame:?}+{offset:#x}"),
            Kind::Control => check_eq!(word & !3, 0x50, "GICD_CTLR"),
            Kind::Waker => check_eq!(word, 0, "GICR_WAKER"),
            Kind::ReadOnly | Kind::Sets | Kind::Clears | Kind::Status => {}
        }
        for (i, byte) in bytes.into_iter().enumerate() {
            let value = if is_priority(frame, offset) { word.to_le_bytes()[i] } else { 0 };
            check_eq!(byte, Ok(value), "byte {frame:?}+{:#x}", offset + i);
        }
        check_eq!(halves, [Ok(0); 2], "half-words {frame:?}+{offset:#x}");
        let value = if is_double(frame, offset) {
            u64::from(region.read32(at + 4)) << 32 | u64::from(word)
        } else {
            0
        };
        check_eq!(double, Ok(value), "double word {frame:?}+{offset:#x}");
    }
    Ok(())
}

/// What a word reads as after all ones were written.
fn after_ones(kind: Kind, before: u32) -> Option<u32> {
    match kind {
        Kind::Constant(value) => Some(value),
        Kind::ReadOnly => Some(before),
        Kind::Control => Some(0x53),
        Kind::Waker => Some(6),
        Kind::Holds(mask) => Some(mask),
        Kind::Sets => Some(!0),
        Kind::Clears => Some(0),
        Kind::Status => None,
        Kind::Route => Some(0x80FF_FFFF),
    }
}

/// Every write of a frame, and what it leaves.
fn write_frame(region: Region, base: usize, frame: Frame) -> Outcome {
    let limit = gic::spi_limit() as usize;
    let ours = below() == Below::Gzvm;
    for offset in words(ours) {
        let at = base + offset;
        let kind = kind(frame, offset, limit);
        let before = access(|| region.read32(at), "word", offset)?.unwrap_or(0);
        // Widths that write nothing.
        let double = is_double(frame, offset);
        if ours && kind != Kind::Status {
            for i in 0..4 {
                if !is_priority(frame, offset) {
                    access(|| region.write8(at + i, 0xFF), "byte", offset + i)?;
                }
            }
            access(|| region.write16(at, !0), "half-word", offset)?;
            access(|| region.write16(at + 2, !0), "half-word", offset + 2)?;
            if offset % 8 == 0 && !double {
                access(|| region.write64(at, !0), "double word", offset)?;
            }
            check_eq!(region.read32(at), before, "{frame:?}+{offset:#x} after writes of wrong widths");
        } else {
            access(|| region.write8(at, 0xFF), "byte", offset)?;
            access(|| region.write16(at, !0), "half-word", offset)?;
            if offset % 8 == 0 {
                access(|| region.write64(at, !0), "double word", offset)?;
            }
        }
        access(|| region.write32(at, !0), "word", offset)?;
        let word = access(|| region.read32(at), "word", offset)?;
        if ours && let (Some(expected), Some(word)) = (after_ones(kind, before), word) {
            check_eq!(word, expected, "{frame:?}+{offset:#x} after ones");
        }
        if ours && is_priority(frame, offset) && matches!(kind, Kind::Holds(_)) {
            for i in 0..4 {
                region.write8(at + i, 0x10 * (i as u8 + 1));
            }
            check_eq!(region.read32(at), 0x4030_2010, "{frame:?}+{offset:#x} after bytes");
        }
        if ours && double && kind == Kind::Route {
            region.write64(at, 0xFF_0000_0001);
            check_eq!(region.read64(at), 1, "{frame:?}+{offset:#x} after a double word");
        }
        match kind {
            Kind::Sets => region.write32(at + 0x80, !0),
            Kind::Status => {
                let clear = if offset % 0x100 < 0x80 { at + 0x80 } else { at };
                region.write32(clear, !0);
            }
            _ => _ = access(|| region.write32(at, before), "word", offset)?,
        }
    }
    Ok(())
}

const PRIVATE: usize = gic::gicr::SGI_FRAME;

fn every_distributor_read() -> Outcome {
    read_frame(gic::distributor(), 0, Frame::Distributor)
}

fn every_redistributor_read() -> Outcome {
    read_frame(gic::this_redistributor(), 0, Frame::Control)?;
    read_frame(gic::this_redistributor(), PRIVATE, Frame::Private)
}

fn every_unaligned_access() -> Outcome {
    const ALIGNMENT: u32 = 0x21;
    let (d, r) = (gic::distributor(), gic::this_redistributor());
    let faults = |f: &mut dyn FnMut(), offset: usize| match exception::expect(f) {
        Ok(()) => fail!("unaligned access at {offset:#x} went through"),
        Err(e) => {
            check_eq!((e.class(), e.fault_status()), (ec::DATA_ABORT, ALIGNMENT), "at {offset:#x}");
            Ok(())
        }
    };
    for region in [d, r] {
        for offset in (0..0x1000).chain(0x6000..0x6400).chain(0xFF00..0xFFF0) {
            if offset % 2 != 0 {
                faults(&mut || _ = region.read16(offset), offset)?;
                faults(&mut || region.write16(offset, !0), offset)?;
            }
            if offset % 4 != 0 {
                faults(&mut || _ = region.read32(offset), offset)?;
                faults(&mut || region.write32(offset, !0), offset)?;
            }
            if offset % 8 != 0 {
                faults(&mut || _ = region.read64(offset), offset)?;
                faults(&mut || region.write64(offset, !0), offset)?;
            }
        }
    }
    Ok(())
}

fn every_distributor_write() -> Outcome {
    let outcome = write_frame(gic::distributor(), 0, Frame::Distributor);
    restore();
    outcome
}

fn every_redistributor_write() -> Outcome {
    if below() == Below::Nothing {
        // LPI tables at random addresses.
        skip!("a real GIC would write to memory");
    }
    let outcome = write_frame(gic::this_redistributor(), 0, Frame::Control)
        .and_then(|()| write_frame(gic::this_redistributor(), PRIVATE, Frame::Private));
    restore();
    outcome
}

/// CPU 1's redistributor, while it is on and after that.
fn every_access_from_another_cpu() -> Outcome {
    static DONE: AtomicBool = AtomicBool::new(false);
    if below() != Below::Gzvm {
        skip!("gzvm's registers");
    }
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    let other = gic::redistributor(machine::get().cpus[1]).expect("no redistributor of CPU 1");
    let sweep = || {
        read_frame(other, 0, Frame::Control)?;
        read_frame(other, PRIVATE, Frame::Private)?;
        write_frame(other, 0, Frame::Control)?;
        write_frame(other, PRIVATE, Frame::Private)
    };
    DONE.store(false, SeqCst);
    start_second(|| {
        gic::init_cpu();
        while !DONE.load(SeqCst) {
            arch::cpu_relax();
        }
    })?;
    gzvm_guest_kit::timer::wait_ms(1000, || other.read32(PRIVATE + gic::gicd::IGROUPR) == !0);
    let outcome = sweep();
    DONE.store(true, SeqCst);
    join_second()?;
    outcome?;
    // And while it is off.
    read_frame(other, PRIVATE, Frame::Private)?;
    let last = gic::redistributor(machine::get().cpus[smp::count() - 1]);
    check!(last.is_some_and(|r| r.read64(gic::gicr::TYPER) & 1 << 4 != 0), "the last redistributor");
    restore();
    Ok(())
}

fn restore() {
    gic::init_distributor();
    gic::init_cpu();
    arch::isb();
}

fn works_after_all_that() -> Outcome {
    restore();
    gic::send_sgi(arch::mpidr(), 7);
    let mut taken = gic::SPURIOUS;
    gzvm_guest_kit::timer::wait_ms(1000, || {
        taken = gic::acknowledge();
        taken != gic::SPURIOUS
    });
    check_eq!(taken, 7, "interrupt");
    gic::end(taken);
    Ok(())
}
