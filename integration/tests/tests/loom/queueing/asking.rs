//! Several CPUs, of which one at least asks something behind the unit which never answers.

use hv_iommu::queue::QueuePort;

use super::{SILENT, standing};
use crate::explore::{models, saw};

/// One CPU waits for what does not answer, another asks that too: before it is mended, which spares the unit that, or
/// behind it, or it is just at it when the queue is held.
fn another_asks_what_does_not_answer() {
    let (unit, ticket) = standing(false);
    let other = {
        let unit = unit.clone();
        loom::thread::spawn(move || unit.submit(SILENT + 1).unwrap())
    };
    unit.wait_silent(ticket);
    // Two who poll at once are in another model.
    unit.wait_silent(other.join().unwrap());
    let done = unit.done.lock().unwrap();
    assert_eq!((done.stood, done.mended), (1, 1), "asked one by one");
    match done.begun.contains(&(SILENT + 1)) || done.done.contains(&(SILENT + 1)) {
        true => saw("it is asked behind the mending"),
        false => saw("it is spared"),
    }
}

/// One CPU waits for what does not answer, another has to do with the unit alone.
fn another_goes_on_beside_no_answer() {
    let (unit, ticket) = standing(false);
    let other = {
        let unit = unit.clone();
        loom::thread::spawn(move || unit.submit(1).unwrap())
    };
    unit.wait_silent(ticket);
    // Who polls beside a mending is in other models; here that would only multiply what is shown.
    let theirs = other.join().unwrap();
    assert_eq!(unit.queue.poll(&*unit, theirs), Ok(true));
    assert!(unit.has_done(1));
    assert_eq!(unit.queue.check_alive(unit.unit()), Ok(()));
    assert_eq!(unit.done.lock().unwrap().mended, 1);
}

models! {
    /// Who does not answer is asked once, however many have it asked.
    /// Shows: bc01.
    bc01_what_stands_in_the_ring_is_asked_by_who_mends: Two(1),
        sees ["it is spared", "it is asked behind the mending"], another_asks_what_does_not_answer;

    /// What does not answer harms nobody who does not wait for it.
    /// Shows: bc01.
    bc01_others_go_on_beside_what_does_not_answer: Two(1), sees [], another_goes_on_beside_no_answer;
}
