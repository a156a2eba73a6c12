//! Which functions are together: named topologies as a table, and machines by chance.

#![cfg(not(hv_loom))]

use hv_core::{PciAddress, Segment};
use hv_iommu::{
    AccessControl, BusRange, FunctionKind, GroupPlan, PciFunction, PhantomBits, VirtualFunctions,
    group_plans,
};
use proptest::prelude::*;

const fn at(bus: u8, device: u8, function: u8) -> PciAddress {
    let requester = (bus as u16) << 8 | (device as u16) << 3 | function as u16;
    PciAddress::from_requester(Segment(0), requester)
}

/// Source validation, request and completion redirect, upstream forwarding (PCI Express Base, "ACS
/// Capability Register").
const WANTED: u16 = 0b0001_1101;
const EGRESS: u16 = 1 << 5;
const DIRECT: u16 = 1 << 6;
const BLOCKING: u16 = 1 << 1;

const ACS: AccessControl = AccessControl::from_registers(WANTED, WANTED);

const fn buses(secondary: u8, subordinate: u8) -> BusRange {
    BusRange {
        secondary,
        subordinate,
    }
}

/// A function that says it is alone in its device.
fn alone(address: PciAddress, kind: FunctionKind) -> PciFunction {
    PciFunction {
        multi_function: false,
        ..PciFunction::new(address, kind)
    }
}

fn with_acs(function: PciFunction) -> PciFunction {
    PciFunction {
        access_control: ACS,
        ..function
    }
}

fn endpoint(address: PciAddress) -> PciFunction {
    alone(address, FunctionKind::Endpoint)
}

fn root_port(address: PciAddress, first: u8, last: u8) -> PciFunction {
    alone(address, FunctionKind::RootPort(buses(first, last)))
}

fn upstream(address: PciAddress, first: u8, last: u8) -> PciFunction {
    alone(address, FunctionKind::UpstreamPort(buses(first, last)))
}

fn downstream(address: PciAddress, bus: u8) -> PciFunction {
    alone(address, FunctionKind::DownstreamPort(buses(bus, bus)))
}

fn bridge(address: PciAddress, first: u8, last: u8) -> PciFunction {
    alone(
        address,
        FunctionKind::ConventionalBridge(buses(first, last)),
    )
}

fn old(address: PciAddress) -> PciFunction {
    PciFunction::new(address, FunctionKind::Conventional)
}

/// A switch behind 00:01.0: its upstream port is 01:00.0, devices 03:00.0 and 04:00.0 are behind its
/// downstream ports 02:00.0 and 02:01.0, which `change` may change.
fn switch(change: impl Fn(&mut [PciFunction; 4])) -> Vec<PciFunction> {
    let mut ports = [
        with_acs(root_port(at(0, 1, 0), 1, 4)),
        upstream(at(1, 0, 0), 2, 4),
        with_acs(downstream(at(2, 0, 0), 3)),
        with_acs(downstream(at(2, 1, 0), 4)),
    ];
    change(&mut ports);
    let devices = [endpoint(at(3, 0, 0)), endpoint(at(4, 0, 0))];
    ports.into_iter().chain(devices).collect()
}

fn ids_of(plan: &GroupPlan) -> (Vec<PciAddress>, Vec<PciAddress>) {
    let (mut members, mut requesters) = (plan.members.clone(), plan.requesters.clone());
    members.sort_unstable();
    requesters.sort_unstable();
    (members, requesters)
}

/// What the members and requesters of all groups with members are.
type Expected = Vec<(Vec<PciAddress>, Vec<PciAddress>)>;

fn check(name: &str, functions: &[PciFunction], expected: Expected) {
    let plans = group_plans(functions).unwrap();
    let found: Expected = plans
        .iter()
        .filter(|plan| !plan.members.is_empty())
        .map(ids_of)
        .collect();
    assert_eq!(found, expected, "{name}");
}

/// Groups whose members send with their own ids only.
fn own(groups: &[&[PciAddress]]) -> Expected {
    let both = |members: &&[PciAddress]| (members.to_vec(), members.to_vec());
    groups.iter().map(both).collect()
}

#[test]
fn bc05_ports_and_switches_keep_apart_only_what_they_send_up() {
    let (one, other) = (at(3, 0, 0), at(4, 0, 0));
    let apart = || own(&[&[one], &[other]]);
    let together = || own(&[&[one, other]]);
    let acs = AccessControl::from_registers;
    type Ports = [PciFunction; 4];
    type Row = (&'static str, fn(&mut Ports), Expected);
    let rows: [Row; 12] = [
        ("all ports send everything up", |_| (), apart()),
        (
            "a root port without ACS",
            |ports| ports[0].access_control = AccessControl::NONE,
            together(),
        ),
        (
            "a root port whose ACS is off",
            |ports| ports[0].access_control = AccessControl::from_registers(WANTED, 0),
            together(),
        ),
        (
            "a root port that has nothing to redirect",
            |ports| ports[0].access_control = AccessControl::from_registers(1, 1),
            apart(),
        ),
        (
            "a downstream port without ACS reaches its neighbour",
            |ports| ports[3].access_control = AccessControl::NONE,
            together(),
        ),
        (
            "a downstream port that does not say that it redirects",
            |ports| ports[3].access_control = AccessControl::from_registers(1, 1),
            together(),
        ),
        (
            "a downstream port that forwards down what came up",
            |ports| ports[2].access_control = AccessControl::from_registers(WANTED, WANTED & !0x10),
            together(),
        ),
        (
            "a downstream port that believes any id",
            |ports| ports[2].access_control = AccessControl::from_registers(WANTED, WANTED & !1),
            together(),
        ),
        (
            "a downstream port with egress control",
            |ports| {
                let all = WANTED | EGRESS;
                ports[2].access_control = AccessControl::from_registers(all, all);
            },
            together(),
        ),
        (
            "a downstream port that lets translated requests through to peers",
            |ports| {
                let all = WANTED | DIRECT;
                ports[2].access_control = AccessControl::from_registers(all, all);
            },
            together(),
        ),
        (
            "a downstream port that would, but blocks translated requests",
            |ports| {
                let all = WANTED | DIRECT | BLOCKING;
                ports[2].access_control = AccessControl::from_registers(all, all);
            },
            apart(),
        ),
        (
            "an upstream port of which nothing is known",
            |ports| ports[1].multi_function = true,
            together(),
        ),
    ];
    for (name, change, expected) in rows {
        check(name, &switch(change), expected);
    }
    // A port that all is well with may be told to keep more apart than firmware had it.
    let better = AccessControl::isolating(WANTED | DIRECT | EGRESS, DIRECT | EGRESS);
    let functions = switch(|ports| ports[2].access_control = acs(WANTED | DIRECT, better));
    check("after the embedder switched ACS on", &functions, apart());
}

#[test]
fn bc05_devices_of_several_functions_are_apart_only_if_each_controls_access() {
    let (zero, one, two) = (at(0, 2, 0), at(0, 2, 1), at(0, 2, 2));
    let three = |second: AccessControl| {
        [
            with_acs(endpoint(zero)),
            PciFunction {
                access_control: second,
                ..endpoint(one)
            },
            with_acs(endpoint(two)),
        ]
    };
    check("all with ACS", &three(ACS), own(&[&[zero], &[one], &[two]]));
    check(
        "one of them reaches the others",
        &three(AccessControl::NONE),
        own(&[&[zero, one, two]]),
    );
    // No bit of it set says that the function does nothing peer to peer.
    let nothing = AccessControl::from_registers(0, 0);
    check(
        "a capability that is all zero",
        &three(nothing),
        own(&[&[zero], &[one], &[two]]),
    );
    let functions = [old(zero), with_acs(old(one))];
    check(
        "conventional functions have no ACS",
        &functions,
        own(&[&[zero, one]]),
    );
    let functions = [endpoint(zero), endpoint(at(0, 3, 0))];
    check(
        "two devices of the root complex",
        &functions,
        own(&[&[zero], &[at(0, 3, 0)]]),
    );
}

#[test]
fn bc05_root_ports_of_one_device_without_acs_join_what_is_behind_them() {
    let ports = |second: AccessControl| {
        vec![
            with_acs(root_port(at(0, 0x1c, 0), 1, 1)),
            PciFunction {
                access_control: second,
                ..root_port(at(0, 0x1c, 4), 2, 2)
            },
            with_acs(root_port(at(0, 0x1d, 0), 3, 3)),
            endpoint(at(1, 0, 0)),
            endpoint(at(2, 0, 0)),
            endpoint(at(3, 0, 0)),
        ]
    };
    let (one, two, three) = (at(1, 0, 0), at(2, 0, 0), at(3, 0, 0));
    check("with ACS", &ports(ACS), own(&[&[one], &[two], &[three]]));
    check(
        "one without ACS",
        &ports(AccessControl::NONE),
        own(&[&[one, two], &[three]]),
    );
    let plans = group_plans(&ports(AccessControl::NONE)).unwrap();
    let first = plans
        .iter()
        .find(|plan| plan.members.contains(&one))
        .unwrap();
    assert_eq!(first.ports, [at(0, 0x1c, 0), at(0, 0x1c, 4)]);
    assert_eq!(first.upstream, first.ports);
}

#[test]
fn bc05_the_functions_at_the_end_of_a_link_are_one_device_whatever_their_numbers() {
    // With ARI, device and function number are one: 01:01.3 is function 11 of the device at 01:00.0.
    let (first, eleventh) = (at(1, 0, 0), at(1, 1, 3));
    let functions = |device: fn(PciFunction) -> PciFunction| {
        [
            with_acs(root_port(at(0, 1, 0), 1, 1)),
            device(endpoint(first)),
            device(endpoint(eleventh)),
        ]
    };
    check(
        "without ACS",
        &functions(|it| it),
        own(&[&[first, eleventh]]),
    );
    check(
        "with ACS",
        &functions(with_acs),
        own(&[&[first], &[eleventh]]),
    );
}

#[test]
fn bc05_all_behind_a_conventional_bridge_is_one_group_with_the_bridges_ids() {
    let (one, other) = (at(2, 1, 0), at(3, 0, 0));
    let mut functions = vec![
        with_acs(root_port(at(0, 1, 0), 1, 4)),
        bridge(at(1, 0, 0), 2, 4),
        old(one),
        // A bridge back to PCI Express, with a device whose ports all have ACS.
        bridge(at(2, 2, 0), 3, 4),
        endpoint(other),
        with_acs(root_port(at(0, 2, 0), 5, 5)),
        endpoint(at(5, 0, 0)),
    ];
    let group = (
        vec![one, other],
        vec![at(1, 0, 0), at(2, 0, 0), one, at(2, 2, 0), other],
    );
    let apart = (vec![at(5, 0, 0)], vec![at(5, 0, 0)]);
    check("bridges", &functions, vec![group, apart]);
    // A function that is where the bridge's alias points is in the group anyway.
    functions.push(old(at(2, 0, 0)));
    let plans = group_plans(&functions).unwrap();
    let found = plans
        .iter()
        .find(|plan| plan.members.contains(&one))
        .unwrap();
    assert!(found.members.contains(&at(2, 0, 0)));
    assert_eq!(found.requesters.len(), 5);
}

#[test]
fn bc05_xsa_449_phantom_functions_are_further_ids_of_their_function() {
    let phantom = |address, bits| PciFunction {
        phantoms: PhantomBits::from_device_capabilities(bits << 3),
        ..endpoint(address)
    };
    let device = at(0, 4, 0);
    let ids = |functions: &[u8]| {
        functions
            .iter()
            .map(|function| at(0, 4, *function))
            .collect()
    };
    let rows: [(u32, &[u8]); 4] = [
        (0, &[0]),
        (1, &[0, 4]),
        (2, &[0, 2, 4, 6]),
        (3, &[0, 1, 2, 3, 4, 5, 6, 7]),
    ];
    for (bits, functions) in rows {
        let expected = vec![(vec![device], ids(functions))];
        check("phantom bits", &[phantom(device, bits)], expected);
    }
    // Two functions with ACS, of which one may send with the other's id.
    let functions = [
        with_acs(phantom(device, 1)),
        with_acs(endpoint(at(0, 4, 4))),
    ];
    check(
        "a phantom that is a function",
        &functions,
        own(&[&[device, at(0, 4, 4)]]),
    );
    let functions = [
        with_acs(phantom(at(0, 4, 1), 2)),
        with_acs(endpoint(at(0, 4, 4))),
    ];
    let expected = vec![
        (vec![at(0, 4, 1)], ids(&[1, 3, 5, 7])),
        (vec![at(0, 4, 4)], ids(&[4])),
    ];
    check("a phantom that is none", &functions, expected);
}

#[test]
fn bc05_virtual_functions_are_members_of_their_own_with_their_own_ids() {
    let physical = |virtual_functions| PciFunction {
        virtual_functions,
        ..endpoint(at(1, 0, 0))
    };
    let port = |acs| PciFunction {
        access_control: acs,
        ..root_port(at(0, 1, 0), 1, 2)
    };
    let three = VirtualFunctions::from_registers(1, 3, 0x80, 0x7f);
    let vfs = [at(1, 0x10, 0), at(1, 0x1f, 7), at(2, 0x0f, 6)];
    let (first, second, third) = (vfs[0], vfs[1], vfs[2]);
    let own_ids = own(&[&[at(1, 0, 0)], &[first], &[second], &[third]]);
    check(
        "behind a port with ACS",
        &[port(ACS), physical(three)],
        own_ids.clone(),
    );
    // Listed as if they were physical: functions of one device, of which nothing is known.
    let listed = [
        port(ACS),
        physical(three),
        endpoint(first),
        endpoint(second),
    ];
    let together = own(&[&[at(1, 0, 0), first, second], &[third]]);
    check("listed too", &listed, together);
    let all = own(&[&[at(1, 0, 0), first, second, third]]);
    check(
        "behind a port without",
        &[port(AccessControl::NONE), physical(three)],
        all,
    );

    let off = VirtualFunctions::from_registers(0, 3, 0x80, 1);
    check(
        "switched off",
        &[port(ACS), physical(off)],
        own(&[&[at(1, 0, 0)]]),
    );
    // Damaged facts: all VFs have one id, or that of the function itself, or none that there is.
    let same = VirtualFunctions::from_registers(1, 3, 0x80, 0);
    check(
        "no stride",
        &[port(ACS), physical(same)],
        own(&[&[at(1, 0, 0)], &[first]]),
    );
    let itself = VirtualFunctions::from_registers(1, 1, 0, 1);
    check(
        "no offset",
        &[port(ACS), physical(itself)],
        own(&[&[at(1, 0, 0)]]),
    );
    let beyond = VirtualFunctions::from_registers(1, 0xffff, 0xffff, 0xffff);
    check(
        "beyond the last bus",
        &[port(ACS), physical(beyond)],
        own(&[&[at(1, 0, 0)]]),
    );
    let parent = group_plans(&[port(ACS), physical(three)]).unwrap();
    let third = parent
        .iter()
        .find(|plan| plan.members.contains(&third))
        .unwrap();
    assert_eq!(third.upstream, [at(0, 1, 0)]);
}

#[test]
fn groups_are_the_same_whatever_the_order_and_however_often_a_function_is_listed() {
    let mut functions = switch(|ports| ports[0].access_control = AccessControl::NONE);
    let plans = group_plans(&functions).unwrap();
    functions.reverse();
    let twice: Vec<_> = functions.iter().chain(&functions).copied().collect();
    assert_eq!(group_plans(&twice).unwrap(), plans);
    assert_eq!(group_plans(&[]).unwrap(), []);
}

fn any_kind() -> impl Strategy<Value = FunctionKind> {
    let range = (0_u8..6, 0_u8..6).prop_map(|(first, last)| buses(first, last));
    prop_oneof![
        4 => Just(FunctionKind::Endpoint),
        1 => Just(FunctionKind::Conventional),
        1 => range.clone().prop_map(FunctionKind::RootPort),
        1 => range.clone().prop_map(FunctionKind::UpstreamPort),
        1 => range.clone().prop_map(FunctionKind::DownstreamPort),
        1 => range.prop_map(FunctionKind::ConventionalBridge),
    ]
}

/// Any function at all, in a space small enough that functions meet; also what no machine can be.
fn any_function() -> impl Strategy<Value = PciFunction> {
    let acs = prop_oneof![
        Just(AccessControl::NONE),
        Just(ACS),
        (any::<u16>(), any::<u16>()).prop_map(|(cap, ctl)| AccessControl::from_registers(cap, ctl)),
    ];
    let vfs =
        (0_u16..2, 0_u16..5, 0_u16..0x300, 0_u16..0x100).prop_map(|(on, count, offset, stride)| {
            VirtualFunctions::from_registers(on, count, offset, stride)
        });
    let address =
        (0_u8..6, 0_u8..3, 0_u8..8).prop_map(|(bus, device, function)| at(bus, device, function));
    (address, any_kind(), any::<bool>(), acs, 0_u32..4, vfs).prop_map(
        |(address, kind, multi_function, access_control, phantoms, virtual_functions)| {
            PciFunction {
                address,
                kind,
                multi_function,
                access_control,
                phantoms: PhantomBits::from_device_capabilities(phantoms << 3),
                virtual_functions,
            }
        },
    )
}

proptest! {
    #[test]
    fn bc13_every_function_and_every_id_is_in_just_one_group(
        functions in proptest::collection::vec(any_function(), 0..24),
    ) {
        let plans = group_plans(&functions).unwrap();
        let holders = |id: PciAddress, list: fn(&GroupPlan) -> &Vec<PciAddress>| {
            plans.iter().filter(|plan| list(plan).contains(&id)).count()
        };
        for function in &functions {
            let member = holders(function.address, |plan| &plan.members);
            let port = holders(function.address, |plan| &plan.ports);
            if function.kind.buses().is_none() {
                prop_assert_eq!(member, 1, "{}", function.address);
            } else {
                prop_assert_eq!(port, 1, "{}", function.address);
            }
            for id in function.virtual_ids() {
                prop_assert_eq!(holders(id, |plan| &plan.members), 1, "{}", id);
            }
            for id in function.phantom_ids() {
                prop_assert_eq!(holders(id, |plan| &plan.requesters), 1, "{}", id);
            }
        }
        for plan in &plans {
            for id in &plan.requesters {
                prop_assert_eq!(holders(*id, |plan| &plan.requesters), 1, "{}", id);
            }
            for member in &plan.members {
                prop_assert!(plan.requesters.contains(member), "{}", member);
            }
        }
    }

    #[test]
    fn bc05_less_access_control_never_makes_a_group_smaller(
        functions in proptest::collection::vec(any_function(), 1..16),
        less in any::<proptest::sample::Index>(),
    ) {
        let before = group_plans(&functions).unwrap();
        let mut weaker = functions.clone();
        let changed = less.get(&functions).address;
        for function in weaker.iter_mut().filter(|function| function.address == changed) {
            function.access_control = AccessControl::NONE;
            function.multi_function = true;
        }
        let after = group_plans(&weaker).unwrap();
        for plan in &before {
            let Some(first) = plan.members.first() else { continue };
            let same = after.iter().find(|plan| plan.members.contains(first)).unwrap();
            for member in &plan.members {
                prop_assert!(same.members.contains(member), "{} and {}", first, member);
            }
        }
    }
}
