//! Many requests, one a line: answered in order, each as soon as it is counted.

use super::{Failure, REQUEST_MAX, answer::Answer};
use crate::error::{Reason, Refusal};
use serde_json::json;
use std::io::{self, BufRead, Read, Write};

/// Reads lines until standard input ends, or nobody reads the answers any more.
pub(super) fn run(count: impl FnMut(&[u8]) -> Result<Answer, Refusal>) -> Result<(), Failure> {
    let (lines, failed) = answer(&mut io::stdin().lock(), &mut io::stdout().lock(), count)
        .map_err(Failure::internal)?;
    if failed > 0 {
        return Err(Failure::data(format!("{failed} of {lines} requests could not be counted")));
    }
    Ok(())
}

/// How many lines there were, and how many of them could not be counted.
fn answer(
    input: &mut impl BufRead,
    output: &mut impl Write,
    mut count: impl FnMut(&[u8]) -> Result<Answer, Refusal>,
) -> io::Result<(u64, u64)> {
    let (mut lines, mut failed) = (0, 0);
    let mut line = Vec::new();
    while read(input, &mut line)? {
        lines += 1;
        let answered = if line.len() as u64 > REQUEST_MAX {
            Err(Refusal::new(Reason::BodyTooLarge, "The line is too long."))
        } else {
            count(&line)
        };
        let mut text = match answered {
            Ok(answer) => answer.json(),
            Err(refusal) => {
                failed += 1;
                error(&refusal)
            }
        };
        text.push('\n');
        match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            written => written?,
        }
    }
    Ok((lines, failed))
}

/// Reads a line without its end; of one that is too long just more than allowed. False at the end.
fn read(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let most = REQUEST_MAX + 1;
    if input.by_ref().take(most).read_until(b'\n', line)? == 0 {
        return Ok(false);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if line.len() as u64 == most {
        // Its rest is no request of its own.
        input.skip_until(b'\n')?;
    }
    Ok(true)
}

fn error(refusal: &Refusal) -> String {
    json!({"error": {
        "message": refusal.message, "code": refusal.reason.as_str(), "param": refusal.param,
    }})
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_line_gives_an_error_on_its_line_and_the_run_goes_on() {
        let mut seen = Vec::new();
        let mut output = Vec::new();
        let counted = |line: &[u8]| {
            seen.push(String::from_utf8_lossy(line).into_owned());
            Err(Refusal::new(Reason::MalformedJson, "Not \"JSON\".").param("x"))
        };
        let ends = answer(&mut "one\n\nthree".as_bytes(), &mut output, counted).unwrap();
        assert_eq!(
            (ends, seen),
            ((3, 3), vec!["one".to_owned(), String::new(), "three".to_owned()])
        );
        let lines: Vec<serde_json::Value> = String::from_utf8(output)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1]["error"]["code"], "malformed_json");
        assert_eq!(lines[1]["error"]["message"], "Not \"JSON\".");
        assert_eq!(lines[1]["error"]["param"], "x");
    }

    #[test]
    fn nobody_reading_the_answers_is_the_end_and_no_fault() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let refused = |_: &[u8]| Err(Refusal::new(Reason::MalformedJson, "no"));
        assert_eq!(answer(&mut "a\nb\n".as_bytes(), &mut Gone, refused).unwrap(), (1, 1));
    }
}
