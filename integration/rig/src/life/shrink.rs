//! Makes a failing life short: fewer operations and friendlier hardware that still break the same rule.

use std::time::{Duration, Instant};

use super::run::{Life, Lived};
use crate::machine::Temper;

/// How long shrinking may take.
pub const LIMIT: Duration = Duration::from_secs(45);

/// How often a shorter life is tried, each time with other luck.
const LUCKS: u64 = 6;

/// The shortest life found that breaks the same rule as `life` did, and what it came to.
pub fn shrink(life: &Life, lived: Lived, limit: Duration) -> (Life, Lived) {
    let deadline = Instant::now() + limit;
    let Some(rule) = lived.failure.as_ref().map(|failure| failure.violation.rule) else {
        return (life.clone(), lived);
    };
    let mut best = (life.clone(), lived);
    let try_it = |candidate: &Life, best: &mut (Life, Lived)| {
        (0..LUCKS).any(|luck| {
            let candidate = Life {
                luck: candidate.luck + luck,
                ..candidate.clone()
            };
            let lived = candidate.live();
            let same = lived
                .failure
                .as_ref()
                .is_some_and(|failure| failure.violation.rule == rule);
            if same {
                *best = (candidate, lived);
            }
            same
        })
    };
    // What came after the failure was never done.
    let done = best.1.operations as usize;
    let mut keep: Vec<usize> = life.ops().iter().map(|(index, _)| *index).collect();
    keep.truncate(done);
    let mut chunk = keep.len().div_ceil(2);
    while chunk > 0 && Instant::now() < deadline {
        let mut start = 0;
        let mut removed = false;
        while start < keep.len() && Instant::now() < deadline {
            let end = (start + chunk).min(keep.len());
            let mut fewer = keep.clone();
            fewer.drain(start..end);
            let candidate = Life {
                keep: Some(fewer.clone()),
                ..best.0.clone()
            };
            if try_it(&candidate, &mut best) {
                keep = fewer;
                removed = true;
            } else {
                start = end;
            }
        }
        // Once nothing of one operation goes any more, it is as short as it gets.
        if chunk == 1 && !removed {
            break;
        }
        chunk = if removed { chunk } else { chunk / 2 };
    }
    let calmer: [fn(&mut Temper); 8] = [
        |temper| temper.rogues = false,
        |temper| temper.widening = false,
        |temper| temper.evictions = false,
        |temper| temper.early = false,
        |temper| temper.neighbours = false,
        |temper| temper.weak_stores = false,
        |temper| temper.leftovers = false,
        |temper| temper.slow = false,
    ];
    for calm in calmer {
        if Instant::now() >= deadline {
            break;
        }
        let mut temper = best.0.machine().temper;
        calm(&mut temper);
        let candidate = Life {
            temper: Some(temper),
            ..best.0.clone()
        };
        try_it(&candidate, &mut best);
    }
    best
}
