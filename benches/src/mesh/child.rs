//! Processes of this same program, told line by line what to do: servers, and callers whose CPU is to be told apart.

use std::{
    io::{BufRead, BufReader, Lines, Write},
    process::{Child as Process, ChildStdin, ChildStdout, Command, Stdio},
    thread,
};

use anyhow::{Context, Result};
use tokio::sync::mpsc;

/// What the program is told that is to be such a process.
pub(crate) const ARGUMENT: &str = "be";

/// A process, killed when dropped. It ends by itself when this one does.
pub(crate) struct Child {
    process: Process,
    orders: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// Starts one and gives the first line that it says.
    pub(crate) fn start(arguments: &[&str]) -> Result<(Self, String)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(ARGUMENT).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().with_context(|| format!("starting {arguments:?}"))?;
        let orders = process.stdin.take().context("it has an input")?;
        let said = BufReader::new(process.stdout.take().context("it has an output")?).lines();
        let mut child = Self { process, orders, said };
        let first = child.line().with_context(|| format!("starting {arguments:?}"))?;
        Ok((child, first))
    }

    /// Gives an order and waits for the answer.
    pub(crate) fn ask(&mut self, order: &str) -> Result<String> {
        writeln!(self.orders, "{order}")?;
        self.line().with_context(|| order.to_owned())
    }

    /// An order whose answer is a number.
    pub(crate) fn number(&mut self, order: &str) -> Result<u64> {
        let answer = self.ask(order)?;
        answer.parse().with_context(|| format!("{order}: {answer:?}"))
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    fn line(&mut self) -> Result<String> {
        Ok(self.said.next().context("it has ended")??)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// The other end of it: orders as they come. The process ends with them.
pub(crate) fn orders() -> mpsc::Receiver<String> {
    // Orders wait for their answers: one is under way.
    let (send, receive) = mpsc::channel(1);
    thread::spawn(move || {
        for order in std::io::stdin().lines().map_while(Result::ok) {
            if send.blocking_send(order).is_err() {
                break;
            }
        }
        std::process::exit(0);
    });
    receive
}

/// Answers.
pub(crate) fn say(line: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}")?;
    Ok(output.flush()?)
}
