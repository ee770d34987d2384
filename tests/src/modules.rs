// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Modules of the stock kernel, as files for a root file system: those that are asked for, and those that they need.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{initrd::Extra, layout::Layout};

/// `names` and what they need, with an `/etc/modules` that loads `first` (which the file system has) and then these.
///
/// # Errors
/// If set-up has not run, or the kernel has no such module.
pub fn load(layout: &Layout, first: &str, names: &[&str]) -> Result<Vec<Extra>> {
    let mut order: Vec<String> = first.split(' ').map(str::to_owned).collect();
    let mut extras = Vec::new();
    for name in names {
        add(&layout.cache.join("host/modules/kernel"), name, &mut order, &mut extras)?;
    }
    extras.push(Extra::text("/etc/modules", &format!("{}\n", order.join(" "))));
    Ok(extras)
}

/// The module `name`, behind those that it needs.
fn add(kernel: &Path, name: &str, order: &mut Vec<String>, extras: &mut Vec<Extra>) -> Result<()> {
    let name = name.replace('-', "_");
    if order.contains(&name) {
        return Ok(());
    }
    let path = find(kernel, &name)?.with_context(|| format!("the stock kernel has no module {name}"))?;
    let file = Extra::file(&format!("/lib/modules/{name}.ko"), 0o644, &path)?;
    for needed in needed(&file.content) {
        add(kernel, &needed, order, extras)?;
    }
    order.push(name);
    extras.push(file);
    Ok(())
}

/// Its file. Names have dashes and underscores for the same.
fn find(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in
        fs::read_dir(folder).with_context(|| format!("{}: run `cargo xtask setup`", folder.display()))?
    {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find(&entry.path(), name)? {
                return Ok(Some(found));
            }
        } else if entry
            .file_name()
            .to_string_lossy()
            .strip_suffix(".ko")
            .is_some_and(|n| n.replace('-', "_") == name)
        {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// What a module says that it needs.
fn needed(module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let Some(at) = module.windows(FIELD.len()).position(|window| window == FIELD) else { return Vec::new() };
    let value = module[at + FIELD.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    value.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_are_read() {
        assert_eq!(needed(b"\x7fELF\0license=GPL\0depends=vhost,vsock\0name=x\0"), ["vhost", "vsock"]);
        assert!(needed(b"\0depends=\0name=x\0").is_empty() && needed(b"").is_empty());
    }
}
