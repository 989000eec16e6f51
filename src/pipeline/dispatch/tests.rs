//! Turns, with servers that exist in name only.

use super::*;
use crate::{
    error::Reason,
    ids::RequestId,
    schedule::Blocks,
    servers::{Answer, Call, CallError, Later, Route},
    snapshot::{Capacity, Health, KvChange, ServedModel, ServerKind},
};
use bytes::Bytes;
use std::future::ready;
use tokio::time::{advance, timeout};

/// A server that nobody calls.
struct Name(ServerId);

impl ModelServer for Name {
    fn id(&self) -> &ServerId {
        &self.0
    }

    fn kind(&self) -> ServerKind {
        ServerKind::OpenAi
    }

    fn send(&self, _call: Call) -> Later<'_, Result<Answer, CallError>> {
        Box::pin(ready(Err(CallError::Refused(RequestId::fresh().as_str().to_owned()))))
    }

    fn observe<'a>(&'a self, last: &'a ServerState) -> Later<'a, ServerState> {
        Box::pin(ready(last.clone()))
    }

    fn count(&self, _route: Route, _body: Bytes) -> Later<'_, Option<Tokens>> {
        Box::pin(ready(None))
    }
}

const SETTINGS: &str = "[[tenants]]\nname = \"t\"\nkeys_sha256 = [\"50d858e0985ecc7f60418aaf0cc5ab587f42c2570a884095a9e8ccacd0f6545c\"]\n[probe]\nstale_after_s = 3600\n";

fn house() -> Arc<Dispatch> {
    house_with("")
}

fn house_with(more: &str) -> Arc<Dispatch> {
    let text = format!("{SETTINGS}{more}");
    Dispatch::new(&config::parse_text("test", &text).unwrap().settings)
}

fn reading(id: &str, health: Health, kv: u64, max_running: u32) -> ServerState {
    ServerState {
        health,
        models: vec![ServedModel::ready("m".into(), None)],
        capacity: Capacity {
            kv_tokens: Some(Tokens(kv)),
            max_running: Some(max_running),
            ..Capacity::default()
        },
        read_at: Some(Instant::now()),
        ..ServerState::unknown(id.into(), ServerKind::OpenAi)
    }
}

fn join(dispatch: &Arc<Dispatch>, id: &str, kv: u64, max_running: u32) {
    let server = Arc::new(Name(id.into()));
    let known = reading(id, Health::Up, kv, max_running);
    dispatch.join(server, Arc::new(Notify::new()), known);
}

fn ask(tokens: u64, tier: Tier, tried: &[&str]) -> Ask {
    let tried = tried.iter().map(|id| ServerId::from(*id)).collect();
    let request = Request {
        tier,
        tried,
        ..Request::plain("m".into(), "t".into(), Tokens(tokens), Instant::now())
    };
    Ask { id: RequestId::fresh(), request, recalls: 0, decision: None }
}

/// A turn that must come without any waiting.
async fn at_once(dispatch: &Arc<Dispatch>, mut ask: Ask) -> Placement {
    timeout(Duration::ZERO, dispatch.turn(&mut ask)).await.expect("it has to wait").unwrap()
}

/// Polls a turn that must wait once more.
macro_rules! assert_waits {
    ($turn:expr) => {
        assert!(timeout(Duration::ZERO, &mut $turn).await.is_err(), "it should wait")
    };
}

/// A retried request once kept everybody behind it away from the very servers it had tried: the lane
/// stood still while they idled.
#[tokio::test(start_paused = true)]
async fn a_retried_request_does_not_keep_others_from_servers_it_tried() {
    let dispatch = house();
    join(&dispatch, "a", 1000, 2);
    join(&dispatch, "b", 1000, 1);
    let on_b = at_once(&dispatch, ask(10, Tier::Standard, &["a"])).await;
    let mut retried = ask(10, Tier::Standard, &["a"]);
    let mut retried = Box::pin(dispatch.turn(&mut retried));
    assert_waits!(retried);
    // Behind it, a is free: at once, and again when it comes free.
    let first = at_once(&dispatch, ask(10, Tier::Standard, &[])).await;
    let _second = at_once(&dispatch, ask(10, Tier::Standard, &[])).await;
    assert_eq!(first.id().as_str(), "a");
    let mut third = ask(10, Tier::Standard, &[]);
    let mut third = Box::pin(dispatch.turn(&mut third));
    assert_waits!(third);
    drop(first);
    assert_eq!(timeout(Duration::ZERO, &mut third).await.unwrap().unwrap().id().as_str(), "a");
    // And b goes to the one who waited for it.
    drop(on_b);
    assert_eq!(timeout(Duration::ZERO, &mut retried).await.unwrap().unwrap().id().as_str(), "b");
}

/// A newcomer who goes first in the lane and fits once waited for the next event or tick.
#[tokio::test(start_paused = true)]
async fn an_urgent_request_that_fits_does_not_wait_behind_a_large_one() {
    let dispatch = house();
    join(&dispatch, "a", 1000, 4);
    let _runs = at_once(&dispatch, ask(500, Tier::Batch, &[])).await;
    let mut large = ask(800, Tier::Batch, &[]);
    let mut large = Box::pin(dispatch.turn(&mut large));
    assert_waits!(large);
    let _urgent = at_once(&dispatch, ask(100, Tier::Interactive, &[])).await;
    // Within a tier a small one may pass, too, but not for ever: once the large one has waited for half of its
    // time, it comes first.
    let _small = at_once(&dispatch, ask(100, Tier::Batch, &[])).await;
    advance(Duration::from_secs(301)).await;
    let mut small = ask(100, Tier::Batch, &[]);
    let mut small = Box::pin(dispatch.turn(&mut small));
    assert_waits!(small);
}

/// One slow spell once refused everybody after it, for ever: who is refused brings no observation that
/// could put the estimate right.
#[tokio::test(start_paused = true)]
async fn a_slow_spell_does_not_refuse_for_ever() {
    let dispatch = house();
    join(&dispatch, "a", 1000, 1);
    let soon = || {
        let mut ask = ask(100, Tier::Standard, &[]);
        ask.request.due = Instant::now() + Duration::from_secs(30);
        ask
    };
    let mut running = at_once(&dispatch, soon()).await;
    let mut asks = [ask(100, Tier::Standard, &[]), ask(100, Tier::Standard, &[])];
    let [first, second] = &mut asks;
    let mut first = Box::pin(dispatch.turn(first));
    let mut second = Box::pin(dispatch.turn(second));
    assert_waits!(first);
    assert_waits!(second);
    advance(Duration::from_secs(50)).await;
    drop(running);
    running = first.await.unwrap();
    let mut third = ask(100, Tier::Standard, &[]);
    let mut third = Box::pin(dispatch.turn(&mut third));
    assert_waits!(third);
    advance(Duration::from_secs(50)).await;
    drop(running);
    running = second.await.unwrap();
    // Two tokens a second. Behind another there is no hope, and it is said at once.
    let mut late = soon();
    late.request.tier = Tier::Batch;
    let refused = timeout(Duration::ZERO, dispatch.turn(&mut late)).await.unwrap().unwrap_err();
    assert_eq!(refused.reason, Reason::WaitTooLong);
    drop(running);
    running = third.await.unwrap();
    // The first in line may always wait: room may come free any moment.
    let mut next = soon();
    let mut next = Box::pin(dispatch.turn(&mut next));
    assert_waits!(next);
    advance(Duration::from_secs(1)).await;
    drop(running);
    let running = next.await.unwrap();
    // And after a minute without news the old speed tells nothing any more.
    advance(Duration::from_secs(61)).await;
    let (mut one, mut two) = (soon(), soon());
    let (mut one, mut two) = (Box::pin(dispatch.turn(&mut one)), Box::pin(dispatch.turn(&mut two)));
    assert_waits!(one);
    assert_waits!(two);
    drop(running);
    drop(one.await.unwrap());
    assert!(two.await.is_ok());
}

/// A server that went down just after somebody looked was once noticed only at the next look, so that
/// callers waited up to twice as long as the operator allows.
#[tokio::test(start_paused = true)]
async fn a_caller_waits_for_a_server_that_went_down_as_long_as_allowed_and_no_longer() {
    let dispatch = house();
    join(&dispatch, "a", 1000, 1);
    join(&dispatch, "b", 1000, 1);
    let _on_a = at_once(&dispatch, ask(10, Tier::Standard, &["b"])).await;
    let _on_b = at_once(&dispatch, ask(10, Tier::Standard, &["a"])).await;
    let mut asked = ask(10, Tier::Standard, &[]);
    let mut turn = Box::pin(dispatch.turn(&mut asked));
    assert_waits!(turn);
    let down = || Health::Down("gone".to_owned());
    advance(Duration::from_secs(1)).await;
    dispatch.observe(&reading("a", down(), 1000, 1));
    advance(Duration::from_secs(2)).await;
    assert_waits!(turn);
    // It is the last one's going that counts.
    dispatch.observe(&reading("b", down(), 1000, 1));
    let since = Instant::now();
    let refused = turn.await.unwrap_err();
    assert_eq!(refused.reason, Reason::NoServer);
    assert!(since.elapsed().abs_diff(Duration::from_secs(5)) <= Duration::from_millis(1));
    // One that comes back in between has all of it anew; a newcomer waits from its own coming.
    let mut asked = ask(10, Tier::Standard, &[]);
    let mut turn = Box::pin(dispatch.turn(&mut asked));
    assert_waits!(turn);
    advance(Duration::from_secs(4)).await;
    dispatch.observe(&reading("a", Health::Up, 1000, 1));
    advance(Duration::from_secs(1)).await;
    dispatch.observe(&reading("a", down(), 1000, 1));
    let since = Instant::now();
    assert_eq!(turn.await.unwrap_err().reason, Reason::NoServer);
    assert!(since.elapsed().abs_diff(Duration::from_secs(5)) <= Duration::from_millis(1));
}

/// With no wait allowed, everybody in the queue once looked for servers again and again without pause.
#[tokio::test(start_paused = true)]
async fn who_may_not_wait_for_a_server_hears_soon_that_it_is_down() {
    let dispatch = house_with("[queue]\nno_server_wait_s = 0\n");
    join(&dispatch, "a", 1000, 1);
    let _on_a = at_once(&dispatch, ask(10, Tier::Standard, &[])).await;
    let mut asked = ask(10, Tier::Standard, &[]);
    let mut turn = Box::pin(dispatch.turn(&mut asked));
    assert_waits!(turn);
    dispatch.observe(&reading("a", Health::Down("gone".to_owned()), 1000, 1));
    let since = Instant::now();
    assert_eq!(turn.await.unwrap_err().reason, Reason::NoServer);
    assert!(since.elapsed() <= Duration::from_millis(251));
}

/// A request for many answers once took one place of `max_running`, however many sequences it ran.
#[tokio::test(start_paused = true)]
async fn a_request_takes_as_many_places_as_it_has_sequences() {
    let dispatch = house();
    join(&dispatch, "a", 1000, 4);
    let of = |sequences| {
        let mut ask = ask(10, Tier::Standard, &[]);
        ask.request.sequences = sequences;
        ask
    };
    let three = at_once(&dispatch, of(3)).await;
    let mut two = of(2);
    let mut two = Box::pin(dispatch.turn(&mut two));
    assert_waits!(two);
    assert_eq!(dispatch.servers()[0].placed, 1, "operators see requests");
    drop(three);
    let two = timeout(Duration::ZERO, two).await.unwrap().unwrap();
    // One with more than the server ever runs has it alone, and gives back what it took.
    let mut nine = of(9);
    let mut nine = Box::pin(dispatch.turn(&mut nine));
    assert_waits!(nine);
    drop(two);
    let nine = timeout(Duration::ZERO, nine).await.unwrap().unwrap();
    let mut one = of(1);
    let mut one = Box::pin(dispatch.turn(&mut one));
    assert_waits!(one);
    drop(nine);
    drop(timeout(Duration::ZERO, one).await.unwrap().unwrap());
    let _all = at_once(&dispatch, of(4)).await;
}

/// The catalogue was once built anew under the lock of all requests at every reading, report and tick.
#[tokio::test(start_paused = true)]
async fn the_catalogue_is_made_anew_only_when_models_change() {
    let dispatch = house();
    join(&dispatch, "a", 1000, 1);
    let before = dispatch.catalog();
    let mut next = reading("a", Health::Down("gone".to_owned()), 1000, 1);
    dispatch.observe(&next);
    dispatch.report(&"a".into(), Outcome::Busy(None), Instant::now());
    dispatch.tick();
    assert!(Arc::ptr_eq(&before, &dispatch.catalog()));
    next.models = vec![ServedModel::ready("other".into(), None)];
    dispatch.observe(&next);
    assert!(dispatch.catalog().find(&"m".into()).is_none());
    assert!(dispatch.catalog().find(&"other".into()).is_some());
    dispatch.leave(&"a".into());
    assert!(dispatch.catalog().find(&"other".into()).is_none());
}

/// What a reading says holds at once, for who waits and for how much fits.
#[tokio::test(start_paused = true)]
async fn a_reading_changes_room_and_turns_at_once() {
    let dispatch = house();
    join(&dispatch, "a", 1000, 1);
    let _one = at_once(&dispatch, ask(10, Tier::Standard, &[])).await;
    let mut two = ask(10, Tier::Standard, &[]);
    let mut two = Box::pin(dispatch.turn(&mut two));
    assert_waits!(two);
    dispatch.observe(&reading("a", Health::Up, 1000, 2));
    let _two = timeout(Duration::ZERO, two).await.unwrap().unwrap();
}

/// Placed at once, and never in the queue: it must not end up behind those that came later.
#[tokio::test(start_paused = true)]
async fn a_request_that_is_taken_back_stands_where_it_came() {
    let dispatch = house_with("[queue]\nlength_max = 1\ntenant_share_percent = 100\n");
    join(&dispatch, "a", 1000, 1);
    let mut first = ask(10, Tier::Standard, &[]);
    let placed = timeout(Duration::ZERO, dispatch.turn(&mut first)).await.unwrap().unwrap();
    let mut second = ask(10, Tier::Standard, &[]);
    let mut second = Box::pin(dispatch.turn(&mut second));
    assert_waits!(second);
    let now = Instant::now();
    assert_eq!(dispatch.hang(&"a".into(), "silent".to_owned(), now), Some(1));
    assert_eq!(dispatch.hang(&"a".into(), "silent".to_owned(), now), None, "once is enough");
    timeout(Duration::ZERO, placed.recalled()).await.expect("it is taken back");
    drop(placed);
    // The queue is full, and its own server is out.
    first.recalls = 1;
    let mut first = Box::pin(dispatch.turn(&mut first));
    assert_waits!(first);
    assert!(dispatch.servers()[0].hung.is_some());
    assert!(dispatch.report(&"a".into(), Outcome::Answered, Instant::now()));
    assert!(dispatch.servers()[0].hung.is_none());
    let again = timeout(Duration::ZERO, first).await.unwrap().unwrap();
    assert_waits!(second);
    assert!(timeout(Duration::ZERO, again.recalled()).await.is_err(), "the old word is not its");
    drop(again);
    assert!(timeout(Duration::ZERO, second).await.unwrap().is_ok());
}

/// In flight is since when there was any request without a break; silence is since the last byte.
#[tokio::test(start_paused = true)]
async fn what_is_heard_of_a_server() {
    let dispatch = house();
    join(&dispatch, "a", 1000, 2);
    let joined = Instant::now();
    let heard = |dispatch: &Dispatch| {
        let heard = dispatch.heard().remove(0);
        (heard.busy_since, heard.last_byte)
    };
    assert_eq!(heard(&dispatch), (None, joined));
    advance(Duration::from_secs(5)).await;
    let first = at_once(&dispatch, ask(10, Tier::Standard, &[])).await;
    let began = Instant::now();
    advance(Duration::from_secs(5)).await;
    let second = at_once(&dispatch, ask(10, Tier::Standard, &[])).await;
    drop(first);
    assert_eq!(heard(&dispatch), (Some(began), joined));
    second.hear(Instant::now());
    assert_eq!(heard(&dispatch), (Some(began), Instant::now()));
    drop(second);
    assert_eq!(heard(&dispatch).0, None);
}

/// What a server says of its cache decides where a prompt goes, and is forgotten when the server says so.
#[tokio::test(start_paused = true)]
async fn a_prompt_goes_where_its_beginning_is_said_to_be() {
    let dispatch = house();
    for id in ["a", "b"] {
        let server = Arc::new(Name(id.into()));
        let mut known = reading(id, Health::Up, 100_000, 8);
        known.capacity.block_tokens = Some(16);
        dispatch.join(server, Arc::new(Notify::new()), known);
    }
    let hashes: Vec<u64> = (1..=400).collect();
    let blocks = Blocks { hashes: hashes.as_slice().into(), tokens: 16 };
    let with_blocks = || {
        let mut ask = ask(6_500, Tier::Standard, &[]);
        ask.request.blocks = blocks.clone();
        ask
    };
    let cached = |id: &RequestId| {
        let decision = dispatch.explain(id.as_str()).unwrap();
        let mut servers = decision.considered.into_iter();
        servers.find(|server| server.server.as_str() == "b").unwrap().cached_tokens
    };
    // Blocks of another size mean nothing.
    let other = KvChange::Stored { block_tokens: 32, hashes: hashes.clone() };
    dispatch.kv_changed(&"b".into(), &other);
    let first = with_blocks();
    let id = first.id.clone();
    drop(at_once(&dispatch, first).await);
    assert_eq!(cached(&id), Tokens::ZERO);
    dispatch
        .kv_changed(&"b".into(), &KvChange::Stored { block_tokens: 16, hashes: hashes.clone() });
    for _ in 0..3 {
        let next = with_blocks();
        let id = next.id.clone();
        let placed = at_once(&dispatch, next).await;
        assert_eq!((placed.id().as_str(), cached(&id)), ("b", Tokens(6_400)));
        // So that nothing is owed when the next one comes.
        advance(Duration::from_secs(1)).await;
        drop(placed);
    }
    dispatch.kv_changed(&"b".into(), &KvChange::Removed { hashes: hashes[200..].to_vec() });
    let next = with_blocks();
    let id = next.id.clone();
    let placed = at_once(&dispatch, next).await;
    assert_eq!(cached(&id), Tokens(3_200));
    drop(placed);
    dispatch.kv_changed(&"b".into(), &KvChange::Cleared);
    let next = with_blocks();
    let id = next.id.clone();
    drop(at_once(&dispatch, next).await);
    assert_eq!(cached(&id), Tokens::ZERO);
}
