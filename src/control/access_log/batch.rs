//! Lines on their way to the log: what was written of them, and what has to be told again.

use std::io::{self, Write};
use std::time::Duration;

use super::line;
use crate::config::LogFormat;
use crate::telemetry::sessions::SessionRecord;

/// Lines that are written together.
#[derive(Default)]
pub(super) struct Batch {
    lines: Vec<u8>,
    /// How many of them are sessions. They come before the line that tells what is missing.
    sessions: u64,
    /// The last line in the log is not whole.
    torn: bool,
    /// Sessions without a line as the log tells of them.
    told: Losses,
    /// The same once this is written.
    telling: Losses,
}

/// Sessions without a line, since the process began.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Losses {
    pub(super) skipped: u64,
    pub(super) dropped: u64,
}

/// Why some lines are not in the log.
#[derive(Debug)]
pub(super) struct Unwritten {
    /// How many sessions had theirs among them.
    pub(super) lost: u64,
    pub(super) error: io::Error,
}

impl Batch {
    /// One more session, which has ended so long `ago`.
    pub(super) fn add(&mut self, record: &SessionRecord, ago: Duration, format: LogFormat) {
        line::write(&mut self.lines, record, ago, format);
        self.sessions += 1;
    }

    /// What is missing in the log stands there as a number. Comes after all sessions.
    pub(super) fn add_losses(&mut self, now: Losses, format: LogFormat) {
        if now == self.told {
            return;
        }
        let news = (
            now.skipped - self.told.skipped,
            now.dropped - self.told.dropped,
        );
        self.telling = now;
        line::write_losses(&mut self.lines, news, format);
    }

    /// It goes to another place from now on, where no line was begun.
    pub(super) fn begin_anew(&mut self) {
        self.torn = false;
    }

    /// Writes all lines. Those of sessions that can't be written are forgotten; what was missing before is told
    /// the next time.
    ///
    /// # Errors
    /// Not all of it was written.
    pub(super) fn write(&mut self, to: &mut impl Write) -> Result<(), Unwritten> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let was_torn = self.torn;
        if was_torn {
            self.lines.insert(0, b'\n');
        }
        let (count, outcome) = write_whole(to, &self.lines);
        let written = &self.lines[..count];
        self.torn = written.last().map_or(was_torn, |last| *last != b'\n');
        match count == self.lines.len() {
            true => self.told = self.telling,
            false => self.telling = self.told,
        }
        let ends = written.iter().filter(|byte| **byte == b'\n').count() as u64;
        let whole = ends.saturating_sub(u64::from(was_torn));
        let lost = self.sessions.saturating_sub(whole);
        self.lines.clear();
        self.sessions = 0;
        outcome.map_err(|error| Unwritten { lost, error })
    }
}

/// Also says how many bytes were written.
fn write_whole(to: &mut impl Write, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut left = bytes;
    let outcome = loop {
        match to.write(left) {
            Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => left = &left[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
        if left.is_empty() {
            break to.flush();
        }
    };
    (bytes.len() - left.len(), outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes.
    struct Full(usize, Vec<u8>);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.0);
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0 -= count;
            self.1.extend(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Two sessions.
    fn fill(batch: &mut Batch) {
        batch.lines.extend(b"abc\ndef\n");
        batch.sessions = 2;
    }

    #[test]
    fn of_a_full_disk_is_told_how_many_lines_are_lost_and_whether_one_was_cut() {
        for (room, lost, cut) in [
            (0, Some(2), false),
            (3, Some(2), true),
            (4, Some(1), false),
            (7, Some(1), true),
            (8, None, false),
        ] {
            let mut batch = Batch::default();
            fill(&mut batch);
            let outcome = batch.write(&mut Full(room, Vec::new()));
            let found = outcome.err().map(|unwritten| unwritten.lost);
            assert_eq!((found, batch.torn), (lost, cut), "{room}");
        }
    }

    #[test]
    fn a_line_that_was_cut_is_ended_before_the_next_one_and_stays_so_until_there_is_room() {
        let mut batch = Batch::default();
        let mut disk = Full(6, Vec::new());
        for (more, lost) in [(0, Some(1)), (0, Some(2)), (5, Some(1)), (100, None)] {
            fill(&mut batch);
            disk.0 += more;
            let outcome = batch.write(&mut disk);
            assert_eq!(outcome.err().map(|it| it.lost), lost, "{more}");
        }
        assert_eq!(disk.1, b"abc\nde\nabc\nabc\ndef\n");
    }

    #[test]
    fn another_file_does_not_begin_with_the_end_of_a_line() {
        let mut batch = Batch::default();
        fill(&mut batch);
        assert!(batch.write(&mut Full(5, Vec::new())).is_err());
        batch.begin_anew();
        fill(&mut batch);
        let mut other = Full(100, Vec::new());
        assert!(batch.write(&mut other).is_ok());
        assert_eq!(other.1, b"abc\ndef\n");
    }

    #[test]
    fn what_is_missing_is_told_again_where_it_could_not_be_written() {
        let mut batch = Batch::default();
        let mut disk = Full(20, Vec::new());
        let losses = |skipped, dropped| Losses { skipped, dropped };
        for (skipped, dropped, more) in [(3, 0, 0), (5, 1, 100), (5, 1, 100)] {
            batch.add_losses(losses(skipped, dropped), LogFormat::Text);
            disk.0 += more;
            // What came of it shows in the text.
            let _ = batch.write(&mut disk);
        }
        batch.add_losses(losses(9, 1), LogFormat::Text);
        assert!(batch.write(&mut disk).is_ok());
        let text = String::from_utf8(disk.1).expect("lines are UTF-8");
        let told: Vec<_> = (text.lines())
            .filter_map(|line| line.split_once(" skipped=").map(|it| it.1))
            .collect();
        assert_eq!(told, ["5 dropped=1", "4 dropped=0"], "{text}");
    }
}
