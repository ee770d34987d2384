// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The firmware with which a protected VM may be made to start (the ABI's "pvmfw"): a module of the boot loader, copied out
//! of the host's reach at boot.
//!
//! The VMM names a place in one of the VM's slots ([`Window`]). Pages that the host gives there keep nothing of what
//! the host put into them: they hold the firmware before the guest sees them. vCPU 0 starts at the window's first byte.

use gzvm_abi::digest::Digest;
use gzvm_core::addr::{Ipa, PAGE_SIZE, VmId};
use gzvm_core::broken::{Mistake, broken};
use gzvm_core::fdt::machine::Region;
use gzvm_core::memory::PaRange;
use gzvm_core::vm::identity;
use spin::Once;

use crate::arch::fp::sha256_at_boot;
use crate::mem::image::Image;

/// The largest that crosvm makes room for.
const MAX_SIZE: u64 = 4 << 20;
/// `ARM\x64`.
const MAGIC: u32 = 0x644D_5241;

struct Firmware {
    image: Image,
    digest: Digest,
    /// Bytes of memory that it takes, its BSS included: whole pages.
    size: u64,
}

static FIRMWARE: Once<Firmware> = Once::new();

/// Keeps a copy of the boot loader's module, an arm64 `Image`; returns its SHA-256.
pub fn init(module: Region) -> Result<Digest, &'static str> {
    let image = Image::keep(module, MAX_SIZE)?;
    let bytes = image.bytes();
    // Documentation/arch/arm64/booting.rst: image_size at 16, magic at 56.
    let size = bytes.get(16..24).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let magic = bytes.get(56..60).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
    if magic != MAGIC || !(bytes.len() as u64..=MAX_SIZE).contains(&size) {
        return Err("it is no arm64 Image of at most 4 MiB");
    }
    let digest = sha256_at_boot(bytes);
    FIRMWARE.call_once(|| Firmware { image, digest, size: size.next_multiple_of(PAGE_SIZE) });
    Ok(digest)
}

/// Bytes of memory that the firmware takes, if there is one.
pub fn size() -> Option<u64> {
    FIRMWARE.get().map(|firmware| firmware.size)
}

/// What the measurement of a VM says of it that starts with the firmware at `entry`.
pub fn fact(entry: u64) -> Option<identity::Firmware> {
    let Firmware { digest, size, .. } = FIRMWARE.get()?;
    Some(identity::Firmware { digest: *digest, size: *size, entry })
}

/// Where a VM has the firmware.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    base: Ipa,
}

impl Window {
    /// At `base`, if there is a firmware, and nothing wraps.
    pub fn new(base: Ipa) -> Option<Self> {
        let end = base.checked_add(size()?);
        (base.is_aligned(PAGE_SIZE) && end.is_some()).then_some(Self { base })
    }

    /// Its first byte: where vCPU 0 starts.
    pub const fn entry(&self) -> u64 {
        self.base.0
    }

    /// Puts what belongs there into memory that is the VM's and will be at `ipa`. False if the memory is not the VM's.
    pub fn fill(&self, vm: VmId, ipa: Ipa, memory: PaRange) -> bool {
        let Some(Firmware { image, size, .. }) = FIRMWARE.get() else { return true };
        let mut rest = Some(memory);
        let mut at = ipa;
        while let Some(range) = rest {
            let (page, after) = range.split_first(1);
            let inside = at.0.checked_sub(self.base.0).filter(|o| o < size && !broken(Mistake::NoFirmware));
            if inside.is_some_and(|offset| !image.copy_to(vm, offset, page)) {
                return false;
            }
            at = Ipa(at.0.wrapping_add(PAGE_SIZE));
            rest = after;
        }
        true
    }
}
