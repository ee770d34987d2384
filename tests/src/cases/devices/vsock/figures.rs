// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a message by AF_VSOCK costs, in instructions of the whole machine, beside what `instructions::calls` measures of RPC. Most of it is Linux,
//! of host and guests, so no figure is kept: what is tested is that there are all of them.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Extra, Host, files, scripted};
use crate::{
    benchmark,
    cases::WHOLE,
    harness::{Case, Context, Tier},
    initrd, modules,
};

/// The tests of this file.
pub fn cases() -> Vec<Case> {
    vec![Case::new(Tier::Soak, "instructions::sockets", WHOLE, run)]
}

/// Two guests that are peers, and one that has none. All `gz` on one CPU, where a call by RPC is at its cheapest.
const SCRIPT: &str = r#". /etc/profile
sockets echo stream 1000 &
sockets receive stream 1002 &
start() {
    taskset 1 gz run --kernel /guest/Image --initrd /guest/test.cpio --cmdline 'console=ttyS0 quiet cryptomgr.notests' --mem 128M --vsock $1 \
        >/tmp/gz.$2 2>&1 </dev/null &
}
start 5,peer=6 5
start 6,peer=5 6
start 7 7
for cid in 5 6 7; do until grep -q READY /tmp/gz.$cid; do sleep 1; done; done
sleep 20
on() { cid=$1; shift; echo "$*" | socat -t 6000 - VSOCK-CONNECT:$cid:3000; }
for bytes in 8 4096; do
    on 7 sockets ping stream 2 1000 vsock-host-$bytes $bytes 1000
    on 5 sockets ping stream 2 1000 vsock-host-by-switch-$bytes $bytes 1000
    on 5 sockets ping stream 6 1000 vsock-guest-$bytes $bytes 1000
done
for way in 7:2 5:2 5:6; do echo "way $way: $(on ${way%:*} sockets send stream ${way#*:} 1002 64)"; done"#;

const INSIDE: &str = r#"sockets echo stream 1000 &
sockets receive stream 1002 &
echo READY
socat -t 6000 VSOCK-LISTEN:3000,fork EXEC:/bin/sh"#;

fn run(context: &Context) -> Result<()> {
    let mut inside = modules::load(&context.layout, "virtio_mmio", &["vmw_vsock_virtio_transport"])?;
    inside.push(Extra::script(INSIDE));
    inside.extend(files(context)?);
    let content = initrd::guest(&context.layout, &inside)?;
    let mut extras = vec![Extra { path: "/guest/test.cpio".to_owned(), mode: 0o644, content }];
    extras.extend(files(context)?);
    extras.extend(modules::load(&context.layout, "virtio_mmio virtio_blk gzvm", &["vhost_vsock"])?);
    let mut machine = scripted(context, Host::Gzvm, SCRIPT, &extras)?;
    machine.smp = 2;
    let mut console = context.start(&machine, "console")?;
    console.wait_power_off(Duration::from_secs(3000))?;
    let text = console.text();
    let told = |line: &&str| line.contains("[BENCH] ") || line.contains("way ");
    text.lines().filter(told).for_each(|line| println!("{line}"));
    let count = text.lines().filter_map(benchmark::operation).collect::<Result<Vec<_>>>()?.len();
    let rates = text.lines().filter(|line| line.contains("way ") && line.contains("SENT-64")).count();
    ensure!((count, rates) == (6, 3), "{count} operations and {rates} rates");
    Ok(())
}
