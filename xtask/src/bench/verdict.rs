//! How good a row is: what it was measured at, held against gate, goal and stretch.

use super::results::{Better, Results, Row};

/// How far a row got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Beyond the goal as far as anybody hoped.
    Stretch,
    /// What the project wants.
    Goal,
    /// It lands.
    Gate,
    /// It has a gate and does not keep it.
    Missed,
    /// No gate, or nothing to hold against it.
    Reported,
    /// Not measured.
    Skipped,
}

impl Verdict {
    /// As it is shown.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Stretch => "stretch",
            Self::Goal => "goal",
            Self::Gate => "gate",
            Self::Missed => "MISSED",
            Self::Reported => "reported",
            Self::Skipped => "skipped",
        }
    }

    /// The verdict on a row. Values count as they are shown, with two digits behind the point.
    pub(crate) fn of(row: &Row) -> Self {
        if row.skipped.is_some() {
            return Self::Skipped;
        }
        let Some(value) = row.value else {
            return Self::Reported;
        };
        let keeps = |bound: Option<f64>| {
            bound.is_some_and(|bound| match row.better {
                Better::Lower => hundredths(value) <= hundredths(bound),
                Better::Higher => hundredths(value) >= hundredths(bound),
            })
        };
        if keeps(row.stretch) {
            Self::Stretch
        } else if keeps(row.goal) {
            Self::Goal
        } else if keeps(row.gate) {
            Self::Gate
        } else if row.gate.is_some() {
            Self::Missed
        } else {
            Self::Reported
        }
    }
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round()
}

/// Names of the rows that missed their gate.
pub(crate) fn missed(results: &Results) -> Vec<String> {
    let missed = |row: &&Row| Verdict::of(row) == Verdict::Missed;
    results.rows.iter().filter(missed).map(Row::name).collect()
}

/// The last line: how many rows with a gate keep it, and how many with a goal reach that.
pub(crate) fn summary(results: &Results) -> String {
    let rows = || {
        let judged = results.rows.iter().map(|row| (row, Verdict::of(row)));
        judged.filter(|(_, verdict)| *verdict != Verdict::Skipped)
    };
    let gates = rows().filter(|(row, _)| row.gate.is_some() && row.value.is_some());
    let goals = rows().filter(|(row, _)| row.goal.is_some() && row.value.is_some());
    let (gates, goals) = (gates.count(), goals.count());
    let missed = missed(results).len();
    let reached = rows()
        .filter(|(_, verdict)| matches!(verdict, Verdict::Goal | Verdict::Stretch))
        .count();
    let bare = |row: &&Row| row.gate.is_none() && row.goal.is_none() || row.value.is_none();
    let rest = results.rows.iter().filter(bare);
    format!(
        "{} of {gates} gates kept, {missed} missed; {reached} of {goals} goals reached; {} rows only reported",
        gates - missed,
        rest.count()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: f64, better: Better) -> Row {
        let (gate, goal, stretch) = match better {
            Better::Lower => (2.0, 1.5, 1.2),
            Better::Higher => (1.4, 1.6, 1.9),
        };
        Row {
            value: Some(value),
            better,
            gate: Some(gate),
            goal: Some(goal),
            stretch: Some(stretch),
            ..Row::default()
        }
    }

    #[test]
    fn a_ratio_is_better_when_it_is_lower() {
        let verdict = |value| Verdict::of(&row(value, Better::Lower));
        assert_eq!(verdict(1.2), Verdict::Stretch);
        assert_eq!(verdict(1.21), Verdict::Goal);
        assert_eq!(verdict(1.51), Verdict::Gate);
        assert_eq!(verdict(2.01), Verdict::Missed);
    }

    #[test]
    fn a_speed_up_is_better_when_it_is_higher() {
        let verdict = |value| Verdict::of(&row(value, Better::Higher));
        assert_eq!(verdict(1.9), Verdict::Stretch);
        assert_eq!(verdict(1.6), Verdict::Goal);
        assert_eq!(verdict(1.4), Verdict::Gate);
        assert_eq!(verdict(1.39), Verdict::Missed);
    }

    #[test]
    fn a_value_counts_as_it_is_shown() {
        assert_eq!(Verdict::of(&row(2.004, Better::Lower)), Verdict::Gate);
        assert_eq!(Verdict::of(&row(2.006, Better::Lower)), Verdict::Missed);
    }

    #[test]
    fn rows_without_a_gate_or_a_value_have_no_verdict() {
        let no_gate = Row {
            gate: None,
            ..row(9.0, Better::Lower)
        };
        assert_eq!(Verdict::of(&no_gate), Verdict::Reported);
        let no_value = Row {
            value: None,
            ..row(1.0, Better::Lower)
        };
        assert_eq!(Verdict::of(&no_value), Verdict::Reported);
        let skipped = Row {
            skipped: Some("no clwb".into()),
            ..row(1.0, Better::Lower)
        };
        assert_eq!(Verdict::of(&skipped), Verdict::Skipped);
    }

    #[test]
    fn the_summary_counts_every_row_once() {
        let results = Results {
            rows: vec![
                row(1.0, Better::Lower),
                row(1.9, Better::Lower),
                Row {
                    id: "B-X1".into(),
                    ..row(3.0, Better::Lower)
                },
                Row {
                    gate: None,
                    ..row(1.3, Better::Lower)
                },
                Row::default(),
            ],
            ..Results::default()
        };
        assert_eq!(
            summary(&results),
            "2 of 3 gates kept, 1 missed; 2 of 4 goals reached; 1 rows only reported"
        );
        assert_eq!(missed(&results), ["B-X1"]);
    }
}
