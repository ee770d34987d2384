// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A folder of the host.

use super::{Pair, peers};
use crate::{
    cases::WHOLE,
    harness::{Case, Context, Tier},
};

/// The tests of this file.
pub fn cases() -> Vec<Case> {
    let folder = |protected| {
        move |context: &Context| {
            let pair = Pair {
                protected,
                guest: (&[], INSIDE, Vec::new()),
                host: (&[], HOST, peers(&context.layout, &["virtiofsd"])?),
                ..Pair::default()
            };
            pair.run(context)
        }
    };
    vec![
        Case::new(Tier::System, "devices::fs::virtiofsd", WHOLE, folder(false)),
        Case::new(Tier::System, "devices::fs::of_a_protected_guest", WHOLE, folder(true)),
    ]
}

const INSIDE: &str = r#"mount -t virtiofs shared /mnt || exit 1
echo SUM-$(md5sum </mnt/data | cut -c 1-32)
mkdir /mnt/folder && cp /mnt/data /mnt/folder/copy && mv /mnt/folder/copy /mnt/folder/moved && rm /mnt/data && ln -s moved /mnt/folder/link
sync
echo FILES-$(ls /mnt | wc -l)
umount /mnt && echo UNMOUNTED
mount -t virtiofs shared /mnt && [ -e /mnt/folder/link ] && echo MOUNTED-AGAIN"#;

const HOST: &str = r#"mkdir /tmp/shared
head -c 4194304 /dev/urandom >/tmp/shared/data
sum=$(md5sum </tmp/shared/data | cut -c 1-32)
virtiofsd --socket-path /tmp/fs.sock --shared-dir /tmp/shared --sandbox none --seccomp none >/tmp/virtiofsd.out 2>&1 &
virtiofsd=$!
holds virtiofsd_listens "$(cat /tmp/virtiofsd.out)" appears /tmp/fs.sock
guest --fs shared=/tmp/fs.sock
holds guest_reads "not $sum" said SUM-$sum
holds guest_sees_what_it_did "$(cat /tmp/virtiofsd.out)" said FILES-1
holds unmounts "not" said UNMOUNTED
holds mounts_again "not" said MOUNTED-AGAIN
guest_ends
holds host_sees_it "$(ls -lR /tmp/shared)" [ "$(md5sum </tmp/shared/folder/link | cut -c 1-32)" = $sum ]
holds data_is_gone "it is there" [ ! -e /tmp/shared/data ]
kill $virtiofsd 2>/dev/null
ends nobody_listens 1 'is the program running' gz run $kernel --fs shared=/tmp/nothing"#;
