//! A small NVMe controller for tests: one admin and one I/O queue pair over made-up memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use hv_core::platform::{Clock, Instant, Mmio};
use hv_core::{Iova, OutOfBounds};
use zerocopy::{FromBytes, IntoBytes};

use super::dma::{DmaBuffer, DmaMemory};
use super::spec::{
    ACQ, ADMIN_CREATE_COMPLETION_QUEUE, ADMIN_CREATE_SUBMISSION_QUEUE, ADMIN_IDENTIFY,
    ADMIN_SET_FEATURES, ASQ, CAP, CC, CC_ENABLE, COMMAND_BYTES, COMPLETION_BYTES, CSTS, CSTS_FATAL,
    CSTS_READY, Command, Completion, DOORBELLS, IO_READ, IO_WRITE,
};

const PAGE: u64 = 4096;
/// Blocks of the model's disk.
pub(super) const BLOCKS: u64 = 4096;
/// Bytes of a block.
pub(super) const BLOCK_BYTES: usize = 512;

/// How the model misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    /// Not at all.
    Good,
    /// Takes I/O commands and never completes them.
    Silent,
    /// Does the same and reports a fatal error.
    Fatal,
    /// Ends I/O commands with "LBA out of range".
    Refusing,
    /// Completes another command than the one that was given.
    WrongId,
    /// Never becomes ready.
    NeverReady,
}

type Pages = BTreeMap<u64, Vec<u8>>;

struct State {
    pages: Pages,
    next_page: u64,
    disk: Vec<u8>,
    registers: BTreeMap<u32, u64>,
    mood: Mood,
    /// Completions written per queue, and how often each submission queue was read.
    done: [u32; 2],
    taken: [u32; 2],
    queues: [[u64; 2]; 2],
    nanos: u64,
}

/// Memory, device and clock in one. Clones are handles.
#[derive(Clone)]
pub(super) struct Model(Arc<Mutex<State>>);

impl Model {
    pub(super) fn new() -> Self {
        let disk = (0..BLOCKS as usize * BLOCK_BYTES)
            .map(|i| (i / 7) as u8)
            .collect();
        Self(Arc::new(Mutex::new(State {
            pages: Pages::new(),
            next_page: 0x10_0000,
            disk,
            registers: BTreeMap::from([(CAP, 0x20_0100_07ff)]),
            mood: Mood::Good,
            done: [0; 2],
            taken: [0; 2],
            queues: [[0; 2]; 2],
            nanos: 0,
        })))
    }

    pub(super) fn set_mood(&self, mood: Mood) {
        self.0.lock().unwrap().mood = mood;
    }

    pub(super) fn disk(&self, from: usize, bytes: usize) -> Vec<u8> {
        self.0.lock().unwrap().disk[from..from + bytes].to_vec()
    }

    /// Whether the device wrote or was given this page.
    pub(super) fn page(&self, iova: u64) -> Option<Vec<u8>> {
        self.0.lock().unwrap().pages.get(&iova).cloned()
    }
}

impl State {
    fn peek(&self, at: u64, bytes: usize) -> Vec<u8> {
        (at..at + bytes as u64)
            .map(|byte| {
                let page = self.pages.get(&(byte / PAGE * PAGE));
                page.map_or(0, |page| page[(byte % PAGE) as usize])
            })
            .collect()
    }

    fn poke(&mut self, at: u64, data: &[u8]) {
        for (byte, value) in (at..).zip(data) {
            let page = self
                .pages
                .entry(byte / PAGE * PAGE)
                .or_insert_with(|| vec![0; 4096]);
            page[(byte % PAGE) as usize] = *value;
        }
    }

    fn ring(&mut self, queue: usize, tail: u32) {
        while self.taken[queue] % 64 != tail {
            let slot = u64::from(self.taken[queue] % 64);
            let at = self.queues[queue][0] + slot * COMMAND_BYTES as u64;
            self.taken[queue] += 1;
            let bytes = self.peek(at, COMMAND_BYTES);
            let command = Command::read_from_bytes(&bytes).unwrap();
            let mood = if queue == 1 { self.mood } else { Mood::Good };
            match mood {
                Mood::Silent => return,
                Mood::Fatal => {
                    *self.registers.entry(CSTS).or_default() |= u64::from(CSTS_FATAL);
                    return;
                }
                _ => {}
            }
            let status = match mood {
                Mood::Refusing => 0x80,
                _ if queue == 0 => self.admin(&command),
                _ => self.io(&command),
            };
            let id = command.id.get() + u16::from(mood == Mood::WrongId);
            self.complete(queue, id, status);
        }
    }

    fn complete(&mut self, queue: usize, id: u16, status: u16) {
        let done = self.done[queue];
        self.done[queue] += 1;
        let phase = u16::from((done / 64).is_multiple_of(2));
        let completion = Completion {
            id: id.into(),
            status: (status << 1 | phase).into(),
            ..Completion::default()
        };
        let at = self.queues[queue][1] + u64::from(done % 64) * COMPLETION_BYTES as u64;
        self.poke(at, completion.as_bytes());
    }

    fn admin(&mut self, command: &Command) -> u16 {
        let page = command.prp1.get();
        match command.opcode {
            ADMIN_IDENTIFY => {
                let mut answer = vec![0; 4096];
                if command.dwords[0].get() == 1 {
                    answer[4..10].copy_from_slice(b"hv0001");
                    answer[24..29].copy_from_slice(b"Model");
                    answer[77] = 4;
                } else {
                    answer[..8].copy_from_slice(&BLOCKS.to_le_bytes());
                    answer[130] = 9;
                }
                self.poke(page, &answer);
                0
            }
            ADMIN_CREATE_SUBMISSION_QUEUE => {
                self.queues[1][0] = page;
                0
            }
            ADMIN_CREATE_COMPLETION_QUEUE => {
                self.queues[1][1] = page;
                0
            }
            ADMIN_SET_FEATURES => 0,
            _ => 1,
        }
    }

    fn io(&mut self, command: &Command) -> u16 {
        let lba = u64::from(command.dwords[0].get()) | u64::from(command.dwords[1].get()) << 32;
        let bytes = (command.dwords[2].get() as usize + 1) * BLOCK_BYTES;
        let mut from = lba as usize * BLOCK_BYTES;
        let end = from + bytes;
        let prp1 = command.prp1.get();
        let first = ((PAGE - prp1 % PAGE) as usize).min(bytes);
        let mut pieces = vec![(prp1, first)];
        let rest = bytes - first;
        let count = rest.div_ceil(PAGE as usize);
        for index in 0..count {
            let page = match count {
                1 => command.prp2.get(),
                _ => {
                    let entry = self.peek(command.prp2.get() + 8 * index as u64, 8);
                    u64::from_le_bytes(entry.try_into().unwrap())
                }
            };
            pieces.push((page, (rest - index * PAGE as usize).min(PAGE as usize)));
        }
        for (at, length) in pieces {
            match command.opcode {
                IO_READ => {
                    let data = self.disk[from..from + length].to_vec();
                    self.poke(at, &data);
                }
                IO_WRITE => {
                    let data = self.peek(at, length);
                    self.disk[from..from + length].copy_from_slice(&data);
                }
                _ => return 1,
            }
            from += length;
        }
        assert_eq!(from, end);
        0
    }
}

impl Mmio for Model {
    fn read32(&self, offset: u32) -> u32 {
        self.read64(offset) as u32
    }

    fn write32(&self, offset: u32, value: u32) {
        self.write64(offset, value.into());
    }

    fn read64(&self, offset: u32) -> u64 {
        self.0
            .lock()
            .unwrap()
            .registers
            .get(&offset)
            .copied()
            .unwrap_or(0)
    }

    fn write64(&self, offset: u32, value: u64) {
        let mut state = self.0.lock().unwrap();
        match offset {
            CC if value as u32 & CC_ENABLE == 0 => {
                state.registers.insert(CSTS, 0);
                state.done = [0; 2];
                state.taken = [0; 2];
            }
            CC if state.mood != Mood::NeverReady => {
                state.registers.insert(CSTS, CSTS_READY.into());
            }
            ASQ => state.queues[0][0] = value,
            ACQ => state.queues[0][1] = value,
            _ if offset >= DOORBELLS && (offset / 4).is_multiple_of(2) => {
                state.ring((offset - DOORBELLS) as usize / 8, value as u32);
            }
            _ => {}
        }
        state
            .registers
            .entry(offset)
            .and_modify(|old| *old = value)
            .or_insert(value);
    }
}

impl Clock for Model {
    /// Time goes by looking at the clock.
    fn now(&self) -> Instant {
        let mut state = self.0.lock().unwrap();
        state.nanos += 1_000_000;
        Instant::from_nanos(state.nanos)
    }
}

/// A buffer of the model's memory.
#[derive(Clone)]
pub(super) struct Buffer {
    model: Model,
    iova: u64,
    bytes: usize,
}

impl DmaMemory for Model {
    type Buffer = Buffer;
    type Error = core::convert::Infallible;

    fn alloc(&mut self, bytes: usize) -> Result<Buffer, Self::Error> {
        let mut state = self.0.lock().unwrap();
        let iova = state.next_page;
        state.next_page += bytes.next_multiple_of(4096) as u64 + PAGE;
        // Memory is not zero when it is given out.
        state.poke(iova, &vec![0xff; bytes]);
        Ok(Buffer {
            model: self.clone(),
            iova,
            bytes,
        })
    }
}

impl DmaBuffer for Buffer {
    fn iova(&self) -> Iova {
        Iova::new(self.iova)
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), OutOfBounds> {
        OutOfBounds::check(offset as u64, out.len(), self.bytes as u64)?;
        let state = self.model.0.lock().unwrap();
        out.copy_from_slice(&state.peek(self.iova + offset as u64, out.len()));
        Ok(())
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result<(), OutOfBounds> {
        OutOfBounds::check(offset as u64, data.len(), self.bytes as u64)?;
        self.model
            .0
            .lock()
            .unwrap()
            .poke(self.iova + offset as u64, data);
        Ok(())
    }

    fn read_u32(&self, offset: usize) -> Result<u32, OutOfBounds> {
        let mut word = [0; 4];
        self.read(offset, &mut word)?;
        Ok(u32::from_le_bytes(word))
    }
}
