//! Whole (not streamed) answers: checked, counted and, where needed, corrected before the caller sees
//! a byte.

use super::relay::{Job, Watched};
use crate::{
    api::{
        Route,
        answer::{Expected, Usage, believable},
        event::{Chunk, splice},
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
    Ok((changes.apply(body), Watched { usage, from_server: said.is_some() }))
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
    if !choices.iter().all(crate::api::event::Choice::finished) {
        return Err(super::watch::faults::UNFINISHED);
    }
    let mut output = Tokens::ZERO;
    let mut bytes = 0;
    let mut too_long = false;
    for choice in choices {
        let mine = choice.parts().fold(Tokens::ZERO, |sum, part| sum.plus(count(job, part)));
        output = output.plus(mine);
        bytes += choice.parts().map(|part| part.get().len() as u64).sum::<u64>();
        // Text that is cut into tokens anew may come out a little longer than it was generated.
        too_long |= job.wishes.max_tokens.is_some_and(|most| {
            mine.get() > most.get().saturating_add(most.get() / 8).saturating_add(4)
        });
    }
    let said = believable(chunk.usage.map(RawValue::get), expected(job, output, bytes));
    if too_long && !kept_by_its_own_word(job, said, choices.len()) {
        return Ok(cut(job, body));
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
    Ok((changes.apply(body), Watched { usage, from_server: said.is_some() }))
}

/// Without the model's tokenizer our count is a guess, and long words make it too high: a server whose
/// own count keeps the limit is believed.
fn kept_by_its_own_word(job: &Job, said: Option<Usage>, choices: usize) -> bool {
    let all = job.wishes.max_tokens.map(|most| most.get().saturating_mul(choices as u64));
    job.wishes.counter.is_none()
        && said.zip(all).is_some_and(|(usage, all)| usage.completion.get() <= all)
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

/// Tokens of one part of an answer: by the model's tokenizer, else one for every six bytes, as the
/// watcher of streams has it.
fn count(job: &Job, part: &RawValue) -> Tokens {
    let text = serde_json::from_str::<String>(part.get()).ok();
    let counter = job.wishes.counter.as_ref();
    let counted = text.and_then(|text| counter.and_then(|counter| counter.output(&text)));
    counted.unwrap_or_else(|| Tokens((part.get().len() as u64).div_ceil(6)))
}

/// The server ignored `max_tokens`: each text is cut at the limit and its choice ends for `length`. A
/// rare path, so it takes the answer apart and writes it anew.
fn cut(job: &Job, body: &Bytes) -> (Bytes, Watched) {
    let most = job.wishes.max_tokens.unwrap_or(Tokens(u64::MAX));
    let mut answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let mut completion = Tokens::ZERO;
    let choices = answer.get_mut("choices").and_then(Value::as_array_mut);
    for choice in choices.into_iter().flatten() {
        let field = if choice.get("message").is_some() { "/message/content" } else { "/text" };
        if let Some(Value::String(text)) = choice.pointer_mut(field) {
            *text = shorten(job, text, most);
        }
        if let Some(choice) = choice.as_object_mut() {
            choice.insert("finish_reason".to_owned(), "length".into());
        }
        completion = completion.plus(most);
    }
    let usage = Usage { prompt: job.wishes.prompt, completion, cached: Tokens::ZERO };
    if let Some(answer) = answer.as_object_mut() {
        answer.insert("usage".to_owned(), serde_json::from_str(&usage.json()).unwrap_or_default());
        if let Some(alias) = &job.wishes.alias {
            answer.insert("model".to_owned(), alias.clone().into());
        }
    }
    (answer.to_string().into(), Watched { usage, from_server: false })
}

fn shorten(job: &Job, text: &str, most: Tokens) -> String {
    if let Some(counter) = &job.wishes.counter {
        return counter.cut(text, most).unwrap_or_else(|| text.to_owned());
    }
    let bytes = usize::try_from(most.get().saturating_mul(4)).unwrap_or(usize::MAX);
    text.char_indices().take_while(|(at, _)| *at < bytes).map(|(_, letter)| letter).collect()
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
            relay: settings.relay,
            content_by: None,
            limits: settings.limits,
            wishes: Wishes {
                alias: Some("mine".into()),
                include_usage: false,
                max_tokens: max_tokens.map(Tokens),
                ceiling: None,
                choices: 1,
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
