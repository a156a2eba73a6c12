//! What changed since an earlier run.

use super::results::{Results, Row};

/// One row of two runs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    /// The row.
    pub(crate) name: String,
    /// The value then.
    pub(crate) before: f64,
    /// The value now.
    pub(crate) now: f64,
}

impl Change {
    /// By how many per cent the value grew.
    pub(crate) fn percent(&self) -> f64 {
        (self.now / self.before - 1.0) * 100.0
    }
}

/// The rows that both runs have a value for, in the order of this run.
pub(crate) fn compare(before: &Results, now: &Results) -> Vec<Change> {
    let earlier = |row: &Row| {
        let same = |other: &&Row| other.id == row.id && other.part == row.part;
        before.rows.iter().find(same)?.value
    };
    let change = |row: &Row| {
        Some(Change {
            name: row.name(),
            before: earlier(row).filter(|value| *value > 0.0)?,
            now: row.value?,
        })
    };
    now.rows.iter().filter_map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(rows: &[(&str, &str, Option<f64>)]) -> Results {
        let row = |(id, part, value): &(&str, &str, Option<f64>)| Row {
            id: (*id).into(),
            part: (*part).into(),
            value: *value,
            ..Row::default()
        };
        Results {
            rows: rows.iter().map(row).collect(),
            ..Results::default()
        }
    }

    #[test]
    fn rows_are_matched_by_name_and_part() {
        let before = results(&[
            ("a", "x", Some(2.0)),
            ("a", "y", Some(4.0)),
            ("gone", "", Some(1.0)),
        ]);
        let now = results(&[
            ("a", "y", Some(3.0)),
            ("new", "", Some(1.0)),
            ("a", "x", None),
        ]);
        let changes = compare(&before, &now);
        assert_eq!(changes.len(), 1, "{changes:?}");
        assert_eq!(changes[0].name, "a y");
        assert_eq!(changes[0].percent(), -25.0);
    }
}
