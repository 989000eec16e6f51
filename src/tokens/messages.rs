//! A chat request as a server prepares it for its template: one function for each of the rules in
//! [`super::profile`].

use super::{
    CountError,
    content::ContentHints,
    profile::{
        Arguments, Developer, LastAssistant, ListForm, Profile, Rules, ToolChoice, ToolKeys,
    },
    python,
};
use serde_json::{Map, Value, json};

/// Marks where the last message's content ends, so that the text can be cut there. The space at its end
/// tells whether the template trims content.
const CUT_HERE: &str = "CUT_THE_PROMPT_HERE ";

/// What the loaded template wants of message content.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wants {
    pub(super) hints: ContentHints,
    /// A trial with a string as content did not print it.
    pub(super) strings_fail: bool,
    /// A trial with a list of parts as content printed their text.
    pub(super) prints_lists: bool,
    /// A trial with a system message did not print it.
    pub(super) no_system: bool,
}

/// What follows the rendered text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ending {
    /// Nothing.
    Nothing,
    /// The text is cut where the last message's content ends.
    Cut,
    /// This text, encoded together with the prompt.
    Text(String),
    /// This text, encoded by itself.
    Apart(String),
}

/// Everything a template is rendered with.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub(super) messages: Vec<Value>,
    pub(super) tools: Option<Vec<Value>>,
    pub(super) documents: Option<Value>,
    pub(super) variables: Map<String, Value>,
    pub(super) add_generation_prompt: bool,
    pub(super) ending: Ending,
}

/// Prepares a whole chat request body.
pub(super) fn prepare(
    profile: &Profile,
    wants: Wants,
    body: &Map<String, Value>,
) -> Result<Prepared, CountError> {
    let rules = &profile.rules;
    let sent = body.get("messages").and_then(Value::as_array);
    let sent = sent.filter(|list| !list.is_empty()).ok_or(CountError::NoMessages)?;
    let mut messages = Vec::with_capacity(sent.len());
    for message in sent {
        let message = message.as_object().ok_or(CountError::NoMessages)?;
        messages.push(prepare_message(rules, wants, message)?);
    }
    match rules.developer {
        Developer::JoinsSystem if !wants.hints.developer => developer_to_system(&mut messages),
        Developer::IsSystem => developer_is_system(&mut messages),
        Developer::JoinsSystem | Developer::AsSent => {}
    }
    if rules.system_joins_next && wants.no_system {
        system_joins_next(&mut messages);
    }
    let flag =
        |name: &str, otherwise: bool| body.get(name).and_then(Value::as_bool).unwrap_or(otherwise);
    let continued = flag("continue_final_message", false);
    let mut add_generation_prompt = flag("add_generation_prompt", true);
    let ending = end(rules, &mut messages, sent.last(), continued)?;
    match &ending {
        Ending::Cut => add_generation_prompt = false,
        Ending::Text(_) => add_generation_prompt = sent.last().is_some_and(is_begun),
        Ending::Apart(_) => add_generation_prompt = true,
        Ending::Nothing => {}
    }
    Ok(Prepared {
        messages: messages.into_iter().map(Value::Object).collect(),
        add_generation_prompt,
        ending,
        ..surroundings(profile, body)
    })
}

/// All but the messages.
pub(super) fn surroundings(profile: &Profile, body: &Map<String, Value>) -> Prepared {
    let generate = body.get("add_generation_prompt").and_then(Value::as_bool);
    Prepared {
        messages: Vec::new(),
        tools: tools(&profile.rules, body),
        documents: body.get("documents").filter(|documents| !documents.is_null()).cloned(),
        variables: variables(profile, body),
        add_generation_prompt: generate.unwrap_or(true),
        ending: Ending::Nothing,
    }
}

/// Whether messages must be prepared all together: some join others, or the last is treated apart.
pub(super) fn join_or_end(
    profile: &Profile,
    wants: Wants,
    roles: &[&str],
    body: &Map<String, Value>,
) -> bool {
    let rules = &profile.rules;
    let developer = match rules.developer {
        Developer::JoinsSystem => !wants.hints.developer,
        Developer::IsSystem => true,
        Developer::AsSent => false,
    };
    let joins = rules.system_joins_next && wants.no_system;
    let ends = rules.last_assistant != LastAssistant::Rendered
        && roles.last().is_some_and(|role| *role == "assistant");
    let continued = body.get("continue_final_message").and_then(Value::as_bool) == Some(true);
    continued
        || ends
        || (joins && roles.first().is_some_and(|role| *role == "system" || *role == "developer"))
        || (developer && roles.contains(&"developer"))
}

fn developer_is_system(messages: &mut [Map<String, Value>]) {
    for message in messages {
        if message.get("role").and_then(Value::as_str) == Some("developer") {
            message.insert("role".into(), "system".into());
        }
    }
}

/// Puts the text of a system message at the front before that of the next message. Without a next one it
/// is dropped.
fn system_joins_next(messages: &mut Vec<Map<String, Value>>) {
    let is_system = |message: &Map<String, Value>| {
        message.get("role").and_then(Value::as_str) == Some("system")
    };
    if !messages.first().is_some_and(is_system) {
        return;
    }
    let system = messages.remove(0);
    let text = |message: &Map<String, Value>| Some(message.get("content")?.as_str()?.to_owned());
    if let Some(next) = messages.first_mut()
        && let (Some(first), Some(second)) = (text(&system), text(next))
    {
        next.insert("content".into(), format!("{first}\n{second}").into());
    }
}

// === one message ===

pub(super) fn prepare_message(
    rules: &Rules,
    wants: Wants,
    sent: &Map<String, Value>,
) -> Result<Map<String, Value>, CountError> {
    const KNOWN: [&str; 8] = [
        "role",
        "content",
        "name",
        "tool_calls",
        "tool_call_id",
        "reasoning",
        "reasoning_content",
        "thinking",
    ];
    let mut message = Map::new();
    for (key, value) in sent {
        let known = !rules.tidy_messages || KNOWN.contains(&key.as_str());
        if known && !(rules.drop_nulls && value.is_null()) {
            message.insert(key.clone(), value.clone());
        }
    }
    if rules.list_form != ListForm::AsSent {
        let role = sent.get("role").and_then(Value::as_str).unwrap_or_default();
        let content = prepare_content(rules, wants, role, sent.get("content"))?;
        message.insert("content".into(), content);
    }
    if rules.tidy_messages && message.get("tool_calls").is_some_and(is_empty) {
        message.remove("tool_calls");
    }
    if rules.arguments == Arguments::Parsed
        && let Some(calls) = message.get_mut("tool_calls").and_then(Value::as_array_mut)
    {
        calls.iter_mut().for_each(parse_arguments);
    }
    name_reasoning(rules, &mut message);
    Ok(message)
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

fn prepare_content(
    rules: &Rules,
    wants: Wants,
    role: &str,
    content: Option<&Value>,
) -> Result<Value, CountError> {
    // Whether lists stay lists, and whether strings become lists too.
    let (as_list, wrap) = match rules.list_form {
        ListForm::AsSent => (true, true),
        ListForm::WhenLooping => (wants.hints.loops, wants.hints.loops),
        ListForm::WhenLoopingOrMedia => (wants.hints.loops || wants.hints.media, false),
        ListForm::WhenPrinted => (wants.prints_lists, wants.prints_lists && wants.strings_fail),
    };
    // Elsewhere, results of tools are joined whatever the template likes.
    let as_list = as_list && (role != "tool" || rules.list_form == ListForm::WhenPrinted);
    Ok(match content {
        None | Some(Value::Null) if wrap => json!([]),
        None | Some(Value::Null) => json!(""),
        Some(Value::String(text)) if wrap => json!([{"type": "text", "text": text}]),
        Some(Value::Array(parts)) => {
            let texts: Vec<&str> = parts.iter().map(part_text).collect::<Result<_, _>>()?;
            if as_list {
                texts.iter().map(|text| json!({"type": "text", "text": text})).collect()
            } else {
                json!(joined(rules, &texts, rules.joiner))
            }
        }
        Some(other) => other.clone(),
    })
}

/// Parts as one text.
fn joined(rules: &Rules, texts: &[&str], joiner: &str) -> String {
    if !rules.join_behind_text {
        return texts.join(joiner);
    }
    texts.iter().fold(String::new(), |mut all, text| {
        if !all.is_empty() {
            all.push_str(joiner);
        }
        all + text
    })
}

/// The text of one content part. What is not text costs tokens that only the server's own processor
/// can tell.
fn part_text(part: &Value) -> Result<&str, CountError> {
    let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
    let text = match kind {
        "text" | "input_text" | "output_text" => part.get("text").and_then(Value::as_str),
        "refusal" => part.get("refusal").and_then(Value::as_str),
        _ => None,
    };
    text.or_else(|| part.as_str()).ok_or_else(|| {
        CountError::NotAvailable(format!("content of type {kind} cannot be counted here"))
    })
}

fn parse_arguments(call: &mut Value) {
    let Some(arguments) = call.pointer_mut("/function/arguments") else { return };
    if let Value::String(text) = arguments {
        let parsed = serde_json::from_str(text).ok();
        *arguments = parsed.filter(|value: &Value| !value.is_null()).unwrap_or_else(|| json!({}));
    } else if arguments.is_null() {
        *arguments = json!({});
    }
}

/// Gives an assistant's reasoning under every name that the server gives it.
fn name_reasoning(rules: &Rules, message: &mut Map<String, Value>) {
    let known = ["reasoning_content", "thinking", "reasoning"];
    let found = known.iter().find_map(|name| message.get(*name).filter(|value| !value.is_null()));
    let Some(reasoning) = found.cloned() else { return };
    for name in rules.reasoning_names {
        if *name == "reasoning_content" || !message.contains_key(*name) {
            message.insert((*name).into(), reasoning.clone());
        }
    }
}

/// Joins system and developer messages into one at the front, if any of them is a developer's.
fn developer_to_system(messages: &mut Vec<Map<String, Value>>) {
    let role_is = |message: &Map<String, Value>, role: &str| {
        message.get("role").and_then(Value::as_str) == Some(role)
    };
    if !messages.iter().any(|message| role_is(message, "developer")) {
        return;
    }
    let (systems, mut others): (Vec<_>, Vec<_>) = std::mem::take(messages)
        .into_iter()
        .partition(|message| role_is(message, "system") || role_is(message, "developer"));
    let text = |message: &Map<String, Value>| match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts
            .iter()
            .filter_map(|part| part.get("text")?.as_str())
            .collect::<Vec<_>>()
            .join("\n"),
        _ => String::new(),
    };
    let joined = systems.iter().map(text).collect::<Vec<_>>().join("\n\n");
    let listed = systems.iter().any(|message| message.get("content").is_some_and(Value::is_array));
    let content = if listed { json!([{"type": "text", "text": joined}]) } else { json!(joined) };
    let mut system = Map::new();
    system.insert("role".into(), json!("system"));
    system.insert("content".into(), content);
    messages.push(system);
    messages.append(&mut others);
}

// === the last message ===

fn end(
    rules: &Rules,
    messages: &mut Vec<Map<String, Value>>,
    sent_last: Option<&Value>,
    continued: bool,
) -> Result<Ending, CountError> {
    let by_assistant = messages.last().and_then(|last| last.get("role")).and_then(Value::as_str)
        == Some("assistant");
    match rules.last_assistant {
        LastAssistant::Rendered if continued => mark_end(messages).map(|()| Ending::Cut),
        LastAssistant::Rendered => Ok(Ending::Nothing),
        _ if !by_assistant => Ok(Ending::Nothing),
        LastAssistant::BecomesUser if continued => Ok(Ending::Apart(take_last(messages))),
        LastAssistant::BecomesUser => {
            if let Some(last) = messages.last_mut() {
                last.insert("role".into(), json!("user"));
            }
            Ok(Ending::Nothing)
        }
        LastAssistant::Prefill => {
            let last = messages.pop();
            if last.is_some_and(|last| last.get("reasoning_content").is_some_and(is_told)) {
                // The server writes the marks of the template's reasoning around it, as it learnt them.
                let told = "an answer with reasoning is continued by the server alone";
                return Err(CountError::NotAvailable(told.into()));
            }
            prefill(rules, sent_last.and_then(|last| last.get("content"))).map(Ending::Text)
        }
    }
}

fn is_told(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.is_empty())
}

/// An answer begun with nothing is not begun; one part of nothing is a beginning.
fn is_begun(last: &Value) -> bool {
    match last.get("content") {
        Some(Value::Array(parts)) => !parts.is_empty(),
        content => content.is_some_and(is_told),
    }
}

/// Between the parts of an answer that is to be continued, whatever the template likes.
const PREFILL_JOINER: &str = "\n\n";

fn prefill(rules: &Rules, content: Option<&Value>) -> Result<String, CountError> {
    match content {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => {
            let texts: Vec<&str> = parts.iter().map(part_text).collect::<Result<_, _>>()?;
            Ok(joined(rules, &texts, PREFILL_JOINER))
        }
        _ => Ok(String::new()),
    }
}

/// Takes the last message off and gives its text.
fn take_last(messages: &mut Vec<Map<String, Value>>) -> String {
    match messages.pop().as_ref().and_then(|last| last.get("content")) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            parts.iter().filter_map(|part| part.get("text")?.as_str()).collect()
        }
        _ => String::new(),
    }
}

fn mark_end(messages: &mut [Map<String, Value>]) -> Result<(), CountError> {
    let content = messages.last_mut().and_then(|last| last.get_mut("content"));
    let text = match content {
        Some(Value::Array(parts)) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")),
        other => other,
    };
    match text {
        Some(Value::String(text)) => {
            text.push_str(CUT_HERE);
            Ok(())
        }
        _ => Err(CountError::Template(
            "continue_final_message needs text in the last message".into(),
        )),
    }
}

/// Cuts a rendered text at the mark that [`Ending::Cut`] stands for.
pub(super) fn cut(text: &str) -> Result<&str, CountError> {
    let missing =
        || CountError::Template("the chat template does not print the message to continue".into());
    let at = text.rfind(CUT_HERE.trim_end()).ok_or_else(missing)?;
    let (kept, behind) = text.split_at(at);
    // Without the mark's last space the template trims, and what it would have trimmed goes too.
    let trimmed = !behind.starts_with(CUT_HERE);
    Ok(if trimmed { kept.trim_end_matches(python::is_space) } else { kept })
}

// === tools and variables ===

fn tools(rules: &Rules, body: &Map<String, Value>) -> Option<Vec<Value>> {
    let sent = body.get("tools").and_then(Value::as_array)?;
    if rules.tool_keys == ToolKeys::AsSent {
        // Servers take an empty list for none; to the library they differ.
        return (!rules.tidy_messages || !sent.is_empty()).then(|| sent.clone());
    }
    let mut chosen: Vec<&Value> = sent.iter().collect();
    if rules.tool_choice == ToolChoice::Obeyed {
        match body.get("tool_choice") {
            Some(Value::String(choice)) if choice == "none" => return None,
            Some(choice @ Value::Object(_)) => {
                let name = choice.pointer("/function/name");
                chosen.retain(|tool| tool.pointer("/function/name") == name);
            }
            _ => {}
        }
    }
    let tools: Vec<Value> =
        chosen.into_iter().map(|tool| write_tool(rules.tool_keys, tool)).collect();
    (!tools.is_empty()).then_some(tools)
}

fn write_tool(keys: ToolKeys, tool: &Value) -> Value {
    const NAMES: [&str; 3] = ["name", "description", "parameters"];
    let Some(sent) = tool.get("function").and_then(Value::as_object) else { return tool.clone() };
    let mut function = Map::new();
    if keys == ToolKeys::OnlyThree {
        for (name, empty) in NAMES.into_iter().zip([json!(""), json!(""), json!({})]) {
            function.insert(name.into(), sent.get(name).cloned().unwrap_or(empty));
        }
        return json!({"type": "function", "function": function});
    }
    if keys == ToolKeys::SentThenNull {
        let known =
            sent.iter().filter(|(key, _)| NAMES.contains(&key.as_str()) || *key == "strict");
        function.extend(known.map(|(key, value)| (key.clone(), value.clone())));
    }
    for name in NAMES {
        if !function.contains_key(name) {
            function.insert(name.into(), sent.get(name).cloned().unwrap_or_default());
        }
    }
    if let Some(strict) = sent.get("strict").filter(|strict| !strict.is_null()) {
        function.entry("strict").or_insert_with(|| strict.clone());
    }
    json!({"type": tool.get("type").cloned().unwrap_or_else(|| json!("function")), "function": function})
}

fn variables(profile: &Profile, body: &Map<String, Value>) -> Map<String, Value> {
    let rules = &profile.rules;
    let mut variables: Map<String, Value> = profile.variables.clone().into_iter().collect();
    if rules.thinking_by_default {
        variables.entry("enable_thinking").or_insert_with(|| json!(true));
    }
    if let Some(effort) = body.get("reasoning_effort").and_then(Value::as_str) {
        if rules.reasoning_effort {
            variables.insert("reasoning_effort".into(), json!(effort));
        }
        if rules.effort_sets_thinking {
            variables.insert("enable_thinking".into(), json!(effort != "none"));
        }
    }
    if let Some(given) = body.get("chat_template_kwargs").and_then(Value::as_object) {
        variables.extend(given.iter().map(|(name, value)| (name.clone(), value.clone())));
    }
    variables
}

#[cfg(test)]
#[path = "messages_tests.rs"]
mod tests;
