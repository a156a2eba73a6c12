//! Judges a run: what the image claims is held against what the host sees for itself.

use std::fmt;
use std::ops::Range;

use crate::arch::{Arch, Board};
use crate::ladder::Planted;
use crate::process::End;
use crate::qemu_run::board;
use crate::qemu_run::disk::{pattern, sha256};
use crate::qemu_run::record::Record;
use crate::qemu_run::serial::{Outcome, ScenarioEnd, Wrote};
use crate::scenarios::{DISCOVER, KERNEL_DMA, UNTRANSLATED};

/// QEMU's exit code when the image says that everything passed.
const RC_PASSED: i32 = 33;
/// QEMU's exit code when the image says that a scenario failed.
const RC_FAILED: i32 = 35;
/// QEMU's exit code when the image gave up.
const RC_PANIC: i32 = 37;

/// A contradiction between what had to be and what was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    what: String,
    expected: String,
    found: String,
}

impl Problem {
    pub(super) fn new(
        what: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self {
            what: what.into(),
            expected: expected.into(),
            found: found.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: expected {}, found {}",
            self.what, self.expected, self.found
        )
    }
}

/// What was asked of a run.
#[derive(Clone, Debug)]
pub(crate) struct Asked<'a> {
    /// Architecture of the machine.
    pub(crate) arch: Arch,
    /// Its board, where there are several.
    pub(crate) board: Option<Board>,
    /// Scenario names.
    pub(crate) scenarios: &'a [&'static str],
    /// Processors.
    pub(crate) smp: u32,
    /// Bytes that kernel-dma has to read at least.
    pub(crate) read_bytes: u64,
    /// Offset and size of the region that kernel-dma has to write.
    pub(crate) write: (u64, u64),
    /// Offset and size of the region that blocked commands name.
    pub(crate) scratch: (u64, u64),
}

/// The disk before and after the run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskContents<'a> {
    /// As it was made.
    pub(crate) before: &'a [u8],
    /// As QEMU left it.
    pub(crate) after: &'a [u8],
    /// Start of the pattern.
    pub(crate) nonce: u64,
}

/// All contradictions of a run that should have passed; none means that it did.
pub(crate) fn judge(
    asked: &Asked<'_>,
    record: &Record,
    end: End,
    disk: &DiskContents<'_>,
) -> Vec<Problem> {
    let mut problems = said_by_image(record);
    if end != End::Exited(RC_PASSED) {
        problems.push(Problem::new(
            "QEMU",
            format!("exit code {RC_PASSED}"),
            exit_meaning(asked.arch, end),
        ));
    }
    match &record.start {
        None => problems.push(Problem::new(
            "image",
            "a start event",
            "none: it did not come up",
        )),
        Some(start) if start.cpus != asked.smp => {
            problems.push(Problem::new(
                "processors",
                asked.smp.to_string(),
                start.cpus.to_string(),
            ));
        }
        Some(_) => {}
    }
    for name in asked.scenarios {
        check_scenario(name, record, &mut problems);
    }
    for end in &record.ends {
        if !asked.scenarios.contains(&end.name.as_str()) {
            problems.push(Problem::new(
                "scenarios",
                "only those asked for",
                format!("the end of {}", end.name),
            ));
        }
    }
    let passed = |end: &&ScenarioEnd| end.outcome == Outcome::Pass;
    let mut shown = record.ends.iter().filter(passed);
    // Which machine it was is judged by the units, so nothing that takes some may pass without.
    if record.units.is_empty() && shown.any(|end| end.name != UNTRANSLATED) {
        problems.push(Problem::new("unit events", "at least one", "none"));
    }
    let mut shown = record.ends.iter().filter(passed);
    if record.functions.is_empty() && shown.any(|end| end.name == DISCOVER) {
        let what = format!("{DISCOVER}: function events");
        problems.push(Problem::new(what, "at least one", "none"));
    }
    board::check(asked, record, &mut problems);
    check_done(record, &mut problems);
    check_disk(asked, record, disk, &mut problems);
    problems
}

/// All contradictions of a run with a planted fault: its scenario alone was asked for and has to fail, cleanly and for the
/// reason that the fault gives it. A drive that was too slow is none.
pub(crate) fn judge_planted_fault(
    planted: &Planted,
    arch: Arch,
    record: &Record,
    end: End,
) -> Vec<Problem> {
    let Planted {
        fault,
        scenario,
        says,
        ..
    } = *planted;
    let mut problems = said_by_image(record);
    if record.start.is_none() {
        problems.push(Problem::new(
            "image",
            "a start event",
            "none: it did not come up",
        ));
    }
    let ends: Vec<&str> = record
        .ends
        .iter()
        .map(|end| match (end.name == scenario, end.outcome) {
            (true, Outcome::Fail) => "fail",
            (true, Outcome::Pass) => "pass (fault not caught)",
            (false, _) => "the end of another scenario",
        })
        .collect();
    if ends != ["fail"] {
        let found = if ends.is_empty() {
            "no end".to_owned()
        } else {
            ends.join(" and ")
        };
        problems.push(Problem::new(
            format!("scenario {scenario} with a planted fault"),
            "fail, once",
            found,
        ));
    }
    let other = |end: &&ScenarioEnd| {
        (end.name == scenario && end.outcome == Outcome::Fail) && !end.detail.contains(says)
    };
    for end in record.ends.iter().filter(other) {
        problems.push(Problem::new(
            format!("why {scenario} failed with {fault} planted"),
            format!("{says:?}"),
            format!("{:?}", end.detail),
        ));
    }
    check_done(record, &mut problems);
    if end != End::Exited(RC_FAILED) {
        problems.push(Problem::new(
            "QEMU",
            format!("exit code {RC_FAILED}"),
            exit_meaning(arch, end),
        ));
    }
    problems
}

/// What an end of QEMU says, and what to do about it.
fn exit_meaning(arch: Arch, end: End) -> String {
    let meaning = match end {
        End::Exited(RC_PASSED) => "all scenarios passed",
        End::Exited(RC_FAILED) => "the image says that a scenario failed",
        End::Exited(RC_PANIC) => "panic, trap or refused platform; the log above says which",
        End::Exited(0) if arch == Arch::Aarch64 => {
            "firmware turned the machine off, with no code: nobody answered the image's semihosting call; \
             `--verbose` shows QEMU's command line, where -semihosting-config has to be"
        }
        End::Exited(0) => {
            "the machine shut down or was reset, as a triple fault does; \
             try `--smp 1 --qemu-arg=-d --qemu-arg=int,cpu_reset --verbose`"
        }
        End::Exited(1) => "QEMU refused its arguments or the image; its own words are above",
        End::Exited(_) => "no code that the image uses",
        End::Signalled(_) => "QEMU itself crashed or was killed from outside",
        End::TimedOut => {
            "the run took longer than --timeout allows; `--verbose` shows where it stands still"
        }
    };
    format!("{end} ({meaning})")
}

/// Panics and event lines that cannot be read.
fn said_by_image(record: &Record) -> Vec<Problem> {
    let panics = record
        .panics
        .iter()
        .map(|text| Problem::new("image", "no panic", text.clone()));
    let broken = record
        .broken
        .iter()
        .map(|line| Problem::new("event line", "an event of the contract", line.clone()));
    panics.chain(broken).collect()
}

fn check_scenario(name: &str, record: &Record, problems: &mut Vec<Problem>) {
    let ends: Vec<_> = record.ends.iter().filter(|end| end.name == name).collect();
    let what = format!("scenario {name}");
    match ends.as_slice() {
        [end] if end.outcome == Outcome::Pass => {}
        [end] => problems.push(Problem::new(what, "pass", format!("fail: {}", end.detail))),
        [] if record.begun.iter().any(|begun| begun == name) => {
            problems.push(Problem::new(what, "an end", "only its begin"));
        }
        [] => problems.push(Problem::new(what, "an end", "nothing: it never began")),
        several => problems.push(Problem::new(
            what,
            "one end",
            format!("{} ends", several.len()),
        )),
    }
}

/// `done` has to come once, with the counts of the ends before it.
fn check_done(record: &Record, problems: &mut Vec<Problem>) {
    let count = |outcome| {
        record
            .ends
            .iter()
            .filter(|end| end.outcome == outcome)
            .count()
    };
    let shown = |passed, failed| format!("{passed} passed, {failed} failed");
    let expected = shown(count(Outcome::Pass), count(Outcome::Fail));
    match record.done.as_slice() {
        [(passed, failed)] => {
            let found = shown(*passed as usize, *failed as usize);
            if found != expected {
                problems.push(Problem::new("done event", expected, found));
            }
        }
        [] => problems.push(Problem::new(
            "done event",
            "one",
            "none: the image did not come to its end",
        )),
        several => problems.push(Problem::new("done event", "one", several.len().to_string())),
    }
}

fn check_disk(
    asked: &Asked<'_>,
    record: &Record,
    disk: &DiskContents<'_>,
    problems: &mut Vec<Problem>,
) {
    for digest in &record.digests {
        let what = format!("digest of {}", digest.scenario);
        match region(digest.offset, digest.bytes, disk.before.len())
            .and_then(|range| disk.before.get(range))
        {
            None => problems.push(Problem::new(
                what,
                inside(disk),
                span(digest.offset, digest.bytes),
            )),
            Some(content) => {
                let expected = sha256(content);
                if expected != digest.sha256 {
                    problems.push(Problem::new(what, expected, digest.sha256.clone()));
                }
            }
        }
    }
    for wrote in &record.written {
        check_written(wrote, disk, problems);
    }
    if asked.scenarios.contains(&KERNEL_DMA) {
        let read = record
            .digests
            .iter()
            .filter(|digest| digest.scenario == KERNEL_DMA)
            .map(|digest| digest.bytes)
            .max();
        if read.is_none_or(|bytes| bytes < asked.read_bytes) {
            let found = read.map_or_else(
                || "no digest event".to_owned(),
                |bytes| format!("{bytes} bytes"),
            );
            problems.push(Problem::new(
                "digest of kernel-dma",
                format!("at least {} bytes", asked.read_bytes),
                found,
            ));
        }
        let region: Vec<_> = record
            .written
            .iter()
            .filter(|wrote| wrote.scenario == KERNEL_DMA)
            .collect();
        if !region
            .iter()
            .any(|wrote| (wrote.offset, wrote.bytes) == asked.write)
        {
            let found = region.first().map_or_else(
                || "no wrote event".to_owned(),
                |wrote| span(wrote.offset, wrote.bytes),
            );
            problems.push(Problem::new(
                "region written by kernel-dma",
                span(asked.write.0, asked.write.1),
                found,
            ));
        }
    }
    check_rest_of_disk(asked, record, disk, problems);
}

fn check_written(wrote: &Wrote, disk: &DiskContents<'_>, problems: &mut Vec<Problem>) {
    let what = format!(
        "region written by {} ({})",
        wrote.scenario,
        span(wrote.offset, wrote.bytes)
    );
    let range = region(wrote.offset, wrote.bytes, disk.before.len());
    let both =
        range.and_then(|range| Some((disk.before.get(range.clone())?, disk.after.get(range)?)));
    let Some((before, after)) = both else {
        problems.push(Problem::new(
            what,
            inside(disk),
            "a region beyond its end or of no length",
        ));
        return;
    };
    let expected = pattern(disk.nonce, before.len());
    if before == expected.as_slice() {
        problems.push(Problem::new(
            what.clone(),
            "other content before the run",
            "the pattern already there",
        ));
    }
    if let Some(at) = first_difference(&expected, after) {
        let found = if after == before {
            "the content of before the run".to_owned()
        } else {
            format!("other bytes from byte {at} on")
        };
        problems.push(Problem::new(what, "the pattern in the image file", found));
    }
}

/// Outside the regions that the image said it wrote, no byte may have changed; the scratch region may have become
/// zeros, which is what QEMU's drive stores when its read of memory was blocked.
fn check_rest_of_disk(
    asked: &Asked<'_>,
    record: &Record,
    disk: &DiskContents<'_>,
    problems: &mut Vec<Problem>,
) {
    let size = disk.before.len();
    if size != disk.after.len() {
        let found = disk.after.len().to_string();
        problems.push(Problem::new("size of the disk", size.to_string(), found));
        return;
    }
    let mut expected = disk.before.to_vec();
    let mut accept = |(offset, bytes): (u64, u64), only_zeros: bool| {
        let Some(range) = region(offset, bytes, size) else {
            return;
        };
        if let (Some(to), Some(from)) = (expected.get_mut(range.clone()), disk.after.get(range))
            && (!only_zeros || from.iter().all(|byte| *byte == 0))
        {
            to.copy_from_slice(from);
        }
    };
    accept(asked.scratch, true);
    for wrote in &record.written {
        accept((wrote.offset, wrote.bytes), false);
    }
    if let Some(at) = first_difference(&expected, disk.after) {
        let scratch = region(asked.scratch.0, asked.scratch.1, size);
        let wanted = if scratch.is_some_and(|scratch| scratch.contains(&at)) {
            "the content of before the run or zeros in the page of blocked commands"
        } else {
            "no change"
        };
        let found = format!("a changed byte at offset {at}");
        problems.push(Problem::new("rest of the disk", wanted, found));
    }
}

fn region(offset: u64, bytes: u64, size: usize) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(bytes).ok()?)?;
    (bytes > 0 && end <= size).then_some(start..end)
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        None
    } else {
        a.iter()
            .zip(b)
            .position(|(x, y)| x != y)
            .or(Some(a.len().min(b.len())))
    }
}

fn span(offset: u64, bytes: u64) -> String {
    format!("{bytes} bytes at offset {offset}")
}

fn inside(disk: &DiskContents<'_>) -> String {
    format!("a region inside the disk of {} bytes", disk.before.len())
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
