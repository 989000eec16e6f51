//! All pairs of models and servers whose input is counted here, and what follows for each model.
//!
//! Input is counted before a server is chosen. So a model's own count is believed only while it is believed
//! for every usable server of it; where none is usable, for every server that lists it.

use super::pair::{Change, Outcome, Pair, Standing};
use crate::{
    api::Route,
    ids::{ModelName, ServerId},
    pipeline::{count::Counter, dispatch::ServerView},
    units::Tokens,
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};
use tokio::time::Instant;

/// Which model on which server.
pub type Key = (ModelName, ServerId);

/// An answer whose input was counted here and by its server.
#[derive(Debug)]
pub struct Compared<'a> {
    /// By which files.
    pub counter: &'a Arc<Counter>,
    /// What was asked.
    pub route: Route,
    /// Our count.
    pub ours: Tokens,
    /// The server's.
    pub theirs: Tokens,
}

/// Pairs kept. Servers and their models are bounded already; this holds their product down.
const PAIRS_MAX: usize = 4096;

/// The pairs.
#[derive(Debug, Default)]
pub struct Book {
    pairs: BTreeMap<Key, Pair>,
}

impl Book {
    /// Takes over which servers there are, how they are, and whose files count their models. Pairs that
    /// are gone are forgotten; one whose files changed begins anew.
    pub fn attach(
        &mut self,
        servers: &[ServerView],
        counter: impl Fn(&ModelName) -> Option<Arc<Counter>>,
        now: Instant,
    ) {
        let mut before = std::mem::take(&mut self.pairs);
        for view in servers {
            for served in &view.state.models {
                let Some(counter) = counter(&served.name) else { continue };
                let key = (served.name.clone(), view.state.id.clone());
                let known = before.remove(&key).filter(|pair| pair.counter.counts_like(&counter));
                if self.pairs.len() >= PAIRS_MAX {
                    return;
                }
                let fresh = || Pair::new(Arc::clone(&counter), now);
                let mut pair = known.unwrap_or_else(fresh);
                // Loaded anew from the same files, it has another place.
                pair.counter = counter;
                pair.saw(view, now);
                self.pairs.insert(key, pair);
            }
        }
    }

    /// Notes an answer, which may come before the server was looked at. Nothing happens to a pair whose files
    /// are others by now.
    pub fn answered(
        &mut self,
        key: &Key,
        compared: &Compared<'_>,
        now: Instant,
    ) -> Option<(Change, &Pair)> {
        if !self.pairs.contains_key(key) && self.pairs.len() < PAIRS_MAX {
            self.pairs.insert(key.clone(), Pair::new(Arc::clone(compared.counter), now));
        }
        let pair = self.pairs.get_mut(key)?;
        if !pair.counter.counts_like(compared.counter) {
            return None;
        }
        let change = pair.answered(compared.route, compared.ours, compared.theirs, now);
        change.map(|change| (change, &*pair))
    }

    /// Notes a round of probes that began when the pair was as `begun`. Nothing happens if the files are
    /// others by now, or the server came back meanwhile: the next round is due already.
    pub fn probed(
        &mut self,
        key: &Key,
        begun: &Pair,
        outcome: Outcome,
        now: Instant,
    ) -> Option<(Change, &Pair)> {
        let pair = self.pairs.get_mut(key)?;
        if !pair.counter.counts_like(&begun.counter) || pair.comings != begun.comings {
            return None;
        }
        pair.probed(outcome, now).map(|change| (change, &*pair))
    }

    /// A pair whose probes are due.
    pub fn due(&self, now: Instant) -> Option<(&Key, &Pair)> {
        self.pairs.iter().find(|(_, pair)| pair.wants_probes(now))
    }

    /// For each model whether its own count is believed.
    pub fn beliefs(&self) -> HashMap<ModelName, bool> {
        let mut all: HashMap<ModelName, (Option<bool>, bool)> = HashMap::new();
        for ((model, _), pair) in &self.pairs {
            let (usable, any) = all.entry(model.clone()).or_insert((None, true));
            *any &= pair.is_believed();
            if pair.usable {
                *usable = Some(usable.unwrap_or(true) && pair.is_believed());
            }
        }
        all.into_iter().map(|(model, (usable, any))| (model, usable.unwrap_or(any))).collect()
    }

    /// The standing of one model on one server.
    pub fn standing(&self, key: &Key) -> Option<Standing> {
        self.pairs.get(key).map(|pair| pair.standing)
    }

    /// Every pair, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Pair)> {
        self.pairs.iter()
    }

    /// One pair.
    pub fn get(&self, key: &Key) -> Option<&Pair> {
        self.pairs.get(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        pipeline::trust::pair::tests::{all_agree, counter},
        snapshot::{ServedModel, ServerKind, ServerState},
    };

    fn server(id: &str, usable: bool, comings: u64) -> ServerView {
        let models = vec![ServedModel::ready("m".into(), None)];
        let state = ServerState { models, ..ServerState::unknown(id.into(), ServerKind::Vllm) };
        ServerView { usable, comings, ..ServerView::idle(state) }
    }

    fn key(server: &str) -> Key {
        ("m".into(), server.into())
    }

    fn attach(book: &mut Book, servers: &[ServerView], counter: &Arc<Counter>) {
        book.attach(servers, |_| Some(Arc::clone(counter)), Instant::now());
    }

    fn contradict(book: &mut Book, server: &str, counter: &Arc<Counter>) -> bool {
        let (ours, theirs) = (Tokens(1), Tokens(2));
        let compared = Compared { counter, route: Route::Chat, ours, theirs };
        book.answered(&key(server), &compared, Instant::now()).is_some()
    }

    fn believed(book: &Book) -> Option<bool> {
        book.beliefs().get(&ModelName::from("m")).copied()
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_is_believed_while_every_usable_server_of_it_is() {
        let (mut book, files) = (Book::default(), counter(false));
        assert_eq!(believed(&book), None);
        attach(&mut book, &[server("a", true, 1), server("b", true, 1)], &files);
        assert_eq!(believed(&book), Some(true));
        assert!(contradict(&mut book, "b", &files));
        assert_eq!(believed(&book), Some(false));
        attach(&mut book, &[server("a", true, 1), server("b", false, 1)], &files);
        assert_eq!(believed(&book), Some(true), "the odd one takes no requests");
        attach(&mut book, &[server("a", false, 1), server("b", false, 1)], &files);
        assert_eq!(believed(&book), Some(false), "nobody knows which comes back first");
        attach(&mut book, &[server("a", true, 1)], &files);
        assert_eq!(believed(&book), Some(true));
        assert!(book.get(&key("b")).is_none(), "who is gone is forgotten");
    }

    /// Answers in the first half second of a server went unseen.
    #[tokio::test(start_paused = true)]
    async fn an_answer_before_the_first_look_counts() {
        let (mut book, files) = (Book::default(), counter(false));
        assert!(contradict(&mut book, "a", &files));
        attach(&mut book, &[server("a", true, 1)], &files);
        assert_eq!(book.get(&key("a")).unwrap().standing, Standing::Drifted);
        assert_eq!(believed(&book), Some(false));
    }

    #[tokio::test(start_paused = true)]
    async fn other_files_begin_anew_and_late_news_of_the_old_ones_change_nothing() {
        let (mut book, old, new) = (Book::default(), counter(false), counter(true));
        attach(&mut book, &[server("a", true, 1)], &old);
        let begun = book.get(&key("a")).unwrap().clone();
        assert!(book.probed(&key("a"), &begun, all_agree(), Instant::now()).is_some());
        attach(&mut book, &[server("a", true, 1)], &counter(false));
        assert_eq!(book.get(&key("a")).unwrap().standing, Standing::Exact, "loaded once more");
        attach(&mut book, &[server("a", true, 1)], &new);
        assert_eq!(book.get(&key("a")).unwrap().standing, Standing::Unproven);
        assert!(!contradict(&mut book, "a", &old));
        assert!(book.probed(&key("a"), &begun, all_agree(), Instant::now()).is_none());
        assert_eq!(book.get(&key("a")).unwrap().standing, Standing::Unproven);
    }

    /// Probes that a server answered before it was restarted proved the count of the one that came back.
    #[tokio::test(start_paused = true)]
    async fn probes_from_before_a_restart_prove_nothing() {
        let (mut book, files) = (Book::default(), counter(false));
        attach(&mut book, &[server("a", true, 1)], &files);
        let begun = book.get(&key("a")).unwrap().clone();
        attach(&mut book, &[server("a", true, 2)], &files);
        assert!(book.probed(&key("a"), &begun, all_agree(), Instant::now()).is_none());
        assert_eq!(book.due(Instant::now()).map(|(key, _)| key.clone()), Some(key("a")));
    }
}
