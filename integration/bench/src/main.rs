//! Runs the rows and writes what it measured as JSON. `cargo xtask bench` starts it and judges.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;

use hv_bench::results::{Machine, Results, RowResult};
use hv_bench::rows::{self, Row, Scale};
use hv_bench::{arena, clock, code, format, platform};

/// Measures the second-stage table engine
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Options {
    /// Few rounds
    #[arg(long)]
    quick: bool,
    /// Measure these rows only: names of the matrix, as a list with commas
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    only: Vec<String>,
    /// List the rows and leave
    #[arg(long)]
    list: bool,
    /// Where the results go
    #[arg(long, value_name = "FILE", required_unless_present = "list")]
    json: Option<PathBuf>,
    /// The compiler's flags, for the results
    #[arg(
        long,
        value_name = "FLAGS",
        default_value = "",
        allow_hyphen_values = true
    )]
    flags: String,
    /// The compiler, for the results
    #[arg(long, value_name = "VERSION", default_value = "")]
    compiler: String,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    if options.list {
        for row in rows::all() {
            println!("{:12} {}", row.name(), row.workload);
        }
        return Ok(());
    }
    let wanted = pick(&options.only)?;
    let scale = if options.quick {
        Scale::QUICK
    } else {
        Scale::FULL
    };
    let load = load();
    let processors = clock::processors();
    let last = *processors.last().context("no processor to run on")?;
    clock::pin_to(last)?;
    arena::init()?;
    arena::touch();
    let mut measured = Vec::new();
    for (at, row) in wanted.iter().enumerate() {
        println!(
            "[{}/{}] {}: {}",
            at + 1,
            wanted.len(),
            row.name(),
            row.workload
        );
        let result = row.measure(&scale, |_| {});
        println!("    {}", short(&result));
        measured.push(result);
    }
    let results = Results {
        layout: 1,
        format: format::NAME,
        quick: options.quick,
        machine: Machine {
            load,
            ..machine(options, processors.len())
        },
        rows: measured,
        code: code::sizes().context("reading this program's own symbols")?,
    };
    if let Some(file) = &options.json {
        let text = serde_json::to_string(&results).context("writing JSON")?;
        std::fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

fn pick(only: &[String]) -> Result<Vec<&'static Row>> {
    for name in only {
        if !rows::all().any(|row| row.is_wanted(std::slice::from_ref(name))) {
            bail!("unknown row {name:?}: `cargo xtask bench --list` shows the known ones");
        }
    }
    Ok(rows::all().filter(|row| row.is_wanted(only)).collect())
}

fn short(result: &RowResult) -> String {
    if let Some(why) = &result.skipped {
        return format!("skipped: {why}");
    }
    let lanes: Vec<String> = result
        .lanes
        .iter()
        .map(|lane| format!("{} {:.2}", lane.name, lane.quiet))
        .collect();
    lanes.join(", ")
}

fn machine(options: &Options, processors: usize) -> Machine {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(':'));
        value.map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    let kernel = rustix::system::uname();
    Machine {
        processor: field("model name"),
        processors,
        kernel: format!(
            "{} {}",
            kernel.sysname().to_string_lossy(),
            kernel.release().to_string_lossy()
        ),
        virtual_machine: field("flags").split(' ').any(|flag| flag == "hypervisor"),
        huge_pages: arena::huge(),
        clwb: platform::has_clwb(),
        flags: options.flags.clone(),
        compiler: options.compiler.clone(),
        load: 0.0,
        load_after: load(),
    }
}

/// The host's load over the last minute.
fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split(' ').next().unwrap_or_default();
    first.parse().unwrap_or(0.0)
}
