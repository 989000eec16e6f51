//! What was screened and scored: verdicts, time, the grey zone, and what the classifiers do.

use super::{Bounds, Histograms, IntGauge, ModelLabel};
use crate::{
    classify::Pulse,
    config::Action,
    ids::ModelName,
    pipeline::screening::{Answered, Judged, Models, Screened},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabels {
    label: String,
    action: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShadowLabels {
    mode: &'static str,
    stricter: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TextLabels {
    zone: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassifierLabel {
    classifier: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassifierFailure {
    classifier: String,
    cause: &'static str,
}

/// Seconds that screening adds: from a remembered text to a document.
const SCREEN_BOUNDS: &[f64] =
    &[0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0];
/// Quality scores.
const QUALITY_BOUNDS: &[f64] = &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
/// Labels that are told apart: operators' rules may bring any number of their own.
const LABELS_MAX: usize = 64;

/// The families.
#[derive(Debug)]
pub(super) struct Screens {
    inputs: Family<VerdictLabels, Counter>,
    outputs: Family<VerdictLabels, Counter>,
    shadow: Family<ShadowLabels, Counter>,
    texts: Family<TextLabels, Counter>,
    seconds: Histogram,
    quality: Histograms<ModelLabel>,
    up: Family<ClassifierLabel, IntGauge>,
    waiting: Family<ClassifierLabel, IntGauge>,
    windows: Family<ClassifierLabel, IntGauge>,
    runs: Family<ClassifierLabel, IntGauge>,
    failures: Family<ClassifierFailure, IntGauge>,
    labels: std::sync::Mutex<std::collections::HashSet<String>>,
}

impl Screens {
    pub(super) fn new(r: &mut Registry) -> Self {
        let seconds = Histogram::new(SCREEN_BOUNDS.iter().copied());
        r.register_with_unit(
            "screen",
            "Time that screening added to a request",
            Unit::Seconds,
            seconds.clone(),
        );
        let quality = Family::new_with_constructor(Bounds(QUALITY_BOUNDS));
        r.register("answer_quality", "Quality scores of answers, 0 to 1", quality.clone());
        Self {
            inputs: family!(r, "screen_inputs", "Requests screened, by deciding label and action"),
            outputs: family!(r, "screen_outputs", "Answers watched, by strongest label and action"),
            shadow: family!(
                r,
                "screen_shadow_disagreements",
                "Requests to which a stricter mode would have done more"
            ),
            texts: family!(r, "screen_texts", "Texts judged, by zone of the first stage"),
            up: family!(r, "classifier_up", "1 when the classifier is loaded and does not rest"),
            waiting: family!(r, "classifier_waiting", "Texts that wait for the classifier"),
            windows: family!(r, "classifier_windows", "Windows that the classifier has run"),
            runs: family!(r, "classifier_runs", "Runs of the classifier, each of one batch"),
            failures: family!(r, "classifier_failures", "Failures of the classifier, by cause"),
            seconds,
            quality,
            labels: std::sync::Mutex::default(),
        }
    }

    fn label(&self, label: Option<&str>) -> String {
        let Some(label) = label else { return "none".to_owned() };
        let mut known = self.labels.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !known.contains(label) {
            if known.len() >= LABELS_MAX {
                return "other".to_owned();
            }
            known.insert(label.to_owned());
        }
        label.to_owned()
    }

    pub(super) fn input(&self, screened: &Screened, wished: Action, judged: &[Judged]) {
        let action = screened.action.unwrap_or(Action::Off);
        let label = self.label(screened.label.as_deref());
        self.inputs.get_or_create(&VerdictLabels { label, action: action.as_str() }).inc();
        if wished > action {
            let labels = ShadowLabels { mode: action.as_str(), stricter: wished.as_str() };
            self.shadow.get_or_create(&labels).inc();
        }
        self.seconds.observe(screened.took.as_secs_f64());
        for one in judged {
            let zone = match one {
                Judged { failure: Some(_), .. } => "failed",
                Judged { remembered: true, .. } => "remembered",
                Judged { grey: true, .. } => "grey",
                _ => "clear",
            };
            self.texts.get_or_create(&TextLabels { zone }).inc();
        }
    }

    pub(super) fn output(&self, model: &ModelName, answered: &Answered) {
        let label = self.label(answered.label.as_deref());
        let action = answered.action.unwrap_or(Action::Off).as_str();
        self.outputs.get_or_create(&VerdictLabels { label, action }).inc();
        if let Some(score) = answered.quality {
            let labels = ModelLabel { model: model.to_string() };
            self.quality.get_or_create(&labels).observe(f64::from(score));
        }
    }

    pub(super) fn set(&self, models: &Models) {
        self.up.clear();
        for absent in &models.absent {
            self.up.get_or_create(&ClassifierLabel { classifier: absent.name.clone() }).set(0);
        }
        for judge in models.all() {
            let Pulse { windows, runs, failures, waiting, resting, .. } = judge.pool.pulse();
            let label = ClassifierLabel { classifier: judge.name.clone() };
            let whole = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            self.up.get_or_create(&label).set(i64::from(!resting));
            self.waiting.get_or_create(&label).set(whole(waiting as u64));
            self.windows.get_or_create(&label).set(whole(windows));
            self.runs.get_or_create(&label).set(whole(runs));
            for (cause, count) in failures {
                let labels = ClassifierFailure { classifier: judge.name.clone(), cause };
                self.failures.get_or_create(&labels).set(whole(count));
            }
        }
    }
}
