//! The last things that happened, for the reader of a failure.

use std::collections::VecDeque;
use std::fmt;

/// How many events are kept.
const KEPT: usize = 4096;

/// Something that happened.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// What the test did; everything up to the next one is due to it.
    Step(String),
    /// A store of the driver to a word that walkers may read.
    Store { at: u64, old: u64, new: u64 },
    /// A write-back of lines.
    WriteBack { from: u64, bytes: u64 },
    /// A fence for walkers.
    Fence,
    /// A register write.
    Register {
        unit: usize,
        offset: u32,
        value: u64,
    },
    /// A unit did something.
    Unit { unit: usize, what: String },
    /// A device's request: what became of it.
    Request { number: u64, what: String },
    /// Frames were given out or came back.
    Frames { first: u64, pages: u64, out: bool },
    /// A write to a command register of PCI.
    Config { function: String, value: u32 },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(what) => write!(f, "-- {what}"),
            Self::Store { at, old, new } => write!(f, "cpu    store {at:#x}: {old:#x} -> {new:#x}"),
            Self::WriteBack { from, bytes } => {
                write!(f, "cpu    write back {bytes} bytes at {from:#x}")
            }
            Self::Fence => f.write_str("cpu    walker fence"),
            Self::Register {
                unit,
                offset,
                value,
            } => {
                write!(f, "cpu    unit {unit} register {offset:#x} <- {value:#x}")
            }
            Self::Unit { unit, what } => write!(f, "unit {unit} {what}"),
            Self::Request { number, what } => write!(f, "dma #{number} {what}"),
            Self::Frames { first, pages, out } => {
                let what = if *out { "given out" } else { "given back" };
                write!(f, "cpu    {pages} frames at {first:#x} {what}")
            }
            Self::Config { function, value } => {
                write!(f, "cpu    {function} command register <- {value:#06x}")
            }
        }
    }
}

/// The last events, oldest first.
#[derive(Default)]
pub(crate) struct Trace {
    events: VecDeque<(u64, Event)>,
    stopped: bool,
}

impl Trace {
    /// Notes an event at this time, unless the trace was stopped.
    pub(crate) fn note(&mut self, nanos: u64, event: Event) {
        if self.stopped {
            return;
        }
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        // Runs of stores that write the same over the same, such as zeros over zeros, say nothing.
        if let Event::Store { old, new, .. } = event
            && old == new
        {
            return;
        }
        self.events.push_back((nanos, event));
    }

    /// Keeps what is there: the failure is the last event.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
    }

    /// The last `lines` lines, and of what was before them the steps of the test and what units did about it.
    /// A run of stores to words in a row takes one line.
    pub(crate) fn tail(&self, lines: usize) -> Vec<String> {
        let mut all: Vec<(bool, String)> = Vec::new();
        let mut events = self.events.iter().peekable();
        while let Some((nanos, event)) = events.next() {
            let mut text = event.to_string();
            if let Event::Store { at, .. } = event {
                let (first, mut last) = (*at, *at);
                while let Some((_, Event::Store { at, new, .. })) = events.peek()
                    && *at == last + 8
                {
                    last = *at;
                    let words = (last - first) / 8 + 1;
                    text = format!("{event} and so on: {words} words, the last -> {new:#x}");
                    events.next();
                }
            }
            let tells = match event {
                Event::Step(_) => true,
                Event::Unit { what, .. } => !what.starts_with("faults"),
                _ => false,
            };
            all.push((tells, format!("{nanos:>12} ns  {text}")));
        }
        let near = all.len().saturating_sub(lines);
        let far = all.iter().take(near).filter(|(tells, _)| *tells);
        let skip = far.clone().count().saturating_sub(lines);
        let far = far.skip(skip);
        far.chain(all.iter().skip(near))
            .map(|(_, line)| line.clone())
            .collect()
    }
}
