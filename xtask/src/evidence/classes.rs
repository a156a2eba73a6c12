//! The classes of IOMMU faults that production code has shipped, and what shows that this code has none of them.

use super::Kind;

/// One class.
#[derive(Clone, Copy, Debug)]
pub(super) struct Class {
    /// Its number: tests of it begin with `bcNN_`.
    pub(super) number: u8,
    /// What goes wrong.
    pub(super) what: &'static str,
    /// Best-known instances, by public names.
    pub(super) known: &'static str,
    /// What kinds of evidence it needs at least.
    pub(super) needs: &'static [Kind],
}

const fn class(
    number: u8,
    what: &'static str,
    known: &'static str,
    needs: &'static [Kind],
) -> Class {
    Class {
        number,
        what,
        known,
        needs,
    }
}

use Kind::{Loom, Rig, Test, Type};

/// All classes, by number.
pub(super) const CLASSES: &[Class] = &[
    class(
        1,
        "a flush that timed out taken for success; a late completion that satisfies another wait",
        "XSA-373, ACRN#4680",
        &[Type, Loom, Rig],
    ),
    class(
        2,
        "a page or table freed before the flush, or without one",
        "XSA-346, XSA-480, CVE-2025-71202",
        &[Type, Loom, Rig],
    ),
    class(
        3,
        "a flush left out by a wrong condition, or too short",
        "XSA-78, XSA-80, XSA-275, CVE-2026-31735",
        &[Test, Rig],
    ),
    class(
        4,
        "a live entry written in pieces, or in the wrong order",
        "XSA-347, XSA-328, CVE-2026-45944",
        &[Type, Rig],
    ),
    class(
        5,
        "requests of the last owner that reach the next; devices moved in part",
        "XSA-302, XSA-306, XSA-386, XSA-400, XSA-449",
        &[Type, Rig],
    ),
    class(
        6,
        "regions that firmware reserves: merged, forgotten, removed",
        "XSA-378, XSA-400, XSA-460",
        &[Rig, Test],
    ),
    class(
        7,
        "a domain id reused while something still uses it",
        "XSA-399",
        &[Type, Loom],
    ),
    class(
        8,
        "depth of the table and depth that the unit was told of differ",
        "XSA-390, XSA-445, XSA-450",
        &[Type, Test],
    ),
    class(
        9,
        "a large page split or merged in view of a device",
        "XSA-304, XSA-275, XSA-222",
        &[Type, Loom, Rig],
    ),
    class(
        10,
        "interrupt entries that do not check their source",
        "XSA-33, XSA-36, XSA-49",
        &[Type],
    ),
    class(
        11,
        "a malformed interrupt message that stops the host",
        "XSA-59",
        &[Test],
    ),
    class(
        12,
        "translation on before old state is gone; capability bits ignored",
        "Asterinas#3920, seL4#1729",
        &[Type, Rig],
    ),
    class(
        13,
        "a unit or a requester left out",
        "last or first remapping unit taken for all",
        &[Test, Rig],
    ),
    class(
        14,
        "queue positions that wrap wrongly",
        "one past the ring; head equal to tail taken for done",
        &[Loom, Test],
    ),
    class(
        15,
        "waiting for ever for a device that is gone",
        "CVE-2026-43130, CVE-2026-43161",
        &[Type, Rig],
    ),
    class(
        16,
        "locks: order, starvation, errors lost under them",
        "XSA-467, XSA-395",
        &[Loom, Rig],
    ),
    class(
        17,
        "memory that changes hands while a device still reaches it",
        "XSA-285, XSA-288, XSA-379",
        &[Type, Rig],
    ),
    class(
        18,
        "frames, ids or tables lost on an error path or in a teardown",
        "XSA-207, XSA-360",
        &[Rig],
    ),
    class(
        19,
        "a fault path that uses what is gone, or panics",
        "CVE-2024-35843",
        &[Test, Loom],
    ),
    class(
        20,
        "speculation on a number that a guest chose",
        "masks in pKVM",
        &[Test],
    ),
    class(
        21,
        "a domain that ends while a device is still in it",
        "XSA-207",
        &[Type],
    ),
];
