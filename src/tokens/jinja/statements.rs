//! Statements: what stands between `{%` and `%}`, and the text around it.

use super::{
    ast::{Call, Expression, For, Macro, NameId, Statement, Target},
    lexer::Token,
    parser::{Parsed, Parser},
};

impl Parser {
    /// Statements up to a block that begins with one of these words, or to the end of the template if
    /// there are none. The word is the next token then.
    pub(super) fn statements(&mut self, ends: &[&str]) -> Parsed<Vec<Statement>> {
        let mut body = Vec::new();
        loop {
            match self.next() {
                None if ends.is_empty() => return Ok(body),
                None => {
                    return Err(format!("a block is not closed: {} is missing", ends.join(" or ")));
                }
                Some(Token::Data(text)) => body.push(Statement::Text(text)),
                Some(Token::OpenPrint) => {
                    body.push(Statement::Print(self.tuple(true, &[])?));
                    self.expect(&Token::ClosePrint)?;
                }
                Some(Token::OpenBlock) => {
                    if ends.iter().any(|end| self.sees_word(end)) {
                        return Ok(body);
                    }
                    self.deeper(|parser| parser.statement(&mut body))?;
                    self.expect(&Token::CloseBlock)?;
                }
                Some(_) => return Err("unexpected end of a tag".into()),
            }
        }
    }

    /// The inside of a block, after its first tag's arguments.
    fn block(&mut self, ends: &[&str]) -> Parsed<Vec<Statement>> {
        self.takes(":");
        self.expect(&Token::CloseBlock)?;
        self.statements(ends)
    }

    /// The same, and the closing word.
    fn closed(&mut self, end: &str) -> Parsed<Vec<Statement>> {
        let body = self.block(&[end])?;
        self.expect_word(end).map(|()| body)
    }

    fn statement(&mut self, body: &mut Vec<Statement>) -> Parsed<()> {
        let word = self.word()?;
        body.push(match word.as_str() {
            "for" => self.for_loop()?,
            "if" => self.choice()?,
            "set" => self.set()?,
            "with" => self.with()?,
            "macro" => self.macro_()?,
            "call" => self.call()?,
            "filter" => {
                let first = self.filter()?;
                let calls = self.more_filters(vec![first])?;
                Statement::Filter(calls, self.closed("endfilter")?)
            }
            "print" => {
                while !matches!(self.peek(), Some(Token::CloseBlock)) {
                    let printed = self.expression()?;
                    body.push(Statement::Print(printed));
                    if !self.takes(",") {
                        break;
                    }
                }
                return Ok(());
            }
            // Marks what an assistant wrote: renders as its content, in a scope of its own.
            "generation" => Statement::With(Vec::new(), self.closed("endgeneration")?),
            "break" => Statement::Break,
            "continue" => Statement::Continue,
            other => return Err(format!("the statement {other} is not known")),
        });
        Ok(())
    }

    fn more_filters(&mut self, mut calls: Vec<Call>) -> Parsed<Vec<Call>> {
        while self.takes("|") {
            calls.push(self.filter()?);
        }
        Ok(calls)
    }

    // === targets ===

    /// What is assigned to: a name, a namespace's attribute where they may be, or a tuple of them.
    fn target(&mut self, attributes: bool, end: &[&str]) -> Parsed<Target> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            let ends = match self.peek() {
                None | Some(Token::CloseBlock | Token::Sign(")" | "=")) => true,
                Some(Token::Name(word)) => end.contains(&word.as_str()),
                _ => false,
            };
            if ends {
                break;
            }
            targets.push(self.one_target(attributes)?);
            if !self.takes(",") {
                break;
            }
            is_tuple = true;
        }
        match (is_tuple, targets.pop()) {
            (false, Some(only)) => Ok(only),
            (false, None) => Err(self.unexpected("a name to assign to")),
            (true, last) => {
                targets.extend(last);
                Ok(Target::Tuple(targets))
            }
        }
    }

    fn one_target(&mut self, attributes: bool) -> Parsed<Target> {
        if self.takes("(") {
            let inner = self.deeper(|parser| parser.target(attributes, &[]))?;
            self.expect(&Token::Sign(")"))?;
            return Ok(inner);
        }
        let name = self.word()?;
        if matches!(name.as_str(), "true" | "false" | "none" | "True" | "False" | "None" | "loop") {
            return Err(format!("cannot assign to {name}"));
        }
        let number = self.number_of(&name);
        if attributes && self.takes(".") {
            return Ok(Target::Attribute(number, self.word()?.into()));
        }
        Ok(Target::Name(number))
    }

    fn name_target(&mut self) -> Parsed<NameId> {
        let name = self.word()?;
        Ok(self.number_of(&name))
    }

    // === blocks ===

    fn for_loop(&mut self) -> Parsed<Statement> {
        let target = self.target(false, &["in"])?;
        self.expect_word("in")?;
        let over = self.tuple(false, &["recursive"])?;
        let test = if self.takes_word("if") { Some(self.expression()?) } else { None };
        let recursive = self.takes_word("recursive");
        let loop_number = self.number_of("loop");
        let before = self.loads.len();
        let body = self.block(&["endfor", "else"])?;
        let speaks = recursive || self.loads.iter().skip(before).any(|load| *load == loop_number);
        let otherwise = if self.takes_word("else") {
            self.closed("endfor")?
        } else {
            self.expect_word("endfor")?;
            Vec::new()
        };
        Ok(Statement::For(Box::new(For {
            target,
            over,
            test,
            body,
            otherwise,
            recursive,
            reads: None,
            number: self.next_loop(),
            loop_name: speaks.then_some(loop_number),
        })))
    }

    fn choice(&mut self) -> Parsed<Statement> {
        let mut branches = Vec::new();
        loop {
            let condition = self.tuple(false, &[])?;
            branches.push((condition, self.block(&["elif", "else", "endif"])?));
            if self.takes_word("elif") {
                continue;
            }
            let otherwise = if self.takes_word("else") {
                self.closed("endif")?
            } else {
                self.expect_word("endif")?;
                Vec::new()
            };
            return Ok(Statement::If(branches, otherwise));
        }
    }

    fn set(&mut self) -> Parsed<Statement> {
        let target = self.target(true, &[])?;
        if self.takes("=") {
            return Ok(Statement::Set(target, self.tuple(true, &[])?));
        }
        let filters = self.more_filters(Vec::new())?;
        Ok(Statement::SetBlock(target, filters, self.closed("endset")?))
    }

    fn with(&mut self) -> Parsed<Statement> {
        let mut values = Vec::new();
        while !matches!(self.peek(), None | Some(Token::CloseBlock | Token::Sign(":"))) {
            if !values.is_empty() {
                self.expect(&Token::Sign(","))?;
            }
            let target = self.target(false, &[])?;
            self.expect(&Token::Sign("="))?;
            values.push((target, self.expression()?));
        }
        Ok(Statement::With(values, self.closed("endwith")?))
    }

    fn macro_(&mut self) -> Parsed<Statement> {
        let name = self.word()?;
        let number = self.number_of(&name);
        let before = self.loads.len();
        let parameters = self.signature()?;
        let body = self.closed("endmacro")?;
        let made = self.macro_of(name, parameters, body, before)?;
        Ok(Statement::Macro(number, Box::new(made)))
    }

    fn call(&mut self) -> Parsed<Statement> {
        let before = self.loads.len();
        let parameters = if self.sees("(") { self.signature()? } else { Vec::new() };
        let called = self.expression()?;
        if !matches!(called, Expression::Call(..)) {
            return Err("expected a call in a call block".into());
        }
        let before = before.max(self.loads.len());
        let body = self.closed("endcall")?;
        let caller = self.macro_of("caller".into(), parameters, body, before)?;
        Ok(Statement::Call(Box::new(called), Box::new(caller)))
    }

    fn signature(&mut self) -> Parsed<Vec<(NameId, Option<Expression>)>> {
        self.expect(&Token::Sign("("))?;
        let mut parameters: Vec<(NameId, Option<Expression>)> = Vec::new();
        while !self.takes(")") {
            if !parameters.is_empty() {
                self.expect(&Token::Sign(","))?;
            }
            let name = self.name_target()?;
            let default = if self.takes("=") { Some(self.expression()?) } else { None };
            if default.is_none() && parameters.last().is_some_and(|(_, last)| last.is_some()) {
                return Err("non-default argument follows default argument".into());
            }
            parameters.push((name, default));
        }
        Ok(parameters)
    }

    /// Puts a macro together. What it spoke of is what was read since `before`.
    fn macro_of(
        &mut self,
        name: String,
        parameters: Vec<(NameId, Option<Expression>)>,
        body: Vec<Statement>,
        before: usize,
    ) -> Parsed<Macro> {
        let mut speaks_of = |name: &str| {
            let number = self.number_of(name);
            let spoken = self.loads.iter().skip(before).any(|load| *load == number);
            // A parameter of the name is an ordinary parameter.
            let parameter = parameters.iter().any(|(parameter, _)| *parameter == number);
            (spoken && !parameter).then_some(number)
        };
        let (caller, kwargs, varargs) =
            (speaks_of("caller"), speaks_of("kwargs"), speaks_of("varargs"));
        let number = self.number_of("caller");
        let bare = parameters.iter().any(|(name, default)| *name == number && default.is_none());
        if bare && self.loads.iter().skip(before).any(|load| *load == number) {
            return Err("a macro's parameter caller must have a default".into());
        }
        Ok(Macro { name: name.into(), parameters, body, caller, kwargs, varargs })
    }
}
