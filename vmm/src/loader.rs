// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Kernel and initrd into guest RAM, as Linux's `Documentation/arch/arm64/booting.rst` wants them.
//!
//! ```text
//! RAM_BASE + text_offset   kernel, image_size bytes (its .bss included)
//! next 16 MiB boundary     initrd
//! last aligned 2 MiB       device tree
//! ```
//!
//! A file that is no arm64 Image is named for what it is, with the way out.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use crate::layout;
use crate::memory::GuestRam;

/// Why a kernel or initrd is not in RAM.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The file can't be opened or read.
    #[error("--{option} {}: {error}", .path.display())]
    Io {
        /// `kernel` or `initrd`.
        option: &'static str,
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// Not a kernel that can be started.
    #[error("--kernel {}: {problem}", .path.display())]
    Kernel {
        /// Which.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: KernelProblem,
    },
    /// The flash is too small.
    #[error("--firmware {}: has {needed} bytes, and the flash {available}", .path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// Bytes.
        needed: u64,
        /// Bytes.
        available: u64,
    },
    /// RAM is too small.
    #[error("--{option} {}: needs {}K of RAM and there are {}K left for it; give the guest more with --mem",
        .path.display(), .needed.div_ceil(1024), .available / 1024)]
    NoRoom {
        /// `kernel` or `initrd`.
        option: &'static str,
        /// Which.
        path: PathBuf,
        /// Bytes.
        needed: u64,
        /// Bytes.
        available: u64,
    },
}

/// What a file given as kernel is instead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum KernelProblem {
    /// Shorter than a header.
    #[error("too short for an arm64 Image ({0} bytes); is the file complete?")]
    TooShort(usize),
    /// A compressed kernel.
    #[error("compressed with {0}; unpack it first (`{1}`)")]
    Compressed(&'static str, &'static str),
    /// A self-extracting EFI program.
    #[error("a compressed EFI kernel (vmlinuz.efi, zboot); take the plain `Image` of the same build")]
    EfiZboot,
    /// vmlinux.
    #[error("an ELF file; take arch/arm64/boot/Image, or make one with `objcopy -O binary`")]
    Elf,
    /// bzImage.
    #[error("an x86 kernel; the guest needs an arm64 one")]
    X86,
    /// Magic missing.
    #[error("not an arm64 kernel `Image` (no ARM\\x64 at byte 56)")]
    NoMagic,
    /// Endianness flag.
    #[error("a big-endian kernel; only little-endian ones are supported")]
    BigEndian,
    /// `image_size` is smaller than the file or absurd.
    #[error("the header's image_size {0:#x} makes no sense; is the file damaged?")]
    ImageSize(u64),
    /// `text_offset` is absurd.
    #[error("the header's text_offset {0:#x} makes no sense; is the file damaged?")]
    TextOffset(u64),
    /// The file holds less than what the header describes as loaded.
    #[error("cut off: the file has {0} bytes, the EFI header describes {1}; copy it again")]
    Truncated(u64, u64),
}

/// Bytes of the Image header.
pub const HEADER_SIZE: usize = 64;
/// Kernels before 3.17 leave `image_size` zero, and sit here.
const OLD_TEXT_OFFSET: u64 = 0x8_0000;
/// Kernels ask for an offset below this, the alignment of their base.
const TEXT_OFFSET_LIMIT: u64 = 2 << 20;
const FLAG_BIG_ENDIAN: u64 = 1;

/// What the loader needs of the header of an arm64 Image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ImageHeader {
    /// From a 2 MiB aligned base to the kernel's first byte.
    pub text_offset: u64,
    /// Memory the kernel needs from its first byte, in bytes; 0: unknown.
    pub image_size: u64,
}

impl ImageHeader {
    /// Reads the header from the first bytes of a file.
    ///
    /// # Errors
    /// What the file is instead.
    pub fn parse(start: &[u8]) -> Result<Self, KernelProblem> {
        if let Some(problem) = recognise(start) {
            return Err(problem);
        }
        let Some(header) = start.first_chunk::<HEADER_SIZE>() else {
            return Err(KernelProblem::TooShort(start.len()));
        };
        let word = |offset: usize| {
            let bytes = header.get(offset..).and_then(|bytes| bytes.first_chunk::<8>());
            bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        if header.get(56..60) != Some(b"ARM\x64") {
            return Err(KernelProblem::NoMagic);
        }
        let (text_offset, image_size, flags) = (word(8), word(16), word(24));
        if flags & FLAG_BIG_ENDIAN != 0 {
            return Err(KernelProblem::BigEndian);
        }
        if image_size == 0 {
            return Ok(Self { text_offset: OLD_TEXT_OFFSET, image_size: 0 });
        }
        if text_offset >= TEXT_OFFSET_LIMIT || text_offset % 4096 != 0 {
            return Err(KernelProblem::TextOffset(text_offset));
        }
        if image_size > layout::RAM_MAX {
            return Err(KernelProblem::ImageSize(image_size));
        }
        Ok(Self { text_offset, image_size })
    }
}

/// Files that people take for an arm64 Image.
fn recognise(start: &[u8]) -> Option<KernelProblem> {
    let compressed: [(&[u8], _, _); 6] = [
        (b"\x1F\x8B", "gzip", "gunzip < FILE > Image"),
        (b"\xFD7zXZ\0", "xz", "xz -d < FILE > Image"),
        (b"\x28\xB5\x2F\xFD", "zstd", "zstd -d < FILE > Image"),
        (b"BZh", "bzip2", "bzip2 -d < FILE > Image"),
        (b"\x04\x22\x4D\x18", "lz4", "lz4 -d < FILE > Image"),
        (b"\x02\x21\x4C\x18", "lz4", "lz4 -d < FILE > Image"),
    ];
    for (magic, name, command) in compressed {
        if start.starts_with(magic) {
            return Some(KernelProblem::Compressed(name, command));
        }
    }
    if start.starts_with(b"\x7FELF") {
        return Some(KernelProblem::Elf);
    }
    if start.starts_with(b"MZ") && start.get(4..8) == Some(b"zimg") {
        return Some(KernelProblem::EfiZboot);
    }
    // Linux's x86 boot protocol: boot flag and header magic.
    if start.get(0x1FE..0x200) == Some(b"\x55\xAA") && start.get(0x202..0x206) == Some(b"HdrS") {
        return Some(KernelProblem::X86);
    }
    None
}

/// Bytes that the EFI (PE) header of an Image describes as present in the file: 0 if there is none.
///
/// A Linux Image is an EFI program at the same time. Its section table says how long the file must
/// be, which `image_size`, with .bss, does not; so a truncated kernel is found here and not by its
/// crash.
fn efi_file_size(start: &[u8]) -> u64 {
    let u16_at = |offset: usize| {
        let bytes = start.get(offset..).and_then(|bytes| bytes.first_chunk::<2>());
        bytes.map(|bytes| usize::from(u16::from_le_bytes(*bytes)))
    };
    let u32_at = |offset: usize| {
        let bytes = start.get(offset..).and_then(|bytes| bytes.first_chunk::<4>());
        bytes.map(|bytes| u32::from_le_bytes(*bytes))
    };
    if !start.starts_with(b"MZ") {
        return 0;
    }
    let Some(pe) = u32_at(60).and_then(|offset| usize::try_from(offset).ok()) else { return 0 };
    // A PE header may stand anywhere; ours are read from the file's first bytes only.
    if pe > start.len() || start.get(pe..pe + 4) != Some(b"PE\0\0") {
        return 0;
    }
    let (Some(sections), Some(optional)) = (u16_at(pe + 6), u16_at(pe + 20)) else { return 0 };
    let table = pe + 24 + optional;
    (0..sections)
        .filter_map(|index| {
            // SizeOfRawData, PointerToRawData.
            let (size, at) = (u32_at(table + index * 40 + 16)?, u32_at(table + index * 40 + 20)?);
            Some(u64::from(size) + u64::from(at))
        })
        .max()
        .unwrap_or(0)
}

/// What has been loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loaded {
    /// Guest physical address of the kernel's first instruction.
    pub entry: u64,
    /// Bytes of the kernel's file.
    pub size: u64,
    /// The initrd: first address and length.
    pub initrd: Option<(u64, u64)>,
}

/// Puts kernel and initrd into `ram`.
///
/// # Errors
/// A file that can't be read, is no kernel, or does not fit.
pub fn load(ram: &GuestRam, kernel: &Path, initrd: Option<&Path>) -> Result<Loaded, LoadError> {
    let (entry, size, kernel_end) = load_kernel(ram, kernel)?;
    let initrd = match initrd {
        Some(path) => Some(load_initrd(ram, path, kernel_end)?),
        None => None,
    };
    Ok(Loaded { entry, size, initrd })
}

/// Puts firmware at the start of `flash`, the rest of which stays zero.
///
/// # Errors
/// A file that can't be read, is empty, or does not fit.
pub fn load_firmware(flash: &GuestRam, path: &Path) -> Result<(), LoadError> {
    let io = |error| LoadError::Io { option: "firmware", path: path.into(), error };
    let (file, needed) = open(path).map_err(io)?;
    if needed == 0 {
        return Err(io(std::io::Error::other("the file is empty")));
    }
    let available = flash.size();
    if needed > available {
        return Err(LoadError::TooLarge { path: path.into(), needed, available });
    }
    read_into(flash, flash.base(), file, &[], needed).map_err(io)
}

/// Where it starts, its bytes, and what comes behind its BSS.
fn load_kernel(ram: &GuestRam, path: &Path) -> Result<(u64, u64, u64), LoadError> {
    let io = |error| LoadError::Io { option: "kernel", path: path.into(), error };
    let bad = |problem| LoadError::Kernel { path: path.into(), problem };
    let (mut file, file_size) = open(path).map_err(io)?;
    let mut start = Vec::with_capacity(4096);
    (&mut file).take(4096).read_to_end(&mut start).map_err(io)?;
    let header = ImageHeader::parse(&start).map_err(bad)?;
    let described = efi_file_size(&start);
    if file_size < described {
        return Err(bad(KernelProblem::Truncated(file_size, described)));
    }
    let entry = layout::RAM_BASE + header.text_offset;
    let limit = layout::fdt_address(ram.size());
    let needed = header.image_size.max(file_size);
    let available = limit.saturating_sub(entry);
    if needed > available {
        return Err(LoadError::NoRoom { option: "kernel", path: path.into(), needed, available });
    }
    read_into(ram, entry, file, &start, file_size).map_err(io)?;
    Ok((entry, file_size, entry + needed))
}

fn load_initrd(ram: &GuestRam, path: &Path, after: u64) -> Result<(u64, u64), LoadError> {
    let io = |error| LoadError::Io { option: "initrd", path: path.into(), error };
    let (file, size) = open(path).map_err(io)?;
    if size == 0 {
        return Err(io(std::io::Error::other("the file is empty")));
    }
    let start = after.next_multiple_of(layout::INITRD_ALIGN);
    let available = layout::fdt_address(ram.size()).saturating_sub(start);
    if size > available {
        return Err(LoadError::NoRoom { option: "initrd", path: path.into(), needed: size, available });
    }
    read_into(ram, start, file, &[], size).map_err(io)?;
    Ok((start, size))
}

/// Opens a plain file; anything without a length of its own can't be placed.
fn open(path: &Path) -> std::io::Result<(File, u64)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    Ok((file, metadata.len()))
}

/// `start`, already read from `file`, and then the rest of `size` bytes go to `address`.
fn read_into(ram: &GuestRam, address: u64, mut file: File, start: &[u8], size: u64) -> std::io::Result<()> {
    let memory = ram.memory();
    memory.write_slice(start, GuestAddress(address)).map_err(std::io::Error::other)?;
    let rest = usize::try_from(size).unwrap_or(usize::MAX).saturating_sub(start.len());
    memory
        .read_exact_volatile_from(GuestAddress(address + start.len() as u64), &mut file, rest)
        .map_err(|error| std::io::Error::other(format!("the file changed while it was read: {error}")))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    /// A minimal arm64 Image: a header and `payload`.
    pub(crate) fn image(text_offset: u64, image_size: u64, flags: u64, payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0_u8; HEADER_SIZE];
        image[8..16].copy_from_slice(&text_offset.to_le_bytes());
        image[16..24].copy_from_slice(&image_size.to_le_bytes());
        image[24..32].copy_from_slice(&flags.to_le_bytes());
        image[56..60].copy_from_slice(b"ARM\x64");
        image.extend_from_slice(payload);
        image
    }

    /// A file that is gone when dropped.
    pub(crate) struct TempFile(pub PathBuf);

    impl TempFile {
        pub(crate) fn new(name: &str, content: &[u8]) -> Self {
            let path = std::env::temp_dir().join(format!("gz-test-{}-{name}", std::process::id()));
            File::create(&path).unwrap().write_all(content).unwrap();
            Self(path)
        }
    }

    impl Drop for TempFile {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn header_fields() {
        let header = ImageHeader::parse(&image(0, 0x20_0000, 0xA, &[])).unwrap();
        assert_eq!(header, ImageHeader { text_offset: 0, image_size: 0x20_0000 });
        // An old kernel: the offset is fixed, whatever the field says.
        let old = ImageHeader::parse(&image(0x1234, 0, 0, &[])).unwrap();
        assert_eq!(old, ImageHeader { text_offset: 0x8_0000, image_size: 0 });
    }

    #[test]
    fn wrong_files_are_named() {
        let parse = |bytes: &[u8]| ImageHeader::parse(bytes).unwrap_err();
        assert_eq!(parse(&[0; 12]), KernelProblem::TooShort(12));
        assert_eq!(parse(&[0; 512]), KernelProblem::NoMagic);
        assert!(matches!(parse(b"\x1F\x8B\x08rest"), KernelProblem::Compressed("gzip", _)));
        assert!(matches!(parse(b"\x28\xB5\x2F\xFDrest"), KernelProblem::Compressed("zstd", _)));
        assert_eq!(parse(b"\x7FELF\x02\x01"), KernelProblem::Elf);
        assert_eq!(parse(b"MZ\0\0zimg"), KernelProblem::EfiZboot);
        let mut bzimage = vec![0_u8; 4096];
        bzimage[0x1FE..0x200].copy_from_slice(b"\x55\xAA");
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(parse(&bzimage), KernelProblem::X86);
        assert_eq!(parse(&image(0, 4096, 1, &[])), KernelProblem::BigEndian);
        assert_eq!(parse(&image(0, u64::MAX, 0, &[])), KernelProblem::ImageSize(u64::MAX));
        assert_eq!(parse(&image(3 << 20, 4096, 0, &[])), KernelProblem::TextOffset(3 << 20));
    }

    #[test]
    fn kernel_and_initrd_are_placed() {
        let ram = GuestRam::new(layout::RAM_BASE, 64 << 20).unwrap();
        let kernel = TempFile::new("place-kernel", &image(0x1000, 0x9_0000, 0, &[0x5A; 8192]));
        let initrd = TempFile::new("place-initrd", b"initrd!");
        let loaded = load(&ram, &kernel.0, Some(&initrd.0)).unwrap();
        assert_eq!(loaded.entry, 0x8000_1000);
        assert_eq!(loaded.initrd, Some((0x8100_0000, 7)));
        let mut read = [0; 7];
        ram.memory().read_slice(&mut read, GuestAddress(0x8100_0000)).unwrap();
        assert_eq!(&read, b"initrd!");
        let last: u8 = ram.memory().read_obj(GuestAddress(0x8000_1000 + 64 + 8191)).unwrap();
        assert_eq!(last, 0x5A);
    }

    #[test]
    fn firmware_is_placed_in_flash() {
        let flash = GuestRam::new(0, 64 << 20).unwrap();
        let file = TempFile::new("firmware", b"firm");
        load_firmware(&flash, &file.0).unwrap();
        assert_eq!(flash.memory().read_obj::<[u8; 5]>(GuestAddress(0)).unwrap(), *b"firm\0");
        let empty = TempFile::new("firmware-empty", b"");
        assert!(matches!(load_firmware(&flash, &empty.0), Err(LoadError::Io { option: "firmware", .. })));
        let small = GuestRam::new(0, 8 << 20).unwrap();
        let large = TempFile::new("firmware-large", &vec![0; (8 << 20) + 1]);
        assert!(matches!(load_firmware(&small, &large.0), Err(LoadError::TooLarge { .. })));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let ram = GuestRam::new(layout::RAM_BASE, 8 << 20).unwrap();
        let kernel = TempFile::new("fit-kernel", &image(0, 7 << 20, 0, &[]));
        assert!(matches!(load(&ram, &kernel.0, None), Err(LoadError::NoRoom { option: "kernel", .. })));
        let kernel = TempFile::new("fit-kernel2", &image(0, 1 << 20, 0, &[]));
        let initrd = TempFile::new("fit-initrd", b"x");
        let error = load(&ram, &kernel.0, Some(&initrd.0)).unwrap_err();
        assert!(matches!(error, LoadError::NoRoom { option: "initrd", available: 0, .. }), "{error}");
        let error = load(&ram, Path::new("/nonexistent/Image"), None).unwrap_err();
        assert!(error.to_string().contains("--kernel /nonexistent/Image"), "{error}");
    }

    #[test]
    fn a_truncated_efi_kernel_is_found() {
        let mut bytes = image(0, 1 << 20, 0, &[0; 512]);
        bytes[..2].copy_from_slice(b"MZ");
        bytes[60..64].copy_from_slice(&64_u32.to_le_bytes());
        bytes[64..68].copy_from_slice(b"PE\0\0");
        bytes[70..72].copy_from_slice(&1_u16.to_le_bytes()); // one section
        bytes[64 + 24 + 16..64 + 24 + 20].copy_from_slice(&0x1000_u32.to_le_bytes());
        bytes[64 + 24 + 20..64 + 24 + 24].copy_from_slice(&0x200_u32.to_le_bytes());
        assert_eq!(efi_file_size(&bytes), 0x1200);
        let ram = GuestRam::new(layout::RAM_BASE, 16 << 20).unwrap();
        let kernel = TempFile::new("truncated", &bytes);
        let error = load(&ram, &kernel.0, None).unwrap_err();
        assert!(matches!(error, LoadError::Kernel { problem: KernelProblem::Truncated(576, 0x1200), .. }));
    }
}
