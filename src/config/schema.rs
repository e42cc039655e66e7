//! The key table as a JSON Schema (draft-07), for editors: `volund schema`.
//!
//! Built by hand rather than by `schemars`: that derives from serde types, and the parser has none.

use serde_json::{Map, Value, json};

use super::keys::{Key, Kind, Object, REPLICAS_MAX, ROOT, VERSION};
use super::scalar::SOCKET_PATH_MAX;
use crate::model::id::NAME_LEN_MAX;

const SIZE_PATTERN: &str = "^[0-9]+(KiB|MiB|GiB|TiB)$";
const BANDWIDTH_PATTERN: &str = "^([0-9]+(KiB|MiB|GiB|TiB)/s|unlimited)$";
const ADDRESS_PATTERN: &str = "^.+:[0-9]+$";
/// No empty path, no root alone, no `..` as a part.
const PATH_PATTERN: &str = "^/.*[^/.]";

fn name_pattern() -> String {
    format!("^[a-z0-9]([a-z0-9-]{{0,{}}}[a-z0-9])?$", NAME_LEN_MAX - 2)
}

/// The schema as a JSON document.
#[must_use]
pub fn schema() -> Value {
    let mut schema = table(ROOT);
    let mut top = Map::new();
    top.insert(
        "$schema".into(),
        json!("http://json-schema.org/draft-07/schema#"),
    );
    top.insert("title".into(), json!("volund"));
    top.insert(
        "description".into(),
        json!("Configuration of volund: nodes, pools, volumes and their exports."),
    );
    top.append(&mut schema);
    Value::Object(top)
}

/// `schema` as text with a final newline.
#[must_use]
pub fn text() -> String {
    format!("{:#}\n", schema())
}

fn table(keys: &[Key]) -> Map<String, Value> {
    let properties: Map<String, Value> = keys
        .iter()
        .map(|key| (key.name.to_owned(), property(key)))
        .collect();
    let mut table = Map::new();
    table.insert("type".into(), json!("object"));
    table.insert("additionalProperties".into(), json!(false));
    table.insert("properties".into(), Value::Object(properties));
    if let Some((name, value)) = alternatives(keys) {
        table.insert(name.into(), value);
    }
    table
}

/// Which keys must be there, and which exclude one another.
fn alternatives(keys: &[Key]) -> Option<(&'static str, Value)> {
    let has = |name: &str| keys.iter().any(|key| key.name == name);
    let one_of = |names: [&str; 2], also: &[&str]| {
        let choices: Vec<Value> = names
            .iter()
            .map(|name| {
                let required: Vec<&str> = also.iter().copied().chain([*name]).collect();
                json!({ "required": required })
            })
            .collect();
        Some(("oneOf", Value::Array(choices)))
    };
    if has("path") {
        one_of(["path", "memory"], &[])
    } else if has("replicas") {
        one_of(["pool", "replicas"], &["size"])
    } else if has("ublk") {
        one_of(["vhost-user", "ublk"], &[])
    } else if has("at_gen") {
        Some(("required", json!(["from", "at_gen"])))
    } else {
        // `version` is not required: one file of a directory is enough to say it, and editors see single files.
        None
    }
}

fn property(key: &Key) -> Value {
    let mut property = kind(&key.kind);
    let mut description = key.meaning.to_owned();
    if !key.default.is_empty() {
        description.push_str(&format!("\n\nDefault: {}.", key.default.replace('`', "")));
    }
    if !key.change.is_empty() {
        description.push_str(&format!("\nChanging it: {}.", key.change));
    }
    property.insert("description".into(), json!(description));
    if let Some(default) = literal(key.default) {
        property.insert("default".into(), default);
    }
    if let Some(sample) = literal(&format!("`{}`", key.sample)) {
        property.insert("examples".into(), json!([sample]));
    }
    Value::Object(property)
}

/// A default or sample that is one TOML value between backticks. JSON spells strings, numbers, booleans and flat arrays alike.
fn literal(text: &str) -> Option<Value> {
    let inner = text.strip_prefix('`')?.strip_suffix('`')?;
    serde_json::from_str(inner).ok()
}

fn kind(kind: &Kind) -> Map<String, Value> {
    let value = match kind {
        Kind::Version => json!({ "type": "integer", "const": VERSION }),
        Kind::Uuid => {
            json!({ "type": "string", "format": "uuid", "pattern": "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$" })
        }
        Kind::Address => json!({ "type": "string", "pattern": ADDRESS_PATTERN }),
        Kind::Directory => json!({ "type": "string", "pattern": PATH_PATTERN }),
        Kind::Socket => {
            json!({ "type": "string", "pattern": PATH_PATTERN, "maxLength": SOCKET_PATH_MAX })
        }
        Kind::Size { .. } => json!({ "type": "string", "pattern": SIZE_PATTERN }),
        Kind::Duration(_) => json!({ "type": "string", "minLength": 2 }),
        Kind::Bandwidth { .. } => json!({ "type": "string", "pattern": BANDWIDTH_PATTERN }),
        Kind::Factor {
            min_percent,
            max_percent,
        } => json!({
            "type": "number",
            "minimum": f64::from(*min_percent) / 100.0,
            "maximum": f64::from(*max_percent) / 100.0,
        }),
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Integer { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::PowerOfTwo { min, max } => {
            let powers: Vec<u64> = (0..64)
                .map(|bit| 1 << bit)
                .filter(|power| (min..=max).contains(&power))
                .collect();
            json!({ "type": "integer", "enum": powers })
        }
        Kind::IntegerOf(choices) => json!({ "type": "integer", "enum": choices }),
        Kind::WordOf(words) => json!({ "type": "string", "enum": words }),
        Kind::Name(_) => json!({ "type": "string", "pattern": name_pattern() }),
        Kind::Names(_) => json!({
            "type": "array",
            "items": { "type": "string", "pattern": name_pattern() },
            "minItems": 1,
            "maxItems": REPLICAS_MAX,
            "uniqueItems": true,
        }),
        Kind::Table(keys) => return table(keys),
        Kind::Tables(object, keys) => return tables(*object, keys),
        Kind::WordOrTable(words, keys) => {
            json!({ "anyOf": [{ "type": "string", "enum": words }, Value::Object(table(keys))] })
        }
    };
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn tables(object: Object, keys: &[Key]) -> Map<String, Value> {
    let mut tables = Map::new();
    tables.insert("type".into(), json!("object"));
    tables.insert("propertyNames".into(), json!({ "pattern": name_pattern() }));
    let mut inner = table(keys);
    inner.insert("description".into(), json!(format!("A {}.", object.word())));
    tables.insert("additionalProperties".into(), Value::Object(inner));
    tables
}
