// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Boot and system tier: machines with an SMMUv3, whose PCI devices see what the host sees and no more.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{BOOT_LIMIT, Host, WHOLE, boot, results, scripted};
use crate::{
    harness::{Case, Context, Tier},
    initrd::Extra,
    results::Results,
};

const DISK_BYTES: usize = 4 << 20;
/// What the hypervisor says where all is well.
const ISOLATED: &str = "DMA of 65536 streams is isolated";

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cpu in ["cortex-a53", "max"] {
        cases.push(Case::new(
            Tier::Boot,
            format!("dma::testhost::{cpu}"),
            &["hypervisor.Image", "firmware.Image", "guest-testhost.Image"],
            move |context| testhost(context, cpu),
        ));
    }
    cases.push(Case::new(Tier::System, "dma::linux_host", WHOLE, linux_host));
    cases
}

/// The test host's cases about DMA, with a device that the SMMU guards.
fn testhost(context: &Context, cpu: &str) -> Result<()> {
    let mut machine = boot::testhost(context, "filter=dma::,protected::,host::");
    cpu.clone_into(&mut machine.cpu);
    machine.smmu = true;
    machine.extra = ["-device", "edu,dma_mask=0xffffffffffff"].map(Into::into).to_vec();
    let mut console = context.start(&machine, "console")?;
    console.wait_for(ISOLATED, BOOT_LIMIT)?;
    console.wait_for("[DONE]", BOOT_LIMIT)?;
    console.wait_power_off(Duration::from_secs(30))?;
    Results::read(&console.text())?.check()?;
    ensure!(!console.text().contains("[SKIP] dma::"), "cases about DMA were skipped");
    Ok(())
}

/// A stock Linux reads and writes a disk on PCI, with a guest beside it; it knows nothing of the SMMU.
fn linux_host(context: &Context) -> Result<()> {
    let content: Vec<u8> =
        (0..DISK_BYTES as u32 / 4).flat_map(|i| (i.wrapping_mul(0x9E37_79B1)).to_le_bytes()).collect();
    let reference = Extra { path: "/reference".to_owned(), mode: 0o644, content: content.clone() };
    let disk = context.write("disk.img", &content)?;
    let mut machine = scripted(context, Host::Gzvm, SCRIPT, &[reference])?;
    machine.smmu = true;
    let drive = format!("if=none,id=disk,format=raw,file={}", disk.display());
    let device = "virtio-blk-pci,drive=disk,iommu_platform=on,disable-legacy=on";
    machine.extra = ["-drive", &drive, "-device", device].map(Into::into).to_vec();
    results(context, &machine, Duration::from_secs(300))?.check()
}

const SCRIPT: &str = r#". /etc/test-library
held >/tmp/before
faults=$(counter dma_faults)
holds disk_is_there "no /dev/vda" [ -b /dev/vda ]
holds disk_reads "another content" cmp /reference /dev/vda
run_gz --kernel /guest/testguest.Image --cpus 2 --cmdline 'hyp=gzvm filter=memory,interrupts' >/tmp/guest 2>&1 </dev/null &
for round in 1 2 3 4; do
    cp /reference /tmp/next
    dd if=/dev/urandom of=/tmp/next bs=64k count=32 conv=notrunc 2>/dev/null
    dd if=/tmp/next of=/dev/vda bs=64k conv=fsync 2>/dev/null
    echo 3 >/proc/sys/vm/drop_caches
    cmp /tmp/next /dev/vda || break
    written=$round
done
holds disk_writes "after round ${written:-0}" [ "$written" = 4 ]
wait
holds guest_runs "$(grep -a 'FAIL\|DONE' /tmp/guest | head -n 3)" grep -aq 'DONE.* failed=0 ' /tmp/guest
grep virtio /proc/interrupts
holds interrupts_are_messages "see above" grep -q 'MSI.*virtio0' /proc/interrupts
holds no_faults "$(counter dma_faults), not $faults" [ "$(counter dma_faults)" = "$faults" ]
holds no_smmu "the kernel found one" eval '! dmesg | grep -i "smmu"'
dmesg | grep -E 'WARNING:|BUG:|Oops|Unable to handle' | grep -v 'soft lockup' >/tmp/kernel
cat /tmp/kernel
holds kernel_is_quiet "see above" [ ! -s /tmp/kernel ]
counters_return
finish"#;
