//! Directed tests, a file per topic; each names the rule that it checks.

mod basics;
