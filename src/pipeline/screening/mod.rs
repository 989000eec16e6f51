//! Screening: the exact checks and the classifiers joined, on the way in and on the way out.

mod input;
mod judge;
mod look;
mod memo;
mod moderations;
mod names;
mod output;
mod parts;
mod quality;
mod recent;
mod score;
mod strand;

pub use input::{OVERRIDE, Screened, TELL};
pub use judge::{Judge, Judged};
pub(super) use output::text_of;
pub use output::{Answered, Guard, Plan, Stopped};
pub use recent::{Verdicted, Verdicts};
pub use score::Scored;

use crate::{
    classify::{self, Bars, Library, Model, Pool, Runtime, Spec},
    config::{Screen, ScreenRuntime, SecondStage, Task},
    screen::{
        Inspector, Origin, Passage, Rules, Scores,
        output::leak::{SAID_MAX, Secretive, WORDS},
    },
};
use memo::{Memo, key_of_prompts};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Failures in a row after which a model rests.
const FAILURES_MAX: u32 = 5;
/// How long it rests.
const REST: Duration = Duration::from_secs(10);

/// Above which probability a label counts where a model does not say it: usual and sure.
const UNTOLD: Bars = Bars { usual: 0.5, sure: 0.9 };

/// The names of our own models: folders below the models' folder.
const FIRST: &str = "injection-a";
const SECOND: &str = "injection-b";
const OUTPUT: &str = "output";

/// Everything that screens.
#[derive(Debug)]
pub struct Screening {
    /// What the operator said.
    pub settings: Screen,
    /// The classifiers.
    pub models: Arc<Models>,
    /// The exact checks.
    pub inspector: Inspector,
    prompts: Memo<Arc<Secretive>>,
    /// What answers may repeat.
    quotable: Vec<String>,
}

/// The classifiers, with their threads. A reload that changes nothing about them keeps them.
#[derive(Debug, Default)]
pub struct Models {
    /// Our first stage for input.
    pub first: Option<Judge>,
    /// Our second stage.
    pub second: Option<Judge>,
    /// Our model for output.
    pub output: Option<Judge>,
    /// Models that the operator brought.
    pub brought: Vec<Judge>,
    /// Models that should be here and are not.
    pub absent: Vec<Absent>,
    /// ONNX Runtime's file, or why it is not there.
    pub library: Option<Result<PathBuf, String>>,
    memo: Memo<Scores>,
    made_of: Option<Screen>,
}

/// A model that should be here and is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent {
    /// Its name.
    pub name: String,
    /// What it would judge.
    pub task: Task,
    /// Why it is not here.
    pub why: String,
}

/// Why screening could not be set up. What was before goes on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SetupError(String);

impl Screening {
    /// Sets up what the settings ask for. Models that cannot be loaded are absent, and the policy for failures
    /// holds; rules that cannot be read are an error. Reads files and runs models: not for async threads.
    ///
    /// # Errors
    /// The rules file is wrong; the text has every problem.
    pub fn load(settings: &Screen, before: Option<&Self>) -> Result<Self, SetupError> {
        let rules = match &settings.rules {
            Some(path) => read_rules(path)?,
            None => Rules::empty(),
        };
        let needed = settings.reads_input() || settings.watches_output();
        let kept = before.map(|before| &before.models);
        let models = match kept {
            Some(models) if models.fits(settings) => Arc::clone(models),
            _ if !needed => Arc::default(),
            _ => Arc::new(Models::load(settings)),
        };
        let quotable = read_quotable(&settings.quotable)?;
        Ok(Self {
            settings: settings.clone(),
            models,
            inspector: Inspector::new(rules),
            prompts: Memo::default(),
            quotable,
        })
    }

    /// What an operator should hear of after [`Screening::load`]: models that are not here, names that nothing
    /// answers to.
    pub fn warnings(&self) -> Vec<String> {
        let absent = self.models.absent.iter();
        let absent = absent.map(|absent| format!("classifier `{}`: {}", absent.name, absent.why));
        absent.chain(self.unknown_names()).collect()
    }

    /// Screening with these models and checks.
    pub fn with(settings: &Screen, models: Models, inspector: Inspector) -> Self {
        let (models, prompts) = (Arc::new(models), Memo::default());
        Self { settings: settings.clone(), models, inspector, prompts, quotable: Vec::new() }
    }

    /// What answers to a request must not repeat: its own system prompts, and the operator's canaries. `None` where
    /// there is nothing. Requests with the same system prompts share it.
    pub(super) fn secretive(&self, passages: &[Passage]) -> Option<Arc<Secretive>> {
        let own = passages.iter().filter(|passage| passage.origin == Origin::System);
        let own: Vec<&str> = own.map(|passage| passage.text.as_str()).collect();
        if own.is_empty() && self.settings.canaries.is_empty() {
            return None;
        }
        let key = key_of_prompts(&own);
        if let Some(known) = self.prompts.get(key) {
            return Some(known);
        }
        let fresh = self.secretive_of(&own)?;
        self.prompts.keep(key, Arc::clone(&fresh));
        Some(fresh)
    }

    /// The index of these system prompts, made anew.
    fn secretive_of(&self, prompts: &[&str]) -> Option<Arc<Secretive>> {
        if prompts.is_empty() && self.settings.canaries.is_empty() {
            return None;
        }
        let quotable: Vec<&str> = self.quotable.iter().map(String::as_str).collect();
        let all = Secretive::new(prompts, &self.settings.canaries, WORDS);
        Some(Arc::new(all.allowing(&quotable)))
    }

    /// Nothing: neither models nor rules.
    pub fn off(settings: &Screen) -> Self {
        Self::with(settings, Models::default(), Inspector::new(Rules::empty()))
    }
}

/// Reads what answers may repeat: what would not be looked at is refused.
fn read_quotable(paths: &[PathBuf]) -> Result<Vec<String>, SetupError> {
    let (mut texts, mut bytes) = (Vec::new(), 0);
    for path in paths {
        let failed = |what: String| SetupError(format!("{}: {what}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        bytes += text.len();
        if bytes > SAID_MAX {
            let what = format!("screen.quotable has {bytes} bytes with it; allowed are {SAID_MAX}");
            return Err(failed(what));
        }
        texts.push(text);
    }
    Ok(texts)
}

/// Reads and checks a file of pattern rules.
///
/// # Errors
/// Every problem in it, as text.
fn read_rules(path: &Path) -> Result<Rules, SetupError> {
    let failed = |what: String| SetupError(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let base = path.parent().unwrap_or(Path::new("."));
    let rules = Rules::parse(&text, base).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        failed(lines.join("\n"))
    })?;
    let failures: Vec<String> = rules.self_test().iter().map(ToString::to_string).collect();
    if failures.is_empty() { Ok(rules) } else { Err(failed(failures.join("\n"))) }
}

impl Models {
    /// Only a first stage.
    pub fn of(first: Judge) -> Self {
        Self { first: Some(first), ..Self::default() }
    }

    /// Whether anybody asked for models.
    pub(super) const fn loaded(&self) -> bool {
        self.made_of.is_some()
    }

    /// Whether these are the models that the settings ask for.
    fn fits(&self, settings: &Screen) -> bool {
        let same = |made: &Screen| {
            made.models_folder == settings.models_folder
                && made.own_models == settings.own_models
                && made.runtime == settings.runtime
                && made.onnx_library == settings.onnx_library
                && made.models == settings.models
                && (made.threads, made.waiting_max, made.batch_max)
                    == (settings.threads, settings.waiting_max, settings.batch_max)
                && made.reads_input() == settings.reads_input()
                && made.watches_output() == settings.watches_output()
        };
        // What was absent may be there now.
        self.absent.is_empty() && self.made_of.as_ref().is_some_and(same)
    }

    /// Loads what can be loaded.
    pub fn load(settings: &Screen) -> Self {
        let mut models = Self { made_of: Some(settings.clone()), ..Self::default() };
        let asks_onnx = settings.runtime != ScreenRuntime::Candle
            || settings.models.iter().any(|model| model.runtime != ScreenRuntime::Candle);
        let library = match asks_onnx {
            true => {
                Library::find(settings.onnx_library.as_deref()).map_err(|error| error.to_string())
            }
            false => Err("not asked for".to_owned()),
        };
        models.library = asks_onnx.then(|| {
            library.as_ref().map(|library| library.path().to_owned()).map_err(Clone::clone)
        });
        if settings.own_models {
            models.load_own(settings, &library);
        }
        for brought in &settings.models {
            let spec = Spec {
                folder: brought.folder.clone(),
                runtime: runtime(brought.runtime),
                file: brought.file.clone(),
                labels: brought.labels.clone(),
                window_tokens: brought.window_tokens,
            };
            if let Some(judge) =
                models.load_one(&brought.name, brought.task, &spec, settings, &library)
            {
                models.brought.push(judge);
            }
        }
        models
    }

    fn load_own(&mut self, settings: &Screen, library: &Result<Library, String>) {
        if settings.reads_input() {
            self.first = self.load_ours(FIRST, Task::Input, settings, library);
            self.second = self.load_ours(SECOND, Task::Input, settings, library);
        }
        if settings.watches_output() {
            self.output = self.load_ours(OUTPUT, Task::Output, settings, library);
        }
    }

    fn load_ours(
        &mut self,
        name: &str,
        task: Task,
        settings: &Screen,
        library: &Result<Library, String>,
    ) -> Option<Judge> {
        let Some(folder) = settings.models_folder.clone().or_else(own_folder) else {
            let why = "the models' folder was not found; set screen.models_folder".to_owned();
            self.absent.push(Absent { name: name.to_owned(), task, why });
            return None;
        };
        let runtime = runtime(settings.runtime);
        let spec = Spec { folder: folder.join(name), runtime, ..Spec::default() };
        self.load_one(name, task, &spec, settings, library)
    }

    fn load_one(
        &mut self,
        name: &str,
        task: Task,
        spec: &Spec,
        settings: &Screen,
        library: &Result<Library, String>,
    ) -> Option<Judge> {
        let library = library.as_ref().map_err(String::as_str);
        let limits = classify::Limits {
            threads: settings.threads,
            waiting_max: settings.waiting_max,
            batch_max: settings.batch_max,
            failures_max: FAILURES_MAX,
            rest: REST,
        };
        let loaded =
            Model::load(spec, library).map_err(|error| error.to_string()).and_then(|model| {
                let model = Arc::new(model);
                let pool = Pool::of(&model, name, limits).map_err(|error| error.to_string())?;
                Ok(Judge::new(name, task, model, pool))
            });
        loaded
            .inspect_err(|why| {
                tracing::error!(
                    model = name,
                    why,
                    "a classifier is absent; the policy for failures holds"
                );
                self.absent.push(Absent { name: name.to_owned(), task, why: why.clone() });
            })
            .ok()
    }

    /// The probabilities from which an injection counts: of both stages together where both are here.
    pub fn bars(&self, stage: SecondStage) -> Bars {
        let own = |judge: &Judge| judge.model.thresholds().labels.values().next().copied();
        let both = self.second.as_ref().and(self.first.as_ref());
        let both = both.and_then(|first| match stage {
            SecondStage::Never => None,
            SecondStage::Grey => first.model.thresholds().combined,
            SecondStage::Always => first.model.thresholds().strict,
        });
        let one = || self.first.as_ref().or(self.second.as_ref()).and_then(own);
        both.or_else(one).unwrap_or(UNTOLD)
    }

    /// The same for a label of the operator's models.
    pub fn bars_of(&self, label: &str) -> Bars {
        let of = |judge: &Judge| judge.model.thresholds().labels.get(label).copied();
        self.brought.iter().find_map(of).unwrap_or(UNTOLD)
    }

    /// Everybody who judges answers: our own model, then the operator's.
    pub(super) fn of_answers(&self) -> impl Iterator<Item = &Judge> {
        let brought = self.brought.iter().filter(|judge| judge.task == Task::Output);
        self.output.iter().chain(brought)
    }

    /// Whether it is our own model for answers.
    pub(super) fn is_ours(&self, judge: &Judge) -> bool {
        self.output.as_ref().is_some_and(|own| std::ptr::eq(own, judge))
    }

    /// Whose word a finding in an answer is, for records.
    pub(super) fn kind_of(&self, judge: &Judge) -> String {
        if self.is_ours(judge) { "model".to_owned() } else { judge.name.clone() }
    }

    /// The probability from which a label of an answer counts. `None`: it is a measure only.
    pub(super) fn bar_of_answer(&self, judge: &Judge, label: &str) -> Option<f32> {
        let told = judge.model.thresholds().labels.get(label).copied();
        told.or((!self.is_ours(judge)).then_some(UNTOLD)).map(|bars| bars.usual)
    }

    /// Whether a model that would judge such texts is not here.
    pub fn lacks(&self, task: Task) -> bool {
        self.absent.iter().any(|absent| absent.task == task)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Judge> {
        [&self.first, &self.second, &self.output].into_iter().flatten().chain(&self.brought)
    }
}

fn runtime(asked: ScreenRuntime) -> Runtime {
    match asked {
        ScreenRuntime::Auto => Runtime::Auto,
        ScreenRuntime::Candle => Runtime::Candle,
        ScreenRuntime::Onnx => Runtime::Onnx,
    }
}

/// Where our own models are: beside the program (a build's folder, an unpacked package), or where packages put
/// them.
pub fn own_folder() -> Option<PathBuf> {
    const HERE: &str = "models";
    let mut places = Vec::new();
    if let Ok(program) = std::env::current_exe() {
        places.extend(program.ancestors().skip(1).take(4).map(|folder| folder.join(HERE)));
    }
    places.push(PathBuf::from("/usr/share/berthd").join(HERE));
    places.into_iter().find(|place| place.join(FIRST).join("config.json").is_file())
}
