//! When a server is hung: it has requests of ours, says nothing, counts nothing, and its GPUs do nothing,
//! all of it for longer than a bound. What its health page says does not matter.
//!
//! Each sign by itself is common in good health. A long prefill is silent, and its counters stand still, but
//! its GPUs work. A card is idle while nobody asks. A health page is slow when its host is busy. So all must
//! hold at once, without a break, and a sign that cannot be seen never counts as one that was.

use crate::{
    config,
    ids::GpuId,
    snapshot::{Answering, GpuProcess, GpuState, Load},
};
use std::time::Duration;
use tokio::time::Instant;

/// Up to here a GPU counts as idle, percent: monitors and displays make a card move without any work.
pub const IDLE_MAX_PERCENT: u32 = 3;

/// The readings of a GPU must lie closer together than this part of the bound: work between two that lie
/// far apart would not be seen.
const GAPS: u32 = 4;

/// How long the signs must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// All signs must hold for this long.
    pub after: Duration,
    /// The longest time between two readings of a GPU, and since the last, that counts as watching it.
    pub gap_max: Duration,
}

impl Rules {
    /// The rules of a configuration; `None` where nobody is to be called hung.
    pub fn of(gpu: &config::Gpu) -> Option<Self> {
        let after = gpu.hung_after;
        (!after.is_zero()).then(|| Self { after, gap_max: gpu.stale_after.min(after / GAPS) })
    }
}

/// What is seen of a server in one moment.
#[derive(Clone, Debug)]
pub struct Signs<'a> {
    /// Since when it has had a request of ours at any time. `None`: it has none now.
    pub busy_since: Option<Instant>,
    /// When the last byte came from it, on any request.
    pub last_byte: Instant,
    /// What it said last of its load.
    pub load: &'a Load,
    /// Its GPUs.
    pub gpus: Sight,
}

/// What is seen of a server's GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Which they are is not known, or one of them does not tell.
    Unknown,
    /// The busiest of them.
    Busiest {
        /// Share of the sample period with work, percent.
        percent: u32,
        /// When it was read.
        at: Instant,
    },
}

/// For how long each sign has held, when all held for long enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// Requests were there.
    pub busy: Duration,
    /// No byte came.
    pub silent: Duration,
    /// No counter moved.
    pub frozen: Duration,
    /// The GPUs did nothing.
    pub idle: Duration,
}

impl std::fmt::Display for Silence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [busy, silent, frozen, idle] =
            [self.busy, self.silent, self.frozen, self.idle].map(|time| time.as_secs_f64());
        write!(
            f,
            "requests for {busy:.1} s, no byte for {silent:.1} s, no counter moved for {frozen:.1} s, GPUs idle for {idle:.1} s"
        )
    }
}

/// What must be remembered of a server between two looks.
#[derive(Clone, Debug)]
pub struct Watch {
    counters: Counters,
    /// Since when no counter moved.
    frozen_since: Instant,
    /// Since when its token counters stand still. Unlike those of requests, they move for no arrival.
    still_since: Instant,
    /// First and last of an unbroken row of idle readings.
    idle: Option<(Instant, Instant)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counters {
    progress: Option<u64>,
    running: Option<u32>,
    waiting: Option<u32>,
    kv_used_ratio: Option<f64>,
}

impl Counters {
    /// Takes the new readings; what could not be read stays. True when one moved.
    fn take(&mut self, load: &Load) -> bool {
        let before = *self;
        self.progress = load.progress.or(self.progress);
        self.running = load.running.or(self.running);
        self.waiting = load.waiting.or(self.waiting);
        self.kv_used_ratio = load.kv_used_ratio.or(self.kv_used_ratio);
        *self != before
    }
}

impl Watch {
    /// A server that is watched from now on.
    pub fn new(now: Instant) -> Self {
        Self { counters: Counters::default(), frozen_since: now, still_since: now, idle: None }
    }

    /// Looks at a server. `Some` when it is hung.
    pub fn look(&mut self, signs: &Signs<'_>, rules: Rules, now: Instant) -> Option<Silence> {
        let progress = self.counters.progress;
        if self.counters.take(signs.load) {
            self.frozen_since = now;
        }
        if self.counters.progress != progress {
            self.still_since = now;
        }
        let idle_since = self.idle_since(signs.gpus, rules, now);
        let since = |then: Instant| now.saturating_duration_since(then);
        let silence = Silence {
            busy: since(signs.busy_since?),
            silent: since(signs.last_byte),
            frozen: since(self.frozen_since),
            idle: since(idle_since?),
        };
        let all = [silence.busy, silence.silent, silence.frozen, silence.idle];
        all.iter().all(|time| *time >= rules.after).then_some(silence)
    }

    /// Whether its token counters moved, or a byte came, since a moment at which it was called hung.
    pub fn moved_since(&self, hung_at: Instant, last_byte: Instant) -> bool {
        last_byte > hung_at || self.still_since > hung_at
    }

    fn idle_since(&mut self, sight: Sight, rules: Rules, now: Instant) -> Option<Instant> {
        let Sight::Busiest { percent, at } = sight else {
            self.idle = None;
            return None;
        };
        if percent > IDLE_MAX_PERCENT || now.saturating_duration_since(at) > rules.gap_max {
            self.idle = None;
            return None;
        }
        let unbroken =
            |(_, last): &(Instant, Instant)| at.saturating_duration_since(*last) <= rules.gap_max;
        let first = self.idle.filter(unbroken).map_or(at, |(first, _)| first);
        self.idle = Some((first, at));
        Some(first)
    }
}

/// How busy the GPUs of one server are. `mine` are its processes: where the driver tells the work of each of
/// them, a neighbour's on the same card does not count. Otherwise all work on its cards counts as its own.
pub fn sight<'a>(
    cards: impl IntoIterator<Item = &'a GpuId>,
    mine: &[u32],
    gpus: &[GpuState],
    at: Instant,
) -> Sight {
    let mut busiest = None;
    for card in cards {
        let found = gpus.iter().find(|gpu| gpu.id == *card);
        let Some(percent) = found.and_then(|gpu| percent(gpu, mine)) else { return Sight::Unknown };
        busiest = busiest.max(Some(percent));
    }
    busiest.map_or(Sight::Unknown, |percent| Sight::Busiest { percent, at })
}

fn percent(gpu: &GpuState, mine: &[u32]) -> Option<u32> {
    if gpu.answering != Answering::Yes {
        return None;
    }
    let processes = gpu.processes.iter().flatten();
    let (own, others): (Vec<&GpuProcess>, Vec<&GpuProcess>) =
        processes.partition(|process| mine.contains(&process.pid));
    let told = own.iter().filter_map(|process| process.utilisation_percent);
    let (told_of, most) = (told.clone().count(), told.max().unwrap_or(0));
    let others = others.iter().filter_map(|process| process.utilisation_percent);
    let others = others.fold(0u32, u32::saturating_add);
    match gpu.utilisation_percent {
        // Drivers tell of those that computed. So one that is not told did nothing, if others are told whose work
        // is most of the card's; else it may be the one that is missing.
        Some(card) if !own.is_empty() && others > 0 && others.saturating_mul(2) >= card => {
            Some(most.min(card))
        }
        // A card that does nothing does nothing for anybody.
        Some(card) if !own.is_empty() && told_of == own.len() => Some(most.min(card)),
        None if !own.is_empty() && told_of == own.len() => Some(most),
        card => card,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { after: Duration::from_secs(30), gap_max: Duration::from_secs(5) };

    /// A server as a test tells it, second by second.
    struct Story {
        start: Instant,
        watch: Watch,
        busy_since: Option<Instant>,
        last_byte: Instant,
        load: Load,
        percent: Option<u32>,
    }

    impl Story {
        fn new() -> Self {
            let start = Instant::now();
            Self {
                start,
                watch: Watch::new(start),
                busy_since: Some(start),
                last_byte: start,
                load: Load { progress: Some(1), ..Load::default() },
                percent: Some(0),
            }
        }

        fn at(&self, second: u64) -> Instant {
            self.start + Duration::from_secs(second)
        }

        /// One look at this second, with a reading of this moment.
        fn look(&mut self, second: u64) -> Option<Silence> {
            let now = self.at(second);
            let gpus =
                self.percent.map_or(Sight::Unknown, |percent| Sight::Busiest { percent, at: now });
            let (busy_since, last_byte) = (self.busy_since, self.last_byte);
            let signs = Signs { busy_since, last_byte, load: &self.load, gpus };
            self.watch.look(&signs, RULES, now)
        }

        /// The first second at which it is hung.
        fn hung_at(&mut self, until: u64, mut change: impl FnMut(&mut Self, u64)) -> Option<u64> {
            (0..=until).find(|second| {
                change(self, *second);
                self.look(*second).is_some()
            })
        }
    }

    #[test]
    fn all_signs_for_the_whole_bound_and_no_sooner() {
        assert_eq!(Story::new().hung_at(100, |_, _| {}), Some(30));
        let silence = {
            let mut story = Story::new();
            story.hung_at(30, |_, _| {});
            story.look(31).unwrap()
        };
        assert_eq!(silence.idle, Duration::from_secs(31));
        assert!(silence.to_string().starts_with("requests for 31.0 s, no byte for 31.0 s"));
    }

    #[test]
    fn each_sign_that_breaks_starts_anew() {
        // A request arrives at second 20 on a server that has been silent for ever.
        let arrives = |story: &mut Story, second| {
            story.busy_since = (second >= 20).then(|| story.at(20));
        };
        assert_eq!(Story::new().hung_at(100, arrives), Some(50));
        let byte = |story: &mut Story, second| {
            if second == 25 {
                story.last_byte = story.at(25);
            }
        };
        assert_eq!(Story::new().hung_at(100, byte), Some(55));
        let step = |story: &mut Story, second: u64| story.load.progress = Some(second.min(12));
        assert_eq!(Story::new().hung_at(100, step), Some(42));
        let queue =
            |story: &mut Story, second: u64| story.load.waiting = Some(u32::from(second > 7));
        assert_eq!(Story::new().hung_at(100, queue), Some(38));
        let work =
            |story: &mut Story, second: u64| story.percent = Some(if second == 9 { 80 } else { 0 });
        assert_eq!(Story::new().hung_at(100, work), Some(40));
    }

    #[test]
    fn a_burst_of_work_in_every_bound_is_life() {
        let bursts = |story: &mut Story, second: u64| {
            story.percent = Some(if second.is_multiple_of(29) { 100 } else { 0 });
        };
        assert_eq!(Story::new().hung_at(3600, bursts), None);
    }

    #[test]
    fn what_is_not_seen_is_no_sign() {
        assert_eq!(Story::new().hung_at(3600, |story, _| story.percent = None), None);
        // One second without sight in each bound is enough.
        let blinks = |story: &mut Story, second: u64| {
            story.percent = (!second.is_multiple_of(29)).then_some(0);
        };
        assert_eq!(Story::new().hung_at(3600, blinks), None);
    }

    #[test]
    fn readings_that_lie_far_apart_or_are_old_prove_nothing() {
        let mut story = Story::new();
        for second in (0..600).step_by(6) {
            assert_eq!(story.look(second), None, "six seconds apart");
        }
        // The driver hangs: the last reading stays what it was.
        let mut story = Story::new();
        assert_eq!(story.hung_at(20, |_, _| {}), None);
        let (busy_since, last_byte) = (story.busy_since, story.last_byte);
        let gpus = Sight::Busiest { percent: 0, at: story.at(20) };
        let load = story.load.clone();
        for second in 21..600 {
            let signs = Signs { busy_since, last_byte, load: &load, gpus };
            assert_eq!(story.watch.look(&signs, RULES, story.at(second)), None, "{second}");
        }
    }

    #[test]
    fn counters_that_cannot_be_read_stand_still() {
        let unread = |story: &mut Story, second: u64| {
            let progress = (second < 10 || second.is_multiple_of(3)).then_some(1);
            story.load = Load { progress, ..Load::default() };
        };
        assert_eq!(Story::new().hung_at(100, unread), Some(30));
    }

    /// Our own trial on a hung server, and the requests that were taken back, move its counts of requests.
    #[test]
    fn it_comes_back_by_tokens_and_bytes_only() {
        let mut story = Story::new();
        assert_eq!(story.hung_at(100, |_, _| {}), Some(30));
        let hung_at = story.at(30);
        story.load.waiting = Some(1);
        story.look(31);
        assert!(!story.watch.moved_since(hung_at, story.last_byte));
        story.load.progress = Some(2);
        story.look(32);
        assert!(story.watch.moved_since(hung_at, story.last_byte));
        assert!(Watch::new(story.start).moved_since(hung_at, story.at(31)));
    }

    #[test]
    fn zero_seconds_means_never() {
        let gpu = config::Gpu::default();
        assert_eq!(Rules::of(&gpu), Some(RULES));
        assert_eq!(Rules::of(&config::Gpu { hung_after: Duration::ZERO, ..gpu }), None);
    }

    fn card(id: &str, percent: Option<u32>, processes: &[(u32, Option<u32>)]) -> GpuState {
        let mut gpu = GpuState::blank(id.into(), 0, "card".to_owned());
        gpu.utilisation_percent = percent;
        let process = |(pid, utilisation_percent): &(u32, Option<u32>)| GpuProcess {
            pid: *pid,
            utilisation_percent: *utilisation_percent,
            ..GpuProcess::default()
        };
        gpu.processes = Some(processes.iter().map(process).collect());
        gpu
    }

    #[test]
    fn the_busiest_card_counts_and_a_neighbours_work_does_not() {
        let at = Instant::now();
        let see = |gpus: &[GpuState], mine: &[u32]| {
            let ids: Vec<GpuId> = gpus.iter().map(|gpu| gpu.id.clone()).collect();
            match sight(&ids, mine, gpus, at) {
                Sight::Busiest { percent, .. } => Some(percent),
                Sight::Unknown => None,
            }
        };
        let two = [card("a", Some(0), &[]), card("b", Some(70), &[])];
        assert_eq!(see(&two, &[1]), Some(70));
        let neighbour = [card("a", Some(90), &[(1, Some(0)), (2, Some(90))])];
        assert_eq!(see(&neighbour, &[1]), Some(0));
        assert_eq!(see(&neighbour, &[2]), Some(90));
        let silent = [card("a", Some(90), &[(1, None), (2, Some(70))])];
        assert_eq!(see(&silent, &[1]), Some(0), "the neighbour's work is told, and is the card's");
        let unexplained = [card("a", Some(90), &[(1, None), (2, Some(30))])];
        assert_eq!(see(&unexplained, &[1]), Some(90), "who does the rest?");
        let half_told = [card("a", Some(90), &[(1, Some(0)), (3, None)])];
        assert_eq!(see(&half_told, &[1, 3]), Some(90));
        assert_eq!(see(&half_told, &[]), Some(90), "whose work it is is not known");
        assert_eq!(see(&[card("a", None, &[(1, None)])], &[1]), None);
        assert_eq!(see(&[], &[1]), None, "no card is no idle card");
        let mut lost = card("a", Some(0), &[]);
        lost.answering = Answering::Lost("gone".to_owned());
        assert_eq!(see(&[card("b", Some(0), &[]), lost], &[]), None);
    }
}
