//! A plan as `/v1/plan` and `volund plan` show it. Fields are only ever added.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::compare::list;
use super::step::{Goal, Impact, Plan, PoolAction, VolumeAction, VolumePlan};
use super::wording;
use crate::model::observed::{Observed, ObservedPool};
use crate::model::spec::PoolBacking;
use crate::units::Bytes;

/// A plan, for people and programs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanReport {
    /// What `volund approve` takes.
    pub id: String,
    /// One entry per object that changes or can't.
    pub changes: Vec<Change>,
    /// Objects that are added.
    pub to_add: usize,
    /// Objects that change.
    pub to_change: usize,
    /// Objects that go.
    pub to_remove: usize,
    /// Changes that can't be made.
    pub blocked: usize,
    /// Bytes of data that are gone afterwards.
    pub destroyed_bytes: u64,
    /// Whether the plan waits for `volund approve`.
    pub needs_approval: bool,
}

/// What changes about one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// `+` added, `~` changed, `-` removed, `!` can't be.
    pub symbol: char,
    /// `volume.db`.
    pub object: String,
    /// What and how, in a line.
    pub summary: String,
    /// What it costs: the most that a step does.
    pub impact: Impact,
    /// What is done, in this order; empty when nothing can be.
    #[serde(default)]
    pub steps: Vec<StepReport>,
    /// Why it can't be done, one CamelCase word; none when it can.
    pub reason: Option<String>,
}

/// One step of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepReport {
    /// What is done.
    pub summary: String,
    /// What it costs.
    pub impact: Impact,
}

impl StepReport {
    /// `size 1GiB -> 3GiB (online) [none]`
    fn text(&self) -> String {
        let cost = match self.impact {
            Impact::None => "none",
            Impact::DegradesRedundancy => "degrades redundancy",
            Impact::StallsIo => "stalls I/O",
            Impact::DestroysData => "destroys data",
        };
        format!("{} [{cost}]", self.summary)
    }
}

impl PlanReport {
    /// Sums a plan up. `observed` is what it was made from.
    #[must_use]
    pub fn new(plan: &Plan, observed: &Observed) -> Self {
        let mut report = Self {
            id: plan.id.clone(),
            needs_approval: !plan.held.is_empty(),
            ..Self::default()
        };
        report.add_pools(plan, observed);
        for (name, volume) in &plan.volumes {
            report.add_volume(name.as_str(), volume, observed);
        }
        for (entry, purge) in &plan.purges {
            report.destroyed_bytes = report.destroyed_bytes.saturating_add(purge.allocated.get());
            let step = StepReport {
                summary: format!("purged, {} destroyed", purge.allocated),
                impact: Impact::DestroysData,
            };
            report.add('-', format!("quarantine.{entry}"), "", vec![step]);
        }
        report
    }

    /// Whether anything is to be done.
    #[must_use]
    pub fn has_changes(&self) -> bool {
        self.to_add + self.to_change + self.to_remove > 0
    }

    /// Whether an export or data goes, now or once approved.
    #[must_use]
    pub fn has_removals(&self) -> bool {
        self.to_remove > 0 || self.needs_approval
    }

    /// Terraform's way of showing it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let width = self.changes.iter().map(|change| change.object.len());
        let width = width.max().unwrap_or(0);
        for change in &self.changes {
            let Change { symbol, object, .. } = change;
            // Writing to a String can't fail; so below.
            let _ = writeln!(text, "  {symbol} {object:width$}  {}", change.told());
        }
        if self.changes.is_empty() {
            text.push_str("No changes: the configuration is in force.\n");
            return text;
        }
        let _ = writeln!(
            text,
            "Plan: {} to add, {} to change, {} to remove ({} of data destroyed), {} blocked. Id {}.",
            self.to_add,
            self.to_change,
            self.to_remove,
            Bytes(self.destroyed_bytes),
            self.blocked,
            self.id
        );
        if self.needs_approval {
            let _ = writeln!(
                text,
                "The removals wait for `volund approve {}` once this configuration is in place.",
                self.id
            );
        }
        text
    }

    /// `note` is said after the steps.
    fn add(&mut self, symbol: char, object: String, note: &str, steps: Vec<StepReport>) {
        match symbol {
            '+' => self.to_add += 1,
            '-' => self.to_remove += 1,
            _ => self.to_change += 1,
        }
        let parts: Vec<&str> = steps.iter().map(|step| step.summary.as_str()).collect();
        let impact = steps.iter().map(|step| step.impact).max();
        self.changes.push(Change {
            symbol,
            object,
            summary: format!("{}{note}", parts.join("; ")),
            impact: impact.unwrap_or(Impact::None),
            steps,
            reason: None,
        });
    }

    fn add_blocked(&mut self, object: &str, blocked: &super::step::Blocked) {
        self.blocked += 1;
        self.changes.push(Change {
            symbol: '!',
            object: object.to_owned(),
            summary: blocked.message.clone(),
            impact: Impact::None,
            steps: Vec::new(),
            reason: Some(blocked.reason.clone()),
        });
    }

    fn add_pools(&mut self, plan: &Plan, observed: &Observed) {
        for (name, pool) in &plan.pools {
            let object = format!("pool.{name}");
            match &pool.action {
                Some(PoolAction::Open(spec)) => {
                    let symbol = if observed.pools.contains_key(name) {
                        '~'
                    } else {
                        '+'
                    };
                    let step = harmless(backing(&spec.backing));
                    self.add(symbol, object.clone(), "", vec![step]);
                }
                Some(PoolAction::Close) => {
                    let step = self.closing(observed.pools.get(name));
                    self.add('-', object.clone(), "", vec![step]);
                }
                None => {}
            }
            for blocked in &pool.blocked {
                self.add_blocked(&object, blocked);
            }
        }
    }

    /// Memory is gone with its pool, removed volumes that are still in it included.
    fn closing(&mut self, pool: Option<&ObservedPool>) -> StepReport {
        let memory = pool.filter(|pool| matches!(pool.spec.backing, PoolBacking::Memory(_)));
        let lost = memory.map_or(Bytes(0), |pool| pool.committed);
        if lost == Bytes(0) {
            return harmless("closed; its data stays".to_owned());
        }
        self.destroyed_bytes = self.destroyed_bytes.saturating_add(lost.get());
        StepReport {
            summary: format!("closed, {lost} in memory destroyed"),
            impact: Impact::DestroysData,
        }
    }

    fn add_volume(&mut self, name: &str, volume: &VolumePlan, observed: &Observed) {
        let object = format!("volume.{name}");
        if !volume.steps.is_empty() {
            let words = wording::steps(name, volume, observed).into_iter();
            let steps = words.zip(&volume.steps).map(|(summary, step)| StepReport {
                summary,
                impact: step.impact,
            });
            let mut note = String::new();
            if !volume.unknown_until.is_empty() {
                note = format!(" (known after opening {})", list(&volume.unknown_until));
            }
            self.add(symbol(volume), object.clone(), &note, steps.collect());
        }
        for blocked in &volume.blocked {
            self.add_blocked(&object, blocked);
        }
    }
}

impl Change {
    /// The steps with what each costs or, when nothing can be done, why.
    fn told(&self) -> String {
        if self.steps.is_empty() {
            return self.summary.clone();
        }
        let said: Vec<&str> = self
            .steps
            .iter()
            .map(|step| step.summary.as_str())
            .collect();
        let note = self
            .summary
            .strip_prefix(&said.join("; "))
            .unwrap_or_default();
        let steps: Vec<String> = self.steps.iter().map(StepReport::text).collect();
        format!("{}{note}", steps.join("; "))
    }
}

fn harmless(summary: String) -> StepReport {
    StepReport {
        summary,
        impact: Impact::None,
    }
}

fn symbol(volume: &VolumePlan) -> char {
    let appears = |step: &VolumeAction| {
        matches!(
            step,
            VolumeAction::Ensure { creates: true, .. } | VolumeAction::Restore { .. }
        )
    };
    match volume.goal {
        Goal::Absent => '-',
        Goal::Present if volume.steps.iter().any(|step| appears(&step.action)) => '+',
        Goal::Present | Goal::Elsewhere => '~',
    }
}

/// Where a pool is: a path, or `memory 1GiB`.
#[must_use]
pub fn backing(backing: &PoolBacking) -> String {
    match backing {
        PoolBacking::Directory(path) => path.display().to_string(),
        PoolBacking::Memory(size) => format!("memory {size}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::plan::fixture::{Case, in_sync, in_use, running, spec};

    #[test]
    fn a_plan_reads_like_terraforms() {
        let mut smaller = spec(&["a"]);
        smaller.size = Bytes(1 << 20);
        let mut changed = spec(&["b"]);
        changed.size = Bytes(3 << 30);
        changed.policy.io_timeout = std::time::Duration::from_millis(1500);
        changed.policy.rebuild_bandwidth = 100 << 20;
        let mut case = Case::new()
            .wants("db", changed)
            .has("db", running(&["a"]))
            .wants("web", spec(&["a", "b"]))
            .wants("logs", smaller)
            .has("logs", in_use(running(&["a"])))
            .has("old", running(&["a"]));
        let plan = case.plan();
        let report = PlanReport::new(&plan, &case.observed);
        let text = report.text();
        let mut lines = text.lines();
        assert_eq!(
            lines.next(),
            Some(
                "  ~ volume.db    io_timeout 10s -> 1.5s, rebuild_bandwidth unlimited -> 100MiB/s [none]; size 1GiB -> \
                 3GiB (online) [none]; replica added on b, up to 3GiB to copy [none]"
            )
        );
        assert_eq!(
            lines.next(),
            Some(
                "  ! volume.db    volume \"db\" keeps its replica in \"a\" until the others are in sync: the one in \"b\" \
                 is not there yet"
            )
        );
        assert_eq!(
            lines.next(),
            Some(
                "  ! volume.logs  size 1GiB -> 1MiB refused: volume \"logs\" would lose its end (E0302); make a \
                 new volume and copy"
            )
        );
        assert_eq!(
            lines.next(),
            Some(
                "  - volume.old   export removed [none]; data kept in quarantine (retain), 0B [none]"
            )
        );
        assert_eq!(
            lines.next(),
            Some("  + volume.web   1GiB thin on a, b [none]; vhost-user [none]")
        );
        let total = lines.next().unwrap();
        assert!(
            total.starts_with(
                "Plan: 1 to add, 1 to change, 1 to remove (0B of data destroyed), 2 blocked. Id "
            ),
            "{total}"
        );
        assert!(report.has_changes() && report.has_removals() && !report.needs_approval);
    }

    #[test]
    fn a_replica_that_goes_is_said_to_degrade_redundancy() {
        let mut volume = running(&["a", "b"]);
        volume.replicas = ["a", "b"].map(in_sync).to_vec();
        let mut case = Case::new().wants("db", spec(&["a"])).has("db", volume);
        let plan = case.plan();
        let text = PlanReport::new(&plan, &case.observed).text();
        let line = "  ~ volume.db  replica on b removed, 1MiB freed [degrades redundancy]\n";
        assert!(text.starts_with(line), "{text}");
    }
}
