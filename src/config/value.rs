//! Second pass, continued: one value of a key that is no table, checked against the key's [`Kind`].

use toml::de::{DeInteger, DeValue};
use uuid::Uuid;

use super::diagnostic::{closest, shown};
use super::keys::{Key, Kind, Object, VERSION};
use super::quantity;
use super::scalar::{self, Refusal};
use super::shape::Value;
use crate::model::id::{NameError, PoolName};
use crate::units::Bytes;

/// All sorts of names have the same rule.
pub(super) fn check_name(name: &str) -> Result<(), NameError> {
    name.parse::<PoolName>().map(drop)
}

pub(super) fn word_or_table(text: &str, words: &[&str], keys: &[Key]) -> Refusal {
    let refusal = Refusal::new(
        "E0103",
        format!(
            "`{}` is not possible, expected \"{}\" or a table",
            shown(text),
            words.join("\", \"")
        ),
    );
    match closest(text, keys.iter().map(|key| key.name)) {
        Some(name) => refusal.help(format!("write {{ {name} = {{}} }}")),
        None => refusal,
    }
}

pub(super) fn scalar_value(kind: &Kind, found: &DeValue<'_>) -> Result<Value, Refusal> {
    match (kind, found) {
        (Kind::Bool, DeValue::Boolean(value)) => Ok(Value::Bool(*value)),
        (Kind::Size { min, unit }, DeValue::String(text)) => size_value(text, *min, *unit),
        (Kind::Size { .. }, DeValue::Integer(number)) => Err(scalar::without_unit(number.as_str())),
        (Kind::Duration(spelling), DeValue::String(text)) => {
            quantity::duration_within(text, spelling).map(Value::Duration)
        }
        (Kind::Bandwidth { min }, DeValue::String(text)) => {
            quantity::bandwidth(text, *min).map(Value::Integer)
        }
        (Kind::Bandwidth { .. }, DeValue::Integer(number)) => {
            Err(quantity::without_rate(number.as_str()))
        }
        (
            Kind::Factor {
                min_percent,
                max_percent,
            },
            found,
        ) if let Some(text) = number_text(found) => {
            quantity::factor(text, *min_percent, *max_percent).map(Value::Integer)
        }
        (Kind::Directory, DeValue::String(text)) => scalar::absolute_path(text).map(Value::Path),
        (Kind::Socket, DeValue::String(text)) => scalar::socket_path(text).map(Value::Path),
        (Kind::Address, DeValue::String(text)) => scalar::address(text).map(Value::Text),
        (Kind::Uuid, DeValue::String(text)) => uuid_value(text),
        (Kind::WordOf(words), DeValue::String(text)) => word_value(text, words),
        (Kind::Name(_), found @ DeValue::String(_)) => name_value(found).map(Value::Text),
        (
            Kind::Version | Kind::Integer { .. } | Kind::PowerOfTwo { .. } | Kind::IntegerOf(_),
            DeValue::Integer(number),
        ) => integer_value(kind, number),
        (kind, found) => Err(wrong_type(kind, found)),
    }
}

fn wrong_type(kind: &Kind, found: &DeValue<'_>) -> Refusal {
    let refusal = Refusal::new(
        "E0102",
        format!("expected {}, found {}", expected(kind), described(found)),
    );
    match (kind, found) {
        (Kind::Tables(object, _), DeValue::Array(_)) => refusal.help(format!(
            "write [{0}.NAME] instead of [[{0}]]",
            object.word()
        )),
        (Kind::Name(_) | Kind::Names(_), DeValue::Array(_) | DeValue::String(_)) => match kind {
            Kind::Name(Object::Pool) => refusal.help("several pools go into `replicas = [...]`"),
            Kind::Names(_) => refusal.help("put it into brackets"),
            _ => refusal,
        },
        (Kind::Bool, DeValue::String(text)) if matches!(text.as_ref(), "true" | "false") => {
            refusal.help(format!("write {text} without quotes"))
        }
        (
            Kind::Integer { .. } | Kind::PowerOfTwo { .. } | Kind::IntegerOf(_) | Kind::Version,
            DeValue::String(text),
        ) if text.parse::<u64>().is_ok() => refusal.help(format!("write {text} without quotes")),
        _ => refusal,
    }
}

/// What a kind wants, with its article.
const fn expected(kind: &Kind) -> &'static str {
    match kind {
        Kind::Version | Kind::Integer { .. } | Kind::PowerOfTwo { .. } | Kind::IntegerOf(_) => {
            "an integer"
        }
        Kind::Uuid => "a UUID as a string",
        Kind::Address => "a string host:port",
        Kind::Directory | Kind::Socket => "a path as a string",
        Kind::Size { .. } => "a size as a string",
        Kind::Duration(_) => "a duration as a string",
        Kind::Bandwidth { .. } => "a bandwidth as a string",
        Kind::Factor { .. } => "a number",
        Kind::Bool => "true or false",
        Kind::WordOf(_) => "a string",
        Kind::Name(_) => "a name as a string",
        Kind::Names(_) => "an array of names",
        Kind::Table(_) => "a table",
        Kind::Tables(..) => "a table of tables",
        Kind::WordOrTable(..) => "a string or a table",
    }
}

/// What the file has, with its article.
pub(super) const fn described(found: &DeValue<'_>) -> &'static str {
    match found {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

fn size_value(text: &str, min: u64, unit: u64) -> Result<Value, Refusal> {
    let size = scalar::size(text)?;
    if size.get() < min {
        return Err(Refusal::new(
            "E0113",
            format!("is {size}, expected at least {}", Bytes(min)),
        ));
    }
    if !size.is_multiple_of(unit) {
        let up = size.get().next_multiple_of(unit);
        return Err(Refusal::new(
            "E0113",
            format!("is {size}, not a multiple of {}", Bytes(unit)),
        )
        .help(format!("the next multiple is \"{}KiB\"", up / 1024)));
    }
    Ok(Value::Size(size))
}

/// A number as it is written, if it is decimal.
fn number_text<'a>(found: &'a DeValue<'_>) -> Option<&'a str> {
    match found {
        DeValue::Float(number) => Some(number.as_str()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str()),
        _ => None,
    }
}

fn uuid_value(text: &str) -> Result<Value, Refusal> {
    // Only the usual form: braces, urn: and bare digits are other spellings of the same id.
    let hyphenated = text.len() == 36;
    match Uuid::parse_str(text) {
        Ok(uuid) if hyphenated && !uuid.is_nil() => Ok(Value::Uuid(uuid)),
        _ => Err(
            Refusal::new("E0114", format!("`{}` is not a UUID", shown(text))).help(
                "write one as in \"0197f0a4-5d3c-7c1e-9b1e-3f2d8a4c6e10\"; `uuidgen` makes one",
            ),
        ),
    }
}

fn word_value(text: &str, words: &[&str]) -> Result<Value, Refusal> {
    if words.contains(&text) {
        return Ok(Value::Text(text.to_owned()));
    }
    let refusal = Refusal::new(
        "E0103",
        format!(
            "`{}` is not possible, expected \"{}\"",
            shown(text),
            words.join("\" or \"")
        ),
    );
    Err(match closest(text, words.iter().copied()) {
        Some(word) => refusal.help(format!("did you mean \"{word}\"?")),
        None => refusal,
    })
}

pub(super) fn name_value(found: &DeValue<'_>) -> Result<String, Refusal> {
    let DeValue::String(text) = found else {
        return Err(Refusal::new(
            "E0102",
            format!("expected a name as a string, found {}", described(found)),
        ));
    };
    check_name(text)
        .map(|()| text.to_string())
        .map_err(|problem| {
            Refusal::new(
                "E0106",
                format!("`{}` can't be a name: {problem}", shown(text)),
            )
        })
}

fn integer_value(kind: &Kind, number: &DeInteger<'_>) -> Result<Value, Refusal> {
    let value = i128::from_str_radix(number.as_str(), number.radix()).ok();
    let wanted = |range: String| Refusal::new("E0103", format!("is {number}, expected {range}"));
    let value = value.and_then(|value| u64::try_from(value).ok());
    match (kind, value) {
        (Kind::Version, _) => version_value(number, value),
        (Kind::Integer { min, max }, Some(value)) if (*min..=*max).contains(&value) => {
            Ok(Value::Integer(value))
        }
        (Kind::PowerOfTwo { min, max }, Some(value))
            if (*min..=*max).contains(&value) && value.is_power_of_two() =>
        {
            Ok(Value::Integer(value))
        }
        (Kind::IntegerOf(choices), Some(value)) if choices.contains(&value) => {
            Ok(Value::Integer(value))
        }
        (Kind::PowerOfTwo { min, max }, _) => {
            Err(wanted(format!("a power of two from {min} to {max}")))
        }
        (Kind::IntegerOf(choices), _) => {
            let choices: Vec<_> = choices.iter().map(u64::to_string).collect();
            Err(wanted(choices.join(" or ")))
        }
        (Kind::Integer { min, max }, _) => Err(wanted(format!("{min} to {max}"))),
        _ => Err(wanted("another kind of value".to_owned())),
    }
}

fn version_value(number: &DeInteger<'_>, value: Option<u64>) -> Result<Value, Refusal> {
    match value {
        Some(VERSION) => Ok(Value::Integer(VERSION)),
        Some(newer) if newer > VERSION => Err(Refusal::new(
            "E0112",
            format!(
                "{number} needs a release of volund newer than {}",
                env!("CARGO_PKG_VERSION")
            ),
        )
        .help(format!(
            "this release knows version {VERSION}: upgrade it on this node first"
        ))),
        _ => Err(Refusal::new(
            "E0112",
            format!("{number} never existed, expected {VERSION}"),
        )),
    }
}
