// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What guests may call: the vendor-specific hypervisor services (SMCCC owner 6), numbered as KVM
//! numbers them, so that guests written for KVM find them.

/// UID query of the vendor hypervisor service.
pub const VENDOR_HYP_UID: u32 = 0x8600_FF01;
/// Feature bitmap: x0 bit n = function n.
pub const VENDOR_HYP_FEATURES: u32 = 0x8600_0000;
/// Wall clock and counter, x1 = 0 virtual / 1 physical.
pub const PTP: u32 = 0x8600_0001;
/// Result x0 = granule of the calls below, in bytes.
pub const HYP_MEMINFO: u32 = 0xC600_0002;
/// x1 = IPA of a page to share with the host.
pub const MEM_SHARE: u32 = 0xC600_0003;
/// x1 = IPA of a shared page to take back.
pub const MEM_UNSHARE: u32 = 0xC600_0004;
/// Result x0 = granule of the MMIO guard.
pub const MMIO_GUARD_INFO: u32 = 0xC600_0005;
/// From now on only mapped MMIO pages may be accessed.
pub const MMIO_GUARD_ENROLL: u32 = 0xC600_0006;
/// x1 = IPA of an MMIO page.
pub const MMIO_GUARD_MAP: u32 = 0xC600_0007;
/// x1 = IPA of an MMIO page.
pub const MMIO_GUARD_UNMAP: u32 = 0xC600_0008;
/// x1 = IPA of a page the guest gives back.
pub const MEM_RELINQUISH: u32 = 0xC600_0009;

// Memory between protected VMs: ours, behind those that KVM's feature bitmap covers (0 to 127).

/// Result x0 = id of the caller's VM; NOT_SUPPORTED where the calls below are missing.
pub const VM_ID: u32 = 0xC600_F000;
/// x1 = IPA, x2 = pages, x3 = id of the VM that may map them, x4 = rights. Results x0 = status, x1 = handle.
pub const VM_MEM_SHARE: u32 = 0xC600_F001;
/// x1 = handle, x2 = IPA, x3 = pages. Results x0 = status, x1 = id of the owner, x2 = rights.
pub const VM_MEM_RETRIEVE: u32 = 0xC600_F002;
/// x1 = handle of what was retrieved.
pub const VM_MEM_RELINQUISH: u32 = 0xC600_F003;
/// x1 = handle of what was shared.
pub const VM_MEM_RECLAIM: u32 = 0xC600_F004;
/// x4 of [`VM_MEM_SHARE`]: the other VM may read.
pub const VM_MEM_READ: u64 = 1;
/// It may read and write.
pub const VM_MEM_READ_WRITE: u64 = 3;
/// Pages of one [`VM_MEM_SHARE`] at the most.
pub const VM_MEM_MOST_PAGES: usize = 16;
/// What a VM shares with others at a time, and what it retrieves from others, at the most.
pub const VM_MEM_MOST_LOANS: usize = 32;

// Who a protected VM is: ours too.

/// As [`MEM_SHARE`], for some of x2 pages from x1 on, as many as lie in one block of stage 2. Results x0 = status, x1 = how many.
pub const MEM_SHARE_RUN: u32 = 0xC600_F005;

/// x1..x4 = a SHA-256 digest, eight bytes a register, little-endian: the measurement is extended by it. Result x0 = status.
pub const MEASUREMENT_EXTEND: u32 = 0xC600_F008;
/// The measurement changes no more. Result x0 = status.
pub const MEASUREMENT_SEAL: u32 = 0xC600_F009;
/// x1 = half, 0 or 1. Results x0 = status, x1, x2 = 16 bytes of the measurement, x3 = its state ([`measurement`]).
pub const MEASUREMENT_READ: u32 = 0xC600_F00A;
/// Status: the measurement is sealed.
pub const MEASUREMENT_SEALED: u64 = -5i64 as u64;

/// State of a measurement: bits, and in the upper half how often it was extended.
pub mod measurement {
    /// It is sealed.
    pub const SEALED: u64 = 1;
    /// The VM starts with the hypervisor's firmware.
    pub const FIRMWARE: u64 = 2;
    /// Where the number of extensions starts.
    pub const EXTENDS_SHIFT: u32 = 32;
}

// Images that were verified before: for the firmware of a protected VM, until it seals the measurement.

/// x1..x4 = SHA-256 of an image. Results x0 = status, x1, x2 = the image's secret key, x3 = 1 if a tag is remembered under it, else 0.
pub const IMAGE_KEY: u32 = 0xC600_F00B;
/// x1, x2 = an image's key, x3, x4 = a tag. Result x0 = 0 if this tag is remembered under the key, else INVALID_PARAMETER.
pub const IMAGE_CHECK: u32 = 0xC600_F00C;
/// x1, x2 = an image's key, x3, x4 = the tag of its bytes, which were verified: it is remembered until others have taken its place.
/// Result x0 = status.
pub const IMAGE_REMEMBER: u32 = 0xC600_F00D;

/// KVM's UID (28b46fb6-2ec5-11e9-a9ca-4b564d003a74) in w0..w3.
pub const KVM_UID: [u32; 4] = [0xB66F_B428, 0xE911_C52E, 0x564B_CAA9, 0x743A_004D];
/// GenieZone's UID (7e134ed0-3b82-488d-8cee-69c19211dbe7) in w0..w3.
pub const GENIEZONE_UID: [u32; 4] = [0xD04E_137E, 0x8D48_823B, 0xC169_EE8C, 0xE7DB_1192];
