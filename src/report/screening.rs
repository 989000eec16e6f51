//! The part of the status report that tells of screening.

use crate::pipeline::screening::Screening;
use serde::Serialize;

/// Screening, in short.
#[derive(Debug, Serialize)]
pub struct Screens {
    /// What is done about requests where no policy says otherwise.
    pub input: &'static str,
    /// How answers are watched where no policy says otherwise.
    pub output: &'static str,
    /// Policies of tenants and models.
    pub policies: usize,
    /// Pattern rules.
    pub rules: usize,
    /// ONNX Runtime's file, or why it is not there; absent where nobody asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub onnx_runtime: Option<String>,
    /// The classifiers.
    pub models: Vec<Classifier>,
}

/// One classifier.
#[derive(Debug, Serialize)]
pub struct Classifier {
    /// Its name.
    pub name: String,
    /// `ready`, `resting` or `absent`.
    pub state: &'static str,
    /// `candle` or `onnx`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<&'static str>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its labels.
    pub labels: Vec<String>,
    /// Texts that it judged.
    pub texts: u64,
    /// Windows of them.
    pub windows: u64,
    /// Texts that wait for it.
    pub waiting: usize,
    /// Times that it failed.
    pub failures: u64,
    /// Why it is absent, or what went wrong last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Tells of screening as it is now.
pub fn screens(screening: &Screening) -> Screens {
    let ready = screening.models.all().map(|judge| {
        let pulse = judge.pool.pulse();
        Classifier {
            name: judge.name.clone(),
            state: if pulse.resting { "resting" } else { "ready" },
            runtime: Some(judge.model.runtime().as_str()),
            version: Some(judge.model.thresholds().version.clone()).filter(|text| !text.is_empty()),
            labels: judge.model.plan().labels.clone(),
            texts: pulse.texts,
            windows: pulse.windows,
            waiting: pulse.waiting,
            failures: pulse.failures.iter().map(|(_, count)| count).sum(),
            why: pulse.last_failure,
        }
    });
    let absent = screening.models.absent.iter().map(|absent| Classifier {
        name: absent.name.clone(),
        state: "absent",
        runtime: None,
        version: None,
        labels: Vec::new(),
        texts: 0,
        windows: 0,
        waiting: 0,
        failures: 0,
        why: Some(absent.why.clone()),
    });
    let library = screening.models.library.as_ref().map(|library| match library {
        Ok(path) => path.display().to_string(),
        Err(why) => format!("absent: {why}"),
    });
    Screens {
        input: screening.settings.usual.input.mode.as_str(),
        output: screening.settings.usual.output.watch.as_str(),
        policies: screening.settings.policies.len(),
        rules: screening.inspector.rules().len(),
        onnx_runtime: library,
        models: ready.chain(absent).collect(),
    }
}
