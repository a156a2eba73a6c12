//! Builds the bare-metal image that QEMU boots.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::arch::Arch;
use crate::progress;
use crate::workspace;

/// A cold build on a slow machine takes about a minute.
const BUILD_LIMIT: Duration = Duration::from_secs(600);
const BINARY: &str = "hv-image";

/// Which of the two images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// The product.
    Plain,
    /// With planted faults that the command line can switch on.
    PlantedFaults,
}

/// Builds the image of `arch` and gives its path. The flavours have folders of their own, so neither rebuilds the other.
///
/// # Errors
/// When the build fails or takes too long; the compiler's words were printed then.
pub(crate) fn build(arch: Arch, flavour: Flavour, verbose: bool) -> Result<PathBuf> {
    let mut command = workspace::cargo();
    let (name, folder) = match flavour {
        Flavour::Plain => (
            format!("build the image for {arch}"),
            workspace::target_dir(),
        ),
        Flavour::PlantedFaults => {
            command.env("RUSTFLAGS", workspace::rustflags("--cfg hv_fault"));
            (
                format!("build the image for {arch} with planted faults"),
                workspace::target_dir().join("fault"),
            )
        }
    };
    command.args([
        "build",
        "--release",
        "--package",
        BINARY,
        "--features",
        "bare-metal",
        "--target",
        arch.target(),
    ]);
    command.arg("--target-dir").arg(&folder);
    progress::run_job_to_success(&name, &mut command, BUILD_LIMIT, verbose)?;
    let image = folder.join(arch.target()).join("release").join(BINARY);
    if !image.is_file() {
        bail!(
            "the build went through but there is no {}: expected a binary called {BINARY}",
            image.display()
        );
    }
    Ok(image)
}
