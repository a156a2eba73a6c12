//! `cargo xtask soak`: random lives on the rig for a while, or one of them again.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use crate::workspace;

/// What `soak` can be told.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How long to go on
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = minutes, conflicts_with_all = ["once", "keep"])]
    minutes: f64,
    /// The first seed, decimal or 0x hexadecimal; drawn from the clock if left out
    #[arg(long, value_name = "SEED", value_parser = number)]
    seed: Option<u64>,
    /// Operations of each life
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    operations: u64,
    /// Machines with units of this vendor only, vtd or smmu; of each in turn if left out
    #[arg(long, value_name = "NAME")]
    vendor: Option<String>,
    /// Live only the life of the seed
    #[arg(long, requires = "seed")]
    once: bool,
    /// Other luck of the hardware in the same life, as a failure names it
    #[arg(long, value_name = "N", requires = "seed", default_value_t = 0)]
    luck: u64,
    /// Another temper of the hardware, as a failure names it
    #[arg(long, value_name = "BITS", requires = "seed", value_parser = number)]
    temper: Option<u64>,
    /// Live only these operations of the seed's life, as a failure names them: 1,4-6
    #[arg(long, value_name = "LIST", requires = "seed")]
    keep: Option<String>,
}

/// A number, decimal or with 0x hexadecimal.
fn number(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| "expected a decimal number, or a hexadecimal one with 0x".to_owned())
}

/// The longest time that can be asked for: a week.
const LONGEST: f64 = 7.0 * 24.0 * 60.0;

/// Minutes that are a time to live in: no life at all would pass as a good one.
fn minutes(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(minutes) if minutes > 0.0 && minutes <= LONGEST => Ok(minutes),
        _ => Err(format!(
            "expected minutes, more than 0 and at most {LONGEST}"
        )),
    }
}

/// Builds the rig for speed and lets it live. A broken rule gives a failing exit code.
///
/// # Errors
/// When cargo cannot be started.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut command = workspace::cargo();
    command.args([
        "run",
        "--quiet",
        "--profile",
        "soak",
        "--package",
        "hv-rig",
        "--bin",
        "soak",
        "--",
    ]);
    let seconds = (options.minutes * 60.0).ceil().max(1.0) as u64;
    command.args(["--seconds", &seconds.to_string()]);
    command.args(["--operations", &options.operations.to_string()]);
    command.args(["--luck", &options.luck.to_string()]);
    if let Some(vendor) = &options.vendor {
        command.args(["--vendor", vendor]);
    }
    if let Some(seed) = options.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    if let Some(temper) = options.temper {
        command.args(["--temper", &temper.to_string()]);
    }
    if options.once {
        command.arg("--once");
    }
    if let Some(keep) = &options.keep {
        command.args(["--keep", keep]);
    }
    let status = command.status().context("cargo cannot be started")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_soak_without_time_is_refused() {
        for text in ["0", "-1", "nan", "inf", "1e9", "long"] {
            assert!(minutes(text).is_err(), "{text} was taken");
        }
        assert_eq!(minutes("0.5"), Ok(0.5));
    }
}
