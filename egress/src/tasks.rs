//! Tasks that go on by themselves, owned so that a stop can end them; and work that is too long for a task's turn.

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Does what may take long, while this thread's other tasks go on in another.
pub(crate) fn aside<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => block_in_place(work),
        // There is no other thread.
        Ok(_) | Err(_) => work(),
    }
}

/// Starts tasks and remembers them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tasks {
    running: TaskTracker,
    end: CancellationToken,
}

impl Tasks {
    /// Ends all tasks where they wait, and returns when none is left. What they hold is dropped, as are records.
    pub(crate) async fn end(&self) {
        self.end.cancel();
        self.running.close();
        self.running.wait().await;
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        self.running.spawn(self.end.clone().run_until_cancelled_owned(task));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn tasks_of_the_same_thread_go_on_while_something_takes_long() {
        let (say, heard) = mpsc::channel();
        let long = tokio::spawn(async move { aside(|| heard.recv_timeout(Duration::from_secs(60))) });
        tokio::spawn(async move { say.send("on") });
        assert_eq!(long.await.unwrap(), Ok("on"));
    }
}
