//! The command line: what each subcommand takes, and where it goes.

pub mod client;
pub mod explain;
pub mod gpus;
pub mod keys;
pub mod operate;
pub mod quickstart;
pub mod replay;
pub mod screen;
pub mod serve;
pub mod simulate;
pub mod table;
pub mod tokens;

use clap::{CommandFactory, Parser, Subcommand};
use std::{fmt, io::Write, path::PathBuf};

/// Where the configuration is unless another file is named.
pub const CONFIG: &str = "/etc/berthd/berthd.toml";

/// The inference broker daemon for GPU hosts: stands between callers and the model servers of one host
/// and decides, for every request, whether, when and where it runs.
#[derive(Debug, Parser)]
#[command(name = "berthd", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon.
    Serve(ConfigFile),
    /// Try berthd on this machine: start it on loopback, send it one request, show the answer.
    Quickstart(quickstart::Options),
    /// Check the configuration and explain every problem in it.
    Check(ConfigFile),
    /// Show GPUs, servers, queue and recent refusals of the running daemon.
    Status(operate::StatusOptions),
    /// Show every reading of the GPUs, who holds their memory, and what is wrong with them.
    Gpus(gpus::Options),
    /// Tell what was decided about a request: which servers were considered, why this one, why it waited.
    Explain(explain::Options),
    /// Give a server nothing new; what runs there may finish.
    Drain(operate::ServerName),
    /// Give a drained server requests again.
    Undrain(operate::ServerName),
    /// Make the running daemon read its configuration again.
    Reload(operate::Socket),
    /// Count the input tokens of requests read from standard input.
    Tokens(tokens::Options),
    /// Screen texts for prompt injection, hidden text and secrets, with the code that the daemon screens with.
    Screen(screen::ScreenOptions),
    /// Score answers: unsafe, toxic, refusal, low quality, leaks, secrets, and one quality score.
    Score(screen::ScoreOptions),
    /// Make an API key, and the digest of it that the configuration holds.
    Key,
    /// Run a simulated model server or simulated GPUs, for tests and capacity planning.
    Simulate(simulate::Options),
    /// Replay a trace of requests against simulated servers, to plan capacity and compare policies.
    Replay(replay::Options),
    /// Print shell completions.
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page (roff).
    Man,
}

/// Which configuration.
#[derive(Debug, clap::Args)]
pub struct ConfigFile {
    /// The configuration file. Files in berthd.d beside it are read after it.
    #[arg(long, short, default_value = CONFIG, value_name = "FILE")]
    pub config: PathBuf,
}

/// Why a command failed, with its exit code (the sysexits numbers).
#[derive(Debug)]
pub struct Failure {
    /// The process's exit code.
    pub code: u8,
    /// What to print; what is wrong and what to do.
    pub message: String,
}

impl Failure {
    /// Something is wrong in how the command was used (64).
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: 64, message: message.into() }
    }

    /// What was given to the command cannot be worked on (65).
    pub fn data(message: impl Into<String>) -> Self {
        Self { code: 65, message: message.into() }
    }

    /// A daemon that should answer does not (69).
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { code: 69, message: message.into() }
    }

    /// A fault of ours or of the system (70).
    pub fn internal(message: impl fmt::Display) -> Self {
        Self { code: 70, message: message.to_string() }
    }

    /// The system does not allow it (77).
    pub fn permission(message: impl Into<String>) -> Self {
        Self { code: 77, message: message.into() }
    }

    /// The configuration is wrong (78).
    pub fn configuration(message: impl Into<String>) -> Self {
        Self { code: 78, message: message.into() }
    }
}

/// Runs the command line.
///
/// # Errors
/// What to print on standard error, and the exit code.
pub fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Serve(file) => serve::run(&file.config),
        Command::Quickstart(options) => quickstart::run(options),
        Command::Check(file) => serve::check(&file.config),
        Command::Status(options) => operate::status(&options),
        Command::Gpus(options) => gpus::run(&options),
        Command::Explain(options) => explain::run(&options),
        Command::Drain(server) => operate::drain(&server, true),
        Command::Undrain(server) => operate::drain(&server, false),
        Command::Reload(socket) => operate::reload(&socket),
        Command::Tokens(options) => tokens::run(&options),
        Command::Screen(options) => screen::screen(&options),
        Command::Score(options) => screen::score(&options),
        Command::Key => keys::run(),
        Command::Simulate(options) => simulate::run(options),
        Command::Replay(options) => replay::run(options),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "berthd", &mut std::io::stdout());
            Ok(())
        }
        Command::Man => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page).map_err(Failure::internal)?;
            print(&page)
        }
    }
}

/// Prints to standard output. A reader who has heard enough (`| head`) is no fault.
pub fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::internal(error))
        }
        _ => Ok(()),
    }
}

/// A small runtime for commands that make one call.
pub fn one_thread() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
