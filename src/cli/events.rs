//! `volund events`.

use std::io::{ErrorKind, Write};
use std::time::Duration;

use clap::Args;

use super::args::{Format, Global};
use super::client::{Client, ClientError};
use super::plan::json;
use super::{CliError, Outcome};
use crate::model::journal::EventRecord;

/// Time between two attempts to reach a daemon that has gone.
const AGAIN: Duration = Duration::from_secs(1);

/// Arguments of `volund events`.
#[derive(Clone, Debug, Args)]
pub struct EventsArgs {
    /// Only events of this object: a volume, `pool.NAME`, or `config`.
    pub object: Option<String>,
    /// Go on until interrupted, over restarts of the daemon too.
    #[arg(short, long)]
    pub follow: bool,
    /// Only events with a larger number than this.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub after: u64,
}

/// Prints what happened, oldest first.
pub(super) fn run(global: &Global, args: &EventsArgs) -> Result<Outcome, CliError> {
    let client = Client::new(&global.admin_socket())?;
    if args.follow {
        return follow(&client, global.output, args);
    }
    let events: Vec<EventRecord> = client.get(&path(args, args.after))?;
    Ok(Outcome::ok(match global.output {
        Format::Human => events.iter().map(line).collect(),
        Format::Json => json(&events)?,
    }))
}

/// As the daemon names it: `db` is a volume.
pub(super) fn object_name(given: &str) -> String {
    if given.contains('.') || given == "config" {
        given.to_owned()
    } else {
        format!("volume.{given}")
    }
}

fn path(args: &EventsArgs, after: u64) -> String {
    let mut path = format!("/v1/events?after={after}");
    if let Some(object) = &args.object {
        path.push_str("&object=");
        path.push_str(&escaped(&object_name(object)));
    }
    path
}

/// Text as part of a query (RFC 3986, section 2.1).
pub(super) fn escaped(text: &str) -> String {
    let bytes = text.bytes();
    let escaped = bytes.map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    });
    escaped.collect()
}

/// Each event as it happens. A daemon that goes is waited for; what it told already is not told again.
fn follow(client: &Client, format: Format, args: &EventsArgs) -> Result<Outcome, CliError> {
    let mut after = args.after;
    let mut has_begun = false;
    let mut is_gone = false;
    loop {
        let ended = client.follow(&path(args, after), |event| {
            is_gone = false;
            after = event.number;
            let text = match format {
                Format::Human => line(&event),
                Format::Json => serde_json::to_string(&event)? + "\n",
            };
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        });
        match ended {
            Ok(()) | Err(ClientError::Http(_)) => has_begun = true,
            // Whoever reads has enough.
            Err(ClientError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => {
                return Ok(Outcome::default());
            }
            Err(ClientError::Connect { .. }) if has_begun => {}
            Err(error) => return Err(error.into()),
        }
        if !is_gone {
            is_gone = true;
            // It is only said; who can't be told anything any more learns it from standard output.
            let _ = writeln!(
                std::io::stderr().lock(),
                "volund: the daemon has gone, waiting for it"
            );
        }
        client.wait(AGAIN);
    }
}

/// `2026-11-21T09:14:03Z  volume.db  Degraded  ...`; further lines of a message are indented.
fn line(event: &EventRecord) -> String {
    let message = event.message.trim_end().replace('\n', "\n    ");
    let EventRecord {
        time,
        object,
        reason,
        ..
    } = event;
    format!("{time}  {object}  {reason}  {message}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_a_volume_and_nothing_breaks_the_query() {
        assert_eq!(object_name("db"), "volume.db");
        assert_eq!(object_name("pool.main"), "pool.main");
        assert_eq!(object_name("config"), "config");
        let args = EventsArgs {
            object: Some("quarantine.db@1&x= y".to_owned()),
            follow: false,
            after: 7,
        };
        let path = path(&args, args.after);
        assert_eq!(
            path,
            "/v1/events?after=7&object=quarantine.db%401%26x%3D%20y"
        );
    }

    #[test]
    fn long_messages_are_indented() {
        let event = EventRecord {
            number: 1,
            time: "t".to_owned(),
            object: "config".to_owned(),
            reason: "ConfigRejected".to_owned(),
            message: "error\n  --> a.toml\n".to_owned(),
        };
        assert_eq!(
            line(&event),
            "t  config  ConfigRejected  error\n      --> a.toml\n"
        );
    }
}
