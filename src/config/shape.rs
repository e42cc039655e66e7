//! Second pass: every key is a known one and has a value of the right kind. Driven by the table in [`super::keys`].
//!
//! The result knows no relations between objects; those are for [`super::meaning`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use uuid::Uuid;

use super::diagnostic::{Diagnostic, Findings, Spot, closest, shown};
use super::keys::{Key, Kind, Object, REPLICAS_MAX};
use super::scalar::Refusal;
use super::value::{check_name, described, name_value, scalar_value, word_or_table};
use crate::model::id::NameError;
use crate::units::Bytes;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) at: Spot,
}

/// What became of a key.
#[derive(Clone, Debug)]
pub(crate) enum Field<T> {
    /// It is not there.
    Absent,
    /// It is there, but its value was refused and reported.
    Bad,
    /// It is there.
    Good(At<T>),
}

impl<T> Field<T> {
    pub(crate) fn good(&self) -> Option<&At<T>> {
        match self {
            Self::Good(value) => Some(value),
            Self::Absent | Self::Bad => None,
        }
    }

    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

/// A value of the right kind.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Bool(bool),
    Integer(u64),
    Size(Bytes),
    Duration(Duration),
    Text(String),
    Path(PathBuf),
    Uuid(Uuid),
    Names(Vec<At<String>>),
    Table(Shape),
    Tables(BTreeMap<String, Shape>),
}

/// A table whose keys were checked.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// Its name's place.
    pub(crate) at: Spot,
    /// It stands for a word such as `"none"`, not for a table.
    pub(crate) is_word: bool,
    entries: BTreeMap<&'static str, Option<At<Value>>>,
}

/// Types that a key's value is taken out as.
pub(crate) trait FromValue: Sized {
    fn from_value(value: Value) -> Option<Self>;
}

macro_rules! from_value {
    ($($variant:ident => $type:ty),* $(,)?) => {$(
        impl FromValue for $type {
            fn from_value(value: Value) -> Option<Self> {
                match value {
                    Value::$variant(value) => Some(value),
                    _ => None,
                }
            }
        }
    )*};
}

from_value! {
    Bool => bool, Integer => u64, Size => Bytes, Duration => Duration, Text => String, Path => PathBuf, Uuid => Uuid,
    Names => Vec<At<String>>, Table => Shape, Tables => BTreeMap<String, Shape>,
}

impl Shape {
    /// A table without keys.
    pub(crate) const fn empty(at: Spot) -> Self {
        Self {
            at,
            is_word: false,
            entries: BTreeMap::new(),
        }
    }

    /// Takes out what `key` has.
    ///
    /// # Panics
    /// When the key table gives `key` another kind: a bug that every use of the key would show.
    pub(crate) fn take<T: FromValue>(&mut self, key: &'static str) -> Field<T> {
        match self.entries.remove(key) {
            None => Field::Absent,
            Some(None) => Field::Bad,
            Some(Some(At { value, at })) => Field::Good(At {
                value: T::from_value(value)
                    .expect("the key table and the reader agree on the kind"),
                at,
            }),
        }
    }

    /// Puts a value back in, for what is assembled from several files.
    pub(crate) fn put(&mut self, key: &'static str, value: Option<At<Value>>) {
        self.entries.insert(key, value);
    }

    /// Takes out all keys.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (&'static str, Option<At<Value>>)> {
        std::mem::take(&mut self.entries).into_iter()
    }

    /// Whether all keys were taken out.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Checks tables of one file.
#[derive(Debug)]
pub(crate) struct Checker<'f> {
    pub(crate) file: usize,
    pub(crate) findings: &'f mut Findings,
}

/// A key and its value as the TOML parser gives them.
type Entry<'a, 'i> = (
    &'a Spanned<std::borrow::Cow<'i, str>>,
    &'a Spanned<DeValue<'i>>,
);

impl Checker<'_> {
    fn spot<T>(&self, spanned: &Spanned<T>) -> Spot {
        Spot::new(self.file, spanned.span())
    }

    /// Checks `table` against `keys`; `path` is its dotted name, empty for the file's top.
    pub(crate) fn table(
        &mut self,
        table: &DeTable<'_>,
        keys: &'static [Key],
        path: &str,
        at: Spot,
    ) -> Shape {
        let mut shape = Shape::empty(at);
        for entry @ (name, value) in table {
            let Some(key) = keys.iter().find(|key| key.name == name.get_ref().as_ref()) else {
                if let Some(meant) = self.unknown(name, keys, path) {
                    // What a misspelt key was meant to be is not missing as well.
                    shape.entries.entry(meant).or_insert(None);
                }
                continue;
            };
            let value = self
                .value(entry, &key.kind, &join(path, key.name))
                .map(|checked| At {
                    value: checked,
                    at: match &key.kind {
                        // A table's value spans its header or nothing at all: its name says more.
                        Kind::Table(_) | Kind::Tables(..) => self.spot(name),
                        _ if value.span().is_empty() => self.spot(name),
                        _ => self.spot(value),
                    },
                });
            shape.entries.insert(key.name, value);
        }
        shape
    }

    /// Reports a key that `keys` does not have, and returns the one that was probably meant, unless it is a table.
    fn unknown(
        &mut self,
        name: &Spanned<std::borrow::Cow<'_, str>>,
        keys: &'static [Key],
        path: &str,
    ) -> Option<&'static str> {
        let wrong = name.get_ref();
        let place = if path.is_empty() {
            "at the top of the file".to_owned()
        } else {
            format!("in `{}`", shown(path))
        };
        let close = closest(wrong, keys.iter().map(|key| key.name));
        let help = match close {
            Some(close) => format!("did you mean `{close}`?"),
            None => {
                let known: Vec<_> = keys.iter().map(|key| key.name).collect();
                format!("keys here: {}", known.join(", "))
            }
        };
        let message = format!("unknown key `{}` {place}", shown(wrong));
        self.findings.push(
            Diagnostic::error("E0101", self.spot(name), message)
                .label("not a key of volund's")
                .help(help),
        );
        close.filter(|close| {
            let table = |key: &&Key| matches!(key.kind, Kind::Table(_) | Kind::Tables(..));
            !keys.iter().filter(table).any(|key| key.name == *close)
        })
    }

    /// Checks one value. None after a finding.
    fn value(
        &mut self,
        (name, value): Entry<'_, '_>,
        kind: &'static Kind,
        path: &str,
    ) -> Option<Value> {
        match (kind, value.get_ref()) {
            (Kind::Table(keys), DeValue::Table(table)) => {
                Some(Value::Table(self.table(table, keys, path, self.spot(name))))
            }
            (Kind::WordOrTable(_, keys), DeValue::Table(table)) => {
                Some(Value::Table(self.table(table, keys, path, self.spot(name))))
            }
            (Kind::WordOrTable(words, keys), DeValue::String(text)) => {
                if words.contains(&text.as_ref()) {
                    return Some(Value::Table(Shape {
                        is_word: true,
                        ..Shape::empty(self.spot(value))
                    }));
                }
                self.refuse(value, path, word_or_table(text, words, keys));
                None
            }
            (Kind::Tables(object, keys), DeValue::Table(table)) => {
                Some(Value::Tables(self.tables(table, *object, keys, path)))
            }
            (Kind::Names(_), DeValue::Array(array)) => self.names(value, array, path),
            (_, found) => match scalar_value(kind, found) {
                Ok(value) => Some(value),
                Err(refusal) => {
                    // A table without braces has no span of its own.
                    let at = if value.span().is_empty() {
                        self.spot(name)
                    } else {
                        self.spot(value)
                    };
                    self.refuse_at(at, path, refusal);
                    None
                }
            },
        }
    }

    fn refuse(&mut self, value: &Spanned<DeValue<'_>>, path: &str, refusal: Refusal) {
        self.refuse_at(self.spot(value), path, refusal);
    }

    fn refuse_at(&mut self, at: Spot, path: &str, refusal: Refusal) {
        // A refusal that starts with a verb is about the value of the key, others name the value themselves.
        let verb = ["is ", "has "]
            .iter()
            .any(|verb| refusal.message.starts_with(verb));
        let colon = if verb { "" } else { ":" };
        let message = format!("`{}`{colon} {}", shown(path), refusal.message);
        self.findings
            .push(Diagnostic::error(refusal.code, at, message).help_if(refusal.help));
    }

    fn tables(
        &mut self,
        table: &DeTable<'_>,
        object: Object,
        keys: &'static [Key],
        path: &str,
    ) -> BTreeMap<String, Shape> {
        let mut tables = BTreeMap::new();
        for (name, value) in table {
            let at = self.spot(name);
            let problem = check_name(name.get_ref()).err();
            if let Some(problem) = problem {
                self.bad_name(at.clone(), object, name.get_ref(), problem);
            }
            let path = join(path, name.get_ref());
            if let DeValue::Table(inner) = value.get_ref() {
                // What is inside a misnamed table is checked all the same, but goes no further.
                let shape = self.table(inner, keys, &path, at);
                if problem.is_none() {
                    tables.insert(name.get_ref().to_string(), shape);
                }
            } else {
                let refusal = Refusal::new(
                    "E0102",
                    format!("expected a table, found {}", described(value.get_ref())),
                )
                .help(format!("write it as [{path}], with its keys below"));
                self.refuse(value, &path, refusal);
            }
        }
        tables
    }

    fn bad_name(&mut self, at: Spot, object: Object, name: &str, problem: NameError) {
        let message = format!(
            "`{}` can't be the name of a {}: {problem}",
            shown(name),
            object.word()
        );
        let fitting: String = name
            .to_lowercase()
            .replace(['_', ' ', '.', '/'], "-")
            .trim_matches('-')
            .to_owned();
        let help = check_name(&fitting)
            .is_ok()
            .then(|| format!("`{fitting}` would do"));
        self.findings
            .push(Diagnostic::error("E0106", at, message).help_if(help));
    }

    fn names(
        &mut self,
        whole: &Spanned<DeValue<'_>>,
        array: &toml::de::DeArray<'_>,
        path: &str,
    ) -> Option<Value> {
        if array.is_empty() || array.len() > REPLICAS_MAX {
            let message = format!("has {} entries, expected 1 to {REPLICAS_MAX}", array.len());
            self.refuse(whole, path, Refusal::new("E0103", message));
            return None;
        }
        let mut names = Vec::new();
        for item in array {
            match name_value(item.get_ref()) {
                Ok(name) => names.push(At {
                    value: name,
                    at: self.spot(item),
                }),
                Err(refusal) => self.refuse(item, path, refusal),
            }
        }
        (names.len() == array.len()).then_some(Value::Names(names))
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}
