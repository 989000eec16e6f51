//! Many texts, a line each: worked on by all cores, answered in order.

use super::{Failure, Shared, Told, print};
use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Lines that are read before the first of them is answered.
const CHUNK: usize = 1024;
/// Longest line.
const LINE_MAX: u64 = 64 << 20;

/// Reads lines, works on them and prints what comes of them.
pub(super) fn run(shared: &Shared, work: impl Fn(&str) -> Told + Sync) -> Result<(), Failure> {
    let mut input: Box<dyn BufRead> = match &shared.file {
        Some(path) if path.as_os_str() != "-" => {
            let opened = File::open(path);
            let opened = opened.map_err(|error| {
                Failure::data(format!("cannot read {}: {error}", path.display()))
            })?;
            Box::new(BufReader::new(opened))
        }
        _ => Box::new(std::io::stdin().lock()),
    };
    // Twice the cores: while a text waits for a classifier, another is cut into tokens.
    let threads = 2 * shared.cores();
    let mut broken = 0_usize;
    loop {
        let lines = chunk(&mut *input)?;
        if lines.is_empty() {
            break;
        }
        let next = AtomicUsize::new(0);
        let done: Mutex<Vec<(usize, Told)>> = Mutex::new(Vec::with_capacity(lines.len()));
        std::thread::scope(|scope| {
            for _ in 0..threads.min(lines.len()) {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some(line) = lines.get(at) else { return };
                        let told = work(line);
                        done.lock().unwrap_or_else(PoisonError::into_inner).push((at, told));
                    }
                });
            }
        });
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by_key(|(at, _)| *at);
        let mut out = String::new();
        for (_, told) in &done {
            broken += usize::from(told.broken);
            out.push_str(&told.json);
            out.push('\n');
        }
        print(out.as_bytes())?;
    }
    match broken {
        0 => Ok(()),
        count => Err(Failure::data(format!("{count} lines could not be read"))),
    }
}

fn chunk(input: &mut dyn BufRead) -> Result<Vec<String>, Failure> {
    let mut lines = Vec::new();
    while lines.len() < CHUNK {
        let mut line = Vec::new();
        let read = input.take(LINE_MAX).read_until(b'\n', &mut line);
        if read.map_err(Failure::internal)? == 0 {
            break;
        }
        // What is not UTF-8 shows as a broken line, or as replacement characters inside a text.
        let line = String::from_utf8_lossy(&line);
        if !line.trim().is_empty() {
            lines.push(line.into_owned());
        }
    }
    Ok(lines)
}
