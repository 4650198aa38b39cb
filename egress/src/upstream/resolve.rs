use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// How many look-ups may be under way: each holds a thread until the system answers, of those that durable writes need too.
const LOOKUPS: usize = 64;

/// The addresses of a name.
pub trait Resolve: Send + Sync + 'static {
    /// Looks `name` up.
    fn resolve<'a>(
        &'a self,
        name: &'a str,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send + 'a>>;
}

/// Asks the system, and waits for its answer.
type LookUp = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// As the system resolves: `/etc/hosts`, `/etc/resolv.conf`.
#[derive(Clone)]
pub struct SystemResolver {
    places: Arc<Semaphore>,
    look_up: Arc<LookUp>,
}

impl SystemResolver {
    fn with(look_up: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static) -> SystemResolver {
        SystemResolver { places: Arc::new(Semaphore::new(LOOKUPS)), look_up: Arc::new(look_up) }
    }
}

impl Default for SystemResolver {
    fn default() -> SystemResolver {
        // The port plays no part in the look-up.
        SystemResolver::with(|name| Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect()))
    }
}

impl fmt::Debug for SystemResolver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SystemResolver")
    }
}

impl Resolve for SystemResolver {
    fn resolve<'a>(
        &'a self,
        name: &'a str,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send + 'a>> {
        Box::pin(async move {
            let place = Arc::clone(&self.places).acquire_owned().await.map_err(io::Error::other)?;
            let (look_up, name) = (Arc::clone(&self.look_up), name.to_owned());
            // Whoever waits for it may go away: the thread is taken until the system has answered, and the place with it.
            let looking = spawn_blocking(move || {
                let found = look_up(&name);
                drop(place);
                found
            });
            looking.await.map_err(io::Error::other)?
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn a_look_up_that_no_one_waits_for_any_more_keeps_its_place_until_the_system_answers() {
        let (begin, mut begun) = tokio::sync::mpsc::unbounded_channel();
        let (answer, answers) = std::sync::mpsc::channel();
        let answers = Mutex::new(answers);
        let resolver = SystemResolver::with(move |name| {
            begin.send(name.to_owned()).unwrap();
            answers.lock().unwrap().recv().map_err(io::Error::other)
        });
        for _ in 0..LOOKUPS {
            let mut waiting = resolver.resolve("slow.test");
            assert!(futures_util::poll!(&mut waiting).is_pending());
            drop(waiting);
            assert_eq!(begun.recv().await.unwrap(), "slow.test");
        }
        let mut next = resolver.resolve("next.test");
        assert!(futures_util::poll!(&mut next).is_pending());
        assert_eq!(resolver.places.available_permits(), 0);
        assert!(begun.try_recv().is_err());
        // Others find a thread.
        assert_eq!(spawn_blocking(|| 7).await.unwrap(), 7);

        answer.send(Vec::new()).unwrap();
        assert!(futures_util::poll!(&mut next).is_pending());
        let began = async { begun.recv().await.unwrap() };
        tokio::select! {
            _ = &mut next => panic!("it has no answer"),
            name = began => assert_eq!(name, "next.test"),
        }
        // The rest is told to end.
        drop(answer);
        assert!(next.await.is_err());
    }
}
