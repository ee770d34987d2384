// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Hypercalls: HVC from the host's EL1, SMCCC fast calls of owner 59 (0x3B).
//!
//! x0 carries the function ID, x1..x7 the arguments. Back come a [`Status`] in x0 (the low 32
//! bits, signed) and results in x1..x3.

/// Function IDs of the SMC64 family start here (generations D to F).
pub const FID_BASE_SMC64: u32 = 0xFB00_1000;
/// Function IDs of the SMC32 family start here (generations A to C). Arguments are 64-bit all the same.
pub const FID_BASE_SMC32: u32 = 0xBB00_1000;
/// Function numbers below this belong to the public ABI, from here on to us.
pub const EXTENSION_BASE: u16 = 0x40;

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident = $n:literal,)*) => {
        /// The functions a host may call.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u16)]
        pub enum Function { $($(#[$doc])* $name = $n,)* }

        impl Function {
            /// The function with this number.
            pub const fn from_number(n: u16) -> Option<Self> {
                match n { $($n => Some(Self::$name),)* _ => None }
            }
        }
    };
}

functions! {
    /// x1 = VM type. Result x1 = VM id.
    CreateVm = 0,
    /// x1 = VM id, x2 = pages per call. [`Status::Busy`] means: call again.
    DestroyVm = 1,
    /// x1 = tuple, x2 = PA of the two shared pages.
    CreateVcpu = 2,
    /// x1 = tuple.
    DestroyVcpu = 3,
    /// x1 = VM id, x2 = buffer bytes, x3 = PA of the region buffer.
    SetMemregion = 4,
    /// x1 = tuple. Result x1 = exit reason.
    Run = 5,
    /// Reserved: numbered in the first generation, never called.
    GetRegs = 6,
    /// Reserved: numbered in the first generation, never called.
    SetRegs = 7,
    /// x1 = tuple, x2 = register id. Result x1 = value, x2 = its upper half if it has 128 bits.
    GetOneReg = 8,
    /// x1 = tuple, x2 = register id, x3 = value, x4 = its upper half if it has 128 bits.
    SetOneReg = 9,
    /// x1 = tuple, x2 = irq, x3 = level. Result of ours ([`EXT_VERSION`] 2): x1 = mask of the vCPUs to wake.
    IrqLine = 10,
    /// x1 = VM id, x2 = PA of a page holding a [`CreateDevice`](crate::ioctl::CreateDevice).
    CreateDevice = 11,
    /// x1..x3 = driver version. Results x1..x3 = hypervisor version.
    Probe = 12,
    /// x1 = VM id or 0, x2 = [`cap`], x3..x7 = arguments. Result x1.
    EnableCap = 13,
    /// x1 = VM id: RUN is about to return to user space for a signal.
    InformExit = 14,
    /// x1 = VM id, x2 = GPA, x3 = bytes, x4 = purpose.
    MemregionPurpose = 15,
    /// x1 = VM id, x2 = GPA, x3 = bytes.
    SetDtbConfig = 16,
    /// x1 = VM id, x2 = slot, x3 = host PFN, x4 = guest GFN, x5 = pages.
    MapGuest = 17,
    /// x1 = VM id, x2 = slot, x3 = first GFN, x4 = pages; PFNs in the mailbox.
    MapGuestBlock = 18,
    /// x1 = VM id. Results x1 = bytes used by the hypervisor for the VM, x2 = bytes shared.
    GetStatistics = 19,
    /// Ours. Results x1 = [`EXT_MAGIC`], x2 = [`EXT_VERSION`], x3 = mask of extensions (bit n = 0x40 + n).
    ExtInfo = 0x40,
    /// Ours. x1 = [counter](crate::counter) index. Result x1 = its value, summed over CPUs.
    ExtCounter = 0x41,
    /// Ours. x1 = VM id, x2 = first GFN, x3 = pages: takes them back from the guest. [`Status::Busy`] means: call again.
    UnmapGuest = 0x42,
    /// Ours. x1 = VM id, x2 = slot: takes its pages back, then the slot. [`Status::Busy`] means: call again.
    RemoveMemregion = 0x43,
    /// Ours. x1 = tuple, x2 = irq (as [`IrqLine`](Self::IrqLine)), x3 = level, x4 = [`IRQ_LEVEL_RESAMPLE`] or 0: drives a
    /// line until the next call. Result x1 = mask of the vCPUs to wake.
    IrqLevel = 0x44,
    /// Ours. x1 = VM id, x2 = one of [`control`](crate::control). Results x1 = state, x2 = watch events so far.
    Control = 0x45,
    /// Ours. x1 = VM id (0: only asks), x2 = [kinds](crate::watch::kind), x3 = [action](crate::watch::action), x4 = ms
    /// to a stall. Result x1 = kinds that can be watched.
    SetWatch = 0x46,
    /// Ours. x1 = one of [`host_access`]; further arguments and results there.
    HostAccess = 0x47,
    /// Ours. x1 = VM id, x2 = half, 0 or 1. Results x1, x2 = 16 bytes of the measurement, x3 = its
    /// [state](crate::guest::measurement).
    Measurement = 0x48,
    /// Ours. x1 = VM id, x2 = mask of [`vm_feature`]s to give it, before its first vCPU; x1 = x2 = 0 asks. Result
    /// x1 = mask of those that the machine has.
    VmFeatures = 0x4C,
    /// Ours. x1 = VM id, x2 = 32 to 988 SPIs in steps of 32, or 988: so many has the VM, which has no vCPU yet.
    VgicSpis = 0x50,
    /// Ours. x1 = VM id, x2 = SPI of its doorbell (0: the first), x3 = [with whom](crate::rpc::with) it may have channels, x4 = how
    /// many; before it runs, once. x1 = 0 only asks. Result x1 = channels that a VM may have at the most.
    RpcPolicy = 0x54,
    /// Ours. x1 = VM id, x2 = port, x3 = VM id of the other or 0 for the host, x4 = its port. Results x1 = handle, x2, x3 = masks
    /// of the vCPUs to wake in the one and the other.
    RpcConnect = 0x55,
    /// Ours. x1 = handle, x2 = one of [`act`](crate::rpc::act), x3 = PA of two pages, or token. Results x1 = token, x2 = mask of the
    /// other's vCPUs to wake, x3 = [status](crate::rpc::status).
    RpcMessage = 0x56,
    /// Ours. x1 = handle. Results x1, x2 = masks of the vCPUs to wake, as of [`RpcConnect`](Self::RpcConnect).
    RpcClose = 0x57,
    /// Ours. x1 = VM id, x2 = first PFN of an aligned block of 2 MiB, which is the host's alone: it is for the VM's tables until that
    /// goes. Result x1 = how many such blocks it has. x1 = x2 = 0 only asks: how many a VM may have.
    GiveMemory = 0x5C,
}

/// A fast call's function ID without the hint that SVE state need not be kept (SMCCC 1.3, bit 16).
pub const fn strip_sve_hint(fid: u32) -> u32 {
    if fid >> 31 == 1 { fid & !(1 << 16) } else { fid }
}

impl Function {
    /// The function an SMCCC function ID names, of either family. Looks at the low 32 bits only, and
    /// not at the SVE hint.
    pub const fn from_fid(fid: u64) -> Option<Self> {
        let fid = strip_sve_hint(fid as u32);
        if fid & 0xFFFF_F000 == FID_BASE_SMC64 || fid & 0xFFFF_F000 == FID_BASE_SMC32 {
            Self::from_number((fid & 0xFFF) as u16)
        } else {
            None
        }
    }

    /// Its bit in the mask of [`Function::ExtInfo`]; nothing for a function of the public ABI.
    pub const fn extension_bit(self) -> u64 {
        match (self as u16).checked_sub(EXTENSION_BASE) {
            Some(bit) if bit < 64 => 1 << bit,
            _ => 0,
        }
    }

    /// The function ID to call it by (SMC64 family).
    pub const fn fid(self) -> u32 {
        FID_BASE_SMC64 + self as u32
    }
}

/// x1 of [`Function::ExtInfo`]: "GZRS".
pub const EXT_MAGIC: u64 = 0x475A_5253;
/// x2 of [`Function::ExtInfo`]. 2: IRQ_LINE's x1 and the first word of an IPI exit's payload name the vCPUs to wake
/// (bit n: vCPU n), and GET_ONE_REG knows all registers of [`reg`](crate::reg).
pub const EXT_VERSION: u64 = 2;

/// Flag of [`Function::IrqLevel`]: where the guest ends the interrupt, the line falls, and a vCPU exits with
/// [`RESAMPLED`](crate::run::exit::RESAMPLED). A call for the SPI without the flag ends that.
pub const IRQ_LEVEL_RESAMPLE: u64 = 1;

/// Version a generation-F driver announces in PROBE, and that we answer with.
pub const PROBE_VERSION: (u64, u64, u64) = (16, 0, 0);

/// What a hypercall returns in x0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum Status {
    /// Done.
    Success = 0,
    /// The hypervisor or the VM's quota is out of memory.
    NoMemory = -5,
    /// An argument is out of range, or names nothing.
    InvalidArgs = -8,
    /// The function or capability is not there.
    NotSupported = -24,
    /// The function is reserved.
    NotImplemented = -27,
    /// Not finished, or in use just now: call again.
    Busy = -33,
    /// An address can't be used as asked.
    Fault = -40,
}

impl Status {
    /// The status in x0 of a finished call, unless it is none of ours.
    pub const fn from_x0(x0: u64) -> Option<Self> {
        Some(match x0 as u32 as i32 {
            0 => Self::Success,
            -5 => Self::NoMemory,
            -8 => Self::InvalidArgs,
            -24 => Self::NotSupported,
            -27 => Self::NotImplemented,
            -33 => Self::Busy,
            -40 => Self::Fault,
            _ => return None,
        })
    }

    /// x0 that carries this status.
    pub const fn to_x0(self) -> u64 {
        self as i32 as i64 as u64
    }
}

/// The "tuple" argument: VM id and vCPU id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuple {
    /// The VM.
    pub vm: u16,
    /// The vCPU's index in it.
    pub vcpu: u16,
}

impl Tuple {
    /// Splits x1; bits above 31 must be zero.
    pub const fn from_reg(x1: u64) -> Option<Self> {
        if x1 >> 32 != 0 {
            return None;
        }
        Some(Self { vm: (x1 >> 16) as u16, vcpu: x1 as u16 })
    }

    /// The register value.
    pub const fn to_reg(self) -> u64 {
        (self.vm as u64) << 16 | self.vcpu as u64
    }
}

/// What a VM can be given beyond what all have; bits of x2 of [`Function::VmFeatures`].
pub mod vm_feature {
    /// SVE, with the longest vectors that all CPUs have.
    pub const SVE: u64 = 1;
}

/// What [`Function::HostAccess`] is asked, in x1: which pages this host may access, and when it loses one.
pub mod host_access {
    /// x2 = first PFN, x3 = pages, 1 to [`MOST`]. Results: x1 = mask of those that the host may access (bit n: the nth),
    /// x2 = of those that are the host's alone.
    pub const QUERY: u64 = 0;
    /// x2 = VM id: from now on a page that its guest stops sharing is told first, by exit
    /// [`UNSHARE`](crate::run::exit::UNSHARE).
    pub const ANNOUNCE: u64 = 1;
    /// x2 = tuple of a vCPU whose last exit was [`UNSHARE`](crate::run::exit::UNSHARE): the page leaves the host now. With the vCPU's
    /// next RUN it does so in any case.
    pub const UNSHARE: u64 = 2;
    /// Pages in one question.
    pub const MOST: u64 = 64;
}

/// Capabilities, x2 of [`Function::EnableCap`].
pub mod cap {
    /// CHECK_EXTENSION only: size of the guest physical space in bits.
    pub const VM_GPA_SIZE: u64 = 0xA5;
    /// Protected VM; sub-command in x3.
    pub const PROTECTED_VM: u64 = 0xFFBA_DAB1;
    /// x3 = block size in bytes, x4 = PA of the mailbox page.
    pub const BLOCK_BASED_DEMAND_PAGING: u64 = 0x9201;
    /// Pages are mapped when the guest touches them.
    pub const ENABLE_DEMAND_PAGING: u64 = 0x9202;
    /// The hypervisor may exit with IDLE.
    pub const ENABLE_IDLE: u64 = 0x9203;
    /// Result x1 = pages per MAP_GUEST_BLOCK, a divisor of 512.
    pub const QUERY_HYP_BATCH_PAGES: u64 = 0x9204;
    /// Result x1 = pages per DESTROY_VM step, a power of two.
    pub const QUERY_DESTROY_BATCH_PAGES: u64 = 0x9205;

    /// CHECK_EXTENSION only, ours: the [kinds](crate::watch::kind) that [`SET_WATCH`](crate::ioctl::SET_WATCH) can watch.
    pub const WATCH: u64 = 0x475A_0010;
    /// CHECK_EXTENSION only, ours: 1 where [`CONTROL`](crate::ioctl::CONTROL) is there.
    pub const CONTROL: u64 = 0x475A_0011;

    /// CHECK_EXTENSION only, ours: mask of the [`vm_feature`](super::vm_feature)s that a VM can be given by
    /// [`VM_FEATURES`](crate::ioctl::VM_FEATURES).
    pub const VM_FEATURES: u64 = 0x475A_0018;

    /// Sub-commands of [`PROTECTED_VM`].
    pub mod protected {
        /// x4 = GPA of the firmware region; makes the VM protected.
        pub const SET_PVMFW_GPA: u64 = 0;
        /// Result x1 = firmware size in bytes.
        pub const GET_PVMFW_SIZE: u64 = 1;
        /// Protected without firmware.
        pub const SET_PROTECTED_VM: u64 = 2;
    }
}

/// Region purposes, x4 of [`Function::MemregionPurpose`].
pub mod purpose {
    /// Ordinary guest memory.
    pub const GUEST_MEM: u32 = 1;
    /// The protected VM's firmware.
    pub const PROTECTED_FW: u32 = 2;
    /// Bounce buffers of a protected VM.
    pub const STATIC_SWIOTLB: u32 = 4;
}

/// Bytes in the buffer of SET_MEMREGION.
pub const REGION_BUFFER_SIZE: u64 = 8192;

/// Head of the region buffer of [`Function::SetMemregion`].
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
)]
#[repr(C)]
pub struct RegionHeader {
    /// Memory slot.
    pub slot: u32,
    /// Entries that follow; not initialised by public drivers on registration.
    pub constituent_cnt: u32,
    /// Pages covered by this call.
    pub total_pages: u64,
    /// First guest physical address.
    pub gpa: u64,
}

/// One run of pages in the region buffer.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
)]
#[repr(C)]
pub struct Constituent {
    /// Physical address of the first page.
    pub address: u64,
    /// Pages in the run.
    pub pg_cnt: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<RegionHeader>() == 24);
const _: () = assert!(size_of::<Constituent>() == 16);
