//! A template taken apart: its loops over messages as templates of their own, and the frame around them.
//!
//! The frame calls a function where a loop stood. That function runs the loop's body once for each message
//! that it has not seen in the same surroundings, and takes what it wrote then for the others.

use super::{
    keys,
    reads::{Reads, Walker},
};
use minijinja::{
    machinery::{
        self,
        ast::{Macro, Stmt},
    },
    syntax::SyntaxConfig,
};
use std::collections::{BTreeMap, BTreeSet};

/// The name by which the frame calls the loops.
pub(in crate::tokens) const TURNS: &str = "__berthd_turns";

/// A template, taken apart.
#[derive(Debug)]
pub(in crate::tokens) struct Plan {
    /// The template without its loops.
    pub(in crate::tokens) frame: String,
    pub(in crate::tokens) loops: Vec<Loop>,
    /// Stands in the frame's output where a loop's goes. Nobody outside can guess it.
    pub(super) nonce: String,
}

/// One loop.
#[derive(Debug)]
pub(in crate::tokens) struct Loop {
    /// The body as a template, with the macros in front.
    pub(in crate::tokens) body: String,
    /// What it calls its message.
    pub(super) target: String,
    pub(in crate::tokens) reads: Reads,
}

/// A loop of the template, in its source.
struct Found<'a> {
    /// Where the word `for` stands.
    at: usize,
    target: &'a str,
    body: &'a [Stmt<'a>],
}

struct MacroFound<'a> {
    at: usize,
    decl: &'a Macro<'a>,
}

/// Takes a template apart. `None` if nothing is to be gained, or it holds what cannot be followed.
pub(in crate::tokens) fn of(source: &str, syntax: SyntaxConfig) -> Option<Plan> {
    // These have a memory that no key would show.
    if source.contains("cycler") || source.contains("joiner") || source.contains(TURNS) {
        return None;
    }
    let tree = machinery::parse(source, "chat", syntax).ok()?;
    let Stmt::Template(template) = &tree else { return None };
    let mut loops = Vec::new();
    let mut macros = Vec::new();
    collect(&template.children, &mut loops, &mut macros);
    let tags = tags(source);
    let names: BTreeSet<String> = macros.iter().map(|found| found.decl.name.to_owned()).collect();
    let of_macros = macro_reads(&macros, &names);
    let mut sources = String::new();
    for found in &macros {
        let (open, close) = pair(&tags, found.at, "macro", "endmacro")?;
        sources.push_str(source.get(open.start..close.end)?);
    }
    let mut frame = String::with_capacity(source.len());
    let mut from = 0;
    let mut planned = Vec::new();
    for found in &loops {
        let Some(one) = plan_loop(source, &tags, found, (&names, &of_macros, &sources)) else {
            continue;
        };
        let call = call(planned.len(), &one);
        frame.push_str(source.get(from..one.start)?);
        frame.push_str(&call);
        from = one.end;
        planned.push(Loop { body: one.body, target: found.target.to_owned(), reads: one.reads });
    }
    frame.push_str(source.get(from..)?);
    (!planned.is_empty()).then(|| Plan { frame, loops: planned, nonce: keys::nonce() })
}

/// Loops and macros that stand at the top or under conditions there.
fn collect<'a>(body: &'a [Stmt<'a>], loops: &mut Vec<Found<'a>>, macros: &mut Vec<MacroFound<'a>>) {
    for statement in body {
        match statement {
            Stmt::ForLoop(one) => {
                let plain = one.filter_expr.is_none() && !one.recursive && one.else_body.is_empty();
                // A loop that only looks for something is cheaper run where it stands.
                if let minijinja::machinery::ast::Expr::Var(target) = &one.target
                    && plain
                    && prints(&one.body)
                {
                    let at = one.span().start_offset as usize;
                    loops.push(Found { at, target: target.id, body: &one.body });
                }
            }
            Stmt::IfCond(choice) => {
                collect(&choice.true_body, loops, macros);
                collect(&choice.false_body, loops, macros);
            }
            Stmt::Macro(one) => {
                macros.push(MacroFound { at: one.span().start_offset as usize, decl: one });
            }
            _ => {}
        }
    }
}

/// Whether anything in a body writes text.
fn prints(body: &[Stmt<'_>]) -> bool {
    body.iter().any(|statement| match statement {
        Stmt::EmitRaw(raw) => !raw.raw.is_empty(),
        Stmt::ForLoop(inner) => prints(&inner.body) || prints(&inner.else_body),
        Stmt::IfCond(choice) => prints(&choice.true_body) || prints(&choice.false_body),
        Stmt::WithBlock(block) => prints(&block.body),
        Stmt::Set(_) | Stmt::SetBlock(_) => false,
        _ => true,
    })
}

/// What each macro reads and writes, with the macros that it calls.
fn macro_reads(
    macros: &[MacroFound<'_>],
    names: &BTreeSet<String>,
) -> BTreeMap<String, Option<Reads>> {
    let mut all = BTreeMap::new();
    for found in macros {
        let mut walker = Walker::new(None, names);
        walker.hidden = parameters(found.decl);
        let read = walker.body(&found.decl.body).is_ok();
        all.insert(found.decl.name.to_owned(), read.then_some(walker.reads));
    }
    all
}

fn parameters(decl: &Macro<'_>) -> BTreeSet<String> {
    let named = decl.args.iter().filter_map(|arg| match arg {
        minijinja::machinery::ast::Expr::Var(var) => Some(var.id.to_owned()),
        _ => None,
    });
    named.chain(["caller".to_owned(), "varargs".to_owned(), "kwargs".to_owned()]).collect()
}

struct Planned<'a> {
    start: usize,
    end: usize,
    /// Whitespace control on the outside, and the expression looped over.
    outer: (&'a str, &'a str),
    over: &'a str,
    body: String,
    reads: Reads,
}

type Macros<'m> = (&'m BTreeSet<String>, &'m BTreeMap<String, Option<Reads>>, &'m str);

fn plan_loop<'a>(
    source: &'a str,
    tags: &[Tag],
    found: &Found<'_>,
    (names, of_macros, macro_sources): Macros<'_>,
) -> Option<Planned<'a>> {
    let mut walker = Walker::new(Some(found.target), names);
    walker.body(found.body).ok()?;
    let mut reads = walker.reads;
    add_macros(&mut reads, of_macros)?;
    // A macro sees the message only as an argument; under the loop's name it would be another variable.
    if reads.variables.contains_key(found.target) || reads.variables.contains_key(TURNS) {
        return None;
    }
    let (open, close) = pair(tags, found.at, "for", "endfor")?;
    let inside = source.get(found.at..open.inside_end)?;
    let over = inside.strip_prefix("for")?.trim_start().strip_prefix(found.target)?;
    let over = over.trim_start().strip_prefix("in")?.trim();
    let modifier = |at: usize| match source.as_bytes().get(at) {
        Some(b'-') => "-",
        Some(b'+') => "+",
        _ => "",
    };
    let inner = (modifier(open.end.checked_sub(3)?), modifier(close.start + 2));
    let outer = (modifier(open.start + 2), modifier(close.end.checked_sub(3)?));
    let text = source.get(open.end..close.start)?;
    // A condition that always holds trims the white space around it as the loop did.
    let body = format!("{macro_sources}{{% if true {}%}}{text}{{%{} endif %}}", inner.0, inner.1);
    Some(Planned { start: open.start, end: close.end, outer, over, body, reads })
}

/// Adds what the called macros read and write.
fn add_macros(reads: &mut Reads, of_macros: &BTreeMap<String, Option<Reads>>) -> Option<()> {
    let mut done = BTreeSet::new();
    while let Some(name) = reads.macros.iter().find(|name| !done.contains(*name)).cloned() {
        let of_macro = of_macros.get(&name)?.as_ref()?;
        done.insert(name);
        // There, `loop` would be the loop around the call.
        if !of_macro.of_loop.is_empty() {
            return None;
        }
        for (variable, one) in &of_macro.variables {
            let all = reads.variables.entry(variable.clone()).or_default();
            all.whole |= one.whole;
            all.attributes.extend(one.attributes.iter().cloned());
            all.items.extend(one.items.iter().copied());
        }
        // What a macro compares or sets is read whole: the loop's own comparisons must not rest on it.
        if !of_macro.writes.is_empty() || !of_macro.comparisons.is_empty() {
            return None;
        }
        reads.macros.extend(of_macro.macros.iter().cloned());
    }
    Some(())
}

/// What stands in the frame in a loop's place.
fn call(number: usize, one: &Planned<'_>) -> String {
    let mut args = String::new();
    for name in one.reads.variables.keys() {
        args.push_str(&format!(", {name}={name}"));
    }
    let written: BTreeSet<&str> = one.reads.writes.iter().map(|(name, _)| name.as_str()).collect();
    for name in written {
        if !one.reads.variables.contains_key(name) {
            args.push_str(&format!(", {name}={name}"));
        }
    }
    let (left, right) = one.outer;
    format!(
        "{{%{left} if true %}}{{{{ {TURNS}({number}, ({over}){args}) }}}}{{% endif {right}%}}",
        over = one.over
    )
}

// === tags ===

/// One `{% ... %}`.
struct Tag {
    start: usize,
    end: usize,
    /// Where its first word stands.
    word_at: usize,
    word: &'static str,
    /// Where its inside ends: before a modifier and the closing delimiter.
    inside_end: usize,
}

/// The tags of a template that begin or end loops and macros.
fn tags(source: &str) -> Vec<Tag> {
    const WORDS: [&str; 4] = ["for", "endfor", "macro", "endmacro"];
    let mut found = Vec::new();
    super::super::template::each_tag(source, |start, tag| {
        let Some(word) = super::super::template::block_word(tag) else { return };
        let Some(word) = WORDS.into_iter().find(|known| *known == word) else { return };
        let Some(at) = tag.find(word) else { return };
        let inside = tag.strip_suffix("%}").unwrap_or(tag);
        let inside = inside.strip_suffix(['-', '+']).unwrap_or(inside);
        found.push(Tag {
            start,
            end: start + tag.len(),
            word_at: start + at,
            word,
            inside_end: start + inside.len(),
        });
    });
    found
}

/// The tag whose word stands at `at`, and the one that ends its block.
fn pair<'t>(tags: &'t [Tag], at: usize, open: &str, close: &str) -> Option<(&'t Tag, &'t Tag)> {
    let first = tags.iter().position(|tag| tag.word_at == at && tag.word == open)?;
    let mut depth = 0usize;
    for tag in tags.get(first..)? {
        if tag.word == open {
            depth += 1;
        } else if tag.word == close {
            depth = depth.checked_sub(1)?;
            if depth == 0 {
                return Some((tags.get(first)?, tag));
            }
        }
    }
    None
}
