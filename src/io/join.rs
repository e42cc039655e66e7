//! Several futures side by side, in one task.

use std::future::{Future, poll_fn};
use std::task::Poll;

/// Runs them until all have ended; the outputs are in the futures' order.
///
/// Each wake polls every one that has not ended: meant for a few, as pages of a bitmap or members of a volume are.
pub async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let running = futures.into_iter().map(|future| (Box::pin(future), None));
    let mut running: Vec<_> = running.collect();
    poll_fn(|context| {
        let mut all_ended = true;
        for (future, output) in &mut running {
            if output.is_some() {
                continue;
            }
            match future.as_mut().poll(context) {
                Poll::Ready(ended) => *output = Some(ended),
                Poll::Pending => all_ended = false,
            }
        }
        match all_ended {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    let outputs = running.into_iter();
    outputs.filter_map(|(_, output)| output).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn all_are_run_to_their_end_and_answer_in_order() {
        let polls = Cell::new(0);
        let after = |rounds: u32| {
            let (mut left, polls) = (rounds, &polls);
            poll_fn(move |_| {
                polls.set(polls.get() + 1);
                if left == 0 {
                    return Poll::Ready(rounds);
                }
                left -= 1;
                Poll::Pending
            })
        };
        let mut joined = pin!(join_all([after(2), after(0), after(1)]));
        let mut context = Context::from_waker(Waker::noop());
        assert!(joined.as_mut().poll(&mut context).is_pending());
        assert!(joined.as_mut().poll(&mut context).is_pending());
        assert_eq!(
            joined.as_mut().poll(&mut context),
            Poll::Ready(vec![2, 0, 1])
        );
        // What has ended is not polled again.
        assert_eq!(polls.get(), 3 + 1 + 2);
    }

    #[test]
    fn none_end_at_once() {
        let mut joined = pin!(join_all(Vec::<std::future::Ready<()>>::new()));
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(joined.as_mut().poll(&mut context), Poll::Ready(vec![]));
    }
}
