//! The results as tables on a terminal.

use comfy_table::{Cell, CellAlignment, Color, Table, presets};

use super::baseline::Change;
use super::results::{Results, Row};
use super::verdict::Verdict;

/// What stands for nothing.
const NONE: &str = "-";

/// A number with as many digits as it deserves.
pub(crate) fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value < 0.1 && value > 0.0 => format!("{value:.3}"),
        value => format!("{value:.2}"),
    }
}

/// A number that may be missing.
pub(crate) fn maybe(value: Option<f64>) -> String {
    value.map_or_else(|| NONE.to_owned(), number)
}

/// A bound as the matrix writes it: no more digits than it has.
pub(crate) fn bound(value: Option<f64>) -> String {
    value.map_or_else(|| NONE.to_owned(), |value| format!("{value}"))
}

/// What is judged, with its unit unless it is a ratio.
pub(crate) fn value(row: &Row) -> String {
    let value = maybe(row.value);
    match (row.value, row.measure.as_str()) {
        (None, _) | (_, "ratio") => value,
        (_, "speed-up") => format!("{value} x"),
        (Some(count), measure) => format!("{count:.0} {measure}"),
    }
}

/// The least and the greatest value of the processes.
pub(crate) fn spread(row: &Row) -> String {
    row.spread.map_or_else(
        || NONE.to_owned(),
        |(least, most)| format!("{}..{}", number(least), number(most)),
    )
}

/// The fastest peer of the run, as a ratio to the floor.
pub(crate) fn peer(row: &Row) -> String {
    row.best_peer().map_or_else(
        || NONE.to_owned(),
        |lane| format!("{} {}", maybe(lane.ratio), short(&lane.name)),
    )
}

/// A peer's name for a narrow column.
fn short(name: &str) -> &str {
    match name {
        "page_table_multiarch" => "multiarch",
        "aarch64-paging" => "aarch64",
        name => name,
    }
}

fn colour(verdict: Verdict) -> Option<Color> {
    match verdict {
        Verdict::Stretch | Verdict::Goal => Some(Color::Green),
        Verdict::Gate => Some(Color::Yellow),
        Verdict::Missed => Some(Color::Red),
        Verdict::Reported | Verdict::Skipped => None,
    }
}

/// The rows, one line each.
pub(crate) fn rows(results: &Results) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "row",
        "workload",
        "floor",
        "engine",
        "value",
        "spread",
        "per call",
        "in a stay",
        "best peer",
        "gate",
        "goal",
        "verdict",
    ]);
    for row in &results.rows {
        let verdict = Verdict::of(row);
        let word = Cell::new(verdict.word());
        let quiet = |kind| maybe(row.judged(kind).map(|lane| lane.quiet));
        table.add_row(vec![
            Cell::new(row.name()),
            Cell::new(&row.workload),
            Cell::new(quiet("floor")),
            Cell::new(quiet("engine")),
            Cell::new(value(row)),
            Cell::new(spread(row)),
            Cell::new(maybe(row.pinned)),
            Cell::new(maybe(row.stay)),
            Cell::new(peer(row)),
            Cell::new(bound(row.gate)),
            Cell::new(bound(row.goal)),
            match colour(verdict) {
                Some(colour) => word.fg(colour),
                None => word,
            },
        ]);
    }
    for column in 2..11 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// What changed since the baseline.
pub(crate) fn changes(changes: &[Change]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["row", "before", "now", "change"]);
    for change in changes {
        table.add_row([
            change.name.clone(),
            number(change.before),
            number(change.now),
            format!("{:+.1} %", change.percent()),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_as_many_digits_as_they_deserve() {
        assert_eq!(number(0.008), "0.008");
        assert_eq!(number(0.19), "0.19");
        assert_eq!(number(3.241), "3.24");
        assert_eq!(number(33.33), "33.3");
        assert_eq!(number(407.0), "407");
        assert_eq!(number(0.0), "0.00");
        assert_eq!(maybe(None), "-");
        assert_eq!(bound(Some(1.35)), "1.35");
        assert_eq!(bound(Some(12.0)), "12");
    }

    #[test]
    fn every_row_has_a_line_whose_columns_line_up() {
        let row = |id: &str, workload: &str| Row {
            id: id.into(),
            workload: workload.into(),
            value: Some(1.0),
            ..Row::default()
        };
        let results = Results {
            rows: vec![row("B-M1", "short"), row("B-R7", "much longer than that")],
            ..Results::default()
        };
        let text = rows(&results).trim_fmt();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[1].find("1.00"), lines[2].find("1.00"), "{text}");
    }
}
