// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Guests by others that are not Linux: U-Boot in the system tier, EDK2, which takes minutes, in the soak tier. Firmware for QEMU's `virt` machine under `gz run --firmware`: GIC or
//! polled timer, PSCI, UART, virtio-mmio, flash; what a person does at its prompt.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};

use super::{BOOT_LIMIT, Host, PEER, WHOLE, scripted};
use crate::{
    console::Console,
    harness::{Case, Context, Tier},
    initrd::Extra,
    layout::Layout,
};

/// For what a prompt answers at once.
const ANSWER: Duration = Duration::from_secs(60);

/// A firmware, and what is done with it.
struct Firmware {
    path: fn(&Layout) -> PathBuf,
    /// More options of `gz run`.
    options: &'static str,
    /// The first boot ends with a power-off, the second with a reset.
    session: fn(&mut Console, bool) -> Result<()>,
}

const U_BOOT: Firmware =
    Firmware { path: |layout| layout.guests_folder().join("u-boot.bin"), options: "", session: u_boot };
/// Set-up installs it on this machine.
const EDK2: Firmware = Firmware {
    path: |_| "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd".into(),
    options: "--variables /tmp/variables",
    session: edk2,
};

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    let case = |tier, name: &str, host, needs, firmware: &'static Firmware| {
        Case::new(tier, name, needs, move |context| run(context, host, firmware))
    };
    vec![
        case(Tier::System, "guests::uboot", Host::Gzvm, WHOLE, &U_BOOT),
        case(Tier::Soak, "guests::edk2", Host::Gzvm, WHOLE, &EDK2),
        // The peer tells whose fault a failure is. EDK2 copies from flash with instructions that KVM does not decode.
        case(Tier::System, "guests::kvm::uboot", Host::Kvm, PEER, &U_BOOT),
    ]
}

fn run(context: &Context, host: Host, firmware: &Firmware) -> Result<()> {
    let script = format!(
        ". /etc/profile
for boot in 1 2; do
    run_gz --firmware /guest/firmware {} --disk /guest/disk.img --cpus 2 --mem 256M
    echo \"gz ended with $?\"
done",
        firmware.options
    );
    let file = Extra::file("/guest/firmware", 0o644, &(firmware.path)(&context.layout))
        .context("run `cargo xtask setup --tests`")?;
    let machine = scripted(context, host, &script, &[file])?.parallel();
    let mut console = context.start(&machine, "console")?;
    console.wait_for("[HOST] Linux", BOOT_LIMIT)?;
    (firmware.session)(&mut console, false).context("the first boot")?;
    console.wait_for("gz ended with 0", ANSWER)?;
    (firmware.session)(&mut console, true).context("the second boot")?;
    console.wait_for("gz ended with 3", ANSWER)?;
    console.wait_power_off(Duration::from_secs(30))
}

/// A command at U-Boot's prompt; `mark` must come with its answer, not with its echo.
fn command(console: &mut Console, line: &str, mark: &str) -> Result<()> {
    console.send(format!("{line}\r").as_bytes())?;
    console.wait_for(mark, ANSWER).with_context(|| format!("command: {line}"))?;
    Ok(())
}

fn u_boot(console: &mut Console, reset: bool) -> Result<()> {
    console.wait_for("U-Boot 20", BOOT_LIMIT)?;
    console.wait_for("autoboot", ANSWER)?;
    console.send(b" ")?;
    console.wait_for("=> ", ANSWER)?;
    command(console, "sleep 1; echo slept-$?", "slept-0")?;
    command(console, "virtio scan; echo scanned-$?", "scanned-0")?;
    command(console, "ls virtio 0", "hello.txt")?;
    command(console, "load virtio 0 ${loadaddr} hello.txt; echo bytes-${filesize}", "bytes-14")?;
    console.send(if reset { b"reset\r" } else { b"poweroff\r" })
}

fn edk2(console: &mut Console, second: bool) -> Result<()> {
    console.wait_for("UEFI firmware", BOOT_LIMIT)?;
    // It copies the variables' flash at 8 bytes an exit.
    console.wait_for("startup.nsh", BOOT_LIMIT + BOOT_LIMIT)?;
    console.send(b"\x1b")?;
    console.wait_for("Shell>", ANSWER)?;
    command(console, "ver", "UEFI v2")?;
    // Microseconds; then the clock.
    command(console, "stall 1000000", "Shell>")?;
    command(console, "date", "/20")?;
    if !second {
        // Non-volatile: the second boot finds it in the flash.
        command(
            console,
            "setvar GzTest -guid 8a1b3c5d-0000-4000-8000-000000000001 -nv -bs =0x4711",
            "Shell>",
        )?;
    }
    command(console, "setvar GzTest -guid 8a1b3c5d-0000-4000-8000-000000000001", "11 47")?;
    command(console, "map -b", "BLK0:")?;
    console.send(if second { b"reset -c\r" } else { b"reset -s\r" })
}
