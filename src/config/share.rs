//! Shares of a whole: 0.2, never "20%".

use toml::de::DeValue;

use super::diagnostics::Fault;
use super::value::{Read, wrong_type};
use crate::policy::share::Share;

/// A number from 0 to 1, rounded to parts per million.
pub(super) fn share(value: &DeValue<'_>) -> Read<Share> {
    let (number, written) = match value {
        DeValue::Float(float) => (float.as_str().parse::<f64>().ok(), float.as_str()),
        DeValue::Integer(integer) if integer.radix() == 10 => {
            (integer.as_str().parse::<f64>().ok(), integer.as_str())
        }
        other => return Err(not_a_number(other)),
    };
    // Not a number is in no range.
    match number.filter(|number| (0.0..=1.0).contains(number)) {
        Some(number) => Ok(rounded(number)),
        None => {
            let fault = Fault::new(format!("{written} is out of range")).expected(SHARE_FORM);
            Err(match number {
                Some(percent) => meant(fault, percent),
                None => fault,
            })
        }
    }
}

/// A share of at least one part per million.
pub(super) fn share_above_zero(value: &DeValue<'_>) -> Read<Share> {
    match share(value)? {
        share if share == Share::default() => {
            Err(Fault::new("a share of 0 would always be reached")
                .expected("a number from 0.000001 to 1, like 0.5"))
        }
        share => Ok(share),
    }
}

const SHARE_FORM: &str = "a share: a number from 0 to 1, like 0.5";

/// Decimals of up to six digits are exact: the nearest integer to their product is theirs.
fn rounded(number: f64) -> Share {
    Share::from_ppm((number * 1e6).round() as u32)
}

fn not_a_number(value: &DeValue<'_>) -> Fault {
    let fault = wrong_type(value, SHARE_FORM);
    let DeValue::String(text) = value else {
        return fault;
    };
    let text = text.trim();
    if let Some(percent) = text.strip_suffix('%') {
        return match percent.trim().parse() {
            Ok(percent) => meant(fault, percent),
            Err(_) => fault,
        };
    }
    match text.parse::<f64>() {
        Ok(_) => fault.hint("write it without quotes"),
        Err(_) => fault,
    }
}

/// With the share that `percent` is, if it is one.
fn meant(fault: Fault, percent: f64) -> Fault {
    if !(0.0..=100.0).contains(&percent) {
        return fault;
    }
    let share = f64::from(rounded(percent / 100.0).ppm()) / 1e6;
    fault.hint(format!("did you mean {share:?}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Read<Share> {
        share(DeValue::parse(text).unwrap().get_ref())
    }

    #[test]
    fn decimals_are_exact() {
        for ppm in (0..=1_000_000).step_by(7) {
            let text = format!("{}.{:06}", ppm / 1_000_000, ppm % 1_000_000);
            assert_eq!(read(&text), Ok(Share::from_ppm(ppm)), "{text}");
        }
        for (text, ppm) in [
            ("0", 0),
            ("1", 1_000_000),
            ("+1", 1_000_000),
            ("-0.0", 0),
            ("2e-1", 200_000),
            ("0.333_333_4", 333_333),
            ("0.999_999_9", 1_000_000),
        ] {
            assert_eq!(read(text), Ok(Share::from_ppm(ppm)), "{text}");
        }
    }

    #[test]
    fn what_is_no_share_says_which_was_meant() {
        let hint = |text: &str, hint: &str| {
            let shown = format!("{:?}", read(text).expect_err(text));
            assert!(shown.contains(hint), "{text}: {shown}");
        };
        hint("'50%'", "did you mean 0.5?");
        hint("'57 %'", "did you mean 0.57?");
        hint("'100%'", "did you mean 1.0?");
        hint("'0.5'", "without quotes");
        hint("50", "did you mean 0.5?");
        hint("12.34", "did you mean 0.1234?");
        for text in ["'-5%'", "'200%'", "'%'", "'half'", "101", "-1", "-0.1"] {
            hint(text, "hint: None");
        }
        for text in ["nan", "-nan", "inf", "-inf", "1.000001", "0x1", "true"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_share_that_rounds_to_nothing_is_nothing() {
        let above_zero = |text: &str| share_above_zero(DeValue::parse(text).unwrap().get_ref());
        assert!(above_zero("0.0000001").is_err());
        assert_eq!(above_zero("0.000001"), Ok(Share::from_ppm(1)));
    }
}
