//! What can be wrong with a tree, and where.

use core::fmt;

use arrayvec::ArrayVec;
use hv_core::OutOfMemory;
use thiserror::Error;

use crate::iort::Ascii;

/// The name of a node, or the start of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct NodeName {
    bytes: [u8; Self::LIMIT],
    length: u8,
}

impl NodeName {
    const LIMIT: usize = 24;
    /// The tree itself.
    pub(super) const EMPTY: Self = Self {
        bytes: [0; Self::LIMIT],
        length: 0,
    };

    pub(super) fn new(name: &[u8]) -> Self {
        let mut kept = ArrayVec::<u8, { Self::LIMIT }>::new();
        kept.extend(name.iter().copied().take(Self::LIMIT));
        let length = kept.len() as u8;
        let rest = Self::LIMIT - kept.len();
        kept.extend(core::iter::repeat_n(0, rest));
        match kept.into_inner() {
            Ok(bytes) => Self { bytes, length },
            Err(_) => Self::EMPTY,
        }
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.length == 0 {
            return f.write_str("the tree");
        }
        let name = self.bytes.get(..usize::from(self.length));
        fmt::Display::fmt(&Ascii(name.unwrap_or_default()), f)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// The tree is shorter than it says.
    Size,
    /// The bytes are no tree.
    Magic,
    /// The layout is another version's.
    Version,
    /// Tokens or names are not where the tree can have them.
    Blocks,
    /// A token is none, or does not end.
    Token,
    /// Nodes are not nested.
    Nesting,
    /// An SMMU's registers cannot be there, or are not told.
    Registers,
    /// Two SMMUs have the same registers.
    DuplicateRegisters,
    /// An SMMU's StreamIDs are not one cell.
    StreamCells,
    /// An SMMU's interrupts are not told in a way that is known; they count as none.
    Interrupts,
    /// A map of ids is cut off, passes the end of the ids, or names no node.
    IdMap,
    /// A map of ids sends one to two places.
    IdMapOverlap,
    /// A reference names no node, or is cut off.
    Reference,
    /// A host bridge's buses are not two of 256.
    Buses,
    /// Of several host bridges, some say which segment they are, and others do not, or two say the same.
    Segment,
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Size => "size: expected as many bytes as the header says",
            Self::Magic => "magic: expected 0xd00dfeed",
            Self::Version => "version: expected one that is compatible with 17",
            Self::Blocks => "block: expected one within the tree",
            Self::Token => "token: expected a whole one",
            Self::Nesting => "token: expected nodes within one root, properties before children",
            Self::Registers => {
                "registers: expected a multiple of 0x10000 that is not 0, and two pages of 0x10000"
            }
            Self::DuplicateRegisters => "registers: expected ones that no other unit has",
            Self::StreamCells => "#iommu-cells: expected 1",
            Self::Interrupts => "interrupts: expected names, and of each as many cells as its controller says, three or four",
            Self::IdMap => "map of ids: expected whole entries of nodes that are there",
            Self::IdMapOverlap => "map of ids: expected one entry for each id",
            Self::Reference => "reference: expected that of a node",
            Self::Buses => "bus-range: expected two of 256, in order",
            Self::Segment => {
                "linux,pci-domain: expected one of its own for each host bridge, or none at all"
            }
        })
    }
}

/// One thing that is wrong with a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("device tree, {node}: {what}, found {found:#x}")]
pub struct Finding {
    /// In which node.
    pub node: NodeName,
    /// What, and what would have been right.
    pub what: Defect,
    /// What is there.
    pub found: u64,
}

impl Finding {
    /// Whether nothing that protects memory can depend on it: interrupts are polled for too.
    pub const fn is_harmless(&self) -> bool {
        matches!(self.what, Defect::Interrupts)
    }
}

/// Why a tree cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TreeError {
    /// It is wrong in a way that could lose a unit.
    #[error(transparent)]
    Malformed(#[from] Finding),
    /// More units than can be numbered.
    #[error(
        "too many SMMUs: expected at most {}, found {found}",
        hv_iommu::UnitIndex::LIMIT
    )]
    TooManyUnits {
        /// How many there are.
        found: usize,
    },
    /// There was no memory to keep what it says.
    #[error("device tree: {0}")]
    OutOfMemory(OutOfMemory),
}
