//! Expressions, by jinja2's grammar and its order of operators; what operators stand between is in
//! [`super::operands`].

use super::{
    ast::{Arguments, Call, Expression, NameId, Names, Program},
    globals,
    lexer::{self, Token},
    ops::{Comparison, Operator},
    reads,
};
use std::{collections::HashMap, sync::Arc};

/// Deepest nesting of expressions and blocks. A template is the operator's, but not a reason to crash.
const DEPTH_MAX: usize = 100;

/// Longest chain of operators, filters or attributes: a chain is a deep tree.
const CHAIN_MAX: usize = 150;

/// Reads a template whose line ends are newlines. The error is a sentence.
pub(in crate::tokens) fn parse(source: &str) -> Result<Program, String> {
    let mut parser = Parser {
        tokens: lexer::tokens(source)?,
        at: 0,
        names: Names::default(),
        numbers: HashMap::new(),
        depth: 0,
        loads: Vec::new(),
        loops: 0,
    };
    let body = parser.statements(&[])?;
    let mut program = Program { body, names: parser.names };
    reads::plan(&mut program);
    Ok(program)
}

/// The place in the tokens, and what was seen so far.
pub(super) struct Parser {
    tokens: Vec<Token>,
    pub(super) at: usize,
    names: Names,
    numbers: HashMap<Arc<str>, NameId>,
    depth: usize,
    /// Every name that was read, in order: macros and loops look which they speak of.
    pub(super) loads: Vec<NameId>,
    /// Loops so far.
    loops: u32,
}

pub(super) type Parsed<T> = Result<T, String>;

impl Parser {
    /// A number for another loop.
    pub(super) const fn next_loop(&mut self) -> u32 {
        self.loops = self.loops.saturating_add(1);
        self.loops
    }

    // === tokens ===

    pub(super) fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    pub(super) fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    pub(super) fn sees(&self, sign: &str) -> bool {
        matches!(self.peek(), Some(Token::Sign(seen)) if *seen == sign)
    }

    pub(super) fn takes(&mut self, sign: &str) -> bool {
        let found = self.sees(sign);
        self.at += usize::from(found);
        found
    }

    pub(super) fn sees_word(&self, word: &str) -> bool {
        matches!(self.peek(), Some(Token::Name(seen)) if seen == word)
    }

    pub(super) fn takes_word(&mut self, word: &str) -> bool {
        let found = self.sees_word(word);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, wanted: &Token) -> Parsed<()> {
        if self.peek() == Some(wanted) {
            self.at += 1;
            return Ok(());
        }
        Err(self.unexpected(&format!("{wanted:?}")))
    }

    pub(super) fn expect_word(&mut self, word: &str) -> Parsed<()> {
        if self.takes_word(word) { Ok(()) } else { Err(self.unexpected(word)) }
    }

    pub(super) fn unexpected(&self, wanted: &str) -> String {
        match self.peek() {
            Some(token) => format!("expected {wanted}, got {token:?}"),
            None => format!("expected {wanted}, got the end of the template"),
        }
    }

    pub(super) fn word(&mut self) -> Parsed<String> {
        match self.next() {
            Some(Token::Name(name)) => Ok(name),
            _ => {
                self.at -= 1;
                Err(self.unexpected("a name"))
            }
        }
    }

    pub(super) fn followed_by(&self, sign: &str) -> bool {
        matches!(self.tokens.get(self.at + 1), Some(Token::Sign(seen)) if *seen == sign)
    }

    // === names and depth ===

    pub(super) fn number_of(&mut self, name: &str) -> NameId {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let text: Arc<str> = name.into();
        let number = self.names.texts.len() as NameId;
        self.names.texts.push(text.clone());
        self.names.globals.push(globals::named(name));
        self.numbers.insert(text, number);
        number
    }

    /// Counts one more link of a chain.
    pub(super) fn link(&self, links: &mut usize) -> Parsed<()> {
        *links += 1;
        if *links > CHAIN_MAX { Err("the template is nested too deeply".into()) } else { Ok(()) }
    }

    /// Runs a part of the parser one level deeper.
    pub(super) fn deeper<T>(&mut self, part: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err("the template is nested too deeply".into());
        }
        let parsed = part(self);
        self.depth -= 1;
        parsed
    }

    // === expressions ===

    /// An expression, with `a if b else c`.
    pub(super) fn expression(&mut self) -> Parsed<Expression> {
        self.deeper(|parser| {
            let mut first = parser.or()?;
            let mut links = 0;
            while parser.takes_word("if") {
                parser.link(&mut links)?;
                let condition = parser.or()?;
                let otherwise =
                    if parser.takes_word("else") { Some(parser.expression()?) } else { None };
                first = Expression::Choice(Box::new((condition, first, otherwise)));
            }
            Ok(first)
        })
    }

    /// One or more expressions: a tuple if there is a comma.
    pub(super) fn tuple(&mut self, choices: bool, end: &[&str]) -> Parsed<Expression> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if self.at_tuple_end(end) {
                break;
            }
            items.push(if choices { self.expression()? } else { self.or()? });
            if !self.takes(",") {
                break;
            }
            is_tuple = true;
        }
        match (is_tuple, items.pop()) {
            (false, Some(only)) => Ok(only),
            (false, None) => Err(self.unexpected("an expression")),
            (true, last) => {
                items.extend(last);
                Ok(Expression::Tuple(items))
            }
        }
    }

    fn at_tuple_end(&self, end: &[&str]) -> bool {
        match self.peek() {
            None | Some(Token::ClosePrint | Token::CloseBlock) => true,
            Some(Token::Sign(sign)) => *sign == ")",
            Some(Token::Name(name)) => end.contains(&name.as_str()),
            _ => false,
        }
    }

    pub(super) fn or(&mut self) -> Parsed<Expression> {
        let mut left = self.and()?;
        let mut links = 0;
        while self.takes_word("or") {
            self.link(&mut links)?;
            left = Expression::Or(Box::new((left, self.and()?)));
        }
        Ok(left)
    }

    fn and(&mut self) -> Parsed<Expression> {
        let mut left = self.not()?;
        let mut links = 0;
        while self.takes_word("and") {
            self.link(&mut links)?;
            left = Expression::And(Box::new((left, self.not()?)));
        }
        Ok(left)
    }

    fn not(&mut self) -> Parsed<Expression> {
        if self.takes_word("not") {
            return self.deeper(|parser| Ok(Expression::Not(Box::new(parser.not()?))));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Parsed<Expression> {
        let first = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let op = match self.peek() {
                Some(Token::Sign("==")) => Comparison::Eq,
                Some(Token::Sign("!=")) => Comparison::Ne,
                Some(Token::Sign("<")) => Comparison::Lt,
                Some(Token::Sign("<=")) => Comparison::Le,
                Some(Token::Sign(">")) => Comparison::Gt,
                Some(Token::Sign(">=")) => Comparison::Ge,
                Some(Token::Name(name)) if name == "in" => Comparison::In,
                Some(Token::Name(name)) if name == "not" => {
                    let next = self.tokens.get(self.at + 1);
                    if !matches!(next, Some(Token::Name(name)) if name == "in") {
                        break;
                    }
                    self.at += 1;
                    Comparison::NotIn
                }
                _ => break,
            };
            self.at += 1;
            rest.push((op, self.sum()?));
        }
        if rest.is_empty() { Ok(first) } else { Ok(Expression::Compare(Box::new(first), rest)) }
    }

    fn sum(&mut self) -> Parsed<Expression> {
        let mut left = self.concatenation()?;
        let mut links = 0;
        loop {
            self.link(&mut links)?;
            let op = match self.peek() {
                Some(Token::Sign("+")) => Operator::Add,
                Some(Token::Sign("-")) => Operator::Sub,
                _ => return Ok(left),
            };
            self.at += 1;
            left = Expression::Binary(op, Box::new((left, self.concatenation()?)));
        }
    }

    fn concatenation(&mut self) -> Parsed<Expression> {
        let first = self.product()?;
        if !self.sees("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.takes("~") {
            parts.push(self.product()?);
        }
        Ok(Expression::Concat(parts))
    }

    fn product(&mut self) -> Parsed<Expression> {
        let mut left = self.power()?;
        let mut links = 0;
        loop {
            self.link(&mut links)?;
            let op = match self.peek() {
                Some(Token::Sign("*")) => Operator::Mul,
                Some(Token::Sign("/")) => Operator::Div,
                Some(Token::Sign("//")) => Operator::FloorDiv,
                Some(Token::Sign("%")) => Operator::Mod,
                _ => return Ok(left),
            };
            self.at += 1;
            left = Expression::Binary(op, Box::new((left, self.power()?)));
        }
    }

    fn power(&mut self) -> Parsed<Expression> {
        let mut left = self.unary(true)?;
        let mut links = 0;
        while self.takes("**") {
            self.link(&mut links)?;
            left = Expression::Binary(Operator::Pow, Box::new((left, self.unary(true)?)));
        }
        Ok(left)
    }

    fn unary(&mut self, filters: bool) -> Parsed<Expression> {
        let negative = self.sees("-");
        let node = if negative || self.sees("+") {
            self.at += 1;
            let inner = self.deeper(|parser| parser.unary(false))?;
            Expression::Sign(negative, Box::new(inner))
        } else {
            self.primary()?
        };
        let node = self.postfix(node)?;
        if filters { self.filters(node) } else { Ok(node) }
    }

    // === filters and tests ===

    fn filters(&mut self, mut node: Expression) -> Parsed<Expression> {
        let mut links = 0;
        loop {
            self.link(&mut links)?;
            if self.takes("|") {
                let call = self.filter()?;
                node = Expression::Filter(Box::new(node), Box::new(call));
            } else if self.takes_word("is") {
                node = self.test(node)?;
            } else if self.sees("(") {
                let arguments = self.arguments()?;
                node = Expression::Call(Box::new(node), Box::new(arguments));
            } else {
                return Ok(node);
            }
        }
    }

    /// A filter's name and arguments.
    pub(super) fn filter(&mut self) -> Parsed<Call> {
        let name = self.dotted()?;
        let arguments = if self.sees("(") { self.arguments()? } else { Arguments::default() };
        Ok(Call { name, arguments })
    }

    fn dotted(&mut self) -> Parsed<String> {
        let mut name = self.word()?;
        while self.takes(".") {
            name = format!("{name}.{}", self.word()?);
        }
        Ok(name)
    }

    fn test(&mut self, node: Expression) -> Parsed<Expression> {
        let negated = self.takes_word("not");
        let name = self.dotted()?;
        let mut arguments = Arguments::default();
        let begins = match self.peek() {
            Some(Token::Sign("(")) => {
                arguments = self.arguments()?;
                false
            }
            Some(Token::Name(word)) if word == "is" => {
                return Err("You cannot chain multiple tests with is".into());
            }
            Some(Token::Name(word)) => !matches!(word.as_str(), "else" | "or" | "and"),
            Some(Token::Text(_) | Token::Int(_) | Token::Float(_)) => true,
            Some(Token::Sign(sign)) => matches!(*sign, "[" | "{"),
            _ => false,
        };
        if begins {
            let primary = self.primary()?;
            arguments.list.push(self.postfix(primary)?);
        }
        let test = Expression::Test(Box::new(node), Box::new(Call { name, arguments }));
        Ok(if negated { Expression::Not(Box::new(test)) } else { test })
    }
}
