//! Which numbers of a sequence have arrived: enough to tell a datagram that was overtaken from one
//! that came twice.

/// How far behind the newest one a datagram may arrive and still be told apart.
const WINDOW: u64 = 1024;
const WORDS: usize = (WINDOW / 64) as usize;

/// What an arrival is, next to those before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Arrival {
    /// Newer than all before it; some may be missing between.
    Newest,
    /// A newer one was faster.
    Overtaken,
    /// It was here before.
    Again,
    /// Overtaken by so many that it can't be said whether it was here before.
    TooOld,
}

/// The numbers up to `next`, the last [`WINDOW`] of them with whether they have arrived.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    next: u64,
    /// A ring of bits: that of number n is the (n modulo window)th.
    bits: [u64; WORDS],
}

impl Seen {
    /// Number `sequence` has arrived.
    pub(super) fn note(&mut self, sequence: u64) -> Arrival {
        if sequence >= self.next {
            self.forget_until(sequence);
            self.next = sequence.saturating_add(1);
            self.set(sequence);
            return Arrival::Newest;
        }
        if self.next - sequence > WINDOW {
            return Arrival::TooOld;
        }
        if self.has(sequence) {
            return Arrival::Again;
        }
        self.set(sequence);
        Arrival::Overtaken
    }

    /// Clears the places of the numbers between the newest so far and `sequence`, with it.
    fn forget_until(&mut self, sequence: u64) {
        if sequence - self.next >= WINDOW {
            self.bits = [0; WORDS];
            return;
        }
        for number in self.next..=sequence {
            let (word, bit) = place(number);
            self.bits[word] &= !bit;
        }
    }

    fn has(&self, sequence: u64) -> bool {
        let (word, bit) = place(sequence);
        self.bits[word] & bit != 0
    }

    fn set(&mut self, sequence: u64) {
        let (word, bit) = place(sequence);
        self.bits[word] |= bit;
    }
}

fn place(sequence: u64) -> (usize, u64) {
    let at = sequence % WINDOW;
    ((at / 64) as usize, 1 << (at % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overtaken_one_and_a_second_one_are_told_apart() {
        let mut seen = Seen::default();
        let arrivals = [0, 1, 3, 2, 2, 3, 0, 4].map(|number| seen.note(number));
        let (newest, overtaken, again) = (Arrival::Newest, Arrival::Overtaken, Arrival::Again);
        assert_eq!(
            arrivals,
            [
                newest, newest, newest, overtaken, again, again, again, newest
            ]
        );
    }

    #[test]
    fn what_is_out_of_the_window_is_forgotten_and_said_to_be() {
        let mut seen = Seen::default();
        seen.note(5);
        assert_eq!(seen.note(5 + WINDOW), Arrival::Newest);
        assert_eq!(seen.note(5), Arrival::TooOld);
        assert_eq!(
            seen.note(6),
            Arrival::Overtaken,
            "its place held number 6 + window before"
        );
        assert_eq!(seen.note(10 * WINDOW), Arrival::Newest);
        assert_eq!(seen.note(9 * WINDOW + 1), Arrival::Overtaken);
        assert_eq!(seen.note(9 * WINDOW), Arrival::TooOld);
        assert_eq!(seen.note(u64::MAX), Arrival::Newest);
    }
}
