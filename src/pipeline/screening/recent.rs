//! What came of screening requests of late: for `berthd explain`.

use super::{Answered, Screened};
use crate::ids::RequestId;
use serde::Serialize;
use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

/// Requests kept, as many as decisions. One takes about 300 bytes.
const KEPT: usize = 2048;

/// The ring of them.
#[derive(Debug, Default)]
pub struct Verdicts {
    /// Guards the ring; held for a push or a look.
    ring: Mutex<VecDeque<Verdicted>>,
}

/// One request's verdicts.
#[derive(Clone, Debug, Serialize)]
pub struct Verdicted {
    /// Which request.
    pub request: RequestId,
    /// Of its texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<Screened>,
    /// Of its answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answered>,
}

impl Verdicts {
    /// Keeps what came of a request, if somebody looked at it.
    pub fn keep(&self, request: &RequestId, input: Option<&Screened>, answer: Option<&Answered>) {
        if input.is_none() && answer.is_none() {
            return;
        }
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() >= KEPT {
            ring.pop_front();
        }
        let (input, answer) = (input.cloned(), answer.cloned());
        ring.push_back(Verdicted { request: request.clone(), input, answer });
    }

    /// What came of a request; `None` where nobody looked, or too many came after it.
    pub fn of(&self, request: &str) -> Option<Verdicted> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.iter().rev().find(|one| one.request.as_str() == request).cloned()
    }
}
