//! Whether what somebody asks for can be done, before the engine is asked.

use uuid::Uuid;

use super::Reconciler;
use crate::model::VolumeName;
use crate::model::fault::Fault;
use crate::model::observed::ObservedQuarantine;
use crate::reconcile::handle::{Answer, Refusal};

impl Reconciler {
    pub(super) fn quarantined(&self, entry: &str) -> Answer<&ObservedQuarantine> {
        let (_, observed) = &self.last;
        let found = observed.quarantine.iter().find(|known| known.id == entry);
        found.ok_or_else(|| {
            Refusal::NotFound(format!(
                "the quarantine has no \"{entry}\": `volund quarantine list` shows what it has"
            ))
        })
    }

    /// Whether this is something that nobody declares.
    pub(super) fn orphaned(&self, id: Uuid) -> Answer<()> {
        let mut orphans = self.snapshot.status.orphans.iter();
        if orphans.any(|orphan| orphan.id == Some(id)) {
            return Ok(());
        }
        Err(Refusal::NotFound(format!(
            "there is no orphan \"{id}\": `volund orphans list` shows what there is"
        )))
    }

    /// Under which name an entry may be brought back.
    pub(super) fn restorable(&self, entry: &str, name: Option<VolumeName>) -> Answer<VolumeName> {
        let found = self.quarantined(entry)?;
        let renamed = name.is_some();
        let name = name.unwrap_or_else(|| found.volume.clone());
        let (_, observed) = &self.last;
        if observed.volumes.contains_key(&name) {
            return Err(Refusal::Conflict(format!(
                "a volume \"{name}\" exists: choose another name with --as"
            )));
        }
        let wanted = self.config.as_ref().map(|config| &config.desired.volumes);
        if !renamed && !wanted.is_some_and(|volumes| volumes.contains_key(&name)) {
            return Err(Refusal::Conflict(format!(
                "the configuration has no volume \"{name}\", so its data would go to quarantine again: add \
                 [volume.{name}], and its data comes back by itself"
            )));
        }
        Ok(name)
    }

    /// Whether the configuration in force lets anyone break things; what is broken may always be mended.
    pub(super) fn injectable(&self, faults: &[Fault]) -> Answer<()> {
        let mut zone = self.config.iter().map(|config| config.desired.danger_zone);
        if faults.is_empty() || zone.any(|zone| zone.fault_injection) {
            return Ok(());
        }
        Err(Refusal::Conflict(
            "fault injection is off: set `fault_injection = true` in [danger_zone] of the configuration and restart the \
             daemon"
                .to_owned(),
        ))
    }
}
