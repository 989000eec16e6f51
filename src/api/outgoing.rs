//! The body that goes to a server, written anew from the parsed form.
//!
//! What was authorised is what is served: the fields that berthd acts on are written from their typed
//! values, fields that steer a server's scheduler, cache, template, files or connections are left out,
//! and everything else is copied as the caller wrote it.

use super::{Request, Route, json::Object};
use crate::error::{Reason, Refusal};
use bytes::{BufMut, Bytes, BytesMut};

/// Fields that berthd reads. Their spelling in another letter case is refused.
pub const KNOWN: [&str; 26] = [
    "model",
    "messages",
    "prompt",
    "input",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "n",
    "best_of",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "logprobs",
    "top_logprobs",
    "tools",
    "tool_choice",
    "response_format",
    "user",
    "metadata",
    "functions",
    "function_call",
    "encoding_format",
];

/// The body with a priority for the server's own scheduler.
pub fn with_priority(body: &Bytes, priority: i64) -> Bytes {
    // It begins with the brace of an object that has a model at least: it was written here.
    let Some(rest) = body.strip_prefix(b"{") else { return body.clone() };
    let field = format!("{{\"priority\":{priority},");
    let mut with = BytesMut::with_capacity(field.len() + rest.len());
    with.put_slice(field.as_bytes());
    with.put_slice(rest);
    with.freeze()
}

/// Fields that only policy may set: they reach a server's scheduler, cache, template, files, weights
/// or peers. Never taken from callers.
const STEERING: [&str; 41] = [
    "add_special_tokens",
    "api_base",
    "api_key",
    "api_version",
    "base_url",
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
    "cache_prompt",
    "cache_salt",
    "chat_template",
    "custom_llm_provider",
    "custom_logit_processor",
    "custom_params",
    "data_parallel_rank",
    "disagg_prefill_dp_rank",
    "extra_body",
    "extra_headers",
    "extra_key",
    "id_slot",
    "input_embeds",
    "input_ids",
    "keep_alive",
    "kv_transfer_params",
    "lora",
    "lora_path",
    "media_io_kwargs",
    "mm_processor_kwargs",
    "n_cache_reuse",
    "n_discard",
    "n_keep",
    "priority",
    "prompt_embeds",
    "request_id",
    "rid",
    "routed_dp_rank",
    "session_id",
    "session_params",
    "slot_id",
    "truncate_prompt_tokens",
    "vllm_xargs",
];

/// True for a field that only policy may set.
pub fn is_steering(key: &str) -> bool {
    STEERING.binary_search(&key).is_ok() || key.starts_with("bootstrap_")
}

/// True for the input of another route. Some servers take a second form of input where it is there:
/// vLLM's embeddings route renders `messages`, whose links and tokens nobody here has looked at.
fn is_other_input(route: Route, key: &str) -> bool {
    let own = match route {
        Route::Chat => "messages",
        Route::Completions => "prompt",
        Route::Embeddings => "input",
    };
    ["messages", "prompt", "input"].contains(&key) && key != own
}

/// Keys of `chat_template_kwargs` that are no variables of a template but parameters of the call that
/// renders it: another template, other messages, no tokens, fewer tokens.
const TEMPLATE_CALL: [&str; 15] = [
    "chat_template",
    "continue_final_message",
    "conversation",
    "max_length",
    "messages",
    "padding",
    "processor_kwargs",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "template",
    "tokenize",
    "tokenizer",
    "tokenizer_kwargs",
    "truncation",
];

/// Refuses template variables that would steer the template's call: a caller's template one level
/// deeper. They are not dropped, since a caller who sends one counts on it.
///
/// # Errors
/// `chat_template_kwargs` is no object, or names such a parameter.
pub fn check_template_variables(fields: &Object<'_>) -> Result<(), Refusal> {
    const FIELD: &str = "chat_template_kwargs";
    let Some(variables) = super::fields::object(fields, FIELD)? else { return Ok(()) };
    for (key, _) in &variables.0 {
        if TEMPLATE_CALL.binary_search(&&**key).is_ok() {
            let text =
                format!("'{FIELD}' names '{key}', which only the operator may set. Leave it out.");
            return Err(Refusal::new(Reason::OutOfRange, text).param(FIELD));
        }
    }
    Ok(())
}

/// Writes the body for one server. `model` is the name that this server knows.
pub fn body(request: &Request<'_>, model: &str) -> Bytes {
    write(request, model, None)
}

/// Writes the body with token ids as the input: a completion's `prompt`, or beside a conversation the
/// `input_ids` that SGLang takes in its place.
pub fn body_with_ids(request: &Request<'_>, model: &str, ids: &[u32]) -> Bytes {
    write(request, model, Some(ids))
}

fn write(request: &Request<'_>, model: &str, ids: Option<&[u32]>) -> Bytes {
    let size: usize =
        request.fields.0.iter().map(|(key, value)| key.len() + value.get().len() + 6).sum();
    let mut out = BytesMut::with_capacity(size + model.len() + 96);
    out.put_u8(b'{');
    for (key, value) in &request.fields.0 {
        match &**key {
            "model" | "stream" | "stream_options" | "max_tokens" | "max_completion_tokens" => {}
            "prompt" if request.route == Route::Completions && ids.is_some() => {}
            key if is_steering(key) || is_other_input(request.route, key) => {}
            key => {
                put_text(&mut out, key);
                out.put_u8(b':');
                out.put_slice(value.get().as_bytes());
                out.put_u8(b',');
            }
        }
    }
    let input = match request.route {
        Route::Chat => Some("input_ids"),
        Route::Completions => Some("prompt"),
        Route::Embeddings => None,
    };
    if let (Some(input), Some(ids)) = (input, ids) {
        put_text(&mut out, input);
        out.put_u8(b':');
        // Writing numbers into memory cannot fail.
        let _ = serde_json::to_writer((&mut out).writer(), ids);
        out.put_u8(b',');
    }
    out.put_slice(b"\"model\":");
    put_text(&mut out, model);
    if request.route != Route::Embeddings {
        put_output_limit(&mut out, request);
        if request.stream {
            put_stream(&mut out, request);
        }
    }
    out.put_u8(b'}');
    out.freeze()
}

/// The limit goes out under the name the caller used, since older servers know only `max_tokens`; where
/// both were given, the one that counts goes out as both.
fn put_output_limit(out: &mut BytesMut, request: &Request<'_>) {
    let Some(most) = request.max_tokens else { return };
    for name in ["max_tokens", "max_completion_tokens"] {
        if request.fields.get(name).is_some() {
            out.put_slice(format!(",\"{name}\":{most}").as_bytes());
        }
    }
}

/// Usage is always asked for: it settles the request. The relay removes the event again where this
/// caller did not want it. Other stream options stay.
fn put_stream(out: &mut BytesMut, request: &Request<'_>) {
    out.put_slice(b",\"stream\":true,\"stream_options\":{\"include_usage\":true");
    if let Ok(Some(options)) = super::fields::object(&request.fields, "stream_options") {
        for (key, value) in &options.0 {
            // Usage on every event is kept only for a caller who also asked for usage.
            let wanted = key != "include_usage"
                && (key != "continuous_usage_stats" || request.include_usage);
            if wanted {
                out.put_u8(b',');
                put_text(out, key);
                out.put_u8(b':');
                out.put_slice(value.get().as_bytes());
            }
        }
    }
    out.put_u8(b'}');
}

fn put_text(out: &mut BytesMut, text: &str) {
    // Writing a string into memory cannot fail.
    let _ = serde_json::to_writer(out.writer(), text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::FieldLimits;

    fn sent(body_text: &str) -> String {
        let request =
            Request::parse(Route::Chat, body_text.as_bytes(), FieldLimits { choices_max: 8 })
                .unwrap();
        String::from_utf8(body(&request, "served").to_vec()).unwrap()
    }

    #[test]
    fn unknown_fields_pass_untouched_and_steering_fields_do_not() {
        let out = sent(
            r#"{"model":"alias","messages":[{"role":"user","content":"\u00e9"}],"my":{"x":[1.50,12345678901234567890123]},
               "priority":-9,"cache_salt":"s","chat_template":"{{1}}","rid":"r","session_id":"z","input_ids":[1],
               "kv_transfer_params":{"remote_host":"evil"},"api_base":"http://evil","max_tokens":7}"#,
        );
        assert!(out.contains(r#""my":{"x":[1.50,12345678901234567890123]}"#), "{out}");
        assert!(out.contains(r#"[{"role":"user","content":"\u00e9"}]"#), "{out}");
        assert!(out.contains(r#""model":"served","max_tokens":7"#), "{out}");
        for gone in
            ["priority", "salt", "template", "rid\"", "session", "input_ids", "evil", "alias"]
        {
            assert!(!out.contains(gone), "{gone} in {out}");
        }
    }

    #[test]
    fn streams_always_ask_for_usage_and_keep_other_options() {
        let message = r#""messages":[{"role":"user","content":"a"}]"#;
        let out = sent(&format!(r#"{{"model":"m",{message},"stream":true}}"#));
        assert!(
            out.ends_with(r#""stream":true,"stream_options":{"include_usage":true}}"#),
            "{out}"
        );
        let out = sent(&format!(
            r#"{{"model":"m",{message},"stream":true,"stream_options":{{"include_usage":false,"continuous_usage_stats":true,"x":1}}}}"#
        ));
        assert!(out.ends_with(r#""stream_options":{"include_usage":true,"x":1}}"#), "{out}");
        serde_json::from_str::<serde_json::Value>(&out).unwrap();
    }

    /// vLLM's embeddings route also takes `messages`, with links that it fetches.
    #[test]
    fn the_input_of_another_route_stays_here() {
        let all = r#"{"model":"m","input":"the input","prompt":"the prompt",
            "messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:,the messages"}}]}]}"#;
        for (route, own) in [
            (Route::Chat, "messages"),
            (Route::Completions, "prompt"),
            (Route::Embeddings, "input"),
        ] {
            let limits = FieldLimits { choices_max: 8 };
            let request = Request::parse(route, all.as_bytes(), limits).unwrap();
            let sent: serde_json::Value = serde_json::from_slice(&body(&request, "m")).unwrap();
            for field in ["messages", "prompt", "input"] {
                assert_eq!(sent.get(field).is_some(), field == own, "{field} for {route:?}");
            }
        }
    }

    #[test]
    fn template_variables_pass_and_the_templates_call_is_not_theirs() {
        let parse = |variables: &str| {
            let text = format!(
                r#"{{"model":"m","messages":[{{"role":"user","content":"a"}}],"chat_template_kwargs":{variables}}}"#
            );
            Request::parse(Route::Chat, text.as_bytes(), FieldLimits { choices_max: 8 })
                .map(|_| ())
                .map_err(|refusal| (refusal.reason, refusal.param.unwrap_or_default()))
        };
        assert_eq!(parse(r#"{"enable_thinking":false,"documents":[]}"#), Ok(()));
        assert_eq!(parse("null"), Ok(()));
        let field = || "chat_template_kwargs".into();
        for key in TEMPLATE_CALL {
            let got = parse(&format!("{{\"{key}\":null}}"));
            assert_eq!(got, Err((Reason::OutOfRange, field())), "{key}");
        }
        assert_eq!(parse("[1]"), Err((Reason::InvalidType, field())));
    }

    #[test]
    fn the_lists_are_sorted_for_their_search() {
        assert!(STEERING.is_sorted() && TEMPLATE_CALL.is_sorted());
        assert!(is_steering("rid") && is_steering("bootstrap_anything") && !is_steering("tools"));
    }
}
