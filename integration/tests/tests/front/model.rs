//! What a front has to answer, by a model of its own: spaces as maps from page to page.

use std::collections::BTreeMap;

use super::stand::MEMORY;

const PAGE: u64 = 4096;
/// The last page of a space of 39 bits, and of the 64-bit space.
const PAGES: u64 = 1 << 27;
const HARDWARE: (u64, u64) = (0xfee00, 0xfef00);

/// A mapping: pages, page of the guest, flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) pages: u64,
    pub(crate) gpa: u64,
    pub(crate) flags: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Space {
    pub(crate) areas: BTreeMap<u64, Area>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    space: u32,
    first: u64,
    end: u64,
    allowed: bool,
}

/// All objects by number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) spaces: BTreeMap<u32, Space>,
    windows: BTreeMap<u32, Window>,
}

/// Fields of a request, as a guest's programmer would read them.
struct Fields<'r>(&'r [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> u64 {
        u64::from(u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap()))
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
    }
    fn id(&self, at: usize) -> u32 {
        self.u32(at) as u32
    }
}

/// Pages from `at` on; `None` where that is no range.
fn pages(at: u64, bytes: u64) -> Option<(u64, u64)> {
    let whole = at.is_multiple_of(PAGE) && bytes.is_multiple_of(PAGE) && bytes != 0;
    let fits = at.checked_add(bytes - u64::from(bytes != 0)).is_some();
    (whole && fits).then_some((at / PAGE, at / PAGE + bytes / PAGE))
}

impl Model {
    /// Whether this request has to be done, and what it gives first. `None` has to be refused. A request that makes an
    /// object gets the number that the front gave.
    pub(crate) fn answer(&mut self, request: &[u8], given: u64) -> Option<u64> {
        if request.len() < 8 || request[..2] != [1, 0] {
            return None;
        }
        let command = u16::from_le_bytes([request[2], request[3]]);
        let length = Fields(request).u32(4) as usize;
        if length > 256 || length > request.len() {
            return None;
        }
        let layouts = [16, 16, 40, 32, 16, 24, 48, 32, 32, 16, 24, 40, 16];
        let layout = *layouts.get(usize::from(command).checked_sub(1)?)?;
        if length < layout || request[layout..length].iter().any(|byte| *byte != 0) {
            return None;
        }
        let fields = Fields(request);
        let id = fields.id(8);
        let flags = fields.u32(12);
        let reserved = !matches!(command, 3 | 7 | 12);
        if reserved && flags != 0 {
            return None;
        }
        match command {
            1 => {
                let room = self.spaces.len() + self.windows.len() < 64;
                (fields.u32(8) <= 48 && room).then(|| {
                    self.spaces.insert(given as u32, Space::default());
                    given
                })
            }
            2 => {
                self.spaces.remove(&id)?;
                self.windows.retain(|_, window| window.space != id);
                Some(1)
            }
            3 => {
                let range = pages(fields.u64(16), fields.u64(32))?;
                let gpa = pages(fields.u64(24), fields.u64(32))?;
                (flags != 0 && flags & !3 == 0).then_some(())?;
                self.map(id, range, gpa, flags)
            }
            4 => {
                let (first, end) = pages(fields.u64(16), fields.u64(24))?;
                let space = self.spaces.get_mut(&id)?;
                let met = |at: &u64, area: &Area| *at < end && at + area.pages > first;
                let cut = |at: &u64, area: &Area| *at < first || at + area.pages > end;
                if space
                    .areas
                    .iter()
                    .any(|(at, area)| met(at, area) && cut(at, area))
                {
                    return None;
                }
                let before = space.pages();
                space.areas.retain(|at, area| !met(at, area));
                let bytes = (before - space.pages()) * PAGE;
                (bytes != 0).then_some(bytes)
            }
            5 => {
                let space = self.spaces.get_mut(&id)?;
                let bytes = space.pages() * PAGE;
                space.areas.clear();
                Some(bytes)
            }
            6 => {
                let at = fields.u64(16);
                at.is_multiple_of(PAGE).then_some(())?;
                let at = at / PAGE;
                let space = self.spaces.get_mut(&id)?;
                let (start, area) = space.area_with(at)?;
                (start != at).then_some(())?;
                let low = at - start;
                let parts = [
                    (start, Area { pages: low, ..area }),
                    (
                        at,
                        Area {
                            pages: area.pages - low,
                            gpa: area.gpa + low,
                            ..area
                        },
                    ),
                ];
                space.areas.extend(parts);
                Some(0)
            }
            7 => {
                (fields.u32(20) == 0 && flags != 0 && flags & !3 == 0).then_some(())?;
                let (first, end) = pages(fields.u64(24), fields.u64(40))?;
                let range = pages(fields.u64(32), fields.u64(40))?;
                let source = self.spaces.get(&fields.id(16))?;
                let (start, area) = source.area_with(first)?;
                (start + area.pages >= end && flags & !area.flags == 0).then_some(())?;
                let gpa = area.gpa + first - start;
                self.map(id, range, (gpa, gpa + end - first), flags)
            }
            8 | 9 => {
                let (first, end) = pages(fields.u64(16), fields.u64(24))?;
                let space = self.spaces.get(&id)?;
                let room = self.spaces.len() + self.windows.len() < 64;
                let allowed = command == 8;
                let blocked = match allowed {
                    true => self.reserved(id, (first, end)),
                    false => {
                        self.reserved(id, (first, end))
                            || space.meets((first, end))
                            || self.windows_of(id).any(|window| {
                                window.allowed && window.first < end && window.end > first
                            })
                    }
                };
                (room && end <= PAGES && !blocked).then(|| {
                    let window = Window {
                        space: id,
                        first,
                        end,
                        allowed,
                    };
                    self.windows.insert(given as u32, window);
                    given
                })
            }
            10 => self.windows.remove(&id).map(|_| 0),
            11 => {
                let (start, _) = self.spaces.get(&id)?.area_with(fields.u64(16) / PAGE)?;
                Some(start * PAGE)
            }
            // No space tracks what devices write.
            12 => None,
            _ => self.spaces.get(&id).map(|_| 0),
        }
    }

    /// How many objects there are.
    pub(crate) fn objects(&self) -> usize {
        self.spaces.len() + self.windows.len()
    }

    fn windows_of(&self, id: u32) -> impl Iterator<Item = &Window> {
        self.windows
            .values()
            .filter(move |window| window.space == id)
    }

    fn reserved(&self, id: u32, (first, end): (u64, u64)) -> bool {
        let meets = |low: u64, high: u64| low < end && high > first;
        meets(HARDWARE.0, HARDWARE.1)
            || self
                .windows_of(id)
                .any(|window| !window.allowed && meets(window.first, window.end))
    }

    fn map(
        &mut self,
        id: u32,
        (first, end): (u64, u64),
        (gpa, gpa_end): (u64, u64),
        flags: u64,
    ) -> Option<u64> {
        let space = self.spaces.get(&id)?;
        let allowed = |window: &&Window| window.allowed;
        let holds = |window: &Window| window.first <= first && window.end >= end;
        let inside = self.windows_of(id).filter(allowed).count() == 0
            || self.windows_of(id).filter(allowed).any(holds);
        let memory = gpa >= MEMORY / PAGE && gpa_end <= MEMORY / PAGE + 64;
        let free = !space.meets((first, end)) && !self.reserved(id, (first, end));
        (inside && memory && free && end <= PAGES).then_some(())?;
        let area = Area {
            pages: end - first,
            gpa,
            flags,
        };
        self.spaces.get_mut(&id)?.areas.insert(first, area);
        Some(flags)
    }
}

impl Space {
    pub(crate) fn pages(&self) -> u64 {
        self.areas.values().map(|area| area.pages).sum()
    }

    fn meets(&self, (first, end): (u64, u64)) -> bool {
        self.areas
            .iter()
            .any(|(at, area)| *at < end && at + area.pages > first)
    }

    fn area_with(&self, page: u64) -> Option<(u64, Area)> {
        let (start, area) = self.areas.range(..=page).next_back()?;
        (start + area.pages > page).then_some((*start, *area))
    }
}
