// SPDX-License-Identifier: Apache-2.0 OR MIT

use super::*;
use proptest::prelude::*;

const BITS: u8 = 40;
const EDGES: [u64; 12] = [
    0,
    1,
    2,
    (1 << 28) - 1,
    1 << 28,
    (1 << 28) + 1,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 52,
    1 << 63,
    u64::MAX,
];

fn header(slot: u32, gpa: u64, total_pages: u64) -> RegionHeader {
    RegionHeader { slot, constituents: 0xFFFF_FFFF, total_pages, gpa: Ipa(gpa) }
}

fn pages(gpa: u64, n: u64) -> IpaRange {
    IpaRange::from_pages(Ipa(gpa), n).unwrap()
}

#[test]
fn ranges_of_memory() {
    let mut s = Slots::new(BITS);
    for (id, gpa, pages) in [(4, 0x8000_0000, 16), (1, 0x8001_0000, 1), (0, 0x8001_2000, 1)] {
        s.set_region(&header(id, gpa, pages)).unwrap();
    }
    for (base, length) in [(0x8000_0000, 1), (0x8000_0000, 0x1_1000), (0x8000_FFFF, 2), (0x8001_2FFF, 1)] {
        assert!(s.hold(Ipa(base), length), "{base:#x} + {length:#x}");
    }
    for (base, length) in [
        (0x8000_0000, 0),
        (0x7FFF_FFFF, 1),
        (0x7FFF_FFFF, 2),
        (0x8000_0000, 0x1_1001),
        (0x8001_1000, 1),
        (0x8001_2FFF, 2),
        (0x8001_2FFF, u64::MAX),
        (u64::MAX, 1),
    ] {
        assert!(!s.hold(Ipa(base), length), "{base:#x} + {length:#x}");
    }
    assert!(!Slots::new(BITS).hold(Ipa(0), 1));
}

#[test]
fn register_then_populate() {
    let mut s = Slots::new(BITS);
    s.announce(Ipa(0x8000_0000), 0x10_0000, 1).unwrap();
    let slot = Slot { id: 0, range: pages(0x8000_0000, 256), purpose: Purpose::GUEST_MEM };
    assert_eq!(s.set_region(&header(0, 0x8000_0000, 256)), Ok(SetRegion::Registered(slot)));
    let part = pages(0x8000_1000, 3);
    assert_eq!(s.set_region(&header(0, 0x8000_1000, 3)), Ok(SetRegion::Populate(slot, part)));
    assert_eq!(s.set_region(&header(0, 0x7fff_f000, 3)), Err(SlotError::OutsideSlot));
    assert_eq!(s.set_region(&header(0, 0x800f_f000, 2)), Err(SlotError::OutsideSlot));
    assert_eq!(s.set_region(&header(1, 0x800f_f000, 2)), Err(SlotError::Overlap(0)));
    assert_eq!(s.set_region(&header(1, 0x7fff_f000, 9999)), Err(SlotError::Overlap(0)));
    // A purpose counts for its own range only, and once.
    s.announce(Ipa(0x7fc0_0000), 0x40_0000, 1).unwrap();
    s.announce(Ipa(0x7fc0_0000), 0x40_0000, 2).unwrap();
    let Ok(SetRegion::Registered(other)) = s.set_region(&header(9, 0x9000_0000, 1)) else { panic!() };
    assert_eq!(other.purpose, Purpose::empty());
    let Ok(SetRegion::Registered(fw)) = s.set_region(&header(1, 0x7fc0_0000, 1024)) else { panic!() };
    assert_eq!(fw.purpose, Purpose::PROTECTED_FW);
    assert_eq!(s.find(Ipa(0x800f_ffff)), Some(&slot));
    assert_eq!(s.find(Ipa(0x7fff_ffff)), Some(&fw));
    assert_eq!(s.find(Ipa(0x8010_0000)), None);
    assert_eq!(s.find(Ipa(u64::MAX)), None);
    assert_eq!(s.iter().count(), 3);
}

#[test]
fn boundaries() {
    let mut s = Slots::new(BITS);
    for id in [MAX_MEMSLOTS as u32, MAX_MEMSLOTS as u32 + 1, 1 << 31, u32::MAX] {
        assert_eq!(s.set_region(&header(id, 0, 1)), Err(SlotError::NoSuchSlot(id)));
        assert_eq!(s.pages_of(id, 0, 1), Err(SlotError::NoSuchSlot(id)));
    }
    assert_eq!(s.pages_of(9, 0, 1), Err(SlotError::NotRegistered(9)));
    assert!(s.set_region(&header(0, 1 << 40, 1)).is_err());
    assert!(s.set_region(&header(0, (1 << 40) - 4096, 2)).is_err());
    assert!(s.set_region(&header(0, 1, 1)).is_err());
    s.set_region(&header(9, (1 << 40) - 4096, 1)).unwrap();
    s.set_region(&header(0, 0x1000, 4)).unwrap();
    let size = 1u64 << 40;
    for gfn in EDGES {
        for n in EDGES {
            let inside = n > 0 && (1..5).contains(&gfn) && n <= 5 - gfn;
            assert_eq!(s.pages_of(0, gfn, n).is_ok(), inside, "{gfn:#x} {n:#x}");
            // What is accepted lies in the address space, and nothing wraps.
            if let Ok(SetRegion::Registered(slot)) =
                Slots::new(BITS).set_region(&header(3, gfn.wrapping_mul(4096), n))
            {
                assert!(slot.range.end().0 <= size && slot.range.pages() == n);
            }
        }
    }
    for flags in [8, 1 << 31, 1 << 32, 1 | 1 << 32, u64::MAX] {
        assert!(matches!(s.announce(Ipa(0), 4096, flags), Err(SlotError::Purpose(_))), "{flags:#x}");
    }
    for n in 0..MAX_MEMSLOTS as u64 {
        s.announce(Ipa(n * 4096), 4096, 0).unwrap();
    }
    assert_eq!(s.announce(Ipa(MAX_MEMSLOTS as u64 * 4096), 4096, 0), Err(SlotError::TooManyPurposes));
    s.announce(Ipa(4096), 4096, 4).unwrap();
}

#[test]
fn all_slots_in_any_order() {
    let mut s = Slots::new(BITS);
    let count = MAX_MEMSLOTS as u32;
    // 37 and 64 have no common factor: each number once.
    for n in 0..count {
        let id = n * 37 % count;
        let region = header(id, u64::from(id) * 0x3000, 2);
        assert!(matches!(s.set_region(&region), Ok(SetRegion::Registered(_))), "{id}");
    }
    assert!(s.iter().is_sorted_by_key(|slot| slot.range.start()));
    for id in 0..count {
        let at = u64::from(id) * 0x3000;
        assert_eq!(s.find(Ipa(at)).map(|slot| slot.id), Some(id));
        assert_eq!(s.find(Ipa(at + 0x1fff)).map(|slot| slot.id), Some(id));
        assert_eq!(s.find(Ipa(at + 0x2000)), None);
    }
}

#[test]
fn a_removed_slot_is_gone_and_its_number_free() {
    let mut s = Slots::new(BITS);
    assert_eq!(s.remove(3), Err(SlotError::NotRegistered(3)));
    assert_eq!(s.remove(MAX_MEMSLOTS as u32), Err(SlotError::NoSuchSlot(MAX_MEMSLOTS as u32)));
    for id in 0..4 {
        s.set_region(&header(id, u64::from(id) << 20, 256)).unwrap();
    }
    assert_eq!(s.remove(2).unwrap().range, pages(2 << 20, 256));
    assert_eq!(s.remove(2), Err(SlotError::NotRegistered(2)));
    assert_eq!(s.find(Ipa(2 << 20)), None);
    assert_eq!(s.find(Ipa(3 << 20)).unwrap().id, 3);
    assert!(matches!(s.set_region(&header(2, 0x10_0000_0000, 1)), Ok(SetRegion::Registered(_))));
    assert!(matches!(s.set_region(&header(7, 2 << 20, 256)), Ok(SetRegion::Registered(_))));
}

#[test]
fn ranges_of_any_slot() {
    let mut s = Slots::new(BITS);
    s.set_region(&header(5, 0x10_0000, 16)).unwrap();
    s.set_region(&header(6, 0x11_0000, 16)).unwrap();
    assert_eq!(s.pages_of_any(0x100, 16), Ok(pages(0x10_0000, 16)));
    assert_eq!(s.pages_of_any(0x11f, 1), Ok(pages(0x11_f000, 1)));
    for (gfn, n) in
        [(0xff, 1), (0xff, 2), (0x100, 17), (0x10f, 2), (0x120, 1), (u64::MAX, 1), (0x100, u64::MAX)]
    {
        assert!(s.pages_of_any(gfn, n).is_err(), "{gfn:#x} {n:#x}");
    }
    assert_eq!(s.pages_of_any(0x100, 0), Err(SlotError::Range(RangeError::Empty)));
}

fn buffer(slot: u32, count: u32, total: u64, gpa: u64, runs: &[(u64, u32)]) -> Vec<u8> {
    let mut b = slot.to_le_bytes().to_vec();
    b.extend(count.to_le_bytes());
    b.extend(total.to_le_bytes());
    b.extend(gpa.to_le_bytes());
    for (address, pages) in runs {
        b.extend(address.to_le_bytes());
        b.extend(pages.to_le_bytes());
        b.extend([0xAA; 4]); // reserved: not looked at
    }
    b
}

#[test]
fn region_buffer() {
    for n in 0..24 {
        assert_eq!(RegionBuffer::parse(&[0; 24][..n]).unwrap_err(), RegionError::TooShort);
    }
    let mut b = buffer(3, 2, 5, 0x8000_0000, &[(0x4000_0000, 2), (0x5000_0000, 3)]);
    let want = [
        (pages(0x8000_0000, 2), PaRange::from_pages(Pa(0x4000_0000), 2).unwrap()),
        (pages(0x8000_2000, 3), PaRange::from_pages(Pa(0x5000_0000), 3).unwrap()),
    ];
    let parsed = RegionBuffer::parse(&b).unwrap();
    assert_eq!(parsed.header().slot, 3);
    assert_eq!(parsed.constituents().unwrap().collect::<Vec<_>>(), want);
    b.resize(8192, 0x55);
    let parsed = RegionBuffer::parse(&b).unwrap();
    assert_eq!(parsed.constituents().unwrap().collect::<Vec<_>>(), want);

    let error = |b: &[u8]| RegionBuffer::parse(b).unwrap().constituents().unwrap_err();
    for count in [3, 510, 511, 1 << 28, 1 << 31, u32::MAX] {
        let b = buffer(3, count, 5, 0, &[(0x4000_0000, 2), (0x5000_0000, 3)]);
        assert_eq!(error(&b), RegionError::TooMany(count));
    }
    for total in [0, 4, 6, 1 << 32, (1 << 32) + 5, u64::MAX] {
        let b = buffer(3, 2, total, 0, &[(0x4000_0000, 2), (0x5000_0000, 3)]);
        assert!(matches!(error(&b), RegionError::WrongTotal | RegionError::Range(_)));
    }
    for (run, why) in [
        ((0x4000_0001, 1), RangeError::Unaligned),
        ((0x4000_0000, 0), RangeError::Empty),
        ((u64::MAX - 4095, 1), RangeError::Wraps),
        ((u64::MAX - 8191, 2), RangeError::Wraps),
    ] {
        let b = buffer(3, 1, u64::from(run.1).max(1), 0, &[run]);
        assert_eq!(error(&b), RegionError::Constituent(0, why));
    }
    // Large, but no range that wraps: whether it is RAM is not asked here.
    let b = buffer(3, 1, u32::MAX.into(), 0, &[(1 << 63, u32::MAX)]);
    assert_eq!(RegionBuffer::parse(&b).unwrap().constituents().unwrap().count(), 1);
    // No constituents are no pages.
    assert!(RegionBuffer::parse(&buffer(3, 0, 1, 0, &[])).unwrap().constituents().is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Any bytes: an error, or constituents that tile the header's range.
    #[test]
    fn any_buffer(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        count in prop_oneof![0u32..12, any::<u32>()],
        sane in any::<bool>(),
    ) {
        if sane && bytes.len() >= 24 {
            bytes[4..8].copy_from_slice(&count.to_le_bytes());
            bytes[16] = 0; bytes[17] &= 0xF0; bytes[23] = 0;
            let mut total = 0u64;
            for c in bytes[24..].chunks_exact_mut(16).take(count as usize) {
                c[0] = 0; c[1] &= 0xF0; c[7] = 0; c[11] = 0;
                total += u64::from(u32_at(c, 8).unwrap());
            }
            bytes[8..16].copy_from_slice(&total.to_le_bytes());
        }
        if let Ok(buffer) = RegionBuffer::parse(&bytes)
            && let Ok(constituents) = buffer.constituents()
        {
            let header = buffer.header();
            let mut at = header.gpa;
            let mut n = 0;
            for (ipa, pa) in constituents {
                prop_assert_eq!((ipa.start(), ipa.size()), (at, pa.size()));
                at = ipa.end();
                n += 1;
            }
            prop_assert_eq!(n, header.constituents);
            prop_assert_eq!(at.0 - header.gpa.0, header.total_pages * 4096);
        }
    }
}
