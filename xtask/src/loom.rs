//! `cargo xtask loom`: the loom models, all or one, to the ladder's bounds or as deep as time allows.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};

use crate::ladder::{self, Job};
use crate::process::{self, End};
use crate::progress::{Progress, TAIL, seconds};

/// Tells the models how many seconds each may take, without a bound on preemptions.
const DEEP: &str = "HV_LOOM_DEEP";
/// How long everything may take for each second of a model.
const MODELS: u64 = 200;

/// What `loom` can be told.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Explore two actors and a walker exhaustively, and three actors to three preemptions, until time is up
    #[arg(long)]
    deep: bool,
    /// Time limit of each model of a deep run, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600, requires = "deep",
          value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Run the models whose names contain this only
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Show the output of every program
    #[arg(long, short)]
    verbose: bool,
}

/// What was said of one model.
#[derive(Debug, PartialEq, Eq)]
struct Report {
    name: String,
    executions: String,
    bound: String,
    time: String,
}

/// Runs the task. Any model that fails gives a failing exit code.
///
/// # Errors
/// When cargo cannot be started, no model has the name, and when Ctrl-C ended the run.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let Some((tests, limit)) = ladder::STEPS.iter().find_map(|step| match step.job {
        Job::Tests(tests) if step.name == "loom" => Some((tests, step.limit)),
        _ => None,
    }) else {
        bail!("the ladder has no step named loom");
    };
    let mut command = tests.command();
    command.arg("--").args(&options.only);
    let mut limit = limit;
    if options.deep {
        command.env(DEEP, options.limit.to_string());
        limit += Duration::from_secs(options.limit * MODELS);
    }
    let mut reports = Vec::new();
    let progress = Progress::start("loom models", options.verbose);
    let finished = process::run(&mut command, limit, &mut |_, line| {
        progress.line(line);
        if let Some(report) = read(line) {
            if !options.verbose {
                progress.print(line.trim_start_matches(|c| c != 'l'));
            }
            reports.push(report);
        }
    });
    let finished = match finished {
        Ok(finished) => finished,
        Err(error) => {
            progress.finish(false);
            return Err(error);
        }
    };
    let ok = finished.end.success();
    progress.finish(ok);
    if !ok {
        if !options.verbose {
            println!("{}", finished.tail(TAIL));
        }
        if finished.end == End::TimedOut {
            println!("    killed after its time limit of {}", seconds(limit));
        }
        return Ok(ExitCode::FAILURE);
    }
    if reports.is_empty() {
        bail!(
            "no model's name contains {:?}",
            options.only.as_deref().unwrap_or_default()
        );
    }
    reports.sort_by(|one, other| one.name.cmp(&other.name));
    println!("\n{}", table(&reports).trim_fmt());
    let cut = reports.iter().filter(|report| report.is_cut()).count();
    println!("\n{} models, {cut} of them not exhausted", reports.len());
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn is_cut(&self) -> bool {
        self.bound == "not exhausted"
    }
}

fn table(reports: &[Report]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["model", "executions", "explored", "time"]);
    for report in reports {
        table.add_row([
            &report.name,
            &report.executions,
            &report.bound,
            &report.time,
        ]);
    }
    for column in [1, 3] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Reads `loom NAME 12 executions  at most 3 preemptions  0.1 s`, which may have the test's name in front, and
/// `loom NAME 12 executions  fails, as it must: WHY`.
fn read(line: &str) -> Option<Report> {
    let (_, line) = line.split_once("loom ")?;
    let (front, rest) = line.split_once(" executions  ")?;
    let (name, executions) = front.split_once(' ')?;
    let (bound, time) = match rest.split_once(", as it must") {
        Some((fails, _)) => (format!("{fails}, as it must"), String::new()),
        None => {
            let (bound, time) = rest.trim_end().rsplit_once("  ")?;
            (bound.trim().to_owned(), time.trim().to_owned())
        }
    };
    Some(Report {
        name: name.to_owned(),
        executions: executions.trim().to_owned(),
        bound,
        time,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &str, executions: &str, bound: &str, time: &str) -> Option<Report> {
        let [name, executions, bound, time] = [name, executions, bound, time].map(str::to_owned);
        Some(Report {
            name,
            executions,
            bound,
            time,
        })
    }

    #[test]
    fn lines_of_models_are_read() {
        let line = "loom a_model            123 executions  at most 3 preemptions      0.1 s";
        let bounded = report("a_model", "123", "at most 3 preemptions", "0.1 s");
        assert_eq!(read(line), bounded);
        assert_eq!(read(&format!("test x::a_model ... {line}")), bounded);
        let line = "loom a_model              7 executions  not exhausted            600.4 s";
        let cut = report("a_model", "7", "not exhausted", "600.4 s");
        assert_eq!(read(line), cut);
        assert!(cut.unwrap().is_cut());
        let line = "loom a_model              1 executions  fails, as it must: page 0  is gone";
        assert_eq!(read(line), report("a_model", "1", "fails, as it must", ""));
    }

    #[test]
    fn other_lines_are_not() {
        for line in [
            "running 3 tests",
            "test loom ... ok",
            "     Running tests/loom/main.rs",
        ] {
            assert_eq!(read(line), None, "{line}");
        }
    }
}
