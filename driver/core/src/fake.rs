// SPDX-License-Identifier: GPL-2.0-only
//! A kernel and a hypervisor for tests on a PC: the shim's functions, with the same names and types.
//!
//! It counts what is taken and given back, can make the nth call that may fail do so, and checks what the driver promises: no page is
//! unpinned and no shared page freed while the hypervisor may use it; no lock is taken twice.
//!
//! One test at a time: [`Session`] is the lock.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard};

use gzvm_abi::hypercall::{Function, Status, Tuple, cap};

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

/// What RUN does next: writes the shared area, and answers the exit reason.
pub type Exit = Box<dyn FnOnce(&mut Shared) -> u32 + Send>;

/// The two pages of a vCPU.
pub struct Shared(*mut u8);

impl Shared {
    /// Pages at an address of the driver's.
    pub fn at(page: *mut c_void) -> Self {
        Self(page.cast())
    }

    /// Where they are.
    pub fn address(&self) -> usize {
        self.0.expose_provenance()
    }

    /// Writes a value at an offset.
    pub fn put<T: zerocopy::IntoBytes>(&mut self, offset: usize, value: T) {
        assert!(offset + size_of::<T>() <= 8192);
        // SAFETY: inside the two pages.
        unsafe { self.0.add(offset).cast::<T>().write_unaligned(value) }
    }

    /// Reads a value at an offset.
    pub fn get<T: zerocopy::FromBytes>(&self, offset: usize) -> T {
        assert!(offset + size_of::<T>() <= 8192);
        // SAFETY: inside the two pages.
        unsafe { self.0.add(offset).cast::<T>().read_unaligned() }
    }
}

/// A VM of the fake hypervisor.
#[derive(Default)]
pub struct FakeVm {
    pub vcpus: BTreeMap<u16, u64>,
    pub slots: BTreeMap<u32, (u64, u64)>,
    pub mapped: BTreeMap<u64, u64>,
    pub mailbox: u64,
    pub lines: Vec<(u16, u64, u64)>,
    /// IRQ_LEVEL: vCPU, irq, level, flags.
    pub levels: Vec<(u16, u64, u64, u64)>,
    /// VGIC_SPIS.
    pub spis: u64,
}

/// An open file.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum File {
    Vm(usize),
    Vcpu(usize),
    EventFd(usize),
}

#[derive(Default)]
pub struct EventFd {
    pub refs: u32,
    pub count: u64,
    pub open: bool,
    watchers: BTreeSet<usize>,
}

struct Watch {
    ctx: usize,
    owner: usize,
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
    pub files: BTreeMap<i32, File>,
    pub eventfds: HashMap<usize, EventFd>,
    watches: HashMap<usize, Watch>,
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
    /// EXT_INFO's mask, and how many pages one step of UNMAP_GUEST or REMOVE_MEMREGION takes back.
    pub extensions: u64,
    pub unmap_batch: usize,
    /// IRQ_LINE's x1: whom to wake.
    pub sleepers: u64,
    pub log: Vec<String>,
    pub seq: String,
}

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
            note("references on mm", k.mm_refs as usize);
            note("pinned pages", k.pins.len());
            note("eventfd references", k.eventfds.values().map(|e| e.refs as usize).sum());
            note("watches", k.watches.len());
            note("VMs", k.vms.len());
            use crate::counters::*;
            for (name, gauge) in
                [("vms", &VMS), ("vcpus", &VCPUS), ("pinned", &PINNED_PAGES), ("irqfds", &IRQFDS)]
            {
                note(name, gauge.get() as usize);
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
            assert_eq!(self.held(), "", "held at the end");
        }
        use crate::counters::*;
        for gauge in [&VMS, &VCPUS, &PINNED_PAGES, &IRQFDS] {
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

    fn hypercall(&mut self, function: Function, args: [u64; 7]) -> (Status, [u64; 3]) {
        self.calls.push((function, args));
        let [a1, a2, a3, a4, a5, ..] = args;
        let done = (Status::Success, [0; 3]);
        let invalid = (Status::InvalidArgs, [0; 3]);
        let vm_of = a1 as u16;
        match function {
            Function::Probe => (Status::Success, [16, 0, 0]),
            Function::ExtInfo if self.extensions == 0 => (Status::NotSupported, [0; 3]),
            Function::ExtInfo => {
                let version = gzvm_abi::hypercall::EXT_VERSION;
                (Status::Success, [gzvm_abi::hypercall::EXT_MAGIC, version, self.extensions])
            }
            Function::ExtCounter if a1 < gzvm_abi::counter::COUNT as u64 => {
                (Status::Success, [a1 + 100, 0, 0])
            }
            Function::EnableCap => match a2 {
                cap::QUERY_HYP_BATCH_PAGES => (Status::Success, [self.batch, 0, 0]),
                cap::QUERY_DESTROY_BATCH_PAGES => (Status::Success, [128, 0, 0]),
                cap::ENABLE_DEMAND_PAGING if !self.no_demand_paging => done,
                cap::ENABLE_IDLE => done,
                cap::BLOCK_BASED_DEMAND_PAGING if !self.no_blocks => match self.vms.get_mut(&vm_of) {
                    Some(vm) => {
                        assert_eq!(a3, 2 << 20);
                        vm.mailbox = a4;
                        done
                    }
                    None => invalid,
                },
                cap::PROTECTED_VM if a3 == cap::protected::GET_PVMFW_SIZE => {
                    (Status::Success, [0x40_0000, 0, 0])
                }
                cap::PROTECTED_VM => done,
                _ => (Status::NotSupported, [0; 3]),
            },
            Function::CreateVm => {
                let id = self.next_vm;
                self.next_vm += 1;
                self.vms.insert(id, FakeVm::default());
                (Status::Success, [id.into(), 0, 0])
            }
            Function::DestroyVm => {
                assert_eq!(a2, 128);
                if self.destroy_busy > 0 {
                    self.destroy_busy -= 1;
                    return (Status::Busy, [0; 3]);
                }
                match self.vms.remove(&vm_of) {
                    Some(vm) => {
                        assert!(vm.vcpus.is_empty(), "vCPUs outlive their VM");
                        done
                    }
                    None => invalid,
                }
            }
            Function::CreateVcpu => {
                let Some(tuple) = Tuple::from_reg(a1) else { return invalid };
                match self.vms.get_mut(&tuple.vm) {
                    Some(vm) if !vm.vcpus.contains_key(&tuple.vcpu) => {
                        vm.vcpus.insert(tuple.vcpu, a2);
                        done
                    }
                    _ => invalid,
                }
            }
            Function::DestroyVcpu => {
                let tuple = Tuple::from_reg(a1).unwrap();
                let known = self.vms.get_mut(&tuple.vm).and_then(|vm| vm.vcpus.remove(&tuple.vcpu));
                assert!(known.is_some(), "destroyed a vCPU that is not there");
                done
            }
            Function::SetMemregion => {
                assert_eq!(a2, 8192);
                let buffer = Shared(a3 as *mut u8);
                let (slot, count) = (buffer.get::<u32>(0), buffer.get::<u32>(4));
                let (pages, gpa) = (buffer.get::<u64>(8), buffer.get::<u64>(16));
                let vm = self.vms.get_mut(&vm_of).unwrap();
                if let Some(&(first, all)) = vm.slots.get(&slot) {
                    let mut gfn = gpa / 4096;
                    assert!(gfn >= first && gfn + pages <= first + all && count > 0);
                    for i in 0..count as usize {
                        let (pa, n) = (buffer.get::<u64>(24 + 16 * i), buffer.get::<u32>(32 + 16 * i));
                        for page in 0..u64::from(n) {
                            vm.mapped.insert(gfn, pa / 4096 + page);
                            gfn += 1;
                        }
                    }
                    assert_eq!(gfn, gpa / 4096 + pages);
                } else {
                    assert_eq!(count, 0, "registration with constituents");
                    vm.slots.insert(slot, (gpa / 4096, pages));
                }
                done
            }
            Function::MapGuest => {
                assert_eq!(a5, 1);
                self.vms.get_mut(&vm_of).unwrap().mapped.insert(a4, a3);
                done
            }
            Function::MapGuestBlock => {
                let batch = self.batch;
                let vm = self.vms.get_mut(&vm_of).unwrap();
                assert!(a4 <= batch && a4 > 0);
                assert!(vm.mailbox != 0);
                let mailbox = Shared(vm.mailbox as *mut u8);
                let (first, pages) = vm.slots[&(a2 as u32)];
                for i in 0..a4 {
                    let (gfn, pfn) = (a3 + i, mailbox.get::<u64>(8 * i as usize));
                    assert!((first..first + pages).contains(&gfn), "outside the slot");
                    assert!(vm.mapped.insert(gfn, pfn).is_none_or(|old| old == pfn), "mapped differently");
                }
                done
            }
            Function::UnmapGuest => {
                let batch = self.unmap_batch;
                let vm = self.vms.get_mut(&vm_of).unwrap();
                let inside = |&(first, all): &(u64, u64)| a2 >= first && a2 + a3 <= first + all;
                assert!(a3 > 0 && vm.slots.values().any(inside), "unmaps what is in no slot");
                if unmap(vm, a2..a2 + a3, batch) { done } else { (Status::Busy, [0; 3]) }
            }
            Function::RemoveMemregion => {
                let batch = self.unmap_batch;
                let vm = self.vms.get_mut(&vm_of).unwrap();
                let Some(&(first, all)) = vm.slots.get(&(a2 as u32)) else { return invalid };
                if !unmap(vm, first..first + all, batch) {
                    return (Status::Busy, [0; 3]);
                }
                vm.slots.remove(&(a2 as u32));
                done
            }
            Function::IrqLevel => {
                let tuple = Tuple::from_reg(a1).unwrap();
                self.vms.get_mut(&tuple.vm).unwrap().levels.push((tuple.vcpu, a2, a3, a4));
                (Status::Success, [self.sleepers, 0, 0])
            }
            Function::IrqLine => {
                let tuple = Tuple::from_reg(a1).unwrap();
                self.vms.get_mut(&tuple.vm).unwrap().lines.push((tuple.vcpu, a2, a3));
                (Status::Success, [self.sleepers, 0, 0])
            }
            Function::SetWatch if a1 == 0 => (Status::Success, [0x73F, 0, 0]),
            Function::SetWatch if a2 & !0x73F != 0 => (Status::NotSupported, [0; 3]),
            Function::SetWatch if a3 > 3 => invalid,
            Function::SetWatch => (Status::Success, [0x73F, 0, 0]),
            Function::VmFeatures if a2 <= 1 && (a1 | a2 == 0 || self.vms.contains_key(&vm_of)) => {
                (Status::Success, [1, 0, 0])
            }
            Function::VmFeatures => invalid,
            Function::Control => match self.vms.get_mut(&vm_of) {
                Some(_) if self.control_busy > 0 => {
                    self.control_busy -= 1;
                    (Status::Busy, [0; 3])
                }
                Some(_) if a2 <= 2 => (Status::Success, [a2 + 1, 5, 0]),
                _ => invalid,
            },
            Function::VgicSpis if (32..=988).contains(&a2) => match self.vms.get_mut(&vm_of) {
                Some(vm) if vm.vcpus.is_empty() => {
                    vm.spis = a2;
                    (Status::Success, [a2, 0, 0])
                }
                _ => invalid,
            },
            Function::VgicSpis => invalid,
            Function::GetOneReg => (Status::Success, [0x1122_3344_5566_7788, 0x99AA_BBCC_DDEE_FF00, 0]),
            Function::SetOneReg
            | Function::CreateDevice
            | Function::MemregionPurpose
            | Function::SetDtbConfig
            | Function::InformExit => done,
            _ => (Status::NotSupported, [0; 3]),
        }
    }
}

/// One step of taking pages back. Is it done?
fn unmap(vm: &mut FakeVm, gfns: std::ops::Range<u64>, batch: usize) -> bool {
    let there: Vec<u64> = vm.mapped.range(gfns).map(|(gfn, _)| *gfn).collect();
    for gfn in there.iter().take(batch) {
        vm.mapped.remove(gfn);
    }
    there.len() <= batch
}

/// Closes a file.
pub fn close(fd: i32) {
    let file = fake(|k| k.files.remove(&fd)).expect("not open");
    match file {
        // SAFETY: the file's private data, used for the last time.
        File::Vm(p) => unsafe { crate::entry::gzr_vm_release(p as *mut c_void) },
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

/// A new eventfd.
pub fn eventfd() -> i32 {
    fake(|k| {
        let ctx = k.handle();
        k.eventfds.insert(ctx, EventFd { open: true, ..EventFd::default() });
        k.new_fd(File::EventFd(ctx))
    })
}

/// The eventfd's state.
pub fn eventfd_count(fd: i32) -> u64 {
    fake(|k| match k.files[&fd] {
        File::EventFd(ctx) => k.eventfds[&ctx].count,
        other => panic!("{other:?} is no eventfd"),
    })
}

/// Adds one to an eventfd from user space.
pub fn eventfd_write(fd: i32) {
    let ctx = fake(|k| match k.files[&fd] {
        File::EventFd(ctx) => ctx,
        other => panic!("{other:?} is no eventfd"),
    });
    // SAFETY: the context exists.
    unsafe { gzk_eventfd_signal(ctx as *mut c_void) }
}

// ---- The shim's functions ----

pub unsafe fn gzk_log(_level: u32, text: *const u8, len: usize) {
    // SAFETY: as promised by the caller.
    let text = unsafe { std::slice::from_raw_parts(text, len) };
    fake(|k| k.log.push(String::from_utf8_lossy(text).into_owned()));
}

pub unsafe fn gzk_seq_write(_seq: *mut c_void, text: *const u8, len: usize) {
    // SAFETY: as promised by the caller.
    let text = unsafe { std::slice::from_raw_parts(text, len) };
    fake(|k| k.seq += &String::from_utf8_lossy(text));
}

pub unsafe fn gzk_alloc(size: usize) -> *mut c_void {
    fake(|k| {
        if k.fails() {
            return std::ptr::null_mut();
        }
        let mut memory = vec![0_u64; size.div_ceil(8)];
        let p = memory.as_mut_ptr();
        k.allocations.insert(p.addr(), memory);
        p.cast()
    })
}

pub unsafe fn gzk_free(p: *mut c_void) {
    fake(|k| k.allocations.remove(&p.addr()).expect("freed what is not allocated"));
}

pub unsafe fn gzk_pages_alloc(order: u32, pa: *mut u64) -> *mut c_void {
    fake(|k| {
        if k.fails() {
            return std::ptr::null_mut();
        }
        let layout = std::alloc::Layout::from_size_align(4096 << order, 4096).unwrap();
        // SAFETY: the size is not zero.
        let p = unsafe { std::alloc::alloc_zeroed(layout) };
        k.pages.insert(p.addr(), order);
        // SAFETY: as promised by the caller.
        unsafe { *pa = p.expose_provenance() as u64 };
        p.cast()
    })
}

pub unsafe fn gzk_pages_free(p: *mut c_void, order: u32) {
    fake(|k| {
        assert_eq!(k.pages.remove(&p.addr()), Some(order));
        for vm in k.vms.values() {
            assert!(vm.mailbox != p.addr() as u64, "mailbox freed under the hypervisor");
            assert!(
                !vm.vcpus.values().any(|&pa| pa == p.addr() as u64),
                "vCPU pages freed under the hypervisor"
            );
        }
    });
    let layout = std::alloc::Layout::from_size_align(4096 << order, 4096).unwrap();
    // SAFETY: allocated with this layout.
    unsafe { std::alloc::dealloc(p.cast(), layout) }
}

pub unsafe fn gzk_user_read(to: *mut c_void, from: u64, len: usize) -> i32 {
    fake(|k| {
        if k.fails() {
            return EFAULT;
        }
        let Some(bytes) = k.user(from, len) else { return EFAULT };
        // SAFETY: as promised by the caller.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast(), len) };
        0
    })
}

pub unsafe fn gzk_user_write(to: u64, from: *const c_void, len: usize) -> i32 {
    fake(|k| {
        if k.fails() {
            return EFAULT;
        }
        let Some(bytes) = k.user(to, len) else { return EFAULT };
        // SAFETY: as promised by the caller.
        unsafe { std::ptr::copy_nonoverlapping(from.cast(), bytes.as_mut_ptr(), len) };
        0
    })
}

pub unsafe fn gzk_user_range_check(start: u64, size: u64) -> i32 {
    fake(|k| match k.mapped.iter().find(|(a, b)| (*a..*b).contains(&start)) {
        None => EFAULT,
        Some((_, end)) if start + size > *end => EINVAL,
        Some(_) => 0,
    })
}

pub unsafe fn gzk_mm_grab() -> *mut c_void {
    fake(|k| {
        if k.fails() {
            return std::ptr::null_mut();
        }
        k.mm_refs += 1;
        std::ptr::without_provenance_mut(0x100)
    })
}

pub unsafe fn gzk_mm_is_current(mm: *const c_void) -> i32 {
    assert_eq!(mm.addr(), 0x100);
    fake(|k| i32::from(!k.foreign_mm))
}

pub unsafe fn gzk_mm_drop(_mm: *mut c_void) {
    fake(|k| k.mm_refs -= 1);
}

pub unsafe fn gzk_pin(addr: u64, n: usize, pfns: *mut u64) -> isize {
    fake(|k| {
        if k.fails() {
            return ENOMEM as isize;
        }
        let mut got = 0;
        while got < n {
            let at = addr + 4096 * got as u64;
            if k.unpinnable.contains(&at) || !k.mapped.iter().any(|(a, b)| (*a..*b).contains(&at)) {
                break;
            }
            let pfn = PFN_BASE + at / 4096;
            *k.pins.entry(pfn).or_default() += 1;
            // SAFETY: got < n.
            unsafe { pfns.add(got).write(pfn) };
            got += 1;
        }
        if got == 0 { EFAULT as isize } else { got as isize }
    })
}

pub unsafe fn gzk_unpin(pfns: *mut u64, n: usize) {
    fake(|k| {
        for i in 0..n {
            // SAFETY: i < n.
            let pfn = unsafe { pfns.add(i).read() };
            for vm in k.vms.values() {
                assert!(!vm.mapped.values().any(|&p| p == pfn), "unpinned under the hypervisor");
            }
            let count = k.pins.get_mut(&pfn).expect("not pinned");
            *count -= 1;
            if *count == 0 {
                k.pins.remove(&pfn);
            }
        }
    });
}

pub unsafe fn gzk_mutex_new(_class: u32) -> *mut c_void {
    fake(|k| {
        if k.fails() {
            return std::ptr::null_mut();
        }
        let handle = k.handle();
        k.mutexes.insert(handle, false);
        std::ptr::without_provenance_mut(handle)
    })
}

pub unsafe fn gzk_mutex_free(m: *mut c_void) {
    fake(|k| assert_eq!(k.mutexes.remove(&m.addr()), Some(false)));
}

pub unsafe fn gzk_mutex_lock(m: *mut c_void) {
    fake(|k| assert_eq!(k.mutexes.insert(m.addr(), true), Some(false), "deadlock"));
}

pub unsafe fn gzk_mutex_lock_interruptible(m: *mut c_void) -> i32 {
    fake(|k| {
        if k.mutexes[&m.addr()] {
            return -4;
        }
        k.mutexes.insert(m.addr(), true);
        0
    })
}

pub unsafe fn gzk_mutex_unlock(m: *mut c_void) {
    fake(|k| assert_eq!(k.mutexes.insert(m.addr(), false), Some(true)));
}

pub unsafe fn gzk_signal_pending() -> i32 {
    fake(|k| i32::from(k.signal || k.signal_at_run.is_some_and(|n| k.runs >= n)))
}

pub unsafe fn gzk_cond_resched() {}

pub unsafe fn gzk_msleep(_ms: u32) {}

pub unsafe fn gzk_waiter_new() -> *mut c_void {
    fake(|k| {
        if k.fails() {
            return std::ptr::null_mut();
        }
        let handle = k.handle();
        k.waiters.insert(handle, false);
        std::ptr::without_provenance_mut(handle)
    })
}

pub unsafe fn gzk_waiter_free(w: *mut c_void) {
    fake(|k| k.waiters.remove(&w.addr()).expect("no waiter"));
}

pub unsafe fn gzk_waiter_clear(w: *mut c_void) {
    fake(|k| k.waiters.insert(w.addr(), false).expect("no waiter"));
}

pub unsafe fn gzk_waiter_wake(w: *mut c_void) {
    fake(|k| k.waiters.insert(w.addr(), true).expect("no waiter"));
}

pub unsafe fn gzk_waiter_sleep(w: *mut c_void, ns: u64) {
    // A waiter that was woken does not sleep.
    fake(|k| {
        if !k.waiters[&w.addr()] {
            k.slept.push(ns);
        }
    });
}

pub unsafe fn gzk_counter_frequency() -> u64 {
    HZ
}

pub unsafe fn gzk_clock_snapshot(wall_ns: *mut u64, counter: *mut u64) -> i32 {
    // SAFETY: as promised by the caller.
    unsafe {
        *wall_ns = 0x0123_4567_89AB_CDEF;
        *counter = 0x10_0000_5000;
    }
    0
}

pub unsafe fn gzk_hvc(regs: *mut u64) {
    // SAFETY: 8 registers, as promised by the caller.
    let regs = unsafe { &mut *regs.cast::<[u64; 8]>() };
    let function = Function::from_fid(regs[0]).expect("unknown hypercall");
    let args: [u64; 7] = regs[1..8].try_into().unwrap();
    if function == Function::Run {
        let tuple = Tuple::from_reg(args[0]).unwrap();
        // The exit may call back into the driver, as interrupts do: not under the fake's lock.
        let (exit, pa) = fake(|k| {
            k.runs += 1;
            (k.exits.pop_front().expect("no exit left"), k.vms[&tuple.vm].vcpus[&tuple.vcpu])
        });
        let mut shared = Shared(pa as *mut u8);
        let reason = exit(&mut shared);
        shared.put(0, reason);
        regs[0] = 0;
        regs[1] = reason.into();
        return;
    }
    fake(|k| {
        let must_succeed = matches!(
            function,
            Function::DestroyVm | Function::DestroyVcpu | Function::InformExit | Function::ExtCounter
        );
        if !must_succeed && k.fails() {
            k.calls.push((function, args));
            regs[0] = Status::NoMemory.to_x0();
            return;
        }
        if let Some(at) = k.answers.iter().position(|(f, _)| *f == function) {
            k.calls.push((function, args));
            regs[0] = k.answers.remove(at).1;
            return;
        }
        let (status, results) = k.hypercall(function, args);
        regs[0] = status.to_x0();
        regs[1..4].copy_from_slice(&results);
    });
}

pub unsafe fn gzk_pa_bits() -> u32 {
    52
}

pub unsafe fn gzk_eventfd_get(fd: i32, ctx: *mut *mut c_void) -> i32 {
    fake(|k| {
        if k.fails() {
            return EBADF;
        }
        let Some(&file) = k.files.get(&fd) else { return EBADF };
        let File::EventFd(handle) = file else { return EINVAL };
        k.eventfds.get_mut(&handle).unwrap().refs += 1;
        // SAFETY: as promised by the caller.
        unsafe { *ctx = std::ptr::without_provenance_mut(handle) };
        0
    })
}

pub unsafe fn gzk_eventfd_put(ctx: *mut c_void) {
    fake(|k| k.eventfds.get_mut(&ctx.addr()).unwrap().refs -= 1);
}

pub unsafe fn gzk_eventfd_signal(ctx: *mut c_void) {
    let owners: Vec<usize> = fake(|k| {
        let eventfd = k.eventfds.get_mut(&ctx.addr()).unwrap();
        if eventfd.watchers.is_empty() {
            eventfd.count += 1;
        }
        eventfd.watchers.iter().map(|w| k.watches[w].owner).collect()
    });
    for owner in owners {
        // SAFETY: watched until it is freed.
        unsafe { crate::entry::gzr_irqfd_signalled(owner as *mut c_void) }
    }
}

pub unsafe fn gzk_irqfd_new(fd: i32, out: *mut *mut c_void, ctx: *mut *mut c_void) -> i32 {
    // SAFETY: as promised by the caller.
    let ret = unsafe { gzk_eventfd_get(fd, ctx) };
    if ret != 0 {
        return ret;
    }
    fake(|k| {
        let handle = k.handle();
        // SAFETY: as promised by the caller.
        unsafe {
            k.watches.insert(handle, Watch { ctx: (*ctx).addr(), owner: 0 });
            *out = std::ptr::without_provenance_mut(handle);
        }
        0
    })
}

pub unsafe fn gzk_irqfd_watch(p: *mut c_void, fd: i32, owner: *mut c_void) -> i32 {
    let pending = fake(|k| {
        if k.fails() {
            return Err(EBADF);
        }
        let watch = k.watches.get_mut(&p.addr()).unwrap();
        if k.files.get(&fd) != Some(&File::EventFd(watch.ctx)) {
            return Err(EBADF);
        }
        watch.owner = owner.expose_provenance();
        let eventfd = k.eventfds.get_mut(&watch.ctx).unwrap();
        eventfd.watchers.insert(p.addr());
        Ok(eventfd.count > 0)
    });
    match pending {
        Err(e) => e,
        Ok(pending) => {
            if pending {
                // SAFETY: the caller's owner.
                unsafe { crate::entry::gzr_irqfd_signalled(owner) }
            }
            0
        }
    }
}

pub unsafe fn gzk_irqfd_free(p: *mut c_void, _from_hangup: i32) {
    fake(|k| {
        let watch = k.watches.remove(&p.addr()).expect("no watch");
        let eventfd = k.eventfds.get_mut(&watch.ctx).unwrap();
        eventfd.watchers.remove(&p.addr());
        eventfd.refs -= 1;
    });
}

/// Here, hang-ups are handled at once.
pub unsafe fn gzk_irqfd_flush() {}

pub unsafe fn gzk_vm_fd(vm: *mut c_void) -> i32 {
    fake(|k| if k.fails() { EMFILE } else { k.new_fd(File::Vm(vm.expose_provenance())) })
}

pub unsafe fn gzk_vcpu_fd(_index: u32, vcpu: *mut c_void) -> i32 {
    fake(|k| if k.fails() { EMFILE } else { k.new_fd(File::Vcpu(vcpu.expose_provenance())) })
}

// ---- What exits do in the middle of a RUN ----

/// User space writes a byte of its memory.
pub fn poke_user(at: u64, value: u8) {
    fake(|k| k.user(at, 1).unwrap()[0] = value);
}

/// The next RUN exits so.
pub fn nested_exit(exit: impl FnOnce(&mut Shared) -> u32 + Send + 'static) {
    fake(|k| {
        // Before what is queued, after what was nested.
        let at = k.nested;
        k.nested += 1;
        k.exits.insert(at, Box::new(exit));
    });
}

/// Another thread of the VMM makes an ioctl of the VM.
pub fn as_vmm<T: zerocopy::IntoBytes + zerocopy::Immutable>(vm: i32, cmd: u32, value: &T) {
    let at = USER + 0x8000;
    let file = fake(|k| {
        k.user(at, size_of::<T>()).unwrap().copy_from_slice(value.as_bytes());
        k.files[&vm]
    });
    let File::Vm(p) = file else { panic!("no VM") };
    // SAFETY: the private data of an open file.
    assert_eq!(unsafe { crate::entry::gzr_vm_ioctl(p as *mut c_void, cmd, at) }, 0);
}

/// Another thread of the VMM runs a vCPU.
pub fn as_vmm_run(vcpu: i32, at: u64) -> i64 {
    let File::Vcpu(p) = fake(|k| k.files[&vcpu]) else { panic!("no vCPU") };
    // SAFETY: the private data of an open file.
    let ret = unsafe { crate::entry::gzr_vcpu_ioctl(p as *mut c_void, gzvm_abi::ioctl::RUN, at) };
    fake(|k| k.nested = 0);
    ret
}
