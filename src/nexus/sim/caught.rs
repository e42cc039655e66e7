//! Assertions that fail in the code under test are violations too: they are caught, not printed.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// What a failed assertion said; none while this thread catches none.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `work`; what a failed assertion in it said is the error.
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            let ours = SAID.with_borrow_mut(|said| {
                let ours = said.is_some();
                *said = ours.then(|| info.to_string().replace('\n', " "));
                ours
            });
            if !ours {
                before(info);
            }
        }));
    });
    SAID.set(Some(String::new()));
    let result = catch_unwind(AssertUnwindSafe(work));
    let said = SAID.take().unwrap_or_default();
    result.map_err(|_| format!("assertion: {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_assertion_is_told_and_the_next_one_too() {
        assert_eq!(caught(|| 7), Ok(7));
        for text in ["one", "two"] {
            let said = caught(|| assert!(text.is_empty(), "I3: {text}")).unwrap_err();
            assert!(said.contains(&format!("I3: {text}")), "{said}");
        }
    }
}
