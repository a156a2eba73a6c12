//! `cargo xtask run-qemu`: builds the image, boots it in QEMU and judges the run.

mod conclusion;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use comfy_table::{Table, presets};
use console::style;

use crate::arch::{Arch, Board, Choice};
use crate::image::{self, Flavour};
use crate::ladder::PLANTED_FAULTS;
use crate::qemu_run::command::{GDB_PORT, Machine};
use crate::qemu_run::plan::{Boot, plan};
use crate::qemu_run::serial::Outcome;
use crate::qemu_run::{self, Expectation, Run, json};
use crate::tools::qemu::Qemu;
use crate::tools::{self, target};
use crate::{faults, process, scenarios, workspace};

use conclusion::{Done, Lost, all_ran, conclude};

/// Seconds that QEMU may run: more than the image's longest limit, with all that runs before it, so that it is the image
/// that says what was late.
const LIMIT: u64 = 120;
/// Seconds that QEMU may run where a person with a debugger decides.
const GDB_LIMIT: u64 = 86_400;

/// What `run-qemu` can be told.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Architecture of the image
    #[arg(long, value_enum, default_value_t = Choice::X86_64)]
    arch: Choice,
    /// What the SMMU of the Arm board can do (default: nested)
    #[arg(long, value_enum)]
    board: Option<Board>,
    /// Scenario to run; may be given several times or as a list with commas (default: all)
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    scenario: Vec<String>,
    /// List the scenarios and the faults, with what each is, and leave
    #[arg(long)]
    list: bool,
    /// Number of processors of the machine
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=16))]
    smp: u32,
    /// Write a report for programs to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Have QEMU write the trace events of its IOMMU to this file; several boots write several, whose names go on with the
    /// architecture and the scenario
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Have the machine wait for a debugger on port 1234
    #[arg(long)]
    gdb: bool,
    /// One more argument for QEMU; may be given several times
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    qemu_arg: Vec<String>,
    /// Seconds that QEMU may run before it is killed (default: 120, with --gdb a day)
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: Option<u64>,
    /// Build the image with planted faults and switch this one on; may be given several times. One alone runs each scenario
    /// that has to catch it, or those of them that are named, and the run is good if each of them fails for the fault's reason,
    /// after all passed with the fault switched off
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
pub(crate) fn make_ready(arch: Arch, flavour: Flavour, verbose: bool) -> Result<Ready> {
    target::ensure(arch.target(), verbose)?;
    let qemu = tools::qemu::ensure(arch, &workspace::scratch_dir(), verbose)?;
    Ok(Ready {
        qemu,
        image: image::build(arch, flavour, verbose)?,
    })
}

/// Runs the task.
///
/// # Errors
/// When anything is missing, and when a run is not as it has to be.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.list {
        println!("{}", listed());
        return Ok(());
    }
    let archs = options.arch.archs();
    if options.board.is_some() && !archs.contains(&Arch::Aarch64) {
        bail!(
            "--board {0} is a board of Arm, and this run is for {1}: add --arch aarch64 (or --arch all), as in \
             `cargo xtask run-qemu --arch aarch64 --board {0}`",
            options.board.map_or("", Board::name),
            Arch::X86_64,
        );
    }
    if options.gdb && archs.len() > 1 {
        bail!("--gdb is for one machine: give --arch x86_64 or --arch aarch64");
    }
    let picked = scenarios::pick(&options.scenario)?;
    let boots = plan(archs, &options.fault, &options.scenario, picked)?;
    let (done, lost) = run_all(options, &boots);
    if let Some(file) = &options.json
        && !done.is_empty()
    {
        let runs: Vec<_> = done
            .iter()
            .map(|done| (&done.machine, done.qemu, &done.run))
            .collect();
        json::write(file, &runs)?;
        println!("report: {}", file.display());
    }
    let concluded = match done[..] {
        [] => Ok(()),
        _ => conclude(&done, &lost, &options.fault),
    };
    let ran = all_ran(lost, archs);
    if let (Err(_), Err(error)) = (&ran, &concluded) {
        // Both are told, and the one that ended the runs last.
        println!("{} {error:#}", style("error:").red().bold());
    }
    ran.and(concluded)
}

/// Runs what there is to run. Where an image or QEMU cannot be had for one architecture, or a run cannot be made, the other one
/// runs all the same; what is done by then stays.
fn run_all(options: &Options, boots: &[Boot]) -> (Vec<Done>, Vec<Lost>) {
    let (mut done, mut lost) = (Vec::new(), Vec::new());
    for arch in options.arch.archs() {
        let here: Vec<&Boot> = boots.iter().filter(|boot| boot.arch == *arch).collect();
        if here.is_empty() {
            if !options.fault.is_empty() {
                println!("--> {arch} has no {}: not run", options.fault.join(", "));
            }
            continue;
        }
        if let Err(error) = run_arch(options, *arch, &here, &mut done) {
            lost.push(Lost { arch: *arch, error });
            if process::interrupted() {
                break;
            }
        }
    }
    (done, lost)
}

/// Runs what there is for one architecture, and adds to `done` what came of it.
///
/// # Errors
/// When the image or QEMU cannot be had, or a run cannot be made.
fn run_arch(options: &Options, arch: Arch, here: &[&Boot], done: &mut Vec<Done>) -> Result<()> {
    let ready = make_ready(arch, flavour(options), options.verbose)
        .with_context(|| format!("getting ready for {arch}"))?;
    for boot in here {
        let trace = options.trace.as_deref();
        let trace = trace.and_then(|file| trace_of(file, options.arch, here, boot));
        let one = run_one(options, &ready, boot, trace)?;
        let is_bad_control = one.is_control() && !one.is_good();
        done.push(one);
        if is_bad_control {
            break;
        }
    }
    Ok(())
}

/// Scenarios and faults, each with what it is, in columns.
fn listed() -> String {
    let scenarios = columns(
        ["scenario", "what it shows"],
        scenarios::ALL.map(|scenario| [scenario.name.to_owned(), scenario.what.to_owned()]),
    );
    let planted = columns(
        ["fault", "caught by", "on", "what the driver does wrong"],
        PLANTED_FAULTS.iter().map(|planted| {
            let archs: Vec<&str> = planted.archs.iter().map(|arch| arch.name()).collect();
            [
                planted.fault.to_owned(),
                planted.scenario.to_owned(),
                archs.join(", "),
                faults::what(planted.fault).unwrap_or_default(),
            ]
        }),
    );
    format!("for --scenario:\n{scenarios}\n\nfor --fault:\n{planted}")
}

/// Rows below a head, each column as wide as its widest cell.
fn columns<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(head);
    rows.into_iter().for_each(|row| {
        table.add_row(row);
    });
    table.trim_fmt()
}

fn flavour(options: &Options) -> Flavour {
    match options.fault.is_empty() {
        true => Flavour::Plain,
        false => Flavour::PlantedFaults,
    }
}

/// Boots the image once and judges that.
fn run_one(options: &Options, ready: &Ready, boot: &Boot, trace: Option<PathBuf>) -> Result<Done> {
    let arch = boot.arch;
    let board = match arch {
        Arch::X86_64 => None,
        Arch::Aarch64 => Some(options.board.unwrap_or(Board::Nested)),
    };
    let machine = Machine {
        arch,
        board,
        smp: options.smp,
        image: ready.image.clone(),
        scenarios: boot.scenarios.clone(),
        faults: match boot.expect {
            Expectation::Control => vec![],
            Expectation::Pass | Expectation::Caught(_) => options.fault.clone(),
        },
        trace,
        gdb: options.gdb,
        extra: options.qemu_arg.clone(),
    };
    if options.gdb {
        println!(
            "QEMU waits for a debugger: gdb-multiarch {} -ex 'target remote :{GDB_PORT}'",
            machine.image.display()
        );
    }
    let limit = Duration::from_secs(match options.timeout {
        Some(limit) => limit,
        None if options.gdb => GDB_LIMIT,
        None => LIMIT,
    });
    let expect = boot.expect;
    let run = qemu_run::run(&ready.qemu, &machine, limit, expect, options.verbose)?;
    summary(&run, &boot.scenarios);
    if let Some(file) = &machine.trace {
        println!("{} trace of QEMU: {}", arch.iommu(), file.display());
    }
    Ok(Done {
        machine,
        qemu: ready.qemu.version,
        expect,
        run,
    })
}

/// Where the trace of a boot goes: each has a file of its own, named after the architecture where there are several, and
/// after the scenario where several boots `here` have a trace. A control run has none: its trace shows no fault.
fn trace_of(file: &Path, choice: Choice, here: &[&Boot], boot: &Boot) -> Option<PathBuf> {
    let is_traced = |boot: &Boot| boot.expect != Expectation::Control;
    if !is_traced(boot) {
        return None;
    }
    let mut name = file.as_os_str().to_owned();
    if choice.archs().len() > 1 {
        name.push(format!(".{}", boot.arch));
    }
    if here.iter().filter(|boot| is_traced(boot)).count() > 1 {
        name.push(format!(".{}", boot.scenarios.join("+")));
    }
    Some(name.into())
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
    counts(run, scenarios)
}

/// How many of the scenarios passed and how many did not.
fn counts(run: &Run, scenarios: &[&str]) -> (usize, usize) {
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

    #[test]
    fn the_image_gives_up_before_qemu_is_killed() {
        let image = include_str!("../../integration/image/src/scenario/concurrent.rs");
        let seconds = |name: &str| -> u64 {
            let (_, rest) = image
                .split_once(&format!("const {name}: Duration = Duration::from_secs("))
                .unwrap();
            rest.split(')').next().unwrap().parse().unwrap()
        };
        let (rounds, stuck) = (seconds("LIMIT"), seconds("STUCK"));
        assert!(rounds < stuck && stuck + 20 < LIMIT, "{rounds}, {stuck}");
    }

    #[test]
    fn everything_is_listed_with_what_it_is_in_columns() {
        let list = listed();
        let (scenarios, faults) = list.split_once("for --fault:").unwrap();
        for (part, count) in [
            (scenarios, scenarios::ALL.len()),
            (faults, PLANTED_FAULTS.len()),
        ] {
            let head = part.lines().find(|line| line.contains("what")).unwrap();
            let column = head.find("what").unwrap();
            let rows: Vec<_> = part
                .lines()
                .skip_while(|line| *line != head)
                .skip(1)
                .collect();
            let rows: Vec<_> = rows.into_iter().filter(|row| !row.is_empty()).collect();
            assert_eq!(rows.len(), count, "{list}");
            for row in rows {
                let (before, what) = row.split_at(column);
                assert!(before.ends_with(' ') && !what.starts_with(' '), "{list}");
            }
        }
    }

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
    fn processors_are_one_to_sixteen() {
        assert_eq!(parse(&[]).unwrap().smp, 4);
        assert!(parse(&["--smp", "0"]).is_err());
        assert!(parse(&["--smp", "17"]).is_err());
        assert_eq!(parse(&["--smp", "16"]).unwrap().smp, 16);
    }

    #[test]
    fn one_architecture_or_all_and_the_arm_boards() {
        assert_eq!(parse(&[]).unwrap().arch.archs(), [Arch::X86_64]);
        let arm = parse(&["--arch", "aarch64", "--board", "stage2"]).unwrap();
        assert_eq!(
            (arm.arch.archs(), arm.board),
            (&[Arch::Aarch64][..], Some(Board::Stage2))
        );
        let all = parse(&["--arch", "all"]).unwrap();
        assert_eq!(all.arch.archs(), Arch::ALL);
        assert!(parse(&["--arch", "riscv64"]).is_err());
        let board_alone = run(&parse(&["--board", "stage1"]).unwrap()).unwrap_err();
        let board_alone = board_alone.to_string();
        assert!(
            board_alone.contains("add --arch aarch64") && board_alone.contains("--board stage1"),
            "{board_alone}"
        );
    }

    /// The files that the traces of a run go to, boot after boot.
    fn traces(words: &[&str]) -> Vec<Option<String>> {
        let options = parse(words).unwrap();
        let picked = scenarios::pick(&options.scenario).unwrap();
        let boots = plan(
            options.arch.archs(),
            &options.fault,
            &options.scenario,
            picked,
        )
        .unwrap();
        let each = boots.iter().map(|boot| {
            let of_arch = |other: &&Boot| other.arch == boot.arch;
            let here: Vec<&Boot> = boots.iter().filter(of_arch).collect();
            let file = trace_of(Path::new("t.log"), options.arch, &here, boot);
            file.map(|file| file.display().to_string())
        });
        each.collect()
    }

    #[test]
    fn every_boot_has_a_trace_of_its_own() {
        let some = |names: &[&str]| -> Vec<Option<String>> {
            names.iter().map(|name| Some((*name).to_owned())).collect()
        };
        assert_eq!(traces(&[]), some(&["t.log"]));
        assert_eq!(
            traces(&["--arch", "all"]),
            some(&["t.log.x86_64", "t.log.aarch64"])
        );
        let with_control = |names: &[&str]| [vec![None], some(names)].concat();
        assert_eq!(
            traces(&["--fault", "skip_context_flush"]),
            with_control(&["t.log"])
        );
        assert_eq!(
            traces(&["--fault", "skip_iotlb_flush"]),
            with_control(&["t.log.revoke", "t.log.reassign"])
        );
        assert_eq!(
            traces(&["--fault", "skip_iotlb_flush", "--arch", "all"]),
            [
                with_control(&["t.log.x86_64.revoke", "t.log.x86_64.reassign"]),
                with_control(&["t.log.aarch64"]),
            ]
            .concat()
        );
    }
}
