//! Patterns of names.

/// `fnmatch`: `*`, `?` and sets in brackets.
pub(super) fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match pattern {
        [] => name.is_empty(),
        [b'*', rest @ ..] => (0..=name.len()).any(|at| matches(rest, &name[at..])),
        [b'?', rest @ ..] => !name.is_empty() && matches(rest, &name[1..]),
        [b'[', rest @ ..] if rest.iter().skip(1).any(|c| *c == b']') => {
            let Some((first, name)) = name.split_first() else { return false };
            let end = 1 + rest.iter().skip(1).position(|c| *c == b']').unwrap_or(0);
            let (set, rest) = (&rest[..end], &rest[end + 1..]);
            let (not, set) = if set[0] == b'!' { (true, &set[1..]) } else { (false, set) };
            let inside =
                set.contains(first) || set.windows(3).any(|w| w[1] == b'-' && (w[0]..=w[2]).contains(first));
            inside != not && matches(rest, name)
        }
        [c, rest @ ..] => name.first() == Some(c) && matches(rest, &name[1..]),
    }
}
