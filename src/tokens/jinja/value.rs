//! Values as Python has them, as far as templates can make them: all but namespaces never change.

use super::Stop;
use crate::tokens::{memo::Key, python};
use std::{
    collections::HashMap,
    fmt,
    ops::Deref,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Deepest nesting of lists and dicts. JSON bodies have at most 128; templates could build towers that
/// no stack can take down again.
const DEPTH_MAX: u16 = 400;

/// Keys up to this many are looked up by walking.
const WALKED_KEYS_MAX: usize = 16;

/// One value.
#[derive(Clone, Debug)]
pub(in crate::tokens) enum Value {
    /// What a missing name or key gives.
    Undefined,
    /// `None`
    None,
    /// `bool`, which is an integer too.
    Bool(bool),
    /// `int`. Python's have no bound; a result that does not fit is an error.
    Int(i128),
    /// `float`
    Float(f64),
    /// `str`
    Str(Arc<str>),
    /// `Markup`, what `|safe` gives: text that escapes what is joined to it.
    Safe(Arc<str>),
    /// `list`
    List(Arc<Seq>),
    /// `tuple`
    Tuple(Arc<Seq>),
    /// `dict`
    Dict(Arc<Dict>),
    /// `range`: first, end and step.
    Range(i128, i128, i128),
    /// What `keys()`, `values()` and `items()` give.
    View(View, Arc<Dict>),
    /// A generator or iterator: it can be walked once.
    Once(Arc<Once>),
    /// A method with the value it belongs to.
    Method(Arc<(Value, &'static str)>),
    /// A function that every template has.
    Global(Global),
    /// A macro, by its number in the running template.
    Macro(usize),
    /// A namespace, by its number in the running template.
    Namespace(usize),
    /// A loop's `loop`, by its number in the running template.
    Loop(usize),
}

/// Which part of a dict a view shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tokens) enum View {
    Keys,
    Values,
    Items,
}

/// Functions that every template has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tokens) enum Global {
    Range,
    Dict,
    Namespace,
    RaiseException,
    StrftimeNow,
    Joiner,
    Cycler,
    Lipsum,
}

/// The items of a list or tuple.
#[derive(Debug)]
pub(in crate::tokens) struct Seq {
    pub(in crate::tokens) items: Vec<Value>,
    /// What `groupby` made: the two items have the names `grouper` and `list`.
    pub(super) is_group: bool,
    depth: u16,
}

/// A dict, which may be made only when something looks into it.
pub(in crate::tokens) struct Dict {
    table: OnceLock<Table>,
    later: Option<Later>,
}

/// How a dict is made later: what tells its content from others', and the making.
pub(in crate::tokens) struct Later {
    /// Equal for equal contents only.
    pub(in crate::tokens) key: Key,
    /// Who makes it, and which of theirs it is.
    pub(in crate::tokens) by: (Arc<dyn Maker>, usize),
}

/// Makes dicts when something looks into them.
pub(in crate::tokens) trait Maker: Send + Sync {
    /// The entries of one, whose keys differ.
    fn make(&self, which: usize) -> Vec<(Value, Value)>;
}

/// A dict's entries in the order they were put in.
#[derive(Debug, Default)]
pub(in crate::tokens) struct Table {
    pub(in crate::tokens) entries: Vec<(Value, Value)>,
    /// Where text keys stand, if there are many.
    index: Option<HashMap<Arc<str>, usize>>,
    depth: u16,
}

/// Items that can be walked once.
#[derive(Debug)]
pub(in crate::tokens) struct Once {
    items: Arc<Seq>,
    at: AtomicUsize,
}

// === impl Seq ===

impl Seq {
    /// Fails if the nesting gets too deep.
    pub(super) fn new(items: Vec<Value>) -> Result<Arc<Self>, Stop> {
        let depth = 1 + items.iter().map(Value::depth).max().unwrap_or(0);
        deep(depth).map(|()| Arc::new(Self { items, is_group: false, depth }))
    }

    /// A group of `groupby`.
    pub(super) fn group(key: Value, list: Value) -> Arc<Self> {
        let depth = 1 + key.depth().max(list.depth());
        Arc::new(Self { items: vec![key, list], is_group: true, depth })
    }
}

fn deep(depth: u16) -> Result<(), Stop> {
    if depth > DEPTH_MAX { Err(Stop::failed("values nested too deeply")) } else { Ok(()) }
}

// === impl Dict ===

impl Deref for Dict {
    type Target = Table;

    fn deref(&self) -> &Table {
        self.table.get_or_init(|| {
            let entries =
                self.later.as_ref().map(|Later { by: (maker, which), .. }| maker.make(*which));
            Table::of_unique(entries.unwrap_or_default())
        })
    }
}

impl fmt::Debug for Dict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dict").field(&self.table.get()).finish()
    }
}

impl From<Table> for Dict {
    fn from(table: Table) -> Self {
        Self { table: table.into(), later: None }
    }
}

impl Dict {
    /// A dict that is made when something looks into it.
    pub(in crate::tokens) const fn later(later: Later) -> Self {
        Self { table: OnceLock::new(), later: Some(later) }
    }

    /// What tells a dict made later from others.
    pub(in crate::tokens) fn key(&self) -> Option<Key> {
        self.later.as_ref().map(|later| later.key)
    }

    /// Deepest nesting; that of a request's JSON while it is not known.
    fn nesting(&self) -> u16 {
        self.table.get().map_or(python::JSON_DEPTH_MAX, |table| table.depth)
    }

    /// Takes entries in order; a later one replaces the value of an earlier one with the same key.
    pub(super) fn collect(pairs: Vec<(Value, Value)>) -> Result<Arc<Self>, Stop> {
        pairs.iter().try_for_each(|(key, _)| key.check_hashable())?;
        let table = Table::of_last(pairs);
        deep(table.depth).map(|()| Arc::new(table.into()))
    }
}

// === impl Table ===

impl Table {
    /// Takes entries whose keys are known to differ.
    fn of_unique(entries: Vec<(Value, Value)>) -> Self {
        let depth = 1 + entries.iter().map(|(_, value)| value.depth()).max().unwrap_or(0);
        let index = (entries.len() > WALKED_KEYS_MAX).then(|| {
            let key = |at: usize, key: &Value| Some((key.shared_text()?, at));
            entries.iter().enumerate().filter_map(|(at, (name, _))| key(at, name)).collect()
        });
        Self { entries, index, depth }
    }

    /// Takes entries with hashable keys in order; a later one goes before an earlier one of the same key.
    fn of_last(pairs: Vec<(Value, Value)>) -> Self {
        let mut entries: Vec<(Value, Value)> = Vec::with_capacity(pairs.len());
        let mut places: HashMap<Arc<str>, usize> = HashMap::new();
        for (key, value) in pairs {
            let known = match key.shared_text() {
                Some(text) => {
                    let next = entries.len();
                    let place = *places.entry(text).or_insert(next);
                    (place < next).then_some(place)
                }
                None => entries.iter().position(|(other, _)| super::ops::same(other, &key)),
            };
            match known.and_then(|at| entries.get_mut(at)) {
                Some(entry) => entry.1 = value,
                None => entries.push((key, value)),
            }
        }
        Self::of_unique(entries)
    }

    /// The value of a text key.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        let at = match &self.index {
            Some(index) => *index.get(key)?,
            None => self.entries.iter().position(|(name, _)| name.as_str() == Some(key))?,
        };
        self.entries.get(at).map(|(_, value)| value)
    }

    /// The value of any key.
    pub(super) fn find(&self, key: &Value) -> Result<Option<&Value>, Stop> {
        if let Some(text) = key.as_str() {
            return Ok(self.get(text));
        }
        key.check_hashable()?;
        Ok(self.entries.iter().find(|(name, _)| super::ops::same(name, key)).map(|(_, v)| v))
    }
}

// === impl Once ===

impl Once {
    /// The next item.
    pub(super) fn next(&self) -> Option<Value> {
        let at = self.at.fetch_add(1, Ordering::Relaxed);
        let item = self.items.items.get(at).cloned();
        if item.is_none() {
            self.at.store(self.items.items.len(), Ordering::Relaxed);
        }
        item
    }

    /// All that are left.
    pub(super) fn rest(&self) -> Vec<Value> {
        std::iter::from_fn(|| self.next()).collect()
    }
}

// === impl Value ===

impl Value {
    /// A dict of these entries; a later one goes before an earlier one with the same key.
    pub(in crate::tokens) fn from_pairs<K: Into<Arc<str>>>(
        pairs: impl IntoIterator<Item = (K, Self)>,
    ) -> Self {
        let pairs = pairs.into_iter().map(|(key, value)| (Self::Str(key.into()), value));
        Self::Dict(Arc::new(Table::of_last(pairs.collect()).into()))
    }

    /// A JSON object, whose keys differ.
    pub(in crate::tokens) fn object<'k>(entries: impl Iterator<Item = (&'k str, Self)>) -> Self {
        let entries = entries.map(|(key, value)| (Self::from(key), value));
        Self::Dict(Arc::new(Table::of_unique(entries.collect()).into()))
    }

    pub(super) fn list(items: Vec<Self>) -> Result<Self, Stop> {
        Seq::new(items).map(Self::List)
    }

    pub(super) fn tuple(items: Vec<Self>) -> Result<Self, Stop> {
        Seq::new(items).map(Self::Tuple)
    }

    pub(super) fn once(items: Vec<Self>) -> Result<Self, Stop> {
        Ok(Self::Once(Arc::new(Once { items: Seq::new(items)?, at: AtomicUsize::new(0) })))
    }

    pub(super) fn count(number: usize) -> Self {
        Self::Int(number as i128)
    }

    /// The text of a string, safe or not.
    pub(in crate::tokens) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) | Self::Safe(text) => Some(text),
            _ => None,
        }
    }

    fn shared_text(&self) -> Option<Arc<str>> {
        match self {
            Self::Str(text) | Self::Safe(text) => Some(text.clone()),
            _ => None,
        }
    }

    /// An integer, or a boolean as one.
    pub(super) fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(number) => Some(*number),
            Self::Bool(flag) => Some(i128::from(*flag)),
            _ => None,
        }
    }

    pub(super) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined)
    }

    /// `bool(value)`
    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Undefined | Self::None => false,
            Self::Bool(flag) => *flag,
            Self::Int(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            Self::Str(text) | Self::Safe(text) => !text.is_empty(),
            Self::List(seq) | Self::Tuple(seq) => !seq.items.is_empty(),
            Self::Dict(dict) | Self::View(_, dict) => !dict.entries.is_empty(),
            Self::Range(..) => self.length().is_some_and(|length| length > 0),
            Self::Once(_)
            | Self::Method(_)
            | Self::Global(_)
            | Self::Macro(_)
            | Self::Namespace(_)
            | Self::Loop(_) => true,
        }
    }

    /// `len(value)`; nothing if it has no length. A loop's is not known here.
    pub(super) fn length(&self) -> Option<usize> {
        match self {
            Self::Undefined => Some(0),
            Self::Str(text) | Self::Safe(text) => Some(python::char_count(text)),
            Self::List(seq) | Self::Tuple(seq) => Some(seq.items.len()),
            Self::Dict(dict) | Self::View(_, dict) => Some(dict.entries.len()),
            Self::Range(start, stop, step) => {
                let span =
                    if *step > 0 { stop.checked_sub(*start) } else { start.checked_sub(*stop) }?;
                let step = step.checked_abs().filter(|step| *step > 0)?;
                // Rounded up, where there is anything.
                usize::try_from(span.max(0) / step + i128::from(span.max(0) % step > 0)).ok()
            }
            _ => None,
        }
    }

    /// What the type is called in Python.
    pub(in crate::tokens) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::Safe(_) => "Markup",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::Range(..) => "range",
            Self::View(..) => "dict view",
            Self::Once(_) => "generator",
            Self::Method(_) | Self::Global(_) => "function",
            Self::Macro(_) => "Macro",
            Self::Namespace(_) => "Namespace",
            Self::Loop(_) => "LoopContext",
        }
    }

    /// Steps that working with the value is worth, so that many works on a large one come to an end.
    pub(super) fn weight(&self) -> u64 {
        match self {
            Self::Str(text) | Self::Safe(text) => text.len() as u64 / 64,
            Self::List(seq) | Self::Tuple(seq) => seq.items.len() as u64 / 4,
            Self::Dict(dict) | Self::View(_, dict) => dict.entries.len() as u64 / 4,
            Self::Range(..) => self.length().unwrap_or(0) as u64 / 4,
            Self::Once(once) => once.items.items.len() as u64 / 4,
            _ => 0,
        }
    }

    /// Bytes that a value of its own takes, about.
    pub(in crate::tokens) fn bytes(&self) -> usize {
        let within = match self {
            Self::Str(text) | Self::Safe(text) => text.len(),
            Self::List(seq) | Self::Tuple(seq) => seq.items.iter().map(Self::bytes).sum(),
            _ => 0,
        };
        size_of::<Self>() + within
    }

    fn depth(&self) -> u16 {
        match self {
            Self::List(seq) | Self::Tuple(seq) => seq.depth,
            Self::Dict(dict) | Self::View(_, dict) => dict.nesting(),
            Self::Once(once) => once.items.depth,
            Self::Method(method) => method.0.depth() + 1,
            _ => 0,
        }
    }

    /// Fails for what cannot be a key.
    fn check_hashable(&self) -> Result<(), Stop> {
        match self {
            Self::List(_) | Self::Dict(_) | Self::View(..) => {
                Err(Stop::failed(format!("unhashable type: '{}'", self.type_name())))
            }
            Self::Tuple(seq) => seq.items.iter().try_for_each(Self::check_hashable),
            _ => Ok(()),
        }
    }
}

impl From<()> for Value {
    fn from((): ()) -> Self {
        Self::None
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Bool(flag)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Str(text.into())
    }
}

impl From<Vec<Self>> for Value {
    /// Items of a request, whose nesting the JSON reader has bounded.
    fn from(items: Vec<Self>) -> Self {
        let depth = items.iter().map(Self::depth).max().unwrap_or(0).saturating_add(1);
        Self::List(Arc::new(Seq { items, is_group: false, depth }))
    }
}
