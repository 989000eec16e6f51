//! The folder of a simulated node: the library, the state file, and changing the latter so that nobody reads
//! half of it and no two changes meet.

use super::{
    GpuOptions, LIBRARY, cards,
    change::apply,
    command::{Command, Wrong, wrong},
    state::State,
};
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// The most bytes of a state file that are read; the library has the same bound.
const STATE_MAX: u64 = 4 << 20;

/// Why the folder cannot be used. What was written before stays.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// The program has no library to write.
    #[error("this berthd was built without a C compiler and cannot simulate GPUs")]
    NoLibrary,
    /// A file of the folder cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The folder of one node.
#[derive(Debug)]
pub(super) struct Desk {
    folder: PathBuf,
}

// === impl Desk ===

impl Desk {
    /// The folder of a node that was set up before.
    pub(super) fn at(folder: &Path) -> Result<Self, DeskError> {
        let desk = Self { folder: folder.to_owned() };
        fs::metadata(desk.state()).map_err(|source| failed(desk.state(), source))?;
        Ok(desk)
    }

    /// Writes what is missing: the folder, the state, and in any case the library. Says whether the state is new.
    pub(super) fn set_up(options: &GpuOptions, folder: &Path) -> Result<(Self, bool), DeskError> {
        if LIBRARY.is_empty() {
            return Err(DeskError::NoLibrary);
        }
        fs::create_dir_all(folder).map_err(|source| failed(folder.to_owned(), source))?;
        // The daemon's configuration wants an absolute path.
        let folder = folder.canonicalize().map_err(|source| failed(folder.to_owned(), source))?;
        let desk = Self { folder };
        let _held = desk.hold().map_err(|source| failed(desk.folder.clone(), source))?;
        let written = desk.replace(&desk.library(), LIBRARY);
        written.map_err(|source| failed(desk.library(), source))?;
        let fresh = !desk.state().exists();
        if fresh {
            let state = cards::node(options.card, usize::from(options.cards)).text();
            let written = desk.replace(&desk.state(), state.as_bytes());
            written.map_err(|source| failed(desk.state(), source))?;
        }
        Ok((desk, fresh))
    }

    /// What goes into the daemon's configuration.
    pub(super) fn library(&self) -> PathBuf {
        self.folder.join("libnvidia-ml.so.1")
    }

    fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Where commands are taken.
    pub(super) fn socket(&self) -> PathBuf {
        self.folder.join("control")
    }

    /// Does what the command says, and gives what is to be printed.
    pub(super) fn run(&self, command: &Command) -> Result<Option<String>, Wrong> {
        let unusable = |error| wrong(format_args!("{}: {error}", self.state().display()));
        let _held = self.hold().map_err(unusable)?;
        let mut state = self.read().map_err(unusable)?;
        let before = state.clone();
        let said = apply(&mut state, command)?;
        if state != before {
            self.replace(&self.state(), state.text().as_bytes()).map_err(unusable)?;
        }
        Ok(said)
    }

    /// How many GPUs it has.
    pub(super) fn cards(&self) -> usize {
        self.read().map_or(0, |state| state.cards())
    }

    fn read(&self) -> io::Result<State> {
        let length = fs::metadata(self.state())?.len();
        if length > STATE_MAX {
            return Err(io::Error::other(format!("longer than {STATE_MAX} bytes")));
        }
        Ok(State::parse(&fs::read_to_string(self.state())?))
    }

    /// Keeps other processes, and other tasks of this one, from changing the folder until it is dropped.
    fn hold(&self) -> io::Result<File> {
        let folder = File::open(&self.folder)?;
        flock(&folder, FlockOperation::LockExclusive)?;
        Ok(folder)
    }

    /// By a rename: a library that is loaded keeps its old file, and nobody reads half of a new one.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let next = path.with_extension("next");
        fs::write(&next, bytes)?;
        fs::rename(&next, path)
    }
}

fn failed(path: PathBuf, source: io::Error) -> DeskError {
    DeskError::File { path, source }
}
