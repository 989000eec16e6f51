//! Text to count, none of it twice: a file of the caller's, else the project's own prose and code.

use std::path::{Path, PathBuf};

/// A source of text that was not seen before, as long as it lasts.
pub struct Source {
    all: String,
    at: usize,
    lap: usize,
}

impl Source {
    /// Reads `corpus`, or every text file of the project.
    pub fn new(corpus: Option<&Path>) -> Self {
        let mut all = String::new();
        match corpus {
            Some(path) => {
                let bytes = std::fs::read(path).expect("the corpus can be read");
                all.push_str(&String::from_utf8_lossy(&bytes));
            }
            None => {
                let root = Path::new(env!("CARGO_MANIFEST_DIR"));
                let folders =
                    ["docs", "src", "tests/it", "tests/clients", "scripts", "models/train"];
                let mut files = vec![root.join("README.md"), root.join("ARCHITECTURE.md")];
                folders.iter().for_each(|folder| collect(&root.join(folder), &mut files));
                files.sort();
                for file in files {
                    all.push_str(&std::fs::read_to_string(file).unwrap_or_default());
                }
            }
        }
        Self { all, at: 0, lap: 0 }
    }

    /// About `bytes` of text.
    pub fn text(&mut self, bytes: usize) -> String {
        if self.at + bytes + 8 > self.all.len() {
            // From here on the words are old, though never in the same company.
            self.lap += 1;
            self.at = self.lap * 37 % 1000;
        }
        let from = edge(&self.all, self.at);
        let to = edge(&self.all, from + bytes);
        self.at = to;
        self.all[from..to].to_owned()
    }

    /// Whether text had to be taken a second time.
    pub const fn laps(&self) -> usize {
        self.lap
    }
}

fn edge(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at += 1;
    }
    at
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|end| end == "rs" || end == "md" || end == "py") {
            files.push(path);
        }
    }
}
