//! Operations of a random life, as data: whatever the state, every operation means something.

use core::fmt;

use crate::driver::Vendor;
use crate::rng::Rng;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Claims a blocked group, for the hypervisor or a guest.
    Claim,
    /// Gives a claim up.
    Release,
    /// Makes a domain for a claimed group.
    Allocate,
    /// Attaches a claimed group to a domain of its owner.
    Attach,
    /// Detaches a group.
    Detach,
    /// Moves a group from its owner to another one, all the way.
    Reassign,
    /// Maps a range.
    Map,
    /// Maps a range that large pages fit.
    MapLarge,
    /// Unmaps a range and waits for the receipt.
    Unmap,
    /// Unmaps a range and leaves it pending.
    UnmapLater,
    /// Flushes a domain and opens everything that is pending.
    Flush,
    /// Flushes a few pages of a domain, and opens what is pending there.
    FlushPages,
    /// Cuts a mapped range in two where no page is cut.
    Split,
    /// Cuts a mapped range in two at any page.
    Cut,
    /// Makes larger pages of a mapped range.
    Merge,
    /// Changes what devices may do with a mapped range.
    Protect,
    /// Makes one range of two neighbours.
    Join,
    /// Pays what a range owes for earlier changes.
    Settle,
    /// Gives the empty tables of a domain back.
    Reclaim,
    /// Makes many tables and empties them.
    Sow,
    /// Makes tables below tables and takes them out as one.
    Nest,
    /// Lets a device keep translations itself, or lets it no more (SMMUs).
    DeviceTlb,
    /// Does something with a guest that has a first stage of its own (SMMUs).
    Guest,
    /// Looks whether what a device writes is told.
    Written,
    /// Lets a group of a guest stay in an address space for a while.
    AddressSpace,
    /// Unmaps a range under a CPU that walks in its tables.
    UnmapWalked,
    /// Maps single pages of a shared range, and takes them out again.
    Share,
    /// Forgets a mapped range, or a pending value.
    Forget,
    /// Makes a coherent buffer, which CPU and device both write, and frees it; or lends memory for a while.
    Buffer,
    /// Turns a member's bus mastering off and on.
    BusMaster,
    /// Ends a domain.
    Destroy,
    /// Devices send, to what is mapped and to what is not.
    Send,
    /// A device sends what is not mapped, many times.
    Storm,
    /// Takes the fault logs.
    Faults,
    /// Makes an allocation of frames fail soon.
    FailAllocation,
    /// A unit hangs, for longer than any deadline or not quite.
    Hang,
    /// Resets what is wedged.
    Reset,
    /// A device is pulled out, or plugged in again.
    Plug,
    /// A unit stops answering for good.
    LoseUnit,
    /// Time passes.
    Idle,
}

/// Each kind with how often it comes.
const WEIGHTS: &[(Kind, u64)] = &[
    (Kind::Claim, 6),
    (Kind::Release, 1),
    (Kind::Allocate, 6),
    (Kind::Attach, 8),
    (Kind::Detach, 4),
    (Kind::Reassign, 2),
    (Kind::Map, 24),
    (Kind::Unmap, 12),
    (Kind::UnmapLater, 8),
    (Kind::Flush, 4),
    (Kind::FlushPages, 2),
    (Kind::Split, 4),
    (Kind::Cut, 7),
    (Kind::Merge, 6),
    (Kind::Protect, 5),
    (Kind::Join, 4),
    (Kind::Settle, 5),
    (Kind::Reclaim, 4),
    (Kind::UnmapWalked, 3),
    (Kind::Share, 3),
    (Kind::Forget, 1),
    (Kind::Buffer, 4),
    (Kind::BusMaster, 3),
    (Kind::Destroy, 3),
    (Kind::Send, 20),
    (Kind::Storm, 1),
    (Kind::Faults, 4),
    (Kind::FailAllocation, 3),
    (Kind::Hang, 2),
    (Kind::Reset, 3),
    (Kind::Plug, 1),
    (Kind::Idle, 4),
];

/// The same, of lives that are about page sizes, permissions and tables more than about groups.
const SIZES: &[(Kind, u64)] = &[
    (Kind::Claim, 2),
    (Kind::Allocate, 2),
    (Kind::Attach, 4),
    (Kind::Detach, 1),
    (Kind::Map, 4),
    (Kind::MapLarge, 12),
    (Kind::Unmap, 8),
    (Kind::UnmapLater, 4),
    (Kind::UnmapWalked, 4),
    (Kind::Flush, 3),
    (Kind::FlushPages, 2),
    (Kind::Cut, 14),
    (Kind::Merge, 14),
    (Kind::Protect, 8),
    (Kind::Join, 14),
    (Kind::Settle, 8),
    (Kind::Reclaim, 8),
    (Kind::Nest, 1),
    (Kind::Sow, 1),
    (Kind::Send, 14),
    (Kind::Faults, 1),
    (Kind::FailAllocation, 1),
    (Kind::Hang, 3),
    (Kind::Reset, 3),
    (Kind::Destroy, 1),
    (Kind::Idle, 4),
];

/// What a life begins with, over and over.
const SETTLING: [Kind; 5] = [
    Kind::Claim,
    Kind::Allocate,
    Kind::Attach,
    Kind::Map,
    Kind::MapLarge,
];
/// For how many operations.
const OPENING: usize = 30;

/// One operation: what, and numbers to choose by, taken modulo what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// What is done.
    pub kind: Kind,
    /// What is chosen by.
    pub choice: [u64; 3],
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.kind)
    }
}

/// What lives with SMMUs do beside, in some lives much and in others nothing.
const OF_SMMUS: [&[Kind]; 4] = [
    &[],
    &[Kind::DeviceTlb],
    &[Kind::Guest],
    &[Kind::DeviceTlb, Kind::Guest],
];
/// What all lives do beside, likewise.
const OF_ALL: [&[Kind]; 4] = [
    &[],
    &[Kind::Written],
    &[Kind::AddressSpace],
    &[Kind::Written, Kind::AddressSpace],
];

/// The operations of this seed, on machines of this vendor.
pub fn ops(vendor: Vendor, seed: u64, count: usize) -> Vec<Op> {
    let mut ops = of_all(seed, count);
    if vendor == Vendor::Smmu {
        beside(&mut ops, &OF_SMMUS, 4, seed ^ 0x736d_6d75);
    }
    beside(&mut ops, &OF_ALL, 12, seed ^ 0x77_7269_7474_656e);
    ops
}

/// Has one in so many operations replaced by one of some kinds, where these are drawn. The seed is of its own, so that
/// the rest of a life does not depend on it.
fn beside(ops: &mut [Op], kinds: &[&[Kind]], one_in: u64, seed: u64) {
    let mut rng = Rng::new(seed);
    let kinds = rng.pick(kinds).copied().unwrap_or(&[]);
    for op in ops.iter_mut().skip(OPENING) {
        if rng.one_in(one_in)
            && op.kind != Kind::LoseUnit
            && let Some(kind) = rng.pick(kinds)
        {
            op.kind = *kind;
        }
    }
}

/// Those of every vendor's.
fn of_all(seed: u64, count: usize) -> Vec<Op> {
    let mut rng = Rng::new(seed ^ 0x6c69_6665);
    let weights = if rng.one_in(3) { SIZES } else { WEIGHTS };
    let total = weights.iter().map(|(_, weight)| weight).sum();
    // Few lives lose a unit for good: nothing much happens afterwards.
    let loses = rng.one_in(40).then(|| rng.below(count as u64) as usize);
    (0..count)
        .map(|index| {
            let mut left = rng.below(total);
            let chosen = weights.iter().find(|(_, weight)| {
                let here = left < *weight;
                left = left.wrapping_sub(*weight);
                here
            });
            let kind = match chosen {
                _ if loses == Some(index) => Kind::LoseUnit,
                // Something has to be there before much can happen.
                _ if index < OPENING => SETTLING[index % SETTLING.len()],
                Some((kind, _)) => *kind,
                None => Kind::Idle,
            };
            Op {
                kind,
                choice: [rng.next(), rng.next(), rng.next()],
            }
        })
        .collect()
}
