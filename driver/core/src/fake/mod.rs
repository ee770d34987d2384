// SPDX-License-Identifier: GPL-2.0-only
//! A kernel and a hypervisor for tests on a PC: the shim's functions, with the same names and types.
//!
//! It counts what is taken and given back, can make the nth call that may fail do so, and checks what the driver promises: no page is
//! unpinned and no shared page freed while the hypervisor may use it; no lock is taken twice.
//!
//! One test at a time: [`Session`] is the lock. The folder follows `shim.c`: [`memory`], [`task`] (locks, waiting, time, messages),
//! [`eventfd`], [`guest_memory`], [`channel`], and the [`hypervisor`] below.

mod channel;
mod eventfd;
mod guest_memory;
mod hypervisor;
mod memory;
mod task;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard};

use gzvm_abi::hypercall::Function;

use crate::counters::{
    GUEST_MEMORY_PAGES, Gauge, IRQFDS, PINNED_PAGES, PRIVATE_PAGES, TABLE_PAGES, VCPUS, VMS,
};

pub use channel::*;
pub use eventfd::*;
pub use guest_memory::*;
pub use hypervisor::*;
pub use memory::*;
pub use task::*;

/// Where the fake user space starts, and its bytes.
pub const USER: u64 = 0x1_0000;
const USER_SIZE: usize = 0x1_0000;
/// PFN of the page at user address 0.
pub const PFN_BASE: u64 = 0x10_0000;
const HZ: u64 = 1_000_000_000;

const ENOMEM: i32 = -12;
const EFAULT: i32 = -14;
const EBADF: i32 = -9;
const EINVAL: i32 = -22;
const EMFILE: i32 = -24;

static SERIAL: Mutex<()> = Mutex::new(());
static FAKE: Mutex<Option<Fake>> = Mutex::new(None);

/// An open file.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum File {
    Vm(usize),
    Vcpu(usize),
    EventFd(usize),
    Memory(usize),
    Channel(usize),
}

#[derive(Default)]
pub struct Fake {
    /// The nth call that may fail does (from 1).
    pub fail_at: Option<u32>,
    pub fallible_calls: u32,
    allocations: HashMap<usize, Vec<u64>>,
    pages: HashMap<usize, u32>,
    mutexes: HashMap<usize, bool>,
    waiters: HashMap<usize, bool>,
    /// What those who poll see.
    pub polls: HashMap<usize, u32>,
    pub channels: Channels,
    next_handle: usize,
    mm_refs: i64,
    pub foreign_mm: bool,
    pub signal: bool,
    /// Signal pending from this sleep or run on.
    pub signal_at_run: Option<u32>,
    pub runs: u32,
    user: Vec<u8>,
    /// Mapped ranges of user space for guest memory.
    pub mapped: Vec<(u64, u64)>,
    pub unpinnable: BTreeSet<u64>,
    pub pins: BTreeMap<u64, u32>,
    /// Where huge pages of user space start.
    pub huge: BTreeSet<u64>,
    pub files: BTreeMap<i32, File>,
    pub eventfds: HashMap<usize, EventFd>,
    watches: HashMap<usize, eventfd::Watch>,
    pub memories: Memories,
    pub vms: BTreeMap<u16, FakeVm>,
    next_vm: u16,
    pub exits: VecDeque<Exit>,
    nested: usize,
    pub slept: Vec<u64>,
    pub calls: Vec<(Function, [u64; 7])>,
    /// Answers of hypercalls instead of the model's, each used once.
    pub answers: Vec<(Function, u64)>,
    pub destroy_busy: u32,
    /// CONTROL says busy so often.
    pub control_busy: u32,
    pub no_demand_paging: bool,
    pub no_blocks: bool,
    pub batch: u64,
    /// Calls that map something before there is no memory for tables, for each VM; and for how many a block lasts that was given.
    pub tables: u64,
    pub tables_of_a_block: u64,
    /// EXT_INFO's mask, and how many pages one step of UNMAP_GUEST or REMOVE_MEMREGION takes back.
    pub extensions: u64,
    pub unmap_batch: usize,
    /// IRQ_LINE's x1: whom to wake.
    pub sleepers: u64,
    pub log: Vec<String>,
    pub seq: String,
}

/// What the driver says it holds.
static GAUGES: [&Gauge; 7] =
    [&VMS, &VCPUS, &PINNED_PAGES, &IRQFDS, &GUEST_MEMORY_PAGES, &PRIVATE_PAGES, &TABLE_PAGES];

/// A test's kernel. Checks at its end that everything was given back.
pub struct Session {
    _serial: MutexGuard<'static, ()>,
    /// Set by tests of a hypervisor that refuses to let go.
    pub leaks: bool,
}

impl Session {
    /// A fresh kernel and hypervisor, with the driver loaded.
    pub fn new() -> Self {
        let serial = SERIAL.lock().unwrap_or_else(|e| e.into_inner());
        let fake = Fake {
            user: vec![0; USER_SIZE],
            next_vm: 1,
            next_handle: 0x1000,
            batch: 512,
            tables: u64::MAX,
            tables_of_a_block: 3,
            extensions: u64::MAX,
            unmap_batch: 300,
            sleepers: u64::MAX,
            ..Fake::default()
        };
        *FAKE.lock().unwrap_or_else(|e| e.into_inner()) = Some(fake);
        assert_eq!(crate::entry::gzr_init(), 0);
        Self { _serial: serial, leaks: false }
    }

    /// Looks at the fake, or changes it.
    pub fn with<R>(&self, f: impl FnOnce(&mut Fake) -> R) -> R {
        fake(f)
    }

    /// Everything that is still held, empty if nothing.
    pub fn held(&self) -> String {
        fake(|k| {
            let mut held = String::new();
            let mut note = |what: &str, n: usize| {
                if n != 0 {
                    held += &format!("{n} {what}; ");
                }
            };
            note("allocations", k.allocations.len());
            note("pages", k.pages.len());
            note("mutexes", k.mutexes.len());
            note("waiters", k.waiters.len());
            note("places to poll", k.polls.len());
            note("channels", k.channels.open.len());
            note("references on mm", k.mm_refs as usize);
            note("pinned pages", k.pins.len());
            note("eventfd references", k.eventfds.values().map(|e| e.refs as usize).sum());
            note("watches", k.watches.len());
            note("VMs", k.vms.len());
            note("files of guest memory", k.memories.open());
            note("page frames", k.memories.frames.len());
            for gauge in GAUGES {
                note("in a gauge", gauge.get() as usize);
            }
            held
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.leaks && !std::thread::panicking() {
            let open: Vec<_> = fake(|k| k.files.keys().copied().collect());
            for fd in open {
                close(fd);
            }
            unmap_all();
            assert_eq!(self.held(), "", "held at the end");
        }
        for gauge in GAUGES {
            gauge.sub(gauge.get());
        }
    }
}

fn fake<R>(f: impl FnOnce(&mut Fake) -> R) -> R {
    let mut guard = FAKE.lock().unwrap_or_else(|e| e.into_inner());
    f(guard.as_mut().expect("no session"))
}

impl Fake {
    /// Is this the call that has to fail?
    fn fails(&mut self) -> bool {
        self.fallible_calls += 1;
        self.fail_at == Some(self.fallible_calls)
    }

    fn handle(&mut self) -> usize {
        self.next_handle += 8;
        self.next_handle
    }

    /// User memory at an address.
    pub fn user(&mut self, at: u64, len: usize) -> Option<&mut [u8]> {
        let at = usize::try_from(at.checked_sub(USER)?).ok()?;
        self.user.get_mut(at..at.checked_add(len)?)
    }

    fn new_fd(&mut self, file: File) -> i32 {
        let fd = (3..).find(|fd| !self.files.contains_key(fd)).unwrap();
        self.files.insert(fd, file);
        fd
    }
}

/// Closes a file.
pub fn close(fd: i32) {
    let file = fake(|k| k.files.remove(&fd)).expect("not open");
    match file {
        // SAFETY: the file's private data, used for the last time.
        File::Vm(p) => unsafe { crate::entry::gzr_vm_release(p as *mut c_void) },
        // SAFETY: the descriptor's reference.
        File::Memory(file) => unsafe { gzk_memory_put(file as *mut c_void) },
        // SAFETY: the file's private data, used for the last time.
        File::Channel(p) => unsafe { crate::entry::gzr_channel_release(p as *mut c_void) },
        // SAFETY: as above.
        File::Vcpu(p) => unsafe { crate::entry::gzr_vcpu_release(p as *mut c_void) },
        File::EventFd(ctx) => {
            let watchers: Vec<usize> = fake(|k| {
                let eventfd = k.eventfds.get_mut(&ctx).unwrap();
                eventfd.open = false;
                eventfd.watchers.iter().map(|w| k.watches[w].owner).collect()
            });
            for owner in watchers {
                // SAFETY: watched until now.
                unsafe { crate::entry::gzr_irqfd_hangup(owner as *mut c_void) }
            }
        }
    }
}

pub unsafe fn gzk_vm_fd(vm: *mut c_void) -> i32 {
    fake(|k| if k.fails() { EMFILE } else { k.new_fd(File::Vm(vm.expose_provenance())) })
}

pub unsafe fn gzk_vcpu_fd(_index: u32, vcpu: *mut c_void) -> i32 {
    fake(|k| if k.fails() { EMFILE } else { k.new_fd(File::Vcpu(vcpu.expose_provenance())) })
}
