//! The thread that makes all of one pool's calls to the filesystem.
//!
//! Work runs there as tasks, so that a long one (a preallocation, a purge) does not hold up the others. Whoever asks
//! waits with a deadline and does not depend on the thread ever coming back from a hung disk.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::directory::Directory;
use super::error::{Fault, PoolError};
use crate::model::{PoolId, PoolName};

/// One piece of work: makes a future on the worker's thread.
type Job = Box<dyn FnOnce(Rc<Directory>) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// The asking side of a pool's thread.
#[derive(Debug)]
pub(super) struct Worker {
    pool: PoolName,
    mail: mpsc::UnboundedSender<Mail>,
}

enum Mail {
    Job(Job),
    Stop(oneshot::Sender<()>),
}

impl Worker {
    /// Starts the thread and opens the directory on it (spec A0).
    pub(super) async fn start(
        pool: PoolName,
        path: PathBuf,
        known: Option<PoolId>,
        deadline: Duration,
    ) -> Result<(Self, PoolId), PoolError> {
        let failed = |fault| PoolError {
            pool: pool.clone(),
            fault,
        };
        let (mail, inbox) = mpsc::unbounded_channel();
        let (opened, answer) = oneshot::channel();
        // A thread's name has at most 15 bytes; the kernel cuts off the rest.
        std::thread::Builder::new()
            .name(format!("pool-{pool}"))
            .spawn(move || run(path, known, opened, inbox))
            .map_err(|error| failed(Fault::Worker(error)))?;
        let id = wait("open pool", deadline, answer).await.map_err(failed)?;
        Ok((Self { pool, mail }, id))
    }

    /// Runs `make`'s future on the thread and waits for its answer.
    pub(super) async fn call<T, F, Fut>(
        &self,
        operation: &'static str,
        deadline: Duration,
        make: F,
    ) -> Result<T, PoolError>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Directory>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Fault>> + 'static,
    {
        let (done, answer) = oneshot::channel();
        let job: Job = Box::new(move |directory| {
            Box::pin(async move {
                // Whoever asked may have given up: then what was opened is closed again here.
                let _ = done.send(make(directory).await);
            })
        });
        let result = match self.mail.send(Mail::Job(job)) {
            Ok(()) => wait(operation, deadline, answer).await,
            Err(_) => Err(Fault::Closed),
        };
        result.map_err(|fault| PoolError {
            pool: self.pool.clone(),
            fault,
        })
    }

    /// Ends the thread and lets go of the pool. Work that is under way is abandoned.
    pub(super) async fn stop(&self, deadline: Duration) -> Result<(), PoolError> {
        let (stopped, answer) = oneshot::channel();
        if self.mail.send(Mail::Stop(stopped)).is_err() {
            return Ok(());
        }
        match tokio::time::timeout(deadline, answer).await {
            Ok(_) => Ok(()),
            Err(_) => Err(PoolError {
                pool: self.pool.clone(),
                fault: Fault::Deadline {
                    operation: "close pool",
                    after: deadline,
                },
            }),
        }
    }
}

async fn wait<T>(
    operation: &'static str,
    after: Duration,
    answer: oneshot::Receiver<Result<T, Fault>>,
) -> Result<T, Fault> {
    match tokio::time::timeout(after, answer).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(Fault::Closed),
        Err(_) => Err(Fault::Deadline { operation, after }),
    }
}

/// The thread.
fn run(
    path: PathBuf,
    known: Option<PoolId>,
    opened: oneshot::Sender<Result<PoolId, Fault>>,
    inbox: mpsc::UnboundedReceiver<Mail>,
) {
    let runtime = match tokio_uring::Runtime::new(&tokio_uring::builder()) {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = opened.send(Err(Fault::Worker(error)));
            return;
        }
    };
    let stopped = runtime.block_on(serve(path, known, opened, inbox));
    // Tasks that are left hold the directory and its lock.
    drop(runtime);
    if let Some(stopped) = stopped {
        let _ = stopped.send(());
    }
}

async fn serve(
    path: PathBuf,
    known: Option<PoolId>,
    opened: oneshot::Sender<Result<PoolId, Fault>>,
    mut inbox: mpsc::UnboundedReceiver<Mail>,
) -> Option<oneshot::Sender<()>> {
    let directory = match Directory::open(path, known).await {
        Ok(directory) => Rc::new(directory),
        Err(fault) => {
            let _ = opened.send(Err(fault));
            return None;
        }
    };
    if opened.send(Ok(directory.id())).is_err() {
        return None;
    }
    while let Some(mail) = inbox.recv().await {
        match mail {
            Mail::Job(job) => drop(tokio_uring::spawn(job(Rc::clone(&directory)))),
            Mail::Stop(stopped) => return Some(stopped),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hung disk stalls whoever asked it something, for a while, and nobody else.
    #[tokio::test]
    async fn work_that_hangs_is_given_up_and_holds_up_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p");
        let patience = Duration::from_secs(60);
        let name = "main".parse().unwrap();
        let (worker, id) = Worker::start(name, path, None, patience).await.unwrap();
        let hang = |_| std::future::pending::<Result<(), Fault>>();
        let error = worker.call("hang", Duration::ZERO, hang).await.unwrap_err();
        assert_eq!(error.reason(), "PoolTimeout");
        assert!(error.to_string().contains("\"hang\""), "{error}");
        let ask = async move |directory: Rc<Directory>| Ok(directory.id());
        let answer = worker.call("ask", patience, ask).await.unwrap();
        assert_eq!(answer, id);
        worker.stop(patience).await.unwrap();
    }
}
