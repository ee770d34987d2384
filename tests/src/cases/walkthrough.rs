// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a person does in `cargo xtask run`, without the person: the guest at its shell, its disk, the way back.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{BOOT_LIMIT, Host, PEER, WHOLE};
use crate::{
    console::Console,
    harness::{Case, Tier},
    layout::Layout,
    machine::Machine,
};

/// For what a shell answers at once.
const ANSWER: Duration = Duration::from_secs(30);

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    let case = |name: &str, host, needs| {
        Case::new(Tier::System, name, needs, move |context| {
            let machine = machine(&context.layout, host);
            let mut console = context.start(&machine, "console")?;
            walk(&mut console, machine.smp, host, &mut |_| ())
        })
    };
    vec![case("walkthrough::gzvm", Host::Gzvm, WHOLE), case("walkthrough::kvm", Host::Kvm, PEER)]
}

/// The machine of `cargo xtask run`.
#[must_use]
pub fn machine(layout: &Layout, host: Host) -> Machine {
    Machine::new(host.boot(layout, layout.part("host-initrd.cpio"), "gz.mode=guest"))
}

/// The whole way; `step` hears of each step done.
///
/// # Errors
/// At the first deviation, with the console's last lines.
pub fn walk(console: &mut Console, smp: u32, host: Host, step: &mut dyn FnMut(&str)) -> Result<()> {
    console.wait_for("[HOST] Linux ", BOOT_LIMIT).context("the host VM does not start")?;
    console.wait_for(&format!(" {smp} CPUs"), ANSWER).context("the host VM lacks CPUs")?;
    if host == Host::Gzvm {
        ensure!(console.text().contains("GenieZone"), "no banner of the hypervisor");
    }
    step(&format!("Linux is up as host VM on {smp} CPUs"));

    console.wait_for("[GUEST] Linux ", BOOT_LIMIT).context("the guest does not start")?;
    console.wait_for(" 2 CPUs", ANSWER).context("the guest lacks CPUs")?;
    console.wait_for("/dev/vda is mounted", BOOT_LIMIT).context("the guest has no disk")?;
    console.wait_for("root@guest:", BOOT_LIMIT).context("the guest gives no shell")?;
    step("Linux is up as guest on 2 vCPUs, at its shell");

    let (text, status) = console.shell("cat /mnt/hello.txt", ANSWER)?;
    ensure!(status == 0 && text.contains("hello from the disk"), "the guest can't read its disk: {text}");
    let (text, status) = console.shell("echo written-$((6*7)) > /mnt/note && umount /mnt", ANSWER)?;
    ensure!(status == 0, "the guest can't write its disk: {text}");
    let (text, status) = console.shell("mount /dev/vda /mnt && cat /mnt/note", ANSWER)?;
    ensure!(status == 0 && text.contains("written-42"), "the guest lost what it wrote: {text}");
    step("the guest reads and writes its disk");

    console.type_line("poweroff")?;
    console
        .wait_for("gz ended with exit status 0", Duration::from_secs(60))
        .context("the guest's power-off")?;
    console.wait_for("root@host:", ANSWER).context("the host gives no shell")?;
    step("the guest's power-off led back to the host");

    let (text, status) = console.shell("nproc; uname -r", ANSWER)?;
    ensure!(
        status == 0 && text.lines().any(|line| line.trim() == smp.to_string()),
        "the host lost CPUs: {text}"
    );
    let (_, status) = console.shell("grep -q written-42 /guest/disk.img", ANSWER)?;
    ensure!(status == 0, "the host does not find what the guest wrote");
    step("the host finds on the disk what the guest wrote");

    console.type_line("poweroff")?;
    console.wait_power_off(Duration::from_secs(60)).context("the host's power-off")?;
    step("the host's power-off ended QEMU with status 0");
    Ok(())
}
