//! One run of the image in QEMU: the machine, its disk, what it says, and the verdict.

mod board;
pub(crate) mod command;
pub(crate) mod disk;
pub(crate) mod json;
mod live;
pub(crate) mod plan;
pub(crate) mod record;
pub(crate) mod serial;
mod tables;
pub(crate) mod verdict;

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use console::style;

use crate::arch::Arch;
use crate::ladder::Planted;
use crate::process::{self, End, Finished, Stream, run_quiet};
use crate::tools::qemu::Qemu;
use command::{Machine, READ_BYTES, SCRATCH, WRITE_BYTES, WRITE_OFFSET, guarded};
use disk::Disk;
use live::Live;
use record::Record;
use verdict::{Asked, DiskContents, Problem};

/// How many lines are shown of a run that did not come to its end.
const TAIL: usize = 30;

/// What a run has to do to be good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expectation {
    /// Every scenario passes.
    Pass,
    /// Every scenario passes in the image with planted faults while none is switched on: only then shows a failure with
    /// one of them anything.
    Control,
    /// The scenario that is there for this fault fails, and says what the fault makes it say.
    Caught(&'static Planted),
}

/// A run that is over.
#[derive(Debug)]
pub(crate) struct Run {
    /// What the image said.
    pub(crate) record: Record,
    /// How QEMU ended.
    pub(crate) end: End,
    /// How long QEMU ran.
    pub(crate) elapsed: Duration,
    /// What speaks against the run; nothing if it was as expected.
    pub(crate) problems: Vec<Problem>,
}

/// Boots `machine` and judges what happened; QEMU is killed after `limit`.
///
/// # Errors
/// When QEMU cannot be started or the disk cannot be made or read. A bad run is no error: see [`Run::problems`].
pub(crate) fn run(
    qemu: &Qemu,
    machine: &Machine,
    limit: Duration,
    expect: Expectation,
    verbose: bool,
) -> Result<Run> {
    if machine.trace.is_some() {
        require_trace_events(qemu, machine.arch)?;
    }
    let disk = Disk::create(&crate::workspace::scratch_dir())?;
    let mut command = guarded(&qemu.program, limit);
    command.args(machine.arguments(disk.path(), disk.nonce()));
    if verbose {
        println!("    $ {}", process::shown(&command));
    }
    let name = format!(
        "boot in QEMU {} ({}): {}",
        qemu.version,
        machine.shown(),
        machine.scenarios.join(", ")
    );
    let (record, finished) = boot(name, &mut command, limit, verbose)?;
    let problems = match expect {
        Expectation::Caught(planted) => {
            verdict::judge_planted_fault(planted, machine.arch, &record, finished.end)
        }
        Expectation::Pass | Expectation::Control => {
            let asked = Asked {
                arch: machine.arch,
                board: machine.board,
                scenarios: &machine.scenarios,
                smp: machine.smp,
                read_bytes: READ_BYTES,
                write: (WRITE_OFFSET, WRITE_BYTES),
                scratch: SCRATCH,
            };
            let after = disk.read()?;
            let contents = DiskContents {
                before: disk.before(),
                after: &after,
                nonce: disk.nonce(),
            };
            verdict::judge(&asked, &record, finished.end, &contents)
        }
    };
    Ok(Run {
        record,
        end: finished.end,
        elapsed: finished.elapsed,
        problems,
    })
}

/// Runs QEMU and shows what it says; the end of its words again when it did not come to its end.
fn boot(
    name: String,
    command: &mut Command,
    limit: Duration,
    verbose: bool,
) -> Result<(Record, Finished)> {
    let mut live = Live::start(name, verbose);
    let result = process::run(command, limit, &mut |stream, line| live.line(stream, line));
    let record = live.finish();
    let finished = result?;
    if record.done.is_empty() {
        let why = match finished.end {
            End::TimedOut => format!(
                "QEMU was killed after its time limit of {} s",
                limit.as_secs()
            ),
            end => format!("QEMU ended before the image was done ({end})"),
        };
        println!("{} {why}", style("error:").red().bold());
        if !verbose {
            let any = finished
                .lines
                .iter()
                .any(|(stream, _)| *stream == Stream::Out);
            println!(
                "    {}",
                if any {
                    "its last lines:"
                } else {
                    "the image wrote nothing to the serial port"
                }
            );
            println!("{}", finished.tail(TAIL));
        }
    }
    Ok((record, finished))
}

/// A trace without events would be an empty file; that is said before the run.
fn require_trace_events(qemu: &Qemu, arch: Arch) -> Result<()> {
    let help = run_quiet(
        Command::new(&qemu.program).args(["-trace", "help"]),
        Duration::from_secs(30),
    )?;
    let known = |line: &str| {
        let mut prefixes = arch.trace_prefixes().iter();
        prefixes.any(|prefix| line.starts_with(prefix))
    };
    if !help.stdout().lines().any(known) {
        bail!(
            "this QEMU {} has no {}* trace events (`{} -trace help` lists none): leave --trace out, or use a QEMU \
             built with the log trace backend",
            qemu.version,
            arch.trace_prefixes().join("* or "),
            qemu.program.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stand-in for QEMU: it prints canned lines and leaves with `rc`.
    fn stand_in(lines: &[&str], rc: u32) -> Command {
        let mut command = guarded(std::path::Path::new("sh"), Duration::from_secs(20));
        command
            .args(["-c", &format!("printf '%s\\n' \"$@\"; exit {rc}"), "sh"])
            .args(lines);
        command
    }

    const START: &str = r#"@@ {"event":"start","version":"0.1.0","cpus":1,"memory_mib":512}"#;
    const UNIT: &str = r#"@@ {"event":"unit","index":0,"base":"0xfed90000","segment":0,"version":"1.0","registers":{"CAP":"0x1","ECAP":"0x2"},"domains":65536,"levels":[3,4],"leaf_sizes":["4K"],"coherent":false,"fault_records":1,"features":[]}"#;
    const BEGIN: &str = r#"@@ {"event":"scenario-start","name":"blocked"}"#;
    const END: &str = r#"@@ {"event":"scenario-end","name":"blocked","outcome":"pass","micros":5,"detail":"fine"}"#;
    const DONE: &str = r#"@@ {"event":"done","passed":1,"failed":0}"#;

    fn judged(command: &mut Command, limit: Duration) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::create(folder.path()).unwrap();
        let (record, finished) = boot("a stand-in".into(), command, limit, false).unwrap();
        let asked = Asked {
            arch: Arch::X86_64,
            board: None,
            scenarios: &["blocked"],
            smp: 1,
            read_bytes: 1,
            write: (0, 1),
            scratch: (0, 1),
        };
        let after = disk.read().unwrap();
        let contents = DiskContents {
            before: disk.before(),
            after: &after,
            nonce: disk.nonce(),
        };
        verdict::judge(&asked, &record, finished.end, &contents)
            .iter()
            .map(Problem::to_string)
            .collect()
    }

    #[test]
    fn a_run_is_read_from_the_programs_output_and_exit_code() {
        let limit = Duration::from_secs(20);
        let good = ["SeaBIOS", START, BEGIN, UNIT, END, DONE];
        assert_eq!(
            judged(&mut stand_in(&good, 33), limit),
            Vec::<String>::new()
        );
        assert!(!judged(&mut stand_in(&good, 35), limit).is_empty());
        assert!(!judged(&mut stand_in(&good[..5], 33), limit).is_empty());
        assert!(!judged(&mut stand_in(&[], 33), limit).is_empty());
    }

    #[test]
    fn a_run_that_stands_still_is_ended_and_judged() {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("echo '{START}'; sleep 60")]);
        let problems = judged(&mut command, Duration::from_millis(500));
        assert!(
            problems
                .iter()
                .any(|problem| problem.contains("killed at its time limit")),
            "{problems:?}"
        );
        assert!(
            problems
                .iter()
                .any(|problem| problem.contains("never began")),
            "{problems:?}"
        );
    }
}
