//! The mesh layer: what a call through it costs, how it avoids a slow replica, and what tracing costs.
//!
//! `cargo xtask bench mesh`. Three parts, each of contestants that take turns in one run:
//! - [`cost`]: unary calls to one server in another process over a bare tonic channel and over the mesh's client
//!   ([`client`], a process for each way, so that its CPU time is told apart);
//! - [`slow`]: three replicas as processes ([`replica`]), one of which becomes ten times slower; who sends it how much;
//! - [`traces`]: frames through `sightline dev` without traces, with one in a hundred, and with all.
//!
//! Only ratios count: absolute figures are one machine's.

mod child;
mod client;
mod collector;
mod contestants;
mod cost;
mod options;
mod replica;
mod report;
mod slow;
mod traces;

use std::{process::ExitCode, time::Instant};

use anyhow::{Result, bail};
use options::Options;
use report::Report;
use sightline_benches::cpu;
use tokio::runtime::{Builder, Runtime};

/// The product's: what a call allocates costs here what it costs there.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.split_first() {
        Some((first, arguments)) if first == child::ARGUMENT => be(arguments).map(|()| true),
        _ => match Options::read(arguments.iter().cloned()) {
            Ok(Some(options)) => run(&options),
            Ok(None) => {
                print(options::HELP);
                Ok(true)
            }
            Err(error) => Err(error),
        },
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mesh: {error:#}");
            ExitCode::from(2)
        }
    }
}

#[allow(clippy::print_stdout)] // a benchmark's result
fn print(text: &str) {
    println!("{text}");
}

/// One thread for each process: with more, a contestant that spreads would take the other's core.
fn runtime() -> Result<Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

/// One of the processes that take part.
fn be(arguments: &[String]) -> Result<()> {
    let Some((what, rest)) = arguments.split_first() else { bail!("be what?") };
    runtime()?.block_on(async {
        match what.as_str() {
            "echo" | "replica" => replica::run(arguments).await,
            "client" => client::run(rest).await,
            "collector" => collector::run().await,
            _ => bail!("{what:?} is no process of this benchmark"),
        }
    })
}

fn run(options: &Options) -> Result<bool> {
    let mut report = Report::default();
    let clocks = || (cpu::machine(), cpu::of_tree(std::process::id()));
    let (since, before) = (Instant::now(), clocks());
    if options.has("cost") {
        report.cost = cost::run(options)?;
    }
    if options.has("slow") {
        report.slow = slow::run(options, &runtime()?)?;
    }
    if options.has("traces") {
        report.traces = traces::run(options, &runtime()?)?;
    }
    let after = clocks();
    let ours = after.1.saturating_sub(before.1);
    let others = after.0.saturating_sub(before.0).saturating_sub(ours);
    let cores = std::thread::available_parallelism()?.get() as f64;
    report.others = others.as_secs_f64() / (since.elapsed().as_secs_f64() * cores);
    print(&if options.json { report.json().to_string() } else { report.table() });
    Ok(report.passed())
}
