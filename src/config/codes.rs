//! Every code that findings and conditions carry, with what `volund explain` says about it.
//!
//! Codes are stable: a code keeps its meaning for ever, and one that is no longer used is not given to another.
//! E00xx: a file can't be read as TOML. E01xx: a key or a value is wrong by itself. E02xx: objects contradict one
//! another. E03xx: the configuration is fine, but the step from what exists to it is refused.

/// What there is to say about a code.
#[derive(Clone, Copy, Debug)]
pub struct Explanation {
    /// `E0204`.
    pub code: &'static str,
    /// What it is, in half a sentence.
    pub title: &'static str,
    /// How it comes about.
    pub cause: &'static str,
    /// What causes it, as TOML or a command.
    pub example: &'static str,
    /// What to do.
    pub fix: &'static str,
}

/// The explanation of `code`, in either case.
#[must_use]
pub fn find(code: &str) -> Option<&'static Explanation> {
    ALL.iter()
        .find(|known| known.code.eq_ignore_ascii_case(code))
}

/// The code that is closest to one that does not exist.
#[must_use]
pub fn closest(code: &str) -> Option<&'static str> {
    super::diagnostic::closest(
        &code.to_ascii_uppercase(),
        ALL.iter().map(|known| known.code),
    )
}

const fn code(
    code: &'static str,
    title: &'static str,
    cause: &'static str,
    example: &'static str,
    fix: &'static str,
) -> Explanation {
    Explanation {
        code,
        title,
        cause,
        example,
        fix,
    }
}

/// All codes, in order.
pub static ALL: &[Explanation] = &[
    code(
        "E0001",
        "the file is not TOML",
        "The text breaks the rules of TOML: a string without quotes, a bracket that is not closed, a table or key that \
         is written twice.",
        "[volume.db]\nsize = 20GiB",
        "Mend the place under the caret. Sizes, durations and names are strings and need quotes: size = \"20GiB\".",
    ),
    code(
        "E0002",
        "a file can't be read",
        "The path given with --config, or a *.toml file in that directory, does not exist, may not be read, or is not a \
         regular file (a directory, a pipe, a symlink to nowhere).",
        "volund check /etc/volnud",
        "Give the right path, or mend the file's permissions. In a directory, rename what is not configuration so that \
         it does not end in .toml.",
    ),
    code(
        "E0003",
        "a file is not text",
        "The file has bytes that are not UTF-8, or a NUL. TOML is always UTF-8.",
        "volund check disk.img",
        "Save the file as UTF-8. If it was text once, it may have been cut off or overwritten by a crash: look at the \
         byte that the message names.",
    ),
    code(
        "E0004",
        "a file is too large",
        "A file has more than 4 MiB, a line more than 4096 bytes or 32 dots, or a directory more than 1000 files. The \
         limits keep a wrong file from taking the daemon's memory, and are far above what a configuration needs.",
        "volund check /var/log/syslog",
        "Check that the path is right. Split a very large configuration into several files of one directory.",
    ),
    code(
        "E0005",
        "there is no configuration",
        "A directory has no *.toml file, or a file has no key at all. Emptiness is never taken as \"no volumes\": it is \
         what a checkout, an editor or a full disk leaves behind for a moment.",
        "mkdir /etc/volund; volund check /etc/volund",
        "Write at least `version = 1`. Remove files that are empty on purpose.",
    ),
    code(
        "E0101",
        "a key is not known",
        "A table has a key that volund does not know. Unknown keys are errors because a misspelt one would silently do \
         nothing.",
        "[volume.db]\nsise = \"20GiB\"",
        "Take the suggestion, or look the key up in docs/config.md. A key of a newer release needs that release.",
    ),
    code(
        "E0102",
        "a value is of the wrong type",
        "The key is known, but its value is, for instance, a string where a table is expected.",
        "[volume.db]\nthin = \"yes\"",
        "Write what the message expects. Booleans and integers have no quotes; sizes, durations, paths and names have.",
    ),
    code(
        "E0103",
        "a value is not one of the possible ones",
        "A number is outside its range, a word is not one of those that the key knows, or a list has too few or too \
         many entries.",
        "[volume.db]\nblock_size = 1024",
        "Take one of the values that the message lists.",
    ),
    code(
        "E0104",
        "a required key is missing",
        "Something has no default and must be said: the schema's `version`, a volume's `size`.",
        "[volume.db]\npool = \"main\"",
        "Add the key.",
    ),
    code(
        "E0105",
        "a table is in two files",
        "Two files of the directory define the same object, or both have [cluster], [safety] or [defaults]. volund does \
         not guess which one is meant and does not mix them.",
        "# 10.toml\n[pool.main]\npath = \"/a\"\n# 20.toml\n[pool.main]\npath = \"/b\"",
        "Keep one of the two places that the message shows.",
    ),
    code(
        "E0106",
        "a name is not possible",
        "Names of nodes, pools and volumes become file names, host names and metric labels, so they are DNS labels: 1 to \
         63 of a-z, 0-9 and `-`, with a letter or digit at both ends.",
        "[volume.\"../db\"]",
        "Choose a name that follows the rule.",
    ),
    code(
        "E0110",
        "a size is unclear",
        "Sizes are whole numbers with one of the units KiB, MiB, GiB and TiB. Others are refused, because 10G means \
         10000000000 bytes to some tools and 10737418240 to others.",
        "[volume.db]\nsize = \"100G\"",
        "Write one of the two readings that the message gives.",
    ),
    code(
        "E0111",
        "a duration is unclear",
        "Durations are numbers with units: d, h, m, s, ms, also combined. A bare number has no unit.",
        "[volume.db]\nquarantine_for = \"7\"",
        "Write \"7d\", \"36h\", \"1h 30m\", \"45s\" or \"500ms\". A day is 24 hours.",
    ),
    code(
        "E0112",
        "the schema's version is not known",
        "The files are written for another version of the schema. Nothing else is checked, because it might mean \
         something else there.",
        "version = 2",
        "Upgrade volund on this node, or write the files for the version that the message names.",
    ),
    code(
        "E0113",
        "a size or duration is out of range",
        "The value is well written, but too small, too large, or not a multiple of what it must be.",
        "[volume.db]\nsize = \"3KiB\"",
        "Take a value in the range that the message names. Volumes are multiples of 4KiB.",
    ),
    code(
        "E0114",
        "a path, address or UUID is malformed",
        "Paths are absolute and without `..`; a socket's path has at most 107 bytes, the limit of unix(7). Addresses are \
         host:port. UUIDs have five groups of hexadecimal digits.",
        "[pool.main]\npath = \"data/main\"",
        "Write it as the message says.",
    ),
    code(
        "E0201",
        "not exactly one of several alternatives",
        "A pool has exactly one of `path` and `memory`; a volume exactly one of `pool` and `replicas`; an export exactly \
         one of `vhost-user` and `ublk`, or is the word \"none\".",
        "[pool.main]\npath = \"/var/lib/volund/main\"\nmemory = \"1GiB\"",
        "Keep one of them.",
    ),
    code(
        "E0202",
        "a pool is named twice",
        "Two replicas of a volume in one pool are lost together, so the second one protects from nothing.",
        "[volume.db]\nreplicas = [\"main\", \"main\"]",
        "Name another pool, or drop the entry.",
    ),
    code(
        "E0204",
        "a pool does not exist",
        "A volume names a pool that no file declares.",
        "[volume.db]\npool = \"mian\"",
        "Take the suggestion, or declare the pool as [pool.NAME].",
    ),
    code(
        "E0205",
        "a node does not exist",
        "A pool or a volume names a node that no file declares.",
        "[pool.main]\nnode = \"n3\"",
        "Take the suggestion, declare the node as [node.NAME], or drop `node` where there is only one machine.",
    ),
    code(
        "E0206",
        "this node is not declared",
        "Once one [node.*] is declared, all must be, so that a wrong host name can't make a machine do nothing, or the \
         work of another. The node's name is --node, else the host name.",
        "volund run --node n9",
        "Declare the node, or start the daemon with the right --node. `volund check` without --node does not ask.",
    ),
    code(
        "E0207",
        "a node must be named",
        "With more than one node, each pool must say which node has it, and a volume whose pools are on several nodes \
         must say which of them mirrors and exports it.",
        "[node.n1]\n[node.n2]\n[pool.main]\npath = \"/var/lib/volund/main\"",
        "Add `node = \"...\"`.",
    ),
    code(
        "E0208",
        "two exports want one socket",
        "Two volumes of a node have the same socket path, or one has the path that another gets by default \
         (/run/volund/<volume>.sock), or that of the daemon's own admin.sock.",
        "[volume.a.export.vhost-user]\nsocket = \"/run/volund/b.sock\"\n[volume.b.export.vhost-user]",
        "Give one of them another path, or drop `socket` from both.",
    ),
    code(
        "E0209",
        "two exports want one device number",
        "Two volumes of a node have the same ublk `id`.",
        "[volume.a.export.ublk]\nid = 0\n[volume.b.export.ublk]\nid = 0",
        "Change one, or drop `id`: /dev/volund/<volume> is the stable name anyway.",
    ),
    code(
        "E0210",
        "pools overlap",
        "Two pools of a node have the same directory, or one is inside the other.",
        "[pool.a]\npath = \"/srv\"\n[pool.b]\npath = \"/srv/b\"",
        "Put them beside each other.",
    ),
    code(
        "E0211",
        "a rename is not possible",
        "`renamed_from` names a volume that is still declared, or that two volumes want to take over, or the volume \
         itself.",
        "[volume.a]\nrenamed_from = \"b\"\n[volume.b]\nrenamed_from = \"a\"",
        "Rename one at a time, to a name that is free, and apply each change before the next one.",
    ),
    code(
        "E0212",
        "several nodes need more",
        "With more than one node, [cluster] needs an `id`, which keeps the replicas of two clusters apart, and each node \
         an `address` where its peers reach it.",
        "[node.n1]\n[node.n2]",
        "Add [cluster] with `id = \"...\"` (`uuidgen` makes one; it never changes), and each node's `address`.",
    ),
    code(
        "E0213",
        "two nodes have one address",
        "Two [node.*] tables have the same `address`.",
        "[node.n1]\naddress = \"10.0.0.11:4420\"\n[node.n2]\naddress = \"10.0.0.11:4420\"",
        "Mend the one that was copied.",
    ),
    code(
        "E0216",
        "a memory pool is too small",
        "A volume is larger than the memory pool that it names, less 1MiB for the replica's header and the pool's \
         `reserve`; or the reserve leaves nothing.",
        "[pool.ram]\nmemory = \"1GiB\"\n[volume.scratch]\nsize = \"1GiB\"\npool = \"ram\"",
        "Make the pool larger or the volume smaller.",
    ),
    code(
        "E0217",
        "a scrub can't repair from that pool",
        "`scrub.repair_from` names the pool whose replica is believed where two replicas differ, so it has to be one of \
         the pools that the volume has its replicas in.",
        "[volume.db]\nreplicas = [\"a\", \"b\"]\nscrub = { repair_from = \"c\" }",
        "Name one of the volume's pools, or drop `repair_from`: differences are then only reported.",
    ),
    code(
        "E0218",
        "the waits of [retry] contradict each other",
        "The first wait, `initial_wait`, is longer than the longest one, `max_wait`.",
        "[retry]\ninitial_wait = \"5m\"\nmax_wait = \"1m\"",
        "Make `initial_wait` shorter or `max_wait` longer.",
    ),
    code(
        "E0219",
        "two volumes have the same uuid",
        "`uuid` says which data a volume is. Two volumes with the same one would be two names for the same blocks, and \
         their clients would overwrite each other's data.",
        "[volume.db]\nuuid = \"0197f0a4-5d3c-7c1e-9b1e-3f2d8a4c6e10\"\n[volume.web]\nuuid = \"0197f0a4-5d3c-7c1e-9b1e-3f2d8a4c6e10\"",
        "Keep the key with the volume that the data is to be.",
    ),
    code(
        "E0301",
        "an immutable key was changed",
        "The files say something else about an existing object than what it was made with: a volume's `block_size`, `thin` \
         or `uuid`, a pool's `path`, `memory` or `node`. The old value stays in force and a condition says so.",
        "-block_size = 4096\n+block_size = 512",
        "Change it back. To really have the other value, make a new volume and copy the data. A pool that is not open \
         takes another path while no volume runs on it: one that was there before only where its own marker is.",
    ),
    code(
        "E0302",
        "a volume may not shrink",
        "The files give an existing volume a smaller `size`. What a client has written at the end would be cut off, so \
         the old size stays in force.",
        "-size = \"20GiB\"\n+size = \"10GiB\"",
        "Change it back, or make a new, smaller volume and copy the data.",
    ),
    code(
        "E0303",
        "the object is in use",
        "A change needs the volume's export to be unused: removing the volume, or changing `export`, `read_only` or \
         `node`. A guest is connected, or the ublk device is open.",
        "-[volume.db]",
        "Shut the guest down or unmount the device; the change is then made by itself. `volund status` shows the client.",
    ),
    code(
        "E0304",
        "too many removals at once",
        "One change of the files removes more volumes than `[safety] max_removals` allows, so none of them is removed. \
         Often it is a checkout that was caught half way, or a lost file.",
        "-[volume.a]\n-[volume.b]",
        "If it was not meant, put the tables back. If it was, remove them in smaller steps or raise `max_removals`.",
    ),
    code(
        "W0003",
        "the syntax is TOML 1.1",
        "Inline tables over several lines or with a trailing comma, and the escapes \\e and \\x, are TOML 1.1. volund \
         reads them, but taplo, tombi and Python's tomllib refuse the whole file.",
        "export = { ublk = {}, }",
        "Write the inline table in one line without a trailing comma, or as a table of its own: [volume.db.export.ublk].",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    /// All codes that stand as string literals in the sources, this file's aside.
    fn emitted(dir: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                emitted(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !path.ends_with("config/codes.rs")
            {
                let text = std::fs::read_to_string(&path).unwrap();
                for (at, _) in text.match_indices("\"E0").chain(text.match_indices("\"W0")) {
                    if let Some(literal) = text[at + 1..].split('"').next()
                        && literal.len() == 5
                        && literal[1..].bytes().all(|byte| byte.is_ascii_digit())
                    {
                        found.insert(literal.to_owned());
                    }
                }
            }
        }
    }

    #[test]
    fn every_code_in_the_sources_is_explained() {
        let mut found = BTreeSet::new();
        emitted(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
            &mut found,
        );
        assert!(found.len() > 20, "{found:?}");
        for code in &found {
            assert!(find(code).is_some(), "{code} has no explanation");
        }
        for known in ALL {
            // The E03xx are the planner's; what it does not emit in this release stays reserved.
            assert!(
                found.contains(known.code) || known.code.starts_with("E03"),
                "{} is not used",
                known.code
            );
        }
    }

    #[test]
    fn codes_are_sorted_and_complete() {
        assert!(ALL.windows(2).all(|pair| pair[0].code < pair[1].code));
        for known in ALL {
            for text in [known.title, known.cause, known.example, known.fix] {
                assert!(!text.trim().is_empty(), "{}", known.code);
            }
        }
        assert!(find("e0204").is_some());
        assert_eq!(closest("E204"), Some("E0204"));
    }
}
