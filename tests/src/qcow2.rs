// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Disk images of QEMU's format, as users have them.

use std::{
    fs,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use anyhow::{Context, Result};
use imago::{
    FormatAccess, FormatCreateBuilder, FormatDriverBuilder, PermissiveImplicitOpenGate, Storage,
    StorageCreateOptions, file::File, qcow2::Qcow2,
};

/// Bytes that are copied, or left out, at once: a cluster.
const CLUSTER: usize = 65536;

/// Makes an empty image of `size` bytes.
///
/// # Errors
/// If it can't be written.
pub fn create(path: &Path, size: u64) -> Result<()> {
    let storage = File::create_open(StorageCreateOptions::new().filename(path).overwrite(true))?;
    Qcow2::<File>::create_builder(storage).size(size).create()?;
    Ok(())
}

/// Makes an image of what the file `raw` holds.
///
/// # Errors
/// If a file can't be read or written.
pub fn convert(raw: &Path, path: &Path) -> Result<()> {
    let mut from = fs::File::open(raw).with_context(|| format!("can't read {}", raw.display()))?;
    let size = from.seek(SeekFrom::End(0))?;
    from.rewind()?;
    create(path, size)?;
    let image = Qcow2::<File>::builder_path(path).write(true).open(PermissiveImplicitOpenGate::default())?;
    let image = FormatAccess::new(image);
    let mut cluster = vec![0; CLUSTER];
    let mut offset = 0;
    while offset < size {
        let len = usize::try_from(size - offset).unwrap_or(CLUSTER).min(CLUSTER);
        let part = cluster.get_mut(..len).context("a cluster")?;
        from.read_exact(part)?;
        if part.iter().any(|byte| *byte != 0) {
            image.write(&*part, offset)?;
        }
        offset += len as u64;
    }
    image.flush()?;
    image.sync()?;
    Ok(())
}
