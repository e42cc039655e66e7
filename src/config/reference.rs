//! The key table and the codes as Markdown, for `docs/config.md` and `docs/errors.md`. A test fails when they are out of step.

use super::codes;
use super::keys::{self, Kind, REPLICAS_MAX};
use crate::units::Bytes;

/// The table of all keys.
#[must_use]
pub fn keys() -> String {
    let mut text =
        "| key | value | default | changing it | meaning |\n|---|---|---|---|---|\n".to_owned();
    keys::walk(&mut |name, key| {
        if matches!(key.kind, Kind::Table(_) | Kind::Tables(..)) {
            return;
        }
        text.push_str(&format!(
            "| `{name}` | {} | {} | {} | {} |\n",
            value(&key.kind),
            key.default,
            key.change,
            key.meaning
        ));
    });
    text
}

/// The table of all codes.
#[must_use]
pub fn codes() -> String {
    let mut text = "| code | means | what to do |\n|---|---|---|\n".to_owned();
    for known in codes::ALL {
        text.push_str(&format!(
            "| {} | {} | {} |\n",
            known.code, known.title, known.fix
        ));
    }
    text
}

/// All that `volund explain` says of every code: `docs/errors.md`, whole.
#[must_use]
pub fn errors() -> String {
    let mut text = "# Error codes\n\n\
        What `volund explain CODE` says, code by code. A code keeps its meaning for ever. E00xx: a file can't be read as \
        TOML.\nE01xx: a key or a value is wrong by itself. E02xx: objects contradict one another. E03xx: the files are \
        fine, but the\nstep from what exists to them is refused. W: a warning. This page is generated from the code.\n"
        .to_owned();
    for known in codes::ALL {
        let example = known.example;
        let language = if example.starts_with("volund ") || example.starts_with("mkdir ") {
            "sh"
        } else if example.starts_with(['-', '+']) {
            "diff"
        } else {
            "toml"
        };
        text.push_str(&format!(
            "\n## {}\n\n**{}.** {}\n\nFor instance:\n\n```{language}\n{example}\n```\n\nWhat to do: {}\n",
            known.code,
            capitalised(known.title),
            known.cause,
            known.fix
        ));
    }
    text
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}

/// `1.0`, `2.5`, `1.25`.
pub(super) fn hundredths(number: u32) -> String {
    let (whole, part) = (number / 100, number % 100);
    if part.is_multiple_of(10) {
        format!("{whole}.{}", part / 10)
    } else {
        format!("{whole}.{part:02}")
    }
}

fn value(kind: &Kind) -> String {
    match kind {
        Kind::Version => format!("`{}`", keys::VERSION),
        Kind::Uuid => "UUID".to_owned(),
        Kind::Address => "host:port".to_owned(),
        Kind::Directory | Kind::Socket => "absolute path".to_owned(),
        Kind::Size { min, unit } if *min > 0 => format!("size, a multiple of {}", Bytes(*unit)),
        Kind::Size { .. } => "size".to_owned(),
        Kind::Duration(spelling) => match spelling.word {
            Some(word) => format!("duration or `\"{word}\"`"),
            None => "duration".to_owned(),
        },
        Kind::Bandwidth { .. } => "size per second or `\"unlimited\"`".to_owned(),
        Kind::Factor {
            min_percent,
            max_percent,
        } => format!(
            "number, {} to {}",
            hundredths(*min_percent),
            hundredths(*max_percent)
        ),
        Kind::Bool => "boolean".to_owned(),
        Kind::Integer { min, max } => format!("integer, {min} to {max}"),
        Kind::PowerOfTwo { min, max } => format!("power of two, {min} to {max}"),
        Kind::IntegerOf(choices) => {
            let choices: Vec<_> = choices.iter().map(|choice| format!("`{choice}`")).collect();
            choices.join(" or ")
        }
        Kind::WordOf(words) => {
            let words: Vec<_> = words.iter().map(|word| format!("`\"{word}\"`")).collect();
            words.join(" or ")
        }
        Kind::Name(object) => format!("name of a {}", object.word()),
        Kind::Names(object) => format!("1 to {REPLICAS_MAX} names of {}s", object.word()),
        Kind::WordOrTable(words, _) => format!("`\"{}\"` or a table", words.join("\"` or `\"")),
        Kind::Table(_) | Kind::Tables(..) => "table".to_owned(),
    }
}
