//! Title case, which the standard library lacks.

/// The title case of a character: its upper case, of which only the first letter stays upper where it has
/// several, with the exceptions of Unicode's `SpecialCasing.txt` and `UnicodeData.txt`.
pub(super) fn title(c: char) -> String {
    let one = |c: u32| char::from_u32(c).map(String::from).unwrap_or_default();
    match c as u32 {
        // The four letters that exist in three cases.
        0x1c4..=0x1c6 => one(0x1c5),
        0x1c7..=0x1c9 => one(0x1c8),
        0x1ca..=0x1cc => one(0x1cb),
        0x1f1..=0x1f3 => one(0x1f2),
        // Georgian has capitals and does not begin words with them.
        0x10d0..=0x10fa | 0x10fd..=0x10ff => c.to_string(),
        // Greek with the iota below keeps it below.
        0x1f80..=0x1f87 | 0x1f90..=0x1f97 | 0x1fa0..=0x1fa7 => one(c as u32 + 8),
        0x1f88..=0x1f8f | 0x1f98..=0x1f9f | 0x1fa8..=0x1faf | 0x1fbc | 0x1fcc | 0x1ffc => c.to_string(),
        0x1fb3 | 0x1fc3 | 0x1ff3 => one(c as u32 + 9),
        0x1fb2 => "\u{1fba}\u{345}".to_owned(),
        0x1fb4 => "\u{386}\u{345}".to_owned(),
        0x1fb7 => "\u{391}\u{342}\u{345}".to_owned(),
        0x1fc2 => "\u{1fca}\u{345}".to_owned(),
        0x1fc4 => "\u{389}\u{345}".to_owned(),
        0x1fc7 => "\u{397}\u{342}\u{345}".to_owned(),
        0x1ff2 => "\u{1ffa}\u{345}".to_owned(),
        0x1ff4 => "\u{38f}\u{345}".to_owned(),
        0x1ff7 => "\u{3a9}\u{342}\u{345}".to_owned(),
        // An apostrophe comes first here.
        0x149 => "\u{2bc}N".to_owned(),
        _ => {
            let mut upper = c.to_uppercase();
            let first = upper.next().map(String::from).unwrap_or_default();
            let rest: String = upper.collect();
            if is_ligature(c) { first + &rest.to_lowercase() } else { first + &rest }
        }
    }
}

/// Letters whose upper case is several letters, and not one letter and marks.
fn is_ligature(c: char) -> bool {
    matches!(c as u32, 0xdf | 0xfb00..=0xfb06 | 0xfb13..=0xfb17 | 0x587)
}
