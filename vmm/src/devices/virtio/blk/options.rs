// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `--disk`: the image, and how it is used.

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// One disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskOption {
    /// The image.
    pub path: PathBuf,
    /// Whether writes are refused.
    pub read_only: bool,
    /// What the image is.
    pub format: Format,
    /// Serial number, if not the file's name.
    pub serial: Option<String>,
    /// Queues, each with a thread of its own.
    pub queues: u16,
}

/// Most queues of a disk.
const QUEUES_MAX: u16 = 16;

/// What an image is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Sectors as they are.
    Raw,
    /// QEMU's.
    Qcow2,
}

impl From<&Path> for DiskOption {
    fn from(path: &Path) -> Self {
        Self { path: path.into(), read_only: false, format: Format::Raw, serial: None, queues: 1 }
    }
}

impl FromStr for DiskOption {
    type Err = String;

    /// From behind, as far as there are words that mean something: a file's name may have commas.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut disk = Self::from(Path::new(""));
        let mut rest = text;
        while let Some((before, word)) = rest.rsplit_once(',') {
            match word.split_once('=') {
                None if word == "ro" => disk.read_only = true,
                Some(("format", "raw")) => disk.format = Format::Raw,
                Some(("format", "qcow2")) => disk.format = Format::Qcow2,
                Some(("format", _)) => return Err("format is raw or qcow2".into()),
                Some(("serial", serial)) if serial.len() <= 20 && serial.is_ascii() => {
                    disk.serial = Some(serial.into());
                }
                Some(("serial", _)) => return Err("a serial number has up to 20 characters".into()),
                Some(("queues", number)) => {
                    disk.queues = (number.parse().ok())
                        .filter(|number| (1..=QUEUES_MAX).contains(number))
                        .ok_or("a disk has 1 to 16 queues")?;
                }
                _ => break,
            }
            rest = before;
        }
        if rest.is_empty() {
            return Err("no file named".into());
        }
        disk.path = rest.into();
        Ok(disk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_follow_the_file() {
        let disk: DiskOption = "a,b=c.img,serial=S-1,format=qcow2,queues=4,ro".parse().unwrap();
        assert_eq!(
            (disk.path.to_str(), disk.read_only, disk.format, disk.queues),
            (Some("a,b=c.img"), true, Format::Qcow2, 4)
        );
        assert_eq!(disk.serial.as_deref(), Some("S-1"));
        assert_eq!("x.img".parse(), Ok(DiskOption::from(Path::new("x.img"))));
        for wrong in [
            "a,queues=0",
            "a,queues=17",
            "a,queues=",
            "",
            ",ro",
            "a,format=vmdk",
            "a,serial=123456789012345678901",
            "format=raw,ro",
        ] {
            assert!(wrong.parse::<DiskOption>().is_err() || wrong.starts_with("format"), "{wrong}");
        }
    }
}
