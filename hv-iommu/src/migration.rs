//! For those who come from a bus-wide allocator: what to call instead, said by the compiler.
//!
//! Early IOMMU interfaces made a domain for a bus and attached devices of it later. With units that differ
//! there is nothing sound to build then: depth of tables, page sizes and coherency are known with a device.
//!
//! | there | here |
//! |---|---|
//! | `iommu_domain_alloc(bus)` for a driver of the kernel | [`Domain::paging_domain_alloc`](crate::Domain::paging_domain_alloc)`(&group, config)` |
//! | the same for a user | [`Domain::user_domain_alloc`](crate::Domain::user_domain_alloc)`(&group, config)` |
//! | with flags for a nest parent | [`Domain::user_parent_alloc`](crate::Domain::user_parent_alloc), or [`Domain::user_domain_alloc_or_plain`](crate::Domain::user_domain_alloc_or_plain) where a plain one will do |
//! | a user's first stage | [`Domain::alloc_nested`](crate::Domain::alloc_nested)`(&parent, &stage)` |
//! | one device known at allocation, another at attach | the same; attach checks the other one's unit |

use core::convert::Infallible;

/// Things that a domain could be made for all at once. Nothing is. Exists for its message.
#[diagnostic::on_unimplemented(
    message = "a domain is made for a device's group, not for `{Self}`",
    label = "its devices may be behind units that differ",
    note = "a driver of the hypervisor: `Domain::paging_domain_alloc(&group, config)`, with the claimed group of the device",
    note = "a guest: `Domain::user_domain_alloc(&group, config)`, or `user_domain_alloc_or_plain` if first stages should stand on it",
    note = "more devices: attach their groups to the same domain; each is checked then"
)]
pub trait MadeForABus: sealed::Sealed {
    /// There is no such value.
    fn never(self) -> Infallible;
}

mod sealed {
    //! Keeps anything from being added.
    pub trait Sealed {}
}

/// Does not compile, whatever it is called with: the error says what to call instead.
pub fn iommu_domain_alloc<T: MadeForABus>(bus: T) -> Infallible {
    bus.never()
}
