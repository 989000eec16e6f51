//! The embedded server as the broker meets it: through `ModelServer`, with a tiny random model.

use super::{
    tiny::{END, Tiny},
    *,
};
use crate::{ids::RequestId, servers::AnswerBody};
use serde_json::{Value, json};

const WINDOW: usize = 512;

fn server(max_running: u32) -> Embedded {
    let folder = tempfile::tempdir().unwrap();
    Tiny::llama(2, WINDOW, 42).write(folder.path());
    Embedded::load("here".into(), "tiny".into(), folder.path(), max_running).unwrap()
}

/// A chat that never says the end mark by chance.
fn chat(more: Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 12,
        "logit_bias": {END.to_string(): -100}
    });
    for (key, value) in more.as_object().unwrap() {
        body.as_object_mut().unwrap().insert(key.clone(), value.clone());
    }
    body
}

async fn send(server: &Embedded, route: Route, body: &Value) -> Result<Answer, CallError> {
    let body = Bytes::from(body.to_string());
    server.send(Call { route, body, request_id: RequestId::fresh() }).await
}

async fn text_of(mut body: AnswerBody) -> String {
    let mut text = String::new();
    while let Some(piece) = body.next().await {
        text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
    }
    text
}

async fn whole(server: &Embedded, route: Route, body: Value) -> (u16, Value) {
    let answer = send(server, route, &body).await.unwrap();
    let status = answer.status.as_u16();
    (status, serde_json::from_str(&text_of(answer.body).await).unwrap())
}

/// The chunks of a stream, which must end as streams end.
async fn chunks(server: &Embedded, route: Route, body: Value) -> Vec<Value> {
    let answer = send(server, route, &body).await.unwrap();
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let text = text_of(answer.body).await;
    let events = text.strip_suffix("data: [DONE]\n\n").expect("no [DONE]");
    let events = events.split_terminator("\n\n");
    events
        .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
        .collect()
}

fn said(answer: &Value) -> &str {
    answer.pointer("/choices/0/message/content").and_then(Value::as_str).unwrap()
}

#[tokio::test]
async fn streams_have_the_shape_clients_expect() {
    let server = server(1);
    let (status, plain) = whole(&server, Route::Chat, chat(json!({}))).await;
    assert_eq!(status, 200);
    let body = chat(json!({"stream": true, "stream_options": {"include_usage": true}}));
    let chunks = chunks(&server, Route::Chat, body).await;
    let [first, middle @ .., last, bill] = chunks.as_slice() else { panic!("too few chunks") };
    assert_eq!(first["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let pieces =
        middle.iter().map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().unwrap());
    assert_eq!(pieces.collect::<String>(), said(&plain));
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!((&bill["choices"], &bill["usage"]), (&json!([]), &plain["usage"]));
    assert_eq!(bill["usage"]["completion_tokens"], 12);
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!((&chunk["id"], &chunk["model"]), (&first["id"], &json!("tiny")));
    }
}

#[tokio::test]
async fn counts_agree_with_usage() {
    let server = server(1);
    let body = chat(json!({"max_tokens": 1}));
    let (_, answer) = whole(&server, Route::Chat, body.clone()).await;
    let counted = server.count(Route::Chat, Bytes::from(body.to_string())).await.unwrap();
    assert_eq!(answer["usage"]["prompt_tokens"], counted.get());
    let body = json!({"prompt": ["four", [1, 2, 3]], "max_tokens": 1});
    assert_eq!(
        server.count(Route::Completions, Bytes::from(body.to_string())).await,
        Some(Tokens(7))
    );
    assert_eq!(server.count(Route::Chat, Bytes::from_static(b"[]")).await, None);
}

#[tokio::test]
async fn the_same_seed_says_the_same() {
    let server = server(2);
    let body = |seed: i64| chat(json!({"temperature": 1.5, "seed": seed, "max_tokens": 24}));
    let (_, one) = whole(&server, Route::Chat, body(-5)).await;
    let (_, two) = whole(&server, Route::Chat, body(-5)).await;
    let (_, other) = whole(&server, Route::Chat, body(6)).await;
    assert_eq!(said(&one), said(&two));
    assert_ne!(said(&one), said(&other));
}

#[tokio::test]
async fn stop_strings_end_the_text_before_them() {
    let server = server(1);
    let prompt = |more: Value| {
        let mut body = json!({"prompt": "abc", "max_tokens": 8, "temperature": 0, "logit_bias": {"257": -100}});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        // A bias of +100 on two letters makes a text that can be foretold to hold one of them.
        body["logit_bias"]["120"] = json!(100);
        body
    };
    let (_, free) = whole(&server, Route::Completions, prompt(json!({}))).await;
    assert_eq!(
        (&free["choices"][0]["text"], &free["usage"]["completion_tokens"]),
        (&json!("xxxxxxxx"), &json!(8))
    );
    let (_, cut) = whole(&server, Route::Completions, prompt(json!({"stop": ["no", "xxx"]}))).await;
    let choice = &cut["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(""), &json!("stop")));
    assert_eq!(
        (&choice["stop_reason"], &cut["usage"]["completion_tokens"]),
        (&json!("xxx"), &json!(3))
    );
    let chunks =
        chunks(&server, Route::Completions, prompt(json!({"stop": "xxy", "stream": true}))).await;
    let text: String =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, "xxxxxxxx", "what only looked like the stop string must still be shown");
}

#[tokio::test]
async fn the_end_mark_stops_and_is_not_shown() {
    let server = server(1);
    let body = chat(json!({"logit_bias": {END.to_string(): 100}}));
    let (_, answer) = whole(&server, Route::Chat, body).await;
    assert_eq!((said(&answer), &answer["choices"][0]["finish_reason"]), ("", &json!("stop")));
    assert_eq!(answer["usage"]["completion_tokens"], 1);
}

#[tokio::test]
async fn choices_and_prompts_are_numbered() {
    let server = server(1);
    let (_, answer) = whole(&server, Route::Chat, chat(json!({"n": 3}))).await;
    let indices: Vec<_> =
        answer["choices"].as_array().unwrap().iter().map(|c| c["index"].clone()).collect();
    assert_eq!(indices, [0, 1, 2]);
    assert_eq!(answer["usage"]["completion_tokens"], 36);
    let body = json!({"prompt": ["a", "b"], "n": 2, "max_tokens": 2, "stream": true});
    let chunks = chunks(&server, Route::Completions, body).await;
    let mut ended: Vec<_> = chunks.iter().map(|chunk| &chunk["choices"][0]).collect();
    ended.retain(|choice| !choice["finish_reason"].is_null());
    assert_eq!(
        ended.iter().map(|choice| choice["index"].clone()).collect::<Vec<_>>(),
        [0, 1, 2, 3]
    );
}

#[tokio::test]
async fn logprobs_cover_every_token_once() {
    let server = server(1);
    let asked = json!({"logprobs": true, "top_logprobs": 2});
    let (_, answer) = whole(&server, Route::Chat, chat(asked.clone())).await;
    let all = answer.pointer("/choices/0/logprobs/content").and_then(Value::as_array).unwrap();
    assert_eq!(all.len(), 12);
    for one in all {
        let top = one["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        assert!(one["logprob"].as_f64().unwrap() <= top[0]["logprob"].as_f64().unwrap());
    }
    let mut asked = chat(asked);
    asked["stream"] = json!(true);
    let mut streamed = Vec::new();
    for chunk in chunks(&server, Route::Chat, asked).await {
        let content =
            chunk.pointer("/choices/0/logprobs/content").and_then(Value::as_array).cloned();
        streamed.extend(content.unwrap_or_default());
    }
    assert_eq!(&streamed, all);
}

#[tokio::test]
async fn output_is_cut_at_the_window() {
    let server = server(1);
    let text = "a".repeat(WINDOW - 40);
    let messages = json!([{"role": "user", "content": text}]);
    let body = chat(json!({"messages": messages, "max_tokens": 10_000}));
    let (_, answer) = whole(&server, Route::Chat, body).await;
    assert_eq!(answer["usage"]["total_tokens"], WINDOW);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn bodies_at_fault_get_400_and_the_field() {
    let server = server(1);
    let long = "a".repeat(WINDOW);
    for (more, param, code) in [
        (
            json!({"messages": [{"role": "user", "content": long}]}),
            "messages",
            "context_length_exceeded",
        ),
        (json!({"messages": [{"role": "forbidden", "content": ""}]}), "messages", ""),
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format",
            "unsupported_value",
        ),
        (json!({"temperature": 3}), "temperature", ""),
        (json!({"stop": ["1", "2", "3", "4", "5"]}), "stop", ""),
        (json!({"n": 5}), "n", ""),
        (json!({"max_tokens": 0}), "max_tokens", ""),
        (json!({"stream": "yes"}), "stream", ""),
    ] {
        let (status, answer) = whole(&server, Route::Chat, chat(more)).await;
        assert_eq!((status, answer["error"]["param"].as_str()), (400, Some(param)), "{answer}");
        assert_eq!(answer["error"]["code"].as_str().unwrap_or(""), code);
        assert_eq!(answer["error"]["type"], "invalid_request_error");
    }
    for prompt in [json!([[9999]]), json!([]), json!(""), json!([true]), Value::Null] {
        let (status, answer) = whole(&server, Route::Completions, json!({"prompt": prompt})).await;
        assert_eq!((status, answer["error"]["param"].as_str()), (400, Some("prompt")), "{prompt}");
    }
}

fn decode_base64(text: &str) -> Vec<u8> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let bits: Vec<u8> = text.trim_end_matches('=').bytes().map(value).collect();
    let bits =
        bits.iter().flat_map(|six| (0..6).rev().map(move |bit| six >> bit & 1)).collect::<Vec<_>>();
    bits.chunks_exact(8).map(|byte| byte.iter().fold(0, |sum, bit| sum << 1 | bit)).collect()
}

#[tokio::test]
async fn embeddings_are_unit_vectors_in_both_encodings() {
    let server = server(1);
    let input = json!(["same", "other", "same", [115, 97, 109, 101]]);
    let (_, floats) = whole(&server, Route::Embeddings, json!({"input": input})).await;
    let body = json!({"input": input, "encoding_format": "base64"});
    let (_, coded) = whole(&server, Route::Embeddings, body).await;
    let mut rows: Vec<Vec<f32>> = Vec::new();
    for at in 0..4 {
        let bytes = decode_base64(coded["data"][at]["embedding"].as_str().unwrap());
        let row: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let plain: Vec<f32> =
            serde_json::from_value(floats["data"][at]["embedding"].clone()).unwrap();
        assert_eq!(row, plain);
        assert_eq!(row.len(), 16);
        assert!((row.iter().map(|n| n * n).sum::<f32>() - 1.0).abs() < 1e-5);
        rows.push(row);
    }
    assert_eq!((&rows[0], &rows[0]), (&rows[2], &rows[3]));
    assert_ne!(rows[0], rows[1]);
    assert_eq!(floats["usage"], json!({"prompt_tokens": 17, "total_tokens": 17}));
}

async fn running(server: &Embedded) -> u32 {
    let last = ServerState::unknown("here".into(), ServerKind::Embedded);
    server.observe(&last).await.load.running.unwrap()
}

/// Waits until every place is free again, by taking and giving back all of them.
async fn all_free(server: &Embedded) {
    let _places = server.places.acquire_many(server.max_running).await.unwrap();
}

/// The clock is paused: it moves on by itself only when nothing else can happen, so the wait for a place
/// costs no time here.
#[tokio::test(start_paused = true)]
async fn a_call_beyond_the_places_is_refused_and_later_ones_are_not() {
    let server = server(2);
    let body = chat(json!({"stream": true, "max_tokens": 400}));
    // Nobody reads, so both stand still once their pieces fill the channel.
    let one = send(&server, Route::Chat, &body).await.unwrap();
    let two = send(&server, Route::Chat, &body).await.unwrap();
    assert_eq!(running(&server).await, 2);
    assert!(matches!(send(&server, Route::Chat, &body).await, Err(CallError::Refused(_))));
    let state = server.observe(&ServerState::unknown("here".into(), ServerKind::Embedded)).await;
    assert_eq!(state.capacity.kv_tokens, Some(Tokens(2 * WINDOW as u64)));
    drop((one, two));
    all_free(&server).await;
    assert_eq!(running(&server).await, 0);
    assert!(send(&server, Route::Chat, &body).await.is_ok());
}

#[tokio::test]
async fn who_leaves_stops_the_model() {
    let server = server(1);
    // Always the same letter, so that each token is one piece.
    let body = chat(json!({"stream": true, "max_tokens": 400, "logit_bias": {"120": 100}}));
    let mut answer = send(&server, Route::Chat, &body).await.unwrap();
    for _ in 0..3 {
        answer.body.next().await.unwrap().unwrap();
    }
    drop(answer);
    all_free(&server).await;
    // Three were read and the channel holds 16; one more may have been under way.
    let made = server.tokens_made();
    assert!((2..=21).contains(&made), "{made} tokens were made for a caller who left");
}

#[tokio::test]
async fn a_dropped_call_for_a_whole_answer_stops_too() {
    let server = server(1);
    let body =
        chat(json!({"n": 4, "max_tokens": 400, "messages": [{"role": "user", "content": "a"}]}));
    let call = send(&server, Route::Chat, &body);
    // Polled once, it is under way; then the caller drops it.
    assert!(timeout(Duration::ZERO, call).await.is_err());
    all_free(&server).await;
    assert!(server.tokens_made() < 1600);
}

/// A place is free before the last byte is out, so a caller may send the next call on seeing it.
#[tokio::test]
async fn a_place_is_free_at_the_last_byte() {
    let server = server(1);
    for _ in 0..20 {
        let body = chat(json!({"stream": true, "max_tokens": 1}));
        let mut answer = send(&server, Route::Chat, &body).await.unwrap();
        while let Some(piece) = answer.body.next().await {
            if piece.unwrap() == say::DONE {
                assert_eq!(running(&server).await, 0);
            }
        }
    }
}

#[tokio::test]
async fn a_model_of_nonsense_fails_its_calls_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let mut tiny = Tiny::llama(1, WINDOW, 1);
    let nan = vec![f32::NAN; 16];
    tiny.weights.insert(
        "model.norm.weight".into(),
        candle_core::Tensor::from_vec(nan, 16, &candle_core::Device::Cpu).unwrap(),
    );
    tiny.write(folder.path());
    let server = Embedded::load("here".into(), "tiny".into(), folder.path(), 1).unwrap();
    for _ in 0..2 {
        let (status, answer) = whole(&server, Route::Chat, chat(json!({}))).await;
        assert_eq!((status, &answer["error"]["type"]), (500, &json!("server_error")));
        let (status, _) = whole(&server, Route::Embeddings, json!({"input": "a"})).await;
        assert_eq!(status, 500);
    }
    let chunks = chunks(&server, Route::Chat, chat(json!({"stream": true}))).await;
    assert_eq!(chunks.last().unwrap()["error"]["type"], "server_error");
}

/// Sequences that run side by side must not touch one another.
#[tokio::test]
async fn neighbours_say_what_they_say_alone() {
    let server = server(2);
    let body = |text: &str| {
        chat(
            json!({"messages": [{"role": "user", "content": text}], "max_tokens": 60, "temperature": 0.9, "seed": 1}),
        )
    };
    let (_, one) = whole(&server, Route::Chat, body("first")).await;
    let (_, two) = whole(&server, Route::Chat, body("second")).await;
    let (beside_one, beside_two) = tokio::join!(
        whole(&server, Route::Chat, body("first")),
        whole(&server, Route::Chat, body("second"))
    );
    assert_eq!((said(&one), said(&two)), (said(&beside_one.1), said(&beside_two.1)));
    assert_ne!(said(&one), said(&two));
}
