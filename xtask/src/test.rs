//! `cargo xtask test`: climbs the ladder of checks and sums up.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use console::style;

use crate::arch::{Arch, Board};
use crate::image::Flavour;
use crate::ladder::{Cargo, Job, Planted, STEPS, Step, bare_metal_clippy};
use crate::progress::{run_job, seconds};
use crate::qemu_run::command::Machine;
use crate::qemu_run::verdict::Problem;
use crate::qemu_run::{self, Expectation};
use crate::run_qemu::{self, Ready};
use crate::test_counts::Counts;
use crate::tools::target;
use crate::{evidence, flat_image, house, process, scenarios, workspace};

/// What `test` can be told.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Run this step only; may be given several times or as a list with commas
    #[arg(long, value_name = "STEP", value_delimiter = ',')]
    only: Vec<String>,
    /// List the steps and leave
    #[arg(long)]
    list: bool,
    /// Show the output of every program
    #[arg(long, short)]
    verbose: bool,
}

/// Processors of the machine in steps that boot QEMU.
const SMP: u32 = 4;

/// Runs the task. The last line says how many passed and how many failed; any failure gives a failing exit code.
///
/// # Errors
/// When a step is asked for that does not exist, and when Ctrl-C ended the climb.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.list {
        for step in STEPS {
            println!("{:18} {}", step.name, step.what);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let steps = pick(&options.only)?;
    let mut total = Counts::default();
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["step", "passed", "failed", "time"]);
    for (at, step) in steps.iter().enumerate() {
        println!(
            "{}",
            style(format!(
                "[{}/{}] {}: {}",
                at + 1,
                steps.len(),
                step.name,
                step.what
            ))
            .bold()
        );
        let start = Instant::now();
        let counts = climb(step, options.verbose).unwrap_or_else(|error| {
            println!("{} {error:#}", style("error:").red().bold());
            Counts::failure(format!("{}: {error:#}", step.name))
        });
        if process::interrupted() {
            bail!("interrupted in step {}", step.name);
        }
        let row = [
            step.name.to_owned(),
            counts.passed.to_string(),
            counts.failures.len().to_string(),
            seconds(start.elapsed()),
        ];
        table.add_row(row);
        println!();
        total.add(counts);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{}\n", table.trim_fmt());
    for failure in &total.failures {
        println!("{} {failure}", style("failed:").red().bold());
    }
    println!("{} passed, {} failed", total.passed, total.failures.len());
    Ok(if total.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn pick(only: &[String]) -> Result<Vec<&'static Step>> {
    if let Some(unknown) = only
        .iter()
        .find(|name| STEPS.iter().all(|step| step.name != **name))
    {
        let known: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
        bail!(
            "unknown step {unknown:?}: expected one of {}",
            known.join(", ")
        );
    }
    Ok(STEPS
        .iter()
        .filter(|step| only.is_empty() || only.iter().any(|name| name == step.name))
        .collect())
}

fn climb(step: &Step, verbose: bool) -> Result<Counts> {
    match step.job {
        Job::House => house_rules(step.name),
        Job::Check(cargo) => {
            let mut command = cargo.command();
            let name = format!("cargo {}", cargo.arguments.join(" "));
            let finished = run_job(&name, &mut command, step.limit, verbose)?;
            Ok(Counts::of_check(step.name, finished.end.success()))
        }
        Job::BareMetal => {
            let mut good = true;
            for arch in Arch::ALL {
                target::ensure(arch.target(), verbose)?;
                let mut command = bare_metal_clippy(arch);
                let name = format!("cargo clippy for {}", arch.target());
                let finished = run_job(&name, &mut command, step.limit, verbose)?;
                good &= finished.end.success();
            }
            Ok(Counts::of_check(step.name, good))
        }
        Job::Tests(tests) => run_tests(step, &tests, verbose),
        Job::Scenarios(machines) => run_scenarios(machines, step.limit, verbose),
        Job::FlatImage => boot_flat_image(step.limit, verbose),
        Job::PlantedFaults(faults) => {
            let mut counts = Counts::default();
            for arch in Arch::ALL {
                counts.add(run_planted_faults(arch, faults, step.limit, verbose)?);
            }
            Ok(counts)
        }
    }
}

fn house_rules(name: &str) -> Result<Counts> {
    let root = workspace::root();
    let found = house::check(&root)?;
    let mut violations: Vec<String> = found.violations.iter().map(|one| one.to_string()).collect();
    violations.extend(evidence::stale(&root)?);
    for violation in &violations {
        println!("    {violation}");
    }
    println!(
        "    {} files looked at, {} violations",
        found.files,
        violations.len()
    );
    let mut counts = Counts::of_check(name, violations.is_empty());
    if !violations.is_empty() {
        counts.failures = vec![format!("{name}: {} violations", violations.len())];
    }
    Ok(counts)
}

fn run_tests(step: &Step, tests: &Cargo, verbose: bool) -> Result<Counts> {
    let mut command = tests.command();
    let name = format!("cargo {}", tests.arguments.join(" "));
    let finished = run_job(&name, &mut command, step.limit, verbose)?;
    let lines = finished.lines.iter().map(|(_, line)| line.as_str());
    let counts = Counts::of_test_run(step.name, lines, finished.end.success());
    println!(
        "    {} tests passed, {} failed",
        counts.passed,
        counts.failures.len()
    );
    Ok(counts)
}

fn run_scenarios(
    machines: &[(Arch, Option<Board>)],
    limit: Duration,
    verbose: bool,
) -> Result<Counts> {
    let mut counts = Counts::default();
    for (arch, board) in machines {
        let ready = run_qemu::make_ready(*arch, Flavour::Plain, verbose)?;
        let names = scenarios::on(*arch, &scenarios::pick(&[])?);
        let machine = machine(*arch, *board, &ready, names.clone(), vec![]);
        let shown = machine.shown();
        let run = qemu_run::run(&ready.qemu, &machine, limit, Expectation::Pass, verbose)?;
        let (passed, failed) = run_qemu::summary(&run, &names);
        println!(
            "{} {shown}: {passed} passed, {failed} failed in {}",
            match run.problems.is_empty() {
                true => style("    ok").green(),
                false => style("FAILED").red().bold(),
            },
            seconds(run.elapsed)
        );
        let problems = run.problems.iter();
        let mut failures: Vec<String> = problems
            .map(|problem| format!("scenarios on {shown}: {problem}"))
            .collect();
        // Each failed scenario is a problem of its own, so this only guards the count.
        while failures.len() < failed {
            failures.push(format!(
                "scenarios on {shown}: a scenario that did not pass"
            ));
        }
        counts.add(Counts { passed, failures });
    }
    Ok(counts)
}

/// Boots the Arm image in both forms. The image notes where it found the device tree, and that each form has the other
/// note shows that it looks.
fn boot_flat_image(limit: Duration, verbose: bool) -> Result<Counts> {
    let arch = Arch::Aarch64;
    let elf = run_qemu::make_ready(arch, Flavour::Plain, verbose)?;
    let flat = Ready {
        image: flat_image::write(&elf.image)?,
        qemu: elf.qemu.clone(),
    };
    let mut counts = Counts::default();
    for (form, ready, says) in [
        ("as ELF", &elf, "the start of RAM: x0 was zero"),
        ("as a flat file", &flat, "as x0 said"),
    ] {
        println!("    the image {form}");
        let machine = machine(arch, None, ready, vec![scenarios::DISCOVER], vec![]);
        let run = qemu_run::run(&ready.qemu, &machine, limit, Expectation::Pass, verbose)?;
        let mut problems: Vec<String> = run.problems.iter().map(ToString::to_string).collect();
        let notes: Vec<&str> = run.record.notes_of(scenarios::DISCOVER).collect();
        if !notes.iter().any(|note| note.contains(says)) {
            problems.push(format!(
                "where the device tree is: expected {says:?}, found {notes:?}"
            ));
        }
        let failures = problems
            .iter()
            .map(|problem| format!("{arch} {form}: {problem}"));
        let failures: Vec<String> = failures.collect();
        for failure in &failures {
            println!("{} {failure}", style("FAILED").red().bold());
        }
        counts.add(Counts {
            passed: usize::from(problems.is_empty()),
            failures,
        });
    }
    Ok(counts)
}

fn run_planted_faults(
    arch: Arch,
    faults: &'static [Planted],
    limit: Duration,
    verbose: bool,
) -> Result<Counts> {
    let ready = run_qemu::make_ready(arch, Flavour::PlantedFaults, verbose)?;
    let mut counts = Counts::default();
    println!("    no planted fault on {arch}: every scenario has to pass in the same image");
    let all = scenarios::on(arch, &scenarios::pick(&[])?);
    let control = machine(arch, None, &ready, all, vec![]);
    let run = qemu_run::run(&ready.qemu, &control, limit, Expectation::Control, verbose)?;
    if !run.problems.is_empty() {
        let failure = format!(
            "faults on {arch}: with none switched on the image has to pass, or no failure shows a fault: {}",
            joined(&run.problems)
        );
        println!("{} {failure}", style("FAILED").red().bold());
        counts.failures.push(failure);
        return Ok(counts);
    }
    println!("{} all pass with none", style("    ok").green());
    counts.passed += 1;
    let here = |planted: &&'static Planted| planted.archs.contains(&arch);
    for planted in faults.iter().filter(here) {
        let Planted {
            fault, scenario, ..
        } = planted;
        println!("    planted fault {fault} on {arch}: {scenario} has to fail");
        let machine = machine(
            arch,
            None,
            &ready,
            vec![scenario],
            vec![(*fault).to_owned()],
        );
        let expect = Expectation::Caught(planted);
        let run = qemu_run::run(&ready.qemu, &machine, limit, expect, verbose)?;
        if run.problems.is_empty() {
            let said = run.record.ends.iter().map(|end| end.detail.as_str());
            println!(
                "{} {fault} was caught by {scenario}: {}",
                style("    ok").green(),
                said.collect::<String>()
            );
            counts.passed += 1;
        } else {
            let failure = format!(
                "faults on {arch}: {fault} with {scenario}: {}",
                joined(&run.problems)
            );
            println!("{} {failure}", style("FAILED").red().bold());
            counts.failures.push(failure);
        }
    }
    Ok(counts)
}

/// What speaks against a run, in one line.
fn joined(problems: &[Problem]) -> String {
    let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
    problems.join("; ")
}

fn machine(
    arch: Arch,
    board: Option<Board>,
    ready: &Ready,
    scenarios: Vec<&'static str>,
    faults: Vec<String>,
) -> Machine {
    Machine {
        arch,
        board,
        smp: SMP,
        image: ready.image.clone(),
        scenarios,
        faults,
        trace: None,
        gdb: false,
        extra: vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_picked_by_name_in_the_ladders_order() {
        let all = pick(&[]).unwrap();
        assert_eq!(all.len(), STEPS.len());
        let some = pick(&["unit".to_owned(), "fmt".to_owned()]).unwrap();
        assert_eq!(
            some.iter().map(|step| step.name).collect::<Vec<_>>(),
            ["fmt", "unit"]
        );
        let error = pick(&["looom".to_owned()]).unwrap_err().to_string();
        assert!(
            error.contains("looom") && error.contains("loom, loom-faults, table-faults"),
            "{error}"
        );
    }
}
