//! What callers say: OpenAI requests, read strictly and written anew for the server.

pub mod answer;
pub mod chunked;
pub mod event;
pub mod fields;
pub mod json;
pub mod outgoing;
pub mod refuse;
pub mod shapes;
pub mod stream;

use crate::{
    error::{Reason, Refusal},
    ids::ModelName,
    units::Tokens,
};
use fields::{flag, missing, number, object, objects, out_of_range, text, whole};
use json::Object;

/// The API route of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// `POST /v1/chat/completions`
    Chat,
    /// `POST /v1/completions`
    Completions,
    /// `POST /v1/embeddings`
    Embeddings,
}

impl Route {
    /// The path, the same for callers and on OpenAI-compatible servers.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
        }
    }

    /// The route's name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
        }
    }
}

/// A request, checked. The fields that berthd acts on are typed; the rest stays raw text.
#[derive(Debug)]
pub struct Request<'a> {
    /// Which API.
    pub route: Route,
    /// The model as the caller named it.
    pub model: ModelName,
    /// The caller wants a stream.
    pub stream: bool,
    /// The caller wants the usage event at the end of the stream.
    pub include_usage: bool,
    /// The most output tokens per choice that the caller wants.
    pub max_tokens: Option<Tokens>,
    /// Answers wanted (`n`, or `best_of` where that is larger).
    pub choices: u32,
    /// Answers to each prompt that the caller gets: `n`.
    pub n: u32,
    /// Prompts in one completions or embeddings request; 1 for chat.
    pub prompts: u32,
    /// Every field, in the caller's order.
    pub fields: Object<'a>,
}

/// Limits that the operator sets on single fields.
#[derive(Clone, Copy, Debug)]
pub struct FieldLimits {
    /// Largest `n` and `best_of`.
    pub choices_max: u32,
}

/// No server has a context window near this; larger values are mistakes.
const MAX_TOKENS_LIMIT: i64 = 1 << 31;
/// Prompts in one completions request, inputs in one embeddings request.
const PROMPTS_MAX: usize = 2048;
/// Answers to one request, choices times prompts: each is tracked.
pub const ANSWERS_MAX: u32 = 16 * 1024;

impl<'a> Request<'a> {
    /// Reads and checks a body. No server has seen anything when this refuses.
    pub fn parse(route: Route, body: &'a [u8], limits: FieldLimits) -> Result<Self, Refusal> {
        let fields = json::open(body)?;
        refuse_misspelt(&fields)?;
        let model = text(&fields, "model")?
            .filter(|name| !name.is_empty())
            .ok_or_else(|| missing("model", "Name one of the models that GET /v1/models lists."))?;
        let stream = flag(&fields, "stream")?.unwrap_or(false);
        let options = object(&fields, "stream_options")?;
        let include_usage = match &options {
            Some(options) => flag(options, "include_usage")?.unwrap_or(false),
            None => false,
        };
        if options.is_some() && !stream {
            let text = "'stream_options' is only allowed together with \"stream\": true.";
            return Err(Refusal::new(Reason::OutOfRange, text).param("stream_options"));
        }
        let most = i64::from(limits.choices_max);
        let n = whole(&fields, "n", 1, most)?.unwrap_or(1);
        let best_of = whole(&fields, "best_of", 1, most)?.unwrap_or(n);
        let prompts = match route {
            Route::Chat => {
                check_messages(&fields)?;
                1
            }
            Route::Completions => count_texts(&fields, "prompt")?,
            Route::Embeddings => count_texts(&fields, "input")?,
        };
        let max_tokens = match route {
            Route::Embeddings => None,
            _ => output_limit(&fields)?,
        };
        check_sampling(&fields, route)?;
        outgoing::check_template_variables(&fields)?;
        if stream && route == Route::Embeddings {
            let text = "Embeddings cannot be streamed. Leave 'stream' out.";
            return Err(Refusal::new(Reason::OutOfRange, text).param("stream"));
        }
        let choices = u32::try_from(n.max(best_of)).unwrap_or(1);
        let n = u32::try_from(n).unwrap_or(1);
        if choices.saturating_mul(prompts) > ANSWERS_MAX {
            let text = format!(
                "{prompts} prompts with {choices} choices each are too many; allowed is {ANSWERS_MAX} answers to a request."
            );
            return Err(Refusal::new(Reason::OutOfRange, text).param("n"));
        }
        let model = ModelName::from(model);
        Ok(Self { route, model, stream, include_usage, max_tokens, choices, n, prompts, fields })
    }
}

/// Servers written in languages whose JSON readers ignore letter case would read `"Model"` as the
/// model, after we authorised another. Such keys are refused rather than guessed at.
fn refuse_misspelt(fields: &Object<'_>) -> Result<(), Refusal> {
    for (key, _) in &fields.0 {
        let lower = key.to_ascii_lowercase();
        if lower != *key && (outgoing::KNOWN.contains(&&*lower) || outgoing::is_steering(&lower)) {
            // Any key that begins with `bootstrap_` steers, however long it is.
            let (key, lower) = (fields::clip(key), fields::clip(&lower));
            let text = format!(
                "The key \"{key}\" differs from \"{lower}\" only in letter case. Write \"{lower}\"."
            );
            return Err(Refusal::new(Reason::DuplicateKey, text).param(key));
        }
    }
    Ok(())
}

/// Checks the messages of a chat request: roles, forms of content, and no link that a server would follow.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_messages(fields: &Object<'_>) -> Result<(), Refusal> {
    let messages = objects(fields, "messages")?
        .ok_or_else(|| missing("messages", "Send a list of {\"role\": ..., \"content\": ...}."))?;
    if messages.is_empty() {
        let text = "'messages' is empty. Send at least one message.";
        return Err(Refusal::new(Reason::OutOfRange, text).param("messages"));
    }
    for (index, message) in messages.iter().enumerate() {
        let at = |part: &str| format!("messages[{index}].{part}");
        let rename = |refusal: Refusal| {
            let inner = refusal.param.clone().unwrap_or_default();
            refusal.param(at(&inner))
        };
        if text(message, "role").map_err(rename)?.is_none_or(|role| role.is_empty()) {
            let text = format!("'{}' is missing. Give each message its role.", at("role"));
            return Err(Refusal::new(Reason::MissingField, text).param(at("role")));
        }
        let Some(content) = message.get("content") else { continue };
        match content.get().as_bytes().first() {
            Some(b'"') => {}
            Some(b'[') => {
                let parts = objects(message, "content").map_err(rename)?.unwrap_or_default();
                for part in &parts {
                    refuse_remote_media(part, &at("content"))?;
                }
            }
            _ => {
                let text = format!("'{}' must be a string or a list of parts.", at("content"));
                return Err(Refusal::new(Reason::InvalidType, text).param(at("content")));
            }
        }
    }
    Ok(())
}

/// A link in a content part would make the model server fetch from a host that the caller names, and a
/// path would make it open a file of its own: some servers take anything that is no link for one. So
/// only data itself passes.
fn refuse_remote_media(part: &Object<'_>, at: &str) -> Result<(), Refusal> {
    for (kind, value) in &part.0 {
        let bare = matches!(&**kind, "file" | "input_audio" | "image" | "video" | "audio");
        if !(bare || kind.ends_with("_url")) || value.get() == "null" {
            continue;
        }
        let inside: Option<Object<'_>> = serde_json::from_str(value.get()).ok();
        let sound = match &inside {
            Some(inside) => inside.0.iter().all(|(key, value)| match &**key {
                "data" | "file_data" => is_data(value, true),
                key if key.ends_with("url") => is_data(value, false),
                _ => true,
            }),
            None => is_data(value, false),
        };
        if !sound {
            let kind = fields::clip(kind);
            let text = format!(
                "'{at}' holds a link or a path in '{kind}'. Model servers here fetch and open nothing: send the data itself as a data: URL."
            );
            return Err(Refusal::new(Reason::OutOfRange, text).param(at.to_owned()));
        }
    }
    Ok(())
}

/// True for a `data:` URL and, where a field is of `raw` data, for base64 alone.
fn is_data(value: &serde_json::value::RawValue, raw: bool) -> bool {
    if value.get() == "null" {
        return true;
    }
    let Ok(text) = serde_json::from_str::<std::borrow::Cow<'_, str>>(value.get()) else {
        return false;
    };
    let base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    text.starts_with("data:") || (raw && text.as_bytes().iter().all(base64))
}

/// `prompt` and `input`: a string, a list of strings, a list of token ids, or a list of such lists.
fn count_texts(fields: &Object<'_>, field: &'static str) -> Result<u32, Refusal> {
    let value =
        fields.get(field).ok_or_else(|| missing(field, "Send a string or a list of strings."))?;
    let wrong = || {
        let text = format!("'{field}' must be a string, a list of strings, or token ids.");
        Refusal::new(Reason::InvalidType, text).param(field)
    };
    if value.get().starts_with('"') {
        return Ok(1);
    }
    let items: Vec<&serde_json::value::RawValue> =
        serde_json::from_str(value.get()).map_err(|_| wrong())?;
    let Some(first) = items.first() else {
        let text = format!("'{field}' is empty. Send at least one text.");
        return Err(Refusal::new(Reason::OutOfRange, text).param(field));
    };
    match first.get().as_bytes().first() {
        // Token ids of one prompt.
        Some(b'0'..=b'9') => {
            serde_json::from_str::<Vec<u32>>(value.get()).map_err(|_| wrong())?;
            Ok(1)
        }
        Some(b'"') => {
            serde_json::from_str::<Vec<std::borrow::Cow<'_, str>>>(value.get())
                .map_err(|_| wrong())?;
            bounded_count(items.len(), field, value)
        }
        Some(b'[') => {
            serde_json::from_str::<Vec<Vec<u32>>>(value.get()).map_err(|_| wrong())?;
            bounded_count(items.len(), field, value)
        }
        _ => Err(wrong()),
    }
}

fn bounded_count(
    count: usize,
    field: &str,
    value: &serde_json::value::RawValue,
) -> Result<u32, Refusal> {
    if count > PROMPTS_MAX {
        return Err(out_of_range(field, &format!("1 to {PROMPTS_MAX} entries"), value));
    }
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

/// `max_completion_tokens` wins over `max_tokens`, as in OpenAI's API and vLLM's.
fn output_limit(fields: &Object<'_>) -> Result<Option<Tokens>, Refusal> {
    let newer = whole(fields, "max_completion_tokens", 1, MAX_TOKENS_LIMIT)?;
    let older = whole(fields, "max_tokens", 1, MAX_TOKENS_LIMIT)?;
    Ok(newer.or(older).and_then(|most| u64::try_from(most).ok()).map(Tokens))
}

fn check_sampling(fields: &Object<'_>, route: Route) -> Result<(), Refusal> {
    number(fields, "temperature", 0.0, 2.0)?;
    number(fields, "top_p", 0.0, 1.0)?;
    number(fields, "presence_penalty", -2.0, 2.0)?;
    number(fields, "frequency_penalty", -2.0, 2.0)?;
    whole(fields, "seed", i64::MIN, i64::MAX)?;
    whole(fields, "top_logprobs", 0, 20)?;
    match route {
        Route::Chat => drop(flag(fields, "logprobs")?),
        _ => drop(whole(fields, "logprobs", 0, 20)?),
    }
    objects(fields, "tools")?;
    object(fields, "response_format")?;
    if let Some(stop) = fields.get("stop") {
        let one = serde_json::from_str::<String>(stop.get()).is_ok();
        let several = serde_json::from_str::<Vec<String>>(stop.get());
        match several {
            Ok(several) if several.len() > 16 => {
                return Err(out_of_range("stop", "at most 16 strings", stop));
            }
            Ok(_) => {}
            Err(_) if one => {}
            Err(_) => {
                let text = "'stop' must be a string or a list of strings.";
                return Err(Refusal::new(Reason::InvalidType, text).param("stop"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FieldLimits = FieldLimits { choices_max: 8 };

    fn chat(rest: &str) -> Result<(), Refusal> {
        let body =
            format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}]{rest}}}"#);
        Request::parse(Route::Chat, body.as_bytes(), LIMITS).map(|_| ())
    }

    #[test]
    fn each_bad_field_has_its_own_reason_and_names_itself() {
        let cases = [
            (r#","temperature":3"#, Reason::OutOfRange, "temperature"),
            (r#","temperature":"hot""#, Reason::InvalidType, "temperature"),
            (r#","max_tokens":0"#, Reason::OutOfRange, "max_tokens"),
            (r#","max_tokens":-5"#, Reason::OutOfRange, "max_tokens"),
            (r#","max_tokens":1.5"#, Reason::InvalidType, "max_tokens"),
            (
                r#","max_completion_tokens":99999999999"#,
                Reason::OutOfRange,
                "max_completion_tokens",
            ),
            (r#","max_tokens":18446744073709551615"#, Reason::OutOfRange, "max_tokens"),
            (r#","n":9"#, Reason::OutOfRange, "n"),
            (r#","stream":"yes""#, Reason::InvalidType, "stream"),
            (
                r#","stream":true,"stream_options":{"include_usage":1}"#,
                Reason::InvalidType,
                "include_usage",
            ),
            (r#","stream_options":{"include_usage":true}"#, Reason::OutOfRange, "stream_options"),
            (r#","tools":{}"#, Reason::InvalidType, "tools"),
            (r#","stop":[1]"#, Reason::InvalidType, "stop"),
            (r#","logprobs":5"#, Reason::InvalidType, "logprobs"),
            (r#","Model":"other""#, Reason::DuplicateKey, "Model"),
            (r#","Priority":1"#, Reason::DuplicateKey, "Priority"),
        ];
        for (rest, reason, param) in cases {
            let refusal = chat(rest).expect_err(rest);
            assert_eq!(refusal.reason, reason, "{rest}");
            assert_eq!(refusal.param.as_deref(), Some(param), "{rest}");
        }
        chat(r#","temperature":null,"max_tokens":null,"stop":["a","b"],"n":8,"my_field":[1e999]"#)
            .expect_err("1e999 is not a number JSON readers agree on");
        chat(r#","temperature":null,"max_tokens":null,"stop":["a","b"],"n":8,"my_field":[1]"#)
            .unwrap();
    }

    #[test]
    fn messages_are_checked_down_to_their_parts() {
        let parse = |messages: &str| {
            let body = format!(r#"{{"model":"m","messages":{messages}}}"#);
            Request::parse(Route::Chat, body.as_bytes(), LIMITS).map(|_| ()).map_err(|r| r.reason)
        };
        assert_eq!(parse("[]"), Err(Reason::OutOfRange));
        assert_eq!(parse("\"hi\""), Err(Reason::InvalidType));
        assert_eq!(parse(r#"[{"content":"x"}]"#), Err(Reason::MissingField));
        assert_eq!(parse(r#"[{"role":"user","content":5}]"#), Err(Reason::InvalidType));
        let remote = r#"[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://169.254.0.1/x"}}]}]"#;
        assert_eq!(parse(remote), Err(Reason::OutOfRange));
        let local = r#"[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AA=="}}]}]"#;
        assert_eq!(parse(local), Ok(()));
        assert_eq!(parse(r#"[{"role":"assistant","content":null,"tool_calls":[]}]"#), Ok(()));
    }

    /// A server opens a bare path as a file of its own.
    #[test]
    fn content_parts_hold_data_and_no_places_to_get_it_from() {
        let parse = |part: &str| {
            let body = format!(
                r#"{{"model":"m","messages":[{{"role":"user","content":[{{"type":"x",{part}}}]}}]}}"#
            );
            Request::parse(Route::Chat, body.as_bytes(), LIMITS).map(|_| ()).map_err(|r| r.reason)
        };
        for good in [
            r#""text":"see http://host/ and /etc/passwd""#,
            r#""image_url":"data:image/png;base64,AA==""#,
            r#""image_url":{"url":"data:image/png;base64,AA==","detail":"low"}"#,
            r#""image_url":null"#,
            r#""input_audio":{"data":"UklGRg+/==","format":"wav"}"#,
            r#""file":{"file_data":"data:text/plain,a","filename":"/a.txt","file_url":null}"#,
        ] {
            assert_eq!(parse(good), Ok(()), "{good}");
        }
        for bad in [
            r#""image_url":"/etc/passwd""#,
            r#""image_url":{"url":"/srv/secret.png"}"#,
            r#""image_url":{"url":"secret.png"}"#,
            r#""image_url":{"url":["http://host/"]}"#,
            r#""image_url":["/srv/secret.png"]"#,
            r#""video_url":{"url":"file:/srv/secret.mp4"}"#,
            r#""pdf_url":"host/x""#,
            r#""image":"/srv/secret.png""#,
            r#""input_audio":{"data":"../secret.wav"}"#,
            r#""file":{"file_data":"/srv/secret.txt"}"#,
            r#""file":{"file_url":"secret"}"#,
        ] {
            assert_eq!(parse(bad), Err(Reason::OutOfRange), "{bad}");
        }
    }

    #[test]
    fn more_answers_than_are_tracked_are_refused() {
        let parse = |prompts: usize, n: u32| {
            let prompts = vec!["\"a\""; prompts].join(",");
            let body = format!(r#"{{"model":"m","n":{n},"prompt":[{prompts}]}}"#);
            let limits = FieldLimits { choices_max: 128 };
            Request::parse(Route::Completions, body.as_bytes(), limits).map(|_| ())
        };
        parse(2048, 8).unwrap();
        parse(128, 128).unwrap();
        let refusal = parse(2048, 9).unwrap_err();
        assert_eq!((refusal.reason, refusal.param.as_deref()), (Reason::OutOfRange, Some("n")));
    }

    #[test]
    fn long_keys_are_not_echoed_whole() {
        let refusal = chat(&format!(r#","Bootstrap_{}":1"#, "x".repeat(5000))).unwrap_err();
        assert_eq!(refusal.reason, Reason::DuplicateKey);
        assert!(refusal.message.len() < 400 && refusal.param.unwrap().len() <= 100);
    }

    #[test]
    fn prompts_may_be_text_lists_or_token_ids() {
        let parse = |prompt: &str| {
            let body = format!(r#"{{"model":"m","prompt":{prompt}}}"#);
            Request::parse(Route::Completions, body.as_bytes(), LIMITS)
                .map(|request| request.prompts)
                .map_err(|refusal| refusal.reason)
        };
        assert_eq!(parse("\"a\""), Ok(1));
        assert_eq!(parse("[\"a\",\"b\"]"), Ok(2));
        assert_eq!(parse("[1,2,3]"), Ok(1));
        assert_eq!(parse("[[1],[2]]"), Ok(2));
        assert_eq!(parse("[]"), Err(Reason::OutOfRange));
        assert_eq!(parse("[1,\"a\"]"), Err(Reason::InvalidType));
        assert_eq!(parse("{}"), Err(Reason::InvalidType));
    }
}
