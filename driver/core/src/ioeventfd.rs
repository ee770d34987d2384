// SPDX-License-Identifier: GPL-2.0-only
//! Eventfds signalled by guest writes.
//!
//! A write matches at the exact address; length 0 matches any size. Ranges of different entries don't overlap at a new
//! entry's address; but several at one address may each match a value of their own, as with KVM (the public driver refuses the
//! second). The list is sorted by address, so that the run loop finds a match by bisection.

use gzvm_abi::ioctl::{IOEVENTFD_DATAMATCH, IOEVENTFD_DEASSIGN, Ioeventfd};

use crate::kernel::eventfd::EventFd;
use crate::kernel::sync::{Class, Mutex};
use crate::kernel::{KVec, Result, code};

struct Entry {
    addr: u64,
    /// 0: any.
    len: u32,
    datamatch: Option<u64>,
    eventfd: EventFd,
}

impl Entry {
    fn hit(&self, addr: u64, size: u64, data: u64) -> bool {
        self.addr == addr
            && (self.len == 0
                || (u64::from(self.len) == size && self.datamatch.is_none_or(|value| value == data)))
    }

    /// Would another entry be ambiguous?
    fn collides(&self, new: &Self) -> bool {
        let Self { addr, len, datamatch, .. } = *new;
        if (self.addr, self.len) == (addr, len)
            && let (Some(one), Some(other)) = (self.datamatch, datamatch)
        {
            return one == other;
        }
        (self.addr == addr && (self.len == 0 || len == 0))
            || addr.checked_sub(self.addr).is_some_and(|offset| offset < self.len.into())
    }
}

/// The ioeventfds of a VM.
pub struct IoEventFds(Mutex<KVec<Entry>>);

impl IoEventFds {
    /// None.
    pub fn new() -> Result<Self> {
        Ok(Self(Mutex::new(Class::IoEventFds, KVec::new())?))
    }

    /// IOEVENTFD. EINVAL: flags, length, wrap. EEXIST: collision. ENOENT: nothing to take back. EBADF.
    pub fn set(&self, args: &Ioeventfd) -> Result {
        let known = args.flags & !(IOEVENTFD_DATAMATCH | IOEVENTFD_DEASSIGN) == 0;
        let wants_match = args.flags & IOEVENTFD_DATAMATCH != 0;
        if !known
            || !matches!(args.len, 0 | 1 | 2 | 4 | 8)
            || args.addr.checked_add(args.len.into()).is_none()
            || (args.len == 0 && wants_match)
        {
            return Err(code::EINVAL);
        }
        let entry = Entry {
            addr: args.addr,
            len: args.len,
            datamatch: wants_match.then_some(args.datamatch),
            eventfd: EventFd::get(args.fd)?,
        };
        if args.flags & IOEVENTFD_DEASSIGN != 0 { self.remove(&entry) } else { self.add(entry) }
    }

    fn add(&self, entry: Entry) -> Result {
        let mut list = self.0.lock();
        if list.iter().any(|e| e.collides(&entry)) {
            return Err(code::EEXIST);
        }
        list.reserve_one()?;
        let place = list.partition_point(|e| e.addr <= entry.addr);
        list.insert_within_capacity(place, entry).map_err(|_| code::ENOMEM)
    }

    fn remove(&self, like: &Entry) -> Result {
        let mut list = self.0.lock();
        let same = |e: &Entry| {
            e.addr == like.addr
                && e.len == like.len
                && e.datamatch == like.datamatch
                && e.eventfd == like.eventfd
        };
        let place = list.iter().position(same).ok_or(code::ENOENT)?;
        list.remove(place).map(drop).ok_or(code::ENOENT)
    }

    /// A guest wrote. Was it for an eventfd?
    pub fn signal(&self, addr: u64, size: u64, data: [u8; 8]) -> bool {
        let data = u64::from_le_bytes(data);
        let data = match size {
            1 => data & 0xFF,
            2 => data & 0xFFFF,
            4 => data & 0xFFFF_FFFF,
            _ => data,
        };
        let list = self.0.lock();
        let from = list.partition_point(|e| e.addr < addr);
        let hit = list.iter().skip(from).take_while(|e| e.addr == addr).find(|e| e.hit(addr, size, data));
        hit.map(|e| e.eventfd.signal()).is_some()
    }

    /// Drops them all.
    pub fn clear(&self) {
        let mut list = self.0.lock();
        while list.pop().is_some() {}
    }
}
