//! A unit's registers: one control bit changes per write, and the unit has taken it before the next.

use core::time::Duration;

use hv_core::fault::Fault;
use hv_core::platform::{Clock, Mmio};
use hv_core::sync::spin_hint;
use hv_iommu::{UnitError, UnitIndex};
use spin::mutex::SpinMutex;

use crate::spec::registers::{self, Cr0, Gbpa, Gerror, IrqCtrl};

/// How long the unit may take to acknowledge a register. Hardware takes microseconds; Linux gives it a second.
pub(crate) const REGISTER_DEADLINE: Duration = Duration::from_secs(1);

/// The mapped registers of a unit.
pub(crate) struct Regs<B> {
    block: B,
    /// Whether the registers of page 1 are in page 0.
    one_page: bool,
    /// Taken for the two accesses that acknowledge errors, so that none is acknowledged unseen.
    acknowledging: SpinMutex<()>,
}

/// A bit of CR0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    /// The unit translates.
    Translation,
    /// The event queue.
    Events,
    /// The queue of requests for pages.
    Pages,
    /// The command queue.
    Commands,
    /// Requests that say they are translated are looked at.
    CheckTranslated,
}

impl Switch {
    const fn set(self, cr0: Cr0, on: bool) -> Cr0 {
        match self {
            Self::Translation => cr0.with_smmuen(on),
            Self::Events => cr0.with_eventqen(on),
            Self::Pages => cr0.with_priqen(on),
            Self::Commands => cr0.with_cmdqen(on),
            Self::CheckTranslated => cr0.with_atschk(on),
        }
    }

    const fn what(self, on: bool) -> &'static str {
        match (self, on) {
            (Self::Translation, true) => "turning translation on (CR0.SMMUEN)",
            (Self::Translation, false) => "turning translation off (CR0.SMMUEN)",
            (Self::Events, true) => "turning its event queue on (CR0.EVENTQEN)",
            (Self::Events, false) => "turning its event queue off (CR0.EVENTQEN)",
            (Self::Pages, true) => "turning its queue of page requests on (CR0.PRIQEN)",
            (Self::Pages, false) => "turning its queue of page requests off (CR0.PRIQEN)",
            (Self::CheckTranslated, true) => {
                "looking at requests that say they are translated (CR0.ATSCHK)"
            }
            (Self::CheckTranslated, false) => {
                "letting requests pass that say they are translated (CR0.ATSCHK)"
            }
            (Self::Commands, true) => "turning its command queue on (CR0.CMDQEN)",
            (Self::Commands, false) => "turning its command queue off (CR0.CMDQEN)",
        }
    }
}

impl<B: Mmio> Regs<B> {
    pub(crate) const fn new(block: B, one_page: bool) -> Self {
        Self {
            block,
            one_page,
            acknowledging: SpinMutex::new(()),
        }
    }

    const fn place(&self, offset: u32) -> u32 {
        if self.one_page {
            registers::in_page_0(offset)
        } else {
            offset
        }
    }

    pub(crate) fn read32(&self, offset: u32) -> u32 {
        self.block.read32(self.place(offset))
    }

    pub(crate) fn write32(&self, offset: u32, value: u32) {
        self.block.write32(self.place(offset), value);
    }

    pub(crate) fn read64(&self, offset: u32) -> u64 {
        self.block.read64(self.place(offset))
    }

    pub(crate) fn write64(&self, offset: u32, value: u64) {
        self.block.write64(self.place(offset), value);
    }

    /// CR0 as the unit has taken it.
    pub(crate) fn control(&self) -> Cr0 {
        Cr0::from_bits(self.read32(registers::CR0ACK))
    }

    /// Turns one thing on or off, and waits until the unit has taken that.
    pub(crate) fn switch<C: Clock>(
        &self,
        clock: &C,
        unit: UnitIndex,
        switch: Switch,
        on: bool,
    ) -> Result<(), UnitError> {
        // A unit that was not waited for to the end may still be at the last change.
        self.wait_for(clock, unit, "taking the last change (CR0)", || {
            self.read32(registers::CR0ACK) == self.read32(registers::CR0)
        })?;
        let before = self.read32(registers::CR0);
        if before == u32::MAX {
            // Both registers would pass for whatever is turned on.
            return Err(UnitError::Hardware {
                unit,
                what: "a unit that is gone: its control register reads as all ones (CR0)",
                expected: 0,
                found: before.into(),
            });
        }
        let wanted = switch.set(Cr0::from_bits(before), on).into_bits();
        self.write32(registers::CR0, wanted);
        if Fault::ControlNotAwaited.is_on() {
            return Ok(());
        }
        self.wait_for(clock, unit, switch.what(on), || {
            self.read32(registers::CR0ACK) == wanted
        })
    }

    /// Turns everything off at once, for a unit that somebody else may have left in any state.
    pub(crate) fn all_off<C: Clock>(&self, clock: &C, unit: UnitIndex) -> Result<(), UnitError> {
        // One bit at a time, translation first, so that nothing it relies on goes before it does.
        self.off_if_on(clock, unit, Switch::Translation)?;
        self.queues_off(clock, unit)?;
        // What else is on is of parts that this version does not use.
        self.write32(registers::CR0, 0);
        self.wait_for(clock, unit, "turning everything off (CR0)", || {
            self.read32(registers::CR0ACK) == 0
        })
    }

    /// Turns all queues off, and leaves the rest as it is.
    pub(crate) fn queues_off<C: Clock>(&self, clock: &C, unit: UnitIndex) -> Result<(), UnitError> {
        [Switch::Pages, Switch::Events, Switch::Commands]
            .into_iter()
            .try_for_each(|queue| self.off_if_on(clock, unit, queue))
    }

    fn off_if_on<C: Clock>(
        &self,
        clock: &C,
        unit: UnitIndex,
        switch: Switch,
    ) -> Result<(), UnitError> {
        let on = switch.set(Cr0::new(), true).into_bits();
        if self.read32(registers::CR0) & on != 0 || self.read32(registers::CR0ACK) & on != 0 {
            self.switch(clock, unit, switch, false)?;
        }
        Ok(())
    }

    /// Turns interrupts on or off, and waits until the unit has taken that. Once it has, no interrupt of before that is
    /// off now is still under way, and those that are on now tell what happens from now on (IHI 0070, 6.3.16).
    pub(crate) fn switch_interrupts<C: Clock>(
        &self,
        clock: &C,
        unit: UnitIndex,
        change: impl FnOnce(IrqCtrl) -> IrqCtrl,
    ) -> Result<(), UnitError> {
        // A unit that was not waited for to the end may still be at the last change.
        self.wait_for(clock, unit, "taking the last change (IRQ_CTRL)", || {
            self.read32(registers::IRQ_CTRL_ACK) == self.read32(registers::IRQ_CTRL)
        })?;
        let before = IrqCtrl::from_bits(self.read32(registers::IRQ_CTRL));
        let wanted = change(before).into_bits();
        self.write32(registers::IRQ_CTRL, wanted);
        self.wait_for(
            clock,
            unit,
            "turning interrupts on or off (IRQ_CTRL)",
            || self.read32(registers::IRQ_CTRL_ACK) == wanted,
        )
    }

    /// Aborts all transactions while the unit is off.
    pub(crate) fn close_gate<C: Clock>(&self, clock: &C, unit: UnitIndex) -> Result<(), UnitError> {
        self.set_gate(clock, unit, true)
    }

    /// Says what becomes of transactions while the unit is off: aborted where the gate is closed, else let through.
    pub(super) fn set_gate<C: Clock>(
        &self,
        clock: &C,
        unit: UnitIndex,
        closed: bool,
    ) -> Result<(), UnitError> {
        let settled = || !Gbpa::from_bits(self.read32(registers::GBPA)).update();
        let what = "taking what happens while it is off (GBPA)";
        self.wait_for(clock, unit, what, settled)?;
        let gate = Gbpa::from_bits(self.read32(registers::GBPA));
        let told = !Fault::GateWithoutUpdate.is_on();
        let wanted = gate.with_abort(closed).with_update(told);
        self.write32(registers::GBPA, wanted.into_bits());
        self.wait_for(clock, unit, what, settled)?;
        let found = Gbpa::from_bits(self.read32(registers::GBPA));
        if found.abort() == closed {
            return Ok(());
        }
        Err(UnitError::Hardware {
            unit,
            what: "a gate that stays open while it is off (GBPA.ABORT)",
            expected: gate.with_abort(closed).into_bits().into(),
            found: found.into_bits().into(),
        })
    }

    /// The global errors that nobody has acknowledged.
    pub(crate) fn errors(&self) -> Gerror {
        let now = Gerror::from_bits(self.read32(registers::GERROR));
        now.active(Gerror::from_bits(self.read32(registers::GERRORN)))
    }

    /// Acknowledges those of these errors that are active, and no others.
    pub(crate) fn acknowledge(&self, errors: Gerror) {
        // Held for three accesses; nothing is waited for.
        let _alone = self.acknowledging.lock();
        let active = self.errors().into_bits() & errors.into_bits();
        let before = self.read32(registers::GERRORN);
        if active != 0 {
            self.write32(registers::GERRORN, before ^ active);
        }
    }

    /// Waits until `done`, not longer than [`REGISTER_DEADLINE`].
    pub(crate) fn wait_for<C: Clock>(
        &self,
        clock: &C,
        unit: UnitIndex,
        what: &'static str,
        done: impl Fn() -> bool,
    ) -> Result<(), UnitError> {
        let start = clock.now();
        let deadline = start.after(REGISTER_DEADLINE);
        while !done() {
            let now = clock.now();
            if now > deadline {
                // It may have come in while this CPU was held up.
                if done() {
                    break;
                }
                let waited = now.since(start);
                return Err(UnitError::Timeout { unit, what, waited });
            }
            spin_hint();
        }
        Ok(())
    }
}
