//! Makes a scenario smaller while it still breaks the same rule.

use super::scenario::{End, Kind, Scenario};
use crate::nexus::Policy;

/// How often a scenario is played at most.
const PLAYS_MAX: u32 = 4000;
/// How many orders of events each smaller scenario is tried with: what is taken out shifts all random choices.
const ORDERS: u64 = 3;

/// The smallest scenario that was found, and what it breaks. `play` says what a scenario breaks, if anything.
pub(super) fn shrink(
    scenario: Scenario,
    play: impl Fn(&Scenario) -> Option<String>,
) -> Option<(Scenario, String)> {
    let broken = play(&scenario)?;
    let mut shrinker = Shrinker {
        rule: rule(&broken).to_owned(),
        best: scenario,
        broken,
        plays: 0,
        play,
    };
    loop {
        let before = shrinker.best.weight();
        shrinker.pass();
        if shrinker.best.weight() == before || shrinker.plays >= PLAYS_MAX {
            return Some((shrinker.best, shrinker.broken));
        }
    }
}

struct Shrinker<P> {
    /// What must stay broken.
    rule: String,
    best: Scenario,
    broken: String,
    plays: u32,
    play: P,
}

impl<P: Fn(&Scenario) -> Option<String>> Shrinker<P> {
    /// Whether a change leaves the rule broken; then it is kept.
    fn keep(&mut self, change: impl Fn(&mut Scenario)) -> bool {
        let mut smaller = self.best.clone();
        change(&mut smaller);
        if smaller.weight() >= self.best.weight() {
            return false;
        }
        for order in 0..ORDERS {
            if self.plays >= PLAYS_MAX {
                return false;
            }
            self.plays += 1;
            smaller.seed = self.best.seed.wrapping_add(order);
            if let Some(broken) = (self.play)(&smaller).filter(|b| rule(b) == self.rule) {
                self.best = smaller;
                self.broken = broken;
                return true;
            }
        }
        false
    }

    /// Tries to take out parts of a list, big ones first. `count` says how long it is, `remove` takes out a part.
    fn thin_out(
        &mut self,
        count: impl Fn(&Scenario) -> usize,
        remove: impl Fn(&mut Scenario, std::ops::Range<usize>),
    ) {
        let mut part = count(&self.best).next_power_of_two();
        while part > 0 {
            let mut end = count(&self.best);
            while end > 0 {
                let start = end.saturating_sub(part);
                self.keep(|scenario| remove(scenario, start..end));
                end = start.min(count(&self.best));
            }
            part /= 2;
        }
    }

    fn pass(&mut self) {
        self.thin_out(|s| s.cycles.len(), |s, part| drop(s.cycles.drain(part)));
        for cycle in 0..self.best.cycles.len() {
            self.thin_out(
                |s| s.cycles[cycle].troubles.len(),
                |s, part| drop(s.cycles[cycle].troubles.drain(part)),
            );
            self.thin_out(
                |s| s.cycles[cycle].tasks.len(),
                |s, part| drop(s.cycles[cycle].tasks.drain(part)),
            );
            for list in 0..self.best.cycles[cycle].tasks.len() {
                self.thin_out(
                    |s| s.cycles[cycle].tasks[list].len(),
                    |s, part| drop(s.cycles[cycle].tasks[list].drain(part)),
                );
            }
            self.thin_out(
                |s| s.cycles[cycle].starts.len(),
                |s, part| drop(s.cycles[cycle].starts.drain(part)),
            );
            self.thin_out(
                |s| s.cycles[cycle].clients.len(),
                |s, part| drop(s.cycles[cycle].clients.drain(part)),
            );
            for client in 0..self.best.cycles[cycle].clients.len() {
                self.thin_out(
                    |s| s.cycles[cycle].clients[client].len(),
                    |s, part| drop(s.cycles[cycle].clients[client].drain(part)),
                );
            }
            self.keep(|s| s.cycles[cycle].end = End::Kill);
            self.keep(|s| s.cycles[cycle].patient = false);
        }
        self.keep(|s| s.volatile = None);
        self.keep(|s| s.policy = Policy::default());
    }
}

impl Scenario {
    /// How much there is to understand in it.
    fn weight(&self) -> usize {
        let request = |kind: Kind| match kind {
            Kind::Flush => 1,
            Kind::Read => 2,
            Kind::Write { fua, spoil } => 2 + usize::from(fua) + usize::from(spoil),
            Kind::Zero { .. } => 4,
        };
        let cycle = |cycle: &super::scenario::Cycle| {
            let requests = cycle.clients.iter().flatten();
            let requests: usize = requests.map(|r| request(r.kind)).sum();
            let end = usize::from(cycle.end != End::Kill) + usize::from(cycle.patient);
            let tasks = cycle.tasks.iter().flatten().count() + cycle.tasks.len();
            let lists = tasks + cycle.troubles.len() + cycle.starts.len() + cycle.clients.len();
            20 + 10 * lists + requests + end
        };
        let policy = usize::from(self.policy != Policy::default());
        let volatile = usize::from(self.volatile.is_some());
        self.cycles.iter().map(cycle).sum::<usize>() + 10 * (policy + volatile)
    }
}

/// The rules that a violation names, without the place and time.
fn rule(violation: &str) -> &str {
    let text = match violation.strip_prefix("at ") {
        Some(text) => text.split_once(": ").map_or(text, |(_, what)| what),
        None => violation,
    };
    text.split_once(':').map_or(text, |(rule, _)| rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_matter_is_dropped_and_the_rule_stays_the_same() {
        let scenario = Scenario::new(3);
        let fua = |scenario: &Scenario| {
            let cycles = scenario.cycles.iter();
            let requests = cycles.flat_map(|cycle| cycle.clients.iter().flatten());
            let is_fua = |kind: Kind| matches!(kind, Kind::Write { fua: true, .. });
            requests.filter(|request| is_fua(request.kind)).count()
        };
        assert!(fua(&scenario) > 2);
        let broken = |scenario: &Scenario| match fua(scenario) {
            0 => None,
            1 => Some("at 5: G1: one".to_owned()),
            _ => Some(format!("at 7: G2: {} of them", fua(scenario))),
        };
        let (smallest, violation) = shrink(scenario, broken).unwrap();
        assert_eq!(violation, "at 7: G2: 2 of them");
        assert_eq!(fua(&smallest), 2);
        let requests = smallest
            .cycles
            .iter()
            .flat_map(|c| c.clients.iter().flatten());
        assert_eq!(requests.count(), 2, "{smallest}");
    }
}
