//! Content lists in files of their own: one entry a line, `#` starts a comment.

use super::problem::Report;
use std::{fs::File, io::Read, path::Path};

/// Largest list file, bytes.
const FILE_MAX: u64 = 32 << 20;

/// Adds the entries of a list's file. `line`: where the rule file names it.
pub(super) fn read(
    path: &Path,
    line: usize,
    entries: &mut Vec<(String, usize)>,
    report: &mut Report<'_>,
) {
    match text_of(path) {
        Ok(text) => entries.extend(parse(&text).map(|entry| (entry.to_owned(), 0))),
        Err((what, remedy)) => report.add(line, format!("{}: {what}", path.display()), remedy),
    }
}

/// The entries of a list.
fn parse(text: &str) -> impl Iterator<Item = &str> {
    // Some editors mark a file's start.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn text_of(path: &Path) -> Result<String, (String, &'static str)> {
    let cannot = |error: std::io::Error| {
        (
            format!("cannot be read: {error}"),
            "check the path, which starts at the rule file's folder",
        )
    };
    // A pipe or a device would keep the reader waiting for ever.
    if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
        return Err(("is no file".into(), "name a file with one entry a line"));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > FILE_MAX {
        let what = format!("is larger than {} MiB", FILE_MAX >> 20);
        return Err((what, "this is probably the wrong file"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes().iter().take(good).filter(|byte| **byte == b'\n').count();
        (format!("line {line} is not UTF-8 text"), "save the file in UTF-8 encoding")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_lines_without_comments() {
        let text = "\u{feff}# words\n one two \r\n\n#x\nthree # four\n";
        assert_eq!(parse(text).collect::<Vec<_>>(), ["one two", "three # four"]);
    }

    #[test]
    fn files_that_cannot_be_read_are_told_with_their_name() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("latin"), b"a\nb\xe9\n").unwrap();
        let cases =
            [("none", "none: cannot be read"), ("latin", "latin: line 2"), ("", "is no file")];
        for (name, what) in cases {
            let (mut problems, mut entries) = (Vec::new(), Vec::new());
            let mut report = Report { problems: &mut problems, rule: "a".into() };
            read(&folder.path().join(name), 7, &mut entries, &mut report);
            assert!(problems[0].what.contains(what), "{problems:?}");
            assert_eq!((problems[0].line, entries.len()), (7, 0));
        }
    }
}
