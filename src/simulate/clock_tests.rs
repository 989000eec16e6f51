//! The simulated server's time.

use super::*;

fn profile() -> Profile {
    Profile {
        weights_s: 1.0,
        fix_s: 0.0,
        token_s: 0.0,
        context_s: 0.0,
        attention_s: 0.0,
        kv: Tokens(64),
        chunk: Tokens(32),
        max_running: 4,
    }
}

fn step(clock: &mut Clock) -> Vec<(u64, u64, bool)> {
    let mut tokens = Vec::new();
    assert!(clock.begin().is_some(), "there was work");
    clock.finish(&mut tokens);
    tokens.iter().map(|t| (t.id.0, t.generated.get(), t.last)).collect()
}

#[test]
fn a_prompt_longer_than_the_chunk_takes_two_steps_and_decodes_go_first() {
    let mut clock = Clock::new(Profile { kv: Tokens(1600), ..profile() });
    clock.submit(SequenceId(1), Tokens(10), Tokens(3)).unwrap();
    assert_eq!(step(&mut clock), [(1, 1, false)]);
    clock.submit(SequenceId(2), Tokens(40), Tokens(1)).unwrap();
    // 1 decode leaves 31 of the chunk: 31 of 40 prompt tokens, then the other 9.
    assert_eq!(step(&mut clock), [(1, 2, false)]);
    assert_eq!(step(&mut clock), [(1, 3, true), (2, 1, true)]);
    assert_eq!((clock.begin(), clock.used()), (None, Tokens::ZERO));
}

#[test]
fn the_newest_is_preempted_and_still_finishes_its_whole_answer() {
    let mut clock = Clock::new(profile());
    // Two prompts of 31 fill the four pages; the 33rd token of each needs a third page.
    clock.submit(SequenceId(1), Tokens(31), Tokens(20)).unwrap();
    clock.submit(SequenceId(2), Tokens(31), Tokens(20)).unwrap();
    let (mut counts, mut last) = ([0u64; 3], Vec::new());
    while clock.begin().is_some() {
        let mut tokens = Vec::new();
        clock.finish(&mut tokens);
        for token in tokens {
            counts[token.id.0 as usize] += 1;
            assert_eq!(token.generated.get(), counts[token.id.0 as usize], "no token twice");
            if token.last {
                last.push(token.id.0);
            }
        }
    }
    assert_eq!(counts, [0, 20, 20]);
    assert_eq!(last, [1, 2], "the older one keeps its pages");
    assert!(clock.preemptions() >= 1);
    assert_eq!(clock.used(), Tokens::ZERO);
}

#[test]
fn an_abort_within_a_step_frees_its_pages_and_says_nothing_more() {
    let mut clock = Clock::new(profile());
    clock.submit(SequenceId(7), Tokens(20), Tokens(9)).unwrap();
    assert!(clock.begin().is_some());
    assert_eq!(clock.used(), Tokens(32));
    assert!(clock.abort(SequenceId(7)));
    assert_eq!(clock.used(), Tokens::ZERO);
    let mut tokens = Vec::new();
    clock.finish(&mut tokens);
    assert!(tokens.is_empty());
    assert!(!clock.abort(SequenceId(7)), "only once");
}

#[test]
fn what_cannot_fit_alone_is_refused_rather_than_waited_for_forever() {
    let mut clock = Clock::new(profile());
    let refused = clock.submit(SequenceId(1), Tokens(60), Tokens(5));
    assert_eq!(refused, Err(TooLong { needed: Tokens(65), capacity: Tokens(64) }));
    assert!(clock.submit(SequenceId(2), Tokens(60), Tokens(4)).is_ok());
    assert_eq!(clock.waiting(), 1);
}
