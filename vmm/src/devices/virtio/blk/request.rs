// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One virtio-blk request (virtio 1.2, section 5.2.6): a header the driver wrote, data, and a
//! status byte for us to write. The driver may cut these into descriptors as it likes.

use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_queue::DescriptorChain;
use vm_memory::bitmap::MS;
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use super::backend::{Disk, SECTOR_SIZE};
use crate::broken::{Mistake, broken};

const HEADER_SIZE: usize = 16;
/// Of a range to discard or to make zeros.
const RANGE_SIZE: usize = 16;
/// Most ranges in a request.
pub const RANGES_MAX: u32 = 16;
/// Most sectors in a range: zeros may have to be written.
pub const RANGE_SECTORS_MAX: u32 = 1 << 16;

type Buffer<'a> = VolatileSlice<'a, MS<'a, GuestMemoryMmap>>;

/// Executes the request in `chain`; returns how many bytes of the chain were written. A request
/// without room for a status byte is dropped: it gets 0.
pub fn execute(
    disk: &Disk,
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
    write_through: bool,
) -> u32 {
    let Some(Request { kind, sector, output, input, status }) = Request::parse(memory, chain) else {
        tracing::debug!("virtio-blk: malformed request");
        return 0;
    };
    let result = match kind {
        VIRTIO_BLK_T_IN => span(disk, sector, &input).and_then(|offset| disk.read(offset, &input)),
        VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if disk.read_only() => {
            Err(io::ErrorKind::ReadOnlyFilesystem.into())
        }
        VIRTIO_BLK_T_OUT => span(disk, sector, &output)
            .and_then(|offset| disk.write(offset, &output))
            .and_then(|()| if write_through { disk.flush() } else { Ok(()) }),
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
            erase(disk, kind, &output).and_then(|()| if write_through { disk.flush() } else { Ok(()) })
        }
        VIRTIO_BLK_T_FLUSH => disk.flush(),
        VIRTIO_BLK_T_GET_ID => get_id(disk, &input),
        _ => Err(io::ErrorKind::Unsupported.into()),
    };
    let (code, written) = match &result {
        Ok(()) => (VIRTIO_BLK_S_OK, total(&input)),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => (VIRTIO_BLK_S_UNSUPP, 0),
        Err(error) => {
            tracing::debug!("virtio-blk: request {kind} at sector {sector}: {error}");
            (VIRTIO_BLK_S_IOERR, 0)
        }
    };
    if status.write_obj(code as u8, 0).is_err() {
        return 0;
    }
    u32::try_from(written.saturating_add(1)).unwrap_or(u32::MAX)
}

/// A request, its buffers checked to be guest memory.
struct Request<'a> {
    kind: u32,
    sector: u64,
    /// From the driver.
    output: Vec<Buffer<'a>>,
    /// To the driver.
    input: Vec<Buffer<'a>>,
    /// One byte, the last that is ours to write.
    status: Buffer<'a>,
}

impl<'a> Request<'a> {
    fn parse(memory: &'a GuestMemoryMmap, chain: DescriptorChain<&GuestMemoryMmap>) -> Option<Self> {
        let (mut output, mut input) = (Vec::new(), Vec::new());
        for descriptor in chain {
            let side = if descriptor.is_write_only() { &mut input } else { &mut output };
            let len = usize::try_from(descriptor.len()).ok()?;
            for slice in memory.get_slices(descriptor.addr(), len) {
                side.push(slice.ok()?);
            }
        }
        let mut header = [0; HEADER_SIZE];
        take_front(&mut output, &mut header)?;
        let (kind, sector) = (header.first_chunk::<4>()?, header.last_chunk::<8>()?);
        let status = take_last_byte(&mut input)?;
        Some(Self {
            kind: u32::from_le_bytes(*kind),
            sector: u64::from_le_bytes(*sector),
            output,
            input,
            status,
        })
    }
}

/// Reads `header` from the first buffers and takes them off.
fn take_front(buffers: &mut Vec<Buffer>, header: &mut [u8]) -> Option<()> {
    let mut rest = header;
    while !rest.is_empty() {
        let first = buffers.first_mut()?;
        let len = first.len().min(rest.len());
        let (now, later) = rest.split_at_mut(len);
        first.read_slice(now, 0).ok()?;
        rest = later;
        *first = first.offset(len).ok()?;
        if first.is_empty() {
            buffers.remove(0);
        }
    }
    Some(())
}

/// Takes the last byte off.
fn take_last_byte<'a>(buffers: &mut Vec<Buffer<'a>>) -> Option<Buffer<'a>> {
    loop {
        let last = buffers.last_mut()?;
        let Some(len) = last.len().checked_sub(1) else {
            buffers.pop();
            continue;
        };
        let byte = last.offset(len).ok()?;
        *last = last.subslice(0, len).ok()?;
        return Some(byte);
    }
}

fn total(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| buffer.len() as u64).fold(0, u64::saturating_add)
}

/// The byte offset of `sector`, if whole sectors from there on fit `buffers` and the disk.
fn span(disk: &Disk, sector: u64, buffers: &[Buffer]) -> io::Result<u64> {
    let len = total(buffers);
    let offset = sector.checked_mul(SECTOR_SIZE);
    match offset.and_then(|offset| Some((offset, offset.checked_add(len)?))) {
        Some((offset, end))
            if (end <= disk.size() || broken(Mistake::AnySector)) && len.is_multiple_of(SECTOR_SIZE) =>
        {
            Ok(offset)
        }
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Discards, or makes zeros of, all ranges in `buffers`, or none if one of them is wrong.
fn erase(disk: &Disk, kind: u32, buffers: &[Buffer]) -> io::Result<()> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let mut bytes = [0; RANGE_SIZE * RANGES_MAX as usize];
    let len = usize::try_from(total(buffers)).map_err(|_| invalid())?;
    let bytes =
        bytes.get_mut(..len).filter(|_| len != 0 && len.is_multiple_of(RANGE_SIZE)).ok_or_else(invalid)?;
    let mut rest = &mut *bytes;
    for buffer in buffers {
        let (now, later) = rest.split_at_mut(buffer.len().min(rest.len()));
        buffer.read_slice(now, 0).map_err(io::Error::other)?;
        rest = later;
    }
    let mut ranges = Vec::with_capacity(RANGES_MAX as usize);
    for [sector @ .., a, b, c, d, e, f, g, h] in bytes.as_chunks::<RANGE_SIZE>().0 {
        let (count, flags) = (u32::from_le_bytes([*a, *b, *c, *d]), u32::from_le_bytes([*e, *f, *g, *h]));
        let known = if kind == VIRTIO_BLK_T_DISCARD { 0 } else { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP };
        if flags & !known != 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let offset = u64::from_le_bytes(*sector).checked_mul(SECTOR_SIZE).ok_or_else(invalid)?;
        let len = u64::from(count) * SECTOR_SIZE;
        if count > RANGE_SECTORS_MAX || offset.checked_add(len).is_none_or(|end| end > disk.size()) {
            return Err(invalid());
        }
        ranges.push((offset, len, flags != 0));
    }
    for (offset, len, unmap) in ranges {
        if kind == VIRTIO_BLK_T_DISCARD {
            disk.discard(offset, len)?;
        } else {
            disk.write_zeroes(offset, len, unmap)?;
        }
    }
    Ok(())
}

fn get_id(disk: &Disk, buffers: &[Buffer]) -> io::Result<()> {
    let mut id = disk.id().as_slice();
    for buffer in buffers {
        let (now, later) = id.split_at(id.len().min(buffer.len()));
        buffer.write_slice(now, 0).map_err(io::Error::other)?;
        id = later;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::devices::virtio::blk::options::DiskOption;
    use crate::loader::tests::TempFile;
    use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::GuestAddress;

    const HEADER: u64 = 0x8000;
    const DATA: u64 = 0x9000;
    const STATUS: u64 = 0xF000;

    /// Runs a request of `segments` (address, length, device-writable); returns the used length and
    /// the status byte.
    fn run(disk: &Disk, memory: &GuestMemoryMmap, segments: &[(u64, u32, bool)]) -> (u32, u8) {
        let ring = MockSplitQueue::new(memory, 16);
        let last = segments.len() - 1;
        let descriptors: Vec<RawDescriptor> = (0_u16..)
            .zip(segments)
            .map(|(index, &(address, len, write))| {
                let mut flags = if write { VRING_DESC_F_WRITE as u16 } else { 0 };
                flags |= if usize::from(index) < last { VRING_DESC_F_NEXT as u16 } else { 0 };
                RawDescriptor::from(Descriptor::new(address, len, flags, index + 1))
            })
            .collect();
        memory.write_obj(0xEE_u8, GuestAddress(STATUS)).unwrap();
        let chain = ring.build_desc_chain(&descriptors).unwrap();
        let written = execute(disk, memory, chain, false);
        (written, memory.read_obj(GuestAddress(STATUS)).unwrap())
    }

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap()
    }

    fn header(memory: &GuestMemoryMmap, kind: u32, sector: u64) {
        memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
        memory.write_obj(0_u32, GuestAddress(HEADER + 4)).unwrap();
        memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
    }

    #[test]
    fn read_and_write() {
        let file = TempFile::new("r-rw", &[1; 1024]);
        let disk = Disk::open(&DiskOption::from(file.0.as_path())).unwrap();
        let memory = memory();
        header(&memory, VIRTIO_BLK_T_OUT, 1);
        memory.write_slice(&[0xAB; 512], GuestAddress(DATA)).unwrap();
        let segments = [(HEADER, 16, false), (DATA, 512, false), (STATUS, 1, true)];
        assert_eq!(run(&disk, &memory, &segments), (1, 0));
        assert_eq!(std::fs::read(&file.0).unwrap()[511..514], [1, 0xAB, 0xAB]);
        header(&memory, VIRTIO_BLK_T_IN, 0);
        let segments = [(HEADER, 16, false), (DATA, 1024, true), (STATUS, 1, true)];
        assert_eq!(run(&disk, &memory, &segments), (1025, 0));
        assert_eq!(memory.read_obj::<u16>(GuestAddress(DATA + 511)).unwrap(), 0xAB01);
    }

    #[test]
    fn framing_is_the_drivers_choice() {
        let file = TempFile::new("r-frame", &[2; 512]);
        let disk = Disk::open(&DiskOption::from(file.0.as_path())).unwrap();
        let memory = memory();
        header(&memory, VIRTIO_BLK_T_IN, 0);
        // Header in two parts; status behind the data in one descriptor.
        let segments = [(HEADER, 5, false), (HEADER + 5, 11, false), (STATUS - 512, 513, true)];
        assert_eq!(run(&disk, &memory, &segments), (513, 0));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(STATUS - 1)).unwrap(), 2);
    }

    #[test]
    pub(crate) fn what_is_out_of_range_is_an_error() {
        let file = TempFile::new("r-range", &[0; 1024]);
        let disk = Disk::open(&DiskOption::from(file.0.as_path())).unwrap();
        let memory = memory();
        for (sector, len) in [(2, 512), (1, 1024), (u64::MAX, 512), (1 << 55, 512), (0, 511)] {
            header(&memory, VIRTIO_BLK_T_IN, sector);
            let segments = [(HEADER, 16, false), (DATA, len, true), (STATUS, 1, true)];
            assert_eq!(run(&disk, &memory, &segments), (1, 1), "{sector} {len}");
        }
        header(&memory, VIRTIO_BLK_T_OUT, 2);
        let segments = [(HEADER, 16, false), (DATA, 512, false), (STATUS, 1, true)];
        assert_eq!(run(&disk, &memory, &segments), (1, 1));
        assert_eq!(std::fs::read(&file.0).unwrap().len(), 1024, "the disk does not grow");
        header(&memory, 999, 0);
        assert_eq!(run(&disk, &memory, &[(HEADER, 16, false), (STATUS, 1, true)]), (1, 2));
    }

    #[test]
    fn malformed_chains_are_dropped() {
        let file = TempFile::new("r-bad", &[0; 512]);
        let disk = Disk::open(&DiskOption::from(file.0.as_path())).unwrap();
        let memory = memory();
        header(&memory, VIRTIO_BLK_T_IN, 0);
        let dropped = (0, 0xEE);
        assert_eq!(run(&disk, &memory, &[(HEADER, 15, false), (STATUS, 1, true)]), dropped, "header");
        assert_eq!(run(&disk, &memory, &[(HEADER, 16, false)]), dropped, "no status");
        assert_eq!(run(&disk, &memory, &[(HEADER, 16, false), (STATUS, 0, true)]), dropped, "empty status");
        let outside = [(HEADER, 16, false), (0x10000, 512, true), (STATUS, 1, true)];
        assert_eq!(run(&disk, &memory, &outside), dropped, "outside of memory");
        let wraps = [(HEADER, 16, false), (u64::MAX, 512, true), (STATUS, 1, true)];
        assert_eq!(run(&disk, &memory, &wraps), dropped, "wraps");
    }

    #[test]
    fn read_only_disks_stay_as_they_are() {
        let file = TempFile::new("r-ro", &[3; 512]);
        let disk = Disk::open(&DiskOption { read_only: true, ..file.0.as_path().into() }).unwrap();
        let memory = memory();
        header(&memory, VIRTIO_BLK_T_OUT, 0);
        let segments = [(HEADER, 16, false), (DATA, 512, false), (STATUS, 1, true)];
        assert_eq!(run(&disk, &memory, &segments), (1, 1));
        assert_eq!(std::fs::read(&file.0).unwrap(), [3; 512]);
    }

    #[test]
    fn identification() {
        let file = TempFile::new("r-id", &[0; 512]);
        let disk = Disk::open(&DiskOption::from(file.0.as_path())).unwrap();
        let memory = memory();
        header(&memory, VIRTIO_BLK_T_GET_ID, 0);
        assert_eq!(run(&disk, &memory, &[(HEADER, 16, false), (DATA, 20, true), (STATUS, 1, true)]), (21, 0));
        let mut id = [0; 20];
        memory.read_slice(&mut id, GuestAddress(DATA)).unwrap();
        assert!(id.starts_with(b"gz-test-"), "{id:?}");
    }

    #[test]
    fn ranges_are_erased_all_or_none() {
        const ZEROES: u32 = VIRTIO_BLK_T_WRITE_ZEROES;
        let file = TempFile::new("r-erase", &[5; 16 * 512]);
        let disk = Disk::open(&DiskOption::from(file.0.as_path())).unwrap();
        let erase = |kind, ranges: &[(u64, u32, u32)]| {
            let memory = memory();
            header(&memory, kind, 0);
            for (at, (sector, count, flags)) in (DATA..).step_by(16).zip(ranges) {
                memory.write_obj(*sector, GuestAddress(at)).unwrap();
                memory.write_obj(*count, GuestAddress(at + 8)).unwrap();
                memory.write_obj(*flags, GuestAddress(at + 12)).unwrap();
            }
            // In two parts, of which the first ends in a range.
            let len = 16 * ranges.len() as u32;
            let segments =
                [(HEADER, 16, false), (DATA, 9, false), (DATA + 9, len - 9, false), (STATUS, 1, true)];
            run(&disk, &memory, &segments).1
        };
        let zero = || -> Vec<usize> {
            let content = std::fs::read(&file.0).unwrap();
            assert_eq!(content.len(), 16 * 512);
            (0..16).filter(|n| content[n * 512..(n + 1) * 512] == [0; 512]).collect()
        };
        assert_eq!(erase(ZEROES, &[(1, 2, 0), (7, 1, 1), (9, 0, 0)]), 0);
        assert_eq!(zero(), [1, 2, 7]);
        assert_eq!(erase(VIRTIO_BLK_T_DISCARD, &[(15, 1, 0)]), 0);
        let before = zero();
        for wrong in [(16, 1, 0), (15, 2, 0), (u64::MAX, 1, 0), (1 << 55, 1, 0), (0, u32::MAX, 0)] {
            assert_eq!(erase(ZEROES, &[(0, 1, 0), wrong]), 1, "{wrong:?}");
        }
        assert_eq!(erase(ZEROES, &[(0, 1, 0), (0, 1, 2)]), 2, "unknown flag");
        assert_eq!(erase(VIRTIO_BLK_T_DISCARD, &[(0, 1, 1)]), 2, "unmap");
        assert_eq!(erase(ZEROES, &[(0, 1, 0); 17]), 1, "too many");
        assert_eq!(zero(), before);
    }
}
