//! `berthd simulate --gpu`: cards that are not there, for whoever calls NVIDIA's library.
//!
//! The program carries a stand-in for `libnvidia-ml.so.1` (`src/simulate/driver`, C), which tells what a text
//! file beside it says. This module writes both files and changes the text on command. It knows nothing of what
//! the daemon makes of it.

mod cards;
mod change;
mod command;
mod control;
mod desk;
mod keys;
mod mig;
mod script;
mod state;

pub use cards::CardName;
pub use command::Wrong;
pub use control::{Node, OpenError};
pub use desk::DeskError;

use clap::Args;
use std::path::PathBuf;

/// The stand-in for `libnvidia-ml.so.1`, as a file's bytes. Empty where the program was built without a C
/// compiler.
pub const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libnvidia-ml.so.1"));

/// Which GPUs to simulate.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Simulated GPUs (docs/simulated-gpus.md)")]
pub struct GpuOptions {
    /// Simulate GPUs instead of a model server: writes a driver library and its state into this folder
    /// (`simulated-gpus` if none is named) and takes commands from standard input and from the socket
    /// `control` in it
    // Without a folder, so that `--gpu --help` is understood.
    #[arg(long, value_name = "FOLDER", conflicts_with = "SimulateOptions", num_args = 0..=1,
          default_missing_value = "simulated-gpus")]
    pub gpu: Option<PathBuf>,
    /// How many GPUs a new folder gets
    #[arg(long, value_name = "COUNT", default_value_t = 2, requires = "gpu",
          value_parser = clap::value_parser!(u8).range(1..=64))]
    pub cards: u8,
    /// Which GPUs a new folder gets
    #[arg(long, value_enum, default_value = "h200", requires = "gpu")]
    pub card: CardName,
    /// Play this script of commands, then go on; `failing-node` comes with the program
    #[arg(long, value_name = "FILE", requires = "gpu", conflicts_with = "once")]
    pub play: Option<String>,
    /// Change the state of a folder that is there, whether a simulation runs in it or not, and exit; `help`
    /// lists the commands
    #[arg(long, value_name = "COMMAND", requires = "gpu")]
    pub once: Option<String>,
}

/// Does one command on the node in a folder. What comes back is to be printed.
///
/// # Errors
///
/// What is wrong with the command; then nothing was changed.
pub fn once(folder: &std::path::Path, command: &str) -> Result<Option<String>, Wrong> {
    let command = command::Command::parse(command)?;
    if command == command::Command::Help {
        return Ok(Some(command::HELP.to_owned()));
    }
    desk::Desk::at(folder).map_err(command::wrong)?.run(&command)
}
