//! The word that policies share between threads: std's, but in unit tests one that lets others cut in.
//! There every operation on it is a place where the rest of a script may go on, as if the thread had
//! been stopped there; so tests of shared state need no luck, no cores and no time.

#[cfg(not(test))]
pub(super) use std::sync::atomic::AtomicU64;

#[cfg(test)]
pub(super) use self::interleaved::{AtomicU64, cuts, interleave, undisturbed};

#[cfg(test)]
mod interleaved {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::sync::atomic::{self, Ordering};

    use proptest::prelude::*;

    /// Hands the steps of a script to `take`, one after the other. After as many operations on shared
    /// words as a cut says, who makes the next one stops before it, and the next step goes first; up to
    /// [`THREADS`] are so under way at once. This reaches all orders in which who is stopped goes on after
    /// all who came in between.
    pub(crate) fn interleave<S: 'static>(cuts: Vec<u8>, steps: Vec<S>, take: impl Fn(S) + 'static) {
        let steps = RefCell::new(steps.into_iter());
        let next = move || steps.borrow_mut().next();
        let step: Rc<dyn Fn() -> bool> = Rc::new(move || next().map(&take).is_some());
        SCRIPT.set(Some(Script {
            cuts,
            step: step.clone(),
            stopped: 0,
        }));
        let _end = End;
        while step() {}
    }

    /// A script that failed must not cut into the next one.
    struct End;

    impl Drop for End {
        fn drop(&mut self) {
            SCRIPT.set(None);
        }
    }

    /// For a script of so many steps, each of about so many operations. Cuts are taken from the end.
    pub(crate) fn cuts(steps: usize, operations: u8) -> impl Strategy<Value = Vec<u8>> {
        let cut = prop_oneof![Just(0), 0..operations];
        prop::collection::vec(cut, 0..2 * steps)
    }

    /// Nobody cuts in meanwhile.
    pub(crate) fn undisturbed<T>(look: impl FnOnce() -> T) -> T {
        let script = SCRIPT.take();
        let result = look();
        SCRIPT.set(script);
        result
    }

    struct Script {
        cuts: Vec<u8>,
        /// Takes the next step; false when none is left.
        step: Rc<dyn Fn() -> bool>,
        stopped: usize,
    }

    impl Script {
        /// One more operation comes, and it may be that another step goes first.
        fn cut(&mut self) -> Option<Rc<dyn Fn() -> bool>> {
            let operations = self.cuts.last_mut()?;
            if *operations > 0 {
                *operations -= 1;
                return None;
            }
            self.cuts.pop();
            let stops = self.stopped + 1 < THREADS;
            self.stopped += usize::from(stops);
            stops.then(|| self.step.clone())
        }
    }

    const THREADS: usize = 4;

    thread_local! {
        static SCRIPT: RefCell<Option<Script>> = const { RefCell::new(None) };
    }

    fn others() {
        while let Some(step) = SCRIPT.with_borrow_mut(|script| script.as_mut()?.cut()) {
            step();
            SCRIPT.with_borrow_mut(|script| script.as_mut().map(|script| script.stopped -= 1));
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct AtomicU64(atomic::AtomicU64);

    /// Others may cut in before and after it.
    fn between<T>(operation: impl FnOnce() -> T) -> T {
        others();
        let result = operation();
        others();
        result
    }

    impl AtomicU64 {
        pub(crate) fn load(&self, order: Ordering) -> u64 {
            between(|| self.0.load(order))
        }

        pub(crate) fn swap(&self, value: u64, order: Ordering) -> u64 {
            between(|| self.0.swap(value, order))
        }

        pub(crate) fn fetch_max(&self, value: u64, order: Ordering) -> u64 {
            between(|| self.0.fetch_max(value, order))
        }

        pub(crate) fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
            between(|| self.0.fetch_sub(value, order))
        }

        pub(crate) fn compare_exchange(
            &self,
            from: u64,
            to: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            between(|| self.0.compare_exchange(from, to, success, failure))
        }

        /// By single steps, as it is a loop in std, too.
        pub(crate) fn fetch_update(
            &self,
            success: Ordering,
            failure: Ordering,
            change: impl Fn(u64) -> Option<u64>,
        ) -> Result<u64, u64> {
            let mut word = self.load(failure);
            while let Some(next) = change(word) {
                match self.compare_exchange(word, next, success, failure) {
                    Ok(before) => return Ok(before),
                    Err(now) => word = now,
                }
            }
            Err(word)
        }
    }
}
