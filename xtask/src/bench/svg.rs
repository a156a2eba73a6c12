//! Drawings in SVG: a canvas of lines, boxes and words, and logarithmic axes.

use std::fmt::Write as _;

/// Width of a letter of the small font, on average and a bit more.
pub(crate) const LETTER: f64 = 6.4;
const INK: &str = "#24292f";
const PALE: &str = "#d0d7de";

/// A drawing under way.
pub(crate) struct Canvas {
    width: f64,
    height: f64,
    body: String,
}

/// Which end of a text stands at its place.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Anchor {
    /// The text begins there.
    Start,
    /// Its middle is there.
    Middle,
    /// It ends there.
    End,
}

impl Anchor {
    const fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Middle => "middle",
            Self::End => "end",
        }
    }
}

impl Canvas {
    /// An empty drawing.
    pub(crate) fn new(width: f64, height: f64) -> Self {
        Self {
            width,
            height,
            body: String::new(),
        }
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = self.body.write_fmt(element);
        self.body.push('\n');
    }

    /// A filled box.
    pub(crate) fn bar(&mut self, x: f64, y: f64, width: f64, height: f64, colour: &str) {
        self.add(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{colour}"/>"#
        ));
    }

    /// A line.
    pub(crate) fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
        self.add(format_args!(
            r#"<line x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}" stroke="{colour}" stroke-width="{width}"/>"#,
            from.0, from.1, to.0, to.1
        ));
    }

    /// A line of the grid behind everything.
    pub(crate) fn grid(&mut self, from: (f64, f64), to: (f64, f64)) {
        self.line(from, to, PALE, 1.0);
    }

    /// A line through many points.
    pub(crate) fn path(&mut self, points: &[(f64, f64)], colour: &str) {
        let points: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        self.add(format_args!(
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#,
            points.join(" ")
        ));
    }

    /// A circle with a pale inside.
    pub(crate) fn ring(&mut self, x: f64, y: f64, radius: f64, colour: &str) {
        self.add(format_args!(
            r##"<circle cx="{x:.1}" cy="{y:.1}" r="{radius}" fill="#ffffff" stroke="{colour}" stroke-width="1.5"/>"##
        ));
    }

    /// Words.
    pub(crate) fn text(&mut self, x: f64, y: f64, anchor: Anchor, words: &str) {
        self.add(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{}">{}</text>"#,
            anchor.word(),
            escaped(words)
        ));
    }

    /// A heading.
    pub(crate) fn heading(&mut self, x: f64, y: f64, words: &str) {
        self.add(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" font-size="15" font-weight="bold">{}</text>"#,
            escaped(words)
        ));
    }

    /// The finished drawing.
    pub(crate) fn finish(self) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w:.0}\" height=\"{h:.0}\" viewBox=\"0 0 {w:.0} {h:.0}\" \
             font-family=\"DejaVu Sans, Verdana, sans-serif\" font-size=\"11\" fill=\"{INK}\">\n\
             <rect width=\"{w:.0}\" height=\"{h:.0}\" fill=\"#ffffff\"/>\n{}</svg>\n",
            self.body,
            w = self.width,
            h = self.height,
        )
    }
}

fn escaped(words: &str) -> String {
    words
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// A logarithmic axis from `low` to `high` over the places `from` to `to`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogAxis {
    /// The lowest value.
    pub(crate) low: f64,
    /// The highest.
    pub(crate) high: f64,
    /// Where the lowest is.
    pub(crate) from: f64,
    /// Where the highest is.
    pub(crate) to: f64,
}

impl LogAxis {
    /// Where `value` is; values outside stay at the ends.
    pub(crate) fn at(&self, value: f64) -> f64 {
        let value = value.clamp(self.low, self.high);
        let share = (value / self.low).ln() / (self.high / self.low).ln();
        self.from + share * (self.to - self.from)
    }

    /// Powers of ten on the axis.
    pub(crate) fn decades(&self) -> Vec<f64> {
        let all = self.ticks().into_iter();
        all.filter(|tick| (tick.log10() - tick.log10().round()).abs() < 1e-9)
            .collect()
    }

    /// Round values on the axis: 1, 2, 5 and so on.
    pub(crate) fn ticks(&self) -> Vec<f64> {
        let mut ticks = Vec::new();
        let mut decade = 10_f64.powf(self.low.log10().floor());
        while decade <= self.high {
            for step in [1.0, 2.0, 5.0] {
                let tick = decade * step;
                // A little room for sums of binary fractions.
                if tick >= self.low * 0.999 && tick <= self.high * 1.001 {
                    ticks.push(tick);
                }
            }
            decade *= 10.0;
        }
        ticks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_places_its_ends_and_doublings_evenly() {
        let axis = LogAxis {
            low: 0.5,
            high: 8.0,
            from: 100.0,
            to: 500.0,
        };
        assert_eq!(axis.at(0.5), 100.0);
        assert_eq!(axis.at(2.0), 300.0);
        assert_eq!(axis.at(100.0), 500.0);
        assert_eq!(axis.ticks(), [0.5, 1.0, 2.0, 5.0]);
        assert_eq!(axis.decades(), [1.0]);
    }

    #[test]
    fn words_are_escaped() {
        let mut canvas = Canvas::new(10.0, 10.0);
        canvas.text(1.0, 1.0, Anchor::Start, "a < b & c");
        assert!(canvas.finish().contains("a &lt; b &amp; c"));
    }
}
