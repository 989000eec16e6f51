//! Arguments of a call, and how they find their parameters.

use super::{Stop, value::Value};
use std::sync::Arc;

/// What a call was given.
#[derive(Clone, Debug, Default)]
pub(super) struct Args {
    pub(super) list: Vec<Value>,
    pub(super) named: Vec<(Arc<str>, Value)>,
}

impl Args {
    /// Finds a value for each parameter, by place or name. The first `needed` must be there.
    pub(super) fn bind<const N: usize>(
        self,
        names: [&str; N],
        needed: usize,
    ) -> Result<[Option<Value>; N], Stop> {
        let given = self.list.len();
        if given > N {
            return Err(Stop::failed(format!("takes at most {N} arguments ({given} given)")));
        }
        let mut list = self.list.into_iter();
        let mut found: [Option<Value>; N] = std::array::from_fn(|_| list.next());
        for (name, value) in self.named {
            let at = names.iter().position(|known| **known == *name);
            match at.and_then(|at| found.get_mut(at)) {
                Some(place @ None) => *place = Some(value),
                Some(_) => return Err(Stop::failed(format!("several values for {name}"))),
                None => return Err(Stop::failed(format!("unexpected argument {name}"))),
            }
        }
        match found.iter().zip(names).take(needed).find(|(value, _)| value.is_none()) {
            Some((_, name)) => Err(Stop::failed(format!("missing argument {name}"))),
            None => Ok(found),
        }
    }

    /// The same for functions whose parameters have no names.
    pub(super) fn places<const N: usize>(self, needed: usize) -> Result<[Option<Value>; N], Stop> {
        if !self.named.is_empty() {
            return Err(Stop::failed("takes no keyword arguments"));
        }
        self.bind([""; N], needed)
    }

    /// Takes a named argument out.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.named.iter().position(|(known, _)| **known == *name)?;
        Some(self.named.remove(at).1)
    }
}

/// The text of an argument that must be a string.
pub(super) fn text(value: Option<&Value>) -> Result<&str, Stop> {
    let told = || format!("needs a string, not {}", value.map_or("nothing", Value::type_name));
    value.and_then(Value::as_str).ok_or_else(|| Stop::failed(told()))
}

/// An argument that must be a whole number, if it is given and not `None`.
pub(super) fn whole(value: Option<&Value>) -> Result<Option<i128>, Stop> {
    match value {
        None | Some(Value::None) => Ok(None),
        Some(value) => match value.as_int() {
            Some(number) => Ok(Some(number)),
            None => Err(Stop::failed(format!("needs an integer, not {}", value.type_name()))),
        },
    }
}

/// A switch: any value's truth, `otherwise` if not given.
pub(super) fn flag(value: Option<&Value>, otherwise: bool) -> bool {
    value.map_or(otherwise, Value::is_true)
}
