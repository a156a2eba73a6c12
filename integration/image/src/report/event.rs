//! The events of the serial log and their JSON form.

use core::fmt::{self, Display};

use hv_core::{Access, Iova, OwnerId, PageSize, PciAddress, PhysAddr, Segment};

use super::json::{Object, object};
use crate::pci::{Class, Identity};

/// One event. Its `Display` form is the JSON object, on one line.
#[derive(Clone, Copy)]
pub enum Event<'a> {
    /// The image runs: the first event of every log.
    Start {
        /// Version of the image.
        version: &'a str,
        /// CPUs that are up.
        cpus: usize,
        /// Usable memory in MiB.
        memory_mib: u64,
    },
    /// An IOMMU was found and understood.
    Unit(UnitEvent<'a>),
    /// A PCI function was found.
    Function(FunctionEvent<'a>),
    /// A scenario begins.
    ScenarioStart {
        /// Its name.
        name: &'a str,
    },
    /// Something worth telling about a scenario.
    Note {
        /// The scenario's name.
        scenario: &'a str,
        /// One sentence for people.
        text: &'a dyn Display,
    },
    /// The SHA-256 of bytes that were read from the disk.
    Digest {
        /// The scenario's name.
        scenario: &'a str,
        /// First byte on the disk.
        offset: u64,
        /// Number of bytes.
        bytes: u64,
        /// The digest.
        sha256: &'a [u8; 32],
    },
    /// The pattern was written to the disk.
    Wrote {
        /// The scenario's name.
        scenario: &'a str,
        /// First byte on the disk.
        offset: u64,
        /// Number of bytes.
        bytes: u64,
    },
    /// An IOMMU reported a fault.
    Fault(FaultEvent<'a>),
    /// A scenario ended.
    ScenarioEnd {
        /// Its name.
        name: &'a str,
        /// Whether everything it checks held.
        passed: bool,
        /// How long it took, in microseconds.
        micros: u64,
        /// What was shown, or what went wrong, in one line.
        detail: &'a dyn Display,
    },
    /// All scenarios ended: the last event of a log that is whole.
    Done {
        /// Scenarios that passed.
        passed: usize,
        /// Scenarios that failed.
        failed: usize,
    },
    /// The run ended early: a panic, a trap or a refusal.
    Panic {
        /// What happened.
        text: &'a dyn Display,
    },
}

/// What an IOMMU is and can do.
#[derive(Clone, Copy, Debug)]
pub struct UnitEvent<'a> {
    /// Number of the unit, from 0.
    pub index: usize,
    /// Where its registers are.
    pub base: PhysAddr,
    /// The PCI segment that it serves, where it is one.
    pub segment: Option<Segment>,
    /// Architecture version, `"1.0"`.
    pub version: &'a str,
    /// Raw capability registers, by name.
    pub registers: &'a [(&'a str, u64)],
    /// Number of domain ids.
    pub domains: u32,
    /// Table depths that it can walk.
    pub levels: &'a [u8],
    /// Page sizes that a leaf can have.
    pub leaf_sizes: &'a [PageSize],
    /// Whether its table walks snoop CPU caches.
    pub coherent: bool,
    /// How many faults it can hold.
    pub fault_records: u32,
    /// Names of further features.
    pub features: &'a [&'a str],
}

/// A PCI function and who guards it.
#[derive(Clone, Copy, Debug)]
pub struct FunctionEvent<'a> {
    /// Where it is.
    pub address: PciAddress,
    /// Vendor and device id.
    pub identity: Identity,
    /// Class code.
    pub class: Class,
    /// What it is, for people.
    pub kind: &'a str,
    /// Index of the IOMMU that covers it.
    pub unit: Option<usize>,
    /// Number of its isolation group.
    pub group: Option<usize>,
}

/// A DMA that an IOMMU refused.
#[derive(Clone, Copy, Debug)]
pub struct FaultEvent<'a> {
    /// The scenario's name.
    pub scenario: &'a str,
    /// Who sent it.
    pub requester: PciAddress,
    /// The address that it used.
    pub address: Iova,
    /// What it tried to do.
    pub access: Access,
    /// Why it was refused, for people.
    pub reason: &'a str,
    /// The hardware's reason code.
    pub code: u16,
    /// The domain that the requester was in, if known.
    pub domain: Option<u64>,
    /// Who decided over that domain, if known.
    pub owner: Option<OwnerId>,
}

/// Bytes as lower-case hexadecimal digits.
struct HexBytes<'a>(&'a [u8]);

impl Display for HexBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        object(f, |o| self.fields(o))
    }
}

impl Event<'_> {
    fn fields(&self, o: &mut Object<'_>) -> fmt::Result {
        match self {
            Self::Start {
                version,
                cpus,
                memory_mib,
            } => {
                o.string("event", "start")?;
                o.string("version", version)?;
                o.number("cpus", *cpus as u64)?;
                o.number("memory_mib", *memory_mib)
            }
            Self::Unit(unit) => unit.fields(o),
            Self::Function(function) => function.fields(o),
            Self::ScenarioStart { name } => {
                o.string("event", "scenario-start")?;
                o.string("name", name)
            }
            Self::Note { scenario, text } => {
                o.string("event", "note")?;
                o.string("scenario", scenario)?;
                o.string("text", text)
            }
            Self::Digest {
                scenario,
                offset,
                bytes,
                sha256,
            } => {
                o.string("event", "digest")?;
                o.string("scenario", scenario)?;
                o.number("offset", *offset)?;
                o.number("bytes", *bytes)?;
                o.string("sha256", HexBytes(*sha256))
            }
            Self::Wrote {
                scenario,
                offset,
                bytes,
            } => {
                o.string("event", "wrote")?;
                o.string("scenario", scenario)?;
                o.number("offset", *offset)?;
                o.number("bytes", *bytes)
            }
            Self::Fault(fault) => fault.fields(o),
            Self::ScenarioEnd {
                name,
                passed,
                micros,
                detail,
            } => {
                o.string("event", "scenario-end")?;
                o.string("name", name)?;
                o.string("outcome", if *passed { "pass" } else { "fail" })?;
                o.number("micros", *micros)?;
                o.string("detail", detail)
            }
            Self::Done { passed, failed } => {
                o.string("event", "done")?;
                o.number("passed", *passed as u64)?;
                o.number("failed", *failed as u64)
            }
            Self::Panic { text } => {
                o.string("event", "panic")?;
                o.string("text", text)
            }
        }
    }
}

impl UnitEvent<'_> {
    fn fields(&self, o: &mut Object<'_>) -> fmt::Result {
        o.string("event", "unit")?;
        o.number("index", self.index as u64)?;
        o.hex("base", self.base.as_u64())?;
        o.number_or_null("segment", self.segment.map(|segment| segment.0.into()))?;
        o.string("version", self.version)?;
        o.hexes("registers", self.registers)?;
        o.number("domains", self.domains.into())?;
        o.numbers("levels", self.levels)?;
        o.strings("leaf_sizes", self.leaf_sizes)?;
        o.boolean("coherent", self.coherent)?;
        o.number("fault_records", self.fault_records.into())?;
        o.strings("features", self.features)
    }
}

impl FunctionEvent<'_> {
    fn fields(&self, o: &mut Object<'_>) -> fmt::Result {
        o.string("event", "function")?;
        o.string("address", self.address)?;
        o.string("vendor", format_args!("{:04x}", self.identity.vendor))?;
        o.string("device", format_args!("{:04x}", self.identity.device))?;
        o.string("class", self.class)?;
        o.string("kind", self.kind)?;
        o.number_or_null("unit", self.unit.map(|unit| unit as u64))?;
        o.number_or_null("group", self.group.map(|group| group as u64))
    }
}

impl FaultEvent<'_> {
    fn fields(&self, o: &mut Object<'_>) -> fmt::Result {
        o.string("event", "fault")?;
        o.string("scenario", self.scenario)?;
        o.string("requester", self.requester)?;
        o.hex("address", self.address.as_u64())?;
        o.string("access", self.access)?;
        o.string("reason", self.reason)?;
        o.number("code", self.code.into())?;
        o.number_or_null("domain", self.domain)?;
        match self.owner {
            Some(owner) => o.string("owner", owner),
            None => o.string("owner", "nobody"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_has_the_agreed_form() {
        let event = Event::Function(FunctionEvent {
            address: PciAddress::new(Segment(0), 0, 2, 0).unwrap(),
            identity: Identity {
                vendor: 0x8086,
                device: 0x5845,
            },
            class: Class::new(0x01, 0x08, 0x02),
            kind: "NVMe controller",
            unit: Some(0),
            group: None,
        });
        assert_eq!(
            event.to_string(),
            "{\"event\":\"function\",\"address\":\"0000:00:02.0\",\"vendor\":\"8086\",\"device\":\"5845\",\
             \"class\":\"010802\",\"kind\":\"NVMe controller\",\"unit\":0,\"group\":null}"
        );
    }

    #[test]
    fn a_unit_has_the_agreed_form() {
        let event = Event::Unit(UnitEvent {
            index: 0,
            base: PhysAddr::new(0xfed9_0000),
            segment: Some(Segment(0)),
            version: "1.0",
            registers: &[("CAP", 0x00d2_008c_222f_0606), ("ECAP", 0xf0_0f4a)],
            domains: 65536,
            levels: &[3, 4],
            leaf_sizes: &[PageSize::Size4K, PageSize::Size2M, PageSize::Size1G],
            coherent: false,
            fault_records: 1,
            features: &["queued invalidation"],
        });
        assert_eq!(
            event.to_string(),
            "{\"event\":\"unit\",\"index\":0,\"base\":\"0xfed90000\",\"segment\":0,\"version\":\"1.0\",\
             \"registers\":{\"CAP\":\"0xd2008c222f0606\",\"ECAP\":\"0xf00f4a\"},\"domains\":65536,\"levels\":[3,4],\
             \"leaf_sizes\":[\"4K\",\"2M\",\"1G\"],\"coherent\":false,\"fault_records\":1,\
             \"features\":[\"queued invalidation\"]}"
        );
    }

    #[test]
    fn a_fault_names_requester_and_owner() {
        let event = Event::Fault(FaultEvent {
            scenario: "blocked",
            requester: PciAddress::new(Segment(0), 0, 3, 0).unwrap(),
            address: Iova::new(0x5000),
            access: Access::Write,
            reason: "no write permission or not mapped",
            code: 5,
            domain: Some(7),
            owner: Some(OwnerId::Hypervisor),
        });
        assert_eq!(
            event.to_string(),
            "{\"event\":\"fault\",\"scenario\":\"blocked\",\"requester\":\"0000:00:03.0\",\
             \"address\":\"0x5000\",\"access\":\"write\",\"reason\":\"no write permission or not mapped\",\
             \"code\":5,\"domain\":7,\"owner\":\"hypervisor\"}"
        );
    }

    #[test]
    fn text_stays_on_one_line() {
        let event = Event::Panic {
            text: &"first\nsecond \"quoted\"",
        };
        assert_eq!(
            event.to_string(),
            "{\"event\":\"panic\",\"text\":\"first\\nsecond \\\"quoted\\\"\"}"
        );
    }

    #[test]
    fn a_digest_is_64_digits() {
        let mut sha256 = [0u8; 32];
        sha256[0] = 0xab;
        let text = Event::Digest {
            scenario: "kernel-dma",
            offset: 0,
            bytes: 1,
            sha256: &sha256,
        }
        .to_string();
        assert!(text.contains(&format!("\"sha256\":\"ab{}\"", "0".repeat(62))));
    }
}
