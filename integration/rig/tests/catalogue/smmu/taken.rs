//! A page that leaves a guest's memory while a device of the guest is put on the guest's first stage. The flush of the page was
//! decided on before, so it names the page and nothing that both stages give together (IHI 0070, 4.4.3.1).

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use hv_core::{Access, Iova, PciAddress};
use hv_rig::nest::{Back, Nest, Taken};
use hv_rig::{Outcome, Rig};

use super::stand::{Stand, fault_of_the_environment, pci, two_units};

/// A device of the guest behind the first unit, which is asked first.
const PLAIN: PciAddress = pci(0, 1, 0);
/// The one that is put on the first stage, behind the second unit.
const DEVICE: PciAddress = pci(0, 2, 0);
/// Another one behind the second unit, which goes by the parent alone.
const BESIDE: PciAddress = pci(1, 0, 0);

/// Two units with both stages; devices send only when they are told to.
fn stand(seed: u64) -> Stand {
    fault_of_the_environment();
    let mut machine = two_units(seed);
    machine.set_nesting();
    machine.temper.background = false;
    Stand::new(machine)
}

fn reaches(rig: &Rig, device: PciAddress, at: u64) -> bool {
    let sent = rig.access(device, Iova::new(at << 12), Access::Read);
    matches!(sent, Outcome::Reached { .. })
}

/// A flush in the hands of another CPU.
struct Held {
    go_on: Sender<()>,
    flushed: JoinHandle<Result<Back, (Taken, String)>>,
}

impl Held {
    /// The CPU stands still after so many steps: it has decided what the flush is of, and asks the first unit.
    fn after(rig: &Rig, steps: u64, taken: Taken) -> Self {
        let (stands, is_standing) = channel();
        let (go_on, may_go_on) = channel::<()>();
        let rig = rig.clone();
        let flushed = std::thread::spawn(move || {
            let mut flushed = None;
            let stand_still = move || {
                stands.send(()).unwrap();
                may_go_on.recv().unwrap();
            };
            rig.between(steps, stand_still, || flushed = Some(taken.flush()));
            flushed.unwrap()
        });
        is_standing.recv().unwrap();
        Self { go_on, flushed }
    }

    /// It goes on to the end. Where others hold it up there, it flushes once more later.
    fn ends(self) -> Result<Back, Taken> {
        self.go_on.send(()).unwrap();
        let flushed = self.flushed.join().unwrap();
        flushed.map_err(|(taken, why)| {
            assert!(why.contains("took no request"), "{why}");
            taken
        })
    }
}

/// The guest has the page, and nobody but the platform in the end.
fn is_gone(stand: &Stand, nest: &mut Nest, ended: Result<Back, Taken>) {
    let back = ended.or_else(|taken| taken.flush().map_err(|(_, why)| why));
    nest.end_taking(back.unwrap()).unwrap();
    let apart = nest.apart();
    for device in [PLAIN, DEVICE, BESIDE] {
        assert!(!reaches(&stand.rig, device, apart), "{device}");
    }
}

/// The unit has the page from another device of the guest; this one is attached.
#[test]
fn bc03_a_page_that_goes_while_a_device_comes_to_a_first_stage_is_forgotten() {
    for seed in 0..12 {
        for steps in 0..6 {
            let mut stand = stand(seed);
            let group = stand.take(DEVICE);
            let mut nest = Nest::new(&stand.rig, group, 0).unwrap();
            let apart = nest.apart();
            nest.map(None, 0, apart, apart);
            nest.step_out().unwrap();
            let others = [PLAIN, BESIDE].map(|device| {
                let group = stand.take(device);
                nest.beside(group).unwrap()
            });
            assert!(reaches(&stand.rig, BESIDE, apart));
            let taken = nest.begin_taking(&[apart]).unwrap();
            let held = Held::after(&stand.rig, steps, taken);
            nest.step_in().unwrap();
            reaches(&stand.rig, DEVICE, apart);
            let ended = held.ends();
            is_gone(&stand, &mut nest, ended);
            for group in others {
                drop(nest.no_more_beside(group).unwrap());
            }
            drop(nest.end().unwrap());
            stand.check();
        }
    }
}

/// The unit has the page from this very device, which goes from the parent alone to the first stage. At any step of that it
/// sends, and the flush comes to its end.
#[test]
fn bc03_a_page_that_goes_while_a_live_device_is_switched_to_a_first_stage_is_forgotten() {
    for seed in 0..3 {
        for step in 0.. {
            let mut stand = stand(seed);
            let group = stand.take(DEVICE);
            let mut nest = Nest::new(&stand.rig, group, 0).unwrap();
            let apart = nest.apart();
            nest.map(None, 0, apart, apart);
            nest.to_parent().unwrap();
            let group = stand.take(PLAIN);
            let plain = nest.beside(group).unwrap();
            assert!(reaches(&stand.rig, DEVICE, apart));
            let taken = nest.begin_taking(&[apart]).unwrap();
            let held = Held::after(&stand.rig, 2, taken);
            let (held, ended) = (Arc::new(Mutex::new(Some(held))), Arc::new(Mutex::new(None)));
            let (rig, here, there) = (stand.rig.clone(), held.clone(), ended.clone());
            let in_between = move || {
                for _ in 0..3 {
                    reaches(&rig, DEVICE, apart);
                }
                let held = here.lock().unwrap().take().unwrap();
                *there.lock().unwrap() = Some(held.ends());
            };
            let came = stand
                .rig
                .between(step, in_between, || nest.to_nested().unwrap());
            let left = held.lock().unwrap().take();
            let ended = ended.lock().unwrap().take();
            let ended = ended.or_else(|| left.map(Held::ends));
            is_gone(&stand, &mut nest, ended.unwrap());
            drop(nest.no_more_beside(plain).unwrap());
            drop(nest.end().unwrap());
            stand.check();
            if !came {
                assert!(step > 20, "{step} steps");
                break;
            }
        }
    }
}
