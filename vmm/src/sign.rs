// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `gz sign`: makes a payload that the firmware of protected VMs starts.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use ed25519_dalek::SigningKey;
use gzvm_firmware_verify::manifest::{self, Payload};
use serde::Serialize;

use crate::cli::{KeyOptions, SignOptions};

/// A public key, as the firmware's build wants it.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub struct PublicKey {
    /// 64 hexadecimal digits.
    pub public_key: String,
}

impl PublicKey {
    fn of(key: &SigningKey) -> Self {
        Self { public_key: key.verifying_key().to_bytes().iter().map(|byte| format!("{byte:02x}")).collect() }
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.public_key)
    }
}

/// What was signed.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub struct Signed {
    /// The signed kernel.
    pub output: PathBuf,
    /// Whose signature it is.
    #[serde(flatten)]
    pub key: PublicKey,
}

impl fmt::Display for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is signed with {}", self.output.display(), self.key)
    }
}

/// Writes the kernel and, behind it, a signed manifest of kernel, initrd and command line.
///
/// # Errors
/// A file that can't be read or written, or a key that is none.
pub fn sign(options: &SignOptions) -> anyhow::Result<Signed> {
    let key = read_key(&options.key)?;
    let mut payload = read(&options.kernel)?;
    let initrd = options.initrd.as_deref().map(read).transpose()?.unwrap_or_default();
    let parts = Payload { kernel: &payload, initrd: &initrd, bootargs: options.cmdline.as_bytes() };
    let manifest = manifest::sign(&key, &parts, options.version);
    payload.extend(manifest);
    fs::write(&options.output, payload)
        .with_context(|| format!("--output {}: can't be written", options.output.display()))?;
    Ok(Signed { output: options.output.clone(), key: PublicKey::of(&key) })
}

/// The public key of a secret one.
///
/// # Errors
/// As [`sign`].
pub fn public_key(options: &KeyOptions) -> anyhow::Result<PublicKey> {
    Ok(PublicKey::of(&read_key(&options.key)?))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{}: can't be read", path.display()))
}

/// 64 hexadecimal digits.
fn read_key(path: &Path) -> anyhow::Result<SigningKey> {
    let text = String::from_utf8(read(path)?).unwrap_or_default();
    let text = text.trim();
    let digits = text.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| {
        let digits = std::str::from_utf8(pair).ok().filter(|_| pair.iter().all(u8::is_ascii_hexdigit))?;
        u8::from_str_radix(digits, 16).ok()
    };
    let bytes: Option<Vec<u8>> = digits.0.iter().map(byte).collect();
    let bytes = bytes.filter(|_| digits.1.is_empty()).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let bytes = bytes.with_context(|| format!("{}: a key is 64 hexadecimal digits", path.display()))?;
    Ok(SigningKey::from_bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_digits() {
        let folder = std::env::temp_dir().join(format!("gz-sign-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let key = folder.join("key");
        fs::write(&key, format!("{}\n", "07".repeat(32))).unwrap();
        assert_eq!(read_key(&key).unwrap().to_bytes(), [7; 32]);
        for wrong in ["", "07", &"0g".repeat(32), &"07".repeat(33), &"+7".repeat(32)] {
            fs::write(&key, wrong).unwrap();
            assert!(read_key(&key).is_err(), "{wrong}");
        }
        fs::write(&key, "11".repeat(32)).unwrap();
        fs::write(folder.join("kernel"), b"kernel").unwrap();
        let mut options = SignOptions {
            key: key.clone(),
            kernel: folder.join("kernel"),
            initrd: None,
            cmdline: "a=b".into(),
            version: 3,
            output: folder.join("signed"),
        };
        let said = sign(&options).unwrap();
        assert_eq!(said.key, public_key(&KeyOptions { key }).unwrap());
        let payload = fs::read(&options.output).unwrap();
        let payload = Payload { kernel: &payload, initrd: &[], bootargs: b"a=b" };
        let key = read_key(&options.key).unwrap().verifying_key();
        let verified = payload.verify(&key, 3, manifest::has_digest).unwrap();
        assert_eq!((verified.kernel, verified.version), (&b"kernel"[..], 3));
        options.initrd = Some(folder.join("missing"));
        assert!(sign(&options).unwrap_err().to_string().contains("missing"));
        fs::remove_dir_all(&folder).unwrap();
    }
}
