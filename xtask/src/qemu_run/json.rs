//! The machine-readable report of a run.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::arch::Board;
use crate::qemu_run::Run;
use crate::qemu_run::command::Machine;
use crate::qemu_run::serial::{Fault, Function, Outcome, Unit};
use crate::tools::qemu::Version;

#[derive(Serialize)]
struct Report<'a> {
    arch: &'static str,
    board: Option<&'static str>,
    /// The planted faults that were switched on.
    planted: &'a [String],
    verdict: Outcome,
    problems: Vec<String>,
    qemu: String,
    smp: u32,
    seconds: f64,
    qemu_end: String,
    scenarios: Vec<Scenario<'a>>,
    units: &'a [Unit],
    functions: &'a [Function],
    faults: &'a [Fault],
}

#[derive(Serialize)]
struct Scenario<'a> {
    name: &'a str,
    outcome: Outcome,
    micros: u64,
    detail: &'a str,
    notes: Vec<&'a str>,
}

/// Writes the report of each run to `file`: an object for one run, an array for several.
pub(crate) fn write(file: &Path, runs: &[(&Machine, Version, &Run)]) -> Result<()> {
    let reports: Vec<_> = runs
        .iter()
        .map(|(machine, qemu, run)| report(run, *qemu, machine))
        .collect();
    let text = match reports.as_slice() {
        [one] => serde_json::to_string_pretty(one),
        several => serde_json::to_string_pretty(several),
    };
    let text = text.context("making the JSON report")?;
    fs::write(file, text + "\n")
        .with_context(|| format!("writing the JSON report to {}", file.display()))
}

fn report<'r>(run: &'r Run, qemu: Version, machine: &'r Machine) -> Report<'r> {
    let record = &run.record;
    let scenarios = record.ends.iter().map(|end| Scenario {
        name: &end.name,
        outcome: end.outcome,
        micros: end.micros,
        detail: &end.detail,
        notes: record.notes_of(&end.name).collect(),
    });
    Report {
        arch: machine.arch.name(),
        board: machine.board.map(Board::name),
        planted: &machine.faults,
        verdict: if run.problems.is_empty() {
            Outcome::Pass
        } else {
            Outcome::Fail
        },
        problems: run.problems.iter().map(ToString::to_string).collect(),
        qemu: qemu.to_string(),
        smp: machine.smp,
        seconds: run.elapsed.as_secs_f64(),
        qemu_end: run.end.to_string(),
        scenarios: scenarios.collect(),
        units: &record.units,
        functions: &record.functions,
        faults: &record.faults,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::arch::Arch;
    use crate::process::End;
    use crate::qemu_run::record::Record;

    #[test]
    fn the_report_holds_what_the_run_said() {
        let mut record = Record::default();
        record.take(r#"@@ {"event":"note","scenario":"revoke","text":"a note"}"#);
        record.take(r#"@@ {"event":"scenario-end","name":"revoke","outcome":"fail","micros":7,"detail":"stale"}"#);
        let planted = crate::ladder::PLANTED_FAULTS
            .iter()
            .find(|planted| planted.scenario == "revoke")
            .unwrap();
        let problems = crate::qemu_run::verdict::judge_planted_fault(
            planted,
            Arch::Aarch64,
            &record,
            End::TimedOut,
        );
        let run = Run {
            record,
            end: End::TimedOut,
            elapsed: Duration::from_millis(1500),
            problems,
        };
        let version = Version::parse("QEMU emulator version 10.0.2").unwrap();
        let machine = Machine {
            arch: Arch::Aarch64,
            board: Some(Board::Stage2),
            smp: 2,
            image: "/tmp/hv-image".into(),
            scenarios: vec!["revoke"],
            faults: vec![],
            trace: None,
            gdb: false,
            extra: vec![],
        };
        let value = serde_json::to_value(report(&run, version, &machine)).unwrap();
        assert_eq!(value["arch"], "aarch64");
        assert_eq!(value["board"], "stage2");
        assert_eq!(value["verdict"], "fail");
        assert_eq!(value["qemu"], "10.0.2");
        assert_eq!(value["smp"], 2);
        assert_eq!(value["qemu_end"], "killed at its time limit");
        assert_eq!(value["scenarios"][0]["outcome"], "fail");
        assert_eq!(value["scenarios"][0]["micros"], 7);
        assert_eq!(value["scenarios"][0]["notes"][0], "a note");
        assert!(
            value["problems"]
                .as_array()
                .is_some_and(|problems| !problems.is_empty())
        );
    }
}
