//! The architectures that the image runs on, and what differs between them for the tools.

use std::fmt;

use clap::ValueEnum;

use crate::tools::qemu::Version;

/// An architecture of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    /// x86_64 with Intel VT-d.
    #[value(name = "x86_64")]
    X86_64,
    /// AArch64 at EL2 with SMMUv3.
    Aarch64,
}

impl Arch {
    /// Both, in the order in which they run.
    pub(crate) const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// The compiler's target for bare metal.
    pub(crate) fn target(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-none",
            Self::Aarch64 => "aarch64-unknown-none",
        }
    }

    /// The emulator's name in PATH.
    pub(crate) fn emulator(self) -> &'static str {
        match self {
            Self::X86_64 => "qemu-system-x86_64",
            Self::Aarch64 => "qemu-system-aarch64",
        }
    }

    /// Debian's package with the emulator.
    pub(crate) fn debian_package(self) -> &'static str {
        match self {
            Self::X86_64 => "qemu-system-x86",
            Self::Aarch64 => "qemu-system-arm",
        }
    }

    /// The emulated IOMMU, for people.
    pub(crate) fn iommu(self) -> &'static str {
        match self {
            Self::X86_64 => "VT-d",
            Self::Aarch64 => "SMMUv3",
        }
    }

    /// The oldest release whose emulated IOMMU can do what the scenarios need: before 9.2 the virt board has no SMMU
    /// with both stages.
    pub(crate) fn oldest_qemu(self) -> Version {
        match self {
            Self::X86_64 => Version::new(8, 2, 0),
            Self::Aarch64 => Version::new(9, 2, 0),
        }
    }

    /// What the names of the IOMMU's trace events begin with.
    pub(crate) fn trace_prefixes(self) -> &'static [&'static str] {
        match self {
            Self::X86_64 => &["vtd_"],
            Self::Aarch64 => &["smmu_", "smmuv3_"],
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which of them a run is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    /// x86_64 with Intel VT-d.
    #[value(name = "x86_64")]
    X86_64,
    /// AArch64 at EL2 with SMMUv3.
    Aarch64,
    /// One after the other, and one table at the end.
    All,
}

impl Choice {
    /// The architectures, in the order in which they run.
    pub(crate) fn archs(self) -> &'static [Arch] {
        match self {
            Self::X86_64 => &[Arch::X86_64],
            Self::Aarch64 => &[Arch::Aarch64],
            Self::All => &Arch::ALL,
        }
    }
}

/// What the SMMU of the Arm board can do.
///
/// The present board has both stages and takes no word on that; the board of QEMU 9.1 does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Board {
    /// Both stages, nested.
    Nested,
    /// Stage 2 only.
    Stage2,
    /// Stage 1 only.
    Stage1,
}

impl Board {
    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nested => "nested",
            Self::Stage2 => "stage2",
            Self::Stage1 => "stage1",
        }
    }
}
