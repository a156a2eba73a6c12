//! Commands of the command queue, and which of them are none.

use crate::bits::field;

/// What decides which commands are legal on a unit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CommandLimits {
    pub(crate) first_stage: bool,
    pub(crate) second_stage: bool,
    pub(crate) asid_bits: u8,
    pub(crate) vmid_bits: u8,
    pub(crate) stream_bits: u8,
    /// Invalidation of ranges (IDR3.RIL).
    pub(crate) ranges: bool,
    /// IDR0.HYP.
    pub(crate) hyp: bool,
    pub(crate) ats: bool,
    pub(crate) pri: bool,
    /// Requests may stand still.
    pub(crate) stalls: bool,
    pub(crate) msi: bool,
    /// Log2 bytes of the granules that the unit has, 4K, 16K, 64K; zero for one that it has not.
    pub(crate) granules: [u8; 3],
}

/// How a sync tells that it is done, besides the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    None,
    /// A store of 32 bits, or an interrupt where the address is zero.
    Message {
        at: u64,
        data: u32,
    },
    /// An event for waiting CPUs.
    Event,
}

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// A hint.
    Prefetch,
    /// One stream's entry; with the entry of the first level above it unless `leaf`.
    Stream {
        stream: u32,
        leaf: bool,
    },
    /// 2^`log2` streams, with what is above them.
    Streams {
        first: u32,
        log2: u8,
    },
    /// All configuration.
    AllStreams,
    /// A context descriptor; with the directory's entry above it unless `leaf`.
    Context {
        stream: u32,
        substream: u32,
        leaf: bool,
    },
    /// All context descriptors of a stream, and what is above them.
    Contexts {
        stream: u32,
    },
    /// Translations of another level of exception.
    Elsewhere,
    /// Everything of a guest.
    Guest {
        vmid: u16,
    },
    /// Everything that first stages of a guest gave, whether a second one followed or not.
    First {
        vmid: u16,
    },
    /// Of that, what is kept for one ASID.
    Asid {
        vmid: u16,
        asid: u16,
    },
    /// Translations for these addresses.
    Range(Range),
    /// Everything that is not of the hypervisor's own stage.
    All,
    /// What a device keeps of these addresses.
    Device {
        stream: u32,
        first: u64,
        last: u64,
    },
    /// A request that stands still ends.
    Resume {
        stream: u32,
        tag: u16,
    },
    /// All requests of a stream that stand still end.
    EndStalls {
        stream: u32,
    },
    /// A group of requests for pages is answered.
    PageAnswer {
        stream: u32,
        group: u16,
        code: u8,
    },
    Sync(Signal),
}

/// Whose translations a range of addresses is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Those of a guest's second stage alone: nothing that a first stage took part in.
    Second { vmid: u16 },
    /// Those of a first stage for one ASID, and those for all.
    Asid { vmid: u16, asid: u16 },
    /// Those of all first stages of a guest.
    First { vmid: u16 },
}

impl Whose {
    /// The guest.
    pub(crate) const fn vmid(self) -> u16 {
        match self {
            Self::Second { vmid } | Self::Asid { vmid, .. } | Self::First { vmid } => vmid,
        }
    }
}

/// Addresses of one guest, whose translations are to be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) whose: Whose,
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// Whether links to tables are left alone.
    pub(crate) leaf: bool,
    /// Log2 of what a leaf spans: larger and smaller ones may be kept. `None` for leaves of every size.
    pub(crate) only: Option<u8>,
    /// Log2 of the granule: what was found by tables of another one may be kept (IHI 0070, 4.4.1, TG). `None` for every one.
    pub(crate) granule: Option<u8>,
}

/// The kind of a command, by its first word.
pub(crate) const fn kind(low: u64) -> u64 {
    field(low, 7, 0)
}

/// Whether it is a sync.
pub(crate) const fn is_sync(low: u64) -> bool {
    kind(low) == 0x46
}

/// Decodes a command, or says why it is none.
pub(crate) fn decode(low: u64, high: u64, limits: &CommandLimits) -> Result<Command, String> {
    let opcode = kind(low);
    let stream = field(low, 63, 32) as u32;
    let in_range = |stream: u32| {
        if u64::from(stream) >> limits.stream_bits != 0 {
            Err(format!(
                "stream {stream:#x} has more than {} bits",
                limits.stream_bits
            ))
        } else {
            Ok(stream)
        }
    };
    let vmid = || {
        let vmid = field(low, 47, 32);
        if vmid >> limits.vmid_bits != 0 {
            return Err(format!(
                "VMID {vmid:#x} has more than {} bits",
                limits.vmid_bits
            ));
        }
        Ok(vmid as u16)
    };
    let asid = || {
        let asid = field(low, 63, 48);
        if asid >> limits.asid_bits != 0 {
            return Err(format!(
                "ASID {asid:#x} has more than {} bits",
                limits.asid_bits
            ));
        }
        Ok(asid as u16)
    };
    let has = |stage: bool, what: &str| match stage {
        true => Ok(()),
        false => Err(format!("a command for a {what} stage on a unit without")),
    };
    match opcode {
        0x05 | 0x06 | 0x10..=0x13 => has(limits.first_stage, "first")?,
        0x28 | 0x2a => has(limits.second_stage, "second")?,
        _ => {}
    }
    if field(low, 10, 10) != 0 {
        return Err("a secure command in a queue that is not".to_owned());
    }
    match opcode {
        0x01 | 0x02 => Ok(Command::Prefetch),
        0x03 => Ok(Command::Stream {
            stream: in_range(stream)?,
            leaf: high & 1 != 0,
        }),
        0x04 => match field(high, 4, 0) {
            31 => Ok(Command::AllStreams),
            range => {
                let log2 = range as u8 + 1;
                let first = in_range(stream)? >> log2 << log2;
                Ok(Command::Streams { first, log2 })
            }
        },
        0x05 => Ok(Command::Context {
            stream: in_range(stream)?,
            substream: field(low, 31, 12) as u32,
            leaf: high & 1 != 0,
        }),
        0x06 => Ok(Command::Contexts {
            stream: in_range(stream)?,
        }),
        0x10 => Ok(Command::First { vmid: vmid()? }),
        0x11 => Ok(Command::Asid {
            vmid: vmid()?,
            asid: asid()?,
        }),
        0x12 => {
            let (vmid, asid) = (vmid()?, asid()?);
            range(low, high, Whose::Asid { vmid, asid }, limits).map(Command::Range)
        }
        0x13 => {
            let vmid = vmid()?;
            range(low, high, Whose::First { vmid }, limits).map(Command::Range)
        }
        0x20..=0x23 if limits.hyp => Ok(Command::Elsewhere),
        0x20..=0x23 => Err("a command for EL2 on a unit without (IDR0.HYP)".to_owned()),
        0x28 => Ok(Command::Guest { vmid: vmid()? }),
        0x2a => {
            let vmid = vmid()?;
            range(low, high, Whose::Second { vmid }, limits).map(Command::Range)
        }
        0x30 => Ok(Command::All),
        0x40 if limits.ats => device(low, high, in_range(stream)?),
        0x40 => Err("a command for caches of devices on a unit without (IDR0.ATS)".to_owned()),
        0x41 if limits.pri => match field(high, 13, 12) as u8 {
            3 => Err("a reserved response to a page request".to_owned()),
            _ if field(low, 11, 11) != 0 => {
                Err("a substream (SSV) in a system that has none".to_owned())
            }
            code => Ok(Command::PageAnswer {
                stream: in_range(stream)?,
                group: field(high, 8, 0) as u16,
                code,
            }),
        },
        0x41 => Err("an answer on a unit without requests for pages (IDR0.PRI)".to_owned()),
        0x44 if limits.stalls => match field(low, 13, 12) {
            // Nobody pages here, so nothing is tried again; and what is ended without an abort looks like it was done.
            2 => Ok(Command::Resume {
                stream: in_range(stream)?,
                tag: field(high, 15, 0) as u16,
            }),
            other => Err(format!(
                "a stalled request that is not aborted (action {other})"
            )),
        },
        0x45 if limits.stalls => Ok(Command::EndStalls {
            stream: in_range(stream)?,
        }),
        0x44 | 0x45 => Err("an answer on a unit that cannot stall (IDR0.STALL_MODEL)".to_owned()),
        0x46 => match field(low, 13, 12) {
            0 => Ok(Command::Sync(Signal::None)),
            1 => {
                let at = high & crate::bits::bits(51, 2);
                if at != 0 && !limits.msi {
                    return Err("a sync that writes, on a unit without (IDR0.MSI)".to_owned());
                }
                let data = field(low, 63, 32) as u32;
                Ok(Command::Sync(Signal::Message { at, data }))
            }
            2 => Ok(Command::Sync(Signal::Event)),
            _ => Err("a sync with a reserved signal".to_owned()),
        },
        _ => Err(format!("there is no command {opcode:#x}")),
    }
}

/// CMD_ATC_INV (IHI 0070, 4.5.1).
fn device(low: u64, high: u64, stream: u32) -> Result<Command, String> {
    if field(low, 11, 11) != 0 {
        return Err("a substream (SSV) beside a device that keeps translations".to_owned());
    }
    let size = field(high, 5, 0);
    if size > 52 {
        return Err(format!("a size of 2^{size} pages, which is none"));
    }
    let (first, last) = match size {
        52 => (0, u64::MAX),
        size => {
            let shift = size + 12;
            let first = high >> shift << shift;
            (first, first + ((1 << shift) - 1))
        }
    };
    Ok(Command::Device {
        stream,
        first,
        last,
    })
}

/// TLBI_S2_IPA, TLBI_NH_VA, TLBI_NH_VAA. A range whose number, scale and level are all zero is reserved.
fn range(low: u64, high: u64, whose: Whose, limits: &CommandLimits) -> Result<Range, String> {
    let (number, scale) = (field(low, 16, 12), field(low, 24, 20));
    let (level, granule) = (field(high, 9, 8), field(high, 11, 10));
    let leaf = high & 1 != 0;
    let widest = if matches!(whose, Whose::Second { .. }) {
        51
    } else {
        63
    };
    let first = high & crate::bits::bits(widest, 12);
    if !limits.ranges && (number | scale | level | granule) != 0 {
        return Err("a range on a unit that has only single addresses (IDR3.RIL)".to_owned());
    }
    if granule == 0 {
        if (number | scale | level) != 0 {
            return Err("number, scale or level without a granule".to_owned());
        }
        // One entry, whatever its size: it goes if it holds the address.
        return Ok(Range {
            whose,
            first,
            last: first,
            leaf,
            only: None,
            granule: None,
        });
    }
    if number == 0 && scale == 0 && level == 0 {
        return Err("a range of one page that says no level, which is reserved".to_owned());
    }
    let shift = limits
        .granules
        .get(granule as usize - 1)
        .copied()
        .unwrap_or(0);
    if shift == 0 {
        return Err(format!("a granule that the unit has not (code {granule})"));
    }
    // A scale beyond the widest address shifts everything out: all of it, then.
    let bytes = (u128::from(number) + 1) << (scale + u64::from(shift));
    let start = first >> shift << shift;
    let last = u128::from(start) + bytes - 1;
    let only = (level != 0).then(|| shift + (3 - level as u8) * (shift - 3));
    if let Some(span) = only
        && !start.is_multiple_of(1 << span)
    {
        return Err(format!(
            "{start:#x} is not where an entry of level {level} begins"
        ));
    }
    Ok(Range {
        whose,
        first: start,
        last: last.min(u64::MAX.into()) as u64,
        leaf,
        only,
        granule: Some(shift),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: CommandLimits = CommandLimits {
        first_stage: true,
        second_stage: true,
        asid_bits: 8,
        vmid_bits: 8,
        stream_bits: 16,
        ranges: true,
        hyp: false,
        ats: false,
        pri: false,
        stalls: false,
        msi: false,
        granules: [12, 0, 16],
    };

    #[test]
    fn commands_are_told_apart_and_wrong_ones_refused() {
        let ask = |low, high| decode(low, high, &LIMITS);
        let one = Command::Stream {
            stream: 0x108,
            leaf: true,
        };
        assert_eq!(ask(0x108 << 32 | 0x03, 1), Ok(one));
        assert_eq!(ask(0x04, 31), Ok(Command::AllStreams));
        let some = Command::Streams {
            first: 0x100,
            log2: 8,
        };
        assert_eq!(ask(0x108 << 32 | 0x04, 7), Ok(some));
        assert_eq!(ask(0x7 << 32 | 0x28, 0), Ok(Command::Guest { vmid: 7 }));
        assert_eq!(ask(0x46 | 2 << 12, 0), Ok(Command::Sync(Signal::Event)));
        assert!(ask(0x100 << 32 | 0x28, 0).is_err(), "VMID");
        assert!(ask(0x1_0000 << 32 | 0x03, 0).is_err(), "stream");
        assert!(ask(0x20, 0).is_err() && ask(0x40, 0).is_err() && ask(0x99, 0).is_err());
        assert!(ask(0x30 | 1 << 10, 0).is_err(), "secure");
    }

    #[test]
    fn commands_for_first_stages_say_whose_and_need_one() {
        let ask = |low, high| decode(low, high, &LIMITS);
        let one = Command::Context {
            stream: 0x108,
            substream: 0x12345,
            leaf: true,
        };
        assert_eq!(ask(0x108 << 32 | 0x12345 << 12 | 0x05, 1), Ok(one));
        assert_eq!(
            ask(0x108 << 32 | 0x06, 0),
            Ok(Command::Contexts { stream: 0x108 })
        );
        assert_eq!(ask(7 << 32 | 0x10, 0), Ok(Command::First { vmid: 7 }));
        let asid = Command::Asid { vmid: 7, asid: 9 };
        assert_eq!(ask(9 << 48 | 7 << 32 | 0x11, 0), Ok(asid));
        let whose = |low, high| match ask(low, high) {
            Ok(Command::Range(range)) => Some((range.whose, range.first)),
            _ => None,
        };
        let top = 0xffff_ffff_ffff_f000;
        let expected = (Whose::Asid { vmid: 7, asid: 9 }, top);
        assert_eq!(whose(9 << 48 | 7 << 32 | 0x12, top), Some(expected));
        assert_eq!(
            whose(7 << 32 | 0x13, 0x1000),
            Some((Whose::First { vmid: 7 }, 0x1000))
        );
        assert!(ask(0x100 << 48 | 0x11, 0).is_err(), "ASID");
        let without = |first_stage, second_stage, low| {
            let limits = CommandLimits {
                first_stage,
                second_stage,
                ..LIMITS
            };
            decode(low, 0, &limits).is_err()
        };
        assert!(
            [0x05, 0x06, 0x10, 0x11, 0x12, 0x13].map(|op| without(false, true, op)) == [true; 6]
        );
        assert!(without(true, false, 0x28) && without(true, false, 0x2a));
        assert!(!without(true, false, 0x30) && !without(true, false, 0x11));
    }

    #[test]
    fn ranges_say_how_far_they_go() {
        let ask = |low: u64, high| match decode(low | 0x2a | 5 << 32, high, &LIMITS) {
            Ok(Command::Range(range)) => Ok((range.first, range.last, range.only, range.granule)),
            other => Err(format!("{other:?}")),
        };
        assert_eq!(ask(0, 0x4000), Ok((0x4000, 0x4000, None, None)));
        assert_eq!(
            ask(3 << 12, 1 << 10 | 0x4000),
            Ok((0x4000, 0x7fff, None, Some(12)))
        );
        assert_eq!(
            ask(1 << 12 | 2 << 20, 1 << 10 | 3 << 8 | 0x4000),
            Ok((0x4000, 0xbfff, Some(12), Some(12)))
        );
        assert_eq!(
            ask(0, 1 << 10 | 2 << 8 | 0x20_0000),
            Ok((0x20_0000, 0x20_0fff, Some(21), Some(12)))
        );
        assert!(ask(0, 1 << 10 | 0x4000).is_err(), "reserved");
        assert!(ask(1 << 12, 0x4000).is_err(), "no granule");
        assert!(ask(1 << 12, 2 << 10 | 0x4000).is_err(), "no such granule");
        let without = CommandLimits {
            ranges: false,
            ..LIMITS
        };
        assert!(decode(1 << 12 | 0x2a, 1 << 10, &without).is_err());
    }
}
