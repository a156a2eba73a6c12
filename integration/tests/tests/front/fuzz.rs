//! Seeded damage: random requests, and damaged ones, against the model. Whatever comes, the front does not panic, does
//! exactly what the model does, and a refusal changes nothing.
//!
//! A failure names its seed; `HV_FUZZ_SEED` runs that one alone.

use std::time::{Duration, Instant};

use super::model::Model;
use super::requests;
use super::stand::{MEMORY, Stand};

/// How long it goes on, and how many lives it lives at least.
const TIME: Duration = Duration::from_secs(4);
const LIVES: u64 = 40;
const CALLS: usize = 150;

/// xorshift64, and addresses where something is mapped.
struct Chance(u64, Vec<u64>);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        let index = self.below(of.len().max(1) as u64) as usize;
        of.get(index).copied()
    }

    /// A number that is often one of the objects'.
    fn id(&mut self, ids: &[u32]) -> u32 {
        match self.below(16) {
            0 => self.next() as u32,
            1 => self.one_of(ids).unwrap_or(1) ^ 1 << self.below(32),
            _ => self.one_of(ids).unwrap_or(1),
        }
    }

    /// An address that is often near others.
    fn address(&mut self) -> u64 {
        if self.below(3) != 0
            && let Some(near) = self.one_of(&self.1.clone())
        {
            let at = near.wrapping_add(self.below(4) * 0x1000);
            return at.wrapping_sub(u64::from(self.below(8) == 0) * 0x1000);
        }
        let base = match self.below(12) {
            0 => 0xfee0_0000 - 0x4000,
            1 => (1 << 39) - 0x4000,
            2 => u64::MAX - 0x7fff,
            3 => 0x3fff_c000,
            _ => 0x10_0000,
        };
        let at = base.wrapping_add(self.below(72) * 0x1000);
        at.wrapping_add(u64::from(self.below(20) == 0) * self.below(0x1000))
    }

    fn bytes(&mut self) -> u64 {
        match self.below(24) {
            0 => 0,
            1 => self.below(0x4000),
            2 => self.next(),
            3 => u64::MAX - 0xfff,
            _ => (1 + self.below(9)) * 0x1000,
        }
    }

    fn gpa(&mut self) -> u64 {
        match self.below(20) {
            0 => self.next(),
            1 => MEMORY + 62 * 0x1000,
            _ => MEMORY + self.below(60) * 0x1000,
        }
    }

    fn request(&mut self, ids: &[u32]) -> Vec<u8> {
        let (id, at, bytes) = (self.id(ids), self.address(), self.bytes());
        let flags = match self.below(16) {
            0 => self.below(8),
            _ => 1 + self.below(3),
        };
        match self.below(32) {
            0 | 1 => requests::create(30 + self.below(10)),
            2 => requests::destroy(id),
            3..=10 => requests::map(id, flags, at, self.gpa(), bytes),
            11..=14 => requests::unmap(id, at, bytes),
            15 => requests::unmap_all(id),
            16..=18 => requests::split(id, at),
            19..=22 => requests::copy(id, flags, self.id(ids), self.address(), at, bytes),
            23 => requests::allow(id, at, bytes.wrapping_mul(8)),
            24 | 25 => requests::reserve(id, at, bytes),
            26 | 27 => requests::drop_window(id),
            28 | 29 => requests::query(id, at),
            30 => requests::dirty(id, self.below(3), at, bytes, self.gpa()),
            _ => requests::retry(id),
        }
    }

    /// Damages some bytes, or the length, of a request.
    fn damage(&mut self, request: &mut Vec<u8>) {
        for _ in 0..1 + self.below(3) {
            let place = self.below(request.len().max(1) as u64) as usize;
            match self.below(6) {
                0 => request.truncate(place),
                1 => request.extend((0..self.below(40)).map(|_| 0)),
                2 => request.push(self.next() as u8),
                3 if request.len() >= 8 => *request = requests::with_length(request.clone()),
                _ => {
                    if let Some(byte) = request.get_mut(place) {
                        *byte ^= 1 << self.below(8);
                    }
                }
            }
        }
    }
}

/// What the model has, in the words of the stand.
fn assert_same(stand: &Stand, model: &Model, seed: u64, call: usize) {
    let mut pages = 0;
    for (id, expected) in &model.spaces {
        let space = stand.front.space(*id);
        let space = space.unwrap_or_else(|| panic!("seed {seed}, call {call}: {id:#x} is gone"));
        let found: Vec<_> = space
            .mappings()
            .map(|mapping| {
                let flags =
                    u64::from(mapping.perms.readable()) | u64::from(mapping.perms.writable()) << 1;
                let at = mapping.span.start().as_u64() / 4096;
                let gpa = mapping.gpa.start().as_u64() / 4096;
                (at, mapping.span.pages().get(), gpa, flags)
            })
            .collect();
        let areas = expected.areas.iter();
        let areas: Vec<_> = areas
            .map(|(at, area)| (*at, area.pages, area.gpa, area.flags))
            .collect();
        assert_eq!(found, areas, "seed {seed}, call {call}");
        // The table says the same: at each end of each mapping.
        for (at, count, gpa, _) in found {
            for page in [at, at + count - 1] {
                let leads = space.domain().translate(hv_core::Iova::new(page * 4096));
                let offset = page - at;
                let mut seen = [0; 8];
                let place = hv_core::Gpa::new((gpa + offset) * 4096);
                let host = stand.machine.fake.host();
                stand.memory.read(host, place, &mut seen).unwrap();
                let to = leads.unwrap().to;
                assert_eq!(host.device_read(to), u64::from_le_bytes(seen));
            }
        }
        pages += expected.pages();
    }
    let objects = stand.front.objects();
    assert_eq!(objects, model.objects(), "seed {seed}, call {call}");
    assert_eq!(
        stand.memory.pinned_pages(),
        pages,
        "seed {seed}, call {call}"
    );
}

/// Gives how many calls were done, and how many refused.
fn live(seed: u64) -> (u64, u64) {
    let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, Vec::new());
    let mut stand = Stand::new(10_000);
    // A mark in each page, so that a mapping to another page is seen.
    for page in 0..64_u64 {
        let gpa = hv_core::Gpa::new(MEMORY + page * 4096);
        let mark = (seed << 8 | page).to_le_bytes();
        stand
            .memory
            .write(stand.machine.fake.host(), gpa, &mark)
            .unwrap();
    }
    let mut model = Model::default();
    let mut ids: Vec<u32> = Vec::new();
    let (mut done, mut refused) = (0, 0);
    for call in 0..CALLS {
        let areas = model.spaces.values().flat_map(|space| space.areas.keys());
        chance.1 = areas.map(|page| page * 4096).collect();
        let mut request = chance.request(&ids);
        if chance.below(4) == 0 {
            chance.damage(&mut request);
        }
        let spaces: Vec<u32> = model.spaces.keys().copied().collect();
        let before = stand.state(&spaces);
        let reply = stand.call(&request);
        let expected = model.answer(&request, reply.values[0]);
        let found = reply.refused.is_none().then_some(reply.values[0]);
        // Domain ids are few; the model does not count them.
        let out_of_ids = reply.refused == Some(hv_iommu::front::Code::NoSuchSpace);
        if out_of_ids && expected.is_some() {
            model.spaces.remove(&0);
            continue;
        }
        assert_eq!(
            found, expected,
            "seed {seed}, call {call}: {:?} to {request:x?}",
            reply.refused
        );
        match found {
            Some(value) => {
                done += 1;
                if request
                    .get(2)
                    .is_some_and(|command| matches!(command, 1 | 8 | 9))
                {
                    ids.push(value as u32);
                }
            }
            None => {
                refused += 1;
                assert_eq!(stand.state(&spaces), before, "seed {seed}, call {call}");
            }
        }
        if ids.len() > 12 {
            ids.remove(0);
        }
        assert_same(&stand, &model, seed, call);
    }
    stand.end();
    (done, refused)
}

#[test]
fn whatever_a_guest_sends_the_front_does_what_the_model_does() {
    if let Some(seed) = std::env::var("HV_FUZZ_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
    {
        println!("seed {seed}: {:?}", live(seed));
        return;
    }
    let start = Instant::now();
    let (mut lives, mut done, mut refused) = (0, 0, 0);
    while lives < LIVES || (start.elapsed() < TIME && lives < 10_000) {
        let (more_done, more_refused) = live(lives);
        done += more_done;
        refused += more_refused;
        lives += 1;
    }
    println!(
        "seeds 0 to {}: {done} requests done, {refused} refused",
        lives - 1
    );
    assert!(
        done > 20 * lives && refused > 20 * lives,
        "{done} done, {refused} refused"
    );
}
