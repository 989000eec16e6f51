//! Python's format specifications, `str.format`, and the escapes of safe text.

use super::{Stop, access, value::Value};
use crate::tokens::python;

/// Widest text that padding may make, characters; most digits behind a point.
pub(super) const WIDTH_MAX: usize = 4096;

/// `markupsafe.escape`
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

/// `[[fill]align][sign][#][0][width][grouping][.precision][type]`
#[derive(Clone, Debug, Default)]
pub(super) struct Spec {
    pub(super) fill: Option<char>,
    pub(super) align: Option<char>,
    pub(super) sign: Option<char>,
    pub(super) alternate: bool,
    pub(super) width: usize,
    pub(super) grouping: Option<char>,
    pub(super) precision: Option<usize>,
    pub(super) kind: Option<char>,
}

impl Spec {
    fn parse(text: &str) -> Result<Self, Stop> {
        let mut spec = Self::default();
        let mut chars: std::collections::VecDeque<char> = text.chars().collect();
        let is_align = |c: Option<&char>| c.is_some_and(|c| matches!(c, '<' | '>' | '^' | '='));
        if is_align(chars.get(1)) {
            spec.fill = chars.pop_front();
            spec.align = chars.pop_front();
        } else if is_align(chars.front()) {
            spec.align = chars.pop_front();
        }
        spec.sign = take(&mut chars, |c| matches!(c, '+' | '-' | ' '));
        spec.alternate = take(&mut chars, |c| c == '#').is_some();
        if take(&mut chars, |c| c == '0').is_some() && spec.align.is_none() {
            spec.align = Some('=');
            spec.fill = spec.fill.or(Some('0'));
        } else if spec.align.is_some() && text.contains('0') && spec.fill.is_none() {
            // `<05` fills with zeros; told from a width that has a zero inside by what was taken.
            let plain = text.trim_start_matches(['<', '>', '^', '=', '+', '-', ' ', '#']);
            spec.fill = plain.starts_with('0').then_some('0');
        }
        spec.width = number(&mut chars)?.unwrap_or(0);
        spec.grouping = take(&mut chars, |c| matches!(c, ',' | '_'));
        if take(&mut chars, |c| c == '.').is_some() {
            let told = || Stop::failed("Format specifier missing precision");
            spec.precision = Some(number(&mut chars)?.ok_or_else(told)?);
        }
        spec.kind = chars.pop_front();
        if chars.is_empty() { Ok(spec) } else { Err(Stop::failed("Invalid format specifier")) }
    }
}

fn take(
    chars: &mut std::collections::VecDeque<char>,
    wanted: impl Fn(char) -> bool,
) -> Option<char> {
    if chars.front().is_some_and(|c| wanted(*c)) { chars.pop_front() } else { None }
}

fn number(chars: &mut std::collections::VecDeque<char>) -> Result<Option<usize>, Stop> {
    let mut found = None;
    while let Some(digit) = chars.front().and_then(|c| c.to_digit(10)) {
        chars.pop_front();
        let next = found.unwrap_or(0) * 10 + digit as usize;
        if next > WIDTH_MAX {
            return Err(Stop::failed("a format wider than is worth making"));
        }
        found = Some(next);
    }
    Ok(found)
}

/// `format(value, spec)`
pub(super) fn format_value(value: &Value, spec: &str) -> Result<String, Stop> {
    if spec.is_empty() {
        return python::text(value);
    }
    let spec = Spec::parse(spec)?;
    match value {
        Value::Str(text) | Value::Safe(text) => {
            let wrong = spec.sign.is_some()
                || spec.alternate
                || spec.grouping.is_some()
                || spec.align == Some('=') && spec.fill != Some('0')
                || !matches!(spec.kind, None | Some('s'));
            if wrong {
                return Err(Stop::failed("this format is not for text"));
            }
            let cut: String = match spec.precision {
                Some(most) => text.chars().take(most).collect(),
                None => text.to_string(),
            };
            let align = spec.align.filter(|align| *align != '=').unwrap_or('<');
            Ok(padded("", &cut, align, spec.fill.unwrap_or(' '), spec.width))
        }
        Value::Int(_) | Value::Bool(_) => match (spec.kind, value.as_int()) {
            (Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%'), Some(whole)) => {
                real(whole as f64, &spec)
            }
            (_, Some(number)) => whole(number, &spec),
            _ => Err(Stop::failed("not a number")),
        },
        Value::Float(number) => real(*number, &spec),
        other => {
            Err(Stop::failed(format!("unsupported format string passed to {}", other.type_name())))
        }
    }
}

/// An integer in a base, without its sign.
pub(super) fn in_base(number: u128, kind: char) -> String {
    match kind {
        'x' => format!("{number:x}"),
        'X' => format!("{number:X}"),
        'o' => format!("{number:o}"),
        'b' => format!("{number:b}"),
        _ => format!("{number}"),
    }
}

fn whole(number: i128, spec: &Spec) -> Result<String, Stop> {
    let kind = spec.kind.unwrap_or('d');
    if spec.precision.is_some() {
        return Err(Stop::failed("Precision not allowed in integer format specifier"));
    }
    if kind == 'c' {
        let told = || Stop::failed("not a character");
        let c = u32::try_from(number).ok().and_then(char::from_u32).ok_or_else(told)?;
        return Ok(padded(
            "",
            &c.to_string(),
            spec.align.unwrap_or('<'),
            spec.fill.unwrap_or(' '),
            spec.width,
        ));
    }
    if !matches!(kind, 'd' | 'n' | 'x' | 'X' | 'o' | 'b')
        || (spec.grouping == Some(',') && kind != 'd')
    {
        return Err(Stop::failed(format!("Unknown format code '{kind}' for object of type 'int'")));
    }
    let digits = in_base(number.unsigned_abs(), kind);
    let prefix = if spec.alternate && !matches!(kind, 'd' | 'n') {
        format!("0{kind}")
    } else {
        String::new()
    };
    let step = if matches!(kind, 'd' | 'n') { 3 } else { 4 };
    let sign = sign_of(number < 0, spec.sign);
    grouped(&format!("{sign}{prefix}"), &digits, "", step, spec)
}

/// A float, by a specification.
pub(super) fn real(number: f64, spec: &Spec) -> Result<String, Stop> {
    let precision = spec.precision.unwrap_or(6).min(WIDTH_MAX);
    let size = number.abs();
    let kind = spec.kind;
    let body = match kind {
        _ if !number.is_finite() => {
            let word = if number.is_nan() { "nan" } else { "inf" };
            if matches!(kind, Some('F' | 'E' | 'G')) { word.to_uppercase() } else { word.into() }
        }
        Some('f' | 'F') => format!("{size:.precision$}"),
        Some('%') => format!("{:.precision$}", size * 100.0),
        Some('e') => exponential(size, precision),
        Some('E') => exponential(size, precision).to_uppercase(),
        Some('g' | 'n') => general(size, precision, spec.alternate),
        Some('G') => general(size, precision, spec.alternate).to_uppercase(),
        None if spec.precision.is_none() => python::float_text(size),
        // Like `g`, but with at least one digit behind the point.
        None => {
            let text = general(size, precision, false);
            let power = scale(size, precision.max(1));
            if text.contains(['.', 'e']) || power >= precision as i32 {
                if !text.contains('e') && power >= precision as i32 {
                    return Err(Stop::failed("this float format is not known"));
                }
                text
            } else {
                format!("{text}.0")
            }
        }
        Some(kind) => {
            return Err(Stop::failed(format!(
                "Unknown format code '{kind}' for object of type 'float'"
            )));
        }
    };
    let end = if kind == Some('%') { "%" } else { "" };
    let sign = sign_of(number.is_sign_negative() && !number.is_nan(), spec.sign);
    let point = body.find(['.', 'e', 'E']).unwrap_or(body.len());
    let (whole, rest) = body.split_at(point);
    grouped(sign, whole, &format!("{rest}{end}"), 3, spec)
}

/// `1.50e-07`
pub(super) fn exponential(size: f64, precision: usize) -> String {
    let text = format!("{size:.precision$e}");
    match text.split_once('e') {
        Some((digits, power)) => {
            let (sign, power) = power.strip_prefix('-').map_or(('+', power), |power| ('-', power));
            format!("{digits}e{sign}{power:0>2}")
        }
        None => text,
    }
}

/// The power of ten of a number rounded to so many digits.
fn scale(size: f64, digits: usize) -> i32 {
    let text = format!("{size:.0$e}", digits.saturating_sub(1));
    text.split_once('e').and_then(|(_, power)| power.parse().ok()).unwrap_or(0)
}

/// `%g`
pub(super) fn general(size: f64, precision: usize, keep_zeros: bool) -> String {
    let precision = precision.max(1);
    let power = if size == 0.0 { 0 } else { scale(size, precision) };
    let strip = |text: String| {
        if keep_zeros || !text.contains('.') {
            return text;
        }
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    if power < -4 || power >= precision as i32 {
        let text = exponential(size, precision - 1);
        return match text.split_once('e') {
            Some((digits, power)) => format!("{}e{power}", strip(digits.to_owned())),
            None => text,
        };
    }
    let behind = usize::try_from(precision as i32 - 1 - power).unwrap_or(0);
    strip(format!("{size:.behind$}"))
}

fn sign_of(negative: bool, wanted: Option<char>) -> &'static str {
    match (negative, wanted) {
        (true, _) => "-",
        (false, Some('+')) => "+",
        (false, Some(' ')) => " ",
        _ => "",
    }
}

/// Puts sign, grouped digits and the rest together, padded to the width.
fn grouped(sign: &str, digits: &str, rest: &str, step: usize, spec: &Spec) -> Result<String, Stop> {
    let align = spec.align.unwrap_or('>');
    let fill = spec.fill.unwrap_or(' ');
    let Some(mark) = spec.grouping else {
        return Ok(padded(sign, &format!("{digits}{rest}"), align, fill, spec.width));
    };
    if align == '=' && fill == '0' && spec.width > 0 {
        return Err(Stop::failed("zeros in groups are not known"));
    }
    let length = digits.len();
    let mut body = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (length - at).is_multiple_of(step) {
            body.push(mark);
        }
        body.push(digit);
    }
    Ok(padded(sign, &format!("{body}{rest}"), align, fill, spec.width))
}

/// Pads to a width; `=` puts the padding behind the sign.
pub(super) fn padded(sign: &str, body: &str, align: char, fill: char, width: usize) -> String {
    let lacking = width.saturating_sub(python::char_count(sign) + python::char_count(body));
    let run = |count: usize| std::iter::repeat_n(fill, count).collect::<String>();
    match align {
        '<' => format!("{sign}{body}{}", run(lacking)),
        '^' => format!("{}{sign}{body}{}", run(lacking / 2), run(lacking - lacking / 2)),
        '=' => format!("{sign}{}{body}", run(lacking)),
        _ => format!("{}{sign}{body}", run(lacking)),
    }
}

// === str.format ===

/// What replaces the fields of a format.
pub(super) struct Fields<'a> {
    pub(super) list: &'a [Value],
    pub(super) named: &'a dyn Fn(&str) -> Result<Value, Stop>,
    /// Whether what is put in gets escaped.
    pub(super) escaping: bool,
}

/// `text.format(...)`
pub(super) fn fill(text: &str, fields: &Fields<'_>) -> Result<String, Stop> {
    let mut next = 0;
    fill_deep(text, fields, &mut next, 3)
}

fn fill_deep(text: &str, fields: &Fields<'_>, next: &mut usize, depth: u8) -> Result<String, Stop> {
    if depth == 0 {
        return Err(Stop::failed("Max string recursion exceeded"));
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, tail) = rest.split_at(at);
        out.push_str(before);
        if let Some(after) = tail.strip_prefix("{{").or_else(|| tail.strip_prefix("}}")) {
            out.push_str(tail.get(..1).unwrap_or_default());
            rest = after;
            continue;
        }
        let Some(inside) = tail.strip_prefix('{') else {
            return Err(Stop::failed("Single '}' encountered in format string"));
        };
        let end =
            field_end(inside).ok_or_else(|| Stop::failed("expected '}' before end of string"))?;
        let (field, after) = inside.split_at(end);
        rest = after.get(1..).unwrap_or_default();
        let (field, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = match field.split_once('!') {
            Some((name, conversion)) => (name, Some(conversion)),
            None => (field, None),
        };
        let value = field_value(name, fields, next)?;
        let spec = fill_deep(spec, fields, next, depth - 1)?;
        let value = match conversion {
            None => value,
            Some("s") => python::text(&value)?.into(),
            Some("r") => {
                let mut text = String::new();
                python::write_repr(&mut text, &value)?;
                text.into()
            }
            Some(_) => return Err(Stop::failed("this conversion is not known")),
        };
        if fields.escaping && !matches!(value, Value::Safe(_)) {
            out.push_str(&escape(&format_value(&value, &spec)?));
        } else if fields.escaping && !spec.is_empty() {
            return Err(Stop::failed("Format specifier for safe text given"));
        } else {
            out.push_str(&format_value(&value, &spec)?);
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// Where a field ends, past fields in its specification.
fn field_end(inside: &str) -> Option<usize> {
    let mut open = 0usize;
    for (at, c) in inside.char_indices() {
        match c {
            '{' => open += 1,
            '}' if open == 0 => return Some(at),
            '}' => open -= 1,
            _ => {}
        }
    }
    None
}

/// `0`, `name`, `name.attribute`, `name[key]`
fn field_value(name: &str, fields: &Fields<'_>, next: &mut usize) -> Result<Value, Stop> {
    let end = name.find(['.', '[']).unwrap_or(name.len());
    let (first, mut path) = name.split_at(end);
    let missing = || Stop::failed("Replacement index out of range for positional args tuple");
    let mut value = if first.is_empty() {
        *next += 1;
        fields.list.get(*next - 1).cloned().ok_or_else(missing)?
    } else if let Ok(at) = first.parse::<usize>() {
        if *next > 0 {
            return Err(Stop::failed("cannot switch from automatic field numbering to manual"));
        }
        fields.list.get(at).cloned().ok_or_else(missing)?
    } else {
        (fields.named)(first)?
    };
    while !path.is_empty() {
        if let Some(tail) = path.strip_prefix('.') {
            let end = tail.find(['.', '[']).unwrap_or(tail.len());
            let (attribute, after) = tail.split_at(end);
            value = access::get_attribute(&value, attribute)?;
            path = after;
        } else if let Some((key, after)) =
            path.strip_prefix('[').and_then(|tail| tail.split_once(']'))
        {
            let key = key.parse::<i128>().map_or_else(|_| Value::from(key), Value::Int);
            value = access::get_item(&value, &key)?;
            path = after;
        } else {
            return Err(Stop::failed("bad field name"));
        }
    }
    Ok(value)
}
