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
    match counter.count_body(probe.route, &probe.body) {
        Ok(tokens) => Ours::Tokens(tokens),
        Err(CountError::Template(_)) => Ours::Refused,
        Err(_) => Ours::Unknown,
    }
}

async fn compare(server: &dyn ModelServer, probes: impl Iterator<Item = (Probe, Ours)>) -> Outcome {
    let mut seen = Seen::default();
    for (Probe { name, route, body }, ours) in probes {
        if ours == Ours::Unknown {
            seen.apart += 1;
            continue;
        }
        let asked = timeout(PROBE_LIMIT, server.count_told(route, body)).await;
        let told = asked.unwrap_or_else(|_| {
            Told::Failed(format!("no answer within {} s", PROBE_LIMIT.as_secs()))
        });
        match (ours, told) {
            (Ours::Tokens(ours), Told::Tokens(theirs)) if ours == theirs => seen.number(route),
            (Ours::Tokens(ours), Told::Tokens(theirs)) => {
                let ours = Some(ours);
                return Outcome::Disagreed(Difference { probe: name, ours, theirs });
            }
            // We would turn away what the server takes.
            (_, Told::Tokens(theirs)) => {
                return Outcome::Disagreed(Difference { probe: name, ours: None, theirs });
            }
            (Ours::Refused, Told::Refused) => seen.alike += 1,
            // What the server does not take is never billed, whatever we make of it.
            (_, Told::Refused) => seen.not_compared(route),
            // A server may count conversations and have no way to count texts.
            (_, Told::Absent) if seen.chats > 0 => seen.not_compared(route),
            (_, Told::Absent) => return Outcome::Absent,
            (_, Told::Failed(why)) => return Outcome::Failed(why),
        }
    }
    seen.outcome()
}

/// What a round has shown so far.
#[derive(Default)]
struct Seen {
    alike: u32,
    apart: u32,
    /// Conversations with two equal numbers.
    chats: u32,
    /// Bare texts with two equal numbers.
    texts: u32,
    /// Conversations that we count and the server does not take.
    chats_apart: u32,
}

impl Seen {
    fn number(&mut self, route: Route) {
        self.alike += 1;
        match route {
            Route::Chat => self.chats += 1,
            _ => self.texts += 1,
        }
    }

    fn not_compared(&mut self, route: Route) {
        self.apart += 1;
        self.chats_apart += u32::from(route == Route::Chat);
    }

    /// A text proves the vocabulary, not the template: where conversations are counted here at all, one must
    /// have been compared.
    fn outcome(&self) -> Outcome {
        let Self { alike, apart, .. } = *self;
        let texts_only = self.chats_apart == 0 && self.texts > 0;
        if self.chats > 0 || texts_only {
            Outcome::Agreed { alike, apart }
        } else {
            Outcome::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::ServerId,
        servers::{Answer, Call, CallError, Later},
        snapshot::{ServerKind, ServerState},
    };
    use std::collections::BTreeSet;

    /// Tells one thing for conversations and another for texts.
    struct Says {
        id: ServerId,
        chat: Told,
        text: Told,
    }

    impl ModelServer for Says {
        fn id(&self) -> &ServerId {
            &self.id
        }

        fn kind(&self) -> ServerKind {
            ServerKind::Vllm
        }

        fn send(&self, _call: Call) -> Later<'_, Result<Answer, CallError>> {
            Box::pin(std::future::pending())
        }

        fn observe<'a>(&'a self, last: &'a ServerState) -> Later<'a, ServerState> {
            Box::pin(std::future::ready(last.clone()))
        }

        fn count(&self, _route: Route, _body: Bytes) -> Later<'_, Option<Tokens>> {
            Box::pin(std::future::pending())
        }

        fn count_told(&self, route: Route, _body: Bytes) -> Later<'_, Told> {
            let told = if route == Route::Chat { &self.chat } else { &self.text };
            match told {
                // Says nothing for ever.
                Told::Failed(why) if why.is_empty() => Box::pin(std::future::pending()),
                told => Box::pin(std::future::ready(told.clone())),
            }
        }
    }

    /// Of a round in which we count every conversation as `ours`, and every text as 5.
    async fn round(ours: Ours, chat: Told, text: Told) -> Outcome {
        let server = Says { id: "s".into(), chat, text };
        let count = |probe: Probe| match probe.route {
            Route::Chat => (probe, ours.clone()),
            _ => (probe, Ours::Tokens(Tokens(5))),
        };
        compare(&server, all(&"m".into()).into_iter().map(count)).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_is_what_its_probes_show() {
        let five = || Told::Tokens(Tokens(5));
        let ours = |tokens| Ours::Tokens(Tokens(tokens));
        let differs = |ours| {
            Outcome::Disagreed(Difference { probe: "one question", ours, theirs: Tokens(5) })
        };
        assert_eq!(round(ours(5), five(), five()).await, Outcome::Agreed { alike: 14, apart: 0 });
        assert_eq!(round(ours(6), five(), five()).await, differs(Some(Tokens(6))));
        assert_eq!(round(Ours::Refused, five(), five()).await, differs(None));
        let both = round(Ours::Refused, Told::Refused, five()).await;
        assert_eq!(both, Outcome::Agreed { alike: 14, apart: 0 });
        assert_eq!(round(ours(5), Told::Absent, five()).await, Outcome::Absent);
        let chats = round(ours(5), five(), Told::Absent).await;
        assert_eq!(chats, Outcome::Agreed { alike: 13, apart: 1 });
        let silent = round(ours(5), Told::Failed(String::new()), five()).await;
        assert_eq!(silent, Outcome::Failed("no answer within 5 s".into()));
    }

    /// A server that takes no conversation at its counting endpoint, as older ones do, was called exact for a
    /// text that agreed.
    #[tokio::test(start_paused = true)]
    async fn a_text_proves_no_template() {
        let five = || Told::Tokens(Tokens(5));
        let chat = Ours::Tokens(Tokens(5));
        assert_eq!(round(chat, Told::Refused, five()).await, Outcome::Nothing);
        let base = round(Ours::Unknown, Told::Refused, five()).await;
        assert_eq!(base, Outcome::Agreed { alike: 1, apart: 13 }, "there is no template");
    }
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
