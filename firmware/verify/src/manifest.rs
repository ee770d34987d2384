// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The payload's manifest: which kernel, initrd and boot arguments belong together, signed with ed25519 (RFC 8032).
//!
//! ```text
//!  payload = kernel (arm64 Image) | manifest (the last 512 bytes)
//! ```
//! All numbers are little-endian. The signature covers the bytes before it.

use crate::broken::{Mistake, broken};
use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a manifest.
pub const SIZE: usize = 512;
/// Its first bytes.
pub const MAGIC: [u8; 8] = *b"GZVMPAY1";
/// Bytes that are signed.
const SIGNED: usize = SIZE - 64;

/// A SHA-256 digest.
pub type Hash = [u8; 32];

/// What is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Manifest {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// Bytes of the kernel: the payload's without the manifest.
    pub kernel_size: u64,
    /// Of the kernel.
    pub kernel: Hash,
    /// Bytes of the initrd; 0 for none.
    pub initrd_size: u64,
    /// Of the initrd; of no bytes if there is none.
    pub initrd: Hash,
    /// Of the boot arguments, without a NUL.
    pub bootargs: Hash,
    /// Its owner's count of security fixes: firmware refuses payloads below its minimum.
    pub version: u64,
    /// For what comes later: certificates. Zero.
    pub reserved: [u8; 320],
    /// ed25519, of all before it.
    pub signature: [u8; 64],
}

const _: () = assert!(size_of::<Manifest>() == SIZE);

/// Why a payload is not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no manifest.
    #[error("the kernel is not signed: it ends with no manifest")]
    Unsigned,
    /// The signature is not the key's, of this manifest.
    #[error("the manifest's signature is wrong")]
    Signature,
    /// The manifest asks for what this firmware does not know.
    #[error("the manifest is of a later format")]
    Format,
    /// Its owner has given it up.
    #[error("the payload is of version {version}, and {minimum} is the oldest that starts here")]
    Old {
        /// The manifest's.
        version: u64,
        /// The firmware's.
        minimum: u64,
    },
    /// The kernel was changed.
    #[error("the kernel is not the one that was signed")]
    Kernel,
    /// The initrd was changed, is missing, or was added.
    #[error("the initrd is not the one that was signed")]
    Initrd,
    /// The boot arguments were changed.
    #[error("the boot arguments are not those that were signed")]
    Bootargs,
}

/// What a VM is to start with.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    /// Kernel and manifest.
    pub kernel: &'a [u8],
    /// The initrd; empty for none.
    pub initrd: &'a [u8],
    /// Boot arguments.
    pub bootargs: &'a [u8],
}

/// A payload that was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified<'a> {
    /// The kernel without its manifest.
    pub kernel: &'a [u8],
    /// The manifest's version.
    pub version: u64,
    /// What the VM's measurement is extended by: SHA-256 of [`MEASURED`], the key and all that it has signed.
    pub digest: Hash,
}

/// Starts what is hashed of a payload for the measurement.
pub const MEASURED: [u8; 8] = *b"GZVMPAYM";

impl Payload<'_> {
    /// Checks that all of it was signed, together, by the owner of `key`, and is of version `minimum` or a later one.
    /// `is_image`: whether bytes have a digest; [`has_digest`], or [`find`](crate::images::find).
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn verify(
        &self,
        key: &VerifyingKey,
        minimum: u64,
        mut is_image: impl FnMut(&[u8], &Hash) -> bool,
    ) -> Result<Verified<'_>, Refusal> {
        let at = self.kernel.len().checked_sub(SIZE).ok_or(Refusal::Unsigned)?;
        let (kernel, manifest) = self.kernel.split_at_checked(at).ok_or(Refusal::Unsigned)?;
        // The manifest may lie at any address.
        let signed = manifest.get(..SIGNED).ok_or(Refusal::Unsigned)?;
        let manifest = Manifest::read_from_bytes(manifest).map_err(|_| Refusal::Unsigned)?;
        if manifest.magic != MAGIC {
            return Err(Refusal::Unsigned);
        }
        // Strict: one key and one message have one signature.
        let signature = key.verify_strict(signed, &Signature::from_bytes(&manifest.signature));
        if signature.is_err() && !broken(Mistake::NoSignature) {
            return Err(Refusal::Signature);
        }
        if manifest.reserved.iter().any(|b| *b != 0) && !broken(Mistake::AnyFormat) {
            return Err(Refusal::Format);
        }
        let version = manifest.version;
        if version < minimum && !broken(Mistake::AnyVersion) {
            return Err(Refusal::Old { version, minimum });
        }
        let mut same = |bytes: &[u8], hash: Hash| is_image(bytes, &hash) || broken(Mistake::NoHashes);
        if manifest.kernel_size != kernel.len() as u64 || !same(kernel, manifest.kernel) {
            return Err(Refusal::Kernel);
        }
        if manifest.initrd_size != self.initrd.len() as u64 || !same(self.initrd, manifest.initrd) {
            return Err(Refusal::Initrd);
        }
        if !same(self.bootargs, manifest.bootargs) {
            return Err(Refusal::Bootargs);
        }
        let digest = Sha256::new_with_prefix(MEASURED).chain_update(key.as_bytes()).chain_update(signed);
        Ok(Verified { kernel, version, digest: digest.finalize().into() })
    }
}

/// The digest of `bytes`, on any CPU.
#[must_use]
pub fn sha256(bytes: &[u8]) -> Hash {
    Sha256::digest(bytes).into()
}

/// Whether `bytes` have this digest.
#[must_use]
pub fn has_digest(bytes: &[u8], digest: &Hash) -> bool {
    sha256(bytes) == *digest
}

/// The manifest of a payload whose kernel has none yet.
#[cfg(any(test, feature = "sign"))]
pub fn sign(key: &ed25519_dalek::SigningKey, payload: &Payload<'_>, version: u64) -> [u8; SIZE] {
    let Payload { kernel, initrd, bootargs } = *payload;
    use ed25519_dalek::Signer;
    let mut manifest = Manifest {
        magic: MAGIC,
        kernel_size: kernel.len() as u64,
        kernel: sha256(kernel),
        initrd_size: initrd.len() as u64,
        initrd: sha256(initrd),
        bootargs: sha256(bootargs),
        version,
        reserved: [0; 320],
        signature: [0; 64],
    };
    let signed = manifest.as_bytes().get(..SIGNED).unwrap_or_default();
    manifest.signature = key.sign(signed).to_bytes();
    zerocopy::transmute!(manifest)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use ed25519_dalek::SigningKey;

    const VERSION: u64 = 7;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    fn signed(kernel: &[u8], initrd: &[u8], bootargs: &[u8]) -> Vec<u8> {
        let mut payload = kernel.to_vec();
        payload.extend(sign(&key(1), &Payload { kernel, initrd, bootargs }, VERSION));
        payload
    }

    fn verify(kernel: &[u8], initrd: &[u8], bootargs: &[u8]) -> Result<usize, Refusal> {
        Payload { kernel, initrd, bootargs }
            .verify(&key(1).verifying_key(), VERSION, has_digest)
            .map(|v| v.kernel.len())
    }

    #[test]
    pub(crate) fn what_was_signed_is_accepted_and_nothing_else() {
        let payload = signed(b"kernel!", b"initrd", b"console=ttyS0");
        assert_eq!(verify(&payload, b"initrd", b"console=ttyS0"), Ok(7));
        assert_eq!(verify(&payload, b"initre", b"console=ttyS0"), Err(Refusal::Initrd));
        assert_eq!(verify(&payload, b"", b"console=ttyS0"), Err(Refusal::Initrd));
        assert_eq!(verify(&payload, b"initrd", b"console=ttyS0 init=/bin/sh"), Err(Refusal::Bootargs));
        let other = Payload { kernel: &payload, initrd: b"initrd", bootargs: b"console=ttyS0" };
        assert_eq!(other.verify(&key(2).verifying_key(), VERSION, has_digest), Err(Refusal::Signature));
        let none = signed(b"k", b"", b"");
        assert_eq!(verify(&none, b"", b""), Ok(1));
        assert_eq!(verify(&none, b"x", b""), Err(Refusal::Initrd));
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let payload = signed(b"kernel!", b"", b"a");
        for byte in 0..payload.len() {
            for bit in 0..8 {
                let mut changed = payload.clone();
                changed[byte] ^= 1 << bit;
                assert!(verify(&changed, b"", b"a").is_err(), "byte {byte}, bit {bit}");
            }
        }
        for length in 0..payload.len() {
            assert!(verify(&payload[..length], b"", b"a").is_err(), "{length} bytes");
            assert!(
                verify(&payload[payload.len() - length..], b"", b"a").is_err(),
                "the last {length} bytes"
            );
        }
        let mut longer = payload.clone();
        longer.insert(0, b'k');
        assert_eq!(verify(&longer, b"", b"a"), Err(Refusal::Kernel));
    }

    #[test]
    pub(crate) fn a_later_format_is_refused() {
        let bare = Payload { kernel: b"k", initrd: b"", bootargs: b"" };
        let mut manifest = Manifest::read_from_bytes(&sign(&key(1), &bare, VERSION)).unwrap();
        manifest.reserved[3] = 1;
        use ed25519_dalek::Signer;
        manifest.signature = key(1).sign(&manifest.as_bytes()[..SIGNED]).to_bytes();
        let mut payload = b"k".to_vec();
        payload.extend(manifest.as_bytes());
        assert_eq!(verify(&payload, b"", b""), Err(Refusal::Format));
    }

    #[test]
    pub(crate) fn what_is_older_than_the_minimum_is_refused() {
        let payload = signed(b"k", b"", b"");
        let payload = Payload { kernel: &payload, initrd: b"", bootargs: b"" };
        let at_least =
            |minimum| payload.verify(&key(1).verifying_key(), minimum, has_digest).map(|v| v.version);
        assert_eq!((at_least(0), at_least(VERSION)), (Ok(VERSION), Ok(VERSION)));
        for minimum in [VERSION + 1, u64::MAX] {
            assert_eq!(at_least(minimum), Err(Refusal::Old { version: VERSION, minimum }));
        }
    }

    /// Computed by Python's hashlib, from docs/abi.md.
    #[test]
    fn the_digest_is_that_of_the_documentation() {
        let payload = signed(b"kernel!", b"initrd", b"console=ttyS0");
        let verified = Payload { kernel: &payload, initrd: b"initrd", bootargs: b"console=ttyS0" };
        let digest = verified.verify(&key(1).verifying_key(), 0, has_digest).unwrap().digest;
        let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "63058039ce9c200d31c6a3c37c85aab5e466bb07387b1bce235a76c553244472");
    }

    #[test]
    fn all_that_is_signed_and_the_key_are_measured() {
        let digest = |n, kernel: &[u8], initrd: &[u8], bootargs: &[u8], version| {
            let parts = Payload { kernel, initrd, bootargs };
            let mut payload = kernel.to_vec();
            payload.extend(sign(&key(n), &parts, version));
            Payload { kernel: &payload, ..parts }
                .verify(&key(n).verifying_key(), 0, has_digest)
                .unwrap()
                .digest
        };
        let all = [
            digest(1, b"k", b"i", b"b", 1),
            digest(2, b"k", b"i", b"b", 1),
            digest(1, b"l", b"i", b"b", 1),
            digest(1, b"k", b"j", b"b", 1),
            digest(1, b"k", b"", b"b", 1),
            digest(1, b"k", b"i", b"c", 1),
            digest(1, b"k", b"i", b"b", 2),
        ];
        for (n, value) in all.iter().enumerate() {
            assert!(!all[..n].contains(value), "{n} is as another");
        }
        assert_eq!(all[0], digest(1, b"k", b"i", b"b", 1));
    }
}
