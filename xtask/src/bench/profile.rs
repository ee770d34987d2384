// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where EL2's instructions go: counted in QEMU by a plugin (`profile.c`, built on demand), by the exception that brought
//! the CPU to EL2 and by the hypervisor's symbols.
//!
//! What is counted is the hypervisor's image alone; the rest of an operation is the guest's, the host's kernel's and the VMM's.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use gzvm_tests::layout::Layout;

use super::report::{aligned, grouped};
use crate::{gdb::IMAGE_ADDRESS, process};

const PLUGIN: &str = include_str!("profile.c");
/// Kinds of exits that came less often are no operation's.
pub const OFTEN: u64 = 200;
/// Symbols shown of a kind.
const SYMBOLS: usize = 12;

/// A machine that is to be profiled.
pub struct Profiler {
    library: PathBuf,
    counts: PathBuf,
    symbols: Vec<(u64, String)>,
}

impl Profiler {
    /// Builds the plugin, and reads the hypervisor's symbols.
    ///
    /// # Errors
    /// If either does not work.
    pub fn new(layout: &Layout, folder: &Path) -> Result<Self> {
        let (source, library) = (folder.join("profile.c"), folder.join("profile.so"));
        fs::write(&source, PLUGIN)?;
        let mut compiler = Command::new("cc");
        compiler.args(["-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-o"]).arg(&library).arg(&source);
        process::run(&mut compiler)?;
        let mut nm = Command::new("aarch64-linux-gnu-nm");
        let text = process::output(nm.args(["--demangle", "-n"]).arg(layout.part("hypervisor.elf")))?;
        let symbols = text.lines().filter_map(symbol).collect();
        Ok(Self { library, counts: folder.join("profile.txt"), symbols })
    }

    /// QEMU's arguments.
    ///
    /// # Errors
    /// If the image is not what it was.
    pub fn arguments(&self) -> Result<Vec<OsString>> {
        let address = |name: &str| {
            let found = self.symbols.iter().find(|(_, symbol)| symbol == name);
            found.map(|(offset, _)| *offset).with_context(|| format!("hypervisor.elf has no {name}"))
        };
        let (guest, host) = (address("guest_vectors")?, address("host_vectors")?);
        let mut plugin = OsString::from(&self.library);
        plugin.push(format!(
            ",base={IMAGE_ADDRESS:#x},size={},guest={:#x},host={:#x},out={}",
            address("image_text_end")?,
            IMAGE_ADDRESS + guest,
            IMAGE_ADDRESS + host,
            self.counts.display()
        ));
        // Left by an earlier machine.
        _ = fs::remove_file(&self.counts);
        Ok(vec!["-plugin".into(), plugin])
    }

    /// What was counted, once the machine is off.
    ///
    /// # Errors
    /// If the plugin left no report.
    pub fn read(&self) -> Result<Profile> {
        let text = fs::read_to_string(&self.counts).context("QEMU's plugin left no report")?;
        let mut profile = Profile::default();
        for line in text.lines() {
            let mut words = line.split(' ');
            let first = words.next();
            let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
            match (first, &numbers[..]) {
                (Some("exit"), &[_, world, vector, class, detail, count]) => {
                    let (name, guest) = (name(world, vector, class, detail), world == GUEST);
                    profile.exits.push(Exit { name, guest, count, ..Exit::default() });
                }
                (Some("at"), &[offset, kind, count]) => {
                    let Some(exit) = profile.exits.get_mut(kind as usize) else { continue };
                    exit.instructions += count;
                    let after = self.symbols.partition_point(|(address, _)| *address <= offset);
                    let symbol = after.checked_sub(1).map_or("?", |n| self.symbols[n].1.as_str());
                    *exit.symbols.entry(symbol.to_owned()).or_default() += count;
                }
                _ => {}
            }
        }
        Ok(profile)
    }
}

/// A line of `nm`, if it is code's.
fn symbol(line: &str) -> Option<(u64, String)> {
    let mut words = line.splitn(3, ' ');
    let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
    if !matches!(kind, "t" | "T") || name.starts_with('$') {
        return None;
    }
    // A hash, or what generics were made for, says nothing to a reader.
    let name = name.replace("gzvm_hypervisor::", "").replace("gzvm_core::", "");
    let generic = name.replace("<guest::vm::GicMemory>", "");
    Some((u64::from_str_radix(address, 16).ok()?, generic))
}

/// Exits of one kind.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Why the CPU came to EL2.
    pub name: String,
    /// From a guest, rather than from the host.
    pub guest: bool,
    /// How often.
    pub count: u64,
    /// Instructions at EL2 until it left again, all together.
    pub instructions: u64,
    symbols: BTreeMap<String, u64>,
}

/// What a machine's CPUs did at EL2. The first is what they did before any exception: boot.
#[derive(Debug, Default)]
pub struct Profile {
    exits: Vec<Exit>,
}

impl Profile {
    /// Instructions until the host's kernel was entered.
    pub fn boot(&self) -> u64 {
        self.exits.first().map_or(0, |exit| exit.instructions)
    }

    /// All kinds of a guest's exits and of the host's calls, most instructions first.
    pub fn exits(&self) -> Vec<&Exit> {
        let mut exits: Vec<_> = self.exits.iter().skip(1).filter(|exit| exit.count > 0).collect();
        exits.sort_by_key(|exit| std::cmp::Reverse(exit.instructions));
        exits
    }

    /// The table of kinds that came at least so often.
    pub fn rows(&self, often: u64) -> Vec<Vec<String>> {
        let mut rows =
            vec![["EL2 was entered for", "times", "instructions", "each"].map(str::to_owned).to_vec()];
        rows.push(["boot", "1", &grouped(self.boot()), &grouped(self.boot())].map(str::to_owned).to_vec());
        for exit in self.exits().into_iter().filter(|exit| exit.count >= often) {
            let each = exit.instructions / exit.count;
            rows.push(vec![
                exit.name.clone(),
                grouped(exit.count),
                grouped(exit.instructions),
                grouped(each),
            ]);
        }
        rows
    }

    /// All kinds, then for each frequent one the symbols.
    pub fn terminal(&self) -> String {
        let mut text = aligned(&self.rows(1));
        let boot = self.exits.first();
        for exit in boot.into_iter().chain(self.exits().into_iter().filter(|exit| exit.count >= OFTEN)) {
            _ = writeln!(text, "\n{}: instructions each time, by symbol", exit.name);
            let mut symbols: Vec<_> = exit.symbols.iter().collect();
            symbols.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            for (symbol, count) in symbols.into_iter().take(SYMBOLS) {
                _ = writeln!(text, "{:10.1}  {symbol}", *count as f64 / exit.count.max(1) as f64);
            }
        }
        text
    }
}

/// `enum world` of the plugin.
const HOST: u64 = 1;
const GUEST: u64 = 2;

fn name(world: u64, vector: u64, class: u64, detail: u64) -> String {
    let who = match world {
        GUEST => "guest",
        HOST => "host",
        _ => return "boot".to_owned(),
    };
    let what = match (vector, class) {
        (0, 0x01) => "WFI".to_owned(),
        (0, 0x07 | 0x19) => "FP".to_owned(),
        (0, 0x16) => format!("HVC {detail:#x}"),
        (0, 0x17) => format!("SMC {detail:#x}"),
        (0, 0x18) => {
            let field = |low: u32, mask: u64| detail >> low & mask;
            let direction = if detail & 1 == 0 { "MSR" } else { "MRS" };
            format!(
                "{direction} S{}_{}_C{}_C{}_{}",
                field(20, 3),
                field(14, 7),
                field(10, 15),
                field(1, 15),
                field(17, 7)
            )
        }
        (0, 0x20) => format!("fetch at {:#x}", detail & !0xFFF),
        (0, 0x24) if detail & 1 == 0 => format!("load at {:#x}", detail & !0xFFF),
        (0, 0x24) => format!("store at {:#x}", detail & !0xFFF),
        (0, other) => format!("exception class {other:#x}"),
        (1, _) => "IRQ".to_owned(),
        (2, _) => "FIQ".to_owned(),
        _ => "SError".to_owned(),
    };
    format!("{who}: {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_have_names() {
        assert_eq!(name(GUEST, 0, 0x16, 0x8400_0000), "guest: HVC 0x84000000");
        assert_eq!(name(GUEST, 0, 0x18, 3 << 20 | 5 << 17 | 12 << 10 | 11 << 1), "guest: MSR S3_0_C12_C11_5");
        assert_eq!(name(GUEST, 0, 0x24, 0x9_0001), "guest: store at 0x90000");
        assert_eq!(name(HOST, 1, 0, 0), "host: IRQ");
    }

    #[test]
    fn symbols_are_code() {
        let line = "0000000000001000 T guest_vectors";
        assert_eq!(symbol(line), Some((0x1000, "guest_vectors".to_owned())));
        assert_eq!(symbol("0000000000043000 D data"), None);
        assert_eq!(symbol("0000000000043000 t $x"), None);
        assert_eq!(symbol(""), None);
    }
}
