//! How many images are decoded at once.
//!
//! A decode runs on a blocking thread to its end, whether or not somebody still waits for it. So its place, and whatever
//! memory it was charged for, belong to the decode and not to the caller that gave up (P3, P4).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sightline_mesh::{Deadline, RpcError};
use tokio::{
    sync::Semaphore,
    task::{JoinError, spawn_blocking},
};

/// Places for decodes. Cheap to clone; all clones share the places.
#[derive(Debug, Clone)]
pub struct Decoders {
    places: Arc<Semaphore>,
}

impl Decoders {
    /// `count` at once; 0: one per core.
    pub fn new(count: usize) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Self { places: Arc::new(Semaphore::new(if count == 0 { cores() } else { count })) }
    }

    /// Runs `work` on a blocking thread once there is a place, and says how long it took. `held` is kept until the work
    /// has ended, also when the caller went away meanwhile. An `Err` inside is a panic of `work`.
    ///
    /// # Errors
    /// `DEADLINE_EXCEEDED`.
    pub async fn run<T: Send + 'static>(
        &self,
        deadline: Deadline,
        held: impl Send + 'static,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<(Result<T, JoinError>, Duration), RpcError> {
        let place = deadline.bound("waiting to be decoded", Arc::clone(&self.places).acquire_owned()).await?;
        let since = Instant::now();
        let running = spawn_blocking(move || {
            let _until_done = (held, place);
            work()
        });
        let done = deadline.bound("decoding", running).await?;
        Ok((done, since.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_millis(30))
    }

    #[tokio::test]
    async fn a_decode_that_nobody_waits_for_keeps_its_place_and_its_memory_until_it_ends() {
        let decoders = Decoders::new(1);
        let bytes = Arc::new(Semaphore::new(1));
        let held = Arc::clone(&bytes).try_acquire_owned().unwrap();
        let (finish, finished) = sync_channel::<()>(1);
        let slow = decoders.run(soon(), held, move || finished.recv().is_ok()).await;
        assert_eq!(slow.unwrap_err().message, "the deadline passed during: decoding");
        for _ in 0..3 {
            let next = decoders.run(soon(), (), || panic!("a second decode ran beside the first")).await;
            assert_eq!(next.unwrap_err().message, "the deadline passed during: waiting to be decoded");
        }
        assert_eq!(bytes.available_permits(), 0);
        finish.send(()).unwrap();
        let later = decoders.run(Deadline::after(Duration::from_secs(10)), (), || 7).await.unwrap();
        assert_eq!((later.0.unwrap(), bytes.available_permits()), (7, 1));
    }

    #[tokio::test]
    async fn a_decode_that_panics_gives_its_place_back() {
        let decoders = Decoders::new(1);
        for _ in 0..2 {
            let deadline = Deadline::after(Duration::from_secs(10));
            let (done, _) = decoders.run(deadline, (), || panic!("on purpose")).await.unwrap();
            assert!(done.is_err());
        }
    }
}
