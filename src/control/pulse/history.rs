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

    /// All of them, the oldest first, as an event with `others` behind it. It is long: it is written once.
    pub(super) fn event_before(&self, others: &str) -> String {
        let length = BEGIN.len() + self.bytes + self.pulses.len() + END.len() + others.len();
        let mut text = String::with_capacity(length);
        text.push_str(BEGIN);
        for (place, pulse) in self.pulses.iter().enumerate() {
            if place > 0 {
                text.push(',');
            }
            text.push_str(pulse);
        }
        text.push_str(END);
        text.push_str(others);
        text
    }
}

const BEGIN: &str = "event: history\ndata: {\"pulses\":[";
const END: &str = "]}\n\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_five_minutes_are_kept_in_their_order() {
        let mut history = History::default();
        let none = "event: history\ndata: {\"pulses\":[]}\n\n";
        assert_eq!(history.event_before(""), none);
        (0..302).for_each(|it| history.add(it.to_string()));
        assert_eq!(history.pulses.len(), PULSES_MAX);
        let event = history.event_before("more");
        assert!(event.starts_with("event: history\ndata: {\"pulses\":[2,3,"));
        assert!(event.ends_with(",300,301]}\n\nmore"));
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
