//! The only mapping from a refusal to the wire: status, headers, and the error envelope of OpenAI or of
//! Anthropic.

use crate::{
    error::{Reason, Refusal},
    ids::RequestId,
};
use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde::Serialize;
use std::time::Duration;

/// The header that names a request, in every answer.
pub const REQUEST_ID: &str = "x-request-id";

/// The HTTP status of a refusal.
pub fn status(refusal: &Refusal) -> StatusCode {
    match refusal.reason {
        Reason::MissingKey | Reason::WrongKey => StatusCode::UNAUTHORIZED,
        Reason::ModelNotAllowed | Reason::ScreenOverride => StatusCode::FORBIDDEN,
        Reason::UnknownModel | Reason::UnknownPath => StatusCode::NOT_FOUND,
        Reason::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Reason::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
        Reason::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Reason::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Reason::RequestRate | Reason::TokenRate | Reason::TenantQueueFull => {
            StatusCode::TOO_MANY_REQUESTS
        }
        Reason::QueueFull
        | Reason::WaitTooLong
        | Reason::NoServer
        | Reason::NoGpuMemory
        | Reason::ServerBusy
        | Reason::ScreenUnavailable
        | Reason::Draining => StatusCode::SERVICE_UNAVAILABLE,
        Reason::ServerFailed | Reason::AnswerBroken | Reason::OutputDegenerate => {
            StatusCode::BAD_GATEWAY
        }
        Reason::ServerSilent => StatusCode::GATEWAY_TIMEOUT,
        Reason::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        Reason::NotCountable => StatusCode::UNPROCESSABLE_ENTITY,
        Reason::ServerRejected => refusal
            .server_status
            .and_then(|status| StatusCode::from_u16(status).ok())
            .filter(StatusCode::is_client_error)
            .unwrap_or(StatusCode::BAD_REQUEST),
        Reason::MalformedJson
        | Reason::InvalidUtf8
        | Reason::DuplicateKey
        | Reason::InvalidType
        | Reason::OutOfRange
        | Reason::MissingField
        | Reason::BadFraming
        | Reason::ContextTooLong
        | Reason::TemplateRefused
        | Reason::SpecialToken
        // Another try would cost the GPU as much and give as little.
        | Reason::OutputScreened
        | Reason::InputScreened => StatusCode::BAD_REQUEST,
    }
}

/// OpenAI's error type, which its clients sort by.
fn kind(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    }
}

/// Whose error envelope a caller expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// OpenAI's.
    OpenAi,
    /// Anthropic's, on the routes of its API.
    Anthropic,
}

/// The form of a path's errors, known even where the path leads nowhere.
pub fn form_of(path: &str) -> Form {
    match path.strip_prefix("/v1/messages") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => Form::Anthropic,
        _ => Form::OpenAi,
    }
}

/// Anthropic's error type, which its clients show.
fn anthropic_kind(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

#[derive(Serialize)]
struct AnthropicEnvelope<'a> {
    r#type: &'static str,
    error: AnthropicInner<'a>,
    request_id: &'a str,
}

#[derive(Serialize)]
struct AnthropicInner<'a> {
    r#type: &'static str,
    message: &'a str,
}

fn anthropic_body(refusal: &Refusal, id: &RequestId) -> Bytes {
    let envelope = AnthropicEnvelope {
        r#type: "error",
        error: AnthropicInner {
            r#type: anthropic_kind(status(refusal)),
            message: &refusal.message,
        },
        request_id: id.as_str(),
    };
    // Writing strings as JSON cannot fail.
    serde_json::to_vec(&envelope).unwrap_or_default().into()
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: &'static str,
    request_id: &'a str,
}

/// The JSON body of a refusal.
pub fn body(refusal: &Refusal, id: &RequestId) -> Bytes {
    let envelope = Envelope {
        error: Inner {
            message: &refusal.message,
            r#type: kind(status(refusal)),
            param: refusal.param.as_deref(),
            code: refusal.reason.as_str(),
            request_id: id.as_str(),
        },
    };
    // Writing strings as JSON cannot fail.
    serde_json::to_vec(&envelope).unwrap_or_default().into()
}

/// The event that ends a stream which cannot go on. No `[DONE]` follows: the answer is not whole.
pub fn event(refusal: &Refusal, id: &RequestId) -> Bytes {
    let body = body(refusal, id);
    let mut event = Vec::with_capacity(body.len() + 8);
    event.extend_from_slice(b"data: ");
    event.extend_from_slice(&body);
    event.extend_from_slice(b"\n\n");
    event.into()
}

/// A whole HTTP answer for a refusal, in OpenAI's form.
pub fn response(refusal: &Refusal, id: &RequestId) -> Response<Bytes> {
    response_in(Form::OpenAi, refusal, id)
}

/// A whole HTTP answer for a refusal.
pub fn response_in(form: Form, refusal: &Refusal, id: &RequestId) -> Response<Bytes> {
    let status = status(refusal);
    let mut response = Response::new(match form {
        Form::OpenAi => body(refusal, id),
        Form::Anthropic => anthropic_body(refusal, id),
    });
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(id) = HeaderValue::from_str(id.as_str()) {
        headers.insert(REQUEST_ID, id);
    }
    if let Some(wait) = refusal.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds_up(wait)));
        let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        headers.insert("retry-after-ms", HeaderValue::from(millis));
        // The official clients take a longer time for none, and would come again within seconds.
        if wait > CLIENTS_WAIT_MAX {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
    }
    match refusal.reason {
        Reason::MissingKey | Reason::WrongKey => {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            // Whoever has no key keeps no connection: the places are for those who do.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Reason::MethodNotAllowed => {
            let allow = refusal.allow.as_deref().unwrap_or("POST");
            if let Ok(allow) = HeaderValue::from_str(allow) {
                headers.insert(ALLOW, allow);
            }
        }
        // What follows on this connection cannot be trusted to be a request.
        Reason::BadFraming | Reason::BodyTimeout | Reason::BodyTooLarge => {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    response
}

/// The longest `Retry-After` that the official clients follow by themselves.
const CLIENTS_WAIT_MAX: Duration = Duration::from_secs(60);

/// `Retry-After` counts whole seconds; waiting a little too long beats coming back too early.
fn seconds_up(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_a_typed_openai_error() {
        let refusal = Refusal::new(Reason::QueueFull, "Full \"now\".")
            .param("model")
            .retry_after(Duration::from_millis(1200));
        let id = RequestId::fresh();
        let response = response(&refusal, &id);
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["retry-after-ms"], "1200");
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(body["error"]["message"], "Full \"now\".");
        assert_eq!(body["error"]["type"], "overloaded_error");
        assert_eq!(body["error"]["code"], "queue_full");
        assert_eq!(body["error"]["param"], "model");
        assert_eq!(body["error"]["request_id"], id.as_str());
    }

    #[test]
    fn anthropics_callers_get_their_own_envelope() {
        let id = RequestId::fresh();
        let refusal = Refusal::new(Reason::QueueFull, "Full.").retry_after(Duration::from_secs(1));
        let response = response_in(form_of("/v1/messages/count_tokens"), &refusal, &id);
        assert_eq!(
            (response.status(), &response.headers()["retry-after"]),
            (503.try_into().unwrap(), &"1".parse().unwrap())
        );
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        let wanted = serde_json::json!({
            "type": "error", "request_id": id.as_str(),
            "error": {"type": "overloaded_error", "message": "Full."}});
        assert_eq!(body, wanted);
        assert_eq!(form_of("/v1/messagesx"), Form::OpenAi);
    }

    /// They kept their place among the connections for as long as an idle caller may.
    #[test]
    fn callers_without_a_key_keep_no_connection() {
        for reason in [Reason::MissingKey, Reason::WrongKey] {
            let response = response(&Refusal::new(reason, "No."), &RequestId::fresh());
            assert_eq!(response.status(), 401);
            assert_eq!(response.headers()["connection"], "close");
        }
    }

    #[test]
    fn a_servers_own_credentials_error_is_never_the_callers() {
        // 401 from a server arrives here as ServerFailed; only other 4xx are handed on.
        let refusal = Refusal::new(Reason::ServerRejected, "bad schema").with_server_status(422);
        assert_eq!(status(&refusal), 422);
        let refusal = Refusal::new(Reason::ServerFailed, "x").with_server_status(401);
        assert_eq!(status(&refusal), 502);
    }
}
