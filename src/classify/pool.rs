//! Worker threads for one model: a bounded queue in turns by owner, batches across requests, and a breaker. What a model does
//! wrong (panics, hangs, gives what is no number) stays in here.

use super::{Classifier, Failure, Model, Owner, Window, model::factory, turns::Turns};
use std::{
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};

/// Makes a classifier for the thread that asks.
pub type Factory = Arc<dyn Fn() -> Result<Box<dyn Classifier>, String> + Send + Sync>;

/// Bounds of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Worker threads.
    pub threads: usize,
    /// Texts that wait at once; more are turned away.
    pub waiting_max: usize,
    /// Windows that run together.
    pub batch_max: usize,
    /// Failures in a row after which the model rests.
    pub failures_max: u32,
    /// How long it rests before one text tries it again.
    pub rest: Duration,
}

/// What a pool did so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pulse {
    /// Texts that were scored.
    pub texts: u64,
    /// Windows that were run.
    pub windows: u64,
    /// Runs of the model; fewer than texts where they were batched.
    pub runs: u64,
    /// Failures by their label.
    pub failures: Vec<(&'static str, u64)>,
    /// Texts that wait now.
    pub waiting: usize,
    /// It rests after too many failures.
    pub resting: bool,
    /// The last thing that went wrong.
    pub last_failure: Option<String>,
}

/// The worker threads of one model. They end when it is dropped, each after what it runs.
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    limits: Limits,
    factory: Factory,
    /// Guards the queue and the counts; held for a push, a pop or a copy.
    state: Mutex<State>,
    /// Rings when there is work, or none to come.
    ring: Condvar,
}

#[derive(Default)]
struct State {
    jobs: Turns<Job>,
    over: bool,
    pulse: Pulse,
    /// Failures in a row.
    row: u32,
    rests_until: Option<Instant>,
}

struct Job {
    owner: Owner,
    windows: Vec<Window>,
    /// Of the windows that were run so far, in order.
    rows: Vec<Vec<f32>>,
    reply: oneshot::Sender<Result<Vec<Vec<f32>>, Failure>>,
}

/// A job and how many of its windows are run now.
type Slice = (Job, usize);

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("limits", &self.shared.limits).finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, failure: &Failure) {
        let mut state = self.state();
        state.pulse.last_failure = Some(failure.to_string());
        let label = failure.as_str();
        match state.pulse.failures.iter_mut().find(|(known, _)| *known == label) {
            Some((_, count)) => *count += 1,
            None => state.pulse.failures.push((label, 1)),
        }
        // The queue being full is the load's doing, not the model's.
        if matches!(failure, Failure::Full | Failure::Resting) {
            return;
        }
        state.row = state.row.saturating_add(1);
        if state.row >= self.limits.failures_max {
            let fresh = state.rests_until.is_none();
            state.rests_until = Some(Instant::now() + self.limits.rest);
            if fresh {
                tracing::error!(classifier = self.name, %failure, "a classifier failed too often and rests; the policy for failures holds");
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.over = true;
        state.jobs.clear();
        drop(state);
        self.shared.ring.notify_all();
    }
}

impl Pool {
    /// Starts the threads of a model.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn of(model: &Arc<Model>, name: &str, limits: Limits) -> io::Result<Self> {
        Self::start(factory(model), name, limits)
    }

    /// Starts threads over whatever `factory` makes.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(factory: Factory, name: &str, limits: Limits) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            limits,
            factory,
            state: Mutex::default(),
            ring: Condvar::new(),
        });
        let pool = Self { shared: Arc::clone(&shared) };
        for _ in 0..limits.threads.max(1) {
            let shared = Arc::clone(&shared);
            // The system shows fifteen characters of a thread's name.
            let name: String = format!("cls-{name}").chars().take(15).collect();
            thread::Builder::new().name(name).spawn(move || work(&shared))?;
        }
        Ok(pool)
    }

    /// Hands windows over. The answer comes through the receiver; dropping that takes them back if they have
    /// not begun. Owners take turns; where all places are taken, one of who has the most of them is given up.
    ///
    /// # Errors
    /// [`Failure::Full`] or [`Failure::Resting`], at once.
    pub fn ask(&self, owner: Owner, windows: Vec<Window>) -> Result<Asked, Failure> {
        let (reply, answer) = oneshot::channel();
        let mut state = self.shared.state();
        let runs = state.pulse.runs;
        let now = Instant::now();
        let mut crowded_out = None;
        let turned_away = match state.rests_until {
            Some(until) if until > now => Some(Failure::Resting),
            Some(_) => {
                // One tries; the others wait for what comes of it.
                state.rests_until = Some(now + self.shared.limits.rest);
                None
            }
            None if state.jobs.len() >= self.shared.limits.waiting_max => {
                crowded_out = state.jobs.crowd_out(owner);
                crowded_out.is_none().then_some(Failure::Full)
            }
            None => None,
        };
        if turned_away.is_none() {
            state.jobs.push(owner, Job { owner, windows, rows: Vec::new(), reply });
        }
        drop(state);
        if let Some(job) = crowded_out {
            self.shared.note(&Failure::Full);
            // Whoever left needs no answer.
            let _ = job.reply.send(Err(Failure::Full));
        }
        if let Some(failure) = turned_away {
            self.shared.note(&failure);
            return Err(failure);
        }
        self.shared.ring.notify_one();
        Ok(Asked { answer, runs, shared: Arc::clone(&self.shared) })
    }

    /// What it did so far.
    pub fn pulse(&self) -> Pulse {
        let state = self.shared.state();
        let resting = state.rests_until.is_some_and(|until| until > Instant::now());
        Pulse { waiting: state.jobs.len(), resting, ..state.pulse.clone() }
    }
}

/// A text that was handed over.
pub struct Asked {
    answer: oneshot::Receiver<Result<Vec<Vec<f32>>, Failure>>,
    /// Runs that had ended when it was handed over.
    runs: u64,
    shared: Arc<Shared>,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").field("runs", &self.runs).finish_non_exhaustive()
    }
}

impl Asked {
    /// Waits for the rows until then.
    ///
    /// # Errors
    /// The model's failure, or [`Failure::Late`].
    pub async fn rows(self, until: Instant) -> Result<Vec<Vec<f32>>, Failure> {
        match tokio::time::timeout_at(until, self.answer).await {
            Ok(Ok(rows)) => rows,
            Ok(Err(_)) => Err(Failure::Broken("its thread ended".to_owned())),
            Err(_) => {
                // A model that stands still is at fault; one that works, on this text or on others, is not.
                if self.shared.state().pulse.runs == self.runs {
                    self.shared.note(&Failure::Late);
                }
                Err(Failure::Late)
            }
        }
    }

    /// The rows, if they are here. `None`: not yet.
    pub fn try_rows(&mut self) -> Option<Result<Vec<Vec<f32>>, Failure>> {
        match self.answer.try_recv() {
            Ok(rows) => Some(rows),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => {
                Some(Err(Failure::Broken("its thread ended".to_owned())))
            }
        }
    }

    /// Waits for the rows without end; the caller brings its own limit. Safe to drop and call again.
    pub async fn wait(&mut self) -> Result<Vec<Vec<f32>>, Failure> {
        match (&mut self.answer).await {
            Ok(rows) => rows,
            Err(_) => Err(Failure::Broken("its thread ended".to_owned())),
        }
    }
}

/// One worker thread, until the pool is dropped.
fn work(shared: &Shared) {
    let mut classifier: Option<Box<dyn Classifier>> = None;
    while let Some(batch) = take(shared) {
        let result = run(shared, &mut classifier, &batch);
        if let Err(Failure::Broken(_) | Failure::Absent(_)) = &result {
            // Whatever state a failure left behind goes with it.
            classifier = None;
        }
        answer(shared, batch, result);
    }
}

/// The next windows, as many as run together: of a long text a part, and then of whoever waits behind it. Whoever
/// left is skipped. `None`: the pool is gone.
fn take(shared: &Shared) -> Option<Vec<Slice>> {
    let most = shared.limits.batch_max.max(1);
    let mut state = shared.state();
    loop {
        let (mut batch, mut room) = (Vec::new(), most);
        while room > 0
            && let Some((_, job)) = state.jobs.pop()
        {
            if !job.reply.is_closed() {
                let count = (job.windows.len() - job.rows.len()).min(room);
                room -= count;
                batch.push((job, count));
            }
        }
        if !batch.is_empty() {
            return Some(batch);
        }
        if state.over {
            return None;
        }
        state = shared.ring.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

fn run(
    shared: &Shared,
    classifier: &mut Option<Box<dyn Classifier>>,
    batch: &[Slice],
) -> Result<Vec<Vec<f32>>, Failure> {
    let all: Vec<&[u32]> = batch
        .iter()
        .flat_map(|(job, count)| job.windows.iter().skip(job.rows.len()).take(*count))
        .map(Vec::as_slice)
        .collect();
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let classifier = match classifier {
            Some(classifier) => classifier,
            None => classifier.insert((shared.factory)().map_err(Failure::Absent)?),
        };
        classifier.run(&all).map_err(Failure::Broken)
    }));
    let rows = ran.unwrap_or_else(|_| Err(Failure::Broken("it panicked".to_owned())))?;
    if rows.len() != all.len() {
        return Err(Failure::Broken(format!("{} rows for {} windows", rows.len(), all.len())));
    }
    match rows.iter().flatten().all(|number| number.is_finite()) {
        true => Ok(rows),
        false => Err(Failure::NotANumber),
    }
}

fn answer(shared: &Shared, batch: Vec<Slice>, result: Result<Vec<Vec<f32>>, Failure>) {
    let mut rows = match result {
        Ok(rows) => rows.into_iter(),
        Err(failure) => {
            shared.note(&failure);
            for (job, _) in batch {
                // Whoever left needs no answer.
                let _ = job.reply.send(Err(failure.clone()));
            }
            return;
        }
    };
    let (mut whole, mut left) = (Vec::new(), Vec::new());
    let windows = rows.len() as u64;
    for (mut job, count) in batch {
        job.rows.extend(rows.by_ref().take(count));
        match job.rows.len() < job.windows.len() {
            true => left.push(job),
            false => whole.push(job),
        }
    }
    let mut state = shared.state();
    state.row = 0;
    state.rests_until = None;
    state.pulse.runs += 1;
    state.pulse.texts += whole.len() as u64;
    state.pulse.windows += windows;
    // Behind those who came meanwhile: a long text takes its turns like any other.
    left.into_iter().for_each(|job| state.jobs.push(job.owner, job));
    drop(state);
    for job in whole {
        // Whoever left needs no answer.
        let _ = job.reply.send(Ok(job.rows));
    }
}
