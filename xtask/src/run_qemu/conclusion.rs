//! What a call of `run-qemu` comes to: one table over its runs, what was caught, and what did not run at all.

use std::time::Duration;

use anyhow::{Error, Result, bail};
use comfy_table::{Table, presets};

use super::{counts, passed};
use crate::arch::Arch;
use crate::progress::seconds;
use crate::qemu_run::command::Machine;
use crate::qemu_run::{Expectation, Run};
use crate::scenarios;
use crate::tools::qemu::Version;

/// A run with all that led to it.
pub(super) struct Done {
    /// What was played.
    pub(super) machine: Machine,
    /// By which QEMU.
    pub(super) qemu: Version,
    /// What had to come of it.
    pub(super) expect: Expectation,
    /// What came of it.
    pub(super) run: Run,
}

/// An architecture whose runs did not come to their end.
pub(super) struct Lost {
    /// Which.
    pub(super) arch: Arch,
    /// What was in the way.
    pub(super) error: Error,
}

impl Done {
    /// Whether it went as it had to.
    pub(super) fn is_good(&self) -> bool {
        self.run.problems.is_empty()
    }

    /// Whether it shows that nothing fails while no fault is switched on.
    pub(super) fn is_control(&self) -> bool {
        self.expect == Expectation::Control
    }
}

/// Says which architectures did not run to their end, and why.
///
/// # Errors
/// When there is one.
pub(super) fn all_ran(mut lost: Vec<Lost>, archs: &[Arch]) -> Result<()> {
    match (archs, lost.pop()) {
        (_, None) => Ok(()),
        ([_], Some(only)) => Err(only.error),
        (_, Some(last)) => {
            lost.push(last);
            let each = lost.iter();
            let each = each.map(|lost| format!("{}: {:#}", lost.arch, lost.error));
            let each: Vec<String> = each.collect();
            bail!(
                "expected a run of each architecture, and had none to its end of {}",
                each.join("; nor of ")
            )
        }
    }
}

/// The lost ones that no run that has to pass is of.
fn without_a_run(passing: &[&Done], lost: &[Lost]) -> Vec<Arch> {
    let ran = |arch| passing.iter().any(|done| done.machine.arch == arch);
    let archs = lost.iter().map(|lost| lost.arch);
    archs.filter(|arch| !ran(*arch)).collect()
}

/// Says how it all went.
///
/// # Errors
/// When a run is not as it has to be.
pub(super) fn conclude(done: &[Done], lost: &[Lost], faults: &[String]) -> Result<()> {
    let faults = faults.join(", ");
    let has_to_pass = |done: &&Done| done.expect == Expectation::Pass;
    let passing: Vec<&Done> = done.iter().filter(has_to_pass).collect();
    let missing = without_a_run(&passing, lost);
    if !passing.is_empty() && passing.len() + missing.len() > 1 {
        println!("\n{}\n", outcomes(&passing, &missing));
    }
    let elapsed = seconds(done.iter().map(|done| done.run.elapsed).sum());
    let mut missed = Vec::new();
    let mut no_control = Vec::new();
    for done in done {
        let arch = done.machine.arch;
        match (done.expect, done.is_good()) {
            (Expectation::Pass, _) => {}
            (Expectation::Control, true) => println!(
                "control on {arch} in {}: {} passed, as it has to with {faults} planted and switched off",
                seconds(done.run.elapsed),
                done.machine.scenarios.join(", ")
            ),
            (Expectation::Control, false) => no_control.push(arch.name()),
            (Expectation::Caught(planted), true) => {
                let said = done.run.record.ends.iter().map(|end| end.detail.as_str());
                println!(
                    "caught on {arch} in {}: {} failed, as it has to with {faults} planted: {}",
                    seconds(done.run.elapsed),
                    planted.scenario,
                    said.collect::<String>()
                );
            }
            (Expectation::Caught(planted), false) => {
                missed.push(format!("{} on {arch}", planted.scenario));
            }
        }
    }
    if !no_control.is_empty() {
        bail!(
            "the image with {faults} planted does not pass on {} while it is switched off, so nothing shows that the fault \
             is caught; see the contradictions above",
            no_control.join(" and ")
        );
    }
    if !missed.is_empty() {
        bail!(
            "{} did not catch {faults}: expected the scenario to fail for the fault's reason and the image to end well; see \
             the contradictions above",
            missed.join(", ")
        );
    }
    if passing.is_empty() {
        return Ok(());
    }
    let all = passing
        .iter()
        .map(|done| counts(&done.run, &done.machine.scenarios));
    let (passed, failed) = all.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    println!("{passed} passed, {failed} failed in {elapsed}");
    match (passing.iter().all(|done| done.is_good()), faults.is_empty()) {
        (true, true) => Ok(()),
        (true, false) => bail!("no scenario failed, though {faults} was planted"),
        (false, true) => bail!("the run is not good: see the contradictions above"),
        (false, false) => bail!(
            "with {faults} planted the run is not good: scenarios above that failed caught it, if they are listed for \
             it (`--list`)"
        ),
    }
}

/// One table over several runs: a row for each scenario, a column for each machine, also for one that nothing ran on.
fn outcomes(done: &[&Done], missing: &[Arch]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let names = done.iter().map(|done| done.machine.shown());
    let others = missing.iter().map(|arch| arch.name().to_owned());
    let scenario = "scenario".to_owned();
    table.set_header([scenario].into_iter().chain(names).chain(others));
    let runs = |done: &Done, name| done.machine.scenarios.contains(&name);
    let names = scenarios::ALL.iter().map(|scenario| scenario.name);
    for name in names.filter(|name| done.iter().any(|done| runs(done, *name))) {
        let cells = done.iter().map(|done| match passed(&done.run, name) {
            _ if !runs(done, name) => "-".to_owned(),
            true => {
                let ends = &done.run.record.ends;
                let micros = ends
                    .iter()
                    .find(|end| end.name == name)
                    .map(|end| end.micros);
                format!(
                    "pass, {}",
                    seconds(Duration::from_micros(micros.unwrap_or(0)))
                )
            }
            false => "FAILED".to_owned(),
        });
        let others = missing
            .iter()
            .map(|arch| match scenarios::on(*arch, &[name])[..] {
                [] => "-".to_owned(),
                _ => "NOT RUN".to_owned(),
            });
        table.add_row([name.to_owned()].into_iter().chain(cells).chain(others));
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::End;
    use crate::qemu_run::record::Record;
    use crate::qemu_run::serial::{Outcome, ScenarioEnd};

    fn ran(arch: Arch, name: &'static str) -> Done {
        let end = ScenarioEnd {
            name: name.to_owned(),
            outcome: Outcome::Pass,
            micros: 1_500_000,
            detail: String::new(),
        };
        Done {
            machine: Machine {
                arch,
                board: None,
                smp: 4,
                image: "image".into(),
                scenarios: vec![name],
                faults: Vec::new(),
                trace: None,
                gdb: false,
                extra: Vec::new(),
            },
            qemu: Version::new(10, 0, 0),
            expect: Expectation::Pass,
            run: Run {
                record: Record {
                    ends: vec![end],
                    ..Record::default()
                },
                end: End::Exited(0),
                elapsed: Duration::from_secs(2),
                problems: Vec::new(),
            },
        }
    }

    fn without_qemu(arch: Arch) -> Lost {
        Lost {
            arch,
            error: anyhow::anyhow!("there is no {}", arch.emulator()),
        }
    }

    /// An architecture that cannot be run takes nothing from the other one, and is not passed over.
    #[test]
    fn an_architecture_that_cannot_run_has_a_column_and_an_error() {
        let done = [ran(Arch::X86_64, "revoke")];
        let of_arm = [ran(Arch::Aarch64, "nested")];
        let table = outcomes(&of_arm.iter().collect::<Vec<_>>(), &[Arch::X86_64]);
        assert!(table.ends_with('-'), "there is none: {table}");
        let lost = vec![without_qemu(Arch::Aarch64)];
        let passing: Vec<&Done> = done.iter().collect();
        let missing = without_a_run(&passing, &lost);
        assert_eq!(missing, [Arch::Aarch64]);
        let table = outcomes(&passing, &missing);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 2, "{table}");
        assert!(
            lines[0].contains("x86_64, smp 4") && lines[0].ends_with("aarch64"),
            "{table}"
        );
        assert!(
            lines[1].contains("pass, ") && lines[1].ends_with("NOT RUN"),
            "{table}"
        );
        assert!(conclude(&done, &lost, &[]).is_ok(), "what ran is good");
        let error = all_ran(lost, &Arch::ALL).unwrap_err().to_string();
        assert!(
            error.contains("aarch64: there is no qemu-system-aarch64"),
            "{error}"
        );
        // One of which some boots were made is told of, and has its column already.
        let half = [without_qemu(Arch::X86_64)];
        assert!(without_a_run(&passing, &half).is_empty());
        let both = vec![without_qemu(Arch::X86_64), without_qemu(Arch::Aarch64)];
        let error = all_ran(both, &Arch::ALL).unwrap_err().to_string();
        assert!(error.contains("system-x86_64; nor of aarch64"), "{error}");
        let alone = all_ran(vec![without_qemu(Arch::Aarch64)], &[Arch::Aarch64]);
        assert_eq!(
            alone.unwrap_err().to_string(),
            "there is no qemu-system-aarch64"
        );
        assert!(all_ran(Vec::new(), &Arch::ALL).is_ok());
    }
}
