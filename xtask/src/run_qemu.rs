//! `cargo xtask run-qemu`: builds the image, boots it in QEMU and judges the run.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use console::style;

use crate::image::{self, Flavour};
use crate::ladder::PLANTED_FAULTS;
use crate::progress::seconds;
use crate::qemu_run::command::Machine;
use crate::qemu_run::serial::Outcome;
use crate::qemu_run::{self, Expectation, Run, json};
use crate::tools::qemu::Qemu;
use crate::tools::{self, target};
use crate::{scenarios, workspace};

/// What `run-qemu` can be told.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Scenario to run; may be given several times or as a list with commas (default: all)
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    scenario: Vec<String>,
    /// List the scenarios and leave
    #[arg(long)]
    list: bool,
    /// Number of processors of the machine
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=16))]
    smp: u32,
    /// Write a report for programs to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Have QEMU write its VT-d trace events to this file
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// One more argument for QEMU; may be given several times
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    qemu_arg: Vec<String>,
    /// Seconds that QEMU may run before it is killed
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Build the image with planted faults and switch this one on; may be given several times. One alone runs the scenario
    /// that has to catch it, unless others are named, and the run is good if that fails
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    fault: Vec<String>,
    /// Show every serial line and the output of every tool
    #[arg(long, short)]
    verbose: bool,
}

/// QEMU and an image to boot in it.
pub(crate) struct Ready {
    /// The emulator.
    pub(crate) qemu: Qemu,
    /// The image.
    pub(crate) image: PathBuf,
}

/// Sees to compiler target and QEMU, and builds the image.
///
/// # Errors
/// When one of them is missing and cannot be fetched, or the image does not build.
pub(crate) fn make_ready(flavour: Flavour, verbose: bool) -> Result<Ready> {
    target::ensure(verbose)?;
    let qemu = tools::qemu::ensure(&workspace::scratch_dir(), verbose)?;
    Ok(Ready {
        qemu,
        image: image::build(flavour, verbose)?,
    })
}

/// Runs the task.
///
/// # Errors
/// When anything is missing, and when the run is not as it has to be.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.list {
        for scenario in scenarios::ALL {
            println!("{:12} {}", scenario.name, scenario.what);
        }
        println!("\nfaults for --fault, with the scenario that has to catch each:");
        for (fault, scenario) in PLANTED_FAULTS {
            println!("{scenario:12} {fault}");
        }
        return Ok(());
    }
    for fault in &options.fault {
        let known = PLANTED_FAULTS.iter().any(|(name, _)| name == fault);
        if !known {
            bail!("unknown fault {fault:?}: `cargo xtask run-qemu --list` shows the known ones");
        }
    }
    let (scenarios, expect) = plan(&options.fault, scenarios::pick(&options.scenario)?);
    let flavour = if options.fault.is_empty() {
        Flavour::Plain
    } else {
        Flavour::PlantedFaults
    };
    let ready = make_ready(flavour, options.verbose)?;
    let machine = Machine {
        smp: options.smp,
        image: ready.image,
        scenarios: scenarios.clone(),
        faults: options.fault.clone(),
        trace: options.trace.clone(),
        extra: options.qemu_arg.clone(),
    };
    let limit = Duration::from_secs(options.timeout);
    let run = qemu_run::run(&ready.qemu, &machine, limit, expect, options.verbose)?;
    let (passed, failed) = summary(&run, &scenarios);
    if let Some(file) = &options.trace {
        println!("VT-d trace of QEMU: {}", file.display());
    }
    if let Some(file) = &options.json {
        json::write(file, &run, ready.qemu.version, options.smp)?;
        println!("report: {}", file.display());
    }
    let faults = options.fault.join(", ");
    match (expect, run.problems.is_empty()) {
        (Expectation::Caught(scenario), true) => {
            println!(
                "caught in {}: {scenario} failed, as it has to with {faults} planted",
                seconds(run.elapsed)
            );
            Ok(())
        }
        (Expectation::Caught(scenario), false) => {
            bail!("{scenario} did not catch {faults} as it has to: see the contradictions above")
        }
        (Expectation::Pass, good) => {
            println!(
                "{passed} passed, {failed} failed in {}",
                seconds(run.elapsed)
            );
            match (good, faults.is_empty()) {
                (true, true) => Ok(()),
                (true, false) => bail!("no scenario failed, though {faults} was planted"),
                (false, true) => bail!("the run is not good: see the contradictions above"),
                (false, false) => bail!(
                    "with {faults} planted the run is not good: scenarios above that failed caught it, if they are \
                     listed for it (`--list`)"
                ),
            }
        }
    }
}

/// Which scenarios are run with these faults, and what the run has to do: one fault has to be caught by the one
/// scenario that is left, if there is one.
fn plan(faults: &[String], picked: Vec<&'static str>) -> (Vec<&'static str>, Expectation) {
    let [fault] = faults else {
        return (picked, Expectation::Pass);
    };
    let catches = |scenario: &&&str| PLANTED_FAULTS.contains(&(fault.as_str(), **scenario));
    let all = picked.len() == scenarios::ALL.len();
    match picked.iter().find(catches) {
        Some(scenario) if all || picked.len() == 1 => {
            (vec![scenario], Expectation::Caught(scenario))
        }
        _ => (picked, Expectation::Pass),
    }
}

/// Prints what the verdict rests on or what speaks against it; counts the scenarios that passed and those that did not.
pub(crate) fn summary(run: &Run, scenarios: &[&str]) -> (usize, usize) {
    println!();
    for problem in &run.problems {
        println!("{} {problem}", style("wrong:").red().bold());
    }
    if run.problems.is_empty() {
        for digest in &run.record.digests {
            let start: String = digest.sha256.chars().take(16).collect();
            println!(
                "checked on the host: {} bytes read by {}, SHA-256 {start}...",
                digest.bytes, digest.scenario
            );
        }
        for wrote in &run.record.written {
            println!(
                "checked on the host: {} bytes written by {} are in the image file; nothing else reached the disk",
                wrote.bytes, wrote.scenario
            );
        }
    }
    let passed = scenarios.iter().filter(|name| passed(run, name)).count();
    (passed, scenarios.len() - passed)
}

/// True when the scenario ended once and with pass.
fn passed(run: &Run, name: &str) -> bool {
    let mut ends = run.record.ends.iter().filter(|end| end.name == name);
    ends.next().is_some_and(|end| end.outcome == Outcome::Pass) && ends.next().is_none()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn parse(words: &[&str]) -> Result<Options, clap::Error> {
        Line::try_parse_from([&["run-qemu"], words].concat()).map(|line| line.options)
    }

    #[test]
    fn names_come_one_by_one_or_as_a_list() {
        let options = parse(&["--scenario", "revoke,blocked", "--scenario", "discover"]).unwrap();
        assert_eq!(options.scenario, ["revoke", "blocked", "discover"]);
    }

    #[test]
    fn words_for_qemu_may_begin_with_a_hyphen() {
        let options =
            parse(&["--qemu-arg", "-d", "--qemu-arg=int,cpu_reset", "--verbose"]).unwrap();
        assert_eq!(options.qemu_arg, ["-d", "int,cpu_reset"]);
        assert!(options.verbose);
    }

    #[test]
    fn one_fault_is_caught_by_one_scenario() {
        let all: Vec<&str> = scenarios::ALL.iter().map(|known| known.name).collect();
        let one = ["skip_iotlb_flush".to_owned()];
        let two = [one[0].clone(), "swap_neighbours".to_owned()];
        let caught = |scenario| (vec![scenario], Expectation::Caught(scenario));
        assert_eq!(plan(&one, all.clone()), caught("revoke"));
        assert_eq!(plan(&one, vec!["reassign"]), caught("reassign"));
        for (faults, picked) in [
            (&one[..], vec!["revoke", "reassign"]),
            (&one[..], vec!["discover"]),
            (&two[..], all.clone()),
            (&[], all.clone()),
        ] {
            let (scenarios, expect) = plan(faults, picked.clone());
            assert_eq!((scenarios, expect), (picked, Expectation::Pass));
        }
    }

    #[test]
    fn processors_are_one_to_sixteen() {
        assert_eq!(parse(&[]).unwrap().smp, 4);
        assert!(parse(&["--smp", "0"]).is_err());
        assert!(parse(&["--smp", "17"]).is_err());
        assert_eq!(parse(&["--smp", "16"]).unwrap().smp, 16);
    }
}
