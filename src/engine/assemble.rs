//! From files to a running volume: [`Engine::ensure_volume`].

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

use super::engine::Engine;
use super::error::EngineError;
use super::gather::Gathered;
use super::inject::breakable;
use super::keeper;
use super::live::{self, Books, Live, LiveEnv};
use crate::io::{Alignment, BlockDevice, Disk, FileDevice, Local, MemoryDevice};
use crate::model::observed::{AppliedVolume, RemovalPolicy};
use crate::model::policy::{ForceStart, VolumePolicy};
use crate::model::spec::{BlockSize, VolumeSpec};
use crate::model::{NodeId, PoolId, PoolName, ReplicaId, VolumeId, VolumeName};
use crate::nexus::{
    Candidate, Health, Nexus, NexusSpec, NexusStatus, Parts, Policy, Presence, Timeouts,
};
use crate::pool::{Opened, OpenedFile};
use crate::replica::layout::DATA_OFFSET;
use crate::replica::{Label, MemberState};
use crate::state::WitnessFile;
use crate::units::Bytes;
use crate::volume::{Counters, Geometry, Volume};

/// A witness file is written through the page cache with RWF_DSYNC: the state folder may be anywhere.
const WITNESS_ALIGNMENT: Alignment = Alignment {
    offset: 512,
    memory: 1,
};

/// A replica on its way to the reactor.
#[derive(Debug)]
pub(super) struct Bring {
    pub(super) pool: PoolName,
    pub(super) pool_id: Option<PoolId>,
    pub(super) replica: Option<ReplicaId>,
    pub(super) what: Brought,
}

/// What is brought of a replica.
#[derive(Debug)]
pub(super) enum Brought {
    File(OpenedFile),
    /// Blank memory of this size, bytes.
    Memory(u64),
    Absent(String),
}

/// All that a reactor needs to start a volume.
#[derive(Debug)]
pub(super) struct Starter {
    pub(super) spec: NexusSpec,
    pub(super) node: NodeId,
    /// None for volumes that are in memory only: their witness goes with them.
    pub(super) witness: Option<std::os::fd::OwnedFd>,
    pub(super) replicas: Vec<Bring>,
    /// Whether the volume is made, or found.
    pub(super) creates: bool,
    pub(super) counters: Arc<Counters>,
}

impl Engine {
    /// Makes a volume run: assembles it from the replicas that carry its name in the listed pools or, when there has
    /// never been one, creates it (spec A0). `spec.replicas` names pools of this node only.
    ///
    /// # Errors
    /// What is missing, ambiguous or failing; it then stays in [`Engine::observe`] as the volume's problem.
    pub async fn ensure_volume(
        &self,
        name: &VolumeName,
        spec: &VolumeSpec,
    ) -> Result<(), EngineError> {
        self.ensure(name, spec, true).await
    }

    /// As [`Engine::ensure_volume`], of a volume that was seen: should its replicas be gone by now, none are made.
    ///
    /// # Errors
    /// As [`Engine::ensure_volume`]; `DataMissing` when there is no replica of it.
    pub async fn open_volume(
        &self,
        name: &VolumeName,
        spec: &VolumeSpec,
    ) -> Result<(), EngineError> {
        self.ensure(name, spec, false).await
    }

    async fn ensure(
        &self,
        name: &VolumeName,
        spec: &VolumeSpec,
        may_create: bool,
    ) -> Result<(), EngineError> {
        let _turn = self.turn(name).await;
        if let Some(live) = self.live(name) {
            if !live.has_stopped() {
                self.close_journal(live.id).await?;
                return self.remember(live.id, spec, None).await;
            }
            // Who stopped it did not get further.
            live.stop().await?;
            self.volumes().remove(name);
        }
        self.coming().insert(name.clone(), spec.replicas.clone());
        let result = self.bring_up(name, spec, may_create).await;
        self.coming().remove(name);
        match &result {
            Ok(()) => drop(self.problems().remove(name)),
            Err(error) => drop(self.problems().insert(name.clone(), error.problem())),
        }
        self.touch();
        result
    }

    async fn bring_up(
        &self,
        name: &VolumeName,
        spec: &VolumeSpec,
        may_create: bool,
    ) -> Result<(), EngineError> {
        let mut gathered = self.gather(name, &spec.replicas).await;
        if self.clear_unfinished(name, spec.on_create_fail).await? {
            gathered = self.gather(name, &spec.replicas).await;
        }
        let ids: Vec<VolumeId> = self.ids_of(name, &gathered).into_iter().collect();
        match ids.as_slice() {
            [] => {
                self.check_creatable(name, spec.renamed_from.as_ref(), &gathered)?;
                if !may_create || spec.uuid.is_some() {
                    return Err(replicas_gone(name));
                }
                self.create_volume(name, spec).await
            }
            [id] if spec.uuid.is_none_or(|wanted| wanted == *id) => {
                self.check_not_another(name, *id, spec.uuid)?;
                self.assemble_volume((name, *id), spec).await
            }
            [id] => Err(EngineError::new(
                "NameTaken",
                format!(
                    "the data of the name \"{name}\" is {id}, which is not the `uuid` of its table: nothing is opened"
                ),
            )),
            _ => Err(EngineError::new(
                "AmbiguousVolume",
                format!(
                    "replicas of {} different volumes carry the name \"{name}\"; nothing is opened: move the files of \
                     the wrong one out of the pool's folder \"replicas\"",
                    ids.len()
                ),
            )),
        }
    }

    async fn assemble_volume(
        &self,
        (name, id): (&VolumeName, VolumeId),
        spec: &VolumeSpec,
    ) -> Result<(), EngineError> {
        let _claim = self.claim_idle(id).await?;
        self.undo_removal(id).await;
        let (gathered, spec) = &self.gather_members(name, id, spec).await;
        let label = gathered.newest_label(id).cloned();
        let label = label.ok_or_else(|| replicas_gone(name))?;
        let replicas = self.bring_replicas(id, spec, gathered, &label).await;
        let files = replicas.iter().filter_map(file_of).collect();
        let block_size = if label.lb_size == 512 {
            BlockSize::B512
        } else {
            BlockSize::B4096
        };
        let applied = AppliedVolume {
            size: Bytes(label.data_len),
            block_size,
            thin: Some(!label.is_thick()),
            replicas: spec.replicas.iter().cloned().collect(),
            members: label.members.len(),
            removal: RemovalPolicy::default(),
            policy: spec.policy.clone(),
        };
        let starter = Starter {
            spec: nexus_spec(name, id, &applied, spec.force_start),
            node: self.shared.state.node(),
            witness: Some(self.shared.state.open_witness(id)?),
            replicas,
            creates: false,
            counters: Arc::default(),
        };
        self.remember(id, spec, None).await?;
        self.launch(name, starter, Books { applied, files }).await?;
        self.book_table(name).await?;
        if gathered.labels_of(id).any(|label| label.name != *name) {
            // They have the name now, and the other one is free.
            self.gather(name, &spec.replicas).await;
        }
        Ok(())
    }

    /// Opens and locks every replica of a volume, all pools at once.
    async fn bring_replicas(
        &self,
        id: VolumeId,
        spec: &VolumeSpec,
        gathered: &Gathered,
        newest: &Label,
    ) -> Vec<Bring> {
        let patience = spec.policy.degraded_wait;
        let mut opening = tokio::task::JoinSet::new();
        let recorded = self.shared.store.volume(id).unwrap_or_default().replicas;
        let mut order = 0usize;
        for pool in &spec.replicas {
            let here: Vec<_> = gathered
                .active
                .iter()
                .filter(|(p, found)| p == pool && belongs(found.label.as_ref(), id))
                .map(|(_, found)| found.clone())
                .collect();
            let absent = |why: String| Brought::Absent(why);
            if here.is_empty() {
                let offline = gathered.offline.iter().find(|(p, _)| p == pool);
                let what = match offline {
                    // Why that is so is said of the pool.
                    Some(_) => absent(format!("pool \"{pool}\" is offline")),
                    None if self.is_memory(pool) => Brought::Memory(newest.file_len()),
                    None => absent(format!("pool \"{pool}\" has no replica of this volume")),
                };
                let replica = recorded.get(pool).copied();
                let replica = replica.or_else(|| only_unmatched(newest, gathered));
                let pool_id = self.pool_id(pool);
                let bring = Bring {
                    pool: pool.clone(),
                    pool_id,
                    replica,
                    what,
                };
                opening.spawn(std::future::ready((order, bring)));
                order += 1;
            }
            for found in here {
                let handle = self.open_one(pool);
                let (pool, pool_id) = (pool.clone(), self.pool_id(pool));
                opening.spawn(async move {
                    let replica = found.place.replica();
                    let what = match (found.fault, handle) {
                        (Some(fault), _) => Brought::Absent(fault.to_string()),
                        (None, Err(error)) => Brought::Absent(error.to_string()),
                        (None, Ok(handle)) => match handle.open(replica, patience).await {
                            Ok(Opened::File(file)) => Brought::File(file),
                            Ok(Opened::Memory { size }) => Brought::Memory(size),
                            Err(error) => Brought::Absent(EngineError::from(error).to_string()),
                        },
                    };
                    (
                        order,
                        Bring {
                            pool,
                            pool_id,
                            replica: Some(replica),
                            what,
                        },
                    )
                });
                order += 1;
            }
        }
        let mut brought = opening.join_all().await;
        brought.sort_by_key(|(order, _)| *order);
        brought.into_iter().map(|(_, bring)| bring).collect()
    }

    /// Starts a volume on a reactor and takes it into the books.
    pub(super) async fn launch(
        &self,
        name: &VolumeName,
        starter: Starter,
        books: Books,
    ) -> Result<(), EngineError> {
        let id = starter.spec.id;
        let is_memory_only = starter.witness.is_none();
        let reactor = self.place();
        let counters = Arc::clone(&starter.counters);
        let (status, receiver) = watch::channel(live::initial_status());
        let changes = Arc::clone(&self.shared.changes);
        let started = reactor.run(move |local| start(local, starter, status, changes));
        started.await.map_err(|_| EngineError::stopping())??;
        if !is_memory_only {
            self.witness_names().insert(id, name.clone());
        }
        let placed = (reactor, counters);
        let live = Live::new(id, placed, receiver, books, is_memory_only);
        let health = live.status.borrow().health;
        tracing::info!(volume = %name, %id, reactor = live.reactor.index(), ?health, "serving");
        let live = Arc::new(live);
        self.volumes().insert(name.clone(), Arc::clone(&live));
        keeper::start(self, &live);
        Ok(())
    }
}

fn replicas_gone(name: &VolumeName) -> EngineError {
    EngineError::new(
        "DataMissing",
        format!(
            "the replicas of volume \"{name}\" are gone from the pools' folders \"replicas\"; nothing is created in \
             their place: put them back, or declare the pool that has them"
        ),
    )
}

pub(super) fn no_such_volume(name: &VolumeName) -> EngineError {
    EngineError::new(
        "NotFound",
        format!("there is no volume \"{name}\" on this node"),
    )
}

fn belongs(label: Option<&Label>, id: VolumeId) -> bool {
    label.is_some_and(|label| label.volume == id)
}

/// The one member of the table that no file here belongs to, if it is only one.
fn only_unmatched(newest: &Label, gathered: &Gathered) -> Option<ReplicaId> {
    let here: BTreeSet<ReplicaId> = gathered
        .labels_of(newest.volume)
        .map(|label| label.replica)
        .collect();
    let members = newest.members.iter();
    let members = members.filter(|m| m.state != MemberState::Removed);
    let mut unmatched = members.filter(|m| !here.contains(&m.replica));
    match (unmatched.next(), unmatched.next()) {
        (Some(member), None) => Some(member.replica),
        _ => None,
    }
}

pub(super) fn file_of(bring: &Bring) -> Option<(PoolName, ReplicaId)> {
    match bring.what {
        Brought::File(_) => Some((bring.pool.clone(), bring.replica?)),
        Brought::Memory(_) | Brought::Absent(_) => None,
    }
}

pub(super) fn nexus_spec(
    name: &VolumeName,
    id: VolumeId,
    applied: &AppliedVolume,
    force_start: Option<ForceStart>,
) -> NexusSpec {
    let force_start = force_start.map(|force| crate::nexus::ForceStart {
        from: force.from,
        at_generation: force.at_gen,
    });
    NexusSpec {
        name: name.clone(),
        id,
        size: applied.size.get(),
        block_size: applied.block_size.bytes(),
        thick: applied.thin == Some(false),
        policy: nexus_policy(&applied.policy),
        force_start,
    }
}

/// The part of a volume's policy that its nexus goes by.
pub(super) fn nexus_policy(policy: &VolumePolicy) -> Policy {
    Policy {
        timeouts: Timeouts {
            io: policy.io_timeout,
            commit: policy.commit_timeout,
            read_hedge: policy.read_hedge,
        },
        intent_max: policy.intent_max,
        rebuild_bandwidth: policy.rebuild_bandwidth,
    }
}

/// Length of a replica's file for a volume of `size`, bytes.
pub(super) const fn replica_len(size: Bytes) -> u64 {
    DATA_OFFSET.saturating_add(size.get())
}

/// On the reactor: builds the nexus, shows it as a volume, and reports its status from then on.
async fn start(
    local: Local,
    starter: Starter,
    status: watch::Sender<NexusStatus>,
    changes: Arc<watch::Sender<u64>>,
) -> Result<(), EngineError> {
    let Starter {
        spec,
        node,
        witness,
        replicas,
        creates,
        counters,
    } = starter;
    let record = match witness {
        Some(fd) => {
            let len = crate::state::witness::FILE_LEN;
            Disk::File(local.file(fd, len, WITNESS_ALIGNMENT, true))
        }
        None => Disk::Memory(MemoryDevice::new(crate::state::witness::FILE_LEN)),
    };
    let witness = WitnessFile::new(record, local.buffers().clone(), spec.id);
    let buffers = local.buffers().clone();
    let parts: Parts<LiveEnv> = Parts::new(
        local.clone(),
        local.clone(),
        local.clone(),
        witness,
        buffers,
        node,
    );
    // A test build with a bug, `VOLUND_MUTANT=FlushNoop`, so that tests with real parts can show that they notice.
    #[cfg(feature = "mutants")]
    let parts = parts.with_mutant(std::env::var("VOLUND_MUTANT").ok().and_then(|wanted| {
        let mut all = crate::nexus::Mutant::all();
        all.find(|mutant| format!("{mutant:?}") == wanted)
    }));
    let thick = spec.thick;
    let candidates = replicas
        .into_iter()
        .map(|b| candidate(&local, b, thick))
        .collect();
    let (name, id) = (spec.name.clone(), spec.id);
    let nexus = if creates {
        Nexus::create(parts, spec, candidates).await?
    } else {
        Nexus::assemble(parts, spec, candidates).await?
    };
    let geometry = Geometry {
        size: nexus.size(),
        block_size: nexus.alignment().offset,
        read_only: false,
    };
    // Before anybody is told that it runs: who asks next sees how it runs.
    let _ = status.send(nexus.status());
    live::insert(
        &local,
        Volume::new((name, id), nexus.clone(), local.clone(), geometry, counters),
    );
    crate::io::Spawn::spawn(&local, report(nexus, status, changes));
    Ok(())
}

/// Sends the nexus's status whenever it changes, until it has stopped.
async fn report(
    nexus: Nexus<LiveEnv>,
    status: watch::Sender<NexusStatus>,
    changes: Arc<watch::Sender<u64>>,
) {
    let mut seen = 0;
    loop {
        seen = nexus.changed(seen).await;
        let now = nexus.status();
        let stopped = now.health == Health::Stopped;
        if status.send(now).is_err() || stopped {
            return;
        }
        changes.send_modify(|count| *count += 1);
    }
}

pub(super) fn candidate(local: &Local, bring: Bring, thick: bool) -> Candidate<Disk> {
    let (volatile, presence) = match bring.what {
        Brought::File(file) => {
            let disk = Disk::File(file_disk(local, file, thick));
            let disk = breakable(local, bring.replica, disk);
            (false, Presence::Present(disk))
        }
        Brought::Memory(size) => {
            let disk = Disk::Memory(MemoryDevice::new(size));
            let disk = breakable(local, bring.replica, disk);
            (true, Presence::Present(disk))
        }
        Brought::Absent(why) => (false, Presence::Absent(why)),
    };
    Candidate {
        pool: bring.pool,
        pool_id: bring.pool_id,
        replica: bring.replica,
        volatile,
        presence,
    }
}

fn file_disk(local: &Local, file: OpenedFile, thick: bool) -> FileDevice {
    local.file(
        file.fd,
        file.size,
        file.alignment,
        file.thick.unwrap_or(thick),
    )
}
