//! What each message adds to a prompt.

use crate::{
    api::{Route, shapes::Plain},
    pipeline::count::Counter,
    tokens::CountError,
};
use serde::Serialize;
use serde_json::{Map, Value};
use std::fmt::Write;

/// Messages whose share is told; each costs a render of all before it.
const MESSAGES_MAX: usize = 2000;

/// A prompt's tokens by what they come from; all together they are the count.
#[derive(Debug, Serialize)]
pub(super) struct Share {
    /// What the prompt grows by with each message of the chat request that is rendered.
    messages: Vec<Of>,
    /// What the tools add.
    tools: i64,
    /// What is left: the opening of the answer, and whatever no message accounts for.
    template: i64,
}

/// One message's share.
#[derive(Debug, Serialize)]
struct Of {
    role: String,
    /// Below zero where the template leaves earlier words out once this one is there. `None`: the template
    /// does not render a conversation that ends here, so the share is in the next one's.
    input_tokens: Option<i64>,
}

impl Share {
    /// Counts every beginning of a conversation.
    ///
    /// # Errors
    /// It is no conversation, is too long for this, or cannot be counted.
    pub(super) fn of(counter: &Counter, plain: &Plain) -> Result<Self, String> {
        let Plain::Request(Route::Chat, body) = plain else {
            return Err("only a conversation has messages".to_owned());
        };
        let messages =
            body.get("messages").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        if messages.len() > MESSAGES_MAX {
            return Err(format!("more than {MESSAGES_MAX} messages"));
        }
        let count = |body: &Map<String, Value>| -> Result<i64, CountError> {
            let tokens = counter.files().count_chat(counter.profile(), body)?;
            Ok(i64::try_from(tokens.get()).unwrap_or(i64::MAX))
        };
        let told = |error: CountError| error.to_string();
        let total = count(body).map_err(told)?;
        let mut part = body.clone();
        let bare = match part.remove("tools") {
            Some(_) => count(&part).map_err(told)?,
            None => total,
        };
        part.insert("add_generation_prompt".to_owned(), false.into());
        part.remove("continue_final_message");
        let mut before = 0;
        let mut shares = Vec::with_capacity(messages.len());
        for (at, message) in messages.iter().enumerate() {
            let begun = messages.iter().take(at + 1).cloned().collect();
            part.insert("messages".to_owned(), Value::Array(begun));
            let grown = count(&part).ok().map(|so_far| {
                let grown = so_far - before;
                before = so_far;
                grown
            });
            let role = message.get("role").and_then(Value::as_str).unwrap_or_default().to_owned();
            shares.push(Of { role, input_tokens: grown });
        }
        Ok(Self { messages: shares, tools: total - bare, template: bare - before })
    }

    pub(super) fn print(&self, text: &mut String) {
        for (at, share) in self.messages.iter().enumerate() {
            let tokens =
                share.input_tokens.map_or_else(|| "with the next".to_owned(), |n| n.to_string());
            let _ = writeln!(text, "{:>6}  {:<10} {tokens}", at + 1, share.role);
        }
        if self.tools != 0 {
            let _ = writeln!(text, "{:>6}  {:<10} {}", "", "tools", self.tools);
        }
        let _ = writeln!(text, "{:>6}  {:<10} {}", "", "template", self.template);
    }
}
