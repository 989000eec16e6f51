//! Traces: who came when, with how much.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    sync::Arc,
};

/// Tokens in one block of a trace's prompts.
pub const BLOCK_TOKENS: u64 = 512;
/// Rows that are read; a longer trace is an error rather than a full memory.
const ROWS_MAX: usize = 5_000_000;
/// Longest line, bytes.
const LINE_MAX: u64 = 1 << 20;
/// The columns, in this order.
const HEADER: &str = "arrival_ms,input_tokens,output_tokens,prefix_blocks";

/// One request of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// When it came, seconds from the first one.
    pub at_s: f64,
    /// Input tokens, at least 1.
    pub input: u64,
    /// Output tokens, at least 1.
    pub output: u64,
    /// Ids of the full blocks that its prompt begins with.
    pub blocks: Arc<[u64]>,
}

/// What is wrong with a trace.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It cannot be read.
    #[error("{0} cannot be read")]
    Read(String, #[source] io::Error),
    /// A line is not as it should be.
    #[error("{file}:{line}: {what}")]
    Line {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and how to write it.
        what: String,
    },
    /// There is nothing in it.
    #[error("{0} has no requests: rows of {HEADER} are expected behind that line")]
    Empty(String),
}

/// Reads a trace: CSV with the columns `arrival_ms,input_tokens,output_tokens,prefix_blocks`, gzipped or not.
/// Rows are sorted by arrival.
///
/// # Errors
/// What is wrong, and where.
pub fn read(path: &Path) -> Result<Vec<Row>, TraceError> {
    let name = path.display().to_string();
    let failed = |error| TraceError::Read(name.clone(), error);
    let mut file = BufReader::new(File::open(path).map_err(failed)?);
    let zipped = file.fill_buf().map_err(failed)?.starts_with(&[0x1f, 0x8b]);
    if zipped {
        parse(&name, BufReader::new(flate2::bufread::MultiGzDecoder::new(file)))
    } else {
        parse(&name, file)
    }
}

fn parse(name: &str, mut from: impl BufRead) -> Result<Vec<Row>, TraceError> {
    let wrong = |line: usize, what: String| TraceError::Line { file: name.to_owned(), line, what };
    let mut rows = Vec::new();
    let mut text = String::new();
    for line in 1.. {
        text.clear();
        let read = from.by_ref().take(LINE_MAX).read_line(&mut text);
        if read.map_err(|error| TraceError::Read(name.to_owned(), error))? == 0 {
            break;
        }
        let content = text.trim_end_matches(['\r', '\n']);
        if line == 1 {
            if content.trim_start_matches('\u{feff}') != HEADER {
                let what = format!("the first line must be `{HEADER}`");
                return Err(wrong(line, what));
            }
            continue;
        }
        if content.is_empty() {
            continue;
        }
        if rows.len() >= ROWS_MAX {
            return Err(wrong(line, format!("more than {ROWS_MAX} rows; cut the trace")));
        }
        rows.push(row(content).map_err(|what| wrong(line, what))?);
    }
    rows.sort_by(|a: &Row, b: &Row| a.at_s.total_cmp(&b.at_s));
    let Some(first) = rows.first().map(|row| row.at_s) else {
        return Err(TraceError::Empty(name.to_owned()));
    };
    for row in &mut rows {
        row.at_s -= first;
    }
    Ok(rows)
}

fn row(text: &str) -> Result<Row, String> {
    let mut cells = text.split(',');
    let mut cell =
        |what: &str| cells.next().map(str::trim).ok_or_else(|| format!("{what} is missing"));
    let at_ms: f64 = number(cell("arrival_ms")?, "arrival_ms")?;
    if !at_ms.is_finite() || at_ms < 0.0 {
        return Err(format!("arrival_ms is {at_ms}; write milliseconds from 0 up"));
    }
    let input = number::<u64>(cell("input_tokens")?, "input_tokens")?.max(1);
    let output = number::<u64>(cell("output_tokens")?, "output_tokens")?.max(1);
    let full = usize::try_from(input / BLOCK_TOKENS).unwrap_or(usize::MAX);
    let blocks = blocks(cells.next().unwrap_or_default(), full)?;
    if cells.next().is_some() {
        return Err(format!("there are more than four columns: {HEADER}"));
    }
    Ok(Row { at_s: at_ms / 1000.0, input, output, blocks })
}

fn number<N: std::str::FromStr>(text: &str, what: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("{what} is {text:?}, which is no number it can be"))
}

/// Ids separated by spaces; ascending runs are written `a-b`. Only the first `full` are whole blocks.
fn blocks(text: &str, full: usize) -> Result<Arc<[u64]>, String> {
    let mut ids = Vec::new();
    for part in text.split_ascii_whitespace() {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to) = (number::<u64>(from, "a block")?, number::<u64>(to, "a block")?);
        if to < from {
            return Err(format!("the blocks {part} run backwards"));
        }
        let left = full.saturating_sub(ids.len());
        ids.extend((from..=to).take(left));
    }
    Ok(ids.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Row>, String> {
        parse("t.csv", text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn rows_runs_and_partial_blocks_are_read() {
        let text = format!("{HEADER}\n20,1100,5,7 9-12\r\n10,100,0,3\n");
        let rows = read(&text).unwrap();
        assert_eq!((rows[0].at_s, rows[0].output, rows[0].blocks.len()), (0.0, 1, 0));
        assert_eq!((rows[1].at_s, &*rows[1].blocks), (0.01, &[7, 9][..]));
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        let of = |line: &str| read(&format!("{HEADER}\n1,1,1,\n{line}\n")).unwrap_err();
        assert!(of("x,1,1,").starts_with("t.csv:3: arrival_ms is \"x\""), "{}", of("x,1,1,"));
        assert!(of("1,2").contains("output_tokens is missing"));
        assert!(of("1,600,1,5-4").contains("run backwards"));
        assert!(of("1,1,1,,").contains("four columns"));
        assert!(read("a,b\n").unwrap_err().contains("the first line must be"));
        assert!(read(&format!("{HEADER}\n")).unwrap_err().contains("no requests"));
        // A run of a billion blocks is not written out.
        assert_eq!(read(&format!("{HEADER}\n1,600,1,0-9999999999\n")).unwrap()[0].blocks.len(), 1);
    }
}
