//! The charts of the report.

use super::results::{Results, Row, Series};
use super::svg::{Anchor, Canvas, LETTER, LogAxis};
use super::table::number;
use super::verdict::Verdict;

const INK: &str = "#24292f";
const GOAL: &str = "#1a7f37";
const PEER: &str = "#8250df";
const LINES: [&str; 6] = [
    "#0969da", "#cf222e", "#1a7f37", "#bf8700", "#8250df", "#57606a",
];

/// The colour of a bar.
const fn colour(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Stretch | Verdict::Goal => "#4ac26b",
        Verdict::Gate => "#eac54f",
        Verdict::Missed => "#ff8182",
        Verdict::Reported | Verdict::Skipped => "#afb8c1",
    }
}

/// A bar per row whose value is a ratio, with gate, goal and peers.
pub(crate) fn ratios(results: &Results) -> String {
    const LEFT: f64 = 480.0;
    const TOP: f64 = 70.0;
    const STEP: f64 = 22.0;
    const WIDTH: f64 = 1120.0;
    const RIGHT: f64 = 60.0;
    let rows: Vec<&Row> = results
        .rows
        .iter()
        .filter(|row| row.measure == "ratio" && row.value.is_some())
        .collect();
    let axis = LogAxis {
        low: 0.1,
        high: 50.0,
        from: LEFT,
        to: WIDTH - RIGHT,
    };
    let bottom = TOP + rows.len() as f64 * STEP;
    let mut canvas = Canvas::new(WIDTH, bottom + 40.0);
    canvas.heading(
        10.0,
        22.0,
        "Engine time divided by the floor's, quiet medians",
    );
    legend(&mut canvas, 10.0, 44.0);
    for tick in axis.ticks() {
        let x = axis.at(tick);
        canvas.grid((x, TOP - 4.0), (x, bottom));
        canvas.text(x, bottom + 16.0, Anchor::Middle, &format!("{tick}"));
    }
    canvas.text(
        f64::midpoint(axis.from, axis.to),
        bottom + 32.0,
        Anchor::Middle,
        "ratio to the row's floor (1 = the least work that the words need), logarithmic",
    );
    for (at, row) in rows.iter().enumerate() {
        let y = TOP + at as f64 * STEP;
        let middle = y + STEP / 2.0 - 1.0;
        canvas.text(10.0, middle + 4.0, Anchor::Start, &row.name());
        canvas.text(
            LEFT - 8.0,
            middle + 4.0,
            Anchor::End,
            &fitted(&row.workload, 370.0),
        );
        let value = row.value.unwrap_or(axis.low);
        // From the floor on, to the right for slower and to the left for faster.
        let (start, end) = (axis.at(value.min(1.0)), axis.at(value.max(1.0)));
        canvas.bar(
            start,
            y + 3.0,
            (end - start).max(1.0),
            STEP - 8.0,
            colour(Verdict::of(row)),
        );
        for (bound, line) in [(row.gate, INK), (row.goal, GOAL)] {
            if let Some(bound) = bound {
                let x = axis.at(bound);
                canvas.line((x, y + 1.0), (x, y + STEP - 3.0), line, 2.5);
            }
        }
        if let Some(peer) = row.best_peer().and_then(|lane| lane.ratio) {
            canvas.ring(axis.at(peer), middle, 4.0, PEER);
        }
        canvas.text(WIDTH - 8.0, middle + 4.0, Anchor::End, &number(value));
    }
    canvas.line((axis.at(1.0), TOP - 4.0), (axis.at(1.0), bottom), INK, 1.0);
    canvas.finish()
}

fn legend(canvas: &mut Canvas, mut x: f64, y: f64) {
    for (verdict, words) in [
        (Verdict::Goal, "goal reached"),
        (Verdict::Gate, "gate kept"),
        (Verdict::Missed, "gate missed"),
        (Verdict::Reported, "no gate"),
    ] {
        canvas.bar(x, y - 9.0, 14.0, 10.0, colour(verdict));
        canvas.text(x + 19.0, y, Anchor::Start, words);
        x += 32.0 + words.len() as f64 * LETTER;
    }
    for (line, words) in [(INK, "gate"), (GOAL, "goal")] {
        canvas.line((x + 6.0, y - 11.0), (x + 6.0, y + 2.0), line, 2.5);
        canvas.text(x + 14.0, y, Anchor::Start, words);
        x += 30.0 + words.len() as f64 * LETTER;
    }
    canvas.ring(x + 6.0, y - 4.0, 4.0, PEER);
    let words = "best peer of this run (&mut, one thread)";
    canvas.text(x + 16.0, y, Anchor::Start, words);
}

/// `words` cut so that they fit into `width`.
fn fitted(words: &str, width: f64) -> String {
    let most = (width / LETTER) as usize;
    if words.chars().count() <= most {
        return words.to_owned();
    }
    let cut: String = words.chars().take(most.saturating_sub(3)).collect();
    format!("{}...", cut.trim_end())
}

/// The series of single times of `row`: how often which time.
pub(crate) fn latency(row: &Row) -> String {
    const LEFT: f64 = 70.0;
    const TOP: f64 = 60.0;
    const BOTTOM: f64 = 330.0;
    const WIDTH: f64 = 1000.0;
    const RIGHT: f64 = 330.0;
    let ends = row.histogram.iter().flat_map(|series| &series.buckets);
    let low = ends
        .clone()
        .map(|(at, _)| *at)
        .fold(f64::MAX, f64::min)
        .max(5.0);
    let high = ends.map(|(at, _)| *at).fold(low * 10.0, f64::max);
    let x_axis = LogAxis {
        low,
        high,
        from: LEFT,
        to: WIDTH - RIGHT,
    };
    let y_axis = LogAxis {
        low: 1e-7,
        high: 1.0,
        from: BOTTOM,
        to: TOP,
    };
    let mut canvas = Canvas::new(WIDTH, BOTTOM + 50.0);
    canvas.heading(10.0, 22.0, &format!("{}: {}", row.name(), row.workload));
    canvas.text(
        10.0,
        42.0,
        Anchor::Start,
        "share of operations that took at least so long, both axes logarithmic",
    );
    for tick in x_axis.decades() {
        let x = x_axis.at(tick);
        canvas.grid((x, TOP), (x, BOTTOM));
        canvas.text(x, BOTTOM + 16.0, Anchor::Middle, &time(tick));
    }
    for power in 0..=7 {
        let y = y_axis.at(10_f64.powi(-power));
        canvas.grid((LEFT, y), (WIDTH - RIGHT, y));
        let words = if power == 0 {
            "1".to_owned()
        } else {
            format!("1e-{power}")
        };
        canvas.text(LEFT - 8.0, y + 4.0, Anchor::End, &words);
    }
    canvas.text(
        f64::midpoint(LEFT, WIDTH - RIGHT),
        BOTTOM + 36.0,
        Anchor::Middle,
        "time of one operation",
    );
    for (at, (series, colour)) in row.histogram.iter().zip(LINES.iter().cycle()).enumerate() {
        let points: Vec<(f64, f64)> = tail(series)
            .into_iter()
            .map(|(value, share)| (x_axis.at(value), y_axis.at(share)))
            .collect();
        canvas.path(&points, colour);
        let y = TOP + 14.0 + at as f64 * 20.0;
        canvas.line(
            (WIDTH - RIGHT + 20.0, y - 4.0),
            (WIDTH - RIGHT + 44.0, y - 4.0),
            colour,
            3.0,
        );
        canvas.text(WIDTH - RIGHT + 52.0, y, Anchor::Start, &series.name);
    }
    canvas.finish()
}

/// For each bucket the share of times in it or above.
fn tail(series: &Series) -> Vec<(f64, f64)> {
    let all: u64 = series.buckets.iter().map(|(_, count)| count).sum();
    let mut left = all;
    let mut points = Vec::new();
    for (at, count) in &series.buckets {
        points.push((*at, left as f64 / all.max(1) as f64));
        left -= count;
    }
    points
}

/// Nanoseconds with a unit.
fn time(nanos: f64) -> String {
    match nanos {
        nanos if nanos >= 1e6 => format!("{} ms", nanos / 1e6),
        nanos if nanos >= 1e3 => format!("{} µs", nanos / 1e3),
        nanos => format!("{nanos} ns"),
    }
}

/// Speed-up against threads, a line a row.
pub(crate) fn scaling(rows: &[&Row]) -> String {
    const LEFT: f64 = 60.0;
    const TOP: f64 = 60.0;
    const BOTTOM: f64 = 340.0;
    const WIDTH: f64 = 1000.0;
    const RIGHT: f64 = 460.0;
    let points = |row: &Row| -> Vec<(f64, f64)> {
        let lanes = row.lanes.iter();
        lanes
            .filter_map(|lane| Some((lane.threads? as f64, lane.speed_up?)))
            .collect()
    };
    let most = rows
        .iter()
        .flat_map(|row| points(row))
        .map(|(threads, _)| threads);
    let most = most.fold(2.0, f64::max);
    let x = |threads: f64| LEFT + (threads - 1.0) / (most - 1.0) * (WIDTH - RIGHT - LEFT);
    let y = |speed_up: f64| BOTTOM - speed_up / most * (BOTTOM - TOP);
    let mut canvas = Canvas::new(WIDTH, BOTTOM + 50.0);
    canvas.heading(10.0, 22.0, "Speed-up over one thread: by CPU time, by wall time where there are more threads than processors");
    let mut count = 1.0;
    while count <= most {
        canvas.grid((x(count), TOP), (x(count), BOTTOM));
        canvas.text(x(count), BOTTOM + 16.0, Anchor::Middle, &format!("{count}"));
        canvas.grid((LEFT, y(count)), (WIDTH - RIGHT, y(count)));
        canvas.text(LEFT - 8.0, y(count) + 4.0, Anchor::End, &format!("{count}"));
        count += 1.0;
    }
    canvas.text(
        f64::midpoint(LEFT, WIDTH - RIGHT),
        BOTTOM + 36.0,
        Anchor::Middle,
        "threads",
    );
    canvas.line((x(1.0), y(1.0)), (x(most), y(most)), "#8c959f", 1.0);
    canvas.text(
        WIDTH - RIGHT + 20.0,
        y(most) + 4.0,
        Anchor::Start,
        "thin line: every thread as fast as one alone",
    );
    for (at, (row, colour)) in rows.iter().zip(LINES.iter().cycle()).enumerate() {
        let points: Vec<(f64, f64)> = points(row)
            .into_iter()
            .map(|(threads, speed_up)| (x(threads), y(speed_up)))
            .collect();
        canvas.path(&points, colour);
        for (x, y) in points {
            canvas.ring(x, y, 4.0, colour);
        }
        let y = TOP + 30.0 + at as f64 * 20.0;
        canvas.line(
            (WIDTH - RIGHT + 20.0, y - 4.0),
            (WIDTH - RIGHT + 44.0, y - 4.0),
            colour,
            3.0,
        );
        let words = format!("{}: {}", row.name(), row.workload);
        canvas.text(
            WIDTH - RIGHT + 52.0,
            y,
            Anchor::Start,
            &fitted(&words, RIGHT - 60.0),
        );
    }
    canvas.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_falls_from_one_and_counts_its_own_bucket() {
        let series = Series {
            name: String::new(),
            buckets: vec![(10.0, 6), (20.0, 3), (40.0, 1)],
        };
        assert_eq!(tail(&series), [(10.0, 1.0), (20.0, 0.4), (40.0, 0.1)]);
    }

    #[test]
    fn long_words_are_cut_to_fit() {
        assert_eq!(fitted("short", 100.0), "short");
        let cut = fitted("a very long workload that does not fit", 100.0);
        assert!(
            cut.ends_with("...") && cut.len() as f64 * LETTER <= 100.0,
            "{cut}"
        );
    }

    #[test]
    fn rows_without_a_value_have_no_bar() {
        let row = |value| Row {
            id: "B-Z9".into(),
            measure: "ratio".into(),
            value,
            ..Row::default()
        };
        let drawn = |value| {
            ratios(&Results {
                rows: vec![row(value)],
                ..Results::default()
            })
        };
        assert!(drawn(Some(1.0)).contains("B-Z9"));
        assert!(!drawn(None).contains("B-Z9"));
    }
}
