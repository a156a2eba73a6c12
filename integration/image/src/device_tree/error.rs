//! Why a device tree cannot be used.

use dtoolkit::error::{FdtParseError, PropertyError, StandardError};
use thiserror::Error;

/// The device tree is damaged, or lacks what the image cannot do without.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeviceTreeError {
    /// The blob is no tree.
    #[error("the device tree cannot be read: {0}")]
    Parse(#[from] FdtParseError),
    /// A node or property that is needed is not there.
    #[error(
        "the device tree has no {what}, or one that is disabled: expected a tree as of QEMU's `-machine \
         virt,gic-version=3,iommu=smmuv3`, or one that describes it likewise"
    )]
    Missing {
        /// What is not there.
        what: &'static str,
    },
    /// A property has a form that it cannot have.
    #[error("the device tree's {what} cannot be read: {error}")]
    Property {
        /// Which property.
        what: &'static str,
        /// What is wrong with it.
        error: StandardError,
    },
    /// A property has a value that it cannot have.
    #[error("the device tree's {what} is {found:#x}, expected {expected}")]
    Value {
        /// Which property.
        what: &'static str,
        /// What it says.
        found: u64,
        /// What it should say.
        expected: &'static str,
    },
    /// There are more than the image keeps.
    #[error("the device tree has more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many it keeps.
        limit: usize,
    },
}

/// Says which property an error is about.
pub(super) trait About<T> {
    /// The value, or the error with the property's name.
    fn about(self, what: &'static str) -> Result<T, DeviceTreeError>;
}

impl<T> About<T> for Result<T, StandardError> {
    fn about(self, what: &'static str) -> Result<T, DeviceTreeError> {
        self.map_err(|error| DeviceTreeError::Property { what, error })
    }
}

impl<T> About<T> for Result<T, PropertyError> {
    fn about(self, what: &'static str) -> Result<T, DeviceTreeError> {
        self.map_err(StandardError::from).about(what)
    }
}
