//! The report that is kept with the sources: a page of tables, the charts beside it, and the raw results.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::chart;
use super::results::{Lane, Machine, Results, Row};
use super::table::{bound, maybe, number, peer, spread, value};
use super::verdict::{Verdict, missed, summary};

/// The page.
const PAGE: &str = "README.md";
const RATIOS: &str = "ratios.svg";
const LATENCY: &str = "latency.svg";
const SCALING: &str = "scaling.svg";
/// What was measured, as it came: the baseline of the next change.
const RESULTS: &str = "results.json";

/// Writes the report of `results`, which were read from `raw`, into `folder`.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn write(
    folder: &Path,
    results: &Results,
    raw: &Path,
    cautions: &[String],
) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let put = |name: &str, text: &str| {
        let file = folder.join(name);
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
    };
    put(RATIOS, &chart::ratios(results))?;
    let latency = results.rows.iter().find(|row| !row.histogram.is_empty());
    if let Some(row) = latency {
        put(LATENCY, &chart::latency(row))?;
    }
    let scaling = scaling(results);
    if !scaling.is_empty() {
        put(SCALING, &chart::scaling(&scaling))?;
    }
    let kept = folder.join(RESULTS);
    // The report may be drawn again from the results that are kept with it.
    if raw.canonicalize().ok() != kept.canonicalize().ok() || !kept.exists() {
        fs::copy(raw, &kept).with_context(|| format!("writing {}", kept.display()))?;
    }
    put(PAGE, &page(results, cautions))
}

/// The rows with several threads.
fn scaling(results: &Results) -> Vec<&Row> {
    let several = |row: &&Row| row.lanes.iter().any(|lane| lane.speed_up.is_some());
    results.rows.iter().filter(several).collect()
}

fn page(results: &Results, cautions: &[String]) -> String {
    let mut page = String::new();
    let mut say = |text: &str| {
        page.push_str(text);
        page.push('\n');
    };
    say(&format!(
        "# Benchmark of the table engine: {}\n",
        results.format.title()
    ));
    say(&format!(
        "Written by `cargo xtask bench --format {} --report`; not edited by hand.\n",
        results.format.option()
    ));
    say(&format!("**{}.**", summary(results)));
    let missed = missed(results);
    if !missed.is_empty() {
        say(&format!("Gates missed: {}.", missed.join(", ")));
    }
    if !cautions.is_empty() {
        say("");
    }
    for caution in cautions {
        say(&format!("* Caution: {caution}."));
    }
    say(&format!("\n![ratio to the floor, row by row]({RATIOS})\n"));
    say("## Where we are\n");
    say(WHERE);
    say(&overview(results));
    let notes = notes(results);
    if !notes.is_empty() {
        say(&notes);
    }
    let side_by_side = side_by_side(results);
    if !scaling(results).is_empty() || !side_by_side.is_empty() {
        say("## Threads\n");
    }
    if !scaling(results).is_empty() {
        say(&format!("![speed-up over one thread]({SCALING})\n"));
        say(&threads(results));
    }
    if !side_by_side.is_empty() {
        say(SIDE_BY_SIDE);
        say(&side_by_side);
    }
    if results.rows.iter().any(|row| !row.histogram.is_empty()) {
        say("## Latency\n");
        say(&format!("![times of single operations]({LATENCY})\n"));
    }
    if !results.code.is_empty() {
        say("## Code size\n");
        say(
            "Bytes of machine code of the engine's functions in the benchmark, the largest copy of each. What is inlined is counted where it was inlined.\n",
        );
        say(&code(results));
    }
    say("## How it was measured\n");
    say(METHOD);
    say(&machine(&results.machine));
    say("## Every competitor\n");
    say(
        "Quiet median and median in ns per operation, rounds, ratio of the quiet medians, and the median of the ratios within the rounds.\n",
    );
    say(&lanes(results));
    while page.ends_with("\n\n") {
        page.pop();
    }
    page
}

const WHERE: &str = "\
Times are ns per operation (the unit stands behind the workload), quiet medians. *Value* is what is judged: the engine's time
divided by the row's floor, all calls under one guard, unless a unit says otherwise. *Per call* is the same with a pin for each
call, *in a stay* the same again on a CPU that said that it stays in the hypervisor. *Spread* is the least and the greatest value of
the processes that measured; each row is shown as the middle one measured it. *Best peer* is the fastest published crate
that has the operation, in the same rounds; all of them take `&mut` and serve one thread. No figure here is of another run or
another machine.
";

const SIDE_BY_SIDE: &str = "\
Where floor and engine both run with several threads, side by side in the same rounds: wall time per operation of all threads
together, and how many operations that is in a second.
";

const METHOD: &str = "\
* Floor, engine and peers run in one process, in interleaved rounds; every round begins with another of them. Several processes measure
  everything, one after the other: where stack, code and heap come to lie moves short times, in all rounds of a process alike. The quiet median is
  the median of the quietest quarter of the rounds, each competitor's own.
* Rows of one thread are timed by the thread's CPU time over a whole round of many operations, with no look at a clock in between.
  Rows of several threads take the mean CPU time of the threads; wall time stands beside. Every thread is pinned to a processor.
* Each competitor has tables of its own in one block of memory at a fixed address, touched before. What is not timed, right before
  every timed part, brings its tables to the same state and into the caches.
* The random order is one permutation (xorshift64, fixed seed) for all. The window has 1 GiB unless a row says otherwise.
* Floors are written by hand, do what the row says, and check nothing else. They keep no account of pending pages and have no errors to
  report: the distance to them is the price of an interface that is safe.
* Frames come zeroed, as the platform contract says; they are zeroed when they are given back, which is not timed in rows that map. The
  peers get theirs from the same lists.
* `walker_fence` is a compiler fence where walkers snoop, since x86 keeps stores in order; the hypervisor image runs an `sfence` there,
  which costs a fraction of a ns. Rows without snooping run `clwb` and `sfence`.
* A pending word keeps its page's address until the receipt. The peers and floors forget it.
";

fn machine(machine: &Machine) -> String {
    let yes = |yes: bool| if yes { "yes" } else { "no" };
    let mut text = String::from("| | |\n|---|---|\n");
    for (name, value) in [
        (
            "processor",
            format!("{}, {} used", machine.processor, machine.processors),
        ),
        ("virtual machine", yes(machine.virtual_machine).to_owned()),
        ("kernel", machine.kernel.clone()),
        ("huge pages for tables", yes(machine.huge_pages).to_owned()),
        ("`clwb`", yes(machine.clwb).to_owned()),
        ("compiler", machine.compiler.clone()),
        ("built with", format!("`{}`", machine.flags)),
        (
            "load before and after",
            format!("{:.2}, {:.2}", machine.load, machine.load_after),
        ),
    ] {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    text
}

fn overview(results: &Results) -> String {
    let mut text = String::from(
        "| row | workload | floor | engine | value | spread | per call | in a stay | best peer | gate | goal | stretch | verdict |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|\n",
    );
    for row in &results.rows {
        let quiet = |kind| maybe(row.judged(kind).map(|lane| lane.quiet));
        let verdict = Verdict::of(row);
        let word = match verdict {
            Verdict::Missed => "**missed**",
            verdict => verdict.word(),
        };
        let value = value(row);
        let _ = writeln!(
            text,
            "| {} | {} ({}) | {} | {} | {value} | {} | {} | {} | {} | {} | {} | {} | {word} |",
            row.name(),
            row.workload,
            row.unit,
            quiet("floor"),
            quiet("engine"),
            spread(row),
            maybe(row.pinned),
            maybe(row.stay),
            peer(row),
            bound(row.gate),
            bound(row.goal),
            bound(row.stretch),
        );
    }
    text
}

fn notes(results: &Results) -> String {
    let mut text = String::new();
    for row in &results.rows {
        let why = row.skipped.iter().map(|why| format!("not measured: {why}"));
        for note in why.chain(row.notes.iter().cloned()) {
            let _ = writeln!(text, "* {}: {note}", row.name());
        }
    }
    text
}

fn threads(results: &Results) -> String {
    let mut text = String::from(
        "| row | threads | CPU time per operation | wall time per operation | speed-up by CPU time |\n|---|--:|--:|--:|--:|\n",
    );
    for row in scaling(results) {
        for lane in row.lanes.iter().filter(|lane| lane.threads.is_some()) {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} |",
                row.name(),
                lane.name,
                number(lane.quiet),
                maybe(lane.wall),
                maybe(lane.speed_up),
            );
        }
    }
    text
}

/// Rows whose floor has several threads too; nothing where there are none.
fn side_by_side(results: &Results) -> String {
    let mut text = String::new();
    for row in &results.rows {
        for (floor, engine) in row.side_by_side() {
            if text.is_empty() {
                text.push_str(
                    "| row | threads | floor | engine | engine / floor | floor, millions/s | engine, millions/s |\n\
                     |---|--:|--:|--:|--:|--:|--:|\n",
                );
            }
            // Behind who it is: how many threads, and whether they share processors.
            let threads = engine.name.split_once(", ").map_or("", |(_, rest)| rest);
            let millions = |lane: &Lane| number(1e3 / lane.quiet);
            let _ = writeln!(
                text,
                "| {} | {threads} | {} | {} | {} | {} | {} |",
                row.name(),
                number(floor.quiet),
                number(engine.quiet),
                maybe(engine.ratio),
                millions(floor),
                millions(engine),
            );
        }
    }
    text
}

fn code(results: &Results) -> String {
    let mut text = String::from("| function | copies | bytes |\n|---|--:|--:|\n");
    for code in &results.code {
        let _ = writeln!(
            text,
            "| `{}` | {} | {} |",
            code.name, code.copies, code.bytes
        );
    }
    text
}

fn lanes(results: &Results) -> String {
    let mut text = String::from(
        "| row | floor does | who | quiet | median | rounds | ratio | paired |\n|---|---|---|--:|--:|--:|--:|--:|\n",
    );
    for row in &results.rows {
        for lane in row.lanes.iter().filter(|lane| lane.threads.is_none()) {
            let floor = if lane.kind == "floor" {
                row.floor.as_str()
            } else {
                ""
            };
            let _ = writeln!(
                text,
                "| {} | {floor} | {} | {} | {} | {} | {} | {} |",
                row.name(),
                lane.name,
                number(lane.quiet),
                number(lane.median),
                lane.count,
                maybe(lane.ratio),
                maybe(lane.paired_ratio),
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_tells_of_every_row_and_its_verdict() {
        let row = |id: &str, value, skipped: Option<&str>| Row {
            id: id.into(),
            workload: "does something".into(),
            measure: "ratio".into(),
            gate: Some(2.0),
            value,
            skipped: skipped.map(Into::into),
            ..Row::default()
        };
        let results = Results {
            rows: vec![
                row("B-A1", Some(3.0), None),
                row("B-A2", Some(1.0), None),
                row("B-A3", None, Some("no clwb here")),
            ],
            ..Results::default()
        };
        let page = page(&results, &["a busy machine".to_owned()]);
        assert!(page.contains("* Caution: a busy machine."), "{page}");
        assert!(page.contains("Gates missed: B-A1."), "{page}");
        assert!(
            page.contains("| B-A1 |") && page.contains("**missed** |"),
            "{page}"
        );
        assert!(page.contains("B-A3: not measured: no clwb here"), "{page}");
        assert!(!page.contains("## Threads"), "no row has threads");
        assert!(page.ends_with("|\n"));
    }

    /// A row of several threads is shown as it is judged, and with every number of threads beside that.
    #[test]
    fn floor_and_engine_of_several_threads_stand_side_by_side() {
        let lane = |kind: &str, name: &str, threads, quiet, ratio| Lane {
            kind: kind.into(),
            name: name.into(),
            quiet,
            ratio: Some(ratio),
            threads: Some(threads),
            ..Lane::default()
        };
        let row = Row {
            id: "B-Q9".into(),
            workload: "several".into(),
            unit: "flush".into(),
            measure: "ratio".into(),
            value: Some(0.5),
            lanes: vec![
                lane("floor", "behind a lock, 1", 1, 4.0, 1.0),
                lane("engine", "ours, 1", 1, 8.0, 2.0),
                lane("floor", "behind a lock, 2", 2, 200.0, 1.0),
                lane("engine", "ours, 2", 2, 100.0, 0.5),
                lane("floor", "behind a lock, 4, oversubscribed", 4, 400.0, 1.0),
                lane("engine", "ours, 4, oversubscribed", 4, 300.0, 0.75),
            ],
            ..Row::default()
        };
        let alone = Row {
            lanes: vec![lane("engine", "1", 1, 1.0, 3.0)],
            ..Row::default()
        };
        let results = Results {
            rows: vec![row, alone],
            ..Results::default()
        };
        let page = page(&results, &[]);
        assert!(
            page.contains("| several (flush) | 200 | 100 | 0.50 |"),
            "{page}"
        );
        for line in [
            "| B-Q9 | 1 | 4.00 | 8.00 | 2.00 | 250 | 125 |",
            "| B-Q9 | 2 | 200 | 100 | 0.50 | 5.00 | 10.0 |",
            "| B-Q9 | 4, oversubscribed | 400 | 300 | 0.75 | 2.50 | 3.33 |",
        ] {
            assert!(page.contains(line), "{line} is missing in {page}");
        }
        assert_eq!(page.matches("millions/s").count(), 2, "one table: {page}");
    }

    #[test]
    fn a_report_is_a_page_and_its_charts() {
        let folder = tempfile::tempdir().unwrap();
        let raw = folder.path().join("raw.json");
        fs::write(&raw, "{}").unwrap();
        write(folder.path(), &Results::default(), &raw, &[]).unwrap();
        let names = [PAGE, RATIOS, RESULTS].map(|name| folder.path().join(name).is_file());
        assert_eq!(names, [true, true, true]);
        // Drawn again from the results that are kept.
        let kept = folder.path().join(RESULTS);
        write(folder.path(), &Results::default(), &kept, &[]).unwrap();
        assert_eq!(fs::read_to_string(&kept).unwrap(), "{}");
        assert!(!folder.path().join(LATENCY).exists());
    }
}
