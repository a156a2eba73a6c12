//! Shows a run while it goes on: each scenario as it ends, with its notes and faults beneath.

use std::time::Duration;

use console::style;

use crate::process::Stream;
use crate::progress::Progress;
use crate::qemu_run::record::Record;
use crate::qemu_run::serial::{Event, Fault, Outcome, ScenarioEnd};
use crate::qemu_run::tables;
use crate::scenarios::{ALL, DISCOVER};

/// How many different faults of a scenario are printed; the JSON report has all.
const FAULTS_SHOWN: usize = 6;

/// Collects the run's record and prints it as it grows.
pub(crate) struct Live {
    record: Record,
    progress: Progress,
    verbose: bool,
}

impl Live {
    /// Announces the run as `name`; with `verbose` every serial line is printed as well.
    pub(crate) fn start(name: String, verbose: bool) -> Self {
        Self {
            record: Record::default(),
            progress: Progress::start(name, false),
            verbose,
        }
    }

    /// Takes in a line from QEMU: the guest's serial port is standard output, QEMU's own words standard error.
    pub(crate) fn line(&mut self, stream: Stream, line: &str) {
        if stream == Stream::Err {
            // QEMU reports each refused DMA there as well; the image's fault events say it better.
            if self.verbose {
                self.progress
                    .print(format_args!("    {} {line}", style("qemu:").yellow()));
            }
            return;
        }
        if self.verbose {
            self.progress
                .print(style(format_args!("    | {line}")).dim());
        }
        match self.record.take(line) {
            Some(Event::Start {
                version,
                cpus,
                memory_mib,
            }) => self.progress.print(format_args!(
                "    image {version} is up: processors {cpus}, memory {memory_mib} MiB"
            )),
            Some(Event::ScenarioStart { name }) => self.progress.line(&name),
            Some(Event::Note { text, .. }) => self.progress.line(&text),
            Some(Event::ScenarioEnd(end)) => self.scenario_ended(&end),
            Some(Event::Panic { text }) => {
                self.progress
                    .print(format_args!("{} {text}", style(" panic").red().bold()));
            }
            _ => {}
        }
    }

    /// Takes the spinner away; the record is what the run said.
    pub(crate) fn finish(self) -> Record {
        self.progress.clear();
        self.record
    }

    fn scenario_ended(&mut self, end: &ScenarioEnd) {
        self.progress.print(scenario_line(end));
        for note in self.record.notes_of(&end.name).collect::<Vec<_>>() {
            self.progress.print(format_args!("           {note}"));
        }
        for line in fault_lines(self.record.faults_of(&end.name)) {
            self.progress.print(format_args!("           {line}"));
        }
        if end.name == DISCOVER {
            self.progress.print(tables::units(&self.record.units));
            self.progress
                .print(tables::functions(&self.record.functions));
        }
    }
}

fn scenario_line(end: &ScenarioEnd) -> String {
    let word = match end.outcome {
        Outcome::Pass => style("  pass").green().to_string(),
        Outcome::Fail => style("  FAIL").red().bold().to_string(),
    };
    let width = ALL
        .iter()
        .filter(|scenario| scenario.by_default)
        .map(|scenario| scenario.name.len())
        .max()
        .unwrap_or(0);
    format!(
        "{word} {:width$} {:>11}  {}",
        end.name,
        milliseconds(end.micros),
        end.detail
    )
}

/// The faults of a scenario, each that came again once, with how often. A device that tries again and again causes thousands.
fn fault_lines<'f>(faults: impl Iterator<Item = &'f Fault>) -> Vec<String> {
    let mut found: Vec<(String, usize)> = Vec::new();
    for line in faults.map(fault_line) {
        match found.iter_mut().find(|(known, _)| *known == line) {
            Some((_, times)) => *times += 1,
            None => found.push((line, 1)),
        }
    }
    let others = found.split_off(found.len().min(FAULTS_SHOWN));
    let mut lines: Vec<String> = found
        .into_iter()
        .map(|(line, times)| match times {
            1 => line,
            _ => format!("{line}, {times} times"),
        })
        .collect();
    if !others.is_empty() {
        let more: usize = others.iter().map(|(_, times)| times).sum();
        lines.push(format!(
            "and {more} more faults, {} different ones",
            others.len()
        ));
    }
    lines
}

fn fault_line(fault: &Fault) -> String {
    let domain = fault.domain.map_or_else(
        || "no domain".to_owned(),
        |domain| format!("domain {domain}"),
    );
    let owner = fault.owner.as_deref().unwrap_or("nobody");
    format!(
        "fault: {} {} {}: {} (code {:#x}, {domain}, owner {owner})",
        fault.requester, fault.access, fault.address, fault.reason, fault.code
    )
}

fn milliseconds(micros: u64) -> String {
    format!(
        "{:.2} ms",
        Duration::from_micros(micros).as_secs_f64() * 1000.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_is_one_aligned_line() {
        let end = |name: &str, micros| ScenarioEnd {
            name: name.into(),
            outcome: Outcome::Pass,
            micros,
            detail: "detail".into(),
        };
        let short = console::strip_ansi_codes(&scenario_line(&end("revoke", 12))).into_owned();
        let long =
            console::strip_ansi_codes(&scenario_line(&end("concurrent", 1_234_567))).into_owned();
        assert_eq!(short, "  pass revoke         0.01 ms  detail");
        assert_eq!(long, "  pass concurrent  1234.57 ms  detail");
    }

    fn fault(address: &str) -> Fault {
        Fault {
            scenario: "blocked".into(),
            requester: "0000:00:03.0".into(),
            address: address.into(),
            access: "write".into(),
            reason: "no write permission".into(),
            code: 5,
            domain: None,
            owner: Some("hypervisor".into()),
        }
    }

    #[test]
    fn a_fault_names_requester_reason_and_owner() {
        let text = "fault: 0000:00:03.0 write 0x1000: no write permission (code 0x5, no domain, owner hypervisor)";
        assert_eq!(fault_line(&fault("0x1000")), text);
    }

    #[test]
    fn what_comes_again_and_again_is_one_line() {
        let addresses = ["0x1000", "0x2000", "0x1000", "0x1000"];
        let faults = addresses.map(fault);
        let [first, second] = &fault_lines(faults.iter())[..] else {
            panic!("two lines");
        };
        assert_eq!(*first, format!("{}, 3 times", fault_line(&faults[0])));
        assert_eq!(*second, fault_line(&faults[1]));
        let many: Vec<Fault> = (0..9).map(|page| fault(&format!("{page}"))).collect();
        let lines = fault_lines(many.iter().chain(&many[8..]));
        assert_eq!(lines.len(), FAULTS_SHOWN + 1);
        assert_eq!(lines[FAULTS_SHOWN], "and 4 more faults, 3 different ones");
    }
}
