// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The disk, and what is shared.

use gzvm_abi::guest;
use gzvm_guest_kit::bounce::{self, Bounce};
use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::{cases, check, check_eq, fail, machine, measurement, println};
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::mmio::MmioTransport;

pub const CASES: &[Case] = cases!["bounce": vm_is_protected, firmware_has_sealed_the_measurement, disk_is_read, disk_is_written, pages_are_shared_and_taken_back];

type Disk = VirtIOBlk<Bounce, MmioTransport<'static>>;

fn disk() -> Result<Disk, Verdict> {
    let Some(transport) = bounce::transports().next() else { fail!("no virtio device") };
    VirtIOBlk::new(transport).map_err(|e| Verdict::fail(format_args!("no disk: {e}")))
}

fn error<T>(result: Result<T, virtio_drivers::Error>, what: &str) -> Result<T, Verdict> {
    result.map_err(|e| Verdict::fail(format_args!("{what}: {e}")))
}

fn vm_is_protected() -> Outcome {
    let [granule, ..] = machine::get().conduit.call(guest::HYP_MEMINFO.into(), &[]);
    check_eq!(granule, 4096, "HYP_MEMINFO");
    let shared = machine::get().shared;
    check!(shared.is_some(), "the device tree names no memory to share");
    Ok(())
}

/// And nothing can be added.
fn firmware_has_sealed_the_measurement() -> Outcome {
    let Some(before) = measurement::read() else { fail!("there is none") };
    println!("note: measurement {before}");
    check!(before.firmware && before.sealed, "{before:?}");
    check_eq!(before.extends, 2, "digests that the firmware has told");
    check_eq!(measurement::extend(&[0; 32]), Err(guest::MEASUREMENT_SEALED), "MEASUREMENT_EXTEND");
    for image in guest::IMAGE_KEY..=guest::IMAGE_REMEMBER {
        let [status, values @ ..] = machine::get().conduit.call(image.into(), &[1, 2, 3, 4]);
        check_eq!(status, guest::MEASUREMENT_SEALED, "{image:#x}");
        check_eq!(values, [1, 2, 3], "what {image:#x} tells");
    }
    check_eq!(measurement::seal(), Err(guest::MEASUREMENT_SEALED), "MEASUREMENT_SEAL");
    check_eq!(measurement::read(), Some(before), "afterwards");
    Ok(())
}

/// A file's content stands somewhere on a disk that small.
fn disk_is_read() -> Outcome {
    const GREETING: &[u8] = b"hello from the disk";
    let mut disk = disk()?;
    let mut sectors = [0; 16 * SECTOR_SIZE];
    for first in (0..disk.capacity() as usize).step_by(16) {
        error(disk.read_blocks(first, &mut sectors), "read")?;
        if sectors.chunks(SECTOR_SIZE).any(|sector| sector.starts_with(GREETING)) {
            return Ok(());
        }
    }
    fail!("no greeting on {} sectors", disk.capacity());
}

fn disk_is_written() -> Outcome {
    let mut disk = disk()?;
    let last = disk.capacity() as usize - 8;
    let mut before = [0; 8 * SECTOR_SIZE];
    error(disk.read_blocks(last, &mut before), "read")?;
    let mut written = before;
    for (n, byte) in written.iter_mut().enumerate() {
        *byte ^= (n * 31 + 7) as u8;
    }
    error(disk.write_blocks(last, &written), "write")?;
    error(disk.flush(), "flush")?;
    let mut read = [0; 8 * SECTOR_SIZE];
    error(disk.read_blocks(last, &mut read), "read again")?;
    check!(read == written, "what was read is not what was written");
    error(disk.write_blocks(last, &before), "write back")
}

/// A page of this guest's own, besides the pool.
fn pages_are_shared_and_taken_back() -> Outcome {
    #[repr(align(4096))]
    struct Page(#[expect(dead_code, reason = "only its address is used")] [u8; 4096]);
    static PAGE: Page = Page([7; 4096]);
    let page = &raw const PAGE as u64;
    let call = |function: u32| machine::get().conduit.call(function.into(), &[page])[0];
    check_eq!(call(guest::MEM_SHARE), 0, "MEM_SHARE");
    check_eq!(call(guest::MEM_UNSHARE), 0, "MEM_UNSHARE");
    check!(call(guest::MEM_UNSHARE) != 0, "MEM_UNSHARE of what is not shared");
    Ok(())
}
