// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The values by their fields in IHI 0070, and a stream lookup that is written from its pseudo-code.

use std::collections::HashMap;

use super::Unfit;
use super::command::{Command, MAX_BATCH, invalidation};
use super::event::Event;
use super::queue::Queue;
use super::registers::Features;
use super::stream_table::{Memory, Stage2Config, StreamRange, StreamTable, Streams};
use crate::addr::{Ipa, Pa};
use crate::memory::IpaRange;

/// QEMU's SMMUv3.
const IDR0: u32 = 0x0D4D_101B;
const IDR1: u32 = 0x0273_0010;
const IDR5: u32 = 0x74;

#[derive(Default)]
struct Fake {
    words: HashMap<u64, u64>,
    next: u64,
    left: Option<u32>,
    bytes: u64,
}

impl Memory for Fake {
    fn alloc(&mut self, bytes: u64) -> Result<Pa, Unfit> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(1).ok_or(Unfit::NoMemory)?;
        }
        let at = self.next.max(0x1000).next_multiple_of(bytes);
        self.next = at + bytes;
        self.bytes += bytes;
        Ok(Pa(at))
    }
    fn write(&mut self, at: Pa, word: u64) {
        assert!(at.0 < self.next && at.0.is_multiple_of(8));
        self.words.insert(at.0, word);
    }
}

impl Fake {
    fn word(&self, at: u64) -> u64 {
        self.words.get(&at).copied().unwrap_or(0)
    }

    /// The STE of a stream as the SMMU finds it; an event number if there is none.
    fn lookup(&self, table: StreamTable, stream: u32) -> Result<[u64; 8], u8> {
        let log2 = table.config & 0x3F;
        if u64::from(stream) >> log2 != 0 {
            return Err(0x02);
        }
        let at = if table.config >> 16 & 3 == 0 {
            table.base.0 + u64::from(stream) * 64
        } else {
            let split = table.config >> 6 & 0x1F;
            let entry = self.word(table.base.0 + u64::from(stream >> split) * 8);
            let (span, leaf) = (entry & 0x1F, entry & 0x000F_FFFF_FFFF_FFC0);
            let index = u64::from(stream) & ((1 << split) - 1);
            if span == 0 || index >> (span - 1) != 0 {
                return Err(0x02);
            }
            leaf + index * 64
        };
        let ste = std::array::from_fn(|i| self.word(at + i as u64 * 8));
        if ste[0] & 1 == 0 { Err(0x04) } else { Ok(ste) }
    }
}

fn features() -> Features {
    Features::read(IDR0, IDR1, IDR5).unwrap()
}

fn streams(ranges: &[(u32, u32)]) -> Streams {
    let mut all = Streams::default();
    for (first, count) in ranges {
        all.add(StreamRange { first: *first, count: *count }).unwrap();
    }
    all
}

fn config() -> Stage2Config {
    Stage2Config::new(Pa(0x8001_0000), (43, 1), 48, 1, 44).unwrap()
}

#[test]
fn features_of_qemu() {
    let expected = Features {
        stream_bits: 16,
        two_level: true,
        max_commands: 19,
        max_events: 19,
        address_bits: 44,
        hyp: false,
    };
    assert_eq!(features(), expected);
}

#[test]
fn what_is_missing_is_said() {
    for (idr0, idr1, idr5, why) in [
        (IDR0 & !1, IDR1, IDR5, Unfit::NoStage2),
        (IDR0 & !(1 << 4), IDR1, IDR5, Unfit::NotCoherent),
        (IDR0 & !(1 << 3), IDR1, IDR5, Unfit::Tables),
        (IDR0 | 3 << 21, IDR1, IDR5, Unfit::Tables),
        (IDR0, IDR1, IDR5 & !(1 << 4), Unfit::Tables),
        (IDR0, IDR1 | 1 << 29, IDR5, Unfit::Preset),
        (IDR0, IDR1 | 1 << 30, IDR5, Unfit::Preset),
    ] {
        assert_eq!(Features::read(idr0, idr1, idr5), Err(why));
    }
    let bits = |oas| Features::read(IDR0, IDR1, IDR5 & !7 | oas).unwrap().address_bits;
    assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(bits), [32, 36, 40, 42, 44, 48, 48, 48]);
}

fn bits(word: u64, high: u32, low: u32) -> u64 {
    word >> low & ((1 << (high - low + 1)) - 1)
}

#[test]
fn an_ste_is_stage_2_only() {
    let ste = config().ste();
    assert_eq!(bits(ste[0], 0, 0), 1, "V");
    assert_eq!(bits(ste[0], 3, 1), 0b110, "Config");
    assert_eq!(bits(ste[1], 29, 28), 0, "EATS: ATS is off");
    assert_eq!(bits(ste[1], 45, 44), 1, "SHCFG: incoming");
    assert_eq!(ste[1] & !(3 << 44), 0, "all else of word 1");
    assert_eq!(bits(ste[2], 15, 0), 1, "S2VMID");
    assert_eq!(bits(ste[2], 37, 32), 21, "S2T0SZ");
    assert_eq!(bits(ste[2], 39, 38), 1, "S2SL0");
    assert_eq!(bits(ste[2], 41, 40), 1, "S2IR0");
    assert_eq!(bits(ste[2], 43, 42), 1, "S2OR0");
    assert_eq!(bits(ste[2], 45, 44), 3, "S2SH0");
    assert_eq!(bits(ste[2], 47, 46), 0, "S2TG");
    assert_eq!(bits(ste[2], 50, 48), 4, "S2PS: the shorter of the two");
    assert_eq!(bits(ste[2], 51, 51), 1, "S2AA64");
    assert_eq!(bits(ste[2], 52, 52), 0, "S2ENDI");
    assert_eq!(bits(ste[2], 53, 53), 0, "S2AFFD");
    assert_eq!(bits(ste[2], 54, 54), 1, "S2PTW");
    assert_eq!(bits(ste[2], 56, 55), 0, "S2HD, S2HA");
    assert_eq!(bits(ste[2], 57, 57), 0, "S2S: no stall");
    assert_eq!(bits(ste[2], 58, 58), 1, "S2R");
    assert_eq!(ste[3], 0x8001_0000, "S2TTB");
    assert_eq!(ste[4..], [0; 4]);
}

#[test]
fn shorter_addresses_see_the_first_part_of_the_tables() {
    let t0sz = |c: Stage2Config| bits(c.ste()[2], 37, 32);
    let of = |ipa: (u8, u8), address_bits| Stage2Config::new(Pa(0x4000_0000), ipa, 48, 1, address_bits);
    assert_eq!(of((43, 1), 40).map(t0sz), Ok(24));
    assert_eq!(of((40, 1), 48).map(t0sz), Ok(24));
    assert_eq!(of((43, 1), 30), Err(Unfit::Addresses), "another start level");
    assert_eq!(of((48, 2), 36), Err(Unfit::Addresses), "another start level");
    assert_eq!(of((43, 3), 48), Err(Unfit::Addresses));
    assert_eq!(
        Stage2Config::new(Pa(1 << 40), (43, 1), 48, 1, 40),
        Err(Unfit::Addresses),
        "root out of reach"
    );
}

#[test]
fn a_pci_bridge_costs_three_pages() {
    let mut memory = Fake::default();
    let table = StreamTable::build(&mut memory, &features(), &streams(&[(0, 0x1_0000)]), &config()).unwrap();
    assert_eq!(memory.bytes, 3 << 12);
    for stream in [0, 1, 63, 64, 8, 0x1234, 0xFFFF] {
        assert_eq!(memory.lookup(table, stream), Ok(config().ste()), "{stream:#x}");
    }
    assert_eq!(memory.lookup(table, 0x1_0000), Err(0x02));
    assert_eq!(table.base.0 % (8 << 10), 0, "aligned to its size");
}

#[test]
fn exactly_the_known_streams_translate() {
    let cases: [&[(u32, u32)]; 6] = [
        &[],
        &[(0, 1)],
        &[(5, 3)],
        &[(0, 64), (100, 1), (128, 192), (1000, 3000)],
        &[(7, 600)],
        &[(64, 64), (192, 64), (100, 100)],
    ];
    for ranges in cases {
        for two_level in [true, false] {
            let f = Features { two_level, ..features() };
            let all = streams(ranges);
            let mut memory = Fake::default();
            let built = StreamTable::build(&mut memory, &f, &all, &config());
            let last = ranges.iter().map(|(first, count)| first + count).max().unwrap_or(0);
            if !two_level && last > 1024 {
                assert_eq!(built, Err(Unfit::Streams));
                continue;
            }
            let table = built.unwrap();
            let mut known = 0;
            for stream in 0..5000 {
                let is_known = ranges.iter().any(|(first, count)| (*first..first + count).contains(&stream));
                assert_eq!(memory.lookup(table, stream).is_ok(), is_known, "{ranges:?} {stream}");
                known += u64::from(is_known);
            }
            assert_eq!(all.count(), known);
        }
    }
}

#[test]
fn no_stream_gets_bypass() {
    let mut memory = Fake::default();
    let table = StreamTable::build(&mut memory, &features(), &streams(&[(3, 500)]), &config()).unwrap();
    for stream in 0..600 {
        if let Ok(ste) = memory.lookup(table, stream) {
            assert_eq!(bits(ste[0], 3, 1), 0b110);
        }
    }
}

#[test]
fn ids_that_the_smmu_does_not_have_cost_nothing() {
    let mut memory = Fake::default();
    let f = Features { stream_bits: 8, ..features() };
    let table = StreamTable::build(&mut memory, &f, &streams(&[(0, u32::MAX)]), &config()).unwrap();
    assert_eq!(table.config & 0x3F, 8);
    let all = streams(&[(0, u32::MAX)]);
    let wide = Features { stream_bits: 32, ..features() };
    assert_eq!(StreamTable::build(&mut memory, &wide, &all, &config()), Err(Unfit::Streams));
}

#[test]
fn out_of_memory_at_every_point() {
    for left in 0..3 {
        let mut memory = Fake { left: Some(left), ..Fake::default() };
        let all = streams(&[(0, 64), (70, 100)]);
        let built = StreamTable::build(&mut memory, &features(), &all, &config());
        assert_eq!(built, Err(Unfit::NoMemory), "{left}");
    }
}

#[test]
fn too_many_ranges_are_an_error() {
    let mut all = Streams::default();
    let results: Vec<_> = (0..40).map(|i| all.add(StreamRange { first: i * 10, count: 1 })).collect();
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), super::stream_table::MAX_STREAM_RANGES);
    assert_eq!(all.add(StreamRange { first: 0, count: 40_000 }), Ok(()), "one range of all");
    assert_eq!(all.count(), 40_000);
    assert_eq!(all.add(StreamRange { first: u32::MAX, count: 7 }), Ok(()));
    assert_eq!(all.count(), 40_001);
}

#[test]
fn commands_by_their_fields() {
    assert_eq!(Command::ForgetStreams.encode(), [0x04, 31]);
    assert_eq!(Command::ForgetAll.encode(), [0x30, 0]);
    assert_eq!(Command::ForgetEl2.encode(), [0x20, 0]);
    assert_eq!(Command::ForgetVm(0x1234).encode(), [0x0000_1234_0000_0028, 0]);
    let page = Command::ForgetIpa { vmid: 1, ipa: Ipa(0x1_2345_6000), leaf: true };
    assert_eq!(page.encode(), [0x0000_0001_0000_002A, 0x1_2345_6001]);
    assert_eq!(Command::Sync.encode(), [0x46, 0]);
}

#[test]
fn an_invalidation_reaches_each_page() {
    for pages in 1..=40 {
        let range = IpaRange::from_pages(Ipa(0x4000_0000), pages).unwrap();
        let commands: Vec<_> = invalidation(7, range, false).collect();
        assert!(commands.len() <= MAX_BATCH);
        if pages > MAX_BATCH as u64 {
            assert_eq!(commands, [Command::ForgetVm(7)]);
            continue;
        }
        assert_eq!(commands.len() as u64, pages);
        for (i, command) in (0..).zip(commands) {
            let ipa = Ipa(0x4000_0000 + i * 4096);
            assert_eq!(command, Command::ForgetIpa { vmid: 7, ipa, leaf: false });
        }
    }
}

#[test]
fn a_queue_tells_full_from_empty() {
    let q = Queue::new(3);
    let (mut producer, consumer) = (0u32, 0u32);
    for n in 0..8 {
        assert_eq!(q.pending(producer, consumer), n);
        assert_eq!(q.index(producer), n);
        producer = q.next(producer);
    }
    assert_eq!((q.pending(producer, consumer), q.index(producer)), (8, 0), "full");
    let (mut p, mut c) = (0, 0);
    for _ in 0..100 {
        p = q.next(p);
        assert_eq!(q.pending(p, c), 1);
        c = q.next(c);
        assert_eq!(q.pending(p, c), 0);
    }
    assert_eq!(q.pending(super::queue::OVERFLOW | 5, 4), 1, "the overflow flag is no index");
    for p in 0..16 {
        for c in 0..16 {
            assert!(q.pending(p, c) <= q.entries());
        }
    }
    assert_eq!(Queue::new(31).log2(), 19);
}

#[test]
fn events_in_words() {
    let write = Event::decode([0x0000_0008_0000_0010, 0, 0xBF80_1000, 0]);
    assert_eq!(write, Event { kind: 0x10, stream: 8, write: true, address: 0xBF80_1000 });
    assert_eq!(write.to_string(), "stream 0x8, write at 0xbf801000: F_TRANSLATION");
    let read = Event::decode([0x0000_0008_0000_0013, 1 << 35, 0x1000, 0]);
    assert_eq!(read.to_string(), "stream 0x8, read at 0x1000: F_PERMISSION");
    assert_eq!(Event::decode([0x7_0000_0002, 0, 5, 0]).to_string(), "stream 0x7: C_BAD_STREAMID");
    assert_eq!(Event::decode([0x7_0000_00E0, 0, 5, 0]).to_string(), "stream 0x7: event 0xe0");
}
