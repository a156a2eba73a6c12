//! The nodes of SMMUs.

use alloc::vec::Vec;

use hv_core::list::push;
use hv_core::{PageCount, PhysAddr, PhysRange};
use hv_iommu::UnitIndex;

use super::Reader;
use super::finding::{Defect, Finding, TreeError};
use super::flat::{Cells, NodeId};
use crate::DeviceId;
use crate::firmware::{InterruptId, Interrupts, MessageWriter, SmmuUnit};
use crate::spec::device_tree as spec;
use crate::spec::quirks::{BY_PROPERTY, Quirk, Quirks};
use crate::spec::registers::{FRAME_BYTES, FRAME_BYTES_ONE_PAGE};

impl Reader<'_> {
    /// Finds the units first, as host bridges may stand before them.
    pub(super) fn units(&mut self) -> Result<(), TreeError> {
        for node in self.tree.nodes() {
            let is_unit = self.tree.lists(node, "compatible", "arm,smmu-v3");
            if is_unit && self.tree.is_enabled(node) {
                let unit = self.unit(node)?;
                push(&mut self.firmware.units, unit)?;
                push(&mut self.unit_nodes, node)?;
            }
        }
        let found = self.unit_nodes.len();
        if found > UnitIndex::LIMIT {
            return Err(TreeError::TooManyUnits { found });
        }
        Ok(())
    }

    fn refuse(&self, node: NodeId, what: Defect, found: u64) -> TreeError {
        let node = self.tree.short_name(node);
        Finding { node, what, found }.into()
    }

    fn unit(&mut self, node: NodeId) -> Result<SmmuUnit, TreeError> {
        let mut quirks = Quirks::NONE;
        for (property, known) in BY_PROPERTY {
            if self.tree.property(node, property).is_some() {
                quirks = quirks.and(known);
            }
        }
        let needed = if quirks.has(Quirk::OnePage) {
            FRAME_BYTES_ONE_PAGE
        } else {
            FRAME_BYTES
        };
        let (base, size) = self.tree.registers(node).unwrap_or((0, 0));
        let registers = PageCount::for_bytes(needed)
            .filter(|_| base != 0 && base.is_multiple_of(FRAME_BYTES_ONE_PAGE) && size >= needed)
            .and_then(|pages| PhysRange::new(PhysAddr::new(base), pages).ok());
        let Some(registers) = registers else {
            return Err(self.refuse(node, Defect::Registers, base));
        };
        let mut others = self.firmware.units.iter();
        if others.any(|other| other.registers.overlaps(&registers)) {
            return Err(self.refuse(node, Defect::DuplicateRegisters, base));
        }
        let cells = self.tree.number(node, "#iommu-cells").unwrap_or(0);
        if cells != 1 {
            self.note(node, Defect::StreamCells, cells.into())?;
        }
        let interrupts = self.interrupts(node)?;
        if interrupts.event.is_some()
            && interrupts.event == interrupts.global_error
            && interrupts.event == interrupts.sync
        {
            quirks = quirks.with(Quirk::OneInterrupt);
        }
        Ok(SmmuUnit {
            registers,
            coherent: self.tree.is_coherent(node),
            leaf_notes: None,
            quirks,
            interrupts,
            own_messages: self.own_messages(node)?,
            messages: Vec::new(),
            proximity: self.tree.number(node, "numa-node-id"),
        })
    }

    pub(super) fn own_messages(
        &mut self,
        node: NodeId,
    ) -> Result<Option<MessageWriter>, TreeError> {
        let Some(value) = self.tree.property(node, "msi-parent") else {
            return Ok(None);
        };
        let mut cells = Cells::new(value);
        let (phandle, device) = (cells.next(), cells.next());
        let Some(target) = phandle.and_then(|phandle| self.tree.by_phandle(phandle)) else {
            self.note(node, Defect::Reference, value.len() as u64)?;
            return Ok(None);
        };
        let services = self.services_of(target)?;
        let writer = |device| MessageWriter {
            services,
            device: DeviceId::new(device),
        };
        Ok(device.map(writer))
    }

    /// The wired interrupts, in the order of their names: of one controller, or each of its own. What cannot be read counts
    /// as none.
    fn interrupts(&mut self, node: NodeId) -> Result<Interrupts, TreeError> {
        let extended = self.tree.property(node, "interrupts-extended");
        let Some(value) = extended.or_else(|| self.tree.property(node, "interrupts")) else {
            return Ok(Interrupts::default());
        };
        let parent = match extended {
            Some(_) => None,
            None => self.tree.interrupt_parent(node),
        };
        let names = self
            .tree
            .property(node, "interrupt-names")
            .unwrap_or_default();
        let mut names = names
            .split(|&byte| byte == 0)
            .filter(|name| !name.is_empty());
        let mut interrupts = Interrupts::default();
        let mut cells = Cells::new(value);
        while !cells.is_empty() {
            let name = names.next();
            let controller = match extended {
                Some(_) => cells
                    .next()
                    .and_then(|phandle| self.tree.by_phandle(phandle)),
                None => parent,
            };
            let (kind, number) = match self.interrupt(controller, &mut cells) {
                Ok(interrupt) => interrupt,
                Err(cells) => {
                    let found = cells.map_or(value.len() as u64, u64::from);
                    self.note(node, Defect::Interrupts, found)?;
                    return Ok(Interrupts::default());
                }
            };
            let base = match kind {
                spec::GIC_SHARED => Some(spec::GIC_SHARED_BASE),
                spec::GIC_EXTENDED => Some(spec::GIC_EXTENDED_BASE),
                _ => None,
            };
            let id = base
                .and_then(|base| base.checked_add(number))
                .map(InterruptId);
            match name {
                _ if id.is_none() => self.note(node, Defect::Interrupts, kind.into())?,
                Some(b"eventq") => interrupts.event = id,
                Some(b"priq") => interrupts.page_request = id,
                Some(b"gerror") => interrupts.global_error = id,
                Some(b"cmdq-sync") => interrupts.sync = id,
                Some(b"combined") => {
                    interrupts = Interrupts {
                        event: id,
                        page_request: id,
                        global_error: id,
                        sync: id,
                    };
                }
                _ => self.note(node, Defect::Interrupts, number.into())?,
            }
        }
        Ok(interrupts)
    }

    /// The next interrupt, in as many cells as its controller says: its kind, and its number of that kind.
    ///
    /// # Errors
    /// How many cells those would be, where a GIC does not have that many; `None` where they are not there, or of nobody.
    fn interrupt(
        &self,
        controller: Option<NodeId>,
        cells: &mut Cells<'_>,
    ) -> Result<(u32, u32), Option<u32>> {
        let count = controller.and_then(|node| self.tree.number(node, "#interrupt-cells"));
        let count = count.ok_or(None)?;
        if !spec::GIC_CELLS.contains(&count) {
            return Err(Some(count));
        }
        let (Some(kind), Some(number)) = (cells.next(), cells.next()) else {
            return Err(None);
        };
        // The rest say how it is triggered, and for which CPUs it is if it is none of the shared ones.
        for _ in 2..count {
            cells.next().ok_or(None)?;
        }
        Ok((kind, number))
    }
}
