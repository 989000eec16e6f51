//! What becomes of a count when it is compared.

use super::*;
use crate::{
    snapshot::ServerState,
    tokens::{ModelFiles, Profile},
};
use std::path::Path;

const HOST: ServerKind = ServerKind::Vllm;

/// The shipped model's files, as configured or as found ones.
pub(in crate::pipeline::trust) fn counter(found: bool) -> Arc<Counter> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo-chat");
    let files = Arc::new(ModelFiles::load(&folder).unwrap());
    Arc::new(Counter::new(files, Profile::of(HOST)).at(folder, found))
}

/// The server at its first, second, ... coming.
fn view(comings: u64, version: &str, usable: bool) -> ServerView {
    let version = Some(version.to_owned());
    let state = ServerState { version, ..ServerState::unknown("s".into(), HOST) };
    ServerView { usable, comings, ..ServerView::idle(state) }
}

fn pair(found: bool) -> Pair {
    let mut pair = Pair::new(counter(found), Instant::now());
    pair.saw(&view(1, "1", true), Instant::now());
    pair
}

fn differs(pair: &mut Pair) -> Option<Change> {
    pair.answered(Route::Chat, Tokens(13), Tokens(16), Instant::now())
}

fn agrees(pair: &mut Pair) -> Option<Change> {
    pair.answered(Route::Chat, Tokens(13), Tokens(13), Instant::now())
}

fn probed(pair: &mut Pair, outcome: Outcome) -> Option<Change> {
    pair.probed(outcome, Instant::now())
}

pub(in crate::pipeline::trust) fn all_agree() -> Outcome {
    Outcome::Agreed { alike: 14, apart: 0 }
}

fn tools_differ() -> Outcome {
    Outcome::Disagreed(Difference { probe: "tools", ours: Some(Tokens(90)), theirs: Tokens(80) })
}

fn due_in(pair: &Pair) -> Option<Duration> {
    pair.due.map(|due| due.saturating_duration_since(Instant::now()))
}

#[tokio::test(start_paused = true)]
async fn probes_that_agree_prove_it_and_are_not_asked_again() {
    let mut pair = pair(false);
    assert!(pair.is_believed() && pair.wants_probes(Instant::now()), "unproven, and asked at once");
    assert_eq!(probed(&mut pair, all_agree()), Some(Change::Proven));
    assert_eq!((pair.standing, pair.reason.as_str()), (Standing::Exact, "all 14 probes agree"));
    assert_eq!(due_in(&pair), None);
}

#[tokio::test(start_paused = true)]
async fn probes_that_disagree_are_asked_again_at_growing_pauses_until_they_agree() {
    let mut pair = pair(false);
    assert_eq!(probed(&mut pair, tools_differ()), Some(Change::Doubted));
    assert_eq!(pair.standing, Standing::Estimated);
    assert_eq!(pair.reason, "probe \"tools\": 90 here, 80 by the server");
    assert!(!pair.is_believed());
    let mut pauses = Vec::new();
    for _ in 0..12 {
        pauses.push(due_in(&pair).unwrap());
        assert!(!pair.wants_probes(Instant::now()));
        tokio::time::advance(due_in(&pair).unwrap()).await;
        assert!(pair.wants_probes(Instant::now()));
        assert_eq!(probed(&mut pair, tools_differ()), None, "told once");
    }
    assert_eq!((pauses[0], pauses[1], pauses[11]), (PAUSE_FIRST, PAUSE_FIRST * 2, PAUSE_MAX));
    // Simple answers say nothing of tools.
    for _ in 0..10 {
        assert_eq!(agrees(&mut pair), None);
    }
    assert_eq!(pair.standing, Standing::Estimated);
    assert_eq!(probed(&mut pair, all_agree()), Some(Change::Proven));
    assert!(pair.is_believed());
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_that_contradicts_ends_belief_and_asks_at_once() {
    for proven in [true, false] {
        let mut pair = pair(false);
        if proven {
            probed(&mut pair, all_agree());
        }
        assert_eq!(differs(&mut pair), Some(Change::Drifted));
        assert_eq!(
            (pair.standing, pair.numbers),
            (Standing::Drifted, Some((Tokens(13), Tokens(16))))
        );
        assert!(!pair.is_believed() && pair.wants_probes(Instant::now()));
        assert_eq!(differs(&mut pair), None, "one drift is told once");
        assert_eq!(probed(&mut pair, tools_differ()), None);
        assert_eq!(pair.standing, Standing::Drifted);
        assert_eq!(probed(&mut pair, all_agree()), Some(Change::Proven));
    }
}

/// A server whose endpoint tells one thing and whose bills tell another would swing the count at every
/// answer.
#[tokio::test(start_paused = true)]
async fn an_endpoint_that_contradicts_the_bills_is_believed_once_only() {
    let mut pair = pair(false);
    probed(&mut pair, all_agree());
    assert_eq!(differs(&mut pair), Some(Change::Drifted));
    assert_eq!(probed(&mut pair, all_agree()), Some(Change::Proven), "one odd answer");
    assert_eq!(differs(&mut pair), Some(Change::Drifted));
    assert_eq!(probed(&mut pair, all_agree()), None);
    assert_eq!((pair.standing, due_in(&pair)), (Standing::Drifted, None));
    assert!(pair.reason.ends_with("its counting endpoint agrees with us"), "{}", pair.reason);
    assert_eq!((agrees(&mut pair), agrees(&mut pair)), (None, None));
    assert_eq!(agrees(&mut pair), Some(Change::Proven));
    assert_eq!(differs(&mut pair), Some(Change::Drifted));
    assert_eq!(probed(&mut pair, all_agree()), Some(Change::Proven), "and all begins anew");
}

#[tokio::test(start_paused = true)]
async fn without_an_endpoint_answers_in_a_row_prove_and_restore() {
    let mut pair = pair(false);
    assert_eq!(probed(&mut pair, Outcome::Absent), None);
    assert_eq!((pair.standing, due_in(&pair)), (Standing::Unproven, None));
    assert_eq!((agrees(&mut pair), agrees(&mut pair)), (None, None));
    assert_eq!(agrees(&mut pair), Some(Change::Proven));
    assert_eq!(differs(&mut pair), Some(Change::Drifted));
    assert_eq!(due_in(&pair), None, "there is nobody to ask");
    for _ in 0..3 {
        agrees(&mut pair);
        agrees(&mut pair);
        assert_eq!(differs(&mut pair), None, "not in a row");
    }
    assert_eq!((agrees(&mut pair), agrees(&mut pair)), (None, None));
    assert_eq!(agrees(&mut pair), Some(Change::Proven));
}

/// Texts may agree while conversations do not.
#[tokio::test(start_paused = true)]
async fn an_answer_speaks_only_for_its_own_route() {
    let mut pair = pair(false);
    probed(&mut pair, Outcome::Absent);
    let text = |pair: &mut Pair, theirs| {
        pair.answered(Route::Completions, Tokens(13), Tokens(theirs), Instant::now())
    };
    assert!((0..9).all(|_| text(&mut pair, 13).is_none()));
    assert_eq!(pair.standing, Standing::Unproven);
    assert_eq!(differs(&mut pair), Some(Change::Drifted));
    assert!((0..9).all(|_| text(&mut pair, 13).is_none()));
    assert_eq!(pair.standing, Standing::Drifted);
    for _ in 0..ANSWERS_PROVE {
        agrees(&mut pair);
    }
    assert_eq!(text(&mut pair, 14), Some(Change::Drifted), "but any route can contradict");
    assert!((0..9).all(|_| agrees(&mut pair).is_none()));
    assert_eq!((text(&mut pair, 13), text(&mut pair, 13)), (None, None));
    assert_eq!(text(&mut pair, 13), Some(Change::Proven));
}

#[tokio::test(start_paused = true)]
async fn found_files_are_believed_after_something_spoke_for_them() {
    let mut asked = pair(true);
    assert!(!asked.is_believed());
    assert_eq!(probed(&mut asked, all_agree()), Some(Change::Proven));
    assert!(asked.is_believed());

    let mut answered = pair(true);
    probed(&mut answered, Outcome::Absent);
    assert!(!answered.is_believed());
    assert_eq!(differs(&mut answered), Some(Change::Doubted), "it was never called exact");
    for _ in 0..ANSWERS_PROVE {
        agrees(&mut answered);
    }
    assert!(answered.is_believed());
    assert_eq!(differs(&mut answered), Some(Change::Drifted));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_proves_nothing_and_is_asked_again() {
    let mut pair = pair(false);
    assert_eq!(probed(&mut pair, Outcome::Failed("it broke".into())), None);
    assert_eq!((pair.standing, due_in(&pair)), (Standing::Unproven, Some(PAUSE_FIRST)));
    assert_eq!(pair.reason, "asking failed: it broke");
    assert_eq!(probed(&mut pair, Outcome::Nothing), None);
    assert_eq!(due_in(&pair), Some(PAUSE_MAX));
    probed(&mut pair, all_agree());
    assert_eq!(probed(&mut pair, Outcome::Failed("late".into())), None);
    assert_eq!(pair.reason, "all 14 probes agree", "a failure takes nothing back");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_comes_back_or_is_another_version_is_compared_anew() {
    for back in [view(2, "1", true), view(1, "2", true)] {
        for found in [false, true] {
            let mut pair = pair(found);
            probed(&mut pair, all_agree());
            pair.saw(&view(1, "1", false), Instant::now());
            assert_eq!((pair.standing, due_in(&pair)), (Standing::Exact, None));
            pair.saw(&back, Instant::now());
            assert_eq!(pair.standing, Standing::Unproven);
            assert_eq!(pair.is_believed(), !found, "found files need their proof again");
            assert!(pair.wants_probes(Instant::now()));
        }
    }
    let mut pair = pair(false);
    probed(&mut pair, all_agree());
    pair.saw(&view(1, "1", false), Instant::now());
    pair.saw(&view(1, "1", true), Instant::now());
    assert_eq!(pair.standing, Standing::Exact, "a moment's rest changes nothing");
}
