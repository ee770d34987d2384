// SPDX-License-Identifier: GPL-2.0-only
//! The hypervisor, as far as hypercalls go, and what exits do in the middle of a RUN.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_void;

use gzvm_abi::hypercall::{Function, Status, Tuple, cap, host_access};

use super::{Fake, File, USER, fake};

/// What RUN does next: writes the shared area, and answers the exit reason.
pub type Exit = Box<dyn FnOnce(&mut Shared) -> u32 + Send>;

/// The two pages of a vCPU.
pub struct Shared(*mut u8);

impl Shared {
    /// Pages at an address of the driver's.
    pub fn at(page: *mut c_void) -> Self {
        Self(page.cast())
    }

    /// Where they are.
    pub fn address(&self) -> usize {
        self.0.expose_provenance()
    }

    /// Writes a value at an offset.
    pub fn put<T: zerocopy::IntoBytes>(&mut self, offset: usize, value: T) {
        assert!(offset + size_of::<T>() <= 8192);
        // SAFETY: inside the two pages.
        unsafe { self.0.add(offset).cast::<T>().write_unaligned(value) }
    }

    /// Reads a value at an offset.
    pub fn get<T: zerocopy::FromBytes>(&self, offset: usize) -> T {
        assert!(offset + size_of::<T>() <= 8192);
        // SAFETY: inside the two pages.
        unsafe { self.0.add(offset).cast::<T>().read_unaligned() }
    }
}

/// A VM of the fake hypervisor.
#[derive(Default)]
pub struct FakeVm {
    pub vcpus: BTreeMap<u16, u64>,
    pub slots: BTreeMap<u32, (u64, u64)>,
    pub mapped: BTreeMap<u64, u64>,
    pub mailbox: u64,
    pub lines: Vec<(u16, u64, u64)>,
    /// IRQ_LEVEL: vCPU, irq, level, flags.
    pub levels: Vec<(u16, u64, u64, u64)>,
    /// VGIC_SPIS.
    pub spis: u64,
    pub protected: bool,
    /// How often its measurement was extended; and it is each time that it is read.
    pub extends: u64,
    pub extending: bool,
    /// Pages of a protected VM that it lets the host see.
    pub shared: BTreeSet<u64>,
    /// HOST_ACCESS, ANNOUNCE.
    pub announces: bool,
    /// Calls that mapped something, and blocks for tables.
    pub maps: u64,
    pub given: Vec<u64>,
    /// vCPUs that stop sharing a page: its GFN.
    pub unsharing: BTreeMap<u16, u64>,
}

impl Fake {
    fn hypercall(&mut self, function: Function, args: [u64; 7]) -> (Status, [u64; 3]) {
        self.calls.push((function, args));
        let [a1, a2, a3, a4, a5, ..] = args;
        let done = (Status::Success, [0; 3]);
        let invalid = (Status::InvalidArgs, [0; 3]);
        let vm_of = a1 as u16;
        let maps = match function {
            Function::MapGuest | Function::MapGuestBlock => true,
            Function::SetMemregion => {
                self.vms[&vm_of].slots.contains_key(&Shared(a3 as *mut u8).get::<u32>(0))
            }
            _ => false,
        };
        if maps && !self.pays_for_tables(vm_of) {
            return (Status::NoMemory, [0; 3]);
        }
        match function {
            Function::Probe => (Status::Success, [16, 0, 0]),
            Function::ExtInfo if self.extensions == 0 => (Status::NotSupported, [0; 3]),
            Function::ExtInfo => {
                let version = gzvm_abi::hypercall::EXT_VERSION;
                (Status::Success, [gzvm_abi::hypercall::EXT_MAGIC, version, self.extensions])
            }
            Function::ExtCounter if a1 < gzvm_abi::counter::COUNT as u64 => {
                (Status::Success, [a1 + 100, 0, 0])
            }
            Function::EnableCap => match a2 {
                cap::QUERY_HYP_BATCH_PAGES => (Status::Success, [self.batch, 0, 0]),
                cap::QUERY_DESTROY_BATCH_PAGES => (Status::Success, [128, 0, 0]),
                cap::ENABLE_DEMAND_PAGING if !self.no_demand_paging => done,
                cap::ENABLE_IDLE => done,
                cap::BLOCK_BASED_DEMAND_PAGING if !self.no_blocks => match self.vms.get_mut(&vm_of) {
                    Some(vm) => {
                        assert_eq!(a3, 2 << 20);
                        vm.mailbox = a4;
                        done
                    }
                    None => invalid,
                },
                cap::PROTECTED_VM if a3 == cap::protected::GET_PVMFW_SIZE => {
                    (Status::Success, [0x40_0000, 0, 0])
                }
                cap::PROTECTED_VM => {
                    let vm = self.vms.get_mut(&vm_of).unwrap();
                    // Ours, which alone allows such files, makes no VM protected that has pages.
                    if vm.mapped.values().any(|pfn| self.memories.frames.contains(pfn)) {
                        return invalid;
                    }
                    vm.protected = true;
                    done
                }
                _ => (Status::NotSupported, [0; 3]),
            },
            Function::CreateVm => {
                let id = self.next_vm;
                self.next_vm += 1;
                self.vms.insert(id, FakeVm::default());
                (Status::Success, [id.into(), 0, 0])
            }
            Function::DestroyVm => {
                assert_eq!(a2, 128);
                if self.destroy_busy > 0 {
                    self.destroy_busy -= 1;
                    return (Status::Busy, [0; 3]);
                }
                match self.vms.remove(&vm_of) {
                    Some(vm) => {
                        assert!(vm.vcpus.is_empty(), "vCPUs outlive their VM");
                        done
                    }
                    None => invalid,
                }
            }
            Function::CreateVcpu => {
                let Some(tuple) = Tuple::from_reg(a1) else { return invalid };
                match self.vms.get_mut(&tuple.vm) {
                    Some(vm) if !vm.vcpus.contains_key(&tuple.vcpu) => {
                        vm.vcpus.insert(tuple.vcpu, a2);
                        done
                    }
                    _ => invalid,
                }
            }
            Function::DestroyVcpu => {
                let tuple = Tuple::from_reg(a1).unwrap();
                let known = self.vms.get_mut(&tuple.vm).and_then(|vm| vm.vcpus.remove(&tuple.vcpu));
                assert!(known.is_some(), "destroyed a vCPU that is not there");
                done
            }
            Function::SetMemregion => {
                assert_eq!(a2, 8192);
                let buffer = Shared(a3 as *mut u8);
                let (slot, count) = (buffer.get::<u32>(0), buffer.get::<u32>(4));
                let (pages, gpa) = (buffer.get::<u64>(8), buffer.get::<u64>(16));
                let vm = self.vms.get_mut(&vm_of).unwrap();
                if let Some(&(first, all)) = vm.slots.get(&slot) {
                    let mut gfn = gpa / 4096;
                    assert!(gfn >= first && gfn + pages <= first + all && count > 0);
                    for i in 0..count as usize {
                        let (pa, n) = (buffer.get::<u64>(24 + 16 * i), buffer.get::<u32>(32 + 16 * i));
                        for page in 0..u64::from(n) {
                            vm.mapped.insert(gfn, pa / 4096 + page);
                            gfn += 1;
                        }
                    }
                    assert_eq!(gfn, gpa / 4096 + pages);
                } else {
                    assert_eq!(count, 0, "registration with constituents");
                    vm.slots.insert(slot, (gpa / 4096, pages));
                }
                done
            }
            Function::MapGuest => {
                assert!(a5 == 1 || self.extensions != 0 && a5 <= 512);
                let vm = self.vms.get_mut(&vm_of).unwrap();
                let (first, pages) = vm.slots[&(a2 as u32)];
                for i in 0..a5 {
                    let (gfn, pfn) = (a4 + i, a3 + i);
                    assert!((first..first + pages).contains(&gfn), "outside the slot");
                    assert!(vm.mapped.insert(gfn, pfn).is_none_or(|old| old == pfn), "mapped differently");
                }
                done
            }
            Function::MapGuestBlock => {
                let batch = self.batch;
                let vm = self.vms.get_mut(&vm_of).unwrap();
                assert!(a4 <= batch && a4 > 0);
                assert!(vm.mailbox != 0);
                let mailbox = Shared(vm.mailbox as *mut u8);
                let (first, pages) = vm.slots[&(a2 as u32)];
                for i in 0..a4 {
                    let (gfn, pfn) = (a3 + i, mailbox.get::<u64>(8 * i as usize));
                    assert!((first..first + pages).contains(&gfn), "outside the slot");
                    assert!(vm.mapped.insert(gfn, pfn).is_none_or(|old| old == pfn), "mapped differently");
                }
                done
            }
            Function::UnmapGuest => {
                let batch = self.unmap_batch;
                let vm = self.vms.get_mut(&vm_of).unwrap();
                let inside = |&(first, all): &(u64, u64)| a2 >= first && a2 + a3 <= first + all;
                assert!(a3 > 0 && vm.slots.values().any(inside), "unmaps what is in no slot");
                if unmap(vm, a2..a2 + a3, batch) { done } else { (Status::Busy, [0; 3]) }
            }
            Function::RemoveMemregion => {
                let batch = self.unmap_batch;
                let vm = self.vms.get_mut(&vm_of).unwrap();
                let Some(&(first, all)) = vm.slots.get(&(a2 as u32)) else { return invalid };
                if !unmap(vm, first..first + all, batch) {
                    return (Status::Busy, [0; 3]);
                }
                vm.slots.remove(&(a2 as u32));
                done
            }
            Function::IrqLevel => {
                let tuple = Tuple::from_reg(a1).unwrap();
                self.vms.get_mut(&tuple.vm).unwrap().levels.push((tuple.vcpu, a2, a3, a4));
                (Status::Success, [self.sleepers, 0, 0])
            }
            Function::IrqLine => {
                let tuple = Tuple::from_reg(a1).unwrap();
                self.vms.get_mut(&tuple.vm).unwrap().lines.push((tuple.vcpu, a2, a3));
                (Status::Success, [self.sleepers, 0, 0])
            }
            Function::HostAccess => match a1 {
                host_access::QUERY => {
                    assert!((1..=host_access::MOST).contains(&a3));
                    let mask =
                        |f: &dyn Fn(u64) -> bool| (0..a3).fold(0, |mask, n| mask | u64::from(f(a2 + n)) << n);
                    let visible = mask(&|pfn| self.host_may_access(pfn));
                    (Status::Success, [visible, mask(&|pfn| self.is_hosts_own(pfn)), 0])
                }
                host_access::ANNOUNCE => {
                    self.vms.get_mut(&(a2 as u16)).unwrap().announces = true;
                    done
                }
                host_access::UNSHARE => {
                    let tuple = Tuple::from_reg(a2).unwrap();
                    if self.finish_unshare(tuple) { done } else { invalid }
                }
                _ => invalid,
            },
            Function::SetWatch if a1 == 0 => (Status::Success, [0x73F, 0, 0]),
            Function::SetWatch if a2 & !0x73F != 0 => (Status::NotSupported, [0; 3]),
            Function::SetWatch if a3 > 3 => invalid,
            Function::SetWatch => (Status::Success, [0x73F, 0, 0]),
            Function::VmFeatures if a2 <= 1 && (a1 | a2 == 0 || self.vms.contains_key(&vm_of)) => {
                (Status::Success, [1, 0, 0])
            }
            Function::VmFeatures => invalid,
            Function::Measurement => match self.vms.get_mut(&vm_of) {
                Some(vm) if !vm.protected => (Status::NotSupported, [0; 3]),
                Some(vm) if a2 <= 1 => {
                    vm.extends += u64::from(vm.extending);
                    let word = |n| 0x0706_0504_0302_0100 + (2 * a2 + n) * 0x0808_0808_0808_0808;
                    (Status::Success, [word(0), word(1), vm.extends << 32 | 1])
                }
                _ => invalid,
            },
            Function::Control => match self.vms.get_mut(&vm_of) {
                Some(_) if self.control_busy > 0 => {
                    self.control_busy -= 1;
                    (Status::Busy, [0; 3])
                }
                Some(_) if a2 <= 2 => (Status::Success, [a2 + 1, 5, 0]),
                _ => invalid,
            },
            Function::RpcPolicy | Function::RpcConnect | Function::RpcMessage | Function::RpcClose => {
                self.rpc(function, args)
            }
            Function::VgicSpis if (32..=988).contains(&a2) => match self.vms.get_mut(&vm_of) {
                Some(vm) if vm.vcpus.is_empty() => {
                    vm.spis = a2;
                    (Status::Success, [a2, 0, 0])
                }
                _ => invalid,
            },
            Function::VgicSpis => invalid,
            Function::GiveMemory if a1 | a2 == 0 => (Status::Success, [MOST_BLOCKS as u64, 0, 0]),
            Function::GiveMemory => {
                let block = a2..a2 + 512;
                assert!(a2.is_multiple_of(512) && block.clone().all(|pfn| self.is_hosts_own(pfn)));
                assert!(block.clone().all(|pfn| self.memories.frames.contains(&pfn)), "not allocated");
                assert!(!block.clone().any(|pfn| self.memories.is_exposed(pfn)), "the kernel reads it");
                assert!(!self.memories.hiding(), "a hypercall while readers of memory wait");
                let vm = self.vms.get_mut(&vm_of).unwrap();
                if vm.given.len() == MOST_BLOCKS {
                    return (Status::NoMemory, [0; 3]);
                }
                vm.given.push(a2);
                (Status::Success, [vm.given.len() as u64, 0, 0])
            }
            Function::GetOneReg => (Status::Success, [0x1122_3344_5566_7788, 0x99AA_BBCC_DDEE_FF00, 0]),
            Function::SetOneReg
            | Function::CreateDevice
            | Function::MemregionPurpose
            | Function::SetDtbConfig
            | Function::InformExit => done,
            _ => (Status::NotSupported, [0; 3]),
        }
    }
}

/// Blocks that a VM may be given.
pub const MOST_BLOCKS: usize = 4;

impl Fake {
    /// Is there memory for the tables of one call more that maps something?
    fn pays_for_tables(&mut self, vm: u16) -> bool {
        let (first, more) = (self.tables, self.tables_of_a_block);
        let vm = self.vms.get_mut(&vm).unwrap();
        let enough = vm.maps < first.saturating_add(more * vm.given.len() as u64);
        vm.maps += u64::from(enough);
        enough
    }

    /// What user space has mapped, the host may access; what it may not, nobody reads.
    fn check_mappings(&self) {
        assert!(!self.memories.hiding(), "a hypercall while readers of memory wait");
        for vm in self.vms.values().filter(|vm| vm.protected) {
            let exposed = vm.mapped.values().find(|pfn| self.memories.is_exposed(**pfn));
            assert_eq!(exposed, None, "the kernel reads what the host lost");
            for pfn in vm.mapped.values().filter(|pfn| !vm.shared.contains(pfn)) {
                assert!(!self.memories.is_mapped(*pfn), "user space has what the host lost");
            }
        }
    }

    /// A page that a vCPU stops sharing leaves the host. Does it?
    fn finish_unshare(&mut self, vcpu: Tuple) -> bool {
        let Some(vm) = self.vms.get_mut(&vcpu.vm) else { return false };
        let Some(gfn) = vm.unsharing.remove(&vcpu.vcpu) else { return false };
        let gone = vm.mapped.get(&gfn).is_some_and(|pfn| vm.shared.remove(pfn));
        self.check_mappings();
        gone
    }
}

/// The guest of the first VM lets the host see a page.
pub fn shares(gfn: u64) {
    fake(|k| {
        let vm = k.vms.get_mut(&1).unwrap();
        let pfn = vm.mapped[&gfn];
        vm.shared.insert(pfn);
    });
}

/// An exit: its first vCPU stops sharing a page.
pub fn stops_sharing(gfn: u64) -> Exit {
    Box::new(move |shared| {
        fake(|k| k.vms.get_mut(&1).unwrap().unsharing.insert(0, gfn));
        shared.put(8, [gfn * 4096, 0]);
        gzvm_abi::run::exit::UNSHARE
    })
}

/// One step of taking pages back. Is it done?
fn unmap(vm: &mut FakeVm, gfns: std::ops::Range<u64>, batch: usize) -> bool {
    let there: Vec<u64> = vm.mapped.range(gfns).map(|(gfn, _)| *gfn).collect();
    for gfn in there.iter().take(batch) {
        vm.mapped.remove(gfn);
    }
    there.len() <= batch
}

pub unsafe fn gzk_hvc(regs: *mut u64) {
    // SAFETY: 8 registers, as promised by the caller.
    let regs = unsafe { &mut *regs.cast::<[u64; 8]>() };
    let function = Function::from_fid(regs[0]).expect("unknown hypercall");
    let args: [u64; 7] = regs[1..8].try_into().unwrap();
    if function == Function::Run {
        let tuple = Tuple::from_reg(args[0]).unwrap();
        // The exit may call back into the driver, as interrupts do: not under the fake's lock.
        let (exit, pa) = fake(|k| {
            k.runs += 1;
            k.finish_unshare(tuple);
            (k.exits.pop_front().expect("no exit left"), k.vms[&tuple.vm].vcpus[&tuple.vcpu])
        });
        let mut shared = Shared(pa as *mut u8);
        let reason = exit(&mut shared);
        shared.put(0, reason);
        regs[0] = 0;
        regs[1] = reason.into();
        return;
    }
    fake(|k| {
        let must_succeed = matches!(
            function,
            Function::DestroyVm | Function::DestroyVcpu | Function::InformExit | Function::ExtCounter
        );
        if !must_succeed && k.fails() {
            k.calls.push((function, args));
            regs[0] = Status::NoMemory.to_x0();
            return;
        }
        if let Some(at) = k.answers.iter().position(|(f, _)| *f == function) {
            k.calls.push((function, args));
            regs[0] = k.answers.remove(at).1;
            return;
        }
        let (status, results) = k.hypercall(function, args);
        k.check_mappings();
        regs[0] = status.to_x0();
        regs[1..4].copy_from_slice(&results);
    });
}

// ---- What exits do in the middle of a RUN ----

/// User space writes a byte of its memory.
pub fn poke_user(at: u64, value: u8) {
    fake(|k| k.user(at, 1).unwrap()[0] = value);
}

/// The next RUN exits so.
pub fn nested_exit(exit: impl FnOnce(&mut Shared) -> u32 + Send + 'static) {
    fake(|k| {
        // Before what is queued, after what was nested.
        let at = k.nested;
        k.nested += 1;
        k.exits.insert(at, Box::new(exit));
    });
}

/// Another thread of the VMM makes an ioctl of the VM.
pub fn as_vmm<T: zerocopy::IntoBytes + zerocopy::Immutable>(vm: i32, cmd: u32, value: &T) {
    let at = USER + 0x8000;
    let file = fake(|k| {
        k.user(at, size_of::<T>()).unwrap().copy_from_slice(value.as_bytes());
        k.files[&vm]
    });
    let File::Vm(p) = file else { panic!("no VM") };
    // SAFETY: the private data of an open file.
    assert_eq!(unsafe { crate::entry::gzr_vm_ioctl(p as *mut c_void, cmd, at) }, 0);
}

/// Another thread of the VMM runs a vCPU.
pub fn as_vmm_run(vcpu: i32, at: u64) -> i64 {
    let File::Vcpu(p) = fake(|k| k.files[&vcpu]) else { panic!("no vCPU") };
    // SAFETY: the private data of an open file.
    let ret = unsafe { crate::entry::gzr_vcpu_ioctl(p as *mut c_void, gzvm_abi::ioctl::RUN, at) };
    fake(|k| k.nested = 0);
    ret
}
