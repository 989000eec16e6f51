//! The conversations that are counted here and by a server when it attaches, one for each way in which counts
//! are known to come apart.

use super::pair::{Difference, Outcome};
use crate::{
    api::Route,
    ids::ModelName,
    pipeline::count::Counter,
    servers::{ModelServer, Told},
    tokens::CountError,
    units::Tokens,
};
use bytes::Bytes;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// One of them.
#[derive(Clone, Debug)]
pub struct Probe {
    /// What it is about, as operators read it.
    pub name: &'static str,
    /// Which API.
    pub route: Route,
    /// The request.
    pub body: Bytes,
}

/// What we make of one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ours {
    Tokens(Tokens),
    /// The template refuses it, and so do we.
    Refused,
    /// We would ask the server.
    Unknown,
}

/// A round in all. Servers count in milliseconds; one that computes may be slow to come to it.
const ROUND_LIMIT: Duration = Duration::from_secs(30);
/// One probe.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// All probes, for one model.
pub fn all(model: &ModelName) -> Vec<Probe> {
    let chat = |name, fields: Value| {
        let mut body = json!({ "model": model.as_str() });
        if let (Some(body), Value::Object(fields)) = (body.as_object_mut(), fields) {
            body.extend(fields);
        }
        Probe { name, route: Route::Chat, body: Bytes::from(body.to_string()) }
    };
    let said = |name, messages: Value| chat(name, json!({ "messages": messages }));
    let user = |text: &str| json!({ "role": "user", "content": text });
    let mut probes = vec![
        said("one question", json!([user("What is the capital of France?")])),
        said(
            "system message",
            json!([{ "role": "system", "content": "Answer in one word." }, user("Who are you?")]),
        ),
        said(
            "developer message",
            json!([{ "role": "developer", "content": "Be brief." }, user("Who are you?")]),
        ),
        said(
            "several turns",
            json!([
                user("Count to three."), { "role": "assistant", "content": "1, 2, 3." },
                user("And back?"), { "role": "assistant", "content": "3, 2, 1." }, user("Thanks!"),
            ]),
        ),
        chat("tools", json!({ "messages": [user("Weather in Graz?")], "tools": tools() })),
        chat("tool call and result", json!({ "messages": called(), "tools": tools() })),
        said(
            "content in parts",
            json!([{ "role": "user", "content": [
                { "type": "text", "text": "first part" }, { "type": "text", "text": "second part" },
            ] }]),
        ),
        said("empty content", json!([{ "role": "system", "content": "" }, user("")])),
        said(
            "other scripts",
            json!([user(
                "Gr\u{fc}\u{df}e, \u{4f60}\u{597d}, \u{645}\u{631}\u{62d}\u{628}\u{627} \u{1f469}\u{200d}\u{1f680} e\u{301}"
            )]),
        ),
        said(
            "spellings of special tokens",
            json!([user("<s> </s> [INST] <|im_start|> <|im_end|> <|eot_id|> <end_of_turn> <unk>")]),
        ),
        said(
            "white space",
            json!([user("  two before,\ttab,\n\n\n three lines, two after  \n"), {
                "role": "assistant", "content": " kept? \n" }, user("\n")]),
        ),
        said(
            "assistant last",
            json!([user("Say hello."), { "role": "assistant", "content": "Hel" }]),
        ),
        said(
            "code and numbers",
            json!([user(
                "fn main() {\n    println!(\"{:>8.3}\", 1234567.89e-10);\n}\n// 0xDEADBEEF, 100000"
            )]),
        ),
    ];
    let body = json!({ "model": model.as_str(), "prompt": "Once upon a time, in 1984, " });
    let body = Bytes::from(body.to_string());
    probes.push(Probe { name: "completion", route: Route::Completions, body });
    probes
}

fn tools() -> Value {
    json!([{ "type": "function", "function": {
        "name": "get_weather",
        "description": "Weather for a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": { "type": "string", "description": "Town or city" },
                "days": { "type": "integer", "minimum": 1, "default": 1 },
            },
            "required": ["city"],
        },
    } }])
}

fn called() -> Value {
    json!([
        { "role": "user", "content": "Weather in Graz?" },
        { "role": "assistant", "content": null, "tool_calls": [{
            "id": "call00001", "type": "function",
            "function": { "name": "get_weather", "arguments": "{\"city\": \"Graz\", \"days\": 2}" },
        }] },
        { "role": "tool", "tool_call_id": "call00001", "content": "{\"degrees\": 21.5}" },
        { "role": "user", "content": "Is that warm?" },
    ])
}

/// Asks a server for its count of every probe, one after the other, and compares. Ends at the first
/// difference. Dropping the future ends the asking.
pub async fn run(server: Arc<dyn ModelServer>, model: ModelName, counter: Arc<Counter>) -> Outcome {
    let work = async {
        let probes = all(&model);
        let bodies = probes.clone();
        let count =
            move || -> Vec<Ours> { bodies.iter().map(|probe| ours(&counter, probe)).collect() };
        match tokio::task::spawn_blocking(count).await {
            Ok(ours) => compare(&*server, probes.into_iter().zip(ours)).await,
            Err(error) => Outcome::Failed(error.to_string()),
        }
    };
    timeout(ROUND_LIMIT, work).await.unwrap_or_else(|_| {
        Outcome::Failed(format!("no count of all probes within {} s", ROUND_LIMIT.as_secs()))
    })
}

fn ours(counter: &Counter, probe: &Probe) -> Ours {
    match counter.count(probe.route, &probe.body) {
        Ok(tokens) => Ours::Tokens(tokens),
        Err(CountError::Template(_)) => Ours::Refused,
        Err(_) => Ours::Unknown,
    }
}

async fn compare(server: &dyn ModelServer, probes: impl Iterator<Item = (Probe, Ours)>) -> Outcome {
    let (mut alike, mut numbers) = (0, 0);
    for (Probe { name, route, body }, ours) in probes {
        if ours == Ours::Unknown {
            continue;
        }
        let asked = timeout(PROBE_LIMIT, server.count_told(route, body)).await;
        let told = asked.unwrap_or_else(|_| {
            Told::Failed(format!("no answer within {} s", PROBE_LIMIT.as_secs()))
        });
        match (ours, told) {
            (Ours::Tokens(ours), Told::Tokens(theirs)) if ours == theirs => {
                alike += 1;
                numbers += 1;
            }
            (Ours::Tokens(ours), Told::Tokens(theirs)) => {
                let ours = Some(ours);
                return Outcome::Disagreed(Difference { probe: name, ours, theirs });
            }
            // We would turn away what the server takes.
            (Ours::Refused, Told::Tokens(theirs)) => {
                return Outcome::Disagreed(Difference { probe: name, ours: None, theirs });
            }
            (Ours::Refused, Told::Refused) => alike += 1,
            // What the server does not take is never billed, whatever we make of it.
            (_, Told::Refused) | (Ours::Unknown, _) => {}
            // A server may count conversations and have no way to count texts.
            (_, Told::Absent) if numbers > 0 => {}
            (_, Told::Absent) => return Outcome::Absent,
            (_, Told::Failed(why)) => return Outcome::Failed(why),
        }
    }
    if numbers == 0 { Outcome::Nothing } else { Outcome::Agreed(alike) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_probe_is_a_request_of_its_own_that_the_daemon_would_take() {
        let probes = all(&"m".into());
        let names: BTreeSet<&str> = probes.iter().map(|probe| probe.name).collect();
        let bodies: BTreeSet<&Bytes> = probes.iter().map(|probe| &probe.body).collect();
        assert!(names.len() >= 12);
        assert_eq!((names.len(), bodies.len()), (probes.len(), probes.len()));
        for probe in &probes {
            let limits = crate::api::FieldLimits { choices_max: 1 };
            let read = crate::api::Request::parse(probe.route, &probe.body, limits);
            assert_eq!(read.map(|request| request.model.to_string()).unwrap(), "m", "{probe:?}");
        }
    }
}
