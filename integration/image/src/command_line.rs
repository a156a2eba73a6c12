//! The kernel command line: which scenarios run, and with what numbers.

use arrayvec::ArrayVec;
use core::fmt;
use core::num::ParseIntError;
use core::str::FromStr;

use hv_core::fault::Fault;
use thiserror::Error;

/// What the image can show, in the order in which it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// The drive works with no IOMMU in its way: a step of development, run only when it is named.
    Untranslated,
    /// Finds IOMMUs and devices.
    Discover,
    /// The hypervisor's own driver does DMA.
    KernelDma,
    /// DMA to what is not mapped is stopped.
    Blocked,
    /// DMA to what was unmapped is stopped.
    Revoke,
    /// A device moves between owners.
    Reassign,
    /// A guest's own first stage, on backends that have that.
    Nested,
    /// All CPUs map and unmap at once.
    Concurrent,
    /// Page sizes change under DMA, and tables come back.
    Tables,
    /// The subsystem ends, and the drive reaches nothing more. The last one: nothing works behind an IOMMU after it.
    ShutDown,
}

impl Scenario {
    /// All scenarios, in order.
    pub const ALL: [Self; 10] = [
        Self::Untranslated,
        Self::Discover,
        Self::KernelDma,
        Self::Blocked,
        Self::Revoke,
        Self::Reassign,
        Self::Nested,
        Self::Concurrent,
        Self::Tables,
        Self::ShutDown,
    ];

    /// Whether it runs when none is named.
    pub const fn by_default(self) -> bool {
        match self {
            Self::Untranslated => false,
            // VT-d's backend has no nested domains.
            Self::Nested => cfg!(target_arch = "aarch64"),
            _ => true,
        }
    }

    /// The name on the command line and in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Untranslated => "untranslated",
            Self::Discover => "discover",
            Self::KernelDma => "kernel-dma",
            Self::Blocked => "blocked",
            Self::Revoke => "revoke",
            Self::Reassign => "reassign",
            Self::Nested => "nested",
            Self::Concurrent => "concurrent",
            Self::Tables => "tables",
            Self::ShutDown => "shut-down",
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The options of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Scenarios to run, in the order of [`Scenario::ALL`]; without `scenario=` all that run by default.
    pub scenarios: ArrayVec<Scenario, 9>,
    /// Seed of the pattern that is written to the disk; 0 without `nonce=`.
    pub nonce: u64,
    /// Protections that are taken out on purpose.
    pub faults: ArrayVec<Fault, 8>,
    /// Bytes to read from the start of the disk.
    pub read_bytes: u64,
    /// First byte of the disk to write.
    pub write_offset: u64,
    /// Bytes to write.
    pub write_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            scenarios: Scenario::ALL
                .into_iter()
                .filter(|scenario| scenario.by_default())
                .collect(),
            nonce: 0,
            faults: ArrayVec::new(),
            read_bytes: 16 << 20,
            write_offset: 24 << 20,
            write_bytes: 64 << 10,
        }
    }
}

/// The command line says something that the image does not know.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OptionError<'a> {
    /// A word is not `name=value` with a known name.
    #[error(
        "unknown option `{word}`; known are scenario=, nonce=, fault=, read-bytes=, write-offset=, write-bytes="
    )]
    UnknownOption {
        /// The word.
        word: &'a str,
    },
    /// An option is given twice.
    #[error("option `{name}` is given twice")]
    Twice {
        /// The option.
        name: &'a str,
    },
    /// A scenario is not known, or named twice.
    #[error(
        "`{found}` in scenario= is unknown or named twice; known are untranslated, discover, kernel-dma, blocked, revoke, reassign, nested, concurrent, tables, shut-down"
    )]
    Scenario {
        /// The name that was found.
        found: &'a str,
    },
    /// A fault is not known, or named twice.
    #[error("`{found}` in fault= is unknown or named twice")]
    Fault {
        /// The name that was found.
        found: &'a str,
    },
    /// This build has no faults.
    #[error("fault={found} needs an image built with --cfg hv_fault")]
    FaultsNotBuiltIn {
        /// The names that were found.
        found: &'a str,
    },
    /// The nonce is not 16 hexadecimal digits.
    #[error("nonce=`{found}`: expected 16 hexadecimal digits")]
    Nonce {
        /// What was found.
        found: &'a str,
    },
    /// A number is not one.
    #[error("{name}=`{found}`: expected a decimal number of bytes ({error})")]
    Number {
        /// The option.
        name: &'static str,
        /// What was found.
        found: &'a str,
        /// What is wrong with it.
        error: ParseIntError,
    },
}

/// Whether this build can take protections out.
const FAULTS_BUILT_IN: bool = cfg!(hv_fault);

impl Options {
    /// Parses words separated by blanks.
    ///
    /// # Errors
    /// [`OptionError`] naming the word that is wrong.
    pub fn parse(text: &str) -> Result<Self, OptionError<'_>> {
        Self::parse_for(text, FAULTS_BUILT_IN)
    }

    fn parse_for(text: &str, faults_built_in: bool) -> Result<Self, OptionError<'_>> {
        let mut options = Self::default();
        let mut seen: ArrayVec<&str, 6> = ArrayVec::new();
        for word in text.split_ascii_whitespace() {
            let unknown = OptionError::UnknownOption { word };
            let (name, value) = word.split_once('=').ok_or(unknown.clone())?;
            if seen.contains(&name) {
                return Err(OptionError::Twice { name });
            }
            match name {
                "scenario" => options.scenarios = scenarios(value)?,
                "nonce" => options.nonce = nonce(value)?,
                "fault" if !faults_built_in => {
                    return Err(OptionError::FaultsNotBuiltIn { found: value });
                }
                "fault" => options.faults = faults(value)?,
                "read-bytes" => options.read_bytes = number("read-bytes", value)?,
                "write-offset" => options.write_offset = number("write-offset", value)?,
                "write-bytes" => options.write_bytes = number("write-bytes", value)?,
                _ => return Err(unknown),
            }
            // Six names are known and none comes twice.
            seen.push(name);
        }
        Ok(options)
    }
}

/// The named scenarios, in the order in which they run.
fn scenarios(value: &str) -> Result<ArrayVec<Scenario, 9>, OptionError<'_>> {
    let mut wanted = [false; Scenario::ALL.len()];
    for found in value.split(',') {
        let known = Scenario::ALL.iter().zip(&mut wanted);
        match known
            .into_iter()
            .find(|(scenario, _)| scenario.name() == found)
        {
            Some((_, wanted)) if !*wanted => *wanted = true,
            _ => return Err(OptionError::Scenario { found }),
        }
    }
    let chosen = Scenario::ALL.into_iter().zip(wanted);
    Ok(chosen
        .filter_map(|(scenario, wanted)| wanted.then_some(scenario))
        .collect())
}

fn faults(value: &str) -> Result<ArrayVec<Fault, 8>, OptionError<'_>> {
    let mut faults = ArrayVec::new();
    for found in value.split(',') {
        let wrong = OptionError::Fault { found };
        let fault = Fault::from_name(found).ok_or(wrong.clone())?;
        if faults.contains(&fault) || faults.try_push(fault).is_err() {
            return Err(wrong);
        }
    }
    Ok(faults)
}

fn nonce(value: &str) -> Result<u64, OptionError<'_>> {
    let digits = value.len() == 16 && value.bytes().all(|byte| byte.is_ascii_hexdigit());
    match u64::from_str_radix(value, 16) {
        Ok(nonce) if digits => Ok(nonce),
        _ => Err(OptionError::Nonce { found: value }),
    }
}

fn number<'a>(name: &'static str, value: &'a str) -> Result<u64, OptionError<'a>> {
    u64::from_str(value).map_err(|error| OptionError::Number {
        name,
        found: value,
        error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_line_runs_everything() {
        assert_eq!(Options::parse("").unwrap(), Options::default());
        let named_only = [Scenario::Untranslated, Scenario::Nested];
        let all = Scenario::ALL.into_iter();
        let expected: Vec<_> = all.filter(|one| !named_only.contains(one)).collect();
        // Tests run on x86_64, which has nothing nested.
        assert_eq!(Options::parse(" \t ").unwrap().scenarios[..], expected[..]);
    }

    #[test]
    fn all_options_are_taken() {
        let options = Options::parse_for(
            "scenario=concurrent,discover nonce=0123456789ABCDEF fault=skip_iotlb_flush,lose_last_frame \
             read-bytes=4096 write-offset=0 write-bytes=18446744073709551615",
            true,
        )
        .unwrap();
        assert_eq!(
            options.scenarios[..],
            [Scenario::Discover, Scenario::Concurrent]
        );
        assert_eq!(options.nonce, 0x0123_4567_89ab_cdef);
        assert_eq!(
            options.faults[..],
            [Fault::SkipIotlbFlush, Fault::LoseLastFrame]
        );
        assert_eq!(
            (
                options.read_bytes,
                options.write_offset,
                options.write_bytes
            ),
            (4096, 0, u64::MAX)
        );
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text| Options::parse_for(text, true).unwrap_err();
        assert_eq!(error("quiet"), OptionError::UnknownOption { word: "quiet" });
        assert_eq!(error("a=b"), OptionError::UnknownOption { word: "a=b" });
        assert_eq!(
            error("scenario=nope"),
            OptionError::Scenario { found: "nope" }
        );
        assert_eq!(
            error("scenario=blocked,blocked"),
            OptionError::Scenario { found: "blocked" }
        );
        assert_eq!(error("scenario="), OptionError::Scenario { found: "" });
        assert_eq!(error("nonce=12"), OptionError::Nonce { found: "12" });
        assert_eq!(
            error("nonce=+123456789abcdef"),
            OptionError::Nonce {
                found: "+123456789abcdef"
            }
        );
        assert_eq!(error("fault=nope"), OptionError::Fault { found: "nope" });
        assert!(matches!(
            error("read-bytes=-1"),
            OptionError::Number {
                name: "read-bytes",
                ..
            }
        ));
        assert_eq!(
            error("nonce=0000000000000000 nonce=0000000000000000"),
            OptionError::Twice { name: "nonce" }
        );
    }

    #[test]
    fn a_build_without_faults_refuses_them() {
        assert_eq!(
            Options::parse_for("fault=skip_iotlb_flush", false),
            Err(OptionError::FaultsNotBuiltIn {
                found: "skip_iotlb_flush"
            })
        );
    }
}
