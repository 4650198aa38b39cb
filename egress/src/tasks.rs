//! Tasks that hyper starts by itself, owned so that a stop can wait for them.

use tokio_util::task::TaskTracker;

/// Starts tasks and remembers them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tasks(TaskTracker);

impl Tasks {
    /// Returns when no task is left. New ones may still be started meanwhile.
    pub(crate) async fn finished(&self) {
        self.0.close();
        self.0.wait().await;
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}
