//! Tasks that hyper starts by itself, owned so that a stop can end them.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

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
