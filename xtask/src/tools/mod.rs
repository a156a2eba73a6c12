//! The tools a run needs: the bare-metal compiler target and QEMU. Each is used if there and fetched if not.

pub(crate) mod apt_sources;
pub(crate) mod debian;
pub(crate) mod os_release;
pub(crate) mod qemu;
pub(crate) mod target;

use std::env;
use std::path::PathBuf;

/// The first file called `program` in the folders of PATH.
pub(crate) fn find_in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}
