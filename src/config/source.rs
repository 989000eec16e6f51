//! Files as written: TOML text into a small tree in which every value knows its file and line, and
//! one such tree laid over another.
//!
//! Knows nothing about which keys exist, except the three lists whose entries are told apart by name.

use super::problem::{Report, Spot};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::{Path, PathBuf},
    sync::Arc,
};
use toml::de::{DeTable, DeValue};

/// Largest configuration file. A fleet of thousands of tenants fits; a log file given by mistake
/// does not fill the memory.
pub(super) const FILE_MAX_BYTES: u64 = 8 << 20;

/// Most drop-in files; more is a folder given by mistake.
const DROP_INS_MAX: usize = 256;

/// The lists whose entries merge by `name`.
const NAMED_LISTS: [&str; 3] = ["tenants", "models", "servers"];

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Written {
    /// Where it stands.
    pub at: Spot,
    /// What it is.
    pub value: Value,
}

/// A TOML value. Numbers outside 64 bits are already reported and read as text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// Text in quotes.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// A number with a fraction.
    Float(f64),
    /// `true` or `false`.
    Flag(bool),
    /// A date or time; no key takes one.
    Date(String),
    /// A list.
    List(Vec<Written>),
    /// A table.
    Table(Table),
}

impl Value {
    /// The kind of value, for people.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Integer(_) => "a whole number",
            Self::Float(_) => "a number with a fraction",
            Self::Flag(_) => "true or false",
            Self::Date(_) => "a date",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

/// A table: keys, each with its value.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Table {
    /// The entries by key.
    pub entries: BTreeMap<String, Written>,
}

impl Table {
    fn name(&self) -> Option<&str> {
        match &self.entries.get("name")?.value {
            Value::Text(name) => Some(name),
            _ => None,
        }
    }
}

// === Reading ===

/// Reads the main file and its drop-ins and lays them over each other.
pub(super) fn read_files(path: &Path, report: &Report) -> Table {
    let mut merged = match read_text(path, report) {
        Some(text) => parse(&path.display().to_string(), &text, report),
        None => Table::default(),
    };
    for drop_in in drop_ins(path, report) {
        if let Some(text) = read_text(&drop_in, report) {
            merge(&mut merged, parse(&drop_in.display().to_string(), &text, report));
        }
    }
    merged
}

/// Reads a configuration file; what goes wrong is reported.
fn read_text(path: &Path, report: &Report) -> Option<String> {
    match text_of(path) {
        Ok(text) => Some(text),
        Err(unread) => {
            let file = Spot::of_file(path).file;
            report.error(&Spot::new(&file, unread.line), "", unread.what, unread.remedy);
            report.broken(&file);
            None
        }
    }
}

/// Why a file could not be read. Nothing is kept of it.
pub(super) struct Unread {
    /// The line that is at fault; 0 for the file as a whole.
    line: usize,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: &'static str,
}

/// The text of a file, bounded and UTF-8.
pub(super) fn text_of(path: &Path) -> Result<String, Unread> {
    let bytes = read_bounded(path).map_err(|error| Unread {
        line: 0,
        what: format!("cannot read the file: {error}"),
        remedy: "check the path, and that the daemon's user may read it",
    })?;
    if bytes.len() as u64 > FILE_MAX_BYTES {
        let what = format!("larger than {} MiB", FILE_MAX_BYTES >> 20);
        return Err(Unread { line: 0, what, remedy: "this is probably the wrong file" });
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes().iter().take(good).filter(|byte| **byte == b'\n').count();
        Unread {
            line,
            what: "not UTF-8 text".to_owned(),
            remedy: "save the file in UTF-8 encoding",
        }
    })
}

fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// `berthd.d/*.toml` beside the main file, sorted by name. No such folder is no fault.
fn drop_ins(path: &Path, report: &Report) -> Vec<PathBuf> {
    let folder = path.parent().unwrap_or(Path::new("")).join("berthd.d");
    let listed = match std::fs::read_dir(&folder) {
        Ok(listed) => listed,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            let what = format!("cannot list the folder: {error}");
            report.error(
                &Spot::of_file(&folder),
                "",
                what,
                "let the daemon's user read it, or remove it",
            );
            return Vec::new();
        }
    };
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in listed {
        match entry {
            Ok(entry) => files.push(entry.path()),
            Err(error) => {
                let what = format!("cannot list the folder: {error}");
                report.error(&Spot::of_file(&folder), "", what, "let the daemon's user read it");
            }
        }
    }
    files.retain(|file| {
        // Editors leave hidden copies behind; those must not configure a daemon.
        let hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        // A pipe or a device would keep the reader waiting for ever.
        let special = std::fs::metadata(file).is_ok_and(|meta| !meta.is_file());
        !hidden && !special && file.extension().is_some_and(|extension| extension == "toml")
    });
    files.sort();
    if files.len() > DROP_INS_MAX {
        let what = format!("{} files; at most {DROP_INS_MAX} are read", files.len());
        report.error(&Spot::of_file(&folder), "", what, "put entries together into fewer files");
        files.truncate(DROP_INS_MAX);
    }
    files
}

/// Makes a tree of TOML text. Syntax errors are reported, all that the parser finds, and what could
/// be read is returned.
pub(super) fn parse(name: &str, text: &str, report: &Report) -> Table {
    let lines = Lines::new(name, text);
    let (tree, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let at = lines.spot(error.span().map_or(0, |span| span.start));
        report.syntax(&at, error.message().trim().replace('\n', ", "));
    }
    let tree = lines.table(tree.get_ref(), report);
    refuse_twins(&tree, report);
    tree
}

/// Finds the line of a byte offset.
struct Lines {
    file: Arc<str>,
    ends: Vec<usize>,
}

impl Lines {
    fn new(name: &str, text: &str) -> Self {
        let ends = memchr::memchr_iter(b'\n', text.as_bytes()).collect();
        Self { file: name.into(), ends }
    }

    fn spot(&self, offset: usize) -> Spot {
        Spot::new(&self.file, 1 + self.ends.partition_point(|end| *end < offset))
    }

    fn table(&self, table: &DeTable<'_>, report: &Report) -> Table {
        let mut entries = BTreeMap::new();
        for (key, value) in table {
            let at = self.spot(key.span().start);
            let value = match value.get_ref() {
                // The key of a list of tables stands at its first entry; each entry knows its own line.
                DeValue::Table(inner) => Value::Table(self.table(inner, report)),
                other => self.value(other, &at, report),
            };
            entries.insert(key.get_ref().to_string(), Written { at, value });
        }
        Table { entries }
    }

    fn value(&self, value: &DeValue<'_>, at: &Spot, report: &Report) -> Value {
        match value {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(number) => {
                match i64::from_str_radix(number.as_str(), number.radix()) {
                    Ok(number) => Value::Integer(number),
                    Err(_) => {
                        report.syntax(at, "a number of more than 64 bits");
                        Value::Text(number.to_string())
                    }
                }
            }
            DeValue::Float(number) => match number.as_str().parse() {
                Ok(number) => Value::Float(number),
                Err(_) => Value::Text(number.to_string()),
            },
            DeValue::Boolean(flag) => Value::Flag(*flag),
            DeValue::Datetime(date) => Value::Date(date.to_string()),
            DeValue::Array(list) => Value::List(
                list.iter()
                    .map(|item| {
                        let at = self.spot(item.span().start);
                        let value = self.value(item.get_ref(), &at, report);
                        Written { at, value }
                    })
                    .collect(),
            ),
            DeValue::Table(table) => Value::Table(self.table(table, report)),
        }
    }
}

/// Within one file a name is given once; across files the same name means the same entry. Models are
/// checked where they are read, together with their aliases.
fn refuse_twins(tree: &Table, report: &Report) {
    for list in NAMED_LISTS.into_iter().filter(|list| *list != "models") {
        let Some(Written { value: Value::List(rows), .. }) = tree.entries.get(list) else {
            continue;
        };
        let mut first: BTreeMap<&str, &Spot> = BTreeMap::new();
        for (position, row) in rows.iter().enumerate() {
            let Value::Table(table) = &row.value else { continue };
            let (Some(name), Some(at)) =
                (table.name(), table.entries.get("name").map(|name| &name.at))
            else {
                continue;
            };
            if let Some(other) = first.get(name) {
                report.error(
                    at,
                    format!("{list}[{position}].name"),
                    format!("the name `{name}` is taken on line {}", other.line),
                    "give each entry a name of its own",
                );
            } else {
                first.insert(name, at);
            }
        }
    }
}

// === Merging ===

/// Lays `over` on `base`: its keys win, tables merge key by key, the named lists entry by entry.
pub(super) fn merge(base: &mut Table, over: Table) {
    for (key, written) in over.entries {
        let named = NAMED_LISTS.contains(&key.as_str());
        match base.entries.entry(key) {
            Entry::Vacant(free) => {
                free.insert(written);
            }
            Entry::Occupied(mut held) => merge_value(held.get_mut(), written, named),
        }
    }
}

fn merge_value(base: &mut Written, over: Written, named: bool) {
    match (&mut base.value, over) {
        (Value::Table(base), Written { value: Value::Table(over), .. }) => merge(base, over),
        (Value::List(base), Written { value: Value::List(over), .. }) if named => {
            for row in over {
                match twin_of(base, &row) {
                    Some(twin) => merge_value(twin, row, false),
                    None => base.push(row),
                }
            }
        }
        (_, over) => *base = over,
    }
}

/// The entry of the same name.
fn twin_of<'a>(rows: &'a mut [Written], row: &Written) -> Option<&'a mut Written> {
    let Value::Table(table) = &row.value else { return None };
    let name = table.name()?;
    rows.iter_mut()
        .find(|base| matches!(&base.value, Value::Table(base) if base.name() == Some(name)))
}
