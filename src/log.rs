//! Log lines on standard error: text for people and the journal, or JSON.

use crate::config::{Log, LogFormat, LogLevel};
use std::{fmt, io};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Compact, Format, Writer},
    },
    registry::LookupSpan,
};

/// Starts logging for the whole process. A second call changes nothing.
pub fn start(settings: &Log) {
    let level = match settings.level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(false);
    // Whoever set a subscriber first (a test) keeps it.
    let _ = match settings.format {
        LogFormat::Json => tracing::subscriber::set_global_default(
            builder.json().flatten_event(true).with_current_span(false).finish(),
        ),
        // systemd names the journal's stream in this variable when it reads our standard error.
        LogFormat::Text if std::env::var_os("JOURNAL_STREAM").is_some() => {
            tracing::subscriber::set_global_default(
                builder.event_format(ForJournal::new()).finish(),
            )
        }
        LogFormat::Text => tracing::subscriber::set_global_default(builder.compact().finish()),
    };
}

/// Text with the syslog level in front, which the journal takes off and files under (sd-daemon(3)). The
/// journal keeps its own time.
struct ForJournal(Format<Compact, ()>);

impl ForJournal {
    fn new() -> Self {
        let plain = Format::default().compact().without_time();
        Self(plain.with_level(false).with_target(false).with_ansi(false))
    }
}

impl<S, N> FormatEvent<S, N> for ForJournal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{level}>")?;
        self.0.format_event(context, writer, event)
    }
}
