//! How a line looks: as text, as JSON, or as the journal takes it from standard error; with what was left out.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::limit::{LeftOut, Limit, PERIOD, Verdict};
use crate::model::time::Times;

/// What a line is written as.
pub(super) trait Style<N> {
    fn event<S>(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
        N: for<'a> FormatFields<'a> + 'static;

    fn left_out(&self, writer: Writer<'_>, left_out: &LeftOut) -> fmt::Result;
}

/// One style, without what [`Limit`] leaves out.
pub(super) struct Limited<T> {
    pub(super) style: T,
    pub(super) times: Times,
    pub(super) limit: Mutex<Limit>,
}

impl<S, N, T> FormatEvent<S, N> for Limited<T>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    T: Style<N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let now = (self.times.monotonic)();
        let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        let verdict = limit.admit(event, now);
        drop(limit);
        let Verdict::Tell(ended) = verdict else {
            return Ok(());
        };
        for left_out in &ended {
            self.style.left_out(writer.by_ref(), left_out)?;
        }
        self.style.event(context, writer, event)
    }
}

fn sentence(left_out: &LeftOut) -> String {
    format!(
        "{} more lines like this were left out within {} s: {}",
        left_out.lines,
        PERIOD.as_secs(),
        left_out.like
    )
}

/// Text lines for a terminal or a file.
pub(super) struct Text(pub(super) Format);

impl<N> Style<N> for Text {
    fn event<S>(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
        N: for<'a> FormatFields<'a> + 'static,
    {
        self.0.format_event(context, writer, event)
    }

    fn left_out(&self, mut writer: Writer<'_>, left_out: &LeftOut) -> fmt::Result {
        writeln!(writer, "{}", sentence(left_out))
    }
}

/// One JSON object a line.
pub(super) struct JsonLines(pub(super) Format<Json>);

impl Style<JsonFields> for JsonLines {
    fn event<S>(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        self.0.format_event(context, writer, event)
    }

    fn left_out(&self, mut writer: Writer<'_>, left_out: &LeftOut) -> fmt::Result {
        let fields = serde_json::json!({
            "message": sentence(left_out), "left_out": left_out.lines, "like": left_out.like,
        });
        let line = serde_json::json!({ "level": "WARN", "fields": fields });
        writeln!(writer, "{line}")
    }
}

/// As the journal reads it from standard error: each line begins with its priority (sd-daemon(3)), and the journal adds the time.
/// The fields are in the text, where `systemctl status` and `journalctl` show them.
pub(super) struct Journal(pub(super) Format<tracing_subscriber::fmt::format::Full, ()>);

impl<N> Style<N> for Journal {
    fn event<S>(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
        N: for<'a> FormatFields<'a> + 'static,
    {
        let mut text = String::new();
        self.0
            .format_event(context, Writer::new(&mut text), event)?;
        let priority = priority(*event.metadata().level());
        // Each line would be an entry of its own without a priority.
        for line in text.lines() {
            writeln!(writer, "<{priority}>{line}")?;
        }
        Ok(())
    }

    fn left_out(&self, mut writer: Writer<'_>, left_out: &LeftOut) -> fmt::Result {
        let priority = priority(Level::WARN);
        writeln!(writer, "<{priority}>{}", sentence(left_out))
    }
}

/// syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::fmt::format;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Lines {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn the_journal_gets_a_priority_on_each_line_and_the_fields() {
        let lines = Lines::default();
        let times = Times {
            monotonic: || tokio::time::Instant::now().into_std(),
            wall: || std::time::UNIX_EPOCH,
        };
        let journal = Limited {
            style: Journal(
                format()
                    .without_time()
                    .with_level(false)
                    .with_target(false)
                    .with_ansi(false),
            ),
            times,
            limit: Mutex::default(),
        };
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .event_format(journal)
            .with_writer(lines.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let operation = tracing::info_span!("operation", id = 7);
            let _entered = operation.enter();
            for _ in 0..2 {
                tracing::error!(volume = "db", "first\nsecond");
            }
            tracing::info!("done");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(
            text,
            "<3>operation{id=7}: first\n<3>second volume=\"db\"\n<6>operation{id=7}: done\n"
        );
    }
}
