// SPDX-License-Identifier: GPL-2.0-only
//! Guest memory that is a file: a protected guest's pages leave this process and every system call, without an abort in the
//! kernel. Whatever finds a page gone has to find it by a page fault: `host_abort` must stand still.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use gzvm_abi::guest;
use gzvm_abi::ioctl::{self, GuestMemory, extension};
use gzvm_abi::run::Mmio;
use libc::{EFAULT, EINVAL};

use crate::kernels_map::KernelsMap;
use crate::machine::{DEVICE, ECHO, Machine, RAM, Run, SIZE, device, region, vm};
use crate::processes::counter;
use crate::sys::{self, Mapping, errno, probe};
use crate::{Check, ensure};

const SECRET: usize = 0x1000;
const SHARED: usize = 0x2000;
const VALUE: u64 = 0x5EC2_E75E;

/// `mov x0, x23; mov x1, x21; hvc #0`: MEM_SHARE.
const SHARE: [u32; 3] = [0xAA17_03E0, 0xAA15_03E1, 0xD400_0002];
/// `mov x0, x24; mov x1, x21; hvc #0`: MEM_UNSHARE.
const UNSHARE: [u32; 3] = [0xAA18_03E0, 0xAA15_03E1, 0xD400_0002];
/// `str w0, [x20]`
const TELL: u32 = 0xB900_0280;

/// Writes the secret and the page to be shared, then shares it, takes it back, both again, and gives the secret's page up; tells
/// after each step. Then it reads that page.
#[rustfmt::skip]
const PROGRAM: &[u32] = &[
    0xF900_0276, 0xF900_02B6, TELL, // str x22, [x19]; str x22, [x21]
    SHARE[0], SHARE[1], SHARE[2], TELL,
    UNSHARE[0], UNSHARE[1], UNSHARE[2], TELL,
    SHARE[0], SHARE[1], SHARE[2], TELL,
    UNSHARE[0], UNSHARE[1], UNSHARE[2], TELL,
    0xAA19_03E0, 0xAA13_03E1, 0xD400_0002, TELL, // mov x0, x25; mov x1, x19; hvc #0: MEM_RELINQUISH
    0xF940_0260, TELL, // ldr x0, [x19]
    0x1400_0000,
];

/// Shares a page, writes to it and takes it back, x26 times; then tells.
#[rustfmt::skip]
const RACE: &[u32] = &[
    SHARE[0], SHARE[1], SHARE[2], 0xF900_02B6, // str x22, [x21]
    UNSHARE[0], UNSHARE[1], UNSHARE[2],
    0xD100_075A, 0xB5FF_FF1A, // sub x26, x26, #1; cbnz x26, the start
    TELL, 0x1400_0000,
];
/// Each takes some eight TLB invalidations on all CPUs, for which an emulator with fewer cores than CPUs takes 5 ms each, and sees
/// some 30 accesses.
const ROUNDS: u64 = 600;

const REGISTERS: &[(u8, u64)] = &[
    (19, RAM + SECRET as u64),
    (20, DEVICE),
    (21, RAM + SHARED as u64),
    (22, VALUE),
    (23, guest::MEM_SHARE as u64),
    (24, guest::MEM_UNSHARE as u64),
    (25, guest::MEM_RELINQUISH as u64),
    (26, ROUNDS),
];

fn create(size: u64, flags: u64) -> std::io::Result<OwnedFd> {
    let mut request = GuestMemory { size, flags };
    sys::ioctl_with(&sys::device()?, ioctl::CREATE_GUEST_MEMORY, &mut request).map(sys::owned)
}

fn memory() -> Result<(OwnedFd, Mapping), String> {
    let file = create(SIZE as u64, 0).map_err(|e| format!("CREATE_GUEST_MEMORY: {e}"))?;
    let mapping = Mapping::of(&file, SIZE, true).map_err(|e| format!("mmap: {e}"))?;
    Ok((file, mapping))
}

fn protected(code: &[u32]) -> Result<(Machine, OwnedFd), String> {
    let (file, ram) = memory()?;
    Ok((Machine::protected(ram, code, REGISTERS)?, file))
}

/// Runs to the next store: its value has to be this.
fn told(machine: &Machine, run: &mut Run, value: u64, what: &str) -> Check {
    let mmio: Mmio = run.mmio(&machine.vcpu).map_err(|e| format!("{what}: {e}"))?;
    let got = u64::from_le_bytes(mmio.data);
    ensure!(mmio.phys_addr == DEVICE && got == value, "{what}: {got:#x} at {:#x}", mmio.phys_addr);
    Ok(())
}

fn scratch() -> Result<File, String> {
    let options =
        File::options().read(true).write(true).create(true).truncate(true).open("/tmp/guest-memory");
    options.map_err(|e| format!("scratch file: {e}"))
}

/// A page that nobody here may reach, by any way.
fn hidden(ram: &Mapping, offset: usize, what: &str) -> Check {
    let zero = File::open("/dev/zero").map_err(|e| e.to_string())?;
    let file = scratch()?;
    let (_reader, writer) = std::io::pipe().map_err(|e| e.to_string())?;
    ensure!(probe::touch(ram, offset) == (true, true), "{what}: no SIGBUS");
    for len in [1, 8, 4096] {
        let errors = [probe::read_into(&zero, ram, offset, len), probe::write_from(&file, ram, offset, len)];
        ensure!(errors == [EFAULT, EFAULT], "{what}: read and write of {len} bytes: {errors:?}");
    }
    out_of_hand(ram, offset, what)?;
    ensure!(probe::splice_from(&writer, ram, offset) == EFAULT, "{what}: vmsplice");
    Ok(())
}

/// Nobody gets hold of the page, or reaches it from outside, whatever its state.
fn out_of_hand(ram: &Mapping, offset: usize, what: &str) -> Check {
    let me = std::process::id();
    for write in [false, true] {
        ensure!(probe::other_process(me, ram, offset, write) != 0, "{what}: process_vm, write {write}");
        let reached = !sys::in_child(|| probe::other_process(me, ram, offset, write) != 0);
        ensure!(!reached, "{what}: process_vm of a child, write {write}");
    }
    ensure!(!sys::in_child(|| probe::is_mapped(ram, offset)), "{what}: a child has it");
    let memory = File::options().read(true).write(true).open("/proc/self/mem").map_err(|e| e.to_string())?;
    let (read, write) = (
        memory.read_at(&mut [0; 8], ram.address() + offset as u64),
        memory.write_at(&[0; 8], ram.address() + offset as u64),
    );
    ensure!(read.is_err() && write.is_err(), "{what}: /proc/self/mem: {read:?}, {write:?}");
    ensure!(probe::populate(ram, offset) != 0, "{what}: MADV_POPULATE_WRITE");
    for disk in ["/dev/vda", "/dev/ram0", "/dev/loop0"] {
        if let Ok(disk) = File::options().read(true).custom_flags(libc::O_DIRECT).open(disk) {
            ensure!(probe::read_into(&disk, ram, offset, 512) != 0, "{what}: direct I/O");
        }
    }
    Ok(())
}

fn visible(ram: &Mapping, offset: usize, what: &str) -> Check {
    let file = scratch()?;
    ensure!(probe::touch(ram, offset) == (false, false), "{what}: SIGBUS");
    ensure!(probe::write_from(&file, ram, offset, 4096) == 0, "{what}: write");
    Ok(())
}

/// What CREATE_GUEST_MEMORY and mmap take, and what can't be done with the file.
pub fn arguments() -> Check {
    let mut asked = extension::GUEST_MEMORY;
    let known = sys::ioctl_with(&device()?, ioctl::CHECK_EXTENSION, &mut asked);
    ensure!(errno(&known) == 0 && asked == 1, "CHECK_EXTENSION: {asked}");
    for (size, flags) in [(0, 0), (4095, 0), (4096, 1), (1 << 43, 0), (u64::MAX - 4095, 0)] {
        let error = errno(&create(size, flags));
        ensure!(error == EINVAL, "{size:#x}, {flags}: errno {error}");
    }
    let (file, _ram) = memory()?;
    ensure!(errno(&Mapping::of(&file, SIZE, false)) == EINVAL, "a private mapping");
    ensure!(errno(&Mapping::of(&file, SIZE + 4096, true)) == EINVAL, "a mapping past the end");
    let file = File::from(file);
    ensure!(file.set_len(0).is_err() && file.set_len(1 << 30).is_err(), "ftruncate");
    ensure!(probe::punch_hole(&file) != 0, "fallocate");
    ensure!(file.read_at(&mut [0; 8], 0).is_err() && file.write_at(&[0; 8], 0).is_err(), "read and write");
    Ok(())
}

/// Zeroed memory for this process, a plain guest's like any other's.
pub fn ordinary_until_given() -> Check {
    let before = counter("driver_guest_memory_pages")?;
    let (file, ram) = memory()?;
    let second = Mapping::of(&file, SIZE, true).map_err(|e| format!("second mapping: {e}"))?;
    ensure!(ram.get(SECRET) == 0 && ram.get(SIZE - 4) == 0, "not zeroed");
    ram.put(SECRET, 0x1234);
    ensure!(second.get(SECRET) == 0x1234, "the second mapping");
    visible(&ram, SECRET, "before anything is given")?;
    out_of_hand(&ram, SECRET, "before anything is given")?;
    let machine = Machine::with_ram(ram, ECHO, &[(0, RAM + SECRET as u64), (2, DEVICE)])?;
    let echo = Run::new().mmio(&machine.vcpu)?;
    ensure!(u64::from_le_bytes(echo.data) == 0x1234, "a plain guest reads {:x?}", echo.data);
    visible(&machine.ram, SECRET, "a plain guest's page")?;
    drop((machine, file));
    ensure!(second.get(SECRET) == 0x1234, "a plain guest's page, afterwards");
    drop(second);
    let after = counter("driver_guest_memory_pages")?;
    ensure!(after == before, "{after} pages, {before} before");
    Ok(())
}

/// The whole life of a protected guest's pages.
pub fn leaves_every_mapping() -> Check {
    let aborts = counter("host_abort")?;
    let held = [counter("driver_private_pages")?, counter("driver_guest_memory_pages")?];
    let (machine, file) = protected(PROGRAM)?;
    let second = Mapping::of(&file, SIZE, true).map_err(|e| format!("second mapping: {e}"))?;
    visible(&second, SECRET, "not given yet")?;
    let mut run = Run::new();
    told(&machine, &mut run, 0, "the start")?;
    ensure!(counter("driver_private_pages")? > held[0], "nothing is private");
    let refused = counter("driver_private_faults")?;
    for (ram, which) in [(&machine.ram, "first"), (&second, "second")] {
        hidden(ram, SECRET, &format!("the secret, {which} mapping"))?;
        hidden(ram, SHARED, &format!("a page not shared yet, {which} mapping"))?;
    }
    ensure!(counter("driver_private_faults")? >= refused + 32, "refusals are not counted");
    for round in 0..2 {
        told(&machine, &mut run, 0, "MEM_SHARE")?;
        visible(&machine.ram, SHARED, "a shared page")?;
        visible(&second, SHARED, "a shared page, second mapping")?;
        out_of_hand(&second, SHARED, "a shared page")?;
        ensure!(u64::from(second.get(SHARED)) == VALUE, "round {round}: {:#x}", second.get(SHARED));
        hidden(&machine.ram, SECRET, "a neighbour")?;
        told(&machine, &mut run, 0, "MEM_UNSHARE")?;
        hidden(&machine.ram, SHARED, "a page taken back")?;
        hidden(&second, SHARED, "a page taken back, second mapping")?;
    }
    told(&machine, &mut run, 0, "MEM_RELINQUISH")?;
    visible(&second, SECRET, "a page that was given up")?;
    ensure!(second.get(SECRET) == 0, "it was not scrubbed");
    second.put(SECRET, 0x77);
    told(&machine, &mut run, 0x77, "what the host put there")?;
    hidden(&second, SECRET, "the page given anew")?;
    drop(machine);
    for offset in (0..SIZE).step_by(4096) {
        ensure!(second.get(offset) == 0, "afterwards {offset:#x} has {:#x}", second.get(offset));
    }
    drop((second, file));
    let now = [counter("driver_private_pages")?, counter("driver_guest_memory_pages")?];
    ensure!(now == held, "{now:?} pages are held, not {held:?}");
    let aborts = counter("host_abort")? - aborts;
    ensure!(aborts == 0, "{aborts} aborts");
    Ok(())
}

/// Whatever this process does to its mappings, the guest's memory is what it was.
pub fn stays_the_guests() -> Check {
    let aborts = counter("host_abort")?;
    let (mut machine, file) = protected(PROGRAM)?;
    let mut run = Run::new();
    told(&machine, &mut run, 0, "the start")?;
    machine.ram.relocate().map_err(|e| format!("mremap: {e}"))?;
    hidden(&machine.ram, SECRET, "moved")?;
    told(&machine, &mut run, 0, "MEM_SHARE")?;
    visible(&machine.ram, SHARED, "moved")?;
    machine.ram.relocate().map_err(|e| format!("mremap: {e}"))?;
    ensure!(probe::punch_hole(&file) != 0, "fallocate");
    // Other memory at the address that the slot was registered with, and in the end no mapping at all.
    machine.ram.replace(0, SIZE, true);
    told(&machine, &mut run, 0, "MEM_UNSHARE")?;
    machine.ram.replace(0, SIZE, false);
    let other = vm().map_err(|e| e.to_string())?;
    let again = Mapping::of(&file, SIZE, true).map_err(|e| format!("mmap: {e}"))?;
    region(&other, 0, RAM, SIZE as u64, again.address()).map_err(|e| format!("another VM: {e}"))?;
    hidden(&again, SECRET, "mapped anew")?;
    drop(file);
    told(&machine, &mut run, 0, "MEM_SHARE")?;
    ensure!(u64::from(again.get(SHARED)) == VALUE, "the guest's page has {:#x}", again.get(SHARED));
    drop((again, other));
    told(&machine, &mut run, 0, "MEM_UNSHARE")?;
    let aborts = counter("host_abort")? - aborts;
    ensure!(aborts == 0, "{aborts} aborts");
    Ok(())
}

/// Where the kernel's map has the page that starts with this word, `offset` into a block of 2 MiB.
fn find_page(map: &KernelsMap, word: u64, offset: u64) -> Option<u64> {
    const BLOCK: u64 = 2 << 20;
    map.ram.iter().find_map(|segment| {
        let first = segment.physical.next_multiple_of(BLOCK) + offset;
        let places = (first..segment.physical + segment.size).step_by(BLOCK as usize);
        places.map(|pa| segment.offset + (pa - segment.physical)).find(|place| map.word(*place) == Some(word))
    })
}

/// The kernel's own map has all memory; whoever reads it finds nothing where a protected guest's is.
pub fn not_in_the_kernels_map() -> Check {
    const MARK: u64 = 0x6B63_6F72_6500_1234;
    let aborts = counter("host_abort")?;
    let kernels_map = KernelsMap::open()?;
    let (_file, ram) = memory()?;
    ram.put(SECRET, MARK as u32);
    ram.put(SECRET + 4, (MARK >> 32) as u32);
    let place =
        find_page(&kernels_map, MARK, SECRET as u64).ok_or("the kernel's map does not have the page")?;
    let machine = Machine::protected(ram, PROGRAM, REGISTERS)?;
    told(&machine, &mut Run::new(), 0, "the start")?;
    let mut page = [0xFF; 4096];
    let read = kernels_map.file.read_at(&mut page, place);
    ensure!(read.is_err() || page.iter().all(|byte| *byte == 0), "it has {:x?}", &page[..8]);
    drop(machine);
    let aborts = counter("host_abort")? - aborts;
    ensure!(aborts == 0, "{aborts} aborts");
    Ok(())
}

/// System calls and loads of a page that comes and goes: each gets it, or an error, and no abort.
pub fn sharing_races() -> Check {
    let aborts = counter("host_abort")?;
    let (machine, _file) = protected(RACE)?;
    let over = AtomicBool::new(false);
    let (seen, refused) = (AtomicU32::new(0), AtomicU32::new(0));
    let note = |reached| if reached { &seen } else { &refused }.fetch_add(1, Ordering::Relaxed);
    let (over, ram) = (&over, &machine.ram);
    let end = thread::scope(|scope| {
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                note(probe::touch(ram, SHARED) == (false, false));
            }
        });
        scope.spawn(move || {
            let file = scratch();
            while !over.load(Ordering::Relaxed) {
                note(file.as_ref().is_ok_and(|file| probe::write_from(file, ram, SHARED, 4096) == 0));
            }
        });
        let end = told(&machine, &mut Run::new(), 0, "the end");
        over.store(true, Ordering::Relaxed);
        end
    });
    end?;
    let _ = fs::remove_file("/tmp/guest-memory");
    let (seen, refused) = (seen.into_inner(), refused.into_inner());
    ensure!(seen > 100 && refused > 100, "{seen} accesses came through, {refused} did not: no race");
    let aborts = counter("host_abort")? - aborts;
    ensure!(aborts == 0, "{aborts} aborts in {} accesses", seen + refused);
    Ok(())
}
