//! Everything the image said in one run, sorted by kind.

use crate::qemu_run::serial::{
    Digest, Event, Fault, Function, ScenarioEnd, Unit, Wrote, parse_line,
};

/// The image's first words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    /// The image's version.
    pub(crate) version: String,
    /// Processors that are up.
    pub(crate) cpus: u32,
    /// Usable memory in MiB.
    pub(crate) memory_mib: u64,
}

/// What a run said so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    /// The start event; the last one if there are several.
    pub(crate) start: Option<Start>,
    /// Names of scenarios that began, in order.
    pub(crate) begun: Vec<String>,
    /// Ends of scenarios, in order.
    pub(crate) ends: Vec<ScenarioEnd>,
    /// Scenario and text.
    pub(crate) notes: Vec<(String, String)>,
    /// IOMMU units.
    pub(crate) units: Vec<Unit>,
    /// PCI functions.
    pub(crate) functions: Vec<Function>,
    /// Digests over disk content.
    pub(crate) digests: Vec<Digest>,
    /// Regions written to disk.
    pub(crate) written: Vec<Wrote>,
    /// Fault records.
    pub(crate) faults: Vec<Fault>,
    /// Counts of each done event: passed and failed.
    pub(crate) done: Vec<(u32, u32)>,
    /// Texts of panics.
    pub(crate) panics: Vec<String>,
    /// Event lines that could not be read.
    pub(crate) broken: Vec<String>,
}

impl Record {
    /// Takes in one serial line and gives back its event, if it is one.
    pub(crate) fn take(&mut self, line: &str) -> Option<Event> {
        match parse_line(line) {
            Ok(None) => None,
            Ok(Some(event)) => {
                self.file(event.clone());
                Some(event)
            }
            Err(bad) => {
                self.broken.push(bad.to_string());
                None
            }
        }
    }

    fn file(&mut self, event: Event) {
        match event {
            Event::Start {
                version,
                cpus,
                memory_mib,
            } => {
                self.start = Some(Start {
                    version,
                    cpus,
                    memory_mib,
                })
            }
            Event::Unit(unit) => self.units.push(unit),
            Event::Function(function) => self.functions.push(function),
            Event::ScenarioStart { name } => self.begun.push(name),
            Event::Note { scenario, text } => self.notes.push((scenario, text)),
            Event::Digest(digest) => self.digests.push(digest),
            Event::Wrote(wrote) => self.written.push(wrote),
            Event::Fault(fault) => self.faults.push(fault),
            Event::ScenarioEnd(end) => self.ends.push(end),
            Event::Done { passed, failed } => self.done.push((passed, failed)),
            Event::Panic { text } => self.panics.push(text),
        }
    }

    /// The notes of one scenario.
    pub(crate) fn notes_of<'a>(&'a self, scenario: &'a str) -> impl Iterator<Item = &'a str> {
        self.notes
            .iter()
            .filter(move |(of, _)| of == scenario)
            .map(|(_, text)| text.as_str())
    }

    /// The faults of one scenario.
    pub(crate) fn faults_of<'a>(&'a self, scenario: &'a str) -> impl Iterator<Item = &'a Fault> {
        self.faults
            .iter()
            .filter(move |fault| fault.scenario == scenario)
    }
}
