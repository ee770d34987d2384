// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Boot and system tier: machines with an SMMUv3, whose PCI devices see what the host sees and no more.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{BOOT_LIMIT, Host, WHOLE, boot, results, scripted};
use crate::{
    harness::{Case, Context, Tier},
    initrd::Extra,
    machine::Machine,
    results::Results,
};

const DISK_BYTES: usize = 4 << 20;
/// What the hypervisor says where all is well.
const ISOLATED: &str = "DMA of 65536 streams is isolated";

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    const PARTS: &[&str] = &["hypervisor.Image", "firmware.Image", "guest-testhost.Image"];
    let mut cases = Vec::new();
    for cpu in ["cortex-a53", "max"] {
        cases.push(Case::new(Tier::Boot, format!("dma::testhost::{cpu}"), PARTS, move |context| {
            guarded(context, cpu)
        }));
    }
    cases.push(Case::new(Tier::Boot, "dma::no_stage_2", PARTS, blocked));
    cases.push(Case::new(Tier::Boot, "dma::no_smmu", PARTS, without_smmu));
    cases.push(Case::new(Tier::System, "dma::linux_host", WHOLE, linux_host));
    cases
}

/// The test host's cases about DMA, with a device that the SMMU guards.
fn guarded(context: &Context, cpu: &str) -> Result<()> {
    let cases = "dma::own,dma::hyp,dma::a_,dma::pages,dma::smmu,dma::gic,protected::,host::";
    let mut machine = testhost(context, &format!("filter={cases}"));
    cpu.clone_into(&mut machine.cpu);
    run(context, &machine, ISOLATED)
}

/// A machine with the test host and a device on PCI.
fn testhost(context: &Context, arguments: &str) -> Machine {
    let mut machine = boot::testhost(context, arguments);
    machine.extra = boot::DMA_DEVICE.map(Into::into).to_vec();
    machine
}

/// The hypervisor says `what`, then all of the test host's cases pass, and none is skipped.
fn run(context: &Context, machine: &Machine, what: &str) -> Result<()> {
    let mut console = context.start(machine, "console")?;
    console.wait_for(what, BOOT_LIMIT)?;
    console.wait_for("[DONE]", BOOT_LIMIT)?;
    console.wait_power_off(Duration::from_secs(30))?;
    Results::read(&console.text())?.check()?;
    ensure!(!console.text().contains("[SKIP] dma::"), "cases about DMA were skipped");
    Ok(())
}

/// An SMMU without stage 2 lets nothing through.
fn blocked(context: &Context) -> Result<()> {
    let mut machine = testhost(context, "filter=dma::blocked,dma::gic smmu=blocked");
    // As old boards have it.
    machine.extra.extend(["-M", "virt-9.1"].map(Into::into));
    run(context, &machine, "it has no stage 2: DMA of its devices is blocked")
}

fn without_smmu(context: &Context) -> Result<()> {
    let mut machine = testhost(context, "filter=host::");
    machine.smmu = false;
    run(context, &machine, "no SMMUv3: DMA of host devices is not isolated")
}

/// A stock Linux reads and writes a disk on PCI, with a guest beside it; it knows nothing of the SMMU.
fn linux_host(context: &Context) -> Result<()> {
    let content: Vec<u8> =
        (0..DISK_BYTES as u32 / 4).flat_map(|i| (i.wrapping_mul(0x9E37_79B1)).to_le_bytes()).collect();
    let reference = Extra { path: "/reference".to_owned(), mode: 0o644, content: content.clone() };
    let disk = context.write("disk.img", &content)?;
    let mut machine = scripted(context, Host::Gzvm, SCRIPT, &[reference])?;
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
holds interrupts_by_line "$(grep virtio0 /proc/interrupts)" grep -q 'Level.*virtio0' /proc/interrupts
holds no_faults "$(counter dma_faults), not $faults" [ "$(counter dma_faults)" = "$faults" ]
holds no_smmu "the kernel found one" eval '! dmesg | grep -i "smmu"'
dmesg | grep -E 'WARNING:|BUG:|Oops|Unable to handle' | grep -v 'soft lockup' >/tmp/kernel
cat /tmp/kernel
holds kernel_is_quiet "see above" [ ! -s /tmp/kernel ]
counters_return
finish"#;
