//! The model's policy on control tokens in callers' texts, before a body is written or counted.
//!
//! It is about chat. Who writes a raw prompt for completions formats turns by hand, and needs them.

use super::count::Counter;
use crate::{
    api::{Route, fields::clip, json::Object},
    config::SpecialTokens,
    error::{Reason, Refusal},
    tokens::{Allowance, Checked, CountError, Spelled},
};
use serde_json::value::RawValue;

/// Fields with other values, by their position in the body.
pub type Mended = Vec<(usize, Box<RawValue>)>;

/// Looks at a request; gives the fields that must go out with other texts. `None`: it is more work than
/// allowed.
///
/// # Errors
/// The request is refused.
pub fn check(
    counter: Option<&Counter>,
    route: Route,
    fields: &Object<'_>,
    allowance: Allowance,
) -> Result<Option<Mended>, Refusal> {
    let nothing = Ok(Some(Vec::new()));
    let Some(counter) = counter.filter(|_| route == Route::Chat) else { return nothing };
    let mend = match counter.special_tokens() {
        SpecialTokens::Pass => return nothing,
        SpecialTokens::Refuse => false,
        SpecialTokens::Neutralise => true,
    };
    match counter.files().check_spelling(counter.profile(), fields, mend, allowance) {
        Ok(Checked::Clean) => nothing,
        Ok(Checked::Mended(mended)) => Ok(Some(mended)),
        Ok(Checked::Spelled(spelled)) => Err(refusal(&spelled)),
        Err(CountError::Deferred) => Ok(None),
        Err(error) => {
            let text = format!("The request's texts cannot be looked at: {error}.");
            Err(Refusal::new(Reason::SpecialToken, text))
        }
    }
}

/// Puts other values in place.
pub fn replace<'a>(fields: &mut Object<'a>, mended: &'a Mended) {
    for (at, value) in mended {
        if let Some((_, old)) = fields.0.get_mut(*at) {
            *old = value;
        }
    }
}

fn refusal(spelled: &Spelled) -> Refusal {
    let token = match &spelled.token {
        Some(token) => format!("the control token '{}' of this model", clip(token)),
        None => "a control token of this model".to_owned(),
    };
    let remedy = "Leave it out, or write it differently (with a space inside, say).";
    match &spelled.place {
        Some(place) => {
            let text = format!("'{place}' spells {token}, which would be read as one. {remedy}");
            Refusal::new(Reason::SpecialToken, text).param(place.clone())
        }
        None => {
            let text = format!(
                "Texts of this conversation, put together, spell {token}, or nothing shows that they do not. {remedy}"
            );
            Refusal::new(Reason::SpecialToken, text).param("messages")
        }
    }
}
