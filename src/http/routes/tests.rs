//! The document says what the routers do, and the reverse.

use std::collections::BTreeSet;

use super::*;
use crate::http::problem::Code;

/// `GET /v1/status`, one per operation of a document.
fn documented(document: &OpenApi) -> BTreeSet<(String, String)> {
    let document = serde_json::to_value(document).unwrap();
    let paths = document["paths"].as_object().unwrap().clone();
    let operations = paths.into_iter().flat_map(|(path, item)| {
        let methods = item
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>();
        methods
            .into_iter()
            .map(move |method| (method, path.clone()))
    });
    operations.collect()
}

/// The paths that a router knows, as its `Debug` output has them.
fn routed(router: OpenApiRouter<Api>) -> BTreeSet<String> {
    let (router, _) = router.split_for_parts();
    let text = format!("{router:?}");
    let quoted = text.split('"').skip(1).step_by(2);
    quoted
        .filter(|text| text.starts_with('/') && !text.contains("__private__"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_route_is_in_the_document_and_the_reverse() {
    let document = document();
    let documented: BTreeSet<String> = documented(&document).into_iter().map(|(_, p)| p).collect();
    let routed = routed(readable().merge(questions()).merge(commands()));
    assert!(
        routed.len() > 15,
        "the router's text is not what it was: {routed:?}"
    );
    assert_eq!(documented, routed);
}

#[test]
fn every_operation_is_described_and_every_reference_leads_somewhere() {
    let document = serde_json::to_value(document()).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let summary = operation["summary"].as_str().unwrap_or_default();
            assert!(!summary.is_empty(), "{method} {path} has no summary");
            let parameters = operation["parameters"].as_array();
            let named = parameters.into_iter().flatten();
            let named: BTreeSet<&str> = named
                .filter(|parameter| parameter["in"] == "path")
                .filter_map(|parameter| parameter["name"].as_str())
                .collect();
            let wanted = path.split('/').filter_map(|part| part.strip_prefix('{'));
            let wanted = wanted.filter_map(|part| part.strip_suffix('}'));
            assert_eq!(named, wanted.collect(), "{method} {path}");
        }
    }
    let text = document.to_string();
    let references = text.split("\"$ref\":\"").skip(1);
    let references: BTreeSet<&str> = references
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert!(references.len() > 10, "{references:?}");
    for reference in references {
        let found = document.pointer(reference.trim_start_matches('#'));
        assert!(found.is_some(), "{reference} leads nowhere");
    }
}

/// `docs/api.md` has every operation and every code, with its status and meaning, and none that is not there.
#[test]
fn the_documentation_says_the_same() {
    let text = include_str!("../../../docs/api.md");
    let rows = |header: &str| {
        let lines = text
            .lines()
            .skip_while(move |line| !line.starts_with(header));
        let lines = lines.skip(2).take_while(|line| line.starts_with('|'));
        let cells = lines.map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells
                .map(|cell| cell.trim().trim_matches('`').to_owned())
                .collect::<Vec<_>>()
        });
        cells.collect::<Vec<_>>()
    };
    let codes = Code::TABLE.iter().map(|(code, status, meaning)| {
        vec![
            format!("{code:?}"),
            status.as_u16().to_string(),
            (*meaning).to_owned(),
        ]
    });
    assert_eq!(rows("| code |"), codes.collect::<Vec<_>>());
    let routes = rows("| route |").into_iter().map(|cells| {
        let (method, path) = cells[0].split_once(' ').unwrap();
        (method.to_lowercase(), path.to_owned())
    });
    assert_eq!(routes.collect::<BTreeSet<_>>(), documented(&document()));
}
