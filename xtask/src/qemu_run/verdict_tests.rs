//! Tests of the verdict: a good run passes, and each missing or wrong piece alone makes it fail.

use super::*;

const SCENARIOS: [&str; 2] = [DISCOVER, KERNEL_DMA];
const SIZE: usize = 4096;
const WRITE: (u64, u64) = (3072, 512);
const NONCE: u64 = 0x1234_5678_9abc_def0;

/// A run that can be spoiled in one place.
struct Run {
    lines: Vec<String>,
    end: End,
    before: Vec<u8>,
    after: Vec<u8>,
    smp: u32,
    arch: Arch,
    board: Option<Board>,
}

impl Run {
    fn good() -> Self {
        let before: Vec<u8> = (0..SIZE).map(|k| (k * 7 % 251) as u8).collect();
        let mut after = before.clone();
        after[3072..3584].copy_from_slice(&pattern(NONCE, 512));
        let sum = sha256(&before[..2048]);
        let digest = format!(
            r#"@@ {{"event":"digest","scenario":"kernel-dma","offset":0,"bytes":2048,"sha256":"{sum}"}}"#
        );
        let lines = [
            "plain words of the boot",
            r#"@@ {"event":"start","version":"0.1.0","cpus":4,"memory_mib":512}"#,
            r#"@@ {"event":"scenario-start","name":"discover"}"#,
            r#"@@ {"event":"unit","index":0,"base":"0xfed90000","segment":0,"version":"1.0","registers":{"CAP":"0x1","ECAP":"0x2"},"domains":65536,"levels":[3,4],"leaf_sizes":["4K"],"coherent":false,"fault_records":1,"features":[]}"#,
            r#"@@ {"event":"function","address":"0000:00:03.0","vendor":"1b36","device":"0010","class":"010802","kind":"NVMe controller","unit":0,"group":0}"#,
            r#"@@ {"event":"scenario-end","name":"discover","outcome":"pass","micros":10,"detail":"1 unit"}"#,
            r#"@@ {"event":"scenario-start","name":"kernel-dma"}"#,
            &digest,
            r#"@@ {"event":"wrote","scenario":"kernel-dma","offset":3072,"bytes":512}"#,
            r#"@@ {"event":"scenario-end","name":"kernel-dma","outcome":"pass","micros":20,"detail":"ok"}"#,
            r#"@@ {"event":"done","passed":2,"failed":0}"#,
        ];
        Self {
            lines: lines.map(str::to_owned).to_vec(),
            end: End::Exited(33),
            before,
            after,
            smp: 4,
            arch: Arch::X86_64,
            board: None,
        }
    }

    /// The same of the Arm machine, with a unit whose register says that.
    fn on_board(board: Board, idr0: &str) -> Self {
        let good = Self::good();
        Self {
            arch: Arch::Aarch64,
            board: Some(board),
            ..good.with(
                r#""CAP":"0x1","ECAP":"0x2""#,
                &format!(r#""IDR0":"{idr0}""#),
            )
        }
    }

    fn problems(&self) -> Vec<String> {
        let mut record = Record::default();
        for line in &self.lines {
            record.take(line);
        }
        let asked = Asked {
            arch: self.arch,
            board: self.board,
            scenarios: &SCENARIOS,
            smp: self.smp,
            read_bytes: 2048,
            write: WRITE,
            scratch: (3584, 512),
        };
        let disk = DiskContents {
            before: &self.before,
            after: &self.after,
            nonce: NONCE,
        };
        judge(&asked, &record, self.end, &disk)
            .iter()
            .map(Problem::to_string)
            .collect()
    }

    /// Drops the lines that contain `text`, of which there is at least one.
    fn without(mut self, text: &str) -> Self {
        let before = self.lines.len();
        self.lines.retain(|line| !line.contains(text));
        assert!(self.lines.len() < before, "no line with {text}");
        self
    }

    /// Replaces `from` by `to` in the lines that contain it, of which there is at least one.
    fn with(mut self, from: &str, to: &str) -> Self {
        assert!(
            self.lines.iter().any(|line| line.contains(from)),
            "no line with {from}"
        );
        self.lines
            .iter_mut()
            .for_each(|line| *line = line.replace(from, to));
        self
    }

    fn and_line(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }
}

/// The run has a problem that contains `text`.
#[track_caller]
fn fails_with(run: Run, text: &str) {
    let problems = run.problems();
    assert!(
        problems.iter().any(|problem| problem.contains(text)),
        "no {text:?} in {problems:#?}"
    );
}

#[test]
fn a_good_run_passes() {
    assert_eq!(Run::good().problems(), Vec::<String>::new());
}

#[test]
fn a_wrong_exit_fails() {
    fails_with(
        Run {
            end: End::Exited(35),
            ..Run::good()
        },
        "expected exit code 33, found exit code 35",
    );
    fails_with(
        Run {
            end: End::Exited(0),
            ..Run::good()
        },
        "triple fault",
    );
    fails_with(
        Run {
            end: End::Exited(0),
            ..Run::on_board(Board::Nested, "0x0d44101b")
        },
        "semihosting",
    );
    fails_with(
        Run {
            end: End::Exited(37),
            ..Run::good()
        },
        "refused platform",
    );
    fails_with(
        Run {
            end: End::TimedOut,
            ..Run::good()
        },
        "--timeout",
    );
    fails_with(
        Run {
            end: End::Signalled(11),
            ..Run::good()
        },
        "signal 11",
    );
}

#[test]
fn a_missing_or_failed_scenario_fails() {
    fails_with(
        Run::good().without(r#""scenario-end","name":"discover"#),
        "scenario discover: expected an end, found only its begin",
    );
    fails_with(Run::good().without(r#""name":"kernel-dma"#), "never began");
    fails_with(
        Run::good().with(
            r#""outcome":"pass","micros":20"#,
            r#""outcome":"fail","micros":20"#,
        ),
        "scenario kernel-dma: expected pass, found fail: ok",
    );
}

#[test]
fn a_scenario_that_ends_twice_or_unasked_fails() {
    let again =
        r#"@@ {"event":"scenario-end","name":"discover","outcome":"pass","micros":1,"detail":""}"#;
    fails_with(
        Run::good().and_line(again),
        "expected one end, found 2 ends",
    );
    fails_with(
        Run::good().and_line(&again.replace("discover", "revoke")),
        "the end of revoke",
    );
}

#[test]
fn missing_frame_events_fail() {
    fails_with(Run::good().without(r#""event":"start""#), "did not come up");
    fails_with(
        Run::good().without(r#""event":"done""#),
        "done event: expected one, found none",
    );
    fails_with(
        Run::good().with(r#""passed":2"#, r#""passed":3"#),
        "expected 2 passed, 0 failed, found 3 passed",
    );
    fails_with(
        Run::good().and_line(r#"@@ {"event":"done","passed":2,"failed":0}"#),
        "done event: expected one, found 2",
    );
    fails_with(
        Run {
            smp: 2,
            ..Run::good()
        },
        "processors: expected 2, found 4",
    );
}

#[test]
fn a_discovery_of_nothing_fails() {
    fails_with(
        Run::good().without(r#""event":"unit""#),
        "unit events: expected at least one",
    );
    fails_with(
        Run::good().without(r#""event":"function""#),
        "function events: expected at least one",
    );
}

#[test]
fn a_panic_or_a_broken_line_fails_in_any_case() {
    fails_with(
        Run::good().and_line(r#"@@ {"event":"panic","text":"out of frames"}"#),
        "out of frames",
    );
    fails_with(
        Run::good().and_line(r#"@@ {"event":"note","scen"#),
        "event line: expected an event",
    );
}

#[test]
fn the_digest_has_to_be_there_right_and_long_enough() {
    fails_with(
        Run::good().without(r#""event":"digest""#),
        "found no digest event",
    );
    let sum = sha256(&Run::good().before[..2048]);
    fails_with(
        Run::good().with(&sum, &sum.replace('a', "b")),
        &format!("digest of kernel-dma: expected {sum}, found "),
    );
    let short = sha256(&Run::good().before[..1024]);
    let run = Run::good()
        .with(&sum, &short)
        .with(r#""bytes":2048"#, r#""bytes":1024"#);
    fails_with(run, "expected at least 2048 bytes, found 1024 bytes");
    fails_with(
        Run::good().with(r#""bytes":2048"#, r#""bytes":9000"#),
        "inside the disk of 4096 bytes",
    );
    fails_with(
        Run::good().with(r#""bytes":2048"#, r#""bytes":18446744073709551615"#),
        "inside the disk",
    );
}

#[test]
fn the_written_region_has_to_be_announced() {
    fails_with(
        Run::good().without(r#""event":"wrote""#),
        "found no wrote event",
    );
    fails_with(
        Run::good().with(r#""bytes":512"#, r#""bytes":256"#),
        "expected 512 bytes at offset 3072, found 256",
    );
    fails_with(
        Run::good().with(r#""offset":3072"#, r#""offset":2560"#),
        "expected 512 bytes at offset 3072",
    );
    fails_with(
        Run::good().with(r#""offset":3072"#, r#""offset":4000"#),
        "beyond its end",
    );
}

#[test]
fn the_written_region_has_to_hold_the_pattern() {
    let mut run = Run::good();
    run.after.copy_from_slice(&run.before);
    fails_with(run, "found the content of before the run");
    let mut run = Run::good();
    run.after[3583] ^= 1;
    fails_with(
        run,
        "expected the pattern in the image file, found other bytes from byte 511 on",
    );
}

#[test]
fn a_pattern_that_was_there_before_proves_nothing() {
    let mut run = Run::good();
    run.before[3072..3584].copy_from_slice(&pattern(NONCE, 512));
    fails_with(run, "the pattern already there");
}

#[test]
fn a_write_that_was_not_announced_fails() {
    let mut run = Run::good();
    run.after[100] ^= 0x80;
    fails_with(
        run,
        "rest of the disk: expected no change, found a changed byte at offset 100",
    );
    let mut run = Run::good();
    run.after.pop();
    fails_with(run, "size of the disk");
}

#[test]
fn a_blocked_read_brings_nothing_from_memory_to_the_disk() {
    let mut run = Run::good();
    run.after[3584..].fill(0);
    assert_eq!(run.problems(), Vec::<String>::new());
    run.after[4000] = 0xc5;
    fails_with(run, "or zeros in the page of blocked commands");
    let mut run = Run::good();
    run.after[2560..3072].fill(0);
    fails_with(run, "found a changed byte at offset 2560");
}

// IDR0 of QEMU's boards, as QEMU 10.0.2 has it.
const NESTED: &str = "0x0d44101b";
const STAGE2: &str = "0x0d441019";
const STAGE1: &str = "0x0d44101a";

#[test]
fn the_board_is_the_one_that_was_asked_for() {
    let boards = [
        (Board::Nested, NESTED, "both stages"),
        (Board::Stage2, STAGE2, "stage 2 alone"),
        (Board::Stage1, STAGE1, "stage 1 alone"),
    ];
    for (board, _, expected) in boards {
        for (other, idr0, found) in boards {
            let run = Run::on_board(board, idr0);
            if board == other {
                assert_eq!(run.problems(), Vec::<String>::new());
                continue;
            }
            let name = board.name();
            fails_with(
                run,
                &format!(
                    "unit 0 of the board {name}: expected {expected}, found {found} (IDR0 {idr0})"
                ),
            );
        }
    }
    // No word on the board is the nested one.
    let unsaid = Run {
        board: None,
        ..Run::on_board(Board::Nested, STAGE1)
    };
    fails_with(unsaid, "expected both stages, found stage 1 alone");
    fails_with(
        Run::on_board(Board::Nested, "what?"),
        "expected both stages, found IDR0 Some(",
    );
    fails_with(
        Run::on_board(Board::Nested, NESTED).with("IDR0", "IDR1"),
        "expected both stages, found IDR0 None",
    );
}

/// The problems of a run whose `reassign` passed with that word, but for those of scenarios that nobody asked for.
fn reassigned(board: Option<Board>, detail: &str) -> Vec<String> {
    passed_with("reassign", board, detail)
}

/// The same of another scenario.
fn passed_with(name: &str, board: Option<Board>, detail: &str) -> Vec<String> {
    let end = format!(
        r#"@@ {{"event":"scenario-end","name":"{name}","outcome":"pass","micros":1,"detail":"#
    );
    let run = match board {
        None => Run::good(),
        Some(board @ Board::Nested) => Run::on_board(board, NESTED),
        Some(board @ Board::Stage2) => Run::on_board(board, STAGE2),
        Some(board @ Board::Stage1) => Run::on_board(board, STAGE1),
    };
    let run = run
        .with(r#""passed":2"#, r#""passed":3"#)
        .and_line(&format!(r#"{end}"{detail}"}}"#));
    let mut problems = run.problems();
    problems.retain(|problem| !problem.contains("only those asked for"));
    problems
}

#[test]
fn a_guest_has_the_drive_where_the_board_lets_it() {
    let moved = "hypervisor, vm1, hypervisor: works for its owner, the other's memory blocked, domain 1 reused";
    let refused = "no guest can have the drive, which works for the hypervisor before and after: no second stage";
    for board in [None, Some(Board::Nested), Some(Board::Stage2)] {
        assert_eq!(reassigned(board, moved), Vec::<String>::new());
        // As from a unit whose second stage got lost on the way to the scenario.
        let problems = reassigned(board, refused);
        assert!(
            matches!(&problems[..], [one] if one.contains("reassign on this board: expected \"works for its owner")),
            "{board:?}: {problems:#?}"
        );
    }
    assert_eq!(
        reassigned(Some(Board::Stage1), refused),
        Vec::<String>::new()
    );
    let problems = reassigned(Some(Board::Stage1), moved);
    assert!(
        matches!(&problems[..], [one] if one.contains("expected \"no guest can have the drive\"")),
        "{problems:#?}"
    );
}

#[test]
fn a_guest_has_a_first_stage_where_the_board_has_both() {
    let told = [
        (
            Board::Nested,
            "vm1 drives through both stages; what its first stage does not map is blocked",
        ),
        (
            Board::Stage2,
            "no guest can have a first stage of its own: unit 0 cannot serve such a domain: the unit has no support for \
             users' own first stages",
        ),
        (
            Board::Stage1,
            "no guest can have a first stage of its own: a guest's addresses are translated by a second stage, which \
             unit 0 does not have",
        ),
    ];
    for (board, _) in told {
        for (of, detail) in told {
            let problems = passed_with("nested", Some(board), detail);
            match of == board {
                true => assert_eq!(problems, Vec::<String>::new(), "{board:?}"),
                false => assert!(
                    matches!(&problems[..], [one] if one.contains("nested on this board")),
                    "{board:?}: {problems:#?}"
                ),
            }
        }
    }
}

#[test]
fn no_scenario_behind_an_iommu_passes_without_telling_which() {
    let one = r#"@@ {"event":"scenario-end","name":"blocked","outcome":"pass","micros":10,"detail":"ok"}"#;
    let (discover, unit) = (r#""scenario-end","name":"discover"#, r#""event":"unit""#);
    let run = || Run::good().without(discover).and_line(one).without(unit);
    fails_with(run(), "unit events: expected at least one");
    // The board is judged whatever ran.
    let other = Run::on_board(Board::Nested, STAGE1).without(discover);
    fails_with(other, "expected both stages, found stage 1 alone");
}

#[test]
fn a_shut_down_ends_as_the_vendors_units_do() {
    let problems = |run: Run, detail: &str| {
        let end = r#"@@ {"event":"scenario-end","name":"shut-down","outcome":"pass","micros":1,"detail":"#;
        let run = run
            .with(r#""passed":2"#, r#""passed":3"#)
            .and_line(&format!(r#"{end}"{detail}"}}"#));
        let mut problems = run.problems();
        problems.retain(|problem| !problem.contains("only those asked for"));
        problems
    };
    let (off, closed) = (
        "it reaches memory: translation is off as before bring-up",
        "neither: the gate is closed",
    );
    assert_eq!(problems(Run::good(), off), Vec::<String>::new());
    assert_eq!(
        problems(Run::on_board(Board::Nested, NESTED), closed),
        Vec::<String>::new()
    );
    for wrong in [
        problems(Run::good(), closed),
        problems(Run::on_board(Board::Nested, NESTED), off),
    ] {
        assert!(
            matches!(&wrong[..], [one] if one.contains("shut-down on this board")),
            "{wrong:#?}"
        );
    }
}

const PLANTED: Planted = Planted {
    fault: "skip_iotlb_flush",
    scenario: "revoke",
    archs: &[Arch::X86_64],
    says: "after the receipt",
};

fn planted(lines: &[&str], end: End) -> Vec<String> {
    let mut record = Record::default();
    record.take(r#"@@ {"event":"start","version":"0.1.0","cpus":4,"memory_mib":512}"#);
    lines.iter().for_each(|line| {
        record.take(line);
    });
    judge_planted_fault(&PLANTED, Arch::X86_64, &record, end)
        .iter()
        .map(Problem::to_string)
        .collect()
}

#[test]
fn a_planted_fault_is_caught_by_a_clean_failure_only() {
    let fail = r#"@@ {"event":"scenario-end","name":"revoke","outcome":"fail","micros":1,"detail":"the drive reached the page after the receipt"}"#;
    let done = r#"@@ {"event":"done","passed":0,"failed":1}"#;
    assert_eq!(
        planted(&[fail, done], End::Exited(35)),
        Vec::<String>::new()
    );

    let pass = fail.replace(r#""fail""#, r#""pass""#);
    let all_well = planted(
        &[&pass, r#"@@ {"event":"done","passed":1,"failed":0}"#],
        End::Exited(33),
    );
    assert!(
        all_well
            .iter()
            .any(|problem| problem.contains("fault not caught")),
        "{all_well:?}"
    );

    assert!(
        !planted(&[fail], End::Exited(35)).is_empty(),
        "no done event"
    );
    assert!(!planted(&[done], End::Exited(35)).is_empty(), "no end");
    assert!(
        !planted(&[fail, done], End::Exited(33)).is_empty(),
        "wrong exit code"
    );
    assert!(
        !planted(&[fail, done], End::TimedOut).is_empty(),
        "time is over"
    );
    let panic = r#"@@ {"event":"panic","text":"trap"}"#;
    assert!(
        !planted(&[fail, panic, done], End::Exited(35)).is_empty(),
        "a panic is no clean failure"
    );
    assert!(
        !planted(&[&fail.replace("revoke", "blocked"), done], End::Exited(35)).is_empty(),
        "another scenario"
    );
    let slow = fail.replace(
        "the drive reached the page after the receipt",
        "a command to the drive: Timeout",
    );
    let problems = planted(&[&slow, done], End::Exited(35));
    assert!(
        matches!(&problems[..], [one] if one.contains("expected \"after the receipt\", found \"a command to the drive")),
        "a drive that was too slow: {problems:?}"
    );
}
