//! The scenarios that the image knows, in the order in which it runs them.

use anyhow::{Result, bail};

use crate::arch::Arch;

/// A scenario of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scenario {
    /// The name on the command line and in the image's events.
    pub(crate) name: &'static str,
    /// One line on what it shows.
    pub(crate) what: &'static str,
    /// Whether it runs when none is named.
    pub(crate) by_default: bool,
    /// Where there is what it shows.
    pub(crate) archs: &'static [Arch],
}

/// Lists the hardware; brings the two tables.
pub(crate) const DISCOVER: &str = "discover";
/// Reads and writes the disk; brings a digest and a written region to be checked from outside.
pub(crate) const KERNEL_DMA: &str = "kernel-dma";

/// Moves the drive between owners, where the board lets a guest have it.
pub(crate) const REASSIGN: &str = "reassign";
/// A guest's own first stage, where the board has both stages.
pub(crate) const NESTED: &str = "nested";

/// Runs before any IOMMU is brought up.
pub(crate) const UNTRANSLATED: &str = "untranslated";
/// Ends the subsystem; what it shows then is the vendor's.
pub(crate) const SHUT_DOWN: &str = "shut-down";

/// All scenarios.
pub(crate) const ALL: [Scenario; 10] = [
    Scenario {
        name: UNTRANSLATED,
        what: "a step of development, only when named: the drive works with no IOMMU; shows no isolation",
        by_default: false,
        archs: &Arch::ALL,
    },
    Scenario {
        name: DISCOVER,
        what: "find the IOMMU units, what they can do and every PCI function they cover",
        by_default: true,
        archs: &Arch::ALL,
    },
    Scenario {
        name: KERNEL_DMA,
        what: "read and write the NVMe disk through a translated domain; checked on the host",
        by_default: true,
        archs: &Arch::ALL,
    },
    Scenario {
        name: "blocked",
        what: "DMA to an address that is not mapped leaves memory as it was and is reported",
        by_default: true,
        archs: &Arch::ALL,
    },
    Scenario {
        name: "revoke",
        what: "unmap memory under a running device: DMA must end before the memory is reused",
        by_default: true,
        archs: &Arch::ALL,
    },
    Scenario {
        name: REASSIGN,
        what: "move a device from one owner to another; nothing of the old mapping stays",
        by_default: true,
        archs: &Arch::ALL,
    },
    Scenario {
        name: NESTED,
        what: "on aarch64: a guest's own first stage on what the hypervisor maps for it; each blocks what it does not map",
        by_default: true,
        archs: &[Arch::Aarch64],
    },
    Scenario {
        name: "concurrent",
        what: "several CPUs map and unmap in one domain while devices do DMA",
        by_default: true,
        archs: &Arch::ALL,
    },
    Scenario {
        name: "tables",
        what: "split and merge a large page under DMA; table pages come back while the domain lives",
        by_default: true,
        archs: &Arch::ALL,
    },
    Scenario {
        name: SHUT_DOWN,
        what: "turn the subsystem off under an attached drive, which reaches nothing any more",
        by_default: true,
        archs: &Arch::ALL,
    },
];

/// Picks scenarios by name in the image's order; no names at all means every one that runs by default.
///
/// # Errors
/// When a name is not known; the message lists the known ones.
pub(crate) fn pick(names: &[String]) -> Result<Vec<&'static str>> {
    if let Some(unknown) = names
        .iter()
        .find(|name| ALL.iter().all(|scenario| scenario.name != **name))
    {
        let known: Vec<&str> = ALL.iter().map(|scenario| scenario.name).collect();
        bail!(
            "unknown scenario {unknown:?}: expected one of {}",
            known.join(", ")
        );
    }
    let wanted = |scenario: &Scenario| match names {
        [] => scenario.by_default,
        names => names.iter().any(|name| name == scenario.name),
    };
    Ok(ALL
        .iter()
        .filter(|scenario| wanted(scenario))
        .map(|scenario| scenario.name)
        .collect())
}

/// Those of the picked scenarios that `arch` has.
pub(crate) fn on(arch: Arch, picked: &[&'static str]) -> Vec<&'static str> {
    let has = |name: &&'static str| {
        let mut known = ALL.iter();
        known.any(|scenario| scenario.name == *name && scenario.archs.contains(&arch))
    };
    picked.iter().copied().filter(has).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn no_name_means_all_and_the_order_is_the_images() {
        assert_eq!(pick(&[]).unwrap().len(), ALL.len() - 1);
        assert_eq!(
            pick(&names(&["revoke", "discover", "revoke"])).unwrap(),
            ["discover", "revoke"]
        );
    }

    #[test]
    fn each_architecture_runs_what_it_has() {
        let picked = pick(&names(&["reassign", "nested"])).unwrap();
        assert_eq!(on(Arch::Aarch64, &picked), ["reassign", "nested"]);
        assert_eq!(on(Arch::X86_64, &picked), ["reassign"]);
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = pick(&names(&["discover", "rewoke"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"rewoke\"")
                && error.contains("revoke, reassign, nested, concurrent, tables"),
            "{error}"
        );
    }
}
