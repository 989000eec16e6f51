//! Pools over scripted models: slow, wrong and panicking ones stay where they are.

use super::{Classifier, Factory, Failure, Limits, Owner, Pool};
use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

const LIMITS: Limits = Limits {
    threads: 1,
    waiting_max: 4,
    batch_max: 4,
    failures_max: 3,
    rest: Duration::from_millis(300),
};

/// Whose text it is, where that does not matter.
const ME: Owner = Owner::NOBODY;

/// What a scripted model does with a batch.
type Script = Arc<dyn Fn(&[&[u32]]) -> Result<Vec<Vec<f32>>, String> + Send + Sync>;

struct Scripted(Script);

impl Classifier for Scripted {
    fn run(&mut self, windows: &[&[u32]]) -> Result<Vec<Vec<f32>>, String> {
        (self.0)(windows)
    }
}

fn pool(limits: Limits, script: Script) -> Pool {
    let factory: Factory = Arc::new(move || Ok(Box::new(Scripted(Arc::clone(&script)))));
    Pool::start(factory, "test", limits).unwrap()
}

/// Each window's first id is its score.
fn echo(windows: &[&[u32]]) -> Result<Vec<Vec<f32>>, String> {
    Ok(windows.iter().map(|window| vec![window[0] as f32]).collect())
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// A gate that a scripted model waits at.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    ring: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.ring.wait(open).unwrap();
        }
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.ring.notify_all();
    }
}

#[tokio::test]
async fn each_text_gets_its_own_rows() {
    let pool = pool(LIMITS, Arc::new(echo));
    let mut asked = Vec::new();
    for text in 0..4_u32 {
        asked.push((text, pool.ask(ME, vec![vec![text], vec![text + 10]]).unwrap()));
    }
    for (text, asked) in asked {
        let rows = asked.rows(soon()).await.unwrap();
        assert_eq!(rows, [[text as f32], [text as f32 + 10.0]]);
    }
    assert_eq!(pool.pulse().texts, 4);
}

#[tokio::test]
async fn texts_that_wait_run_together() {
    let gate = Arc::new(Gate::default());
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let (waits, seen) = (Arc::clone(&gate), Arc::clone(&sizes));
    let pool = pool(
        LIMITS,
        Arc::new(move |windows| {
            seen.lock().unwrap().push(windows.len());
            waits.pass();
            echo(windows)
        }),
    );
    let first = pool.ask(ME, vec![vec![0]]).unwrap();
    while sizes.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let rest: Vec<_> = (1..4).map(|text| pool.ask(ME, vec![vec![text]]).unwrap()).collect();
    gate.open();
    first.rows(soon()).await.unwrap();
    for asked in rest {
        asked.rows(soon()).await.unwrap();
    }
    assert_eq!(*sizes.lock().unwrap(), [1, 3]);
}

#[tokio::test]
async fn a_full_queue_turns_away_at_once_and_who_left_is_skipped() {
    let gate = Arc::new(Gate::default());
    let runs = Arc::new(AtomicUsize::new(0));
    let (waits, counts) = (Arc::clone(&gate), Arc::clone(&runs));
    let pool = pool(
        LIMITS,
        Arc::new(move |windows| {
            counts.fetch_add(windows.len(), Ordering::SeqCst);
            waits.pass();
            echo(windows)
        }),
    );
    let first = pool.ask(ME, vec![vec![0]]).unwrap();
    while runs.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let waiting: Vec<_> = (0..4).map(|_| pool.ask(ME, vec![vec![1]]).unwrap()).collect();
    assert_eq!(pool.ask(ME, vec![vec![2]]).unwrap_err(), Failure::Full);
    drop(waiting);
    gate.open();
    first.rows(soon()).await.unwrap();
    pool.ask(ME, vec![vec![3]]).unwrap().rows(soon()).await.unwrap();
    assert_eq!(runs.load(Ordering::SeqCst), 2, "those who left were not run");
}

#[tokio::test]
async fn a_slow_model_is_late_for_its_caller_and_rests() {
    let gate = Arc::new(Gate::default());
    let waits = Arc::clone(&gate);
    let pool = pool(
        Limits { failures_max: 1, ..LIMITS },
        Arc::new(move |windows| {
            waits.pass();
            echo(windows)
        }),
    );
    let asked = pool.ask(ME, vec![vec![0]]).unwrap();
    let begun = Instant::now();
    assert_eq!(asked.rows(begun + Duration::from_millis(50)).await.unwrap_err(), Failure::Late);
    assert!(begun.elapsed() < Duration::from_secs(5), "its caller waits no longer than it said");
    // Whoever comes next is not kept waiting for a model that stands still.
    assert_eq!(pool.ask(ME, vec![vec![1]]).unwrap_err(), Failure::Resting);
    assert!(pool.pulse().resting);
    gate.open();
    // After its rest one text tries it, and it is well again.
    tokio::time::sleep_until(begun + LIMITS.rest + Duration::from_millis(100)).await;
    pool.ask(ME, vec![vec![2]]).unwrap().rows(soon()).await.unwrap();
    assert!(!pool.pulse().resting);
}

#[tokio::test]
async fn panics_and_numbers_that_are_none_are_failures_of_one_text() {
    let pool = pool(
        Limits { failures_max: 100, ..LIMITS },
        Arc::new(|windows| match windows[0][0] {
            7 => panic!("a fault for the test"),
            8 => Ok(vec![vec![f32::NAN]]),
            9 => Ok(Vec::new()),
            10 => Err("no".to_owned()),
            _ => echo(windows),
        }),
    );
    for (id, label) in [(7, "broken"), (8, "not_a_number"), (9, "broken"), (10, "broken")] {
        let failure = pool.ask(ME, vec![vec![id]]).unwrap().rows(soon()).await.unwrap_err();
        assert_eq!(failure.as_str(), label, "{id}: {failure}");
        let fine = pool.ask(ME, vec![vec![1]]).unwrap().rows(soon()).await;
        assert_eq!(fine.unwrap(), [[1.0]], "the next text is judged");
    }
    let failures: u64 = pool.pulse().failures.iter().map(|(_, count)| count).sum();
    assert_eq!(failures, 4);
}

/// A long text does not keep the others waiting for its end, and being slow over it is no fault of the model's.
#[tokio::test]
async fn a_long_text_takes_turns_with_the_others() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&order);
    let gate = Arc::new(Gate::default());
    let waits = Arc::clone(&gate);
    let pool = pool(
        Limits { failures_max: 1, ..LIMITS },
        Arc::new(move |windows| {
            seen.lock().unwrap().push(windows.iter().map(|window| window[0]).collect::<Vec<_>>());
            waits.pass();
            echo(windows)
        }),
    );
    let long = pool.ask(ME, (0..10).map(|_| vec![1]).collect()).unwrap();
    while order.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let short = pool.ask(ME, vec![vec![2]]).unwrap();
    gate.open();
    assert_eq!(short.rows(soon()).await.unwrap(), [[2.0]]);
    assert_eq!(long.rows(soon()).await.unwrap().len(), 10);
    assert_eq!(*order.lock().unwrap(), [vec![1; 4], vec![2, 1, 1, 1], vec![1; 3]]);
    assert!(!pool.pulse().resting);
}

#[tokio::test]
async fn a_model_that_always_fails_rests() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&runs);
    let pool = pool(
        LIMITS,
        Arc::new(move |_| {
            counts.fetch_add(1, Ordering::SeqCst);
            Err("no".to_owned())
        }),
    );
    for _ in 0..3 {
        pool.ask(ME, vec![vec![0]]).unwrap().rows(soon()).await.unwrap_err();
    }
    assert_eq!(pool.ask(ME, vec![vec![0]]).unwrap_err(), Failure::Resting);
    assert_eq!(runs.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_is_absent() {
    let factory: Factory = Arc::new(|| Err("no file".to_owned()));
    let pool = Pool::start(factory, "test", LIMITS).unwrap();
    let failure = pool.ask(ME, vec![vec![0]]).unwrap().rows(soon()).await.unwrap_err();
    assert_eq!(failure, Failure::Absent("no file".to_owned()));
}

/// A flood of one owner's texts costs the flooder its newest, and another owner waits for one turn.
#[tokio::test]
async fn a_flood_harms_whoever_sends_it() {
    let gate = Arc::new(Gate::default());
    let waits = Arc::clone(&gate);
    let order = Arc::new(Mutex::new(Vec::new()));
    let ran = Arc::clone(&order);
    let script = move |windows: &[&[u32]]| {
        waits.pass();
        ran.lock().unwrap().extend(windows.iter().map(|window| window[0]));
        echo(windows)
    };
    let pool = pool(Limits { batch_max: 1, ..LIMITS }, Arc::new(script));
    let (flooder, other) = (Owner::of("flooder"), Owner::of("other"));
    let first = pool.ask(flooder, vec![vec![0]]).unwrap();
    while pool.pulse().waiting > 0 {
        tokio::task::yield_now().await;
    }
    let flood: Vec<_> = (1..5).map(|text| pool.ask(flooder, vec![vec![text]]).unwrap()).collect();
    assert_eq!(pool.ask(flooder, vec![vec![9]]).unwrap_err(), Failure::Full);
    let quiet = pool.ask(other, vec![vec![7]]).unwrap();
    gate.open();
    assert_eq!(quiet.rows(soon()).await.unwrap(), [[7.0]]);
    first.rows(soon()).await.unwrap();
    let mut answers = Vec::new();
    for asked in flood {
        answers.push(asked.rows(soon()).await.map(|rows| rows[0][0]));
    }
    assert_eq!(answers, [Ok(1.0), Ok(2.0), Ok(3.0), Err(Failure::Full)]);
    assert_eq!(*order.lock().unwrap(), [0, 1, 7, 2, 3], "the other waited for one turn");
}
