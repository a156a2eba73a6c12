//! A guest's session with a front: a request for which there is no memory changes nothing, and the same request is
//! done when there is.

use hv_tests::failing::{Outcome, Source, each, text};
use hv_tests::host::Host;

use super::requests::{self, READ, WRITE};
use super::stand::{MEMORY, Stand};

/// A stand that is torn down and set up again between two runs.
struct Session(Option<Stand>);

impl Session {
    fn new() -> Self {
        let mut stand = Stand::new(100);
        stand.maker.dirty_tracking = true;
        Self(Some(stand))
    }
}

impl hv_tests::failing::Stand for Session {
    fn host(&self) -> &Host {
        self.0.as_ref().unwrap().machine.host()
    }

    fn take_down(&mut self) {
        self.0.take().unwrap().end();
        *self = Self::new();
    }
}

const REQUESTS: usize = 14;

/// The requests, with the spaces that are there. The first two make them.
fn session(ids: [u32; 2]) -> [Vec<u8>; REQUESTS] {
    let [one, two] = ids;
    let page = 0x1000;
    [
        requests::create(39),
        requests::create(39),
        requests::allow(one, 0, 0x100 * page),
        requests::allow(one, 1 << 30, 1 << 30),
        requests::reserve(two, 0x20 * page, page),
        requests::map(one, READ | WRITE, page, MEMORY, 8 * page),
        requests::map(one, READ, (1 << 30) + 0x20_0000, MEMORY, 16 * page),
        requests::split(one, 4 * page),
        requests::copy(two, READ, one, page, 0, 3 * page),
        requests::dirty(one, 0, page, 3 * page, MEMORY + 32 * page),
        requests::unmap(one, page, 3 * page),
        requests::unmap_all(two),
        requests::destroy(one),
        requests::destroy(two),
    ]
}

fn live(session: &mut Session) -> Outcome {
    let stand = session.0.as_mut().unwrap();
    let mut ids = [0; 2];
    let mut outcome = Ok(());
    for number in 0..REQUESTS {
        let (request, before) = {
            let _exempt = hv_tests::heap::exempt();
            let request = self::session(ids)[number].clone();
            (request, stand.state(&ids))
        };
        let mut reply = stand.call(&request);
        if let Some(code) = reply.refused {
            let _exempt = hv_tests::heap::exempt();
            assert_eq!(stand.state(&ids), before, "request {number}: {code:?}");
            outcome = Err(text((number, code)));
            // One allocation fails, not two.
            reply = stand.call(&request);
            assert_eq!(reply.refused, None, "request {number} again");
        }
        if let Some(id) = ids.get_mut(number) {
            *id = reply.values[0] as u32;
        }
    }
    outcome
}

#[test]
fn bc18_xsa_460_a_fronts_session_goes_on_whichever_allocation_fails() {
    for (source, at_least) in [(Source::Heap, 8), (Source::Frames, 6)] {
        let failed = each(source, Session::new, live);
        println!("front: {failed} allocations failed one by one, {source:?}");
        assert!(failed >= at_least, "{failed} only, {source:?}");
    }
}
