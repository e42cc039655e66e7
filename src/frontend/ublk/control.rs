//! The one thread for ublk control commands, and what keeps a stuck kernel from taking it, or its callers, along.
//!
//! A control command blocks its thread until the kernel answers, which may be never: START waits for the queue, STOP
//! for every request in flight, and all of them for the driver's locks. So a *dispatcher* hands one command at a time
//! to an *executor* thread and waits for it with a deadline. When that passes, the caller gets
//! [`UblkError::Deadline`], the executor is left to its fate, and the next command gets a new one, as long as no more
//! than [`HANGING_MAX`] hang. libublk's control ring is thread-local, so an executor has a ring of its own.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::error::UblkError;
use super::occupancy::Orphans;

/// How many commands may hang in the kernel before no further one is tried.
const HANGING_MAX: usize = 4;

/// A handle on the control thread. The thread ends when the last handle is gone.
#[derive(Clone, Debug)]
pub struct UblkControl {
    jobs: Sender<Job>,
    orphans: Orphans,
    /// What the last look at all devices' users saw, and when.
    pub(super) last_look: Arc<tokio::sync::Mutex<Option<Look>>>,
}

/// Who used which device at some moment.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) at: Instant,
    pub(super) users: BTreeMap<u32, String>,
}

struct Job {
    command: &'static str,
    deadline: Duration,
    run: Box<dyn FnOnce() + Send>,
    fail: Box<dyn FnOnce(UblkError) + Send>,
}

/// A thread that runs commands; `alive` goes with it, however it ends.
struct Executor {
    work: Sender<Box<dyn FnOnce() + Send>>,
    done: Receiver<()>,
    alive: Weak<()>,
}

impl UblkControl {
    /// Starts the control thread. Works without the driver: whether it is there is asked when a device is wanted.
    ///
    /// # Errors
    /// When the process can't have another thread.
    pub fn start() -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        thread::Builder::new()
            .name("ublk-control".into())
            .spawn(move || dispatch(&queue))?;
        let orphans = Orphans::default();
        let last_look = Arc::default();
        Ok(Self {
            jobs,
            orphans,
            last_look,
        })
    }

    /// Devices that hang and that nobody waits for any more.
    pub(super) fn orphans(&self) -> &Orphans {
        &self.orphans
    }

    /// Runs `work` on the control thread's executor and answers with what it returned. The deadline counts from when
    /// `work` starts. What comes back too late, or to a caller who left, is dropped over there.
    pub(super) async fn call<T, F>(
        &self,
        command: &'static str,
        deadline: Duration,
        work: F,
    ) -> Result<T, UblkError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, UblkError> + Send + 'static,
    {
        let (answer, received) = oneshot::channel();
        let answer = Arc::new(Mutex::new(Some(answer)));
        let take = |answer: &Mutex<Option<oneshot::Sender<_>>>| {
            answer.lock().unwrap_or_else(PoisonError::into_inner).take()
        };
        let late = Arc::clone(&answer);
        let job = Job {
            command,
            deadline,
            run: Box::new(move || {
                let result = work();
                if let Some(answer) = take(&answer) {
                    // A caller who left does not want the result; dropping it cleans up.
                    drop(answer.send(result));
                }
            }),
            fail: Box::new(move |error| {
                if let Some(answer) = take(&late) {
                    drop(answer.send(Err(error)));
                }
            }),
        };
        let gone = || UblkError::ControlGone { command };
        self.jobs.send(job).map_err(|_| gone())?;
        received.await.map_err(|_| gone())?
    }

    /// Runs `work` some time, with nobody waiting for it.
    pub(super) fn later<F>(&self, command: &'static str, deadline: Duration, work: F)
    where
        F: FnOnce() + Send + 'static,
    {
        let job = Job {
            command,
            deadline,
            run: Box::new(work),
            fail: Box::new(move |error| {
                tracing::warn!(error = %error, "ublk clean-up did not finish");
            }),
        };
        // Fails only when the thread is gone, that is, at the end of the process.
        drop(self.jobs.send(job));
    }
}

/// The dispatcher: never blocks longer than a deadline.
fn dispatch(jobs: &Receiver<Job>) {
    let mut executor: Option<Executor> = None;
    let mut hanging: Vec<Weak<()>> = Vec::new();
    while let Ok(job) = jobs.recv() {
        hanging.retain(|alive| alive.strong_count() > 0);
        if hanging.len() >= HANGING_MAX {
            let hanging = hanging.len();
            (job.fail)(UblkError::Stuck { hanging });
            continue;
        }
        let command = job.command;
        let Some(current) = executor.take().or_else(Executor::start) else {
            (job.fail)(UblkError::ControlGone { command });
            continue;
        };
        match current.run(job.run, job.deadline) {
            Ok(()) => executor = Some(current),
            Err(RecvTimeoutError::Timeout) => {
                tracing::warn!(command, "a ublk command hangs in the kernel");
                hanging.push(Weak::clone(&current.alive));
                let deadline = job.deadline;
                (job.fail)(UblkError::Deadline { command, deadline });
            }
            Err(RecvTimeoutError::Disconnected) => (job.fail)(UblkError::ControlGone { command }),
        }
    }
}

impl Executor {
    fn start() -> Option<Self> {
        let (work, incoming) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (finished, done) = mpsc::channel();
        let token = Arc::new(());
        let alive = Arc::downgrade(&token);
        let body = move || {
            let _token = token;
            for work in incoming {
                work();
                if finished.send(()).is_err() {
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("ublk-command".into());
        match thread.spawn(body) {
            Ok(_) => Some(Self { work, done, alive }),
            Err(error) => {
                tracing::error!(%error, "no thread for ublk commands");
                None
            }
        }
    }

    fn run(
        &self,
        work: Box<dyn FnOnce() + Send>,
        deadline: Duration,
    ) -> Result<(), RecvTimeoutError> {
        self.work
            .send(work)
            .map_err(|_| RecvTimeoutError::Disconnected)?;
        self.done.recv_timeout(deadline)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);
    const LATE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn commands_are_answered_in_order() {
        let control = UblkControl::start().unwrap();
        for n in 0..3 {
            assert_eq!(control.call("TEST", LATE, move || Ok(n)).await.unwrap(), n);
        }
    }

    #[tokio::test]
    async fn a_command_that_hangs_costs_its_caller_the_deadline_and_others_nothing() {
        let control = UblkControl::start().unwrap();
        let (release, gate) = channel::<()>();
        let hang = control.call("HANG", SOON, move || {
            let _ = gate.recv();
            Ok(())
        });
        let error = hang.await.unwrap_err();
        assert!(matches!(
            error,
            UblkError::Deadline {
                command: "HANG",
                ..
            }
        ));
        assert_eq!(control.call("NEXT", LATE, || Ok(1)).await.unwrap(), 1);
        drop(release);
    }

    #[tokio::test]
    async fn only_so_many_commands_may_hang_and_ended_ones_make_room() {
        let control = UblkControl::start().unwrap();
        let mut releases = Vec::new();
        let (ended, end) = channel::<()>();
        for _ in 0..HANGING_MAX {
            let (release, gate) = channel::<()>();
            releases.push(release);
            let ended = ended.clone();
            let hang = control.call("HANG", SOON, move || {
                let _ = gate.recv();
                drop(ended);
                Ok(())
            });
            assert!(hang.await.is_err());
        }
        drop(ended);
        let refused = control.call("NEXT", LATE, || Ok(())).await;
        assert!(matches!(
            refused,
            Err(UblkError::Stuck {
                hanging: HANGING_MAX
            })
        ));
        drop(releases);
        assert!(end.recv().is_err());
        // The threads are past their work; that they have ended too is a matter of moments.
        while matches!(
            control.call("NEXT", LATE, || Ok(())).await,
            Err(UblkError::Stuck { .. })
        ) {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_late_result_is_dropped_where_it_came_to_be() {
        struct Tell(Sender<()>);
        impl Drop for Tell {
            fn drop(&mut self) {
                let _ = self.0.send(());
            }
        }
        let control = UblkControl::start().unwrap();
        let (release, gate) = channel::<()>();
        let (tell, told) = channel();
        let late = control.call("ADD", SOON, move || {
            let _ = gate.recv();
            Ok(Tell(tell))
        });
        assert!(late.await.is_err());
        drop(release);
        told.recv().unwrap();
    }

    #[tokio::test]
    async fn a_panicking_command_fails_alone() {
        let control = UblkControl::start().unwrap();
        let panicked: Result<(), _> = control.call("PANIC", LATE, || panic!("expected")).await;
        assert!(matches!(panicked, Err(UblkError::ControlGone { .. })));
        assert_eq!(control.call("NEXT", LATE, || Ok(1)).await.unwrap(), 1);
    }
}
