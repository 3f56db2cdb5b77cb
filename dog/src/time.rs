//! Times as RFC 3339 in UTC.

const MS_PER_DAY: u64 = 86_400_000;

/// Milliseconds since 1970 as `2026-11-22T18:46:36.000Z`; `None` for 0, which stands for "not known".
pub(crate) fn rfc3339(ms: u64) -> Option<String> {
    if ms == 0 {
        return None;
    }
    let (year, month, day) = civil(ms / MS_PER_DAY);
    let rest = ms % MS_PER_DAY;
    let (seconds, millis) = (rest / 1000, rest % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z"))
}

/// Year, month and day of a day counted from 1970-01-01.
///
/// Counts from the first of March of year 0, so that the leap day is the last of its year, in the
/// Gregorian calendar's cycle of 400 years.
fn civil(day: u64) -> (u64, u64, u64) {
    const DAYS_TO_1970: u64 = 719_468;
    const DAYS_PER_400_YEARS: u64 = 146_097;
    let day = day + DAYS_TO_1970;
    let (cycle, day) = (day / DAYS_PER_400_YEARS, day % DAYS_PER_400_YEARS);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    // From March on, months have 31, 30, 31, 30, 31 days in turn: 153 in every five.
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (year, month + 3) } else { (year + 1, month - 9) };
    (cycle * 400 + year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_printed_in_utc() {
        assert_eq!(rfc3339(0), None);
        assert_eq!(rfc3339(1).as_deref(), Some("1970-01-01T00:00:00.001Z"));
        assert_eq!(rfc3339(951_782_399_999).as_deref(), Some("2000-02-28T23:59:59.999Z"));
        assert_eq!(rfc3339(951_782_400_000).as_deref(), Some("2000-02-29T00:00:00.000Z"));
        assert_eq!(rfc3339(1_767_225_599_000).as_deref(), Some("2025-12-31T23:59:59.000Z"));
        assert!(rfc3339(u64::MAX).is_some(), "no overflow");
    }

    #[test]
    fn days_follow_one_another() {
        let lengths = |year: u64| {
            let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
            [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
        };
        let mut day = 0;
        for year in 1970..2500 {
            for (month, length) in (1..).zip(lengths(year)) {
                for date in 1..=length {
                    assert_eq!(civil(day), (year, month, date));
                    day += 1;
                }
            }
        }
    }
}
