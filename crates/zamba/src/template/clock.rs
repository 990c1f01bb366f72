//! A moment as a calendar shows it, and Python's `strftime` for it, in the C locale.

/// A date and time of day without a zone. The caller decides which clock and zone it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CivilTime {
    /// Year, such as 2025.
    pub year: i64,
    /// Month, 1 to 12.
    pub month: u32,
    /// Day of the month, from 1.
    pub day: u32,
    /// Hour, 0 to 23.
    pub hour: u32,
    /// Minute, 0 to 59.
    pub minute: u32,
    /// Second, 0 to 59.
    pub second: u32,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

impl CivilTime {
    /// The moment `seconds` after 1970-01-01 00:00 on the same clock (UTC for Unix time; add the zone's offset for another).
    ///
    /// Proleptic Gregorian calendar, by Hinnant's `civil_from_days`.
    pub fn from_seconds(seconds: i64) -> Self {
        let (days, second_of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400) as u32);
        // Days from 0000-03-01, in eras of 400 years; a year begins in March so that the leap day is its last.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        Self {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month: month as u32,
            day: (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u32,
            hour: second_of_day / 3_600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
        }
    }

    /// Days since 1970-01-01, by Hinnant's `days_from_civil`.
    fn days(&self) -> i64 {
        let year = self.year - i64::from(self.month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let month_from_march = (i64::from(self.month) + 9) % 12;
        let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(self.day) - 1;
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
    }

    /// The day of the year, from 1.
    fn day_of_year(&self) -> i64 {
        self.days() - Self { month: 1, day: 1, ..*self }.days() + 1
    }

    /// Formats as `strftime` does. A `-` after `%` drops leading zeros, as in glibc.
    pub(super) fn format(&self, format: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut code = chars.next();
            let bare = code == Some('-');
            if bare {
                code = chars.next();
            }
            let field = code.and_then(|code| self.field(code));
            let field = field.ok_or_else(|| format!("strftime_now does not know the format {format:?}"))?;
            let short = field.trim_start_matches('0');
            out.push_str(match (bare, short) {
                (true, "") => "0",
                (true, short) => short,
                (false, _) => &field,
            });
        }
        Ok(out)
    }

    fn field(&self, code: char) -> Option<String> {
        let month = MONTHS.get((self.month as usize).checked_sub(1)?)?;
        let weekday = DAYS[self.days().rem_euclid(7) as usize];
        let hour_of_12 = (self.hour + 11) % 12 + 1;
        Some(match code {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year.rem_euclid(100)),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'B' => (*month).to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'j' => format!("{:03}", self.day_of_year()),
            'H' => format!("{:02}", self.hour),
            'I' => format!("{hour_of_12:02}"),
            'M' => format!("{:02}", self.minute),
            'S' => format!("{:02}", self.second),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'T' => format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_days_are_inverse() {
        for day in (-800_000..800_000).step_by(37) {
            let time = CivilTime::from_seconds(day * 86_400 + 86_399);
            assert_eq!(time.days(), day);
            assert_eq!((time.hour, time.minute, time.second), (23, 59, 59));
        }
        let leap = CivilTime::from_seconds(951_782_400);
        assert_eq!((leap.year, leap.month, leap.day), (2000, 2, 29));
    }

    #[test]
    fn fields_are_those_of_strftime() {
        // `date -u -d @1721980805`: Fri Jul 26 08:00:05 UTC 2024.
        let time = CivilTime::from_seconds(1_721_980_805);
        assert_eq!(time.format("%d %b %Y").as_deref(), Ok("26 Jul 2024"));
        assert_eq!(
            time.format("%A, %B %-d; %a %e %y/%m %j").as_deref(),
            Ok("Friday, July 26; Fri 26 24/07 208")
        );
        assert_eq!(time.format("%H:%M:%S %I %-I %p 100%%").as_deref(), Ok("08:00:05 08 8 AM 100%"));
        assert_eq!(time.format("%F %T").as_deref(), Ok("2024-07-26 08:00:05"));
        let midnight = CivilTime::from_seconds(0);
        assert_eq!(midnight.format("%I %p %-H %A").as_deref(), Ok("12 AM 0 Thursday"));
        assert!(time.format("%Q").is_err());
        assert!(time.format("50%").is_err());
    }
}
