//! Columns of the tables, and which of them there is room for.

use super::view::Section;

/// A column.
pub(super) struct Column {
    pub(super) title: &'static str,
    /// The lower, the longer it stays as the screen becomes narrow; those with 0 always.
    rank: u8,
    pub(super) kind: Kind,
}

/// How wide a column is, and to which side it keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// As wide as the longest name, within bounds.
    Name,
    Left(usize),
    Right(usize),
    /// All that is left, and at least so much; the last column.
    Rest(usize),
}

const fn column(title: &'static str, rank: u8, kind: Kind) -> Column {
    Column { title, rank, kind }
}

use Kind::{Left, Name, Rest, Right};

const LISTENERS: [Column; 13] = [
    column("LISTENER", 0, Name),
    column("STATE", 0, Left(9)),
    column("ACTIVE", 0, Right(6)),
    column("NEW/s", 1, Right(6)),
    column("END/s", 5, Right(6)),
    column("REF/s", 2, Right(6)),
    column("IN/s", 3, Right(6)),
    column("OUT/s", 3, Right(6)),
    column("DGRAM/s", 6, Right(7)),
    column("DROP/s", 5, Right(6)),
    column("DUR p50", 4, Right(7)),
    column("DUR p99", 2, Right(7)),
    column("REASONS", 4, Rest(12)),
];

const UPSTREAMS: [Column; 11] = [
    column("UPSTREAM", 0, Name),
    column("UP", 0, Left(9)),
    column("ACTIVE", 0, Right(6)),
    column("REQ/s", 1, Right(6)),
    column("RETRY/s", 3, Right(7)),
    column("QUEUED", 3, Right(6)),
    column("1ST p50", 2, Right(7)),
    column("1ST p99", 1, Right(7)),
    column("CON p99", 4, Right(7)),
    column("DUR p50", 6, Right(7)),
    column("DUR p99", 5, Right(7)),
];

const BACKENDS: [Column; 14] = [
    column("BACKEND", 0, Name),
    column("STATE", 0, Left(9)),
    column("ACTIVE", 0, Right(6)),
    column("CONN/s", 2, Right(6)),
    column("FAIL/s", 2, Right(6)),
    column("IN/s", 5, Right(6)),
    column("OUT/s", 5, Right(6)),
    column("1ST p50", 4, Right(7)),
    column("1ST p99", 1, Right(7)),
    column("CON p99", 5, Right(7)),
    column("WEIGHT", 6, Right(6)),
    column("BREAKER", 6, Left(9)),
    column("ADDRESS", 7, Left(21)),
    column("WHY", 3, Rest(20)),
];

/// Those of a table.
pub(super) fn of(section: Section) -> &'static [Column] {
    match section {
        Section::Listeners => &LISTENERS,
        Section::Upstreams => &UPSTREAMS,
        Section::Backends => &BACKENDS,
    }
}

/// The columns that fit into `total`, by their place, with their widths; one space is between two of them.
/// `longest` is the longest name.
pub(super) fn fit(columns: &[Column], longest: usize, total: usize) -> Vec<(usize, usize)> {
    let name = longest.clamp(8, (total / 4).max(12));
    let least = |column: &Column| match column.kind {
        Name => name.max(column.title.len()),
        Left(width) | Right(width) | Rest(width) => width,
    };
    let mut places: Vec<usize> = (0..columns.len()).collect();
    places.sort_by_key(|place| columns[*place].rank);
    let mut used = 0;
    places.retain(|place| {
        let column = &columns[*place];
        let width = least(column) + usize::from(used > 0);
        let fits = column.rank == 0 || used + width <= total;
        used += if fits { width } else { 0 };
        fits
    });
    places.sort_unstable();
    let left = total.saturating_sub(used);
    let width = |place: &usize| match columns[*place].kind {
        Rest(width) => width + left,
        _ => least(&columns[*place]),
    };
    places.iter().map(|place| (*place, width(place))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn titles(section: Section, total: usize) -> Vec<&'static str> {
        let columns = of(section);
        let fitting = fit(columns, 10, total);
        let used: usize = fitting.iter().map(|(_, width)| width + 1).sum();
        assert!(used <= total + 1, "{used} of {total}");
        let titles = fitting.iter().map(|(place, _)| columns[*place].title);
        titles.collect()
    }

    #[test]
    fn the_narrower_it_is_the_more_is_left_out_and_the_gist_stays() {
        let narrow = titles(Section::Backends, 40);
        assert_eq!(narrow, ["BACKEND", "STATE", "ACTIVE", "1ST p99"]);
        let usual = titles(Section::Backends, 80);
        assert_eq!(
            usual,
            [
                "BACKEND", "STATE", "ACTIVE", "CONN/s", "FAIL/s", "1ST p50", "1ST p99", "WHY"
            ]
        );
        assert_eq!(titles(Section::Backends, 200).len(), BACKENDS.len());
        for section in Section::ALL {
            assert!(titles(section, 40).len() >= 4);
        }
    }

    #[test]
    fn what_is_left_goes_to_the_last_one() {
        let fitting = fit(&BACKENDS, 10, 200);
        let whole: usize = fitting.iter().map(|(_, width)| width + 1).sum();
        assert_eq!(whole, 201);
    }
}
