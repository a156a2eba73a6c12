//! The fault records of a VT-d unit: a ring that hardware fills and software empties.

use std::collections::VecDeque;

use super::spec::fault::RECORD_F;

/// The records.
pub(crate) struct FaultLog {
    records: Vec<(u64, u64)>,
    /// The record that is filled next.
    next: usize,
    /// What was recorded lately, as the records said it.
    recorded: VecDeque<(u64, u64)>,
}

/// How many former records are remembered, to compare with what the driver reports.
const REMEMBERED: usize = 1024;

impl FaultLog {
    /// This many empty records.
    pub(crate) fn new(count: usize) -> Self {
        Self {
            records: vec![(0, 0); count],
            next: 0,
            recorded: VecDeque::new(),
        }
    }

    /// Fills the next record; `false` if it is full, so that the fault is lost.
    pub(crate) fn record(&mut self, low: u64, high: u64) -> bool {
        let Some(record) = self.records.get_mut(self.next) else {
            return false;
        };
        if record.1 & RECORD_F != 0 {
            return false;
        }
        *record = (low, high | RECORD_F);
        if self.recorded.len() == REMEMBERED {
            self.recorded.pop_front();
        }
        self.recorded.push_back((low, high | RECORD_F));
        self.next = (self.next + 1) % self.records.len();
        true
    }

    /// Whether a record said this lately.
    pub(crate) fn recorded(&self, low: u64, high: u64) -> bool {
        self.recorded.contains(&(low, high))
    }

    /// One half of a record.
    pub(crate) fn half(&self, index: usize, upper: bool) -> u64 {
        let (low, high) = self.records.get(index).copied().unwrap_or((0, 0));
        if upper { high } else { low }
    }

    /// Empties a record. What it holds is garbage from then on.
    pub(crate) fn clear(&mut self, index: usize) {
        if let Some(record) = self.records.get_mut(index) {
            *record = (u64::MAX << 12, 0xffff);
        }
    }

    /// The oldest full record.
    pub(crate) fn first(&self) -> Option<usize> {
        let count = self.records.len();
        (0..count)
            .map(|step| (self.next + step) % count)
            .find(|index| {
                let record = self.records.get(*index);
                record.is_some_and(|(_, high)| high & RECORD_F != 0)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_fill_in_order_and_are_lost_when_full() {
        let mut log = FaultLog::new(2);
        assert!(log.record(1, 1) && log.record(2, 2) && !log.record(3, 3));
        assert_eq!(log.first(), Some(0));
        log.clear(0);
        assert_eq!(log.first(), Some(1));
        assert!(log.record(4, 4));
        assert_eq!((log.half(0, false), log.first()), (4, Some(1)));
    }
}
