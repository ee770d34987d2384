// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use gzvm_abi::{MAX_SPIS, MAX_VCPUS_EXTENDED};

use crate::control::Request;
use crate::hypervisor::Kind;
use crate::watch::{OnException, Watch};

const EXIT_CODES: &str = "\
Console:
  Ctrl-A x ends the VM, Ctrl-A Ctrl-A sends one Ctrl-A, Ctrl-A h tells these keys.

Exit codes:
  0        the guest powered off
  1        gz or the host's hypervisor failed
  2        wrong command line
  3        the guest asked for a reset (a Linux guest that panics does, with panic=-1), and --on-reset is exit
  4        the guest crashed: it can't go on, or (--strict-mmio) used an unmapped address
  5        ended from the console (Ctrl-A x) or by `gz stop`
  6        killed after an exception that --watch names (--on-exception kill)
  64..127  a bare-metal guest wrote 0..63 to the test device
  128+N    ended by signal N (SIGINT 130, SIGTERM 143, SIGHUP 129)

Guest devices: 16550 UART at 0x3f8, PL031 clock at 0x2000, watchdogs at 0x3000, GICv3 at 0x3fff0000, virtio-mmio from
0x2000000, RAM from 0x80000000, test device at 0x90000 (reading +0 gives 0x47, writing +8 ends the
run). The guest finds all of them in its device tree.

With --firmware, as QEMU's virt has them: firmware at 0, its variables at 0x4000000, GICv3 at 0x8000000, PL011 at 0x9000000, PL031 at 0x9010000, virtio-mmio from
0xa000000, RAM from 0x40000000 with the device tree at its start; no test device.

Examples:
  gz run --kernel Image --initrd initrd.cpio --disk root.img --cpus 2 --mem 1G
  gz run --firmware u-boot.bin --disk root.img
  gz run --firmware QEMU_EFI.fd --variables vars.fd --disk root.img
  gz run --hypervisor kvm --kernel Image --disk root.img,ro --cmdline 'console=ttyS0 root=/dev/vda'";

/// The GenieZone virtual machine monitor.
#[derive(Parser, Debug)]
#[command(name = "gz", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Runs a guest, its console on standard input and output.
    Run(Box<RunOptions>),
    /// Stops a running guest's vCPUs where they are; its clock stands still
    Pause(Socket),
    /// Lets a paused guest go on
    Resume(Socket),
    /// Ends a run (exit code 5)
    Stop(Socket),
    /// Resets a guest: as if it had asked for it itself
    Reset(Socket),
    /// Tells how a guest is: created, running, paused, suspended, over
    Status(Socket),
    /// Signs a kernel, with its initrd and command line, for a protected VM
    Sign(SignOptions),
    /// Tells the public key of a secret one
    PublicKey(KeyOptions),
    /// Tells the size of a guest's balloon; with SIZE, sets the size that it should have
    Balloon(BalloonOptions),
}

impl Command {
    /// The request to a running `gz`, if it is one.
    pub fn request(&self) -> Option<(Request, &Socket)> {
        Some(match self {
            Self::Run(_) | Self::Sign(_) | Self::PublicKey(_) => return None,
            Self::Pause(socket) => (Request::Pause, socket),
            Self::Resume(socket) => (Request::Resume, socket),
            Self::Stop(socket) => (Request::Stop, socket),
            Self::Reset(socket) => (Request::Reset, socket),
            Self::Status(socket) => (Request::Status, socket),
            Self::Balloon(options) => (Request::Balloon(options.size), &options.socket),
        })
    }
}

/// Which running guest.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct Socket {
    /// What was given to `gz run --control`
    #[arg(value_name = "SOCKET")]
    pub path: PathBuf,
}

/// Which running guest, and how much of its memory it shall give back.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct BalloonOptions {
    /// Which one.
    #[command(flatten)]
    pub socket: Socket,
    /// In MiB, or with K, M, G or T; 0 gives all back to the guest
    #[arg(value_name = "SIZE")]
    pub size: Option<MemSize>,
}

/// Options of `gz sign`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct SignOptions {
    /// Secret key (ed25519): a file with 64 hexadecimal digits, as from `openssl rand -hex 32`
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// Guest kernel: an uncompressed arm64 Image
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// Initial RAM disk that belongs to it
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line that belongs to it
    #[arg(long, value_name = "STRING", default_value = DEFAULT_CMDLINE)]
    pub cmdline: String,
    /// The signed kernel, for `gz run --protected --kernel`
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
}

/// Options of `gz public-key`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct KeyOptions {
    /// Secret key
    #[arg(value_name = "FILE")]
    pub key: PathBuf,
}

const DEFAULT_CMDLINE: &str = "console=ttyS0 panic=-1";

/// What a guest's reset comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum OnReset {
    /// The run ends with exit code 3.
    Exit,
    /// The guest starts again in fresh memory, with fresh vCPUs and interrupt controller.
    Restart,
}

/// Options of `gz run`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct RunOptions {
    /// Guest kernel: an uncompressed arm64 Image
    #[arg(long, value_name = "FILE", required_unless_present = "firmware")]
    pub kernel: Option<PathBuf>,

    /// Firmware instead of a kernel, for QEMU's `virt` machine: U-Boot, EDK2. The guest gets a machine
    /// with that address map
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernel", "initrd", "cmdline"])]
    pub firmware: Option<PathBuf>,

    /// Where the firmware's variables are kept, as CFI flash; made if it is not there. EDK2 needs it.
    /// Without it, the flash is memory that is forgotten
    #[arg(long, value_name = "FILE", requires = "firmware", conflicts_with = "kernel")]
    pub variables: Option<PathBuf>,

    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,

    /// Raw disk image or block device, as /dev/vda, /dev/vdb, ...; read-only with `,ro`
    #[arg(long = "disk", value_name = "FILE[,ro]")]
    pub disks: Vec<DiskOption>,

    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=MAX_VCPUS_EXTENDED as i64))]
    pub cpus: u8,

    /// RAM: in MiB, or with K, M, G or T
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub mem: MemSize,

    /// A virtio balloon through which the guest gives this much of its RAM back to the host; with 0, only what it
    /// reports as free. `gz balloon` changes it
    #[arg(long, value_name = "SIZE")]
    pub balloon: Option<MemSize>,

    /// SPIs of the guest's GIC: 32 to 960 in steps of 32, or 988; otherwise what the hypervisor gives
    #[arg(long, value_name = "N", value_parser = spis)]
    pub spis: Option<u16>,

    /// The whole kernel command line
    #[arg(long, value_name = "STRING", default_value = DEFAULT_CMDLINE)]
    pub cmdline: String,

    /// A protected VM: its memory and registers are out of the host's reach. The hypervisor's firmware starts it, if kernel,
    /// initrd and command line were signed together (`gz sign`). KVM (Linux 7.3, kvm-arm.mode=protected) has no firmware, and looks at no signature
    #[arg(long, conflicts_with_all = ["firmware", "balloon"])]
    pub protected: bool,

    /// Memory that a protected guest shares with the host, for its devices' data (gzvm)
    #[arg(long, value_name = "SIZE", default_value = "8M", requires = "protected")]
    pub shared: MemSize,

    /// The host's hypervisor
    #[arg(long, value_enum, value_name = "NAME", default_value_t = Kind::Gzvm)]
    pub hypervisor: Kind,

    /// What a reset of the guest comes to
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = OnReset::Exit)]
    pub on_reset: OnReset,

    /// Exceptions of the guest to be told of, without its help: undefined, abort, serror, breakpoint (of its kernel),
    /// external (an access where nothing is), stall=TIME (a vCPU runs that long without waiting for or taking an
    /// interrupt), user-undefined, user-abort, user-breakpoint (of its programs; slow)
    #[arg(long, value_name = "LIST")]
    pub watch: Option<Watch>,

    /// What one of them comes to
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = OnException::Report, requires = "watch")]
    pub on_exception: OnException,

    /// Listens at this socket for `gz pause`, `resume`, `stop`, `reset`, `status` and `balloon`
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,
    /// CPU features that guests don't have unless they are given: sve
    #[arg(long, value_enum, value_name = "NAME", value_delimiter = ',')]
    pub features: Vec<Feature>,

    /// An access to an unmapped address is a crash; otherwise it is logged, reads as all ones and
    /// writes nowhere
    #[arg(long)]
    pub strict_mmio: bool,

    /// RAM as protected VMs have it, a file of gzvm's, also for others
    #[arg(long, hide = true)]
    pub private_memory: bool,

    /// The guest's random seed, for runs that repeat; otherwise it comes from the host
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,

    /// Messages on standard error: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub log_level: tracing::Level,
}

/// A CPU feature.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Feature {
    /// Scalable vectors.
    Sve,
}

/// A number of SPIs that a GIC can have.
fn spis(text: &str) -> Result<u16, String> {
    let spis: u16 = text.parse().map_err(|e| format!("{e}"))?;
    if (32..=960).contains(&spis) && spis.is_multiple_of(32) || usize::from(spis) == MAX_SPIS {
        Ok(spis)
    } else {
        Err(format!("32 to 960 in steps of 32, or {MAX_SPIS}"))
    }
}

/// `FILE[,ro]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskOption {
    /// The image.
    pub path: PathBuf,
    /// Whether writes are refused.
    pub read_only: bool,
}

impl FromStr for DiskOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, read_only) = match text.strip_suffix(",ro") {
            Some(path) => (path, true),
            None => (text, false),
        };
        if path.is_empty() {
            return Err("no file named".into());
        }
        Ok(Self { path: path.into(), read_only })
    }
}

/// A size of memory, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemSize(pub u64);

impl FromStr for MemSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let (number, unit) = text.split_at(digits.len());
        let shift = match unit {
            "K" | "k" => 10,
            "" | "M" | "m" => 20,
            "G" | "g" => 30,
            "T" | "t" => 40,
            _ => return Err(format!("unknown unit {unit:?}: use K, M, G or T, as in 512M")),
        };
        let number: u64 = number.parse().map_err(|_| "not a number; write it as 512M or 2G".to_owned())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(|| "too large".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    fn parse(arguments: &[&str]) -> Result<RunOptions, ErrorKind> {
        let all = ["gz", "run"].iter().chain(arguments);
        match Cli::try_parse_from(all).map_err(|error| error.kind())?.command {
            Command::Run(options) => Ok(*options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults() {
        let options = parse(&["--kernel", "Image"]).unwrap();
        assert_eq!((options.cpus, options.mem, options.hypervisor), (1, MemSize(512 << 20), Kind::Gzvm));
        assert_eq!(options.cmdline, "console=ttyS0 panic=-1");
        assert!(options.disks.is_empty() && options.initrd.is_none() && !options.strict_mmio);
    }

    #[test]
    fn everything_at_once() {
        let options = parse(&[
            "--kernel",
            "k",
            "--initrd",
            "i",
            "--disk",
            "a.img",
            "--disk",
            "b,c.img,ro",
            "--cpus",
            "8",
            "--mem",
            "2G",
            "--cmdline",
            "root=/dev/vda rw",
            "--hypervisor",
            "kvm",
            "--strict-mmio",
            "--log-level",
            "debug",
        ])
        .unwrap();
        let [a, b] = options.disks.as_slice() else { panic!("{options:?}") };
        assert_eq!((a.path.to_str(), a.read_only), (Some("a.img"), false));
        assert_eq!((b.path.to_str(), b.read_only), (Some("b,c.img"), true));
        assert_eq!((options.cpus, options.mem.0, options.hypervisor), (8, 2 << 30, Kind::Kvm));
    }

    #[test]
    fn mistakes_are_refused() {
        assert_eq!(parse(&[]), Err(ErrorKind::MissingRequiredArgument));
        assert_eq!(parse(&["--kernel", "k", "--balloon", "64M"]).unwrap().balloon, Some(MemSize(64 << 20)));
        for right in ["32", "64", "960", "988"] {
            assert_eq!(parse(&["--kernel", "k", "--spis", right]).unwrap().spis, right.parse().ok());
        }
        for wrong in ["0", "31", "33", "987", "992", "1020", "65536", "many"] {
            let refused = parse(&["--kernel", "k", "--spis", wrong]);
            assert_eq!(refused, Err(ErrorKind::ValueValidation), "{wrong}");
        }
        for wrong in
            [["--cpus", "0"], ["--cpus", "65"], ["--mem", "lots"], ["--mem", "5X"], ["--disk", ",ro"]]
        {
            assert_eq!(
                parse(&["--kernel", "k", wrong[0], wrong[1]]),
                Err(ErrorKind::ValueValidation),
                "{wrong:?}"
            );
        }
        assert_eq!(parse(&["--kernel", "k", "--firmware", "f"]), Err(ErrorKind::ArgumentConflict));
        assert_eq!(parse(&["--firmware", "f", "--cmdline", "x"]), Err(ErrorKind::ArgumentConflict));
        assert!(parse(&["--firmware", "f", "--disk", "d", "--variables", "v"]).is_ok());
        assert!(parse(&["--kernel", "k", "--variables", "v"]).is_err());
        assert_eq!(parse(&["--kernel", "k", "--hypervisor", "xen"]), Err(ErrorKind::InvalidValue));
    }

    #[test]
    fn requests_name_a_socket() {
        for (name, want) in [("pause", Request::Pause), ("resume", Request::Resume), ("stop", Request::Stop)]
        {
            let cli = Cli::try_parse_from(["gz", name, "/run/vm"]).unwrap();
            let (request, socket) = cli.command.request().unwrap();
            assert_eq!((request, socket.path.to_str()), (want, Some("/run/vm")));
        }
        for (arguments, want) in [(&["/vm"][..], None), (&["/vm", "64"], Some(MemSize(64 << 20)))] {
            let cli = Cli::try_parse_from(["gz", "balloon"].iter().chain(arguments)).unwrap();
            assert_eq!(cli.command.request().unwrap().0, Request::Balloon(want));
        }
        assert!(Cli::try_parse_from(["gz", "balloon", "/vm", "lots"]).is_err());
        assert!(Cli::try_parse_from(["gz", "reset"]).is_err());
        assert_eq!(parse(&["--kernel", "k", "--on-reset", "restart"]).unwrap().on_reset, OnReset::Restart);
    }

    #[test]
    fn watches() {
        let options =
            parse(&["--kernel", "k", "--watch", "abort,stall=5s", "--on-exception", "kill"]).unwrap();
        assert_eq!(options.watch.map(|w| w.stall_ms), Some(5000));
        assert_eq!(options.on_exception, OnException::Kill);
        assert_eq!(parse(&["--kernel", "k", "--watch", "all"]), Err(ErrorKind::ValueValidation));
        let alone = parse(&["--kernel", "k", "--on-exception", "kill"]);
        assert_eq!(alone, Err(ErrorKind::MissingRequiredArgument));
    }

    #[test]
    fn sizes() {
        let size = |text: &str| text.parse::<MemSize>().map(|size| size.0);
        assert_eq!(size("512"), Ok(512 << 20));
        assert_eq!(size("8192K"), Ok(8 << 20));
        assert_eq!(size("1T"), Ok(1 << 40));
        assert!(
            size("99999999999999G").is_err()
                && size("").is_err()
                && size("M").is_err()
                && size("-1").is_err()
        );
    }
}
