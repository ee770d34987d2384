// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The firmware of protected VMs. The hypervisor puts it into the VM, out of the host's reach, and starts vCPU 0 here. It
//! starts the payload that the host has loaded, if that is signed, or ends the VM.
//!
//! 1. MMIO goes to the VMM only where this VM says so: from here on, memory is memory.
//! 2. Device tree and payload are read. A page that is touched becomes the VM's own, for good, before it is read.
//! 3. The tree is checked, then the signature and the payload's version ([`gzvm_firmware_verify`]). The VM's measurement is extended by both.
//! 4. Devices' registers are named to the MMIO guard, the bounce buffers shared, the host's seeds replaced, the measurement sealed.
//! 5. The payload starts, as the arm64 boot protocol has it.
//!
//! Unsafe code is here only; what decides is in `verify/`. Whoever owns the key in `keys/` decides what runs;
//! `GZVM_PAYLOAD_KEY` names another one at build time,
//! `GZVM_PAYLOAD_MIN_VERSION` the oldest version that starts. Certificates have their place between
//! 3 and 4.
#![no_std]
#![no_main]

mod call;
mod console;
mod images;

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;

use dtoolkit::fdt::Fdt;
use ed25519_dalek::VerifyingKey;
use gzvm_abi::guest;
use gzvm_firmware_verify::images::Found;
use gzvm_firmware_verify::manifest::{Payload, Refusal};
use gzvm_firmware_verify::tree::{self, BadTree, Given, MEMORY_FROM, PAGE, Range};

use call::{hvc, page_call};

const STACK_SIZE: usize = 32 << 10;
/// Linux allows no more.
const TREE_MAX: u64 = 2 << 20;

/// Level-1 table and stack: filled by the entry code.
#[repr(C, align(4096))]
struct Room<const N: usize>(UnsafeCell<[u8; N]>);
// SAFETY: nothing in Rust refers to the content.
unsafe impl<const N: usize> Sync for Room<N> {}

#[unsafe(no_mangle)]
static TABLE: Room<4096> = Room(UnsafeCell::new([0; 4096]));
#[unsafe(no_mangle)]
static STACK: Room<STACK_SIZE> = Room(UnsafeCell::new([0; STACK_SIZE]));

global_asm!(include_str!("entry.S"), stack = const STACK_SIZE);

unsafe extern "C" {
    fn start_payload(tree: u64, kernel: u64) -> !;
    static image_start: u8;
    static image_end: u8;
}

/// The key that payloads are signed with.
static KEY: &[u8; 32] = include_bytes!(concat!(env!("OUT_DIR"), "/payload.key"));

/// The oldest version of a payload that starts.
const MINIMUM: u64 = parse(env!("GZVM_PAYLOAD_MIN_VERSION"));

const fn parse(number: &str) -> u64 {
    match u64::from_str_radix(number, 10) {
        Ok(number) => number,
        Err(_) => panic!("GZVM_PAYLOAD_MIN_VERSION is no number"),
    }
}

/// Why the VM ends.
enum End {
    Hypervisor(&'static str),
    Tree(BadTree),
    Payload(Refusal),
}

impl core::fmt::Display for End {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Hypervisor(what) => write!(f, "the hypervisor: {what}"),
            Self::Tree(why) => write!(f, "device tree: {why}"),
            Self::Payload(why) => write!(f, "{why}"),
        }
    }
}

/// From the entry code; what it returns to ends the VM.
#[unsafe(no_mangle)]
extern "C" fn firmware_main(tree: u64, kernel: u64, size: u64) {
    match prepare(tree, kernel, size) {
        Ok(version) => {
            println!("pvmfw: the payload is signed, version {version}; starting it at {kernel:#x}")
        }
        Err(why) => {
            println!("pvmfw: not started: {why}");
            return;
        }
    }
    // SAFETY: a kernel whose owner vouches for it, at its place; nothing of this firmware is used again.
    unsafe { start_payload(tree, kernel) }
}

/// Everything up to the payload's start; its version.
fn prepare(tree: u64, kernel: u64, size: u64) -> Result<u64, End> {
    page_call(guest::MMIO_GUARD_ENROLL, 0).map_err(|()| End::Hypervisor("no MMIO guard"))?;
    for granule in [guest::HYP_MEMINFO, guest::MMIO_GUARD_INFO] {
        if hvc(granule, 0)[0] != PAGE {
            return Err(End::Hypervisor("its granule is not 4 KiB"));
        }
    }
    let header = Range::new(tree, 8).filter(|r| r.start() >= MEMORY_FROM && r.start().is_multiple_of(8));
    let header = bytes(header.ok_or(End::Tree(BadTree::NoTree))?);
    let length = header.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes);
    let tree = Range::new(tree, length.into()).filter(|r| r.size() <= TREE_MAX);
    let tree = tree.ok_or(End::Tree(BadTree::NoTree))?;
    let blob = bytes(tree);
    own_all(blob);
    let fdt = Fdt::new(blob).map_err(|_| End::Tree(BadTree::NoTree))?;
    if let Some(uart) = tree::uart(&fdt) {
        name(uart & !(PAGE - 1))?;
        console::start(uart);
    }

    let kernel = Range::new(kernel, size).filter(|r| r.start() >= MEMORY_FROM);
    let kernel = kernel.ok_or(End::Tree(BadTree::Placement))?;
    let plan = tree::read(&fdt, &Given { tree, kernel, firmware: own() }).map_err(End::Tree)?;
    let payload = Payload {
        kernel: bytes(kernel),
        initrd: plan.initrd.map_or(&[], bytes),
        bootargs: plan.bootargs.as_bytes(),
    };
    let key = VerifyingKey::from_bytes(KEY).map_err(|_| End::Payload(Refusal::Signature))?;
    let mut known = 0;
    let is_image = |bytes: &[u8], digest: &_| {
        let found = images::find(bytes, digest);
        known += u32::from(found == Some(Found::Known));
        found.is_some()
    };
    let verified = payload.verify(&key, MINIMUM, is_image).map_err(End::Payload)?;
    if known > 0 {
        println!("pvmfw: images verified before: {known}");
    }
    for digest in [verified.digest, plan.digest()] {
        call::extend(&digest).map_err(|()| End::Hypervisor("it keeps no measurement"))?;
    }

    plan.devices.iter().flat_map(|device| device.registers.pages()).try_for_each(name)?;
    if let Some(pool) = &plan.pool {
        call::share(pool.start(), pool.end()).map_err(|()| End::Hypervisor("it shares no memory"))?;
    }
    let seeds = tree::seeds(&fdt, blob);
    for (offset, length) in seeds {
        for at in (offset..offset + length).step_by(8) {
            let random = call::random().ok_or(End::Hypervisor("no random numbers"))?;
            let part = (length - (at - offset)).min(8);
            // SAFETY: inside the tree, which nobody refers to any more: `fdt`, `blob` and `plan` are not used again.
            unsafe {
                let to = (tree.start() + at as u64) as *mut u8;
                core::ptr::copy_nonoverlapping(random.as_ptr(), to, part);
            }
        }
    }
    // Only the tree was written here: of the rest the hypervisor has cleaned what the host wrote, when the page became the VM's.
    clean(tree);
    call::seal().map_err(|()| End::Hypervisor("its measurement is not sealed"))?;
    Ok(verified.version)
}

/// The guest's memory; one that the host does not give ends the VM.
fn bytes(range: Range) -> &'static [u8] {
    // SAFETY: mapped as normal memory by the entry code, above the devices and not this image (`tree::read`; before that,
    // at worst read as bytes). Only this vCPU runs, and what the host gave is the VM's own once it is touched.
    unsafe { core::slice::from_raw_parts(range.start() as *const u8, range.size() as usize) }
}

/// Makes all of it this VM's own, also what no check looks at: until a page is touched, the host may change it.
fn own_all(bytes: &[u8]) {
    for page in bytes.chunks(PAGE as usize) {
        let (Some(first), Some(last)) = (page.first(), page.last()) else { continue };
        // SAFETY: references to bytes that are there. Chunks may straddle pages, and both ends are looked at.
        unsafe {
            core::ptr::from_ref(first).read_volatile();
            core::ptr::from_ref(last).read_volatile();
        }
    }
}

/// The registers in this page are the VMM's to emulate. More than one device may be in a page.
fn name(page: u64) -> Result<(), End> {
    page_call(guest::MMIO_GUARD_MAP, page).map_err(|()| End::Hypervisor("it names no device"))
}

/// This image.
fn own() -> Range {
    let (start, end) = (&raw const image_start as u64, &raw const image_end as u64);
    Range::new(start, end - start).unwrap_or_else(|| call::off())
}

/// The payload starts with its caches off.
fn clean(range: Range) {
    let mut at = range.start() & !63;
    while at < range.end() {
        // SAFETY: mapped memory, of which nothing is lost.
        unsafe { asm!("dc civac, {}", in(reg) at, options(nostack, preserves_flags)) };
        at += 16;
    }
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    println!("pvmfw: {info}");
    call::off()
}
