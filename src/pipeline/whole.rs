//! Whole (not streamed) answers: checked, counted and, where needed, corrected before the caller sees
//! a byte.

use super::{
    relay::{Job, Watched},
    screening::text_of,
    watch::{COUNTED_MAX_BYTES, count_text, is_over, tokens_of, with_tools},
};
use crate::{
    api::{
        Route,
        answer::{Expected, ToldInput, Usage, believable},
        event::{Choice, Chunk, splice},
    },
    units::Tokens,
};
use bytes::Bytes;
use serde_json::{Value, value::RawValue};

/// Checks a body. Gives it back as the caller should see it, with what it used.
///
/// # Errors
/// The label of what makes it no answer.
pub fn check(job: &Job, body: Bytes) -> Result<(Bytes, Watched), &'static str> {
    let text = std::str::from_utf8(&body).map_err(|_| "broken_json")?;
    let chunk: Box<Chunk<'_>> = serde_json::from_str(text).map_err(|_| "broken_json")?;
    if chunk.fault().is_some() {
        return Err("error_body");
    }
    match job.route {
        Route::Embeddings => embeddings(job, &body, &chunk),
        _ => generation(job, &body, &chunk),
    }
}

fn embeddings(
    job: &Job,
    body: &Bytes,
    chunk: &Chunk<'_>,
) -> Result<(Bytes, Watched), &'static str> {
    if chunk.data.is_none_or(|data| data.get().len() < 3) {
        return Err("empty_answer");
    }
    let expected = expected(job, Tokens::ZERO, 0);
    let said = believable(chunk.usage.map(RawValue::get), expected);
    let usage = said.unwrap_or(Usage { prompt: job.wishes.prompt, ..Usage::default() });
    let mut changes = Changes::new(job, chunk);
    if said.is_none() {
        let text = format!("{{\"prompt_tokens\":{0},\"total_tokens\":{0}}}", usage.prompt);
        changes.usage(chunk, text);
    }
    Ok((changes.apply(body), Watched { usage, from_server: said.is_some(), told: told(chunk) }))
}

fn generation(
    job: &Job,
    body: &Bytes,
    chunk: &Chunk<'_>,
) -> Result<(Bytes, Watched), &'static str> {
    let choices = chunk.choices.as_deref().unwrap_or_default();
    if choices.is_empty() {
        return Err("empty_answer");
    }
    if choices.len() < job.wishes.wanted {
        return Err("missing_choices");
    }
    if !choices.iter().all(Choice::finished) {
        return Err(super::watch::faults::UNFINISHED);
    }
    let lengths: Vec<Length> = choices.iter().map(|choice| Length::of(job, choice)).collect();
    let output = lengths.iter().fold(Tokens::ZERO, |sum, one| sum.plus(one.tokens));
    let bytes =
        choices.iter().flat_map(Choice::parts).map(|part| part.get().len() as u64).sum::<u64>();
    let said = believable(chunk.usage.map(RawValue::get), expected(job, output, bytes));
    if lengths.iter().any(|one| one.over) && !kept_by_its_own_word(job, said, choices.len()) {
        return Ok(cut(job, body, &lengths, (said, told(chunk))));
    }
    let usage = said.unwrap_or(Usage {
        prompt: job.wishes.prompt,
        completion: output,
        cached: Tokens::ZERO,
    });
    let mut changes = Changes::new(job, chunk);
    if said.is_none() {
        changes.usage(chunk, usage.json());
    }
    Ok((changes.apply(body), Watched { usage, from_server: said.is_some(), told: told(chunk) }))
}

/// What the choices of a whole answer say, and why each ended.
pub(super) fn texts(body: &[u8]) -> Vec<(usize, String, Option<String>)> {
    let Ok(chunk) = serde_json::from_slice::<Box<Chunk<'_>>>(body) else { return Vec::new() };
    let choices = chunk.choices.as_deref().unwrap_or_default().iter();
    let said = choices.map(|choice| {
        let finish =
            choice.finish_reason.and_then(|reason| serde_json::from_str(reason.get()).ok());
        (usize::try_from(choice.index).unwrap_or(usize::MAX), text_of(choice), finish)
    });
    said.collect()
}

/// How long one choice is, by our count.
#[derive(Clone, Copy, Debug)]
struct Length {
    tokens: Tokens,
    /// It is beyond the limit.
    over: bool,
}

impl Length {
    fn of(job: &Job, choice: &Choice<'_>) -> Self {
        let counter = job.wishes.counter.as_deref();
        let count = |part: &RawValue| tokens_of(part, counter);
        let tokens = choice.parts().fold(Tokens::ZERO, |sum, part| sum.plus(count(part)));
        let message = choice.message.as_ref();
        let calls = message.map(|message| [message.tool_calls, message.function_call]);
        let tools = calls.into_iter().flatten().flatten().map(count);
        let tools = tools.fold(Tokens::ZERO, Tokens::plus);
        // Tool calls have the slack that they have in streams; the text beside them has none.
        let over = job.wishes.limit().is_some_and(|most| {
            is_over(tokens.less(tools), most.get())
                || (tools > Tokens::ZERO && is_over(tokens, with_tools(most.get())))
        });
        Self { tokens, over }
    }
}

/// Without the model's tokenizer our count is a guess, and long words make it too high: a server whose
/// own count keeps the limit is believed.
fn kept_by_its_own_word(job: &Job, said: Option<Usage>, choices: usize) -> bool {
    let all = job.wishes.limit().map(|most| most.get().saturating_mul(choices as u64));
    job.wishes.counter.is_none()
        && said.zip(all).is_some_and(|(usage, all)| usage.completion.get() <= all)
}

/// The server's word on the input.
fn told(chunk: &Chunk<'_>) -> Option<ToldInput> {
    ToldInput::read(chunk.usage.map(RawValue::get))
}

fn expected(job: &Job, completion: Tokens, bytes: u64) -> Expected {
    Expected {
        prompt: job.wishes.prompt,
        completion,
        bytes,
        exact: job.wishes.exact,
        answers: job.wishes.choices as u64,
    }
}

/// The server ignored the limit: each choice that is over it is cut there and ends for `length`. A rare
/// path, so it takes the answer apart and writes it anew.
fn cut(
    job: &Job,
    body: &Bytes,
    lengths: &[Length],
    (said, told): (Option<Usage>, Option<ToldInput>),
) -> (Bytes, Watched) {
    let most = job.wishes.limit().unwrap_or(Tokens(u64::MAX));
    let mut answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let mut completion = Tokens::ZERO;
    let choices = answer.get_mut("choices").and_then(Value::as_array_mut);
    for (choice, length) in choices.into_iter().flatten().zip(lengths) {
        completion = completion.plus(if length.over { most } else { length.tokens });
        if length.over {
            cut_choice(job, choice, most);
        }
    }
    // The server's count of the output has in it what nobody gets; its count of the input holds.
    let known = said.unwrap_or(Usage { prompt: job.wishes.prompt, ..Usage::default() });
    let usage = Usage { completion, ..known };
    if let Some(answer) = answer.as_object_mut() {
        answer.insert("usage".to_owned(), serde_json::from_str(&usage.json()).unwrap_or_default());
        if let Some(alias) = &job.wishes.alias {
            answer.insert("model".to_owned(), alias.clone().into());
        }
    }
    (answer.to_string().into(), Watched { usage, from_server: false, told })
}

/// Cuts one choice's texts in the order in which they were generated, thinking first, and then what its
/// tool calls have beyond their slack.
fn cut_choice(job: &Job, choice: &mut Value, most: Tokens) {
    const NEWER: &str = "/message/reasoning";
    const OLDER: &str = "/message/reasoning_content";
    // Thinking that is sent under both of its names is the same thinking.
    if choice.pointer(NEWER).is_some_and(|newer| Some(newer) == choice.pointer(OLDER))
        && let Some(message) = choice.get_mut("message").and_then(Value::as_object_mut)
    {
        message.remove("reasoning_content");
    }
    let mut left = most;
    for field in [NEWER, OLDER, "/message/content", "/message/refusal", "/text"] {
        if let Some(Value::String(text)) = choice.pointer_mut(field) {
            left = left.less(shorten(job, text, left));
        }
    }
    let mut left = Tokens(with_tools(most.get())).less(most.less(left));
    let calls = choice.pointer_mut("/message/tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        if let Some(Value::String(text)) = call.pointer_mut("/function/arguments") {
            left = left.less(shorten(job, text, left));
        }
    }
    if let Some(Value::String(text)) = choice.pointer_mut("/message/function_call/arguments") {
        shorten(job, text, left);
    }
    if let Some(choice) = choice.as_object_mut() {
        choice.insert("finish_reason".to_owned(), "length".into());
    }
}

/// Cuts a text to at most `most` tokens; without a tokenizer to four bytes for each. Gives how many it
/// has now.
fn shorten(job: &Job, text: &mut String, most: Tokens) -> Tokens {
    let counter = job.wishes.counter.as_deref();
    let count = |text: &str| count_text(text, counter);
    let all = if text.is_empty() { Tokens::ZERO } else { count(text) };
    if all <= most {
        return all;
    }
    let cut = counter.filter(|_| text.len() <= COUNTED_MAX_BYTES);
    let cut = cut.and_then(|counter| counter.cut(text, most));
    *text = cut.unwrap_or_else(|| {
        let bytes = usize::try_from(most.get().saturating_mul(4)).unwrap_or(usize::MAX);
        text.char_indices().take_while(|(at, _)| *at < bytes).map(|(_, letter)| letter).collect()
    });
    most
}

/// What is changed in a body on its way.
struct Changes<'a> {
    alias: Option<(&'a RawValue, String)>,
    usage: Option<(Option<&'a RawValue>, String)>,
}

impl<'a> Changes<'a> {
    fn new(job: &Job, chunk: &Chunk<'a>) -> Self {
        let name = job.wishes.alias.as_ref().and_then(|alias| serde_json::to_string(alias).ok());
        Self { alias: chunk.model.zip(name), usage: None }
    }

    fn usage(&mut self, chunk: &Chunk<'a>, text: String) {
        self.usage = Some((chunk.usage, text));
    }

    fn apply(self, body: &Bytes) -> Bytes {
        let mut changes: Vec<(&RawValue, &str)> = Vec::new();
        if let Some((old, new)) = &self.alias {
            changes.push((old, new));
        }
        if let Some((Some(old), new)) = &self.usage {
            changes.push((old, new));
        }
        let body = if changes.is_empty() { body.clone() } else { splice(body, &changes) };
        match self.usage {
            // There was none to replace: it goes in front of the closing brace.
            Some((None, new)) => {
                let text = body.trim_ascii_end();
                let mut out = text.strip_suffix(b"}").unwrap_or(text).to_vec();
                out.extend_from_slice(b",\"usage\":");
                out.extend_from_slice(new.as_bytes());
                out.push(b'}');
                out.into()
            }
            _ => body,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config, pipeline::watch::Wishes};

    fn job(route: Route, max_tokens: Option<u64>) -> Job {
        let settings = config::parse_text("test", "").unwrap().settings;
        Job {
            route,
            stream: false,
            body: Bytes::new(),
            ids_body: None,
            relay: settings.relay,
            content_by: None,
            tier: crate::ids::Tier::Standard,
            limits: settings.limits,
            guard: None,
            wishes: Wishes {
                alias: Some("mine".into()),
                include_usage: false,
                max_tokens: max_tokens.map(Tokens),
                ceiling: None,
                choices: 1,
                wanted: 1,
                prompt: Tokens(10),
                exact: true,
                counter: None,
            },
        }
    }

    fn answer(usage: &str) -> Bytes {
        Bytes::from(format!(
            r#"{{"id":"1","model":"inner","choices":[{{"index":0,"message":{{"role":"assistant","content":"four"}},"finish_reason":"stop"}}]{usage}}}"#
        ))
    }

    #[test]
    fn a_good_answer_changes_only_its_name() {
        let body = answer(r#","usage":{"prompt_tokens":10,"completion_tokens":1}"#);
        let (out, watched) = check(&job(Route::Chat, None), body.clone()).unwrap();
        let text = String::from_utf8(out.to_vec()).unwrap();
        assert_eq!(text.replace("\"mine\"", "\"inner\"").as_bytes(), &body[..]);
        assert!(watched.from_server);
    }

    #[test]
    fn absent_and_absurd_usage_become_ours() {
        for usage in
            ["", r#","usage":{"prompt_tokens":-1,"completion_tokens":1}"#, r#","usage":null"#]
        {
            let (out, watched) = check(&job(Route::Chat, None), answer(usage)).unwrap();
            let value: Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(value["usage"]["prompt_tokens"], 10, "{usage}");
            assert_eq!(value["usage"]["completion_tokens"], 1, "{usage}");
            assert!(!watched.from_server);
        }
    }

    #[test]
    fn lies_are_not_answers() {
        let check = |body: &'static str| {
            check(&job(Route::Chat, None), Bytes::from_static(body.as_bytes()))
                .map(|_| ())
                .unwrap_err()
        };
        assert_eq!(check("<html>"), "broken_json");
        assert_eq!(check(r#"{"error":{"message":"x"}}"#), "error_body");
        assert_eq!(check(r#"{"object":"error","message":"x"}"#), "error_body");
        assert_eq!(check(r#"{"choices":[]}"#), "empty_answer");
        assert_eq!(
            check(r#"{"choices":[{"index":0,"message":{"content":"x"}}]}"#),
            "no_finish_reason"
        );
    }

    #[test]
    fn an_answer_beyond_max_tokens_is_cut() {
        let long = "word ".repeat(200);
        let body = format!(
            r#"{{"model":"inner","choices":[{{"index":0,"message":{{"content":"{long}"}},"finish_reason":"stop"}}]}}"#
        );
        let (out, watched) = check(&job(Route::Chat, Some(5)), Bytes::from(body)).unwrap();
        let value: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["choices"][0]["finish_reason"], "length");
        assert_eq!(value["choices"][0]["message"]["content"], "word word word word ");
        assert_eq!(watched.usage.completion, Tokens(5));
    }

    fn cut_of(max_tokens: u64, choices: &str) -> (Value, Usage) {
        let body = Bytes::from(format!(r#"{{"model":"inner","choices":[{choices}]}}"#));
        let (out, watched) = check(&job(Route::Chat, Some(max_tokens)), body).unwrap();
        (serde_json::from_slice(&out).unwrap(), watched.usage)
    }

    #[test]
    fn only_the_choice_beyond_the_limit_is_cut() {
        let long = "word ".repeat(200);
        let (value, usage) = cut_of(
            5,
            &format!(
                r#"{{"index":0,"message":{{"content":"short"}},"finish_reason":"stop"}},
                   {{"index":1,"message":{{"content":"{long}"}},"finish_reason":"stop"}}"#
            ),
        );
        assert_eq!(value["choices"][0]["finish_reason"], "stop");
        assert_eq!(value["choices"][0]["message"]["content"], "short");
        assert_eq!(value["choices"][1]["finish_reason"], "length");
        assert_eq!(usage.completion, Tokens(6));
    }

    /// Thinking counts against the limit, and comes before the text.
    #[test]
    fn thinking_is_cut_before_the_text() {
        let long = "word ".repeat(200);
        for field in ["reasoning", "reasoning_content"] {
            let message = format!(r#"{{"content":"so","{field}":"{long}"}}"#);
            let choice = format!(r#"{{"index":0,"message":{message},"finish_reason":"stop"}}"#);
            let (value, usage) = cut_of(5, &choice);
            assert_eq!(value["choices"][0]["message"][field], "word word word word ");
            assert_eq!(value["choices"][0]["message"]["content"], "");
            assert_eq!(usage.completion, Tokens(5));
        }
    }

    #[test]
    fn tool_calls_have_the_slack_that_they_have_in_streams() {
        let choice = |bytes: usize| {
            let function = format!(r#"{{"name":"f","arguments":"{}"}}"#, "x".repeat(bytes));
            let message = format!(r#"{{"content":null,"tool_calls":[{{"function":{function}}}]}}"#);
            format!(r#"{{"index":0,"message":{message},"finish_reason":"tool_calls"}}"#)
        };
        let (value, _) = cut_of(5, &choice(300));
        assert_eq!(value["choices"][0]["finish_reason"], "tool_calls");
        let (value, usage) = cut_of(5, &choice(5000));
        assert_eq!(value["choices"][0]["finish_reason"], "length");
        let call = &value["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"];
        assert_eq!(call.as_str().unwrap().len(), 74 * 4);
        assert_eq!(usage.completion, Tokens(5));
    }

    #[test]
    fn embeddings_need_their_data() {
        let job = job(Route::Embeddings, None);
        assert!(check(&job, Bytes::from_static(b"{\"data\":[]}")).is_err());
        let (out, watched) =
            check(&job, Bytes::from_static(b"{\"data\":[{\"embedding\":[1.0]}]}")).unwrap();
        assert!(
            String::from_utf8_lossy(&out)
                .contains("\"usage\":{\"prompt_tokens\":10,\"total_tokens\":10}")
        );
        assert_eq!(watched.usage.prompt, Tokens(10));
    }
}
