//! Tests of the configuration as a whole: the key table against the parser, examples, documents, and hostile input.

use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::keys::{self, Kind};
use super::source::SourceFile;
use super::{FILE_BORDER, exercise, load_for, parse, reference, schema};
use crate::model::NodeName;
use crate::model::policy::{NodePolicy, VolumePolicy};
use crate::model::spec::{BlockSize, DesiredState, ExportSpec, OnRemove, PoolBacking};
use crate::units::{Bytes, GIB};

fn node() -> NodeName {
    "n1".parse().unwrap()
}

fn parse_one(text: &str) -> super::Parsed {
    parse(&[SourceFile::new("x.toml", text)], &node())
}

fn good(text: &str) -> DesiredState {
    match parse_one(text) {
        Ok((state, warnings)) if warnings.is_empty() => state,
        other => panic!("{text}\n{other:?}"),
    }
}

fn codes_of(text: &str) -> Vec<&'static str> {
    match parse_one(text) {
        Ok((_, findings)) | Err(findings) => findings.iter().map(|found| found.code).collect(),
    }
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_default_is_filled_in() {
    let state = good(
        "version = 1\n[pool.main]\npath = \"/srv/main\"\n[pool.ram]\nmemory = \"1GiB\"\n\
         [volume.db]\nsize = \"20GiB\"\npool = \"main\"\nexport = { vhost-user = {} }\n\
         [volume.blk]\nsize = \"20GiB\"\npool = \"main\"\n[volume.blk.export.ublk]\n",
    );
    assert_eq!(state.this_node, node());
    assert!(state.nodes.is_empty());
    assert_eq!(state.safety.max_removals, 1);
    let pool = &state.pools[&"main".parse().unwrap()];
    assert_eq!(
        pool.backing,
        PoolBacking::Directory(PathBuf::from("/srv/main"))
    );
    assert_eq!((pool.reserve, &pool.node), (Bytes(GIB), &node()));
    assert_eq!(state.pools[&"ram".parse().unwrap()].reserve, Bytes(0));
    let volume = &state.volumes[&"db".parse().unwrap()];
    assert_eq!(volume.size, Bytes(20 * GIB));
    assert_eq!(volume.replicas, ["main".parse().unwrap()]);
    assert!(volume.thin && !volume.read_only);
    assert_eq!(volume.block_size, BlockSize::B4096);
    assert_eq!(volume.on_remove, OnRemove::Retain);
    assert_eq!(volume.quarantine_for, Duration::from_secs(7 * 86400));
    assert_eq!(volume.renamed_from, None);
    assert_eq!(volume.policy, VolumePolicy::default());
    assert_eq!(volume.force_start, None);
    assert_eq!(state.policy, NodePolicy::default());
    assert!(!state.danger_zone.fault_injection);
    let vhost_user = ExportSpec::VhostUser {
        socket: None,
        queues: 16,
        depth: 256,
        pin_guest_memory: false,
    };
    assert_eq!(volume.export, vhost_user);
    let ublk = &state.volumes[&"blk".parse().unwrap()];
    assert_eq!(
        ublk.export,
        ExportSpec::Ublk {
            id: None,
            depth: 128
        }
    );
}

#[test]
fn a_volumes_own_words_go_before_the_defaults() {
    let state = good(
        "version = 1\n[pool.main]\npath = \"/srv/main\"\n\
         [defaults.volume]\nthin = false\nblock_size = 512\non_remove = \"delete\"\nquarantine_for = \"1h\"\n\
         [volume.a]\nsize = \"1GiB\"\npool = \"main\"\n\
         [volume.b]\nsize = \"1GiB\"\npool = \"main\"\nthin = true\nblock_size = 4096\non_remove = \"retain\"\n",
    );
    let a = &state.volumes[&"a".parse().unwrap()];
    assert_eq!(
        (a.thin, a.block_size, a.on_remove),
        (false, BlockSize::B512, OnRemove::Delete)
    );
    assert_eq!(a.quarantine_for, Duration::from_secs(3600));
    let b = &state.volumes[&"b".parse().unwrap()];
    assert_eq!(
        (b.thin, b.block_size, b.on_remove),
        (true, BlockSize::B4096, OnRemove::Retain)
    );
    assert_eq!(b.quarantine_for, Duration::from_secs(3600));
}

#[test]
fn a_volume_is_on_the_node_of_its_pools_unless_it_says_otherwise() {
    let nodes = "version = 1\n[cluster]\nid = \"0197f0a4-5d3c-7c1e-9b1e-3f2d8a4c6e10\"\n\
         [node.n1]\naddress = \"a:1\"\n[node.n2]\naddress = \"b:1\"\n\
         [pool.p1]\nnode = \"n1\"\npath = \"/p\"\n[pool.p2]\nnode = \"n2\"\npath = \"/p\"\n";
    let check = |volume: &str, expected: &str| {
        let state = good(&format!("{nodes}[volume.v]\nsize = \"1GiB\"\n{volume}\n"));
        assert_eq!(state.volumes[&"v".parse().unwrap()].node.as_str(), expected);
    };
    check("pool = \"p2\"", "n2");
    check("replicas = [\"p1\", \"p2\"]\nnode = \"n2\"", "n2");
    // A nexus may run where none of its replicas is.
    check("pool = \"p2\"\nnode = \"n1\"", "n1");
    let both = format!("{nodes}[volume.v]\nsize = \"1GiB\"\nreplicas = [\"p1\", \"p2\"]\n");
    assert_eq!(codes_of(&both), ["E0207"]);
}

/// A configuration that uses the key `name` with the value `value` and is otherwise fine.
fn configuration_with(name: &str, value: &str) -> String {
    let (table, key) = name.rsplit_once('.').unwrap_or(("", name));
    let name = match table.split('.').next().unwrap_or("") {
        "volume" => "v",
        "node" => "n1",
        _ => "p",
    };
    let table = table.replace("NAME", name);
    let mut text = String::new();
    if key != "version" {
        text.push_str("version = 1\n");
    } else {
        text.push_str(&format!("{key} = {value}\n"));
        return text;
    }
    text.push_str(&format!("[{table}]\n{key} = {value}\n"));
    if key == "node" {
        text.push_str("[node.n1]\n");
    }
    if table == "pool.p" && key != "path" && key != "memory" {
        text.push_str("[pool.p]\npath = \"/srv/p\"\n");
    }
    if table.ends_with("force_start") && key != "from" {
        text.push_str("from = \"0197f0a4-5d3c-7c1e-9b1e-3f2d8a4c6e11\"\n");
    }
    if table.ends_with("force_start") && key != "at_gen" {
        text.push_str("at_gen = 7\n");
    }
    if table.starts_with("volume") {
        text.push_str("[pool.a]\npath = \"/srv/a\"\n[pool.b]\npath = \"/srv/b\"\n[pool.main]\npath = \"/srv/m\"\n");
        text.push_str("[volume.v]\n");
        if key != "size" {
            text.push_str("size = \"1GiB\"\n");
        }
        if key != "pool" && key != "replicas" {
            text.push_str("pool = \"a\"\n");
        }
    }
    merged(&text)
}

/// Joins tables that `text` writes twice, as TOML wants it.
fn merged(text: &str) -> String {
    let mut tables: Vec<(String, String)> = vec![(String::new(), String::new())];
    for line in text.lines() {
        if line.starts_with('[') {
            if !tables.iter().any(|(header, _)| header == line) {
                tables.push((line.to_owned(), String::new()));
            }
            let at = tables
                .iter()
                .position(|(header, _)| header == line)
                .unwrap();
            let table = tables.remove(at);
            tables.push(table);
        } else {
            let (_, body) = tables.last_mut().unwrap();
            body.push_str(line);
            body.push('\n');
        }
    }
    // The keys of the top go first.
    tables.sort_by_key(|(header, _)| !header.is_empty());
    tables
        .iter()
        .map(|(header, body)| format!("{header}\n{body}"))
        .collect()
}

#[test]
fn the_parser_reads_every_key_of_the_table() {
    let mut count = 0;
    keys::walk(&mut |name, key| {
        if matches!(
            key.kind,
            Kind::Table(_) | Kind::Tables(..) | Kind::WordOrTable(..)
        ) {
            return;
        }
        count += 1;
        assert!(
            !key.sample.is_empty() && !key.default.is_empty() && !key.change.is_empty(),
            "{name}"
        );
        let text = configuration_with(name, key.sample);
        assert_eq!(codes_of(&text), Vec::<&str>::new(), "{name}\n{text}");
        // A value of another type is refused at this very key.
        let text = configuration_with(name, "1979-05-27");
        let refused = codes_of(&text);
        assert!(refused.contains(&"E0102"), "{name}: {refused:?}\n{text}");
    });
    assert!(count > 20, "{count}");
}

/// The dotted names of all properties of a JSON Schema.
fn schema_keys(prefix: &str, schema: &serde_json::Value, found: &mut Vec<String>) {
    if let Some(properties) = schema["properties"].as_object() {
        for (name, property) in properties {
            found.push(format!("{prefix}{name}"));
            schema_keys(&format!("{prefix}{name}."), property, found);
        }
    }
    if schema["additionalProperties"].is_object() {
        schema_keys(
            &format!("{prefix}NAME."),
            &schema["additionalProperties"],
            found,
        );
    }
    for alternative in schema["anyOf"].as_array().into_iter().flatten() {
        schema_keys(prefix, alternative, found);
    }
}

#[test]
fn the_schema_has_exactly_the_keys_of_the_table() {
    let mut known = Vec::new();
    keys::walk(&mut |name, _| known.push(name.to_owned()));
    let mut found = Vec::new();
    schema_keys("", &schema::schema(), &mut found);
    known.sort();
    found.sort();
    assert_eq!(found, known);
}

#[test]
fn every_example_is_fine() {
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(repository().join("configs")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir()
            || path
                .extension()
                .is_some_and(|extension| extension == "toml")
        {
            sources.push(path);
        }
    }
    assert!(sources.len() >= 6, "{sources:?}");
    for source in sources {
        let loaded = load_for(&source, None);
        assert!(loaded.findings().is_empty(), "{}", loaded.report(false));
        let (state, _) = loaded.result.expect("no findings");
        assert!(!state.volumes.is_empty(), "{}", source.display());
    }
}

/// Compares a generated text with what a file has, or writes it when `UPDATE_GOLDEN` is set.
fn in_step(path: &str, generated: &str, embed: impl Fn(&str, &str) -> String) {
    let path = repository().join(path);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let expected = embed(&text, generated);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &expected).unwrap();
    } else {
        assert!(
            text == expected,
            "{} is out of step: run the tests with UPDATE_GOLDEN=1",
            path.display()
        );
    }
}

/// Replaces what stands between `<!-- NAME begin -->` and `<!-- NAME end -->`.
fn between(name: &'static str) -> impl Fn(&str, &str) -> String {
    move |text, generated| {
        let begin = format!("<!-- {name} begin -->\n");
        let end = format!("<!-- {name} end -->");
        let start = text.find(&begin).expect("the begin mark") + begin.len();
        let stop = text.find(&end).expect("the end mark");
        format!("{}{generated}{}", &text[..start], &text[stop..])
    }
}

#[test]
fn the_documents_are_in_step_with_the_key_table() {
    in_step("docs/config.md", &reference::keys(), between("keys"));
    in_step("docs/config.md", &reference::codes(), between("codes"));
    in_step("docs/errors.md", &reference::errors(), |_, generated| {
        generated.to_owned()
    });
    in_step(
        "configs/volund.schema.json",
        &schema::text(),
        |_, generated| generated.to_owned(),
    );
}

#[test]
fn toml_in_the_documents_is_fine() {
    for path in ["docs/config.md", "docs/howto/qemu.md", "README.md"] {
        let text = std::fs::read_to_string(repository().join(path)).unwrap();
        let blocks: Vec<&str> = text.split("```toml\n").skip(1).collect();
        assert!(!blocks.is_empty(), "{path}");
        for block in blocks {
            good(block.split("```").next().unwrap());
        }
    }
}

#[test]
fn tables_may_be_spread_over_files_in_any_order() {
    let text = std::fs::read_to_string(repository().join("configs/single-node.toml")).unwrap();
    let (top, tables) = text.split_once("\n[").unwrap();
    let tables: Vec<String> = tables
        .split("\n[")
        .map(|table| format!("[{table}\n"))
        .collect();
    // A volume's own sub-table has to stay with it.
    let mut objects: Vec<String> = Vec::new();
    for table in tables {
        match objects.last_mut() {
            Some(volume) if table.starts_with("[volume.db.") => volume.push_str(&table),
            _ => objects.push(table),
        }
    }
    assert!(objects.len() > 5, "{objects:?}");
    let whole = good(&text);
    let mut files = vec![SourceFile::new("top.toml", top)];
    for (index, object) in objects.iter().rev().enumerate() {
        files.push(SourceFile::new(format!("{index:02}.toml"), object.as_str()));
    }
    assert_eq!(
        parse(&files, &node()).expect("the example is fine").0,
        whole
    );
}

#[test]
fn the_last_good_text_parses_to_the_same_state() {
    let loaded = load_for(&repository().join("configs/two-nodes"), Some(&node()));
    let (state, _) = loaded.result.expect("the example is fine");
    let kept = super::source::encode(&loaded.files);
    let files = super::source::decode(&kept).unwrap();
    assert_eq!(super::source::hash(&files), loaded.hash);
    assert_eq!(
        parse(&files, &node()).expect("the example is fine").0,
        state
    );
}

#[test]
fn no_files_at_all_is_an_error_without_a_place() {
    assert!(parse(&[], &node()).is_err());
}

mod copies;

/// Words from which almost-configurations are made.
const WORDS: &[&str] = &[
    "version",
    "pool",
    "volume",
    "node",
    "cluster",
    "defaults",
    "safety",
    "export",
    "vhost-user",
    "ublk",
    "size",
    "path",
    "memory",
    "replicas",
    "renamed_from",
    "scrub",
    "force_start",
    "rebuild_bandwidth",
    "retry",
    "multiplier",
    "io_timeout",
    "\"7d\"",
    "\"never\"",
    "\"9MiB/s\"",
    "1.5",
    "main",
    "db",
    "n1",
    "=",
    " = ",
    ".",
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    ",",
    "\n",
    "\r\n",
    "\"",
    "'",
    "\"\"\"",
    "'''",
    "#",
    "\\",
    "\\u0000",
    "1",
    "-1",
    "0x",
    "1e9",
    "true",
    "1979-05-27",
    "\"1GiB\"",
    "\"main\"",
    "\"/srv\"",
    "\"10G\"",
    "[\"main\"]",
    "\u{feff}",
    "\u{202e}",
    "\u{1f600}",
    "\t",
    " ",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_are_refused_politely(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        exercise(&bytes);
    }

    #[test]
    fn arbitrary_text_is_refused_politely(text in "\\PC{0,200}", more in "[\\[\\]a-z.=\"'{}#\n ,0-9]{0,200}") {
        exercise(format!("{text}\n{FILE_BORDER}\n{more}").as_bytes());
    }

    #[test]
    fn almost_configurations_are_refused_politely(
        words in proptest::collection::vec(proptest::sample::select(WORDS), 0..80),
    ) {
        exercise(words.concat().as_bytes());
    }

    #[test]
    fn cut_and_spliced_examples_are_refused_politely(from in 0_usize..1400, length in 0_usize..40, word in proptest::sample::select(WORDS)) {
        let mut text = std::fs::read(repository().join("configs/single-node.toml")).unwrap();
        let from = from.min(text.len());
        let to = (from + length).min(text.len());
        text.splice(from..to, word.bytes());
        exercise(&text);
    }
}
