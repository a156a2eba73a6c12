//! `cargo xtask bench`: builds the benchmark of the table engine, runs it and judges what it measured.

mod baseline;
mod chart;
mod repeat;
mod report;
mod results;
mod svg;
mod table;
mod verdict;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use console::style;

use crate::progress::{Progress, run_job_to_success};
use crate::{process, workspace};

use results::{Format, Results};
use verdict::{missed, summary};

/// How the benchmark is built, besides its profile: loops begin at a cache line, so that chance does not place them,
/// and the compiler uses no vectors of its own, since a hypervisor seldom may.
const FLAGS: &str =
    "-C llvm-args=-align-all-nofallthru-blocks=6 -C no-vectorize-loops -C no-vectorize-slp";
/// The build folder of these flags.
const FOLDER: &str = "bench";
/// The profile of published figures.
const PROFILE: &str = "speed";
/// Where the report of a format is kept.
const fn report_folder(format: Format) -> &'static str {
    match format {
        Format::Vtd => "integration/bench/report",
        Format::Vmsa => "integration/bench/report/vmsa",
    }
}

const PACKAGE: &str = "hv-bench";
const BINARY: &str = "bench";
const BUILD_LIMIT: Duration = Duration::from_secs(900);
const RUN_LIMIT: Duration = Duration::from_secs(3600);

/// What `bench` can be told.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Few rounds: for a look, not for figures that people compare
    #[arg(long)]
    quick: bool,
    /// The format of the tables
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "NAME",
        conflicts_with = "from"
    )]
    format: Format,
    /// How many processes measure; each row is judged by the middle one, since where a process lies in memory moves short
    /// times more than anything else does [default: 3, with --quick 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=25), conflicts_with = "from")]
    processes: Option<u8>,
    /// Measure these rows only; may be given several times or as a list with commas
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    only: Vec<String>,
    /// List the rows and leave
    #[arg(long)]
    list: bool,
    /// Keep the results in this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Show what changed since the results in this file
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Write the report that is kept with the sources
    #[arg(long, conflicts_with = "only")]
    report: bool,
    /// Judge the results in this file and measure nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["quick", "only", "json", "list"])]
    from: Option<PathBuf>,
    /// The cargo profile: `release` is built as the image is, without link-time optimisation
    #[arg(long, value_name = "NAME", default_value = PROFILE)]
    profile: String,
    /// Show the output of every program
    #[arg(long, short)]
    verbose: bool,
}

/// Runs the task. A gate that is missed gives a failing exit code.
///
/// # Errors
/// When the benchmark does not build or run, and when a file cannot be read or written.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    // Read first, so that a wrong name costs no measurement.
    let baseline = options.baseline.as_deref().map(results::read).transpose()?;
    let raw = match &options.from {
        Some(file) => file.clone(),
        None => {
            let binary = build(options)?;
            if options.list {
                let status = Command::new(&binary).arg("--list").status();
                status.with_context(|| format!("cannot start {}", binary.display()))?;
                return Ok(ExitCode::SUCCESS);
            }
            measure(options, &binary)?
        }
    };
    let results = results::read(&raw)?;
    show(&results);
    if let Some(baseline) = &baseline {
        if baseline.format != results.format {
            bail!(
                "the baseline is of {}, these results are of {}: expected two of one format",
                baseline.format.title(),
                results.format.title()
            );
        }
        println!(
            "\nsince the baseline:\n{}",
            table::changes(&baseline::compare(baseline, &results)).trim_fmt()
        );
    }
    if let Some(file) = &options.json {
        println!("results: {}", file.display());
    }
    if options.report {
        let folder = workspace::root().join(report_folder(results.format));
        report::write(&folder, &results, &raw, &cautions(&results))?;
        println!("report: {}", folder.join("README.md").display());
    }
    let missed = missed(&results);
    println!("\n{}", summary(&results));
    if missed.is_empty() {
        println!("{} no gate is missed", style("ok:").green().bold());
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{} {}",
        style("gates missed:").red().bold(),
        missed.join(", ")
    );
    Ok(ExitCode::FAILURE)
}

fn build(options: &Options) -> Result<PathBuf> {
    let folder = workspace::target_dir().join(FOLDER);
    let mut command = workspace::cargo();
    command.env("RUSTFLAGS", workspace::rustflags(FLAGS));
    command.args(["build", "--package", PACKAGE, "--bin", BINARY]);
    command.args(["--features", options.format.features()]);
    command.args(["--profile", &options.profile, "--target-dir"]);
    command.arg(&folder);
    run_job_to_success(
        "build the benchmark",
        &mut command,
        BUILD_LIMIT,
        options.verbose,
    )?;
    let binary = folder.join(&options.profile).join(BINARY);
    if !binary.is_file() {
        bail!(
            "the build went through but there is no {}: expected a binary called {BINARY}",
            binary.display()
        );
    }
    Ok(binary)
}

/// How many processes measure a full matrix.
const PROCESSES: u8 = 3;

/// Runs the benchmark and gives the file with its results.
fn measure(options: &Options, binary: &Path) -> Result<PathBuf> {
    let folder = workspace::target_dir().join(FOLDER);
    let file = options.json.clone();
    let file = file.unwrap_or_else(|| folder.join("results.json"));
    let processes = options
        .processes
        .unwrap_or(if options.quick { 1 } else { PROCESSES });
    let mut results = Vec::new();
    for process in 1..=processes {
        let name = match processes {
            1 => "measure".to_owned(),
            _ => format!("measure ({process} of {processes})"),
        };
        let part = folder.join("process.json");
        measure_once(options, binary, &part, &name)?;
        results.push(results::read_raw(&part)?);
    }
    let merged = serde_json::to_string(&repeat::merge(results)?).context("writing JSON")?;
    fs::write(&file, merged + "\n").with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

/// Runs one process, which writes its results to `file`.
fn measure_once(options: &Options, binary: &Path, file: &Path, name: &str) -> Result<()> {
    let mut command = Command::new(binary);
    command.arg("--json").arg(file);
    command.arg("--flags").arg(format!(
        "profile {}; {}",
        options.profile,
        workspace::rustflags(FLAGS)
    ));
    command.arg("--compiler").arg(compiler());
    if options.quick {
        command.arg("--quick");
    }
    if !options.only.is_empty() {
        command.args(["--only", &options.only.join(",")]);
    }
    let progress = Progress::start(name, options.verbose);
    let finished = process::run(&mut command, RUN_LIMIT, &mut |_, line| progress.line(line))?;
    let ok = finished.end.success();
    progress.finish(ok);
    if !ok {
        println!("{}", finished.tail(20));
        bail!("`{}` failed: {}", process::shown(&command), finished.end);
    }
    Ok(())
}

fn compiler() -> String {
    let mut command = Command::new("rustc");
    command.arg("--version").current_dir(workspace::root());
    process::run_quiet(&mut command, Duration::from_secs(20))
        .map(|finished| finished.stdout().trim().to_owned())
        .unwrap_or_default()
}

fn show(results: &Results) {
    println!("\n{}", table::rows(results).trim_fmt());
    println!(
        "\n{}; ns per operation, quiet median; value: ratio to the row's own floor unless a unit stands there",
        results.format.title()
    );
    for caution in cautions(results) {
        println!("{} {caution}", style("note:").yellow().bold());
    }
}

/// What speaks against comparing these figures with others.
fn cautions(results: &Results) -> Vec<String> {
    let mut cautions = Vec::new();
    let machine = &results.machine;
    if results.quick {
        cautions.push(
            "few rounds: good for a look; leave out --quick for figures to compare".to_owned(),
        );
    }
    let load = machine.load.max(machine.load_after);
    // The benchmark itself keeps one processor busy, and all of them in rows of several threads.
    if load > 1.0 + machine.processors as f64 / 2.0 {
        cautions.push(format!(
            "a load of {load:.1} on {} processors: rows of several threads are slower than they could be; run it when nothing else does",
            machine.processors
        ));
    }
    if !machine.huge_pages {
        cautions.push("no huge pages: `echo madvise > /sys/kernel/mm/transparent_hugepage/enabled` allows them".to_owned());
    }
    cautions
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use results::Machine;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn parse(words: &[&str]) -> Result<Options, clap::Error> {
        Line::try_parse_from([&["bench"], words].concat()).map(|line| line.options)
    }

    #[test]
    fn rows_come_one_by_one_or_as_a_list() {
        let options = parse(&["--only", "B-M1,B-R1", "--only", "B-X1/seq"]).unwrap();
        assert_eq!(options.only, ["B-M1", "B-R1", "B-X1/seq"]);
        assert_eq!(options.profile, PROFILE);
    }

    #[test]
    fn a_report_is_of_all_rows_and_a_file_is_not_measured() {
        assert!(parse(&["--report", "--only", "B-M1"]).is_err());
        assert!(parse(&["--from", "a.json", "--quick"]).is_err());
        assert!(parse(&["--from", "a.json", "--processes", "3"]).is_err());
        assert!(parse(&["--processes", "0"]).is_err());
        let options = parse(&["--from", "a.json", "--report", "--baseline", "b.json"]).unwrap();
        assert!(options.report && options.from.is_some() && options.baseline.is_some());
    }

    #[test]
    fn a_busy_machine_and_a_quick_run_are_told() {
        let results = |quick, load| Results {
            quick,
            machine: Machine {
                processors: 2,
                load,
                huge_pages: true,
                ..Machine::default()
            },
            ..Results::default()
        };
        assert!(cautions(&results(false, 1.5)).is_empty());
        assert_eq!(cautions(&results(true, 1.5)).len(), 1);
        assert!(cautions(&results(false, 4.0))[0].contains("run it when nothing else does"));
    }
}
