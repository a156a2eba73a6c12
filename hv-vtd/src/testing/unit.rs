//! A remapping unit in memory: handshakes, queue and fault records, on time, late or never.

use std::sync::{Arc, Mutex};
use std::vec::Vec;

use super::{Event, Log, Memory};

/// How a unit behaves.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Behaviour {
    /// How many looks at the status register a command takes.
    pub(crate) command_delay: u32,
    /// The command bit that is never reported as done.
    pub(crate) stuck_command: u32,
    /// Waits complete only when `complete_held` is called.
    pub(crate) hold_waits: bool,
    /// The queue is not read at all.
    pub(crate) queue_stands: bool,
    /// Descriptors of this type are refused (FSTS.IQE).
    pub(crate) refuse_type: Option<u64>,
    /// Errors stay in FSTS when they are cleared.
    pub(crate) errors_stay: bool,
    /// The fault event stays masked.
    pub(crate) mask_stays: bool,
}

#[derive(Default)]
struct State {
    behaviour: Behaviour,
    gsts: u32,
    /// A command that is not done yet: its field, what the field becomes, looks until then.
    pending: Option<(u32, bool, u32)>,
    fsts: u32,
    fectl: u32,
    /// FEDATA, FEADDR, FEUADDR.
    message: [u32; 3],
    pmen: u32,
    rtaddr: u64,
    iqa: u64,
    iqh: u64,
    iqt: u64,
    records: Vec<[u64; 2]>,
    held: Vec<(u64, u32)>,
}

pub(crate) struct FakeUnit {
    index: usize,
    cap: u64,
    ecap: u64,
    memory: Arc<Memory>,
    log: Arc<Log>,
    state: Mutex<State>,
}

const ONE_SHOTS: u32 = 0x6900_0000;
const TE: u32 = 1 << 31;
const SRTP: u32 = 1 << 30;
const WBF: u32 = 1 << 27;
const QIE: u32 = 1 << 26;

impl FakeUnit {
    pub(crate) fn new(
        index: usize,
        cap: u64,
        ecap: u64,
        memory: Arc<Memory>,
        log: Arc<Log>,
    ) -> Self {
        let records = (cap >> 40 & 0xff) as usize + 1;
        let state = State {
            fectl: 1 << 31,
            records: std::vec![[0; 2]; records],
            ..State::default()
        };
        Self {
            index,
            cap,
            ecap,
            memory,
            log,
            state: Mutex::new(state),
        }
    }

    /// How the unit behaves from now on, also with a command that it has not done yet.
    pub(crate) fn behave(&self, behaviour: Behaviour) {
        let mut state = self.state.lock().unwrap();
        state.behaviour = behaviour;
        if let Some((command, _, looks)) = &mut state.pending
            && *command & behaviour.stuck_command == 0
        {
            *looks = behaviour.command_delay;
        }
    }

    pub(crate) fn translates(&self) -> bool {
        self.state.lock().unwrap().gsts & TE != 0
    }

    pub(crate) fn set_status(&self, gsts: u32) {
        self.state.lock().unwrap().gsts = gsts;
    }

    pub(crate) fn set_fault_status(&self, fsts: u32) {
        self.state.lock().unwrap().fsts = fsts;
    }

    pub(crate) fn fault_status(&self) -> u32 {
        self.state.lock().unwrap().fsts
    }

    pub(crate) fn set_protected_memory(&self, pmen: u32) {
        self.state.lock().unwrap().pmen = pmen;
    }

    pub(crate) fn protected_memory(&self) -> u32 {
        self.state.lock().unwrap().pmen
    }

    pub(crate) fn root(&self) -> u64 {
        self.state.lock().unwrap().rtaddr
    }

    pub(crate) fn fault_interrupt(&self) -> u32 {
        self.state.lock().unwrap().fectl
    }

    /// Moves the head to somewhere that is no place of the queue.
    pub(crate) fn set_head(&self, iqh: u64) {
        self.state.lock().unwrap().iqh = iqh;
    }

    /// Puts head and tail back to the first place.
    pub(crate) fn rewind(&self) {
        let mut state = self.state.lock().unwrap();
        (state.iqh, state.iqt) = (0, 0);
    }

    /// Completes the oldest wait that is held.
    pub(crate) fn complete_held(&self) {
        let (at, data) = self.state.lock().unwrap().held.remove(0);
        self.memory.hardware_write32(at, data);
    }

    /// The address and value of the newest wait that is held.
    pub(crate) fn last_held(&self) -> (u64, u32) {
        *self.state.lock().unwrap().held.last().unwrap()
    }

    /// Reads the queue up to the tail.
    pub(crate) fn run_queue(&self) {
        let mut state = self.state.lock().unwrap();
        while state.iqh != state.iqt {
            let at = (state.iqa & !0xfff) + state.iqh;
            let (low, high) = (self.memory.word(at), self.memory.word(at + 8));
            if state.behaviour.refuse_type == Some(low & 0xf) {
                state.fsts |= 1 << 4;
                return;
            }
            let unit = self.index;
            self.log.note(Event::Executed { unit, low, high });
            if low & 0xf == 5 {
                assert_eq!(low & 0x70, 0x60, "status write and fence, no interrupt");
                let data = (low >> 32) as u32;
                if state.behaviour.hold_waits {
                    state.held.push((high, data));
                } else {
                    self.memory.hardware_write32(high, data);
                }
            }
            state.iqh = (state.iqh + 16) % 4096;
        }
    }

    /// Records a fault.
    pub(crate) fn put_fault(&self, index: usize, low: u64, high: u64) {
        let mut state = self.state.lock().unwrap();
        if state.fsts & 2 == 0 {
            state.fsts = state.fsts & 0xff | (index as u32) << 8;
        }
        state.records[index] = [low, high | 1 << 63];
        state.fsts |= 2;
    }

    fn record_offset(&self) -> u32 {
        (self.cap >> 24 & 0x3ff) as u32 * 16
    }

    pub(crate) fn read32(&self, offset: u32) -> u32 {
        let mut state = self.state.lock().unwrap();
        match offset {
            0x00 => 0x10,
            0x1c => {
                if let Some((command, on, looks)) = state.pending {
                    if looks > 0 {
                        state.pending = Some((command, on, looks - 1));
                    } else {
                        state.pending = None;
                        if on {
                            state.gsts |= command;
                        } else {
                            state.gsts &= !command;
                        }
                    }
                }
                state.gsts
            }
            0x34 => state.fsts,
            0x38 if state.behaviour.mask_stays => 1 << 31,
            0x38 => state.fectl,
            0x3c | 0x40 | 0x44 => state.message[(offset as usize - 0x3c) / 4],
            0x64 => state.pmen,
            _ => panic!("read32 at {offset:#x}"),
        }
    }

    pub(crate) fn write32(&self, offset: u32, value: u32) {
        let unit = self.index;
        self.log.note(Event::Write32 {
            unit,
            offset,
            value,
        });
        let mut state = self.state.lock().unwrap();
        match offset {
            0x18 => {
                assert_eq!(state.pending, None, "a command before the last was done");
                let changed = (value ^ state.gsts) & !ONE_SHOTS | value & ONE_SHOTS;
                assert_eq!(changed.count_ones(), 1, "fields changed: {changed:#x}");
                let on = value & changed != 0;
                assert!(on || changed == QIE, "only the queue is turned off");
                match changed {
                    SRTP => state.gsts &= !SRTP,
                    WBF => state.gsts |= WBF,
                    QIE if on => state.iqh = 0,
                    QIE | TE => {}
                    other => panic!("command {other:#x}"),
                }
                let looks = if changed & state.behaviour.stuck_command != 0 {
                    u32::MAX
                } else {
                    state.behaviour.command_delay
                };
                // A flush of the write buffer is done when its bit is clear.
                state.pending = Some((changed, on && changed != WBF, looks));
            }
            0x34 if state.behaviour.errors_stay => {}
            0x34 => state.fsts &= !(value & 0x7d),
            0x38 => state.fectl = value,
            0x3c | 0x40 | 0x44 => {
                assert_eq!(
                    state.fectl,
                    1 << 31,
                    "where it goes, while it is not masked"
                );
                state.message[(offset as usize - 0x3c) / 4] = value;
            }
            0x64 => state.pmen = value & 1 << 31 | value >> 31,
            _ => {
                let index = (offset.wrapping_sub(self.record_offset()) / 16) as usize;
                assert_eq!(offset % 16, 12, "write32 at {offset:#x}");
                assert!(index < state.records.len(), "write32 at {offset:#x}");
                assert_eq!(value, 1 << 31);
                state.records[index][1] &= !(1 << 63);
                let count = state.records.len();
                let next = (1..=count)
                    .map(|step| (index + step) % count)
                    .find(|&next| state.records[next][1] >> 63 == 1);
                state.fsts &= !0xff02;
                if let Some(next) = next {
                    state.fsts |= 2 | (next as u32) << 8;
                }
            }
        }
    }

    pub(crate) fn read64(&self, offset: u32) -> u64 {
        let state = self.state.lock().unwrap();
        match offset {
            0x08 => self.cap,
            0x10 => self.ecap,
            0x80 => state.iqh,
            0x88 => state.iqt,
            0xb0 => 0,
            _ => {
                let index = (offset.wrapping_sub(self.record_offset()) / 16) as usize;
                let record = state.records.get(index);
                record.unwrap_or_else(|| panic!("read64 at {offset:#x}"))[offset as usize / 8 % 2]
            }
        }
    }

    pub(crate) fn write64(&self, offset: u32, value: u64) {
        let unit = self.index;
        self.log.note(Event::Write64 {
            unit,
            offset,
            value,
        });
        let mut state = self.state.lock().unwrap();
        match offset {
            0x20 => state.rtaddr = value,
            0x88 => {
                assert!(value < 4096 && value.is_multiple_of(16), "IQT {value:#x}");
                state.iqt = value;
                let runs = state.gsts & QIE != 0 && !state.behaviour.queue_stands;
                drop(state);
                if runs {
                    self.run_queue();
                }
            }
            0x90 => {
                assert_eq!(state.gsts & QIE, 0, "the queue is moved while it is on");
                assert_eq!(value & 0xfff, 0, "one page of 128-bit descriptors");
                state.iqa = value;
            }
            _ => panic!("write64 at {offset:#x}"),
        }
    }
}
