//! `[screen]`: how texts are screened on their way in and scored on their way out, and for whom.

use crate::ids::{ModelName, TenantId};
use serde::Serialize;
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

mod read;

pub(super) use read::screen;

/// `[screen]`
#[derive(Clone, Debug, PartialEq)]
pub struct Screen {
    /// The folder with our own models; `None` finds it beside the program.
    pub models_folder: Option<PathBuf>,
    /// Our own models run; else only the exact checks and the models that are named.
    pub own_models: bool,
    /// Which runtime runs our own.
    pub runtime: ScreenRuntime,
    /// ONNX Runtime's library; `None` finds it.
    pub onnx_library: Option<PathBuf>,
    /// The file of pattern rules; `None` has none.
    pub rules: Option<PathBuf>,
    /// Threads for each model.
    pub threads: usize,
    /// Texts that wait for a model at once.
    pub waiting_max: usize,
    /// Windows that a model runs together.
    pub batch_max: usize,
    /// Windows of one text that a model looks at.
    pub windows_max: usize,
    /// Longest time that screening may add to a request.
    pub budget: Duration,
    /// What becomes of a request where a model is missing, slow or wrong.
    pub on_failure: OnFailure,
    /// Strings that no answer may hold: put them into system prompts to see leaks.
    pub canaries: Vec<String>,
    /// Files with text that answers may repeat although a system prompt has it too: questions and answers for
    /// customers, product facts.
    pub quotable: Vec<PathBuf>,
    /// Models that the operator brings.
    pub models: Vec<ScreenModel>,
    /// What holds where no policy says otherwise.
    pub usual: ScreenPolicy,
    /// Policies of tenants and models; the first that fits holds.
    pub policies: Vec<ScreenPolicy>,
}

/// Which runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScreenRuntime {
    /// ONNX Runtime where it is here, else candle.
    Auto,
    /// Pure Rust.
    Candle,
    /// ONNX Runtime only.
    Onnx,
}

/// What becomes of a request that a model could not judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// It goes on; the alarm rings.
    Open,
    /// It is refused, where the policy would refuse at all.
    Closed,
}

/// What a model judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Texts on their way in.
    Input,
    /// Texts on their way out.
    Output,
}

/// `[[screen.models]]`
#[derive(Clone, Debug, PartialEq)]
pub struct ScreenModel {
    /// Its name in metrics and status.
    pub name: String,
    /// What it judges.
    pub task: Task,
    /// Its folder.
    pub folder: PathBuf,
    /// Which runtime runs it.
    pub runtime: ScreenRuntime,
    /// Its ONNX file inside the folder; `None` finds it.
    pub file: Option<PathBuf>,
    /// Which of its labels stand for which of ours.
    pub labels: BTreeMap<String, Vec<String>>,
    /// Tokens of a window; `None` takes the model's own.
    pub window_tokens: Option<usize>,
}

/// What is done about a text, from the weakest to the strongest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Nobody looks.
    Off,
    /// It is measured, and nobody is told.
    Shadow,
    /// The answer's head says so.
    Flag,
    /// What is wrong is taken out.
    Sanitise,
    /// It does not pass.
    Refuse,
}

impl Action {
    /// All of them, the weakest first.
    pub const ALL: [Self; 5] = [Self::Off, Self::Shadow, Self::Flag, Self::Sanitise, Self::Refuse];

    /// Its name in configuration, headers and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Shadow => "shadow",
            Self::Flag => "flag",
            Self::Sanitise => "sanitise",
            Self::Refuse => "refuse",
        }
    }

    /// The action of a name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.as_str() == name)
    }
}

/// How often benign texts may be taken for bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sensitivity {
    /// One in a hundred.
    Usual,
    /// One in a thousand.
    Sure,
}

/// Which texts the second, larger model looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecondStage {
    /// None.
    Never,
    /// Those of which the first says too little.
    Grey,
    /// All.
    Always,
}

/// How streams are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Nobody looks.
    Off,
    /// Measured; never held up, never changed.
    Observe,
    /// Held back by a bounded lag, so that nothing that is stopped has left.
    Hold,
    /// Passed on at once, and stopped when something is found.
    Cut,
}

impl Watch {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Off, Self::Observe, Self::Hold, Self::Cut];

    /// Its name in configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Observe => "observe",
            Self::Hold => "hold",
            Self::Cut => "cut",
        }
    }
}

/// `[screen.input]`: what becomes of texts on their way in.
#[derive(Clone, Debug, PartialEq)]
pub struct InputPolicy {
    /// The strongest thing that is done.
    pub mode: Action,
    /// How often benign texts may be taken for bad.
    pub sensitivity: Sensitivity,
    /// What the second stage looks at.
    pub second_stage: SecondStage,
    /// Thresholds by label, in place of the model's own.
    pub thresholds: BTreeMap<String, f64>,
    /// Thresholds for injection by where a text comes from, in place of the model's own.
    pub origins: BTreeMap<String, f64>,
    /// Actions by label or by kind of secret, in place of the usual ones.
    pub actions: BTreeMap<String, Action>,
}

/// `[screen.output]`: what becomes of answers.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputPolicy {
    /// How they are watched.
    pub watch: Watch,
    /// Most tokens that are held back.
    pub hold_tokens: u32,
    /// Longest time that a token is held back.
    pub hold: Duration,
    /// Thresholds by label, in place of the model's own.
    pub thresholds: BTreeMap<String, f64>,
    /// Actions by label, in place of the usual ones.
    pub actions: BTreeMap<String, Action>,
}

/// `[[screen.policies]]`, or what holds without one.
#[derive(Clone, Debug, PartialEq)]
pub struct ScreenPolicy {
    /// Its name in records.
    pub name: String,
    /// Tenants that it is for; empty means all.
    pub tenants: Vec<TenantId>,
    /// Models that it is for; empty means all.
    pub models: Vec<ModelName>,
    /// Texts on their way in.
    pub input: InputPolicy,
    /// Answers.
    pub output: OutputPolicy,
}

impl Screen {
    /// The policy for a tenant's requests to a model.
    pub fn policy(&self, tenant: &TenantId, model: &ModelName) -> &ScreenPolicy {
        let fits = |policy: &&ScreenPolicy| {
            (policy.tenants.is_empty() || policy.tenants.contains(tenant))
                && (policy.models.is_empty() || policy.models.contains(model))
        };
        self.policies.iter().find(fits).unwrap_or(&self.usual)
    }

    /// Whether any policy looks at texts on their way in.
    pub fn reads_input(&self) -> bool {
        self.all().any(|policy| policy.input.mode != Action::Off)
    }

    /// Whether any policy watches answers.
    pub fn watches_output(&self) -> bool {
        self.all().any(|policy| policy.output.watch != Watch::Off)
    }

    fn all(&self) -> impl Iterator<Item = &ScreenPolicy> {
        self.policies.iter().chain([&self.usual])
    }
}
