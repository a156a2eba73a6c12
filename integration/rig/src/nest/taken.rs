//! The page that the hypervisor takes from under a guest, step by step, and devices that come and go beside that.

use hv_core::platform::FrameSource;
use hv_core::{Gpa, GpaRange, PageCount, UserManaged};
use hv_iommu::{
    AtRest, Attached, Blocked, Group, InterruptsIsolated, ParentPaging, PendingUnmap, Redeemed,
};

use super::{APART, Backend, DEVICE, Nest, PARENT, REMEMBERS, page};
use crate::rig::Rig;

/// A device of the guest that goes by the parent alone.
type OnParent = Group<Backend, Attached<UserManaged, Backend, ParentPaging>>;

/// The page, out of the parent's tables, of which units may still hold something.
pub struct Taken {
    rig: Rig,
    pending: PendingUnmap<UserManaged, Backend>,
    seen_at: Vec<u64>,
}

/// The page, of which no unit holds anything.
pub struct Back(Redeemed<UserManaged, Backend>);

impl Taken {
    /// Has every unit forget it.
    ///
    /// # Errors
    /// The page, and what went wrong, in words.
    pub fn flush(self) -> Result<Back, (Self, String)> {
        let Self {
            rig,
            pending,
            seen_at,
        } = self;
        let span = pending.span();
        let redeemed = match pending.flush() {
            Ok(redeemed) => redeemed,
            Err(failed) => {
                let (pending, why) = (failed.pending, failed.reason.to_string());
                let taken = Self {
                    rig,
                    pending,
                    seen_at,
                };
                return Err((taken, why));
            }
        };
        for at in seen_at {
            rig.returned(DEVICE, page(at));
        }
        rig.returned(PARENT, span);
        Ok(Back(redeemed))
    }
}

impl Nest {
    /// The page that is mapped apart leaves the parent's tables. Devices had it at these pages of theirs.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn begin_taking(&mut self, seen_at: &[u64]) -> Result<Taken, String> {
        let mapped = self.apart.take().ok_or("it was taken")?;
        for at in seen_at {
            self.going(None, *at);
        }
        self.rig.unmapping(PARENT, mapped.span());
        Ok(Taken {
            rig: self.rig.clone(),
            pending: mapped.unmap(),
            seen_at: seen_at.to_vec(),
        })
    }

    /// It is given to the platform.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn end_taking(&mut self, back: Back) -> Result<(), String> {
        let Back((free, pin)) = back;
        drop(free.release());
        drop(self.memory.unpin(pin));
        let gpas = GpaRange::new(Gpa::new(APART << 12), PageCount::ONE);
        let gpas = gpas.map_err(|error| error.to_string())?;
        let run = self.memory.take_back_part(gpas);
        self.rig
            .free_frames(run.map_err(|error| error.to_string())?);
        Ok(())
    }

    /// Another device of the guest goes by the parent alone.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn beside(&self, group: Group<Backend, Blocked>) -> Result<OnParent, String> {
        let vm = self.memory.vm();
        let group: Group<Backend, _> = group.claim_for_guest(vm);
        let members = group.members().to_vec();
        self.rig.attaching(&members, PARENT);
        let isolated = InterruptsIsolated::override_unsafe_interrupts("the rig's own");
        let group = group.attach_for_guest(&self.parent, &isolated);
        let group = group.map_err(|error| error.to_string())?;
        self.rig.attached(&members, PARENT);
        for member in &members {
            group
                .enable_bus_mastering(*member)
                .map_err(|error| error.to_string())?;
        }
        Ok(group)
    }

    /// It leaves the guest.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn no_more_beside(&self, group: OnParent) -> Result<AtRest<Backend>, String> {
        let members = group.members().to_vec();
        self.rig.detaching(&members, PARENT);
        let group = group.detach().map_err(|group| group.error().to_string())?;
        self.rig.detached(&members);
        Ok(group.release().without_reset(REMEMBERS))
    }

    /// The device goes by nothing.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn step_out(&mut self) -> Result<(), String> {
        let group = self.group.take().ok_or("it is on no first stage")?;
        self.rig.detaching(&self.members, DEVICE);
        let group = group.detach().map_err(|group| group.error().to_string())?;
        self.rig.detached(&self.members);
        self.outside = Some(group);
        Ok(())
    }

    /// It goes by the guest's first stage again.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn step_in(&mut self) -> Result<(), String> {
        let group = self.outside.take().ok_or("it is not outside")?;
        self.rig.attaching(&self.members, DEVICE);
        let isolated = InterruptsIsolated::override_unsafe_interrupts("the rig's own");
        let group = group.attach_for_guest(&self.nested, &isolated);
        let group = group.map_err(|error| error.to_string())?;
        self.rig.attached(&self.members, DEVICE);
        for member in &self.members {
            group
                .enable_bus_mastering(*member)
                .map_err(|error| error.to_string())?;
        }
        self.group = Some(group);
        Ok(())
    }
}
