//! Directed tests, a file per topic; each names the rule that it checks.

mod assembly;
mod basics;
mod cuts;
mod faults;
mod forced;
mod grow;
mod hung;
mod hung_start;
mod intent;
mod last_copy;
mod members;
mod reads;
mod rebuild;
mod rebuild_trouble;
mod scrub;
