// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A writer of cpio archives in the "newc" format, which is what Linux unpacks as its initial RAM disk
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Invariants: every parent folder precedes its content; modification times are zero and inode numbers count up, so the
//! same content gives the same bytes.

use std::collections::HashSet;

const S_IFCHR: u32 = 0o020_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// An archive under construction, in memory.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
    folders: HashSet<String>,
}

impl Archive {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a folder (mode 0755) and those above it, unless they are there.
    pub fn folder(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if path.is_empty() || self.folders.contains(path) {
            return;
        }
        self.parent(path);
        self.folders.insert(path.to_owned());
        self.entry(path, S_IFDIR | 0o755, (0, 0), &[]);
    }

    /// Adds a plain file with permission bits `mode`.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.parent(path);
        self.entry(path, S_IFREG | (mode & 0o7777), (0, 0), content);
    }

    /// Adds a symbolic link at `path` to `to`.
    pub fn link(&mut self, path: &str, to: &str) {
        self.parent(path);
        self.entry(path, S_IFLNK | 0o777, (0, 0), to.as_bytes());
    }

    /// Adds a character device (mode 0600).
    pub fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.parent(path);
        self.entry(path, S_IFCHR | 0o600, (major, minor), &[]);
    }

    /// Ends the archive. Linux accepts several archives one after the other, so the length is a multiple of 512.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.pad(512);
        self.bytes
    }

    fn parent(&mut self, path: &str) {
        if let Some((parent, _)) = path.trim_matches('/').rsplit_once('/') {
            self.folder(parent);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        let path = path.trim_matches('/');
        self.inode += 1;
        let fields = [
            self.inode,
            mode,
            0, // owner
            0, // group
            1, // links
            0, // modification time
            u32::try_from(content.len()).expect("newc holds files below 4 GiB"),
            0, // device of the file itself, major
            0, // and minor
            major,
            minor,
            u32::try_from(path.len() + 1).expect("a path"),
            0, // checksum, unused
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(content);
        self.pad(4);
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive back: name, mode, content.
    fn read(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |n: usize| {
                let start = at + 6 + 8 * n;
                u32::from_str_radix(std::str::from_utf8(&bytes[start..start + 8]).unwrap(), 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[at + 110..at + 110 + name_size - 1].to_vec()).unwrap();
            let data = (at + 110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return found;
            }
            found.push((name, mode, bytes[data..data + size].to_vec()));
            at = (data + size).next_multiple_of(4);
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let mut archive = Archive::new();
        archive.file("etc/deep/rc", 0o755, b"hello");
        archive.link("bin/sh", "busybox");
        archive.device("/dev/console", 5, 1);
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 512, 0);
        let names: Vec<_> =
            read(&bytes).into_iter().map(|(name, mode, data)| (name, mode, data.len())).collect();
        assert_eq!(
            names,
            [
                ("etc".to_owned(), 0o040_755, 0),
                ("etc/deep".to_owned(), 0o040_755, 0),
                ("etc/deep/rc".to_owned(), 0o100_755, 5),
                ("bin".to_owned(), 0o040_755, 0),
                ("bin/sh".to_owned(), 0o120_777, 7),
                ("dev".to_owned(), 0o040_755, 0),
                ("dev/console".to_owned(), 0o020_600, 0),
            ]
        );
    }

    #[test]
    fn a_folder_is_written_once() {
        let mut archive = Archive::new();
        archive.folder("a/b");
        archive.folder("/a/b/");
        archive.file("a/b/c", 0o644, b"");
        assert_eq!(read(&archive.finish()).len(), 3);
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        let make = || {
            let mut archive = Archive::new();
            archive.file("x", 0o600, &[1, 2, 3]);
            archive.finish()
        };
        assert_eq!(make(), make());
    }
}
