//! The event lines that the image writes to its serial port: `@@ ` and one JSON object.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What an event line begins with.
const MARK: &str = "@@ ";

/// One event of the image.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Event {
    /// The image is up.
    Start {
        version: String,
        cpus: u32,
        memory_mib: u64,
    },
    /// An IOMMU unit.
    Unit(Unit),
    /// A PCI function.
    Function(Function),
    /// A scenario begins.
    ScenarioStart { name: String },
    /// A detail for people.
    Note { scenario: String, text: String },
    /// A digest over disk content as the image read it.
    Digest(Digest),
    /// A region that the image wrote.
    Wrote(Wrote),
    /// A fault record of the hardware.
    Fault(Fault),
    /// A scenario is over.
    ScenarioEnd(ScenarioEnd),
    /// All scenarios are over.
    Done { passed: u32, failed: u32 },
    /// The image gives up.
    Panic { text: String },
}

/// An IOMMU unit with its decoded capabilities; hexadecimal numbers stay texts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unit {
    pub(crate) index: u32,
    pub(crate) base: String,
    pub(crate) segment: Option<u32>,
    pub(crate) version: String,
    pub(crate) registers: BTreeMap<String, String>,
    pub(crate) domains: u64,
    pub(crate) levels: Vec<u32>,
    pub(crate) leaf_sizes: Vec<String>,
    pub(crate) coherent: bool,
    pub(crate) fault_records: u32,
    pub(crate) features: Vec<String>,
}

/// A PCI function with the unit that covers it and its isolation group, if any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Function {
    pub(crate) address: String,
    pub(crate) vendor: String,
    pub(crate) device: String,
    pub(crate) class: String,
    pub(crate) kind: String,
    pub(crate) unit: Option<u32>,
    pub(crate) group: Option<u32>,
}

/// SHA-256 over `bytes` bytes of the disk from `offset` on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Digest {
    pub(crate) scenario: String,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// `bytes` bytes of the disk from `offset` on now hold the pattern.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wrote {
    pub(crate) scenario: String,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// A DMA that the hardware refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fault {
    pub(crate) scenario: String,
    pub(crate) requester: String,
    pub(crate) address: String,
    pub(crate) access: String,
    pub(crate) reason: String,
    pub(crate) code: u32,
    pub(crate) domain: Option<u32>,
    pub(crate) owner: Option<String>,
}

/// How a scenario ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ScenarioEnd {
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
    /// Duration as the image measured it.
    pub(crate) micros: u64,
    pub(crate) detail: String,
}

/// Pass or fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// Everything was as it should be.
    Pass,
    /// Something was not.
    Fail,
}

/// An event line that is no event of the contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadEvent {
    line: String,
    why: String,
}

impl fmt::Display for BadEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.why, self.line)
    }
}

/// Reads one serial line; plain log lines give `None`.
pub(crate) fn parse_line(line: &str) -> Result<Option<Event>, BadEvent> {
    let Some(json) = line.strip_prefix(MARK) else {
        return Ok(None);
    };
    serde_json::from_str(json)
        .map(Some)
        .map_err(|error| BadEvent {
            line: line.to_owned(),
            why: error.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(json: &str) -> Event {
        parse_line(&format!("@@ {json}")).unwrap().unwrap()
    }

    #[test]
    fn a_unit_is_read_with_all_its_fields() {
        let Event::Unit(unit) = event(
            r#"{"event":"unit","index":0,"base":"0xfed90000","segment":0,"version":"1.0","registers":{"CAP":"0xd2","ECAP":"0xf0"},
               "domains":65536,"levels":[3,4],"leaf_sizes":["4K","2M"],"coherent":false,"fault_records":1,
               "features":["queued invalidation"]}"#,
        ) else {
            panic!("not a unit")
        };
        assert_eq!(
            (unit.base.as_str(), unit.domains, unit.levels.as_slice()),
            ("0xfed90000", 65536, &[3, 4][..])
        );
    }

    #[test]
    fn an_uncovered_function_has_no_unit_and_no_group() {
        let Event::Function(function) = event(
            r#"{"event":"function","address":"0000:00:02.0","vendor":"8086","device":"5845","class":"010802",
               "kind":"NVMe controller","unit":null,"group":null}"#,
        ) else {
            panic!("not a function")
        };
        assert_eq!((function.unit, function.group), (None, None));
    }

    #[test]
    fn scenario_events_are_read() {
        assert_eq!(
            event(r#"{"event":"scenario-start","name":"blocked"}"#),
            Event::ScenarioStart {
                name: "blocked".into()
            }
        );
        let Event::ScenarioEnd(end) = event(
            r#"{"event":"scenario-end","name":"blocked","outcome":"fail","micros":1234,"detail":"why"}"#,
        ) else {
            panic!("not an end")
        };
        assert_eq!((end.outcome, end.micros), (Outcome::Fail, 1234));
        assert_eq!(
            event(r#"{"event":"done","passed":6,"failed":0}"#),
            Event::Done {
                passed: 6,
                failed: 0
            }
        );
    }

    #[test]
    fn plain_lines_are_no_events_and_broken_ones_are_named() {
        assert_eq!(parse_line("hello @@ {}"), Ok(None));
        assert!(
            parse_line("@@ {\"event\":\"sta")
                .unwrap_err()
                .to_string()
                .contains("@@ {\"event\":\"sta")
        );
        assert!(
            parse_line(r#"@@ {"event":"surprise"}"#)
                .unwrap_err()
                .to_string()
                .contains("unknown variant")
        );
        assert!(
            parse_line(r#"@@ {"event":"done","passed":6}"#)
                .unwrap_err()
                .to_string()
                .contains("failed")
        );
        let maybe =
            r#"@@ {"event":"scenario-end","name":"x","outcome":"maybe","micros":1,"detail":""}"#;
        assert!(parse_line(maybe).is_err(), "an outcome is pass or fail");
    }
}
