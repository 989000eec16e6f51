//! Asks listeners that belong to processes on GPUs whether they are model servers.
//!
//! Each is asked once, and again after growing pauses while it may still be loading. Who was asked long
//! enough is left alone until another process listens there.

use crate::{
    holding::Candidate,
    ids::{GpuId, ModelName, ServerKind},
    servers::discover::{self, Found},
};
use serde::Serialize;
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::SocketAddr,
    time::Duration,
};
use tokio::{task::JoinSet, time::Instant};

/// A model server that nobody configured, found by its process on a GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Offer {
    /// Which program it is.
    pub kind: ServerKind,
    /// Its address, as an entry's `url` has it.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What it lists.
    pub models: Vec<ModelName>,
    /// Version text, where it tells it.
    pub version: Option<String>,
    /// The GPUs that its processes hold memory on.
    pub gpus: BTreeSet<GpuId>,
    /// The process that listens, or else the one on the GPU.
    pub pid: u32,
}

/// Questions at once.
const QUESTIONS_MAX: usize = 4;

/// Time for each page of a question.
const PAGE_LIMIT: Duration = Duration::from_secs(2);

/// The first pause before a listener is asked again; it doubles.
const AGAIN_FIRST: Duration = Duration::from_secs(2);

/// The longest such pause.
const AGAIN_MOST: Duration = Duration::from_secs(60);

/// Questions to one listener that is not known by its answer: with the pauses above, a large model has
/// some twenty minutes to load.
const ASKED_MAX: u32 = 24;

/// What is known about one listener.
#[derive(Debug)]
struct Asked {
    candidate: Candidate,
    times: u32,
    pause: Duration,
    /// When to ask next; `None` while a question is under way, and when it is known well enough.
    next: Option<Instant>,
    found: Option<Found>,
}

/// An answer: from where, by whom, and what it is if it is a model server.
type Answer = (SocketAddr, (u64, u64), Option<Found>);

/// All listeners that are candidates now, and the questions under way.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// As many as there are candidates, which are bounded.
    known: HashMap<SocketAddr, Asked>,
    questions: JoinSet<Answer>,
}

impl Asking {
    /// Takes the candidates of a new round and asks whoever is due.
    pub(super) fn see(&mut self, candidates: Vec<Candidate>, now: Instant) {
        let here: HashSet<SocketAddr> = candidates.iter().map(|one| one.at).collect();
        self.known.retain(|at, _| here.contains(at));
        for candidate in candidates {
            match self.known.get_mut(&candidate.at) {
                Some(asked) if asked.candidate.identity == candidate.identity => {
                    asked.candidate = candidate;
                }
                _ => {
                    let fresh = Asked {
                        candidate,
                        times: 0,
                        pause: AGAIN_FIRST,
                        next: Some(now),
                        found: None,
                    };
                    self.known.insert(fresh.candidate.at, fresh);
                }
            }
        }
        for asked in self.known.values_mut() {
            if self.questions.len() >= QUESTIONS_MAX {
                return;
            }
            if asked.next.is_some_and(|next| next <= now) {
                asked.next = None;
                asked.times += 1;
                let (at, identity) = (asked.candidate.at, asked.candidate.identity);
                self.questions.spawn(async move {
                    let found = discover::recognise(&host(at), at.port(), PAGE_LIMIT).await;
                    (at, identity, found)
                });
            }
        }
    }

    /// Waits for one answer; for ever while nobody is asked. Cancel-safe.
    pub(super) async fn answered(&mut self) {
        let answer = loop {
            match self.questions.join_next().await {
                Some(Ok(answer)) => break answer,
                // It panicked: the next candidate's question may not. Whoever it was is left alone.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        };
        self.take(answer, Instant::now());
    }

    fn take(&mut self, (at, identity, found): Answer, now: Instant) {
        let Some(asked) = self.known.get_mut(&at) else { return };
        if asked.candidate.identity != identity {
            return;
        }
        let known = found.as_ref().is_some_and(|found| !found.models.is_empty());
        if found.is_some() {
            asked.found = found;
        }
        if !known && asked.times < ASKED_MAX {
            asked.next = Some(now + asked.pause);
            asked.pause = asked.pause.saturating_mul(2).min(AGAIN_MOST);
        }
    }

    /// The model servers among them, by address.
    pub(super) fn offers(&self) -> Vec<Offer> {
        let mut known: Vec<&Asked> = self.known.values().collect();
        known.sort_by_key(|asked| asked.candidate.at);
        let offer = |asked: &Asked| {
            let found = asked.found.clone()?;
            Some(Offer {
                kind: found.kind,
                host: found.host,
                port: found.port,
                models: found.models.into_iter().map(|model| model.name).collect(),
                version: found.version,
                gpus: asked.candidate.gpus.clone(),
                pid: asked.candidate.pid,
            })
        };
        known.into_iter().filter_map(offer).collect()
    }
}

/// An address as URLs have it.
fn host(at: SocketAddr) -> String {
    if at.is_ipv6() { format!("[{}]", at.ip()) } else { at.ip().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::ServedModel;

    fn candidate(port: u16, inode: u64) -> Candidate {
        let gpus = BTreeSet::from([GpuId::from("GPU-a")]);
        let at = SocketAddr::from(([127, 0, 0, 1], port));
        Candidate { at, identity: (inode, 1), pid: 41, gpus }
    }

    fn found(models: &[&str]) -> Option<Found> {
        let served = |name: &&str| ServedModel::ready((*name).into(), None);
        Some(Found {
            kind: ServerKind::Vllm,
            host: "127.0.0.1".into(),
            port: 1,
            models: models.iter().map(served).collect(),
            version: None,
        })
    }

    fn names(asking: &Asking) -> Vec<Vec<String>> {
        let of = |offer: &Offer| offer.models.iter().map(ToString::to_string).collect();
        asking.offers().iter().map(of).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_known_is_asked_no_more_and_who_loads_is_asked_again() {
        let (mut asking, now) = (Asking::default(), Instant::now());
        asking.see(vec![candidate(1, 7), candidate(2, 8)], now);
        assert_eq!(asking.questions.len(), 2);
        asking.questions = JoinSet::new();
        asking.take((candidate(1, 7).at, (7, 1), found(&["m"])), now);
        asking.take((candidate(2, 8).at, (8, 1), found(&[])), now);
        assert_eq!(names(&asking), [vec!["m".to_owned()], Vec::new()]);
        asking.see(vec![candidate(1, 7), candidate(2, 8)], now + Duration::from_millis(1999));
        assert_eq!(asking.questions.len(), 0);
        asking.see(vec![candidate(1, 7), candidate(2, 8)], now + Duration::from_secs(2));
        assert_eq!(asking.questions.len(), 1, "only the one that loads");
        // It is gone; and another process at the first's address is asked anew.
        asking.see(vec![candidate(1, 9)], now + Duration::from_secs(3));
        assert_eq!(asking.questions.len(), 2);
        assert_eq!(names(&asking), Vec::<Vec<String>>::new());
        asking.take((candidate(1, 7).at, (7, 1), found(&["late"])), now);
        assert_eq!(names(&asking), Vec::<Vec<String>>::new(), "an answer of the one before");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_model_server_is_left_alone_in_the_end() {
        let (mut asking, mut now) = (Asking::default(), Instant::now());
        let began = now;
        let mut questions = 0;
        for _ in 0..1000 {
            asking.see(vec![candidate(1, 7)], now);
            questions += asking.questions.len();
            asking.questions = JoinSet::new();
            asking.take((candidate(1, 7).at, (7, 1), None), now);
            match asking.known.values().next().unwrap().next {
                Some(next) => now = next,
                None => break,
            }
        }
        assert_eq!(questions, usize::try_from(ASKED_MAX).unwrap());
        assert!(now - began > Duration::from_secs(15 * 60), "{:?}", now - began);
        assert_eq!(asking.offers(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn questions_at_once_are_few() {
        let (mut asking, now) = (Asking::default(), Instant::now());
        let many: Vec<Candidate> = (1..20).map(|port| candidate(port, u64::from(port))).collect();
        asking.see(many.clone(), now);
        asking.see(many, now);
        assert_eq!(asking.questions.len(), QUESTIONS_MAX);
    }
}
