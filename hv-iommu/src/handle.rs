//! How a table reaches its memory: through the subsystem's shared state.

#![expect(unsafe_code, reason = "promises that the handle leads to one platform")]

use core::ops::Deref;

use hv_core::Shared;

use crate::backend::Backend;
use crate::system::System;
use crate::table::MemoryHandle;

/// Leads to the platform, and keeps the subsystem alive.
pub(crate) struct PlatformHandle<B: Backend>(pub(crate) Shared<System<B>>);

impl<B: Backend> Deref for PlatformHandle<B> {
    type Target = B::Platform;
    fn deref(&self) -> &B::Platform {
        self.0.backend.platform()
    }
}

// SAFETY: the shared state is one value that owns its backend, and by the backend's contract that is
// one platform for its whole life.
unsafe impl<B: Backend> MemoryHandle for PlatformHandle<B> {}
