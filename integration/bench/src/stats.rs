//! What many rounds of one measurement say: the quiet median, the median, and a histogram of single times.

/// The share of rounds that count as quiet: on a shared machine the disturbed rounds are the slow ones.
const QUIET: usize = 4;

/// The median of `sorted`, or 0 of nothing.
fn median(sorted: &[f64]) -> f64 {
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}

/// The summary of many rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The median of the quietest quarter of the rounds.
    pub quiet: f64,
    /// The median of all rounds.
    pub median: f64,
    /// How many rounds there were.
    pub count: usize,
}

impl Summary {
    /// Sums `times` up.
    pub fn of(times: &[f64]) -> Self {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        let quiet = sorted.len().div_ceil(QUIET);
        Self {
            quiet: median(&sorted[..quiet]),
            median: median(&sorted),
            count: sorted.len(),
        }
    }
}

/// The median over the rounds of one lane's time divided by another's in the same round.
pub fn paired_ratio(times: &[f64], floor: &[f64]) -> f64 {
    let mut ratios: Vec<f64> = times
        .iter()
        .zip(floor)
        .filter(|(_, floor)| **floor > 0.0)
        .map(|(time, floor)| time / floor)
        .collect();
    ratios.sort_by(f64::total_cmp);
    median(&ratios)
}

/// Steps per doubling in a [`Histogram`].
const STEPS: u32 = 8;
/// Doublings that a histogram holds.
const DOUBLINGS: u32 = 40;

/// Counts of times in buckets whose width is an eighth of their value.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: Vec<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: vec![0; (STEPS * DOUBLINGS) as usize],
        }
    }
}

impl Histogram {
    /// Counts one time.
    #[inline]
    pub fn add(&mut self, time: u64) {
        let bucket = Self::bucket(time).min(self.buckets.len() - 1);
        self.buckets[bucket] += 1;
    }

    /// Adds the counts of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (mine, others) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += others;
        }
    }

    /// How many times were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The lower end of the bucket in which the share `of` of all times is reached, 0.5 for the median.
    pub fn percentile(&self, of: f64) -> u64 {
        let wanted = (self.count() as f64 * of).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Self::low(bucket);
            }
        }
        0
    }

    /// The buckets with counts: lower end and count.
    pub fn filled(&self) -> impl Iterator<Item = (u64, u64)> {
        self.buckets
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .map(|(bucket, count)| (Self::low(bucket), *count))
    }

    fn bucket(time: u64) -> usize {
        if time < u64::from(STEPS) {
            return time as usize;
        }
        let doubling = time.ilog2();
        let within = (time >> (doubling - STEPS.ilog2())) as u32 - STEPS;
        ((doubling - STEPS.ilog2() + 1) * STEPS + within) as usize
    }

    fn low(bucket: usize) -> u64 {
        let (doubling, within) = (bucket as u32 / STEPS, bucket as u64 % u64::from(STEPS));
        if doubling == 0 {
            return within;
        }
        (u64::from(STEPS) + within) << (doubling - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quiet_median_is_that_of_the_fastest_quarter() {
        let times: Vec<f64> = (1..=12).rev().map(f64::from).collect();
        let summary = Summary::of(&times);
        assert_eq!(summary.quiet, 2.0, "the median of 1, 2, 3");
        assert_eq!(summary.median, 6.5);
        assert_eq!(summary.count, 12);
    }

    #[test]
    fn slow_rounds_do_not_move_the_quiet_median() {
        let mut times = vec![10.0; 20];
        let calm = Summary::of(&times).quiet;
        times[3] = 1000.0;
        times[9] = 5000.0;
        assert_eq!(Summary::of(&times).quiet, calm);
    }

    #[test]
    fn one_round_and_none_are_summed_up() {
        assert_eq!(Summary::of(&[7.0]).quiet, 7.0);
        assert_eq!(Summary::of(&[]).count, 0);
        assert_eq!(Summary::of(&[]).quiet, 0.0);
    }

    #[test]
    fn a_paired_ratio_compares_within_a_round() {
        // The machine is twice as slow in the second round and three times in the third.
        let floor = [1.0, 2.0, 3.0];
        let times = [1.5, 3.0, 4.5];
        assert_eq!(paired_ratio(&times, &floor), 1.5);
        assert_eq!(paired_ratio(&[1.0], &[0.0]), 0.0);
    }

    #[test]
    fn buckets_hold_what_they_say() {
        for time in [0, 1, 7, 8, 9, 15, 16, 17, 100, 1000, 123_456_789] {
            let bucket = Histogram::bucket(time);
            assert!(Histogram::low(bucket) <= time, "{time}");
            assert!(Histogram::low(bucket + 1) > time, "{time}");
        }
    }

    #[test]
    fn percentiles_are_counted_from_below() {
        let mut histogram = Histogram::default();
        for _ in 0..99 {
            histogram.add(4);
        }
        histogram.add(1024);
        assert_eq!(histogram.percentile(0.5), 4);
        assert_eq!(histogram.percentile(0.99), 4);
        assert_eq!(histogram.percentile(0.999), 1024);
        let mut both = histogram.clone();
        both.merge(&histogram);
        assert_eq!(both.count(), 200);
        assert_eq!(both.filled().collect::<Vec<_>>(), [(4, 198), (1024, 2)]);
    }
}
