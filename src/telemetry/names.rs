//! Numbers for names, where a name has no room.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Names by number. A number is for one name for the life of the process.
#[derive(Debug, Default)]
pub struct Names(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    names: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, u32>,
}

impl Names {
    /// The number of `name`. Only whoever makes a generation asks.
    pub fn number(&self, name: &str) -> u32 {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = known.numbers.get(name) {
            return *number;
        }
        let number = known.names.len() as u32;
        let name: Arc<str> = name.into();
        known.names.push(name.clone());
        known.numbers.insert(name, number);
        number
    }

    /// All of them, each at the place that is its number.
    pub fn all(&self) -> Vec<Arc<str>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.names.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number() {
        let names = Names::default();
        assert_eq!(
            [
                names.number("web"),
                names.number("app/b1"),
                names.number("web")
            ],
            [0, 1, 0]
        );
        assert_eq!(
            names.all().iter().map(|name| &**name).collect::<Vec<_>>(),
            ["web", "app/b1"]
        );
    }
}
