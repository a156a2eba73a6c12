//! The steps of `cargo xtask test` as a table. A new check is a new row here.

use std::process::Command;
use std::time::Duration;

use crate::arch::{Arch, Board};
use crate::workspace;

/// One rung of the ladder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// The name for `--only`.
    pub(crate) name: &'static str,
    /// One line on what it checks.
    pub(crate) what: &'static str,
    /// How long it may take; for steps that boot QEMU, how long each boot may take.
    pub(crate) limit: Duration,
    /// What is done.
    pub(crate) job: Job,
}

/// What a step does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Job {
    /// The house rules in `house/`; no program is run.
    House,
    /// A cargo command that is good or not.
    Check(Cargo),
    /// Clippy on what runs on bare metal, for every architecture.
    BareMetal,
    /// A cargo command that runs tests.
    Tests(Cargo),
    /// Every scenario that runs by default, in QEMU, on each of these machines.
    Scenarios(&'static [(Arch, Option<Board>)]),
    /// The Arm image as ELF and as a flat file, which differ in who says where the device tree is.
    FlatImage,
    /// For each planted fault, the scenario that has to fail because of it.
    PlantedFaults(&'static [Planted]),
}

/// A cargo command, with what is special about its build.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cargo {
    /// Arguments of cargo.
    pub(crate) arguments: &'static [&'static str],
    /// Environment of cargo.
    pub(crate) environment: &'static [(&'static str, &'static str)],
    /// Compiler flags, which need a build folder of their own: flags and folder inside the target folder.
    pub(crate) flags: Option<(&'static str, &'static str)>,
}

impl Cargo {
    /// With nothing special.
    const fn plain(arguments: &'static [&'static str]) -> Self {
        Self {
            arguments,
            environment: &[],
            flags: None,
        }
    }

    /// The cargo command.
    pub(crate) fn command(&self) -> Command {
        let mut command = workspace::cargo();
        command.envs(self.environment.iter().copied());
        let mut arguments = self.arguments.iter();
        // The build folder stands behind the subcommand: what follows a `--` is not for cargo.
        command.args(arguments.next());
        if let Some((flags, folder)) = self.flags {
            command.env("RUSTFLAGS", workspace::rustflags(flags));
            command
                .arg("--target-dir")
                .arg(workspace::target_dir().join(folder));
        }
        command.args(arguments);
        command
    }
}

/// Clippy on the crates and the image as they are built for `arch`.
pub(crate) fn bare_metal_clippy(arch: Arch) -> Command {
    let mut command = workspace::cargo();
    command.args(["clippy", "--target", arch.target()]);
    for package in BARE_METAL_PACKAGES {
        command.args(["--package", package]);
    }
    command.args(["--features", "hv-image/bare-metal", "--", "-D", "warnings"]);
    command
}

/// What is built for bare metal.
const BARE_METAL_PACKAGES: [&str; 5] = ["hv-core", "hv-iommu", "hv-vtd", "hv-smmu", "hv-image"];

/// The machines on which all is shown that needs no asking.
const MACHINES: &[(Arch, Option<Board>)] = &[
    (Arch::X86_64, None),
    (Arch::Aarch64, Some(Board::Nested)),
    (Arch::Aarch64, Some(Board::Stage2)),
    (Arch::Aarch64, Some(Board::Stage1)),
];

/// A fault that is planted in the image, with the scenario that has to catch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planted {
    /// The fault, by the name that the image knows.
    pub(crate) fault: &'static str,
    /// The scenario that has to fail.
    pub(crate) scenario: &'static str,
    /// Where it has to: a fault may be one of the other vendor's driver, or of something that QEMU's IOMMU does not do.
    pub(crate) archs: &'static [Arch],
    /// What the scenario says then, in its own words: one that fails for another reason did not catch the fault.
    pub(crate) says: &'static str,
}

const fn planted(
    fault: &'static str,
    scenario: &'static str,
    archs: &'static [Arch],
    says: &'static str,
) -> Planted {
    Planted {
        fault,
        scenario,
        archs,
        says,
    }
}

/// Faults of the driver of VT-d units.
const X86: &[Arch] = &[Arch::X86_64];
/// Faults of the driver of SMMUs.
const ARM: &[Arch] = &[Arch::Aarch64];
/// Faults of what both share.
const BOTH: &[Arch] = &Arch::ALL;

/// Each planted fault with the scenario that has to catch it, and where.
pub(crate) const PLANTED_FAULTS: &[Planted] = &[
    planted(
        "drop_last_scope",
        "discover",
        X86,
        "expected one unit that covers it, found none",
    ),
    planted(
        "skip_iotlb_flush",
        "reassign",
        X86,
        "the guest's drive reached the hypervisor's memory",
    ),
    planted(
        "skip_context_flush",
        "reassign",
        X86,
        "controller failed while waiting for admin command",
    ),
    planted(
        "swap_neighbours",
        "kernel-dma",
        BOTH,
        "a buffer's frames stay with the domain",
    ),
    planted(
        "leave_translation_off",
        "blocked",
        BOTH,
        "a unit that does not translate",
    ),
    planted(
        "ignore_permissions",
        "blocked",
        BOTH,
        "through a read-only mapping reached memory",
    ),
    planted("skip_iotlb_flush", "revoke", BOTH, "after the receipt"),
    planted(
        "lose_last_frame",
        "concurrent",
        BOTH,
        "frames were in use before",
    ),
    planted(
        "keep_detached_tables",
        "tables",
        BOTH,
        "0 tables came back with their range",
    ),
    planted(
        "skip_cut_off",
        "shut-down",
        BOTH,
        "has bus mastering after the shut-down",
    ),
    planted(
        "translation_on_at_end",
        "shut-down",
        X86,
        "still stands between the drive and memory",
    ),
    planted(
        "gate_open_at_end",
        "shut-down",
        ARM,
        "through a gate that has to be closed",
    ),
    planted("gate_without_update", "discover", ARM, "(GBPA.ABORT)"),
    planted(
        "acknowledge_unseen_errors",
        "discover",
        ARM,
        "a global error (GERROR)",
    ),
    planted(
        "region_not_mapped",
        "kernel-dma",
        ARM,
        "is not mapped for messages",
    ),
    planted(
        "domain_id_zero",
        "kernel-dma",
        ARM,
        "a domain id that the unit does not have",
    ),
    planted(
        "clear_access_flag",
        "kernel-dma",
        ARM,
        "controller failed while waiting for admin command",
    ),
    planted("keep_events", "blocked", ARM, "no fault names a read of"),
    planted(
        "leave_interrupts_off",
        "blocked",
        BOTH,
        "no interrupt told of it",
    ),
    planted("free_page_early", "revoke", ARM, "after the receipt"),
    planted("flush_other_vmid", "revoke", ARM, "after the receipt"),
    planted(
        "unbind_keeps_translations",
        "reassign",
        ARM,
        "the guest's drive reached the hypervisor's memory",
    ),
    planted(
        "user_command_other_vmid",
        "nested",
        ARM,
        "after the guest had it forgotten",
    ),
    planted(
        "user_contexts_kept",
        "nested",
        ARM,
        "went on in the address space that the guest had turned from",
    ),
    planted(
        "nested_flush_by_pages",
        "nested",
        ARM,
        "the page that the hypervisor unmapped, after the receipt",
    ),
    planted(
        "drop_wrap_bit",
        "concurrent",
        ARM,
        "a queue head past the commands that it was given",
    ),
];

/// The loom models.
const LOOM: &[&str] = &[
    "test",
    "--package",
    "hv-tests",
    "--release",
    "--test",
    "loom",
    "--test",
    "loom_stage2",
    "--no-fail-fast",
];

/// The ladder, from quick to slow.
pub(crate) const STEPS: &[Step] = &[
    Step {
        name: "fmt",
        what: "sources are formatted",
        limit: Duration::from_secs(120),
        job: Job::Check(Cargo::plain(&["fmt", "--all", "--check"])),
    },
    Step {
        name: "house",
        what: "house rules hold",
        limit: Duration::from_secs(60),
        job: Job::House,
    },
    Step {
        name: "clippy",
        what: "no lint fires on the host build",
        limit: Duration::from_secs(1200),
        job: Job::Check(Cargo::plain(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ])),
    },
    Step {
        name: "clippy-bare-metal",
        what: "no lint fires on the crates and the image for any of their bare-metal targets",
        limit: Duration::from_secs(900),
        job: Job::BareMetal,
    },
    Step {
        name: "clippy-loom",
        what: "no lint fires on the models' build",
        limit: Duration::from_secs(600),
        job: Job::Check(Cargo {
            arguments: &[
                "clippy",
                "--package",
                "hv-tests",
                "--test",
                "loom",
                "--test",
                "loom_stage2",
                "--",
                "-D",
                "warnings",
            ],
            environment: &[],
            flags: Some(("--cfg hv_loom", "loom")),
        }),
    },
    Step {
        name: "unit",
        what: "unit, integration and documentation tests",
        limit: Duration::from_secs(1800),
        job: Job::Tests(Cargo {
            arguments: &["test", "--workspace", "--no-fail-fast"],
            environment: &[],
            flags: None,
        }),
    },
    Step {
        name: "matrix",
        what: "floors, engine and peers of the benchmark do the same in the other table format too",
        limit: Duration::from_secs(900),
        job: Job::Tests(Cargo::plain(&[
            "test",
            "--package",
            "hv-bench",
            "--features",
            "vmsa",
            "--no-fail-fast",
        ])),
    },
    Step {
        name: "loom",
        what: "interleavings of the lock-free parts, to the printed bounds",
        limit: Duration::from_secs(1800),
        job: Job::Tests(Cargo {
            arguments: LOOM,
            environment: &[],
            flags: Some(("--cfg hv_loom", "loom")),
        }),
    },
    Step {
        name: "loom-faults",
        what: "each protection that is taken out of the lock-free parts makes its models fail",
        limit: Duration::from_secs(900),
        job: Job::Tests(Cargo {
            arguments: LOOM,
            environment: &[],
            flags: Some(("--cfg hv_loom --cfg hv_fault", "loom-faults")),
        }),
    },
    Step {
        name: "table-faults",
        what: "the property tests notice each deliberate fault of the table",
        limit: Duration::from_secs(900),
        job: Job::Tests(Cargo {
            arguments: &[
                "test",
                "--package",
                "hv-tests",
                "--test",
                "table_model",
                "--no-fail-fast",
            ],
            environment: &[],
            flags: Some(("--cfg hv_fault", "rig-faults")),
        }),
    },
    Step {
        name: "rig-faults",
        what: "the rig catches and names each protection that is taken out of the driver",
        limit: Duration::from_secs(900),
        job: Job::Tests(Cargo {
            arguments: &[
                "test",
                "--package",
                "hv-rig",
                "--test",
                "planted",
                "--no-fail-fast",
            ],
            environment: &[],
            flags: Some(("--cfg hv_fault", "rig-faults")),
        }),
    },
    Step {
        name: "soak",
        what: "a few seconds of random lives on the rig, from a new seed",
        limit: Duration::from_secs(600),
        job: Job::Check(Cargo::plain(&[
            // As the tests are built: `cargo xtask soak` lives faster, and is built in ten times what this lives.
            "run",
            "--package",
            "hv-rig",
            "--bin",
            "soak",
            "--",
            "--seconds",
            "10",
        ])),
    },
    Step {
        name: "scenarios",
        what: "every scenario in QEMU, on every board, checked from outside",
        limit: Duration::from_secs(120),
        job: Job::Scenarios(MACHINES),
    },
    Step {
        name: "flat-image",
        what: "the Arm image finds its device tree where x0 says as a flat file, and at the start of RAM as ELF",
        limit: Duration::from_secs(120),
        job: Job::FlatImage,
    },
    Step {
        name: "faults",
        what: "each planted fault makes its scenario fail",
        limit: Duration::from_secs(120),
        job: Job::PlantedFaults(PLANTED_FAULTS),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_planted_faults_name_real_scenarios() {
        for (at, step) in STEPS.iter().enumerate() {
            assert!(
                STEPS[at + 1..].iter().all(|other| other.name != step.name),
                "{} is there twice",
                step.name
            );
        }
        for (at, planted) in PLANTED_FAULTS.iter().enumerate() {
            let Planted {
                fault, scenario, ..
            } = planted;
            assert!(
                crate::scenarios::ALL
                    .iter()
                    .any(|known| known.name == *scenario),
                "{fault} names the scenario {scenario}, which is not known"
            );
            assert!(!planted.archs.is_empty(), "{fault} is planted nowhere");
            let again = |other: &Planted| (other.fault, other.scenario) == (*fault, *scenario);
            assert!(
                !PLANTED_FAULTS[at + 1..].iter().any(again),
                "{fault} with {scenario} is there twice"
            );
        }
        for arch in Arch::ALL {
            let mut here = PLANTED_FAULTS.iter();
            assert!(
                here.any(|planted| planted.archs.contains(&arch)),
                "{arch} has no planted fault"
            );
        }
    }
}
