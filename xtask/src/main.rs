//! Developer tasks of the workspace, run as `cargo xtask <task>`.
//!
//! One file a task: `bench.rs`, `evidence.rs`, `loom.rs`, `run_qemu.rs`, `soak.rs` and `test.rs`. CI runs the same tasks as people
//! do.

mod arch;
mod bench;
mod evidence;
mod faults;
mod flat_image;
mod house;
mod image;
mod ladder;
mod loom;
mod process;
mod progress;
mod qemu_run;
mod run_qemu;
mod scenarios;
mod soak;
mod test;
mod test_counts;
mod tools;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use console::style;

/// Developer tasks of the workspace
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Line {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Measure the table engine beside hand-written floors and published crates, and judge the ratios
    Bench(bench::Options),
    /// List which test shows what, by the tests' own names, or write that into README.md and EVIDENCE.md
    Evidence(evidence::Options),
    /// Explore the interleavings of the lock-free parts, and show how far
    Loom(loom::Options),
    /// Build the hypervisor image, boot it in QEMU and check what it does from outside
    RunQemu(run_qemu::Options),
    /// Live random lives on the rig, the software IOMMU at its worst, until one breaks a rule
    Soak(soak::Options),
    /// Run the ladder of checks that CI runs
    Test(test::Options),
}

fn main() -> ExitCode {
    let line = Line::parse();
    let result = process::install_interrupt_handler().and_then(|()| match line.task {
        Task::Bench(options) => bench::run(&options),
        Task::Evidence(options) => evidence::run(&options),
        Task::Loom(options) => loom::run(&options),
        Task::RunQemu(options) => run_qemu::run(&options).map(|()| ExitCode::SUCCESS),
        Task::Soak(options) => soak::run(&options),
        Task::Test(options) => test::run(&options),
    });
    result.unwrap_or_else(|error| {
        eprintln!("{} {error:#}", style("error:").for_stderr().red().bold());
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Line::command().debug_assert();
    }
}
