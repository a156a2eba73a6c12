//! Windows of ids: how firmware says what becomes of which id, and what an id becomes of several of them.

/// Some ids, and what becomes of them.
///
/// # Invariants
/// Neither the last id nor what it becomes passes 2^32 - 1, for windows that [`IdWindow::fits`] accepts. Others match
/// nothing beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdWindow {
    first: u32,
    /// How many ids, less one; `None` for whatever comes in.
    more: Option<u32>,
    output: u32,
    /// The last id may be one too many.
    loose_end: bool,
}

impl IdWindow {
    /// Whatever comes in becomes `output`.
    pub const fn any(output: u32) -> Self {
        Self {
            first: 0,
            more: None,
            output,
            loose_end: false,
        }
    }

    /// `first` and the `more` ids behind it become `output` and what is behind it.
    pub const fn new(first: u32, more: u32, output: u32) -> Self {
        Self {
            first,
            more: Some(more),
            output,
            loose_end: false,
        }
    }

    /// The same, where some firmware stored one too many: the last id counts only if no other window has it.
    pub const fn with_loose_end(first: u32, more: u32, output: u32) -> Self {
        Self {
            first,
            more: Some(more),
            output,
            loose_end: more > 0,
        }
    }

    /// Whether ids and outputs are numbers of 32 bits.
    pub const fn fits(&self) -> bool {
        match self.more {
            Some(more) => {
                self.first.checked_add(more).is_some() && self.output.checked_add(more).is_some()
            }
            None => true,
        }
    }

    /// The first and the last id; `None` for whatever comes in.
    pub const fn input(&self) -> Option<(u32, u32)> {
        match self.more {
            Some(more) => Some((self.first, self.first.saturating_add(more))),
            None => None,
        }
    }

    /// The first and the last output.
    pub const fn output(&self) -> (u32, u32) {
        let more = match self.more {
            Some(more) => more,
            None => 0,
        };
        (self.output, self.output.saturating_add(more))
    }

    /// The first and the last output beside `others`: without the loose end where another of them starts there, as in
    /// [`resolve`].
    pub(crate) fn output_beside(&self, others: impl Iterator<Item = Self>) -> (u32, u32) {
        let (first, last) = self.output();
        let Some((_, end)) = self.input().filter(|_| self.loose_end) else {
            return (first, last);
        };
        let mut others = others.filter_map(|other| other.input());
        match others.any(|(start, _)| start == end) {
            true => (first, last.saturating_sub(1)),
            false => (first, last),
        }
    }

    /// The first and the last output of the ids from the first of these to the last, loose ends counted; `None` if the
    /// window has none of them.
    pub(crate) fn outputs_of(&self, (first, last): (u32, u32)) -> Option<(u32, u32)> {
        let Some((low, high)) = self.input() else {
            return Some(self.output());
        };
        let (first, last) = (first.max(low), last.min(high));
        let output = |id: u32| self.output.saturating_add(id - low);
        (first <= last).then(|| (output(first), output(last)))
    }

    fn take(&self, id: u32) -> Option<Taken> {
        let Some(more) = self.more else {
            return Some(Taken {
                output: self.output,
                at_start: false,
                at_loose_end: false,
            });
        };
        let place = id.checked_sub(self.first)?;
        if place > more {
            return None;
        }
        Some(Taken {
            output: self.output.checked_add(place)?,
            at_start: place == 0,
            at_loose_end: self.loose_end && place == more,
        })
    }

    /// An id that the two windows send to different places, if there is one. `same` says whether they lead to the same.
    pub(crate) fn conflict(&self, other: &Self, same: bool) -> Option<u32> {
        let ((first, last), (other_first, other_last)) = match (self.input(), other.input()) {
            (Some(one), Some(other)) => (one, other),
            (None, Some(one)) | (Some(one), None) => (one, one),
            (None, None) => ((0, 0), (0, 0)),
        };
        let (low, high) = (first.max(other_first), last.min(other_last));
        // Offsets differ at every shared id or at none, if both windows have them; so the ends of what is shared show
        // a conflict, but that one of them may be a loose end.
        [low, low.saturating_add(1), high]
            .into_iter()
            .filter(|id| (low..=high).contains(id))
            .find(|&id| {
                let routes = [(*self, same), (*other, true)];
                matches!(resolve(routes.into_iter(), id), Resolved::Several(..))
            })
    }
}

/// What a window makes of an id.
#[derive(Clone, Copy)]
struct Taken {
    output: u32,
    at_start: bool,
    at_loose_end: bool,
}

/// What becomes of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resolved<T> {
    /// No window has it.
    Nothing,
    /// It goes there, as that id.
    One(T, u32),
    /// Windows disagree.
    Several((T, u32), (T, u32)),
}

/// What becomes of `id`. The loose end of one window gives way to the start of another, and to nothing else.
pub(crate) fn resolve<T: Copy + PartialEq>(
    routes: impl Iterator<Item = (IdWindow, T)>,
    id: u32,
) -> Resolved<T> {
    let mut firm: Option<(T, u32, bool)> = None;
    let mut loose: Option<(T, u32)> = None;
    for (window, to) in routes {
        let Some(taken) = window.take(id) else {
            continue;
        };
        let found = (to, taken.output);
        if taken.at_loose_end {
            match loose {
                Some(other) if other != found => return Resolved::Several(other, found),
                _ => loose = Some(found),
            }
            continue;
        }
        match firm {
            Some((to, output, _)) if (to, output) != found => {
                return Resolved::Several((to, output), found);
            }
            // Of two that agree, one that starts there says that a loose end is one too many.
            Some((_, _, at_start)) => firm = Some((to, taken.output, at_start || taken.at_start)),
            None => firm = Some((to, taken.output, taken.at_start)),
        }
    }
    match (firm, loose) {
        (None, None) => Resolved::Nothing,
        (None, Some((to, output))) => Resolved::One(to, output),
        (Some((to, output, false)), Some(other)) if other != (to, output) => {
            Resolved::Several((to, output), other)
        }
        (Some((to, output, _)), _) => Resolved::One(to, output),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(windows: &[(IdWindow, char)], id: u32) -> Resolved<char> {
        resolve(windows.iter().copied(), id)
    }

    #[test]
    fn ids_keep_their_distance() {
        let windows = [(IdWindow::new(0x100, 0xff, 0x4000), 'a')];
        assert_eq!(at(&windows, 0xff), Resolved::Nothing);
        assert_eq!(at(&windows, 0x100), Resolved::One('a', 0x4000));
        assert_eq!(at(&windows, 0x1ff), Resolved::One('a', 0x40ff));
        assert_eq!(at(&windows, 0x200), Resolved::Nothing);
        let single = [(IdWindow::any(7), 'a')];
        assert_eq!(at(&single, u32::MAX), Resolved::One('a', 7));
    }

    #[test]
    fn one_id_too_many_gives_way_to_the_next_window() {
        // Firmware that stored how many: 0x100 belongs to the second window.
        let wrong = [
            (IdWindow::with_loose_end(0, 0x100, 0), 'a'),
            (IdWindow::with_loose_end(0x100, 0x100, 0x9000), 'b'),
        ];
        assert_eq!(at(&wrong, 0xff), Resolved::One('a', 0xff));
        assert_eq!(at(&wrong, 0x100), Resolved::One('b', 0x9000));
        // The last one of all is taken, as nobody else has it.
        assert_eq!(at(&wrong, 0x200), Resolved::One('b', 0x9100));
        assert_eq!(at(&wrong, 0x201), Resolved::Nothing);
        let backwards = [wrong[1], wrong[0]];
        assert_eq!(at(&backwards, 0x100), Resolved::One('b', 0x9000));
        assert_eq!(wrong[0].0.conflict(&wrong[1].0, false), None);
        assert_eq!(wrong[1].0.conflict(&wrong[0].0, false), None);
    }

    #[test]
    fn windows_that_overlap_more_than_by_one_disagree() {
        let (low, high) = (
            IdWindow::with_loose_end(0, 0x100, 0),
            IdWindow::with_loose_end(0x80, 0x100, 0x9000),
        );
        let windows = [(low, 'a'), (high, 'b')];
        assert_eq!(at(&windows, 0x7f), Resolved::One('a', 0x7f));
        assert!(matches!(at(&windows, 0x80), Resolved::Several(..)));
        // The end of one in the middle of another is no slip of one.
        assert!(matches!(at(&windows, 0x100), Resolved::Several(..)));
        assert_eq!(low.conflict(&high, false), Some(0x80));
        // Agreement is no conflict.
        let same = IdWindow::with_loose_end(0x80, 0x100, 0x80);
        assert_eq!(low.conflict(&same, true), None);
        assert_eq!(low.conflict(&same, false), Some(0x80));
        assert!(low.conflict(&IdWindow::any(5), true).is_some());
    }

    #[test]
    fn two_loose_ends_at_one_id_disagree() {
        let windows = [
            (IdWindow::with_loose_end(0, 0x100, 0), 'a'),
            (IdWindow::with_loose_end(0x80, 0x80, 0x9000), 'b'),
        ];
        assert!(matches!(at(&windows, 0x100), Resolved::Several(..)));
        // One id has no end that could be one too many.
        let one = IdWindow::with_loose_end(0x100, 0, 5);
        assert_eq!(at(&[(one, 'a')], 0x100), Resolved::One('a', 5));
    }

    #[test]
    fn outputs_end_where_another_window_starts() {
        let wrong = IdWindow::with_loose_end(0, 0x100, 0x1000);
        let next = IdWindow::with_loose_end(0x100, 0x100, 0x9000);
        let beside = |others: &[IdWindow]| wrong.output_beside(others.iter().copied());
        assert_eq!(beside(&[wrong, next]), (0x1000, 0x10ff));
        assert_eq!(beside(&[wrong]), (0x1000, 0x1100));
        assert_eq!(beside(&[wrong, IdWindow::any(5)]), (0x1000, 0x1100));
        let right = IdWindow::new(0, 0x100, 0x1000);
        assert_eq!(right.output_beside([next].into_iter()), (0x1000, 0x1100));
        let one = IdWindow::with_loose_end(0x100, 0, 5);
        assert_eq!(one.output_beside([next].into_iter()), (5, 5));
    }

    #[test]
    fn windows_at_the_end_of_the_ids_fit_or_do_not() {
        assert!(IdWindow::new(u32::MAX, 0, u32::MAX).fits());
        assert!(!IdWindow::new(u32::MAX, 1, 0).fits());
        assert!(!IdWindow::new(0, 1, u32::MAX).fits());
        let wide = [(IdWindow::new(0, u32::MAX, 1), 'a')];
        assert_eq!(at(&wide, u32::MAX), Resolved::Nothing);
    }
}
