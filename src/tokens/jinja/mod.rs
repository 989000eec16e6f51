//! Chat templates: jinja2's language with Python's values, as transformers sets it up.
//!
//! Templates are written against Python, so whatever they may ask of a value is answered here as Python
//! answers it, or with an error; never with a text that differs. From the bottom: [`value`] and what
//! Python does with values ([`ops`], [`access`], [`format`], [`percent`], [`methods`]); the language
//! ([`lexer`], [`ast`], [`parser`], [`operands`], [`statements`], [`reads`]); what runs it ([`machine`], [`expressions`],
//! [`loops`], [`turns`], [`calls`], [`filters`], [`lists`], [`checks`]).

mod access;
mod args;
mod ast;
mod calls;
mod chars;
mod checks;
mod expressions;
mod filters;
mod format;
mod globals;
mod lexer;
mod lists;
mod loops;
mod machine;
mod methods;
mod operands;
mod ops;
mod parser;
mod percent;
mod reads;
#[cfg(test)]
mod snippets;
mod statements;
mod turns;
mod value;
mod work;

pub(super) use ast::Program;
pub(super) use lexer::{Token, tokens};
pub(super) use machine::{Limits, Rendered, render};
pub(super) use parser::parse;
pub(super) use turns::Memory;
pub(super) use value::{Dict, Later, Maker, Value, View};

/// Why a rendering ended early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The template called `raise_exception`; its words.
    Raised(String),
    /// It took more steps than it may.
    Fuel,
    /// It made more text than it may.
    TooLong,
    /// Python would raise here, or we do not know what it would do.
    Failed(String),
    /// `{% break %}`, on its way to the loop.
    Break,
    /// `{% continue %}`, on its way to the loop.
    Continue,
}

impl Stop {
    fn failed(told: impl Into<String>) -> Self {
        Self::Failed(told.into())
    }
}
