// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The measurement itself: a machine whose counter counts instructions, a script in its host, the console's text.
//!
//! Every run is the same to the byte (seed, clock, device tree, no address randomisation), so its figures repeat as long
//! as no part changes. The host settles for 20 virtual seconds, which cost nothing: idle time is skipped.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use gzvm_tests::{
    cases,
    cpio::Archive,
    initrd::Extra,
    layout::Layout,
    machine::{Boot, Kernel, Machine},
};

use super::{
    Host, Options,
    machines::{self, GUEST_ARGUMENTS},
    profile::{Profile, Profiler},
    report,
    results::{self, Clock, Figure},
};

/// Signs the guests of protected VMs.
const DEVELOPMENT_KEY: &str = include_str!("../../../firmware/keys/development.key");
const GUEST_MEMORY: &str = "512M";

/// Figures of one host, by operation; what could not be measured has its reason.
pub type Figures = BTreeMap<&'static str, Result<Figure, String>>;

/// What all measurements share.
pub struct Plan<'a> {
    layout: &'a Layout,
    folder: PathBuf,
    operations: Vec<&'static str>,
    batches: u32,
    boots: u32,
    /// Runs of the host's work.
    works: u32,
    stopwatch: Extra,
    profiler: Option<Profiler>,
}

impl<'a> Plan<'a> {
    /// Assembles the stopwatch, and on request builds the profiler.
    ///
    /// # Errors
    /// If it can't be.
    pub fn new(layout: &'a Layout, options: &Options) -> Result<Self> {
        let folder = layout.out.join("bench");
        fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
        let (batches, boots) = if options.quick { (3, 2) } else { (5, 8) };
        let wanted =
            |name: &&str| options.operation.is_empty() || options.operation.iter().any(|o| o == name);
        let operations: Vec<_> = report::operations().filter(wanted).collect();
        let boots = if operations.contains(&results::LINUX_BOOT) { boots } else { 0 };
        // A machine for its boots alone needs no batch.
        let works = if operations.contains(&results::HOST_WORK) { batches } else { 0 };
        let of_guest = |name: &&str| results::OPERATIONS.contains(name) || results::FAULTS.contains(name);
        let batches = if operations.iter().any(of_guest) { batches } else { 0 };
        let profiler =
            (options.profile || options.docs).then(|| Profiler::new(layout, &folder)).transpose()?;
        let stopwatch = machines::stopwatch(&folder)?;
        Ok(Self { layout, operations, batches, boots, works, stopwatch, profiler, folder })
    }

    /// What is to be measured.
    pub fn operations(&self) -> &[&'static str] {
        &self.operations
    }

    /// All figures of one host, and on request what was counted at EL2 meanwhile.
    ///
    /// # Errors
    /// If the machine did not come to the end of its script.
    pub fn measure(&self, host: Host) -> Result<(Figures, Option<Profile>)> {
        let initrd = self.host_initrd(Some(host), &self.script())?;
        let mut machine = machines::machine(self.layout, host, initrd, "");
        let profiler = self.profiler.as_ref().filter(|_| host.is_gzvm());
        if let Some(profiler) = profiler {
            machine.extra.extend(profiler.arguments()?);
        }
        let text = machines::run(self.layout, &mut machine, host.name())?;
        machines::check_mode(host, &text)?;
        let mut figures = results::operations(&text, self.batches);
        // KVM's protected VMs have no offset between their counter and the machine's.
        let clock = if host == Host::Kvm7ProtectedVm { Clock::Host } else { Clock::Guest };
        figures.insert(results::LINUX_BOOT, results::boots(&text, self.boots, clock));
        if self.works > 0 {
            let work = self
                .host_work(Some(host), |initrd, phase| machines::machine(self.layout, host, initrd, phase));
            figures.insert(results::HOST_WORK, work.map_err(|error| format!("{error:#}")));
        }
        figures.retain(|name, _| self.operations.contains(name));
        ensure!(text.contains(END), "the host did not come to the end of its script");
        Ok((figures, profiler.map(Profiler::read).transpose()?))
    }

    /// The same at EL1 of a machine without EL2, where that can be measured.
    pub fn bare_metal(&self) -> Figures {
        let mut figures = Figures::new();
        let text = |error: anyhow::Error| format!("{error:#}");
        if self.boots > 0 {
            figures.insert(results::LINUX_BOOT, self.bare_metal_boot().map_err(text));
        }
        if self.works > 0 {
            let work =
                self.host_work(None, |initrd, phase| machines::without_el2(self.layout, initrd, phase));
            figures.insert(results::HOST_WORK, work.map_err(text));
        }
        figures
    }

    /// The host's work, each time in another boot of the machine: one boot differs from the next by more than hosts do.
    fn host_work(&self, host: Option<Host>, machine: impl Fn(PathBuf, &str) -> Machine) -> Result<Figure> {
        let initrd = self.host_initrd(host, WORK)?;
        let name = host.map_or("bare-metal", Host::name);
        let mut counts = Vec::new();
        for number in 1..=self.works {
            let mut machine = machine(initrd.clone(), &varied(number));
            let text = machines::run(self.layout, &mut machine, &format!("{name}-work"))?;
            counts.push(results::host_work(&text).context("the host did not do its work")?);
        }
        Figure::median(&counts).context("no work")
    }

    /// Instructions from reset to init of the guest's kernel as the machine's only one.
    fn bare_metal_boot(&self) -> Result<Figure> {
        let mut counts = Vec::new();
        for number in 1..=self.boots {
            let kernel = Kernel {
                image: self.layout.kernel(),
                initrd: Some(self.write("stopwatch.cpio", &self.guest_initrd())?),
                arguments: format!("console=ttyAMA0 {GUEST_ARGUMENTS} {}", varied(number)),
            };
            let mut machine = Machine::new(Boot::Direct(kernel));
            machine.smp = 1;
            machine.memory = GUEST_MEMORY.to_owned();
            machine.extra = vec!["-M".into(), "virtualization=off".into()];
            let text = machines::run(self.layout, &mut machine, "bare-metal")?;
            counts.push(results::counter(&text).context("init did not print the counter")?);
        }
        Figure::median(&counts).context("no boot")
    }

    /// The root of a host, or of a machine without EL2, with this script and what it needs.
    fn host_initrd(&self, host: Option<Host>, script: &str) -> Result<PathBuf> {
        let file = |path: &str, mode, content: &[u8]| Extra {
            path: path.to_owned(),
            mode,
            content: content.to_vec(),
        };
        let mut extras = vec![
            Extra::script(script),
            file("/guest/development.key", 0o644, DEVELOPMENT_KEY.as_bytes()),
            self.stopwatch.clone(),
            file("/guest/stopwatch.cpio", 0o644, &self.guest_initrd()),
        ];
        if host.is_some_and(|host| host.is_gzvm() && host.is_newest_linux()) {
            let driver = self.layout.part(cases::driver::NEWEST);
            extras.push(Extra::file("/lib/modules/gzvm.ko", 0o644, &driver)?);
        }
        machines::initrd(self.layout, &self.folder, &extras)
    }

    /// What the host does.
    fn script(&self) -> String {
        let batches: Vec<_> = (1..=self.batches).map(|n| n.to_string()).collect();
        let boots: Vec<_> = (1..=self.boots).map(varied).collect();
        let all = results::OPERATIONS.iter().all(|name| self.operations.contains(name));
        let of_guest = self.operations.iter().any(|name| results::OPERATIONS.contains(name));
        let filter = if all { String::new() } else { format!(" filter={}", self.operations.join(",")) };
        let faults: Vec<_> = results::FAULTS.iter().filter(|name| self.operations.contains(name)).collect();
        let faults: Vec<_> = faults.iter().filter_map(|name| name.strip_prefix("fault-")).collect();
        format!(
            r#". /etc/profile
hypervisor=$(argument gz.hypervisor)
hypervisor=${{hypervisor:-gzvm}}
counters() {{
    if [ $hypervisor = kvm ]; then
        for file in /sys/kernel/debug/kvm/*exit*; do echo "${{file##*/}} $(cat $file)"; done
    else
        cat /sys/kernel/debug/gzvm/counters
    fi | tr '\n' ' '
}}
protected=$(argument gz.protected)
# run KERNEL COMMAND-LINE INITRD OPTIONS...: the initrd may be empty.
run() {{
    kernel=$1 line=$2 initrd=$3
    shift 3
    [ -f /tmp/signed ] && kernel=/tmp/signed
    gz run --hypervisor $hypervisor ${{protected:+--protected}} --kernel $kernel ${{initrd:+--initrd $initrd}} --cmdline "$line" "$@" </dev/null
}}
# prepare KERNEL COMMAND-LINE INITRD
prepare() {{
    # KVM has no firmware that would look at a signature.
    [ "$protected" ] && [ $hypervisor = gzvm ] || return 0
    gz sign --key /guest/development.key --kernel $1 --cmdline "$2" ${{3:+--initrd $3}} --output /tmp/signed
}}
dmesg | grep -i 'kvm.*initialized'
sleep 20
line="console=ttyS0{filter}"
prepare /guest/bench.Image "$line" ""
for batch in {operations}; do
    run /guest/bench.Image "$line" "" --cpus 2 --mem 64M
    echo "[STATUS] operations $?"
done
huge=/sys/kernel/mm/transparent_hugepage/enabled
usual=$(sed 's/.*\[\(.*\)\].*/\1/' $huge)
for size in {faults}; do
    line="console=ttyS0 faults=$size"
    prepare /guest/bench.Image "$line" ""
    [ $size = 4k ] && echo never >$huge
    for batch in {batches}; do
        run /guest/bench.Image "$line" "" --cpus 1 --mem 256M
        echo "[STATUS] faults $?"
    done
    echo $usual >$huge
done
for word in {boots}; do
    line="console=ttyS0 {GUEST_ARGUMENTS} $word"
    prepare /guest/Image "$line" /guest/stopwatch.cpio
    sleep 1
    echo "[BEFORE] $(counters)"
    stopwatch
    run /guest/Image "$line" /guest/stopwatch.cpio --cpus 1 --mem {GUEST_MEMORY} |
    while read -r line; do
        case $line in
        *COUNTER*) stopwatch; echo "[AFTER] $(counters)"; echo "[INIT] ${{line##*] }}" ;;
        *) echo "$line" ;;
        esac
    done
done
echo "{END}""#,
            operations = if of_guest { batches.join(" ") } else { String::new() },
            faults = faults.join(" "),
            batches = batches.join(" "),
            boots = boots.join(" "),
        )
    }

    /// The guest's root: a console and the stopwatch as init.
    fn guest_initrd(&self) -> Vec<u8> {
        let mut archive = Archive::new();
        archive.folder("dev");
        archive.device("dev/console", 5, 1);
        archive.file("init", 0o755, &self.stopwatch.content);
        archive.finish()
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, content).with_context(|| format!("can't write {}", path.display()))?;
        Ok(path)
    }
}

/// The host settles, and works without any guest: processes and pipes. The first time, what it needs comes into its caches.
const WORK: &str = ". /etc/profile
sleep 20
work() {
    for ten in 1 2 3 4 5 6 7 8 9 10; do for one in 1 2 3 4 5 6 7 8 9 10; do
        /bin/echo $ten $one | /bin/cat >/dev/null
    done; done
}
work
echo '[WORK]'
stopwatch
work
stopwatch";

/// What the host says last.
const END: &str = "[END] all measured";

/// A word for a kernel's command line, of a length that differs from boot to boot: it moves the phase of the kernel's
/// timer tick against its work, by which one boot differs from the next.
fn varied(number: u32) -> String {
    format!("phase={}", "x".repeat(number as usize))
}
