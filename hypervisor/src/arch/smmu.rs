// SPDX-License-Identifier: Apache-2.0 OR MIT
//! An SMMUv3's registers and queues; what goes into them is `gzvm_core::smmu`.
//!
//! Every wait is bounded. An SMMU that does not answer is switched off, which leaves its devices with GBPA: abort.

use gzvm_core::addr::Pa;
use gzvm_core::smmu::Unfit;
use gzvm_core::smmu::command::{self, Command};
use gzvm_core::smmu::event::{self, Event};
use gzvm_core::smmu::queue::{OVERFLOW, Queue};
use gzvm_core::smmu::registers::{self as reg, Features};
use gzvm_core::smmu::stream_table::StreamTable;

use super::mmio::Frame;
use super::{barrier, lock, timer};
use crate::mem::shared::SharedWords;

/// log2 of the entries of both queues: a page of commands, two of events.
const QUEUE_BITS: u8 = 8;
/// Within a tenth of a second, an SMMU answers.
const PATIENCE: u64 = 10;

/// The SMMU did not answer in time, or refused a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silent;

impl From<Silent> for Unfit {
    fn from(_: Silent) -> Self {
        Self::Silent
    }
}

/// A circular queue in memory.
#[derive(Debug)]
struct Ring {
    queue: Queue,
    words: SharedWords,
}

impl Ring {
    fn new(most: u8, entry_words: u64) -> Result<Self, Unfit> {
        let queue = Queue::new(QUEUE_BITS.min(most));
        let words =
            SharedWords::new(u64::from(queue.entries()).saturating_mul(entry_words).saturating_mul(8));
        Ok(Self { queue, words: words.map_err(|_| Unfit::NoMemory)? })
    }

    fn base(&self) -> u64 {
        reg::queue_base(self.words.base(), self.queue.log2())
    }
}

/// An SMMU that is on.
#[derive(Debug)]
pub struct Smmu {
    frame: Frame,
    commands: Ring,
    events: Ring,
    producer: u32,
    consumer: u32,
    lost: bool,
}

fn wait(mut done: impl FnMut() -> bool) -> Result<(), Silent> {
    let deadline = timer::now().saturating_add(timer::frequency().max(PATIENCE) / PATIENCE);
    loop {
        if done() {
            return Ok(());
        }
        if timer::now() > deadline {
            return Err(Silent);
        }
        lock::pause();
    }
}

fn write64(frame: &Frame, offset: u64, value: u64) {
    frame.write32(offset, value as u32);
    frame.write32(offset.saturating_add(4), (value >> 32) as u32);
}

/// Sets CR0 and waits until it is in force.
fn switch(frame: &Frame, cr0: u32) -> Result<(), Silent> {
    const KNOWN: u32 = reg::CR0_SMMUEN | reg::CR0_EVENTQEN | reg::CR0_CMDQEN;
    frame.write32(reg::CR0, cr0);
    wait(|| frame.read32(reg::CR0ACK) & KNOWN == cr0)
}

/// Blocks all devices behind an SMMU, whatever firmware had it do.
pub fn block(frame: &Frame) -> Result<(), Silent> {
    let settled = || frame.read32(reg::GBPA) & reg::GBPA_UPDATE == 0;
    wait(settled)?;
    frame.write32(reg::GBPA, reg::GBPA_UPDATE | reg::GBPA_ABORT);
    wait(settled)?;
    if frame.read32(reg::GBPA) & reg::GBPA_ABORT == 0 {
        return Err(Silent);
    }
    switch(frame, 0)
}

/// What an SMMU offers.
pub fn features(frame: &Frame) -> Result<Features, Unfit> {
    Features::read(frame.read32(reg::IDR0), frame.read32(reg::IDR1), frame.read32(reg::IDR5))
}

impl Smmu {
    /// Switches a [`block`]ed SMMU on with this stream table.
    pub fn start(frame: Frame, features: &Features, table: StreamTable) -> Result<Self, Unfit> {
        let commands = Ring::new(features.max_commands, command::WORDS)?;
        let events = Ring::new(features.max_events, event::WORDS)?;
        if (commands.queue.entries() as usize) <= command::MAX_BATCH {
            return Err(Unfit::NoMemory);
        }
        let mut smmu = Self { frame, commands, events, producer: 0, consumer: 0, lost: false };
        smmu.program(features, table)?;
        Ok(smmu)
    }

    fn program(&mut self, features: &Features, table: StreamTable) -> Result<(), Silent> {
        let frame = self.frame;
        frame.write32(reg::IRQ_CTRL, 0);
        frame.write32(reg::CR1, reg::CR1_CACHEABLE);
        frame.write32(reg::CR2, reg::CR2_PRIVATE_TLB_RECORD_STREAMS);
        write64(&frame, reg::STRTAB_BASE, reg::strtab_base(table.base));
        frame.write32(reg::STRTAB_BASE_CFG, table.config);
        write64(&frame, reg::CMDQ_BASE, self.commands.base());
        write64(&frame, reg::EVENTQ_BASE, self.events.base());
        for position in [reg::CMDQ_PROD, reg::CMDQ_CONS, reg::EVENTQ_PROD, reg::EVENTQ_CONS] {
            frame.write32(position, 0);
        }
        // Errors of firmware's time.
        frame.write32(reg::GERRORN, frame.read32(reg::GERROR));
        barrier::dsb_sy();
        switch(&frame, reg::CR0_CMDQEN)?;
        let el2 = features.hyp.then_some(Command::ForgetEl2);
        self.run([Command::ForgetStreams, Command::ForgetAll].into_iter().chain(el2))?;
        switch(&frame, reg::CR0_CMDQEN | reg::CR0_EVENTQEN)?;
        switch(&frame, reg::CR0_CMDQEN | reg::CR0_EVENTQEN | reg::CR0_SMMUEN)
    }

    /// Gives it commands, at most [`command::MAX_BATCH`], and waits until they are done. After an error, every call is one,
    /// and its devices are blocked.
    pub fn run(&mut self, commands: impl Iterator<Item = Command>) -> Result<(), Silent> {
        if self.lost {
            return Err(Silent);
        }
        for command in commands.take(command::MAX_BATCH).chain([Command::Sync]) {
            let index = self.commands.queue.index(self.producer);
            for (offset, word) in (0..).zip(command.encode()) {
                let entry = u64::from(index).saturating_mul(command::WORDS);
                self.commands.words.write(entry.saturating_add(offset), word);
            }
            self.producer = self.commands.queue.next(self.producer);
        }
        // The SMMU reads them once it sees the index.
        barrier::dsb_sy();
        self.frame.write32(reg::CMDQ_PROD, self.producer);
        let (frame, queue, producer) = (self.frame, self.commands.queue, self.producer);
        let done = wait(|| queue.position(frame.read32(reg::CMDQ_CONS)) == producer);
        if done.is_err() {
            self.lost = true;
            let (cons, gerror) = (frame.read32(reg::CMDQ_CONS), frame.read32(reg::GERROR));
            log::error!("SMMU: no answer (CMDQ_CONS {cons:#x}, GERROR {gerror:#x}): its devices are blocked");
            frame.write32(reg::CR0, 0);
        }
        done
    }

    /// The next event, if there is one.
    pub fn next_event(&mut self) -> Option<Event> {
        let producer = self.frame.read32(reg::EVENTQ_PROD);
        let queue = self.events.queue;
        if queue.pending(producer, self.consumer) == 0 {
            return None;
        }
        barrier::dsb_sy();
        let entry = u64::from(queue.index(self.consumer)).saturating_mul(event::WORDS);
        let event =
            Event::decode([0, 1, 2, 3].map(|word| self.events.words.read(entry.saturating_add(word))));
        self.consumer = queue.next(self.consumer);
        barrier::dsb_sy();
        // What was lost meanwhile is acknowledged with it.
        self.frame.write32(reg::EVENTQ_CONS, self.consumer | producer & OVERFLOW);
        Some(event)
    }

    /// Most events that can wait.
    pub const fn event_queue(&self) -> u32 {
        self.events.queue.entries()
    }
}

/// Memory of stream tables.
pub struct TablePages(pub arrayvec::ArrayVec<SharedWords, 16>);

impl gzvm_core::smmu::stream_table::Memory for TablePages {
    fn alloc(&mut self, bytes: u64) -> Result<Pa, Unfit> {
        let pages = SharedWords::new(bytes).map_err(|_| Unfit::NoMemory)?;
        let base = pages.base();
        self.0.try_push(pages).map_err(|_| Unfit::NoMemory)?;
        Ok(base)
    }

    fn write(&mut self, at: Pa, word: u64) {
        // The youngest is written to most.
        for pages in self.0.iter_mut().rev() {
            if let Some(offset) = at.0.checked_sub(pages.base().0).filter(|o| *o < pages.bytes()) {
                return pages.write(offset / 8, word);
            }
        }
    }
}
