//! Runs a program under a time limit: its own process group, no standard input, output handed on line by line.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

/// How long a group that was asked to end may take before it is killed.
const GRACE: Duration = Duration::from_secs(2);
/// How often the wait loop looks at the child and at the interrupt flag.
const TICK: Duration = Duration::from_millis(100);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Which of the child's two outputs a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It left by itself with this exit code.
    Exited(i32),
    /// A signal that did not come from here ended it.
    Signalled(i32),
    /// It was killed because its time was over.
    TimedOut,
}

impl End {
    /// True for exit code 0 only.
    pub(crate) fn success(self) -> bool {
        self == Self::Exited(0)
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit code {code}"),
            Self::Signalled(signal) => write!(f, "ended by signal {signal}"),
            Self::TimedOut => write!(f, "killed at its time limit"),
        }
    }
}

/// What is known about a program after it ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// How it ended.
    pub(crate) end: End,
    /// Wall time from start to end.
    pub(crate) elapsed: Duration,
    /// Every line it wrote, in the order of arrival.
    pub(crate) lines: Vec<(Stream, String)>,
}

impl Finished {
    /// The last `count` lines of both outputs, each indented by four blanks.
    pub(crate) fn tail(&self, count: usize) -> String {
        let skip = self.lines.len().saturating_sub(count);
        let lines: Vec<String> = self
            .lines
            .iter()
            .skip(skip)
            .map(|(_, line)| format!("    {line}"))
            .collect();
        lines.join("\n")
    }

    /// Standard output as one text.
    pub(crate) fn stdout(&self) -> String {
        let lines: Vec<&str> = self
            .lines
            .iter()
            .filter(|(stream, _)| *stream == Stream::Out)
            .map(|(_, line)| line.as_str())
            .collect();
        lines.join("\n")
    }
}

/// Makes Ctrl-C, SIGTERM and SIGHUP end the running program and then this one; a second signal ends at once.
pub(crate) fn install_interrupt_handler() -> Result<()> {
    ctrlc::set_handler(|| {
        // ORDERING: the flag guards no other data; it only has to be seen by the wait loop some time.
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })
    .context("installing the handler for Ctrl-C")
}

/// True once a signal asked this program to stop.
pub(crate) fn interrupted() -> bool {
    // ORDERING: the flag guards no other data, see the handler.
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Runs `command` for at most `limit` and hands every line to `on_line` as it comes.
///
/// # Errors
/// When the program cannot be started, and when Ctrl-C stopped it. A failing or overlong program is no error here:
/// see [`Finished::end`].
pub(crate) fn run(
    command: &mut Command,
    limit: Duration,
    on_line: &mut dyn FnMut(Stream, &str),
) -> Result<Finished> {
    let name = command.get_program().to_string_lossy().into_owned();
    if interrupted() {
        bail!("interrupted before {name} was started");
    }
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let group = Pid::from_child(&child);
    let (sender, receiver) = mpsc::channel();
    if let Some(out) = child.stdout.take() {
        forward(out, Stream::Out, sender.clone());
    }
    if let Some(err) = child.stderr.take() {
        forward(err, Stream::Err, sender.clone());
    }
    drop(sender);

    let mut lines = Vec::new();
    let mut status: Option<ExitStatus> = None;
    let mut drained = false;
    // Once the child is gone its output may be held open by a grandchild; that gets a short time as well.
    let mut deadline = start + limit;
    let mut timed_out = false;
    while !(drained && status.is_some()) {
        let now = Instant::now();
        if now >= deadline || interrupted() {
            timed_out = status.is_none();
            end_group(group, &mut child, &mut status)?;
            break;
        }
        match receiver.recv_timeout(TICK.min(deadline - now)) {
            Ok((stream, line)) => {
                on_line(stream, &line);
                lines.push((stream, line));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                drained = true;
                thread::sleep(Duration::from_millis(1));
            }
        }
        if status.is_none() {
            status = child
                .try_wait()
                .with_context(|| format!("waiting for {name}"))?;
            if status.is_some() {
                deadline = deadline.min(Instant::now() + GRACE);
            }
        }
    }
    // Lines that were under way; somebody who left the group could write for ever.
    let deadline = Instant::now() + GRACE;
    while let Some(rest) = deadline.checked_duration_since(Instant::now()) {
        let Ok((stream, line)) = receiver.recv_timeout(TICK.min(rest)) else {
            break;
        };
        on_line(stream, &line);
        lines.push((stream, line));
    }
    if interrupted() {
        bail!("interrupted: the running program was ended");
    }
    let end = match status {
        _ if timed_out => End::TimedOut,
        Some(status) => match (status.code(), status.signal()) {
            (Some(code), _) => End::Exited(code),
            (None, signal) => End::Signalled(signal.unwrap_or_default()),
        },
        None => End::TimedOut,
    };
    Ok(Finished {
        end,
        elapsed: start.elapsed(),
        lines,
    })
}

/// Runs `command` and keeps its output to itself.
pub(crate) fn run_quiet(command: &mut Command, limit: Duration) -> Result<Finished> {
    run(command, limit, &mut |_, _| {})
}

/// The command as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| {
        let word = word.to_string_lossy();
        if word.is_empty() || word.contains([' ', '*', '\'', '"']) {
            format!("'{word}'")
        } else {
            word.into_owned()
        }
    }));
    words.join(" ")
}

fn forward(source: impl Read + Send + 'static, stream: Stream, sender: Sender<(Stream, String)>) {
    thread::spawn(move || {
        let mut source = BufReader::new(source);
        let mut bytes = Vec::new();
        while matches!(source.read_until(b'\n', &mut bytes), Ok(1..)) {
            let line = String::from_utf8_lossy(&bytes)
                .trim_end_matches(['\n', '\r'])
                .to_owned();
            if sender.send((stream, line)).is_err() {
                break;
            }
            bytes.clear();
        }
    });
}

/// Asks the whole group to end, then kills it; the child is reaped in the end.
fn end_group(group: Pid, child: &mut Child, status: &mut Option<ExitStatus>) -> Result<()> {
    // The group may be gone already, so failures of the two signals say nothing.
    let _ = kill_process_group(group, Signal::TERM);
    let deadline = Instant::now() + GRACE;
    while status.is_none() && Instant::now() < deadline {
        *status = child
            .try_wait()
            .context("waiting for a program that was asked to end")?;
        thread::sleep(Duration::from_millis(10));
    }
    let _ = kill_process_group(group, Signal::KILL);
    if status.is_none() {
        *status = Some(
            child
                .wait()
                .context("waiting for a program that was killed")?,
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_and_exit_code_are_kept() {
        let finished = run_quiet(
            &mut shell("echo one; echo two >&2; exit 35"),
            Duration::from_secs(20),
        )
        .unwrap();
        assert_eq!(finished.end, End::Exited(35));
        assert!(finished.lines.contains(&(Stream::Out, "one".into())));
        assert!(finished.lines.contains(&(Stream::Err, "two".into())));
        assert_eq!(finished.stdout(), "one");
    }

    #[test]
    fn the_whole_group_is_killed_at_the_limit() {
        let script = "trap '' TERM; sleep 60 & echo $!; wait; sleep 60";
        let finished = run_quiet(&mut shell(script), Duration::from_millis(300)).unwrap();
        assert_eq!(finished.end, End::TimedOut);
        assert!(finished.elapsed < Duration::from_secs(30));
        let grandchild = finished.stdout();
        let alive = || {
            std::fs::read_to_string(format!("/proc/{grandchild}/stat"))
                .is_ok_and(|stat| !stat.contains(") Z "))
        };
        // A killed process takes a moment to vanish.
        let deadline = Instant::now() + Duration::from_secs(10);
        while alive() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        assert!(
            !grandchild.is_empty() && !alive(),
            "the grandchild {grandchild:?} outlived the time limit"
        );
    }

    #[test]
    fn a_grandchild_that_holds_the_output_does_not_hold_the_caller() {
        let finished = run_quiet(&mut shell("sleep 60 & exit 0"), Duration::from_secs(50)).unwrap();
        assert_eq!(finished.end, End::Exited(0));
        assert!(finished.elapsed < Duration::from_secs(30));
    }

    #[test]
    fn standard_input_is_empty() {
        let finished = run_quiet(&mut shell("cat; echo end"), Duration::from_secs(20)).unwrap();
        assert_eq!(finished.stdout(), "end");
    }

    #[test]
    fn a_missing_program_is_an_error() {
        let error = run_quiet(
            &mut Command::new("no-such-program-here"),
            Duration::from_secs(5),
        )
        .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("cannot start no-such-program-here"),
            "{error}"
        );
    }

    #[test]
    fn a_command_is_shown_with_quotes_where_needed() {
        let mut command = Command::new("qemu");
        command.args(["-append", "a b"]);
        assert_eq!(shown(&command), "qemu -append 'a b'");
    }
}
