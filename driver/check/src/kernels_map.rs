// SPDX-License-Identifier: GPL-2.0-only
//! The kernel's own map of all memory, as `/proc/kcore` shows it (an ELF core file).
//!
//! `gzvm-check search WORD NEXT...` reads all of it, and says how often it has WORD with each NEXT right behind it. They come
//! apart, so that the program does not find its own arguments. With `search -x` they are bytes in hexadecimal digits.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

use memchr::memmem::Finder;

const CHUNK: usize = 1 << 20;

/// A piece of RAM in that file.
#[derive(Clone, Copy)]
pub struct Segment {
    /// Where it is in the file.
    pub offset: u64,
    /// Where it is in memory.
    pub physical: u64,
    /// Its bytes.
    pub size: u64,
}

/// The map.
pub struct KernelsMap {
    pub file: File,
    pub ram: Vec<Segment>,
}

impl KernelsMap {
    pub fn open() -> Result<Self, String> {
        let file = File::open("/proc/kcore").map_err(|e| format!("kcore: {e}"))?;
        let field =
            |at: u64| word(&file, at).ok_or_else(|| format!("kcore: its header at {at} can't be read"));
        let (headers, sizes) = (field(32)?, field(54)?);
        let mut ram = Vec::new();
        for n in 0..(sizes >> 16 & 0xFFFF) {
            let at = headers + n * (sizes & 0xFFFF);
            let [offset, physical, size] = [field(at + 8)?, field(at + 24)?, field(at + 32)?];
            // PT_LOAD. Only RAM has physical addresses.
            if field(at)? & 0xFFFF_FFFF == 1 && physical != u64::MAX {
                ram.push(Segment { offset, physical, size });
            }
        }
        Ok(Self { file, ram })
    }

    /// The eight bytes at an offset of the file.
    pub fn word(&self, at: u64) -> Option<u64> {
        word(&self.file, at)
    }
}

fn word(file: &File, at: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at).ok().map(|()| u64::from_le_bytes(bytes))
}

/// `gzvm-check search`.
pub fn main(words: &[String]) -> ExitCode {
    let (is_hex, words) = match words {
        [option, words @ ..] if option == "-x" => (true, words),
        words => (false, words),
    };
    let bytes = words.iter().map(|word| if is_hex { unhex(word) } else { Some(word.as_bytes().to_vec()) });
    let (Some(bytes), [_, next @ ..]) = (bytes.collect::<Option<Vec<_>>>(), words) else {
        println!("search: [-x] WORD NEXT... must be given");
        return ExitCode::FAILURE;
    };
    match search(&bytes) {
        Ok((bytes, found)) => {
            println!("searched {} MiB", bytes >> 20);
            for (next, count) in next.iter().zip(found) {
                println!("{next} {count}");
            }
            ExitCode::SUCCESS
        }
        Err(reason) => {
            println!("search: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Bytes in hexadecimal digits.
fn unhex(digits: &str) -> Option<Vec<u8>> {
    let pairs =
        digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok().filter(|p| p.len() == 2));
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

/// How many bytes were read, and how often each was there.
fn search(words: &[Vec<u8>]) -> Result<(u64, Vec<usize>), String> {
    let (first, next) = words.split_first().ok_or("no word")?;
    let map = KernelsMap::open()?;
    let most = first.len() + next.iter().map(Vec::len).max().unwrap_or(0);
    let mut chunk = vec![0; CHUNK];
    let finder = Finder::new(first);
    let (mut read, mut found) = (0, vec![0; next.len()]);
    for segment in &map.ram {
        let mut at = 0;
        while at < segment.size {
            let length = CHUNK.min(usize::try_from(segment.size - at).unwrap_or(CHUNK));
            let chunk = &mut chunk[..length];
            map.file.read_exact_at(chunk, segment.offset + at).map_err(|e| format!("kcore: {e}"))?;
            for place in finder.find_iter(chunk) {
                for (next, count) in next.iter().zip(&mut found) {
                    *count += usize::from(chunk[place + first.len()..].starts_with(next));
                }
            }
            read += length as u64;
            // What may go on in the next chunk is looked at again.
            at += length.saturating_sub(if length == CHUNK { most - 1 } else { 0 }) as u64;
        }
    }
    Ok((read, found))
}
