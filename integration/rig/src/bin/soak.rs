//! Lives random lives on the rig for a while, or one of them again: what `cargo xtask soak` runs.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use hv_rig::life::{LIMIT, Life, Lived, shrink};
use hv_rig::{Temper, Vendor};

/// What this was asked to do.
struct Options {
    seconds: u64,
    seed: u64,
    operations: usize,
    luck: u64,
    temper: Option<Temper>,
    /// Live one life only: these of its operations, or all.
    only: Option<Option<Vec<usize>>>,
    /// Machines of one vendor only; else of each in turn.
    vendor: Option<Vendor>,
}

const USAGE: &str = "\
usage: soak [--seconds N] [--seed S] [--operations N] [--vendor vtd|smmu] [--once] [--luck N] [--temper BITS] [--keep A,B,C-D]
  --seconds N      how long to go on (10)
  --seed S         the first seed, decimal or 0x hexadecimal (drawn from the clock)
  --operations N   operations of each life (300)
  --vendor NAME    machines with vtd or smmu units only (each in turn)
  --once           live the life of the seed once
  --luck N         other luck of the hardware in the same life, as a failure names it
  --temper BITS    another temper of the hardware, as a failure names it
  --keep LIST      of the seed's life only these operations, as a failure names them";

/// What was done in all lives.
#[derive(Default)]
struct Sum {
    lives: u64,
    operations: u64,
    requests: u64,
    translated: u64,
    invalidations: u64,
}

impl Sum {
    fn add(&mut self, lived: &Lived) {
        self.lives += 1;
        self.operations += lived.operations;
        self.requests += lived.counts.requests;
        self.translated += lived.counts.translated;
        self.invalidations += lived.counts.invalidations;
    }

    fn line(&self, took: Duration) -> String {
        let per_second = |count: u64| (count as f64 / took.as_secs_f64().max(0.001)) as u64;
        format!(
            "{:>5.0} s  {:>7} lives  {:>9} operations ({:>6}/s)  {:>10} DMAs ({:>7}/s, {:>2} % translated)  {:>8} \
             invalidations",
            took.as_secs_f64(),
            self.lives,
            self.operations,
            per_second(self.operations),
            self.requests,
            per_second(self.requests),
            self.translated * 100 / self.requests.max(1),
            self.invalidations
        )
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Numbers and ranges, as in `1,4-6`.
fn list(text: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        all.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(all)
}

fn options() -> Option<Options> {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let mut options = Options {
        seconds: 10,
        seed: clock.map_or(0, |now| now.as_nanos() as u64 & 0xffff_ffff),
        operations: 300,
        luck: 0,
        temper: None,
        only: None,
        vendor: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seconds" => options.seconds = number(&arguments.next()?)?,
            "--seed" => options.seed = number(&arguments.next()?)?,
            "--operations" => options.operations = number(&arguments.next()?)? as usize,
            "--luck" => options.luck = number(&arguments.next()?)?,
            "--temper" => {
                let bits = u16::try_from(number(&arguments.next()?)?).ok()?;
                options.temper = Some(Temper::from_bits(bits));
            }
            "--vendor" => options.vendor = Some(Vendor::from_name(&arguments.next()?)?),
            "--once" => options.only = Some(None),
            "--keep" => options.only = Some(Some(list(&arguments.next()?)?)),
            _ => return None,
        }
    }
    Some(options)
}

/// Tells of a failure, shortened.
fn tell(life: &Life, lived: Lived) {
    println!(
        "seed {:#x} broke a rule; making it shorter (at most {} s) ...",
        life.seed,
        LIMIT.as_secs()
    );
    let (short, lived) = shrink(life, lived, LIMIT);
    let Some(failure) = lived.failure else { return };
    let ops = short.ops();
    println!("\n{failure}");
    println!(
        "operations that it takes: {} of {}",
        ops.len(),
        life.operations
    );
    for (index, op) in &ops {
        println!("  {index:>4} {op}");
    }
    let tables = short.tables();
    let high = if tables.high { ", high memory" } else { "" };
    println!("tables: of pages of {}{high}", tables.page);
    println!("hardware: {:?}", short.machine().temper);
    for (index, unit) in short.machine().units.iter().enumerate() {
        println!("  unit {index}: {:?}", unit.registers);
    }
    println!("\nto see it again: {}", short.command());
}

fn main() -> ExitCode {
    let Some(options) = options() else {
        eprintln!("{USAGE}");
        return ExitCode::FAILURE;
    };
    // A panic of the driver is a failure like others, told with its seed.
    std::panic::set_hook(Box::new(|_| {}));
    if let Some(keep) = options.only {
        let life = Life {
            keep,
            luck: options.luck,
            temper: options.temper,
            ..Life::new(
                options.vendor.unwrap_or(Vendor::Vtd),
                options.seed,
                options.operations,
            )
        };
        if life.ops().is_empty() {
            eprintln!(
                "none of these operations is in the life, which has numbers 0 to {}",
                options.operations.saturating_sub(1)
            );
            return ExitCode::FAILURE;
        }
        let lived = life.live();
        return match &lived.failure {
            Some(_) => {
                tell(&life, lived);
                ExitCode::FAILURE
            }
            None => {
                println!(
                    "seed {:#x}: {} operations, no rule was broken",
                    life.seed, lived.operations
                );
                ExitCode::SUCCESS
            }
        };
    }
    let (start, limit) = (Instant::now(), Duration::from_secs(options.seconds));
    let terminal = std::io::stdout().is_terminal();
    let mut shown = Instant::now();
    let mut sum = Sum::default();
    println!(
        "random lives of {} operations from seed {:#x} on",
        options.operations, options.seed
    );
    while start.elapsed() < limit {
        let seed = options.seed.wrapping_add(sum.lives);
        // Each vendor in turn.
        let turn = (sum.lives % Vendor::ALL.len() as u64) as usize;
        let vendor = options.vendor.unwrap_or(Vendor::ALL[turn]);
        let life = Life::new(vendor, seed, options.operations);
        let lived = life.live();
        sum.add(&lived);
        if lived.failure.is_some() {
            println!("{}", sum.line(start.elapsed()));
            tell(&life, lived);
            println!("FAILED: a rule was broken in life {}", sum.lives);
            return ExitCode::FAILURE;
        }
        let every = Duration::from_secs(if terminal { 1 } else { 10 });
        if shown.elapsed() > every {
            shown = Instant::now();
            if terminal {
                print!("\r{}", sum.line(start.elapsed()));
                drop(std::io::stdout().flush());
            } else {
                println!("{}", sum.line(start.elapsed()));
            }
        }
    }
    let line = sum.line(start.elapsed());
    println!("{}{line}", if terminal { "\r" } else { "" });
    println!("ok: no rule was broken in {} lives", sum.lives);
    ExitCode::SUCCESS
}
