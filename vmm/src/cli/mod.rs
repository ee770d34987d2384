// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The command line: a file for each subcommand.

pub mod config;
mod generated;
mod request;
pub mod run;
mod sign;
mod size;

use clap::{Parser, Subcommand};

pub use generated::{CompletionOptions, ManOptions, Pages, Script, completions, man};
pub use request::{BalloonOptions, CallOptions, Which};
pub use run::RunOptions;
pub use sign::{KeyOptions, SignOptions};
pub use size::MemSize;

/// The GenieZone virtual machine monitor.
#[derive(Parser, Debug)]
#[command(name = "gz", version, about)]
pub struct Cli {
    /// Says it as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Runs a guest, its console on standard input and output
    Run(Box<RunOptions>),
    /// Lists the VMs that run
    Ps,
    /// Tells all about a VM
    Info(Which),
    /// Tells how a VM is: starting, created, running, paused, suspended, over
    Status(Which),
    /// Stops a VM's vCPUs where they are; the guest's clock stands still
    Pause(Which),
    /// Lets a paused VM go on
    Resume(Which),
    /// Resets a guest: as if it had asked for it itself
    Reset(Which),
    /// Ends a run in order (exit code 5), and waits for that. The guest is not asked
    Stop(Which),
    /// Ends a VM's gz at once, whatever it does (exit code 137)
    Kill(Which),
    /// Attaches to a VM's console: its latest output, and what comes; Ctrl-A x leaves it
    Console(Which),
    /// Tells the size of a guest's balloon; with SIZE, sets the size that it should have
    Balloon(BalloonOptions),
    /// Calls a service of a guest, through a channel that the hypervisor carries, and prints the answer
    Rpc(CallOptions),
    /// Signs a kernel, with its initrd and command line, for a protected VM
    Sign(SignOptions),
    /// Tells the public key of a secret one
    PublicKey(KeyOptions),
    /// Prints a shell's completions for gz: `eval "$(gz completions bash)"`
    Completions(CompletionOptions),
    /// Writes gz's manual pages, one for each command
    Man(ManOptions),
}

#[cfg(test)]
mod tests {
    use super::run::OnReset;
    use super::*;
    use crate::hypervisor::Kind;
    use crate::watch::OnException;
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
        assert_eq!(
            (options.machine.cpus, options.machine.mem, options.machine.hypervisor),
            (1, MemSize(512 << 20), Kind::Gzvm)
        );
        assert_eq!(options.boot.cmdline, "console=ttyS0 panic=-1");
        assert!(
            options.devices.disks.is_empty() && options.boot.initrd.is_none() && !options.machine.strict_mmio
        );
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
        let [a, b] = options.devices.disks.as_slice() else { panic!("{options:?}") };
        assert_eq!((a.path.to_str(), a.read_only), (Some("a.img"), false));
        assert_eq!((b.path.to_str(), b.read_only), (Some("b,c.img"), true));
        assert_eq!(
            (options.machine.cpus, options.machine.mem.0, options.machine.hypervisor),
            (8, 2 << 30, Kind::Kvm)
        );
    }

    #[test]
    fn mistakes_are_refused() {
        assert_eq!(parse(&[]), Err(ErrorKind::MissingRequiredArgument));
        assert_eq!(
            parse(&["--kernel", "k", "--balloon", "64M"]).unwrap().devices.balloon,
            Some(MemSize(64 << 20))
        );
        for right in ["32", "64", "960", "988"] {
            assert_eq!(parse(&["--kernel", "k", "--spis", right]).unwrap().machine.spis, right.parse().ok());
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
    fn requests_name_a_vm() {
        let parse =
            |arguments: &[&str]| Cli::try_parse_from(["gz"].iter().chain(arguments)).map(|cli| cli.command);
        for name in ["info", "status", "pause", "resume", "reset", "stop", "kill", "console", "balloon"] {
            assert!(parse(&[name, "/run/vm"]).is_ok(), "{name}");
            assert_eq!(parse(&[name]).unwrap_err().kind(), ErrorKind::MissingRequiredArgument, "{name}");
        }
        let Ok(Command::Balloon(options)) = parse(&["balloon", "vm", "64"]) else { panic!() };
        assert_eq!((options.which.vm.as_str(), options.size), ("vm", Some(MemSize(64 << 20))));
        assert!(parse(&["balloon", "vm", "lots"]).is_err());
        assert!(parse(&["balloon", "vm", "--wait"]).is_err());
        assert!(parse(&["ps", "vm"]).is_err());
    }

    #[test]
    fn names() {
        let named = |name| parse(&["--kernel", "k", "--name", name]).map(|options| options.manage.name);
        assert_eq!(named("vm-1"), Ok(Some("vm-1".into())));
        assert_eq!(named("../vm"), Err(ErrorKind::ValueValidation));
        assert_eq!(
            parse(&["--kernel", "k", "--on-reset", "restart"]).unwrap().life.on_reset,
            OnReset::Restart
        );
    }

    #[test]
    fn watches() {
        let options =
            parse(&["--kernel", "k", "--watch", "abort,stall=5s", "--on-exception", "kill"]).unwrap();
        assert_eq!(options.life.watch.map(|w| w.stall_ms), Some(5000));
        assert_eq!(options.life.on_exception, OnException::Kill);
        assert_eq!(parse(&["--kernel", "k", "--watch", "all"]), Err(ErrorKind::ValueValidation));
        let alone = parse(&["--kernel", "k", "--on-exception", "kill"]);
        assert_eq!(alone, Err(ErrorKind::MissingRequiredArgument));
    }
}
