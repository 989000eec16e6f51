//! `Refusal`: the closed list of reasons why a request ends without its answer.
//!
//! A refusal is data. It carries the reason, a sentence that tells the caller what to do, and when
//! waiting helps, for how long. How it looks on the wire is decided in one place, `api::refuse`.

use std::{borrow::Cow, fmt, time::Duration};

/// Why a request ended early. Metrics are labelled with [`Reason::as_str`], never with messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The body is not JSON.
    MalformedJson,
    /// The body is not UTF-8.
    InvalidUtf8,
    /// A JSON object names one key twice, or a known key in another letter case.
    DuplicateKey,
    /// A field has the wrong JSON type.
    InvalidType,
    /// A field's value lies outside what is allowed.
    OutOfRange,
    /// A field that must be there is not.
    MissingField,
    /// The body is larger than the configured limit.
    BodyTooLarge,
    /// The body came too slowly.
    BodyTimeout,
    /// The request's framing is ambiguous or broken.
    BadFraming,
    /// The body's media type or encoding is not one we read.
    UnsupportedMediaType,
    /// No such path.
    UnknownPath,
    /// The path exists, the method does not fit it.
    MethodNotAllowed,
    /// No API key was sent.
    MissingKey,
    /// The API key is not known.
    WrongKey,
    /// The tenant may not use this model.
    ModelNotAllowed,
    /// No server serves this model.
    UnknownModel,
    /// Input and requested output do not fit the model's context window.
    ContextTooLong,
    /// The chat template refused the conversation.
    TemplateRefused,
    /// Nobody here can tell the token ids that were asked for.
    NotCountable,
    /// A caller's text spells one of the model's control tokens.
    SpecialToken,
    /// The tenant's request rate is used up.
    RequestRate,
    /// The tenant's token rate is used up.
    TokenRate,
    /// Too many of the tenant's requests wait already.
    TenantQueueFull,
    /// The queue is full.
    QueueFull,
    /// The expected wait, or the wait so far, is longer than the caller's deadline.
    WaitTooLong,
    /// Every server of the model is down, drained or shut off by its breaker.
    NoServer,
    /// The GPUs of the model's servers have not the memory, and other programs hold it.
    NoGpuMemory,
    /// The daemon is stopping.
    Draining,
    /// Every server that was tried failed before its first content.
    ServerFailed,
    /// No server sent its first content in time.
    ServerSilent,
    /// Every server that was tried said that it is overloaded.
    ServerBusy,
    /// The server looked at the request and rejected it: the caller's to mend.
    ServerRejected,
    /// The answer broke off after its first content.
    AnswerBroken,
    /// The request's content is against the operator's policy.
    InputScreened,
    /// The tenant may not ask for weaker screening.
    ScreenOverride,
    /// The request's content could not be checked, and nothing passes unchecked.
    ScreenUnavailable,
    /// The answer's content is against the operator's policy.
    OutputScreened,
    /// The answer went round in circles or fell apart, and was stopped.
    OutputDegenerate,
    /// A fault of our own.
    Internal,
}

impl Reason {
    /// The reason's name in metrics, logs and error codes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MalformedJson => "malformed_json",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::DuplicateKey => "duplicate_key",
            Self::InvalidType => "invalid_type",
            Self::OutOfRange => "value_out_of_range",
            Self::MissingField => "missing_field",
            Self::BodyTooLarge => "request_too_large",
            Self::BodyTimeout => "request_timeout",
            Self::BadFraming => "ambiguous_framing",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::UnknownPath => "unknown_path",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::MissingKey => "missing_api_key",
            Self::WrongKey => "invalid_api_key",
            Self::ModelNotAllowed => "model_not_allowed",
            Self::UnknownModel => "model_not_found",
            Self::ContextTooLong => "context_length_exceeded",
            Self::TemplateRefused => "template_refused",
            Self::NotCountable => "not_countable",
            Self::SpecialToken => "special_token_in_text",
            Self::RequestRate => "request_rate_exceeded",
            Self::TokenRate => "token_rate_exceeded",
            Self::TenantQueueFull => "tenant_queue_full",
            Self::QueueFull => "queue_full",
            Self::WaitTooLong => "deadline_unreachable",
            Self::NoServer => "no_server_available",
            Self::NoGpuMemory => "no_gpu_memory",
            Self::Draining => "shutting_down",
            Self::ServerFailed => "server_failed",
            Self::ServerSilent => "server_timeout",
            Self::ServerBusy => "server_overloaded",
            Self::ServerRejected => "rejected_by_server",
            Self::AnswerBroken => "answer_interrupted",
            Self::InputScreened => "content_policy_violation",
            Self::ScreenOverride => "screen_override_not_allowed",
            Self::ScreenUnavailable => "screening_unavailable",
            Self::OutputScreened => "content_filter",
            Self::OutputDegenerate => "output_degenerate",
            Self::Internal => "internal_error",
        }
    }

    /// The outcome class this reason counts under.
    pub const fn class(self) -> Class {
        match self {
            Self::RequestRate | Self::TokenRate | Self::TenantQueueFull => Class::Limited,
            Self::QueueFull
            | Self::WaitTooLong
            | Self::NoServer
            | Self::NoGpuMemory
            | Self::Draining
            | Self::ScreenUnavailable
            | Self::ServerBusy => Class::Shed,
            Self::InputScreened | Self::OutputScreened => Class::Screened,
            Self::ServerFailed
            | Self::ServerSilent
            | Self::AnswerBroken
            | Self::OutputDegenerate
            | Self::Internal => Class::Failed,
            _ => Class::Invalid,
        }
    }
}

/// How a request ended, coarse enough for a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Answered whole.
    Answered,
    /// The caller left first.
    Cancelled,
    /// The caller must change the request.
    Invalid,
    /// The tenant's own limits refused it.
    Limited,
    /// The node was too loaded.
    Shed,
    /// The operator's content policy stopped it.
    Screened,
    /// A server or this daemon failed.
    Failed,
}

impl Class {
    /// The class's name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Cancelled => "cancelled",
            Self::Invalid => "invalid",
            Self::Limited => "limited",
            Self::Shed => "shed",
            Self::Screened => "screened",
            Self::Failed => "failed",
        }
    }
}

/// A request ended early, on purpose or by fault. Nothing stays held: guards have given back whatever
/// was reserved when the caller sees this. A retry is safe where [`Refusal::retry_after`] is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// A sentence for the caller: what is wrong and what to do.
    pub message: Cow<'static, str>,
    /// The request field that is at fault.
    pub param: Option<Cow<'static, str>>,
    /// How long waiting would help.
    pub retry_after: Option<Duration>,
    /// The status the server gave, where its rejection is handed on.
    pub server_status: Option<u16>,
    /// The method that would have been right.
    pub allow: Option<Cow<'static, str>>,
}

impl Refusal {
    /// A refusal with its sentence.
    pub fn new(reason: Reason, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            message: message.into(),
            param: None,
            retry_after: None,
            server_status: None,
            allow: None,
        }
    }

    /// Names the field that is at fault.
    #[must_use]
    pub fn param(mut self, param: impl Into<Cow<'static, str>>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Says how long waiting would help.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Names the method that would have been right.
    #[must_use]
    pub fn allow(mut self, method: impl Into<Cow<'static, str>>) -> Self {
        self.allow = Some(method.into());
        self
    }

    /// Keeps the status that the server gave.
    #[must_use]
    pub fn with_server_status(mut self, status: u16) -> Self {
        self.server_status = Some(status);
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.as_str(), self.message)
    }
}

impl std::error::Error for Refusal {}
