//! A thread that writes what others tell, so that a slow disk or terminal holds none of them up, and the wait
//! for its end.

use std::io;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

/// The thread.
pub(super) struct Writing {
    /// Disconnected when it has ended.
    ended: Receiver<()>,
}

/// Has a thread of this name do it.
///
/// # Errors
/// There is no thread to be had.
pub(super) fn begin(
    name: &'static str,
    write: impl FnOnce() + Send + 'static,
) -> io::Result<Writing> {
    let (ends, ended) = mpsc::channel();
    let work = move || {
        let _ends: mpsc::Sender<()> = ends;
        write();
    };
    thread::Builder::new().name(name.to_owned()).spawn(work)?;
    Ok(Writing { ended })
}

impl Writing {
    /// Waits until all is written, once nobody has anything to tell any more: how the last sessions ended would
    /// be lost with the process.
    pub(super) fn finish(&self) {
        /// A terminal may be stuck, and the process shall end all the same.
        const PATIENCE: Duration = Duration::from_secs(1);
        // Nothing is ever sent: it is over in time, or not.
        let _ = self.ended.recv_timeout(PATIENCE);
    }
}
