//! Sizes as people write them, and the limits on a VDI's size.
//!
//! Units are powers of 1024 whether written `G` or `GiB`. `GB` is refused: half of its readers mean
//! 10^9 by it, and a disk that is 7% off is found out late.

use std::fmt;
use std::str::FromStr;

/// Bytes of one object, the unit in which a VDI is cut up and placed.
pub const OBJECT_LEN: u64 = 4 << 20;

/// The most objects a VDI has: what its map can address.
pub const OBJECTS_MAX: u64 = 1 << 32;

/// A VDI's size is a multiple of this: the smallest sector a guest's disk can have.
const SECTOR_LEN: u64 = 512;

/// Why a text or a number is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a number with a unit.
    #[error("{0:?} is not a size: write a number and K, M, G, T, P or E, such as 20G or 512MiB")]
    Syntax(String),
    /// `KB` and the like.
    #[error("{0:?} is ambiguous: write {1}iB for powers of 1024 (there is no unit for powers of 1000)")]
    Ambiguous(String, char),
    /// A fraction that is not a whole number of bytes.
    #[error("{0:?} is not a whole number of bytes")]
    Fraction(String),
    /// Does not fit 64 bits.
    #[error("{0:?} is too large: it does not fit 64 bits")]
    Overflow(String),
    /// A VDI of nothing.
    #[error("a VDI cannot have a size of 0")]
    Zero,
    /// Above [`VdiSize::MAX`].
    #[error("{bytes} bytes is too large: a VDI has at most {max} (16 PiB)", bytes = .0, max = VdiSize::MAX.0)]
    TooLarge(u64),
    /// Not a multiple of [`SECTOR_LEN`].
    #[error(
        "{size} bytes is not a multiple of {SECTOR_LEN}: the next larger is {next}",
        size = .0,
        next = .0.next_multiple_of(SECTOR_LEN)
    )]
    Unaligned(u64),
}

/// A number of bytes, written `20G`, `1.5T`, `4KiB` or `512`.
pub fn parse_bytes(text: &str) -> Result<u64, SizeError> {
    let syntax = || SizeError::Syntax(text.to_owned());
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = unit_shift(text, unit.trim_start())?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.contains('.') {
        return Err(syntax());
    }
    let overflow = || SizeError::Overflow(text.to_owned());
    let whole: u64 = whole.parse().map_err(|_| overflow())?;
    let bytes = whole.checked_mul(1 << shift).ok_or_else(overflow)?;
    let part = fraction_bytes(fraction, shift).ok_or_else(|| SizeError::Fraction(text.to_owned()))?;
    bytes.checked_add(part).ok_or_else(overflow)
}

/// The bytes of `0.FRACTION` units, or `None` if that is not a whole number.
fn fraction_bytes(fraction: &str, shift: u32) -> Option<u64> {
    let digits = fraction.trim_end_matches('0');
    // 2^60 has no exact decimal fraction with more digits than 60, and u128 holds 19 digits shifted by
    // 60 bits: anything longer is refused as well, which no one will miss.
    if digits.len() > 19 {
        return None;
    }
    if digits.is_empty() {
        return Some(0);
    }
    let scaled = digits.parse::<u128>().ok()? << shift;
    let scale = 10u128.pow(u32::try_from(digits.len()).ok()?);
    scaled.is_multiple_of(scale).then(|| u64::try_from(scaled / scale).ok()).flatten()
}

fn unit_shift(text: &str, unit: &str) -> Result<u32, SizeError> {
    let syntax = || SizeError::Syntax(text.to_owned());
    let mut letters = unit.chars();
    let Some(prefix) = letters.next().map(|c| c.to_ascii_uppercase()) else {
        return Ok(0);
    };
    let rest = letters.as_str();
    let shift = match prefix {
        'B' if rest.is_empty() => return Ok(0),
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        'P' => 50,
        'E' => 60,
        _ => return Err(syntax()),
    };
    match rest.to_ascii_lowercase().as_str() {
        "" | "i" | "ib" => Ok(shift),
        "b" => Err(SizeError::Ambiguous(text.to_owned(), prefix)),
        _ => Err(syntax()),
    }
}

/// The size of a VDI: above 0, a multiple of [`SECTOR_LEN`], at most [`VdiSize::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VdiSize(u64);

impl VdiSize {
    /// 16 PiB.
    pub const MAX: Self = Self(OBJECTS_MAX * OBJECT_LEN);

    /// A size of `bytes`, if a VDI can have it.
    pub fn new(bytes: u64) -> Result<Self, SizeError> {
        match bytes {
            0 => Err(SizeError::Zero),
            _ if bytes > Self::MAX.0 => Err(SizeError::TooLarge(bytes)),
            _ if !bytes.is_multiple_of(SECTOR_LEN) => Err(SizeError::Unaligned(bytes)),
            _ => Ok(Self(bytes)),
        }
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for VdiSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        Self::new(parse_bytes(text)?)
    }
}

/// Prints a number of bytes for people: `20 GiB`, `1.5 TiB`, `17 B`.
#[derive(Debug, Clone, Copy)]
pub struct HumanBytes(pub u64);

impl fmt::Display for HumanBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(bytes) = *self;
        let unit = bytes.checked_ilog2().unwrap_or(0) / 10;
        if unit == 0 {
            return write!(f, "{bytes} B");
        }
        let shift = unit * 10;
        // Tenths, rounded down, so that a nearly full disk never reads as larger than it is.
        let tenths = (u128::from(bytes) * 10) >> shift;
        let (whole, tenth) = (tenths / 10, tenths % 10);
        let name = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"][unit as usize];
        match tenth {
            0 => write!(f, "{whole} {name}"),
            _ => write!(f, "{whole}.{tenth} {name}"),
        }
    }
}

/// A number of things for people: `1 copy`, `3 copies`.
pub fn count(n: impl Into<u64>, one: &str, many: &str) -> String {
    match n.into() {
        1 => format!("1 {one}"),
        n => format!("{n} {many}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_are_powers_of_1024_however_they_are_written() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("4KiB", 4096),
            ("4k", 4096),
            ("512M", 512 << 20),
            ("20G", 20 << 30),
            ("20 GiB", 20 << 30),
            ("20gi", 20 << 30),
            ("1T", 1 << 40),
            ("1.5T", 3 << 39),
            ("0.5K", 512),
            ("1.0", 1),
            ("16P", 16 << 50),
            ("15E", 15 << 60),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text:?}");
        }
    }

    #[test]
    fn what_is_not_an_exact_size_is_refused() {
        for bad in [
            "",
            "G",
            "-1",
            "+1",
            "-1G",
            "1 000",
            "1,5G",
            "1.",
            ".5G",
            "1.2.3",
            "1X",
            "1GiBs",
            "1GB",
            "1kb",
            "0x10",
            "1e3",
            "1.5",
            "0.3K",
            "0.0001G",
            "16E",
            "18446744073709551616",
            "99999999999999999999T",
            "１G",
            "1G ",
            "0.00000000000000000001E",
            "15.99999999999999999999E",
        ] {
            assert!(parse_bytes(bad).is_err(), "{bad:?}");
        }
        assert_eq!(parse_bytes("1GB"), Err(SizeError::Ambiguous("1GB".into(), 'G')));
        assert!(SizeError::Ambiguous("1GB".into(), 'G').to_string().contains("GiB"));
    }

    #[test]
    fn a_vdi_has_a_whole_number_of_sectors_up_to_16_pib() {
        assert_eq!("16P".parse(), Ok(VdiSize::MAX));
        assert_eq!("1K".parse::<VdiSize>().map(VdiSize::bytes), Ok(1024));
        assert_eq!("0".parse::<VdiSize>(), Err(SizeError::Zero));
        assert_eq!(VdiSize::new((16 << 50) + 512), Err(SizeError::TooLarge((16 << 50) + 512)));
        assert_eq!(VdiSize::new(u64::MAX), Err(SizeError::TooLarge(u64::MAX)));
        let unaligned = VdiSize::new(1000).expect_err("not a multiple");
        assert!(unaligned.to_string().contains("1024"), "{unaligned}");
    }

    #[test]
    fn sizes_for_people_round_down() {
        let text = |bytes| HumanBytes(bytes).to_string();
        assert_eq!(text(0), "0 B");
        assert_eq!(text(1023), "1023 B");
        assert_eq!(text(20 << 30), "20 GiB");
        assert_eq!(text(3 << 39), "1.5 TiB");
        assert_eq!(text((1 << 40) - 1), "1023.9 GiB");
        assert_eq!(text(u64::MAX), "15.9 EiB");
    }

    proptest! {
        #[test]
        fn any_text_is_a_size_or_an_error(text in "\\PC*") {
            let _ = parse_bytes(&text);
        }

        #[test]
        fn a_plain_number_is_itself(bytes: u64) {
            prop_assert_eq!(parse_bytes(&bytes.to_string()), Ok(bytes));
        }
    }

    #[test]
    fn one_thing_is_not_many() {
        let counts = [0_u64, 1, 2].map(|n| count(n, "copy", "copies"));
        assert_eq!(counts, ["0 copies", "1 copy", "2 copies"]);
    }
}
