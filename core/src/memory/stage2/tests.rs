// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Examples by hand, then random sequences against a model.

use super::fake::{Machine, Translation};
use super::*;
use crate::addr::{BLOCK_1G, BLOCK_2M};

const ROOT: u64 = 0x4001_0000;

fn new(ipa_bits: u8) -> (Stage2, Machine) {
    let s2 = Stage2::new(Pa(ROOT), ipa_bits, 44, 7).unwrap();
    let start = s2.start.number().into();
    (s2, Machine::new(ROOT, Stage2::root_pages(ipa_bits) as u64, start))
}

fn ipa(start: u64, size: u64) -> IpaRange {
    IpaRange::new(Ipa(start), size).unwrap()
}

/// A change through one `Machine` as both memory and TLB.
macro_rules! on {
    ($s2:ident . $call:ident ($m:ident $(, $arg:expr)*)) => {{
        let cell = core::cell::RefCell::new(&mut $m);
        let (mut mem, mut tlb) = (super::fake::Handle(&cell), super::fake::Handle(&cell));
        $s2.$call(&mut mem, &mut tlb $(, $arg)*)
    }};
}

#[test]
fn shapes() {
    for (bits, pages, t0sz, sl0) in [
        (25, 1, 39, 0),
        (30, 1, 34, 0),
        (31, 2, 33, 0),
        (34, 16, 30, 0),
        (35, 1, 29, 1),
        (39, 1, 25, 1),
        (40, 2, 24, 1),
        (43, 16, 21, 1),
        (44, 1, 20, 2),
        (48, 1, 16, 2),
    ] {
        assert_eq!(Stage2::root_pages(bits), pages, "{bits}");
        assert_eq!(Stage2::new(Pa(0x10000), bits, 48, 1).unwrap().vtcr_fields(), (t0sz, sl0), "{bits}");
    }
    for bits in [0, 24, 49, 64, 255] {
        assert_eq!(Stage2::new(Pa(0x10000), bits, 48, 1).unwrap_err(), ConfigError::IpaBits);
    }
    for bits in [0, 31, 49, 64, 255] {
        assert_eq!(Stage2::new(Pa(0x10000), 40, bits, 1).unwrap_err(), ConfigError::PaBits);
    }
    assert_eq!(Stage2::new(Pa(0x1000), 40, 40, 1).unwrap_err(), ConfigError::Root);
    assert_eq!(Stage2::new(Pa(0xff_ffff_f000), 39, 40, 1).map(|_| ()), Ok(()));
    assert_eq!(Stage2::new(Pa(1 << 40), 39, 40, 1).unwrap_err(), ConfigError::Root);
    assert_eq!(Stage2::new(Pa(!4095), 39, 48, 1).unwrap_err(), ConfigError::Root);
}

#[test]
fn identity_map_takes_no_tables() {
    let (mut s2, mut m) = new(40);
    m.allowance = 0;
    on!(s2.map(m, ipa(0, 1 << 40), Pa(0), Attrs::DEVICE)).unwrap();
    assert_eq!(
        m.translate(0x12_3456_7890),
        Translation::Mapped {
            pa: 0x12_3456_7890,
            attributes: 1 << 54 | 1 << 10 | 3 << 8 | 3 << 6 | 1 << 2,
            level: 1
        }
    );
    assert_eq!(m.invalidations, 0);
    // A hole needs two tables; with none, nothing changes.
    let hole = ipa(0x4020_0000, 0x3000);
    assert_eq!(on!(s2.unmap(m, hole)), Err(MapError::OutOfTables(OutOfTables)));
    m.allowance = 1;
    assert_eq!(on!(s2.unmap(m, hole)), Err(MapError::OutOfTables(OutOfTables)));
    m.assert_tidy();
    assert!(matches!(m.translate(0x4020_0000), Translation::Mapped { level: 1, .. }));
    m.allowance = 2;
    on!(s2.unmap(m, hole)).unwrap();
    m.assert_clean();
    m.assert_tidy();
    assert_eq!(m.translate(0x4020_2fff), Translation::Fault { descriptor: 0, level: 3 });
    assert!(matches!(m.translate(0x4020_3000), Translation::Mapped { level: 3, pa: 0x4020_3000, .. }));
    assert!(matches!(m.translate(0x4040_0000), Translation::Mapped { level: 2, pa: 0x4040_0000, .. }));
    assert_eq!(m.invalidations, 1, "one block was broken, and that is all");
    // And back.
    on!(s2.map(m, hole, Pa(0x4020_0000), Attrs::DEVICE)).unwrap();
    assert_eq!(on!(s2.coalesce(m, hole)), Ok(2));
    assert!(matches!(m.translate(0x4020_0000), Translation::Mapped { level: 1, .. }));
    m.assert_clean();
    m.assert_tidy();
    assert!(m.allocated.is_empty());
}

#[test]
fn ends_of_the_address_space() {
    let (mut s2, mut m) = new(40);
    let end = 1 << 40;
    for r in [ipa(end, 4096), ipa(end - 4096, 8192), ipa(1 << 63, 4096), ipa(u64::MAX - 8191, 4096)] {
        assert_eq!(on!(s2.map(m, r, Pa(0), Attrs::RAM)), Err(MapError::IpaOutOfRange));
        assert_eq!(on!(s2.unmap(m, r)), Err(MapError::IpaOutOfRange));
        assert_eq!(on!(s2.protect(m, r, Attrs::RAM)), Err(MapError::IpaOutOfRange));
        assert_eq!(on!(s2.coalesce(m, r)), Err(MapError::IpaOutOfRange));
    }
    for pa in [1, 1 << 44, (1 << 44) - 4096, 1 << 63, !4095] {
        assert_eq!(on!(s2.map(m, ipa(0, 8192), Pa(pa), Attrs::RAM)), Err(MapError::PaOutOfRange));
    }
    on!(s2.map(m, ipa(end - 4096, 4096), Pa((1 << 44) - 4096), Attrs::RAM)).unwrap();
    assert!(matches!(s2.walk(&m, Ipa(end - 1)), Walk::Mapped { pa: Pa(pa), .. } if pa == (1 << 44) - 1));
    // An IPA with unused high bits is not the one without them (XSA-301).
    for high in [end, 1 << 47, 1 << 48, 1 << 63] {
        assert_eq!(s2.walk(&m, Ipa(high | (end - 1))), Walk::OutOfRange);
    }
}

#[test]
fn same_mapping_twice() {
    let (mut s2, mut m) = new(40);
    on!(s2.map(m, ipa(0x8020_0000, BLOCK_2M), Pa(0x4000_0000), Attrs::RAM)).unwrap();
    m.allowance = 0;
    on!(s2.map(m, ipa(0x8020_0000, BLOCK_2M), Pa(0x4000_0000), Attrs::RAM)).unwrap();
    on!(s2.map(m, ipa(0x8020_1000, 4096), Pa(0x4000_1000), Attrs::RAM)).unwrap();
    let at = Err(MapError::Conflict(Ipa(0x8020_1000)));
    assert_eq!(on!(s2.map(m, ipa(0x8020_1000, 4096), Pa(0x4000_2000), Attrs::RAM)), at);
    assert_eq!(on!(s2.map(m, ipa(0x8020_1000, 4096), Pa(0x4000_1000), Attrs::RAM_RO)), at);
    m.allowance = 9;
    assert_eq!(
        on!(s2.map(m, ipa(0x801f_f000, 0x2000), Pa(0x5000_0000), Attrs::RAM)),
        Err(MapError::Conflict(Ipa(0x8020_0000)))
    );
    assert_eq!(m.translate(0x801f_f000), Translation::Fault { descriptor: 0, level: 2 });
    m.assert_tidy();
    assert_eq!(m.invalidations, 0);
}

#[test]
fn a_vacancy_that_is_none_any_more() {
    let (mut s2, mut m) = new(40);
    on!(s2.map(m, ipa(0x8000_0000, 4096), Pa(0x4000_0000), Attrs::RAM)).unwrap();
    assert!(s2.vacancy(&m, ipa(0x8000_0000, 8192)).is_none());
    assert!(s2.vacancy(&m, ipa(0x8000_1000, BLOCK_2M)).is_none());
    let two = s2.vacancy(&m, ipa(0x8000_1000, 8192)).unwrap();
    let page = s2.vacancy(&m, ipa(0x8000_1000, 4096)).unwrap();
    let block = s2.vacancy(&m, ipa(0x8020_0000, BLOCK_2M)).unwrap();
    on!(s2.fill(m, two, Pa(0x5000_0000), Attrs::RAM)).unwrap();
    let at = Err(MapError::Conflict(Ipa(0x8000_1000)));
    assert_eq!(on!(s2.fill(m, page, Pa(0x6000_0000), Attrs::RAM)), at);
    // Stale, but empty still.
    on!(s2.fill(m, block, Pa(0x4020_0000), Attrs::RAM)).unwrap();
    let Walk::Mapped { pa, level, .. } = s2.walk(&m, Ipa(0x8020_1234)) else { panic!() };
    assert_eq!((pa, level), (Pa(0x4020_1234), Level::L2));
    // Its table is gone.
    let page = s2.vacancy(&m, ipa(0x8000_3000, 4096)).unwrap();
    on!(s2.unmap(m, ipa(0x8000_0000, BLOCK_2M))).unwrap();
    on!(s2.fill(m, page, Pa(0x7000_0000), Attrs::RAM)).unwrap();
    m.assert_tidy();
    // Not on a block's border, so it is pages; and the machine's end is looked at here, too.
    let block = s2.vacancy(&m, ipa(0x8040_0000, BLOCK_2M)).unwrap();
    on!(s2.fill(m, block, Pa(0x4040_1000), Attrs::RAM)).unwrap();
    let Walk::Mapped { level, .. } = s2.walk(&m, Ipa(0x8040_0000)) else { panic!() };
    assert_eq!(level, Level::L3);
    let block = s2.vacancy(&m, ipa(0x8060_0000, BLOCK_2M)).unwrap();
    assert_eq!(on!(s2.fill(m, block, Pa(1 << 44), Attrs::RAM)), Err(MapError::PaOutOfRange));
    let mut visits = 0;
    let progress = on!(s2.teardown_step(m, u64::MAX, |_, _| visits += 1));
    assert_eq!((progress, visits), (Progress::Done, 1 + 1 + 512));
    assert_eq!(on!(s2.fill(m, block, Pa(0x4060_0000), Attrs::RAM)), Err(MapError::Dying));
}

#[test]
fn teardown_by_one() {
    let (mut s2, mut m) = new(40);
    on!(s2.map(m, ipa(BLOCK_1G - 4096, BLOCK_1G + BLOCK_2M + 8192), Pa(2 * BLOCK_1G - 4096), Attrs::RAM))
        .unwrap();
    on!(s2.annotate(m, ipa(0, 4096), Annotation(5))).unwrap();
    on!(s2.annotate(m, ipa(8 * BLOCK_1G, BLOCK_1G), Annotation(5))).unwrap();
    let mut seen = vec![];
    let mut steps = 0;
    while on!(s2.teardown_step(m, 1, |_, r| seen.push((r.ipa.start().0, r.pa.start().0, r.pa.size()))))
        == Progress::More
    {
        steps += 1;
        assert_eq!(on!(s2.map(m, ipa(0, 4096), Pa(0), Attrs::RAM)), Err(MapError::Dying));
        assert!(matches!(s2.walk(&m, Ipa(BLOCK_1G)), Walk::Unmapped { .. }));
        m.assert_clean();
    }
    assert_eq!(
        seen,
        [
            (BLOCK_1G - 4096, 2 * BLOCK_1G - 4096, 4096),
            (BLOCK_1G, 2 * BLOCK_1G, BLOCK_1G),
            (2 * BLOCK_1G, 3 * BLOCK_1G, BLOCK_2M),
            (2 * BLOCK_1G + BLOCK_2M, 3 * BLOCK_1G + BLOCK_2M, 4096),
        ]
    );
    assert!(steps > 2000);
    assert!(m.allocated.is_empty());
    assert_eq!((m.invalidations, m.invalidated_all), (0, 1));
    assert!((0..1024).all(|i| m.translate(i << 30) == Translation::Fault { descriptor: 0, level: 1 }));
    assert_eq!(on!(s2.teardown_step(m, 1, |_, _| panic!("twice"))), Progress::Done);
}

#[test]
fn no_blocks_at_level_0() {
    let (mut s2, mut m) = new(48);
    let all = ipa(0, 512 * BLOCK_1G);
    s2.pa_bits = 48;
    on!(s2.map(m, all, Pa(0), Attrs::RAM)).unwrap();
    assert_eq!(m.allocated.len(), 1);
    assert!(matches!(m.translate(511 * BLOCK_1G), Translation::Mapped { level: 1, .. }));
    assert_eq!(on!(s2.coalesce(m, all)), Ok(0));
    m.assert_tidy();
}

/// Taking pages one by one from a block, and giving them back in another order, ends as it began.
#[test]
fn page_by_page_and_back() {
    let (mut s2, mut m) = new(40);
    let note = Annotation(0x1234);
    on!(s2.map(m, ipa(0, 4 * BLOCK_1G), Pa(0), Attrs::RAM)).unwrap();
    for page in 0..512 {
        on!(s2.annotate(m, ipa(BLOCK_1G + page * 4096, 4096), note)).unwrap();
    }
    m.assert_tidy();
    // All of a block's pages are gone: so is their table.
    assert_eq!(m.allocated.len(), 1);
    assert_eq!(s2.walk(&m, Ipa(BLOCK_1G)), Walk::Unmapped { note, level: Level::L2 });
    for page in (0..512).rev() {
        let page = ipa(BLOCK_1G + page * 4096, 4096);
        assert_eq!(
            on!(s2.map(m, page, Pa(page.start().0), Attrs::RAM)),
            Err(MapError::Conflict(page.start())),
            "what a note holds is not mapped by the way"
        );
        on!(s2.map_over(m, page, Pa(page.start().0), Attrs::RAM, note)).unwrap();
    }
    assert_eq!(on!(s2.coalesce(m, ipa(BLOCK_1G, BLOCK_2M))), Ok(2));
    assert!(m.allocated.is_empty());
    assert!(matches!(m.translate(BLOCK_1G), Translation::Mapped { level: 1, .. }));
    m.assert_clean();
}
