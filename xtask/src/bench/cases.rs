//! The cases: what is asked of whom, on what.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::contenders::{Contender, Node, Volumes};
use super::load::Load;
use super::programs::Programs;
use super::rounds::Between;
use super::store::{DATA_OFFSET, Disk, Store, replicas};
use crate::shell::{self, TempDir};

const GIB: u64 = 1 << 30;
/// The device of the cases with one replica.
const SINGLE: u64 = 4 * GIB;
/// The mirror of two, and what most cases touch of it: disks are no larger than they have to be.
const PAIR: u64 = 8 * GIB;
const PART: u64 = 2 * GIB;
const TRIPLE: u64 = GIB;
/// Volumes in memory.
const MEMORY: u64 = GIB;
/// Sparse files, new for each round or emptied after it.
const SPARSE: u64 = 4 * GIB;

/// One case.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// A file of `fio-jobs/bench/`.
    job: &'static str,
    backing: Backing,
    /// Further arguments of `volund run`.
    args: &'static [&'static str],
    /// Seconds of load before each measurement, at least.
    pub(crate) warm: f64,
}

/// What the devices are made of.
#[derive(Clone, Copy, Debug)]
enum Backing {
    /// One file.
    Single,
    /// No disk: a memory pool against qemu's null-co, which fills every read with zeroes.
    Memory,
    /// Not even memory: volund's frontend alone against qemu's null-co, which does nothing.
    Null,
    /// Two or three files; fio writes them all. So many bytes are touched, with further lines of configuration.
    Mirror(u32, u64, &'static str),
    /// A mirror against a volume with one replica, on as much data.
    MirrorAndSingle,
    /// Files without any room yet, new for each round.
    Sparse(u32),
    /// One file whose room is taken before each round.
    Allocated,
}

const fn case(name: &'static str, job: &'static str, backing: Backing) -> Case {
    Case {
        name,
        about: "",
        job,
        backing,
        args: &[],
        warm: 0.0,
    }
}

impl Case {
    const fn about(self, about: &'static str) -> Case {
        Case { about, ..self }
    }

    const fn warmed(self, warm: f64) -> Case {
        Case { warm, ..self }
    }

    const fn with(self, args: &'static [&'static str]) -> Case {
        Case { args, ..self }
    }
}

pub(crate) const CASES: &[Case] = &[
    case("randread-d1", "randread-4k-d1", Backing::Single)
        .about("4 KiB random reads, depth 1, one file"),
    case("randread-d32", "randread-4k-d32", Backing::Single)
        .about("4 KiB random reads, depth 32, one file"),
    case("randwrite-d1", "randwrite-4k-d1", Backing::Single)
        .about("4 KiB random writes, depth 1, one file"),
    case("randwrite-d32", "randwrite-4k-d32", Backing::Single)
        .about("4 KiB random writes, depth 32, one file"),
    case("read-128k-d8", "read-128k-d8", Backing::Single)
        .about("128 KiB reads in order, depth 8, one file"),
    case("write-128k-d8", "write-128k-d8", Backing::Single)
        .about("128 KiB writes in order, depth 8, one file"),
    case("randread-d1-auto", "randread-4k-d1", Backing::Single)
        .with(&["--poll", "auto"])
        .about("4 KiB random reads, depth 1, one file; volund polls (`--poll auto`)"),
    case("queues4-randread-d32", "randread-4k-d32-q4", Backing::Single)
        .about("4 KiB random reads, 4 queues with depth 32 each, one file"),
    case("memory-randread-d32", "randread-4k-d32", Backing::Memory)
        .about("4 KiB random reads, depth 32, volund's memory pool against null-co"),
    case("memory-randwrite-d32", "randwrite-4k-d32", Backing::Memory)
        .about("4 KiB random writes, depth 32, volund's memory pool against null-co"),
    case("null", "randread-4k-d128", Backing::Null)
        .about("4 KiB random reads, depth 128, that do nothing: the protocol alone"),
    case("mirror2-randwrite-d32", "randwrite-4k-d32", Backing::Mirror(2, PART, ""))
        .about("4 KiB random writes, depth 32, two replicas; fio writes both files"),
    case("mirror2-write-128k-d8", "write-128k-d8", Backing::Mirror(2, PART, ""))
        .about("128 KiB writes in order, depth 8, two replicas; fio writes both files"),
    case("mirror2-intent-1024", "randwrite-4k-d32", Backing::Mirror(2, PAIR, "intent_max = 1024"))
        .about("4 KiB random writes, depth 32, two replicas, over 8 GiB with intent_max = 1024"),
    case("mirror3-randwrite-d32", "randwrite-4k-d32", Backing::Mirror(3, TRIPLE, ""))
        .about("4 KiB random writes, depth 32, three replicas; fio writes all files"),
    case("mirror2-randread-d32", "randread-4k-d32", Backing::MirrorAndSingle)
        .about("4 KiB random reads, depth 32, two replicas against a volume with one"),
    case("thin-first-writes", "randwrite-4k-d32", Backing::Sparse(1))
        .about("4 KiB random writes, depth 32, a new thin volume each round; fio on a sparse file"),
    case("mirror2-flush-32", "randwrite-4k-d32-sync32", Backing::Sparse(2))
        .warmed(2.0)
        .about("4 KiB random writes, depth 32, a flush every 32, a new thin mirror each round whose regions are marked; fio on two sparse files"),
    case("mirror2-flush-32-new", "randwrite-4k-d32-sync32", Backing::Sparse(2))
        .about("the same from the first moment on, while most batches mark a region that was never written"),
    case("discard-64k-d8", "trim-64k-d8", Backing::Allocated)
        .about("64 KiB discards at random places, depth 8, of a file that has its room"),
];

/// The case of this name.
pub(crate) fn named(name: &str) -> Result<&'static Case> {
    let known = || CASES.iter().map(|case| case.name).collect::<Vec<_>>();
    CASES
        .iter()
        .find(|case| case.name == name)
        .with_context(|| {
            format!(
                "there is no case {name:?}; there are {}",
                known().join(", ")
            )
        })
}

/// A case with everyone started.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) contenders: Vec<Contender>,
    pub(crate) load: Load,
    pub(crate) between: Between,
    /// After the contenders, which work in it.
    _scratch: Option<TempDir>,
}

/// What a case is started with.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) programs: &'a Programs,
    pub(crate) store: &'a Store,
    /// Further arguments of `volund run`.
    pub(crate) volund_args: &'a [String],
    /// Rounds, each of which may need devices of its own.
    pub(crate) rounds: u32,
    /// Contenders to take part, or all.
    pub(crate) only: &'a [String],
}

impl Case {
    /// Makes the disks that it needs.
    pub(crate) fn prepare(&self, store: &Store) -> Result<()> {
        match self.backing {
            Backing::Single => drop(single(store)?),
            Backing::Mirror(ways, span, _) => drop(mirror(store, ways, span)?),
            Backing::MirrorAndSingle => {
                single(store)?;
                mirror(store, 2, PART)?;
            }
            Backing::Memory | Backing::Null | Backing::Sparse(_) | Backing::Allocated => {}
        }
        Ok(())
    }

    /// Its job, on so many bytes.
    pub(crate) fn load(&self, size: u64) -> Result<Load> {
        Load::read(self.job, size)
    }

    /// Starts everyone.
    pub(crate) fn start(&self, entry: &Entry<'_>) -> Result<Setup> {
        let (mut scratch, mut between) = (None, Between::Nothing);
        let load = |size| self.load(size);
        let (load, contenders) = match self.backing {
            Backing::Single => {
                let load = load(SINGLE)?;
                let disk = single(entry.store)?;
                entry.store.warm(&disk, load.size)?;
                let contenders = self.on_file(entry, &disk, &load)?;
                (load, contenders)
            }
            Backing::Memory => {
                let load = load(MEMORY)?;
                let contenders = self.in_memory(entry, &load)?;
                (load, contenders)
            }
            Backing::Null => {
                let load = load(MEMORY)?;
                let contenders = self.on_nothing(entry, &load)?;
                (load, contenders)
            }
            Backing::Mirror(ways, span, more) => {
                let load = load(span)?;
                let disk = mirror(entry.store, ways, span)?;
                entry.store.warm(&disk, load.size)?;
                let contenders = self.on_mirror(entry, &disk, more, &load)?;
                (load, contenders)
            }
            Backing::MirrorAndSingle => {
                let load = load(PART)?;
                let contenders = self.mirror_and_single(entry, &load)?;
                (load, contenders)
            }
            Backing::Sparse(ways) => {
                let load = load(SPARSE)?;
                let folder = scratch.insert(scratch_folder(entry.store)?).path();
                between = Between::Punch;
                let contenders = self.on_sparse(entry, (folder, ways, entry.rounds + 1), &load)?;
                (load, contenders)
            }
            Backing::Allocated => {
                let load = load(SPARSE)?;
                let folder = scratch.insert(scratch_folder(entry.store)?).path();
                between = Between::Allocate;
                let mut contenders = self.on_sparse(entry, (folder, 1, 1), &load)?;
                // fio's discards of files are made one at a time, whatever the depth.
                contenders.retain(|contender| contender.name != "fio");
                (load, contenders)
            }
        };
        if contenders.is_empty() {
            bail!("{}: none of these contenders takes part", self.name);
        }
        Ok(Setup {
            contenders,
            load,
            between,
            _scratch: scratch,
        })
    }

    fn on_file(&self, entry: &Entry<'_>, disk: &Disk, load: &Load) -> Result<Vec<Contender>> {
        let files = disk.files()?;
        let mut all = Vec::new();
        if entry.takes("volund") {
            let volumes = disk.volumes(load.queues, "");
            all.push(self.volund(entry, &volumes, Some(&disk.state()))?);
        }
        for (name, binary) in entry.qemus() {
            let nodes = [Node::File(files[0].clone())];
            all.push(Contender::qemu(name, binary, &nodes, load)?);
        }
        if entry.takes("fio") {
            all.push(Contender::fio(vec![files]));
        }
        Ok(all)
    }

    fn in_memory(&self, entry: &Entry<'_>, load: &Load) -> Result<Vec<Contender>> {
        let mut all = Vec::new();
        if entry.takes("volund") {
            let volumes = Volumes {
                pools: vec![format!("memory = \"{}MiB\"", (2 * load.size) >> 20)],
                count: 1,
                size: load.size,
                queues: load.queues,
                more: String::new(),
            };
            all.push(self.volund(entry, &volumes, None)?);
        }
        for (name, binary) in entry.qemus() {
            all.push(Contender::qemu(name, binary, &[Node::Zeroes], load)?);
        }
        Ok(all)
    }

    fn on_nothing(&self, entry: &Entry<'_>, load: &Load) -> Result<Vec<Contender>> {
        let mut all = Vec::new();
        if entry.takes("volund") {
            let null = &entry.programs.null;
            all.push(Contender::volund_null(null, load, entry.volund_args)?);
        }
        for (name, binary) in entry.qemus() {
            all.push(Contender::qemu(name, binary, &[Node::Null], load)?);
        }
        Ok(all)
    }

    fn on_mirror(
        &self,
        entry: &Entry<'_>,
        disk: &Disk,
        more: &str,
        load: &Load,
    ) -> Result<Vec<Contender>> {
        let mut all = Vec::new();
        if entry.takes("volund") {
            let volumes = disk.volumes(load.queues, more);
            all.push(self.volund(entry, &volumes, Some(&disk.state()))?);
        }
        if entry.takes("fio") {
            all.push(Contender::fio(vec![disk.files()?]));
        }
        Ok(all)
    }

    fn mirror_and_single(&self, entry: &Entry<'_>, load: &Load) -> Result<Vec<Contender>> {
        let (pair, alone) = (mirror(entry.store, 2, PART)?, single(entry.store)?);
        for disk in [&pair, &alone] {
            entry.store.warm(disk, load.size)?;
        }
        let mut all = self.on_mirror(entry, &pair, "", load)?;
        // fio reads one of the files, as a mirror does.
        all.retain(|contender| contender.name != "fio");
        for contender in self.on_file(entry, &alone, load)? {
            if contender.name == "volund" {
                all.push(contender.named("volund-single"));
            } else if contender.name == "fio" {
                all.push(contender);
            }
        }
        Ok(all)
    }

    /// `count` new volumes with so many replicas each, and as many sparse files for the others.
    fn on_sparse(
        &self,
        entry: &Entry<'_>,
        (folder, ways, count): (&Path, u32, u32),
        load: &Load,
    ) -> Result<Vec<Contender>> {
        let mut all = Vec::new();
        if entry.takes("volund") {
            let pools: Vec<PathBuf> = (0..ways)
                .map(|number| folder.join(format!("pool{number}")))
                .collect();
            let volumes = Volumes {
                pools: pools.iter().map(|path| Volumes::pool_at(path)).collect(),
                count,
                size: load.size,
                queues: load.queues,
                more: String::new(),
            };
            let state = folder.join("state");
            let volund = self.volund(entry, &volumes, Some(&state))?;
            let mut files = Vec::new();
            for pool in &pools {
                files.extend(replicas(pool)?);
            }
            all.push(volund.on(vec![files]));
        }
        // Only volund mirrors.
        if ways == 1 {
            for (name, binary) in entry.qemus() {
                let sets = sparse_files(folder, name, (ways, count), load)?;
                let nodes: Vec<Node> = sets.iter().flatten().cloned().map(Node::File).collect();
                all.push(Contender::qemu(name, binary, &nodes, load)?.on(sets));
            }
        }
        if entry.takes("fio") {
            all.push(Contender::fio(sparse_files(
                folder,
                "fio",
                (ways, count),
                load,
            )?));
        }
        Ok(all)
    }

    fn volund(
        &self,
        entry: &Entry<'_>,
        volumes: &Volumes,
        state: Option<&Path>,
    ) -> Result<Contender> {
        let mut args: Vec<String> = self.args.iter().map(|&arg| arg.to_owned()).collect();
        args.extend_from_slice(entry.volund_args);
        Contender::volund(&entry.programs.volund, volumes, state, &args)
    }
}

impl Entry<'_> {
    fn takes(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    fn qemus(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.programs
            .qemus
            .iter()
            .map(|(name, binary)| (name.as_str(), binary.as_path()))
            .filter(|(name, _)| self.takes(name))
    }
}

fn single(store: &Store) -> Result<Disk> {
    store.disk("single", 1, SINGLE, SINGLE)
}

fn mirror(store: &Store, ways: u32, span: u64) -> Result<Disk> {
    match ways {
        2 => store.disk("pair", 2, PAIR, span),
        _ => store.disk("triple", ways, TRIPLE, span),
    }
}

fn scratch_folder(store: &Store) -> Result<TempDir> {
    std::fs::create_dir_all(&store.folder)?;
    TempDir::below(&store.folder, "scratch")
}

/// Files like replicas: a header that is written, then nothing.
fn sparse_files(
    folder: &Path,
    name: &str,
    (ways, count): (u32, u32),
    load: &Load,
) -> Result<Vec<Vec<PathBuf>>> {
    let mut sets = Vec::new();
    for number in 0..count {
        let mut set = Vec::new();
        for way in 0..ways {
            let path = folder.join(format!("{name}-{number}-{way}"));
            let header = vec![0; usize::try_from(DATA_OFFSET)?];
            std::fs::write(&path, header)?;
            let file = std::fs::OpenOptions::new().write(true).open(&path)?;
            file.set_len(DATA_OFFSET + load.size)?;
            set.push(path);
        }
        sets.push(set);
    }
    shell::capture(shell::command("sync").arg("--file-system").arg(folder))?;
    Ok(sets)
}
