//! A CPU that stands still in the middle of a submission, and what others make of it.

use std::sync::mpsc;

use super::*;

/// Another CPU, with a port of its own, that stands still while it fills what it has reserved.
struct Stalled {
    go: mpsc::Sender<()>,
    done: mpsc::Receiver<()>,
}

impl Stalled {
    fn new(queue: &'static CommandQueue, log2: u8, batch: &'static [Entry]) -> Self {
        let (go, gone) = mpsc::channel();
        let (say, done) = mpsc::channel();
        let ready = say.clone();
        std::thread::spawn(move || {
            let (_, fake) = Fake::new(log2, Ends::WrapBit);
            fake.eager.set(false);
            fake.plan(Point::Put, move |_| {
                ready.send(()).unwrap();
                // Never told to: it stands still for good.
                let _ = gone.recv();
            });
            let _ = queue.submit(&fake, batch);
            let _ = say.send(());
        });
        done.recv().unwrap();
        Self { go, done }
    }

    /// Lets it go on, to the end.
    fn finish(&self) {
        self.go.send(()).unwrap();
        self.done.recv().unwrap();
    }
}

/// Hardware was given what keeps the ring full a moment ago only.
#[test]
fn bc14_a_unit_is_not_blamed_for_the_time_that_a_cpu_stood_still() {
    let (queue, fake) = shared(2, Ends::WrapBit);
    let other = Stalled::new(queue, 2, &[Entry::Command(1); 3]);
    let end = fake.shape.place(4);
    // The ring is seen full; most of the deadline goes by; the other goes on; then hardware reads.
    fake.plan(Point::Check, move |fake| {
        fake.plan(Point::Check, move |fake| {
            *fake.clock.0.lock().unwrap() += 2 * DEADLINE.as_millis() as u64;
            other.finish();
            fake.plan(Point::Check, move |fake| fake.head.set(end));
        });
    });
    queue.submit(&fake, &[Entry::Command(2)]).unwrap();
    assert_eq!(queue.check_alive(UNIT), Ok(()));
    assert_eq!(fake.commands(), [2]);
}

#[test]
fn bc14_who_takes_an_entry_down_waits_longer_for_a_cpu_that_stands_still() {
    let (queue, fake) = shared(4, Ends::WrapBit);
    let other = Stalled::new(queue, 4, &[Entry::Command(1)]);
    // What is read here is the other port's too.
    fake.eager.set(false);
    // It goes on in the third attempt.
    fake.plan(Point::Put, move |fake| {
        fake.plan(Point::Put, move |fake| {
            fake.plan(Point::Put, move |_| other.finish());
        });
    });
    queue.submit_patiently(&fake, &[Entry::Command(2)]).unwrap();
    // Each attempt asks for the whole.
    let asked = fake
        .ring
        .iter()
        .filter(|place| place.get() == Some(Entry::Command(2)));
    assert_eq!(asked.count(), 3);

    let (queue, fake) = shared(4, Ends::WrapBit);
    let _other = Stalled::new(queue, 4, &[Entry::Command(1)]);
    match queue.submit_patiently(&fake, &[Entry::Command(2)]) {
        Err(UnitError::Busy { waited, .. }) => assert!(waited >= 8 * DEADLINE, "{waited:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(queue.check_alive(UNIT), Ok(()));
}

/// It has reserved behind a CPU that had the bell, and that has rung and gone since.
#[test]
fn bc14_a_reset_waits_for_a_cpu_that_stands_still_without_the_bell() {
    let (queue, fake) = shared(4, Ends::WrapBit);
    let (say, other) = mpsc::channel();
    fake.plan(Point::Ring, move |_| {
        let stalled = Stalled::new(queue, 4, &[Entry::Command(1)]);
        say.send(stalled).unwrap();
    });
    queue.submit(&fake, &[Entry::Command(2)]).unwrap();
    let other = other.recv().unwrap();
    queue.wedge();
    let refused = queue.restart(&fake).err();
    assert!(
        matches!(refused, Some(UnitError::Busy { .. })),
        "{refused:?}"
    );
    other.finish();
    assert!(queue.restart(&fake).is_ok());
}
