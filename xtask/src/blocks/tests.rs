//! What `blocks` must notice, on a plain file. The state file tells what may be there after an error or a power cut.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;

use super::*;

/// A folder for one test, below the build folder: the system's place for temporary files may not know direct I/O.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let parent = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .find(|dir| dir.join("Cargo.lock").exists());
        let dir = parent
            .unwrap()
            .join("target")
            .join(format!("blocks-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        File::create(dir.join("disk"))
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
        Folder(dir)
    }

    fn blocks(&self, verb: &str, more: &str) -> String {
        let disk = self.0.join("disk").display().to_string();
        let state = self.0.join("state").display().to_string();
        let line =
            format!("{verb} {disk} --bytes 1MiB --seed 7 --jobs 2 {more}").replace("STATE", &state);
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        run(&args).map_or_else(|error| format!("{error:#}"), |()| "fine".to_owned())
    }

    fn disk(&self) -> File {
        OpenOptions::new()
            .write(true)
            .open(self.0.join("disk"))
            .unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _left_for_the_next_clean = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_run_verifies_again_later_and_a_changed_bit_is_found() {
    let folder = Folder::new("bit");
    assert_eq!(folder.blocks("run", "--ops 50"), "fine");
    assert_eq!(folder.blocks("check", "--ops 50"), "fine");
    assert!(folder.blocks("check", "--ops 51").contains("expected"));
    folder.disk().write_all_at(&[0xff], 5 * 4096 + 100).unwrap();
    assert!(folder.blocks("check", "--ops 50").contains("torn"));
    folder.disk().write_all_at(&[0; 4096], 5 * 4096).unwrap();
    assert!(
        folder
            .blocks("check", "--ops 50")
            .contains("holds version 0")
    );
}

#[test]
fn scattered_writes_add_up_and_are_verified() {
    let folder = Folder::new("scatter");
    let scatter = |more: &str| folder.blocks("scatter", &format!("--state STATE {more}"));
    assert_eq!(scatter("--ops 5"), "fine");
    assert_eq!(scatter("--ops 5 --per-op 1"), "fine");
    assert_eq!(scatter("--ops 0"), "fine");
    let models: Vec<Model> =
        serde_json::from_slice(&std::fs::read(folder.0.join("state")).unwrap()).unwrap();
    let writes: u64 = models.iter().flat_map(|model| &model.acked).sum();
    assert_eq!(writes, 2 * (5 * 16 + 5));
    assert!(models[0].acked.contains(&0), "it stays thin");
    let written = models[0].acked.iter().position(|version| *version > 0);
    let at = written.unwrap() as u64 * 4096;
    folder.disk().write_all_at(&[0; 4096], at).unwrap();
    assert!(scatter("--ops 0").contains("holds version 0"));
    assert!(folder.blocks("scatter", "--per-op 33").contains("--per-op"));
}

#[test]
fn after_a_power_cut_a_flushed_version_must_be_there() {
    let folder = Folder::new("cut");
    assert_eq!(folder.blocks("run", "--ops 50 --state STATE"), "fine");
    assert_eq!(
        folder.blocks("check", "--state STATE --after-power-cut yes"),
        "fine"
    );

    // The run noted that block 3 was flushed; now one version before is found, then it is said not to have been flushed.
    let path = folder.0.join("state");
    let mut models: Vec<Model> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    models[0].issued[3] += 1;
    models[0].acked[3] += 1;
    std::fs::write(&path, serde_json::to_vec(&models).unwrap()).unwrap();
    assert!(
        folder
            .blocks("check", "--state STATE")
            .contains("block 3 holds version")
    );
    assert_eq!(
        folder.blocks("check", "--state STATE --after-power-cut yes"),
        "fine"
    );
    models[0].flushed[3] += 1;
    std::fs::write(&path, serde_json::to_vec(&models).unwrap()).unwrap();
    let found = folder.blocks("check", "--state STATE --after-power-cut yes");
    assert!(found.contains("block 3 holds version"), "{found}");
}
