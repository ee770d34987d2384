// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who a protected VM is: its measurement, one SHA-256 register as a TPM's PCR.
//!
//! ```text
//!   m = SHA-256(0 * 32  || SHA-256(facts))     what EL2 knows when the VM first runs: [`Facts`]
//!   m = SHA-256(m       || digest)             by the guest: firmware tells what it has verified ([`Measurement::extend`])
//!   sealed                                     by the guest: no more of that, before anybody else's code runs
//! ```
//! The facts come first, so a VM whose host chose what runs has a measurement that no VM with firmware can have. Nobody but the guest extends
//! it, and nothing takes back what was extended: after the seal neither host nor payload changes it.
//!
//! # The life of a protected VM
//! | stage | [`State`](super::lifecycle::State) | measurement | memory |
//! |---|---|---|---|
//! | created | `Created` | none: facts may still change | the host's |
//! | populated | has begun | open: firmware reads, checks, extends | the VM's, page by page as it is touched |
//! | sealed, running | has begun | sealed: the payload runs | the VM's |
//! | dying | `Dying` | as it was; nothing runs | taken back in steps |
//! | scrubbed | gone | gone | zero, and the host's |
//!
//! A pause changes none of these, so a seal is no state of the lifecycle's but one of the measurement.

use gzvm_abi::digest::{Digest, words};
use sha2::{Digest as _, Sha256};

use crate::memory::loans::Party;

/// What EL2 knows of a VM by itself, fixed when it first runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The firmware that it starts with; without one, what runs is the host's choice.
    pub firmware: Option<Firmware>,
    /// What it was given ([`vm_feature`](gzvm_abi::hypercall::vm_feature)).
    pub features: u64,
    /// Its exceptions that the host is told of ([`kind`](gzvm_abi::watch::kind)), and what is done then.
    pub watch: Option<(u32, u32)>,
    /// This hypervisor makes mistakes on demand: an image for tests.
    pub breakable: bool,
}

/// The firmware of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// Of the image.
    pub digest: Digest,
    /// Bytes of memory that it takes.
    pub size: u64,
    /// Where vCPU 0 starts: its first byte.
    pub entry: u64,
}

impl Facts {
    /// Version and length are fixed: facts that differ have bytes that differ.
    const MAGIC: [u8; 8] = *b"GZVMFCT1";

    fn digest(&self) -> Digest {
        let mut hash = Sha256::new_with_prefix(Self::MAGIC);
        let flags = u32::from(self.firmware.is_some()) | u32::from(self.breakable) << 1;
        let (kinds, action) = self.watch.unwrap_or_default();
        for word in [flags, kinds, action, 0] {
            hash.update(word.to_le_bytes());
        }
        let Firmware { digest, size, entry } =
            self.firmware.unwrap_or(Firmware { digest: [0; 32], size: 0, entry: 0 });
        for number in [self.features, entry, size] {
            hash.update(number.to_le_bytes());
        }
        hash.update(digest);
        hash.finalize().into()
    }
}

/// The measurement is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed;

/// A VM's measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measurement {
    value: Digest,
    extends: u32,
    sealed: bool,
}

impl Measurement {
    /// Of a VM that is about to run.
    pub fn begin(facts: &Facts) -> Self {
        Self { value: chain(&[0; 32], &facts.digest()), extends: 0, sealed: false }
    }

    /// Adds a digest of what the guest has verified.
    ///
    /// # Errors
    /// It is sealed, and stays as it is.
    pub fn extend(&mut self, digest: &Digest) -> Result<(), Sealed> {
        if self.sealed {
            return Err(Sealed);
        }
        self.value = chain(&self.value, digest);
        self.extends = self.extends.wrapping_add(1);
        Ok(())
    }

    /// Ends that, for good.
    ///
    /// # Errors
    /// It is sealed already: whoever seals a second time has not been the first to run.
    pub fn seal(&mut self) -> Result<(), Sealed> {
        if self.sealed {
            return Err(Sealed);
        }
        self.sealed = true;
        Ok(())
    }

    /// The register.
    pub const fn value(&self) -> &Digest {
        &self.value
    }

    /// How often it was extended: it changes with the value.
    pub const fn extends(&self) -> u32 {
        self.extends
    }

    /// Half of the register, 0 or 1, in two words, little-endian: how calls carry it.
    pub fn half(&self, half: u64) -> Option<[u64; 2]> {
        let [a, b, c, d] = words(&self.value);
        match half {
            0 => Some([a, b]),
            1 => Some([c, d]),
            _ => None,
        }
    }

    /// Whether it is sealed.
    pub const fn sealed(&self) -> bool {
        self.sealed
    }
}

fn chain(value: &Digest, digest: &Digest) -> Digest {
    Sha256::new_with_prefix(value).chain_update(digest).finalize().into()
}

/// A VM as EL2 vouches for it to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Which VM, told from others that had or will have its id.
    pub vm: Party,
    /// The host reaches neither its memory nor its registers.
    pub protected: bool,
    /// Its measurement. A plain VM has none: the host can change all of it at any time. Nor has a protected one that has not
    /// run yet.
    pub measurement: Option<Measurement>,
}

#[cfg(test)]
mod tests {
    use gzvm_abi::digest::from_words;

    use super::*;

    const WITH: Facts = Facts {
        firmware: Some(Firmware { digest: [0xF1; 32], size: 0x4_0000, entry: 0x7FC0_0000 }),
        features: 0,
        watch: None,
        breakable: false,
    };
    const WITHOUT: Facts = Facts { firmware: None, ..WITH };

    fn hex(digest: &Digest) -> String {
        digest.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Values computed by Python's hashlib, from docs/abi.md.
    #[test]
    fn values_are_those_of_the_documentation() {
        assert_eq!(
            hex(Measurement::begin(&WITH).value()),
            "1e0d11b65fdc7454821fe4cb421220743948307b37cd378604e9d5e68a363853"
        );
        assert_eq!(
            hex(Measurement::begin(&WITHOUT).value()),
            "02cd7f0e8be9685dc8cd1cea841c336220bb8dfddc69fdacf535c564e9e1cded"
        );
        let watched = Facts { features: 1, watch: Some((0x24, 3)), breakable: true, ..WITH };
        assert_eq!(
            hex(Measurement::begin(&watched).value()),
            "178fba119abae0fd95d37ee9e548efb5f30582c262eb91a307f6dd614315a671"
        );
        let mut extended = Measurement::begin(&WITH);
        extended.extend(&[0xE1; 32]).unwrap();
        extended.extend(&[0xE2; 32]).unwrap();
        assert_eq!(hex(extended.value()), "deb3e821bc21f24f59f4fb6b2069ba1b8a7032198608869090135d5524ff6823");
    }

    #[test]
    fn every_fact_counts() {
        let firmware = |change: fn(&mut Firmware)| {
            let mut firmware = WITH.firmware.unwrap();
            change(&mut firmware);
            Facts { firmware: Some(firmware), ..WITH }
        };
        let all = [
            WITH,
            WITHOUT,
            firmware(|f| f.digest[31] ^= 1),
            firmware(|f| f.size += 0x1000),
            firmware(|f| f.entry += 0x1000),
            // No firmware, in the bytes of one.
            firmware(|f| *f = Firmware { digest: [0; 32], size: 0, entry: 0 }),
            Facts { features: 1, ..WITH },
            Facts { features: 1 << 63, ..WITH },
            Facts { watch: Some((1, 0)), ..WITH },
            Facts { watch: Some((2, 0)), ..WITH },
            Facts { watch: Some((1, 3)), ..WITH },
            Facts { breakable: true, ..WITH },
        ];
        let values: Vec<_> = all.iter().map(|facts| *Measurement::begin(facts).value()).collect();
        for (n, value) in values.iter().enumerate() {
            assert_eq!(*value, *Measurement::begin(&all[n]).value(), "the same again: {n}");
            assert!(!values[..n].contains(value), "{n} is as another");
        }
    }

    #[test]
    fn order_and_number_of_digests_count() {
        let after = |digests: &[u8]| {
            let mut m = Measurement::begin(&WITH);
            digests.iter().for_each(|b| m.extend(&[*b; 32]).unwrap());
            assert_eq!(m.extends(), digests.len() as u32);
            *m.value()
        };
        let values = [&[][..], &[1], &[2], &[1, 2], &[2, 1], &[1, 1], &[1, 2, 0]].map(after);
        for (n, value) in values.iter().enumerate() {
            assert!(!values[..n].contains(value), "{n} is as another");
        }
    }

    #[test]
    fn calls_carry_bytes_in_order() {
        let digest: Digest = core::array::from_fn(|n| n as u8);
        let words = words(&digest);
        assert_eq!(words[0], 0x0706_0504_0302_0100);
        assert_eq!(words[3], 0x1F1E_1D1C_1B1A_1918);
        assert_eq!(from_words(words), digest);
        let m = Measurement { value: digest, extends: 0, sealed: false };
        assert_eq!(
            (m.half(0), m.half(1), m.half(2)),
            (Some([words[0], words[1]]), Some([words[2], words[3]]), None)
        );
    }

    #[test]
    fn a_seal_is_for_good() {
        let mut m = Measurement::begin(&WITH);
        m.extend(&[1; 32]).unwrap();
        assert!(!m.sealed());
        assert_eq!(m.seal(), Ok(()));
        let sealed = m;
        assert!(sealed.sealed());
        assert_eq!(m.extend(&[2; 32]), Err(Sealed));
        assert_eq!(m.seal(), Err(Sealed));
        assert_eq!(m, sealed);
    }
}
