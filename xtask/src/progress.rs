//! What a person sees while something runs: a spinner on a terminal, plain lines elsewhere.

use std::cell::Cell;
use std::fmt::Display;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use console::style;
use indicatif::{ProgressBar, ProgressStyle};

use crate::process::{self, End, Finished};

/// How many lines of a failed program are shown.
pub(crate) const TAIL: usize = 60;
/// How often a long job without a spinner gives a sign of life, if it says anything.
const SIGN_OF_LIFE: Duration = Duration::from_secs(20);

/// One running job with a name. On a terminal a spinner shows the last line of its output.
pub(crate) struct Progress {
    name: String,
    bar: ProgressBar,
    start: Instant,
    verbose: bool,
    last_sign: Cell<Instant>,
}

impl Progress {
    /// Announces the job `name`; with `verbose` every line is printed.
    pub(crate) fn start(name: impl Into<String>, verbose: bool) -> Self {
        let name = name.into();
        let bar = if console::user_attended_stderr() && !verbose {
            let bar = ProgressBar::new_spinner();
            if let Ok(looks) =
                ProgressStyle::with_template("{spinner} {prefix}  {elapsed} {wide_msg:.dim}")
            {
                bar.set_style(looks);
            }
            bar.set_prefix(name.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        } else {
            println!("{} {name}", style("-->").cyan());
            ProgressBar::hidden()
        };
        let start = Instant::now();
        Self {
            name,
            bar,
            start,
            verbose,
            last_sign: Cell::new(start),
        }
    }

    /// Shows a line of the job's output: beside the spinner, or in full when verbose.
    pub(crate) fn line(&self, line: &str) {
        if self.verbose {
            println!("    {line}");
        } else {
            self.bar.set_message(line.trim().to_owned());
            if self.bar.is_hidden() && self.last_sign.get().elapsed() > SIGN_OF_LIFE {
                self.last_sign.set(Instant::now());
                println!(
                    "    ... {} ({})",
                    line.trim(),
                    seconds(self.start.elapsed())
                );
            }
        }
    }

    /// Prints text that stays, above the spinner.
    pub(crate) fn print(&self, text: impl Display) {
        self.bar.suspend(|| println!("{text}"));
    }

    /// Ends the job with a line that says how it went.
    pub(crate) fn finish(self, ok: bool) {
        self.bar.finish_and_clear();
        let word = if ok {
            style("    ok").green()
        } else {
            style("FAILED").red().bold()
        };
        println!("{word} {} ({})", self.name, seconds(self.start.elapsed()));
    }

    /// Takes the spinner away and says nothing more.
    pub(crate) fn clear(self) {
        self.bar.finish_and_clear();
    }
}

/// A duration as seconds with two digits after the point.
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

/// Runs `command` as the job `name`, at most for `limit`; the end of its output is printed when it fails.
///
/// # Errors
/// When the program cannot be started or Ctrl-C ended it. See [`Finished::end`] for how it ended.
pub(crate) fn run_job(
    name: &str,
    command: &mut Command,
    limit: Duration,
    verbose: bool,
) -> Result<Finished> {
    let progress = Progress::start(name, verbose);
    if verbose {
        progress.line(&format!("$ {}", process::shown(command)));
    }
    let finished = match process::run(command, limit, &mut |_, line| progress.line(line)) {
        Ok(finished) => finished,
        Err(error) => {
            progress.finish(false);
            return Err(error);
        }
    };
    let ok = finished.end.success();
    progress.finish(ok);
    if !ok && !verbose {
        println!("    $ {}\n{}", process::shown(command), finished.tail(TAIL));
    }
    if finished.end == End::TimedOut {
        println!("    killed after its time limit of {}", seconds(limit));
    }
    Ok(finished)
}

/// As [`run_job`], and anything but exit code 0 is an error.
pub(crate) fn run_job_to_success(
    name: &str,
    command: &mut Command,
    limit: Duration,
    verbose: bool,
) -> Result<Finished> {
    let finished = run_job(name, command, limit, verbose)?;
    if !finished.end.success() {
        bail!(
            "{name}: `{}` failed: {}",
            process::shown(command),
            finished.end
        );
    }
    Ok(finished)
}
