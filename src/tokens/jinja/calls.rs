//! Calls: methods, macros, functions, and what loops can do.

use super::{
    Stop,
    access::{self, Attribute},
    args::Args,
    ast::{Expression, Macro},
    globals,
    machine::Machine,
    methods,
    value::{Dict, Global, Value},
};

/// Steps that calling a macro is worth.
const CALL_STEPS: u64 = 4;

impl<'t> Machine<'t> {
    /// Calls what a call expression names, with a `caller` if it is a call block's.
    pub(super) fn call_with(
        &mut self,
        call: &'t Expression,
        caller: Option<Value>,
        scope: usize,
    ) -> Result<Value, Stop> {
        let Expression::Call(callee, written) = call else {
            return Err(Stop::failed("expected a call"));
        };
        // A method is called where it is found, without making a value of it.
        if let Expression::Attribute(of, name) = &**callee {
            let of = self.evaluate(of, scope)?;
            let plain = matches!(
                of,
                Value::Str(_) | Value::Safe(_) | Value::Dict(_) | Value::List(_) | Value::Tuple(_)
            );
            if plain && let Attribute::Method(known) = access::attribute(&of, name) {
                let mut args = self.arguments(written, scope)?;
                args.named.extend(caller.map(|caller| ("caller".into(), caller)));
                return self.method(&of, known, args);
            }
            let callee = self.attribute(&of, name)?;
            return self.call_value(&callee, written, caller, scope);
        }
        let callee = self.evaluate(callee, scope)?;
        self.call_value(&callee, written, caller, scope)
    }

    fn call_value(
        &mut self,
        callee: &Value,
        written: &'t super::ast::Arguments,
        caller: Option<Value>,
        scope: usize,
    ) -> Result<Value, Stop> {
        let mut args = self.arguments(written, scope)?;
        args.named.extend(caller.map(|caller| ("caller".into(), caller)));
        match callee {
            Value::Method(method) => self.method(&method.0, method.1, args),
            Value::Macro(number) => {
                let (called, home) = *self
                    .macros
                    .get(*number)
                    .ok_or_else(|| Stop::failed("a macro that is not known"))?;
                self.deeper(|machine| machine.call_macro(called, home, args))
            }
            Value::Global(global) => self.call_global(*global, args),
            Value::Loop(number) => self.call_loop(*number, args),
            other => Err(Stop::failed(format!("'{}' object is not callable", other.type_name()))),
        }
    }

    fn method(&mut self, of: &Value, name: &'static str, args: Args) -> Result<Value, Stop> {
        match of {
            Value::Loop(number) => self.loop_method(*number, name, args),
            // What joiners and cyclers are made of.
            Value::Tuple(seq) if name == "joiner" || name == "cycler" => {
                self.turn(seq.items.clone(), name, &args)
            }
            _ => {
                self.weigh(of, &args)?;
                let made = methods::call(of, name, args)?;
                self.spend(made.weight())?;
                Ok(made)
            }
        }
    }

    // === macros ===

    fn call_macro(
        &mut self,
        called: &'t Macro,
        home: usize,
        mut args: Args,
    ) -> Result<Value, Stop> {
        self.spend(CALL_STEPS)?;
        let inner = self.open(home);
        let mut rest = args.list.split_off(args.list.len().min(called.parameters.len()));
        let mut given = args.list.drain(..);
        let mut values = Vec::with_capacity(called.parameters.len());
        for (name, default) in &called.parameters {
            let value = given.next().or_else(|| {
                let text = self.program.names.texts.get(*name as usize)?;
                let at = args.named.iter().position(|(known, _)| known == text)?;
                Some(args.named.remove(at).1)
            });
            values.push((*name, default, value));
        }
        drop(given);
        if let Some(name) = called.caller {
            let caller = args.take("caller");
            let caller = caller.filter(|caller| !matches!(caller, Value::None));
            self.set(inner, name, caller.unwrap_or(Value::Undefined));
        }
        if let Some(name) = called.kwargs {
            let named = args.named.drain(..).map(|(name, value)| (Value::Str(name), value));
            let named = Dict::collect(named.collect())?;
            self.set(inner, name, Value::Dict(named));
        } else if let Some((name, _)) = args.named.first() {
            let told = format!("macro '{}' takes no keyword argument '{name}'", called.name);
            return Err(Stop::Failed(told));
        }
        if let Some(name) = called.varargs {
            let rest = Value::tuple(std::mem::take(&mut rest))?;
            self.set(inner, name, rest);
        } else if !rest.is_empty() {
            let told = format!(
                "macro '{}' takes not more than {} arguments",
                called.name,
                called.parameters.len()
            );
            return Err(Stop::Failed(told));
        }
        // A default sees what was given and the defaults before it; those behind it have no value yet.
        for (name, _, value) in &values {
            self.set(inner, *name, value.clone().unwrap_or(Value::Undefined));
        }
        for (name, default, value) in values {
            if let (None, Some(default)) = (value, default) {
                let value = self.evaluate(default, inner)?;
                self.set(inner, name, value);
            }
        }
        let mut text = String::new();
        let ended = self.run(&called.body, inner, &mut text);
        self.close(inner);
        match ended {
            Ok(()) => {
                let text: Value = text.into();
                self.spend(text.weight())?;
                Ok(text)
            }
            Err(Stop::Break | Stop::Continue) => Err(Stop::failed("break outside of a loop")),
            Err(stop) => Err(stop),
        }
    }

    // === functions ===

    fn call_global(&mut self, global: Global, args: Args) -> Result<Value, Stop> {
        match global {
            Global::Range => globals::range(args),
            Global::Dict => globals::dict(args),
            Global::RaiseException => globals::raise(args),
            Global::StrftimeNow => globals::strftime(args, &(self.now)()),
            Global::Namespace => {
                let mut attributes = Vec::new();
                for (key, value) in globals::pairs(args)? {
                    let name = super::args::text(Some(&key))?;
                    if name.starts_with('_') {
                        return Err(Stop::failed("namespaces have no underscored attributes"));
                    }
                    attributes.push((name.into(), value));
                }
                self.spend(attributes.len() as u64 + 4)?;
                self.namespaces.push(attributes);
                Ok(Value::Namespace(self.namespaces.len() - 1))
            }
            Global::Joiner => {
                let [separator] = args.bind(["sep"], 0)?;
                self.remembering(vec![separator.unwrap_or_else(|| ", ".into())], "joiner")
            }
            Global::Cycler if args.named.is_empty() && !args.list.is_empty() => {
                Err(Stop::failed("cycler is not here"))
            }
            Global::Cycler | Global::Lipsum => Err(Stop::failed("this function is not here")),
        }
    }

    /// A function that remembers how often it was called.
    fn remembering(&mut self, mut items: Vec<Value>, name: &'static str) -> Result<Value, Stop> {
        self.spend(4)?;
        self.turns.push(0);
        items.push(Value::count(self.turns.len() - 1));
        Ok(Value::Method(std::sync::Arc::new((Value::tuple(items)?, name))))
    }

    fn turn(&mut self, mut items: Vec<Value>, name: &str, args: &Args) -> Result<Value, Stop> {
        let number = items.pop().and_then(|number| usize::try_from(number.as_int()?).ok());
        let turn = number.and_then(|number| self.turns.get_mut(number));
        let (Some(turn), true, "joiner") = (turn, args.list.is_empty(), name) else {
            return Err(Stop::failed("takes no arguments"));
        };
        *turn += 1;
        // The first call gives nothing, each further one the separator.
        Ok(if *turn == 1 { "".into() } else { items.pop().unwrap_or(Value::Undefined) })
    }
}
