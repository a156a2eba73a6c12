//! Pages of 64 KiB, leaves of 512 MiB above.

#[path = "../bitmaps.rs"]
mod bitmaps;
#[path = "../high.rs"]
mod high;
#[path = "../messages.rs"]
mod messages;
#[path = "../sizes.rs"]
mod sizes;
#[path = "../stand.rs"]
#[expect(dead_code, reason = "the contract's stand, of which this needs a part")]
mod stand;
#[path = "../tables.rs"]
mod tables;

pub(crate) use super::suited;

/// The format, and log2 of its page in pages of 4 KiB.
pub(crate) type Format = hv_smmu::Vmsa64K;
pub(crate) const ORDER: u32 = 4;
pub(crate) type Backend = hv_smmu::Smmu<hv_rig::Rig, Format>;
