//! What the fuzz targets do with one input. The integration tests replay the corpora through the same functions.

use volund::config::{self, SourceFile};
use volund::replica::Label;

/// TOML text: it is parsed, and what is found is rendered, without a panic. The byte 0xff stands between two files.
pub(crate) fn config(data: &[u8]) {
    let files: Vec<SourceFile> = data
        .split(|byte| *byte == 0xff)
        .enumerate()
        .map(|(at, bytes)| SourceFile::new(format!("{at}.toml"), bytes))
        .collect();
    let node = "n1".parse().expect("a valid node name");
    let parsed = config::parse(&files, &node);
    let findings = match &parsed {
        Ok((_, warnings)) => warnings,
        Err(findings) => {
            assert!(!findings.is_empty(), "a refusal says why");
            findings
        }
    };
    assert!(findings.is_empty() || !config::render::human(&files, findings, true).is_empty());
    assert!(config::render::json(&files, findings).is_array());
    assert!(findings.is_empty() || !config::render::github(&files, findings).is_empty());
}

/// A label slot: any bytes are refused or give a label that reads back the same. The checksum is mended first, since
/// chance never gets past it.
pub(crate) fn label(data: &[u8]) {
    let _refused_or_not = Label::decode(data);
    let mut slot = [0; 4096];
    let length = data.len().min(4092);
    slot[..length].copy_from_slice(&data[..length]);
    let checksum = crc32c::crc32c(&slot[..4092]);
    slot[4092..].copy_from_slice(&checksum.to_le_bytes());
    if let Ok(label) = Label::decode(&slot)
        && label.check().is_ok()
    {
        assert_eq!(
            Label::decode(&label.encode()).expect("an encoded label decodes"),
            label
        );
    }
}

/// Messages of a vhost-user front end.
pub(crate) fn vhost_messages(data: &[u8]) {
    volund::frontend::vhost_user::fuzz::messages(data);
}

/// Descriptor chains of a guest.
pub(crate) fn vhost_chains(data: &[u8]) {
    volund::frontend::vhost_user::fuzz::chains(data);
}
