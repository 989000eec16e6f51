//! The `berthd` command.

use berthd::cli::{self, Cli};
use clap::{Parser, error::ErrorKind};
use std::process::ExitCode;

fn main() -> ExitCode {
    one_rayon_thread();
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

/// The embedded model's products ask for the number of threads each time; without this variable each
/// asking reads /proc/cpuinfo, which takes milliseconds on a host with many cores.
#[expect(unsafe_code, reason = "setting a variable is unsafe beside other threads")]
fn one_rayon_thread() {
    const NAME: &str = "RAYON_NUM_THREADS";
    if std::env::var_os(NAME).is_none() {
        // SAFETY: this is the first thing the process does; there is no other thread yet.
        unsafe { std::env::set_var(NAME, "1") };
    }
}
