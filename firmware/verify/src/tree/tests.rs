// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A tree as gz writes it, and every way of making it wrong that was thought of.

use super::*;
use vm_fdt::FdtWriter;

const BASE: u64 = 0x8000_0000;
const SIZE: u64 = 0x1000_0000;

/// The nodes of a good tree; a change of one of them makes it bad, or another good one.
#[derive(Clone)]
struct Tree {
    memory: Vec<Vec<u64>>,
    chosen: Vec<(&'static str, Vec<u8>)>,
    pools: Vec<(&'static str, u64, u64)>,
    devices: Vec<(&'static str, u64, u64)>,
    method: &'static str,
    enable: &'static str,
    psci: &'static str,
    reservation: Option<u64>,
    /// Nodes of channels: name, and its properties.
    rpc: Vec<(&'static str, Vec<(&'static str, Vec<u8>)>)>,
}

fn good() -> Tree {
    Tree {
        memory: vec![vec![BASE, SIZE]],
        chosen: vec![
            ("bootargs", b"console=ttyS0\0".to_vec()),
            ("linux,initrd-start", (BASE + 0x400_0000).to_be_bytes().to_vec()),
            ("linux,initrd-end", (BASE + 0x480_0000).to_be_bytes().to_vec()),
            ("kaslr-seed", vec![1; 8]),
            ("rng-seed", vec![2; 56]),
        ],
        pools: vec![("restricted-dma-pool", BASE + 0x800_0000, 0x10_0000)],
        devices: vec![
            ("arm,pl031", 0x2000, 0x1000),
            ("ns16550a", 0x3F8, 8),
            ("virtio,mmio", 0x200_0000, 0x200),
        ],
        method: "hvc",
        enable: "psci",
        psci: "arm,psci-0.2",
        reservation: None,
        rpc: Vec::new(),
    }
}

impl Tree {
    fn build(&self) -> Vec<u8> {
        let reservations: Vec<_> =
            self.reservation.iter().map(|at| vm_fdt::FdtReserveEntry::new(*at, 0x1000).unwrap()).collect();
        let mut fdt = FdtWriter::new_with_mem_reserv(&reservations).unwrap();
        let root = fdt.begin_node("").unwrap();
        fdt.property_u32("#address-cells", 2).unwrap();
        fdt.property_u32("#size-cells", 2).unwrap();
        let node = fdt.begin_node("chosen").unwrap();
        for (name, value) in &self.chosen {
            fdt.property(name, value).unwrap();
        }
        fdt.end_node(node).unwrap();
        for (n, reg) in self.memory.iter().enumerate() {
            let node = fdt.begin_node(&format!("memory@{n}")).unwrap();
            fdt.property_array_u64("reg", reg).unwrap();
            fdt.end_node(node).unwrap();
        }
        let node = fdt.begin_node("cpus").unwrap();
        let cpu = fdt.begin_node("cpu@0").unwrap();
        fdt.property_string("enable-method", self.enable).unwrap();
        fdt.end_node(cpu).unwrap();
        fdt.end_node(node).unwrap();
        let node = fdt.begin_node("psci").unwrap();
        fdt.property_string_list("compatible", vec!["arm,psci-1.0".into(), self.psci.into()]).unwrap();
        fdt.property_string("method", self.method).unwrap();
        fdt.end_node(node).unwrap();
        let node = fdt.begin_node("reserved-memory").unwrap();
        fdt.property_u32("#address-cells", 2).unwrap();
        fdt.property_u32("#size-cells", 2).unwrap();
        for (compatible, base, size) in &self.pools {
            let pool = fdt.begin_node(&format!("pool@{base:x}")).unwrap();
            fdt.property_string("compatible", compatible).unwrap();
            fdt.property_array_u64("reg", &[*base, *size]).unwrap();
            fdt.end_node(pool).unwrap();
        }
        fdt.end_node(node).unwrap();
        for (compatible, base, size) in &self.devices {
            let device = fdt.begin_node(&format!("device@{base:x}")).unwrap();
            fdt.property_string("compatible", compatible).unwrap();
            fdt.property_array_u64("reg", &[*base, *size]).unwrap();
            fdt.end_node(device).unwrap();
        }
        for (name, properties) in &self.rpc {
            let node = fdt.begin_node(name).unwrap();
            for (name, value) in properties {
                fdt.property(name, value).unwrap();
            }
            fdt.end_node(node).unwrap();
        }
        fdt.end_node(root).unwrap();
        fdt.finish().unwrap()
    }

    fn read(&self, given: &Given) -> Result<Option<u64>, BadTree> {
        let blob = self.build();
        let fdt = Fdt::new(&blob).unwrap();
        let plan = read(&fdt, given)?;
        assert_eq!(plan.bootargs, "console=ttyS0");
        assert_eq!(plan.memory, Range::new(BASE, SIZE).unwrap());
        for part in plan.pool.iter().chain(&plan.initrd) {
            assert!(plan.memory.holds(part));
        }
        Ok(plan.uart)
    }
}

fn range(start: u64, size: u64) -> Range {
    Range::new(start, size).unwrap()
}

fn given() -> Given {
    Given {
        tree: range(BASE + SIZE - 0x20_0000, 0x1000),
        kernel: range(BASE, 0x200_0200),
        firmware: range(0x7FC0_0000, 0x10_0000),
    }
}

/// Refused, with `change` made to a good tree.
fn refused(why: BadTree, change: impl FnOnce(&mut Tree)) {
    let mut tree = good();
    change(&mut tree);
    assert_eq!(tree.read(&given()), Err(why));
}

#[test]
fn a_good_tree_is_read() {
    assert_eq!(good().read(&given()), Ok(Some(0x3F8)));
    let mut bare = good();
    bare.pools.clear();
    bare.devices.clear();
    bare.chosen.truncate(1);
    assert_eq!(bare.read(&given()), Ok(None));
}

/// What is measured, by Python's hashlib from docs/abi.md; and that each part of it counts.
#[test]
fn what_the_payload_is_given_is_measured() {
    let digest = |change: fn(&mut Tree), given: &Given| {
        let mut tree = good();
        change(&mut tree);
        let blob = tree.build();
        let digest = read(&Fdt::new(&blob).unwrap(), given).unwrap().digest();
        digest.iter().map(|b| format!("{b:02x}")).collect::<String>()
    };
    let changes: [fn(&mut Tree); 12] = [
        |_| {},
        |t| t.memory = vec![vec![BASE, SIZE + 0x1000]],
        |t| t.pools.clear(),
        |t| t.pools[0].2 += 0x1000,
        |t| t.devices.truncate(2),
        |t| t.devices[2].1 += 0x1000,
        |t| t.devices[2].0 = "arm,pl031",
        |t| t.devices.swap(0, 1),
        |t| t.rpc.push(rpc(&[1], b"keys\0")),
        |t| t.rpc.push(rpc(&[2], b"keys\0")),
        |t| t.rpc.push(rpc(&[1], b"logs\0")),
        |t| t.rpc.push(rpc(&[1, 2], b"keys\0keys\0")),
    ];
    let all = changes.map(|change| digest(change, &given()));
    assert_eq!(all[0], "3c921ea104567bc6d4d71d49288178877b4b10e82e5ec7780a2c3f2f4d689cc7");
    assert_eq!(all[11], "c992fa6dd72ce773657bd0959257a40e39d78317e5da156eda833f3ccd923429");
    for (n, value) in all.iter().enumerate() {
        assert!(!all[..n].contains(value), "{n} is as another");
    }
    // Where things are says nothing about what they are.
    let elsewhere = Given { tree: range(BASE + SIZE - 0x10_0000, 0x1000), ..given() };
    let moved = digest(|t| t.chosen[3].1 = vec![9; 8], &elsewhere);
    assert_eq!(moved, all[0]);
}

#[test]
fn memory_is_one_range_in_reach() {
    refused(BadTree::Memory, |t| t.memory.clear());
    refused(BadTree::Memory, |t| t.memory.push(vec![0x2_0000_0000, SIZE]));
    refused(BadTree::Memory, |t| t.memory = vec![vec![BASE, SIZE, 0x2_0000_0000, SIZE]]);
    refused(BadTree::Memory, |t| t.memory = vec![vec![0x1000_0000, SIZE]]);
    refused(BadTree::Memory, |t| t.memory = vec![vec![BASE, u64::MAX]]);
    refused(BadTree::Memory, |t| t.memory = vec![vec![BASE, LIMIT]]);
    refused(BadTree::Memory, |t| t.memory = vec![vec![BASE, 0]]);
}

#[test]
pub(crate) fn unknown_things_are_refused() {
    refused(BadTree::Unknown, |t| t.devices.push(("arm,gic-v2m", 0x10_0000, 0x1000)));
    refused(BadTree::Unknown, |t| t.devices.push(("pci-host-cam-generic", 0x1_0000, 0x100_0000)));
    refused(BadTree::Unknown, |t| t.reservation = Some(BASE));
    refused(BadTree::Chosen, |t| t.chosen.push(("linux,usable-memory-range", vec![0; 16])));
    refused(BadTree::Chosen, |t| t.chosen.push(("u-boot,script", vec![0; 16])));
    refused(BadTree::Pool, |t| t.pools[0].0 = "shared-dma-pool");
    refused(BadTree::Pool, |t| t.pools.push(("restricted-dma-pool", BASE + 0x900_0000, 0x1000)));
    refused(BadTree::Pool, |t| t.pools[0].1 += 8);
}

fn cells(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

fn rpc(ports: &[u32], names: &[u8]) -> (&'static str, Vec<(&'static str, Vec<u8>)>) {
    let properties = vec![
        ("compatible", b"gzvm,rpc\0".to_vec()),
        ("interrupts", cells(&[0, 20, 1])),
        ("gzvm,ports", cells(ports)),
        ("gzvm,port-names", names.to_vec()),
    ];
    ("rpc", properties)
}

#[test]
pub(crate) fn channels_are_as_documented() {
    let read = |nodes: Vec<_>| {
        let mut tree = good();
        tree.rpc = nodes;
        let blob = tree.build();
        let fdt = Fdt::new(&blob).unwrap();
        let plan = super::read(&fdt, &given())?;
        Ok(plan.rpc.map(|rpc| rpc.ports().zip(rpc.all_names().split(|b| *b == 0)).count()))
    };
    assert_eq!(read(Vec::new()), Ok(None));
    assert_eq!(read(vec![rpc(&[1], b"keys\0")]), Ok(Some(1)));
    assert_eq!(read(vec![rpc(&[7, 1, 2], b"k\0a-9\0k\0")]), Ok(Some(3)));
    let many: Vec<u32> = (0..17).collect();
    assert_eq!(read(vec![rpc(&many[1..], &b"k\0".repeat(16))]), Ok(Some(16)));
    let refused = |nodes: Vec<_>| assert_eq!(read(nodes), Err(BadTree::Rpc));
    refused(vec![rpc(&[1], b"keys\0"), rpc(&[2], b"more\0")]);
    refused(vec![rpc(&many, &b"k\0".repeat(17))]);
    refused(vec![rpc(&[], b"")]);
    refused(vec![rpc(&[1, 1], b"a\0b\0")]);
    for names in
        [&b"a"[..], b"a\0", b"a\0b", b"a\0b\0c\0", b"\0\0", b"a\0\0", b"a\0B\0", b"a\0-b\0", b"a\0b/\0", b""]
    {
        refused(vec![rpc(&[1, 2], names)]);
    }
    refused(vec![rpc(&[1], &[&b"x".repeat(32)[..], &[0]].concat())]);
    let changed = |at: usize, value: Vec<u8>| {
        let mut node = rpc(&[1], b"keys\0");
        node.1[at].1 = value;
        refused(vec![node]);
    };
    changed(0, b"gzvm,rpc\0virtio,mmio\0".to_vec());
    for interrupts in [&[1, 20, 1][..], &[0, 988, 1], &[0, 20, 4], &[0, 20], &[0, 20, 1, 0, 21, 1], &[]] {
        changed(1, cells(interrupts));
    }
    changed(2, vec![0, 0, 1]);
    for missing in 1..4 {
        let mut node = rpc(&[1], b"keys\0");
        node.1.remove(missing);
        refused(vec![node]);
    }
    let mut more = rpc(&[1], b"keys\0");
    more.1.push(("reg", vec![0; 16]));
    refused(vec![more]);
    let mut other = rpc(&[1], b"keys\0");
    other.0 = "calls";
    refused(vec![other]);
}

fn bridge() -> (&'static str, Vec<(&'static str, Vec<u8>)>) {
    let properties = vec![
        ("compatible", b"pci-host-ecam-generic\0".to_vec()),
        ("ranges", cells(&[0x200_0000, 0, 0x1010_0000, 0, 0x1010_0000, 0, 0x10_0000])),
        ("reg", cells(&[0, 0x1000_0000, 0, 0x10_0000])),
        ("device_type", b"pci\0".to_vec()),
        ("bus-range", vec![0; 8]),
        ("#address-cells", cells(&[3])),
        ("#size-cells", cells(&[2])),
        ("#interrupt-cells", cells(&[1])),
        ("interrupt-map", cells(&[0x800, 0, 0, 1, 1, 0, 0, 0, 4, 1])),
        ("interrupt-map-mask", cells(&[0xF800, 0, 0, 7])),
        ("dma-coherent", Vec::new()),
        ("memory-region", cells(&[3])),
    ];
    ("pcie@10000000", properties)
}

#[test]
pub(crate) fn a_pci_bridge_is_as_documented() {
    let with = |node| {
        let mut tree = good();
        tree.rpc.push(node);
        let blob = tree.build();
        let fdt = Fdt::new(&blob).unwrap();
        let plan = super::read(&fdt, &given())?;
        Ok(plan.devices.iter().skip(3).map(|device| (device.kind, device.registers)).collect::<Vec<_>>())
    };
    let (space, window) = (range(0x1000_0000, 0x10_0000), range(0x1010_0000, 0x10_0000));
    assert_eq!(with(bridge()), Ok(vec![("pci-host-ecam-generic", space), ("pci-window", window)]));
    let refused = |at: usize, value: Vec<u8>| {
        let mut node = bridge();
        node.1[at].1 = value;
        assert_eq!(with(node), Err(BadTree::Device));
    };
    refused(0, b"pci-host-ecam-generic\0pci-host-cam-generic\0".to_vec());
    for ranges in [
        // Prefetchable, of 64 bits, configuration space; other addresses on the bus; none; in memory; two.
        &[0x4200_0000, 0, 0x1010_0000, 0, 0x1010_0000, 0, 0x10_0000][..],
        &[0x300_0000, 0, 0x1010_0000, 0, 0x1010_0000, 0, 0x10_0000],
        &[0, 0, 0x1010_0000, 0, 0x1010_0000, 0, 0x10_0000],
        &[0x200_0000, 0, 0, 0, 0x1010_0000, 0, 0x10_0000],
        &[0x200_0000, 0, 0x1010_0000, 0, 0x1010_0000, 0, 0],
        &[0x200_0000, 0, 0x8010_0000, 0, 0x8010_0000, 0, 0x10_0000],
        &[0x200_0000, 0, 0x1010_0000, 0, 0x1010_0000, 0, 0x4000_0000],
        &[0x200_0000, 0, 0x1010_0000, 0, 0x1010_0000, 0],
        &[0x200_0000, 0, 0x1010_0000, 0, 0x1010_0000, 0, 0x10_0000, 0],
    ] {
        refused(1, cells(ranges));
    }
    refused(2, cells(&[0, BASE as u32, 0, 0x10_0000]));
    refused(4, cells(&[0, 1]));
    for missing in 1..3 {
        let mut node = bridge();
        node.1.remove(missing);
        assert_eq!(with(node), Err(BadTree::Device));
    }
    for more in ["dma-ranges", "iommu-map", "msi-parent", "linux,pci-probe-only"] {
        let mut node = bridge();
        node.1.push((more, cells(&[0; 4])));
        assert_eq!(with(node), Err(BadTree::Device), "{more}");
    }
}

#[test]
pub(crate) fn cpus_start_by_psci() {
    refused(BadTree::Psci, |t| t.method = "smc");
    refused(BadTree::Psci, |t| t.enable = "spin-table");
    refused(BadTree::Unknown, |t| t.psci = "arm,psci-9");
}

#[test]
pub(crate) fn parts_are_in_memory_and_apart() {
    let end = |at: u64| ("linux,initrd-end", at.to_be_bytes().to_vec());
    // The initrd: over the pool, over the tree, behind the end, backwards, without an end.
    refused(BadTree::Placement, |t| t.chosen[2] = end(BASE + 0x800_0001));
    refused(BadTree::Placement, |t| t.chosen[2] = end(BASE + SIZE));
    refused(BadTree::Placement, |t| t.chosen[2] = end(BASE + SIZE + 0x1000));
    refused(BadTree::Chosen, |t| t.chosen[2] = end(BASE));
    refused(BadTree::Chosen, |t| drop(t.chosen.remove(2)));
    refused(BadTree::Chosen, |t| t.chosen[2].1.truncate(3));
    refused(BadTree::Placement, |t| t.pools[0].1 = BASE);
    let bad = |change: &dyn Fn(&mut Given)| {
        let mut given = given();
        change(&mut given);
        assert_eq!(good().read(&given), Err(BadTree::Placement));
    };
    bad(&|g| g.kernel = range(BASE, 0x500_0000));
    bad(&|g| g.kernel = range(BASE - 0x1000, 0x2000));
    bad(&|g| g.tree = range(BASE + 0x1000, 0x1000));
    bad(&|g| g.tree = range(0x7FC0_0000, 0x1000));
    bad(&|g| g.firmware = range(BASE + 0x1000_0000 - 0x1000, 0x10_0000));
}

#[test]
pub(crate) fn devices_are_no_memory() {
    refused(BadTree::Device, |t| t.devices[2].1 = BASE);
    refused(BadTree::Device, |t| t.devices[2].2 = 0x8000_0000);
    refused(BadTree::Device, |t| t.devices[2].2 = 0);
    refused(BadTree::Device, |t| {
        t.devices =
            (0..=MAX_DEVICES as u64).map(|n| ("virtio,mmio", 0x200_0000 + n * 0x200, 0x200)).collect();
    });
}

#[test]
fn seeds_are_found() {
    let blob = good().build();
    let fdt = Fdt::new(&blob).unwrap();
    let seeds = seeds(&fdt, &blob);
    assert_eq!(
        seeds.iter().map(|(at, length)| &blob[*at..at + length]).collect::<Vec<_>>(),
        [&[1; 8][..], &[2; 56]]
    );
    assert_eq!(uart(&fdt), Some(0x3F8));
}

#[test]
fn no_tree_panics() {
    let blob = good().build();
    for at in 0..blob.len() {
        for value in [0, 1, 0x7F, 0xFF] {
            let mut changed = blob.clone();
            changed[at] = value;
            if let Ok(fdt) = Fdt::new(&changed) {
                let _ = read(&fdt, &given());
                let _ = uart(&fdt);
            }
        }
    }
}
