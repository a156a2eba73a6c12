//! Whether the machine was the one that was asked for: what the registers of its SMMUs say, and what `reassign`, `nested` and
//! `shut-down` showed.

use super::record::Record;
use super::serial::{Outcome, Unit};
use super::verdict::{Asked, Problem};
use crate::arch::{Arch, Board};
use crate::scenarios::{NESTED, REASSIGN, SHUT_DOWN};

/// The register with the stages that an SMMU has, as the image names it.
const IDR0: &str = "IDR0";
/// S2P: there is a second stage (Arm IHI 0070, 6.3.1).
const SECOND_STAGE: u64 = 1 << 0;
/// S1P: there is a first stage.
const FIRST_STAGE: u64 = 1 << 1;

/// What `reassign` says of a drive that changed hands between the hypervisor and a guest.
const CHANGED_HANDS: &str = "works for its owner, the other's memory blocked";
/// What it says where no guest can have the drive.
const NO_GUEST: &str = "no guest can have the drive";

/// What `nested` says of a drive behind a guest's first stage.
const BOTH_STAGES: &str = "drives through both stages";
/// What it says where there is no first stage beside the second.
const NO_NESTING: &str = "no guest can have a first stage of its own: unit 0 cannot serve such a domain: the unit has no support for users' own first stages";
/// What it says where there is no second stage for one to stand on.
const NO_PARENT: &str = "no guest can have a first stage of its own: a guest's addresses are translated by a second stage";
/// What `shut-down` says of a unit that lets everything through when it is off.
const PASSES: &str = "translation is off as before bring-up";
/// What it says of one that lets nothing through.
const GATE_CLOSED: &str = "the gate is closed";

/// Adds what speaks against the board, as far as the scenarios that tell of it ran.
pub(super) fn check(asked: &Asked<'_>, record: &Record, problems: &mut Vec<Problem>) {
    if asked.arch == Arch::Aarch64 {
        let board = asked.board.unwrap_or(Board::Nested);
        let wrong = record.units.iter().filter_map(|unit| stages(board, unit));
        problems.extend(wrong);
    }
    let (reassign, nested) = match asked.board {
        Some(Board::Nested) | None => (CHANGED_HANDS, BOTH_STAGES),
        Some(Board::Stage2) => (CHANGED_HANDS, NO_NESTING),
        Some(Board::Stage1) => (NO_GUEST, NO_PARENT),
    };
    let off = match asked.arch {
        Arch::X86_64 => PASSES,
        Arch::Aarch64 => GATE_CLOSED,
    };
    for (name, expected) in [(REASSIGN, reassign), (NESTED, nested), (SHUT_DOWN, off)] {
        let shown = record
            .ends
            .iter()
            .filter(|end| end.name == name && end.outcome == Outcome::Pass);
        for end in shown.filter(|end| !end.detail.contains(expected)) {
            problems.push(Problem::new(
                format!("{name} on this board"),
                format!("{expected:?}"),
                format!("{:?}", end.detail),
            ));
        }
    }
}

/// What speaks against a unit of that board.
fn stages(board: Board, unit: &Unit) -> Option<Problem> {
    let (first, second) = match board {
        Board::Nested => (true, true),
        Board::Stage2 => (false, true),
        Board::Stage1 => (true, false),
    };
    let register = unit.registers.get(IDR0);
    let bits = register
        .and_then(|text| text.strip_prefix("0x"))
        .and_then(|digits| u64::from_str_radix(digits, 16).ok());
    let found = bits.map(|bits| (bits & FIRST_STAGE != 0, bits & SECOND_STAGE != 0));
    if found == Some((first, second)) {
        return None;
    }
    let shown = |(first, second)| match (first, second) {
        (true, true) => "both stages",
        (true, false) => "stage 1 alone",
        (false, true) => "stage 2 alone",
        (false, false) => "no stage",
    };
    Some(Problem::new(
        format!("unit {} of the board {}", unit.index, board.name()),
        shown((first, second)),
        match (found, register) {
            (Some(found), Some(text)) => format!("{} ({IDR0} {text})", shown(found)),
            (_, text) => format!("{IDR0} {text:?}"),
        },
    ))
}
