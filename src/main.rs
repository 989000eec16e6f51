//! The `berthd` command.

use berthd::cli::{self, Cli};
use clap::{Parser, error::ErrorKind};
use std::process::ExitCode;

fn main() -> ExitCode {
    let parsed = match Cli::try_parse() {
        Ok(parsed) => parsed,
        Err(error) => {
            // Help and version are no errors; anything else is wrong usage.
            let fine = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            // There is nobody to tell when the terminal itself is gone.
            let _ = error.print();
            return if fine { ExitCode::SUCCESS } else { ExitCode::from(64) };
        }
    };
    match cli::run(parsed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("berthd: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}
