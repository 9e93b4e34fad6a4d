//! The last pulses, so that who comes sees the last five minutes at once. They are kept as they are told,
//! and without backends.

use std::collections::VecDeque;

/// Five minutes.
const PULSES_MAX: usize = 300;
/// Of all of them. With many hundreds of listeners and upstreams there are fewer than five minutes.
const BYTES_MAX: usize = 16 << 20;

/// The last pulses, as JSON.
#[derive(Default)]
pub(super) struct History {
    pulses: VecDeque<String>,
    bytes: usize,
}

impl History {
    /// One more; the oldest go where there is no room.
    pub(super) fn add(&mut self, pulse: String) {
        self.bytes += pulse.len();
        self.pulses.push_back(pulse);
        while self.pulses.len() > PULSES_MAX || self.bytes > BYTES_MAX {
            let oldest = self.pulses.pop_front();
            self.bytes -= oldest.map_or(0, |oldest| oldest.len());
        }
    }

    /// All of them, the oldest first, as an event.
    pub(super) fn event(&self) -> String {
        let mut list = String::with_capacity(self.bytes + self.pulses.len());
        for pulse in &self.pulses {
            if !list.is_empty() {
                list.push(',');
            }
            list.push_str(pulse);
        }
        super::event("history", &format!("{{\"pulses\":[{list}]}}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_five_minutes_are_kept_in_their_order() {
        let mut history = History::default();
        assert_eq!(history.event(), "event: history\ndata: {\"pulses\":[]}\n\n");
        (0..302).for_each(|it| history.add(it.to_string()));
        assert_eq!(history.pulses.len(), PULSES_MAX);
        let event = history.event();
        assert!(event.starts_with("event: history\ndata: {\"pulses\":[2,3,"));
        assert!(event.ends_with(",300,301]}\n\n"));
    }

    #[test]
    fn long_ones_are_fewer() {
        let mut history = History::default();
        (0..9).for_each(|_| history.add("1".repeat(BYTES_MAX / 4)));
        assert_eq!((history.pulses.len(), history.bytes), (4, BYTES_MAX));
        history.add("1".repeat(BYTES_MAX + 1));
        assert_eq!((history.pulses.len(), history.bytes), (0, 0));
    }
}
