// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The conformance suite by name: a test for each row of the ABI's tables.
//!
//! One machine runs all cases of a list; each name is a test of its own that waits for it. The lists are
//! complete both ways: a name that the machine does not report fails, and so does one that is reported and
//! not listed. `docs/testing.md` says which table each is of.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Result, anyhow, bail, ensure};

use super::{BOOT_LIMIT, Host, results, scripted};
use crate::{
    harness::{Case, Context, Tier},
    initrd::Extra,
    machine::{Boot, Kernel, Machine},
    results::Results,
};

/// Cases of `guests/testhost/src/conformance`, in its order. A hypercall's case has the function's name.
pub const HYPERCALL_LEVEL: &[&str] = &[
    "convention::both_families",
    "convention::upper_half_of_x0",
    "convention::unknown_functions",
    "convention::arguments_are_64_bits",
    "convention::registers_preserved",
    "convention::results_on_error",
    "convention::status_codes",
    "hypercall::create_vm",
    "hypercall::destroy_vm",
    "hypercall::destroy_vm_while_running",
    "hypercall::destroy_vm_by_older_drivers",
    "hypercall::probe",
    "hypercall::inform_exit",
    "hypercall::set_dtb_config",
    "hypercall::get_statistics",
    "hypercall::enable_cap",
    "hypercall::get_regs",
    "hypercall::set_regs",
    "hypercall::ext_info",
    "hypercall::ext_counter",
    "hypercall::set_watch",
    "hypercall::vm_features",
    "hypercall::memregion_purpose",
    "hypercall::set_memregion",
    "hypercall::set_memregion_populates",
    "hypercall::set_memregion_refuses_bad_buffers",
    "hypercall::map_guest",
    "hypercall::map_guest_twice",
    "hypercall::map_guest_block",
    "hypercall::map_guest_block_by_older_drivers",
    "hypercall::map_keeps_content",
    "hypercall::create_vcpu",
    "hypercall::create_vcpu_bad_pages",
    "hypercall::destroy_vcpu",
    "hypercall::destroy_vcpu_while_running",
    "hypercall::run",
    "hypercall::run_twice_at_once",
    "hypercall::get_one_reg",
    "hypercall::set_one_reg",
    "hypercall::set_one_reg_pstate",
    "hypercall::one_reg_while_running",
    "hypercall::create_device",
    "hypercall::irq_line",
    "hypercall::irq_line_refusals",
    "hypercall::irq_line_to_a_running_vcpu",
    "hypercall::irq_line_to_a_sleeping_vcpu",
    "hypercall::vgic_spis",
    "capability::vm_gpa_size_0xa5",
    "capability::protected_vm_0xffbadab1",
    "capability::block_based_demand_paging_0x9201",
    "capability::enable_demand_paging_0x9202",
    "capability::enable_idle_0x9203",
    "capability::query_hyp_batch_pages_0x9204",
    "capability::query_destroy_batch_pages_0x9205",
    "capability::unknown",
    "exit::mmio",
    "exit::hypercall_relinquish",
    "exit::hypercall_relinquish_refused",
    "exit::hypercall_ptp",
    "exit::hypercall_others_stay",
    "exit::irq",
    "exit::exception_page_fault",
    "exit::fail_entry",
    "exit::system_event_shutdown",
    "exit::system_event_reset",
    "exit::system_event_reset2",
    "exit::idle",
    "exit::idle_with_timer",
    "exit::idle_of_a_vcpu_that_is_off",
    "exit::ipi",
    "exit::watch",
    "exit::never_unknown_debug_internal_error_shutdown_gz",
    "struct::run_layout",
    "struct::hwstate",
    "struct::region_buffer",
    "struct::mailbox",
    "struct::create_device",
    "struct::tuple",
    "sequence::driver_load",
    "sequence::crosvm_unprotected",
    "sequence::single_page_paging",
    "sequence::eager",
    "sequence::generation_c",
    "sequence::protected",
];

/// Checks of `driver/check/src/conformance`, in its order.
pub const IOCTL_LEVEL: &[&str] = &[
    "ioctl::numbers",
    "ioctl::create_vm",
    "ioctl::check_extension",
    "ioctl::set_memory_region",
    "ioctl::create_vcpu",
    "ioctl::set_user_memory_region",
    "ioctl::create_irqchip",
    "ioctl::irq_line",
    "ioctl::irqfd",
    "ioctl::irqfd_signals",
    "ioctl::ioeventfd",
    "ioctl::ioeventfd_matches",
    "ioctl::run",
    "ioctl::run_buffer",
    "ioctl::run_signals",
    "ioctl::enable_cap",
    "ioctl::get_one_reg",
    "ioctl::set_one_reg",
    "ioctl::create_device",
    "ioctl::set_dtb_config",
    "ioctl::control",
    "ioctl::set_watch",
    "ioctl::vm_features",
    "ioctl::measurement",
    "ioctl::vgic_spis",
    "ioctl::unknown",
    "extension::protected_vm_0xffbadab1",
    "extension::vm_gpa_size_0xa5",
    "extension::mte_0",
    "extension::watch_0x475a0010",
    "extension::measurement_0x475a000a",
    "extension::vm_features_0x475a0018",
    "extension::table_memory_0x475a000d",
    "extension::vgic_spis_0x475a0020",
    "extension::unknown",
    "extension::number_as_pointer",
    "register::x0_to_x30",
    "register::sp_pc_pstate_elr_spsr",
    "register::sizes",
    "register::vectors",
    "register::start_of_crosvm",
    "user_exit::mmio",
    "user_exit::exception",
    "user_exit::system_event_shutdown",
    "user_exit::system_event_reset",
    "user_exit::watch",
    "driver_exit::hypercall_relinquish",
    "driver_exit::hypercall_ptp",
    "driver_exit::irq_and_idle",
    "driver_exit::ipi",
];

/// The areas of a list, as a filter for the program that runs it.
fn areas(names: &[&str]) -> Vec<String> {
    let mut areas: Vec<String> =
        names.iter().filter_map(|name| Some(format!("{}::", name.split_once("::")?.0))).collect();
    areas.dedup();
    areas
}

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    let parts = &["hypervisor.Image", "guest-testhost.Image"];
    let mut cases = named(Tier::Boot, parts, HYPERCALL_LEVEL, hypercall_level);
    let parts = &["hypervisor.Image", "gzvm.ko", "gzvm-check", "host-initrd.cpio"];
    cases.extend(named(Tier::System, parts, IOCTL_LEVEL, ioctl_level));
    cases
}

/// What a machine reported, or why it did not.
type Report = std::result::Result<Results, String>;

/// A test for each name; the first that runs starts the machine for all.
fn named(
    tier: Tier,
    parts: &'static [&'static str],
    names: &'static [&'static str],
    machine: fn(&Context) -> Result<Results>,
) -> Vec<Case> {
    let report: Arc<OnceLock<Report>> = Arc::default();
    let case = |name: &'static str| {
        let report = report.clone();
        Case::new(tier, format!("conformance::{name}"), parts, move |context| {
            let report = report.get_or_init(|| machine(context).map_err(|e| format!("{e:#}")));
            judge(name, report.as_ref().map_err(|why| anyhow!("{why}"))?)
        })
    };
    let mut cases: Vec<Case> = names.iter().map(|name| case(name)).collect();
    let report = report.clone();
    let area = if tier == Tier::Boot { "hypercall_level" } else { "ioctl_level" };
    cases.push(Case::new(tier, format!("conformance::{area}_is_listed"), parts, move |context| {
        let report = report.get_or_init(|| machine(context).map_err(|e| format!("{e:#}")));
        listed(names, report.as_ref().map_err(|why| anyhow!("{why}"))?)
    }));
    Case::of_one_machine(cases)
}

/// The case has passed: one that was skipped has not.
fn judge(name: &str, results: &Results) -> Result<()> {
    let reason = |list: &[(String, String)]| list.iter().find(|(n, _)| n == name).map(|(_, why)| why.clone());
    if let Some(why) = reason(&results.failed).or_else(|| reason(&results.skipped)) {
        bail!("{why}");
    }
    ensure!(results.passed.iter().any(|n| n == name), "the machine has no such case");
    Ok(())
}

/// Nothing was reported that is not in the list.
fn listed(names: &[&str], results: &Results) -> Result<()> {
    let failed = results.failed.iter().chain(&results.skipped).map(|(name, _)| name);
    let strange: Vec<_> =
        results.passed.iter().chain(failed).filter(|name| !names.contains(&name.as_str())).collect();
    ensure!(strange.is_empty(), "not in tests/src/cases/conformance.rs: {strange:?}");
    Ok(())
}

/// The bare-metal program in the driver's place.
fn hypercall_level(context: &Context) -> Result<Results> {
    let host = Kernel {
        image: context.layout.part("guest-testhost.Image"),
        initrd: None,
        arguments: format!("filter={}", areas(HYPERCALL_LEVEL).join(",")),
    };
    let machine = Machine::new(Boot::Hypervisor {
        image: context.layout.part("hypervisor.Image"),
        firmware: None,
        host: Some(host),
    });
    let mut console = context.start(&machine, "console")?;
    console.wait_for("[DONE]", BOOT_LIMIT)?;
    console.wait_power_off(Duration::from_secs(30))?;
    Results::read(&console.text())
}

/// The program that plays a VMM, in a Linux host.
fn ioctl_level(context: &Context) -> Result<Results> {
    let check = Extra::file("/bin/gzvm-check", 0o755, &context.layout.part("gzvm-check"))?;
    let script = format!(
        ". /etc/test-library\nfor area in {}; do gzvm-check $area; done >/tmp/checks\ngrep -v DONE /tmp/checks\n\
         passed=$(grep -c PASS /tmp/checks) failed=$(grep -c FAIL /tmp/checks)\nfinish",
        areas(IOCTL_LEVEL).join(" ")
    );
    let machine = scripted(context, Host::Gzvm, &script, &[check])?;
    results(context, &machine, Duration::from_secs(400))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::Path};

    use gzvm_abi::hypercall::{EXTENSION_BASE, Function};

    /// `CreateVm` is `create_vm`.
    fn snake(camel: &str) -> String {
        camel.chars().fold(String::new(), |mut name, c| {
            if c.is_ascii_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(c.to_ascii_lowercase());
            name
        })
    }

    /// The text of all modules of the test host.
    fn testhost() -> String {
        fn read(folder: &Path, text: &mut String) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    read(&path, text);
                } else {
                    text.push_str(&fs::read_to_string(path).unwrap());
                }
            }
        }
        let mut text = String::new();
        read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../guests/testhost/src"), &mut text);
        text
    }

    /// A public function has a case of its name; one of ours has one, or is called by another case of the
    /// test host.
    #[test]
    fn every_function_has_a_case() {
        let text = testhost();
        let missing: Vec<String> = (0..=0xFFF)
            .filter_map(Function::from_number)
            .filter(|function| {
                let name = format!("{function:?}");
                let named = HYPERCALL_LEVEL.contains(&format!("hypercall::{}", snake(&name)).as_str());
                let public = (*function as u16) < EXTENSION_BASE;
                !named && (public || !text.contains(&format!("Function::{name}")))
            })
            .map(|function| format!("{function:?}"))
            .collect();
        assert!(missing.is_empty(), "functions without a conformance case: {missing:?}");
    }

    /// Numbers that the ABI's pages give to capabilities and exits.
    #[test]
    fn every_capability_and_exit_has_a_case() {
        for number in ["0xa5", "0xffbadab1", "0x9201", "0x9202", "0x9203", "0x9204", "0x9205"] {
            assert!(
                HYPERCALL_LEVEL.iter().any(|n| n.starts_with("capability::") && n.ends_with(number)),
                "{number}"
            );
        }
        for exit in [
            "mmio",
            "hypercall",
            "irq",
            "exception",
            "fail_entry",
            "system_event",
            "idle",
            "ipi",
            "watch",
            "unknown",
            "debug",
            "internal_error",
            "shutdown",
            "gz",
        ] {
            assert!(
                HYPERCALL_LEVEL.iter().any(|n| n.starts_with("exit::") && n.contains(exit)),
                "no case of exit {exit}"
            );
        }
    }

    /// Table 3.1 of the ABI.
    #[test]
    fn every_ioctl_has_a_check() {
        for row in [
            "create_vm",
            "check_extension",
            "set_memory_region",
            "create_vcpu",
            "set_user_memory_region",
            "create_irqchip",
            "irq_line",
            "irqfd",
            "ioeventfd",
            "run",
            "enable_cap",
            "get_one_reg",
            "set_one_reg",
            "create_device",
            "set_dtb_config",
            "control",
            "set_watch",
            "vgic_spis",
            "unknown",
        ] {
            assert!(IOCTL_LEVEL.contains(&format!("ioctl::{row}").as_str()), "{row}");
        }
    }

    #[test]
    fn no_name_twice() {
        for list in [HYPERCALL_LEVEL, IOCTL_LEVEL] {
            let mut names = list.to_vec();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), list.len());
        }
    }

    #[test]
    fn a_skipped_or_missing_case_fails() {
        let results =
            Results::read("[PASS] a\n[SKIP] b: one CPU\n[FAIL] c: no\n[DONE] passed=1 failed=1 skipped=1\n")
                .unwrap();
        assert!(judge("a", &results).is_ok());
        for name in ["b", "c", "d"] {
            assert!(judge(name, &results).is_err(), "{name}");
        }
        assert!(listed(&["a", "b", "c"], &results).is_ok());
        assert!(listed(&["a", "b"], &results).is_err());
    }
}
