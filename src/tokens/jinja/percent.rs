//! Python's `%` on strings.

use super::{
    Stop,
    format::{self, Spec, WIDTH_MAX},
    value::Value,
};
use crate::tokens::python;

/// `text % args`
pub(super) fn apply(text: &Value, args: &Value) -> Result<Value, Stop> {
    let safe = matches!(text, Value::Safe(_));
    let list: &[Value] = match args {
        Value::Tuple(seq) => &seq.items,
        one => std::slice::from_ref(one),
    };
    let mut job = Job { list, at: 0, whole: args, mapped: false, safe };
    let out = job.run(text.as_str().unwrap_or_default())?;
    // What Python takes for a mapping need not be used up.
    let mapping =
        matches!(args, Value::Dict(_) | Value::List(_) | Value::Undefined | Value::Range(..));
    if job.at < job.list.len() && !mapping {
        return Err(Stop::failed("not all arguments converted during string formatting"));
    }
    Ok(if safe { Value::Safe(out.into()) } else { out.into() })
}

struct Job<'a> {
    list: &'a [Value],
    at: usize,
    whole: &'a Value,
    /// A field named its value.
    mapped: bool,
    safe: bool,
}

impl Job<'_> {
    fn run(&mut self, text: &str) -> Result<String, Stop> {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, tail)) = rest.split_once('%') {
            out.push_str(before);
            rest = self.field(tail, &mut out)?;
        }
        out.push_str(rest);
        Ok(out)
    }

    fn next(&mut self) -> Result<Value, Stop> {
        let value = self.list.get(self.at).cloned();
        self.at += 1;
        value
            .filter(|_| !self.mapped)
            .ok_or_else(|| Stop::failed("not enough arguments for format string"))
    }

    /// One field; gives what stands behind it.
    fn field<'t>(&mut self, mut tail: &'t str, out: &mut String) -> Result<&'t str, Stop> {
        let mut named = None;
        if let Some(inside) = tail.strip_prefix('(') {
            let (name, after) =
                closing(inside).ok_or_else(|| Stop::failed("incomplete format key"))?;
            let Value::Dict(dict) = self.whole else {
                return Err(Stop::failed("format requires a mapping"));
            };
            let value = dict.get(name).cloned();
            named = Some(value.ok_or_else(|| Stop::failed(format!("KeyError: {name}")))?);
            self.mapped = true;
            tail = after;
        }
        let mut spec = Spec::default();
        let (mut left, mut zero) = (false, false);
        while let Some(c) = tail.chars().next().filter(|c| "-+ #0".contains(*c)) {
            match c {
                '-' => left = true,
                '+' => spec.sign = Some('+'),
                ' ' => spec.sign = spec.sign.or(Some(' ')),
                '#' => spec.alternate = true,
                _ => zero = true,
            }
            tail = tail.get(1..).unwrap_or_default();
        }
        if let Some(after) = tail.strip_prefix('*') {
            let width = self.star()?;
            left |= width < 0;
            spec.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
            tail = after;
        } else {
            (spec.width, tail) = digits(tail);
        }
        if let Some(after) = tail.strip_prefix('.') {
            if let Some(after) = after.strip_prefix('*') {
                spec.precision = Some(usize::try_from(self.star()?).unwrap_or(0));
                tail = after;
            } else {
                let (precision, after) = digits(after);
                spec.precision = Some(precision);
                tail = after;
            }
        }
        if spec.width > WIDTH_MAX || spec.precision.is_some_and(|most| most > WIDTH_MAX) {
            return Err(Stop::failed("a format wider than is worth making"));
        }
        tail = tail.strip_prefix(['h', 'l', 'L']).unwrap_or(tail);
        let kind = tail.chars().next().ok_or_else(|| Stop::failed("incomplete format"))?;
        let rest = tail.get(kind.len_utf8()..).unwrap_or_default();
        if kind == '%' {
            out.push('%');
            return Ok(rest);
        }
        let value = match named {
            Some(value) => value,
            None => self.next()?,
        };
        let (sign, body, number) = self.convert(kind, &value, &spec)?;
        let align = match (left, zero && number) {
            (true, _) => '<',
            (false, true) => '=',
            (false, false) => '>',
        };
        let fill = if align == '=' { '0' } else { ' ' };
        out.push_str(&format::padded(&sign, &body, align, fill, spec.width));
        Ok(rest)
    }

    fn star(&mut self) -> Result<i128, Stop> {
        let number = self.next()?.as_int();
        number.ok_or_else(|| Stop::failed("* wants int"))
    }

    /// A value's sign and text, and whether it is a number.
    fn convert(
        &self,
        kind: char,
        value: &Value,
        spec: &Spec,
    ) -> Result<(String, String, bool), Stop> {
        let text = |body: String| {
            let cut = match spec.precision {
                Some(most) => body.chars().take(most).collect(),
                None => body,
            };
            Ok((String::new(), cut, false))
        };
        match kind {
            's' if self.safe => match value {
                Value::Safe(body) => text(body.to_string()),
                other => text(format::escape(&python::text(other)?)),
            },
            's' => text(python::text(value)?),
            'r' => {
                let mut body = String::new();
                python::write_repr(&mut body, value)?;
                text(if self.safe { format::escape(&body) } else { body })
            }
            'c' => match (value.as_str(), value.as_int()) {
                (Some(body), _) if python::char_count(body) == 1 => text(body.to_owned()),
                (_, Some(code)) => {
                    let c = u32::try_from(code).ok().and_then(char::from_u32);
                    text(c.ok_or_else(|| Stop::failed("%c arg not in range"))?.to_string())
                }
                _ => Err(Stop::failed("%c requires int or char")),
            },
            'd' | 'i' | 'u' | 'x' | 'X' | 'o' => whole(kind, value, spec),
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                let number = match value {
                    Value::Float(number) => *number,
                    other => other.as_int().ok_or_else(|| {
                        Stop::failed(format!("must be real number, not {}", other.type_name()))
                    })? as f64,
                };
                let plain = Spec { kind: Some(kind), width: 0, ..spec.clone() };
                let body = format::real(number, &plain)?;
                let signs = body.chars().next().is_some_and(|c| "+- ".contains(c));
                let (sign, body) = body.split_at(usize::from(signs));
                Ok((sign.to_owned(), body.to_owned(), true))
            }
            other => Err(Stop::failed(format!("unsupported format character '{other}'"))),
        }
    }
}

fn whole(kind: char, value: &Value, spec: &Spec) -> Result<(String, String, bool), Stop> {
    let number = match (value, value.as_int()) {
        (_, Some(number)) => number,
        (Value::Float(number), _)
            if matches!(kind, 'd' | 'i' | 'u') && number.is_finite() && number.abs() < 1e38 =>
        {
            number.trunc() as i128
        }
        _ => {
            return Err(Stop::failed(format!(
                "%{kind} format: a number is required, not {}",
                value.type_name()
            )));
        }
    };
    let digits = format::in_base(number.unsigned_abs(), kind);
    let lacking = spec.precision.unwrap_or(0).saturating_sub(digits.len());
    let body = "0".repeat(lacking) + &digits;
    let sign = match (number < 0, spec.sign) {
        (true, _) => "-".to_owned(),
        (false, sign) => sign.map(String::from).unwrap_or_default(),
    };
    let prefix = match kind {
        'x' | 'X' | 'o' if spec.alternate => format!("0{kind}"),
        _ => String::new(),
    };
    Ok((sign + &prefix, body, true))
}

/// A mapping key up to its closing bracket, which may hold others.
fn closing(inside: &str) -> Option<(&str, &str)> {
    let mut open = 1usize;
    for (at, c) in inside.char_indices() {
        match c {
            '(' => open += 1,
            ')' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some((inside.get(..at)?, inside.get(at + 1..)?));
        }
    }
    None
}

fn digits(text: &str) -> (usize, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let number = if digits.is_empty() { 0 } else { digits.parse().unwrap_or(usize::MAX) };
    (number, rest)
}
