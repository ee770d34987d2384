// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What user space asks of `/dev/gzvm`: ioctl numbers (magic 0x92) and structures.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The ioctls' magic number.
pub const MAGIC: u32 = 0x92;

const fn io(nr: u32) -> u32 {
    MAGIC << 8 | nr
}
const fn iow<T>(nr: u32) -> u32 {
    1 << 30 | (size_of::<T>() as u32) << 16 | MAGIC << 8 | nr
}
const fn ior<T>(nr: u32) -> u32 {
    2 << 30 | (size_of::<T>() as u32) << 16 | MAGIC << 8 | nr
}
const fn iowr<T>(nr: u32) -> u32 {
    3 << 30 | (size_of::<T>() as u32) << 16 | MAGIC << 8 | nr
}

/// Device: argument = VM type; returns a VM's file descriptor.
pub const CREATE_VM: u32 = io(0x01);
/// Device or VM: argument = pointer to a u64 capability, overwritten with the answer.
pub const CHECK_EXTENSION: u32 = io(0x03);
/// Ours. Device: argument = 0; returns the bytes of a vCPU's mapping, which then serves [`RUN`] with argument 0.
pub const GET_VCPU_MMAP_SIZE: u32 = io(0x04);
/// VM: argument = vCPU id; returns a vCPU's file descriptor.
pub const CREATE_VCPU: u32 = io(0x41);
/// VM: registers a memory slot.
pub const SET_USER_MEMORY_REGION: u32 = iow::<UserspaceMemoryRegion>(0x46);
/// VM: sets an interrupt line.
pub const IRQ_LINE: u32 = iow::<IrqLevel>(0x61);
/// VM: ties an eventfd to an interrupt.
pub const IRQFD: u32 = iow::<Irqfd>(0x76);
/// VM: ties an eventfd to guest writes.
pub const IOEVENTFD: u32 = iow::<Ioeventfd>(0x79);
/// vCPU: argument = pointer to a [`VcpuRun`](crate::run::VcpuRun); ours: 0 for the one that is mapped.
pub const RUN: u32 = io(0x80);
/// VM: capability, answered in place.
pub const ENABLE_CAP: u32 = iow::<EnableCap>(0xA3);
/// vCPU: reads a register.
pub const GET_ONE_REG: u32 = iow::<OneReg>(0xAB);
/// vCPU: writes a register.
pub const SET_ONE_REG: u32 = iow::<OneReg>(0xAC);
/// VM, ours: state, pause, resume; see [`cap::CONTROL`](crate::hypercall::cap::CONTROL).
pub const CONTROL: u32 = iowr::<Control>(0xC8);
/// VM, ours: watches exceptions; before the first RUN. See [`cap::WATCH`](crate::hypercall::cap::WATCH).
pub const SET_WATCH: u32 = iow::<Watch>(0xC9);
/// VM, ours: who a protected VM is; see [`extension::MEASUREMENT`].
pub const MEASUREMENT: u32 = ior::<Measurement>(0xCA);
/// VM, ours: gives it [`vm_feature`](crate::hypercall::vm_feature)s, before its first vCPU; see
/// [`cap::VM_FEATURES`](crate::hypercall::cap::VM_FEATURES).
pub const VM_FEATURES: u32 = iow::<u64>(0xD0);
/// VM, ours: how many SPIs it has, before the first vCPU; see [`extension::VGIC_SPIS`].
pub const VGIC_SPIS: u32 = iow::<VgicSpis>(0xD4);
/// VM, ours: with whom it may have channels, before it runs; see [`extension::RPC`].
pub const RPC_POLICY: u32 = iow::<RpcPolicy>(0xD8);
/// VM, ours: makes a channel; returns its file descriptor.
pub const RPC_CONNECT: u32 = iow::<RpcConnect>(0xD9);
/// Channel, ours: makes a call; the argument is as of a write, and gets the token.
pub const RPC_CALL: u32 = iowr::<crate::rpc::Header>(0xDA);
/// Channel, ours: cancels the call with this token.
pub const RPC_CANCEL: u32 = iow::<u64>(0xDB);
/// Channel of a guest's module: who the peer is, as of a message that is received.
pub const RPC_PEER: u32 = ior::<crate::rpc::Header>(0xDC);
/// Device, ours: makes guest memory that is a file; see [`extension::GUEST_MEMORY`]. Returns its file descriptor.
pub const CREATE_GUEST_MEMORY: u32 = iow::<GuestMemory>(0xC1);
/// VM: creates an in-hypervisor device (the virtual GIC).
pub const CREATE_DEVICE: u32 = iowr::<CreateDevice>(0xE0);
/// VM: tells where the device tree is.
pub const SET_DTB_CONFIG: u32 = iow::<DtbConfig>(0xFF);
/// Ours. VM: takes pages back from the guest; it gets fresh ones where it touches them again.
pub const DISCARD: u32 = iow::<Discard>(0xC0);

/// Capabilities of ours, for [`CHECK_EXTENSION`]. A driver that lacks one answers EOPNOTSUPP.
pub mod extension {
    /// Most vCPUs in a VM. Asking the VM's file raises that VM's limit from
    /// [`MAX_VCPUS`](crate::MAX_VCPUS) to the answer.
    pub const MAX_VCPUS: u64 = 0x475A_0001;
    /// Most memory slots in a VM.
    pub const NR_MEMSLOTS: u64 = 0x475A_0002;
    /// 1: [`SET_USER_MEMORY_REGION`](super::SET_USER_MEMORY_REGION) with size 0 removes the slot.
    pub const REMOVE_SLOT: u64 = 0x475A_0003;
    /// 1: [`IRQ_LINE`](super::IRQ_LINE) of a VM whose file is asked for this drives true levels from then on.
    pub const IRQ_LEVEL: u64 = 0x475A_0004;
    /// 1: GET_ONE_REG and SET_ONE_REG know all registers of [`reg`](crate::reg).
    pub const GET_ONE_REG: u64 = 0x475A_0005;
    /// 1: a vCPU's file can be mapped, see [`GET_VCPU_MMAP_SIZE`](super::GET_VCPU_MMAP_SIZE).
    pub const RUN_MMAP: u64 = 0x475A_0006;
    /// 1: [`DISCARD`](super::DISCARD).
    pub const DISCARD: u64 = 0x475A_0007;
    /// 1: [`IRQFD_RESAMPLE`](super::IRQFD_RESAMPLE) does as in KVM.
    pub const IRQFD_RESAMPLE: u64 = 0x475A_0008;
    /// 1: [`CREATE_GUEST_MEMORY`](super::CREATE_GUEST_MEMORY).
    pub const GUEST_MEMORY: u64 = 0x475A_0009;
    /// 1: [`MEASUREMENT`](super::MEASUREMENT).
    pub const MEASUREMENT: u64 = 0x475A_000A;
    /// Channels that a VM may have at the most: [`RPC_POLICY`](super::RPC_POLICY), [`RPC_CONNECT`](super::RPC_CONNECT).
    pub const RPC: u64 = 0x475A_000C;
    /// Blocks of 2 MiB that the driver gives the hypervisor for a VM's tables at the most, when that has no more memory for them.
    pub const TABLE_MEMORY: u64 = 0x475A_000D;
    /// [`MAX_SPIS`](crate::MAX_SPIS): [`VGIC_SPIS`](super::VGIC_SPIS).
    pub const VGIC_SPIS: u64 = 0x475A_0020;
}

const _: () = assert!(CREATE_VM == 0x9201 && RUN == 0x9280 && CREATE_VCPU == 0x9241);
const _: () = assert!(SET_USER_MEMORY_REGION == 0x4020_9246 && IRQ_LINE == 0x4008_9261);
const _: () = assert!(IRQFD == 0x4020_9276 && IOEVENTFD == 0x4040_9279 && ENABLE_CAP == 0x4030_92A3);
const _: () = assert!(GET_ONE_REG == 0x4010_92AB && SET_ONE_REG == 0x4010_92AC);
const _: () = assert!(CREATE_DEVICE == 0xC030_92E0 && SET_DTB_CONFIG == 0x4010_92FF);

macro_rules! structure {
    ($(#[$doc:meta])* $name:ident[$size:literal] { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

structure! {
    /// Argument of [`SET_USER_MEMORY_REGION`].
    UserspaceMemoryRegion[32] {
        /// Slot number.
        slot: u32,
        /// Purpose flags, see [`purpose`](crate::hypercall::purpose).
        flags: u32,
        /// Page aligned.
        guest_phys_addr: u64,
        /// Bytes; must equal the size of the mapping that holds `userspace_addr`.
        memory_size: u64,
        /// Where the memory is in the caller.
        userspace_addr: u64,
    }
}
structure! {
    /// Argument of [`IRQ_LINE`].
    IrqLevel[8] {
        /// Number [15:0], vCPU [23:16], type [27:24], vCPU high [31:28].
        irq: u32,
        /// 0 or 1.
        level: u32,
    }
}
structure! {
    /// Argument of [`IRQFD`].
    Irqfd[32] {
        /// The eventfd.
        fd: u32,
        /// SPI index (INTID - 32).
        gsi: u32,
        /// [`IRQFD_DEASSIGN`], [`IRQFD_RESAMPLE`].
        flags: u32,
        /// Eventfd that tells of the guest's EOI.
        resamplefd: u32,
        /// Zero.
        pad: [u8; 16],
    }
}
/// Takes the tie back.
pub const IRQFD_DEASSIGN: u32 = 1;
/// Level-triggered with resampling.
pub const IRQFD_RESAMPLE: u32 = 2;

structure! {
    /// Argument of [`IOEVENTFD`].
    Ioeventfd[64] {
        /// Value to match with [`IOEVENTFD_DATAMATCH`].
        datamatch: u64,
        /// Guest physical address.
        addr: u64,
        /// 1, 2, 4, 8; 0 matches any size.
        len: u32,
        /// The eventfd.
        fd: i32,
        /// Flags below.
        flags: u32,
        /// Unused.
        pad: [u8; 36],
    }
}
/// Only writes of [`Ioeventfd::datamatch`] count.
pub const IOEVENTFD_DATAMATCH: u32 = 1;
/// Port I/O: refused on Arm.
pub const IOEVENTFD_PIO: u32 = 2;
/// Takes the tie back.
pub const IOEVENTFD_DEASSIGN: u32 = 4;

structure! {
    /// Argument of [`ENABLE_CAP`].
    EnableCap[48] {
        /// One of [`cap`](crate::hypercall::cap).
        cap: u64,
        /// Arguments, answered in place.
        args: [u64; 5],
    }
}
structure! {
    /// Argument of [`CREATE_DEVICE`].
    CreateDevice[48] {
        /// [`DEVICE_VGIC_V3_DIST`] or [`DEVICE_VGIC_V3_REDIST`].
        dev_type: u32,
        /// Free.
        id: u32,
        /// Passed through.
        flags: u64,
        /// Guest physical address.
        dev_addr: u64,
        /// Bytes.
        dev_reg_size: u64,
        /// Attribute blob: user address, or PA for the hypervisor.
        attr_addr: u64,
        /// Bytes of it, at most a page.
        attr_size: u64,
    }
}
/// GICv3 distributor.
pub const DEVICE_VGIC_V3_DIST: u32 = 0;
/// GICv3 redistributors.
pub const DEVICE_VGIC_V3_REDIST: u32 = 1;

structure! {
    /// Argument of [`GET_ONE_REG`] and [`SET_ONE_REG`].
    OneReg[16] {
        /// See [`reg`](crate::reg).
        id: u64,
        /// User address of the value.
        addr: u64,
    }
}
structure! {
    /// Argument of [`CONTROL`].
    Control[32] {
        /// One of [`control`](crate::control).
        what: u32,
        /// Answer: one of [`control::state`](crate::control::state).
        state: u32,
        /// Answer: watch events so far.
        events: u64,
        /// Zero.
        reserved: [u64; 2],
    }
}
structure! {
    /// Argument of [`VGIC_SPIS`].
    VgicSpis[16] {
        /// 32 to [`MAX_SPIS`](crate::MAX_SPIS) in steps of 32, or [`MAX_SPIS`](crate::MAX_SPIS).
        spis: u32,
        /// Zero.
        reserved: [u32; 3],
    }
}
structure! {
    /// Argument of [`RPC_POLICY`].
    RpcPolicy[16] {
        /// A mask of [`with`](crate::rpc::with).
        with: u32,
        /// How many channels it may have.
        channels: u32,
        /// SPI of its doorbell; 0 is the first.
        spi: u32,
        /// Zero.
        reserved: u32,
    }
}
structure! {
    /// Argument of [`RPC_CONNECT`].
    RpcConnect[16] {
        /// The number under which the VM finds its end.
        port: u32,
        /// The other VM's file descriptor, -1: the host, whose end the new descriptor is.
        peer: i32,
        /// As [`port`](Self::port), of the other.
        peer_port: u32,
        /// Zero.
        reserved: u32,
    }
}
structure! {
    /// Argument of [`CREATE_GUEST_MEMORY`].
    GuestMemory[16] {
        /// Bytes, in pages.
        size: u64,
        /// Zero.
        flags: u64,
    }
}
structure! {
    /// Argument of [`DISCARD`].
    Discard[16] {
        /// Page aligned; the whole range in one slot.
        guest_phys_addr: u64,
        /// Bytes, in pages.
        size: u64,
    }
}
structure! {
    /// Argument of [`SET_WATCH`].
    Watch[32] {
        /// [Kinds](crate::watch::kind).
        kinds: u32,
        /// One of [`action`](crate::watch::action).
        action: u32,
        /// Milliseconds until a vCPU that gets nowhere stalls; 0 without that kind.
        stall_ms: u64,
        /// Zero.
        reserved: [u64; 2],
    }
}
structure! {
    /// Answer of [`MEASUREMENT`].
    Measurement[40] {
        /// SHA-256.
        value: [u8; 32],
        /// See [`measurement`](crate::guest::measurement).
        state: u64,
    }
}
structure! {
    /// Argument of [`SET_DTB_CONFIG`].
    DtbConfig[16] {
        /// Guest physical address.
        dtb_addr: u64,
        /// Bytes.
        dtb_size: u64,
    }
}
