//! The compiler's standard library for the bare-metal target.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::process::{self, run_quiet};
use crate::progress;
use crate::tools::find_in_path;

const QUERY_LIMIT: Duration = Duration::from_secs(60);
const ADD_LIMIT: Duration = Duration::from_secs(180);
const TRIES: u32 = 2;

/// Makes sure that `target` is installed; adds it through rustup if not.
///
/// # Errors
/// One sentence with the command to run, when the target is missing and could not be added.
pub(crate) fn ensure(target: &str, verbose: bool) -> Result<()> {
    if installed(target)? {
        return Ok(());
    }
    if find_in_path("rustup").is_none() {
        bail!(
            "the compiler target {target} is missing and there is no rustup to add it: \
             install rustup (https://rustup.rs), then run `rustup target add {target}`"
        );
    }
    println!("The compiler target {target} is missing; rustup adds it to this toolchain.");
    for attempt in 1..=TRIES {
        let name = format!("rustup target add {target} (try {attempt} of {TRIES})");
        let mut add = Command::new("rustup");
        add.args(["target", "add", target]);
        if progress::run_job(&name, &mut add, ADD_LIMIT, verbose)?
            .end
            .success()
            && installed(target)?
        {
            return Ok(());
        }
    }
    bail!(
        "the compiler target {target} could not be added: run `rustup target add {target}` and see what it says"
    )
}

/// True when the active toolchain has the target's libraries.
fn installed(target: &str) -> Result<bool> {
    let mut query = Command::new("rustc");
    query.args(["--print", "sysroot"]);
    let finished = run_quiet(&mut query, QUERY_LIMIT)?;
    if !finished.end.success() {
        bail!(
            "`{}` failed: {}\n{}",
            process::shown(&query),
            finished.end,
            finished.tail(20)
        );
    }
    Ok(has_core(Path::new(finished.stdout().trim()), target))
}

/// True when the sysroot holds a compiled `core` for the target.
fn has_core(sysroot: &Path, target: &str) -> bool {
    let libraries = sysroot.join("lib/rustlib").join(target).join("lib");
    std::fs::read_dir(libraries).is_ok_and(|mut files| {
        files.any(|file| {
            file.is_ok_and(|file| {
                let name = file.file_name();
                let name = name.to_string_lossy();
                name.starts_with("libcore-") && name.ends_with(".rlib")
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_counts_only_with_its_core_library() {
        let sysroot = tempfile::tempdir().unwrap();
        let target = "x86_64-unknown-none";
        assert!(!has_core(sysroot.path(), target));
        let libraries = sysroot.path().join("lib/rustlib/x86_64-unknown-none/lib");
        std::fs::create_dir_all(&libraries).unwrap();
        assert!(
            !has_core(sysroot.path(), target),
            "an empty folder is left behind by a broken installation"
        );
        std::fs::write(libraries.join("libcore-0123.rlib"), "").unwrap();
        assert!(has_core(sysroot.path(), target));
        assert!(!has_core(sysroot.path(), "aarch64-unknown-none"));
    }
}
