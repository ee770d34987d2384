// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Soak tier: a whole Debian as a guest, on a qcow2 disk, with systemd inside; the host talks to it as one does to a server.
//!
//! ```text
//!  PC ── QEMU's user network ── host VM ── passt ── guest      to the package mirror
//!                               host VM ── tap ─── guest      ssh, iperf3
//! ```
//! `GZVM_DEBIAN_MIB` is how much is written and read back, 1024 if it is not set.

use std::{env, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};

use super::{Host, WHOLE, devices, protected, results, scripted};
use crate::{
    cpio::Archive,
    harness::{Case, Context, Tier},
    initrd::{self, Extra},
    layout::Layout,
    machine::Machine,
    modules,
};

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    [("debian::plain", false), ("debian::protected", true)]
        .map(|(name, protected)| Case::new(Tier::Soak, name, WHOLE, move |context| run(context, protected)))
        .into()
}

/// Until the guest is up, it is written once, and read: an emulated machine in an emulated machine.
const LIMIT: Duration = Duration::from_secs(3 * 3600);
const ARGUMENTS: &str = "console=ttyS0 panic=-1 quiet systemd.show_status=yes SYSTEMD_COLORS=0 TERM=dumb";
/// What the guest's initial RAM disk brings; its own system finds these loaded.
const GUEST_MODULES: [&str; 2] = ["virtio_net", "virtio_rng"];
/// From the initial RAM disk to the system on the disk.
const INIT: &str = "#!/bin/sh
/bin/busybox sh /etc/rc
mount -t ext4 /dev/vda /mnt
umount /sys/kernel/debug /tmp /dev/pts /dev /sys /proc
exec switch_root /mnt /sbin/init
";
const HOST: &str = include_str!("../../rootfs/debian-host");
const HOST_NETWORK: &str = include_str!("../../rootfs/host-network");
const COMMAND: &str = include_str!("../../rootfs/debian-command");

/// What the plain guest starts with: files of the host VM.
fn plain(layout: &Layout) -> Result<Vec<Extra>> {
    let mut inside = modules::load(layout, "virtio_mmio virtio_blk", &GUEST_MODULES)?;
    inside.push(init());
    let content = initrd::guest(layout, &inside)?;
    Ok(vec![Extra { path: "/guest/debian.cpio".to_owned(), mode: 0o644, content }])
}

fn init() -> Extra {
    Extra { path: "/init".to_owned(), mode: 0o755, content: INIT.into() }
}

/// What the host VM has beside that: modules for its network and the guest's, and programs.
fn host(layout: &Layout, programs: &[&str]) -> Result<Vec<Extra>> {
    let mut extras = modules::load(layout, "virtio_mmio virtio_blk gzvm", &["virtio_net", "tun"])?;
    extras.extend(devices::peers(layout, programs)?);
    extras.push(Extra::text("/etc/host-network", HOST_NETWORK));
    Ok(extras)
}

/// Gives `machine` memory for it, the disk with the guest's image, and a network. What is written to the disk goes to a file of QEMU's
/// that nobody sees.
fn attach(layout: &Layout, machine: &mut Machine) {
    machine.memory = "4G".to_owned();
    let image = layout.debian_folder().join("host.img");
    let drive = format!("if=none,id=disk,format=raw,snapshot=on,file={}", image.display());
    let arguments = [
        "-drive",
        &drive,
        "-device",
        "virtio-blk-pci,drive=disk,iommu_platform=on,disable-legacy=on",
        "-netdev",
        "user,id=net",
        "-device",
        "virtio-net-pci,netdev=net,iommu_platform=on,disable-legacy=on,romfile=",
    ];
    machine.extra.extend(arguments.map(Into::into));
}

/// For a person: adds to the host VM of `machine` all that its command `debian` needs. `initrd` is where its initial RAM disk goes.
///
/// # Errors
/// If set-up or build have not run.
pub fn add(layout: &Layout, machine: &mut Machine, initrd: PathBuf) -> Result<()> {
    let mut extras = plain(layout)?;
    extras.extend(host(layout, &["passt"])?);
    extras.push(Extra { path: "/bin/debian".to_owned(), mode: 0o755, content: COMMAND.into() });
    let mut archive = Archive::new();
    extras.iter().for_each(|extra| archive.file(&extra.path, extra.mode, &extra.content));
    let mut content = fs::read(layout.part("host-initrd.cpio"))?;
    content.extend(archive.finish());
    fs::write(&initrd, content)?;
    machine.boot.set_initrd(initrd);
    attach(layout, machine);
    Ok(())
}

fn run(context: &Context, protected: bool) -> Result<()> {
    let layout = &context.layout;
    let (mut extras, kernel) = if protected {
        let extras = protected::signed_linux(context, &GUEST_MODULES, ARGUMENTS, "", vec![init()])?;
        let options = "--protected --shared 32M --kernel /guest/signed.Image --initrd /guest/protected.cpio";
        (extras.to_vec(), options)
    } else {
        (plain(layout)?, "--kernel /guest/Image --initrd /guest/debian.cpio")
    };
    extras.extend(host(layout, &["ssh", "iperf3", "passt", "virtiofsd"])?);
    let key = layout.debian_folder().join("key");
    extras.push(Extra::file("/root/key", 0o600, &key).context("run `cargo xtask setup --debian`")?);
    let size = env::var("GZVM_DEBIAN_MIB").unwrap_or_else(|_| "1024".to_owned());
    let script = format!(
        "kernel='{kernel}' arguments='{ARGUMENTS}' mib={size}\n{}\n{HOST}",
        include_str!("../../rootfs/device-library"),
    );
    let mut machine = scripted(context, Host::Gzvm, &script, &extras)?.parallel();
    attach(layout, &mut machine);
    results(context, &machine, LIMIT)?.check()
}
