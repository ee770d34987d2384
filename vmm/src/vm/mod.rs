// SPDX-License-Identifier: Apache-2.0 OR MIT
//! From options to a running guest, and back: the order in which everything is made and unmade.
//!
//! ```text
//!  signals, control socket, back ends ─► files checked ─► RAM filled ─► VM, vCPUs ─► sandbox ─► devices ─► device tree
//!     ─► terminal raw ─► vCPU threads ─► (a reason to end arrives) ─► vCPUs stopped ─► devices stopped ─► terminal
//! ```
//! With `--on-reset restart` a reset goes back to "files checked": memory, VM, vCPUs and devices are made anew, so that
//! nothing of one life is seen in the next.

mod devices;
mod guest;

use std::cell::{Cell, OnceCell};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};

use anyhow::Context;

use self::devices::{Devices, Extras};
use self::guest::Guest;
use crate::backends::Backends;
use crate::cli::RunOptions;
use crate::cli::run::OnReset;
use crate::console::{Followers, Output};
use crate::control::names::{Directory, Entry};
use crate::control::schema::Facts;
use crate::control::server::{Server, Socket, Subject};
use crate::devices::virtio::net::kernel;
use crate::devices::virtio::vsock;
use crate::devices::watchdog::Watchdog;
use crate::exit::EndReason;
use crate::hypervisor::{self, BootState, Machine, Parts};
use crate::rpc::options::Plan;
use crate::rpc::{self, Offer};
use crate::terminal::{self, Input, RawMode};
use crate::vcpu::Threads;
use crate::{console, layout, sandbox, signals};

/// Runs a guest to its end.
pub fn run(options: &RunOptions) -> EndReason {
    try_run(options).unwrap_or_else(|error| EndReason::VmmError(format!("{error:#}")))
}

/// What has to wait until the process is confined: threads inherit that.
struct Prepared {
    signals: signals::Blocked,
    name: String,
    socket: Option<Socket>,
    followers: Followers,
}

/// What stays through the resets of a guest.
struct Session {
    end: Sender<EndReason>,
    reasons: Receiver<EndReason>,
    backends: Backends,
    /// Its channels, and where the VMs are that it calls.
    rpc: Option<Plan>,
    peers: Vec<PathBuf>,
    output: Output,
    /// What [`Session::begin`] starts, until then.
    prepared: Cell<Option<Prepared>>,
    control: OnceCell<Server>,
    console: console::Current,
    /// The console thread has been started, if there is to be one.
    console_runs: Cell<bool>,
}

fn try_run(options: &RunOptions) -> anyhow::Result<EndReason> {
    let rpc = Plan::of(&options.rpc)?;
    let peers = rpc::sockets(options)?;
    let (end, reasons) = mpsc::channel();
    let signals = signals::install().context("can't set up signals")?;
    sandbox::share_heap();
    let name = options.manage.name.clone().unwrap_or_else(|| format!("guest-{}", std::process::id()));
    let socket = Socket::bind(claim(options, &name)?, options.manage.control.as_deref())?;
    let followers = Followers::default();
    let output = Output::new(followers.clone()).context("standard output")?;
    let session = Session {
        end,
        reasons,
        backends: Backends::open(&options.devices, &output)?,
        rpc,
        peers,
        output,
        prepared: Cell::new(Some(Prepared { signals, name, socket, followers })),
        control: OnceCell::new(),
        console: console::Current::default(),
        console_runs: Cell::new(false),
    };
    loop {
        let reason = live(options, &session)?;
        // Threads that were told of the same end say it again; who wants the run to end is heard.
        let said_since = session.reasons.try_iter().find(|r| !matches!(r, EndReason::Reset));
        match (reason, options.life.on_reset, said_since) {
            (EndReason::Reset, OnReset::Restart, None) => tracing::info!("the guest starts again"),
            (EndReason::Reset, OnReset::Restart, Some(reason)) | (reason, _, _) => return Ok(reason),
        }
    }
}

impl Session {
    /// In the first life, once all files are open: confines the process, then starts the threads that stay.
    fn begin(&self, options: &RunOptions) -> anyhow::Result<()> {
        let Some(Prepared { signals, name, socket, followers }) = self.prepared.take() else { return Ok(()) };
        if options.manage.no_sandbox {
            eprintln!("gz: WARNING: --no-sandbox: a guest that takes gz over has all that its user has");
        } else {
            sandbox::enter(&files(options, socket.as_ref()))?;
        }
        signals.start(self.end.clone()).context("can't set up signals")?;
        let Some(socket) = socket else { return Ok(()) };
        let (console, end) = (self.console.clone(), self.end.clone());
        let server = Server::start(socket, facts(options, name, self.rpc.as_ref()), console, followers, end)
            .context("can't start the control socket")?;
        let _ = self.control.set(server);
        Ok(())
    }
}

/// What is opened again after a reset, or removed at the end.
fn files(options: &RunOptions, socket: Option<&Socket>) -> sandbox::Files {
    let mut files = sandbox::Files::default();
    let boot = &options.boot;
    [&boot.kernel, &boot.initrd, &boot.firmware].into_iter().flatten().for_each(|path| files.read(path));
    boot.variables.iter().for_each(|path| files.write(path));
    for disk in &options.devices.disks {
        if disk.read_only { files.read(&disk.path) } else { files.write(&disk.path) }
    }
    files.write(options.machine.hypervisor.device());
    if let Some(vsock) = &options.devices.vsock {
        files.write(vsock::KERNEL);
        // It is there if there are peers.
        if let Ok(directory) = Directory::of_user()
            && !vsock.peers.is_empty()
        {
            files.remove(&directory.address(vsock.cid));
        }
    }
    if options.devices.nets.iter().any(|net| net.vhost) {
        files.write(kernel::KERNEL);
    }
    options.devices.ports.iter().for_each(|port| files.remove(&port.socket));
    socket.into_iter().flat_map(Socket::files).for_each(|path| files.remove(&path));
    files
}

/// Takes the VM's name. Without one of its own it can do without, where there is no place for names.
fn claim(options: &RunOptions, name: &str) -> anyhow::Result<Option<Entry>> {
    match Directory::of_user().and_then(|directory| directory.claim(name)) {
        Ok(entry) => Ok(Some(entry)),
        Err(error) if options.manage.name.is_none() => {
            tracing::warn!("`gz ps` won't know this VM: {error:#}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// What others are told about the VM.
fn facts(options: &RunOptions, name: String, rpc: Option<&Plan>) -> Facts {
    let mut services = Vec::new();
    for place in rpc.into_iter().flat_map(|plan| plan.places.iter().take(plan.offered)) {
        if services.last() != Some(&place.name) {
            services.push(place.name.clone());
        }
    }
    Facts {
        name,
        pid: std::process::id(),
        gz: env!("CARGO_PKG_VERSION").into(),
        hypervisor: options.machine.hypervisor,
        protected: options.boot.protected,
        vcpus: options.machine.cpus,
        memory: options.machine.mem.0,
        image: options.boot.kernel.clone().or_else(|| options.boot.firmware.clone()).unwrap_or_default(),
        sandbox: sandbox::confinement(),
        services,
    }
}

/// One life of the guest: nothing of it is left but the disks' contents.
fn live(options: &RunOptions, session: &Session) -> anyhow::Result<EndReason> {
    let end = &session.end;
    let disks = devices::open_disks(options, session.backends.count())?;
    let mut guest = Guest::load(options)?;
    let variables = guest.variables.take();
    let parts = Parts {
        map: guest.map,
        memory: &guest.memory,
        vcpus: options.machine.cpus,
        features: &options.machine.features,
        spis: options.machine.spis,
        rpc: session.rpc.as_ref().map(|plan| plan.policy),
        protected: options.boot.protected,
        firmware: guest.firmware.as_ref(),
    };
    let Machine { vm, mut vcpus } = hypervisor::create(options.machine.hypervisor, parts)?;
    session.begin(options)?;
    if let Some(watch) = options.life.watch {
        vm.set_watch(watch, options.life.on_exception)?;
    }
    let balloon =
        options.devices.balloon.map(|size| devices::balloon(&vm, guest.ram()?, size.0)).transpose()?;
    let watchdog = Watchdog::start(options.machine.cpus, end.clone()).context("can't start the watchdog")?;
    let output = session.output.clone();
    let others = session.backends.devices(&guest.device_memory()?)?;
    let extras = Extras { variables, disks, others, balloon, watchdog, output };
    let mut devices = Devices::new(&vm, &guest, extras, options)?;
    let fdt = guest.place_fdt(options, &devices, session.rpc.as_ref())?;
    vm.set_fdt(fdt, layout::FDT_MAX_SIZE)?;
    let boot = BootState { entry: guest.loaded.entry, fdt, size: guest.loaded.size };
    for (id, vcpu) in vcpus.iter_mut().enumerate() {
        vcpu.set_boot_state((id == 0).then_some(boot))?;
    }

    let input = terminal::input();
    let _raw = match input {
        Input::Terminal => Some(RawMode::enter().context("standard input: can't make the terminal raw")?),
        Input::Background | Input::Other => None,
    };
    if input == Input::Background {
        tracing::info!("in the background: the guest's console gets no input");
    } else {
        session.console.set(Some(session.backends.keyboard().unwrap_or_else(|| devices.uart.clone())));
        if !session.console_runs.replace(true) {
            console::start(session.console.clone(), end.clone()).context("can't start the console")?;
        }
    }
    // Closed with this life.
    let _channels = match &session.rpc {
        Some(plan) => rpc::join(options, plan, &session.peers, vm.as_ref())?,
        None => Vec::new(),
    };
    let threads =
        Threads::start(vcpus, &devices.bus, end, Some(&devices.watchdog)).context("can't start the vCPUs")?;
    if let Some(control) = session.control.get() {
        control.set(Some(Subject {
            vm: vm.clone(),
            balloon: devices.resize.clone(),
            offer: Offer(session.rpc.clone()),
        }));
    }
    // `end` lives, so that there is always a reason to come.
    let reason = session.reasons.recv().context("nobody is left to end the VM")?;
    tracing::debug!("ending: {reason}");
    if let Some(measurement) = vm.measurement() {
        tracing::info!("{measurement}");
    }
    if let Some(control) = session.control.get() {
        control.set(None);
    }
    session.console.set(None);
    threads.stop();
    devices.shut_down();
    Ok(reason)
}
